"""Does a 95 % interval hold the truth 95 % of the time? Coverage of the report's two-way bootstrap, by simulation.

An experiment is repeated many times: subjects and blocks are drawn anew, each with an effect of its own on the accuracy, and windows hit or
miss by chance. The truth is the accuracy over all subjects and all blocks there could be. For contrast the interval that draws subjects
alone. Prints both coverages::

    python benchmarks/interval_coverage.py
"""

from __future__ import annotations

import argparse

import numpy as np

from brainspeech import statistics


def coverage(
    *,
    n_simulations: int,
    n_subjects: int = 33,
    n_blocks: int = 6,
    n_windows: int = 30,
    accuracy: float = 0.4,
    subject_sd: float = 0.05,
    block_sd: float = 0.08,
    n_bootstrap: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Simulate and give the achieved coverage of (the two-way interval, the interval over subjects alone).

    Parameters
    ----------
    n_windows : int
        Windows in a subject x block cell.
    accuracy, subject_sd, block_sd : float
        Mean and standard deviations of the true accuracy, as fractions.
    """
    rng = np.random.default_rng(seed)
    counts = np.full((n_subjects, n_blocks), n_windows)
    two_way = subjects_alone = 0
    for i in range(n_simulations):
        effects = rng.normal(0, subject_sd, (n_subjects, 1)) + rng.normal(0, block_sd, n_blocks)
        hits = rng.binomial(n_windows, np.clip(accuracy + effects, 0, 1))
        covers = [
            limits is not None and limits[0, 0] <= accuracy <= limits[0, 1]
            for limits in (
                statistics.interval(sums, cells, n_bootstrap=n_bootstrap, confidence=confidence, seed=i)
                for sums, cells in (
                    (hits[None], counts),
                    (hits.sum(1, keepdims=True)[None], counts.sum(1, keepdims=True)),  # one block: only subjects are drawn
                )
            )
        ]
        two_way += covers[0]
        subjects_alone += covers[1]
    return two_way / n_simulations, subjects_alone / n_simulations


def main() -> None:
    """Print the coverages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000, help="repetitions of the experiment (default: 1000)")
    n = parser.parse_args().simulations
    two_way, subjects_alone = coverage(n_simulations=n)
    print(f"33 subjects x 6 blocks, block sd 8 points, subject sd 5 points, {n} simulations; nominal coverage 95 %")
    print(f"  two-way bootstrap, expanded percentile: {two_way:6.1%}  (needed: at least 88 %)")
    print(f"  bootstrap over subjects alone:          {subjects_alone:6.1%}")
    print(f"  ratio two-way / subjects alone:         {two_way / subjects_alone:6.2f}")


if __name__ == "__main__":
    main()
