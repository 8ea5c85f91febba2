"""Scores of estimates against candidates; higher is nearer. Losses and retrieval use the same functions.

Shapes: B estimates, N candidates, F features, T times; estimates (B, F, T), candidates (N, F, T), scores (B, N). Candidates dominate
memory (1,300 of 1024 x 343 floats are 1.8 GB), so none of these functions makes a normalised copy of them: the inner products are scaled
by inverse norms instead. Inner products and norms are in float32 or better, whatever the inputs.

A target at 120 Hz of a feature at 50 Hz says everything two or three times. ``Repeated`` says it once, and the same functions take it:
sum_t x_t y_f(t) is the sum over frames f of (the sum of x over the times of f) y_f. ``Normed`` are candidates whose norms are computed
once, whatever the number of batches of estimates that they are compared with.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-8
CONSTANT = 1e-6
# Matrix products of some fifty columns are faster where the other side is a multiple of 16, and give equal columns equal results, which
# they do not for a handful of rows: equal candidates have to tie.
STEP = 16
# Estimates turned at a time, at most: 270 MB of 1024 x 343, which stay in use instead of being given back and asked for again.
ROWS = 192
# What it takes for candidates at their own rate to pay: below, the sums over stretches take longer than what they save.
LEAST_SAVING, LEAST_CANDIDATES, LEAST_VALUES = 1.5, 500, 100_000


class Normed:
    """Candidates as they are, with their norms, which are computed when they are first asked for, and not again.

    Parameters
    ----------
    values : Tensor, shape (N, F, T)

    Attributes
    ----------
    norm : Tensor, shape (N,)
        Over features and times.
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    @property
    def shape(self) -> torch.Size:
        """Of the candidates."""
        return self.values.shape

    @functools.cached_property
    def norm(self) -> Tensor:
        return _norm(self.values, _precision(self.values.dtype))

    def to(self, device: torch.device | str) -> Normed:
        """Give the same on another device, or these if they are there."""
        values = self.values.to(device)
        return self if values is self.values else Normed(values)


@dataclass(frozen=True, eq=False)
class Repeated:
    """Candidates that stand still for several times at a stretch, every stretch kept once; made by ``Repeated.of``.

    Scores take as many multiplications as there are stretches: 2.4 times fewer for 50 Hz in 120 Hz.

    Parameters
    ----------
    shape : (N, F, T)
        Of the candidates that these are.
    order : Tensor, shape (N,)
        The candidates sorted by when they change, so that those with the same stretch are neighbours.
    stretches : tuple of (start, stop, first, last)
        From time ``start`` to ``stop`` the candidates ``order[first:last]`` stand still.
    frames : Tensor, shape (n, F)
        What they are then, stretch after stretch.
    norm : Tensor, shape (N,)
        Over features and times.
    """

    shape: tuple[int, int, int]
    order: Tensor
    stretches: tuple[tuple[int, int, int, int], ...]
    frames: Tensor
    norm: Tensor

    @classmethod
    def of(cls, candidates: Tensor, index: Tensor | None = None, *, chunk: int = 256) -> Repeated:
        """Keep each stretch once.

        Parameters
        ----------
        candidates : Tensor, shape (N, F, T), or (N, F, n_frames) with an index
        index : Tensor of int, shape (N, T), optional
            Candidate j at time t is ``candidates[j, :, index[j, t]]``. Windows begin anywhere between two frames, so candidates differ in
            when they change: of 50 Hz in 120 Hz there are 12 ways. Without it neighbouring times are compared, and equal ones are repeated.
        chunk : int
            Candidates compared at a time.

        Raises
        ------
        ValueError
            If shapes disagree or an index is no frame.
        """
        if candidates.ndim != 3 or not candidates.numel():
            raise ValueError(f"Candidates must be (N, F, T), none of them 0, got {tuple(candidates.shape)}.")
        n_candidates, n_features, n_frames = candidates.shape
        if index is None:
            index = torch.arange(n_frames).expand(n_candidates, -1)
            still = torch.cat([(part[..., 1:] == part[..., :-1]).all(1) for part in candidates.split(chunk)]).cpu()
        else:
            index = index.cpu()
            _check_index(index, n_candidates, n_frames)
            still = index[:, 1:] == index[:, :-1]
        changes = torch.cat([torch.ones(n_candidates, 1, dtype=torch.bool), ~still], 1)  # (N, T)
        order = changes.unique(dim=0, return_inverse=True)[1].argsort(stable=True)
        stops, stretches, places = _find_stretches(changes[order])
        frames = candidates.new_empty(int(places.max()) + 1, n_features)
        norm = torch.empty(n_candidates, dtype=_precision(candidates.dtype), device=candidates.device)
        for row, column in enumerate(order.tolist()):
            starts = changes[column].nonzero()[:, 0]
            own = candidates[column].T.contiguous()[index[column, starts]]  # (n_stretches, F)
            frames[places[row, starts]] = own
            lengths = (stops[row, starts] - starts).to(norm)
            norm[column] = (own.to(norm.dtype).square().sum(1) @ lengths).sqrt()
        return cls((n_candidates, n_features, index.shape[1]), order.to(candidates.device), stretches, frames, norm)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def saving(self) -> float:
        """How many times fewer columns there are than in the candidates that these are."""
        return self.shape[0] * self.shape[2] / len(self.frames)

    def to(self, device: torch.device | str) -> Repeated:
        """Give the same on another device."""
        return Repeated(self.shape, self.order.to(device), self.stretches, self.frames.to(device), self.norm.to(device))


