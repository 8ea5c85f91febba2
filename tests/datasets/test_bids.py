"""BIDS folders: small ones written with mne-bids, the vendors' formats, and the side files of published sets."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mne
import mne_bids
import numpy as np
import pytest
import soundfile

from brainspeech import datasets, flow
from brainspeech.cache import Cache
from brainspeech.datasets import bids
from brainspeech.datasets.bids_events import Stimuli, interpret
from brainspeech.datasets.bids_files import read_tsv
from brainspeech.datasets.phantom_bids import write_bids
from brainspeech.datasets.simulated import SimulatedDataset
from brainspeech.listing import merged
from brainspeech.preprocess import PreprocessConfig, preprocess
from brainspeech.recipe import Choice, Recipe
from brainspeech.segments import SegmentConfig
from brainspeech.signals import load_signals
from brainspeech.train import TrainConfig

SFREQ, SECONDS, AUDIO = 100.0, 60.0, 8000
STORIES = ("north", "south")
WORDS = ("the", "old", "king", "sold", "golden", "boat", "nobody", "in", "this", "quiet", "village", "ever", "knew", "why")


def words_of(story):
    """Words every half second in sentences of five, different ones in each story."""
    rng = np.random.default_rng(STORIES.index(story))
    onsets = np.arange(0.2, SECONDS - 6.0, 0.5)
    return [(float(t), 0.4, str(rng.choice(WORDS)), i // 5) for i, t in enumerate(onsets)]


def write_sounds(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        sound = np.random.default_rng(k).normal(0, 0.1, round((SECONDS - 5) * AUDIO)) * (
            1 + np.sin(np.arange(round((SECONDS - 5) * AUDIO)) / 900)
        )
        soundfile.write(folder / name, sound, AUDIO)


def write_table(path, rows):
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["\t".join(columns), *("\t".join(str(row.get(c, "n/a")) for c in columns) for row in rows)]
    path.write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")  # with the byte-order mark that mne-bids writes


def eeg(seed, n_times=6000):
    montage = mne.channels.make_standard_montage("biosemi16")
    info = mne.create_info([*montage.ch_names, "EKG"], SFREQ, ["eeg"] * 16 + ["ecg"])
    raw = mne.io.RawArray(1e-5 * np.random.default_rng(seed).standard_normal((17, n_times)), info, verbose="error")
    raw.set_montage(montage)
    raw.info["line_freq"] = 50
    raw.info["bads"] = ["Pz"]
    return raw


def meg(seed, n_times=6000):
    """Eight magnetometers in a ring."""
    info = mne.create_info([f"MEG{k:03d}" for k in range(8)], SFREQ, "mag")
    for k, channel in enumerate(info["chs"]):
        channel["loc"][:3] = 0.1 * np.cos(k * np.pi / 4), 0.1 * np.sin(k * np.pi / 4), 0.05
        channel["loc"][3:12] = np.eye(3).ravel()
    raw = mne.io.RawArray(1e-13 * np.random.default_rng(seed).standard_normal((8, n_times)), info, verbose="error")
    raw.info["line_freq"] = 50
    return raw


def write_recording(root, raw, subject, run, *, datatype="eeg", task="listening", session=None):
    path = mne_bids.BIDSPath(root=root, subject=subject, session=session, task=task, run=run, datatype=datatype)
    format_ = "BrainVision" if datatype == "eeg" else "FIF"
    mne_bids.write_raw_bids(raw, path, format=format_, allow_preload=True, overwrite=True, verbose="error")
    return path.copy().update(suffix="events", extension=".tsv").fpath


@pytest.fixture(scope="module")
def listening(tmp_path_factory):
    """Two listeners, EEG, who each heard both stories: sounds by ``stim_file``, words in the same table."""
    root = tmp_path_factory.mktemp("bids") / "listening"
    for s, subject in enumerate(("01", "02")):
        for r, story in enumerate(STORIES):
            events = write_recording(root, eeg(10 * s + r), subject, f"{r + 1:02d}")
            onset = 1.5 + s
            rows = [{"onset": onset, "duration": SECONDS - 5, "trial_type": "sound", "stim_file": f"{story}.wav"}]
            rows += [
                {"onset": round(onset + t, 3), "duration": d, "trial_type": "word", "word": w, "sentence_id": q}
                for t, d, w, q in words_of(story)
            ]
            write_table(events, [*rows, {"onset": 0.1, "duration": 0, "trial_type": "button"}])
    write_sounds(root / "stimuli", [f"{story}.wav" for story in STORIES])
    return root


def copy(root, to):
    shutil.copytree(root, to / root.name)
    return to / root.name


def test_recordings_are_named_by_subject_and_run(listening):
    found = datasets.load("bids", listening).recordings()
    assert [r.uid for r in found] == [f"listening/sub-0{s}/run-0{r}" for s in (1, 2) for r in (1, 2)]
    assert found[0].path == "sub-01/eeg/sub-01_task-listening_run-01_eeg.vhdr"
    assert datasets.load("bids", listening, name="mine").recordings()[0].uid == "mine/sub-01/run-01"


def test_the_raw_has_the_types_bads_and_places_of_its_sidecar_files(listening):
    dataset = datasets.load("bids", listening)
    recording = dataset.recordings()[0]
    raw = dataset.read_raw(recording)
    assert raw.info["bads"] == ["Pz"]
    assert raw.get_channel_types().count("ecg") == 1
    np.testing.assert_allclose(raw.get_data(), eeg(0).get_data(), atol=2e-7)  # written as microvolts to a tenth
    assert dataset.duration(recording) == SECONDS
    signal = preprocess(raw, PreprocessConfig(sfreq=50.0))
    assert signal.dropped == {"marked bad": 1}
    assert np.isfinite(signal.positions).all()
    left, right = (signal.positions[signal.ch_names.index(name)] for name in ("C3", "C4"))
    assert left[0] < 0.5 < right[0]


def test_events_are_sounds_with_their_words(listening):
    dataset = datasets.load("bids", listening)
    table = dataset.read_events(dataset.recordings()[3])
    sound = table[table["kind"] == "sound"].iloc[0]
    assert (sound["audio"], sound["onset"], sound["audio_onset"], sound["duration"]) == ("stimuli/south.wav", 2.5, 0.0, SECONDS - 5)
    words = table[table["kind"] == "word"]
    expected = words_of("south")
    assert words["text"].tolist() == [w for _, _, w, _ in expected]
    np.testing.assert_allclose(words["audio_onset"], [t for t, *_ in expected], atol=1e-9)
    assert words["sequence"].tolist() == [str(q) for *_, q in expected]
    assert set(words["audio"]) == {"stimuli/south.wav"}
    samples, rate = dataset.read_stimulus("stimuli/south.wav")
    assert (samples.shape, rate) == ((1, round((SECONDS - 5) * AUDIO)), AUDIO)


def test_understanding_a_whole_folder(listening):
    found = bids.understand(listening)
    json.dumps(found)
    assert found["missing"] == []
    assert (found["subjects"], found["recordings"], found["recordings_here"]) == (2, 4, 4)
    assert found["tasks"] == {"listening": 4}
    assert found["hours"] == pytest.approx(4 * SECONDS / 3600, abs=1e-4)
    assert found["events"] == {"sound": 4, "word": 4 * len(words_of("north"))}
    assert found["ignored_events"] == {"button": 4}
    assert found["channels"] == {"EEG": 64, "ECG": 4}
    assert found["bad_channels"] == 4
    assert found["stimuli"] == {"named": 2, "here": 2}
    text = bids.explain(found)
    assert "nothing is missing" in text
    assert "not used: 4 button" in text


def test_a_sound_without_duration_is_heard_to_its_end(listening, tmp_path):
    root = copy(listening, tmp_path)
    events = root / "sub-01" / "eeg" / "sub-01_task-listening_run-01_events.tsv"
    events.write_text(events.read_text(encoding="utf-8-sig").replace(f"1.5\t{SECONDS - 5}", "1.5\tn/a"))
    dataset = datasets.load("bids", root)
    table = dataset.read_events(dataset.recordings()[0])
    assert table.loc[table["kind"] == "sound", "duration"].tolist() == [SECONDS - 5]
    (root / "stimuli" / "north.wav").unlink()
    with pytest.raises(FileNotFoundError, match=r"listening/sub-01/run-01: 1 sounds have no duration .* stimuli/north\.wav"):
        datasets.load("bids", root).read_events(dataset.recordings()[0])
    missing = bids.understand(root)["missing"]
    assert len(missing) == 2
    assert "1 of 2 stimuli are not here: stimuli/north.wav" in missing[1]


def test_stim_id_brings_the_annotations_of_its_stimulus(listening, tmp_path):
    """BEP044: the recording says when a stimulus began, the stimulus's own table says what is in it."""
    root = copy(listening, tmp_path)
    for story in STORIES:
        (root / "stimuli" / f"{story}.wav").rename(root / "stimuli" / f"stim-{story}_audio.wav")
        rows = [{"onset": t, "duration": d, "word": w, "sentence_id": q} for t, d, w, q in words_of(story)]
        write_table(root / "stimuli" / f"stim-{story}_annot-aligned_events.tsv", rows)
        write_table(root / "stimuli" / f"stim-{story}_annot-phonemes_events.tsv", [{"onset": 0.2, "duration": 0.1, "trial_type": "AH"}])
    for s in (1, 2):
        for r, story in enumerate(STORIES):
            events = root / f"sub-0{s}" / "eeg" / f"sub-0{s}_task-listening_run-0{r + 1}_events.tsv"
            stop = {"onset": 22.0, "duration": 0, "trial_type": "stop", "stim_id": f"stim-{story}"}
            write_table(events, [{"onset": 2.0, "duration": 20.0, "trial_type": "start", "stim_id": f"stim-{story}"}, stop])
    dataset = datasets.load("bids", root)
    recording = dataset.recordings()[0]
    table = dataset.read_events(recording)
    words = table[table["kind"] == "word"]
    heard = [(t, w) for t, _, w, _ in words_of("north") if t < 20]
    np.testing.assert_allclose(words["onset"], [2 + t for t, _ in heard])
    assert words["text"].tolist() == [w for _, w in heard]
    assert set(table["audio"]) == {"stimuli/stim-north_audio.wav"}
    assert (table["kind"] == "sound").sum() == 1
    assert (table["kind"] == "phoneme").sum() == 1
    n_after = len(words_of("north")) - len(heard)
    assert dataset.notes == [f"{recording.uid}: {n_after} annotated events lie outside what was heard of their stimulus and are left out."]
    assert bids.understand(root)["missing"] == []

    # A second alignment of the same words: which one?
    shutil.copy(root / "stimuli" / "stim-north_annot-aligned_events.tsv", root / "stimuli" / "stim-north_annot-byhand_events.tsv")
    with pytest.raises(ValueError, match=r"words in the annotations aligned and byhand; choose with annotation='byhand'"):
        datasets.load("bids", root).read_events(recording)
    chosen = datasets.load("bids", root, annotation="byhand").read_events(recording)
    assert (chosen["kind"] == "word").sum() == len(heard)
    assert (chosen["kind"] == "phoneme").sum() == 0


