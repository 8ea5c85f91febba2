"""MOUS: a log, TextGrids and triggers made after the real ones are put together as they were heard, whatever is missing or broken."""

from collections import Counter

import mne
import numpy as np
import pytest
import soundfile

from brainspeech import flow
from brainspeech import recipe as recipes
from brainspeech.cache import Cache
from brainspeech.datasets import load, presentation_log, schoffelen2019
from brainspeech.preprocess import PreprocessConfig, preprocess
from brainspeech.segments import SegmentConfig, audit, make_segments

SFREQ = 200.0
AUDIO_SFREQ = 8000
SILENCE = 0.3  # s at the start of each wav
WORD = 0.5  # s
WORDS = (
    "de",
    "het",
    "oude",
    "man",
    "vrouw",
    "ziet",
    "hoort",
    "nu",
    "een",
    "heel",
    "mooi",
    "huis",
    "paard",
    "in",
    "op",
    "bij",
    "straat",
    "tuin",
)
STIMULI = {i + 1: " ".join(np.random.default_rng(100 + i).choice(WORDS, 12, replace=False)) for i in range(15)}
# The word list scrambled from sentence i is number 500 + i.
STIMULI |= {500 + i: " ".join(np.random.default_rng(i).permutation(text.split())) for i, text in list(STIMULI.items())}


def wav_seconds(text):
    return SILENCE + WORD * len(text.split()) + 0.4


def textgrid(number):
    """A grid as MAUS writes it: words, their phonemes (one each here), pauses with or without a label."""
    words, end = STIMULI[number].split(), wav_seconds(STIMULI[number])
    if number == 3:
        words = words[:-1]  # the aligner lost the last word
    spoken = [(SILENCE + WORD * i, SILENCE + WORD * (i + 1), word) for i, word in enumerate(words)]
    tiers = {}
    for name, pause in (("ORT-MAU", ""), ("MAU", "<p:>")):
        tiers[name] = [(0.0, SILENCE, pause), *spoken, (spoken[-1][1], end, pause)]
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {end}",
        "tiers? <exists>",
        "size = 2",
        "item []:",
    ]
    for i, (name, intervals) in enumerate(tiers.items()):
        lines += [
            f"    item [{i + 1}]:",
            '        class = "IntervalTier"',
            f'        name = "{name}"',
            "        xmin = 0",
            f"        xmax = {end}",
        ]
        lines.append(f"        intervals: size = {len(intervals)}")
        for k, (start, stop, text) in enumerate(intervals):
            lines += [
                f"        intervals [{k + 1}]:",
                f"            xmin = {start}",
                f"            xmax = {stop}",
                f'            text = "{text}"',
            ]
    return "\n".join(lines) + "\n"


def session(seed):
    """What a listener heard: rows (true seconds, event type, code of the log, trigger or 0), and the onset of each wav."""
    rng = np.random.default_rng(seed)
    sentences, lists = rng.permutation(np.arange(1, 16)), rng.permutation(np.arange(501, 516))
    rows, onsets, time = [(1.0, "Picture", "PULSE MODE 0", 0)], {}, 5.0
    for block in range(3):
        for title, numbers in (("WOORDEN", lists), ("ZINNEN", sentences)):
            rows.append((time, "Picture", title, 10))
            time += 2.0
            for number in numbers[5 * block : 5 * block + 5].tolist():
                wait = float(rng.uniform(1.2, 2.2))
                rows += [(time, "Picture", "blank", 0), (time + 2, "Picture", f"FIX {round(1000 * (wait + 2))}", 20)]
                time += 2 + wait
                onsets[number] = time
                end = time + wav_seconds(STIMULI[number])
                rows += [
                    (time, "Sound", f"14 Start File {number:03d}.wav", 14),
                    (time + SILENCE, "Nothing", "3 Audio onset", 3),
                    (time + SILENCE + 1, "Nothing", "4 target", 4),
                    (end, "Nothing", "15 End of file", 15),
                ]
                time = end
    return rows, onsets


