"""Clean protocol: blocks and splits belong to the stimulus, windows lie inside blocks, and the audit finds what was planted."""

import dataclasses
import errno
import itertools
import math
import os
from typing import Any

import numpy as np
import pytest

from brainspeech import events as ev
from brainspeech.protocols import beginning_of, hash_value, split_of, texts_inside
from brainspeech.records import Recording, Span
from brainspeech.segments import SegmentConfig, audit, describe, load, make_segments, save

WORD = 0.4  # seconds from one word's onset to the next
SENTENCE = 5  # words
RATIOS: dict[str, Any] = {"valid_ratio": 0.25, "test_ratio": 0.25}  # few blocks: none of the splits should be empty by bad luck


def sound(audio, onset, duration, audio_onset=0.0):
    return {"kind": "sound", "onset": onset, "duration": duration, "audio": audio, "audio_onset": audio_onset}


def story(audio, n_sentences, onset=0.0, texts=None):
    """A sound that is all sentences of five words, 2 s each, heard from ``onset`` on."""
    rows = [sound(audio, onset, n_sentences * SENTENCE * WORD)]
    for s in range(n_sentences):
        text = (texts or {}).get(s) or [f"{audio}{s}{'abcde'[w]}" for w in range(SENTENCE)]
        for w, word in enumerate(text):
            time = (s * SENTENCE + w) * WORD
            rows.append({"kind": "word", "onset": onset + time, "duration": 0.3, "text": word, "audio": audio, "audio_onset": time})
            rows[-1]["sequence"] = f"{audio}-{s}"
    return rows


def make(tables, config=None, *, durations=None, guard=0.0):
    recordings = [Recording("toy", str(i)) for i in range(len(tables))]
    tables = {r.uid: ev.make(rows) for r, rows in zip(recordings, tables, strict=True)}
    lengths = {r.uid: (durations or [1000.0] * len(recordings))[i] for i, r in enumerate(recordings)}
    return make_segments(recordings, tables, lengths, config or SegmentConfig(**RATIOS), guard=guard), tables


@pytest.fixture(scope="module")
def toy():
    """Three subjects who hear two stories at other times, one of them in the other order."""
    tables = [
        story("a", 60, 1.0) + story("b", 60, 130.0),
        story("a", 60, 3.217) + story("b", 60, 130.5),
        story("b", 60, 2.0) + story("a", 60, 140.0),
    ]
    return make(tables)


def heard_at(segment):
    """Start of the window in stimulus time."""
    return segment.spans[0].start - segment.spans[0].onset


def test_the_hash_is_the_references():
    assert hash_value("ceci est", 12) == pytest.approx(0.814971, abs=1e-6)
    assert hash_value("42", 12) == pytest.approx(0.099999, abs=1e-6)


def test_blocks_tile_the_stimulus_and_begin_with_sentences(toy):
    segmentation, _ = toy
    for audio in "ab":
        blocks = [b for b in segmentation.blocks if b.audio == audio]
        assert blocks[0].start == 0
        assert blocks[-1].stop == pytest.approx(120)
        assert [b.stop for b in blocks[:-1]] == [b.start for b in blocks[1:]]
        # Sentences last 2 s: three of them are not longer than 6 s, four are.
        assert {round(b.stop - b.start, 6) for b in blocks[:-1]} == {8.0}
        assert {len(b.sentences) for b in blocks} == {4}
        assert blocks[1].uid == f"{audio}:8000-16000"
        assert blocks[1].sentences[0] == " ".join(f"{audio}4{c}" for c in "abcde")


def test_a_short_remainder_joins_the_last_block():
    segmentation, _ = make([story("a", 61, 0.0)])
    assert segmentation.blocks[-1].stop - segmentation.blocks[-1].start == pytest.approx(10)


