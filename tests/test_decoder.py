"""The decoder does what a run does, and goes on doing it elsewhere: after save and load, in another process, through a hub."""

import dataclasses
import json
import subprocess
import sys

import mne
import numpy as np
import pytest
import torch
from hub_server import TOKEN, serving
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GroupKFold, cross_val_score
from tiny_runs import tiny

from brainspeech import SpeechDecoder, features, flow, hub, losses, models, retrieval
from brainspeech.cache import Cache
from brainspeech.figures.style import Picture
from brainspeech.losses.joint import Joint
from brainspeech.preprocess import load_signal
from brainspeech.recipe import Choice
from brainspeech.report import files as report_files
from brainspeech.segments import SegmentConfig
from brainspeech.train import TrainConfig

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
        (folder / hub.CONFIG).write_text(json.dumps(config | {part: {"name": "antigravity:Thing", "config": {}}}))

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


def test_a_module_that_is_no_decoder_is_refused(tmp_path):
    encoder = models.build("conv", n_subjects=1, n_features=2, n_virtual=4, hidden=4, depth=1, n_harmonics=2)
    hub.save(tmp_path / "model", encoder, config={"subjects": ["x"]})
    with pytest.raises(RuntimeError, match=r"no decoder \(no recipe, ch_names, fill\)"):
        SpeechDecoder.load(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="holds no fitted encoder"):
        SpeechDecoder.from_run(tmp_path / "elsewhere")


# --------------------------------------------------------------------------------------------------------------------- windows in arrays


def planted(n_stimuli=60, n_channels=5, seed=0):
    """Windows of two listeners whose channels follow every stimulus by 0.1 s, in noise: signals, targets, who, what."""
    rng = np.random.default_rng(seed)
    sound = rng.standard_normal((n_stimuli, 3, 70)).cumsum(2)
    sound -= sound.mean(2, keepdims=True)
    signals, targets, who, what = [], [], [], []
    for subject in "ab":
        mixing = rng.standard_normal((n_channels, 3))
        for k in range(n_stimuli):
            brain = mixing @ sound[k, :, 7:67] + rng.standard_normal((n_channels, 60))
            signals.append(1e-6 * brain)
            targets.append(sound[k, :, 10:70])  # at 30 Hz, 3 samples are 0.1 s
            who.append(subject)
            what.append(f"word {k}")
    return np.array(signals), np.array(targets), who, what


def linear(**changes):
    values = {
        "model": Choice("linear_clip", {"rank": 3, "lags": (0,)}),
        "preprocess": dataclasses.replace(SpeechDecoder().preprocess, sfreq=SFREQ),
        "segments": SegmentConfig(sfreq=SFREQ, valid_ratio=0.2, test_ratio=0.2),
        "train": TrainConfig(lr=0.03, batch_size=16, max_epochs=8),
        "lag": 0.1,
    }
    return SpeechDecoder(**(values | changes))


def test_arrays_are_fitted_split_by_stimulus_and_scored(tmp_path):
    signals, targets, who, what = planted()
    decoder = linear().fit(signals, targets, subject=who, stimuli=what, ch_names=list("vwxyz"))
    names = {s.stimulus_id for s in decoder.test_.candidates}
    assert 5 < len(names) < 25
    assert len(decoder.test_.truth) == 2 * len(names)  # both listeners' windows of a stimulus are on one side
    assert decoder.score(k=1) > 0.5
    new, new_targets, who, _ = planted(n_stimuli=60)
    mine = [i for i in range(len(new)) if f"word {i % 60}" in names]
    assert decoder.score(new[mine], new_targets[mine], k=1, subject=[who[i] for i in mine]) == decoder.score(k=1)
    decoder.save(tmp_path / "model")
    loaded = SpeechDecoder.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(signals[:4], subject="a"), decoder.predict(signals[:4], subject="a"))
    with pytest.raises(ValueError, match="fitted on targets that were given"):
        loaded.candidates([(np.zeros(48_000, np.float32), 16_000)])
    with pytest.raises(ValueError, match="There are no test windows"):
        loaded.score()


