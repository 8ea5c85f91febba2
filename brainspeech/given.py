"""Windows as a user has them (arrays, mne.Epochs) -> Signals and Segments, so that they go through the same batches as any recording.

Shapes: n windows, C channels, T samples of a window.
"""

from __future__ import annotations

import dataclasses
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainspeech import datasets
from brainspeech.preprocess import layout
from brainspeech.protocols import SegmentConfig, split_of
from brainspeech.records import FeatureTrack, Segment, Signal, Span
from brainspeech.resampling import resample
from brainspeech.scaling import Scale
from brainspeech.timing import resampled_length

# A signal this many times larger or smaller than those of the training is in another unit.
UNIT_FACTOR = 1000.0
SILENCE = "nothing"


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows at the rate that is wanted.

    Parameters
    ----------
    data : array, shape (n, C, T), float32
        V, T or T/m.
    ch_names, ch_types : tuple of str
    positions : array, shape (C, 2), or None
        In [0, 1]; None where the windows came without.
    n_cut : int
        Samples at the end of each window that were left out, since both ends had been counted.
    """

    data: np.ndarray
    ch_names: tuple[str, ...]
    ch_types: tuple[str, ...]
    positions: np.ndarray | None = None
    n_cut: int = 0


def read_windows(
    signal: Any,
    *,
    sfreq: float,
    n_times: int | None,
    ch_names: Sequence[str] | None = None,
    ch_types: str | Sequence[str] = "eeg",
    from_sfreq: float | None = None,
    montage: str | None = None,
    usual: int | None = None,
) -> Windows:
    """Read windows from an array (n, C, T) or from mne.Epochs, resampled where they have another rate.

    Of Epochs the brain channels are taken, without those marked bad. Windows of one sample more than asked for, such as 361 for 3 s at 120
    Hz, have both ends counted, as MNE does: their last sample, at ``tmax``, is left out. Of Epochs this is how they are made; of an array,
    which may be anything, a warning says it. Any other length is refused.

    Parameters
    ----------
    signal : array, shape (n, C, T), or mne.Epochs
    sfreq : float
        Rate in Hz that is wanted.
    n_times : int or None
        Samples of a window at that rate; None: as many as there are, but for ``usual``.
    ch_names : sequence of str
        Of an array.
    from_sfreq : float, optional
        Rate of an array; None: the rate that is wanted.
    montage : str, optional
        MNE's name of a montage for EEG that comes without positions.
    usual : int, optional
        Without ``n_times``: the samples of a window that may come with both ends counted; windows of any other length are kept as they are.

    Raises
    ------
    ValueError
        If shapes, names or the window's length do not fit.
    """
    positions: np.ndarray | None
    is_epochs = hasattr(signal, "info") and hasattr(signal, "get_data")
    if is_epochs:
        epochs = signal.copy().pick("data", exclude="bads")
        data, names, kinds, rate = epochs.get_data(), tuple(epochs.ch_names), tuple(epochs.get_channel_types()), epochs.info["sfreq"]
        positions = layout(epochs.info, montage=montage)
    else:
        data = np.asarray(signal)
        if data.ndim == 3 and ch_names is None:
            raise ValueError(f"Windows of {data.shape[1]} channels need ch_names, or give mne.Epochs.")
        names = tuple(ch_names or ())
        kinds = (ch_types,) * len(names) if isinstance(ch_types, str) else tuple(ch_types)
        rate = sfreq if from_sfreq is None else float(from_sfreq)
        positions = None if montage is None else layout(names, montage=montage)
    if data.ndim != 3 or data.dtype.kind not in "fiu" or not data.size:
        raise ValueError(f"Windows must be numbers of shape (n, n_channels, n_times), got {data.dtype} {data.shape}.")
    if len(names) != data.shape[1] or len(set(names)) != len(names) or len(kinds) != len(names):
        raise ValueError(f"{data.shape[1]} channels need as many names, each once, and types; got {len(names)} names, {len(kinds)} types.")
    wanted = usual if n_times is None else n_times
    n_after, n_kept = _lengths(data.shape[2], rate, sfreq, wanted, strict=n_times is not None)
    if n_kept != n_after and not is_epochs:
        warnings.warn(
            f"Got windows of {data.shape[2]} samples at {rate:g} Hz, expected {n_kept} at {sfreq:g} Hz ({n_kept / sfreq:g} s): both "
            "ends are counted, as MNE does. The last sample of each is left out; give one less to leave nothing out.",
            stacklevel=2,
        )
    if rate != sfreq:
        data = resample(data, rate, sfreq)
    data = np.ascontiguousarray(data[..., :n_kept], dtype=np.float32)
    if positions is not None and np.isnan(positions).all():
        positions = None
    return Windows(data, names, kinds, positions, n_after - n_kept)


def _lengths(n_given: int, rate: float, sfreq: float, wanted: int | None, *, strict: bool) -> tuple[int, int]:
    """Give the samples that windows have at the rate that is wanted, and how many of them are kept; fewer where both ends are counted."""
    n_after = resampled_length(n_given, rate, sfreq)
    if wanted is None or n_after == wanted:
        return n_after, n_after
    if resampled_length(n_given - 1, rate, sfreq) == wanted:
        return n_after, wanted
    if strict:
        raise ValueError(
            f"Expected windows of {wanted} samples at {sfreq:g} Hz ({wanted / sfreq:g} s), got {n_given} at {rate:g} Hz "
            f"({n_given / rate:g} s). Cut them anew, or say their rate (sfreq=)."
        )
    return n_after, n_after


def make_signals(
    windows: Windows, uids: Sequence[str], subjects: Sequence[str], *, sfreq: float, duration: float
) -> tuple[dict[str, Signal], list[Segment]]:
    """Lay the windows of each recording end to end, and give a segment for each, in the order given.

    Parameters
    ----------
    uids, subjects : sequence of str, length n
        Recording and subject of each window.
    duration : float
        Of a window in seconds.

    Returns
    -------
    signals : dict from uid to Signal
    segments : list of Segment
        In which nothing is heard that anybody knows of: their targets are no targets.
    """
    n_windows, n_channels, n_times = windows.data.shape
    positions = np.full((n_channels, 2), np.nan, np.float32) if windows.positions is None else windows.positions
    rows: dict[str, list[int]] = {}
    for i, uid in enumerate(uids):
        rows.setdefault(uid, []).append(i)
    signals, segments = {}, {}
    for uid, own in rows.items():
        data = windows.data[own].transpose(1, 0, 2).reshape(n_channels, len(own) * n_times)
        signals[uid] = Signal(uid, np.ascontiguousarray(data), sfreq, windows.ch_names, windows.ch_types, positions)
        for k, i in enumerate(own):
            segments[i] = silent_segment(uid, subjects[i], k * n_times / sfreq, duration)
    return signals, [segments[i] for i in range(n_windows)]


def silent_segment(uid: str, subject: str, onset: float, duration: float) -> Segment:
    """Give a window of which nobody says what was heard in it."""
    return Segment(uid, subject, onset, duration, SILENCE, SILENCE, "", "", "train", (Span(SILENCE, 0.0, duration, 0.0),))


def pick(signal: Signal, names: Sequence[str], positions: np.ndarray) -> Signal:
    """Give the signal of some of its channels, in this order, at these positions (n, 2)."""
    rows = [signal.ch_names.index(name) for name in names]
    data = signal.data if list(names) == list(signal.ch_names) else np.ascontiguousarray(signal.data[rows])
    kinds = tuple(signal.ch_types[i] for i in rows)
    return Signal(signal.uid, data, signal.sfreq, tuple(names), kinds, np.asarray(positions, dtype=np.float32))


def pick_scale(scale: Scale, names: Sequence[str]) -> Scale:
    """Give the scale of some of its channels, in this order."""
    rows = [scale.ch_names.index(name) for name in names]
    return Scale(tuple(names), tuple(scale.median[i] for i in rows), tuple(scale.iqr[i] for i in rows))


def check_unit(signal: Signal, scale: Scale) -> None:
    """Raise ValueError where a signal is so much larger or smaller than the training's that it must be in another unit."""
    spread = np.median([np.subtract(*np.quantile(row[:20_000], [0.75, 0.25])) for row in signal.data])
    factor = float(spread / np.median(scale.iqr))
    if factor > 0 and not 1 / UNIT_FACTOR < factor < UNIT_FACTOR:
        raise ValueError(
            f"{signal.uid}: the signal is {factor:.2g} times as large as those of the training. Signals are in V, T or T/m, as "
            "MNE has them: is it in another unit? (refit=True scales it by itself.)"
        )