def test_every_subject_has_the_same_windows(toy):
    segmentation, _ = toy
    by_recording: dict[str, dict] = {}
    for segment in segmentation.segments:
        by_recording.setdefault(segment.recording, {})[segment.stimulus_id] = (segment.split, segment.block, segment.text, segment.spans)
    first, *others = by_recording.values()
    assert len(first) > 200
    assert all(other == first for other in others)
    assert {s.subject for s in segmentation.segments} == {"toy/sub-0", "toy/sub-1", "toy/sub-2"}


def test_the_recording_time_of_a_window_follows_its_sound(toy):
    segmentation, _ = toy
    onset = {("toy/sub-1", "a"): 3.217, ("toy/sub-1", "b"): 130.5, ("toy/sub-2", "b"): 2.0, ("toy/sub-2", "a"): 140.0}
    checked = 0
    for segment in segmentation.segments:
        start = onset.get((segment.recording, segment.spans[0].audio))
        if start is not None:
            assert segment.onset == pytest.approx(start + heard_at(segment), abs=1e-9)
            checked += 1
    assert checked > 400


def test_windows_stay_inside_blocks_and_the_audit_is_clean(toy):
    segmentation, _ = toy
    blocks = {b.uid: b for b in segmentation.blocks}
    for segment in segmentation.segments:
        block = blocks[segment.block]
        assert segment.duration == 3.0
        assert block.start - 1e-6 <= heard_at(segment)
        assert heard_at(segment) + 3.0 <= block.stop + 1e-6
        assert segment.split == block.split
    for found in (audit(segmentation.segments), audit(segmentation.segments, segmentation.blocks)):
        assert found.errors == []
        assert found.repeated_texts == []


def test_training_windows_stand_on_a_grid_and_test_windows_on_words(toy):
    segmentation, _ = toy
    blocks = {b.uid: b for b in segmentation.blocks}
    for segment in segmentation.segments:
        place = heard_at(segment) - blocks[segment.block].start
        if segment.split == "test":
            anchor = heard_at(segment) + 0.5
            assert anchor / WORD == pytest.approx(round(anchor / WORD), abs=1e-4)
            index = round(anchor / WORD)
            assert segment.word == f"{segment.spans[0].audio}{index // SENTENCE}{'abcde'[index % SENTENCE]}"
            assert segment.word in segment.text.split()
        else:
            assert place / 0.5 == pytest.approx(round(place / 0.5), abs=1e-4)
            assert segment.word == ""


def test_the_text_of_a_window_is_the_words_mostly_inside():
    segmentation, _ = make([story("a", 60)], SegmentConfig(tmin=0, tmax=1.0, stride=1.0, **RATIOS))
    segment = next(s for s in segmentation.segments if s.split == "train" and heard_at(s) % 8 == 1)
    start = heard_at(segment)
    expected = [f"a{i // 5}{'abcde'[i % 5]}" for i in range(300) if start <= i * WORD + 0.15 < start + 1]
    assert segment.text.split() == expected
    assert len(expected) in (2, 3)


def test_texts_of_windows_are_those_of_a_plain_loop():
    rng = np.random.default_rng(0)
    middle = rng.uniform(0, 20, 60)
    text = np.array([f"w{i}" for i in range(60)], dtype=object)
    start = rng.uniform(-1, 20, 50)
    expected = [" ".join(text[i] for i in np.argsort(middle) if a <= middle[i] < a + 1.5) for a in start]
    assert texts_inside(text, middle, start, start + 1.5) == expected


def test_a_trial_of_60_s_gives_20_windows_of_3_s():
    config = SegmentConfig(
        tmin=0, tmax=3, stride=3, test_anchors="grid", test_stride=3, assign={"t0": "test", "t1": "valid", "t2": "train", "t3": "train"}
    )
    segmentation, _ = make([[sound(f"t{i}", 0.0, 60.0)] for i in range(4)], config, durations=[60.0] * 4)
    assert segmentation.dropped == {}
    for i in range(4):
        own = [s for s in segmentation.segments if s.spans[0].audio == f"t{i}"]
        np.testing.assert_allclose([s.onset for s in own], np.arange(0, 60, 3.0))
        # Nothing but its name separates the parts of an assigned sound: it is one block.
        assert {s.block for s in own} == {f"t{i}:0-60000"}
        assert {s.stimulus_id for s in own} == {f"t{i}@{k * 3000}+3000" for k in range(20)}
    assert any("Splits assigned by name" in w for w in segmentation.warnings)