def test_columns_and_kinds_of_another_name(listening, tmp_path):
    root = copy(listening, tmp_path)
    for events in root.rglob("*_run-01_events.tsv"):
        rows = [{"onset": 3.0, "duration": 30.0, "trial_type": "Story begins", "played": "north.wav", "from": 10.0}]
        rows += [{"onset": 4.0, "duration": 0.3, "trial_type": "king"}, {"onset": 5.0, "duration": 0.3, "trial_type": "boat"}]
        write_table(events, rows)
    options = {"columns": {"audio": "played", "audio_onset": "from", "word": "spoken"}, "kinds": {"story begins": "sound"}}
    recording = datasets.load("bids", root).recordings()[0]
    with pytest.raises(RuntimeError, match=r"No row of the events is a sound or a word .*'story begins'.*columns=\{'audio'"):
        datasets.load("bids", root).read_events(recording)
    with pytest.raises(ValueError, match=r"no column spoken in .*; its columns are onset, duration, trial_type, played, from"):
        datasets.load("bids", root, **options).read_events(recording)
    # Here trial_type is the word itself.
    options["columns"]["word"] = "trial_type"
    with pytest.raises(RuntimeError, match="name 'no stimulus' or others"):
        datasets.load("bids", root, columns={"word": "trial_type"}).read_events(recording)
    for events in root.rglob("*_run-01_events.tsv"):
        events.write_text(events.read_text(encoding="utf-8-sig").replace("trial_type", "spoken").replace("Story begins", "n/a"))
    table = datasets.load("bids", root, columns={"audio": "played", "audio_onset": "from", "word": "spoken"}).read_events(recording)
    assert table["kind"].tolist() == ["sound", "word", "word"]
    assert table["audio_onset"].tolist() == [10.0, 11.0, 12.0]
    assert table["text"].tolist() == ["", "king", "boat"]


