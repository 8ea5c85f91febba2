"""Intervals cover, tests keep their level under the null and find what was planted."""

from __future__ import annotations

import importlib.util
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, wilcoxon

from brainspeech import retrieval, statistics


def test_cell_sums_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    values, subjects, blocks = rng.random((2, 40)), rng.integers(3, size=40), rng.integers(4, size=40)
    expected = np.zeros((2, 3, 4))
    for m in range(2):
        for w in range(40):
            expected[m, subjects[w], blocks[w]] += values[m, w]
    np.testing.assert_allclose(statistics.cell_sums(values, subjects, blocks, (3, 4)), expected)


def test_expanded_tail_is_hesterbergs():
    # t quantile 2.5706 with 5 degrees of freedom, times sqrt(6 / 5) = 2.8159; Phi(-2.8159) = 0.00243
    assert statistics.expanded_tail(0.95, 6) == pytest.approx(0.00243, abs=2e-5)
    assert statistics.expanded_tail(0.95, 100_000) == pytest.approx(0.025, abs=1e-4)
    with pytest.raises(ValueError, match="at least 2"):
        statistics.expanded_tail(0.95, 1)


def test_interval_of_two_blocks_is_the_range_of_all_draws():
    sums, counts = np.array([[[1.0, 6.0]]]), np.array([[4, 8]])
    draws = [(sums[0, 0, a] + sums[0, 0, b]) / (counts[0, a] + counts[0, b]) for a, b in product(range(2), repeat=2)]
    np.testing.assert_allclose(statistics.interval(sums, counts, n_bootstrap=200, seed=1), [[min(draws), max(draws)]])


def test_interval_draws_subjects_and_blocks_together():
    # a draw of subjects (a, b) and blocks (c, d) has the mean of the four cells
    sums, counts = np.array([[[0.0, 2.0], [4.0, 10.0]]]), np.full((2, 2), 10)
    low, high = statistics.interval(sums, counts, n_bootstrap=500, seed=0)[0]
    assert (low, high) == (0.0, 1.0)


def test_interval_needs_something_to_draw():
    assert statistics.interval(np.ones((1, 1, 1)), np.ones((1, 1))) is None


def test_interval_skips_draws_of_empty_cells_only():
    limits = statistics.interval(np.diag([1.0, 2.0, 3.0])[None], np.diag([4, 4, 4]), n_bootstrap=300)
    assert np.isfinite(limits).all()
    assert 0.25 <= limits[0, 0] < limits[0, 1] <= 0.75


def test_two_way_interval_covers_and_subjects_alone_do_not():
    path = Path(__file__).parent.parent / "benchmarks" / "interval_coverage.py"
    spec = importlib.util.spec_from_file_location("interval_coverage", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    two_way, subjects_alone = benchmark.coverage(n_simulations=150, n_bootstrap=1000, seed=3)
    assert two_way >= 0.88
    assert subjects_alone < 0.7


def test_exact_limits_are_clopper_and_pearsons():
    upper, lower = statistics.exact_limits(30)
    assert upper == pytest.approx(binomtest(0, 30).proportion_ci(method="exact").high)
    assert lower == pytest.approx(binomtest(30, 30).proportion_ci(method="exact").low)


def test_column_ranks_are_those_of_retrieval_with_ties_and_nan():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, size=(12, 7)).astype(np.float32)
    scores[3, 2] = scores[5] = np.nan
    found = statistics.column_ranks(scores)
    for c in range(7):
        expected = retrieval.ranks_from_scores(scores, np.full(12, c)).ranks.numpy()
        np.testing.assert_array_equal(found[:, c], expected)
    for k in range(1, 9):
        np.testing.assert_array_equal(statistics.column_hits(scores, k), found < k)


def test_by_stimulus_sums_windows_and_its_trace_is_what_was_observed():
    rng = np.random.default_rng(0)
    values, truth = rng.random((9, 4)), np.array([0, 1, 2, 3, 0, 1, 2, 0, 0])
    found = statistics.by_stimulus(values, truth)
    np.testing.assert_allclose(found[0], values[truth == 0].sum(0))
    assert np.trace(found) == pytest.approx(values[np.arange(9), truth].sum())


BLOCKS = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2])


def test_shuffled_blocks_keep_neighbours_and_use_every_candidate_once():
    draws = np.concatenate(list(statistics.shuffled_blocks(BLOCKS, 1500, seed=0)))
    assert draws.shape == (1500, 9)
    assert (np.sort(draws, axis=1) == np.arange(9)).all()
    inside = [(a, a + 1) for a in range(8) if BLOCKS[a] == BLOCKS[a + 1]]
    for draw in draws[:50]:
        follows = {(a, b) for a, b in zip(draw, np.roll(draw, -1), strict=True)}
        assert all(pair in follows for pair in inside)
    share = np.bincount(draws[:, 0], minlength=9) / len(draws)  # every candidate is as likely to stand in for the first
    np.testing.assert_allclose(share, 1 / 9, atol=0.03)


def test_shifts_within_blocks_are_all_the_circular_shifts():
    blocks = np.array([0, 1, 0, 1, 0])  # blocks need not be contiguous
    draws = np.concatenate(list(statistics.shifted_within_blocks(blocks, 300, seed=0)))
    shifts = {0: (0, 2, 4), 1: (2, 4, 0), 2: (4, 0, 2)}
    expected = {tuple(np.array([s[0], t[0], s[1], t[1], s[2]])) for s in shifts.values() for t in ((1, 3), (3, 1))}
    assert {tuple(d) for d in draws} == expected


