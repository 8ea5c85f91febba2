"""What can be seen of a recording before anything is fitted: its spectrum before and after preprocessing, and whether sound leaked into it.

A sensor that carries the sound itself does so at once; the brain takes tens of milliseconds. So the coherency of every channel with the
sound, averaged over windows, is turned back into time: a leak is a peak at lag 0. What it has to exceed is what the same curve reaches at
circular shifts of more than a second, where nothing can be. Everything here reads at most 5 minutes of a recording, window by window.

Shapes: C channels, W windows, N samples of a window, M rows of sound (waveform and envelope).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy import fft
from scipy.signal import resample_poly, welch, windows
from scipy.stats import norm
from tqdm import tqdm

from brainspeech.cache import Cache
from brainspeech.listing import some
from brainspeech.records import Recording, Signal
from brainspeech.timing import rate_ratio, to_samples

# Part of the cache key: raise it when the same recording gives other numbers.
VERSION = 1

WINDOW = 20.0  # s; the circular shifts run over a window
MOST_WINDOWS = 15
PIECE = 4.0  # s of a piece of Welch's spectrum: a resolution of 0.25 Hz
HERTZ = np.geomspace(0.5, 1000.0, 84)  # the points that a spectrum is kept at
LOWEST_AUDIO_SFREQ = 4000.0  # no sound is sampled slower, no feature track of a user faster (Hz)

TOLERANCE = 0.006  # s around 0 in which a leak stands, or one sample where that is longer
AROUND = 0.1  # s around 0 within which a leak is the highest point
FAR = 1.0  # s of shift from which on nothing is expected
SLOWEST = 8.0  # Hz; below, the brain follows speech strongly enough for its answer to reach lag 0
NARROWEST = 5.0  # Hz of band that a curve needs
FALSE_ALARM = 1e-5  # chance to flag anything in a dataset without a leak, were the curves Gaussian; their tails are heavier
CHECKS = ("waveform, in the recording", "envelope, in the recording", "envelope, after preprocessing")


class Sound(NamedTuple):
    """A sound that was heard: times in seconds from the first sample of the raw (onset) and of the stimulus (audio_onset)."""

    audio: str
    onset: float
    duration: float
    audio_onset: float


class Source(Protocol):
    """What ``inspect`` needs of a dataset; every ``brainspeech.datasets.Dataset`` has it."""

    def read_raw(self, recording: Recording) -> Any: ...
    def read_stimulus(self, audio: str) -> tuple[np.ndarray, float]: ...
    def fingerprint(self, recording: Recording) -> str: ...
    def stimulus_fingerprint(self, audio: str) -> str: ...


@dataclass(frozen=True, eq=False)
class Quality:
    """What was seen of one recording.

    Parameters
    ----------
    uid : str
    ch_names : tuple of str, length C
    unit : str
        Of the spectra.
    before, after : array, shape (len(HERTZ),)
        log10 of the power spectral density, median over the channels; NaN above half the sampling rate.
    z : array, shape (3, C)
        Height of the curve at lag 0 in standard deviations of the curve at far shifts, one row for each of ``CHECKS``; 0 where the curve is
        higher elsewhere within 0.1 s; NaN where there is no sound to compare with.
    highest : array, shape (3,)
        The highest of all channels at far shifts.
    n_lags : int
        Lags that count as 0, over all checks.
    """

    uid: str
    ch_names: tuple[str, ...]
    unit: str
    before: np.ndarray
    after: np.ndarray
    z: np.ndarray
    highest: np.ndarray
    n_lags: int


def survey(
    dataset: Source,
    recordings: Sequence[Recording],
    signals: Mapping[str, Signal],
    events: Mapping[str, Any],
    cache: Cache,
    *,
    progress: bool = True,
) -> tuple[dict[str, Any], list[str]]:
    """Look at every recording; ``signals`` and ``events`` (tables) by uid. Gives what ``summarise`` gives."""
    found = []
    for recording in tqdm(recordings, desc="look at recordings", unit="recording", disable=not progress):
        sounds = sounds_of(events[recording.uid].to_dict("records"))
        found.append(inspect(dataset, recording, signals[recording.uid], sounds, cache))
    return summarise(found)


def inspect(dataset: Source, recording: Recording, signal: Signal, sounds: Sequence[Sound], cache: Cache) -> Quality:
    """Look at a recording, or open what was seen of it from the cache.

    Parameters
    ----------
    dataset : Source
    recording : Recording
    signal : Signal
        The same recording after preprocessing; its channels are looked at.
    sounds : sequence of Sound
        What was heard.
    cache : Cache
    """
    thinned = np.ascontiguousarray(signal.data[:, :: max(1, signal.data.shape[1] // 512)])
    key = {
        "recording": dataset.fingerprint(recording),
        "signal": [signal.sfreq, list(signal.ch_names), list(signal.data.shape), hashlib.sha256(thinned.tobytes()).hexdigest()],
        "sounds": [list(sound) for sound in sounds],
        "stimuli": {audio: dataset.stimulus_fingerprint(audio) for audio in sorted({s[0] for s in sounds})},
        "version": VERSION,
    }

    def resampled(audio: str, sfreq: float) -> np.ndarray | None:
        """Give a sound's waveform and envelope at a recording's rate, made once for all recordings that play it."""
        identity = {"stimulus": dataset.stimulus_fingerprint(audio), "sfreq": sfreq, "version": VERSION}
        arrays, _ = cache.get_or_make("sounds", identity, lambda: ({"rows": resample(*dataset.read_stimulus(audio), sfreq)}, {}))
        return arrays["rows"] if arrays["rows"].size else None

    def make() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        raw = dataset.read_raw(recording)
        try:
            return _look(raw, signal, sounds, resampled)
        finally:
            raw.close()

    arrays, values = cache.get_or_make("quality", key, make)
    return Quality(recording.uid, signal.ch_names, values["unit"], n_lags=values["n_lags"], **{k: np.array(v) for k, v in arrays.items()})


def _look(
    raw: Any, signal: Signal, sounds: Sequence[Sound], resampled: Callable[[str, float], np.ndarray | None]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    raw_sfreq, names = float(raw.info["sfreq"]), list(signal.ch_names)
    n_raw = raw.n_times
    starts = window_starts(sounds, min(n_raw / raw_sfreq, signal.duration))
    same = [i for i, kind in enumerate(signal.ch_types) if kind == signal.ch_types[0]]  # one unit
    heard = {sfreq: hear(sounds, resampled, n, sfreq) for sfreq, n in ((raw_sfreq, n_raw), (signal.sfreq, signal.data.shape[1]))}

    def read(start: int, stop: int) -> np.ndarray:
        return raw.get_data(picks=names, start=start, stop=stop)

    def after(start: int, stop: int) -> np.ndarray:
        return np.asarray(signal.data[:, start:stop], np.float64)

    spectra, z, highest, n_lags = [], np.full((3, len(names)), np.nan), np.full(3, np.nan), 0
    for of, sfreq, n_times, first in ((read, raw_sfreq, n_raw, 0), (after, signal.sfreq, signal.data.shape[1], 2)):
        n_window = min(to_samples(WINDOW, sfreq), n_times)
        firsts = [min(to_samples(start, sfreq), n_times - n_window) for start in starts]
        density, coherencies = _measure(of, firsts, n_window, sfreq, heard[sfreq], same)
        spectra.append(density)
        for row, coherency in enumerate(coherencies if first == 0 else coherencies[1:]):
            z[first + row], highest[first + row], n = peak_at_zero(coherency, n_window, sfreq)
            n_lags += n
    unit = {"eeg": "V²/Hz", "mag": "T²/Hz", "grad": "(T/m)²/Hz"}.get(signal.ch_types[0], "unit²/Hz")
    return {"before": spectra[0], "after": spectra[1], "z": z, "highest": highest}, {"unit": unit, "n_lags": n_lags}


def window_starts(sounds: Sequence[Sound], duration: float) -> list[float]:
    """Choose windows of 20 s that do not overlap, evenly over the recording, those at least half full of sound where there are any (s)."""
    if duration < 2 * WINDOW:
        return [0.0]
    first = min((onset for _, onset, _, _ in sounds), default=0.0)
    first = min(max(first, 0.0), duration - WINDOW)
    starts = np.arange(first, duration - WINDOW + 1e-9, WINDOW)
    filled = [
        sum(max(0.0, min(onset + length, start + WINDOW) - max(onset, start)) for _, onset, length, _ in sounds) >= WINDOW / 2
        for start in starts
    ]
    if any(filled):
        starts = starts[filled]
    chosen = np.unique(np.linspace(0, len(starts) - 1, min(MOST_WINDOWS, len(starts))).round().astype(int))
    return starts[chosen].tolist()


def resample(sound: np.ndarray, audio_sfreq: float, sfreq: float) -> np.ndarray:
    """Give waveform and envelope of a sound (n_rows, n_samples) at another rate, float32, shape (2, n).

    Empty if it is sampled so slowly that it is no sound but a user's feature track.
    """
    if audio_sfreq < LOWEST_AUDIO_SFREQ:
        return np.empty((2, 0), np.float32)
    mono = sound.mean(0, dtype=np.float64)
    ratio = rate_ratio(audio_sfreq, sfreq)
    rows = [resample_poly(row, ratio.numerator, ratio.denominator) for row in (mono, np.abs(mono))]
    return np.stack(rows).astype(np.float32)


def hear(sounds: Sequence[Sound], resampled: Callable[[str, float], np.ndarray | None], n_times: int, sfreq: float) -> np.ndarray | None:
    """Put waveform and envelope of what was heard on the clock of a recording.

    Parameters
    ----------
    resampled : callable
        (audio, sfreq) -> waveform and envelope of the whole stimulus, shape (2, n), or None where it is no sound.

    Returns
    -------
    array of float32, shape (2, n_times), or None
        0 where nothing is heard; None if a stimulus is no sound.
    """
    out = np.zeros((2, n_times), np.float32)
    for audio in dict.fromkeys(sound[0] for sound in sounds):
        rows = resampled(audio, sfreq)
        if rows is None:
            return None
        for _, onset, duration, audio_onset in (sound for sound in sounds if sound[0] == audio):
            source, target = to_samples(audio_onset, sfreq), to_samples(onset, sfreq)
            skip = max(0, -target)
            n = min(to_samples(duration, sfreq), rows.shape[1] - source, n_times - target)
            if n > skip:
                out[:, target + skip : target + n] += rows[:, source + skip : source + n]
    return out if sounds else None


def _measure(
    read: Callable[[int, int], np.ndarray],
    starts: Sequence[int],
    n_window: int,
    sfreq: float,
    heard: np.ndarray | None,
    same: Sequence[int],
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Give the spectrum at ``HERTZ``, and the coherency (C, N // 2 + 1) of all channels with each row that was heard."""
    # Flat but for its ends: under a bell-shaped taper far shifts would overlap less than lag 0 and could not stand for it.
    taper = windows.tukey(n_window, 0.1)
    total: Any = 0.0
    cross: Any = 0.0
    power: Any = 0.0
    power_heard: Any = 0.0
    for start in starts:
        data = read(start, start + n_window)
        data = data - data.mean(1, keepdims=True)
        n_piece = min(n_window, to_samples(PIECE, sfreq))
        hertz, density = welch(data[list(same)], sfreq, nperseg=n_piece)
        total = total + density / len(starts)
        if heard is None:
            continue
        spectra = fft.rfft(data * taper, axis=1)
        sound = heard[:, start : start + n_window].astype(np.float64)
        sound = fft.rfft((sound - sound.mean(1, keepdims=True)) * taper, axis=1)
        cross = cross + spectra[None] * sound.conj()[:, None]  # (M, C, bins)
        power, power_heard = power + np.abs(spectra) ** 2, power_heard + np.abs(sound) ** 2
    out = _thin(hertz, np.median(total, axis=0))
    if heard is None:
        return out, []
    scale = np.sqrt(power[None] * power_heard[:, None])
    return out, list(cross / np.where(scale > 0, scale, np.inf))