Candidates = Tensor | Repeated | Normed


def _find_stretches(changes: Tensor) -> tuple[Tensor, tuple[tuple[int, int, int, int], ...], Tensor]:
    """Give when each stretch stops (N, T), the stretches that neighbours share, and the place of each one's features, (N, T)."""
    n_candidates, n_times = changes.shape
    times = torch.where(changes, torch.arange(n_times), n_times)
    later = torch.cat([times[:, 1:], torch.full((n_candidates, 1), n_times)], 1)
    stops = later.flip(1).cummin(1).values.flip(1)
    places = torch.full((n_candidates, n_times), -1)
    stretches, n_places = [], 0
    for start in range(n_times):
        runs = torch.where(changes[:, start], stops[:, start], 0).unique_consecutive(return_counts=True)
        first = 0
        for stop, count in zip(*(run.tolist() for run in runs), strict=True):
            if stop:
                stretches.append((start, stop, first, first + count))
                places[first : first + count, start] = torch.arange(n_places, n_places + count)
                n_places += count
            first += count
    return stops, tuple(stretches), places


def _check_index(index: Tensor, n_candidates: int, n_frames: int) -> None:
    if index.ndim != 2 or len(index) != n_candidates or not index.numel():
        raise ValueError(f"An index must have a row of times for each of {n_candidates} candidates, got the shape {tuple(index.shape)}.")
    if index.min() < 0 or index.max() >= n_frames:
        raise ValueError(f"An index must hold frames 0..{n_frames - 1}, got {int(index.min())}..{int(index.max())}.")


def _precision(*dtypes: torch.dtype) -> torch.dtype:
    precision = torch.float32
    for dtype in dtypes:
        precision = torch.promote_types(precision, dtype)
    return precision


def _check(estimates: Tensor, candidates: Candidates) -> None:
    if estimates.ndim < 2 or len(candidates.shape) < 2 or estimates.shape[1:] != torch.Size(candidates.shape[1:]):
        raise ValueError(
            "Estimates (B, F, T) and candidates (N, F, T) must agree in features and times, "
            f"got {tuple(estimates.shape)} and {tuple(candidates.shape)}."
        )


def _inner(estimates: Tensor, candidates: Candidates) -> Tensor:
    _check(estimates, candidates)
    # Autocast would take this product down to bfloat16, whose 8 bits make near candidates tie.
    with torch.autocast(estimates.device.type, enabled=False):
        if isinstance(candidates, Repeated):
            return _inner_repeated(estimates, candidates)
        values = candidates.values if isinstance(candidates, Normed) else candidates
        dtype = _precision(estimates.dtype, values.dtype)
        return estimates.flatten(1).to(dtype) @ values.flatten(1).to(dtype).T


def _inner_repeated(estimates: Tensor, candidates: Repeated) -> Tensor:
    dtype = _precision(estimates.dtype, candidates.norm.dtype)
    n_features, n_times = estimates.shape[1:]
    # A gradient needs what was turned until the end.
    whole = estimates.requires_grad and torch.is_grad_enabled()
    n_parts = 1 if whole else max(1, math.ceil(len(estimates) / ROWS))
    n_rows = _rounded(math.ceil(len(estimates) / n_parts))
    room = torch.zeros(n_rows, n_times, n_features, dtype=dtype, device=estimates.device)
    inner = room.new_zeros(len(candidates), _rounded(len(estimates)))
    frames = candidates.frames.split([last - first for _, _, first, last in candidates.stretches])
    for begin in range(0, len(estimates), max(n_rows, 1)):
        part = estimates[begin : begin + n_rows]
        turned = room[: _rounded(len(part))]
        # Times before features, so that the estimates at one time are the rows of a matrix. One by one: torch transposes matrices by tiles.
        for i, estimate in enumerate(part):
            turned[i].copy_(estimate.T)
        columns = slice(begin, begin + len(turned))
        for (start, stop, first, last), own in zip(candidates.stretches, frames, strict=True):
            # Two or three additions of matrices: sum over a short axis in the middle would take six times as long.
            total = functools.reduce(torch.add, turned[:, start:stop].unbind(1))
            inner[first:last, columns].addmm_(own.to(dtype), total.T)
    return inner[candidates.order.argsort(), : len(estimates)].T


