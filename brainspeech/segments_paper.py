"""The reference's protocol, to the sample: Defossez et al., Nature Machine Intelligence 2023.

Blocks are cut on each recording's own clock: at every sentence start, merged from time 0 until longer than ``min_block``, named after the
words that lie wholly inside. Windows have one sample more than their length asks for (both ends are inside). Training and validation
windows stand on a grid from the recording's start, test windows on every word onset. The identity of a window is the word that sounds
two samples after its anchor, so windows of different sounds without a word there share one identity.

The roundings of this module are the reference's own (Python's round for anchors, int() for the samples that a word covers), not those of
``timing``: with others its published counts are not met. Guards at block edges are not part of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from brainspeech.protocols import (
    EPS,
    Block,
    Segmentation,
    SegmentConfig,
    Tally,
    sentence_starts,
    sentence_texts,
    split_of,
    subject_of,
    texts_inside,
    words_of,
)
from brainspeech.records import Recording, Segment, Span

# A sound is not cut where that would leave a piece shorter than this.
CUT_TOLERANCE = 0.1
# The word that gives a window its identity sounds this many samples after the anchor.
IDENTITY_SAMPLES = 2
NO_WORD = "no word"


def segment_recordings(
    recordings: Sequence[Recording],
    events: Mapping[str, pd.DataFrame],
    durations: Mapping[str, float],
    config: SegmentConfig,
    tally: Tally,
) -> Segmentation:
    """Cut every recording on its own clock.

    Parameters
    ----------
    recordings : sequence of Recording
        In the order in which the segments are wanted.
    events : mapping from uid to DataFrame
        Checked events tables.
    durations : mapping from uid to float
        Lengths in seconds; infinite where a recording is known to reach past its last window.
    config : SegmentConfig
        With ``protocol="paper"``.
    tally : Tally
        Counts go here.
    """
    segments: list[Segment] = []
    blocks: list[Block] = []
    for recording in recordings:
        table, duration = events[recording.uid], durations[recording.uid]
        own = cut_blocks(recording.uid, table, config)
        blocks += own
        segments += _windows(recording, table, duration, own, config, tally)
    tally.warnings.append(_say_differing(differing_cuts(events, blocks), len(recordings)))
    return Segmentation(segments, blocks, dict(tally.dropped), tally.warnings)


def cut_blocks(uid: str, table: pd.DataFrame, config: SegmentConfig) -> list[Block]:
    """Cut a recording at its sentences (at its sounds, where it has no words) and merge the pieces; the last block is open.

    With ``blocks_at="sounds"`` it is cut at its sounds and nothing is merged; a piece whose words are of one sentence is named after that.
    """
    words = words_of(table)
    onset, text = words["onset"].to_numpy(), words["text"].to_numpy(dtype=object)
    end = onset + words["duration"].to_numpy()
    first = sentence_starts(words["sequence"].to_numpy(dtype=object))
    at_sounds = config.blocks_at == "sounds"
    beginning = words[first] if len(words) and not at_sounds else table[table["kind"].to_numpy() == "sound"]
    starts, rows = np.unique(beginning["onset"].to_numpy(), return_index=True)
    # A piece without a word wholly inside is named after its place in the stimulus, which no recording's clock can change.
    places = [f"{audio} {time:.3f}" for audio, time in zip(beginning["audio"], beginning["audio_onset"], strict=True)]
    stops = np.append(starts[1:], np.inf)
    sentences = sentence_texts(text, first)
    sentence_onset = onset[first]
    # What follows a slash in a sequence is its condition, not its identity.
    sequence = words["sequence"].str.split("/").str[0].to_numpy(dtype=object)
    min_block = 0.0 if at_sounds else config.min_block

    blocks = []
    # Whatever precedes the first sentence belongs to the first block.
    block_start, names = 0.0, []
    for start, stop, row in zip(starts.tolist(), stops.tolist(), rows.tolist(), strict=True):
        # A sentence holds few words: look at those from its start to its stop only. A word that ends where the next sentence begins is not
        # inside: with a margin, or the last bit of each recording's clock would decide, and with it the split.
        low, high = np.searchsorted(onset, [start, stop])
        inside = [text[i] for i in range(low, high) if end[i] < stop - EPS]
        told = set(sequence[low:high]) if at_sounds else set()
        names.append((told.pop() if len(told) == 1 else "") or " ".join(inside) or places[row])
        if stop > block_start + min_block + EPS:
            name = ",".join(names)
            a, b = np.searchsorted(sentence_onset, [block_start, stop])
            blocks.append(Block(name, split_of(name, config), block_start, stop, recording=uid, sentences=tuple(sentences[a:b])))
            block_start, names = stop, []
    return blocks


def differing_cuts(events: Mapping[str, pd.DataFrame], blocks: Sequence[Block]) -> list[str]:
    """Name the recordings in which a stimulus is cut into other blocks than in most.

    Blocks are compared in stimulus time, between the first word and the end of what each recording plays of a stimulus; cuts nearer to each
    other than ``CUT_TOLERANCE`` are one. A cut is usual if more than half of the playings that reach it have it; of two halves, the first
    recording's is.

    Parameters
    ----------
    events : mapping from uid to DataFrame
        Checked events tables.
    blocks : sequence of Block
        From ``cut_blocks``, of all recordings.

    Returns
    -------
    list of str
        Uids, sorted.
    """
    starts: dict[str, list[float]] = {}
    for block in blocks:
        starts.setdefault(block.recording, []).append(block.start)
    # Of each stimulus: who played it, from when to when (stimulus time), and where it was cut meanwhile.
    plays: dict[str, list[tuple[str, float, float, np.ndarray]]] = {}
    for uid, own in starts.items():
        table, cuts = events[uid], np.sort(own)
        kind = table["kind"].to_numpy()
        word_onset = np.sort(table["onset"].to_numpy()[kind == "word"])
        sounds = table[kind == "sound"]
        for audio, onset, length, begin in zip(sounds["audio"], sounds["onset"], sounds["duration"], sounds["audio_onset"], strict=True):
            first = np.searchsorted(word_onset, onset - EPS)
            low = (float(word_onset[first]) if first < len(word_onset) else onset) + CUT_TOLERANCE
            inside = cuts[(cuts > low) & (cuts < onset + length - CUT_TOLERANCE)] - onset + begin
            plays.setdefault(audio, []).append((uid, low - onset + begin, begin + length - CUT_TOLERANCE, inside))
    differing = set()
    for own_plays in plays.values():
        every = np.sort(np.concatenate([inside for *_, inside in own_plays]))
        for same in np.split(every, np.flatnonzero(np.diff(every) > CUT_TOLERANCE) + 1) if len(every) else []:
            cut = {i: bool(((inside >= same[0]) & (inside <= same[-1])).any()) for i, (*_, inside) in enumerate(own_plays)}
            reached = [i for i, (_, low, high, _) in enumerate(own_plays) if cut[i] or (low < same[0] and same[-1] < high)]
            n_cut = sum(cut[i] for i in reached)
            is_usual = 2 * n_cut > len(reached) or (2 * n_cut == len(reached) and cut[reached[0]])
            differing |= {own_plays[i][0] for i in reached if cut[i] is not is_usual}
    return sorted(differing)


def _say_differing(uids: Sequence[str], n_recordings: int) -> str:
    where = f" ({', '.join(uids[:3])}{' ...' if len(uids) > 3 else ''})" if uids else ""
    return (
        f"The paper's protocol cuts on each recording's own clock: in {len(uids)} of {n_recordings} recordings a stimulus is cut into "
        f"other blocks than in most{where}."
    )


def identities(words: pd.DataFrame, window_onset: np.ndarray, sample: int, sfreq: float) -> tuple[list[str], np.ndarray]:
    """Name each window after the word at one of its samples: its index in the sentence, and the sentence.

    Parameters
    ----------
    words : DataFrame
        Words by onset.
    window_onset : array, shape (n_windows,)
        Seconds from sample 0 of the recording to sample 0 of the window.
    sample : int
        The sample of the window that decides.
    sfreq : float
        Samples per second.

    Returns
    -------
    names : list of str
        One per window.
    index : array, shape (n_windows,)
        Row of the deciding word, -1 where no word sounds.
    """
    found = np.full(len(window_onset), -1)
    if not len(words):
        return [NO_WORD] * len(window_onset), found
    onset, duration = words["onset"].to_numpy(), words["duration"].to_numpy()
    # np.trunc is int(): a word that began less than a sample before the window still covers sample 0.
    candidate = np.searchsorted(onset, window_onset + (sample + 1) / sfreq + 1e-6) - 1
    open_windows = np.flatnonzero(candidate >= 0)
    longest = np.maximum.accumulate(onset + duration)
    while len(open_windows):
        row = candidate[open_windows]
        position = sfreq * (onset[row] - window_onset[open_windows])
        covers = (np.trunc(position) <= sample) & (np.trunc(position + sfreq * duration[row]) > sample)
        found[open_windows[covers]] = row[covers]
        # Where several words cover the sample the later one counts, so look further back only while none was found and one may be.
        candidate[open_windows] -= 1
        row = candidate[open_windows]
        reach = sfreq * (longest[np.maximum(row, 0)] - window_onset[open_windows])
        open_windows = open_windows[~covers & (row >= 0) & (reach >= sample)]
    first = sentence_starts(words["sequence"].to_numpy(dtype=object))
    sentence = np.cumsum(first) - 1
    index = np.arange(len(words)) - np.flatnonzero(first)[sentence]
    texts = sentence_texts(words["text"].to_numpy(dtype=object), first)
    names = [f"{i} of {texts[s]}" for i, s in zip(index.tolist(), sentence.tolist(), strict=True)]
    return [names[i] if i >= 0 else NO_WORD for i in found.tolist()], found


def _windows(
    recording: Recording, table: pd.DataFrame, duration: float, blocks: list[Block], config: SegmentConfig, tally: Tally
) -> list[Segment]:
    """Place the windows of one recording."""
    sfreq = config.sfreq
    words = words_of(table)
    onset, text = words["onset"].to_numpy(), words["text"].to_numpy(dtype=object)
    middle = onset + words["duration"].to_numpy() / 2
    last_event = float((table["onset"] + table["duration"]).max())
    # Seconds from the anchor to the last sample of a window, and of one as long as the room that is asked for.
    last = config.tmax
    room = round(config.tmin + config.reach, 6) if config.reach > config.duration else last
    end = duration if math.isfinite(duration) else last_event + room
    # n_times - 1: the time of the last sample. np.round is Python's round: ties go to the even sample.
    last_time = duration - 1 / sfreq
    lead = round(-config.tmin * sfreq)
    n_window = round((config.tmax - config.tmin) * sfreq) + 1
    starts = np.array([block.start for block in blocks])
    stops = np.array([block.stop for block in blocks])
    split = np.array([block.split for block in blocks])

    grid = np.arange(0, end, config.stride)
    out: list[Segment] = []
    for is_test, anchors, anchor_words in ((False, grid, None), (True, onset, text)):
        sample, index = np.unique(np.round(anchors * sfreq).astype(np.int64), return_index=True)
        time = sample / sfreq
        # The block that the anchor stands in is the only one that can hold the window.
        block = np.searchsorted(starts, time, side="right") - 1
        ours = (block >= 0) & ((split[block] == "test") == is_test)
        tally.drop("word onsets on one sample", int(len(anchors) - len(sample)) if is_test else 0)
        begins = time + config.tmin >= 0
        ends = time + last < last_time + 0.5 / sfreq
        fits = (time + config.tmin >= starts[block]) & (time + last - 0.5 / sfreq < stops[block])
        roomy = (time + room < last_time + 0.5 / sfreq) & (time + room - 0.5 / sfreq < stops[block])
        tally.drop("recording begins", int((ours & ~begins).sum()))
        tally.drop("recording ends", int((ours & begins & ~ends).sum()))
        tally.drop("window leaves the block", int((ours & begins & ends & ~fits).sum()))
        tally.drop("window without the room that is asked for", int((ours & begins & ends & fits & ~roomy).sum()))
        keep = ours & begins & ends & fits & roomy
        sample, index, block = sample[keep], index[keep], block[keep]
        window = (sample - lead) / sfreq
        names, _ = identities(words, window, lead + IDENTITY_SAMPLES, sfreq)
        texts = texts_inside(text, middle, window, window + n_window / sfreq)
        heard = _spans(table, blocks, window, block, n_window / sfreq)
        for i, (begin, number) in enumerate(zip(window.tolist(), block.tolist(), strict=True)):
            word = str(anchor_words[index[i]]) if anchor_words is not None else ""
            out.append(
                Segment(
                    recording=recording.uid,
                    subject=subject_of(recording),
                    onset=begin,
                    duration=n_window / sfreq,
                    stimulus_id=names[i],
                    block=blocks[number].uid,
                    text=texts[i],
                    word=word,
                    split=blocks[number].split,
                    spans=heard[i],
                )
            )
    return sorted(out, key=lambda segment: segment.onset)


def _spans(table: pd.DataFrame, blocks: list[Block], window: np.ndarray, block: np.ndarray, duration: float) -> list[tuple[Span, ...]]:
    """Find what is heard in each window: the sounds, cut at the edges of the window's block."""
    sounds = table[table["kind"].to_numpy() == "sound"]
    pieces: dict[int, list[tuple[str, float, float, float]]] = {}
    for number in np.unique(block).tolist():
        pieces[number] = []
        for audio, onset, length, audio_onset in zip(
            sounds["audio"], sounds["onset"], sounds["duration"], sounds["audio_onset"], strict=True
        ):
            stop = onset + length
            low, high = max(onset, blocks[number].start), min(stop, blocks[number].stop)
            # A piece shorter than the tolerance is not cut off: it stays with the block that holds the rest of the sound.
            if high - low <= CUT_TOLERANCE + EPS:
                continue
            low = onset if low - onset <= CUT_TOLERANCE + EPS else low
            high = stop if stop - high <= CUT_TOLERANCE + EPS else high
            # Whole milliseconds, so that recordings whose triggers differ by less share a track; never past the sound's end.
            start_ms = round((audio_onset + low - onset) * 1000)
            stop_ms = min(round((audio_onset + high - onset) * 1000), math.floor((audio_onset + length) * 1000 + 1e-6))
            if stop_ms > start_ms:
                pieces[number].append((audio, start_ms / 1000, stop_ms / 1000, onset + start_ms / 1000 - audio_onset))
    return [
        tuple(
            Span(audio, start, stop, onset - begin)
            for audio, start, stop, onset in pieces[number]
            if onset < begin + duration and onset + stop - start > begin
        )
        for begin, number in zip(window.tolist(), block.tolist(), strict=True)
    ]
