"""The decoder does what a run does, and goes on doing it elsewhere: after save and load, in another process, through a hub."""

import dataclasses
import json
import subprocess
import sys

import huggingface_hub
import mne
import numpy as np
import pytest
import torch
from hub_server import TOKEN, serving
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from tiny_runs import tiny

from brainspeech import SpeechDecoder, features, flow, hub, models, retrieval
from brainspeech.cache import Cache
from brainspeech.figures.style import Picture
from brainspeech.preprocess import load_signal
from brainspeech.report import files as report_files

SFREQ = 30.0
N_WINDOW = 90


@dataclasses.dataclass
class Study:
    """A tiny recipe's dataset, the decoder that was fitted on it, and the run of the same recipe."""

    recipe: object
    dataset: object
    cache: Cache
    decoder: SpeechDecoder
    run: object
    report: object


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    recipe = dataclasses.replace(tiny(), rows=("encoder",))
    cache = Cache(folder / "cache")
    dataset = flow.load_dataset(recipe, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_files.figures, "draw", lambda *_: [Picture("none", "", "", "", b"", "")])  # nobody looks at them
        report = SpeechDecoder.from_recipe(recipe).run(
            dataset, folder / "run", cache=cache, rows=recipe.rows, evaluate=recipe.evaluate, dataset=recipe.dataset
        )
    decoder = SpeechDecoder.from_recipe(recipe).fit(dataset, cache=cache)
    return Study(recipe, dataset, cache, decoder, folder / "run", report)


@pytest.fixture(scope="module")
def windows(study):
    """Three windows of the first recording, preprocessed; shape (3, C, T_w)."""
    recording = study.dataset.recordings()[0]
    signal = load_signal(study.dataset, recording, study.recipe.preprocess, study.cache)
    return np.stack([signal.data[:, start : start + N_WINDOW] for start in (100, 400, 1000)])


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.encoder_.state_dict().values(), b.encoder_.state_dict().values(), strict=True))


# ---------------------------------------------------------------------------------------------------------------------- as in a run


def test_a_fit_is_the_run_of_the_recipe(study):
    constants = json.loads((study.run / "recipe.json").read_text())["recipe"]
    named = {"name", "title", "notes", "linear_clip", "ridge"}  # of the report alone
    assert {k: v for k, v in constants.items() if k not in named} == {k: v for k, v in study.recipe.to_dict().items() if k not in named}
    decoder, run = study.decoder, SpeechDecoder.from_run(study.run)
    assert same(decoder, run)
    assert decoder.score() == study.report.rows["encoder"]["top10"]["value"]
    assert decoder.score(k=1) == study.report.rows["encoder"]["top1"]["value"]
    assert decoder.report(study.recipe.evaluate).rows["encoder"] == study.report.rows["encoder"]
    assert [h["valid_loss"] for h in decoder.history_] == [
        json.loads(line)["valid_loss"] for line in (study.run / "metrics.jsonl").read_text().splitlines()
    ]
    assert run.config_["report"]["rows"]["encoder"]["top10"] == study.report.rows["encoder"]["top10"]
    assert run.get_params(deep=False) == decoder.get_params(deep=False)


def test_the_test_windows_of_a_raw_are_ranked_as_in_the_fit(study):
    """From the raw recording and the names of the stimuli: predict, candidates and rank go the way of the batches."""
    decoder, test = study.decoder, study.decoder.test_
    candidates = decoder.candidates(test.candidates, dataset=study.dataset, cache=study.cache)
    expected = retrieval.ranks_from_scores(decoder.scores_, test.truth).ranks.numpy()
    fold = flow.segment(study.recipe, flow.prepare(study.recipe, None, study.cache, progress=False))[0]
    segs = [s for s in fold.segments if s.split == "test"]
    recording = study.dataset.recordings()[-1]
    mine = [i for i, s in enumerate(segs) if s.recording == recording.uid]
    onsets = [segs[i].onset for i in mine]
    options = {"onsets": onsets, "recording": recording.uid}
    raw = study.dataset.read_raw(recording)
    np.testing.assert_array_equal(decoder.rank(raw, candidates, test.truth[mine], **options), expected[mine])
    ranks = decoder.rank(raw, candidates, **options)
    assert ranks.shape == (len(mine), len(candidates))
    np.testing.assert_array_equal(ranks[np.arange(len(mine)), test.truth[mine]], expected[mine])
    np.testing.assert_array_equal(ranks.argsort(1)[:, 0], decoder.scores(raw, candidates, **options).argmax(1))
    signal = load_signal(study.dataset, recording, study.recipe.preprocess, study.cache)
    np.testing.assert_allclose(decoder.scores(signal, candidates, **options), decoder.scores_[mine], rtol=1e-4, atol=1e-5)


