"""Scores of estimates against candidates; higher is nearer. Losses and retrieval use the same functions.

Shapes: B estimates, N candidates, F features, T times; estimates (B, F, T), candidates (N, F, T), scores (B, N). Candidates dominate
memory (1,300 of 1024 x 343 floats are 1.8 GB), so none of these functions makes a normalised copy of them: the inner products are scaled
by inverse norms instead. Inner products and norms are in float32 or better, whatever the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-8
CONSTANT = 1e-6


def _flatten(estimates: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    if estimates.ndim < 2 or candidates.ndim < 2 or estimates.shape[1:] != candidates.shape[1:]:
        raise ValueError(
            "Estimates (B, F, T) and candidates (N, F, T) must agree in features and times, "
            f"got {tuple(estimates.shape)} and {tuple(candidates.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(estimates.dtype, candidates.dtype), torch.float32)
    return estimates.flatten(1).to(dtype), candidates.flatten(1).to(dtype)


def _inner(x: Tensor, y: Tensor) -> Tensor:
    # Autocast would take this product down to bfloat16, whose 8 bits make near candidates tie.
    with torch.autocast(x.device.type, enabled=False):
        return x @ y.T


def dot(estimates: Tensor, candidates: Tensor) -> Tensor:
    """Score by the inner product over features and times."""
    return _inner(*_flatten(estimates, candidates))


def candidate_normalised(estimates: Tensor, candidates: Tensor) -> Tensor:
    """Score by <x_i, y_j> / (1e-8 + ||y_j||): candidates are normalised, estimates are not.

    The score of [1] (Défossez et al. 2023, the CLIP loss of section "Contrastive loss"). The free norm of an estimate acts as its own
    inverse temperature; it does not change the order of the candidates.
    """
    x, y = _flatten(estimates, candidates)
    return _inner(x, y) / (EPSILON + y.norm(dim=1))


def cosine(estimates: Tensor, candidates: Tensor) -> Tensor:
    """Score by the cosine over features and times, in [-1, 1]; a norm below 1e-8 counts as 1e-8, as in torch.nn.functional."""
    x, y = _flatten(estimates, candidates)
    return _inner(x, y) / (x.norm(dim=1).clamp_min(EPSILON)[:, None] * y.norm(dim=1).clamp_min(EPSILON))


def correlation(estimates: Tensor, candidates: Tensor) -> Tensor:
    """Score by Pearson's correlation over time, feature by feature, averaged over features; in [-1, 1].

    A feature that is constant over the window correlates with nothing: it counts as 0.
    """
    if estimates.ndim != 3 or candidates.ndim != 3 or estimates.shape[1:] != candidates.shape[1:]:
        raise ValueError(
            "Estimates (B, F, T) and candidates (N, F, T) must agree in features and times, "
            f"got {tuple(estimates.shape)} and {tuple(candidates.shape)}."
        )
    dtype = torch.promote_types(torch.promote_types(estimates.dtype, candidates.dtype), torch.float32)
    return dot(_standardise(estimates.to(dtype)), _standardise(candidates.to(dtype))) / estimates.shape[1]


def _standardise(values: Tensor) -> Tensor:
    centred = values - values.mean(2, keepdim=True)
    norm = centred.norm(dim=2, keepdim=True)
    # Rounding leaves a constant feature a remainder of about 1e-7 of its value, which must not be scaled up to a correlation of 1.
    constant = norm <= CONSTANT * values.norm(dim=2, keepdim=True)
    return (centred / (EPSILON + norm)).masked_fill(constant, 0.0)