def test_sounds_without_words_are_cut_into_equal_pieces():
    config = SegmentConfig(test_anchors="grid", min_block=7.0, **RATIOS)
    segmentation, _ = make([[sound(f"t{i}", 0.0, 60.0)] for i in range(4)], config)
    blocks = [b for b in segmentation.blocks if b.audio == "t0"]
    assert [b.start for b in blocks] == [7.0 * k for k in range(8)]
    assert blocks[-1].stop == 60.0
    assert audit(segmentation.segments, segmentation.blocks).errors == []


def test_assigned_names_override_the_hash_and_blocks_are_still_cut():
    config = SegmentConfig(assign={"b*": "test", "a": "train", "c": "valid"})
    segmentation, _ = make([story("a", 20) + story("b1", 20, 50) + story("c", 20, 100)], config)
    assert {(b.audio, b.split) for b in segmentation.blocks} == {("a", "train"), ("b1", "test"), ("c", "valid")}
    assert len([b for b in segmentation.blocks if b.audio == "a"]) == 5
    # A name is itself, whatever its brackets would mean in a glob.
    config = SegmentConfig(assign={"a[1]": "test", "b": "train", "c": "valid"})
    segmentation, _ = make([story("a[1]", 20) + story("b", 20, 50) + story("c", 20, 100)], config)
    assert {b.split for b in segmentation.blocks if b.audio == "a[1]"} == {"test"}


def test_a_sentence_and_its_scrambled_words_share_a_split_if_asked():
    rng = np.random.default_rng(3)
    rows, onset = [], 0.0
    for i in range(30):
        words = [f"{c}{i}" for c in "abcdefghij"]
        for kind, texts in (("sentence", words), ("list", rng.permutation(words).tolist())):
            rows += story(f"{kind}{i}", 2, onset, texts={0: texts[:5], 1: texts[5:]})
            onset += 10.0
    # One sentence of ten words in each sound.
    for row in rows:
        if "sequence" in row:
            row["sequence"] = row["audio"]
    sides = {}
    for grouped in (True, False):
        segmentation, _ = make([rows], SegmentConfig(blocks_at="sounds", group_scrambled=grouped, **RATIOS))
        assert len(segmentation.blocks) == 60  # every sound is one, though its sentence begins at 0 and it is shorter than min_block
        assert all(b.start == 0 and b.stop == 4.0 for b in segmentation.blocks)
        sides[grouped] = {b.audio: b.split for b in segmentation.blocks}
    assert all(sides[True][f"sentence{i}"] == sides[True][f"list{i}"] for i in range(30))
    assert any(sides[False][f"sentence{i}"] != sides[False][f"list{i}"] for i in range(30))
    assert set(sides[True].values()) == {"train", "valid", "test"}


def test_a_sound_that_is_a_block_is_never_cut_nor_merged():
    rows = story("long", 30) + story("short", 2, 80.0) + story("more", 40, 100.0)
    segmentation, _ = make([rows], SegmentConfig(blocks_at="sounds", valid_ratio=0.4, test_ratio=0.3, seed=_seed_of_three_sides()))
    assert [(b.uid, b.start, b.stop) for b in segmentation.blocks] == [
        ("long:0-60000", 0.0, 60.0),
        ("more:0-80000", 0.0, 80.0),
        ("short:0-4000", 0.0, 4.0),
    ]
    with pytest.raises(ValueError, match="blocks_at must be one of sentences, sounds"):
        SegmentConfig(blocks_at="words")


