"""What the two segmentation protocols share: the nouns, the hashed split, and what can be asked of a result whichever protocol made it.

A protocol turns events tables into windows: ``segments`` holds the clean one, ``segments_paper`` that of the reference. Here are their
config, their blocks, and how a segmentation is described, audited, saved and loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from brainspeech.records import SPLITS, Recording, Segment, Span
from brainspeech.writing import put

PROTOCOLS = ("clean", "paper")
ANCHORS = ("words", "grid")
BLOCKS_AT = ("sentences", "sounds", "grid")

# Milliseconds at which a window begins in its stimulus, and its length: the end of the clean protocol's stimulus ids.
LENGTH = re.compile(r"(@\d+)\+\d+$")

# Times that were written in decimal and added up agree within this many seconds.
EPS = 1e-6
# A word belongs to a window that it overlaps by more than this (s) at either edge (the reference's rule for its vocabulary).
WORD_OVERLAP = 0.02
# What an audit lets pass (s). A millisecond is rounding. Under the paper's protocol cuts follow each recording's triggers (2 ms steps, both
# ways) and a window's last sample may end 12.5 ms after its block: still less than one frame of the features (20 ms).
TOLERANCE = 0.001
PAPER_TOLERANCE = 0.015


@dataclass(frozen=True, slots=True)
class SegmentConfig:
    """How sounds are cut into blocks, blocks into splits, and windows out of blocks.

    Parameters
    ----------
    protocol : {"clean", "paper"}
        Blocks on the stimulus's own timeline, or the reference's protocol to the sample.
    tmin, tmax : float
        Window in seconds relative to its anchor.
    room : float | None
        A window is kept only where one of so many seconds from the same start would fit as well; None, or less than its own length: no
        more is asked for. Windows of several lengths with the same room begin at the same places, so that as many candidates compete.
    stride : float
        Seconds between the anchors of training and validation windows.
    min_block : float
        Sentences are merged into blocks until a block is longer than this, in seconds.
    blocks_at : {"sentences", "sounds", "grid"}
        Where blocks begin: at sentences, merged as ``min_block`` says; or every sound is a block, for sounds of one sentence each; or every
        ``min_block`` seconds of the sound whatever is said there, so that all alignments of it, in whichever dataset, share one split
        (clean protocol only; sentences that recur are then reported and bind nothing).
    test_anchors : {"words", "grid"}
        Test windows at every word onset, or every ``test_stride`` seconds (for data without words). Clean protocol only.
    test_stride : float | None
        Seconds between test windows on a grid; None: ``stride``.
    valid_ratio, test_ratio : float
        Expected shares of the blocks.
    seed : int
        Added to the hash that decides the split; not the seed of the training.
    repeat_words : int
        Sentences of at least that many words which recur in several blocks put those blocks in one split. Clean protocol only.
    group_scrambled : bool
        Take two sentences for the same if they have the same words in any order: a sentence and the word list scrambled from it. Clean
        protocol only.
    sfreq : float
        Sampling rate of the preprocessed signal in Hz: a window must exist in its samples.
    assign : mapping from str to str | None
        Splits by name, {glob over stimulus names: split}, in place of the hash. Clean protocol only.
    """

    protocol: str = "clean"
    tmin: float = -0.5
    tmax: float = 2.5
    room: float | None = None
    stride: float = 0.5
    min_block: float = 6.0
    blocks_at: str = "sentences"
    test_anchors: str = "words"
    test_stride: float | None = None
    valid_ratio: float = 0.1
    test_ratio: float = 0.2
    seed: int = 12
    repeat_words: int = 4
    group_scrambled: bool = False
    sfreq: float = 120.0
    assign: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {self.protocol!r}.")
        if self.test_anchors not in ANCHORS:
            raise ValueError(f"test_anchors must be one of {', '.join(ANCHORS)}, got {self.test_anchors!r}.")
        if self.blocks_at not in BLOCKS_AT:
            raise ValueError(f"blocks_at must be one of {', '.join(BLOCKS_AT)}, got {self.blocks_at!r}.")
        if not self.tmin < self.tmax:
            raise ValueError(f"A window needs tmin < tmax, got {self.tmin} and {self.tmax} s.")
        if self.room is not None and not 0 < self.room < math.inf:
            raise ValueError(f"room must be a positive number of seconds or None, got {self.room}.")
        if not self.min_block >= 0 or not self.sfreq > 0:
            raise ValueError(f"min_block must be >= 0 s and sfreq > 0 Hz, got {self.min_block} and {self.sfreq}.")
        strides = [self.stride] if self.test_stride is None else [self.stride, self.test_stride]
        if not min(strides) >= 1 / self.sfreq:
            raise ValueError(f"stride and test_stride must be at least one sample, got {self.stride} and {self.test_stride} s.")
        if min(self.valid_ratio, self.test_ratio) < 0 or self.valid_ratio + self.test_ratio >= 1:
            raise ValueError(f"valid_ratio + test_ratio must leave a part for training, got {self.valid_ratio} and {self.test_ratio}.")
        unknown = sorted(set((self.assign or {}).values()) - set(SPLITS))
        if unknown:
            raise ValueError(f"assign must name splits among {', '.join(SPLITS)}, got {unknown}.")
        if self.protocol == "paper" and (self.assign or self.test_anchors != "words"):
            raise ValueError(
                'The paper\'s protocol hashes every block and anchors test windows on words; use protocol="clean" with assign.'
            )

    @property
    def duration(self) -> float:
        """Length of a window in seconds, free of the noise of the subtraction."""
        return round(self.tmax - self.tmin, 6)

    @property
    def reach(self) -> float:
        """Seconds from a window's start that must be there: its room, or its length where that is more."""
        return max(self.duration, self.room or 0.0)


