"""Events -> segments: sounds are cut into blocks, each block gets a split, windows are placed inside blocks; no arrays.

The clean protocol works on the stimulus's own timeline. Blocks begin at sentence starts and are merged until longer than ``min_block``;
their uid is ``audio:start-stop`` in milliseconds and its hash decides the split. Blocks that share a sentence of ``repeat_words`` words or
more, in whichever stimulus, get one split. Windows are placed once per stimulus, so that every subject has the same ones, and then found in
each recording through its sound events. The reference's protocol is in ``segments_paper``.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from brainspeech import segments_paper
from brainspeech.protocols import (
    EPS,
    Audit,
    Block,
    Segmentation,
    SegmentConfig,
    Tally,
    audit,
    describe,
    load,
    normalised,
    save,
    sentence_starts,
    sentence_texts,
    split_of,
    subject_of,
    texts_inside,
    words_of,
)
from brainspeech.records import SPLITS, Recording, Segment, Span
from brainspeech.timing import to_samples

__all__ = ["Audit", "Block", "SegmentConfig", "Segmentation", "audit", "describe", "load", "make_segments", "save"]

# Onsets of one word, or of one playing, that differ by more than this (s) do not belong to one playing of the stimulus.
PLAY_JITTER = 0.05

# Why a window that would begin in a block is not there, in the order in which ``_place`` counts them.
LEFT_OUT = (
    "window leaves the block",
    "window within the filter's reach of another split",
    "window without the room that is asked for",
)


def make_segments(
    recordings: Sequence[Recording],
    events: Mapping[str, pd.DataFrame],
    durations: Mapping[str, float],
    config: SegmentConfig | None = None,
    *,
    guard: float = 0.0,
) -> Segmentation:
    """Cut what was heard into blocks, split them, and place the windows.

    Parameters
    ----------
    recordings : sequence of Recording
        All recordings of all subjects: repeated sentences are looked for over all of them.
    events : mapping from uid to DataFrame
        Checked events tables.
    durations : mapping from uid to float
        Length of each recording in seconds.
    config : SegmentConfig | None
        None: the clean protocol's defaults.
    guard : float
        Seconds that windows keep away from blocks of another split; half the length of a zero-phase filter, where one was used. The
        paper's protocol has none and ignores it.

    Returns
    -------
    Segmentation
        Segments, blocks, what was dropped and why, warnings.

    Raises
    ------
    ValueError
        If nothing can be cut, if a split is empty, or if an argument names what is not there.
    """
    config = config or SegmentConfig()
    if not guard >= 0:
        raise ValueError(f"guard must be >= 0 s, got {guard}.")
    tally = Tally()
    usable = _usable(recordings, events, durations, config, tally)
    if config.protocol == "paper":
        if config.blocks_at == "grid":
            tally.warnings.append("The paper's protocol knows no grid of the sound: blocks begin at sentences, on each recording's clock.")
        if guard:
            tally.warnings.append(f"The paper's protocol keeps no guard at block edges: the filter reaches {guard:g} s across them.")
        segmentation = segments_paper.segment_recordings(usable, events, durations, config, tally)
    else:
        segmentation = _segment_stimuli(usable, events, durations, config, guard, tally)
    counts = {split: sum(segment.split == split for segment in segmentation.segments) for split in SPLITS}
    empty = [split for split in SPLITS if not counts[split]]
    if empty:
        blocks = {split: len({b.uid for b in segmentation.blocks if b.split == split}) for split in SPLITS}
        raise ValueError(
            f"No window in the split {', '.join(empty)}: windows {counts} in blocks {blocks}, dropped {segmentation.dropped}. "
            + _advice(segmentation, config, guard)
        )
    return segmentation


def _advice(segmentation: Segmentation, config: SegmentConfig, guard: float) -> str:
    """Say what helps where a split is empty."""
    longest = max((block.stop - block.start for block in segmentation.blocks), default=0.0)
    if longest < config.reach:
        return (
            f"A window of {_say_length(config)} lies wholly inside one block; the longest block has {longest:g} s. Check the durations of "
            "the sounds, or ask for longer blocks (min_block) or shorter windows (tmin, tmax, room)."
        )
    reach = f"The filter reaches {guard:g} s across the edges of blocks: ask for longer blocks (min_block), or leave out the filter. "
    return (reach if LEFT_OUT[1] in segmentation.dropped else "") + (
        "Use more stimuli, a smaller min_block, other ratios or another seed, or assign splits by name; for test data without words set "
        'test_anchors="grid".'
    )


def _say_length(config: SegmentConfig) -> str:
    return f"{config.duration:g} s" + (f" with room for {config.reach:g} s" if config.reach > config.duration else "")


def _usable(
    recordings: Sequence[Recording],
    events: Mapping[str, pd.DataFrame],
    durations: Mapping[str, float],
    config: SegmentConfig,
    tally: Tally,
) -> list[Recording]:
    """Take the recordings that have events and room for a window; count the others."""
    if not recordings:
        raise ValueError("Expected recordings to segment, got none.")
    missing = [r.uid for r in recordings if r.uid not in events or r.uid not in durations]
    if missing:
        raise ValueError(f"{len(missing)} recordings have no events table or no duration, the first is {missing[0]}.")
    usable, silent, short = [], [], []
    for recording in recordings:
        table, duration = events[recording.uid], durations[recording.uid]
        kind = table["kind"].to_numpy()
        if not np.isin(kind, ("sound", "word")).any():
            silent.append(recording.uid)
            continue
        if duration < config.reach:
            short.append(recording.uid)
            continue
        endless = table[(kind == "sound") & ~(table["duration"].to_numpy() > 0)]
        if len(endless):
            raise ValueError(
                f"{recording.uid}: {len(endless)} sounds have no duration, the first is {endless['audio'].iloc[0]!r} at "
                f"{endless['onset'].iloc[0]} s; expected the seconds that are heard of it. Give the length of its file."
            )
        late = int((table["onset"].to_numpy() >= duration).sum())
        if late:
            tally.drop("events past the end of the recording", late)
            tally.warnings.append(
                f"{recording.uid}: {late} events begin after the recording's end at {duration:g} s: are they "
                "seconds from its first sample, and is its sampling rate right?"
            )
        usable.append(recording)
    too_short = "recordings shorter than a window" + (" and its room" if config.reach > config.duration else "")
    for reason, uids in (("recordings without events", silent), (too_short, short)):
        tally.drop(reason, len(uids))
        if uids:
            tally.warnings.append(f"{len(uids)} {reason}: {', '.join(uids)}.")
    if not usable:
        raise ValueError(
            f"Nothing to segment in {len(recordings)} recordings: {len(silent)} have no sound or word events, {len(short)} are shorter "
            f"than a window of {_say_length(config)}. Check read_events, the recordings' durations, and tmin and tmax."
        )
    return usable


@dataclass(frozen=True, slots=True)
class _Play:
    """One stretch of a recording during which [start, stop) of a stimulus is heard; ``onset`` is the recording time of ``start``."""

    audio: str
    onset: float
    start: float
    stop: float


@dataclass(frozen=True, slots=True)
class _Stimulus:
    """A stimulus's words on its own timeline, and its end."""

    onset: np.ndarray
    middle: np.ndarray
    text: np.ndarray
    first: np.ndarray
    stop: float