def test_the_dry_run_says_what_reading_would_raise(listening, tmp_path):
    """Two words after the end of the sound, in one recording."""
    root = copy(listening, tmp_path)
    events = root / "sub-01" / "eeg" / "sub-01_task-listening_run-01_events.tsv"
    stray = [f"{58 + k}\t0.3\tword\tn/a\tlate\t9" for k in range(2)]
    events.write_text(events.read_text(encoding="utf-8-sig").rstrip("\n") + "\n" + "\n".join(stray) + "\n")
    dataset = datasets.load("bids", root)
    with pytest.raises(ValueError, match=r"run-01: 2 events have no .*late") as raised:
        dataset.read_events(dataset.recordings()[0])
    assert dataset.understand()["missing"] == [str(raised.value)]


def test_a_column_of_text_is_words_only_where_something_says_so(tmp_path):
    rows = [
        {"onset": 1, "duration": 1, "trial_type": "question", "text": "Who?"},
        {"onset": 2, "duration": 1, "trial_type": "word", "text": "king"},
    ]
    write_table(tmp_path / "a.tsv", rows)
    raw = read_tsv(tmp_path / "a.tsv")
    assert interpret(raw, columns={}, kinds={}).table["text"].tolist() == ["king"]
    assert interpret(raw, columns={"word": "text"}, kinds={}).table["text"].tolist() == ["Who?", "king"]
    assert interpret(raw, columns={}, kinds={"question": "sentence"}).table["kind"].tolist() == ["sentence", "word"]


def test_words_that_look_like_nothing_are_words(tmp_path):
    write_table(tmp_path / "a.tsv", [{"onset": k, "duration": 0.1, "word": w} for k, w in enumerate(("null", "NA", '"yes', "nan", "n/a"))])
    heard = interpret(read_tsv(tmp_path / "a.tsv"), columns={}, kinds={})
    assert heard.table["text"].tolist() == ["null", "NA", '"yes', "nan"]
    assert dict(heard.ignored) == {"(no name)": 1}
    (tmp_path / "b.tsv").write_text("")
    with pytest.raises(RuntimeError, match="no table of tab-separated columns"):
        read_tsv(tmp_path / "b.tsv")


def test_a_stimulus_is_found_by_path_or_by_id(tmp_path):
    (tmp_path / "stimuli" / "deep").mkdir(parents=True)
    for name in ("a.wav", "stim-x_audio.wav", "stim-x_audio.json", "stim-x_annot-words_events.tsv", "deep/stim-y_video.mp4", "deep/b.wav"):
        (tmp_path / "stimuli" / name).touch()
    stimuli = Stimuli(tmp_path)
    assert stimuli.locate("a.wav") == stimuli.locate("stimuli/a.wav") == stimuli.locate("/stimuli/a.wav") == "stimuli/a.wav"
    assert stimuli.locate("deep\\b.wav") == "stimuli/deep/b.wav"
    assert stimuli.locate("stim-x") == stimuli.locate("x") == "stimuli/stim-x_audio.wav"
    assert stimuli.locate("stim-y") == "stimuli/deep/stim-y_video.mp4"
    assert stimuli.locate("stim-z") == "stimuli/stim-z_audio.wav"
    assert stimuli.locate("z") == "stimuli/z"
    assert stimuli.annotations("stimuli/stim-x_audio.wav") == {"words": "stimuli/stim-x_annot-words_events.tsv"}
    assert stimuli.duration("stimuli/a.wav") is None  # empty: no sound


