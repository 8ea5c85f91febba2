"""MV-InfoNCE (Koromilas et al. 2025)."""

from __future__ import annotations

from torch import Tensor

from .base import Similarity, one_of
from .multiview import Items, MultiViewLoss


class MvInfonceLoss(MultiViewLoss):
    """InfoNCE over all pairs of views at once: every view of a segment against all other views of all segments.

    With G_ij^lm = cos(u_i^l, u_j^m) / tau, u_i^l view l of segment i:
    L_i = -log sum_{l != m} exp G_ii^lm + log sum_{l != m, j} exp G_ij^lm.
    Views are listeners of one segment, and its speech; missing views are left out.

    A log-sum-exp over positive pairs is satisfied by the best pair, which may well be two brains; alone, this loss retrieved speech far
    worse than CLIP in a toy simulation. Use it next to one (``losses.auxiliary.Weighted``), or with ``positives="mean"``.

    Departures: the public code's denominator also has pairs of the same view, j != i (``denominator="code"``).

    Paper: Koromilas et al. 2025, arXiv:2507.06979.
    Changes: listeners of one segment attract each other as well as the speech.
    Evidence: A (both denominators equal an independent kernel).

    Parameters
    ----------
    temperature : float
        The default of the public code's class; its configurations have 0.5 and 0.1.
    denominator : {"formula", "code"}
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
        denominator: str = "formula",
        positives: str = "lse",
        similarity: str | Similarity = "cosine",
        gather: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__(temperature=temperature, positives=positives, similarity=similarity, gather=gather, chunk=chunk)
        self.denominator = one_of("denominator", denominator, ("formula", "code"))

    def compare(self, items: Items) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the loss of each instance; see ``MultiViewLoss``."""
        negative = items.other & items.cross if self.denominator == "formula" else items.other
        attract = (items.log_sum_exp if self.positives == "lse" else items.mean)(items.positive)
        has_negative = items.any(negative.any(1))
        return items.log_sum_exp(items.positive | negative) - attract, has_negative, (items.any(items.there) & ~has_negative).sum()
