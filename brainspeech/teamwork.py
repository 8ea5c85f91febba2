"""Several processes that fit one encoder: what they must agree on, and how far each compares with the others' segments."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from torch import nn

from brainspeech import processes
from brainspeech.batches import SegmentDataset
from brainspeech.models.synchronised import synchronised
from brainspeech.running import Run, steps_of


@contextmanager
def spread(run: Run, *parts: SegmentDataset) -> Iterator[Callable[[], None]]:
    """Make several processes train one encoder inside the block; nothing where there is one."""
    n, config = processes.count(), run.config
    if n == 1:
        yield run.average
        return
    losses: list[Any] = [part for part in run.loss.modules() if isinstance(getattr(part, "gather", None), bool)]
    gathered = config.negatives == "gathered"
    _check(run, losses, parts)
    before = [part.gather for part in losses]
    with ExitStack() as stack:
        stack.enter_context(processes.together())
        if config.synchronise:
            stack.enter_context(synchronised(run.encoder, run.loss))
        for part in losses:
            part.gather = gathered
        try:
            # Batch norms that are synchronised exchange things in the backward pass.
            yield stack.enter_context(processes.averaged_gradients(list(run.trained.values()), meanwhile=not config.synchronise))
        finally:
            for part, was in zip(losses, before, strict=True):
                part.gather = was


def _check(run: Run, losses: Sequence[nn.Module], parts: Sequence[SegmentDataset]) -> None:
    """Refuse what several processes cannot do together."""
    n, config = processes.count(), run.config
    processes.check_equal("configuration, segments and recordings", f"{run.data} {json.dumps(asdict(config))}")
    processes.check_equal("encoder and loss", str(_tensors(run)))
    if config.batch_size < 2 * n or (config.negatives == "per_device" and config.batch_size % n):
        raise ValueError(
            f"batch_size is shared by all processes: {n} of them need a multiple of {n}, at least {2 * n}, got {config.batch_size}."
        )
    small = min(len(part) for part in parts)
    if small < 2 * n:
        raise ValueError(f"{n} processes need at least {2 * n} segments in each split, got {small}. Start fewer processes.")
    if config.negatives == "gathered" and not losses:
        raise ValueError(
            f"{type(run.loss).__name__} compares with the segments of its own process only (it has no option gather): set "
            'negatives="per_device".'
        )
    norms = {id(b) for part in run.loss.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) for b in part.buffers()}
    remembers = [name for name, buffer in run.loss.named_buffers() if id(buffer) not in norms and buffer.numel() > 1]
    if config.negatives == "per_device" and remembers:
        raise ValueError(
            f"{type(run.loss).__name__} keeps something of every batch ({', '.join(remembers)}), which each process would have its own of: "
            'set negatives="gathered".'
        )
    steps_of(parts[0], config, epoch=0)  # what cannot be shared out is refused before the first step, not after the last
    for part in parts[1:]:
        steps_of(part, config, epoch=None)


def _tensors(run: Run) -> list[tuple]:
    """List names, shapes and dtypes of encoder and loss, and what is trained."""
    return [(name, tuple(tensor.shape), tensor.dtype, name in run.trained) for name, tensor in run.weights().items()]