def test_a_window_goes_through_baseline_scale_clamp_and_lag(study, windows):
    """The same by hand, in numpy."""
    decoder, recording = study.decoder, study.dataset.recordings()[0]
    scale = decoder.statistics_.scales[recording.uid]
    windows = windows.copy()
    windows[0, 2, 50] *= 1e4  # which the clamp catches
    signal = windows - windows[:, :, :15].mean(2, keepdims=True)  # 0.5 s
    signal = np.clip((signal - np.array(scale.median)[:, None]) / np.array(scale.iqr)[:, None], -20, 20)[:, :, 5:]  # 0.15 s is 4.5 samples
    assert np.abs(signal).max() == 20
    positions = torch.from_numpy(np.stack([decoder.positions_[recording.uid]] * 3))
    with torch.inference_mode():
        subject = torch.zeros(3, dtype=torch.int64)
        expected = decoder.encoder_(torch.from_numpy(signal.astype(np.float32)), positions, subject).numpy()
    got = decoder.predict(windows, recording=recording.uid)
    assert got.shape == (3, 8, 85)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_segments_are_fitted_as_a_dataset_is(study):
    prepared = flow.prepare(study.recipe, None, study.cache, progress=False)
    segs = flow.segment(study.recipe, prepared)[0].segments
    tracks, _ = features.compute_tracks(
        prepared.feature,
        features.intervals(segs),
        study.dataset.read_stimulus,
        fingerprint=study.dataset.stimulus_fingerprint,
        cache=study.cache,
        progress=False,
    )
    decoder = clone(study.decoder).fit(segs, signals=prepared.signals, tracks=tracks, fill=prepared.feature.fill)
    assert same(decoder, study.decoder)
    with pytest.raises(ValueError, match=r"signals= .* and tracks="):
        clone(decoder).fit(segs)


# --------------------------------------------------------------------------------------------------------------------- what is given


def test_channels_are_matched_by_name(study, windows):
    decoder, recording = study.decoder, study.dataset.recordings()[0]
    names = decoder.ch_names_
    expected = decoder.predict(windows, recording=recording.uid)
    order = [3, 0, 5, 1, 4, 2]
    shuffled = decoder.predict(windows[:, order], recording=recording.uid, ch_names=[names[i] for i in order])
    np.testing.assert_array_equal(shuffled, expected)
    with pytest.warns(UserWarning, match=f"1 of 6 channels are missing and masked: {names[4]}"):
        masked = decoder.predict(windows[:, [0, 1, 2, 3, 5]], recording=recording.uid, ch_names=[*names[:4], names[5]])
    assert not np.array_equal(masked, expected)
    more = np.concatenate([windows, windows[:, :1]], axis=1)
    with pytest.warns(UserWarning, match="1 channels are unknown to the decoder and not used: EOG"):
        np.testing.assert_array_equal(decoder.predict(more, recording=recording.uid, ch_names=[*names, "EOG"]), expected)
    with pytest.raises(ValueError, match=r"None of the channels a, b.*Rename"):
        decoder.predict(windows, recording=recording.uid, ch_names=list("abcdef"))


def test_a_masked_channel_changes_nothing(study, windows):
    """What stands in a channel that is missing cannot matter; a flat one that is there does."""
    decoder, recording = study.decoder, study.dataset.recordings()[0]
    dataset, notes = decoder._fitted().windows(windows[:, :5], recording=recording.uid, ch_names=decoder.ch_names_[:5])
    assert notes == [f"1 of 6 channels are missing and masked: {decoder.ch_names_[5]}."]
    batch = dataset.batch([0])
    assert batch.channel_mask.tolist() == [[True] * 5 + [False]]
    assert not batch.signal[0, 5].any()


