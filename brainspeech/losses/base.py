"""What every loss has in common: its result, its scores, and what is wrong with its input.

Shapes: B estimates (rows), N candidates (columns), F features, T times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from brainspeech import host, similarity

Similarity = Callable[..., Tensor]
SIMILARITIES: dict[str, Similarity] = {
    "candidate_normalised": similarity.candidate_normalised,
    "cosine": similarity.cosine,
    "dot": similarity.dot,
    "correlation": similarity.correlation,
}


class LossOutput(NamedTuple):
    """The scalar to minimise, and detached numbers to log by name."""

    loss: Tensor
    logs: dict[str, Tensor]


class Loss(nn.Module):
    """Compare estimates (B, F, T) with candidates (N, F, T): ``forward`` gives a LossOutput, ``scores`` a Tensor (B, N).

    Parameters
    ----------
    similarity : str or callable
        One of ``SIMILARITIES``, or a function (b, F, T), (n, F, T) -> (b, n) where an entry depends on its own two arguments only.
    chunk : int, optional
        Compare with so many candidates at a time, and compute each comparison again in the backward pass, instead of keeping a float32
        copy of all candidates. Chunks are moved to the estimates' device one by one. Same values and gradients.

    Attributes
    ----------
    name, config : str, dict
        What ``losses.build`` made it from.
    """

    name: str = ""
    config: dict[str, Any]

    def __init__(self, *, similarity: str | Similarity = "candidate_normalised", chunk: int | None = None) -> None:
        super().__init__()
        if not callable(similarity) and similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {', '.join(SIMILARITIES)}, or a function, got {similarity!r}.")
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk must be a positive number of candidates, or None, got {chunk!r}.")
        self.similarity = similarity if callable(similarity) else SIMILARITIES[similarity]
        self.chunk = chunk

    @property
    def takes_prepared(self) -> bool:
        """Whether ``scores`` takes what ``similarity.prepare`` makes: inner products do, a loss with scores of its own does not."""
        return type(self).scores is Loss.scores and self.similarity in similarity.INNER_PRODUCTS

    def scores(self, estimates: Tensor, candidates: Any) -> Tensor:
        """Score each estimate (B, F, T) against each candidate (N, F, T), in float32 or better also under autocast; higher is nearer.

        Candidates may be ``similarity.Repeated`` or ``Normed``, compared all at once, where the loss ``takes_prepared``.
        """
        if isinstance(candidates, similarity.Repeated | similarity.Normed):
            return self.similarity(estimates, candidates.to(estimates.device))
        if self.chunk is None or len(candidates) <= self.chunk:
            return self.similarity(estimates, candidates.to(estimates.device))
        return torch.cat([self._compare(estimates, part) for part in candidates.split(self.chunk)], 1)

    def _compare(self, estimates: Tensor, candidates: Tensor) -> Tensor:
        def compare(estimates: Tensor, candidates: Tensor) -> Tensor:
            return self.similarity(estimates, candidates.to(estimates.device))

        if not torch.is_grad_enabled() or not (estimates.requires_grad or candidates.requires_grad):
            return compare(estimates, candidates)
        # Keeps nothing but the two arguments, of which the second is a view of the candidates.
        return checkpoint(compare, estimates, candidates, use_reentrant=False, preserve_rng_state=False)


def one_of(what: str, value: str, allowed: tuple[str, ...]) -> str:
    """Give `value` back if it is allowed.

    Raises
    ------
    ValueError
        If it is not.
    """
    if value not in allowed:
        raise ValueError(f"{what} must be one of {', '.join(allowed)}, got {value!r}.")
    return value


def positive(what: str, value: float) -> float:
    """Give `value` back if it is a positive number.

    Raises
    ------
    ValueError
        If it is not.
    """
    if not value > 0:
        raise ValueError(f"{what} must be positive, got {value!r}.")
    return value


def check_pairs(estimates: Tensor, candidates: Tensor, row_ids: Tensor | None, col_ids: Tensor | None) -> None:
    """Check shapes and ids of a call.

    Raises
    ------
    ValueError
        If features or times disagree, ids are missing or of the wrong length, or there are fewer candidates than rows without ids.
    """
    if estimates.ndim < 2 or candidates.ndim < 2 or estimates.shape[1:] != candidates.shape[1:]:
        raise ValueError(
            "Estimates (B, F, T) and candidates (N, F, T) must agree in features and times, "
            f"got {tuple(estimates.shape)} and {tuple(candidates.shape)}."
        )
    n_rows, n_cols = len(estimates), len(candidates)
    if row_ids is None:
        if col_ids is not None:
            raise ValueError("col_ids without row_ids: give both, or neither (then the first B candidates are the targets).")
        if n_cols < n_rows:
            raise ValueError(f"Without ids the first B candidates are the targets: got {n_rows} estimates, but {n_cols} candidates.")
        return
    if col_ids is None:
        if n_cols != n_rows:
            raise ValueError(f"row_ids alone need as many candidates as estimates, got {n_cols} and {n_rows}: give col_ids too.")
        col_ids = row_ids
    if tuple(row_ids.shape) != (n_rows,) or tuple(col_ids.shape) != (n_cols,):
        raise ValueError(f"Ids must be {(n_rows,)} and {(n_cols,)}, got row_ids {tuple(row_ids.shape)}, col_ids {tuple(col_ids.shape)}.")


class Checks:
    """What must be true of the numbers of a call.

    On a CPU a check that fails raises its error at once. To look at a number of a GPU is to wait for all that it has still to do: there the
    failure is kept on the GPU, and makes the loss NaN, for which whoever trains looks anyway.
    """

    def __init__(self) -> None:
        self.failed: list[Tensor] = []

    def refuse(self, wrong: Tensor, error: Callable[[], ValueError]) -> None:
        """Refuse a call in which any number of `wrong` (bool) is True, with an error that is made when it is needed."""
        wrong = wrong.any()
        if not host.at_hand(wrong):
            self.failed.append(wrong)
        elif bool(wrong):
            raise error()

    def settle(self, loss: Tensor) -> Tensor:
        """Give the loss (), or NaN if a check failed that could not be looked at."""
        for wrong in self.failed:
            loss = loss.masked_fill(wrong.to(loss.device), torch.nan)
        return loss


def check_finite(scores: Tensor, estimates: Tensor, candidates: Tensor, checks: Checks) -> None:
    """Check that scores are finite; the error says which estimates or candidates are not."""
    checks.refuse(~scores.detach().isfinite(), lambda: _not_finite(estimates, candidates))


def _not_finite(estimates: Tensor, candidates: Tensor) -> ValueError:
    for what, values in (("estimates", estimates), ("candidates", candidates)):
        bad = (~values.detach().flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
        if bad:
            rows = ", ".join(map(str, bad[:10])) + (" ..." if len(bad) > 10 else "")
            return ValueError(
                f"{len(bad)} of {len(values)} {what} are not finite, rows {rows}. "
                "Look for NaN or flat channels in their recordings, or lower the learning rate."
            )
    return ValueError("The scores overflow although estimates and candidates are finite: lower the learning rate.")
