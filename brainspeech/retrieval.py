"""Scores to ranks to accuracy. Rank 0 is best. Plain tensors only.

Shapes: B estimates, N candidates, F features, T times. Ties count against us, so that a collapsed encoder (all scores equal) comes out
last instead of first, and so does anything that is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from brainspeech import similarity


class Ranks(NamedTuple):
    """Ranks (B,) int64, rank 0 is best; in how many rows another candidate ties with the own one; in how many rows a score is NaN."""

    ranks: Tensor
    n_ties: int
    n_nan: int


def ranks_from_scores(scores: Tensor | np.ndarray, targets: Tensor | np.ndarray) -> Ranks:
    """Rank each row's own candidate by counting the others that score as high or higher.

    Parameters
    ----------
    scores : Tensor or array, shape (B, N)
        Higher is nearer.
    targets : Tensor or array, shape (B,)
        Column of each row's own candidate.

    Returns
    -------
    Ranks
        A tie counts as better than the own candidate, and so does a NaN; an own score that is NaN ranks last, N - 1.

    Raises
    ------
    ValueError
        If shapes disagree or a target is not a column.
    """
    scores = torch.as_tensor(scores)
    targets = torch.as_tensor(targets, device=scores.device).long()
    if scores.ndim != 2 or tuple(targets.shape) != (scores.shape[0],):
        raise ValueError(f"Scores must be (B, N) and targets (B,), got {tuple(scores.shape)} and {tuple(targets.shape)}.")
    _check_targets(targets, scores.shape[1])
    own = scores.gather(1, targets[:, None])
    # "not lower" is true for a higher score, a tie, a NaN on either side, and the own column itself
    ranks = (~(scores < own)).sum(1) - 1
    ties = (scores == own).sum(1) > 1
    return Ranks(ranks, int(ties.sum()), int(scores.isnan().any(1).sum()))


def ranks_of_all(scores: Tensor | np.ndarray) -> Tensor:
    """Rank every candidate of each row, as ``ranks_from_scores`` ranks the own one; (B, N) -> (B, N) int64.

    The best candidates of a row are those of the lowest ranks. Equal scores share the rank of the last of them.

    Raises
    ------
    ValueError
        If scores are not (B, N).
    """
    scores = torch.as_tensor(scores)
    if scores.ndim != 2:
        raise ValueError(f"Scores must be (B, N), got {tuple(scores.shape)}.")
    ordered = scores.where(~scores.isnan(), torch.inf).sort(dim=1).values.contiguous()  # NaN last, lower than nothing
    lower = torch.searchsorted(ordered, scores.contiguous()).masked_fill(scores.isnan(), 0)
    return scores.shape[1] - 1 - lower


def ranks(
    estimates: Tensor,
    candidates: similarity.Candidates,
    targets: Tensor,
    *,
    scores: Callable[..., Tensor] = similarity.candidate_normalised,
    chunk: int = 512,
) -> Tensor:
    """Rank each estimate's own candidate among all candidates, exactly.

    Parameters
    ----------
    estimates : Tensor, shape (B, F, T)
    candidates : Tensor, shape (N, F, T), or Repeated or Normed
        The latter, if ``scores`` is one of ``similarity`` that takes them.
    targets : Tensor, shape (B,)
        Column of each row's own candidate.
    scores : callable
        (b, F, T), (n, F, T) -> (b, n), higher is nearer, where an entry depends on its own estimate and candidate only.
    chunk : int
        At most so many estimates and so many candidates are compared at once; Repeated and Normed candidates are compared all together.

    Returns
    -------
    Tensor, shape (B,), int64
        0 is best. Ties and NaN count against the own candidate, as in ``ranks_from_scores``, which counts them too.

    Raises
    ------
    ValueError
        If shapes disagree, a target is not a column, or `chunk` is not positive.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}.")
    targets = torch.as_tensor(targets)
    if tuple(targets.shape) != (len(estimates),):
        raise ValueError(f"Targets must have one column per estimate, {(len(estimates),)}, got {tuple(targets.shape)}.")
    _check_targets(targets, len(candidates))
    found = [torch.empty(0, dtype=torch.int64, device=estimates.device)]
    parts = [_normed(part, scores) for part in (candidates.split(chunk) if isinstance(candidates, Tensor) else [candidates])]
    for rows, columns in zip(estimates.split(chunk), targets.split(chunk), strict=True):
        row_scores = torch.cat([scores(rows, part) for part in parts], dim=1)
        found.append(ranks_from_scores(row_scores, columns).ranks)
    return torch.cat(found)


def stream_scores(
    estimates: Tensor,
    parts: Iterable[similarity.Candidates],
    *,
    scores: Callable[..., Tensor] = similarity.candidate_normalised,
    chunk: int = 512,
) -> Tensor:
    """Score estimates against candidates that come part by part, from a disk or a generator, and are not kept.

    For the ranks, ``ranks_from_scores(scores, targets)``; for the k best candidates, ``scores.topk(k)``. In memory are the estimates, one
    part (in float32, whatever it is stored in) and the scores, four bytes each.

    Parameters
    ----------
    estimates : Tensor, shape (B, F, T)
    parts : iterable of Tensor, shape (n, F, T), or Repeated or Normed
        The N candidates in order.
    scores : callable
        As in ``ranks``.
    chunk : int
        At most so many estimates are compared with a part at once.

    Returns
    -------
    Tensor, shape (B, N), float32 or better

    Raises
    ------
    ValueError
        If there is no part, shapes disagree, or `chunk` is not positive.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}.")
    found = []
    for part in parts:
        own = _normed(part.to(estimates.device), scores)
        found.append(torch.cat([scores(rows, own) for rows in estimates.split(chunk)]))
    if not found:
        raise ValueError("There are no candidates to score: the parts are empty.")
    return torch.cat(found, dim=1)


def topk_accuracy(ranks: Tensor | np.ndarray, k: int) -> float:
    """Compute the fraction of ranks below k; ValueError if there are none or k is not positive."""
    ranks = _check_ranks(ranks)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    return float((ranks < k).double().mean())


def median_rank(ranks: Tensor | np.ndarray) -> float:
    """Compute the median rank (0 is best), the mean of the middle two where their number is even; ValueError if there are none."""
    return float(np.median(_check_ranks(ranks).cpu().numpy()))


def chance(k: int, n: int) -> float:
    """Compute the top-k accuracy of guessing among n candidates: k / n, at most 1."""
    if k < 1 or n < 1:
        raise ValueError(f"k and n must be at least 1, got {k} and {n}.")
    return min(k, n) / n


def _normed(part: similarity.Candidates, scores: Callable[..., Tensor]) -> similarity.Candidates:
    """Have the norms of candidates computed once, not for every chunk of estimates, where the scores take them so."""
    return similarity.Normed(part) if isinstance(part, Tensor) and similarity.takes_prepared(scores) else part


def _check_ranks(ranks: Tensor | np.ndarray) -> Tensor:
    ranks = torch.as_tensor(ranks)
    if ranks.ndim != 1 or len(ranks) == 0:
        raise ValueError(f"Ranks must be (B,) with at least one row, got {tuple(ranks.shape)}. Is the test split empty?")
    return ranks


def _check_targets(targets: Tensor, n_candidates: int) -> None:
    if len(targets) and (int(targets.min()) < 0 or int(targets.max()) >= n_candidates):
        raise ValueError(f"Targets must be columns 0..{n_candidates - 1}, got {int(targets.min())}..{int(targets.max())}.")
