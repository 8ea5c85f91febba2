"""Look out for what is not finite while a fit runs, and say whose it is."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from brainspeech import processes
from brainspeech.batches import SegmentDataset

SHOWN = 8  # segments that an error names
CHECKED_EVERY = 50  # steps after which a GPU is asked


class Watch:
    """Looks for what is not finite: on a CPU at once; a GPU keeps the flags and is asked every so many steps, so that no step waits.

    Parameters
    ----------
    dataset : SegmentDataset
        Whose rows are spoken of.
    device : torch.device
    epoch : int
        For the error.
    """

    def __init__(self, dataset: SegmentDataset, device: torch.device, epoch: int):
        self.dataset, self.device, self.epoch = dataset, device, epoch
        self.flags: list[tuple[str, np.ndarray, Tensor]] = []

    def see(self, what: str, rows: np.ndarray, finite: Tensor) -> None:
        """Take note of flags (B,) of the segments in these rows."""
        self.flags.append((what, rows, finite))
        if self.device.type == "cpu" or len(self.flags) >= 2 * CHECKED_EVERY:
            self.read()

    def skip(self) -> None:
        """Take note that this process has no part in a batch: all look at the same times."""
        for what in ("estimate", "loss"):
            self.see(what, np.array([], dtype=int), torch.ones(0, dtype=torch.bool, device=self.device))

    def read(self) -> None:
        """Look at what was noted, in all processes together.

        Raises
        ------
        RuntimeError
            For the first batch with something that is not finite; it names the segments.
        processes.Elsewhere
            If only another process has one.
        """
        seen, self.flags = self.flags, []
        if not seen:
            return
        finite = torch.cat([flags for _, _, flags in seen]).cpu().numpy()
        somewhere = processes.largest([not finite.all()])[0]
        start = 0
        for what, rows, _ in seen:
            own = finite[start : start + len(rows)]
            if not own.all():
                raise self._error(what, rows[~own])
            start += len(rows)
        if somewhere:
            raise processes.Elsewhere(
                "Something is not finite in another process, whose message names the segments. The last checkpoint stands."
            )

    def _error(self, what: str, rows: np.ndarray) -> RuntimeError:
        segments = [self.dataset.segments[i] for i in rows]
        names = ", ".join(f"{s.recording} at {s.onset:g} s" for s in segments[:SHOWN])
        more = f" and {len(segments) - SHOWN} more" if len(segments) > SHOWN else ""
        return RuntimeError(
            f"The {what} is not finite in epoch {self.epoch}: got NaN or infinity for {names}{more}. "
            "Look at the signal of these recordings; if it is all of them, lower the learning rate. The last checkpoint stands."
        )