def _seed_of_three_sides():
    """Find a seed that puts three blocks on three sides."""
    names = ("long:0-60000", "more:0-80000", "short:0-4000")
    config = SegmentConfig(valid_ratio=0.4, test_ratio=0.3)
    for seed in range(1000):
        if len({split_of(name, dataclasses.replace(config, seed=seed)) for name in names}) == 3:
            return seed
    raise AssertionError("no such seed")


def test_blocks_that_repeat_a_long_sentence_share_a_split_over_all_stimuli():
    long = {0: ["Down", "the", "rabbit", "hole,", "again."]}
    plain = {0: ["down", "The", "rabbit", "hole", "again"]}
    names = list("abcdefghijkl")
    rows = [row for i, name in enumerate(names) for row in story(name, 20, 45.0 * i, long if i % 2 else plain)]
    segmentation, _ = make([rows])
    firsts = [b for b in segmentation.blocks if b.start == 0]
    assert len({b.split for b in firsts}) == 1
    assert firsts[0].split == split_of("a:0-8000", SegmentConfig(**RATIOS))
    assert audit(segmentation.segments, segmentation.blocks).repeated_texts == []

    separate, _ = make([rows], SegmentConfig(repeat_words=6, **RATIOS))
    firsts = [b for b in separate.blocks if b.start == 0]
    assert len({b.split for b in firsts}) > 1
    (repeated,) = audit(separate.segments, separate.blocks).repeated_texts
    assert repeated.startswith("down the rabbit hole again (train")


def test_a_sound_heard_twice_gives_its_windows_twice():
    once, _ = make([story("a", 60, 0.0)])
    twice, _ = make([story("a", 60, 0.0) + story("a", 60, 200.0)])
    assert len(twice.segments) == 2 * len(once.segments)
    assert {s.stimulus_id for s in twice.segments} == {s.stimulus_id for s in once.segments}
    assert twice.blocks == once.blocks


def test_a_book_heard_chapter_by_chapter_is_one_timeline():
    whole = story("a", 60)

    def part(start, stop):
        words = [r | {"onset": r["audio_onset"] - start + 5} for r in whole[1:] if start <= r["audio_onset"] < stop]
        return [sound("a", 5.0, stop - start, start), *words]

    together, _ = make([whole])
    parts, _ = make([part(0, 50), part(50, 120)])
    assert parts.blocks == together.blocks
    # The block that the chapters share is heard in neither recording as a whole; windows that straddle the cut are counted.
    assert parts.dropped["sound is not played for the whole window"] > 0
    assert {s.stimulus_id for s in parts.segments} <= {s.stimulus_id for s in together.segments}
    for segment in parts.segments:
        offset = 0.0 if segment.recording == "toy/sub-0" else 50.0
        assert segment.onset == pytest.approx(5 + heard_at(segment) - offset)


def test_a_recording_that_lost_words_keeps_the_windows_of_the_others():
    whole, lossy = story("a", 60), [r for i, r in enumerate(story("a", 60)) if i == 0 or i % 7]
    segmentation, _ = make([lossy, whole])
    ids = [{s.stimulus_id for s in segmentation.segments if s.recording == f"toy/sub-{i}"} for i in (0, 1)]
    assert ids[0] == ids[1]
    assert segmentation.blocks == make([whole])[0].blocks


def test_words_without_a_sound_event_are_enough():
    segmentation, _ = make([[r for r in story("a", 60, 10.0) if r["kind"] == "word"]])
    assert segmentation.segments
    assert all(s.onset == pytest.approx(10 + heard_at(s)) for s in segmentation.segments)