def test_subjects_are_found_by_name_and_others_are_said_to_be_unseen(study, windows):
    decoder, recording = study.decoder, study.dataset.recordings()[0]
    by_name = [decoder.predict(windows, subject=name) for name in ("simulated/sub-01", "sub-01", "01")]
    for other in by_name[1:]:
        np.testing.assert_array_equal(other, by_name[0])
    each = decoder.predict(windows, subject=["01", "02", "01"])
    np.testing.assert_allclose(each[[0, 2]], by_name[0][[0, 2]], rtol=1e-5, atol=1e-6)
    assert not np.allclose(each[1], by_name[0][1])
    with pytest.warns(UserWarning, match=r"1 subjects are not among.*\(77\).*generic subject layer"):
        unseen = decoder.predict(windows, subject="77")
    assert not np.allclose(unseen, by_name[0])
    with pytest.warns(UserWarning, match="not among"):
        refitted = decoder.predict(windows * 1e6, subject="77", refit=True)  # another unit does not matter then
    with pytest.warns(UserWarning, match="not among"):
        np.testing.assert_allclose(decoder.predict(windows, subject="77", refit=True), refitted, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match=r"No recording 'x'.*simulated/sub-01"):
        decoder.predict(windows, recording="x")
    with pytest.raises(ValueError, match="one for each of the 3, got 2"):
        decoder.predict(windows, subject=["01", "02"])
    assert recording.uid in decoder.statistics_.scales


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w * 1e6, r"e\+06 times as large .* in another unit"),
        (lambda w: w[:, :, :80], r"Expected windows of 90 samples at 30 Hz \(3 s\), got 80 at 30 Hz"),
        (lambda w: w[0], r"shape \(n, n_channels, n_times\), got float32 \(6, 90\)"),
        (lambda w: w[:, :4], "4 channels need ch_names"),
    ],
)
def test_windows_that_do_not_fit_are_named(study, windows, change, said):
    with pytest.raises(ValueError, match=said):
        study.decoder.predict(change(windows), subject="01")


def test_what_is_not_finite_and_what_is_not_fitted_are_named(study, windows):
    broken = windows.copy()
    broken[1, 2, 3] = np.nan
    with pytest.raises((RuntimeError, ValueError), match="NaN or infinite"):
        study.decoder.predict(broken, recording=study.dataset.recordings()[0].uid)
    with pytest.raises(NotFittedError, match="not fitted"):
        SpeechDecoder().predict(windows)
    with pytest.raises(ValueError, match="needs onsets="):
        study.decoder.predict(study.dataset.read_raw(study.dataset.recordings()[0]))


def test_epochs_are_windows(study, windows):
    decoder, recording = study.decoder, study.dataset.recordings()[0]
    info = mne.create_info([*decoder.ch_names_, "stim"], SFREQ, ["eeg"] * 6 + ["stim"])
    both_ends = np.concatenate([windows, windows[:, :, -1:]], axis=2)  # MNE's tmax is a sample too
    data = np.concatenate([both_ends, np.zeros((3, 1, N_WINDOW + 1))], axis=1)
    epochs = mne.EpochsArray(data, info, verbose="error")
    expected = decoder.predict(windows, recording=recording.uid)
    np.testing.assert_array_equal(decoder.predict(epochs, recording=recording.uid), expected)
    epochs.info["bads"] = [decoder.ch_names_[0]]
    with pytest.warns(UserWarning, match="1 of 6 channels are missing"):
        decoder.predict(epochs, recording=recording.uid)


def test_windows_at_another_rate_are_resampled(study):
    """A slow wave, drawn at twice the rate, is the same wave."""
    decoder, recording = study.decoder, study.dataset.recordings()[0]
    iqr = np.array(decoder.statistics_.scales[recording.uid].iqr)[:, None]

    def wave(sfreq):
        times = np.arange(round(3 * sfreq)) / sfreq
        return (iqr * np.cos(2 * np.pi * 2 * (times - 1.5) + np.arange(6)[:, None]))[None]

    expected = decoder.predict(wave(SFREQ), recording=recording.uid)
    got = decoder.predict(wave(2 * SFREQ), recording=recording.uid, sfreq=2 * SFREQ)
    assert np.abs(got - expected)[..., 10:-10].max() < 0.05 * expected.std()


# ------------------------------------------------------------------------------------------------------- candidates of all kinds agree


