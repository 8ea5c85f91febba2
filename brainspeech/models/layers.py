"""Layers of the encoders. Shapes: B segments, L distinct layouts, C channels, V virtual channels, T times, S subjects."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from .base import check_subjects

logger = logging.getLogger(__name__)


class SpatialAttention(nn.Module):
    """Turn any number of channels into a fixed number of virtual ones, by where the channels lie on the head.

    The spatial attention of [1] (Défossez et al. 2023, Methods, "Spatial attention layer"): each virtual channel is a softmax over
    channels of the inner product of a learned vector and a Fourier embedding of the channel's 2-D position.

    Parameters
    ----------
    n_virtual : int
        Virtual channels, 270 in [1].
    n_harmonics : int
        Frequencies along each axis, 32 in [1]; the embedding has 2 x n_harmonics**2 numbers.
    dropout_radius : float
        In training, one centre is drawn in the unit square for each call and the channels within this distance of it are left out
        of the softmax; 0 turns it off. A layout that would lose every channel keeps all of them in that call.

    Attributes
    ----------
    n_unplaced : int
        The largest number of real channels without a position in any segment seen so far. They take no part.
    """

    def __init__(self, n_virtual: int, *, n_harmonics: int = 32, dropout_radius: float = 0.2) -> None:
        super().__init__()
        n_embedding = 2 * n_harmonics**2
        self.heads = nn.Parameter(torch.randn(n_virtual, n_embedding) / math.sqrt(n_embedding))
        self.n_harmonics = n_harmonics
        self.dropout_radius = dropout_radius
        self.n_unplaced = 0

    def embed(self, positions: Tensor) -> Tensor:
        """Embed positions (P, 2) as cosines and sines (P, 2 x n_harmonics**2)."""
        # A period of 1.4 with a margin of 0.2 keeps opposite edges of the head apart [1].
        phase = 2 * math.pi / 1.4 * (positions + 0.2)
        harmonics = torch.arange(self.n_harmonics, device=positions.device, dtype=positions.dtype)
        phase_x, phase_y = phase[:, 0, None] * harmonics, phase[:, 1, None] * harmonics
        total = (phase_x[:, :, None] + phase_y[:, None, :]).flatten(1)
        return torch.cat([total.cos(), total.sin()], dim=1)

    def find_layouts(self, positions: Tensor, channel_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Find the distinct layouts of a batch.

        Returns
        -------
        positions : Tensor, shape (L, C, 2)
            0 where there is none.
        available : Tensor, shape (L, C)
            True for channels that take part.
        layout : Tensor, shape (B,), or None
            The layout of each segment; None if all have the same.

        Raises
        ------
        ValueError
            If none of a segment's channels can take part.
        """
        placed = ~positions.isnan().any(2)
        available = placed
        if channel_mask is not None:
            present = channel_mask.bool()
            available = placed & present
            self._count_unplaced(int((present & ~placed).sum(1).max()))
        if not bool(available.any(1).all()):
            segment = int((~available.any(1)).nonzero()[0, 0])
            raise ValueError(
                f"Segment {segment} of the batch: spatial attention needs at least one channel with a position, got none among "
                f"{positions.shape[1]}. Give the recording its montage, for instance PreprocessConfig(positions='biosemi128')."
            )
        n_channels = positions.shape[1]
        # (B, 3C): everything that the weights depend on
        key = torch.cat([positions.float().masked_fill(~available[:, :, None], 0.0).flatten(1), available.float()], dim=1)
        layout = None
        if bool((key == key[:1]).all()):
            key = key[:1]
        else:
            key, layout = torch.unique(key, dim=0, return_inverse=True)
        return key[:, : 2 * n_channels].unflatten(1, (n_channels, 2)), key[:, 2 * n_channels :].bool(), layout

    def _count_unplaced(self, n_unplaced: int) -> None:
        if n_unplaced > self.n_unplaced:
            logger.warning("Up to %d channels have no position: they take no part in spatial attention.", n_unplaced)
            self.n_unplaced = n_unplaced

    def attend(self, positions: Tensor, available: Tensor) -> Tensor:
        """Compute the weights (L, V, C) of layouts (L, C, 2) with available channels (L, C)."""
        if self.training and self.dropout_radius > 0:
            centre = torch.rand(2, device=positions.device)
            kept = available & ((positions - centre).norm(dim=2) > self.dropout_radius)
            available = torch.where(kept.any(1, keepdim=True), kept, available)
        with torch.autocast(positions.device.type, enabled=False):
            if len(positions) == 1:
                scores = (self.heads.float() @ self.embed(positions[0]).T)[None]
            else:  # layouts often share positions and differ in the mask: embed each position once
                distinct, index = torch.unique(positions.flatten(0, 1), dim=0, return_inverse=True)
                scores = self.heads.float() @ self.embed(distinct).T
                scores = scores[:, index].unflatten(1, available.shape).transpose(0, 1)  # (L, V, C)
            return scores.masked_fill(~available[:, None, :], -torch.inf).softmax(2)

    def forward(self, signal: Tensor, positions: Tensor, channel_mask: Tensor | None = None) -> Tensor:
        """Map signal (B, C, T) to virtual channels (B, V, T). Without a mask, a NaN position means that there is no such channel."""
        layout_positions, available, layout = self.find_layouts(positions, channel_mask)
        weights = self.attend(layout_positions, available)
        if layout is None:
            return weights[0].to(signal.dtype) @ signal
        return torch.bmm(weights.to(signal.dtype).index_select(0, layout), signal)


