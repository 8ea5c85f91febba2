"""Scores put together in other ways: the formulas' numbers, what must not change, and that noise stays noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from brainspeech import scorers

S = np.array([[0.8, -0.6, 1.0], [0.6, 0.8, 0.0], [0.96, 0.28, 0.6]])
WITH, WITHOUT = np.array([[2.0, 1.5, 0.0, -3.0]]), np.array([[2.5, 0.0, 0.0, -1.0]])


def plausible(logits, reference, beta=0.1):
    """Probabilities after the papers' cutoff, which the scorers leave out."""
    return softmax(np.where(reference < reference.max() + np.log(beta), -np.inf, logits))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_ritual_s_numbers():
    found = scorers.add_transformed(WITH, np.array([[[1.0, 2.0, 0.0, 0.0]]]), strength=3)
    np.testing.assert_allclose(plausible(found, WITH)[0], [0.0758194266, 0.9236697062, 0.0005108673, 0], atol=1e-9)
    transformed = noise(4, 3, 3)
    np.testing.assert_allclose(scorers.add_transformed(S, transformed), S + sum(transformed) / 4)
    np.testing.assert_array_equal(scorers.add_transformed(S, transformed, strength=0), S)


def test_scmoe_s_numbers():
    found = scorers.contrast_subjects(WITH, WITHOUT[None], strength=0.5)
    np.testing.assert_allclose(plausible(found, WITH)[0], [0.3542964378, 0.5841360731, 0.0615674891, 0], atol=1e-9)
    others = noise(3, 3, 3)
    np.testing.assert_allclose(scorers.contrast_subjects(S, others, strength=0.25), 1.25 * S - 0.25 * others.mean(0))
    np.testing.assert_array_equal(scorers.contrast_subjects(S, others, strength=0), S)


def test_overshadowing_s_numbers():
    found = scorers.take_popularity_off(S / 0.5, strength=1)
    np.testing.assert_allclose(found[0], [-0.0156921682, -2.0479974922, 0.6382397351], atol=1e-9)
    order = [2, 0, 1]
    np.testing.assert_allclose(scorers.take_popularity_off(S[order], strength=0.5), scorers.take_popularity_off(S, strength=0.5)[order])
    np.testing.assert_array_equal(scorers.take_popularity_off(S, strength=0), S)


def test_a_hub_is_not_the_nearest_to_everyone_any_more():
    scores = noise(200, 50)
    truth = np.arange(200) % 50
    scores[np.arange(200), truth] += 3
    scores[:, 7] += 4  # near to all
    before, after = (scorers.mean_log_rank(s, truth) for s in (scores, scorers.take_popularity_off(scores, strength=1)))
    assert after < 0.8 * before


def test_temperature_is_the_one_that_planted_probabilities_have():
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(4000, 6))
    truth = (softmax(logits, axis=1).cumsum(1) < rng.random((4000, 1))).sum(1)
    assert scorers.find_temperature(0.3 * logits, truth) == pytest.approx(0.3, rel=0.07)
    assert scorers.find_temperature(0.3 * logits + rng.normal(size=(4000, 1)), truth) == pytest.approx(0.3, rel=0.07)
    assert scorers.find_temperature(noise(50, 20), np.zeros(50, int)) > 3, "scores that say nothing are no evidence"
    assert np.isfinite(scorers.find_temperature(np.zeros((3, 4)), np.zeros(3, int)))


def test_fusion_finds_the_layer_that_knows_and_needs_no_scale():
    truth = np.arange(300) % 30
    stack = np.stack([1000 * noise(300, 30, seed=1), noise(300, 30, seed=2), noise(300, 30, seed=3)])
    stack[1, np.arange(300), truth] += 3
    stack[2, np.arange(300), truth] += 3
    weights = scorers.fusion_weights(stack, truth)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    assert weights[0] < 0.1 < min(weights[1:])
    fused = scorers.fuse(stack, weights)
    single = min(scorers.mean_log_rank(layer, truth) for layer in stack)
    assert scorers.mean_log_rank(fused, truth) < single
    scaled = stack * np.array([1, 50, 0.01])[:, None, None] + 3
    np.testing.assert_allclose(scorers.fuse(scaled, weights), fused)
    np.testing.assert_allclose(scorers.fusion_weights(scaled, truth), weights, atol=1e-6)