def test_the_guard_acts_only_where_another_split_begins(toy):
    plain, _ = toy
    guarded, _ = make([story("a", 60, 1.0) + story("b", 60, 130.0)], guard=0.7)
    blocks = {audio: [b for b in guarded.blocks if b.audio == audio] for audio in "ab"}
    splits = {b.uid: b.split for b in plain.blocks}
    assert {b.uid: b.split for own in blocks.values() for b in own} == splits
    free = {"before": 0, "after": 0}
    for segment in guarded.segments:
        own = blocks[segment.spans[0].audio]
        i = next(k for k, b in enumerate(own) if b.uid == segment.block)
        start, stop = heard_at(segment), heard_at(segment) + 3
        if i and own[i - 1].split != own[i].split:
            assert start >= own[i].start + 0.7 - 1e-6
            if segment.split != "test":  # the grid begins at the guard
                assert (start - own[i].start - 0.7) / 0.5 == pytest.approx(round((start - own[i].start - 0.7) / 0.5), abs=1e-4)
        elif i:
            free["before"] += start < own[i].start + 0.7 - 1e-6
        if i + 1 < len(own) and own[i + 1].split != own[i].split:
            assert stop <= own[i].stop - 0.7 + 1e-6
        elif i + 1 < len(own):
            free["after"] += stop > own[i].stop - 0.7 + 1e-6
    assert free["before"] > 0
    assert free["after"] > 0


@pytest.mark.parametrize("anchors", ["words", "grid"])
def test_what_the_guard_takes_is_not_called_the_end_of_a_block(anchors):
    """With and without it the same windows would leave their block; all others that are gone are counted as the filter's."""
    reasons = ("window leaves the block", "window within the filter's reach of another split")
    config = SegmentConfig(**RATIOS, test_anchors=anchors)
    plain, _ = make([story("a", 60, 1.0)], config)
    guarded, _ = make([story("a", 60, 1.0)], config, guard=1.5)
    blocks = plain.blocks
    edges = sum(a.split != b.split for a, b in itertools.pairwise(blocks))
    assert edges > 2
    assert guarded.dropped[reasons[0]] == plain.dropped[reasons[0]] > 0
    assert reasons[1] not in plain.dropped
    assert guarded.dropped[reasons[1]] == len(plain.segments) - len(guarded.segments) > edges


def test_what_leaves_no_room_for_windows_is_named():
    with pytest.raises(ValueError, match=r"reach of another split\": \d+.*The filter reaches 4 s across .*: ask for longer blocks"):
        make([story("a", 60, 1.0)], guard=4.0)
    rows = [sound("a", 0.0, 2.0), sound("b", 10.0, 2.5)]
    with pytest.raises(ValueError, match=r"window of 3 s lies wholly inside one block; the longest block has 2\.5 s\. Check the durations"):
        make([rows], SegmentConfig(test_anchors="grid"))


def test_the_guard_also_holds_between_sounds_that_follow_each_other():
    config = SegmentConfig(assign={"a": "train", "b": "test", "c": "valid"})
    rows = story("a", 20, 0.0) + story("b", 20, 40.2) + story("c", 20, 90.0)
    plain, _ = make([rows], config)
    guarded, _ = make([rows], config, guard=0.5)
    assert max(s.onset + 3 for s in plain.segments if s.split == "train") == pytest.approx(40.0)
    assert max(s.onset + 3 for s in guarded.segments if s.split == "train") <= 40.2 - 0.5 + 1e-6
    assert guarded.dropped["window near a sound of another split"] > 0


def test_windows_with_two_splits_at_once_are_dropped():
    config = SegmentConfig(assign={"a": "train", "b": "test", "c": "valid"})
    segmentation, _ = make([story("a", 20, 0.0) + story("b", 20, 20.0) + story("c", 20, 90.0)], config)
    assert segmentation.dropped["window near a sound of another split"] > 0
    assert max(s.onset + 3 for s in segmentation.segments if s.split == "train") <= 20 + 1e-6
    assert audit(segmentation.segments, segmentation.blocks).errors == []


