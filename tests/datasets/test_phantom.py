"""The phantom: fields that obey physics, drivers that no one is offered, nuisances that can be left out, sounds of one's own, BIDS."""

import json
import shutil
import time
import warnings
from typing import Any

import mne
import numpy as np
import pandas as pd
import pytest
import scipy.signal
import soundfile

from brainspeech.datasets import bids, load, phantom_head, phantom_noise, phantom_response, speech_files
from brainspeech.datasets.phantom_bids import write_bids
from brainspeech.datasets.simulated import PRESETS, SimulatedDataset
from brainspeech.datasets.speech_synthesis import AUDIO_SFREQ, tell_story
from brainspeech.preprocess import PreprocessConfig, preprocess
from brainspeech.segments import SegmentConfig, make_segments

STILL = phantom_head.Pose(np.eye(3), np.zeros(3))
AUDITORY = phantom_head.Dipoles(np.array([[-0.05, 0.0, 0.02], [0.05, 0.0, 0.02]]), np.array([[0.0, 0.0, 1.0]] * 2))


@pytest.fixture(scope="module")
def story():
    return tell_story(np.random.default_rng(5), duration=60.0, name="s")


# ------------------------------------------------------------------------------------------------------------------------------- the head


@pytest.mark.parametrize(("kind", "n_channels"), [("eeg", 1), ("eeg", 20), ("eeg", 60), ("eeg", 128), ("meg", 208)])
def test_every_sensor_has_a_place_of_its_own_that_preprocessing_keeps(kind, n_channels):
    """In a helmet with KIT's coils and names MNE finds the layout of another KIT system; the sensors' own places must win."""
    info = phantom_head.make_info(kind, n_channels, 120.0)
    places = np.array([channel["loc"][:3] for channel in info["chs"]])
    assert np.isfinite(places).all()
    assert len(np.unique(places.round(4), axis=0)) == n_channels
    assert set(info.get_channel_types()) == {"eeg" if kind == "eeg" else "mag"}
    data = np.random.default_rng(0).standard_normal((n_channels, 600)) * 1e-6
    positions = preprocess(mne.io.RawArray(data, info, verbose="error"), PreprocessConfig()).positions
    assert positions.min() >= 0
    assert positions.max() <= 1
    assert len(np.unique(positions.round(4), axis=0)) == n_channels
    if n_channels > 16:
        for axis in (0, 1):  # right is right and front is front
            assert np.corrcoef(positions[:, axis], places[:, axis])[0, 1] > 0.9


def test_fields_obey_physics():
    eeg, meg = phantom_head.make_info("eeg", 60, 120.0), phantom_head.make_info("meg", 208, 120.0)
    for info in (eeg, meg):
        left, right = phantom_head.fields(info, AUDITORY, STILL).T
        centred = np.array([c["loc"][:3] for c in info["chs"]]) - (phantom_head.CENTRE if info is eeg else 0)
        strongest = np.abs(left).argmax(), np.abs(right).argmax()
        assert centred[strongest[0], 0] < 0 < centred[strongest[1], 0]  # each is seen best on its own side
    assert 1e-9 < np.abs(phantom_head.fields(eeg, AUDITORY, STILL)).max() < 1e-6  # 1 nAm makes some tens of nV ...
    assert 1e-15 < np.abs(phantom_head.fields(meg, AUDITORY, STILL)).max() < 1e-13  # ... and some fT
    outwards = AUDITORY.places / np.linalg.norm(AUDITORY.places, axis=1, keepdims=True)
    radial = phantom_head.fields(meg, phantom_head.Dipoles(AUDITORY.places, outwards), STILL)
    assert np.abs(radial).max() < 1e-6 * np.abs(phantom_head.fields(meg, AUDITORY, STILL)).max()  # a sphere hides radial dipoles from MEG
    up = phantom_head.fields(eeg, phantom_head.Dipoles(np.array([[0.0, 0.0, 0.05]]), np.array([[0.0, 0.0, 1.0]])), STILL)[:, 0]
    assert eeg.ch_names[up.argmax()] == "Cz"


