"""The contrastive term of cMIM (Livne 2025)."""

from __future__ import annotations

from .base import Similarity
from .contrastive import ContrastiveLoss
from .objectives import InfoNCE


class CmimLoss(ContrastiveLoss):
    """InfoNCE whose denominator has the mean of the negatives instead of their sum, so that it hardly depends on the batch size.

    L_i = -log [g_ii / (g_ii + mean_{j != i} g_ij)], g_ij = exp(cos(z_i, y_j) / tau). Repeating every negative changes nothing.

    Departures: only the contrastive term; the generative part (A-MIM) is not here. The paper's latent is compared with itself, so that
    g_ii = exp(1 / tau); here estimates are compared with candidates. The formula is reconstructed from secondary text, the temperature is
    ours, and no fidelity to the paper is claimed. A public review of its second version rejected it.

    Paper: Livne 2025 (cMIM), arXiv:2509.21511.
    Changes: mean instead of sum over negatives; tune the temperature anew.
    Evidence: B/C (formula reconstructed; no fidelity claimed).

    Parameters
    ----------
    temperature : float
        Not known from the paper.
    symmetric, similarity, duplicates, queue, queue_dtype, gather, chunk
        See ``ContrastiveLoss``.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        symmetric: bool = False,
        similarity: str | Similarity = "cosine",
        duplicates: str = "ignore",
        queue: tuple[int, ...] | None = None,
        queue_dtype: str = "float32",
        gather: bool = False,
        chunk: int | None = None,
    ) -> None:
        objective = InfoNCE(temperature, negatives="mean")
        super().__init__(
            objective,
            similarity=similarity,
            symmetric=symmetric,
            duplicates=duplicates,
            queue=queue,
            queue_dtype=queue_dtype,
            gather=gather,
            chunk=chunk,
        )
