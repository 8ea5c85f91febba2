"""A batch that is spread over processes, normalised and masked as one batch.

Shapes: B segments of this process, C channels, P processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from brainspeech import processes

from .layers import SpatialAttention


class SynchronisedBatchNorm(_BatchNorm):
    """Batch norm with the mean and variance over all processes' segments, which may differ in number; on any device.

    PyTorch's own (nn.SyncBatchNorm) refuses tensors of a CPU.

    Parameters
    ----------
    norm : nn.modules.batchnorm._BatchNorm
        The layer whose weights and running statistics it shares: the same tensors, not copies.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        self.affine, self.track_running_stats = norm.affine, norm.track_running_stats
        for name in ("weight", "bias"):
            self.register_parameter(name, getattr(norm, name))
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))
        self.original = (norm,)  # in a tuple: not a part of this module
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, ...) to the same shape."""
        if not (self.training and processes.is_spread()):
            return self.original[0].train(self.training)(input)
        axes = [axis for axis in range(input.ndim) if axis != 1]
        with torch.autocast(input.device.type, enabled=False):
            signal = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
            n = signal.numel() // signal.shape[1]
            mean = signal.mean(axes)
            squares = (signal - _along(mean, signal)).square().sum(axes)
            # Means and squares around them are put together as Chan et al. 1983 do; sums of raw squares would cancel.
            every = processes.gather(torch.cat([mean, squares, mean.new_full((1,), n)]))
            means, sums, counts = every.split([self.num_features, self.num_features, 1], dim=1)
            total = counts.sum()
            mean = (means * counts).sum(0) / total
            variance = (sums + counts * (means - mean).square()).sum(0) / total
            self._track(mean.detach(), variance.detach() * total / (total - 1))
            out = (signal - _along(mean, signal)) * _along((variance + self.eps).rsqrt(), signal)
            if self.affine:
                out = out * _along(self.weight, signal) + _along(self.bias, signal)
        return out.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
        self.running_mean += share * (mean - self.running_mean)
        self.running_var += share * (variance - self.running_var)

    def _check_input_dim(self, input: Tensor) -> None:
        self.original[0]._check_input_dim(input)


def _along(values: Tensor, signal: Tensor) -> Tensor:
    return values.view(1, -1, *[1] * (signal.ndim - 2))


@contextmanager
def synchronised(*modules: nn.Module) -> Iterator[None]:
    """Let batch norms look at all processes' segments, and spatial attention leave out the same place in all, inside the block.

    Weights, buffers and their names stay as they are.
    """
    parents = [(parent, name, child) for module in modules for parent in module.modules() for name, child in parent.named_children()]
    norms = [(parent, name, child) for parent, name, child in parents if isinstance(child, _BatchNorm)]
    attentions = [part for module in modules for part in module.modules() if isinstance(part, SpatialAttention)]
    for parent, name, norm in norms:
        setattr(parent, name, SynchronisedBatchNorm(norm))
    for attention in attentions:
        attention.shared_centre = True
    try:
        yield
    finally:
        for parent, name, norm in norms:
            norm.train(getattr(parent, name).training)
            setattr(parent, name, norm)
        for attention in attentions:
            attention.shared_centre = False
