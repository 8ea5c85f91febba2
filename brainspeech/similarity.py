"""Scores of estimates against candidates; higher is nearer. Losses and retrieval use the same functions.

Shapes: B estimates, N candidates, F features, T times; estimates (B, F, T), candidates (N, F, T), scores (B, N). Candidates dominate
memory (1,300 of 1024 x 343 floats are 1.8 GB), so none of these functions makes a normalised copy of them: the inner products are scaled
by inverse norms instead. Inner products and norms are in float32 or better, whatever the inputs.

A target at 120 Hz of a feature at 50 Hz says everything two or three times. ``Repeated`` says it once, and the same functions take it:
sum_t x_t y_f(t) is the sum over frames f of (the sum of x over the times of f) y_f.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-8
CONSTANT = 1e-6


@dataclass(frozen=True, eq=False)
class Repeated:
    """Candidates that stand still for several times at a stretch, every stretch kept once; made by ``Repeated.of``.

    Scores take as many multiplications as there are stretches, in many smaller products in place of a large one.

    Parameters
    ----------
    shape : (N, F, T)
        Of the candidates that these are.
    groups : tuple of (columns, lengths, frames)
        Candidates that change at the same times: their places (n,) among the N, the lengths of the S stretches, in times, and the features
        of each, shape (S, n, F).
    norm : Tensor, shape (N,)
        Over features and times.
    """

    shape: tuple[int, int, int]
    groups: tuple[tuple[Tensor, tuple[int, ...], Tensor], ...]
    norm: Tensor

    @classmethod
    def of(cls, candidates: Tensor, index: Tensor | None = None, *, chunk: int = 256) -> Repeated:
        """Keep each stretch once.

        Parameters
        ----------
        candidates : Tensor, shape (N, F, T), or (N, F, n_frames) with an index
        index : Tensor of int, shape (N, T), optional
            Candidate j at time t is ``candidates[j, :, index[j, t]]``. Windows begin anywhere between two frames, so candidates differ in
            when they change: of 50 Hz in 120 Hz there are 12 ways. Without it columns are compared, and those that are equal are repeated.
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
            index = torch.arange(n_frames, device=candidates.device).expand(n_candidates, -1)
            still = torch.cat([(part[..., 1:] == part[..., :-1]).all(1) for part in candidates.split(chunk)])  # (N, T - 1)
        else:
            _check_index(index, n_candidates, n_frames)
            still = index[:, 1:] == index[:, :-1]
        groups = []
        norm = torch.empty(n_candidates, dtype=_precision(candidates.dtype), device=candidates.device)
        patterns, which = still.unique(dim=0, return_inverse=True)
        for k, pattern in enumerate(patterns):
            columns = (which == k).nonzero()[:, 0]
            edges = [0, *((~pattern).nonzero()[:, 0] + 1).tolist(), index.shape[1]]
            lengths = tuple(stop - start for start, stop in itertools.pairwise(edges))
            places = index[columns][:, edges[:-1]]  # (n, S)
            frames = torch.stack([candidates[column][:, place].T for column, place in zip(columns, places, strict=True)], 1)  # (S, n, F)
            groups.append((columns, lengths, frames))
            squares = torch.stack([frame.to(norm.dtype).square().sum(1) for frame in frames], 1)  # (n, S)
            norm[columns] = (squares @ torch.tensor(lengths, dtype=norm.dtype, device=norm.device)).sqrt()
        return cls((n_candidates, n_features, index.shape[1]), tuple(groups), norm)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def saving(self) -> float:
        """How many times fewer columns there are than in the candidates that these are."""
        return self.shape[0] * self.shape[2] / sum(len(columns) * len(lengths) for columns, lengths, _ in self.groups)

    def to(self, device: torch.device | str) -> Repeated:
        """Give the same on another device."""
        groups = tuple((columns.to(device), lengths, frames.to(device)) for columns, lengths, frames in self.groups)
        return Repeated(self.shape, groups, self.norm.to(device))


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


def _check(estimates: Tensor, candidates: Tensor | Repeated) -> None:
    if estimates.ndim < 2 or len(candidates.shape) < 2 or estimates.shape[1:] != torch.Size(candidates.shape[1:]):
        raise ValueError(
            "Estimates (B, F, T) and candidates (N, F, T) must agree in features and times, "
            f"got {tuple(estimates.shape)} and {tuple(candidates.shape)}."
        )


def _inner(estimates: Tensor, candidates: Tensor | Repeated) -> Tensor:
    _check(estimates, candidates)
    # Autocast would take this product down to bfloat16, whose 8 bits make near candidates tie.
    with torch.autocast(estimates.device.type, enabled=False):
        if isinstance(candidates, Repeated):
            return _inner_repeated(estimates, candidates)
        dtype = _precision(estimates.dtype, candidates.dtype)
        return estimates.flatten(1).to(dtype) @ candidates.flatten(1).to(dtype).T


def _inner_repeated(estimates: Tensor, candidates: Repeated) -> Tensor:
    dtype = _precision(estimates.dtype, candidates.norm.dtype)
    n_features, n_times = estimates.shape[1:]
    # Times before features, so that the estimates at one time are the rows of a matrix. One by one: torch transposes matrices by tiles.
    turned = torch.empty(len(estimates), n_times, n_features, dtype=dtype, device=estimates.device)
    for i, estimate in enumerate(estimates):
        turned[i].copy_(estimate.T)
    inner = turned.new_empty(len(estimates), len(candidates))
    for columns, lengths, frames in candidates.groups:
        part = turned.new_zeros(len(estimates), len(columns))
        for stretch, frame in zip(turned.split(lengths, dim=1), frames, strict=True):
            part.addmm_(stretch.sum(1), frame.to(dtype).T)
        inner[:, columns] = part
    return inner


def _norm(values: Tensor | Repeated, dtype: torch.dtype) -> Tensor:
    return values.norm if isinstance(values, Repeated) else values.flatten(1).to(dtype).norm(dim=1)


def dot(estimates: Tensor, candidates: Tensor | Repeated) -> Tensor:
    """Score by the inner product over features and times."""
    return _inner(estimates, candidates)


def candidate_normalised(estimates: Tensor, candidates: Tensor | Repeated) -> Tensor:
    """Score by <x_i, y_j> / (1e-8 + ||y_j||): candidates are normalised, estimates are not.

    The score of [1] (Défossez et al. 2023, the CLIP loss of section "Contrastive loss"). The free norm of an estimate acts as its own
    inverse temperature; it does not change the order of the candidates.
    """
    inner = _inner(estimates, candidates)
    return inner / (EPSILON + _norm(candidates, inner.dtype))


def cosine(estimates: Tensor, candidates: Tensor | Repeated) -> Tensor:
    """Score by the cosine over features and times, in [-1, 1]; a norm below 1e-8 counts as 1e-8, as in torch.nn.functional."""
    inner = _inner(estimates, candidates)
    own, norm = (_norm(values, inner.dtype).clamp_min(EPSILON) for values in (estimates, candidates))
    return inner / (own[:, None] * norm)


def correlation(estimates: Tensor, candidates: Tensor) -> Tensor:
    """Score by Pearson's correlation over time, feature by feature, averaged over features; in [-1, 1].

    A feature that is constant over the window correlates with nothing: it counts as 0. ``Repeated`` candidates are an error.
    """
    if isinstance(candidates, Repeated):
        raise ValueError("The correlation takes candidates (N, F, T) at the rate of the estimates, got Repeated ones.")
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