def test_permutation_p_of_a_known_null():
    # three candidates in one block: the roll gives three orders, the true one alone is perfect
    matrix = np.eye(3)[None]
    p = statistics.permutation_p(matrix, statistics.shuffled_blocks(np.zeros(3, int), 6000, seed=0))
    assert p[0] == pytest.approx(1 / 3, abs=0.02)
    constant = statistics.permutation_p(np.ones((1, 3, 3)), statistics.shuffled_blocks(np.zeros(3, int), 100))
    assert constant[0] == 1


def test_swap_p_of_a_known_null():
    # 5 units, all better: of 32 sign patterns one reaches the sum
    assert statistics.swap_p(np.ones((1, 5)), n_permutations=20_000)[0] == pytest.approx(1 / 32, abs=0.005)
    assert statistics.swap_p(np.zeros((1, 5)))[0] == 1
    assert statistics.swap_p(-np.ones((1, 5)))[0] == 1
    assert statistics.swap_p(np.ones((1, 30)))[0] < 0.001


def _correlated(rng, n_blocks, size, dim):
    """Feature vectors that change slowly inside a block, shape (n_blocks * size, dim)."""
    noise = rng.normal(size=(n_blocks, size + 4, dim))
    return np.concatenate([sum(part[i : i + size] for i in range(5)) for part in noise])


def _simulate(rng, *, gain):
    """Scores of 4 subjects whose estimates are autocorrelated, among candidates of which some are hubs."""
    n_blocks, size, dim = 8, 10, 6
    n = n_blocks * size
    candidates = _correlated(rng, n_blocks, size, dim)
    hubs = rng.exponential(3, size=n)  # a bonus that some candidates have in every row
    subjects = np.repeat(np.arange(4), n)
    truth = np.tile(np.arange(n), 4)
    estimates = np.concatenate([gain * candidates + _correlated(rng, n_blocks, size, dim) for _ in range(4)])
    return estimates @ candidates.T + hubs, truth, subjects, np.repeat(np.arange(n_blocks), size)


def test_p_above_chance_is_uniform_under_the_null_and_finds_a_planted_effect():
    ps, inside = [], []
    for i in range(200):
        scores, truth, _, blocks = _simulate(np.random.default_rng(i), gain=0.0)
        ranks = statistics.column_ranks(scores)
        hits = statistics.by_stimulus(ranks < 10, truth)[None]
        ps.append(statistics.permutation_p(hits, statistics.shuffled_blocks(blocks, 199, seed=i))[0])
        inner = statistics.by_stimulus(-ranks, truth)[None]
        inside.append(statistics.permutation_p(inner, statistics.shifted_within_blocks(blocks, 199, seed=i))[0])
    for found in (np.array(ps), np.array(inside)):
        assert (found < 0.05).mean() <= 0.10  # 5 % expected; 10 of 200, sd 3
        assert 0.4 < np.median(found) < 0.65
    scores, truth, _, blocks = _simulate(np.random.default_rng(1), gain=0.6)
    hits = statistics.by_stimulus(statistics.column_ranks(scores) < 10, truth)[None]
    assert statistics.permutation_p(hits, statistics.shuffled_blocks(blocks, 2000, seed=0))[0] < 0.001


def test_signed_ranks_are_scipys_without_the_zeros():
    d = np.random.default_rng(0).normal(size=20)
    assert statistics.signed_rank_p(d) == pytest.approx(wilcoxon(d).pvalue)
    assert statistics.signed_rank_p([*d, 0.0, 1e-15]) == pytest.approx(wilcoxon(d).pvalue)  # what is 0 on paper is 0
    assert statistics.signed_rank_p(np.zeros(9)) == 1
    # ranks 1, 2, 3, 4 with the sign of 1 the other way: two of sixteen patterns reach it on either side
    assert statistics.signed_rank_p([-1.0, 2.0, 3.0, 4.0]) == pytest.approx(4 / 16)
    # two equal differences and a third: 1.5, 1.5, 3, all on one side
    assert statistics.signed_rank_p([0.1 + 0.2, 0.3, 0.5]) == pytest.approx(2 / 8)
    for bad in ([], [np.nan, 1.0], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="finite differences"):
            statistics.signed_rank_p(bad)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_the_smallest_signed_rank_p_is_that_of_all_on_one_side(n):
    assert statistics.signed_rank_p(np.arange(1.0, n + 1)) == pytest.approx(statistics.smallest_signed_rank_p(n))


def test_holm_is_worked_out_by_hand():
    # sorted: 0.005 x 4 = 0.02; 0.01 x 3 = 0.03; 0.03 x 2 = 0.06; 0.04 x 1 = 0.04, raised to 0.06
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm([0.4, 0.9]), [0.8, 0.9])
    np.testing.assert_allclose(statistics.holm([0.7, 0.7]), [1, 1])
    assert statistics.holm([0.2]) == [0.2]
    assert len(statistics.holm([])) == 0
    for bad in ([0.2, np.nan], [1.2], [[0.1]]):
        with pytest.raises(ValueError, match="Leave out what was not tested"):
            statistics.holm(bad)
