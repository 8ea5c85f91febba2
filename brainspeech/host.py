"""What is known here, so that no device has to be asked for it: to read one number of a GPU is to wait for all that it has still to do.

Shapes: R recordings, B segments, C channels, L distinct layouts, D distinct positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def at_hand(tensor: Tensor) -> bool:
    """Whether the numbers of a tensor can be read without waiting for a device."""
    return tensor.device.type == "cpu"


def upload(values: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """Bring something small to a device without waiting for what the device has still to do."""
    tensor = values if isinstance(values, Tensor) else torch.from_numpy(values)
    return (tensor.pin_memory() if device.type == "cuda" and at_hand(tensor) else tensor).to(device, non_blocking=True)


class Known(NamedTuple):
    """What is known beforehand of a batch's positions, channel mask and subjects, and is of no use once one of these is changed.

    Attributes
    ----------
    subjects : (int, int)
        Lowest and highest subject index.
    n_unplaced : int
        The largest number of real channels without a position in any segment.
    nowhere : int
        The first segment that has no channel with a position; -1 if there is none.
    layout : Tensor, shape (B,), int64
        Which of the L layouts each segment has; two layouts differ in a position or in which channels have one.
    place : Tensor, shape (L, C), int64
        Where among the D points each channel lies.
    available : Tensor, shape (L, C), bool
        True for channels that are there and have a position.
    points : Tensor, shape (D, 2), float32
        Distinct positions in lexicographic order; the place of a channel that is not available is at 0.
    """

    subjects: tuple[int, int]
    n_unplaced: int
    nowhere: int
    layout: Tensor
    place: Tensor
    available: Tensor
    points: Tensor

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Known:
        """Give the same on another device."""
        return Known(*self[:3], *(part.to(device, non_blocking=non_blocking) for part in self[3:]))

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the memory until what is queued on a stream is done; as ``Tensor.record_stream``."""
        for part in self[3:]:
            part.record_stream(stream)


class Recordings:
    """The layouts of all recordings, compared once.

    Parameters
    ----------
    positions : array, shape (R, C, 2)
        NaN where unknown, or where there is no such channel.
    channel_mask : array of bool, shape (R, C)
        True where the recording has the channel.
    """

    def __init__(self, positions: np.ndarray, channel_mask: np.ndarray):
        n_recordings, n_channels = channel_mask.shape
        placed = ~np.isnan(positions).any(2)
        available = placed & channel_mask
        self.n_unplaced = (channel_mask & ~placed).sum(1)
        self.nowhere = ~available.any(1)
        there = np.where(available[:, :, None], positions, 0).astype(np.float32)
        # Sorted as torch.unique sorts: an encoder that looks for itself finds the same layouts and points in the same order.
        key = np.concatenate([there.reshape(n_recordings, -1), available.astype(np.float32)], axis=1)
        distinct, layout = np.unique(key, axis=0, return_inverse=True)
        self.layout = layout.reshape(-1)
        self.available = distinct[:, 2 * n_channels :] > 0
        self.points, place = np.unique(distinct[:, : 2 * n_channels].reshape(-1, 2), axis=0, return_inverse=True)
        self.place = place.reshape(self.available.shape)

    def describe(self, recording: np.ndarray, subject: np.ndarray, device: torch.device) -> Known:
        """Say what is known of segments of recordings (B,) and subjects (B,), with tensors on a device."""
        layouts, layout = np.unique(self.layout[recording], return_inverse=True)
        points, place = np.unique(self.place[layouts], return_inverse=True)
        nowhere = np.flatnonzero(self.nowhere[recording])
        arrays = (layout.reshape(-1), place.reshape(len(layouts), -1), self.available[layouts], self.points[points])
        return Known(
            (int(subject.min()), int(subject.max())) if len(subject) else (0, 0),
            int(self.n_unplaced[recording].max(initial=0)),
            int(nowhere[0]) if len(nowhere) else -1,
            *(upload(array, device) for array in arrays),
        )


class Count:
    """The number in a buffer of one integer, read once and remembered until somebody writes to the buffer."""

    def __init__(self) -> None:
        self._read: tuple[Tensor, int, int] | None = None

    def read(self, buffer: Tensor) -> int:
        """Give the number; a device is asked for it only if it was written to by others since the last time."""
        if at_hand(buffer):
            return int(buffer)
        if self._read is None or self._read[0] is not buffer or self._read[1] != buffer._version:
            self.note(buffer, int(buffer))
        assert self._read is not None  # for mypy
        return self._read[2]

    def note(self, buffer: Tensor, number: int) -> None:
        """Take note of what was written to the buffer."""
        self._read = (buffer, buffer._version, number)
