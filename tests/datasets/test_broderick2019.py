"""The Old Man and the Sea from Dryad's layout, on a fixture; and that it shares names, ids and split with ds004408."""

import json
import math
import shutil

import numpy as np
import pytest
import scipy.io
from eeg_miniatures import NARROW, RUNS, SEA_EEG, SEA_SOUND, noise, sea_text, sea_words, write_broderick2019, write_ds004408

from brainspeech import flow, segments
from brainspeech import recipe as recipes
from brainspeech.cache import Cache
from brainspeech.datasets import load
from brainspeech.datasets.broderick2019 import match_sentences
from brainspeech.preprocess import PreprocessConfig, preprocess


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_broderick2019(tmp_path_factory.mktemp("broderick2019"))


@pytest.fixture(scope="module")
def dataset(root):
    return load("broderick2019", root)


def test_recordings_are_subjects_x_runs_wherever_the_folder_begins(root, tmp_path):
    expected = [f"broderick2019/sub-0{s}/run-0{r}" for s in (1, 2) for r in RUNS]
    assert [r.uid for r in load("broderick2019", root).recordings()] == expected
    shutil.copytree(root, tmp_path / "Natural Speech")
    assert [r.uid for r in load("broderick2019", tmp_path).recordings()] == expected
    shutil.copytree(root, tmp_path / "again")
    with pytest.raises(RuntimeError, match="4 recordings are below"):
        load("broderick2019", tmp_path)


def test_raw_is_in_volt_on_the_biosemi_cap_and_mastoids_are_no_eeg(dataset):
    recording = dataset.recordings()[0]
    raw = dataset.read_raw(recording)
    assert (raw.info["sfreq"], raw.n_times) == (128.0, round(SEA_EEG * 128))
    assert raw.get_channel_types() == ["eeg"] * 128 + ["misc"] * 2
    assert (raw.ch_names[0], raw.ch_names[127], raw.ch_names[128]) == ("A1", "D32", "M1")
    np.testing.assert_allclose(raw.get_data(picks="eeg"), noise(128, raw.n_times, 51), rtol=1e-9)
    signal = preprocess(raw, PreprocessConfig(sfreq=64.0), uid=recording.uid)
    assert len(signal.ch_names) == 128
    assert np.isfinite(signal.positions).all()


def test_the_length_comes_from_the_header_of_the_mat_file(dataset, root, tmp_path):
    assert {dataset.duration(r) for r in dataset.recordings()} == {SEA_EEG}
    shutil.copytree(root, tmp_path / "part")
    scipy.io.savemat(tmp_path / "part/EEG/Subject1/Subject1_Run1.mat", {"other": np.zeros(3)})
    other = load("broderick2019", tmp_path / "part")
    assert other.duration(other.recordings()[0]) == math.inf
    with pytest.raises(RuntimeError, match="eegData, mastoids, fs missing"):
        other.read_raw(other.recordings()[0])


def test_arrays_of_another_shape_are_refused(root, tmp_path):
    shutil.copytree(root, tmp_path / "part")
    content = {"eegData": np.zeros((128, 500)), "mastoids": np.zeros((500, 2)), "fs": 128.0}
    scipy.io.savemat(tmp_path / "part/EEG/Subject1/Subject1_Run1.mat", content)
    other = load("broderick2019", tmp_path / "part")
    with pytest.raises(RuntimeError, match=r"sub-01/run-01: expected eegData .* got \(128, 500\)"):
        other.read_raw(other.recordings()[0])


def test_words_are_those_that_gentle_found_and_the_others_are_counted(dataset):
    recording = dataset.recordings()[0]
    table, truth = dataset.read_events(recording), sea_words(1).drop(7)
    words, phonemes = table[table["kind"] == "word"], table[table["kind"] == "phoneme"]
    assert words["text"].tolist() == truth["text"].tolist()
    np.testing.assert_allclose(words["onset"], truth["onset"] + 0.02, atol=1e-9)
    # Phonemes follow one another from the start of their word.
    np.testing.assert_allclose(phonemes["onset"].to_numpy()[::2], words["onset"])
    np.testing.assert_allclose(phonemes["onset"].to_numpy()[1::2], words["onset"] + truth["duration"].to_numpy() / 2, atol=6e-4)
    assert phonemes["text"].tolist() == ["ah", "t"] * len(words)
    assert table.loc[table["kind"] == "sound", ["onset", "duration", "audio"]].to_numpy().tolist() == [
        [0.0, SEA_SOUND, "oldman/audio01.wav"]
    ]
    # Once, although two listeners heard it.
    dataset.read_events(dataset.recordings()[2])
    assert dataset.notes.count(f"Run 1: 1 of {len(truth) + 1} words have no place in the sound and are left out.") == 1


def test_sentences_are_those_of_the_text(dataset):
    table = dataset.read_events(dataset.recordings()[0])
    words = table[table["kind"] == "word"]
    assert words["sequence"].tolist() == [f"01/{k}" for k in sea_words(1).drop(7)["sentence"]]