def log_text(rows, *, subject, scale=1.00003, start=321.0, broken=False, twice=False):
    """A log of Presentation, its clock 30 ppm fast."""
    head = "Scenario -\tBigUmAud\nLogfile written - 12/05/2012 15:00:57\n\n"
    head += "Subject\tTrial\tEvent Type\tCode\tTime\tTTime\tUncertainty\tDuration\tUncertainty\tReqTime\tReqDur\n\n"
    lines = []
    for i, (time, kind, code, _) in enumerate(rows):
        ticks = round((time * scale + start) * 10_000)
        lines.append(f"{subject}\t{i}\t{kind}\t{code}\t{ticks}\t0\t1\t3000\t2\t0\tnext")
    lines.insert(3, f"{subject}\t2\tResponse\t13\t{round((5 * scale + start) * 10_000) + 1}\t0\t1")
    if broken:
        lines[2] = lines[2].replace("WOORDEN", "WOORDEN.\n")
    second = "Event Type\tCode\tType\tResponse\tRT\tRT Uncertainty\tTime\tUncertainty\tDuration\tUncertainty\tReqTime\tReqDur\n\n"
    second += "\n".join(f"{kind}\t{code}\tother\t\t\t\t99\t1\t300\t2\t0\tnext" for _, kind, code, _ in rows)
    text = head + "\n".join(lines) + "\n\n\n" + second + "\n"
    return text * 2 if twice else text


