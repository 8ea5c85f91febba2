"""What every feature answers, and how its tracks are computed: once per interval of a stimulus, in the stimulus's own time.

A feature sees the samples of one interval and nothing else: the interval is cut first. Which intervals are asked is the context:
``"block"`` (the paper's: the block's cut of the sound) or ``"window"`` (the sound inside one window alone).
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from brainspeech import spreading, timing
from brainspeech.cache import Cache
from brainspeech.records import FeatureTrack, Segment, Span

Interval = tuple[str, float, float]
Sound = tuple[np.ndarray, float]
Entry = tuple[Mapping[str, np.ndarray], Mapping[str, Any]]

CONTEXTS = ("block", "window")
KIND = "features"
# Version of the cutting below; part of every cache key.
VERSION = 1

# Seconds of sound, padding included, in one call of ``Feature.many``: about 2 GB inside the paper's wav2vec2 (measured).
BATCH_SECONDS = 60.0
# Seconds of cut sound collected before they are sorted by length: bounds what is held in memory when there are many stimuli.
POOL_SECONDS = 600.0
# A stimulus may end this much before an interval does.
MAX_MISSING = 0.1
# Times are written to the millisecond: what an interval lacks by no more than that is rounding, not a short stimulus.
ROUNDING = 0.001
CLIPPED = "interval clipped at the end of its stimulus"


class Feature(ABC):
    """Something that can be computed from a stimulus.

    A new feature writes ``config`` and ``__call__``; ``many`` only where several sounds at once are faster.

    Attributes
    ----------
    name : str
        Its name in ``FEATURES``.
    fill : float
        Value of all features where nothing is heard.
    n_features : int or None
        Number of features; None as long as it is not known.
    device : str or None
        Where it is computed; None: on the GPU if there is one. Only what is computed on the CPU is spread over processes, each of which
        gets the feature as it was made and loads what it needs once.
    """

    name: str = ""
    fill: float = 0.0
    n_features: int | None = None
    device: str | None = "cpu"

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Give what the values depend on besides the stimulus, JSON-able, with a version: part of the cache key."""

    @abstractmethod
    def __call__(self, sound: np.ndarray, sfreq: float) -> tuple[np.ndarray, float]:
        """Compute the feature of one sound.

        Parameters
        ----------
        sound : array, shape (n_rows, n_samples), float32
            The stimulus, cut already; what is outside must not matter.
        sfreq : float
            Samples per second.

        Returns
        -------
        values : array, shape (n_features, n_frames), float32
            Finite, also in silence; n_frames = round(duration x rate).
        rate : float
            Frames per second; frame k stands at k / rate seconds.
        """

    def many(self, sounds: Sequence[Sound]) -> list[Sound]:
        """Compute the feature of several sounds; the same as one by one."""
        return [self(sound, sfreq) for sound, sfreq in sounds]

    def check(self, stimulus: np.ndarray, sfreq: float) -> list[str]:
        """Check a whole stimulus, and say what will be changed about it; each reason is counted in the report.

        Raises
        ------
        ValueError
            If the stimulus is empty, not finite, or not of the kind that this feature is computed from.
        """
        check_stimulus(stimulus, sfreq)
        return []


def check_stimulus(stimulus: np.ndarray, sfreq: float) -> None:
    """Raise ValueError unless a stimulus is a finite array of shape (n_rows, n_samples) with samples in it."""
    if stimulus.ndim != 2:
        raise ValueError(f"a stimulus needs the shape (n_rows, n_samples), got {stimulus.shape}.")
    if not stimulus.size:
        raise ValueError(f"the stimulus is empty, got the shape {stimulus.shape}.")
    if not (np.isfinite(sfreq) and sfreq > 0):
        raise ValueError(f"the sampling rate of a stimulus must be a positive number of Hz, got {sfreq}.")
    n_bad = int(stimulus.size - np.count_nonzero(np.isfinite(stimulus)))
    if n_bad:
        raise ValueError(f"{n_bad} of the {stimulus.size} samples of the stimulus are NaN or infinite: repair the file, or leave it out.")


def count_frames(n_samples: int, sfreq: float, rate: float) -> int:
    """Give round(duration x rate), the number of frames of ``n_samples`` at ``sfreq``; ValueError if that is none."""
    n_frames = timing.resampled_length(n_samples, sfreq, rate)
    if n_frames < 1:
        raise ValueError(f"a sound of {n_samples / sfreq:.4f} s is too short for one frame at {rate:g} Hz.")
    return n_frames