def _rounded(n: int) -> int:
    return math.ceil(n / STEP) * STEP


def prepare(candidates: Tensor, scores: Callable[..., Tensor]) -> Candidates:
    """Give candidates (N, F, T) in the form in which many estimates are compared with them at the least cost.

    If ``scores`` is ``dot``, ``candidate_normalised`` or ``cosine``, or the method ``scores`` of an object that leaves scores to one of
    these and says so by ``takes_prepared``, they are ``Repeated`` where that pays, which is for some hundreds of candidates on a CPU that
    repeat themselves 1.5 times or more on average, else ``Normed``. For any other ``scores`` they are as they were. Scores are the same
    but for rounding, which does not set apart ``Repeated`` candidates that are equal; a product of some dozens of ``Normed`` ones may.
    """
    if not takes_prepared(scores):
        return candidates
    few = len(candidates) < LEAST_CANDIDATES or len(candidates) * candidates.shape[1] < LEAST_VALUES
    # Whether they repeat is seen from a few of them, in time and memory of a few.
    if not few and candidates.device.type == "cpu" and Repeated.of(candidates[:: len(candidates) // 8]).saving >= LEAST_SAVING:
        repeated = Repeated.of(candidates)
        if repeated.saving >= LEAST_SAVING:
            return repeated
    return Normed(candidates)


def takes_prepared(scores: Callable[..., Tensor]) -> bool:
    """Whether ``scores`` takes ``Repeated`` and ``Normed`` candidates, as an inner product does."""
    owner = getattr(scores, "__self__", None)
    if owner is None:
        return scores in INNER_PRODUCTS
    own = getattr(type(owner), "scores", None)  # and no other method of it
    return own is not None and getattr(scores, "__func__", None) is own and bool(getattr(owner, "takes_prepared", False))


def _norm(values: Candidates, dtype: torch.dtype) -> Tensor:
    return values.norm if isinstance(values, Repeated | Normed) else values.flatten(1).to(dtype).norm(dim=1)


def dot(estimates: Tensor, candidates: Candidates) -> Tensor:
    """Score by the inner product over features and times."""
    return _inner(estimates, candidates)


def candidate_normalised(estimates: Tensor, candidates: Candidates) -> Tensor:
    """Score by <x_i, y_j> / (1e-8 + ||y_j||): candidates are normalised, estimates are not.

    The score of [1] (Défossez et al. 2023, the CLIP loss of section "Contrastive loss"). The free norm of an estimate acts as its own
    inverse temperature; it does not change the order of the candidates.
    """
    inner = _inner(estimates, candidates)
    return inner / (EPSILON + _norm(candidates, inner.dtype))


def cosine(estimates: Tensor, candidates: Candidates) -> Tensor:
    """Score by the cosine over features and times, in [-1, 1]; a norm below 1e-8 counts as 1e-8, as in torch.nn.functional."""
    inner = _inner(estimates, candidates)
    own, norm = (_norm(values, inner.dtype).clamp_min(EPSILON) for values in (estimates, candidates))
    return inner / (own[:, None] * norm)


INNER_PRODUCTS: tuple[Callable[..., Tensor], ...] = (dot, candidate_normalised, cosine)


def correlation(estimates: Tensor, candidates: Tensor) -> Tensor:
    """Score by Pearson's correlation over time, feature by feature, averaged over features; in [-1, 1].

    A feature that is constant over the window correlates with nothing: it counts as 0. ``Repeated`` and ``Normed`` candidates are an error.
    """
    if not isinstance(candidates, Tensor):
        raise ValueError(f"The correlation takes candidates (N, F, T) as a tensor, got {type(candidates).__name__} ones.")
    if estimates.ndim != 3 or candidates.ndim != 3 or estimates.shape[1:] != candidates.shape[1:]:
        raise ValueError(
            "Estimates (B, F, T) and candidates (N, F, T) must agree in features and times, "
            f"got {tuple(estimates.shape)} and {tuple(candidates.shape)}."
        )
    dtype = _precision(estimates.dtype, candidates.dtype)
    return dot(_standardise(estimates.to(dtype)), _standardise(candidates.to(dtype))) / estimates.shape[1]


def _standardise(values: Tensor) -> Tensor:
    centred = values - values.mean(2, keepdim=True)
    norm = centred.norm(dim=2, keepdim=True)
    # Rounding leaves a constant feature a remainder of about 1e-7 of its value, which must not be scaled up to a correlation of 1.
    constant = norm <= CONSTANT * values.norm(dim=2, keepdim=True)
    return (centred / (EPSILON + norm)).masked_fill(constant, 0.0)
