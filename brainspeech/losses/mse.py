"""The regression baseline: mean squared error to the own candidate."""

from __future__ import annotations

import torch
from torch import Tensor

from brainspeech import processes

from . import gather, masks, pairing
from .base import Checks, Loss, LossOutput, Similarity, check_finite, check_pairs


class MseLoss(Loss):
    """Mean squared error between each estimate and its own candidate, over features and times; no negatives.

    Departures: none. Its scores are those of the contrastive losses, so that only the training differs.

    Paper: the regression baseline of Défossez et al. 2023, arXiv:2208.12266.
    Changes: nothing is contrasted.
    Evidence: A (closed form).

    Parameters
    ----------
    similarity : str or callable
        Of ``scores``; see ``Loss``.
    gather : bool
        Average over the rows of all processes. An estimate's own candidate must be in its own process.
    chunk : int, optional
        Of ``scores``; see ``Loss``.
    """

    def __init__(self, *, similarity: str | Similarity = "candidate_normalised", gather: bool = False, chunk: int | None = None) -> None:
        super().__init__(similarity=similarity, chunk=chunk)
        self.gather = gather

    def forward(self, estimates: Tensor, candidates: Tensor, *, row_ids: Tensor | None = None, col_ids: Tensor | None = None) -> LossOutput:
        """Compute the loss; ids are those of ``ContrastiveLoss.forward``.

        Raises
        ------
        ValueError
            If shapes or ids do not fit, a row has no candidate, or an estimate or its candidate is not finite.
        """
        check_pairs(estimates, candidates, row_ids, col_ids)
        pool = pairing.collect(estimates, candidates, row_ids, col_ids, spread=False)
        checks = Checks()
        own = pairing.own_columns(masks.same_id(pool.row_ids, pool.col_ids), pool, checks)
        own = candidates[own.to(candidates.device)].to(estimates.device)
        dtype = torch.promote_types(torch.promote_types(estimates.dtype, candidates.dtype), torch.float32)
        errors = (estimates.to(dtype) - own.to(dtype)).square().flatten(1).mean(1)
        check_finite(errors, estimates, own, checks)
        if self.gather and processes.is_spread():
            sizes = gather.lengths(len(estimates))[0]
            errors = gather.rows(errors, sizes)
        return LossOutput(checks.settle(errors.mean()), {})
