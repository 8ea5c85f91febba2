"""Where windows and the spans that are heard in them lie in arrays: first samples, frames, all in numbers that the whole data share."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from brainspeech.records import FeatureTrack, Segment, Signal, Span
from brainspeech.timing import TIE, to_samples

Tracks = Mapping[tuple[str, float, float], FeatureTrack]


def check_present(uids: Iterable[str], signals: Mapping[str, Signal]) -> None:
    """Raise RuntimeError unless there is a signal of each recording."""
    missing = [uid for uid in uids if uid not in signals]
    if missing:
        raise RuntimeError(f"There are segments but no signal of {', '.join(missing)}. Preprocess every recording that has segments.")


def common_length(segments: Sequence[Segment], sfreq: float) -> int:
    """Give the samples of a window; ValueError if segments differ in duration, or there is no sample in one."""
    lengths = {to_samples(segment.duration, sfreq) for segment in segments}
    if len(lengths) > 1:
        raise ValueError(f"All segments must have one duration, got {sorted(n / sfreq for n in lengths)} s.")
    (length,) = lengths
    if not length:
        raise ValueError(f"A window of {segments[0].duration} s has no sample at {sfreq} Hz.")
    return length


def sample_starts(segments: Sequence[Segment], n_times: Mapping[str, int], n_window: int, sfreq: float) -> tuple[np.ndarray, np.ndarray]:
    """Give the first sample of each window, and which of them were moved back by one sample to end with their recording.

    Raises
    ------
    RuntimeError
        If a window ends later than that.
    """
    starts = to_samples(np.array([s.onset for s in segments], dtype=np.float64), sfreq)
    excess = starts + n_window - np.array([n_times[s.recording] for s in segments])
    bad = np.flatnonzero((excess > 1) | ((excess == 1) & (starts == 0)))
    if len(bad):
        segment = segments[bad[0]]
        raise RuntimeError(
            f"{segment.recording}: the window at {segment.onset} s of {segment.duration} s ends {excess[bad[0]]} samples after the signal "
            f"({n_times[segment.recording]} samples at {sfreq} Hz); so do {len(bad)} window(s) in all. "
            "Make the segments with the duration of the preprocessed signal."
        )
    shifted = excess == 1
    return starts - shifted, shifted


class SpanTable:
    """The spans of all segments as flat arrays, so that a batch's frame indices are one computation.

    ``first[i] : first[i + 1]`` are the spans of segment i in ``track`` (row in ``tracks``), ``onset`` (s from the window's first sample).
    """

    def __init__(self, segments: Sequence[Segment], tracks: Tracks):
        spans = [span for segment in segments for span in segment.spans]
        if not spans:
            raise RuntimeError("No segment hears anything: there is no span in any of them. Check the sound events of the recordings.")
        row: dict[tuple[str, float, float], int] = {}
        self.tracks: list[FeatureTrack] = []
        for span in spans:
            if span.key not in row:
                row[span.key] = len(self.tracks)
                self.tracks.append(_find_track(span, tracks))
        sizes = {track.data.shape[0] for track in self.tracks}
        if len(sizes) > 1:
            raise ValueError(f"All feature tracks must have the same number of features, got {sorted(sizes)}.")
        self.first = np.concatenate([[0], np.cumsum([len(segment.spans) for segment in segments])])
        self.track = np.array([row[span.key] for span in spans])
        self.onset = np.array([span.onset for span in spans])
        self.rate = np.array([track.sfreq for track in self.tracks])
        self.length = np.array([track.stop - track.start for track in self.tracks])
        self.n_frames = np.array([track.data.shape[1] for track in self.tracks])

    def subset(self, rows: np.ndarray) -> SpanTable:
        """Give the table of these segments, in this order."""
        other = copy.copy(self)
        _, spans = self._locate(rows)
        other.first = np.concatenate([[0], np.cumsum(self.first[rows + 1] - self.first[rows])])
        other.track, other.onset = self.track[spans], self.onset[spans]
        return other

    def _locate(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give, for the spans of these segments, the place of the segment in ``rows`` and the span's place in the table."""
        counts = self.first[rows + 1] - self.first[rows]
        place = np.repeat(np.arange(len(rows)), counts)
        before = np.concatenate([[0], np.cumsum(counts)])[:-1]
        return place, np.arange(len(place)) - before[place] + self.first[rows][place]

    def frames(self, rows: np.ndarray, times: np.ndarray, sfreq: float) -> Iterator[tuple[int, int, np.ndarray, np.ndarray | None]]:
        """Yield (place in rows, track, nearest frames (n_times,), covered (n_times,) or None where all are) for each span that is heard.

        Parameters
        ----------
        times : array of int
            Samples of the window.
        """
        place, spans = self._locate(rows)
        track = self.track[spans]
        seconds = times[None, :] / sfreq - self.onset[spans, None]  # since the span's start, (n_spans, n_times)
        slack = TIE / sfreq
        covered = (seconds >= -slack) & (seconds < self.length[track, None] - slack)
        frames = np.floor(seconds * self.rate[track, None] + 0.5 + TIE).astype(np.int64)
        frames = np.clip(frames, 0, self.n_frames[track, None] - 1)
        heard, whole = covered.any(1), covered.all(1)
        for j in np.flatnonzero(heard):
            yield place[j], track[j], frames[j], None if whole[j] else covered[j]


def _find_track(span: Span, tracks: Tracks) -> FeatureTrack:
    track = tracks.get(span.key)
    if track is None:
        raise RuntimeError(
            f"There is no feature track for {span.audio!r} from {span.start} to {span.stop} s. Compute the features of every span first."
        )
    return track
