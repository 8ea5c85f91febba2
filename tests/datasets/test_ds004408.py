"""The Old Man and the Sea, raw, on a miniature of its tree; and the layout against the real listing."""

import math
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from eeg_miniatures import NARROW, RUNS, SEA_EEG, SEA_SOUND, noise, sea_words, write_brainvision, write_ds004408

from brainspeech import flow
from brainspeech import recipe as recipes
from brainspeech.cache import Cache
from brainspeech.datasets import load
from brainspeech.datasets.ds004408 import PAUSE
from brainspeech.preprocess import PreprocessConfig, preprocess


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_ds004408(tmp_path_factory.mktemp("ds004408"))


@pytest.fixture(scope="module")
def dataset(root):
    return load("ds004408", root)


def test_recordings_are_subjects_x_runs(dataset):
    assert [r.uid for r in dataset.recordings()] == [f"ds004408/sub-00{s}/run-0{r}" for s in (1, 2) for r in RUNS]
    assert dataset.excluded == {}


def test_raw_is_placed_and_its_bad_channels_are_left_out_and_counted(dataset):
    recording = dataset.recordings()[0]
    raw = dataset.read_raw(recording)
    assert raw.info["bads"] == ["A5"]
    np.testing.assert_allclose(raw.get_data(), noise(128, raw.n_times, 11), atol=1e-8)
    signal = preprocess(raw, PreprocessConfig(sfreq=64.0, reference="average"), uid=recording.uid)
    assert len(signal.ch_names) == 127
    assert sum(signal.dropped.values()) == 1
    assert np.isfinite(signal.positions).all()
    assert dataset.read_raw(dataset.recordings()[1]).info["bads"] == []


def test_the_length_is_the_sidecar_s_and_one_sample(dataset):
    for recording in dataset.recordings():
        raw = dataset.read_raw(recording)
        assert dataset.duration(recording) == pytest.approx(raw.n_times / 512) == pytest.approx(SEA_EEG)


def test_words_and_phonemes_come_from_the_textgrid_in_lower_case(dataset):
    for recording in dataset.recordings():
        table, truth = dataset.read_events(recording), sea_words(int(recording.run))
        sound = table[table["kind"] == "sound"]
        assert sound[["onset", "duration", "audio"]].to_numpy().tolist() == [[0.0, SEA_SOUND, f"oldman/audio{recording.run}.wav"]]
        words, phonemes = table[table["kind"] == "word"], table[table["kind"] == "phoneme"]
        assert words["text"].tolist() == truth["text"].tolist()
        np.testing.assert_allclose(words["onset"], truth["onset"], atol=1e-6)
        np.testing.assert_allclose(words["audio_onset"], truth["onset"], atol=1e-6)
        np.testing.assert_allclose(words["duration"], truth["duration"], atol=1e-6)
        assert len(phonemes) == 2 * len(words)
        assert set(phonemes["text"]) == {"AH0", "T"}
        assert phonemes["sequence"].tolist() == np.repeat(words["sequence"], 2).tolist()


def test_a_silence_ends_a_sequence(dataset):
    table = dataset.read_events(dataset.recordings()[0])
    words = table[table["kind"] == "word"]
    ends = words["onset"] + words["duration"]
    pause = (words["onset"].to_numpy()[1:] - ends.to_numpy()[:-1]) >= PAUSE
    new = words["sequence"].to_numpy()[1:] != words["sequence"].to_numpy()[:-1]
    assert new.tolist() == pause.tolist()
    assert words.groupby("sequence").size().iloc[:-1].tolist() == [5] * (words["sequence"].nunique() - 1)


def test_events_of_a_listener_are_a_copy(dataset):
    first = dataset.read_events(dataset.recordings()[0])
    first.loc[0, "onset"] = 99.0
    assert dataset.read_events(dataset.recordings()[0]).loc[0, "onset"] == 0.0