def test_fusion_is_the_formula_and_its_weights_are_the_best():
    stack, truth = noise(2, 40, 5, seed=4), np.arange(40) % 5
    stack[:, np.arange(40), truth] += np.array([[0.8], [0.4]])
    z = (stack - stack.mean(2, keepdims=True)) / stack.std(2, keepdims=True)
    np.testing.assert_allclose(scorers.fuse(stack, np.array([0.3, 0.7])), 0.3 * z[0] + 0.7 * z[1])

    def loss(a, b):
        logits = a * z[0] + b * z[1]
        return np.mean(logsumexp(logits, axis=1) - logits[np.arange(40), truth])

    grid = [(loss(a, b), a / (a + b)) for a in np.linspace(0.01, 3, 60) for b in np.linspace(0.01, 3, 60)]
    assert scorers.fusion_weights(stack, truth)[0] == pytest.approx(min(grid)[1], abs=0.03)
    np.testing.assert_allclose(scorers.fusion_weights(np.zeros((4, 6, 3)), np.zeros(6, int)), 0.25)


# ------------------------------------------------------------------------------------------------------------------------------- context


def test_neighbours_follow_each_other_without_overlap_inside_their_group():
    onset = np.array([0.0, 1.0, 3.0, 4.5, 6.0, 7.6, 3.0, 100.0])
    group = np.array([0, 0, 0, 0, 0, 0, 1, 0])
    found = scorers.find_neighbours(onset, group, duration=3.0, width=6.0)
    assert found.shape == (8, 4)  # before, after, and the next of each
    assert [[j for j in row if j >= 0] for row in found.tolist()] == [[2, 4], [3], [0, 4], [1, 5], [2, 0], [3], [], []]
    near = scorers.find_neighbours(onset, group, duration=3.0, width=3.2)
    assert [[j for j in row if j >= 0] for row in near.tolist()] == [[2], [], [0, 4], [5], [2], [3], [], []]
    assert scorers.find_neighbours(onset, group, duration=3.0, width=1.0).shape == (8, 0)


def test_candidates_are_shifted_inside_their_stretch_only():
    place, stretch = np.array([0.0, 3.0, 6.0, 6.2, 9.0]), np.array([0, 0, 0, 1, 1])
    np.testing.assert_array_equal(scorers.shift_candidates(place, stretch, 3.0, tolerance=0.0), [1, 2, -1, -1, -1])
    np.testing.assert_array_equal(scorers.shift_candidates(place, stretch, 2.7, tolerance=0.5), [1, 2, -1, 4, -1])
    np.testing.assert_array_equal(scorers.shift_candidates(place, stretch, -3.0, tolerance=0.5), [-1, 0, 1, -1, 3])
    np.testing.assert_array_equal(scorers.shift_candidates(place, stretch, 0.0, tolerance=0.0), np.arange(5))


def pooled(scores, onset, group, place, stretch, *, weight=1.0, width=3.0):
    neighbours = scorers.find_neighbours(onset, group, duration=3.0, width=width)
    return scorers.pool_context(scores, neighbours, onset=onset, place=place, stretch=stretch, weight=weight, tolerance=1.5)


def test_context_is_the_loop_of_its_formula():
    rng = np.random.default_rng(1)
    onset, group = np.sort(rng.uniform(0, 40, 14)), np.repeat([0, 1], 7)
    place, stretch = np.sort(rng.uniform(0, 30, 9)), np.repeat([0, 1, 2], 3)
    scores = noise(14, 9)
    neighbours = scorers.find_neighbours(onset, group, duration=3.0, width=6.0)
    z = (scores - scores.mean(1, keepdims=True)) / scores.std(1, keepdims=True)
    expected = np.empty_like(z)
    for w in range(14):
        for c in range(9):
            terms = []
            for v in neighbours[w][neighbours[w] >= 0]:
                away = np.abs(place - (place[c] + onset[v] - onset[w])) + 1e9 * (stretch != stretch[c])
                if away.min() <= 1.5:
                    terms.append(z[v, away.argmin()])
            expected[w, c] = (z[w, c] + 0.5 * sum(terms)) / np.sqrt(1 + 0.25 * len(terms))
    np.testing.assert_allclose(pooled(scores, onset, group, place, stretch, weight=0.5, width=6.0), expected)
    np.testing.assert_allclose(pooled(scores, onset, group, place, stretch, weight=0), z)


