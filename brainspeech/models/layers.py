"""Layers of the encoders. Shapes: B segments, L distinct layouts, C channels, V virtual channels, T times, S subjects."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from brainspeech import processes
from brainspeech.host import Known

from .base import check_subjects

logger = logging.getLogger(__name__)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": functional.gelu, "relu": functional.relu}


# Where convolutions are faster with the channels of a sample next to each other in memory. The only place where the device decides.
CHANNELS_INNERMOST = ("cpu",)


def lay_out(signal: Tensor) -> Tensor:
    """Lay a signal (B, C, T) out in memory as its device computes fastest; layers and elementwise functions keep the layout."""
    return signal.transpose(1, 2).contiguous().transpose(1, 2) if signal.device.type in CHANNELS_INNERMOST else signal


def is_channels_innermost(signal: Tensor) -> bool:
    """Whether a signal (B, C, T) is laid out with channels innermost, and is better computed so."""
    return signal.ndim == 3 and signal.stride(1) == 1 and signal.device.type in CHANNELS_INNERMOST


class Conv1d(nn.Conv1d):
    """A convolution over time that keeps channels innermost in memory where they are.

    PyTorch's own puts them outermost again on every call. As images of one row they stay where they are.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, n_inputs, T) to (B, n_outputs, T)."""
        if not is_channels_innermost(input):
            return super().forward(input)
        padding, dilation = (0, int(self.padding[0])), (1, self.dilation[0])
        return functional.conv2d(input.unsqueeze(2), self.weight.unsqueeze(2), self.bias, padding=padding, dilation=dilation).squeeze(2)


class BatchNorm1d(nn.BatchNorm1d):
    """Batch norm over segments and times; like ``Conv1d``, quick where channels lie innermost."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (3, 4):
            raise ValueError(f"Batch norm takes (B, C, T), got {tuple(input.shape)}.")

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, T) to (B, C, T)."""
        return super().forward(input.unsqueeze(2)).squeeze(2) if is_channels_innermost(input) else super().forward(input)


