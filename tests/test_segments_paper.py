"""The reference's protocol against plain loops written from its description, and its published counts on the real event tables."""

import dataclasses
import math
import re

import numpy as np
import pandas as pd
import pytest
import scipy.io

from brainspeech import events as ev
from brainspeech import segments_paper
from brainspeech.protocols import SegmentConfig, Tally, split_of
from brainspeech.records import Recording
from brainspeech.segments import audit, describe, load, make_segments, save

PAPER = SegmentConfig(protocol="paper")


@pytest.fixture(scope="module")
def chatter():
    """Two subjects, 400 words of random lengths that overlap now and then, in sentences of 1-9 words, in two sounds."""
    tables = {}
    for subject, start in (("0", 0.3), ("1", 1.137)):
        rng = np.random.default_rng(5)  # the same story
        rows, time, origin, sentence, left = [], start, start - 0.2, 0, 0
        for i in range(400):
            audio = "one" if i < 200 else "two"
            if i == 200:
                time += 1.0
                origin = time - 0.046
            if not left:
                sentence, left = sentence + 1, int(rng.integers(1, 10))
            left -= 1
            duration = float(rng.uniform(0.05, 0.9))
            word = {"kind": "word", "onset": time, "duration": duration, "text": f"w{i % 97}", "audio": audio, "sequence": str(sentence)}
            rows.append(word | {"audio_onset": time - origin})
            time += duration * float(rng.uniform(0.5, 1.3))
            if i in (199, 399):
                rows.append({"kind": "sound", "onset": origin, "duration": time + 0.7 - origin, "audio": audio, "audio_onset": 0.0})
        tables[f"toy/sub-{subject}"] = ev.make(rows)
    durations = {uid: float((t["onset"] + t["duration"]).max()) + 1.3 for uid, t in tables.items()}
    recordings = [Recording("toy", "0"), Recording("toy", "1")]
    return make_segments(recordings, tables, durations, PAPER), tables, durations


def words_of(table):
    return list(table[table["kind"] == "word"].itertuples())


def loop_blocks(table):
    """The block rules, word by word."""
    words = words_of(table)
    starts = [w.onset for i, w in enumerate(words) if not i or words[i - 1].sequence != w.sequence]
    pieces = list(zip(starts, [*starts[1:], math.inf], strict=True))
    out, begin, names = [], 0.0, []
    for start, stop in pieces:
        names.append(" ".join(w.text for w in words if w.onset >= start and w.onset + w.duration < stop))
        names[-1] = names[-1] or next(f"{w.audio} {w.audio_onset:.3f}" for w in words if w.onset == start)
        if stop > begin + 6 or stop == math.inf:
            out.append((",".join(names), begin, stop))
            begin, names = stop, []
    return out


def loop_identity(table, q):
    """The word that sounds at sample 62 of the window anchored at sample q; the later one where there are several."""
    words = words_of(table)
    w0 = (q - 60) / 120
    found, index, sentence = "no word", 0, ""
    for i, word in enumerate(words):
        index = index + 1 if i and words[i - 1].sequence == word.sequence else 0
        if int(120 * (word.onset - w0)) <= 62 < int(120 * (word.onset - w0) + 120 * word.duration):
            sentence = " ".join(w.text for w in words if w.sequence == word.sequence)
            found = f"{index} of {sentence}"
    return found


def loop_windows(table, duration):
    """Anchors and the keep rule, one at a time: (sample of the anchor, block)."""
    last = duration - 1 / 120
    blocks = loop_blocks(table)
    out = set()
    for times, test in ((np.arange(0, duration, 0.5), False), ([w.onset for w in words_of(table)], True)):
        for time in times:
            q = round(time * 120)
            t = q / 120
            for uid, start, stop in blocks:
                in_split = (split_of(uid, PAPER) == "test") == test
                in_recording = t - 0.5 >= 0 and t + 2.5 < last + 0.5 / 120
                if in_split and in_recording and t - 0.5 >= start and t + 2.5 - 0.5 / 120 < stop:
                    out.add((q, uid))
    return out


