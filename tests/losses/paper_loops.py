"""The tiny data and helpers that the tests of losses share."""

from __future__ import annotations

import math

import torch

X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64).reshape(3, 1, 2)
Y = torch.tensor([[0.8, 0.6], [-0.6, 0.8], [1.0, 0.0]], dtype=torch.float64).reshape(3, 1, 2)
W = torch.tensor([[0.6, 0.8], [-0.8, 0.6], [0.0, -1.0]], dtype=torch.float64).reshape(3, 1, 2)


def make_vectors(n, seed, *, shape=(3, 5), dtype=torch.float64):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def cosines(a, b):
    """Cosines as a list of lists, by plain loops."""
    rows = []
    for x in a.flatten(1).tolist():
        norms = [math.sqrt(sum(v * v for v in y)) for y in b.flatten(1).tolist()]
        inner = [sum(u * v for u, v in zip(x, y, strict=True)) for y in b.flatten(1).tolist()]
        rows.append([i / n / math.sqrt(sum(u * u for u in x)) for i, n in zip(inner, norms, strict=True)])
    return rows


def log_sum_exp(values):
    return math.log(sum(math.exp(value) for value in values))


def mean(values):
    return sum(values) / len(values)
