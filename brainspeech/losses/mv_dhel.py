"""MV-DHEL (Koromilas et al. 2025)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import Similarity
from .multiview import Items, MultiViewLoss


class MvDhelLoss(MultiViewLoss):
    """All pairs of views attract each other; each view repels the others of its own kind only.

    With G as in ``MvInfonceLoss``: L_i = -log sum_{l < m} exp G_ii^lm + sum_l log sum_{j != i} exp G_ij^ll. Nothing pushes a brain away
    from the wrong speech: alone, this loss does not retrieve. Use it next to a CLIP loss (``losses.auxiliary.Weighted``).

    Departures: sums of log-sum-exp; the public code's product of sums overflows with many views. Its README sums over l != m, which adds
    the constant log 2. A view that only one segment of the batch has repels nothing and is counted in the logs.

    Paper: Koromilas et al. 2025, arXiv:2507.06979.
    Changes: listeners of one segment attract each other; negatives within a listener only.
    Evidence: A (equals the public code).

    Parameters
    ----------
    temperature : float
        The default of the public code's class; its configurations have 0.5 and 0.1.
    positives : {"lse", "mean"}
        Log-sum-exp of the positive pairs as in [1], or their mean.
    similarity, gather, chunk
        See ``ContrastiveLoss``. Ids that repeat among estimates are views, so there is no ``duplicates``; all directions are in it, so
        there is no ``symmetric``.

    References
    ----------
    [1] Koromilas et al. A principled framework for multi-view contrastive learning. 2025.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.2,
        positives: str = "lse",
        similarity: str | Similarity = "cosine",
        gather: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__(temperature=temperature, positives=positives, similarity=similarity, gather=gather, chunk=chunk)

    def compare(self, items: Items) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the loss of each instance; see ``MultiViewLoss``."""
        lse = self.positives == "lse"
        # Each pair stands in the sum twice.
        attract = items.log_sum_exp(items.positive) - math.log(2) if lse else items.mean(items.positive)
        negative = items.other & ~items.cross
        has_negative = negative.any(1)
        # A row without one is given all of itself to sum over, so that no infinity meets the gradient, and then counts nothing.
        per_item = items.logits.masked_fill(~(negative | ~has_negative[:, None]), -torch.inf).logsumexp(1)
        repel = items.add(torch.where(has_negative, per_item, 0))
        return repel - attract, items.any(has_negative), (items.there & ~has_negative).sum()