@dataclass(frozen=True, slots=True)
class Block:
    """The stretch of stimulus that gets one split as a whole.

    Parameters
    ----------
    uid : str
        Its hash decides the split.
    split : {"train", "valid", "test"}
        Side of the split.
    start, stop : float
        Seconds of the stimulus ``audio``; under the paper's protocol seconds of ``recording`` (the last one may be open: infinite).
    audio, recording : str
        The one that ``start`` and ``stop`` count in; the other is empty.
    sentences : tuple of str
        Texts of the sentences that begin in it.
    """

    uid: str
    split: str
    start: float
    stop: float
    audio: str = ""
    recording: str = ""
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Segmentation:
    """All windows of a dataset, the blocks they lie in, and what was left out.

    Parameters
    ----------
    segments : list of Segment
        By recording in the order given, then by onset.
    blocks : list of Block
        All blocks, with and without windows.
    dropped : dict from str to int
        What was left out, by reason.
    warnings : list of str
        What a reader of the result has to know.
    """

    segments: list[Segment]
    blocks: list[Block]
    dropped: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """Counts and warnings on their way into a Segmentation."""

    dropped: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    def drop(self, reason: str, count: int) -> None:
        """Count what is left out; nothing is written where nothing was."""
        if count:
            self.dropped[reason] += int(count)


def split_of(uid: str, config: SegmentConfig) -> str:
    """Give the split of a block from the hash of its uid alone."""
    value = hash_value(uid, config.seed)
    if value < config.test_ratio:
        return "test"
    return "valid" if value < config.test_ratio + config.valid_ratio else "train"


def hash_value(uid: str, seed: int) -> float:
    """Map a uid to [0, 1) as the reference does: Python's generator seeded with sha256(uid) + seed."""
    return random.Random(int(hashlib.sha256(uid.encode()).hexdigest(), 16) + seed).random()


def beginning_of(stimulus_id: str) -> str:
    """Take the length out of the clean protocol's stimulus ids, ``audio@ms+length``; others name no length and stay as they are."""
    return LENGTH.sub(r"\1", stimulus_id)


def subject_of(recording: Recording) -> str:
    """Name a subject with the dataset in front."""
    return f"{recording.dataset}/sub-{recording.subject}"


