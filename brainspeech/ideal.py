"""The ideal observer of simulated data: how well anybody could do who knew what was planted.

Shapes: W windows, N candidates, C channels, K sources, T times of a window.

A window of listener s that hears candidate j is d = M s_j + noise: the maps M (C, K) of the listener's sources, their courses s_j (K, T)
at that sound, and Gaussian noise. The observer knows M, how the sources answer any sound, and the noise's covariance, and scores a
candidate by the logarithm of its likelihood, which no other score can beat in top-k accuracy:

    score_j = d' Q m_j - m_j' Q m_j / 2        m_j = M s_j,  Q = S^-1 - S^-1 1 (1' S^-1 1)^-1 1' S^-1

with S the covariance of the noise over channels and times. Q looks past an offset of each channel, as a baseline does: taking the mean of
the first samples off both sides changes no score. Sound before the window counts, for each candidate its own, since the sources answer
for half a second.

The noise is a background that all channels share, in space times in time, and noise of each channel: (B x R_b) + (1 x R_s). Both
factors have a basis in which S is diagonal, so that S, of size C T, is never made.

Exact where the noise is Gaussian and nothing else disturbs the recording (the phantom's preset ``gaussian``), at the recordings' own rate;
with resampling or filters, exact up to the aliasing that the anti-alias filter leaves. Where there are nuisances it is a matched filter
that takes the maps of blinks, heartbeat and line noise out, and knows nothing of jitter, drifting gain and jumps: a strong reference, not a
bound.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

import numpy as np
import scipy.linalg

from brainspeech.datasets.phantom_head import make_impulse
from brainspeech.preprocess import PreprocessConfig, preprocess
from brainspeech.records import Recording, Segment, Signal
from brainspeech.timing import to_samples

# A window begins up to half a sample beside the time that it stands for. Templates are made for so many steps of a sample.
STEPS = 16
# Added to the covariances, relative to their diagonal, so that frequencies which the anti-alias filter took out do not divide by 0.
NUGGET = 1e-7
# Below this difference in accuracy there is no gap between ridge and observer to be closed.
LEAST_GAP = 0.01


class Phantom(Protocol):
    """What is asked of a dataset: ``brainspeech.datasets.simulated.SimulatedDataset`` has it."""

    sfreq: float

    def recordings(self) -> list[Recording]: ...
    def planted(self, recording: Recording) -> Any: ...
    def answer(self, recording: Recording, audio: str) -> tuple[np.ndarray, float, float]: ...


def can_observe(dataset: object) -> TypeGuard[Phantom]:
    """Tell whether a dataset says what was planted in it."""
    return hasattr(dataset, "planted") and hasattr(dataset, "answer")


def ideal_scores(
    dataset: Phantom,
    segments: Sequence[Segment],
    candidates: Sequence[Segment],
    signals: Mapping[str, Signal],
    *,
    config: PreprocessConfig,
    baseline: float | None = 0.5,
) -> np.ndarray:
    """Score each window against each candidate by its log-likelihood, up to a constant of the window.

    Parameters
    ----------
    dataset : SimulatedDataset
    segments : sequence of Segment, length W
        Windows of any subjects.
    candidates : sequence of Segment, length N
        What might have been heard: only their spans matter.
    signals : mapping from uid to Signal
        The preprocessed recordings.
    config : PreprocessConfig
        What they were preprocessed with.
    baseline : float or None
        Seconds of baseline that everyone else's windows have: its length does not matter here. None: offsets count as signal.

    Returns
    -------
    array of float64, shape (W, N)
    """
    if not segments or not candidates:
        raise ValueError(f"The observer needs windows and candidates, got {len(segments)} and {len(candidates)}.")
    recordings = {recording.uid: recording for recording in dataset.recordings()}
    groups: dict[tuple[str, tuple[str, ...]], list[int]] = {}
    for i, segment in enumerate(segments):
        if segment.recording not in recordings or segment.recording not in signals:
            raise ValueError(f"{segment.recording} is not a recording of this phantom, or has no signal.")
        groups.setdefault((segment.subject, signals[segment.recording].ch_names), []).append(i)
    gain = measure_gain(config, dataset.sfreq)
    n_window = to_samples(segments[0].duration, config.sfreq)
    scores = np.empty((len(segments), len(candidates)))
    for (_, ch_names), rows in groups.items():
        recording = recordings[segments[rows[0]].recording]
        planted = dataset.planted(recording)
        observer = Observer.make(planted, ch_names, n_window, config, gain, offsets=baseline is not None)
        courses = {
            audio: _filtered(*dataset.answer(recording, audio), gain) for audio in sorted({s.audio for c in candidates for s in c.spans})
        }
        windows, shifts = _windows([segments[i] for i in rows], signals, n_window, config.sfreq)
        steps = np.round(shifts * config.sfreq * STEPS).astype(int)
        for step in np.unique(steps):
            here = np.flatnonzero(steps == step)
            templates = _templates(candidates, courses, n_window, config.sfreq, step / (STEPS * config.sfreq), len(planted.maps.T))
            scores[np.array(rows)[here]] = observer.score(windows[here], templates)
    return scores


@dataclass(frozen=True, eq=False)
class Observer:
    """Windows of one listener in the basis in which their noise is white.

    Parameters
    ----------
    space : array, shape (C, c)
        From channels to components.
    time : array, shape (T, T)
        From samples to components.
    weights : array, shape (c, T)
        One over the noise's variance.
    maps : array, shape (c, K)
        The sources' maps in components.
    offsets : bool
        Whether an offset of each channel is looked past.
    """

    space: np.ndarray
    time: np.ndarray
    weights: np.ndarray
    maps: np.ndarray
    offsets: bool

    @classmethod
    def make(
        cls, planted: Any, ch_names: Sequence[str], n_window: int, config: PreprocessConfig, gain: Gain | None, *, offsets: bool
    ) -> Observer:
        """Find the two bases for the channels that preprocessing kept."""
        rows = [planted.ch_names.index(name) for name in ch_names]
        disturbed = planted.disturbed[rows]
        if config.reference is not None:  # whatever was subtracted, it was the same for all channels
            disturbed = np.concatenate([disturbed, np.ones((len(rows), 1))], axis=1)
        if disturbed.shape[1] >= len(rows):
            raise ValueError(f"{len(rows)} channels cannot be cleared of {disturbed.shape[1]} disturbances: too few to observe anything.")
        clear = (
            scipy.linalg.null_space((disturbed / np.maximum(np.linalg.norm(disturbed, axis=0), 1e-300)).T)
            if disturbed.size
            else np.eye(len(rows))
        )
        variances, turn = np.linalg.eigh(clear.T @ planted.background[np.ix_(rows, rows)] @ clear)
        space = clear @ turn
        passed = np.ones(len(planted.frequencies)) if gain is None else gain(planted.frequencies) ** 2
        shared = _covariance(planted.frequencies, planted.background_density * passed, n_window, config.sfreq)
        single = _covariance(planted.frequencies, planted.sensor_density * passed, n_window, config.sfreq)
        values, time = scipy.linalg.eigh(shared, single)
        weights = 1 / (np.maximum(variances, 0)[:, None] * np.maximum(values, 0) + 1)
        return cls(space, time, weights, space.T @ planted.maps[rows], offsets)

    def score(self, windows: np.ndarray, templates: np.ndarray) -> np.ndarray:
        """Score windows (W, C, T) against source courses (N, K, T); shape (W, N)."""
        data = self.space.T @ windows @ self.time  # (W, c, T)
        courses = templates @ self.time  # (N, K, T)
        weighted = self.weights * data
        power = np.einsum("ck,ct,cl->tkl", self.maps, self.weights, self.maps, optimize=True)
        square = np.einsum("nkt,tkl,nlt->n", courses, power, courses, optimize=True)
        if self.offsets:
            one = self.time.sum(axis=0)  # an offset, (T,)
            norm = self.weights @ one**2  # (c,)
            weighted -= self.weights * one * ((weighted @ one) / norm)[:, :, None]
            level = np.einsum("ck,nkt,ct->nc", self.maps, courses, self.weights * one, optimize=True)
            square -= (level**2 / norm).sum(axis=1)
        product = (self.maps.T @ weighted).reshape(len(data), -1) @ courses.reshape(len(courses), -1).T
        return product - square / 2


@dataclass(frozen=True, eq=False)
class Gain:
    """What preprocessing does to a sine: its amplitude by frequency; no phase, for all its filters are symmetric."""

    frequencies: np.ndarray
    amplitude: np.ndarray

    def __call__(self, frequencies: np.ndarray) -> np.ndarray:
        return np.interp(frequencies, self.frequencies, self.amplitude, right=0.0)


def measure_gain(config: PreprocessConfig, sfreq: float, *, seconds: float = 40.0) -> Gain | None:
    """Measure what preprocessing does to recordings at ``sfreq`` by sending an impulse through it; None where that is nothing."""
    if sfreq == config.sfreq and config.highpass is None and config.lowpass is None and not config.notch:
        return None
    raw = make_impulse(sfreq, seconds)
    answer = preprocess(raw, dataclasses.replace(config, channels=None, reference=None, positions=None)).data[0].astype(np.float64)
    amplitude = np.abs(np.fft.rfft(answer)) * sfreq / config.sfreq
    amplitude[0] = amplitude[1]  # the mean of the recording was taken off
    return Gain(np.fft.rfftfreq(len(answer), 1 / config.sfreq), amplitude)


def gap_closed(rows: Mapping[str, Mapping[str, Any]], *, metric: str = "top10") -> float | None:
    """Give the share of the gap between ridge and ideal observer that the encoder closes: 0 at the ridge, 1 at the observer.

    Parameters
    ----------
    rows : mapping
        ``RetrievalReport.rows``, or that part of report.json.
    metric : str
        Whose ``value`` is compared.

    Returns
    -------
    float or None
        None if one of the three rows is missing, or there is no gap to close.
    """
    if not {"encoder", "ridge", "ideal"} <= set(rows):
        return None
    encoder, ridge, best = (float(rows[name][metric]["value"]) for name in ("encoder", "ridge", "ideal"))
    return (encoder - ridge) / (best - ridge) if best - ridge >= LEAST_GAP else None


def _covariance(frequencies: np.ndarray, density: np.ndarray, n_times: int, sfreq: float) -> np.ndarray:
    """Turn a one-sided power density into the covariance of n_times samples, shape (n_times, n_times)."""
    step = frequencies[1] - frequencies[0]
    power = density * step
    power[[0, -1]] /= 2  # the trapezoid rule
    lags = np.arange(n_times) / sfreq
    # One row of cosines at a time would be slow, all of them at once large: 360 x 16,385.
    values = np.array([power @ np.cos(2 * np.pi * frequencies * lag) for lag in lags])
    values[0] *= 1 + NUGGET
    return scipy.linalg.toeplitz(values)


def _filtered(courses: np.ndarray, sfreq: float, start: float, gain: Gain | None) -> tuple[np.ndarray, float, float]:
    """Send the sources' courses through the preprocessing's filters; they grow at both ends by what those reach."""
    if gain is None:
        return courses, sfreq, start
    margin = round(5 * sfreq)
    n_times = courses.shape[1] + 2 * margin
    spectrum = np.fft.rfft(np.pad(courses, ((0, 0), (margin, margin))), axis=1)
    return np.fft.irfft(spectrum * gain(np.fft.rfftfreq(n_times, 1 / sfreq)), n_times, axis=1), sfreq, start - margin / sfreq


def _windows(segments: Sequence[Segment], signals: Mapping[str, Signal], n_window: int, sfreq: float) -> tuple[np.ndarray, np.ndarray]:
    """Cut the windows, shape (W, C, T), as batches do; and by how much each begins late (s), for a window begins on a sample."""
    windows, shifts = [], []
    for segment in segments:
        data = signals[segment.recording].data
        start = min(to_samples(segment.onset, sfreq), data.shape[1] - n_window)
        windows.append(data[:, start : start + n_window])
        shifts.append(start / sfreq - segment.onset)
    return np.stack(windows).astype(np.float64), np.array(shifts)


def _templates(
    candidates: Sequence[Segment],
    courses: Mapping[str, tuple[np.ndarray, float, float]],
    n_window: int,
    sfreq: float,
    shift: float,
    n_sources: int,
) -> np.ndarray:
    """Give the sources' courses in windows that begin ``shift`` s late, shape (N, K, T)."""
    out = np.zeros((len(candidates), n_sources, n_window))
    times = np.arange(n_window) / sfreq + shift
    for template, candidate in zip(out, candidates, strict=True):
        # Blocks of one sound that follow each other are one playing of it.
        for audio, begin in {(span.audio, round(span.start - span.onset, 6)) for span in candidate.spans}:
            course, rate, start = courses[audio]
            at = (times + begin - start) * rate
            first = max(int(at[0]) - 1, 0)
            piece = course[:, first : int(at[-1]) + 3]
            for row, source in zip(template, piece, strict=True):
                if len(source):
                    row += np.interp(at, first + np.arange(len(source)), source, left=0, right=0)
    return out
