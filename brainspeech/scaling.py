"""What is fitted on training windows and applied to every window: median and IQR of each channel, mean and deviation of the target."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from brainspeech.records import Segment, Signal
from brainspeech.timing import to_samples
from brainspeech.windows import SpanTable, Tracks, check_present, common_length, sample_starts
from brainspeech.writing import put


@dataclass(frozen=True)
class BatchConfig:
    """What happens to a window before it is learned from.

    Parameters
    ----------
    lag : float
        Seconds the brain follows the sound; 0.150 in [1] (Défossez et al. 2023). May be negative.
    baseline : float or None
        Length in seconds of the window's beginning whose mean is taken off; None for no baseline.
    clamp : float or None
        Largest absolute value after scaling (in IQRs), 20 in [1]; None for no clamp.
    scale : bool
        Whether to subtract the median and divide by the IQR of the recording's training windows.
    """

    lag: float = 0.150
    baseline: float | None = 0.5
    clamp: float | None = 20.0
    scale: bool = True

    def __post_init__(self) -> None:
        if not np.isfinite(self.lag):
            raise ValueError(f"lag must be a number of seconds, got {self.lag}.")
        for name in ("baseline", "clamp"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number or None, got {value}.")


@dataclass(frozen=True)
class Scale:
    """Median and IQR of each channel of one recording, in the signal's unit, as tuples of shape (n_channels,)."""

    ch_names: tuple[str, ...]
    median: tuple[float, ...]
    iqr: tuple[float, ...]