@dataclass(frozen=True, slots=True)
class _Windows:
    """The windows of one stimulus: their starts in stimulus time, whose block they lie in, and what every subject's segment shares."""

    start: np.ndarray
    block: np.ndarray
    stimulus_id: list[str]
    text: list[str]
    word: list[str]
    span: list[Span]


def _segment_stimuli(
    recordings: list[Recording],
    events: Mapping[str, pd.DataFrame],
    durations: Mapping[str, float],
    config: SegmentConfig,
    guard: float,
    tally: Tally,
) -> Segmentation:
    """Cut on the stimuli's timelines, then find the windows in each recording."""
    plays = {r.uid: _plays(events[r.uid]) for r in recordings}
    stimuli = _stimuli(events, plays)
    assigned = _assigned(stimuli, config)
    if assigned:
        tally.warnings.append(f"Splits assigned by name to {len(assigned)} of {len(stimuli)} stimuli: {dict(config.assign or {})}.")
    blocks: dict[str, list[Block]] = {audio: _cut(audio, stimuli[audio], config, audio in assigned) for audio in stimuli}
    blocks = _split(blocks, assigned, config)
    windows: dict[str, _Windows] = {}
    left: dict[str, list[tuple[int, int, int]]] = {}
    for audio, own in blocks.items():
        windows[audio], left[audio] = _place(stimuli[audio], own, config, guard, tally)
    segments: list[Segment] = []
    for recording in recordings:
        segments += _find(recording, plays[recording.uid], durations[recording.uid], blocks, windows, left, config, guard, tally)
    return Segmentation(segments, [b for own in blocks.values() for b in own], dict(tally.dropped), tally.warnings)