def fit_length(values: np.ndarray, n_frames: int) -> np.ndarray:
    """Trim values (n_features, n) to ``n_frames``, or repeat their last frame.

    Raises
    ------
    RuntimeError
        If more than two frames would have to be cut or made up: that is no rounding.
    """
    missing = n_frames - values.shape[1]
    if abs(missing) > 2:
        raise RuntimeError(f"expected {n_frames} frames, got {values.shape[1]}: more than rounding can explain.")
    if missing > 0:
        return np.concatenate([values, np.repeat(values[:, -1:], missing, axis=1)], axis=1)
    return values[:, :n_frames]


def window_spans(segments: Iterable[Segment]) -> list[Segment]:
    """Cut the spans of each segment to its own window, so that nothing but the window's sound is in the target.

    Interval edges made by the cut are rounded to the millisecond, and never reach outside the block's interval; a span that touches
    the window by less than that is left out. The other fields, ``stimulus_id`` among them, stay.
    """
    return [
        replace(segment, spans=tuple(cut for span in segment.spans if (cut := _cut_span(span, segment.duration)))) for segment in segments
    ]


def _cut_span(span: Span, duration: float) -> Span | None:
    first = max(0.0, span.onset)  # seconds after the window's first sample
    last = min(duration, span.onset + span.stop - span.start)
    start = span.start if first == span.onset else max(span.start, round(span.start + first - span.onset, 3))
    stop = min(span.stop, round(span.start + last - span.onset, 3))
    if last <= first or stop - start < ROUNDING:
        return None
    return Span(span.audio, start, stop, first)


def intervals(segments: Iterable[Segment], context: str = "block") -> set[Interval]:
    """List the intervals of stimuli that the segments' targets are taken from.

    Parameters
    ----------
    segments : iterable of Segment
        With ``context="window"`` the tracks belong to ``window_spans(segments)``.
    context : {"block", "window"}
        What a feature may see.
    """
    if context not in CONTEXTS:
        raise ValueError(f"context must be one of {', '.join(CONTEXTS)}, got {context!r}.")
    if context == "window":
        segments = window_spans(segments)
    return {span.key for segment in segments for span in segment.spans}


@dataclass(frozen=True, slots=True, eq=False)
class _Cut:
    """The samples of one interval on their way to the feature."""

    interval: Interval
    sound: np.ndarray
    sfreq: float
    clipped: bool
    remarks: list[str]


def compute_tracks(
    feature: Feature,
    intervals: Iterable[Interval],
    read_stimulus: Callable[[str], Sound],
    *,
    fingerprint: Callable[[str], str],
    cache: Cache,
    progress: bool = True,
    n_jobs: int = 1,
    scheduler: str | os.PathLike | None = None,
    folders: Sequence[str | os.PathLike] = (),
) -> tuple[dict[Interval, FeatureTrack], dict[str, int]]:
    """Compute the feature of intervals of stimuli, each once; what the cache has is opened, not computed.

    Parameters
    ----------
    feature : Feature
        What to compute.
    intervals : iterable of (audio, start, stop)
        Intervals in seconds of the stimulus ``audio``.
    read_stimulus : callable
        ``read_stimulus(audio) -> (array (n_rows, n_samples), sfreq)``; called only where the cache lacks something, once per stimulus; by
        workers, once for each group of intervals in which it is heard.
    fingerprint : callable
        ``fingerprint(audio) -> str`` identifies the present content of a stimulus.
    cache : Cache
        Where the tracks are kept; those returned are memory-mapped from it.
    progress : bool
        Show a progress bar.
    n_jobs : int
        Processes of this machine over which groups of intervals are spread; -1: one on each core.
    scheduler : str or path, optional
        Address or scheduler file of a dask cluster over which they are spread instead.
    folders : sequence of path
        Folders that the workers of a cluster have to see besides the cache's.

    Returns
    -------
    tracks : dict from (audio, start, stop) to FeatureTrack
        n_frames = round((stop - start) x rate).
    counts : dict from str to int
        What was done to stimuli (each counted once) and to intervals, the same from the cache as when computed.

    Raises
    ------
    ValueError
        If a stimulus is empty, not finite, of the wrong kind, or ends 0.1 s or more before an interval of it does; a shorter lack is
        counted, and the track has the feature's ``fill`` there.
    FileNotFoundError
        From ``read_stimulus`` or ``fingerprint``, if a file is missing.
    """
    wanted = sorted({(str(audio), float(start), float(stop)) for audio, start, stop in intervals})
    prints = {audio: fingerprint(audio) for audio in dict.fromkeys(audio for audio, _, _ in wanted)}
    config = feature.config()
    keys = {
        (audio, start, stop): {"version": VERSION, "feature": config, "stimulus": prints[audio], "start": start, "stop": stop}
        for audio, start, stop in wanted
    }
    entries: dict[Interval, Entry] = {interval: entry for interval, key in keys.items() if (entry := cache.get(KIND, key)) is not None}
    todo = [interval for interval in wanted if interval not in entries]
    if spreading.is_spread(n_jobs, scheduler) and todo and not _on_gpu(feature):
        groups = {f"{feature.name} of {_names(group)}": group for pool in _plan(todo) for group in pool}
        spreading.spread(
            _make_group,
            _Maker(feature, read_stimulus, Cache(cache.root.resolve())),
            {name: {interval: keys[interval] for interval in group} for name, group in groups.items()},
            n_jobs=n_jobs,
            scheduler=scheduler,
            folders=[cache.root, *folders],
            sizes={name: len(group) for name, group in groups.items()},
            desc=feature.name,
            unit="interval",
            progress=progress,
        )
        kept = spreading.Kept(cache.root, spreading.PATIENCE if scheduler else 0.0)
        entries |= {interval: kept.get_or_make(KIND, keys[interval]) for interval in todo}
    else:
        entries |= _make_here(_Maker(feature, read_stimulus, cache), todo, keys, progress=progress)
    return _tracks(feature.name, {interval: entries[interval] for interval in wanted})


