"""The self-distillation contrast of CVIB (2023): a network against its pruned copy."""

from __future__ import annotations

from torch import Tensor

from .base import LossOutput, Similarity, one_of
from .contrastive import ContrastiveLoss
from .objectives import InfoNCE


class SdconLoss(ContrastiveLoss):
    """InfoNCE between two networks' features of the same segments, where one side is held still.

    L_i = -cos(p_i, sg o_i) / tau + lse_j cos(p_i, sg o_j) / tau. The networks take turns: rows are the features of the net that is pruned
    and columns those of the original one; ``hold="candidates"`` trains the pruned net and ``hold="estimates"`` the original one. It is one
    term next to the loss on speech, of weight 1 in [1]; the variational gates are not here.

    Departures: none in this term. The public code also has a min-max-normalised SupCon, which is not the method.

    Paper: CVIB 2023, arXiv:2303.02846.
    Changes: candidates are another network's features, without gradient.
    Evidence: A- (public code read).

    Parameters
    ----------
    temperature : float
    hold : {"candidates", "estimates", "neither"}
        The side that gets no gradient.
    symmetric, similarity, duplicates, gather, chunk
        See ``ContrastiveLoss``.

    References
    ----------
    [1] Contrastive variational information bottleneck for aspect-based sentiment analysis. 2023.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        hold: str = "candidates",
        symmetric: bool = False,
        similarity: str | Similarity = "cosine",
        duplicates: str = "ignore",
        gather: bool = False,
        chunk: int | None = None,
    ) -> None:
        objective = InfoNCE(temperature)
        super().__init__(objective, similarity=similarity, symmetric=symmetric, duplicates=duplicates, gather=gather, chunk=chunk)
        self.hold = one_of("hold", hold, ("candidates", "estimates", "neither"))

    def forward(self, estimates: Tensor, candidates: Tensor, **options) -> LossOutput:
        """Compute the loss; see ``ContrastiveLoss.forward``."""
        if self.hold == "candidates":
            candidates = candidates.detach()
        elif self.hold == "estimates":
            estimates = estimates.detach()
        return super().forward(estimates, candidates, **options)