def test_side_files_alone_are_enough_to_list_and_describe(root, tmp_path):
    shutil.copytree(root, tmp_path / "part", ignore=shutil.ignore_patterns("*.eeg", "*.vhdr", "*.vmrk", "*.wav"))
    dataset = load("ds004408", tmp_path / "part")
    recording = dataset.recordings()[-1]
    assert len(dataset.recordings()) == 4
    assert dataset.duration(recording) == pytest.approx(SEA_EEG)
    table = dataset.read_events(recording)
    last = sea_words(2).iloc[-1]
    assert table.loc[table["kind"] == "sound", "duration"].tolist() == pytest.approx([last["onset"] + last["duration"]])
    with pytest.raises(FileNotFoundError, match="brainspeech download ds004408"):
        dataset.read_raw(recording)
    (tmp_path / "part" / recording.path).with_suffix(".json").unlink()
    assert dataset.duration(recording) == math.inf


def test_what_is_not_there_is_counted_once_something_is(root, tmp_path):
    shutil.copytree(root, tmp_path / "part")
    (tmp_path / "part/sub-001/eeg/sub-001_task-listening_run-02_eeg.vhdr").unlink()
    for path in (tmp_path / "part/sub-002/eeg").glob("*.vhdr"):
        path.unlink()
    dataset = load("ds004408", tmp_path / "part")
    assert [r.uid for r in dataset.recordings()] == ["ds004408/sub-001/run-01"]
    assert dataset.excluded == dict.fromkeys(["002", "001/02"], "its EEG is not in this folder")


def test_mistakes_say_what_to_do(root, tmp_path):
    with pytest.raises(ValueError, match="root=DIR"):
        load("ds004408")
    with pytest.raises(FileNotFoundError, match="brainspeech download ds004408"):
        load("ds004408", tmp_path)
    shutil.copytree(root, tmp_path / "part")
    dataset = load("ds004408", tmp_path / "part")
    recording = dataset.recordings()[0]
    write_brainvision(tmp_path / "part" / recording.path, noise(3, 1000, 0), 512.0, ["A1", "A2", "EXG1"])
    with pytest.raises(RuntimeError, match=r"sub-001/run-01: expected the 128 channels A1 to D32 .* got 3 .A1, A2, EXG1"):
        dataset.read_raw(recording)
    shutil.copy(tmp_path / "part/stimuli/audio01.wav", tmp_path / "part/stimuli/audio02.wav")
    (tmp_path / "part/stimuli/audio01.TextGrid").unlink()
    with pytest.raises(FileNotFoundError, match=r"audio01\.TextGrid is missing"):
        load("ds004408", tmp_path / "part").read_events(recording)
    with pytest.raises(ValueError, match=r"a stimulus is called oldman/audio01\.wav, \.\.\., got 'audio01\.wav'"):
        dataset.read_stimulus("audio01.wav")


def test_words_that_outlast_their_sound_are_refused(root, tmp_path):
    import soundfile

    shutil.copytree(root, tmp_path / "part")
    soundfile.write(tmp_path / "part/stimuli/audio01.wav", np.zeros(16_000), 16_000)
    dataset = load("ds004408", tmp_path / "part")
    with pytest.raises(RuntimeError, match=r"the words of run 1 end at .* the sound at 1\.000 s"):
        dataset.read_events(dataset.recordings()[0])


def test_the_recipe_runs_end_to_end(root, tmp_path):
    recipe = recipes.change(recipes.load("ds004408"), NARROW)
    report = flow.run(recipe, root=root, out=tmp_path / "run", cache=Cache(tmp_path / "cache"), progress=False)
    assert len(report.per_subject) == 2
    assert report.n_candidates > 10
    assert report.dropped["channels: marked bad"] == 1


@pytest.mark.data
def test_the_layout_is_that_of_the_real_listing(shared, root):
    real = pd.read_csv(shared / "data/manifests/ds004408.tsv", sep="\t")["path"]
    ours = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    assert set(ours) <= set(real)
    headers = [re.fullmatch(r"sub-(\d{3})/eeg/sub-\1_task-listening_run-(\d\d)_eeg\.vhdr", path) for path in real]
    found = [match.groups() for match in headers if match]
    assert len(found) == 380
    assert {int(subject) for subject, _ in found} == load("ds004408", root).published
    assert {f"stimuli/audio{run}.{ending}" for _, run in found for ending in ("wav", "TextGrid")} <= set(real)