def ctf_raw(rows, *, lost=(), n_channels=12, early=0.0):
    """A recording of the session with its triggers, those in ``lost`` missing, begun ``early`` seconds in."""
    names = [f"MLC{i + 11}-4304" for i in range(n_channels)] + ["BG1-4304", "UPPT001"]
    info = mne.create_info(names, SFREQ, ["mag"] * n_channels + ["ref_meg", "stim"])
    for i, channel in enumerate(info["chs"][:n_channels]):
        channel["loc"][:3] = [0.1 * np.cos(i), 0.1 * np.sin(i), 0.01 * i]
    n_times = round((rows[-1][0] + 4 - early) * SFREQ)
    data = np.random.default_rng(0).normal(size=(len(names), n_times)) * 1e-13
    data[-1] = 0
    for i, (time, _, _, code) in enumerate(rows):
        sample = round((time - early) * SFREQ)
        if code and sample >= 0 and i not in lost:
            data[-1, sample : sample + 2] = code
    return mne.io.RawArray(data, info, verbose="error")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Two listeners and one that is left out; the folder, the sessions, and the recordings, which a test may replace."""
    root = tmp_path / "mous"
    for folder in ("sourcedata/meg_task", "stimuli/audio_files", "derivatives/phonemes"):
        (root / folder).mkdir(parents=True)
    (root / "stimuli" / "stimuli.txt").write_text("".join(f"{number} {text.capitalize()}.\n" for number, text in STIMULI.items()))
    rng = np.random.default_rng(0)
    for number, text in STIMULI.items():
        name = f"EQ_Ramp_Int2_Int1LPF{number:03d}"
        (root / "derivatives" / "phonemes" / f"{name}.TextGrid").write_text(textgrid(number))
        data = 0.1 * rng.normal(size=round(wav_seconds(text) * AUDIO_SFREQ))
        soundfile.write(root / "stimuli" / "audio_files" / f"{name}.wav", data, AUDIO_SFREQ)
    sessions, raws = {}, {}
    for seed, subject in enumerate(("A2002", "A2003", "A2011")):
        for task in ("auditory", "rest"):
            folder = root / f"sub-{subject}" / "meg" / f"sub-{subject}_task-{task}_meg.ds"
            folder.mkdir(parents=True)
            (folder / "data.meg4").write_bytes(bytes(seed + 1))
        sessions[subject] = session(seed)
        raws[subject] = ctf_raw(sessions[subject][0])
        (root / "sourcedata" / "meg_task" / f"12-{subject}-MEG.log").write_text(log_text(sessions[subject][0], subject=subject))
    monkeypatch.setattr(schoffelen2019, "N_CHANNELS", 12)
    monkeypatch.setattr(schoffelen2019, "SFREQ", SFREQ)
    monkeypatch.setattr(mne.io, "read_raw_ctf", lambda path, **options: raws[path.name[4:9]].copy())
    return root, sessions, raws


def check_onsets(table, onsets, *, shift=0.0, tolerance=1.5 / SFREQ):
    """Every sound lies where it was heard, in seconds of the recording."""
    sounds = table[table["kind"] == "sound"]
    numbers = sounds["audio"].str.extract(r"LPF(\d+)\.wav", expand=False).astype(int)
    expected = np.array([onsets[number] for number in numbers]) + shift
    np.testing.assert_allclose(sounds["onset"], expected, atol=tolerance)
    return set(numbers)


def test_listeners_are_those_that_are_there_and_not_left_out(tree):
    root, _, _ = tree
    dataset = load("schoffelen2019", root)
    assert [r.uid for r in dataset.recordings()] == ["schoffelen2019/sub-A2002", "schoffelen2019/sub-A2003"]
    assert dataset.recordings()[0].path == "sub-A2002/meg/sub-A2002_task-auditory_meg.ds"
    assert dataset.excluded["A2011"] == "two MEG runs, or a bad one"
    assert dataset.excluded["A2004"] == "not in this folder"
    assert "A2012" not in dataset.excluded  # nobody had that number
    assert len(dataset.recordings()) + len(dataset.excluded) == 102
    assert len(dataset.published) == 96
    (root / "sub-A2002" / "meg" / "sub-A2002_task-auditory_run-2_meg.ds").mkdir()
    assert load("schoffelen2019", root).excluded["A2002"] == "several recordings of the task"


def test_who_has_no_files_is_told_where_they_are(tmp_path):
    with pytest.raises(PermissionError, match=r"data.ru.nl/collections.*DSC_3011020.09_236.*derivatives.zip"):
        load("schoffelen2019")
    with pytest.raises(FileNotFoundError, match=r"holds no sub-A2.*needs an account"):
        load("schoffelen2019", tmp_path)
    with pytest.raises(ValueError, match="onsets must be one of corrected, published"):
        load("schoffelen2019", tmp_path, onsets="late")


@pytest.mark.parametrize("quirk", [{}, {"broken": True}, {"twice": True}, {"broken": True, "twice": True}])
def test_sounds_and_words_lie_where_they_were_heard(tree, quirk):
    root, sessions, _ = tree
    rows, onsets = sessions["A2002"]
    (root / "sourcedata" / "meg_task" / "12-A2002-MEG.log").write_text(log_text(rows, subject="A2002", **quirk))
    dataset = load("schoffelen2019", root)
    table = dataset.read_events(dataset.recordings()[0])
    assert check_onsets(table, onsets) == set(STIMULI)
    counts = table["kind"].value_counts()
    n_words = sum(len(text.split()) for text in STIMULI.values()) - 1
    assert counts.to_dict() == {"sound": 30, "sentence": 30, "word": n_words, "phoneme": n_words}
    word = table[(table["kind"] == "word") & (table["audio"].str.contains("LPF007"))]
    assert word["text"].tolist() == STIMULI[7].split()
    np.testing.assert_allclose(word["audio_onset"], SILENCE + WORD * np.arange(len(word)), atol=1e-9)
    np.testing.assert_allclose(word["onset"] - word["audio_onset"], onsets[7], atol=1.5 / SFREQ)
    sound = table[(table["kind"] == "sound") & (table["audio"].str.contains("LPF007"))]
    assert sound["duration"].tolist() == pytest.approx([wav_seconds(STIMULI[7])])
    assert dataset.notes == ["schoffelen2019/sub-A2002: only 36 triggers match the log."]


def test_sequences_are_lines_of_the_list_of_stimuli_and_word_lists_are_marked(tree):
    root, _, _ = tree
    dataset = load("schoffelen2019", root)
    table = dataset.read_events(dataset.recordings()[0])
    words = table[table["kind"] == "word"]
    number = words["audio"].str.extract(r"LPF(\d+)\.wav", expand=False).astype(int)
    expected = [f"{n}/word_list" if n > 500 else str(n) for n in number]
    assert words["sequence"].tolist() == expected  # number 3 too, whose last word is missing
    stimuli = root / "stimuli" / "stimuli.txt"
    stimuli.write_text("\n".join(line for line in stimuli.read_text().splitlines() if not line.startswith("7 ")))
    without = load("schoffelen2019", root)
    assert set(without.read_events(without.recordings()[0])["sequence"]) == set(table["sequence"])
    assert any("no line that begins like 1 of 30 sounds (7 is one)" in note for note in without.notes)


def test_missing_triggers_a_late_start_and_a_stop_in_between_are_survived(tree):
    root, sessions, raws = tree
    rows, onsets = sessions["A2002"]
    marks = [i for i, row in enumerate(rows) if row[3] in (10, 20)]
    # Triggers lost here and there, and the first round of five before the recording began.
    early = onsets[[n for n in onsets][4]] + 1.0
    raws["A2002"] = ctf_raw(rows, lost=(marks[9], marks[17], marks[18]), early=early)
    dataset = load("schoffelen2019", root)
    table = dataset.read_events(dataset.recordings()[0])
    found = check_onsets(table, {n: t - early for n, t in onsets.items()})
    assert found == {n for n, t in onsets.items() if t > early}
    assert any("5 of 30 sounds, before the first match" in note for note in dataset.notes)
    # A recording that was stopped for 40 s between two blocks: its clock jumps.
    cut = [i for i, row in enumerate(rows) if row[3] == 10][3]
    stopped = [
        (t - 40 if i >= cut else t, *rest)
        for i, (t, *rest) in enumerate([(r[0] + (100 if i >= cut else 0), *r[1:]) for i, r in enumerate(rows)])
    ]
    in_log = [(r[0] + (100 if i >= cut else 0), *r[1:]) for i, r in enumerate(rows)]
    raws["A2002"] = ctf_raw(stopped)
    (root / "sourcedata" / "meg_task" / "12-A2002-MEG.log").write_text(log_text(in_log, subject="A2002"))
    dataset = load("schoffelen2019", root)
    found = check_onsets(dataset.read_events(dataset.recordings()[0]), {n: t + (60 if t >= rows[cut][0] else 0) for n, t in onsets.items()})
    assert len(found) >= 29


def test_another_listeners_log_is_an_error(tree):
    root, sessions, _ = tree
    log = root / "sourcedata" / "meg_task" / "12-A2002-MEG.log"
    log.write_text(log_text(sessions["A2003"][0], subject="A2002"))
    dataset = load("schoffelen2019", root)
    with pytest.raises(RuntimeError, match=r"sub-A2002: only \d+ of the 36 marks in the log match one of the 36 triggers"):
        dataset.read_events(dataset.recordings()[0])
    log.unlink()
    with pytest.raises(FileNotFoundError, match=r"expected one log .*A2002\*, got 0"):
        dataset.read_events(dataset.recordings()[0])


def test_published_onsets_come_late_by_the_silence_before_the_voice(tree):
    root, sessions, _ = tree
    dataset = load("schoffelen2019", root, onsets="published")
    table = dataset.read_events(dataset.recordings()[0])
    check_onsets(table, sessions["A2002"][1], shift=SILENCE)


def test_a_note_tells_of_grids_that_count_from_the_voice(tree):
    root, _, _ = tree
    for path in (root / "derivatives" / "phonemes").iterdir():
        # Grids of sounds whose first word begins at once, while the log has the voice set in after the silence.
        path.write_text(path.read_text().replace(f"xmax = {SILENCE}\n", "xmax = 0.01\n").replace(f"xmin = {SILENCE}\n", "xmin = 0.01\n"))
    dataset = load("schoffelen2019", root)
    dataset.read_events(dataset.recordings()[0])
    assert any("comes -0.290 s (median) from the voice by the log" in note for note in dataset.notes)


def test_a_log_that_is_none_is_an_error(tmp_path):
    path = tmp_path / "a.log"
    path.write_text("nothing\n")
    with pytest.raises(RuntimeError, match="expected the log of Presentation"):
        presentation_log.read_log(path)


def test_times_between_matches_count_from_the_match_before():
    time = presentation_log.to_recording(np.array([0.5, 1.0, 1.9, 2.0, 7.0]), np.array([1.0, 2.0]), np.array([11.0, 12.1]))
    np.testing.assert_allclose(time, [np.nan, 11.0, 11.9, 12.1, 17.1])


@pytest.mark.parametrize("protocol", ["clean", "paper"])
def test_every_sound_is_a_block(tree, protocol):
    root, _, _ = tree
    dataset = load("schoffelen2019", root)
    tables = {r.uid: dataset.read_events(r) for r in dataset.recordings()}
    durations = {r.uid: dataset.duration(r) for r in dataset.recordings()}
    config = SegmentConfig(protocol=protocol, blocks_at="sounds", group_scrambled=True, valid_ratio=0.2, test_ratio=0.3)
    found = make_segments(dataset.recordings(), tables, durations, config)
    assert audit(found.segments, found.blocks).errors == []
    assert len({b.uid for b in found.blocks}) == 30
    if protocol == "paper":
        # Named after the line of stimuli.txt alone: that is what the reference hashes.
        assert {b.uid for b in found.blocks} == {str(n) for n in STIMULI}
    else:
        split = {b.audio.split("LPF")[1][:3]: b.split for b in found.blocks}
        same = [split[f"{n:03d}"] == split[f"{n + 500}"] for n in range(1, 16)]
        # Number 3 lacks a word, so that it and its list do not hold the same words.
        assert all(ok for n, ok in enumerate(same, 1) if n != 3)
        assert set(split.values()) == {"train", "valid", "test"}


def test_the_recipe_runs_from_files_to_report(tree, tmp_path):
    root, _, _ = tree
    small = ("feature.name=mel", "feature.n_mels=8", "model.hidden=8", "model.depth=1", "model.n_virtual=6", "model.n_harmonics=3")
    small += ("linear_clip.rank=4", "ridge.n_components=4", "ridge.lag_step=0.25", "preprocess.sfreq=30", "segments.sfreq=30")
    small += (
        "segments.valid_ratio=0.3",
        "segments.test_ratio=0.3",
        "train.max_epochs=1",
        "train.batch_size=16",
        "train.max_steps_per_epoch=3",
    )
    small += ("evaluate.n_permutations=99", "evaluate.n_bootstrap=49")
    recipe = recipes.change(recipes.load("schoffelen2019"), small)
    report = flow.run(recipe, root=root, out=tmp_path / "run", cache=Cache(tmp_path / "cache"), progress=False)
    assert report.n_candidates > 5
    assert report.subjects == 2
    assert 0 <= report.rows["encoder"]["top10"]["value"] <= 1
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


@pytest.mark.data
def test_a_real_ctf_recording_goes_through_the_loaders_channels(shared):
    raw = mne.io.read_raw_ctf(shared / "data" / "recordings" / "ctf" / "testdata_ctf_short_discontinuous.ds", verbose="error")
    checked = schoffelen2019.check_channels(raw, where="short")
    types = Counter(checked.get_channel_types())
    assert (types["mag"], types["ref_meg"]) == (273, 28)
    assert "UPPT001" in checked.ch_names
    longer = mne.concatenate_raws([checked.copy().load_data(verbose="error") for _ in range(2)], verbose="error")  # a window's length
    signal = preprocess(longer, PreprocessConfig(channels="meg"), uid="ctf")
    assert len(signal.ch_names) == 273
    assert not [name for name in signal.ch_names if not name.startswith(("ML", "MR", "MZ"))]
    assert signal.duration == pytest.approx(4.0, abs=0.01)
    assert np.isfinite(signal.positions).all()
    other = mne.io.read_raw_ctf(shared / "data" / "recordings" / "ctf" / "somMDYO-18av.ds", verbose="error")
    with pytest.raises(RuntimeError, match="expected 273 MEG channels at 1200 Hz, got 151 at 1250 Hz"):
        schoffelen2019.check_channels(other, where="other")
