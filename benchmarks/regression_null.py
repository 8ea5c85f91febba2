"""How often does the regression of "What is decoded" call nothing a relation? The share of p values up to 0.05, by simulation.

Target and features are drawn independently of each other, both as smooth over time as windows of 3 s that overlap: the hardest case,
since whatever is smooth correlates by chance. Blocks are exchanged as ``regression.relate`` does it (whole, stretched to each other's
length), and, for contrast, as in ``statistics.shuffled_blocks`` (in random order, then the list rolled), which cuts through blocks. Prints
both shares for three layouts of windows::

    python benchmarks/regression_null.py
"""

from __future__ import annotations

import argparse

import numpy as np

from brainspeech import regression, statistics

LAYOUTS = {"regular": "every 0.35 s, 15 a block", "irregular": "0.35 s apart on average, 15 a block", "uneven": "the same, 5 to 29 a block"}


def draw(rng: np.random.Generator, layout: str, *, n_blocks: int, n_features: int, length: float = 3.0) -> tuple[np.ndarray, ...]:
    """Draw a target (N,), features (N, D) and blocks (N,) of windows of ``length`` seconds."""
    sizes = rng.integers(5, 30, n_blocks) if layout == "uneven" else np.full(n_blocks, 15)
    gaps = [np.full(n, 0.35) if layout == "regular" else rng.exponential(0.35, n) for n in sizes]
    time = np.concatenate([1000 * k + np.cumsum(gap) for k, gap in enumerate(gaps)])
    overlap = np.clip(1 - np.abs(time[:, None] - time) / length, 0, None)
    factor = np.linalg.cholesky(overlap + 1e-6 * np.eye(len(time)))
    return factor @ rng.normal(size=len(time)), factor @ rng.normal(size=(len(time), n_features)), np.repeat(np.arange(n_blocks), sizes)


def p_values(n: int, layout: str, *, n_blocks: int = 12, n_features: int = 20, n_permutations: int = 199) -> np.ndarray:
    """Simulate n times: p of (blocks exchanged whole, blocks in random order and rolled), shape (2, n)."""
    rng = np.random.default_rng(0)
    p = np.empty((2, n))
    for i in range(n):
        target, features, blocks = draw(rng, layout, n_blocks=n_blocks, n_features=n_features)
        folds = regression.split(blocks)
        whole = regression.exchanged_blocks(blocks, n_permutations, seed=i)
        rolled = np.concatenate(list(statistics.shuffled_blocks(blocks, n_permutations, seed=i)))
        for j, draws in enumerate((whole, rolled)):
            targets = np.concatenate([target[None], target[draws]]).T
            r = regression.correlations(regression.held_out(features, targets, folds), targets, folds)
            p[j, i] = (1 + (r[1:] >= r[0] - regression.TOLERANCE).sum()) / len(r)
    return p


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000, help="per layout (default: 1000)")
    n = parser.parse_args().simulations
    print(f"12 blocks, 20 features, {n} simulations; share of p up to 0.05, expected 5 % (standard error {(0.05 * 0.95 / n) ** 0.5:.1%})")
    for layout, said in LAYOUTS.items():
        whole, rolled = (p_values(n, layout) <= 0.05).mean(1)
        shares = f"exchanged whole {whole:5.1%}, ordered and rolled {rolled:5.1%}, ratio {whole / max(rolled, 1e-9):.2f}"
        print(f"  {layout:9} ({said}): {shares}")


if __name__ == "__main__":
    main()