def glu(signal: Tensor) -> Tensor:
    """Gate one half of the channels (B, 2C, T) with the other, (B, C, T)."""
    if not is_channels_innermost(signal):
        return functional.glu(signal, dim=1)
    # Over dimension 1 PyTorch writes result and gradient in the other layout, and copies follow.
    return functional.glu(signal.transpose(1, 2), dim=2).transpose(1, 2)


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
        self.shared_centre = False  # by processes that train on one batch (models.synchronised)

    def embed(self, positions: Tensor) -> Tensor:
        """Embed positions (P, 2) as cosines and sines (P, 2 x n_harmonics**2)."""
        # A period of 1.4 with a margin of 0.2 keeps opposite edges of the head apart [1].
        phase = 2 * math.pi / 1.4 * (positions + 0.2)
        harmonics = torch.arange(self.n_harmonics, device=positions.device, dtype=positions.dtype)
        phase_x, phase_y = phase[:, 0, None] * harmonics, phase[:, 1, None] * harmonics
        total = (phase_x[:, :, None] + phase_y[:, None, :]).flatten(1)
        return torch.cat([total.cos(), total.sin()], dim=1)

    def find_layouts(
        self, positions: Tensor, channel_mask: Tensor | None, known: Known | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Find the distinct layouts of a batch; where they are known beforehand, without a look at positions and mask.

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
        if known is not None:
            self._count_unplaced(known.n_unplaced)
            if known.nowhere >= 0:
                raise _nowhere(known.nowhere, positions.shape[1])
            return known.points[known.place], known.available, None if len(known.place) == 1 else known.layout
        placed = ~positions.isnan().any(2)
        available = placed
        if channel_mask is not None:
            present = channel_mask.bool()
            available = placed & present
            self._count_unplaced(int((present & ~placed).sum(1).max()))
        if not bool(available.any(1).all()):
            raise _nowhere(int((~available.any(1)).nonzero()[0, 0]), positions.shape[1])
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

    def _draw_centre(self, device: torch.device) -> Tensor:
        """Draw the place that is left out (2,): each process its own, or all the first one's."""
        centre = torch.rand(2, device=device)
        if self.shared_centre:
            processes.hand_out([centre])
        return centre

    def attend(self, positions: Tensor, available: Tensor, known: Known | None = None) -> Tensor:
        """Compute the weights (L, V, C) of layouts (L, C, 2) with available channels (L, C)."""
        if self.training and self.dropout_radius > 0:
            centre = self._draw_centre(positions.device)
            kept = available & ((positions - centre).norm(dim=2) > self.dropout_radius)
            available = torch.where(kept.any(1, keepdim=True), kept, available)
        with torch.autocast(positions.device.type, enabled=False):
            if len(positions) == 1:
                scores = (self.heads.float() @ self.embed(positions[0]).T)[None]
            else:  # layouts often share positions and differ in the mask: embed each position once
                if known is None:
                    distinct, index = torch.unique(positions.flatten(0, 1), dim=0, return_inverse=True)
                else:
                    distinct, index = known.points, known.place.flatten()
                scores = self.heads.float() @ self.embed(distinct).T
                scores = scores[:, index].unflatten(1, available.shape).transpose(0, 1)  # (L, V, C)
            return scores.masked_fill(~available[:, None, :], -torch.inf).softmax(2)

    def forward(self, signal: Tensor, positions: Tensor, channel_mask: Tensor | None = None, known: Known | None = None) -> Tensor:
        """Map signal (B, C, T) to virtual channels (B, V, T). Without a mask, a NaN position means that there is no such channel."""
        layout_positions, available, layout = self.find_layouts(positions, channel_mask, known)
        weights = self.attend(layout_positions, available, known)
        if layout is None:
            return weights[0].to(signal.dtype) @ signal
        return torch.bmm(weights.to(signal.dtype).index_select(0, layout), signal)


def _nowhere(segment: int, n_channels: int) -> ValueError:
    return ValueError(
        f"Segment {segment} of the batch: spatial attention needs at least one channel with a position, got none among "
        f"{n_channels}. Give the recording its montage, for instance PreprocessConfig(positions='biosemi128')."
    )


class SubjectTable(nn.Module):
    """One entry per subject; a subject that was not in the training set (-1) gets the average of all entries.

    Parameters
    ----------
    entries : Tensor, shape (S, ...), or (S + 1, ...) with `generic`
        What is learned, at the start.
    generic : bool
        Learn one more entry for unseen subjects, the last one, on a share `dropout` of the training segments; not in [1] (Défossez et al.
        2023).
    dropout : float
        Share of training segments that use the generic entry instead of their own; only with `generic`.
    """

    def __init__(self, entries: Tensor, *, generic: bool, dropout: float) -> None:
        super().__init__()
        self.n_subjects = len(entries) - generic
        self.generic = generic
        self.dropout = dropout
        self.weight = nn.Parameter(entries)

    def select(self, subject: Tensor, known: Known | None = None) -> Tensor:
        """Give the entry of each segment's subject (B, ...)."""
        unseen = check_subjects(subject, self.n_subjects, known)
        if self.generic and self.training and self.dropout > 0:
            subject = subject.masked_fill(torch.rand(subject.shape, device=subject.device) < self.dropout, -1)
        table: Tensor = self.weight
        if unseen and not self.generic:
            table = torch.cat([table, table.mean(0, keepdim=True)])
        # -1 alone, so that any other index outside the table, where nobody checked them, fails. index_select, not indexing: its backward
        # is far faster on a CPU.
        return table.index_select(0, torch.where(subject == -1, self.n_subjects, subject))


def _check_n_subjects(n_subjects: int) -> None:
    if n_subjects < 1:
        raise ValueError(f"A subject layer needs at least one subject, got n_subjects={n_subjects}.")


class SubjectLayer(SubjectTable):
    """Mix channels with a matrix of the segment's own subject: y = W_s^T x, without bias.

    The subject layer of [1] (Défossez et al. 2023, Methods, "Subject layer").

    Parameters
    ----------
    n_subjects : int
    n_inputs, n_outputs : int
    generic, dropout : bool, float
        See ``SubjectTable``, also for what an unseen subject gets.
    """

    def __init__(self, n_subjects: int, n_inputs: int, n_outputs: int, *, generic: bool = False, dropout: float = 0.1) -> None:
        _check_n_subjects(n_subjects)
        entries = torch.randn(n_subjects + generic, n_inputs, n_outputs) / math.sqrt(n_inputs)
        super().__init__(entries, generic=generic, dropout=dropout)

    def forward(self, signal: Tensor, subject: Tensor, known: Known | None = None) -> Tensor:
        """Map signal (B, n_inputs, T) to (B, n_outputs, T)."""
        return torch.bmm(self.select(subject, known).transpose(1, 2).to(signal.dtype), signal)


class SubjectEmbedding(SubjectTable):
    """Add a learned vector of the segment's own subject to its channels, the same at every sample.

    What [1] (Défossez et al. 2023) compares the subject layer with; entries start as standard normal numbers.

    Parameters
    ----------
    n_subjects, size : int
    generic, dropout : bool, float
        See ``SubjectTable``, also for what an unseen subject gets.
    """

    def __init__(self, n_subjects: int, size: int, *, generic: bool = False, dropout: float = 0.1) -> None:
        _check_n_subjects(n_subjects)
        super().__init__(torch.randn(n_subjects + generic, size), generic=generic, dropout=dropout)

    def forward(self, signal: Tensor, subject: Tensor, known: Known | None = None) -> Tensor:
        """Map signal (B, C, T) to (B, C + size, T)."""
        vector = self.select(subject, known).to(signal.dtype)
        return torch.cat([signal, vector[:, :, None].expand(-1, -1, signal.shape[2])], dim=1)


class ConvBlock(nn.Module):
    """Convolution, batch norm, activation, residual where the widths agree; then, where asked for, a convolution with a GLU.

    Parameters
    ----------
    n_inputs, n_outputs : int
    kernel : int
        Odd, so that the length stays.
    dilation : int
    glu : bool
        Add a convolution of kernel 3 to twice the width and a gated linear unit, without norm or residual.
    activation : {"gelu", "relu"}
    skip : bool
        False: no residual.
    linear : bool
        The convolution alone, without norm, activation and residual, before the GLU.
    """

    def __init__(
        self,
        n_inputs: int,
        n_outputs: int,
        *,
        kernel: int,
        dilation: int,
        glu: bool,
        activation: str = "gelu",
        skip: bool = True,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = Conv1d(n_inputs, n_outputs, kernel, dilation=dilation, padding=dilation * (kernel // 2))
        self.norm = None if linear else BatchNorm1d(n_outputs)
        self.glu = Conv1d(n_outputs, 2 * n_outputs, 3, padding=1) if glu else None
        self.activation = ACTIVATIONS[activation]
        self.residual = skip and not linear and n_inputs == n_outputs

    def forward(self, signal: Tensor) -> Tensor:
        """Map (B, n_inputs, T) to (B, n_outputs, T)."""
        hidden = self.conv(signal)
        if self.norm is not None:
            hidden = self.activation(self.norm(hidden))
        if self.residual:
            hidden = hidden + signal
        return hidden if self.glu is None else glu(self.glu(hidden))


def stack_blocks(
    n_inputs: int,
    hidden: int,
    *,
    depth: int,
    kernel: int,
    dilation_period: int,
    glu_every: int,
    activation: str = "gelu",
    skips: bool = True,
    n_outputs: int | None = None,
) -> nn.Sequential:
    """Stack the dilated convolutions of [1] (Défossez et al. 2023), `depth` of them, with dilations 1, 2, 4 ... 2**(period - 1), and again.

    With `n_outputs` the last one goes to that width and is linear; its GLU, where it has one, works on that width.

    Raises
    ------
    ValueError
        If the kernel is even, depth or dilation period are below 1, or the activation has no such name.
    """
    if kernel % 2 == 0:
        raise ValueError(f"The kernel must be odd so that the length stays, got {kernel}.")
    if depth < 1 or dilation_period < 1:
        raise ValueError(f"Depth and dilation period must be at least 1, got {depth} and {dilation_period}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"The activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}.")
    widths = [n_inputs] + [hidden] * depth
    if n_outputs is not None:
        widths[-1] = n_outputs
    return nn.Sequential(
        *(
            ConvBlock(
                widths[index],
                widths[index + 1],
                kernel=kernel,
                dilation=2 ** (index % dilation_period),
                glu=glu_every > 0 and (index + 1) % glu_every == 0,
                activation=activation,
                skip=skips,
                linear=n_outputs is not None and index == depth - 1,
            )
            for index in range(depth)
        )
    )
