"""Segment + Signal + FeatureTrack -> SegmentDataset -> Batch: where numpy ends and training tensors begin.

Shapes: B segments, C channels (union over the signals), F features, T times after the lag is cut, R recordings.

Per window, in this order: baseline (mean of the window's first seconds, per channel), robust scale (median and IQR of the recording's
*training* windows, after their baseline), clamp, cut by the lag. On a drifting channel the order is the point: the IQR of the raw signal
measures the drift, and a window divided by it shrinks to where the clamp never acts.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from brainspeech import host, resident
from brainspeech.records import FeatureTrack, Segment, Signal, Span
from brainspeech.timing import TIE, to_samples

Tracks = Mapping[tuple[str, float, float], FeatureTrack]


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
class Batch:
    """What an encoder and a loss see of B segments.

    Parameters
    ----------
    signal : Tensor, shape (B, C, T), float32
        Baseline-corrected, scaled, clamped; 0 where a recording has no such channel.
    positions : Tensor, shape (B, C, 2)
        Layout in [0, 1]; NaN where unknown or where there is no such channel.
    channel_mask : Tensor, shape (B, C), bool
        True where the recording has the channel.
    subject : Tensor, shape (B,), int64
        Index among the training subjects; -1 for any other.
    target : Tensor, shape (B, F, T)
        Standardised feature; ``target[..., t]`` is what was heard ``lag`` seconds before ``signal[..., t]``.
    stimulus_id : Tensor, shape (B,), int64
        Equal for segments with the same ``Segment.stimulus_id``.
    known : Known, optional
        What the host knows of positions, channel mask and subjects, so that an encoder need not ask a device. Who changes one of these
        leaves it out.
    """

    signal: Tensor
    positions: Tensor
    channel_mask: Tensor
    subject: Tensor
    target: Tensor
    stimulus_id: Tensor
    known: host.Known | None = None

    def to(self, device: torch.device | str) -> Batch:
        """Give the same batch on another device."""
        parts = (getattr(self, name) for name in self.__dataclass_fields__)
        moved: list[Any] = [part if part is None else part.to(device, non_blocking=True) for part in parts]
        return Batch(*moved)


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
        """Write as JSON; every float comes back exactly."""
        Path(path).write_text(json.dumps(asdict(self), indent=1, allow_nan=False) + "\n")

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
    _check_fill(fill)
    by_recording: dict[str, list[Segment]] = {}
    for segment in segments:
        by_recording.setdefault(segment.recording, []).append(segment)
    _check_present(by_recording, signals)
    scales: dict[str, Scale] = {}
    flat: dict[str, int] = {}
    for uid, own in by_recording.items():
        signal = signals[uid]
        n_window = _common_length(own, signal.sfreq)
        n_baseline = _baseline_length(config, n_window, signal.sfreq)
        chosen = _generator(seed, uid).permutation(len(own))[:max_windows]
        starts, _ = _sample_starts([own[i] for i in chosen], {uid: signal.data.shape[1]}, n_window, signal.sfreq)
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


class SegmentDataset:
    """Segments with everything they need held in memory; a batch is an index gather.

    Build one over all segments of a recipe and split it with ``subset``: subsets, and the same data at another lag, share memory.

    Parameters
    ----------
    segments : sequence of Segment
        All of one duration.
    signals : mapping from uid to Signal
        At least the recordings of the segments. The channel axis is the union of the channel names over ``signals``, in order of first
        appearance, so datasets made from the same signals have the same channels.
    tracks : mapping from Span.key to FeatureTrack
    config : BatchConfig
    statistics : Statistics
        Fitted with the same baseline.
    subjects : sequence of str
        Sorted subjects of the training set; a segment of any other has the index -1.
    fill : float
        Value of the target, before standardisation, where no span covers a frame.
    sfreq : float, optional
        Sampling rate in Hz of every signal and of the target; that of the first signal where it is left out.

    Attributes
    ----------
    segments : tuple of Segment
    stimulus_id : Tensor, shape (n,), int64
    shifted : int
        Windows that ended one sample after their recording by rounding and begin one sample earlier.
    ch_names : tuple of str
    device : torch.device
        Where batches and targets are made and stay.

    Raises
    ------
    ValueError
        No segments, several durations, another sampling rate, or statistics that do not fit.
    RuntimeError
        A recording or a track is missing, a window reaches past the end of its recording, a signal is not finite.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        signals: Mapping[str, Signal],
        tracks: Tracks,
        *,
        config: BatchConfig,
        statistics: Statistics,
        subjects: Sequence[str],
        fill: float,
        sfreq: float | None = None,
    ):
        if not segments:
            raise ValueError("A dataset needs segments, got none. Check the split ratios and the blocks.")
        if statistics.baseline != config.baseline:
            raise ValueError(
                f"The statistics were fitted with a baseline of {statistics.baseline} s, the batches have {config.baseline} s."
            )
        uids = list(dict.fromkeys(s.recording for s in segments))
        _check_present(uids, signals)
        sfreq = next(iter(signals.values())).sfreq if sfreq is None else float(sfreq)
        for uid, signal in signals.items():
            if abs(signal.sfreq - sfreq) > 1e-6:
                raise ValueError(f"{uid}: expected a signal at {sfreq} Hz, got {signal.sfreq} Hz. Preprocess all recordings to one rate.")
        self.segments = tuple(segments)
        self.config = config
        self.statistics = statistics
        self.sfreq = sfreq
        self.subjects = tuple(subjects)
        self.ch_names = tuple(dict.fromkeys(name for signal in signals.values() for name in signal.ch_names))
        self.n_window = _common_length(self.segments, sfreq)
        self._n_baseline = _baseline_length(config, self.n_window, sfreq)
        self._starts, shifted = _sample_starts(self.segments, {uid: signals[uid].data.shape[1] for uid in uids}, self.n_window, sfreq)
        self._shifted = shifted
        self._load_signals(uids, signals, statistics)
        self._spans = _SpanTable(self.segments, tracks)
        # Standardised once here instead of once per batch.
        mean, std = statistics.target_mean, statistics.target_std
        self._tracks = [_to_tensor(track.data).sub(mean).div_(std) for track in self._spans.tracks]
        self._fill = (_check_fill(fill) - mean) / std
        rank = {subject: i for i, subject in enumerate(self.subjects)}
        self._subject = torch.tensor([rank.get(s.subject, -1) for s in self.segments])
        self.device = torch.device("cpu")
        self._windows: resident.Windows | None = None
        self._frames: resident.Frames | None = None
        self.stimulus_id = _hash_stimuli([s.stimulus_id for s in self.segments])
        self._cut()

    def _load_signals(self, uids: list[str], signals: Mapping[str, Signal], statistics: Statistics) -> None:
        n_recordings, n_channels = len(uids), len(self.ch_names)
        column = {name: i for i, name in enumerate(self.ch_names)}
        self._data: list[Tensor] = []
        self._columns: list[Tensor | None] = []
        self._positions = torch.full((n_recordings, n_channels, 2), torch.nan)
        self._mask = torch.zeros(n_recordings, n_channels, dtype=torch.bool)
        self._median = torch.zeros(n_recordings, n_channels, 1)
        self._iqr = torch.ones(n_recordings, n_channels, 1)
        for r, uid in enumerate(uids):
            signal = signals[uid]
            scale = statistics.scales.get(uid)
            if scale is None:
                raise ValueError(f"{uid}: there are no statistics for this recording. Pass its signal to fit_statistics.")
            if scale.ch_names != signal.ch_names:
                missing = sorted(set(signal.ch_names) ^ set(scale.ch_names))
                raise ValueError(f"{uid}: signal and statistics differ in channels or their order (in one only: {missing or 'none'}).")
            data = _to_tensor(signal.data)
            # One pass and no temporary: a single NaN or infinity survives the sum.
            if not torch.isfinite(data.sum()):
                raise RuntimeError(f"{uid}: the signal holds NaN or infinite samples. Preprocess the recording again.")
            columns = torch.tensor([column[name] for name in signal.ch_names])
            self._data.append(data)
            self._columns.append(None if signal.ch_names == self.ch_names else columns)
            self._positions[r, columns] = torch.from_numpy(np.array(signal.positions, dtype=np.float32))
            self._mask[r, columns] = True
            self._median[r, columns, 0] = torch.tensor(scale.median)
            self._iqr[r, columns, 0] = torch.tensor(scale.iqr)
        self._layouts = host.Recordings(self._positions.numpy(), self._mask.numpy())
        row = {uid: r for r, uid in enumerate(uids)}
        self._recording = np.array([row[s.recording] for s in self.segments])

    def _cut(self) -> None:
        """Turn the lag into slices of the whole window: brain t + lag is paired with sound t."""
        k = to_samples(self.config.lag, self.sfreq)
        if abs(k) >= self.n_window:
            raise ValueError(f"A lag of {self.config.lag} s leaves nothing of a window of {self.n_window / self.sfreq:g} s.")
        self._brain = slice(max(k, 0), self.n_window + min(k, 0))
        self._sound = slice(max(-k, 0), self.n_window - max(k, 0))

    def __len__(self) -> int:
        return len(self.segments)

    @property
    def n_channels(self) -> int:
        """Channels of a batch, C."""
        return len(self.ch_names)

    @property
    def n_features(self) -> int:
        """Features of the target, F."""
        return self._tracks[0].shape[0]

    @property
    def n_times(self) -> int:
        """Samples of signal and target after the lag is cut, T."""
        return self._brain.stop - self._brain.start

    @property
    def shifted(self) -> int:
        """Windows that begin one sample early because rounding put their end one sample past the recording."""
        return int(self._shifted.sum())

    @property
    def n_bytes(self) -> tuple[int, int]:
        """Bytes of all signals and of all tracks, shared with subsets."""
        return sum(data.nbytes for data in self._data), sum(track.nbytes for track in self._tracks)

    def shares(self, other: SegmentDataset) -> bool:
        """Whether two datasets are parts of one, with the same signals and tracks in memory."""
        return self._data is other._data and self._tracks is other._tracks

    def to(self, device: torch.device | str, *, signals: bool = True, tracks: bool = True, half: bool = False) -> SegmentDataset:
        """Give the same data with batches made on a device, where signals and tracks are copied to once.

        Parameters
        ----------
        device : torch.device or str
        signals, tracks : bool
            Whether to keep a copy of them there. What is not kept is gathered here and sent, batch by batch.
        half : bool
            Keep 16 bits of each number: off by at most 1/2048 of its distance from the channel's median, or of itself in a target.
        """
        other = copy.copy(self)
        other.device = device = torch.device(device)
        columns, iqr = self._columns, self._iqr.cpu()
        other._windows = resident.Windows(self._data, columns, self.n_channels, device=device, half=half, spread=iqr) if signals else None
        other._frames = resident.Frames(self._tracks, self._fill, device=device, half=half) if tracks else None
        for name in ("_positions", "_mask", "_median", "_iqr"):
            setattr(other, name, getattr(self, name).to(device))
        return other

    def beside(self, placed: SegmentDataset) -> SegmentDataset:
        """Give the same data with batches made where those of ``placed`` are, which shares its signals and tracks."""
        if not self.shares(placed):
            raise ValueError("Expected two parts of one dataset, made by subset or with_lag, got two that share no memory.")
        other = copy.copy(self)
        for name in ("device", "_windows", "_frames", "_positions", "_mask", "_median", "_iqr"):
            setattr(other, name, getattr(placed, name))
        return other

    def batch(self, indices: ArrayLike) -> Batch:
        """Gather the segments with these indices, on the dataset's device."""
        rows = self._rows(indices)
        r = host.upload(self._recording[rows], self.device)
        here = self._windows is None and self.device.type == "cpu"
        return Batch(
            signal=self._gather_finished(rows) if here else self._finish(rows, r),
            positions=self._positions[r],
            channel_mask=self._mask[r],
            subject=self._upload(self._subject[rows]),
            target=self.targets(rows),
            stimulus_id=self._upload(self.stimulus_id[rows]),
            known=self._layouts.describe(self._recording[rows], self._subject[rows].numpy(), self.device),
        )

    def _gather_finished(self, rows: np.ndarray) -> Tensor:
        """Gather windows (n, C, T) from the signals in memory, each finished while it is in the processor's cache."""
        signal = torch.empty(len(rows), self.n_channels, self.n_times)
        places = zip(signal.unbind(0), self._recording[rows].tolist(), self._starts[rows].tolist(), strict=True)
        for out, recording, start in places:
            window, columns = self._data[recording][:, start : start + self.n_window], self._columns[recording]
            if columns is not None:
                window = torch.zeros(self.n_channels, self.n_window).index_copy_(0, columns, window)
            if self._n_baseline:
                torch.sub(window[:, self._brain], window[:, : self._n_baseline].mean(1, keepdim=True), out=out)
            else:
                out.copy_(window[:, self._brain])
            if self.config.scale:
                out.sub_(self._median[recording]).div_(self._iqr[recording])
            if self.config.clamp is not None:
                out.clamp_(-self.config.clamp, self.config.clamp)
        return signal

    def _finish(self, rows: np.ndarray, r: Tensor) -> Tensor:
        """Gather windows (n, C, T) on the device, and finish all of them at once."""
        window = self._gather(rows) if self._windows is None else self._windows.cut(r, self._upload(self._starts[rows]), self.n_window)
        signal = window[..., self._brain]
        if self._n_baseline:
            signal = signal - window[..., : self._n_baseline].mean(2, keepdim=True)
        if self.config.scale:
            signal = (signal - self._median[r]).div_(self._iqr[r])
        if self.config.clamp is not None:
            signal = signal.clamp(-self.config.clamp, self.config.clamp)
        return signal.contiguous()

    def _upload(self, values: np.ndarray | Tensor) -> Tensor:
        return host.upload(values, self.device)

    def _empty(self, *shape: int) -> Tensor:
        """Give room for what is gathered here; memory that a GPU reads by itself where one is to have it."""
        return torch.empty(*shape, pin_memory=self.device.type == "cuda")

    def _gather(self, rows: np.ndarray) -> Tensor:
        """Gather whole windows (n, C, n_window) from the signals in memory."""
        recordings = self._recording[rows]
        window = self._empty(len(rows), self.n_channels, self.n_window)
        for i, (recording, start) in enumerate(zip(recordings, self._starts[rows], strict=True)):
            piece = self._data[recording][:, start : start + self.n_window]
            columns = self._columns[recording]
            if columns is None:
                window[i] = piece
            else:
                window[i] = 0.0
                window[i, columns] = piece
        return window.to(self.device, non_blocking=True)

    def targets(self, indices: ArrayLike) -> Tensor:
        """Gather only the targets, shape (n, F, T): the candidates of a retrieval."""
        rows = self._rows(indices)
        times = np.arange(self.n_window)[self._sound]
        if self._frames is not None:
            places = np.full((len(rows), len(times)), self._frames.fill)
            for i, track, frames, covered in self._spans.frames(rows, times, self.sfreq):
                heard = slice(None) if covered is None else covered
                places[i, heard] = self._frames.begin[track] + frames[heard]
            return self._frames.pick(self._upload(places))
        target = self._empty(len(rows), self.n_features, self.n_times)
        full = np.zeros(len(rows), dtype=bool)
        pieces = list(self._spans.frames(rows, times, self.sfreq))
        for i, _, _, covered in pieces:
            full[i] |= covered is None
        target[torch.from_numpy(~full)] = self._fill
        for i, track, frames, covered in pieces:
            index = torch.from_numpy(frames)
            if covered is None:
                torch.index_select(self._tracks[track], 1, index, out=target[i])
            else:
                target[i][:, torch.from_numpy(covered)] = self._tracks[track][:, index[torch.from_numpy(covered)]]
        return target.to(self.device, non_blocking=True)

    def unique(self) -> list[int]:
        """List the first index of each distinct stimulus, in order of appearance."""
        first: dict[str, int] = {}
        for i, segment in enumerate(self.segments):
            first.setdefault(segment.stimulus_id, i)
        return list(first.values())

    def with_lag(self, lag: float) -> SegmentDataset:
        """Give the same data at another lag in seconds (negative: the brain before the sound); memory is shared."""
        other = copy.copy(self)
        other.config = BatchConfig(lag=lag, baseline=self.config.baseline, clamp=self.config.clamp, scale=self.config.scale)
        other._cut()
        return other

    def subset(self, indices: ArrayLike) -> SegmentDataset:
        """Give the dataset of these segments, in this order; memory is shared.

        Raises
        ------
        ValueError
            If there are none.
        """
        rows = self._rows(indices)
        if not len(rows):
            raise ValueError("A dataset needs segments, got none. Check the split ratios and the blocks.")
        other = copy.copy(self)
        other.segments = tuple(self.segments[i] for i in rows)
        other._starts, other._shifted, other._recording = self._starts[rows], self._shifted[rows], self._recording[rows]
        other._subject, other.stimulus_id = self._subject[rows], self.stimulus_id[rows]
        other._spans = self._spans.subset(rows)
        return other

    def _rows(self, indices: ArrayLike) -> np.ndarray:
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(rows) and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"Indices must lie in 0..{len(self) - 1}, got {rows.min()}..{rows.max()}.")
        return rows


