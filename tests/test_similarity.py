from __future__ import annotations

import functools

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


# ------------------------------------------------------------------------------------------------------------ repeated candidates

EXPECTED = {similarity.dot: "dot", similarity.candidate_normalised: "candidate_normalised", similarity.cosine: "cosine"}
every_repeated_score = pytest.mark.parametrize("score", EXPECTED, ids=EXPECTED.get)


def upsampled(n_candidates=30, n_features=5, n_times=343, dtype=torch.float64, seed=0):
    """Frames at 50 Hz, the frame of each candidate at each time of 120 Hz, and the candidates; windows begin between any two frames."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(n_candidates, n_features, 160, generator=generator, dtype=torch.float64).to(dtype)
    begins = torch.rand(n_candidates, 1, generator=generator, dtype=torch.float64) * 10
    index = (begins + torch.arange(n_times) * 50 / 120 + 0.5).floor().long()
    return frames, index, torch.stack([frame[:, places] for frame, places in zip(frames, index, strict=True)])


@every_repeated_score
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_repeated_candidates_score_as_they_are(score, dtype):
    frames, index, candidates = upsampled(dtype=dtype)
    estimates = torch.randn(7, 5, 343, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(candidates.dtype)
    expected = score(estimates.double(), candidates.double())
    tolerance = 1e-12 if dtype is torch.float64 else 1e-6
    for repeated in (similarity.Repeated.of(candidates), similarity.Repeated.of(frames, index)):
        scores = score(estimates, repeated)
        assert scores.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(scores.double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_repeated_candidates_keep_every_frame_once():
    frames, index, candidates = upsampled(200)
    for repeated in (similarity.Repeated.of(candidates, chunk=7), similarity.Repeated.of(frames, index)):
        assert len(repeated) == 200
        assert repeated.shape == tuple(candidates.shape)
        # Five frames in twelve samples, of two or three each: those that are as long and begin at the same time are neighbours.
        assert len(repeated.stretches) < 3 * 343
        assert repeated.saving == pytest.approx(2.4, rel=0.01)
        covered = torch.zeros(200, 343, dtype=torch.int64)
        for start, stop, first, last in repeated.stretches:
            covered[first:last, start:stop] += 1
        assert (covered == 1).all()
        torch.testing.assert_close(repeated.norm, candidates.flatten(1).norm(dim=1))


def test_what_does_not_repeat_is_kept_as_it_is():
    estimates, candidates = make_pairs()
    candidates[2] = 0.0  # silence: one stretch
    candidates[3, 1, 4] = torch.nan  # equals nothing
    repeated = similarity.Repeated.of(candidates)
    assert len(repeated.frames) == 4 * 9 + 1
    torch.testing.assert_close(similarity.cosine(estimates, repeated), similarity.cosine(estimates, candidates), equal_nan=True)
    assert similarity.dot(estimates, repeated)[:, 3].isnan().all()


def test_repeated_candidates_pass_gradients_to_the_estimates():
    estimates, candidates = make_pairs()
    candidates = candidates.repeat_interleave(2, dim=2)[..., :9].contiguous()
    gradients = []
    for form in (candidates, similarity.Repeated.of(candidates)):
        leaf = estimates.clone().requires_grad_()
        similarity.candidate_normalised(leaf, form).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_repeated_candidates_that_cannot_be_are_errors():
    frames, index, candidates = upsampled(3)
    with pytest.raises(ValueError, match=r"row of times for each of 3 candidates, got the shape \(2, 343\)"):
        similarity.Repeated.of(frames, index[:2])
    with pytest.raises(ValueError, match=r"frames 0\.\.159, got \d+\.\.\d+"):
        similarity.Repeated.of(frames, index + 100)
    with pytest.raises(ValueError, match=r"Candidates must be \(N, F, T\)"):
        similarity.Repeated.of(candidates[0])
    repeated = similarity.Repeated.of(candidates)
    with pytest.raises(ValueError, match="must agree in features and times"):
        similarity.dot(candidates[:, :, :-1], repeated)
    for form in (repeated, similarity.Normed(candidates)):
        with pytest.raises(ValueError, match=f"correlation takes candidates .* got {type(form).__name__} ones"):
            similarity.correlation(candidates, form)


def many(n_candidates=similarity.LEAST_CANDIDATES, n_features=334, n_times=48):
    """So many candidates at 50 Hz in 120 Hz that their own rate pays."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.randn(n_candidates, n_features, 32, generator=generator)
    begins = torch.rand(n_candidates, 1, generator=generator)
    index = (begins + torch.arange(n_times) * 50 / 120).floor().long()
    return torch.stack([frame[:, places] for frame, places in zip(frames, index, strict=True)])