def _plays(table: pd.DataFrame) -> list[_Play]:
    """List what a recording plays: its sounds; a stimulus that has words only is heard from the first to the last of them."""
    kind = table["kind"].to_numpy()
    sounds = table[kind == "sound"]
    plays = [
        _Play(audio, onset, start, start + length)
        for audio, onset, start, length in zip(sounds["audio"], sounds["onset"], sounds["audio_onset"], sounds["duration"], strict=True)
    ]
    words = table[(kind == "word") & ~table["audio"].isin(set(sounds["audio"])).to_numpy()]
    for audio, own in words.groupby("audio"):
        own = own.sort_values("onset", kind="stable")
        onset, start, length = own["onset"].to_numpy(), own["audio_onset"].to_numpy(), own["duration"].to_numpy()
        cuts = np.flatnonzero(np.abs(np.diff(onset - start)) > PLAY_JITTER) + 1
        for rows in np.split(np.arange(len(own)), cuts):
            plays.append(_Play(str(audio), float(onset[rows[0]]), float(start[rows[0]]), float((start[rows] + length[rows]).max())))
    return sorted(plays, key=lambda play: (play.onset, play.audio))


def _stimuli(events: Mapping[str, pd.DataFrame], plays: Mapping[str, list[_Play]]) -> dict[str, _Stimulus]:
    """Put every stimulus's words on its own timeline, once for all recordings.

    The recording with most of a stimulus's words speaks first (of equals the smallest uid); another one adds the words of the stretches
    that none before it played, so that a book heard chapter by chapter is whole.
    """
    heard: dict[str, list[tuple[int, str, pd.DataFrame]]] = {}
    stop: dict[str, float] = {}
    for uid, own_plays in plays.items():
        for play in own_plays:
            stop[play.audio] = max(stop.get(play.audio, 0.0), play.stop)
        for audio, words in words_of(events[uid]).groupby("audio"):
            # A stimulus that is played twice has its words once.
            words = words.assign(ms=to_samples(words["audio_onset"].to_numpy(), 1000)).drop_duplicates(["ms", "text"])
            heard.setdefault(str(audio), []).append((-len(words), uid, words))
    out = {}
    for audio in sorted(stop):
        taken: list[pd.DataFrame] = []
        covered: list[tuple[float, float]] = []
        for _, uid, words in sorted(heard.get(audio, []), key=lambda entry: entry[:2]):
            time = words["audio_onset"].to_numpy()
            known = np.zeros(len(time), dtype=bool)
            for a, b in covered:
                known |= (time >= a) & (time < b)
            if not known.all():
                taken.append(words[~known])
            covered += [(play.start, play.stop) for play in plays[uid] if play.audio == audio]
        table = pd.concat(taken).sort_values("audio_onset", kind="stable") if taken else words_of(events[next(iter(plays))])[:0]
        onset, length = table["audio_onset"].to_numpy(), table["duration"].to_numpy()
        out[audio] = _Stimulus(
            onset=onset,
            middle=onset + length / 2,
            text=table["text"].to_numpy(dtype=object),
            first=sentence_starts(table["sequence"].to_numpy(dtype=object)),
            stop=round(max([stop[audio], *(onset + length).tolist()]), 6),
        )
    return out


