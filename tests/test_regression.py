"""The regression finds what was planted, finds nothing where there is nothing, and knows no block that it is tested on."""

from __future__ import annotations

import numpy as np
import pytest

from brainspeech import regression


def smooth(rng, n_blocks, per, d=1, width=4):
    """Draw values that neighbours of a block share, as overlapping windows do; shape (n_blocks x per, d)."""
    noise = rng.normal(size=(n_blocks, per + width - 1, d))
    return sum(noise[:, i : i + per] for i in range(width)).reshape(-1, d) / width**0.5


def test_a_planted_relation_is_found_and_a_shuffled_one_is_not():
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(20), 8)
    planted = smooth(rng, 20, 8, 3)
    target = planted @ [1.0, -1.0, 0.5] + smooth(rng, 20, 8)[:, 0]
    sets = {"planted": planted, "shuffled": planted[rng.permutation(160)], "other": smooth(rng, 20, 8, 3)}
    found = regression.relate(target, sets, blocks, n_permutations=499)
    assert found["planted"].r > 0.5 > found["planted"].high > found["planted"].low
    assert found["planted"].p == pytest.approx(0.002)
    assert found["planted"].p_holm == pytest.approx(0.006)
    assert found["planted"].n_features == 3
    assert min(found["shuffled"].p_holm, found["other"].p_holm) > 0.05


def test_p_is_about_uniform_where_there_is_no_relation():
    """Features and target are as smooth as each other, which makes plain correlations large."""
    p = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        target, features = smooth(rng, 8, 10)[:, 0], smooth(rng, 8, 10, 4)
        p.append(regression.relate(target, {"x": features}, np.repeat(np.arange(8), 10), n_permutations=99, seed=seed)["x"].p)
    p = np.array(p)
    # 60 draws of a uniform p: 3 standard deviations are 0.11 for the mean, 0.12 for the share below 0.1
    assert abs(p.mean() - 0.5) < 0.11
    assert (p <= 0.1).mean() < 0.1 + 0.12


def test_a_prediction_has_not_seen_the_block_it_is_for():
    rng = np.random.default_rng(0)
    blocks = np.repeat(np.arange(6), 5)
    features, target = rng.normal(size=(30, 2)), rng.normal(size=(30, 1))
    folds = regression.split(blocks)
    assert all(len(set(folds[blocks == b])) == 1 for b in range(6))
    held = folds == folds[0]
    before = regression.held_out(features, target, folds)
    after = regression.held_out(features, np.where(held[:, None], 100.0, target), folds)
    np.testing.assert_array_equal(before[held], after[held])
    assert not np.allclose(before[~held], after[~held])


def test_columns_are_predicted_one_by_one():
    rng = np.random.default_rng(0)
    features, targets, folds = rng.normal(size=(40, 3)), rng.normal(size=(40, 4)), np.arange(40) % 4
    targets[:, 0] += features[:, 0] * 3
    together = regression.held_out(features, targets, folds)
    np.testing.assert_allclose(together, np.hstack([regression.held_out(features, targets[:, [i]], folds) for i in range(4)]), atol=1e-9)


def test_correlations_are_within_folds():
    rng = np.random.default_rng(0)
    a, b, folds = rng.normal(size=(20, 2)), rng.normal(size=(20, 2)), np.repeat([0, 1], 10)
    np.testing.assert_allclose(regression.correlations(a, b, np.zeros(20, int)), [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(2)])
    np.testing.assert_allclose(regression.correlations(a + folds[:, None] * 9, b, folds), regression.correlations(a, b, folds))
    np.testing.assert_array_equal(regression.correlations(np.ones_like(a), b, folds), [0, 0])


@pytest.mark.parametrize("sizes", [(4, 4, 4), (2, 5, 3, 1)])
def test_blocks_are_exchanged_whole(sizes):
    blocks = np.repeat(np.arange(len(sizes)), sizes)
    draws = regression.exchanged_blocks(blocks, 50, seed=3)
    for draw in draws:
        sources = [set(blocks[draw[blocks == b]]) for b in range(len(sizes))]
        assert all(len(source) == 1 for source in sources)
        assert set.union(*sources) == set(range(len(sizes)))
        assert all((np.diff(draw[blocks == b]) >= 0).all() for b in range(len(sizes)))
        if len(set(sizes)) == 1:
            assert sorted(draw) == list(range(len(blocks)))
    assert len({tuple(draw) for draw in draws}) > 5


def test_what_cannot_be_tested_is_an_error():
    with pytest.raises(ValueError, match="at least 5 blocks, got 4"):
        regression.relate(np.zeros(8), {"x": np.zeros((8, 1))}, np.repeat(np.arange(4), 2))
    with pytest.raises(ValueError, match="x: expected finite features of 10 stimuli"):
        regression.relate(np.zeros(10), {"x": np.full((10, 1), np.nan)}, np.repeat(np.arange(5), 2))
