"""MEG-MASC: both forms of its events give one table, what the docstring says of the files holds, and a miniature goes through the flow."""

import json
import re

import mne
import numpy as np
import pandas as pd
import pytest
import soundfile

from brainspeech import flow
from brainspeech import recipe as recipes
from brainspeech.cache import Cache
from brainspeech.datasets import gwilliams2022, load
from brainspeech.preprocess import PreprocessConfig, preprocess
from brainspeech.segments import SegmentConfig, audit, describe, make_segments

AUDIO_SFREQ = 8000
NUMBERS = ("value", "sample", "story_uid", "sound_id", "start", "sequence_id", "word_index", "speech_rate", "pronounced")
WORDS = ("man", "saw", "dog", "near", "old", "trees", "went", "home", "again", "before", "rain", "came", "down", "slept", "morning")
FIRST = ("onset", "duration", "trial_type", "value", "sample", "story", "story_uid", "sound_id", "kind", "start", "sound", "phoneme")
COLUMNS = (*FIRST, "word", "sequence_id", "condition", "word_index", "speech_rate", "voice", "pronounced")


def table_of_words(story, *, n_sounds=2, seconds=60.0, origin=3.0):
    """Rows of NEMAR's events.tsv: two sounds of a story, a sentence of six words every 3 s, one word list, one pseudo-word."""
    rng = np.random.default_rng(gwilliams2022.STORIES.index(story))
    rows, sentence = [], 0
    for sound in range(n_sounds):
        onset = origin + sound * (seconds + 2.5)
        name = "The_Black_Willow" if story == "the_black_willow" else story
        common = {"story": name, "story_uid": 0, "sound_id": sound}
        rows.append(common | {"onset": onset, "duration": 0.0, "kind": "sound", "start": 0, "sound": f"stimuli/audio/{name}_{sound}.0.wav"})
        for begin in np.arange(0, seconds - 2.9, 3.0):
            for index in range(6):
                start = round(begin + 0.45 * index, 3)
                condition = "word_list" if sentence == 2 else "pseudo_words" if (sentence, index) == (4, 1) else "sentence"
                own = common | {"start": start, "sound": f"stimuli/audio/{name}_{sound}.wav", "sequence_id": sentence, "word_index": index}
                own |= {"condition": condition, "speech_rate": 205, "voice": "Allison", "pronounced": 1, "onset": round(onset + start, 3)}
                rows.append(own | {"kind": "word", "word": str(rng.choice(WORDS)), "duration": 0.4})
                rows += [own | {"kind": "phoneme", "phoneme": "t_B", "duration": 0.2}]
            sentence += 1
    table = pd.DataFrame(rows)
    table["trial_type"], table["value"], table["sample"] = table["kind"], 1, (table["onset"] * 1000).round().astype(int)
    return table[list(COLUMNS)]


