"""Look out for what is not finite while a fit runs, and say whose it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from brainspeech import processes
from brainspeech.batches import SegmentDataset

SHOWN = 8  # segments, or tensors, that an error names
CHECKED_EVERY = 50  # steps after which a GPU is asked
SEEN = 3  # things that are looked at in a training step: estimate, loss, gradients


class Watch:
    """Looks for what is not finite: on a CPU at once; a GPU keeps the flags and is asked every so many steps, so that no step waits.

    Parameters
    ----------
    dataset : SegmentDataset
        Whose rows are spoken of.
    device : torch.device
    epoch : int
        For the error.
    lr : float
        For the error.
    checkpoint : Path, optional
        The folder of the fit's checkpoint, for the error.
    """

    def __init__(self, dataset: SegmentDataset, device: torch.device, epoch: int, *, lr: float, checkpoint: Path | None = None):
        self.dataset, self.device, self.epoch, self.lr, self.checkpoint = dataset, device, epoch, lr, checkpoint
        self.flags: list[tuple[Tensor, Callable[[np.ndarray], RuntimeError]]] = []

    def see(self, what: str, rows: np.ndarray, finite: Tensor) -> None:
        """Take note of flags (B,) of the segments in these rows."""
        self._note(finite, partial(self._error, what, rows))

    def see_gradients(self, rows: np.ndarray, parameters: Mapping[str, nn.Parameter]) -> None:
        """Take note of the gradients that the segments in these rows gave. Before the optimiser takes them: one NaN is soon everywhere."""
        there = {name: p.grad for name, p in parameters.items() if p.grad is not None and p.numel()}
        if there:
            largest = torch._foreach_norm(list(there.values()), math.inf)  # of each; NaN where one is among them
            self._note(torch.stack(list(largest)).isfinite(), partial(self._gradient_error, rows, list(there)))

    def skip(self) -> None:
        """Take note that this process has no part in a batch: all look at the same times."""
        for what in ("estimate", "loss"):
            self.see(what, np.array([], dtype=int), torch.ones(0, dtype=torch.bool, device=self.device))

    def _note(self, finite: Tensor, error: Callable[[np.ndarray], RuntimeError]) -> None:
        self.flags.append((finite, error))
        if self.device.type == "cpu" or len(self.flags) >= SEEN * CHECKED_EVERY:
            self.read()

    def read(self) -> None:
        """Look at what was noted, in all processes together.

        Raises
        ------
        RuntimeError
            For the first thing that is not finite; it names the segments of its batch.
        processes.Elsewhere
            If only another process has one.
        """
        seen, self.flags = self.flags, []
        if not seen:
            return
        finite = torch.cat([flags for flags, _ in seen]).cpu().numpy()
        somewhere = processes.largest([not finite.all()])[0]
        start = 0
        for flags, error in seen:
            own = finite[start : start + len(flags)]
            if not own.all():
                raise error(own)
            start += len(own)
        if somewhere:
            raise processes.Elsewhere(
                f"Something is not finite in another process, whose message names the segments.{stands(self.checkpoint)}"
            )

    def _error(self, what: str, rows: np.ndarray, finite: np.ndarray) -> RuntimeError:
        bad = rows[~finite]
        advice = "Look at the signal of these recordings."
        if len(bad) == len(rows):
            advice = f"It is the whole batch: lower the learning rate (lr={self.lr:g}), or look at the signal of these recordings."
        return RuntimeError(
            f"The {what} is not finite in epoch {self.epoch}: got NaN or infinity for {self._name(bad)}. {advice}{stands(self.checkpoint)}"
        )

    def _gradient_error(self, rows: np.ndarray, names: list[str], finite: np.ndarray) -> RuntimeError:
        bad = [name for name, good in zip(names, finite, strict=True) if not good]
        return RuntimeError(
            f"A gradient is not finite in epoch {self.epoch}: got NaN or infinity for {listed(bad)} from the batch with "
            f"{self._name(rows)}, of which estimate and loss were finite. Lower the learning rate (lr={self.lr:g}), or look for a root or "
            f"a norm of 0 in the encoder or the loss.{stands(self.checkpoint)}"
        )

    def _name(self, rows: np.ndarray) -> str:
        segments = [self.dataset.segments[i] for i in rows]
        return listed([f"{s.recording} at {s.onset:g} s" for s in segments])


def not_finite(parameters: Mapping[str, nn.Parameter]) -> list[str]:
    """Name the parameters that hold NaN or infinity; waits for the device."""
    if not parameters:
        return []
    finite = torch.stack([parameter.detach().isfinite().all() for parameter in parameters.values()]).tolist()
    return [name for name, good in zip(parameters, finite, strict=True) if not good]


def listed(names: list[str]) -> str:
    """Write out the first few names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def stands(checkpoint: Path | None) -> str:
    """Say what there is to go on from, if a checkpoint was to be kept in a folder."""
    if checkpoint is None:
        return ""
    return f" The last checkpoint in {checkpoint} stands." if checkpoint.exists() else " There is no checkpoint yet."