@dataclass(frozen=True)
class Statistics:
    """What was fitted on training windows and is applied to every window; small enough to travel with a checkpoint.

    Parameters
    ----------
    scales : mapping from recording uid to Scale
    target_mean, target_std : float
        Scalars over all features and all frames that some stimulus covers.
    baseline : float or None
        Seconds of baseline that the windows had when these were fitted.
    n_windows : mapping from recording uid to int
        Training windows that a recording's scale rests on; 0 where it is borrowed.
    flat : mapping from recording uid to int
        Channels whose IQR was 0 and became 1.
    borrowed : mapping from recording uid to str
        Recordings without training windows, and whose statistics they use.
    """

    scales: Mapping[str, Scale]
    target_mean: float
    target_std: float
    baseline: float | None
    n_windows: Mapping[str, int] = field(default_factory=dict)
    flat: Mapping[str, int] = field(default_factory=dict)
    borrowed: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all; every float comes back exactly.

        Raises
        ------
        RuntimeError
            If the file cannot be written, as on a full disk; one that stood there before is kept.
        """
        put(Path(path), (json.dumps(asdict(self), indent=1, allow_nan=False) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what ``save`` wrote.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        RuntimeError
            If the file is not what ``save`` writes.
        """
        text = Path(path).read_text()
        try:
            values = json.loads(text)
            scales = {uid: Scale(**{name: tuple(row) for name, row in scale.items()}) for uid, scale in values.pop("scales").items()}
            return cls(scales=scales, **values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RuntimeError(
                f"{path}: expected the statistics that brainspeech writes, got something else ({error}). Run the training again."
            ) from error


def fit_statistics(
    segments: Sequence[Segment],
    signals: Mapping[str, Signal],
    tracks: Tracks,
    *,
    config: BatchConfig,
    fill: float,
    max_windows: int = 200,
    max_stimuli: int = 8000,
    seed: int = 0,
) -> Statistics:
    """Fit medians, IQRs and the target's scale on training windows.

    A recording without training windows takes the average of its subject's other recordings, channel by channel, failing that of all
    training recordings with that channel; ``Statistics.borrowed`` says so.

    Parameters
    ----------
    segments : sequence of Segment
        Training segments only.
    signals : mapping from uid to Signal
        Every recording that will be decoded, also those without training segments.
    tracks : mapping from Span.key to FeatureTrack
    config : BatchConfig
        Its baseline is taken off before the quantiles; lag, clamp and scale play no part.
    fill : float
        What the target is where no span covers it. Frames that are filled take no part in the target's mean and standard deviation.
    max_windows : int
        Windows per recording, chosen by a seeded permutation, as in [1]; they bound the memory.
    max_stimuli : int
        Distinct stimuli for the target's mean and standard deviation, chosen likewise.
    seed : int
        Seed of both permutations.

    Raises
    ------
    ValueError
        If there are no segments, or some are not training segments.
    RuntimeError
        If a recording or a track is missing, no training window hears anything, or the target never changes.
    """
    if not segments:
        raise ValueError("Statistics need training segments, got none. Check the split ratios and the blocks.")
    other = [s for s in segments if s.split != "train"]
    if other:
        raise ValueError(
            f"Statistics are fitted on training segments only, got {len(other)} of {len(segments)} from another split, "
            f"first {other[0].recording} at {other[0].onset} s ({other[0].split})."
        )
    check_fill(fill)
    by_recording: dict[str, list[Segment]] = {}
    for segment in segments:
        by_recording.setdefault(segment.recording, []).append(segment)
    check_present(by_recording, signals)
    scales: dict[str, Scale] = {}
    flat: dict[str, int] = {}
    for uid, own in by_recording.items():
        signal = signals[uid]
        n_window = common_length(own, signal.sfreq)
        n_baseline = baseline_length(config, n_window, signal.sfreq)
        chosen = _generator(seed, uid).permutation(len(own))[:max_windows]
        starts, _ = sample_starts([own[i] for i in chosen], {uid: signal.data.shape[1]}, n_window, signal.sfreq)
        scales[uid], flat[uid] = _fit_scale(signal, np.sort(starts), n_window, n_baseline)
    n_windows = {uid: min(len(own), max_windows) for uid, own in by_recording.items()}
    borrowed = {}
    for uid in signals:
        if uid not in scales:
            scales[uid], borrowed[uid] = borrow_scale(signals[uid], {u: s for u, s in scales.items() if u in by_recording})
            n_windows[uid] = 0
    mean, std = _fit_target(segments, tracks, sfreq=next(iter(signals.values())).sfreq, max_stimuli=max_stimuli, seed=seed)
    return Statistics(
        scales={uid: scales[uid] for uid in signals},
        target_mean=mean,
        target_std=std,
        baseline=config.baseline,
        n_windows={uid: n_windows[uid] for uid in signals},
        flat={uid: n for uid, n in flat.items() if n},
        borrowed=borrowed,
    )


def _fit_scale(signal: Signal, starts: np.ndarray, n_window: int, n_baseline: int) -> tuple[Scale, int]:
    """Median and IQR per channel of windows after their baseline, and the number of channels without spread."""
    median, iqr = [], []
    windows = np.lib.stride_tricks.sliding_window_view(signal.data, n_window, axis=1)
    for channel in windows:  # channel by channel: a recording's windows of all channels can be larger than the recording
        values = channel[starts].astype(np.float64)
        if n_baseline:
            values -= values[:, :n_baseline].mean(1, keepdims=True)
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
        median.append(float(middle))
        iqr.append(float(high - low))
    if not np.all(np.isfinite(iqr)):
        raise RuntimeError(f"{signal.uid}: the signal holds NaN or infinite samples. Preprocess the recording again.")
    n_flat = sum(value == 0 for value in iqr)
    return Scale(signal.ch_names, tuple(median), tuple(value or 1.0 for value in iqr)), n_flat


def fit_scale(signal: Signal, segments: Sequence[Segment], *, config: BatchConfig) -> Scale:
    """Fit the median and IQR of each channel of one recording on windows of it, of whatever split: for a recording that is new.

    Parameters
    ----------
    segments : sequence of Segment
        Windows of this recording.
    config : BatchConfig
        Its baseline is taken off before the quantiles.
    """
    n_window = common_length(segments, signal.sfreq)
    starts, _ = sample_starts(segments, {s.recording: signal.data.shape[1] for s in segments}, n_window, signal.sfreq)
    return _fit_scale(signal, np.sort(starts), n_window, baseline_length(config, n_window, signal.sfreq))[0]


def borrow_scale(signal: Signal, scales: Mapping[str, Scale]) -> tuple[Scale, str]:
    """Average each channel's scale over the recordings that have it, the subject's own if there are any, and say which these are.

    Raises
    ------
    RuntimeError
        If a channel is in none of them.
    """
    subject = "/".join(signal.uid.split("/")[:2])
    tables = {uid: dict(zip(d.ch_names, zip(d.median, d.iqr, strict=True), strict=True)) for uid, d in scales.items()}
    own = [table for uid, table in tables.items() if "/".join(uid.split("/")[:2]) == subject]
    rows, nearest = [], 0
    for name in signal.ch_names:
        having = [table[name] for table in own if name in table]
        nearest += bool(having)
        having = having or [table[name] for table in tables.values() if name in table]
        rows.append(np.mean(having, axis=0) if having else None)
    missing = [name for name, row in zip(signal.ch_names, rows, strict=True) if row is None]
    if missing:
        raise RuntimeError(
            f"{signal.uid}: {len(missing)} of its {len(signal.ch_names)} channels are in no recording with training windows, so that their "
            f"scale is not known: {', '.join(missing[:5])}. Leave these channels out, or give the recording training blocks."
        )
    found = np.array(rows)
    origin = f"{len(own)} other recording(s) of {subject}" if nearest else f"all {len(scales)} training recording(s) with its channels"
    if 0 < nearest < len(rows):
        origin += f", for {len(rows) - nearest} channels all {len(scales)} training recording(s)"
    return Scale(signal.ch_names, tuple(found[:, 0].tolist()), tuple(found[:, 1].tolist())), origin


def _fit_target(segments: Sequence[Segment], tracks: Tracks, *, sfreq: float, max_stimuli: int, seed: int) -> tuple[float, float]:
    """Mean and standard deviation over all features and covered frames of distinct training stimuli."""
    first: dict[str, Segment] = {}
    for segment in segments:
        first.setdefault(segment.stimulus_id, segment)
    distinct = list(first.values())
    chosen = [distinct[i] for i in np.sort(np.random.default_rng(seed).permutation(len(distinct))[:max_stimuli])]
    table = SpanTable(chosen, tracks)
    times = np.arange(common_length(chosen, sfreq))
    # How often each frame of each track is seen: then every track is read once, whatever the overlap of the windows.
    seen = [np.zeros(n) for n in table.n_frames]
    for _, track, frames, covered in table.frames(np.arange(len(chosen)), times, sfreq):
        np.add.at(seen[track], frames if covered is None else frames[covered], 1.0)
    total = sum(count.sum() for count in seen) * table.tracks[0].data.shape[0]
    if not total:
        raise RuntimeError("No training window hears anything: no frame of any track lies in one. Check the sound events.")
    mean = sum(float((t.data.astype(np.float64) @ n).sum()) for t, n in zip(table.tracks, seen, strict=True)) / total
    square = sum(float(((t.data.astype(np.float64) - mean) ** 2 @ n).sum()) for t, n in zip(table.tracks, seen, strict=True)) / total
    std = float(np.sqrt(square))
    if not (np.isfinite(mean) and std > 0):
        raise RuntimeError(f"The target must be finite and change over time, got mean {mean} and standard deviation {std}.")
    return mean, std


def check_fill(fill: float) -> float:
    """Give the value back; ValueError unless it is finite."""
    if not np.isfinite(fill):
        raise ValueError(f"fill must be a finite number, got {fill}.")
    return fill


def baseline_length(config: BatchConfig, n_window: int, sfreq: float) -> int:
    """Give the samples of the baseline; ValueError if it does not fit the window."""
    if config.baseline is None:
        return 0
    n_baseline = to_samples(config.baseline, sfreq)
    if not 1 <= n_baseline <= n_window:
        raise ValueError(f"A baseline of {config.baseline} s does not fit a window of {n_window / sfreq:g} s at {sfreq} Hz.")
    return n_baseline


def _generator(seed: int, name: str) -> np.random.Generator:
    """A generator that depends on the name, not on which other names there are."""
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")])
