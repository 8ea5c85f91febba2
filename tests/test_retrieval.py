from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from brainspeech import similarity
from brainspeech.retrieval import chance, median_rank, ranks, ranks_from_scores, ranks_of_all, stream_scores, topk_accuracy


def make_pairs(n_rows=20, n_candidates=13, seed=0):
    generator = torch.Generator().manual_seed(seed)
    estimates = torch.randn(n_rows, 3, 6, generator=generator)
    candidates = torch.randn(n_candidates, 3, 6, generator=generator)
    return estimates, candidates, torch.randint(n_candidates, (n_rows,), generator=generator)


@pytest.mark.parametrize("scores", [similarity.candidate_normalised, similarity.cosine, similarity.correlation])
def test_ranks_are_those_of_sorting(scores):
    estimates, candidates, targets = make_pairs()
    order = scores(estimates, candidates).argsort(1, descending=True)
    expected = (order == targets[:, None]).int().argmax(1)
    found = ranks(estimates, candidates, targets, scores=scores)
    assert found.dtype == torch.int64
    assert torch.equal(found, expected)


def test_ranks_of_all_are_those_of_each_as_the_own_one():
    scores = torch.randint(4, (5, 7), generator=torch.Generator().manual_seed(0)).float()  # ties
    scores[1, 2], scores[3] = torch.nan, torch.nan
    scores[4, :2] = torch.tensor([torch.inf, -torch.inf])
    expected = [ranks_from_scores(scores, torch.full((5,), column)).ranks for column in range(7)]
    assert torch.equal(ranks_of_all(scores), torch.stack(expected, 1))
    assert ranks_of_all(np.array([[0.5, 2.0, 1.0]])).tolist() == [[2, 0, 1]]
    with pytest.raises(ValueError, match=r"Scores must be \(B, N\)"):
        ranks_of_all(scores[0])


@pytest.mark.parametrize("chunk", [1, 3, 13, 20, 100])
def test_chunked_is_full(chunk):
    estimates, candidates, targets = make_pairs()
    full = ranks_from_scores(similarity.candidate_normalised(estimates, candidates), targets).ranks
    assert torch.equal(ranks(estimates, candidates, targets, chunk=chunk), full)


def test_norms_of_candidates_are_computed_once_however_many_chunks_of_estimates(monkeypatch):
    estimates, candidates, targets = make_pairs()
    counted, norm = [], similarity._norm
    monkeypatch.setattr(similarity, "_norm", lambda values, dtype: counted.append(type(values)) or norm(values, dtype))
    ranks(estimates, candidates, targets, chunk=5)
    stream_scores(estimates, [candidates[:5], candidates[5:10], candidates[10:]], chunk=5)
    assert counted.count(torch.Tensor) == 2 * 3  # three parts each, of four chunks of estimates


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_repeated_candidates_have_the_same_ranks(chunk):
    estimates, candidates, targets = make_pairs()
    candidates = candidates[..., [0, 0, 1, 1, 1, 2]]
    expected = ranks(estimates, candidates, targets)
    for form in (similarity.Repeated.of(candidates), similarity.Normed(candidates)):
        assert torch.equal(ranks(estimates, form, targets, chunk=chunk), expected)


@pytest.mark.parametrize("chunk", [3, 20])
def test_streamed_scores_are_those_of_all_at_once(chunk):
    estimates, candidates, targets = make_pairs()
    expected = similarity.candidate_normalised(estimates, candidates)
    scores = stream_scores(estimates, (candidates[k : k + 5] for k in range(0, 13, 5)), chunk=chunk)
    torch.testing.assert_close(scores, expected)
    assert torch.equal(ranks_from_scores(scores, targets).ranks, ranks(estimates, candidates, targets))
    assert torch.equal(scores.topk(3).indices, expected.topk(3).indices)


def test_streamed_candidates_may_be_stored_in_half_precision():
    estimates, candidates, _ = make_pairs()
    stored = candidates.bfloat16()
    found = stream_scores(estimates, stored.split(4), scores=similarity.cosine)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, similarity.cosine(estimates, stored.float()))
    torch.testing.assert_close(stream_scores(estimates, [similarity.Repeated.of(stored)], scores=similarity.cosine), found)


