"""Several losses at once, one of which decides the scores."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from .base import Loss, LossOutput


class Weighted(nn.Module):
    """Add losses, each with its weight, on the same estimates and candidates.

    Parameters
    ----------
    losses : mapping of str to (Loss, float)
        Name -> (loss, weight). The first one's ``scores`` are used for retrieval. One of weight 0 is computed, for its log, and has no
        gradient; this is the control that a comparison needs on the same batches.

    Raises
    ------
    ValueError
        If there is no loss, or a weight is not a finite number.

    Examples
    --------
    >>> from brainspeech import losses
    >>> loss = Weighted({"clip": (losses.build("clip"), 1.0), "views": (losses.build("mv_dhel"), 0.2)})
    """

    def __init__(self, losses: Mapping[str, tuple[Loss, float]]) -> None:
        super().__init__()
        if not losses:
            raise ValueError("Weighted needs at least one loss, got none.")
        wrong = {name: weight for name, (_, weight) in losses.items() if not math.isfinite(weight)}
        if wrong:
            raise ValueError(f"Weights must be finite numbers, got {wrong}.")
        self.losses = nn.ModuleDict({name: loss for name, (loss, _) in losses.items()})
        self.weights = {name: float(weight) for name, (_, weight) in losses.items()}

    def scores(self, estimates: Tensor, candidates: Tensor) -> Tensor:
        """Score by the first loss; see ``Loss.scores``."""
        return cast(Loss, next(iter(self.losses.values()))).scores(estimates, candidates)

    def forward(self, estimates: Tensor, candidates: Tensor, **options) -> LossOutput:
        """Compute the weighted sum.

        Returns
        -------
        LossOutput
            Logs: each loss under its name, and its logs as ``name/log``.
        """
        total: Tensor | float = 0.0
        logs: dict[str, Tensor] = {}
        for name, loss in self.losses.items():
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.weights[name] != 0):
                output = loss(estimates, candidates, **options)
            total = total + self.weights[name] * output.loss
            logs |= {name: output.loss.detach()} | {f"{name}/{key}": value for key, value in output.logs.items()}
        assert isinstance(total, Tensor)
        return LossOutput(total, logs)
