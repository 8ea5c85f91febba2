"""NT-Xent, the loss of SimCLR (Chen et al. 2020), which E2S2 uses between two corruptions."""

from __future__ import annotations

from .base import Similarity
from .contrastive import ContrastiveLoss
from .objectives import InfoNCE


class SimclrLoss(ContrastiveLoss):
    """InfoNCE among all 2B vectors of two views: the other view of the same item is the positive, all others are negatives.

    L_i = -s_ii / tau + lse {s_ij / tau for all j, s^xx_ij / tau for j != i}, cosine scores, averaged over the rows of both views
    ([1] eq. 1). Estimates are one view and candidates the other: two augmentations of a brain segment, or two listeners.

    Departures: others of the row's own view and id are not negatives (``duplicates="negative"`` makes them so). E2S2 [2] uses temperature
    1 and scales the sum over rows by tokens per sentence; here it is the mean.

    Paper: Chen et al. 2020, arXiv:2002.05709; E2S2, Zhong et al. 2022, arXiv:2205.14912.
    Changes: negatives also from the row's own side (intra-view).
    Evidence: A- (equals pytorch-metric-learning's NTXentLoss).

    Parameters
    ----------
    temperature : float
        0.1 is the default of SimCLR's code; E2S2 has 1.
    intra : bool
        Negatives also from the row's own view.
    symmetric, similarity, duplicates, gather, chunk
        See ``ContrastiveLoss``.

    References
    ----------
    [1] Chen, Kornblith, Norouzi, Hinton. A simple framework for contrastive learning of visual representations. ICML 2020.
    [2] Zhong et al. E2S2: encoding-enhanced sequence-to-sequence pretraining. 2022.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        intra: bool = True,
        symmetric: bool = True,
        similarity: str | Similarity = "cosine",
        duplicates: str = "ignore",
        gather: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__(
            InfoNCE(temperature),
            similarity=similarity,
            symmetric=symmetric,
            duplicates=duplicates,
            intra=intra,
            gather=gather,
            chunk=chunk,
        )
