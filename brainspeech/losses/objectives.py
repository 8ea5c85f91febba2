"""The kernel that most contrastive losses are a case of, and the temperature that can be learned.

Per row, with l = logits / temperature, positives P and negatives N:

    pos = mean_P l (SupCon's "out" form)  or  lse_P l
    den = lse_N l  [- log |N|]  [with the positives: logaddexp(den, lse_P l)]
    loss = den - w pos
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .base import one_of, positive
from .contrastive import Contrast

MAX_SCALE = 100.0  # open_clip clamps its logit scale to [1, 100]


class LogitScale(nn.Module):
    """What scores are multiplied by: 1 / temperature, fixed or learned.

    Parameters
    ----------
    temperature : float
        At the start.
    learnable : bool
        Learn the logarithm of the scale. It is clamped to [1, `max_scale`] before each use, as open_clip does after each step.
    max_scale : float
    """

    def __init__(self, temperature: float, *, learnable: bool = False, max_scale: float = MAX_SCALE) -> None:
        super().__init__()
        self.start = 1 / positive("temperature", temperature)
        self.learnable = learnable
        self.max_scale = max_scale
        if learnable:
            if not 1 <= self.start <= max_scale:
                raise ValueError(f"A learnable temperature must be in [{1 / max_scale:g}, 1], got {temperature!r}.")
            # Its change rather than itself, so that the start is exact in any precision.
            self.log_change = nn.Parameter(torch.zeros(()))

    def forward(self, scores: Tensor) -> Tensor:
        """Multiply scores by the scale."""
        logits = scores * self.start
        if not self.learnable:
            return logits
        with torch.no_grad():
            self.log_change.clamp_(-math.log(self.start), math.log(self.max_scale / self.start))
        return logits * self.log_change.exp()


def log_sum_exp(logits: Tensor, mask: Tensor) -> Tensor:
    """Take the log-sum-exp of each row (R, C) over a mask with at least one True in each -> (R,)."""
    return logits.masked_fill(~mask, -torch.inf).logsumexp(1)


def mean_of(logits: Tensor, mask: Tensor) -> Tensor:
    """Average each row (R, C) over a mask with at least one True in each -> (R,)."""
    return torch.where(mask, logits, 0).sum(1) / mask.sum(1)


class InfoNCE(nn.Module):
    """The kernel above.

    Parameters
    ----------
    temperature : float
    learnable : bool
        Learn the temperature; see ``LogitScale``.
    couple : bool
        The denominator holds the positives too (not in DCL).
    positives : {"mean", "lse"}
        Average over a row's positives, or their log-sum-exp, which the best one alone satisfies.
    negatives : {"sum", "mean"}
        "mean" divides the negatives' sum by their number (cMIM).
    label_smoothing : float
        Share of the target that is spread evenly over all entries that are not ignored, as in ``torch.nn.functional.cross_entropy``.
    """

    def __init__(
        self,
        temperature: float,
        *,
        learnable: bool = False,
        couple: bool = True,
        positives: str = "mean",
        negatives: str = "sum",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale = LogitScale(temperature, learnable=learnable)
        self.couple = couple
        self.positives = one_of("positives", positives, ("mean", "lse"))
        self.negatives = one_of("negatives", negatives, ("sum", "mean"))
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing!r}.")
        self.label_smoothing = label_smoothing

    def forward(self, contrast: Contrast) -> Tensor:
        """Compute the loss of each row."""
        logits = self.scale(contrast.logits)
        attract = self.attraction(logits, contrast)
        if self.label_smoothing:
            everything = mean_of(logits, contrast.positive | contrast.negative)
            attract = (1 - self.label_smoothing) * attract + self.label_smoothing * everything
        return self.repulsion(logits, contrast) - self.weight(contrast) * attract

    def repulsion(self, logits: Tensor, contrast: Contrast) -> Tensor:
        """Compute a row's denominator."""
        if self.negatives == "sum":
            return log_sum_exp(logits, contrast.negative | contrast.positive if self.couple else contrast.negative)
        mean = log_sum_exp(logits, contrast.negative) - contrast.negative.sum(1).to(logits.dtype).log()
        return torch.logaddexp(mean, log_sum_exp(logits, contrast.positive)) if self.couple else mean

    def attraction(self, logits: Tensor, contrast: Contrast) -> Tensor:
        """Combine a row's positives."""
        return (mean_of if self.positives == "mean" else log_sum_exp)(logits, contrast.positive)

    def weight(self, contrast: Contrast) -> Tensor | float:
        """Weigh the positives of each row; 1 here."""
        return 1.0