def content_ids(targets: np.ndarray) -> list[str]:
    """Name what was heard in each window by the content of its target: equal targets have equal names."""
    rows = np.ascontiguousarray(targets, dtype=np.float32)
    return [hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in rows]


def spread_out(value: Any, n: int, what: str) -> list[str]:
    """Give one label for all windows, or one each, as a list of text."""
    if isinstance(value, str) or np.ndim(value) == 0:
        return [str(value)] * n
    labels = [str(v) for v in value]
    if len(labels) != n:
        raise ValueError(f"{what} must be one for all windows, or one for each of the {n}, got {len(labels)}.")
    return labels


def average_positions(positions: Mapping[str, np.ndarray], ch_names: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Average each channel's position over the recordings that know it, {name: (2,)}."""
    found: dict[str, list[np.ndarray]] = {}
    for uid, places in positions.items():
        for name, place in zip(ch_names[uid], places, strict=True):
            if np.isfinite(place).all():
                found.setdefault(name, []).append(place)
    return {name: np.mean(places, axis=0) for name, places in found.items()}


def track(span: Span, values: np.ndarray) -> FeatureTrack:
    """Make the track of a span from features of its whole length, whatever their rate."""
    if values.ndim != 2 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"Features of a window must be finite, of shape (F, n_frames), got {values.shape}.")
    length = span.stop - span.start
    return FeatureTrack("given", *span.key, np.ascontiguousarray(values, dtype=np.float32), values.shape[1] / length)