def words_of(table: pd.DataFrame) -> pd.DataFrame:
    """Take the words of an events table, by onset."""
    return table[table["kind"].to_numpy() == "word"].sort_values("onset", kind="stable")


def sentence_starts(sequence: np.ndarray) -> np.ndarray:
    """Tell which words begin a sentence, words being in the order heard; a word of no sentence stands alone."""
    first = np.ones(len(sequence), dtype=bool)
    first[1:] = sequence[1:] != sequence[:-1]
    return first | (sequence == "")


def sentence_texts(text: np.ndarray, first: np.ndarray) -> list[str]:
    """Join the words of each sentence; ``first`` marks the words that begin one."""
    begins = np.flatnonzero(first)
    return [" ".join(words) for words in np.split(text, begins[1:])] if len(text) else []


def normalised(sentence: str) -> tuple[str, ...]:
    """Reduce a sentence to its words in lower case without punctuation."""
    words = ("".join(c for c in word if c.isalnum()) for word in sentence.lower().split())
    return tuple(word for word in words if word)


def texts_inside(text: np.ndarray, middle: np.ndarray, start: np.ndarray, stop: np.ndarray) -> list[str]:
    """Join the words that lie at least half inside each window [start, stop).

    Parameters
    ----------
    text, middle : array, shape (n_words,)
        Words and the times of their middles.
    start, stop : array, shape (n_windows,)
        Windows on the same clock.
    """
    order = np.argsort(middle, kind="stable")
    words, middle = text[order].tolist(), middle[order]
    low = np.searchsorted(middle, start, side="left").tolist()
    high = np.searchsorted(middle, stop, side="left").tolist()
    return [" ".join(words[a:b]) for a, b in zip(low, high, strict=True)]


def overlapping(segments: Sequence[Segment], words: pd.DataFrame) -> set[str]:
    """Find the words that overlap a window by more than 20 ms, also those that a window cuts.

    Parameters
    ----------
    segments : sequence of Segment
        Of one recording, of one duration.
    words : DataFrame
        The recording's, from ``words_of``.
    """
    onset, text = words["onset"].to_numpy(), words["text"].to_numpy(dtype=object)
    stop = onset + words["duration"].to_numpy()
    windows = np.sort([segment.onset for segment in segments])
    # A window overlaps the word if it starts before the word's end and not a whole window before its onset.
    low = np.searchsorted(windows, onset + WORD_OVERLAP - segments[0].duration, side="right")
    high = np.searchsorted(windows, stop - WORD_OVERLAP, side="left")
    return set(text[high > low].tolist())


def describe(segmentation: Segmentation, events: Mapping[str, pd.DataFrame]) -> dict:
    """Count segments, windows and words of each split.

    Parameters
    ----------
    segmentation : Segmentation
        From ``make_segments``.
    events : mapping from uid to DataFrame
        The tables it was made from.

    Returns
    -------
    dict
        ``splits.{train,valid,test}`` with ``segments`` (distinct identities), ``windows`` (all), ``words`` (word events inside blocks that
        have a window, over all recordings) and ``vocabulary`` (distinct words that overlap a window by more than 20 ms); and
        ``vocabulary_overlap``, the fraction of the test vocabulary seen in training.
    """
    vocabulary: dict[str, set[str]] = {split: set() for split in SPLITS}
    n_words = dict.fromkeys(SPLITS, 0)
    heard: dict[tuple[str, str], list[Segment]] = {}
    for segment in segmentation.segments:
        heard.setdefault((segment.recording, segment.split), []).append(segment)
    bounds: dict[str, list[Block]] = {}
    for block in segmentation.blocks:
        bounds.setdefault(block.uid, []).append(block)
    words = {uid: words_of(events[uid]) for uid in {recording for recording, _ in heard}}
    for (recording, split), own in heard.items():
        table = words[recording]
        onset = table["onset"].to_numpy()
        vocabulary[split].update(overlapping(own, table))
        inside = np.zeros(len(table), dtype=bool)
        audio, audio_onset = table["audio"].to_numpy(dtype=object), table["audio_onset"].to_numpy()
        for uid in {segment.block for segment in own}:
            for block in bounds[uid]:
                if not block.recording:
                    inside |= (audio == block.audio) & (audio_onset >= block.start - EPS) & (audio_onset < block.stop - EPS)
                elif block.recording == recording:
                    inside |= (onset >= block.start) & (onset < block.stop)
        n_words[split] += int(inside.sum())
    splits = {
        split: {
            "segments": len({s.stimulus_id for s in segmentation.segments if s.split == split}),
            "windows": sum(s.split == split for s in segmentation.segments),
            "words": n_words[split],
            "vocabulary": len(vocabulary[split]),
        }
        for split in SPLITS
    }
    shared = len(vocabulary["test"] & vocabulary["train"]) / len(vocabulary["test"]) if vocabulary["test"] else 0.0
    return {"splits": splits, "vocabulary_overlap": shared}