def small_conv(**changes):
    values = {
        "model": Choice("conv", {"n_virtual": 5, "hidden": 6, "depth": 1, "n_harmonics": 2}),
        "train": TrainConfig(lr=0.01, batch_size=16, max_epochs=2),
    }
    return linear(**(values | changes))


def epochs_of(signals):
    info = mne.create_info(list("vwxyz"), SFREQ, "eeg")
    places = {name: 0.09 * np.eye(5, 3)[i] + 0.01 * i for i, name in enumerate("vwxyz")}
    info.set_montage(mne.channels.make_dig_montage(places, coord_frame="head"))
    return mne.EpochsArray(signals, info, verbose="error")


def test_epochs_are_fitted_with_an_audio_encoder(tmp_path):
    """Trained jointly, saved with the encoder, and used wherever candidates are compared."""
    signals, targets, who, what = planted()
    epochs, heard = epochs_of(signals), {"subject": who, "stimuli": what}
    ear = Choice("deep_mel", {"n_outputs": 4, "hidden": 4, "depth": 2})
    decoder = small_conv(target_encoder=ear).fit(epochs, targets, **heard)
    names = {s.stimulus_id for s in decoder.test_.candidates}
    mine = [i for i, name in enumerate(what) if name in names]
    given = {"subject": [who[i] for i in mine], "stimuli": [what[i] for i in mine]}
    assert decoder.score(epochs[mine], targets[mine], k=3, **given) == decoder.score(k=3)
    candidates = decoder.candidates(targets[:9])
    assert decoder.predict(epochs[:2], subject="a").shape == (2, 4, 57)
    assert candidates.shape == (9, 3, 57)
    scores = decoder.scores(epochs[:5], candidates, subject="a")
    loaded = SpeechDecoder.load(decoder.save(tmp_path / "model"))
    np.testing.assert_array_equal(loaded.scores(epochs[:5], candidates, subject="a"), scores)
    assert loaded.target_encoder == ear
    with pytest.raises(ValueError, match="was fitted on 3 features, the candidates have 4"):
        loaded.candidates(np.ones((2, 4, 60)))
    with pytest.raises(ValueError, match="whole numbers, got float64"):
        loaded.rank(epochs[:2], candidates, [0.5, 1.0], subject="a")
    # Without the weights of the audio encoder there is nothing to compare with.
    folder = tmp_path / "model"
    extra = {key: value for key, value in hub.read_tensors(folder / hub.EXTRA).items() if key.startswith("positions/")}
    saved = hub.load(folder)
    config = {key: value for key, value in saved.config.items() if key not in hub.RESERVED}
    hub.save(folder, saved.module, config=config, statistics=saved.statistics, extra=extra)
    with pytest.raises(RuntimeError, match="trained jointly with a target_encoder, which is not in this folder"):
        SpeechDecoder.load(folder)


def test_shuffled_targets_are_at_chance():
    signals, targets, who, what = planted()
    order = np.random.default_rng(1).permutation(60)
    decoder = linear().fit(signals, targets[np.r_[order, order]], subject=who, stimuli=[what[i] for i in order] * 2, ch_names=list("vwxyz"))
    assert decoder.score(k=1) < 0.3