def _assigned(stimuli: Iterable[str], config: SegmentConfig) -> dict[str, str]:
    """Match stimuli with the splits given by name."""
    out: dict[str, str] = {}
    for pattern, split in (config.assign or {}).items():
        matched = [audio for audio in stimuli if audio == pattern or fnmatch.fnmatchcase(audio, pattern)]
        if not matched:
            raise ValueError(f"assign names {pattern!r}, which matches no stimulus; the stimuli are {', '.join(sorted(stimuli))}.")
        for audio in matched:
            if out.setdefault(audio, split) != split:
                raise ValueError(f"assign puts {audio!r} in {out[audio]} and, by {pattern!r}, in {split}; expected one split.")
    return out


def _cut(audio: str, stimulus: _Stimulus, config: SegmentConfig, is_assigned: bool) -> list[Block]:
    """Cut a stimulus into blocks, which tile it from 0 to its end.

    At sentence starts, merged until longer than ``min_block``; without words every ``min_block`` seconds, except that a stimulus whose
    split is given by name stays whole, since nothing else separates its parts. A remainder that is too short joins the last block. With
    ``blocks_at="sounds"`` every stimulus stays whole; with ``"grid"`` words do not matter.
    """
    cuts: list[float] = [0.0]
    is_whole = config.blocks_at == "sounds"
    if len(stimulus.onset) and config.blocks_at == "sentences":
        for start in stimulus.onset[stimulus.first].tolist():
            if start - cuts[-1] > config.min_block:
                cuts.append(round(start, 6))
        if len(cuts) > 1 and stimulus.stop - cuts[-1] <= config.min_block:
            cuts.pop()
    elif not (is_whole or is_assigned) and config.min_block > 0:
        cuts = [round(k * config.min_block, 6) for k in range(max(1, math.floor(stimulus.stop / config.min_block + EPS)))]
    begins = stimulus.onset[stimulus.first]
    sentences = sentence_texts(stimulus.text, stimulus.first)
    blocks = []
    for start, stop in zip(cuts, [*cuts[1:], stimulus.stop], strict=True):
        low, high = np.searchsorted(begins, [start - EPS, stop - EPS])
        name = f"{audio}:{to_samples(start, 1000)}-{to_samples(stop, 1000)}"
        blocks.append(Block(name, "train", start, stop, audio=audio, sentences=tuple(sentences[low:high])))
    return blocks