def without_end(values: np.ndarray, n_times: int) -> np.ndarray:
    """Leave out the last frame of features (n, F, n_times + 1), which have both ends of a window counted; a warning says it."""
    if values.ndim != 3 or values.shape[2] != n_times + 1:
        return values
    warnings.warn(
        f"Got features of {n_times + 1} frames for windows of {n_times} samples: both ends are counted. The last frame is left out.",
        stacklevel=3,
    )
    return values[..., :n_times]


def spans_of(stimuli: list, duration: float, dataset: datasets.Dataset | None) -> tuple[list[tuple[Span, ...]], datasets.Dataset]:
    """Say for each candidate what is heard, and who knows the sounds."""
    if all(isinstance(item, Segment) for item in stimuli):
        spans = [item.spans for item in stimuli]
    elif all(isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) for item in stimuli):
        spans = [(Span(name, float(start), float(start) + duration, 0.0),) for name, start in stimuli]
    elif all(isinstance(item, tuple) and len(item) == 2 for item in stimuli):
        names = [f"sound {i}" for i in range(len(stimuli))]
        sounds = {
            name: (np.atleast_2d(np.asarray(sound, np.float32)), float(rate)) for name, (sound, rate) in zip(names, stimuli, strict=True)
        }
        dataset = datasets.load("arrays", None, stimuli=sounds)
        spans = [(Span(name, 0.0, duration, 0.0),) for name in names]
    else:
        raise ValueError("Candidates are an array (N, F, n_frames), or a list of Segments, of (samples, sfreq), or of (name, start).")
    if dataset is None:
        raise ValueError("Stimuli by name need dataset=, which reads them.")
    return spans, dataset


def with_targets(
    windows: Windows,
    targets: np.ndarray,
    config: SegmentConfig,
    *,
    subject: Any,
    stimuli: Sequence[Any] | None,
    blocks: Sequence[Any] | None,
) -> tuple[list[Segment], dict[str, Signal], dict[tuple[str, float, float], FeatureTrack]]:
    """Make segments, signals and tracks of windows with targets, split by stimulus.

    Targets that have a frame for each sample of a window and one more lose that one, as windows do; see ``without_end``.
    """
    n = len(windows.data)
    if targets.ndim != 3 or len(targets) != n:
        raise ValueError(f"Targets must be (n, F, n_frames) with one for each of {n} windows, got {targets.shape}.")
    targets = without_end(targets, windows.data.shape[2])
    who = [name if "/sub-" in name else f"arrays/sub-{name.removeprefix('sub-')}" for name in spread_out(subject, n, "subject")]
    heard = content_ids(targets) if stimuli is None else spread_out(stimuli, n, "stimuli")
    where = heard if blocks is None else spread_out(blocks, n, "blocks")
    rate, duration = config.sfreq, config.duration
    signals, segs = make_signals(windows, who, who, sfreq=rate, duration=duration)
    tracks: dict[tuple[str, float, float], FeatureTrack] = {}
    first: dict[str, int] = {}
    for i, name in enumerate(heard):
        j = first.setdefault(name, i)
        if where[j] != where[i]:
            raise ValueError(f"Windows {j} and {i} heard the stimulus {name!r} but are of two blocks, {where[j]!r} and {where[i]!r}.")
        if not np.array_equal(targets[j], targets[i]):
            raise ValueError(f"Windows {j} and {i} heard the stimulus {name!r} but have different targets.")
        span = Span(name, 0.0, duration, 0.0)
        if i == j:
            tracks[span.key] = track(span, targets[i])
        split = split_of(where[i], config)
        segs[i] = dataclasses.replace(segs[i], stimulus_id=name, block=where[i], split=split, spans=(span,))
    return segs, signals, tracks
