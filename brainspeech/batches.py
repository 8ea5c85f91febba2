"""Segment + Signal + FeatureTrack -> SegmentDataset -> Batch: where numpy ends and training tensors begin.

Shapes: B segments, C channels (union over the signals), F features, T times after the lag is cut, R recordings.

Per window, in this order: baseline (mean of the window's first seconds, per channel), robust scale (median and IQR of the recording's
*training* windows, after their baseline), clamp, cut by the lag. On a drifting channel the order is the point: the IQR of the raw signal
measures the drift, and a window divided by it shrinks to where the clamp never acts.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from brainspeech import host, resident
from brainspeech.records import Segment, Signal
from brainspeech.scaling import BatchConfig, Statistics, baseline_length, check_fill
from brainspeech.timing import to_samples
from brainspeech.windows import SpanTable, Tracks, check_present, common_length, sample_starts


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
        check_present(uids, signals)
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
        self.n_window = common_length(self.segments, sfreq)
        self._n_baseline = baseline_length(config, self.n_window, sfreq)
        self._starts, shifted = sample_starts(self.segments, {uid: signals[uid].data.shape[1] for uid in uids}, self.n_window, sfreq)
        self._shifted = shifted
        self._load_signals(uids, signals, statistics)
        self._spans = SpanTable(self.segments, tracks)
        # Standardised once here instead of once per batch.
        mean, std = statistics.target_mean, statistics.target_std
        self._tracks = [_to_tensor(track.data).sub(mean).div_(std) for track in self._spans.tracks]
        self._fill = (check_fill(fill) - mean) / std
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


def _hash_stimuli(names: Sequence[str]) -> Tensor:
    """Give each distinct name a number of 63 bits, the same in every process."""
    number = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1 for name in dict.fromkeys(names)}
    if len(set(number.values())) < len(number):
        raise RuntimeError(f"Two of {len(number)} stimulus ids have the same hash. Rename one of the stimuli.")
    return torch.tensor([number[name] for name in names], dtype=torch.int64)


def _to_tensor(data: np.ndarray) -> Tensor:
    """Share an array in memory; read a memory-mapped or read-only one once."""
    if isinstance(data, np.memmap) or not data.flags.writeable or not data.flags.c_contiguous:
        data = np.array(data, order="C", subok=False)
    return torch.from_numpy(data)
