"""How sure a retrieval number is: intervals by a two-way bootstrap, and permutation tests. Plain numpy, no models.

Windows are not independent: those of a subject share a head, those of a block share a stimulus, neighbours overlap. So the units that are
drawn again are subjects and blocks, never windows, and the permutations move whole stretches of the stimulus.

Shapes: W windows, N candidates, S subjects, K blocks, M metrics, R replicates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.stats import norm, rankdata, t, wilcoxon

CHUNK = 1000  # replicates (or windows) held at once: bounds the memory
TOLERANCE = 1e-9  # sums of floats that are equal on paper count as equal


def cell_sums(values: np.ndarray, subjects: np.ndarray, blocks: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Sum values over the windows of each subject x block cell.

    Parameters
    ----------
    values : array, shape (M, W)
    subjects, blocks : array of int, shape (W,)
    shape : tuple
        (S, K).

    Returns
    -------
    array, shape (M, S, K)
    """
    cells = np.asarray(subjects) * shape[1] + np.asarray(blocks)
    sums = [np.bincount(cells, weights=row, minlength=shape[0] * shape[1]) for row in np.atleast_2d(values)]
    return np.stack(sums).reshape(-1, *shape)


def expanded_tail(confidence: float, n: int) -> float:
    """Give the tail probability that a percentile interval should cut so that it covers ``confidence`` with n units.

    The expanded percentile interval of Hesterberg (2015, "What teachers should know about the bootstrap", The American Statistician 69,
    section 5.3): a plain percentile interval is too narrow by sqrt((n - 1) / n) and by normal instead of t quantiles.
    alpha'/2 = Phi(-sqrt(n / (n - 1)) t_{1 - alpha/2, n - 1}).
    """
    if n < 2:
        raise ValueError(f"An interval needs at least 2 units to draw from, got {n}.")
    return float(norm.cdf(math.sqrt(n / (n - 1)) * t.ppf((1 - confidence) / 2, n - 1)))


def interval(
    sums: np.ndarray, counts: np.ndarray, *, n_bootstrap: int = 10_000, confidence: float = 0.95, seed: int = 0
) -> np.ndarray | None:
    """Bootstrap the ratio of sums to counts over subjects x blocks.

    Subjects and blocks are drawn with replacement, independently of each other; a cell counts as often as its subject times as often as its
    block. Of one subject only the blocks are drawn, of one block only the subjects. All metrics see the same draws.

    Parameters
    ----------
    sums : array, shape (M, S, K)
        Sum of the metric over the windows of a cell.
    counts : array, shape (S, K)
        Windows of a cell; 0 where a subject did not hear a block.
    n_bootstrap : int
        Replicates.
    confidence : float
        Nominal coverage.

    Returns
    -------
    array, shape (M, 2), or None
        Lower and upper limit; None with one subject and one block, where nothing can be drawn.
    """
    n_subjects, n_blocks = counts.shape
    units = [n for n in (n_subjects, n_blocks) if n > 1]
    if not units:
        return None
    rng = np.random.default_rng(seed)
    ratios = []
    for first in range(0, n_bootstrap, CHUNK):
        size = min(CHUNK, n_bootstrap - first)
        of_subject = _draws(rng, n_subjects, size)  # (R, S)
        of_block = _draws(rng, n_blocks, size)  # (R, K)
        total = ((of_subject @ counts) * of_block).sum(1)  # (R,)
        drawn = total > 0  # where subjects heard different blocks a draw may hit empty cells only
        hits = np.stack([((of_subject @ metric) * of_block).sum(1)[drawn] for metric in sums], 1)  # (R, M)
        ratios.append(hits / total[drawn, None])
    tail = expanded_tail(confidence, min(units))
    return np.quantile(np.concatenate(ratios), [tail, 1 - tail], axis=0).T


def _draws(rng: np.random.Generator, n: int, size: int) -> np.ndarray:
    """How often each of n units is drawn, shape (size, n); a single unit is not drawn but kept."""
    if n == 1:
        return np.ones((size, 1))
    return rng.multinomial(n, np.full(n, 1 / n), size=size).astype(float)