def _thin(hertz: np.ndarray, density: np.ndarray) -> np.ndarray:
    """Average a density around each of ``HERTZ``; log10, NaN where the recording does not reach."""
    edges = np.sqrt(HERTZ[1:] * HERTZ[:-1])
    edges = np.concatenate([[HERTZ[0] ** 2 / edges[0]], edges, [HERTZ[-1] ** 2 / edges[-1]]])
    out = np.full(len(HERTZ), np.nan)
    for i, centre in enumerate(HERTZ):
        if centre > hertz[-1]:
            break
        inside = (hertz >= edges[i]) & (hertz < edges[i + 1])
        value = density[inside].mean() if inside.any() else np.interp(centre, hertz, density)
        out[i] = np.log10(value) if value > 0 else np.nan
    return out


def peak_at_zero(coherency: np.ndarray, n_window: int, sfreq: float) -> tuple[np.ndarray, float, int]:
    """Turn coherencies back into time and measure the peak at lag 0.

    Parameters
    ----------
    coherency : array, shape (C, n_window // 2 + 1)
        Of each channel with the sound, one value for each frequency of a window.

    Returns
    -------
    z : array, shape (C,)
        Height at lag 0 in (robust) standard deviations of far shifts; 0 where the curve is higher elsewhere within 0.1 s.
    highest : float
        The highest that any channel reaches at a far shift.
    n_lags : int
        Lags that count as 0; none where the window is too short or the sampling rate too low to tell.
    """
    hertz = fft.rfftfreq(n_window, 1 / sfreq)
    # The upper end is where anti-alias filters leave nothing but rounding, which coherency would blow up.
    passed = (hertz >= SLOWEST) & (hertz <= 0.42 * sfreq)
    curve = fft.irfft(np.where(passed, coherency, 0.0), n=n_window, axis=1)
    lags = fft.fftfreq(n_window, 1 / n_window).round().astype(int)
    near = max(1, to_samples(TOLERANCE, sfreq))
    around, far = np.abs(lags) <= to_samples(AROUND, sfreq), np.abs(lags) > to_samples(FAR, sfreq)
    if not far.any() or 0.42 * sfreq < SLOWEST + NARROWEST:
        return np.zeros(len(curve)), np.nan, 0
    spread = np.median(np.abs(curve[:, far]), axis=1, keepdims=True) / norm.ppf(0.75)
    curve = np.abs(curve) / np.where(spread > 0, spread, np.inf)
    at_zero = curve[:, np.abs(lags) <= near].max(1)
    return np.where(at_zero >= curve[:, around].max(1), at_zero, 0.0), float(curve[:, far].max()), 2 * near + 1