class _SpanTable:
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

    def subset(self, rows: np.ndarray) -> _SpanTable:
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

    def frames(self, rows: np.ndarray, times: np.ndarray, sfreq: float):
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
    n_window = _common_length(segments, signal.sfreq)
    starts, _ = _sample_starts(segments, {s.recording: signal.data.shape[1] for s in segments}, n_window, signal.sfreq)
    return _fit_scale(signal, np.sort(starts), n_window, _baseline_length(config, n_window, signal.sfreq))[0]


def borrow_scale(signal: Signal, scales: Mapping[str, Scale]) -> tuple[Scale, str]:
    """Average the scales of the nearest recordings that have every channel of this one, and say which these are.

    Raises
    ------
    RuntimeError
        If none of them has every channel of the signal.
    """
    subject = "/".join(signal.uid.split("/")[:2])
    needed = set(signal.ch_names)
    fitting = {uid: scale for uid, scale in scales.items() if needed <= set(scale.ch_names)}
    own = [scale for uid, scale in fitting.items() if "/".join(uid.split("/")[:2]) == subject]
    donors = own or list(fitting.values())
    if not donors:
        raise RuntimeError(
            f"{signal.uid} has no training windows, and no recording that has some has all of its {len(needed)} channels. "
            "Leave the recording out, or give it training blocks."
        )
    tables = [dict(zip(d.ch_names, zip(d.median, d.iqr, strict=True), strict=True)) for d in donors]
    rows = np.array([[table[name] for name in signal.ch_names] for table in tables]).mean(0)
    origin = f"{len(donors)} other recording(s) of {subject}" if own else f"all {len(donors)} training recording(s) with its channels"
    return Scale(signal.ch_names, tuple(rows[:, 0].tolist()), tuple(rows[:, 1].tolist())), origin