def test_match_sentences_follows_the_text_in_order():
    text = 'He was old. "Is he?" she asked! Then Mr. smith fished alone... The end.'
    words = ["he", "was", "old", "is", "he", "she", "asked", "then", "mister", "smith", "fished", "alone", "the", "end"]
    assert match_sentences(words, text, where="t") == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3]
    # A word without a match goes with the one before it; the first has none before it.
    assert match_sentences(["oh", *words[:8], *words[9:]], text, where="t")[:3] == [0, 0, 0]
    with pytest.raises(RuntimeError, match="only 2 of 6 aligned words are in this text"):
        match_sentences(["nothing", "of", "it", "was", "here", "old"], text, where="t")


def test_run_15_says_what_its_author_said(root, tmp_path):
    shutil.copytree(root, tmp_path / "part")
    for path, name in (
        (tmp_path / "part/private/align1.json", "align15.json"),
        (tmp_path / "part/private/oldman_run1.txt", "oldman_run15.txt"),
    ):
        path.rename(path.with_name(name))
    path = tmp_path / "part/EEG/Subject1/Subject1_Run1.mat"
    path.rename(path.with_name("Subject1_Run15.mat"))
    dataset = load("broderick2019", tmp_path / "part")
    dataset.read_events(next(r for r in dataset.recordings() if r.run == "15"))
    assert any("off around 170 s" in note for note in dataset.notes)


def test_mistakes_say_what_to_do(root, tmp_path):
    with pytest.raises(ValueError, match="root=DIR"):
        load("broderick2019")
    with pytest.raises(FileNotFoundError, match="open form of the same data is ds004408"):
        load("broderick2019", tmp_path)
    shutil.copytree(root, tmp_path / "part")
    (tmp_path / "part/private/oldman_run1.txt").unlink()
    dataset = load("broderick2019", tmp_path / "part")
    with pytest.raises(FileNotFoundError, match=r"oldman_run1\.txt is missing"):
        dataset.read_events(dataset.recordings()[0])
    (tmp_path / "part/private/oldman_run1.txt").write_text(sea_text(2))
    with pytest.raises(RuntimeError, match=r"oldman_run1\.txt: only \d+ of 69 aligned words"):
        dataset.read_events(dataset.recordings()[0])
    (tmp_path / "part/private/align1.json").write_text(json.dumps({"words": [{"case": "not-found-in-audio", "word": "he"}]}))
    with pytest.raises(RuntimeError, match="no word with case success among 1"):
        dataset.read_events(dataset.recordings()[0])


def test_the_recipe_runs_end_to_end(root, tmp_path):
    recipe = recipes.change(recipes.load("broderick2019"), NARROW)
    report = flow.run(recipe, root=root, out=tmp_path / "run", cache=Cache(tmp_path / "cache"), progress=False)
    assert len(report.per_subject) == 2
    assert report.n_candidates > 10


# ------------------------------------------------------------------------------------------------------------------- one split for both


def cut(dataset, config):
    recordings = dataset.recordings()
    tables = {r.uid: dataset.read_events(r) for r in recordings}
    return segments.make_segments(recordings, tables, {r.uid: dataset.duration(r) for r in recordings}, config)


@pytest.fixture(scope="module")
def raw_form(tmp_path_factory):
    return load("ds004408", write_ds004408(tmp_path_factory.mktemp("ds004408")))


def test_both_recipes_cut_and_split_the_same_audio_alike(dataset, raw_form):
    configs = []
    for name in ("broderick2019", "ds004408"):
        recipe = recipes.change(recipes.load(name), [s for s in NARROW if s.startswith("segments.") and "stride" not in s])
        configs.append(recipe.segments)
    assert configs[0] == configs[1]
    ours, theirs = (cut(d, configs[0]) for d in (dataset, raw_form))
    assert [(b.uid, b.split) for b in ours.blocks] == [(b.uid, b.split) for b in theirs.blocks]
    assert [b.start for b in ours.blocks if b.audio == "oldman/audio01.wav"] == [0.0, 6.0, 12.0, 18.0, 24.0]
    # The same audio and interval has the same id in both; together they leak nowhere.
    ids = [{s.stimulus_id for s in made.segments if s.split == "train"} for made in (ours, theirs)]
    assert ids[0] == ids[1]
    assert len(ids[0]) > 10
    assert segments.audit([*ours.segments, *theirs.segments], [*ours.blocks, *theirs.blocks]).errors == []


def test_at_sentences_the_two_alignments_would_be_cut_apart(dataset, raw_form):
    config = segments.SegmentConfig(valid_ratio=0.3, test_ratio=0.3, sfreq=30.0)
    ours, theirs = (cut(d, config) for d in (dataset, raw_form))
    assert {b.uid for b in ours.blocks} != {b.uid for b in theirs.blocks}


def test_the_paper_s_protocol_says_that_it_has_no_grid(dataset):
    config = segments.SegmentConfig(protocol="paper", blocks_at="grid", valid_ratio=0.5, test_ratio=0.3)
    assert any("no grid of the sound" in warning for warning in cut(dataset, config).warnings)
