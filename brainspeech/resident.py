"""Signals and feature tracks in one piece of a device's memory, so that a batch is two gathers there and nothing large has to travel.

Shapes: R recordings, C channels (union), F features, B segments, T times. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

# The largest number that half precision holds, less a little.
LARGEST_HALF = 6e4


class Windows:
    """The signals of all recordings, to cut windows from.

    Parameters
    ----------
    signals : sequence of Tensor, each (n_channels, n_times)
    columns : sequence of (Tensor of int or None)
        Where the channels of a recording stand among the C; None where it has all of them in their order.
    n_channels : int
        C.
    device : torch.device
    half : bool
        Keep numbers of 16 bits: each channel less its median, over ``spread``. They come back with an error of at most 1/2048 of their
        distance from the channel's median; further than 60,000 spreads away they are clipped.
    spread : Tensor, shape (R, C, 1)
        The IQR, for one.
    """

    def __init__(
        self,
        signals: Sequence[Tensor],
        columns: Sequence[Tensor | None],
        n_channels: int,
        *,
        device: torch.device,
        half: bool,
        spread: Tensor,
    ):
        sizes = [signal.numel() for signal in signals]
        self.flat = torch.empty(sum(sizes), dtype=torch.float16 if half else torch.float32, device=device)
        # Where each channel of each recording begins; -1 where it has no such channel.
        begin = torch.full((len(signals), n_channels), -1, dtype=torch.int64)
        centre = torch.zeros(len(signals), n_channels, 1)
        offset = 0
        for r, (signal, column, size) in enumerate(zip(signals, columns, sizes, strict=True)):
            place = torch.arange(n_channels) if column is None else column
            begin[r, place] = offset + torch.arange(len(signal)) * signal.shape[1]
            if half:
                centre[r, place] = signal.median(1, keepdim=True).values  # a mean would follow an artefact
                signal = ((signal - centre[r, place]) / spread[r, place]).clamp(-LARGEST_HALF, LARGEST_HALF)
            self.flat[offset : offset + size].copy_(signal.flatten().to(self.flat.dtype))
            offset += size
        self.begin = begin.to(device)
        self.centre = centre.to(device) if half else None
        self.spread = spread.to(device) if half else None

    def cut(self, recording: Tensor, start: Tensor, n_times: int) -> Tensor:
        """Cut windows (B, C, n_times) of recordings (B,) that begin at samples (B,); 0 where a recording has no such channel."""
        begin = self.begin[recording]
        times = torch.arange(n_times, device=begin.device)
        index = (begin.clamp(min=0) + start[:, None])[:, :, None] + times
        window = self.flat.take(index).float()
        if self.spread is not None and self.centre is not None:
            window = window.mul_(self.spread[recording]).add_(self.centre[recording])
        return window.masked_fill_((begin < 0)[:, :, None], 0.0)


class Frames:
    """The frames of all feature tracks, one after the other, and one more that holds the fill.

    Parameters
    ----------
    tracks : sequence of Tensor, each (F, n_frames)
    fill : float
    device : torch.device
    half : bool
        Keep numbers of 16 bits.
    """

    def __init__(self, tracks: Sequence[Tensor], fill: float, *, device: torch.device, half: bool):
        n_frames = [track.shape[1] for track in tracks]
        self.begin = np.concatenate([[0], np.cumsum(n_frames)])
        self.table = torch.empty(len(tracks[0]), sum(n_frames) + 1, dtype=torch.float16 if half else torch.float32, device=device)
        for track, begin in zip(tracks, self.begin, strict=False):
            self.table[:, begin : begin + track.shape[1]].copy_(track.to(self.table.dtype))
        self.table[:, -1] = fill

    @property
    def fill(self) -> int:
        """The place of the frame that holds the fill."""
        return int(self.begin[-1])

    def pick(self, index: Tensor) -> Tensor:
        """Pick frames (B, T) as targets (B, F, T)."""
        n_segments, n_times = index.shape
        picked = self.table.index_select(1, index.flatten()).float()
        return picked.unflatten(1, (n_segments, n_times)).transpose(0, 1).contiguous()