def test_meg_and_eeg_sessions_and_tasks(tmp_path):
    root = tmp_path / "both"
    short = round(4 * SFREQ)
    write_recording(root, meg(0, short), "01", None, datatype="meg", session="a")
    write_recording(root, meg(1, short), "01", None, datatype="meg", session="a", task="rest")
    write_recording(root, eeg(2, short), "01", None, session="b")
    mne_bids.write_raw_bids(
        meg(3, short),
        mne_bids.BIDSPath(root=root, subject="emptyroom", session="20200101", task="noise", datatype="meg"),
        format="FIF",
        allow_preload=True,
        verbose="error",
    )
    dataset = datasets.load("bids", root)
    uids = [r.uid for r in dataset.recordings()]
    assert uids == ["both/sub-01/ses-a/run-listening", "both/sub-01/ses-a/run-rest", "both/sub-01/ses-b/run-listening"]
    raw = dataset.read_raw(dataset.recordings()[0])
    assert raw.get_channel_types() == ["mag"] * 8
    np.testing.assert_allclose(raw.get_data(), meg(0, short).get_data(), rtol=1e-5, atol=1e-19)
    # The uid of a recording does not depend on what else was chosen.
    assert [r.uid for r in datasets.load("bids", root, task="rest").recordings()] == [uids[1]]
    assert [r.uid for r in datasets.load("bids", root, datatype="eeg").recordings()] == [uids[2]]
    with pytest.raises(ValueError, match="no recording of task sleep; the tasks are listening, rest"):
        datasets.load("bids", root, task="sleep")
    shutil.copytree(root / "sub-01" / "ses-b" / "eeg", root / "sub-01" / "ses-a" / "eeg")
    for path in (root / "sub-01" / "ses-a" / "eeg").iterdir():
        path.rename(path.with_name(path.name.replace("ses-b", "ses-a")))
    with pytest.raises(ValueError, match=r"ses-a/run-listening: got .*\(meg\) and .*\(eeg\); choose with datatype="):
        datasets.load("bids", root)
    assert len(datasets.load("bids", root, datatype="meg").recordings()) == 2


def test_a_recording_in_several_files_is_one(tmp_path):
    root = tmp_path / "split"
    write_recording(root, meg(0), "01", None, datatype="meg")
    long = mne.io.RawArray(np.tile(meg(0).get_data(), 14), meg(0).info, verbose="error")
    path = root / "sub-01" / "meg" / "sub-01_task-listening_meg.fif"
    path.unlink()
    long.save(path, split_size="2MB", split_naming="bids", verbose="error")
    assert len(list(path.parent.glob("*_split-*"))) > 1
    dataset = datasets.load("bids", root)
    (recording,) = dataset.recordings()
    assert recording.uid == "split/sub-01"
    assert dataset.read_raw(recording).n_times == 14 * 6000
    before = dataset.fingerprint(recording)
    (path.parent / "sub-01_task-listening_split-02_meg.fif").touch()
    assert dataset.fingerprint(recording) != before


def test_several_electrode_files(listening, tmp_path):
    root = copy(listening, tmp_path)
    folder = root / "sub-01" / "eeg"
    for suffix in ("electrodes.tsv", "coordsystem.json"):
        other = folder / f"sub-01_space-CTF_{suffix}"
        shutil.copy(folder / f"sub-01_space-CapTrak_{suffix}", other)
    # CTF's axes: the nose first, then the left ear; in centimetres.
    table = read_tsv(folder / "sub-01_space-CTF_electrodes.tsv")
    rows = []
    for name, x, y, z in zip(table["name"], table["x"], table["y"], table["z"], strict=True):
        turned = ("n/a",) * 3 if not x else (100 * float(y), -100 * float(x), 100 * float(z))
        rows.append(dict(zip(("name", "x", "y", "z"), (name, *turned), strict=True)))
    write_table(folder / "sub-01_space-CTF_electrodes.tsv", rows)
    system = json.loads((folder / "sub-01_space-CTF_coordsystem.json").read_text(encoding="utf-8-sig"))
    system |= {"EEGCoordinateSystem": "CTF", "EEGCoordinateUnits": "cm"}
    (folder / "sub-01_space-CTF_coordsystem.json").write_text(json.dumps(system))

    recording = datasets.load("bids", root).recordings()[0]
    with pytest.raises(ValueError, match=r"2 electrode files.*choose space='CTF' \(.*\) or space='CapTrak'"):
        datasets.load("bids", root).read_raw(recording)
    assert "choose space='CTF' or space='CapTrak'" in bids.understand(root)["missing"][0]
    places = {}
    for space in ("CapTrak", "CTF"):
        raw = datasets.load("bids", root, space=space).read_raw(recording)
        places[space] = np.array([channel["loc"][:3] for channel in raw.info["chs"][:16]])
    assert np.isfinite(places["CTF"]).all()
    np.testing.assert_allclose(places["CTF"], places["CapTrak"], atol=1e-6)
    with pytest.raises(ValueError, match=r"no electrodes.tsv with space='MNI', there is 'CTF', 'CapTrak'"):
        datasets.load("bids", root, space="MNI").read_raw(recording)
    fingerprints = {datasets.load("bids", root, space=space).fingerprint(recording) for space in ("CapTrak", "CTF")}
    assert len(fingerprints) == 2