def find_leaks(found: Sequence[Quality]) -> tuple[list[dict[str, Any]], float]:
    """Name the channels that carry the sound itself.

    A channel is flagged whose peak at lag 0 exceeds all far shifts of all channels of its recording, and the limit that Gaussian curves
    reach anywhere in a dataset without a leak with probability ``FALSE_ALARM``. A leak that is weaker than the brain's own answer above
    8 Hz stays unseen.

    Returns
    -------
    list of dict
        ``recording``, ``channel``, ``of`` (one of ``CHECKS``), ``z``; each channel once, the highest first within a recording.
    float
        The limit in standard deviations.
    """
    n_tests = sum(q.n_lags * len(q.ch_names) for q in found)
    limit = float(norm.isf(FALSE_ALARM / 2 / n_tests)) if n_tests else float("nan")
    flagged = []
    for q in found:
        over = (q.z > limit) & (q.z > q.highest[:, None])
        for c in sorted(np.flatnonzero(over.any(0)), key=lambda c: -np.where(over[:, c], q.z[:, c], 0).max()):
            row = int(np.where(over[:, c], q.z[:, c], 0).argmax())
            flagged.append({"recording": q.uid, "channel": q.ch_names[c], "of": CHECKS[row], "z": round(float(q.z[row, c]), 1)})
    return flagged, limit