def test_arrays_that_do_not_belong_together_are_named():
    signals, targets, who, what = planted(n_stimuli=20)
    given = {"subject": who, "stimuli": what, "ch_names": list("vwxyz")}
    with pytest.raises(ValueError, match="heard the stimulus 'word 0' but have different targets"):
        linear().fit(signals, targets + np.arange(40)[:, None, None], **given)
    with pytest.raises(ValueError, match="but are of two blocks"):
        linear().fit(signals, targets, blocks=range(40), **given)
    with pytest.raises(ValueError, match="one for each of 40 windows, got"):
        linear().fit(signals, targets[:3], **given)
    with pytest.raises(ValueError, match=r"needs training and validation windows.*'valid': 0"):
        linear(segments=SegmentConfig(sfreq=SFREQ, valid_ratio=0.0)).fit(signals, targets, **given)
    with pytest.raises(ValueError, match="and no targets"):
        linear().fit(signals)
    with pytest.raises(ValueError, match="are there NaN"):
        linear().fit(signals, np.where(targets == targets[3, 0, 0], np.nan, targets), **given)


# ------------------------------------------------------------------------------------------------------------- in the manner of sklearn


def test_parameters_are_kept_as_they_are_and_cloned():
    decoder = linear(loss="siglip", seed=3)
    copy = clone(decoder)
    assert copy.get_params() == decoder.get_params()
    assert decoder.get_params()["train__lr"] == 0.03
    assert decoder.get_params()["model__rank"] == 3
    assert SpeechDecoder(**decoder.get_params(deep=False)).train is decoder.train
    copy.set_params(train__lr=0.5, model__rank=2, loss__name="clip", lag=0.2)
    assert (copy.train.lr, copy.model.options["rank"], copy.loss, copy.lag) == (0.5, 2, Choice("clip"), 0.2)
    assert (decoder.train.lr, decoder.model.options["rank"], decoder.loss, decoder.lag) == (0.03, 3, "siglip", 0.1)
    assert not hasattr(clone(decoder), "encoder_")
    assert "seed=3" in repr(decoder)
    for wrong in ("colour", "train__colour", "lag__x"):
        with pytest.raises(ValueError, match=f"has no parameter '{wrong}'"):
            decoder.set_params(**{wrong: 1})


def test_modules_and_features_stand_for_their_names_and_options():
    encoder = models.build("conv", n_subjects=3, n_features=2, n_virtual=4, hidden=6, depth=1, n_harmonics=2)
    decoder = SpeechDecoder(model=encoder, loss=losses.build("siglip"), feature=features.build("mel", n_mels=9))
    recipe = decoder._recipe()
    assert (recipe.model.name, recipe.model.options["hidden"], recipe.loss.name) == ("conv", 6, "siglip")
    assert not {"n_subjects", "n_features"} & set(recipe.model.options)
    ear = models.build_target("deep_mel", n_features=3, n_outputs=4, hidden=4, depth=2)
    decoder = SpeechDecoder(model=models.find("conv"), loss=losses.find("siglip"), target_encoder=ear)
    assert (decoder._recipe().model, decoder._recipe().loss) == (Choice("conv"), Choice("siglip"))
    assert decoder._recipe().target_encoder.options["n_outputs"] == 4
    assert decoder.set_params(target_encoder=None)._recipe().target_encoder is None
    with pytest.raises(ValueError, match=r"model must be a name, a Choice, or what models\.build made"):
        SpeechDecoder(model=torch.nn.Linear(2, 2))._recipe()
    with pytest.raises(ValueError, match="its two parts: loss= and target_encoder="):
        SpeechDecoder(loss=Joint(losses.build("clip"), ear))._recipe()


def test_it_is_cross_validated():
    signals, targets, _, what = planted(n_stimuli=40)
    mine = slice(0, 40)
    decoder = small_conv(
        train=TrainConfig(batch_size=16, max_epochs=1),
        segments=SegmentConfig(sfreq=SFREQ, valid_ratio=0.3, test_ratio=0.0),
    )
    given = {"ch_names": list("vwxyz"), "positions": np.random.default_rng(0).random((5, 2))}
    found = cross_val_score(decoder, signals[mine], targets[mine], cv=GroupKFold(2), groups=what[mine], params=given, error_score="raise")
    assert found.shape == (2,)
    assert ((found >= 0) & (found <= 1)).all()