def test_what_has_not_been_fetched_is_named(listening, tmp_path):
    root = copy(listening, tmp_path)
    stem = root / "sub-02" / "eeg" / "sub-02_task-listening_run-01_eeg"
    stem.with_suffix(".eeg").unlink()
    other = root / "sub-02" / "eeg" / "sub-02_task-listening_run-02_eeg.vhdr"
    other.unlink()
    other.symlink_to(root / ".git" / "annex" / "objects" / "gone")
    dataset = datasets.load("bids", root)
    first, second = dataset.recordings()[2:]
    with pytest.raises(FileNotFoundError, match=r"run-01: sub-02/eeg/.*run-01_eeg\.eeg is not in .* Fetch it"):
        dataset.read_raw(first)
    with pytest.raises(FileNotFoundError, match=r"run-02: .*run-02_eeg\.vhdr is not in"):
        dataset.read_raw(second)
    assert dataset.duration(second) == pytest.approx(SECONDS, abs=0.02)  # from its JSON file
    assert len(dataset.read_events(second)) > 10
    found = bids.understand(root)
    assert (found["recordings"], found["recordings_here"]) == (4, 2)
    assert found["missing"][0].startswith("2 files of recordings are not here: sub-02/eeg/")
    assert "MISSING" in bids.explain(found)


def test_events_that_hold_for_several_recordings_are_inherited(listening, tmp_path):
    root = copy(listening, tmp_path)
    folder = root / "sub-01" / "eeg"
    (folder / "sub-01_task-listening_run-01_events.tsv").rename(root / "task-listening_events.tsv")
    (folder / "sub-01_task-listening_run-02_events.tsv").rename(folder / "sub-01_task-listening_events.tsv")
    dataset = datasets.load("bids", root)
    assert len(dataset.recordings()) == 4  # a table of its own is no recording
    heard = [dataset.read_events(r)["audio"].iloc[0] for r in dataset.recordings()]
    assert heard == ["stimuli/south.wav", "stimuli/south.wav", "stimuli/north.wav", "stimuli/south.wav"]
    (folder / "sub-01_task-listening_events.tsv").unlink()
    assert dataset.read_events(dataset.recordings()[0])["audio"].iloc[0] == "stimuli/north.wav"
    (root / "task-listening_events.tsv").unlink()
    with pytest.raises(RuntimeError, match=r"listening/sub-01/run-01: No events.tsv for sub-01_task-listening_run-01"):
        dataset.read_events(dataset.recordings()[0])


def test_the_fingerprint_follows_what_the_raw_depends_on(listening, tmp_path):
    root = copy(listening, tmp_path)
    recording = datasets.load("bids", root).recordings()[0]

    def fingerprint():
        return datasets.load("bids", root).fingerprint(recording)

    before = fingerprint()
    events = root / "sub-01" / "eeg" / "sub-01_task-listening_run-01_events.tsv"
    events.write_text(events.read_text() + "\n")
    assert fingerprint() == before
    for name in ("run-01_channels.tsv", "run-01_eeg.eeg"):
        path = root / "sub-01" / "eeg" / f"sub-01_task-listening_{name}"
        with path.open("ab") as file:
            file.write(b"\n")
        assert fingerprint() != before
        before = fingerprint()