@pytest.mark.parametrize("kind", ["eeg", "meg"])
def test_a_moved_head_is_seen_from_its_new_place(kind):
    """Turning the head by 90 degrees to the left is the same as having turned its dipoles."""
    info = phantom_head.make_info(kind, 60, 120.0)
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    turned = phantom_head.fields(info, AUDITORY, phantom_head.Pose(quarter, np.zeros(3)))
    dipoles = phantom_head.Dipoles(AUDITORY.places @ quarter.T, AUDITORY.directions @ quarter.T)
    np.testing.assert_allclose(turned, phantom_head.fields(info, dipoles, STILL), atol=1e-3 * np.abs(turned).max())
    if kind == "meg":
        assert not np.allclose(
            phantom_head.place_head(info, phantom_head.Pose(quarter, np.zeros(3)))["dev_head_t"]["trans"][:3, :3], np.eye(3)
        )


def test_listeners_differ_in_where_their_sources_and_their_heads_are():
    dataset = SimulatedDataset(n_subjects=3, minutes=0.25, n_channels=60)
    maps = [dataset.planted(r).maps[:, 0] for r in dataset.recordings()]
    same = np.corrcoef(maps)[np.triu_indices(3, 1)]
    assert (same > 0.5).all()
    assert (same < 0.999).all()


# ----------------------------------------------------------------------------------------------------------------------------- the answer