def _on_gpu(feature: Feature) -> bool:
    """Whether a feature is computed on the one GPU of this process."""
    if feature.device is not None:
        return not str(feature.device).startswith("cpu")
    import torch

    return torch.cuda.is_available()


def _plan(todo: Sequence[Interval]) -> list[list[list[Interval]]]:
    """Collect intervals in pools, whose stimuli are held in memory together, and the intervals of a pool in groups of similar length.

    Nothing is read for it, so the groups, of which rounding may depend in the last digit, are the same whoever computes them. ``todo`` is
    sorted by stimulus.
    """
    pools: list[list[Interval]] = [[]]
    by_audio: dict[str, list[Interval]] = {}
    for interval in todo:
        by_audio.setdefault(interval[0], []).append(interval)
    for wanted in by_audio.values():
        if sum(map(_seconds, pools[-1])) >= POOL_SECONDS:
            pools.append([])
        pools[-1] += wanted
    return [_groups(pool) for pool in pools]


def _seconds(interval: Interval) -> float:
    return interval[2] - interval[1]


def _groups(pool: Sequence[Interval]) -> list[list[Interval]]:
    """Group intervals by length, longest first; padded to its longest, a group has no more than BATCH_SECONDS, or is one interval."""
    groups: list[list[Interval]] = []
    for interval in sorted(pool, key=_seconds, reverse=True):
        # A millionth of a second more is how 20.1 - 0.1 comes out.
        if groups and (len(groups[-1]) + 1) * _seconds(groups[-1][0]) <= BATCH_SECONDS + 1e-6:
            groups[-1].append(interval)
        else:
            groups.append([interval])
    return groups


class _Maker:
    """Computes the tracks of groups of intervals into the cache, and holds the stimuli that it read last."""

    def __init__(self, feature: Feature, read_stimulus: Callable[[str], Sound], cache: Cache):
        self.feature, self.read_stimulus, self.cache = feature, read_stimulus, cache
        self.held: dict[str, tuple[np.ndarray, float, list[str]]] = {}

    def hold(self, intervals: Iterable[Interval]) -> None:
        """Have the stimuli of some intervals in memory, and no others."""
        audios = sorted({audio for audio, _, _ in intervals})
        self.held = {audio: self.held[audio] for audio in audios if audio in self.held}
        for audio in audios:
            if audio not in self.held:
                self.held[audio] = self._read(audio)

    def _read(self, audio: str) -> tuple[np.ndarray, float, list[str]]:
        stimulus, sfreq = self.read_stimulus(audio)
        try:
            return stimulus, sfreq, self.feature.check(stimulus, sfreq)
        except ValueError as error:
            raise ValueError(f"{self.feature.name} of {audio!r}: {error}") from error

    def make(self, group: Mapping[Interval, Any]) -> Iterator[tuple[Interval, Entry]]:
        """Compute a group, given with its keys."""
        cuts = [_cut(interval, *self.held[interval[0]]) for interval in group]
        for cut, values, rate in _compute(self.feature, cuts):
            yield cut.interval, self.cache.get_or_make(KIND, group[cut.interval], partial(_entry, cut, values, rate))