def _fit_target(segments: Sequence[Segment], tracks: Tracks, *, sfreq: float, max_stimuli: int, seed: int) -> tuple[float, float]:
    """Mean and standard deviation over all features and covered frames of distinct training stimuli."""
    first: dict[str, Segment] = {}
    for segment in segments:
        first.setdefault(segment.stimulus_id, segment)
    distinct = list(first.values())
    chosen = [distinct[i] for i in np.sort(np.random.default_rng(seed).permutation(len(distinct))[:max_stimuli])]
    table = _SpanTable(chosen, tracks)
    times = np.arange(_common_length(chosen, sfreq))
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


def _check_fill(fill: float) -> float:
    if not np.isfinite(fill):
        raise ValueError(f"fill must be a finite number, got {fill}.")
    return fill


def _check_present(uids, signals: Mapping[str, Signal]) -> None:
    missing = [uid for uid in uids if uid not in signals]
    if missing:
        raise RuntimeError(f"There are segments but no signal of {', '.join(missing)}. Preprocess every recording that has segments.")


def _common_length(segments: Sequence[Segment], sfreq: float) -> int:
    lengths = {to_samples(segment.duration, sfreq) for segment in segments}
    if len(lengths) > 1:
        raise ValueError(f"All segments must have one duration, got {sorted(n / sfreq for n in lengths)} s.")
    (length,) = lengths
    if not length:
        raise ValueError(f"A window of {segments[0].duration} s has no sample at {sfreq} Hz.")
    return length