def stories(n_blocks=6, per_block=8, step=3.0):
    """Two listeners who hear blocks at other times and in another order; windows side by side."""
    place = np.concatenate([100.0 * k + step * np.arange(per_block) for k in range(n_blocks)])
    stretch = np.repeat(np.arange(n_blocks), per_block)
    onset = np.concatenate([place + 7, place[::-1].reshape(n_blocks, per_block)[:, ::-1].ravel() * 0 + np.arange(len(place)) * step])
    truth = np.concatenate([np.arange(len(place)), np.arange(len(place)).reshape(n_blocks, per_block)[::-1].ravel()])
    group = np.concatenate([stretch, n_blocks + np.repeat(np.arange(n_blocks), per_block)])
    return onset, group, place, stretch, truth


def test_context_helps_where_neighbours_know():
    onset, group, place, stretch, truth = stories()
    scores = noise(len(truth), len(place))
    scores[np.arange(len(truth)), truth] += 2
    alone = scorers.mean_log_rank(scores, truth)
    assert scorers.mean_log_rank(pooled(scores, onset, group, place, stretch), truth) < 0.6 * alone


@pytest.mark.parametrize("step", [3.0, 1.0])
def test_context_of_noise_is_noise_at_the_edges_too(step):
    """The own candidate has all its neighbours and others have not: without the root it would be first too often, at width 6 s by half."""
    onset, group, place, stretch, truth = stories(step=step)
    firsts = []
    for seed in range(200):
        found = pooled(noise(len(truth), len(place), seed=seed), onset, group, place, stretch, width=6.0)
        firsts.append(found.argmax(1) == truth)
    expected = 1 / len(place)
    assert np.mean(firsts) == pytest.approx(expected, abs=4 * np.sqrt(expected / np.size(firsts) * 3))


def test_context_does_not_ask_who_is_who():
    """Scores alone move with the candidates: renumbering windows and candidates renumbers the result."""
    onset, group, place, stretch, truth = stories()
    scores = noise(len(truth), len(place))
    rng = np.random.default_rng(5)
    w, c = rng.permutation(len(truth)), rng.permutation(len(place))
    found = pooled(scores[w][:, c], onset[w], group[w], place[c], stretch[c], width=6.0)
    np.testing.assert_allclose(found, pooled(scores, onset, group, place, stretch, width=6.0)[w][:, c])


# ------------------------------------------------------------------------------------------------------------------------------ choosing


def test_the_lowest_mean_log_rank_is_chosen_and_of_equal_ones_the_first():
    scores, truth = noise(40, 10), np.arange(40) % 10
    better = scores.copy()
    better[np.arange(40), truth] += 1
    ranks = [(row > row[t]).sum() for row, t in zip(scores, truth, strict=True)]
    assert scorers.mean_log_rank(scores, truth) == pytest.approx(np.mean(np.log1p(ranks)))
    assert scorers.mean_log_rank(np.zeros((2, 10)), np.zeros(2, int)) == pytest.approx(np.log(10)), "ties count against"
    assert scorers.choose([("off", scores), ("on", better), ("twice", 2 * better)], truth) == "on"
    with pytest.raises(ValueError, match="nothing to choose"):
        scorers.choose([], truth)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="among augment, layers, other_subject, hubness, context, got luck"):
        scorers.check_names(["luck"])
    with pytest.raises(ValueError, match="distinct"):
        scorers.check_names(["context", "context"])
    bad = S.copy()
    bad[1, 1] = np.nan
    with pytest.raises(ValueError, match="Scores of 1 windows are not finite"):
        scorers.take_popularity_off(bad, strength=1)
    with pytest.raises(ValueError, match=r"shape \(K, 3, 3\), got \(2, 3, 4\)"):
        scorers.add_transformed(S, noise(2, 3, 4))
    with pytest.raises(ValueError, match="floats of shape"):
        scorers.contrast_subjects(np.ones((3, 3), int), noise(1, 3, 3), strength=1)
    with pytest.raises(ValueError, match="0 or more, got -1"):
        scorers.take_popularity_off(S, strength=-1)
    with pytest.raises(ValueError, match="weight for each of 2 layers"):
        scorers.fuse(noise(2, 3, 3), np.ones(3))
    with pytest.raises(ValueError, match="a column of scores"):
        scorers.mean_log_rank(S, np.array([0, 1, 3]))
    with pytest.raises(ValueError, match="duration > 0"):
        scorers.find_neighbours(np.zeros(2), np.zeros(2), duration=0, width=1)
    with pytest.raises(ValueError, match="need neighbours"):
        scorers.pool_context(S, np.zeros((2, 1), int), onset=np.zeros(3), place=np.zeros(3), stretch=np.zeros(3), weight=1, tolerance=1)