def as_osf(table):
    """The same rows as OSF has them: everything in the repr of a dict."""
    keys = [name for name in table.columns if name not in ("onset", "duration", "trial_type", "value", "sample")]
    dicts = [
        repr({key: float(row[key]) if key in NUMBERS else row[key] for key in keys if not pd.isna(row[key])})
        for row in table.to_dict("records")
    ]
    # Some rows have a missing number, which is written nan and is no literal.
    dicts[0] = dicts[0].replace("}", ", 'pronounced': nan}")
    return table[["onset", "duration", "value", "sample"]].assign(trial_type=dicts)[["onset", "duration", "trial_type", "value", "sample"]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Two subjects, one with a single session; the story lw1 and the fourth one; wavs; no recordings."""
    root = tmp_path_factory.mktemp("megmasc")
    (root / "stimuli" / "audio").mkdir(parents=True)
    participants = pd.DataFrame({"participant_id": ["sub-01", "sub-02", "sub-03"], "n_sessions": ["2", "1", "1"]})
    participants.to_csv(root / "participants.tsv", sep="\t", index=False)
    rng = np.random.default_rng(0)
    for subject, session, origin in (("01", "0", 3.0), ("01", "1", 4.2), ("02", "0", 3.7)):
        folder = root / f"sub-{subject}" / f"ses-{session}" / "meg"
        folder.mkdir(parents=True)
        for task in (0, 3):
            stem = folder / f"sub-{subject}_ses-{session}_task-{task}"
            table = table_of_words(gwilliams2022.STORIES[task], origin=origin)
            table.to_csv(f"{stem}_events.tsv", sep="\t", index=False, na_rep="n/a")
            sidecar = {"RecordingDuration": 133.999, "SamplingFrequency": 1000.0}
            (folder / f"{stem.name}_meg.json").write_text(json.dumps(sidecar))
            channels = pd.DataFrame({"name": ["MEG 001", "MEG 002"], "status": ["good", "bad"]})
            channels.to_csv(f"{stem}_channels.tsv", sep="\t", index=False, encoding="utf-8-sig")
    for name in ("lw1", "the_black_willow"):
        for sound in range(2):
            data = rng.normal(size=61 * AUDIO_SFREQ) * 0.1
            soundfile.write(root / "stimuli" / "audio" / f"{name}_{sound}.wav", data, AUDIO_SFREQ)
    return root


def kit_raw(seconds, n_channels=208, sfreq=1000.0, seed=0):
    """What MNE makes of a .con file: MEG channels, references, other inputs."""
    names = [f"MEG {i + 1:03d}" for i in range(n_channels + 16)] + ["MISC 001"]
    info = mne.create_info(names, sfreq, ["mag"] * n_channels + ["ref_meg"] * 16 + ["misc"])
    for i, channel in enumerate(info["chs"][:n_channels]):
        angle = 2.4 * i
        height = 0.1 * i / n_channels
        channel["loc"][:3] = [0.1 * np.cos(angle) * (1 - height), 0.1 * np.sin(angle) * (1 - height), height]
    data = np.random.default_rng(seed).normal(size=(len(names), round(seconds * sfreq))) * 1e-13
    return mne.io.RawArray(data, info, verbose="error")


def test_recordings_are_participants_by_sessions_by_stories_as_far_as_they_are_there(tree):
    dataset = load("gwilliams2022", tree)
    uids = [r.uid.removeprefix("gwilliams2022/") for r in dataset.recordings()]
    assert uids == [f"sub-{s}/ses-{e}/run-{t}" for s, e in (("01", "0"), ("01", "1"), ("02", "0")) for t in "03"]
    # sub-03 is not there at all; of the others two stories; a session that was never held is nothing that is missing.
    assert set(dataset.excluded) == {"03"} | {f"{s}/ses-{e}/run-{t}" for s, e in (("01", "0"), ("01", "1"), ("02", "0")) for t in "12"}
    assert [dataset.duration(r) for r in dataset.recordings()] == [134.0] * 6


def test_what_is_not_there_is_said_with_what_to_do(tree, tmp_path):
    with pytest.raises(ValueError, match="root=DIR"):
        load("gwilliams2022")
    with pytest.raises(FileNotFoundError, match=r"participants.tsv is missing.*brainspeech download gwilliams2022"):
        load("gwilliams2022", tmp_path)
    dataset = load("gwilliams2022", tree)
    with pytest.raises(FileNotFoundError, match=r"task-0_meg.con is missing.*brainspeech download"):
        dataset.read_raw(dataset.recordings()[0])


def test_events_name_sounds_as_on_disk_and_lie_where_the_sound_is(tree):
    dataset = load("gwilliams2022", tree)
    for recording in dataset.recordings():
        table = dataset.read_events(recording)
        assert table["kind"].value_counts().to_dict() == {"sound": 2, "sentence": 40, "word": 240, "phoneme": 240}
        assert all((tree / audio).is_file() for audio in table["audio"])
        sounds = table[table["kind"] == "sound"].set_index("audio")
        np.testing.assert_allclose(table["onset"] - table["audio_onset"], sounds.loc[table["audio"], "onset"], atol=1e-9)
        # To the end of the last word, though the wav is longer.
        assert sounds["duration"].tolist() == pytest.approx([59.65, 59.65])
        sentence = table[table["kind"] == "sentence"].iloc[1]
        words = table[(table["kind"] == "word") & (table["sequence"] == sentence["sequence"])]
        assert sentence["text"] == " ".join(words["text"])
        assert sentence["onset"] + sentence["duration"] == pytest.approx((words["onset"] + words["duration"]).max())


def test_conditions_are_marked_without_cutting_a_sentence(tree):
    dataset = load("gwilliams2022", tree)
    table = dataset.read_events(dataset.recordings()[1])
    assert dataset.recordings()[1].run == "3"
    words = table[table["kind"] == "word"]
    counts = words["sequence"].value_counts()
    assert (counts == 6).all()
    assert sorted(s for s in counts.index if "/" in s) == ["the_black_willow-2/word_list", "the_black_willow-4/pseudo_words"]


def test_both_forms_give_one_table(tree, tmp_path):
    for story in gwilliams2022.STORIES:
        table = table_of_words(story)
        table.to_csv(tmp_path / "nemar.tsv", sep="\t", index=False, na_rep="n/a")
        as_osf(table).to_csv(tmp_path / "osf.tsv", sep="\t", index=False)
        nemar, osf = (
            gwilliams2022.make_events(gwilliams2022.read_table(tmp_path / f"{form}.tsv"), story=story, where=form)
            for form in ("nemar", "osf")
        )
        pd.testing.assert_frame_equal(nemar, osf)


def test_a_dict_that_would_run_code_is_refused(tmp_path):
    table = as_osf(table_of_words("lw1"))
    table.loc[3, "trial_type"] = "{'kind': __import__('os').getcwd()}"
    table.to_csv(tmp_path / "osf.tsv", sep="\t", index=False)
    with pytest.raises(RuntimeError, match="expected the repr of a dict in every trial_type"):
        gwilliams2022.read_table(tmp_path / "osf.tsv")


def test_another_story_and_a_word_off_its_sound_are_errors():
    table = table_of_words("lw1").astype(object).where(lambda t: t.notna(), "")
    with pytest.raises(RuntimeError, match="expected the story easy_money, got lw1"):
        gwilliams2022.make_events(table, story="easy_money", where="here")
    table.loc[5, "onset"] = table.loc[5, "onset"] + 0.2
    with pytest.raises(RuntimeError, match=r"here: 1 events are not where their sound puts them"):
        gwilliams2022.make_events(table, story="lw1", where="here")


def test_bad_channels_are_marked_and_a_wrong_number_is_an_error(tree, monkeypatch):
    dataset = load("gwilliams2022", tree)
    recording = dataset.recordings()[0]
    con = tree / recording.path
    given = {}
    monkeypatch.setattr(mne.io, "read_raw_kit", lambda path, **options: given.update(options) or kit_raw(4.0))
    con.write_bytes(b"")
    try:
        raw = dataset.read_raw(recording)
        assert raw.info["bads"] == ["MEG 002"]
        assert not {"mrk", "elp", "hsp"} & set(given)
        signal = preprocess(raw, PreprocessConfig(channels="meg"))
        assert len(signal.ch_names) == 207
        assert signal.dropped == {"marked bad": 1}
        before = dataset.fingerprint(recording)
        # Markers and head shape are used when all three are there.
        folder = con.parent
        extra = [folder / name for name in ("sub-01_ses-0_task-0_markers.mrk", "sub-01_ses-0_acq-ELP_headshape.pos")]
        extra.append(folder / "sub-01_ses-0_acq-HSP_headshape.pos")
        for path in extra:
            path.write_text("% Ascii stylus data file created by FastSCAN V4.0.7\n% x y z\n    9.9725  -55.3995 -142.2314\n  1 2 3\n")
        dataset.read_raw(recording)
        np.testing.assert_allclose(given["hsp"], [[9.9725e-3, -55.3995e-3, -142.2314e-3], [1e-3, 2e-3, 3e-3]])
        assert given["mrk"].name == "sub-01_ses-0_task-0_markers.mrk"
        for path in extra:
            path.unlink()
        monkeypatch.setattr(mne.io, "read_raw_kit", lambda path, **options: kit_raw(4.0, n_channels=157))
        with pytest.raises(RuntimeError, match=r"sub-01/ses-0/run-0: expected 208 MEG channels, got 157"):
            dataset.read_raw(recording)
        channels = con.with_name("sub-01_ses-0_task-0_channels.tsv")
        channels.write_text(channels.read_text(encoding="utf-8-sig").replace("bad", "good"))
        assert dataset.fingerprint(recording) != before
    finally:
        con.unlink()
        pd.DataFrame({"name": ["MEG 001", "MEG 002"], "status": ["good", "bad"]}).to_csv(
            con.with_name("sub-01_ses-0_task-0_channels.tsv"), sep="\t", index=False, encoding="utf-8-sig"
        )


SMALL = (
    "feature.name=mel",
    "feature.n_mels=8",
    "model.hidden=8",
    "model.depth=1",
    "model.n_virtual=6",
    "model.n_harmonics=3",
    "linear_clip.rank=4",
    "ridge.n_components=4",
    "ridge.lag_step=0.25",
    "preprocess.sfreq=30",
    "segments.sfreq=30",
    "segments.stride=1",
    "segments.valid_ratio=0.25",
    "segments.test_ratio=0.25",
    "train.max_epochs=1",
    "train.batch_size=16",
    "train.max_steps_per_epoch=3",
    "evaluate.n_permutations=99",
    "evaluate.n_bootstrap=49",
)


def test_the_recipe_runs_from_files_to_report(tree, tmp_path, monkeypatch):
    dataset = load("gwilliams2022", tree)
    paths = [tree / r.path for r in dataset.recordings()]
    for i, path in enumerate(paths):
        path.write_bytes(bytes(i))
    monkeypatch.setattr(gwilliams2022, "N_CHANNELS", 12)
    monkeypatch.setattr(mne.io, "read_raw_kit", lambda path, **options: kit_raw(134.0, n_channels=12, sfreq=100.0, seed=paths.index(path)))
    recipe = recipes.change(recipes.load("gwilliams2022"), SMALL)
    try:
        report = flow.run(recipe, root=tree, out=tmp_path / "run", cache=Cache(tmp_path / "cache"), progress=False)
    finally:
        for path in paths:
            path.unlink()
    assert report.n_candidates > 10
    assert 0 <= report.rows["encoder"]["top10"]["value"] <= 1
    assert report.subjects == 2
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    assert report.dropped["channels: marked bad"] == 6


def test_blocks_and_windows_need_no_recording(tree):
    dataset = load("gwilliams2022", tree)
    recordings = dataset.recordings()
    assert not any((tree / r.path).exists() for r in recordings)
    events = {r.uid: dataset.read_events(r) for r in recordings}
    config = SegmentConfig(valid_ratio=0.25, test_ratio=0.25)
    found = make_segments(recordings, events, {r.uid: dataset.duration(r) for r in recordings}, config)
    assert audit(found.segments, found.blocks).errors == []
    assert min(split["segments"] for split in describe(found, events)["splits"].values()) > 0
    # Without the sidecar the end is not known.
    sidecar = tree / recordings[0].path.replace("_meg.con", "_meg.json")
    content = sidecar.read_text()
    sidecar.unlink()
    try:
        assert dataset.duration(recordings[0]) == np.inf
    finally:
        sidecar.write_text(content)


# -- the real files -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(shared):
    dataset = load("gwilliams2022", shared / "data" / "gwilliams2022")
    recordings = dataset.recordings()
    events = {r.uid: dataset.read_events(r) for r in recordings}
    return dataset, recordings, events, {r.uid: dataset.duration(r) for r in recordings}


@pytest.mark.data
def test_the_docstring_is_true_of_the_real_events(real):
    dataset, recordings, events, durations = real
    assert len(recordings) == 16
    assert set(dataset.excluded) == {f"{i:02d}" for i in range(3, 28)}
    counts = pd.concat(events.values())["kind"].value_counts()
    assert (counts["word"], counts["phoneme"], counts["sound"]) == (34_244, 123_044, 120)
    assert durations["gwilliams2022/sub-01/ses-0/run-0"] == 396.0
    for recording in recordings:
        table = events[recording.uid]
        assert set(table["sequence"].str.split("-").str[0]) == {"", gwilliams2022.STORIES[int(recording.run)]}
        assert (table["audio"] == table["audio"].str.lower()).all()
        assert (table["onset"] + table["duration"]).max() < durations[recording.uid]
    listed = {path for path in _listed(real) if path.endswith(".wav")}
    assert set(pd.concat(events.values())["audio"]) == listed - {"stimuli/audio/lw1.wav"}
    pseudo = [s for uid in events if "sub-01/ses-0" in uid for s in set(events[uid]["sequence"]) if s.endswith("/pseudo_words")]
    assert len(pseudo) == 8


def _listed(real):
    root = real[0].root.parent / "manifests" / "gwilliams2022.tsv"
    return pd.read_csv(root, sep="\t")["path"].tolist()


@pytest.mark.data
def test_a_complete_folder_has_196_recordings_of_27_subjects(real, shared, tmp_path):
    listed = _listed(real)
    for path in listed:
        if path.endswith("_events.tsv"):
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).touch()
    (tmp_path / "participants.tsv").write_bytes((shared / "data" / "gwilliams2022" / "participants.tsv").read_bytes())
    dataset = load("gwilliams2022", tmp_path)
    assert len(dataset.recordings()) == 196
    assert len({r.subject for r in dataset.recordings()}) == 27
    assert dataset.excluded == {}
    assert {r.path for r in dataset.recordings()} == {path for path in listed if path.endswith("_meg.con")}


@pytest.mark.data
def test_two_subjects_come_near_the_published_test_counts(real):
    _, recordings, events, durations = real
    segmentation = make_segments(recordings, events, durations, SegmentConfig(protocol="paper"))
    found = describe(segmentation, events)["splits"]
    # Published: 1284 segments, 846 words. The train count grows with the recordings, since the grid falls differently on the words of each.
    assert (found["test"]["segments"], found["test"]["vocabulary"]) == (1302, 833)
    assert (found["train"]["segments"], found["train"]["vocabulary"]) == (3820, 1845)
    audited = audit(segmentation.segments, segmentation.blocks)
    assert audited.errors == []
    assert [text.split(" (")[0] for text in audited.repeated_texts] == ["hey roy", "i", "i i i", "roy", "what"]
    # A story has one partition whoever heard it, and whenever.
    for story in "0123":
        own = {tuple(b.uid for b in segmentation.blocks if b.recording == r.uid) for r in recordings if r.run == story}
        assert len(own) == 1


@pytest.mark.data
def test_the_clean_protocol_gives_every_listener_the_same_segments(real):
    _, recordings, events, durations = real
    segmentation = make_segments(recordings, events, durations)
    audited = audit(segmentation.segments, segmentation.blocks)
    assert audited.errors == []
    assert all(len(text.split(" (")[0].split()) < 4 for text in audited.repeated_texts)
    for story in "0123":
        ids = [{s.stimulus_id for s in segmentation.segments if s.recording == r.uid} for r in recordings if r.run == story]
        assert all(own == ids[0] for own in ids)


@pytest.mark.data
def test_real_head_shapes_are_read(shared):
    for path in sorted((shared / "data" / "gwilliams2022").glob("sub-*/ses-*/meg/*ELP_headshape.pos")):
        points = gwilliams2022.read_points(path)
        assert points.shape == (8, 3)
        assert 0.05 < np.linalg.norm(points - points.mean(axis=0), axis=1).max() < 0.2


@pytest.mark.data
def test_a_real_kit_recording_goes_through_the_loaders_channels(shared, tmp_path):
    folder = shared / "data" / "recordings" / "kit"
    raw = mne.io.read_raw_kit(folder / "test.sqd", stim=None, verbose="error")
    table = tmp_path / "channels.tsv"
    table.write_text(
        "name\ttype\tstatus\n" + "".join(f"{name}\tMEG\t{'bad' if i == 4 else 'good'}\n" for i, name in enumerate(raw.ch_names))
    )
    checked = gwilliams2022.check_channels(raw, table, n_channels=157, where="test.sqd")
    longer = mne.concatenate_raws([checked.copy().load_data(verbose="error") for _ in range(2)], verbose="error")  # a window's length
    signal = preprocess(longer, PreprocessConfig(channels="meg"), uid="kit")
    assert len(signal.ch_names) == 156
    assert signal.dropped == {"marked bad": 1}
    assert signal.duration == pytest.approx(4.0, abs=0.01)
    assert np.isfinite(signal.positions).all()
    assert re.fullmatch(r"MEG \d{3}", signal.ch_names[0])