def test_candidates_of_sounds_and_of_names_are_the_same(study):
    decoder = study.decoder
    audio = decoder.test_.candidates[0].spans[0].audio
    sound, rate = study.dataset.read_stimulus(audio)
    starts = [2.0, 7.5]
    cuts = [(sound[0, round(s * rate) : round((s + 3) * rate)], rate) for s in starts]
    by_name = decoder.candidates([(audio, s) for s in starts], dataset=study.dataset, cache=study.cache)
    np.testing.assert_array_equal(decoder.candidates(cuts, cache=study.cache), by_name)
    raw_features = np.stack([features.build("mel", n_mels=8)(cut[None], rate)[0] for cut, rate in cuts])
    np.testing.assert_allclose(decoder.candidates(raw_features), by_name, atol=1e-5)
    n_window = round(decoder.segments.duration * decoder.preprocess.sfreq)
    rng = np.random.default_rng(0)
    ends = rng.standard_normal((2, raw_features.shape[1], n_window + 1))
    with pytest.warns(UserWarning, match="both ends are counted"):
        np.testing.assert_array_equal(decoder.candidates(ends), decoder.candidates(ends[..., :-1]))
    assert by_name.shape == (2, 8, 85)
    with pytest.raises(ValueError, match="need dataset="):
        decoder.candidates([(audio, 1.0)])
    with pytest.raises(ValueError, match="estimates 8 features, the candidates have 5"):
        decoder.candidates(np.ones((2, 5, 90)))
    with pytest.raises(ValueError, match=r"\(N, 8, 85\), got \(2, 8, 90\)"):
        decoder.scores(np.zeros((1, 6, N_WINDOW)), np.zeros((2, 8, N_WINDOW)), recording=study.dataset.recordings()[0].uid)


def test_another_feature_makes_no_candidates(study, tmp_path):
    study.decoder.save(tmp_path / "model")
    other = SpeechDecoder.load(tmp_path / "model", feature=features.build("mel", n_mels=9))
    with pytest.raises(ValueError, match=r"was fitted on the feature .*'n_mels': 8.* this one is .*'n_mels': 9"):
        other.candidates([(np.zeros(48_000, np.float32), 16_000)])


def test_a_saved_file_imports_nothing(study, tmp_path):
    folder = study.decoder.save(tmp_path / "model")
    kept = (folder / hub.CONFIG).read_text()

    def say(part):
        config = json.loads(kept)
        config["recipe"][part] = {"name": "antigravity:Thing", "options": {}}
        forged = config | {part: {"name": "antigravity:Thing", "config": {}}}
        (folder / hub.CONFIG).write_text(json.dumps(forged | {"seal": hub.seal(forged)}))

    say("feature")
    with pytest.raises(ValueError, match="'antigravity:Thing' is somebody's own; import its module first"):
        SpeechDecoder.load(folder).candidates([(np.zeros(48_000, np.float32), 16_000)])
    say("loss")
    with pytest.raises(RuntimeError, match="the loss 'antigravity:Thing' is somebody's own; import its module first"):
        SpeechDecoder.load(folder)
    extra = hub.read_tensors(folder / hub.EXTRA) | {"target_encoder/weight": torch.zeros(1)}
    hub.write_tensors(folder / hub.EXTRA, extra)
    kept = json.dumps(json.loads(kept) | {"digests": {}})
    say("target_encoder")
    with pytest.raises(RuntimeError, match="the target encoder 'antigravity:Thing' is somebody's own; import its module first"):
        SpeechDecoder.load(folder)
    assert "antigravity" not in sys.modules


# ---------------------------------------------------------------------------------------------------------------- save, load, and a hub


def test_a_fresh_process_gives_the_same_estimates(study, windows, tmp_path):
    """Nothing but the saved folder and the windows is there."""
    study.decoder.save(tmp_path / "model", licence="cc-by-4.0")
    np.save(tmp_path / "windows.npy", windows)
    script = (
        "import numpy as np; from brainspeech import SpeechDecoder\n"
        "decoder = SpeechDecoder.from_pretrained('model')\n"
        "np.save('estimates.npy', decoder.predict(np.load('windows.npy'), subject='02'))"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, timeout=120)
    np.testing.assert_array_equal(np.load(tmp_path / "estimates.npy"), study.decoder.predict(windows, subject="02"))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == sorted(hub.FILES)


def test_pushed_and_pulled_it_is_the_same(study, windows, tmp_path, monkeypatch):
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        study.decoder.push_to_hub("lab/listener", token=TOKEN, licence="cc0-1.0")
        pulled = SpeechDecoder.from_pretrained("lab/listener", cache_dir=tmp_path)
    np.testing.assert_array_equal(pulled.predict(windows, subject="01"), study.decoder.predict(windows, subject="01"))
    assert pulled.get_params(deep=False) == study.decoder.get_params(deep=False)
    assert 'license: "cc0-1.0"' in server.repos["lab/listener"]["README.md"].decode()
    with pytest.raises(FileNotFoundError, match="neither a folder nor a repository"):
        SpeechDecoder.from_pretrained(tmp_path / "nothing")