def test_candidates_are_scored_at_their_own_rate_where_that_pays():
    candidates = many()
    score = similarity.candidate_normalised
    repeated = similarity.prepare(candidates, score)
    assert isinstance(repeated, similarity.Repeated)
    assert repeated.shape == tuple(candidates.shape)
    noise = torch.randn(candidates.shape, generator=torch.Generator().manual_seed(1))
    for kept in (candidates[1:], candidates[:, :190], noise):  # one too few, too few features, nothing repeats
        normed = similarity.prepare(kept, score)
        assert isinstance(normed, similarity.Normed)
        assert normed.values is kept


@pytest.mark.parametrize("score", [similarity.correlation, lambda estimates, candidates: similarity.dot(estimates, candidates)])
def test_scores_that_are_no_inner_product_get_candidates_as_they_are(score):
    candidates = many()
    assert similarity.prepare(candidates, score) is candidates


class Inner:
    """An object that leaves its scores to an inner product, and has another method beside."""

    takes_prepared = True

    def scores(self, estimates, candidates):
        return similarity.dot(estimates, candidates)

    def other(self, estimates, candidates):
        return estimates.flatten(1) @ candidates.flatten(1).T


def test_only_the_method_scores_of_an_object_gets_prepared_candidates():
    inner = Inner()
    assert similarity.takes_prepared(inner.scores)
    for scores in (inner.other, functools.partial(similarity.dot), torch.cdist, len):
        assert not similarity.takes_prepared(scores)


@every_repeated_score
def test_the_norm_of_candidates_is_computed_once(score, monkeypatch):
    estimates, candidates = make_pairs()
    normed = similarity.Normed(candidates)
    assert torch.equal(score(estimates, normed), score(estimates, candidates))
    monkeypatch.setattr(torch.Tensor, "norm", lambda *_, **__: pytest.fail("computed again"))
    if score is not similarity.cosine:  # which needs those of the estimates
        score(estimates, normed)
    assert normed.to("cpu") is normed
    assert (len(normed), normed.shape) == (len(candidates), candidates.shape)


def test_a_few_candidates_that_repeat_do_not_speak_for_all():
    candidates = torch.randn(504, 334, 24, generator=torch.Generator().manual_seed(2))
    candidates[::63] = candidates[::63, :, :12].repeat_interleave(2, dim=2)
    assert isinstance(similarity.prepare(candidates, similarity.dot), similarity.Normed)


@pytest.mark.parametrize("n_estimates", [1, 5, 48, 50])
def test_equal_candidates_tie_at_their_own_rate(n_estimates):
    candidates = many()
    candidates[1::2] = candidates[::2].clone()
    repeated = similarity.prepare(candidates, similarity.cosine)
    assert isinstance(repeated, similarity.Repeated)
    estimates = torch.randn(n_estimates, 334, 48, generator=torch.Generator().manual_seed(3))
    scores = similarity.cosine(estimates, repeated)
    assert torch.equal(scores[:, 1::2], scores[:, ::2])


def test_many_estimates_are_scored_as_few(monkeypatch):
    frames, index, _ = upsampled(dtype=torch.float32)
    repeated = similarity.Repeated.of(frames, index)
    estimates = torch.randn(103, 5, 343, generator=torch.Generator().manual_seed(1))
    expected = similarity.cosine(estimates, repeated)
    monkeypatch.setattr(similarity, "ROWS", 48)
    torch.testing.assert_close(similarity.cosine(estimates, repeated), expected)
    assert similarity.cosine(estimates[:0], repeated).shape == (0, 30)