def _make_here(maker: _Maker, todo: Sequence[Interval], keys: Mapping[Interval, Any], *, progress: bool) -> dict[Interval, Entry]:
    """Compute everything in this process."""
    made: dict[Interval, Entry] = {}
    with tqdm(total=len(todo), desc=maker.feature.name, unit="interval", disable=not (progress and todo)) as bar:
        for pool in _plan(todo):
            maker.hold(interval for group in pool for interval in group)
            for group in pool:
                made |= maker.make({interval: keys[interval] for interval in group})
                bar.update(len(group))
    return made


def _make_group(maker: _Maker, group: Mapping[Interval, Any]) -> None:
    """Compute one group in a worker, which leaves the tracks in the cache."""
    maker.hold(group)
    for _ in maker.make(group):
        pass


def _cut(interval: Interval, stimulus: np.ndarray, sfreq: float, remarks: list[str]) -> _Cut:
    audio, start, stop = interval
    if not 0 <= start < stop:
        raise ValueError(f"An interval of {audio!r} needs 0 <= start < stop, got {start} and {stop} s.")
    n_samples = stimulus.shape[1]
    first, last = timing.to_samples(start, sfreq), timing.to_samples(stop, sfreq)
    missing = (last - n_samples) / sfreq
    # One part in 10^9 keeps a lack of exactly 0.1 s an error whatever the rate.
    if missing >= MAX_MISSING * (1 - 1e-9) or first >= n_samples:
        raise ValueError(
            f"The stimulus {audio!r} is too short: expected at least {stop:.3f} s for the interval [{start:.3f}, {stop:.3f}] s, got "
            f"{n_samples / sfreq:.3f} s. Check that the file is complete, and the sound's onset and duration in the events."
        )
    return _Cut(interval, stimulus[:, first:last], sfreq, missing > ROUNDING, remarks)


def _compute(feature: Feature, cuts: Sequence[_Cut]) -> Iterable[tuple[_Cut, np.ndarray, float]]:
    where = f"{feature.name} of {_names([cut.interval for cut in cuts])}"
    try:
        results = feature.many([(cut.sound, cut.sfreq) for cut in cuts])
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if len(results) != len(cuts):
        raise RuntimeError(f"{where}: expected {len(cuts)} results, got {len(results)}.")
    for cut, (values, rate) in zip(cuts, results, strict=True):
        where = f"{feature.name} of {_names([cut.interval])}"
        heard = timing.resampled_length(cut.sound.shape[1], cut.sfreq, rate)
        if values.ndim != 2 or values.shape[1] != heard:
            raise RuntimeError(f"{where}: expected values of shape (n_features, {heard}), got {values.shape}.")
        if not np.isfinite(values).all():
            raise RuntimeError(f"{where}: the values are not all finite, though the sound is.")
        _, start, stop = cut.interval
        n_frames = timing.to_samples(stop - start, rate)
        if n_frames < 1:
            raise ValueError(f"{where}: the interval is too short for one frame at {rate:g} Hz.")
        if cut.clipped:
            values = values[:, :n_frames]
            values = np.pad(values, ((0, 0), (0, n_frames - values.shape[1])), constant_values=feature.fill)
        yield cut, fit_length(values, n_frames).astype(np.float32, copy=False), float(rate)


def _entry(cut: _Cut, values: np.ndarray, rate: float) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    return {"values": values}, {"sfreq": rate, "stimulus": cut.remarks, "clipped": cut.clipped}


def _names(group: Sequence[Interval]) -> str:
    audio, start, stop = group[0]
    more = f" and {len(group) - 1} more" if len(group) > 1 else ""
    return f"{audio!r} [{start:.3f}, {stop:.3f}] s{more}"


def _tracks(name: str, entries: Mapping[Interval, Entry]) -> tuple[dict[Interval, FeatureTrack], dict[str, int]]:
    tracks: dict[Interval, FeatureTrack] = {}
    remarks: dict[str, list[str]] = {}
    counts: Counter[str] = Counter()
    for (audio, start, stop), (arrays, values) in entries.items():
        track = FeatureTrack(name, audio, start, stop, arrays["values"], values["sfreq"])
        known = next(iter(tracks.values()), track)
        if track.data.shape[0] != known.data.shape[0]:
            raise ValueError(
                f"{name}: all stimuli need the same number of features, got {known.data.shape[0]} in {known.audio!r} "
                f"and {track.data.shape[0]} in {audio!r}."
            )
        tracks[track.key] = track
        remarks[audio] = values["stimulus"]
        counts[CLIPPED] += values["clipped"]
    for reasons in remarks.values():
        counts.update(reasons)
    return tracks, {reason: n for reason, n in sorted(counts.items()) if n}