def test_blocks_are_those_of_the_plain_loop(chatter):
    segmentation, tables, _ = chatter
    for uid, table in tables.items():
        own = [(b.uid, b.start, b.stop) for b in segmentation.blocks if b.recording == uid]
        assert own == loop_blocks(table)
        assert len(own) > 15
        assert own[0][1] == 0
        assert own[-1][2] == math.inf


def test_the_last_bit_of_a_clock_does_not_decide_the_split():
    names = set()
    for start in np.arange(
        0, 30, 0.313
    ):  # 6.0 s of words that touch, as forced alignments do: their ends fall on the next start, or an ulp beside
        times = [i / 10 for i in range(300)]
        rows = [
            {"kind": "word", "onset": start + t, "duration": 0.1, "text": f"w{i}", "audio": "a", "audio_onset": t, "sequence": str(i // 20)}
            for i, t in enumerate(times)
        ]
        # The first block takes in what precedes it, so the later ones are compared.
        blocks = segments_paper.cut_blocks("r", ev.make(rows), PAPER)
        names.add(tuple(b.uid for b in blocks if b.start > start + 8))
    assert {len(n) for n in names} <= {2, 3}
    pieces = {piece for n in names for uid in n for piece in uid.split(",")}
    assert all(len(piece.split()) == 19 for piece in pieces if not piece.endswith("w299"))


@pytest.mark.parametrize("is_open", [False, True])
def test_windows_of_all_lengths_with_the_same_room_are_of_the_same_words(chatter, is_open):
    _, tables, durations = chatter
    recordings = [Recording("toy", "0"), Recording("toy", "1")]
    if is_open:
        durations = dict.fromkeys(tables, math.inf)
    found, n = {}, {}
    for tmax in (0.5, 2.5, 4.5):
        for room in (None, 5.0):
            config = dataclasses.replace(PAPER, tmax=tmax, room=room)
            segmentation = make_segments(recordings, tables, durations, config)
            found[tmax, room] = {(s.recording, s.onset, s.stimulus_id, s.block) for s in segmentation.segments}
            n[tmax, room] = segmentation.dropped.get("window without the room that is asked for", 0)
            assert {s.duration for s in segmentation.segments} == {(round((tmax + 0.5) * 120) + 1) / 120}
            assert len(found[tmax, room]) == len(segmentation.segments)
    assert found[0.5, 5.0] == found[2.5, 5.0] == found[4.5, 5.0] == found[4.5, None]
    assert n[4.5, 5.0] == n[2.5, None] == 0 < n[2.5, 5.0] < n[0.5, 5.0]
    if not is_open:  # else the grid itself goes on for as long as the room
        assert found[2.5, 5.0] < found[2.5, None] < found[0.5, None]
        assert [len(found[tmax, None]) - len(found[tmax, 5.0]) for tmax in (0.5, 2.5)] == [n[0.5, 5.0], n[2.5, 5.0]]


def test_windows_are_those_of_the_plain_loop(chatter):
    segmentation, tables, durations = chatter
    for uid, table in tables.items():
        own = [s for s in segmentation.segments if s.recording == uid]
        placed = [(round(s.onset * 120) + 60, s.block) for s in own]
        assert len(placed) == len(set(placed)) > 100
        assert set(placed) == loop_windows(table, durations[uid])
        assert {s.duration for s in own} == {361 / 120}


def test_identities_are_those_of_the_plain_loop(chatter):
    segmentation, tables, _ = chatter
    names = set()
    for segment in segmentation.segments:
        assert segment.stimulus_id == loop_identity(tables[segment.recording], round(segment.onset * 120) + 60)
        names.add(segment.stimulus_id)
    assert "no word" in names
    assert len(names) > 100


def test_identities_where_words_overlap():
    rows = [("long", 0.0, 3.0), ("inner", 0.5, 0.2), ("late", 0.6, 0.05), ("next", 2.0, 0.5)]
    table = ev.make(
        [{"kind": "word", "onset": t, "duration": d, "text": w, "audio": "a", "audio_onset": t, "sequence": "1"} for w, t, d in rows]
    )
    windows = np.arange(0, 400) / 120
    names, index = segments_paper.identities(table, windows, 62, 120.0)
    expected = [loop_identity(table, i + 60) for i in range(400)]
    assert names == expected
    # The long word is found again behind shorter ones that have ended.
    assert set(index.tolist()) == {-1, 0, 1, 2, 3}


def test_test_windows_carry_their_anchors_word(chatter):
    segmentation, tables, _ = chatter
    for segment in segmentation.segments:
        q = round(segment.onset * 120) + 60
        at = [w.text for w in words_of(tables[segment.recording]) if round(w.onset * 120) == q]
        assert segment.word in at if segment.split == "test" else segment.word == ""


def test_spans_lie_where_the_sound_is_and_stay_with_their_block(chatter):
    segmentation, tables, _ = chatter
    blocks = {(b.recording, b.uid): b for b in segmentation.blocks}
    audios = set()
    for segment in segmentation.segments:
        sounds = {r.audio: r for r in tables[segment.recording].itertuples() if r.kind == "sound"}
        block = blocks[segment.recording, segment.block]
        for span in segment.spans:
            audios.add(span.audio)
            playing = sounds[span.audio]
            # The recording time of the span's start, by the span and by the sound.
            assert segment.onset + span.onset == pytest.approx(playing.onset + span.start, abs=1e-9)
            assert segment.onset + span.onset >= block.start - segments_paper.CUT_TOLERANCE - 5e-4
            assert segment.onset + span.onset + span.stop - span.start <= block.stop + segments_paper.CUT_TOLERANCE + 5e-4
            assert span.stop <= playing.duration
            assert span.start * 1000 == pytest.approx(round(span.start * 1000), abs=1e-9)
    assert audios == {"one", "two"}


def only_training(duration, n_words):
    """Windows of a recording whose blocks are all training: sentences of 2 s from 0 on."""
    rows = [
        {"kind": "word", "onset": t, "duration": 0.3, "text": f"w{t:g}", "audio": "a", "audio_onset": t, "sequence": f"{t // 2:g}"}
        for t in (np.arange(n_words) / 2).tolist()
    ]
    config = SegmentConfig(protocol="paper", test_ratio=0.0, valid_ratio=0.0)
    return segments_paper.segment_recordings(
        [Recording("toy", "0")], {"toy/sub-0": ev.make(rows)}, {"toy/sub-0": duration}, config, Tally()
    )


@pytest.mark.parametrize(("extra", "last"), [(1, 27.5), (0.6, 27.5), (0, 27.0), (-1, 27.0)])
def test_a_window_is_kept_if_its_last_sample_is_in_the_recording(extra, last):
    # The window anchored at 27.5 s ends with sample 3600, both ends being inside: that needs 30 s and one sample.
    segments = only_training(30 + extra / 120, 2).segments
    assert segments[-1].onset + 0.5 == pytest.approx(last)
    assert len(segments) == 2 * last


def test_a_window_is_kept_if_it_ends_half_a_sample_after_its_block():
    segmentation = only_training(100.0, 40)
    assert [b.stop for b in segmentation.blocks] == [8.0, 16.0, math.inf]
    first = [s.onset for s in segmentation.segments if s.block == segmentation.blocks[0].uid]
    np.testing.assert_allclose(first, np.arange(0, 5.5, 0.5))


def test_a_sound_that_starts_just_before_its_block_is_not_cut():
    def words(audio, origin, first):
        return [
            {
                "kind": "word",
                "onset": origin + t,
                "duration": 0.3,
                "text": f"{audio}{t:g}",
                "audio": audio,
                "audio_onset": t,
                "sequence": f"{audio}{t // 2}",
            }
            for t in first + np.arange(0, 23, 0.5)
        ]

    rows = words("one", 0.0, 0.0) + words("two", 24.0, 0.046)
    rows += [{"kind": "sound", "onset": o, "duration": 24.0, "audio": a, "audio_onset": 0.0} for a, o in (("one", 0.0), ("two", 24.0))]
    table = ev.make(rows)
    blocks = segments_paper.cut_blocks("r", table, PAPER)
    number = next(i for i, b in enumerate(blocks) if b.start == pytest.approx(24.046))
    window = np.array([blocks[number].start - 3.0, blocks[number].start])
    before, after = segments_paper._spans(table, blocks, window, np.array([number - 1, number]), 361 / 120)
    # 46 ms are less than the tolerance: the sound is whole in its own block, and silence in the one before.
    assert [s.audio for s in before] == ["one"]
    assert [(s.audio, s.start) for s in after] == [("two", 0.0)]
    assert after[0].onset == pytest.approx(-0.046)


def test_the_audit_is_clean_and_finds_a_window_outside_its_block(chatter):
    segmentation, _, _ = chatter
    segments = segmentation.segments
    assert audit(segments, segmentation.blocks).errors == []
    i = next(k for k, s in enumerate(segments) if s.split == "test")
    moved = [*segments[:i], dataclasses.replace(segments[i], onset=segments[i].onset + 30), *segments[i + 1 :]]
    assert any("1 windows cross the edge of their block" in e for e in audit(moved, segmentation.blocks).errors)


def test_the_audit_finds_subjects_whose_clocks_merge_the_same_story_differently():
    def story(start):
        words = [("word", start + t, 0.3, f"w{t:g}", t, f"{t // 2:g}") for t in np.arange(0, 200, 0.5).tolist()]
        columns = ("kind", "onset", "duration", "text", "audio_onset", "sequence")
        rows = [dict(zip(columns, values, strict=True), audio="a") for values in [("sound", start, 200.0, "", 0.0, ""), *words]]
        return ev.make(rows)

    # Blocks are merged from time 0 of each recording: where the story starts later, its first block holds fewer sentences.
    tables = {"toy/sub-0": story(0.0), "toy/sub-1": story(5.0)}
    segmentation = make_segments([Recording("toy", "0"), Recording("toy", "1")], tables, dict.fromkeys(tables, 300.0), PAPER)
    errors = audit(segmentation.segments, segmentation.blocks).errors
    assert any("of the stimulus 'a' stands in test and in train" in e for e in errors)
    assert any("in 1 of 2 recordings a stimulus is cut into other blocks than in most (toy/sub-1)" in w for w in segmentation.warnings)


@pytest.mark.parametrize("late", [(0.0, 0.0, 0.004), (0.0, 5.0), (0.0, 0.3, 2.0, 4.0, 7.0), (0.0, 4.0, 4.0)])
def test_recordings_that_are_cut_otherwise_than_most_are_counted(chatter, late):
    """Against a loop: a recording cuts before the words that begin its blocks; usual are the cuts that most have."""
    _, tables, _ = chatter
    made = {f"toy/sub-{k}": tables["toy/sub-0"].assign(onset=tables["toy/sub-0"]["onset"] + dt) for k, dt in enumerate(late)}
    cuts = {}
    for uid, table in made.items():
        words, starts = words_of(table), {block[1] for block in loop_blocks(table)}
        cuts[uid] = {i for i, word in enumerate(words) if word.onset in starts and i and words[i - 1].audio == word.audio}
    first, n = cuts["toy/sub-0"], len(made)
    count = {i: sum(i in own for own in cuts.values()) for i in set().union(*cuts.values())}
    usual = {i for i in count if 2 * count[i] > n or (2 * count[i] == n and i in first)}
    expected = [uid for uid, own in sorted(cuts.items()) if own != usual]
    segmentation = make_segments([Recording("toy", str(k)) for k in range(len(late))], made, dict.fromkeys(made, 1e4), PAPER)
    assert segments_paper.differing_cuts(made, segmentation.blocks) == expected
    assert bool(expected) is (max(late) > 1)
    said = [w for w in segmentation.warnings if f"in {len(expected)} of {len(late)} recordings a stimulus is cut" in w]
    assert len(said) == 1
    assert all(uid in said[0] for uid in expected[:3])


def test_a_recording_that_heard_less_is_not_cut_otherwise(chatter):
    """It began in the middle, at the start of a block of the others, or stopped early: what it heard is cut as in the others."""
    _, tables, _ = chatter
    whole = tables["toy/sub-0"]
    block = loop_blocks(whole)[5]
    part = whole[(whole["kind"] == "word") & (whole["onset"] >= block[1]) & (whole["audio"] == "one")]
    sound = whole[(whole["kind"] == "sound") & (whole["audio"] == "one")].iloc[0]
    late = part["onset"].iloc[0] - sound["onset"]
    heard = {"kind": "sound", "onset": 0.0, "duration": sound["duration"] - late, "audio": "one", "audio_onset": late}
    rows = [heard, *part.assign(onset=part["onset"] - part["onset"].iloc[0]).to_dict("records")]
    made = {"toy/sub-0": whole, "toy/sub-1": whole, "toy/sub-2": ev.make(rows)}
    blocks = [b for uid, table in made.items() for b in segments_paper.cut_blocks(uid, table, PAPER)]
    assert len([b for b in blocks if b.recording == "toy/sub-2"]) > 3
    assert segments_paper.differing_cuts(made, blocks) == []


def test_an_open_block_survives_saving(chatter, tmp_path):
    segmentation, _, _ = chatter
    save(tmp_path / "s.json", [segmentation])
    assert load(tmp_path / "s.json") == [segmentation]


def test_the_guard_is_not_part_of_the_protocol(chatter):
    plain, tables, durations = chatter
    guarded = make_segments([Recording("toy", "0"), Recording("toy", "1")], tables, durations, PAPER, guard=0.5)
    assert guarded.segments == plain.segments
    assert any("no guard" in w for w in guarded.warnings)


def test_what_leaves_the_blocks_is_counted(chatter):
    segmentation, tables, durations = chatter
    n_anchors = 0
    for uid, table in tables.items():
        blocks = loop_blocks(table)
        for times, test in ((np.arange(0, durations[uid], 0.5), False), ([w.onset for w in words_of(table)], True)):
            for q in {round(t * 120) for t in times}:
                holder = [b for b in blocks if b[1] <= q / 120 < b[2]]
                n_anchors += bool(holder) and (split_of(holder[0][0], PAPER) == "test") == test
    counted = {k: v for k, v in segmentation.dropped.items() if k != "word onsets on one sample"}
    assert set(counted) == {"window leaves the block", "recording begins", "recording ends"}
    assert len(segmentation.segments) + sum(counted.values()) == n_anchors


def test_without_words_blocks_are_sounds():
    rows = [{"kind": "sound", "onset": 10.0 * k, "duration": 8.0, "audio": f"s{k}.wav", "audio_onset": 0.0} for k in range(5)]
    blocks = segments_paper.cut_blocks("r", ev.make(rows), PAPER)
    assert [(b.uid, b.start, b.stop) for b in blocks] == [(f"s{k}.wav 0.000", 10.0 * k, 10.0 * (k + 1)) for k in range(4)] + [
        ("s4.wav 0.000", 40.0, math.inf)
    ]


# -- the published counts ------------------------------------------------------------------------------------------------------------


def brennan(shared):
    """Event tables of the 33 subjects with all 2129 trials, at the published onsets (start / 500, row by row)."""
    root = shared / "data" / "brennan2019"
    source = root / "sourcedata"
    csv = pd.read_csv(source / "AliceChapterOne-EEG.csv", keep_default_na=False)
    text = csv["Word"].astype(str).replace("TRUE", "true")  # a spreadsheet made a truth value of row 510
    lengths = {}
    for k in range(1, 13):
        grid = (root / "textgrids" / f"DownTheRabbitHoleFinal_SoundFile{k}.TextGrid").read_text()
        lengths[f"DownTheRabbitHoleFinal_SoundFile{k}.wav"] = float(re.findall(r"xmax\s*=\s*([\d.]+)", grid)[0])
    audio = [f"DownTheRabbitHoleFinal_SoundFile{k}.wav" for k in csv["Segment"]]
    recordings, tables = [], {}
    for path in sorted((source / "proc").glob("S*.mat")):
        trl = scipy.io.loadmat(path, simplify_cells=True)["proc"]["trl"]
        if len(trl) != len(csv):
            continue
        words = pd.DataFrame({"kind": "word", "onset": trl[:, 0] / 500, "duration": csv["offset"] - csv["onset"], "text": text})
        words = words.assign(audio=audio, audio_onset=csv["onset"], sequence=csv["Sentence"].astype(str))
        first = words.groupby("audio").first()
        sounds = pd.DataFrame({"kind": "sound", "onset": (first["onset"] - first["audio_onset"]).to_numpy(), "audio": first.index})
        sounds = sounds.assign(duration=sounds["audio"].map(lengths), text="", audio_onset=0.0, sequence="")
        recording = Recording("brennan2019", path.stem)
        recordings.append(recording)
        tables[recording.uid] = ev.check(pd.concat([words, sounds]), uid=recording.uid)
    return recordings, tables


@pytest.mark.data
def test_the_published_counts_of_brennan_2019(shared):
    recordings, tables = brennan(shared)
    assert len(recordings) == 33
    segmentation = make_segments(recordings, tables, dict.fromkeys(tables, math.inf), PAPER)
    found = describe(segmentation, tables)
    train, test = found["splits"]["train"], found["splits"]["test"]
    assert (train["segments"], train["vocabulary"]) == (1211, 513)
    assert (test["segments"], test["vocabulary"]) == (190, 148)
    assert round(100 * found["vocabulary_overlap"], 1) == 59.5

    by_recording = {r.uid: [b for b in segmentation.blocks if b.recording == r.uid] for r in recordings}
    assert {tuple(b.uid for b in blocks) for blocks in by_recording.values()} == {tuple(b.uid for b in by_recording[recordings[0].uid])}
    assert {len(blocks) for blocks in by_recording.values()} == {58}
    # Of one subject, the last block left out: it is open.
    lengths = [b.stop - b.start for b in by_recording[recordings[0].uid] if math.isfinite(b.stop)]
    assert [round(float(x), 1) for x in (np.median(lengths), min(lengths), max(lengths))] == [12.0, 6.6, 23.9]

    found_audit = audit(segmentation.segments, segmentation.blocks)
    assert found_audit.errors == []
    # Cuts in whole milliseconds: 33 recordings need little more than one track per block.
    assert len({span.key for s in segmentation.segments for span in s.spans}) < 80


@pytest.mark.data
def test_the_clean_protocol_on_brennan_2019(shared):
    recordings, tables = brennan(shared)
    durations = {uid: float(t["onset"].max()) + 4 for uid, t in tables.items()}
    segmentation = make_segments(recordings, tables, durations, guard=0.25)
    assert audit(segmentation.segments, segmentation.blocks).errors == []
    ids = {r.uid: {s.stimulus_id for s in segmentation.segments if s.recording == r.uid} for r in recordings}
    union = set.union(*ids.values())
    assert min(len(own) for own in ids.values()) >= len(union) - 1
    assert len({span.key for s in segmentation.segments for span in s.spans}) == len({s.block for s in segmentation.segments})
