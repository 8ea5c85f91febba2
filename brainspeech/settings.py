"""What a fit is asked for, and what of it may be another when the fit goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainspeech import augment, loading, sampling

PRECISIONS = ("auto", "fp32", "bf16")
NEGATIVES = ("gathered", "per_device")
# How a fit is run, not what comes out: the same run may be given other values. ("half" of resident is another run.)
HOW = ("resident", "checkpoint_minutes")
# A finished or stopped run may be given more epochs or more patience; anything else would be another run.
MAY_CHANGE = ("max_epochs", "patience", *HOW)


@dataclass(frozen=True)
class TrainConfig:
    """How an encoder is fitted. The defaults are those of [1] (Défossez et al. 2023).

    Parameters
    ----------
    lr : float
        Learning rate of Adam, constant.
    batch_size : int
        Segments per step, over all processes together; all but one of them are negatives.
    max_epochs : int
    max_steps_per_epoch : int
        An epoch is a pass over the training segments or this many steps, whichever ends first.
    patience : int
        Epochs without a lower validation loss after which the fit stops.
    seed : int
        Of dropout and of the order of the segments. The encoder's initial weights are the caller's to seed.
    weight_decay : float
        Adam's (L2).
    precision : {"auto", "fp32", "bf16"}
        "auto" is bf16 on a GPU that has it natively, else fp32. The loss is in fp32 in any case.
    tf32 : bool
        With fp32 on a GPU, let the encoder multiply in TF32: 10 bits of mantissa, sums in fp32, faster since Ampere. False gives all 23
        bits, also to convolutions, which PyTorch computes in TF32 by default. What the loss multiplies has all bits in any case.
    compile : bool
        Compile the encoder (torch.compile): a minute or more at the start, faster steps after it. Needs a C++ compiler. Random numbers are
        drawn by another generator than without, so it is another run.
    resident : {"auto", "full", "half", "never"}
        What a GPU keeps of the data. "full": all signals and tracks; "half": the same with 16 bits per number (off by 1/2048 of a value at
        most); "never": nothing, batches are gathered in pinned memory and sent ahead. "auto" is full where it takes no more than half of
        the free memory, failing that half where the encoder computes in bf16 anyway, failing that the tracks alone. On a CPU "auto" and
        "never" are one.
    sampler : {"segments", "grouped"}
        "segments" draws segments one by one, as in [1]. "grouped" puts all segments of one stimulus (the listeners who heard it) into one
        batch, so that a loss over several views has them; a batch is full when the next group does not go in.
    views : int or None
        With "grouped", at most so many segments of a stimulus go into a batch; the others go into other batches of the epoch.
    negatives : {"gathered", "per_device"}
        With several processes: "gathered" compares each segment with those of all processes, so that the loss is that of one process with
        the whole batch; "per_device" with those of its own process, as in [1], where a batch of 256 was two times 128.
    synchronise : bool
        With several processes: batch norm over the whole batch, and one centre of spatial dropout for all, as in one process. False, as in
        [1]: each process by itself; the running statistics are the first one's.
    augment : tuple of (str, dict)
        Transforms of the training signal in this order (``brainspeech.augment``); a name alone has no options. None by default, as in [1].
    checkpoint_minutes : float
        Minutes after which a checkpoint is written within an epoch: what a power cut can cost at most. 0 is after every step.
    """

    lr: float = 3e-4
    batch_size: int = 256
    max_epochs: int = 200
    max_steps_per_epoch: int = 1200
    patience: int = 10
    seed: int = 2036
    weight_decay: float = 0.0
    precision: str = "auto"
    tf32: bool = True
    compile: bool = False
    resident: str = "auto"
    sampler: str = "segments"
    views: int | None = None
    negatives: str = "gathered"
    synchronise: bool = False
    augment: tuple[Any, ...] = ()
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        names = {"precision": PRECISIONS, "resident": loading.RESIDENT, "sampler": sampling.SAMPLERS, "negatives": NEGATIVES}
        for name, known in names.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        self._check_numbers()
        if not self.checkpoint_minutes >= 0:
            raise ValueError(f"checkpoint_minutes must be at least 0, got {self.checkpoint_minutes}.")
        if self.views is not None and (self.views < 1 or self.sampler != "grouped"):
            raise ValueError(
                f'views must be at least 1 or None, and goes with sampler="grouped", got {self.views} with sampler={self.sampler!r}.'
            )
        if self.synchronise and self.compile:
            raise ValueError("synchronise=True and compile=True do not go together: set one of them to False.")
        object.__setattr__(self, "augment", augment.check(self.augment))

    def _check_numbers(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, np.integer | np.floating | np.bool_):  # which no checkpoint's JSON takes
                object.__setattr__(self, name, value.item())
        for name in ("batch_size", "max_epochs", "max_steps_per_epoch", "patience", "seed", "views"):
            value = getattr(self, name)
            if not isinstance(value, int | None) or isinstance(value, bool) or (value is None and name != "views"):
                raise ValueError(f"{name} must be a whole number, got {value!r}.")
        for name in ("lr", "weight_decay", "checkpoint_minutes"):
            if not isinstance(getattr(self, name), int | float) or isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be a number, got {getattr(self, name)!r}.")
        for name in ("tf32", "compile", "synchronise"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}.")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 (a segment needs a negative), got {self.batch_size}.")
        for name in ("max_epochs", "max_steps_per_epoch", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie in 0..2**63 - 1, got {self.seed}.")
        if not (self.lr > 0 and math.isfinite(self.lr) and self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"lr must be positive and weight_decay at least 0, both finite, got {self.lr} and {self.weight_decay}.")