def test_the_ends_of_the_recording_and_late_events_are_counted():
    segmentation, _ = make([story("a", 60, -20.0), story("a", 60, 0.0)], durations=[200.0, 60.0])
    assert segmentation.dropped["recording begins"] > 0
    assert segmentation.dropped["recording ends"] > 0
    assert segmentation.dropped["events past the end of the recording"] == 150
    assert any("toy/sub-1" in w and "150 events" in w for w in segmentation.warnings)
    late = [s.onset + s.duration for s in segmentation.segments if s.recording == "toy/sub-1"]
    assert max(late) <= 60 + 0.5 / 120
    assert min(s.onset for s in segmentation.segments) >= 0


@pytest.mark.parametrize("room", [None, 5.0])
def test_nothing_vanishes_uncounted(room):
    config = SegmentConfig(tmin=0, tmax=3, room=room, stride=1.0, test_anchors="grid", **RATIOS)
    segmentation, _ = make([story("a", 60, -20.0), story("a", 60, 5.0)], config, durations=[200.0, 60.0])
    candidates = 2 * sum(math.ceil(b.stop - b.start - 1e-6) for b in segmentation.blocks)
    dropped = {k: v for k, v in segmentation.dropped.items() if k != "events past the end of the recording"}
    assert len(segmentation.segments) + sum(dropped.values()) == candidates


def test_windows_of_all_lengths_with_the_same_room_begin_at_the_same_places():
    """Also where the sound breaks off, the recording ends, another split is heard at once, or the filter reaches far."""
    tables = [story("a", 60, 1.0), story("a", 60, 5.0) + story("b", 60, 63.0), story("a", 30, 2.0)]
    tables[2][0]["duration"] = 41.3
    lengths = {"durations": [1000.0, 170.0, 52.0], "guard": 0.25}
    places, n = {}, {}
    for tmax in (0.5, 2.5, 4.5):
        for room in (None, 5.0):
            segmentation, _ = make(tables, SegmentConfig(tmax=tmax, room=room, **RATIOS), **lengths)
            places[tmax, room] = {(s.recording, round(s.onset, 6), beginning_of(s.stimulus_id), s.split) for s in segmentation.segments}
            n[tmax, room] = segmentation.dropped.get("window without the room that is asked for", 0)
            assert len(places[tmax, room]) == len(segmentation.segments)
            assert {s.duration for s in segmentation.segments} == {tmax + 0.5}
    assert places[0.5, 5.0] == places[2.5, 5.0] == places[4.5, 5.0] == places[4.5, None]
    assert places[0.5, 5.0] < places[2.5, None] < places[0.5, None]
    assert n[4.5, 5.0] == n[0.5, None] == 0 < n[2.5, 5.0] < n[0.5, 5.0]


def test_a_recording_has_room_for_the_longest_window_or_none():
    config = SegmentConfig(tmin=0, tmax=1.0, room=5.0, **RATIOS)
    segmentation, _ = make([story("a", 60), story("a", 60)], config, durations=[4.0, 500.0])
    assert segmentation.dropped["recordings shorter than a window and its room"] == 1
    with pytest.raises(ValueError, match="shorter than a window of 1 s with room for 5 s"):
        make([story("a", 60)], config, durations=[4.0])
    with pytest.raises(ValueError, match=r"A window of 1 s with room for 20 s lies .* the longest block has 8 s"):
        make([story("a", 60)], dataclasses.replace(config, room=20.0))
    with pytest.raises(ValueError, match="room must be a positive number of seconds or None, got 0"):
        SegmentConfig(room=0)


def test_a_short_recording_is_counted_and_only_short_ones_are_an_error():
    segmentation, _ = make([story("a", 60), story("a", 60)], durations=[2.0, 500.0])
    assert segmentation.dropped["recordings shorter than a window"] == 1
    assert {s.recording for s in segmentation.segments} == {"toy/sub-1"}
    assert any("toy/sub-0" in w for w in segmentation.warnings)
    with pytest.raises(ValueError, match="1 are shorter than a window of 3 s"):
        make([story("a", 60)], durations=[2.0])