def summarise(found: Sequence[Quality], *, most: int = 100) -> tuple[dict[str, Any], list[str]]:
    """Put what was seen of all recordings into plain values for a report, and say in sentences what a reader has to know.

    Parameters
    ----------
    found : sequence of Quality
    most : int
        Recordings whose spectra are kept, evenly spaced.

    Returns
    -------
    dict
        ``spectrum``: ``hertz``, ``unit``, ``before`` and ``after`` {uid: log10 density or None}, ``recordings`` (number of all).
        ``leaks``: ``flagged``, ``hertz`` (looked at above), ``limit``, ``channels`` and ``recordings`` (how many were compared with the
        sound), ``unchecked``.
    list of str
    """
    if not found:
        return {}, []
    shown = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int))]
    reached = np.isfinite([[q.before, q.after] for q in shown]).any((0, 1))
    flagged, limit = find_leaks(found)
    checked = [q for q in found if q.n_lags]
    values = {
        "spectrum": {
            "hertz": [float(f"{x:.4g}") for x in HERTZ[reached]],
            "unit": shown[0].unit,
            "before": {q.uid: _log(q.before[reached]) for q in shown},
            "after": {q.uid: _log(q.after[reached]) for q in shown},
            "recordings": len(found),
        },
        "leaks": {
            "flagged": flagged,
            "hertz": SLOWEST,
            "limit": None if np.isnan(limit) else round(limit, 2),
            "channels": sum(len(q.ch_names) for q in checked),
            "recordings": len(checked),
            "unchecked": len(found) - len(checked),
        },
    }
    said = []
    if flagged:
        by_recording: dict[str, list[str]] = {}
        for leak in flagged:
            by_recording.setdefault(leak["recording"], []).append(leak["channel"])
        listed = "; ".join(f"{uid}: {some(names, 8)}" for uid, names in list(by_recording.items())[:6])
        more = f"; and {len(by_recording) - 6} more recordings" if len(by_recording) > 6 else ""
        said.append(
            f"Sound has leaked into {len(flagged)} channel(s) of {len(by_recording)} recording(s): they follow it without any delay, which "
            f"no brain does ({listed}{more}). What is decoded there is the sound itself: mark these channels bad and run again."
        )
    return values, said


def _log(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else round(float(v), 3) for v in values]


def sounds_of(rows: Sequence[Mapping[str, Any]]) -> list[Sound]:
    """Take the sounds from the rows of an events table."""
    return [Sound(r["audio"], *(float(r[c]) for c in ("onset", "duration", "audio_onset"))) for r in rows if r["kind"] == "sound"]
