"""Candidates of earlier batches, kept as further negatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from brainspeech.host import Count

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class CandidateQueue(nn.Module):
    """The last candidates that were seen in training, first in first out, each with its id.

    The buffers have their final shape from the start, so that a state saved before the first batch, or in the middle of a fit, is read by
    any loss that was built alike.

    A batch makes new buffers instead of writing into the old ones, which a backward pass may still need: for the length of a step there are
    two.

    Parameters
    ----------
    shape : sequence of int
        (K, F, T): room for K candidates of F features and T times.
    dtype : {"float32", "bfloat16"}
        How they are stored.

    Attributes
    ----------
    features : Tensor, shape (K, F, T)
        The newest last; what stands before the last ``n_filled`` is empty and not used.
    ids : Tensor, shape (K,), int64
    n_filled : Tensor, int64

    Raises
    ------
    ValueError
        If the shape is not of positive integers, or the type is another.
    """

    features: Tensor
    ids: Tensor
    n_filled: Tensor

    def __init__(self, shape: Sequence[int], *, dtype: str = "float32") -> None:
        super().__init__()
        if isinstance(shape, int) or len(shape) < 2 or not all(isinstance(n, int) and n > 0 for n in shape):
            raise ValueError(f"queue must be (K, F, T): K candidates of F features and T times, got {shape!r}.")
        if dtype not in DTYPES:
            raise ValueError(f"queue_dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
        self.register_buffer("features", torch.zeros(*shape, dtype=DTYPES[dtype]))
        self.register_buffer("ids", torch.zeros(shape[0], dtype=torch.int64))
        self.register_buffer("n_filled", torch.zeros((), dtype=torch.int64))
        self._count = Count()
        self._count.note(self.n_filled, 0)

    def content(self) -> tuple[Tensor, Tensor]:
        """Give the candidates (n, F, T) that are there, the oldest first, and their ids (n,)."""
        empty = len(self.ids) - self._count.read(self.n_filled)
        return self.features[empty:], self.ids[empty:]

    def check(self, candidates: Tensor) -> None:
        """Check that candidates (N, F, T) fit in.

        Raises
        ------
        ValueError
            If their features or times are others.
        """
        if candidates.shape[1:] != self.features.shape[1:]:
            room, shape = tuple(self.features.shape), (len(self.ids), *candidates.shape[1:])
            raise ValueError(
                f"The queue has the shape {room}, got candidates {tuple(candidates.shape)}: build the loss with queue={shape}."
            )

    def add(self, candidates: Tensor, ids: Tensor) -> None:
        """Put candidates (N, F, T) and their ids (N,) at the end, without gradient; the oldest leave."""
        room = len(self.ids)
        new = candidates.detach()[-room:].to(self.features)
        self.features = torch.cat([self.features[len(new) :], new])
        self.ids = torch.cat([self.ids[len(new) :], ids[-room:].to(self.ids)])
        n_filled = min(self._count.read(self.n_filled) + len(new), room)
        self.n_filled = (self.n_filled + len(new)).clamp(max=room)
        self._count.note(self.n_filled, n_filled)
