"""A loss whose candidates are encoded first, by a network that is trained jointly with the one that makes the estimates.

Shapes: B estimates, N candidates, F features that come in, G features that the target encoder puts out, T times.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from .base import Loss, LossOutput


class Joint(Loss):
    """Compare estimates (B, G, T) with candidates (N, F, T) that a target encoder turns into (N, G, T) first.

    The "Deep Mel" of [1] (Défossez et al. 2023, Methods, "Speech module"). The target encoder's weights are parameters of this loss:
    whoever trains, saves and restores a loss does so with the encoder. It computes in float32, also under autocast.

    In training every candidate that is given is encoded, also one that repeats (the same sound heard by several subjects), all in one pass:
    the batch statistics count it as often as it is there, as in [1]. A regression (``mse``) has nothing that keeps the target encoder
    from putting out a constant; use a loss with negatives.

    In evaluation the target encoder sees `batch_size` candidates at a time. ``scores`` without gradients remembers what they were turned
    into, so that many batches of estimates can be scored against the same candidates. Before that is used again, the candidates are
    compared with a copy of those it was made from, number by number, and the weights must not have changed since.

    Parameters
    ----------
    loss : Loss
    target_encoder : nn.Module
        (N, F, T) -> (N, G, T), such as ``models.build_target`` makes.
    batch_size : int
        Candidates encoded at a time in evaluation.
    memory : int
        Bytes that remembered candidates may take. What was not used for longest is forgotten first, and everything when training goes on;
        candidates that do not fit are encoded anew for each call.

    References
    ----------
    [1] Défossez, Caucheteux, Rapin, Kabeli, King. Decoding speech perception from non-invasive brain recordings. Nature Machine
    Intelligence 5, 2023. arXiv:2208.12266.
    """

    def __init__(self, loss: Loss, target_encoder: nn.Module, *, batch_size: int = 64, memory: int = 4 * 2**30) -> None:
        super().__init__(similarity=loss.similarity, chunk=loss.chunk)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.loss = loss
        self.target_encoder = target_encoder
        self.batch_size = batch_size
        self.memory = memory
        self.name = "joint"
        # Of a part that was not built by name, only its class is known.
        self.config = {
            what: {"class": type(part).__qualname__, "name": getattr(part, "name", ""), "config": getattr(part, "config", {})}
            for what, part in (("loss", loss), ("target_encoder", target_encoder))
        }
        self._remembered: OrderedDict[Any, tuple[Tensor, Tensor]] = OrderedDict()  # candidates and what they were turned into
        self._weights: Any = None  # with which

    def forward(self, estimates: Tensor, candidates: Tensor, **keywords: Any) -> LossOutput:
        """Compute the loss of estimates (B, G, T) and candidates (N, F, T); the keywords are those of the loss inside."""
        return self.loss(estimates, self.encode(candidates), **keywords)

    def scores(self, estimates: Tensor, candidates: Tensor) -> Tensor:
        """Score each estimate (B, G, T) against each candidate (N, F, T) as the loss inside does: (B, N)."""
        if self.training or torch.is_grad_enabled():
            return self.loss.scores(estimates, self.encode(candidates))
        parts = candidates.split(self.batch_size)
        return torch.cat([self.loss.scores(estimates, self._recall(part)) for part in parts], dim=1)

    def encode(self, candidates: Tensor) -> Tensor:
        """Turn candidates (N, F, T) into what estimates are compared with (N, G, T), on the target encoder's device."""
        parts = [candidates] if self.training else candidates.split(self.batch_size)
        return torch.cat([self._encode(part) for part in parts]) if len(parts) > 1 else self._encode(parts[0])

    def _encode(self, candidates: Tensor) -> Tensor:
        device = next(self.target_encoder.parameters()).device
        with torch.autocast(device.type, enabled=False):
            return self.target_encoder(candidates.to(device, torch.float32))

    def _recall(self, candidates: Tensor) -> Tensor:
        """Encode candidates, or find them among those that were."""
        weights = self._state()
        if weights is None:
            return self._encode(candidates)
        if weights != self._weights:
            self.forget()
            self._weights = weights
        place = (candidates.device, candidates.data_ptr(), candidates.shape, candidates.stride(), candidates.dtype)
        if place in self._remembered:
            seen, encoded = self._remembered[place]
            if torch.equal(seen, candidates):  # a place in memory may have got other content, and a version is not kept in inference mode
                self._remembered.move_to_end(place)
                return encoded
            del self._remembered[place]
        encoded = self._encode(candidates)
        if candidates.nbytes + encoded.nbytes <= self.memory:
            # The encoder may give its input back, and its owner may write to that later.
            self._remembered[place] = candidates.clone(), encoded.clone() if encoded.data_ptr() == candidates.data_ptr() else encoded
            while sum(seen.nbytes + kept.nbytes for seen, kept in self._remembered.values()) > self.memory:
                self._remembered.popitem(last=False)
        return encoded

    def _state(self) -> Any:
        """Identify the present weights: where they are and how often they were written to; None where that is not known."""
        tensors = [*self.target_encoder.parameters(), *self.target_encoder.buffers()]
        if any(tensor.is_inference() for tensor in tensors):
            return None
        return tuple((tensor.data_ptr(), tensor._version) for tensor in tensors)

    def forget(self) -> None:
        """Let go of the remembered candidates."""
        self._remembered.clear()
        self._weights = None

    def train(self, mode: bool = True) -> Joint:
        """Set training or evaluation mode; training forgets the candidates."""
        if mode:
            self.forget()
        super().train(mode)
        return self