def test_only_one_part_is_held_at_a_time():
    estimates, candidates, _ = make_pairs()
    alive = []

    def parts():
        for k in range(0, 12, 4):
            assert all(part() is None for part in alive[:-1])
            part = candidates[k : k + 4].clone()
            alive.append(weakref.ref(part))
            yield part
            del part

    assert stream_scores(estimates, parts()).shape == (20, 12)
    assert len(alive) == 3


def test_perfect_estimates_rank_first():
    _, candidates, targets = make_pairs()
    found = ranks(candidates[targets], candidates, targets)
    assert (found == 0).all()
    assert topk_accuracy(found, 1) == 1.0


def test_order_of_candidates_does_not_matter():
    estimates, candidates, targets = make_pairs()
    order = torch.randperm(13, generator=torch.Generator().manual_seed(3))
    place = order.argsort()
    assert torch.equal(ranks(estimates, candidates[order], place[targets]), ranks(estimates, candidates, targets))


def test_ties_count_against_us_and_are_counted():
    scores = torch.tensor([[1.0, 1.0, 0.0, 1.0], [3.0, 2.0, 2.0, 0.0], [0.0, 5.0, 5.0, 1.0]])
    found = ranks_from_scores(scores, torch.tensor([0, 1, 3]))
    assert found.ranks.tolist() == [2, 2, 2]
    assert found.n_ties == 2
    assert found.n_nan == 0


def test_collapsed_encoder_comes_last():
    _, candidates, targets = make_pairs()
    assert (ranks(torch.zeros(20, 3, 6), candidates, targets) == 12).all()


def test_nan_counts_against_us_and_is_counted():
    nan = torch.nan
    scores = torch.tensor([[nan, 0.0, 1.0], [nan, 2.0, 1.0], [3.0, 2.0, 1.0], [nan, nan, nan]])
    found = ranks_from_scores(scores, torch.tensor([0, 1, 0, 1]))
    assert found.ranks.tolist() == [2, 1, 0, 2]
    assert found.n_nan == 3
    assert found.n_ties == 0


def test_arrays_do_as_well():
    found = ranks_from_scores(np.array([[0.1, 0.9], [0.7, 0.2]], dtype=np.float32), np.array([1, 1]))
    assert found.ranks.tolist() == [0, 1]


def test_random_estimates_are_at_chance():
    estimates, candidates, targets = make_pairs(n_rows=4000)
    accuracy = topk_accuracy(ranks(estimates, candidates, targets), 3)
    sd = (chance(3, 13) * (1 - chance(3, 13)) / 4000) ** 0.5
    assert abs(accuracy - chance(3, 13)) < 4 * sd


def test_accuracy_median_and_chance():
    found = torch.tensor([0, 1, 4, 9])
    assert [topk_accuracy(found, k) for k in (1, 2, 5, 10)] == [0.25, 0.5, 0.75, 1.0]
    assert median_rank(found) == 2.5
    assert median_rank(np.array([3, 0, 8])) == 3.0
    assert chance(10, 100) == 0.1
    assert chance(10, 4) == 1.0


def test_bad_input_is_named():
    estimates, candidates, targets = make_pairs()
    with pytest.raises(ValueError, match=r"columns 0\.\.12, got"):
        ranks(estimates, candidates, targets + 13)
    with pytest.raises(ValueError, match="one column per estimate"):
        ranks(estimates, candidates, targets[:3])
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        ranks(estimates, candidates, targets, chunk=0)
    with pytest.raises(ValueError, match="must agree in features and times"):
        ranks(estimates, candidates[:, :2], targets)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        stream_scores(estimates, [candidates], chunk=0)
    with pytest.raises(ValueError, match="the parts are empty"):
        stream_scores(estimates, [])
    with pytest.raises(ValueError, match=r"Scores must be \(B, N\)"):
        ranks_from_scores(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="Is the test split empty"):
        topk_accuracy(torch.tensor([], dtype=torch.int64), 1)
    with pytest.raises(ValueError, match="k must be at least 1"):
        topk_accuracy(torch.tensor([1]), 0)
    with pytest.raises(ValueError, match="at least 1, got 1 and 0"):
        chance(1, 0)