def test_adaptation_answers_a_change_more_than_what_stays():
    tone = 0.1 * np.sin(2 * np.pi * 500 * np.arange(2 * AUDIO_SFREQ) / AUDIO_SFREQ).astype(np.float32)
    sound = np.concatenate([np.zeros(AUDIO_SFREQ // 2, np.float32), tone])
    plain = phantom_response.filter_bands(sound)
    adapted = phantom_response._adapt(plain)
    band = plain.sum(axis=1).argmax()
    assert plain[band, 120] == pytest.approx(plain[band, 450], rel=0.02)
    assert adapted[band, 105] > 1.5 * adapted[band, 450]


def test_compression_takes_loudness_to_the_power_given():
    quiet = np.random.default_rng(0).standard_normal(AUDIO_SFREQ).astype(np.float32)
    both = phantom_response.filter_bands(np.concatenate([quiet, 10 * quiet]))
    assert np.median(both[:, 250:350] / both[:, 50:150]) == pytest.approx(10**0.3, rel=0.02)


def test_surprisal_falls_for_what_is_known_and_is_a_proper_code():
    tokens = ["the", "dog", "saw", "the", "dog", "saw", "the", "cat"]
    bits = phantom_response.surprisal(tokens, start=1000)
    assert bits[0] == pytest.approx(np.log2(1000))
    assert bits[4] < bits[1] - 5  # "dog" after "the", once more
    assert bits[7] > bits[4] + 3  # "cat" instead
    assert (bits > 0).all()


def test_drivers_stand_where_the_words_are(story):
    drivers = phantom_response.make_drivers(story)
    assert drivers.shape == (phantom_response.N_DRIVERS, len(story.audio) // 80 + 1)
    words = drivers[phantom_response.LEXICAL]
    onsets = np.array([piece.onset for piece in story.spoken if piece.kind == "word"])
    assert words[0].sum() == pytest.approx(len(onsets))
    centre = (words[0] * np.arange(words.shape[1])).sum() / words[0].sum() / phantom_response.DRIVER_SFREQ
    assert centre == pytest.approx(onsets.mean(), abs=1e-6)
    phonemes = drivers[phantom_response.PHONETIC]
    np.testing.assert_allclose(phonemes[0], phonemes[1:4].sum(axis=0), atol=1e-9)  # every phoneme has one class
    assert ((words[1] > 0) == (words[0] > 0)).all()


def test_the_answer_comes_after_the_sound_and_is_no_linear_function_of_the_plain_bands(story):
    response = phantom_response.draw_response(np.random.default_rng(0), np.random.default_rng(1))
    drivers = phantom_response.make_drivers(story)
    families = phantom_response.answer(response, drivers)
    courses = phantom_response.mix(families, np.stack([f.std(axis=1) for f in families]))
    assert courses.shape == (phantom_response.N_SOURCES, drivers.shape[1] + 99)
    for name, functions in zip(("acoustic", "phonetic", "lexical"), response.functions, strict=True):
        peak = np.abs(functions).mean(axis=0).argmax() / phantom_response.DRIVER_SFREQ
        assert {"acoustic": 0.08, "phonetic": 0.1, "lexical": 0.2}[name] < peak < {"acoustic": 0.16, "phonetic": 0.3, "lexical": 0.42}[name]
    # The best linear filter from the plain bands, 0 to 500 ms, fitted and tested on the same data, leaves some of every source unexplained.
    bands = phantom_response.filter_bands(story.audio)
    bands = np.pad(bands - bands.mean(axis=1, keepdims=True), ((0, 0), (100, 0)))
    n = drivers.shape[1]
    design = np.concatenate([bands[:, 100 - lag : 100 - lag + n] for lag in range(0, 100, 4)]).T
    fit = design @ np.linalg.lstsq(design, courses[:, :n].T, rcond=None)[0]
    explained = [np.corrcoef(a, b)[0, 1] ** 2 for a, b in zip(fit.T, courses[:, :n], strict=True)]
    assert max(explained) < 0.97
    assert min(explained) < 0.7


# -------------------------------------------------------------------------------------------------------------------------- the nuisances

SMALL: dict[str, Any] = {"n_subjects": 1, "minutes": 1.0, "n_channels": 16}


def only(name):
    dataset = SimulatedDataset(**SMALL, nuisances=name)
    return dataset, dataset.read_raw(dataset.recordings()[0])


@pytest.fixture(scope="module")
def plain():
    return only("none")[1].get_data()


@pytest.mark.parametrize("name", phantom_noise.NUISANCES)
def test_each_nuisance_is_there_when_it_is_on_and_only_then(name, plain):
    dataset, raw = only(name)
    added = raw.get_data() - plain
    assert np.abs(added).max() > 1e-9
    counts = dataset.nuisances_of(dataset.recordings()[0])
    assert list(counts) == [name]
    assert counts[name] >= 1
    marked = [a["description"] for a in raw.annotations]
    assert marked == [name] * (counts[name] if name in ("blinks", "heartbeat", "amplifier_jump") else 0)
    assert PRESETS["gaussian"]["nuisances"] == ()
    assert name in SimulatedDataset().nuisances


def test_nuisances_look_like_what_they_are_called(plain):
    sfreq = 240.0

    def added(name):
        return only(name)[1].get_data() - plain

    frequencies, power = scipy.signal.welch(added("line_noise"), sfreq, nperseg=480)
    assert frequencies[power.mean(axis=0).argmax()] == 50
    dataset, raw = only("blinks")
    blinks = raw.get_data() - plain
    positions = np.array([c["loc"][1] for c in raw.info["chs"]])
    assert positions[np.abs(blinks).max(axis=1).argmax()] > 0.07  # at the forehead
    first = raw.annotations[1]["onset"]
    window = blinks[:, int(first * sfreq) : int((first + 0.4) * sfreq)]
    assert 50e-6 < np.abs(window).max() < 300e-6
    assert 6 < dataset.nuisances_of(dataset.recordings()[0])["blinks"] < 40  # in a good minute
    drift = added("slow_drift")
    frequencies, power = scipy.signal.periodogram(drift, sfreq, window="hann")
    assert power[:, frequencies < 0.3].sum() > 0.99 * power.sum()
    jump = added("amplifier_jump")
    assert np.count_nonzero(np.abs(np.diff(jump, axis=1)).max(axis=0) > 1e-9) == 1
    assert 1 <= np.count_nonzero(np.abs(jump[:, -1]) > 1e-9) < 16
    dead = only("dead_channel")[1].get_data()
    assert np.count_nonzero(~dead.any(axis=1)) == 1
    signal = preprocess(only("dead_channel")[1], PreprocessConfig())
    assert signal.dropped == {"flat": 1}


def test_densities_have_the_power_that_they_say():
    rng = np.random.default_rng(0)
    f = np.linspace(0.5, 30, 2951)
    for alpha in (True, False):
        assert np.trapezoid(phantom_noise.background_density(f, alpha=alpha), f) == pytest.approx(1, rel=1e-3)
    assert np.trapezoid(phantom_noise.sensor_density(f), f) == pytest.approx(1)
    noise = phantom_noise.coloured(rng, 40, 6000, 120.0, phantom_noise.sensor_density)
    assert noise.var() == pytest.approx(60 / 29.5, rel=0.02)


@pytest.mark.slow
def test_forty_minutes_in_under_twenty_seconds():
    begin = time.process_time()
    dataset = SimulatedDataset(n_subjects=4, minutes=10.0, n_channels=128)
    for recording in dataset.recordings():
        dataset.read_raw(recording)
    assert time.process_time() - begin < 20


def test_the_same_bits_whatever_is_read_first_also_in_the_helmet():
    options = {"n_subjects": 2, "minutes": 0.5, "n_channels": 40, "kind": "meg", "preset": "realistic"}
    one, two = SimulatedDataset(**options), load("simulated", **options)
    expected = [one.read_raw(r) for r in one.recordings()]
    for recording, raw in reversed(list(zip(two.recordings(), expected, strict=True))):
        again = two.read_raw(recording)
        np.testing.assert_array_equal(again.get_data(), raw.get_data())
        assert list(again.annotations.onset) == list(raw.annotations.onset)
        assert one.duration(recording) == raw.n_times / raw.info["sfreq"]


@pytest.mark.parametrize(
    ("nuisances", "names"), [("all", phantom_noise.NUISANCES), ("none", ()), ("blinks, line_noise", ("line_noise", "blinks"))]
)
def test_nuisances_by_name(nuisances, names):
    assert SimulatedDataset(nuisances=nuisances).nuisances == names


# ---------------------------------------------------------------------------------------------------------------------- sounds of one's own


def write_sound(folder, name, seconds, words, *, form="json", sfreq=16_000):
    rng = np.random.default_rng(len(name))
    soundfile.write(folder / f"{name}.wav", 0.1 * rng.standard_normal((round(seconds * sfreq), 2)), sfreq)
    if form == "json":
        pieces = [{"b": b, "d": d, "t": t, "w": [{"b": b, "d": d, "t": "AE"}]} for b, d, t in words]
        (folder / f"{name}.json").write_text(json.dumps({"t": "", "w": pieces}))
    elif form == "csv":
        pd.DataFrame(words, columns=["onset", "duration", "text"]).to_csv(folder / f"{name}.csv", index=False)
    else:
        edges = [0.0, *(e for b, d, _ in words for e in (b, b + d)), seconds]
        labels = ["", *(label for _, _, t in words for label in (t, ""))]
        rows = [(a, b, t) for a, b, t in zip(edges, edges[1:], labels, strict=False) if b > a]
        lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", str(seconds), "<exists>", "1"]
        lines += ['"IntervalTier"', '"words"', "0", str(seconds), str(len(rows))]
        (folder / f"{name}.TextGrid").write_text("\n".join([*lines, *(f'{a}\n{b}\n"{t}"' for a, b, t in rows)]) + "\n")


WORDS = [
    (0.0, 0.2, "<sil>"),
    (0.2, 0.3, "and(2)"),
    (0.5, 0.4, "so"),
    (0.9, 0.5, "sil"),
    (1.4, 0.4, "it"),
    (1.8, 0.3, "[noise]"),
    (2.1, 0.4, "went"),
]


@pytest.mark.parametrize(("form", "ending"), [("json", "json"), ("csv", "csv"), ("textgrid", "TextGrid")])
def test_alignments_are_read_and_cleaned(tmp_path, form, ending):
    write_sound(tmp_path, "one", 3.5, WORDS, form=form)
    pieces = speech_files.read_alignment(tmp_path / f"one.{ending}")
    assert [(round(b, 6), round(d, 6), t) for kind, b, d, t in pieces if kind == "word"] == [
        (0.2, 0.3, "and"),
        (0.5, 0.4, "so"),
        (1.4, 0.4, "it"),
        (2.1, 0.4, "went"),
    ]
    story = speech_files.load_story(tmp_path / "one.wav", tmp_path / f"one.{ending}")
    sentences = [(p.text, p.sequence) for p in story.spoken if p.kind == "sentence"]
    assert sentences == [("and so", "one/000"), ("it", "one/001"), ("went", "one/002")]
    assert {p.text: p.sequence for p in story.spoken if p.kind == "word"}["went"] == "one/002"


def test_sounds_are_played_one_after_the_other_and_answered(tmp_path):
    write_sound(tmp_path, "b", 6.0, WORDS, sfreq=22_050)
    write_sound(tmp_path, "a", 4.0, WORDS, form="csv")
    dataset = SimulatedDataset(n_subjects=2, n_channels=8, audio=tmp_path, snr_db=20.0, nuisances="none")
    first = dataset.recordings()[0]
    table = dataset.read_events(first)
    sounds = table[table["kind"] == "sound"]
    assert list(sounds["audio"]) == ["a.wav", "b.wav"]
    assert list(sounds["duration"]) == [4.0, 6.0]
    gap = sounds["onset"].iloc[1] - sounds["onset"].iloc[0] - 4.0
    assert 1 <= gap <= 3
    assert "AE" in set(table["text"])
    data, sfreq = dataset.read_stimulus("b.wav")
    assert (data.shape, sfreq) == ((2, 132_300), 22_050.0)
    raw = dataset.read_raw(first)
    power = (raw.get_data() ** 2).mean(axis=0)
    start = sounds["onset"].iloc[0]
    heard = power[int((start + 0.1) * 240) : int((start + 4.0) * 240)].mean()
    assert heard > 10 * power[: int(start * 240)].mean()
    assert dataset.stimulus_fingerprint("a.wav") != dataset.stimulus_fingerprint("b.wav")
    before = dataset.fingerprint(first)
    write_sound(tmp_path, "a", 4.0, WORDS[:3], form="csv")
    assert SimulatedDataset(n_subjects=2, n_channels=8, audio=tmp_path, snr_db=20.0, nuisances="none").fingerprint(first) != before


def test_a_folder_that_is_not_right_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        SimulatedDataset(audio=tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no sound"):
        SimulatedDataset(audio=tmp_path)
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    with pytest.raises(ValueError, match=r"a\.wav has no alignment; expected one of a\.TextGrid, a\.phone\.json, a\.json, a\.csv"):
        SimulatedDataset(audio=tmp_path)
    cases = [
        ("[]", "is not an alignment as pocketsphinx writes it"),
        ('{"w": [{"b": 0, "d": 1, "t": "<sil>"}]}', "holds no word"),
        ('{"w": [{"b": 0.5, "d": 2, "t": "late"}]}', "end after their sound, which is 1.000 s long"),
        ('{"w": [{"b": -1, "d": 1, "t": "early"}]}', "has no proper time"),
    ]
    for text, message in cases:
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            speech_files.load_story(tmp_path / "a.wav", tmp_path / "a.json")
    (tmp_path / "a.json").unlink()
    (tmp_path / "a.csv").write_text("begin,text\n0,x\n")
    with pytest.raises(ValueError, match="lacks the columns duration, onset; it has begin, text"):
        speech_files.load_story(tmp_path / "a.wav", tmp_path / "a.csv")


def test_minutes_bound_what_is_heard_and_what_is_left_out_is_said(tmp_path):
    for name in "abc":
        write_sound(tmp_path, name, 5.0, WORDS)
    with pytest.warns(UserWarning, match="2 of 3 sounds of .* fit into minutes=0.2; the others are left out"):
        dataset = SimulatedDataset(audio=tmp_path, minutes=0.2)
    assert dataset.stimuli() == ["a.wav", "b.wav"]
    with pytest.raises(ValueError, match=r"no sound of .* fits into minutes=0.05; the first lasts 5.0 s"):
        SimulatedDataset(audio=tmp_path, minutes=0.05)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(SimulatedDataset(audio=tmp_path).stimuli()) == 3


def test_long_folders_become_several_runs():
    runs = speech_files.make_runs({name: 70.0 for name in "abcde"}, seconds=150.0)
    assert runs == [["a", "b", "c"], ["d", "e"]]


@pytest.mark.data
def test_real_speech_of_two_sources_in_one_folder(shared, tmp_path):
    """Alice's segment 12 with its TextGrid and the LibriVox clips with their JSON: splits by name, the clip of 2.99 s is counted."""
    alice = shared / "data/brennan2019"
    shutil.copy(alice / "stimuli/DownTheRabbitHoleFinal_SoundFile12.wav", tmp_path)
    shutil.copy(alice / "textgrids/DownTheRabbitHoleFinal_SoundFile12.TextGrid", tmp_path)
    for number in ("0870", "0880", "0890", "0920", "0930"):
        for ending in (".wav", ".json"):
            shutil.copy(shared / f"data/speech/librivox/sense_and_sensibility_01_austen_64kb-{number}{ending}", tmp_path)
    dataset = SimulatedDataset(n_subjects=2, n_channels=20, audio=tmp_path, snr_db=0.0)
    assert len(dataset.stimuli()) == 6
    tables = {r.uid: dataset.read_events(r) for r in dataset.recordings()}
    table = next(iter(tables.values()))
    words = table[table["kind"] == "word"]
    assert not words["text"].str.contains(r"[<(\d]").any()
    clip = words[words["audio"].str.contains("0870")]
    assert list(clip["text"][:4]) == ["and", "mister", "john", "dashwood"]
    assert clip["audio_onset"].iloc[0] == pytest.approx(0.2)
    alice_words = words[words["audio"].str.contains("Alice|Rabbit")]
    assert list(alice_words["text"][:3]) == ["soon", "her", "eye"]
    assert alice_words["audio_onset"].iloc[0] == pytest.approx(0.229)
    assert (table.loc[table["audio"].str.contains("Rabbit"), "kind"] == "phoneme").any()

    config = SegmentConfig(assign={"Down*": "train", "*-08[78]0*": "valid", "*-0890*": "test", "*-09*": "test"}, test_anchors="grid")
    durations = {r.uid: dataset.duration(r) for r in dataset.recordings()}
    fold = make_segments(dataset.recordings(), tables, durations, config)
    splits = {audio: {s.split for s in fold.segments for span in s.spans if span.audio == audio} for audio in dataset.stimuli()}
    short = "sense_and_sensibility_01_austen_64kb-0880.wav"
    assert splits.pop(short) == set()
    assert splits == {
        audio: {"train" if audio.startswith("Down") else "valid" if "-0870" in audio else "test"}
        for audio in dataset.stimuli()
        if audio != short
    }
    without = make_segments(
        dataset.recordings(), {uid: t[t["audio"] != short] for uid, t in tables.items()}, durations, config_without(config, "*-0870*")
    )
    # 2.99 s hold no window of 3 s: each of the six places where one would begin is counted, for both listeners.
    assert fold.dropped["window leaves the block"] - without.dropped["window leaves the block"] == 2 * 6
    raw = dataset.read_raw(dataset.recordings()[0])
    assert np.isfinite(raw.get_data()).all()


def config_without(config, pattern):
    assign = {("*-0870*" if name == "*-08[78]0*" else name): split for name, split in config.assign.items()}
    assert pattern in assign
    return SegmentConfig(assign=assign, test_anchors="grid")


# ----------------------------------------------------------------------------------------------------------------------------------- BIDS


@pytest.mark.parametrize(("kind", "n_channels"), [("eeg", 12), ("meg", 40)])
def test_written_as_bids_and_read_again(tmp_path, kind, n_channels):
    dataset = SimulatedDataset(n_subjects=2, minutes=0.25, n_channels=n_channels, kind=kind, sfreq=120.0)
    folder = write_bids(dataset, tmp_path / "phantom", progress=False)
    again = bids.BidsDataset(folder)
    assert len(again.recordings()) == 2
    for mine, theirs in zip(dataset.recordings(), again.recordings(), strict=True):
        assert (mine.subject, mine.run) == (theirs.subject, theirs.run)
        written, read = dataset.read_raw(mine), again.read_raw(theirs)
        assert read.ch_names == written.ch_names
        np.testing.assert_allclose(read.get_data(), written.get_data(), atol=1e-6 * np.abs(written.get_data()).max())
        before, after = preprocess(written, PreprocessConfig(sfreq=60.0)), preprocess(read, PreprocessConfig(sfreq=60.0))
        np.testing.assert_allclose(after.positions, before.positions, atol=1e-5)
        old, new = dataset.read_events(mine), again.read_events(theirs)
        assert list(new["text"]) == list(old["text"])
        assert list(new["kind"]) == list(old["kind"])
        np.testing.assert_allclose(new["onset"], old["onset"], atol=1e-6)
        np.testing.assert_allclose(new["audio_onset"], old["audio_onset"], atol=1e-6)
    sound = again.read_stimulus(new["audio"].iloc[0])[0]
    np.testing.assert_array_equal(sound, dataset.read_stimulus("story-01.wav")[0])
    marked = pd.read_csv(next(folder.rglob("*_events.tsv")), sep="\t")
    assert set(marked["trial_type"]) >= {"sound", "word", "blinks", "heartbeat", "amplifier_jump"}
    with pytest.raises(ValueError, match="is not empty"):
        write_bids(dataset, folder)
