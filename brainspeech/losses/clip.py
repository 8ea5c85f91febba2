"""The contrastive loss of Défossez et al. 2023."""

from __future__ import annotations

import torch
from torch import Tensor

from brainspeech import similarity

from .base import Loss, LossOutput, pair

DUPLICATES = ("ignore", "negative")


class ClipLoss(Loss):
    """Cross-entropy of picking each estimate's own candidate among all, by their scores.

    The CLIP loss of [1] (Défossez et al. 2023, Methods, "Contrastive loss"): s_ij = <z_i, y_j> / (1e-8 + ||y_j||), only candidates
    normalised, no temperature, brain to speech only. loss = mean_i [lse_j s_ij - s_i,own(i)].

    It departs from [1] in one thing, unless ``duplicates="negative"``: [1] pushes an estimate away from the same segment when that
    stands in the batch a second time (another subject heard it); here such entries are ignored.

    Parameters
    ----------
    duplicates : {"ignore", "negative"}
        What other candidates with the row's own id are: left out, or negatives like all others, as in [1].

    References
    ----------
    [1] Défossez, Caucheteux, Rapin, Kabeli, King. Decoding speech perception from non-invasive brain recordings. Nature Machine
    Intelligence 5, 2023. arXiv:2208.12266.
    """

    def __init__(self, *, duplicates: str = "ignore") -> None:
        super().__init__()
        if duplicates not in DUPLICATES:
            raise ValueError(f"duplicates must be one of {', '.join(DUPLICATES)}, got {duplicates!r}.")
        self.duplicates = duplicates

    def scores(self, estimates: Tensor, candidates: Tensor) -> Tensor:
        """Score each estimate (B, F, T) against each candidate (N, F, T), in float32 or better also under autocast."""
        return similarity.candidate_normalised(estimates, candidates)

    def forward(self, estimates: Tensor, candidates: Tensor, *, row_ids: Tensor | None = None, col_ids: Tensor | None = None) -> LossOutput:
        """Compute the loss.

        Parameters
        ----------
        estimates : Tensor, shape (B, F, T)
        candidates : Tensor, shape (N, F, T)
        row_ids : Tensor, shape (B,), optional
            What each estimate is of (``stimulus_id``). Without it the first B candidates are the targets and all others negatives.
        col_ids : Tensor, shape (N,), optional
            What each candidate is; `row_ids` if not given. A row's own column is the one in its place if that has its id, else the
            first that has.

        Returns
        -------
        LossOutput
            Logs: ``n_ignored``, the number of entries that are duplicates of a row's own candidate.

        Raises
        ------
        ValueError
            If shapes or ids do not fit, or all candidates are of one segment, so that there is no negative.
        RuntimeError
            If an estimate or a candidate is not finite.
        """
        logits = self.scores(estimates, candidates)
        if not bool(logits.isfinite().all()):
            raise RuntimeError(_describe_not_finite(estimates, candidates))
        n_rows, n_cols = logits.shape
        own, duplicate = pair(n_rows, n_cols, row_ids, col_ids)
        if own is None:
            own = torch.arange(n_rows, device=logits.device)
        true = logits.gather(1, own[:, None])[:, 0]
        n_ignored = torch.zeros((), dtype=torch.int64, device=logits.device)
        n_negatives = torch.full((n_rows,), n_cols - 1, device=logits.device)
        if duplicate is not None and self.duplicates == "ignore":
            logits = logits.masked_fill(duplicate, -torch.inf)
            n_negatives = n_negatives - duplicate.sum(1)
            n_ignored = duplicate.sum()
        # One row without negatives means that all candidates have its id, and so that no row has any: none needs leaving out alone.
        if not bool(n_negatives.all()):
            raise ValueError(
                f"No estimate has a negative among {n_cols} candidates: a contrastive batch needs at least two different segments."
            )
        return LossOutput((logits.logsumexp(1) - true).mean(), {"n_ignored": n_ignored})


def _describe_not_finite(estimates: Tensor, candidates: Tensor) -> str:
    for what, values in (("estimates", estimates), ("candidates", candidates)):
        bad = (~values.detach().flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
        if bad:
            rows = ", ".join(map(str, bad[:10])) + (" ..." if len(bad) > 10 else "")
            return (
                f"{len(bad)} of {len(values)} {what} are not finite, rows {rows}. "
                "Look for NaN or flat channels in their recordings, or lower the learning rate."
            )
    return "The scores overflow although estimates and candidates are finite: lower the learning rate."