def save(path: str | os.PathLike, segmentations: Sequence[Segmentation]) -> None:
    """Write segmentations (one per fold) as JSON; the file appears when it is complete.

    Raises
    ------
    RuntimeError
        If it cannot be written, as on a full disk; nothing half-written is left.
    """
    content = [asdict(segmentation) for segmentation in segmentations]
    for entry in content:
        for block in entry["blocks"]:
            # JSON knows no infinity: an open block has no stop.
            block["stop"] = block["stop"] if math.isfinite(block["stop"]) else None
    put(Path(path), json.dumps(content, allow_nan=False).encode())


def load(path: str | os.PathLike) -> list[Segmentation]:
    """Read the segmentations that ``save`` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected the segments that a run writes. Run the recipe first.")
    try:
        return [
            Segmentation(
                segments=[Segment(**{**s, "spans": tuple(Span(**span) for span in s["spans"])}) for s in entry["segments"]],
                blocks=[
                    Block(**{**b, "stop": math.inf if b["stop"] is None else b["stop"], "sentences": tuple(b["sentences"])})
                    for b in entry["blocks"]
                ],
                dropped=entry["dropped"],
                warnings=entry["warnings"],
            )
            for entry in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no segments ({error!r}); expected a file that brainspeech wrote. Run the recipe again.") from error


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    Parameters
    ----------
    errors : list of str
        Leaks: audio or signal on two sides of the split, windows that leave their block. Empty is good.
    repeated_texts : list of str
        Sentences that stand on several sides, such as ``what (train, test)``; reported, not an error.
    """

    errors: list[str]
    repeated_texts: list[str]


def audit(segments: Sequence[Segment], blocks: Sequence[Block] | None = None) -> Audit:
    """Prove, from the segments alone, that no window crosses a block and nothing stands on two sides of the split.

    Parameters
    ----------
    segments : sequence of Segment
        All segments of all splits.
    blocks : sequence of Block | None
        Adds that windows lie in the blocks as they were cut, and the sentences on two sides. Without, a window's single span is taken for
        its block, which holds under the clean protocol only.

    Raises
    ------
    ValueError
        If there is nothing to audit, or a window without a span, or with several, comes without blocks.
    """
    if not segments:
        raise ValueError("Expected segments to audit, got none.")
    bounds: dict[str, list[Block]] = {}
    for block in blocks or ():
        bounds.setdefault(block.uid, []).append(block)
    errors = _outside_blocks(segments, bounds if blocks is not None else None)
    heard: dict[str, set[tuple[float, float, str]]] = {}
    signal: dict[str, set[tuple[float, float, str]]] = {}
    is_paper = any(block.recording for block in blocks or ())
    for segment in segments:
        signal.setdefault(segment.recording, set()).add((segment.onset, segment.onset + segment.duration, segment.split))
        for span in segment.spans:
            own = heard.setdefault(span.audio, set())
            own.add((span.start, span.stop, segment.split))
            start = span.start - span.onset
            stop = start + segment.duration
            # A window of the paper's protocol may reach past the sound's end into silence.
            clipped = (max(start, span.start), min(stop, span.stop)) if is_paper else (start, stop)
            own.add((round(clipped[0], 6), round(clipped[1], 6), segment.split))
    tolerance = PAPER_TOLERANCE if is_paper else TOLERANCE
    for audio, intervals in sorted(heard.items()):
        errors += _on_two_sides(f"the stimulus {audio!r}", intervals, tolerance)
    for recording, intervals in sorted(signal.items()):
        errors += _on_two_sides(f"the signal of {recording}", intervals, tolerance)
    return Audit(errors, _repeated(blocks or ()))


