"""The sigmoid loss of Zhai et al. 2023."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from .base import Similarity
from .contrastive import Contrast, ContrastiveLoss
from .objectives import LogitScale


class SiglipLoss(ContrastiveLoss):
    """A yes or no for every pair of estimate and candidate, instead of one choice per estimate.

    L = -1/B sum_ij logsigmoid(z_ij (t s_ij + b)), z = +1 for positives and -1 for negatives ([1] eq. 1), s the cosine. t and b are
    learned; t starts at 1 / `temperature` = 10 and b at -10.

    Departures: other candidates with a row's id are positives (``duplicates="positive"``), which the loss takes as it is; [1] has one
    positive per row. t is kept in [1, 100].

    Paper: Zhai et al. 2023, arXiv:2303.15343.
    Changes: pairs are judged one by one; no softmax over the batch, any number of positives.
    Evidence: B (the published formula; not compared with public code).

    Parameters
    ----------
    temperature : float
        1 / t at the start.
    bias : float
        b at the start.
    learnable : bool
        Learn t and b.
    symmetric : bool
        Both directions. With as many candidates as estimates they are equal.
    similarity, duplicates, queue, queue_dtype, gather, chunk
        See ``ContrastiveLoss``.

    References
    ----------
    [1] Zhai, Mustafa, Kolesnikov, Beyer. Sigmoid loss for language image pre-training. ICCV 2023.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.1,
        bias: float = -10.0,
        learnable: bool = True,
        symmetric: bool = False,
        similarity: str | Similarity = "cosine",
        duplicates: str = "positive",
        queue: tuple[int, ...] | None = None,
        queue_dtype: str = "float32",
        gather: bool = False,
        chunk: int | None = None,
    ) -> None:
        objective = Siglip(temperature, bias, learnable=learnable)
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


class Siglip(nn.Module):
    """The objective of SigLIP; see ``SiglipLoss``."""

    def __init__(self, temperature: float, bias: float, *, learnable: bool = True) -> None:
        super().__init__()
        self.scale = LogitScale(temperature, learnable=learnable)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learnable)

    def forward(self, contrast: Contrast) -> Tensor:
        """Compute the loss of each row."""
        logits = self.scale(contrast.logits) + self.bias
        yes = torch.where(contrast.positive, logsigmoid(logits), 0)
        no = torch.where(contrast.negative, logsigmoid(-logits), 0)
        return -(yes + no).sum(1)
