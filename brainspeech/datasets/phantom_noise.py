"""What the phantom's sensors see besides the answer to speech: a stationary Gaussian background, and what disturbs a recording.

Everything is in units of the noise level (root mean square per sensor in ``SNR_BAND``), times in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import scipy.fft
import scipy.signal

SNR_BAND = (0.5, 30.0)  # Hz
SENSOR_SHARE = 0.05  # of the noise power in SNR_BAND: white, each sensor for itself; the rest is the background's
LOWEST = 0.2  # Hz, below which the background's spectrum is flat
DRIFT, DRIFT_EDGE = 3.0, 0.2  # standard deviation of the slow drift, and the Hz below which it lies
LINE = 50.0  # Hz

NUISANCES = (
    "latency_jitter",  # the answer comes a little earlier or later as time goes on: sd 8 ms, changing over seconds
    "gain_drift",  # its size wanders: sd 2 dB, over a minute
    "distractors",  # rhythms that come and go, and temporal cortex that follows a talker who is not offered
    "line_noise",
    "blinks",
    "heartbeat",
    "slow_drift",
    "amplifier_jump",  # one channel of three steps to another offset, once in a recording
    "dead_channel",  # one channel is flat, from 8 channels on
)


def choose(names: Iterable[str] | str) -> tuple[str, ...]:
    """Give the nuisances of these names, in order: a sequence, names with commas between them, ``all`` or ``none``.

    Raises
    ------
    ValueError
        If a name is not in ``NUISANCES``.
    """
    if isinstance(names, str):
        names = {"all": NUISANCES, "none": ()}.get(names, tuple(part.strip() for part in names.split(",") if part.strip()))
    names = tuple(names)
    unknown = [name for name in names if name not in NUISANCES]
    if unknown:
        raise ValueError(f"simulated: nuisances must be all, none or among {', '.join(NUISANCES)}, got {', '.join(map(str, unknown))}.")
    return tuple(name for name in NUISANCES if name in names)


def background_density(frequencies: np.ndarray, *, alpha: bool) -> np.ndarray:
    """Give the power density (per Hz) of the background, 1/f with an alpha peak in EEG, of unit power in ``SNR_BAND``."""

    def shape(f: np.ndarray) -> np.ndarray:
        peak = 1 + 1.5 * np.exp(-0.5 * ((f - 10) / 1.2) ** 2) if alpha else 1.0
        return peak**2 / np.maximum(f, LOWEST)

    band = np.linspace(*SNR_BAND, 5901)
    return shape(np.asarray(frequencies)) / float(np.trapezoid(shape(band), band))


def sensor_density(frequencies: np.ndarray) -> np.ndarray:
    """Give the power density of a sensor's own white noise, of unit power in ``SNR_BAND``."""
    return np.full(np.shape(frequencies), 1 / (SNR_BAND[1] - SNR_BAND[0]))


def drift_density(frequencies: np.ndarray) -> np.ndarray:
    """Give the power density of slow drift below ``DRIFT_EDGE``, of about unit power."""
    f = np.asarray(frequencies)
    slowest = 0.005
    # The integral of 1/max(f, slowest)^2 from 0 to the edge.
    power = 2 / slowest - 1 / DRIFT_EDGE
    return np.where(f < DRIFT_EDGE, 1 / np.maximum(f, slowest) ** 2, 0.0) / power