def test_no_events():
    phonemes = [{"kind": "phoneme", "onset": 0.0, "duration": 0.1, "text": "k", "audio": "a", "audio_onset": 0.0}]
    segmentation, _ = make([phonemes, story("a", 60)])
    assert segmentation.dropped["recordings without events"] == 1
    with pytest.raises(ValueError, match="1 have no sound or word events"):
        make([phonemes])
    with pytest.raises(ValueError, match="got none"):
        make([])
    with pytest.raises(ValueError, match="no events table or no duration, the first is toy/sub-0"):
        make_segments([Recording("toy", "0")], {}, {})


def test_an_empty_split_says_what_to_do():
    with pytest.raises(ValueError, match=r"No window in the split train, valid: .*assign splits by name"):
        make([story("a", 4)])
    # Words anchor the test windows, and there are none.
    with pytest.raises(ValueError, match='test_anchors="grid"'):
        make([[sound(f"t{i}", 0.0, 60.0)] for i in range(4)])


@pytest.mark.parametrize("missing", ["train", "valid", "test"])
def test_each_split_must_have_windows(missing):
    others = [s for s in ("train", "valid", "test") if s != missing]
    config = SegmentConfig(assign={"a": others[0], "b": others[1]})
    with pytest.raises(ValueError, match=f"No window in the split {missing}:"):
        make([story("a", 20) + story("b", 20, 50)], config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"protocol": "papyrus"}, "protocol must be one of clean, paper, got 'papyrus'"),
        ({"test_anchors": "vowels"}, "test_anchors must be one of words, grid"),
        ({"tmin": 1.0, "tmax": 1.0}, "tmin < tmax"),
        ({"stride": 0.0}, "at least one sample"),
        ({"test_stride": -1.0}, "at least one sample"),
        ({"sfreq": 0.0}, "sfreq > 0"),
        ({"valid_ratio": 0.5, "test_ratio": 0.5}, "part for training"),
        ({"assign": {"a": "dev"}}, "train, valid, test, got \\['dev'\\]"),
        ({"protocol": "paper", "assign": {"a": "test"}}, "hashes every block"),
    ],
)
def test_a_config_is_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        SegmentConfig(**fields)


def test_bad_arguments():
    with pytest.raises(ValueError, match="'x\\*', which matches no stimulus; the stimuli are a"):
        make([story("a", 60)], SegmentConfig(assign={"x*": "test"}))
    with pytest.raises(ValueError, match="expected one split"):
        make([story("a", 60)], SegmentConfig(assign={"a": "test", "*": "train"}))
    with pytest.raises(ValueError, match="toy/sub-0: 1 sounds have no duration"):
        make([[sound("a", 0.0, 0.0)]])
    with pytest.raises(ValueError, match="guard"):
        make([story("a", 60)], guard=-1.0)


def test_the_floating_noise_of_the_window_is_taken_off():
    assert SegmentConfig(tmin=-0.1, tmax=0.2).duration == 0.3


def planted(segmentation, change, split="train"):
    segments = list(segmentation.segments)
    i = next(k for k, s in enumerate(segments) if s.split == split)
    segments[i] = change(segments[i])
    return segments


@pytest.mark.parametrize("with_blocks", [True, False])
def test_the_audit_finds_a_window_on_the_other_side(toy, with_blocks):
    segmentation, _ = toy
    segments = planted(segmentation, lambda s: dataclasses.replace(s, split="test"))
    errors = audit(segments, segmentation.blocks if with_blocks else None).errors
    assert any("of the stimulus" in e and "stands in test and in train" in e for e in errors)
    assert any("have another split than their block" in e for e in errors) == with_blocks


@pytest.mark.parametrize("with_blocks", [True, False])
def test_the_audit_finds_a_window_that_crosses_its_block(toy, with_blocks):
    segmentation, _ = toy

    def slide(segment):
        (span,) = segment.spans
        return dataclasses.replace(segment, spans=(dataclasses.replace(span, onset=segment.duration - 1 - (span.stop - span.start)),))

    errors = audit(planted(segmentation, slide), segmentation.blocks if with_blocks else None).errors
    assert any("1 windows cross the edge of their block" in e for e in errors)