def _baseline_length(config: BatchConfig, n_window: int, sfreq: float) -> int:
    if config.baseline is None:
        return 0
    n_baseline = to_samples(config.baseline, sfreq)
    if not 1 <= n_baseline <= n_window:
        raise ValueError(f"A baseline of {config.baseline} s does not fit a window of {n_window / sfreq:g} s at {sfreq} Hz.")
    return n_baseline


def _sample_starts(segments: Sequence[Segment], n_times: Mapping[str, int], n_window: int, sfreq: float) -> tuple[np.ndarray, np.ndarray]:
    """First sample of each window, and which of them were moved back by one sample to end with their recording."""
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


def _hash_stimuli(names: Sequence[str]) -> Tensor:
    """Give each distinct name a number of 63 bits, the same in every process."""
    number = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1 for name in dict.fromkeys(names)}
    if len(set(number.values())) < len(number):
        raise RuntimeError(f"Two of {len(number)} stimulus ids have the same hash. Rename one of the stimuli.")
    return torch.tensor([number[name] for name in names], dtype=torch.int64)


def _generator(seed: int, name: str) -> np.random.Generator:
    """A generator that depends on the name, not on which other names there are."""
    return np.random.default_rng([seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")])


def _to_tensor(data: np.ndarray) -> Tensor:
    """Share an array in memory; read a memory-mapped or read-only one once."""
    if isinstance(data, np.memmap) or not data.flags.writeable or not data.flags.c_contiguous:
        data = np.array(data, order="C", subok=False)
    return torch.from_numpy(data)