def coloured(rng: np.random.Generator, n_rows: int, n_times: int, sfreq: float, density: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Make independent Gaussian noise with a given power density, shape (n_rows, n_times), float32.

    ``density(frequencies)`` is per Hz; frequency 0 is left out.
    """
    n_fast = scipy.fft.next_fast_len(n_times, real=True)
    frequencies = np.fft.rfftfreq(n_fast, 1 / sfreq)
    amplitude = n_fast / 2 * np.sqrt(density(frequencies) * sfreq / n_fast)
    amplitude[0] = 0
    used = int(np.flatnonzero(amplitude)[-1]) + 1
    spectrum = np.zeros((n_rows, len(frequencies)), dtype=np.complex64)
    parts = rng.standard_normal((n_rows, used, 2), dtype=np.float32)
    parts *= amplitude[:used, None].astype(np.float32)
    spectrum[:, :used] = parts.view(np.complex64)[..., 0]
    return scipy.fft.irfft(spectrum, n_fast, axis=1)[:, :n_times]


def make_noise(rng: np.random.Generator, root: np.ndarray, n_times: int, sfreq: float, *, alpha: bool) -> np.ndarray:
    """Make background and sensor noise, shape (n_channels, n_times); ``root`` (n_channels, rank) times white noise is the background."""
    background = coloured(rng, root.shape[1], n_times, sfreq, lambda f: background_density(f, alpha=alpha))
    sensors = math.sqrt(SENSOR_SHARE) * coloured(rng, len(root), n_times, sfreq, sensor_density)
    return (root.astype(np.float32) @ background + sensors).astype(np.float64)


def make_drift(rng: np.random.Generator, n_rows: int, n_times: int, sfreq: float) -> np.ndarray:
    """Make slow wandering, each row for itself, shape (n_rows, n_times), standard deviation ``DRIFT``."""
    # Twice as long, else the end would meet the beginning.
    return DRIFT * coloured(rng, n_rows, 2 * n_times, sfreq, drift_density)[:, :n_times]


def wander(rng: np.random.Generator, n_times: int, sfreq: float, *, seconds: float) -> np.ndarray:
    """Make one slow course of unit variance that changes over so many seconds, shape (n_times,)."""
    edge = 1 / (2 * math.pi * seconds)
    course = coloured(rng, 1, 2 * n_times, sfreq, lambda f: 2 / (math.pi * edge) / (1 + (f / edge) ** 2))[0, :n_times]
    return course.astype(np.float64)


@dataclass(frozen=True, eq=False)
class Disturbance:
    """One thing that disturbs a recording: its course (n_times,), and when it happened where that is an event.

    Parameters
    ----------
    course : array, shape (n_times,)
        Peak or root mean square 1.
    onsets : array, shape (n_events,)
        Seconds from the first sample.
    duration : float
        Seconds that an event lasts.
    """

    course: np.ndarray
    onsets: np.ndarray = field(default_factory=lambda: np.empty(0))
    duration: float = 0.0


def make_line(rng: np.random.Generator, n_times: int, sfreq: float) -> Disturbance | None:
    """Make line noise and its second harmonic, slowly changing in size; None where the sampling rate does not reach it."""
    times = np.arange(n_times) / sfreq
    course = np.zeros(n_times)
    if not sfreq > 2 * LINE:
        return None
    frequency = LINE + 0.02 * float(rng.standard_normal())
    for harmonic, size in ((1, 1.0), (2, 0.3)):
        phase = 2 * math.pi * float(rng.random())
        if 2 * harmonic * LINE < sfreq:
            course += size * math.sqrt(2) * np.sin(2 * math.pi * harmonic * frequency * times + phase)
    return Disturbance(course * (1 + 0.2 * wander(rng, n_times, sfreq, seconds=5.0)))


def make_blinks(rng: np.random.Generator, n_times: int, sfreq: float) -> Disturbance:
    """Make blinks, some 15 a minute, each about 0.3 s long with a steep rise."""
    times = np.arange(round(0.4 * sfreq)) / sfreq
    shape = (times / 0.09) ** 2 * np.exp(2 * (1 - times / 0.09))
    onsets = _renewal(rng, n_times / sfreq, mean=4.0, spread=2.0, least=0.6)
    return Disturbance(_train(onsets, rng.uniform(0.7, 1.2, len(onsets)), shape, n_times, sfreq), onsets, 0.4)


def make_heartbeat(rng: np.random.Generator, n_times: int, sfreq: float) -> Disturbance:
    """Make heartbeats, some 70 a minute: a QRS complex of 80 ms and a T wave after it."""
    times = np.arange(round(0.5 * sfreq)) / sfreq
    shape = sum(h * np.exp(-0.5 * ((times - at) / w) ** 2) for at, w, h in ((0.025, 0.01, -0.2), (0.045, 0.01, 1.0), (0.3, 0.05, 0.25)))
    onsets = _renewal(rng, n_times / sfreq, mean=0.86, spread=0.05, least=0.5)
    return Disturbance(_train(onsets, np.ones(len(onsets)), np.asarray(shape), n_times, sfreq), onsets, 0.5)


def make_jump(rng: np.random.Generator, n_times: int, sfreq: float) -> Disturbance:
    """Make one step at a random time that is not near either end."""
    at = round(float(rng.uniform(0.1, 0.9)) * n_times)
    course = np.zeros(n_times)
    course[at:] = 1.0
    return Disturbance(course, np.array([at / sfreq]))


DISTURBING: dict[str, Callable[[np.random.Generator, int, float], Disturbance | None]] = {
    "line_noise": make_line,
    "blinks": make_blinks,
    "heartbeat": make_heartbeat,
    "amplifier_jump": make_jump,
}


def draw_jump_map(rng: np.random.Generator, n_channels: int) -> np.ndarray:
    """Draw which channels jump, a third of them and at least one, and how far."""
    jumping = rng.random(n_channels) < 1 / 3
    jumping[rng.integers(n_channels)] = True
    return jumping * rng.uniform(-1, 1, n_channels)


def make_rhythm(rng: np.random.Generator, n_times: int, sfreq: float, *, hertz: float) -> np.ndarray:
    """Make a rhythm that comes and goes in bursts of a second or so, shape (n_times,), of unit variance."""
    carrier = coloured(rng, 1, n_times, sfreq, lambda f: np.exp(-0.5 * ((f - hertz) / 0.8) ** 2))[0].astype(np.float64)
    course = carrier * np.exp(wander(rng, n_times, sfreq, seconds=1.0))
    return course / max(float(course.std()), 1e-12)


def _renewal(rng: np.random.Generator, seconds: float, *, mean: float, spread: float, least: float) -> np.ndarray:
    """Draw times between 0 and the end whose distances have this mean and spread."""
    n_enough = math.ceil(seconds / least) + 2
    steps = np.maximum(mean + spread * rng.standard_normal(n_enough), least)
    onsets = np.cumsum(steps) - steps[0] * rng.random()
    return onsets[onsets < seconds]


def _train(onsets: np.ndarray, heights: np.ndarray, shape: np.ndarray, n_times: int, sfreq: float) -> np.ndarray:
    impulses = np.zeros(n_times)
    np.add.at(impulses, np.minimum((onsets * sfreq).astype(int), n_times - 1), heights)
    return scipy.signal.fftconvolve(impulses, shape)[:n_times]
