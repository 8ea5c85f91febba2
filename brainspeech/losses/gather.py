"""Batches that are spread over processes: local rows, global columns.

Each process scores its own rows against the candidates of all processes (the heavy part), and then gathers the scores (small), so that
every process computes the loss of the whole batch from the whole matrix: the value, a state kept by an objective and a weight that looks at
all rows are those of one process. Gradients are scaled so that averaging them over processes, as DistributedDataParallel does, gives the
gradient of one process. Processes may hold different numbers of rows, none included.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from brainspeech import processes


def lengths(*local: int) -> list[list[int]]:
    """Give, for each number, its value in every process.

    Processes that can talk between CPUs ("cpu:gloo,cuda:nccl") do so, and no GPU is waited for.
    """
    mine = torch.tensor(local, device=processes.desk())
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    return torch.stack(every).T.tolist()


def values(local: Tensor, sizes: list[int]) -> Tensor:
    """Concatenate the rows of all processes; no gradient.

    Parameters
    ----------
    local : Tensor, shape (sizes[rank], ...)
    sizes : list of int
        Rows of each process.
    """
    # all_gather wants one shape: short batches are padded, and the padding is cut off again.
    padded = local.new_zeros(max(sizes), *local.shape[1:])
    padded[: len(local)] = local.detach()
    every = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(every, padded)
    return torch.cat([part[:size] for part, size in zip(every, sizes, strict=True)])


def _own(whole: Tensor, sizes: list[int]) -> Tensor:
    start = sum(sizes[: dist.get_rank()])
    return whole[start : start + sizes[dist.get_rank()]]


class _Columns(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return values(local, sizes)

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return _own(grad, ctx.sizes), None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        return values(local, sizes)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _own(grad, ctx.sizes) * len(ctx.sizes), None


def columns(local: Tensor, sizes: list[int]) -> Tensor:
    """Concatenate what every process's rows are compared with; its gradient is summed over processes.

    Candidates that are not trained (frozen speech features) need no communication in the backward pass.
    """
    return _Columns.apply(local, sizes) if local.requires_grad and torch.is_grad_enabled() else values(local, sizes)


def rows(local: Tensor, sizes: list[int]) -> Tensor:
    """Concatenate what each process computed for its own rows and all processes use alike; its gradient is scaled by their number."""
    return _Rows.apply(local, sizes)