def _split(blocks: dict[str, list[Block]], assigned: Mapping[str, str], config: SegmentConfig) -> dict[str, list[Block]]:
    """Give every block its split: by name, or by the hash of the smallest uid among the blocks that share a long sentence with it."""
    every = [block for own in blocks.values() for block in own]
    parent = list(range(len(every)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    owner: dict[tuple[str, ...], int] = {}
    for i, block in enumerate(every):
        for sentence in map(normalised, block.sentences):
            if len(sentence) >= config.repeat_words and config.blocks_at != "grid":
                if config.group_scrambled:
                    sentence = tuple(sorted(sentence))
                parent[find(i)] = find(owner.setdefault(sentence, i))
    components: dict[int, list[Block]] = {}
    for i, block in enumerate(every):
        components.setdefault(find(i), []).append(block)
    split = {}
    for members in components.values():
        # A split given by name stands, and those that repeat its sentences follow it.
        named = [block for block in members if block.audio in assigned]
        leader = min(named or members, key=lambda block: block.uid)
        common = assigned[leader.audio] if named else split_of(leader.uid, config)
        split.update({block.uid: assigned.get(block.audio, common) for block in members})
    return {audio: [replace(block, split=split[block.uid]) for block in own] for audio, own in blocks.items()}


def _place(
    stimulus: _Stimulus, blocks: list[Block], config: SegmentConfig, guard: float, tally: Tally
) -> tuple[_Windows, list[tuple[int, int, int]]]:
    """Place the windows of a stimulus; also count, per block, those that are left out for each reason of ``LEFT_OUT``."""
    starts, numbers, rows, left = [], [], [], []
    for i, block in enumerate(blocks):
        low = block.start + (guard if i and blocks[i - 1].split != block.split else 0.0)
        high = block.stop - (guard if i + 1 < len(blocks) and blocks[i + 1].split != block.split else 0.0)
        start, row = _begin(stimulus, block, low, high, config)
        if block.split == "test" and config.test_anchors == "words":
            tally.drop("test blocks without words", int(not len(row)))
        fits, roomy = (_inside(start, low, high, length) for length in (config.duration, config.reach))
        # As many as there would be without the guard, whose doing the difference is.
        free, _ = _begin(stimulus, block, block.start, block.stop, config)
        n_whole = int(_inside(free, block.start, block.stop, config.duration).sum())
        left.append((len(free) - n_whole, max(n_whole - int(fits.sum()), 0), int(fits.sum() - roomy.sum())))
        starts.append(start[roomy])
        rows.append(row[roomy])
        numbers.append(np.full(roomy.sum(), i))
    start, number, row = np.concatenate(starts), np.concatenate(numbers), np.concatenate(rows)
    start = np.maximum(np.round(start, 6), 0.0)
    # One window per millisecond: two words at one onset ask for the same window.
    _, unique = np.unique(to_samples(start, 1000), return_index=True)
    tally.drop("words at one onset", len(start) - len(unique))
    start, number, row = start[unique], number[unique], row[unique]
    length = to_samples(config.duration, 1000)
    windows = _Windows(
        start=start,
        block=number,
        stimulus_id=[f"{blocks[0].audio}@{ms}+{length}" for ms in to_samples(start, 1000).tolist()],
        text=texts_inside(stimulus.text, stimulus.middle, start, start + config.duration),
        word=[str(stimulus.text[i]) if i >= 0 else "" for i in row.tolist()],
        span=[
            Span(blocks[i].audio, blocks[i].start, blocks[i].stop, blocks[i].start - begin)
            for i, begin in zip(number.tolist(), start.tolist(), strict=True)
        ],
    )
    return windows, left


def _begin(stimulus: _Stimulus, block: Block, low: float, high: float, config: SegmentConfig) -> tuple[np.ndarray, np.ndarray]:
    """Give where windows of a block would begin, at its words or on a grid from ``low`` to ``high``, and the words' rows (-1 on a grid)."""
    if block.split == "test" and config.test_anchors == "words":
        row = np.flatnonzero((stimulus.onset >= block.start - EPS) & (stimulus.onset < block.stop - EPS))
        return stimulus.onset[row] + config.tmin, row
    stride = config.test_stride if block.split == "test" and config.test_stride else config.stride
    start: np.ndarray = low + stride * np.arange(max(0, math.ceil((high - low) / stride - EPS)))
    return start, np.full(len(start), -1)


def _inside(start: np.ndarray, low: float, high: float, length: float) -> np.ndarray:
    return (start >= low - EPS) & (start + length <= high + EPS)


def _find(
    recording: Recording,
    plays: list[_Play],
    duration: float,
    blocks: Mapping[str, list[Block]],
    windows: Mapping[str, _Windows],
    left: Mapping[str, list[tuple[int, int, int]]],
    config: SegmentConfig,
    guard: float,
    tally: Tally,
) -> list[Segment]:
    """Find the windows of all stimuli that a recording plays."""
    n_window, n_reach = to_samples(config.duration, config.sfreq), to_samples(config.reach, config.sfreq)
    n_times = to_samples(min(duration, 1e9), config.sfreq)
    others = _played_blocks(plays, blocks)
    out: list[Segment] = []
    for play in plays:
        own, cut = windows[play.audio], blocks[play.audio]
        lost = [counts for counts, block in zip(left[play.audio], cut, strict=True) if _overlaps(block, play)]
        for reason, column in zip(LEFT_OUT, zip(*lost, strict=True), strict=False):  # no rows where no block is heard
            tally.drop(reason, sum(column))
        stop = own.start + config.duration
        touches = (stop > play.start + EPS) & (own.start < play.stop - EPS)
        inside = (own.start >= play.start - EPS) & (stop <= play.stop + EPS)
        tally.drop("sound is not played for the whole window", int((touches & ~inside).sum()))
        chosen = np.flatnonzero(inside)
        onset = play.onset + own.start[chosen] - play.start
        begins = onset >= -EPS
        ends = to_samples(onset, config.sfreq) + n_window <= n_times
        tally.drop("recording begins", int((~begins).sum()))
        tally.drop("recording ends", int((begins & ~ends).sum()))
        chosen, onset = chosen[begins & ends], np.maximum(onset[begins & ends], 0.0)
        split = np.array([block.split for block in cut])[own.block[chosen]]
        clear = ~_near_another_split(onset - guard, onset + config.duration + guard, split, others)
        tally.drop("window near a sound of another split", int((~clear).sum()))
        chosen, onset, split = chosen[clear], onset[clear], split[clear]
        roomy = (own.start[chosen] + config.reach <= play.stop + EPS) & (to_samples(onset, config.sfreq) + n_reach <= n_times)
        roomy &= ~_near_another_split(onset - guard, onset + config.reach + guard, split, others)
        tally.drop(LEFT_OUT[2], int((~roomy).sum()))
        for i, begin in zip(chosen[roomy].tolist(), onset[roomy].tolist(), strict=True):
            block = cut[own.block[i]]
            out.append(
                Segment(
                    recording=recording.uid,
                    subject=subject_of(recording),
                    onset=begin,
                    duration=config.duration,
                    stimulus_id=own.stimulus_id[i],
                    block=block.uid,
                    text=own.text[i],
                    word=own.word[i],
                    split=block.split,
                    spans=(own.span[i],),
                )
            )
    return sorted(out, key=lambda segment: segment.onset)


def _overlaps(block: Block, play: _Play) -> bool:
    return block.start < play.stop - EPS and block.stop > play.start + EPS


def _played_blocks(plays: list[_Play], blocks: Mapping[str, list[Block]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Give, per split, when in the recording its blocks are heard: starts in order, and the latest stop up to each of them."""
    out = {}
    for split in SPLITS:
        heard = [
            (play.onset + max(block.start, play.start) - play.start, play.onset + min(block.stop, play.stop) - play.start)
            for play in plays
            for block in blocks[play.audio]
            if block.split == split and _overlaps(block, play)
        ]
        times = np.array(sorted(heard)).reshape(-1, 2)
        out[split] = (times[:, 0], np.maximum.accumulate(times[:, 1]))
    return out


def _near_another_split(
    start: np.ndarray, stop: np.ndarray, split: np.ndarray, played: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Tell which intervals of the recording touch a block of another split, be it of the same sound, the next, or one heard at once."""
    near = np.zeros(len(start), dtype=bool)
    for other, (begins, latest) in played.items():
        if len(begins):
            last = np.searchsorted(begins, stop - 2 * EPS) - 1
            near |= (split != other) & (last >= 0) & (latest[np.maximum(last, 0)] > start + 2 * EPS)
    return near