def test_it_is_a_mixin_of_the_hub_with_saves_of_its_own(study, windows, tmp_path, monkeypatch):
    decoder = study.decoder
    assert isinstance(decoder, huggingface_hub.ModelHubMixin)
    with serving() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        options = {"token": TOKEN, "private": True, "commit_message": "The first"}
        address = decoder.save_pretrained(tmp_path / "model", licence="cc0-1.0", push_to_hub=True, repo_id="lab/listener", **options)
        assert address == f"{server.url}/lab/listener/commit/{server.sha('lab/listener')}"
        assert (server.private, server.messages) == ({"lab/listener"}, ["The first"])
        cache = tmp_path / "cache"
        with pytest.raises(ConnectionError, match="nothing of it is in the cache"):
            SpeechDecoder.from_pretrained("lab/listener", cache_dir=cache, local_files_only=True)
        SpeechDecoder.from_pretrained("lab/listener", cache_dir=cache, token=TOKEN)
    # The hub is gone: what is in its cache is enough.
    pulled = SpeechDecoder.from_pretrained("lab/listener", cache_dir=cache, local_files_only=True)
    np.testing.assert_array_equal(pulled.predict(windows, subject="01"), decoder.predict(windows, subject="01"))
    assert sorted(server.repos["lab/listener"]) == sorted(p.name for p in (tmp_path / "model").iterdir()) == sorted(hub.FILES)
    assert decoder.generate_model_card(licence="cc0-1.0").data.to_dict()["license"] == "cc0-1.0"
    assert decoder.save_pretrained(tmp_path / "model") is None  # a save replaces a save
    with pytest.raises(ValueError, match="needs repo_id"):
        decoder.save_pretrained(tmp_path / "new", push_to_hub=True)
    with pytest.raises(TypeError, match="takes license only with push_to_hub=True; of a save: name and licence"):
        decoder.save_pretrained(tmp_path / "new", license="cc0-1.0")
    assert not (tmp_path / "new").exists()
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "config.json").write_text("{}")
    (tmp_path / "else" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"found mine\.txt"):
        decoder.save_pretrained(tmp_path / "else")
    assert (tmp_path / "else" / "config.json").read_text() == "{}"  # where the mixin itself would have removed it


def test_a_module_that_is_no_decoder_is_refused(tmp_path):
    encoder = models.build("conv", n_subjects=1, n_features=2, n_virtual=4, hidden=4, depth=1, n_harmonics=2)
    hub.save(tmp_path / "model", encoder, config={"subjects": ["x"]})
    with pytest.raises(RuntimeError, match=r"no decoder \(no recipe, ch_names, fill\)"):
        SpeechDecoder.load(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="holds no fitted encoder"):
        SpeechDecoder.from_run(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"is a run folder, no saved decoder: SpeechDecoder\.from_run\("):
        SpeechDecoder.load(tmp_path)  # which holds model/


class Own(SpeechDecoder):
    """With a parameter of its own."""

    def __init__(self, *, gain=1.0, **options):
        super().__init__(**options)
        self.gain = gain


class Needy(SpeechDecoder):
    """With one that has to be given."""

    def __init__(self, gain, **options):
        super().__init__(**options)
        self.gain = gain


class Narrow(SpeechDecoder):
    """With two, and no others."""

    def __init__(self, model="conv", lag=0.1):
        super().__init__(model=model, lag=lag)


def test_a_decoder_of_somebodys_own_keeps_its_parameters(study, tmp_path):
    own = Own(gain=2.0, lag=0.1)
    assert clone(own).get_params() == own.get_params()
    assert own.get_params()["gain"] == 2.0
    assert clone(own).set_params(gain=3.0, train__lr=0.5).gain == 3.0
    assert repr(own) == "Own(lag=0.1, gain=2.0)"
    assert clone(Narrow(lag=0.2)).get_params(deep=False) == {"model": "conv", "lag": 0.2}
    study.decoder.save(tmp_path / "model")
    assert Own.load(tmp_path / "model").gain == 1.0
    assert repr(Needy(1)) == "Needy(gain=1)"
    with pytest.raises(TypeError, match="Needy is made by load, which knows no gain"):
        Needy.load(tmp_path / "model")
