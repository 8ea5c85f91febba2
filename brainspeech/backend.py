"""How a machine computes while a fit runs: TF32 or all bits, compiled or not, with which random numbers."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Let a GPU multiply in TF32 inside the block, or not."""
    if not torch.cuda.is_available():
        yield
        return
    libraries: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [library.allow_tf32 for library in libraries]
    for library in libraries:
        library.allow_tf32 = on
    try:
        yield
    finally:
        for library, was in zip(libraries, before, strict=True):
            library.allow_tf32 = was


def compiled(encoder: nn.Module, device: torch.device) -> Callable[..., Tensor]:
    """Compile an encoder, after a look at whether there is what that takes."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise RuntimeError(f"compile=True needs a C++ compiler, got no {compiler}. Install one (or name it in CXX), or set compile=False.")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise RuntimeError("compile=True needs triton on a GPU, which is not installed. Install it, or set compile=False.")
    return torch.compile(encoder)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's and Python's global generators inside the block, and leave the caller's as they were."""
    state = random.getstate()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


def reseed(seed: Sequence[int]) -> None:
    """Seed torch's and Python's global generators with several numbers."""
    number = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    torch.manual_seed(number)
    random.seed(number)


@contextmanager
def roomy(batch_size: int) -> Iterator[None]:
    """Say in our words, inside the block, that memory does not suffice.

    Raises
    ------
    RuntimeError
        Instead of what torch says of a GPU or of this machine.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        said = str(error).splitlines()[0].rstrip(".")
        raise RuntimeError(
            f"There is not enough memory for batches of {batch_size} segments: {said}. "
            'Lower batch_size; on a GPU, precision="bf16" and resident="never" take less too.'
        ) from error