def _outside_blocks(segments: Sequence[Segment], bounds: Mapping[str, list[Block]] | None) -> list[str]:
    """Report, per kind of fault, how many windows are not where their block is, and the first of them."""
    faults: dict[str, list[Segment]] = {}
    for segment in segments:
        split = {segment.split}
        if bounds is None:
            if len(segment.spans) != 1:
                raise ValueError(
                    f"{segment.recording}: the window at {segment.onset:g} s has {len(segment.spans)} spans; give the blocks to audit the "
                    "paper's protocol."
                )
            inside = _window_in_span(segment, segment.spans[0])
        elif segment.block not in bounds:
            faults.setdefault("name a block that was not cut", []).append(segment)
            continue
        else:
            own = bounds[segment.block]
            split = {block.split for block in own}
            inside = any(_window_in_block(segment, block) for block in own)
        if not inside:
            faults.setdefault("cross the edge of their block", []).append(segment)
        if split != {segment.split}:
            faults.setdefault("have another split than their block", []).append(segment)
    return [
        f"{len(found)} windows {fault}, the first is {found[0].split} {found[0].stimulus_id!r} at {found[0].onset:.3f} s of "
        f"{found[0].recording}, block {found[0].block!r}."
        for fault, found in faults.items()
    ]


def _window_in_span(segment: Segment, span: Span) -> bool:
    return span.onset <= TOLERANCE and span.onset + span.stop - span.start >= segment.duration - TOLERANCE


def _window_in_block(segment: Segment, block: Block) -> bool:
    if block.recording:
        stop = segment.onset + segment.duration
        return block.recording == segment.recording and segment.onset >= block.start - TOLERANCE and stop <= block.stop + PAPER_TOLERANCE
    return (
        len(segment.spans) == 1
        and (segment.spans[0].audio, segment.spans[0].start, segment.spans[0].stop) == (block.audio, block.start, block.stop)
        and _window_in_span(segment, segment.spans[0])
    )


def _on_two_sides(what: str, intervals: Iterable[tuple[float, float, str]], tolerance: float) -> list[str]:
    """Report pairs of splits whose intervals overlap by more than the tolerance: how often, and the first place."""
    reach: dict[str, float] = {}
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for start, stop, split in sorted(intervals):
        for other, end in reach.items():
            if other != split and min(stop, end) - start > tolerance:
                pair = (min(split, other), max(split, other))
                found.setdefault(pair, []).append((start, min(stop, end)))
        reach[split] = max(stop, reach.get(split, -math.inf))
    return [
        f"{places[0][0]:.3f}-{places[0][1]:.3f} s of {what} stands in {a} and in {b} ({len(places)} such overlaps)."
        for (a, b), places in sorted(found.items())
    ]


def _repeated(blocks: Iterable[Block]) -> list[str]:
    """List the sentences that stand in blocks of several splits."""
    sides: dict[tuple[str, ...], set[str]] = {}
    for block in blocks:
        for sentence in map(normalised, block.sentences):
            sides.setdefault(sentence, set()).add(block.split)
    repeated = {" ".join(text): found for text, found in sides.items() if text and len(found) > 1}
    return [f"{text} ({', '.join(s for s in SPLITS if s in repeated[text])})" for text in sorted(repeated)]