def exact_limits(n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Give (upper limit of 0 hits in n, lower limit of n hits in n), by Clopper and Pearson (1934).

    A bootstrap of hits that are all misses, or all hits, has no width; these limits stand in for it.
    """
    lowest = ((1 - confidence) / 2) ** (1 / n)
    return 1 - lowest, lowest


def column_ranks(scores: np.ndarray) -> np.ndarray:
    """Rank every candidate in every row, ties and NaN against it: what the rank of each column would be if it were the true one.

    Parameters
    ----------
    scores : array, shape (W, N)

    Returns
    -------
    array of int32, shape (W, N)
        0 is best; a NaN is last itself and stands before every other column.
    """
    scores = np.asarray(scores)
    out = np.empty(scores.shape, np.int32)
    for first in range(0, len(scores), CHUNK):
        part = np.asarray(scores[first : first + CHUNK], np.float32)
        bad = np.isnan(part)
        ranks = rankdata(np.where(bad, -np.inf, -part), method="max", axis=1) - 1
        out[first : first + CHUNK] = np.where(bad, scores.shape[1] - 1, ranks)
    return out


def column_hits(scores: np.ndarray, k: int) -> np.ndarray:
    """Tell which columns `column_ranks` puts among the k best: the same without sorting, shape (W, N), bool."""
    scores = np.asarray(scores)
    if k >= scores.shape[1]:
        return np.ones(scores.shape, bool)
    out = np.empty(scores.shape, bool)
    for first in range(0, len(scores), CHUNK):
        part = np.asarray(scores[first : first + CHUNK], np.float32)
        bad = np.isnan(part)
        best_first = np.where(bad, -np.inf, -part)
        out[first : first + CHUNK] = best_first < np.partition(best_first, k, axis=1)[:, k, None]  # strictly before the one in place k
        out[first : first + CHUNK][bad] = False
    return out


def by_stimulus(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Sum the rows of a (W, N) matrix over the windows of each stimulus: entry (j, c) is what stimulus j would get if c were its candidate.

    Returns
    -------
    array, shape (N, N)
        Its trace is the observed sum; the sum along a permutation is a draw of the null.
    """
    n_windows, n_candidates = values.shape
    member = csr_array((np.ones(n_windows), (np.asarray(truth), np.arange(n_windows))), shape=(n_candidates, n_windows))
    return member @ np.asarray(values, float)


def shuffled_blocks(blocks: np.ndarray, n: int, *, seed: int = 0) -> Iterator[np.ndarray]:
    """Draw candidates in a new order: blocks in random order, then the whole list rolled; inside a block the order of time stays.

    Neighbours stay neighbours, so estimates and candidates keep their autocorrelation; every candidate is used once, so a hub stays a hub.

    Parameters
    ----------
    blocks : array of int, shape (N,)
        Block of each candidate; candidates in order of time.

    Yields
    ------
    array of int, shape (<= 1000, N)
        Candidate that stands in for each true one.
    """
    rng = np.random.default_rng(seed)
    blocks = np.asarray(blocks)
    n_candidates, positions = len(blocks), np.arange(len(blocks))
    for first in range(0, n, CHUNK):
        size = min(CHUNK, n - first)
        keys = rng.random((size, blocks.max() + 1))
        order = np.argsort(keys[:, blocks], axis=1, kind="stable")
        roll = rng.integers(n_candidates, size=(size, 1))
        yield np.take_along_axis(order, (positions - roll) % n_candidates, axis=1)


def shifted_within_blocks(blocks: np.ndarray, n: int, *, seed: int = 0) -> Iterator[np.ndarray]:
    """Draw as `shuffled_blocks` does, but roll candidates inside their own block, each block by its own amount (0 included)."""
    rng = np.random.default_rng(seed)
    blocks = np.asarray(blocks)
    order = np.argsort(blocks, kind="stable")
    sizes = np.bincount(blocks)
    starts = np.cumsum(sizes) - sizes
    position = np.empty(len(blocks), int)
    position[order] = np.arange(len(blocks)) - starts[blocks[order]]
    for first in range(0, n, CHUNK):
        shifts = rng.integers(0, sizes, size=(min(CHUNK, n - first), len(sizes)))  # (R, K)
        yield order[starts[blocks] + (position + shifts[:, blocks]) % sizes[blocks]]


def permutation_p(matrices: np.ndarray, draws: Iterator[np.ndarray]) -> np.ndarray:
    """Test one-sided whether each stimulus' own candidate does better than permuted ones.

    Parameters
    ----------
    matrices : array, shape (M, N, N)
        From `by_stimulus`; higher is better.
    draws : iterator of arrays, shape (R, N)

    Returns
    -------
    array, shape (M,)
        p = (1 + draws that reach the observed sum) / (1 + draws).
    """
    observed = np.trace(matrices, axis1=1, axis2=2)
    slack = TOLERANCE * (1 + np.abs(observed))
    reached, n = np.zeros(len(matrices), int), 0
    rows = np.arange(matrices.shape[1])
    for draw in draws:
        null = np.stack([matrix[rows, draw].sum(1) for matrix in matrices])  # (M, R)
        reached += (null >= (observed - slack)[:, None]).sum(1)
        n += len(draw)
    return (1 + reached) / (1 + n)


def swap_p(differences: np.ndarray, *, n_permutations: int = 10_000, seed: int = 0) -> np.ndarray:
    """Test one-sided, by swapping two rows' results unit by unit, whether the first row is better than the second.

    Parameters
    ----------
    differences : array, shape (M, U)
        Sum of the first row's results minus the second's, for each of U units.

    Returns
    -------
    array, shape (M,)
        p = (1 + draws that reach the observed sum) / (1 + draws); it cannot fall much below 2^-U.
    """
    rng = np.random.default_rng(seed)
    differences = np.atleast_2d(differences)
    observed = differences.sum(1)
    slack = TOLERANCE * (1 + np.abs(differences).sum(1))
    reached = np.zeros(len(differences), int)
    for first in range(0, n_permutations, CHUNK):
        signs = rng.choice([-1.0, 1.0], size=(min(CHUNK, n_permutations - first), differences.shape[1]))
        reached += (signs @ differences.T >= observed - slack).sum(0)
    return (1 + reached) / (1 + n_permutations)


def signed_rank_p(differences: Sequence[float] | np.ndarray) -> float:
    """Test two-sided, by Wilcoxon's signed ranks, whether paired differences are centred on 0.

    Differences of 0 are taken out first, as Wilcoxon did, so that scipy chooses between the exact distribution, all sign patterns (up to 13
    differences with ties) and the normal approximation by what is left.

    Parameters
    ----------
    differences : array, shape (U,)
        One per unit, such as a subject.

    Returns
    -------
    float
        1 where every difference is 0; never below `smallest_signed_rank_p` of those that are not.

    Raises
    ------
    ValueError
        If there is none, or one is not finite.
    """
    differences = np.asarray(differences, float)
    if differences.ndim != 1 or not len(differences) or not np.isfinite(differences).all():
        raise ValueError(f"The signed-rank test takes finite differences of shape (U,), got {differences!r}.")
    moved = np.round(differences / TOLERANCE) * TOLERANCE  # what is equal on paper is a tie
    moved = moved[moved != 0]
    return float(wilcoxon(moved).pvalue) if len(moved) else 1.0


def smallest_signed_rank_p(n: int) -> float:
    """Give the smallest p that the two-sided signed-rank test can reach with n differences: all on one side, 2 of 2^n sign patterns."""
    return min(1.0, 2.0 ** (1 - n))


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """Correct p values for their number, by Holm (1979): the chance of any false finding among them stays below the level.

    The smallest is multiplied by their number, the next by one less, and so on; none becomes smaller than one before it, nor larger than 1.

    Parameters
    ----------
    p : array, shape (M,)

    Raises
    ------
    ValueError
        If one is no probability. Leave out what was not tested.
    """
    p = np.asarray(p, float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"Holm's correction takes probabilities of shape (M,), got {p!r}. Leave out what was not tested.")
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected
