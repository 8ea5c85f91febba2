"""Decoupled contrastive learning (Yeh et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Similarity, positive
from .contrastive import Contrast, ContrastiveLoss
from .objectives import InfoNCE, mean_of


class DclLoss(ContrastiveLoss):
    """InfoNCE whose denominator leaves the positive out, so that an easy positive does not shrink the gradient of its negatives.

    L_i = -s_ii / tau + lse_{j != i} {s_ij / tau} ([1] eq. 6). It may be negative. With the positive put back, log(exp(L_i) + 1) is InfoNCE.

    Departures: negatives are candidates only, estimates to candidates. [1] has both views' negatives (``intra=True``) and both directions
    (``symmetric=True``); between brains this would push apart two subjects hearing the same segment, which is masked where ids tell.
    Masked entries are -inf; the public code adds log(1e-45), which fails for tau below 0.01.

    Paper: Yeh et al. 2022, arXiv:2110.06848.
    Changes: the positive is not in the denominator; meant for small batches.
    Evidence: A (public code and lightly's, equal to an independent kernel).

    Parameters
    ----------
    temperature : float
    intra : bool
        Other estimates are negatives too.
    symmetric, similarity, duplicates, queue, queue_dtype, gather, chunk
        See ``ContrastiveLoss``.

    References
    ----------
    [1] Yeh et al. Decoupled contrastive learning. ECCV 2022.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        intra: bool = False,
        symmetric: bool = False,
        similarity: str | Similarity = "cosine",
        duplicates: str = "ignore",
        queue: tuple[int, ...] | None = None,
        queue_dtype: str = "float32",
        gather: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__(
            InfoNCE(temperature, couple=False),
            similarity=similarity,
            symmetric=symmetric,
            duplicates=duplicates,
            intra=intra,
            queue=queue,
            queue_dtype=queue_dtype,
            gather=gather,
            chunk=chunk,
        )


class DclwLoss(ContrastiveLoss):
    """DCL that weighs positives by how hard they are.

    L_i = -w_i s_ii / tau + lse_{j != i} {s_ij / tau}, w_i = 2 - B softmax_i(s_ii / sigma), of mean 1: the negative von Mises-Fisher weight
    of [1] eq. 7. A row with several positives has their mean score for s_ii.

    Departures: those of ``DclLoss``. w is a weight and has no gradient; in the public code it has (``detach_weight=False``).

    Paper: Yeh et al. 2022, arXiv:2110.06848.
    Changes: DCL, and positives that are far apart count more.
    Evidence: A (public code and lightly's, equal to an independent kernel).

    Parameters
    ----------
    temperature : float
    sigma : float
        Of the weights; the smaller, the more uneven they are.
    detach_weight : bool
        Keep gradients out of the weights.
    intra : bool
        Other estimates are negatives too.
    symmetric, similarity, duplicates, queue, queue_dtype, gather, chunk
        See ``ContrastiveLoss``.

    References
    ----------
    [1] Yeh et al. Decoupled contrastive learning. ECCV 2022.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        sigma: float = 0.5,
        detach_weight: bool = True,
        intra: bool = False,
        symmetric: bool = False,
        similarity: str | Similarity = "cosine",
        duplicates: str = "ignore",
        queue: tuple[int, ...] | None = None,
        queue_dtype: str = "float32",
        gather: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__(
            Dclw(temperature, sigma, detach_weight=detach_weight),
            similarity=similarity,
            symmetric=symmetric,
            duplicates=duplicates,
            intra=intra,
            queue=queue,
            queue_dtype=queue_dtype,
            gather=gather,
            chunk=chunk,
        )


class Dclw(InfoNCE):
    """The objective of DCLW; see ``DclwLoss``."""

    def __init__(self, temperature: float, sigma: float, *, detach_weight: bool = True) -> None:
        super().__init__(temperature, couple=False)
        self.sigma = positive("sigma", sigma)
        self.detach_weight = detach_weight

    def weight(self, contrast: Contrast) -> Tensor:
        """Weigh the positives: 2 - B softmax_i(s_ii / sigma)."""
        own = mean_of(contrast.logits, contrast.positive)
        if contrast.counted is None:
            weight = 2 - len(own) * (own / self.sigma).softmax(0)
        else:
            weight = 2 - contrast.counted.sum() * (own / self.sigma).masked_fill(~contrast.counted, -torch.inf).softmax(0)
        return weight.detach() if self.detach_weight else weight