def test_the_audit_finds_a_span_that_saw_the_other_side(toy):
    segmentation, _ = toy

    def widen(segment):
        (span,) = segment.spans
        return dataclasses.replace(segment, spans=(Span(span.audio, 0.0, 120.0, span.onset - span.start),))

    for blocks in (None, segmentation.blocks):
        errors = audit(planted(segmentation, widen), blocks).errors
        assert any("of the stimulus" in e and "stands in" in e for e in errors)


def test_the_audit_finds_signal_on_two_sides(toy):
    segmentation, _ = toy
    test_onset = next(s.onset for s in segmentation.segments if s.split == "test")
    errors = audit(planted(segmentation, lambda s: dataclasses.replace(s, onset=test_onset)), segmentation.blocks).errors
    assert len(errors) == 1
    assert "of the signal of toy/sub-0 stands in test and in train" in errors[0]


def test_the_audit_finds_a_block_that_was_not_cut(toy):
    segmentation, _ = toy
    errors = audit(planted(segmentation, lambda s: dataclasses.replace(s, block="a:1-2")), segmentation.blocks).errors
    assert any("name a block that was not cut" in e for e in errors)


def test_the_audit_needs_something_to_look_at(toy):
    segmentation, _ = toy
    with pytest.raises(ValueError, match="got none"):
        audit([])
    with pytest.raises(ValueError, match="0 spans; give the blocks"):
        audit(planted(segmentation, lambda s: dataclasses.replace(s, spans=())))


def test_describe_counts_like_plain_loops(toy):
    segmentation, tables = toy
    found = describe(segmentation, tables)
    vocabularies = {}
    for split in ("train", "valid", "test"):
        own = [s for s in segmentation.segments if s.split == split]
        vocabulary, n_words = set(), 0
        for uid, table in tables.items():
            words = table[table["kind"] == "word"]
            kept = {s.block for s in own if s.recording == uid}
            for word in words.itertuples():
                if any(
                    s.onset + 0.02 < word.onset + word.duration and word.onset < s.onset + s.duration - 0.02
                    for s in own
                    if s.recording == uid
                ):
                    vocabulary.add(word.text)
                n_words += any(
                    b.uid in kept and b.audio == word.audio and b.start <= word.audio_onset + 1e-6 and word.audio_onset + 1e-6 < b.stop
                    for b in segmentation.blocks
                )
        vocabularies[split] = vocabulary
        assert found["splits"][split] == {
            "segments": len({s.stimulus_id for s in own}),
            "windows": len(own),
            "words": n_words,
            "vocabulary": len(vocabulary),
        }
    assert found["vocabulary_overlap"] == len(vocabularies["test"] & vocabularies["train"]) / len(vocabularies["test"])


def test_saved_is_loaded(toy, tmp_path):
    segmentation, _ = toy
    save(tmp_path / "segments.json", [segmentation, segmentation])
    loaded = load(tmp_path / "segments.json")
    assert loaded == [segmentation, segmentation]
    assert [p.name for p in tmp_path.iterdir()] == ["segments.json"]


def test_a_full_disk_is_said_and_leaves_the_segments_before(toy, tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "segments.json"
    save(path, [toy[0]])
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RuntimeError, match=r"Could not write .*segments\.json \(.*No space left on device.* Free some space"):
        save(path, [])
    assert load(path) == [toy[0]]
    assert list(tmp_path.iterdir()) == [path]


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="Run the recipe"):
        load(tmp_path / "segments.json")
    (tmp_path / "segments.json").write_text('[{"segments": [{}]}]')
    with pytest.raises(ValueError, match="holds no segments"):
        load(tmp_path / "segments.json")
