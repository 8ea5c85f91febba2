from __future__ import annotations

import numpy as np
import pytest
import torch

from brainspeech import similarity

EVERY = [similarity.dot, similarity.candidate_normalised, similarity.cosine, similarity.correlation]
every_score = pytest.mark.parametrize("score", EVERY, ids=lambda score: score.__name__)


def make_pairs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 3, 9, generator=generator).to(dtype), (torch.randn(5, 3, 9, generator=generator) * 3 + 1).to(dtype)


def test_scores_are_their_formulas():
    estimates, candidates = make_pairs()
    for i, x in enumerate(estimates.numpy()):
        for j, y in enumerate(candidates.numpy()):
            inner, x_norm, y_norm = (x * y).sum(), np.sqrt((x**2).sum()), np.sqrt((y**2).sum())
            expected = [inner, inner / y_norm, inner / (x_norm * y_norm), np.mean([np.corrcoef(x[f], y[f])[0, 1] for f in range(3)])]
            for score, value in zip(EVERY, expected, strict=True):
                assert score(estimates, candidates)[i, j].item() == pytest.approx(value, rel=1e-7), score.__name__


@every_score
def test_half_precision_is_computed_in_float32(score):
    estimates, candidates = make_pairs(torch.float16)
    scores = score(estimates, candidates)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, score(estimates.float(), candidates.float()))


@every_score
def test_autocast_changes_nothing(score):
    estimates, candidates = make_pairs(torch.float32)
    expected = score(estimates, candidates)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(score(estimates, candidates), expected)


@every_score
def test_inputs_are_left_alone_and_silence_is_finite(score):
    estimates, candidates = make_pairs()
    before = estimates.clone(), candidates.clone()
    score(estimates, candidates)
    assert torch.equal(estimates, before[0])
    assert torch.equal(candidates, before[1])
    assert (score(torch.zeros_like(estimates), torch.zeros_like(candidates)) == 0).all()


@every_score
def test_nan_is_not_hidden(score):
    estimates, candidates = make_pairs()
    estimates[1, 0, 3] = torch.nan
    scores = score(estimates, candidates)
    assert scores[1].isnan().all()
    assert scores[[0, 2, 3]].isfinite().all()


def test_constant_features_correlate_with_nothing():
    estimates, candidates = make_pairs(torch.float32)
    estimates[:, 1], candidates[:, 1] = 7.7, 77.7  # their means round so that 1e-7 of them remains
    expected = (2 * similarity.correlation(estimates[:, [0, 2]], candidates[:, [0, 2]])) / 3
    torch.testing.assert_close(similarity.correlation(estimates, candidates), expected, atol=1e-6, rtol=0)


@every_score
def test_shapes_that_disagree_are_errors(score):
    estimates, candidates = make_pairs()
    with pytest.raises(ValueError, match="must agree in features and times"):
        score(estimates, candidates[:, :2])
    with pytest.raises(ValueError, match="must agree in features and times"):
        score(estimates[0, 0], candidates)