class SubjectLayer(nn.Module):
    """Mix channels with a matrix of the segment's own subject: y = W_s^T x, without bias.

    The subject layer of [1] (Défossez et al. 2023, Methods, "Subject layer"). A subject that was not in the training set (-1) gets the
    average of all matrices or, with `generic`, one more matrix that is learned on a share `dropout` of the training segments.

    Parameters
    ----------
    n_subjects : int
    n_inputs, n_outputs : int
    generic : bool
        Learn a matrix for unseen subjects; not in [1].
    dropout : float
        Share of training segments that use the generic matrix instead of their own; only with `generic`.
    """

    def __init__(self, n_subjects: int, n_inputs: int, n_outputs: int, *, generic: bool = False, dropout: float = 0.1) -> None:
        super().__init__()
        if n_subjects < 1:
            raise ValueError(f"A subject layer needs at least one subject, got n_subjects={n_subjects}.")
        self.n_subjects = n_subjects
        self.generic = generic
        self.dropout = dropout
        self.weight = nn.Parameter(torch.randn(n_subjects + generic, n_inputs, n_outputs) / math.sqrt(n_inputs))

    def forward(self, signal: Tensor, subject: Tensor) -> Tensor:
        """Map signal (B, n_inputs, T) to (B, n_outputs, T)."""
        unseen = check_subjects(subject, self.n_subjects)
        if self.generic and self.training and self.dropout > 0:
            subject = subject.masked_fill(torch.rand(subject.shape, device=subject.device) < self.dropout, -1)
        table: Tensor = self.weight
        if unseen and not self.generic:
            table = torch.cat([table, table.mean(0, keepdim=True)])
        # index_select, not indexing: its backward is far faster on a CPU
        weight = table.index_select(0, torch.where(subject < 0, self.n_subjects, subject))
        return torch.bmm(weight.transpose(1, 2).to(signal.dtype), signal)


class ConvBlock(nn.Module):
    """Convolution, batch norm, GELU, residual where the widths agree; then, where asked for, a convolution with a GLU.

    Parameters
    ----------
    n_inputs, n_outputs : int
    kernel : int
        Odd, so that the length stays.
    dilation : int
    glu : bool
        Add a convolution of kernel 3 to twice the width and a gated linear unit, without norm or residual.
    """

    def __init__(self, n_inputs: int, n_outputs: int, *, kernel: int, dilation: int, glu: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(n_inputs, n_outputs, kernel, dilation=dilation, padding=dilation * (kernel // 2))
        self.norm = nn.BatchNorm1d(n_outputs)
        self.glu = nn.Conv1d(n_outputs, 2 * n_outputs, 3, padding=1) if glu else None
        self.residual = n_inputs == n_outputs

    def forward(self, signal: Tensor) -> Tensor:
        """Map (B, n_inputs, T) to (B, n_outputs, T)."""
        hidden = functional.gelu(self.norm(self.conv(signal)))
        if self.residual:
            hidden = hidden + signal
        return hidden if self.glu is None else functional.glu(self.glu(hidden), dim=1)