def test_bad_input(listening, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        datasets.load("bids", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="needs its folder"):
        datasets.load("bids")
    with pytest.raises(ValueError, match=r"no recording in .* it has none of MEG or EEG"):
        datasets.load("bids", tmp_path)
    with pytest.raises(ValueError, match="datatype must be one of None, meg, eeg, got 'nirs'"):
        datasets.load("bids", listening, datatype="nirs")
    with pytest.raises(ValueError, match=r"columns takes a name of a column for onset, .*, got 'wrd': 'x'"):
        datasets.load("bids", listening, columns={"wrd": "x"})
    with pytest.raises(ValueError, match=r"kinds says of a name .* got 'a': 'noise'"):
        datasets.load("bids", listening, kinds={"a": "noise"})
    with pytest.raises(ValueError, match="is not a recording of listening"):
        datasets.load("bids", listening).read_raw(replace(datasets.load("bids", listening).recordings()[0], subject="99"))


def test_what_mne_bids_warns_of_is_kept(listening, tmp_path):
    root = copy(listening, tmp_path)
    (root / "participants.tsv").unlink()
    for channels in root.rglob("*_channels.tsv"):
        lines = channels.read_text(encoding="utf-8-sig").splitlines()
        channels.write_text("\n".join(line for line in lines if not line.startswith("EKG")), encoding="utf-8")
    dataset = datasets.load("bids", root)
    for recording in dataset.recordings():
        dataset.read_raw(recording)
    said = [note for note in dataset.notes if "participants.tsv file not found" in note]
    assert len(said) == 4
    assert said[0].startswith("listening/sub-01/run-01: mne-bids: ")
    shown = merged(dataset.notes)
    assert [note for note in shown if "participants.tsv file not found" in note] == [
        f"{said[0]}. The same with other numbers or names in 3 more: {', '.join(recording.uid for recording in dataset.recordings()[1:])}."
    ]
    assert shown[-1].startswith("listening/sub-01/run-01: channels.tsv does not list 1 brain channels of the file: EKG. The same in 3 more")


def test_what_reading_says_is_kept_with_the_signal(listening, tmp_path):
    root = copy(listening, tmp_path)
    channels = root / "sub-01" / "eeg" / "sub-01_task-listening_run-01_channels.tsv"
    lines = channels.read_text(encoding="utf-8-sig").splitlines()
    channels.write_text("\n".join(line for line in lines if not line.startswith("EKG")), encoding="utf-8")
    notes = {}
    for name, called in {"first": "", "second": "", "third": "renamed"}.items():
        dataset = datasets.load("bids", root, name=called)
        load_signals(dataset, dataset.recordings()[:2], PreprocessConfig(), Cache(tmp_path / "cache"), progress=False)
        notes[name] = dataset.notes
    assert "listening/sub-01/run-01: channels.tsv does not list 1 brain channels of the file: EKG." in notes["first"]
    assert notes["second"] == notes["first"]
    assert "renamed/sub-01/run-01: channels.tsv does not list 1 brain channels of the file: EKG." in notes["third"]
    assert not [note for note in notes["third"] if note.startswith("listening")]


def test_names_that_do_not_match_are_an_error(listening, tmp_path):
    root = copy(listening, tmp_path)
    channels = root / "sub-01" / "eeg" / "sub-01_task-listening_run-01_channels.tsv"
    channels.write_text(channels.read_text(encoding="utf-8-sig").replace("Fz\tEEG", "FZ\tEEG"), encoding="utf-8")
    dataset = datasets.load("bids", root)
    with pytest.raises(RuntimeError, match=r"listening/sub-01/run-01: mne-bids cannot read sub-01/eeg/.*vhdr: .*Channel mismatch"):
        dataset.read_raw(dataset.recordings()[0])


@pytest.mark.parametrize(("content", "kind"), [("[1]", "list"), ('"Brain"', "str"), ("null", "NoneType")])
def test_a_sidecar_file_that_holds_no_object_is_named(listening, tmp_path, content, kind):
    root = copy(listening, tmp_path)
    sidecar = root / "sub-01" / "eeg" / "sub-01_task-listening_run-01_eeg.json"
    assert sidecar.is_file()
    sidecar.write_text(content)
    dataset = datasets.load("bids", root)
    with pytest.raises(RuntimeError, match=rf"{sidecar.name}: expected a JSON object, \{{\.\.\.\}}, got a {kind}\. Correct the file"):
        dataset.read_raw(dataset.recordings()[0])


def test_a_system_of_places_that_is_no_object(listening, tmp_path):
    root = copy(listening, tmp_path)
    for path in root.rglob("*_coordsystem.json"):
        path.write_text("[]")
    dataset = datasets.load("bids", root)
    with pytest.raises(RuntimeError, match=r"listening/sub-01/run-01: mne-bids cannot read sub-01/eeg/.*a \.json beside it"):
        dataset.read_raw(dataset.recordings()[0])


def test_a_damaged_recording(listening, tmp_path):
    root = copy(listening, tmp_path)
    (root / "sub-01" / "eeg" / "sub-01_task-listening_run-01_eeg.vhdr").write_text("nothing")
    dataset = datasets.load("bids", root)
    with pytest.raises(RuntimeError, match=r"listening/sub-01/run-01: mne-bids cannot read sub-01/eeg/.*vhdr"):
        dataset.read_raw(dataset.recordings()[0])


def damaged(listening, tmp_path, name, content):
    """Put something else in place of a file of the first recording, or a folder, and open the dataset."""
    root = copy(listening, tmp_path)
    path = root / "sub-01" / "eeg" / f"sub-01_task-listening_run-01_{name}"
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    dataset = datasets.load("bids", root)
    return dataset, dataset.recordings()[0]


def test_a_recording_that_was_cut_off(listening, tmp_path):
    dataset, recording = damaged(listening, tmp_path, "eeg.eeg", b"")
    with pytest.raises(
        RuntimeError, match=r"sub-01/run-01: sub-01/eeg/.*vhdr holds no samples \(.* bytes\)\. It is cut off: fetch it again"
    ):
        dataset.read_raw(recording)


def test_sidecar_files_that_are_none(listening, tmp_path):
    dataset, recording = damaged(listening, tmp_path / "a", "channels.tsv", b"nothing\n")
    with pytest.raises(RuntimeError, match=r"channels\.tsv: expected the columns name, type and units, got nothing"):
        dataset.read_raw(recording)
    dataset, recording = damaged(listening, tmp_path / "b", "events.tsv", None)
    with pytest.raises(RuntimeError, match=r"listening/sub-01/run-01: .*events\.tsv is a folder, expected a table"):
        dataset.read_events(recording)
    assert "events.tsv is a folder" in dataset.understand()["missing"][0]
    table = b"onset\tduration\ttrial_type\tstim_file\tword\n1.0\t9.0\tsound\tnorth.wav\tn/a\n-1.0\t0.4\tword\tn/a\ttea\n"
    dataset, recording = damaged(listening, tmp_path / "c", "events.tsv", table)
    with pytest.raises(ValueError, match=r"sub-01/run-01: 1 events .*'tea' at -1\.0 s"):
        dataset.read_events(recording)


def test_a_sound_that_cannot_be_read(listening, tmp_path):
    root = copy(listening, tmp_path)
    (root / "stimuli" / "north.wav").write_bytes(b"RIFF")
    with pytest.raises(RuntimeError, match=r"listening: stimulus 'stimuli/north\.wav': .* \(4 bytes\) cannot be read as sound"):
        datasets.load("bids", root).read_stimulus("stimuli/north.wav")


def test_a_folder_above_or_below_the_study_is_named(listening, tmp_path):
    root = copy(listening, tmp_path)
    with pytest.raises(ValueError, match=rf"Give the folder of the whole study: {root}\."):
        datasets.load("bids", root / "sub-01" / "eeg")
    with pytest.raises(ValueError, match=rf"There are subjects in {root}: give that folder"):
        datasets.load("bids", root.parent)


def test_a_folder_whose_name_is_in_another_script(listening, tmp_path):
    root = copy(listening, tmp_path)
    root = root.rename(root.parent / "étude 数据")
    dataset = datasets.load("bids", root)
    assert len(dataset.read_events(dataset.recordings()[0])) > 10
    assert dataset.read_raw(dataset.recordings()[0]).n_times == 6000


def test_from_a_folder_to_a_report(listening, tmp_path):
    """The whole flow, made small."""
    recipe = Recipe(
        name="any",
        title="A BIDS folder",
        dataset=Choice("bids", {"task": "listening"}),
        preprocess=PreprocessConfig(sfreq=30.0),
        segments=SegmentConfig(sfreq=30.0, min_block=3.0, stride=1.0),
        feature=Choice("envelope", {"hop": 400}),
        model=Choice("braindecode", {"model": "EEGNet", "sfreq": 30.0, "width": 4, "n_knots": 6}),
        train=TrainConfig(batch_size=16, max_epochs=1, max_steps_per_epoch=2, augment=("TimeShift",)),
        rows=("encoder",),
    )
    recipe = replace(recipe, evaluate=replace(recipe.evaluate, n_bootstrap=20, n_permutations=19))
    described = flow.describe(recipe, listening)
    assert (described["subjects"], described["recordings"]) == (2, 4)
    report = flow.run(recipe, root=listening, out=tmp_path / "run", cache=Cache(tmp_path / "cache"), progress=False)
    assert report.n_candidates == described["splits"]["test"]["segments"] > 5
    assert (tmp_path / "run" / "report.html").is_file()
    assert any("channels: marked bad" in reason for reason in report.dropped)


@pytest.mark.parametrize("kind", ["eeg", "meg"])
def test_the_phantoms_bids_form_says_what_the_phantom_says(tmp_path, kind):
    phantom = SimulatedDataset(n_subjects=1, minutes=1.0, kind=kind, n_channels=16)
    write_bids(phantom, tmp_path / "phantom", progress=False)
    found = bids.understand(tmp_path / "phantom")
    assert found["missing"] == []
    dataset = datasets.load("bids", tmp_path / "phantom")
    (recording,), (original,) = dataset.recordings(), phantom.recordings()
    table, expected = dataset.read_events(recording), phantom.read_events(original)
    assert table["text"].tolist() == expected["text"].tolist()
    assert table["kind"].tolist() == expected["kind"].tolist()
    for column in ("onset", "duration", "audio_onset"):
        np.testing.assert_allclose(table[column], expected[column], atol=1e-5)
    raw, made = dataset.read_raw(recording), phantom.read_raw(original)
    assert raw.ch_names == made.ch_names
    scale = made.get_data().std()
    np.testing.assert_allclose(raw.get_data() / scale, made.get_data() / scale, atol=0.05)
    sound, _ = dataset.read_stimulus(table["audio"].iloc[0])
    np.testing.assert_allclose(sound, phantom.read_stimulus(expected["audio"].iloc[0])[0], atol=1e-4)


# ------------------------------------------------------------------------------------------------------------------------- real files


def _kit(folder, stem, **options):
    return mne.io.read_raw_kit(folder / "kit" / stem, **{name: folder / "kit" / path for name, path in options.items()}, verbose="error")


VENDORS = {
    "kit": ("meg", lambda f: _kit(f, "test.sqd", mrk="test_mrk.sqd", elp="test_elp.txt", hsp="test_hsp.txt"), {"mag": 157}),
    "kit125": (
        "meg",
        lambda f: _kit(f, "MQKIT_125_2sec.con", mrk="MQKIT_125.mrk", elp="MQKIT_125.elp", hsp="MQKIT_125.hsp"),
        {"mag": 125},
    ),
    "ctf": (
        "meg",
        lambda f: mne.io.read_raw_ctf(f / "ctf" / "testdata_ctf_short_discontinuous.ds", verbose="error"),
        {"mag": 273, "eeg": 8},
    ),
    "ctf151": ("meg", lambda f: mne.io.read_raw_ctf(f / "ctf" / "somMDYO-18av.ds", verbose="error"), {"mag": 151}),
    "biosemi": ("eeg", lambda f: mne.io.read_raw_bdf(f / "biosemi" / "test.bdf", verbose="error"), {"eeg": 72}),
    "brainvision": ("eeg", lambda f: mne.io.read_raw_brainvision(f / "brainvision" / "test.vhdr", verbose="error"), {"eeg": 26}),
    "eeglab": ("eeg", lambda f: mne.io.read_raw_eeglab(f / "eeglab" / "test_raw.set", verbose="error"), {"eeg": 32}),
    "triux": (
        "meg",
        lambda f: mne.io.read_raw_fif(f / "megin" / "triux_bmlhus_erm_raw_sss.fif", verbose="error"),
        {"mag": 102, "grad": 204},
    ),
    "vectorview": (
        "meg",
        lambda f: mne.io.read_raw_fif(f / "megin" / "sample_audvis_trunc_raw_sss.fif", verbose="error"),
        {"mag": 102, "grad": 204, "eeg": 60},
    ),
}


@pytest.mark.data
@pytest.mark.parametrize("vendor", VENDORS)
def test_every_vendors_format_in_a_bids_folder(shared, tmp_path, vendor):
    datatype, read, expected = VENDORS[vendor]
    original = read(shared / "data" / "recordings")
    if not original.info["line_freq"]:
        original.info["line_freq"] = 50
    path = mne_bids.BIDSPath(root=tmp_path / "tree", subject=vendor, task="listening", datatype=datatype)
    mne_bids.write_raw_bids(original, path, verbose="error")
    dataset = datasets.load("bids", tmp_path / "tree")
    (recording,) = dataset.recordings()
    raw = dataset.read_raw(recording)
    types = raw.get_channel_types()
    assert {kind: types.count(kind) for kind in expected} == expected
    assert raw.n_times == original.n_times
    assert raw.info["bads"] == original.info["bads"]
    name = raw.ch_names[types.index(next(iter(expected)))]
    np.testing.assert_allclose(raw.get_data(picks=[name]), original.get_data(picks=[name]))
    signal = preprocess(raw, PreprocessConfig(), uid=recording.uid)
    assert len(signal.ch_names) > 20
    if datatype == "meg":
        assert np.isfinite(signal.positions).all()
    assert dataset.duration(recording) == pytest.approx(original.n_times / original.info["sfreq"])
    found = bids.understand(tmp_path / "tree")
    assert (found["recordings"], found["recordings_here"]) == (1, 1)
    assert found["formats"] == {Path(recording.path).suffix: 1}


@pytest.mark.data
def test_tiny_bids(shared):
    root = shared / "data" / "recordings" / "tiny_bids"
    found = bids.understand(root)
    assert found["channels"] == {"EEG": 64, "EOG": 2, "ECG": 1, "GSR": 1, "TEMP": 1}
    assert found["ignored_events"] == {"start_experiment": 1, "show_stimulus": 1}
    assert len(found["missing"]) == 2
    recording = datasets.load("bids", root).recordings()[0]
    assert recording.uid == "tiny_bids/sub-01/ses-eeg"
    with pytest.raises(ValueError, match="choose space=''"):
        datasets.load("bids", root).read_raw(recording)
    for space in ("", "CapTrak"):
        dataset = datasets.load("bids", root, space=space)
        signal = preprocess(dataset.read_raw(recording), PreprocessConfig())
        assert len(signal.ch_names) == np.isfinite(signal.positions).all(axis=1).sum() == 63
        assert signal.dropped == {"marked bad": 1}
        front, back = (signal.positions[signal.ch_names.index(name)] for name in ("Fp1", "O1"))
        assert front[1] > 0.8 > 0.2 > back[1]
    with pytest.raises(RuntimeError, match=r"No row of the events is a sound or a word .*'show_stimulus'"):
        dataset.read_events(recording)


@pytest.mark.data
def test_the_side_files_of_brennan2019(shared):
    found = bids.understand(shared / "data" / "brennan2019")
    assert (found["subjects"], found["recordings"], found["recordings_here"]) == (2, 2, 0)
    assert found["events"] == {"word": 2 * 2129}
    assert found["columns"]["audio"] == "stim_file"
    assert found["channels"] == {"EEG": 120, "EOG": 2, "MISC": 2}
    assert found["electrodes"]["spaces"] == ["CapTrak"]
    assert found["stimuli"] == {"named": 12, "here": 1}
    assert 0.40 < found["hours"] < 0.42
    payload, onset, sounds = found["missing"]
    assert "sub-013/eeg/sub-013_task-alicelistening_eeg.vhdr" in payload  # scans.tsv says what it would be called
    assert "nothing says when it began" in onset
    assert "11 of 12 stimuli are not here" in sounds


@pytest.mark.data
def test_the_side_files_of_gwilliams2022(shared):
    options = {"columns": {"audio": "sound", "audio_onset": "start"}}
    root = shared / "data" / "gwilliams2022"
    found = bids.understand(root, **options)
    assert (found["subjects"], found["recordings"], found["sessions"]) == (2, 16, ["0", "1"])
    assert found["events"] == {"phoneme": 123044, "sound": 120, "word": 34244}
    assert found["formats"] == {".con": 16}
    assert found["channels"] == {"MEGGRADAXIAL": 16 * 208, "MISC": 16 * 32, "MEGREFMAG": 16 * 16}
    assert 4.6 < found["hours"] < 4.7
    assert found["missing"][0].startswith("16 files of recordings are not here: sub-01/ses-0/meg/sub-01_ses-0_task-0_meg.con")
    assert "60 of 60 stimuli are not here" in found["missing"][-1]
    dataset = datasets.load("bids", root, **options)
    recording = dataset.recordings()[0]
    assert recording.uid == "gwilliams2022/sub-01/ses-0/run-0"
    assert dataset.duration(recording) == 395.999
    with pytest.raises(FileNotFoundError, match=r"4 sounds have no duration .* stimuli/audio/lw1_0\.0\.wav"):
        dataset.read_events(recording)
