from __future__ import annotations

import math

import pytest
import torch

from brainspeech import losses

X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
Y = torch.tensor([[0.8, 0.6], [-0.6, 0.8], [1.0, 0.0]], dtype=torch.float64)


def make_pairs(n, seed):
    return torch.randn(n, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def paper_loss(estimates, candidates, *, ignored=(), rows=None):
    """The loss of the paper in plain loops: candidates normalised, one direction, no temperature; row i's own is column i."""
    terms = []
    for i in range(len(estimates)) if rows is None else rows:
        scores = []
        for j in range(len(candidates)):
            inner = sum(a * b for a, b in zip(estimates[i].flatten().tolist(), candidates[j].flatten().tolist(), strict=True))
            norm = math.sqrt(sum(b * b for b in candidates[j].flatten().tolist()))
            scores.append(inner / (1e-8 + norm))
        total = sum(math.exp(score) for j, score in enumerate(scores) if (i, j) not in ignored)
        terms.append(-math.log(math.exp(scores[i]) / total))
    return sum(terms) / len(terms)


def test_golden_numbers():
    estimates, candidates = (2 * X).reshape(3, 1, 2), (5 * Y).reshape(3, 1, 2)
    clip = losses.build("clip")
    assert clip(estimates, candidates).loss.item() == pytest.approx(0.9466979425, abs=2e-9)
    probabilities = clip.scores(estimates, candidates).softmax(1)[0]
    assert probabilities.tolist() == pytest.approx([0.3917520891, 0.0238224691, 0.5844254418], abs=2e-9)


@pytest.mark.parametrize("n_candidates", [4, 7])
def test_plain_loops(n_candidates):
    """The first four candidates are the targets; the others are negatives only."""
    estimates, candidates = make_pairs(4, 0), make_pairs(n_candidates, 1)
    assert losses.build("clip")(estimates, candidates).loss.item() == pytest.approx(paper_loss(estimates, candidates), abs=1e-9)


def test_duplicates_are_ignored_or_negative():
    estimates, candidates = make_pairs(4, 0), make_pairs(4, 1)
    ids = torch.tensor([7, 3, 7, 5])
    output = losses.build("clip")(estimates, candidates, row_ids=ids)
    assert output.loss.item() == pytest.approx(paper_loss(estimates, candidates, ignored={(0, 2), (2, 0)}), abs=1e-9)
    assert output.logs["n_ignored"] == 2
    negative = losses.build("clip", duplicates="negative")(estimates, candidates, row_ids=ids)
    assert negative.loss.item() == pytest.approx(paper_loss(estimates, candidates), abs=1e-9)
    assert negative.logs["n_ignored"] == 0


def test_own_candidate_is_found_by_its_id():
    """Candidates in any order, fewer than rows where rows share one."""
    candidates = make_pairs(3, 1)
    own = torch.tensor([2, 0, 1, 0])
    col_ids = torch.tensor([10, 20, 30])
    estimates = make_pairs(4, 0)
    output = losses.build("clip")(estimates, candidates, row_ids=col_ids[own], col_ids=col_ids)
    scores = losses.build("clip").scores(estimates, candidates)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(scores, own))
    assert output.logs["n_ignored"] == 0


def test_own_candidate_is_the_one_in_place_before_the_first():
    estimates, candidates = make_pairs(3, 0), make_pairs(3, 1)
    ids = torch.tensor([1, 1, 2])
    scores = (
        losses.build("clip").scores(estimates, candidates).masked_fill(torch.tensor([[0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool(), -torch.inf)
    )
    output = losses.build("clip")(estimates, candidates, row_ids=ids, col_ids=ids)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(scores, torch.arange(3)))


def test_ignored_entries_get_no_gradient():
    estimates, candidates = make_pairs(3, 0), make_pairs(3, 1).requires_grad_()
    ids = torch.tensor([1, 2, 1])
    losses.build("clip")(estimates[:1], candidates, row_ids=ids[:1], col_ids=ids).loss.backward()
    assert candidates.grad[2].abs().sum() == 0
    assert candidates.grad[1].abs().sum() > 0


def test_a_batch_without_negatives_is_an_error():
    estimates, candidates = make_pairs(2, 0), make_pairs(3, 1)
    clip = losses.build("clip")
    with pytest.raises(ValueError, match="No estimate has a negative among 2 candidates"):
        clip(estimates, candidates[:2], row_ids=torch.tensor([4, 4]))
    with pytest.raises(ValueError, match="No estimate has a negative among 1 candidates"):
        clip(estimates[:1], candidates[:1])
    ids = torch.tensor([4, 4, 9])
    assert clip(estimates, candidates, row_ids=ids[:2], col_ids=ids).loss > 0


def test_scale_of_candidates_does_not_matter_and_that_of_estimates_does():
    estimates, candidates = make_pairs(4, 0), make_pairs(4, 1)
    clip = losses.build("clip")
    loss = clip(estimates, candidates).loss
    torch.testing.assert_close(clip(estimates, 100 * candidates).loss, loss)
    assert not torch.isclose(clip(100 * estimates, candidates).loss, loss)


def test_gradient_is_that_of_finite_differences():
    estimates, candidates = make_pairs(3, 0).requires_grad_(), make_pairs(4, 1)
    ids = torch.tensor([1, 2, 1]), torch.tensor([1, 2, 1, 3])
    clip = losses.build("clip")
    assert torch.autograd.gradcheck(lambda x: clip(x, candidates, row_ids=ids[0], col_ids=ids[1]).loss, (estimates,))


def test_logits_stay_float32_under_autocast():
    estimates, candidates = make_pairs(4, 0).float(), make_pairs(4, 1).float()
    clip = losses.build("clip")
    expected = clip(estimates, candidates).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert clip.scores(estimates, candidates).dtype == torch.float32
        assert torch.equal(clip(estimates, candidates).loss, expected)
    assert clip(estimates.bfloat16(), candidates).loss.dtype == torch.float32


def test_bad_input_is_named():
    estimates, candidates = make_pairs(4, 0), make_pairs(4, 1)
    ids = torch.arange(4)
    clip = losses.build("clip")
    with pytest.raises(ValueError, match="must agree in features and times"):
        clip(estimates, candidates[:, :, 1:])
    with pytest.raises(ValueError, match="got 4 estimates, but 3 candidates"):
        clip(estimates, candidates[:3])
    with pytest.raises(ValueError, match=r"Ids must be \(4,\) and \(4,\), got row_ids \(3,\)"):
        clip(estimates, candidates, row_ids=ids[:3])
    with pytest.raises(ValueError, match=r"col_ids \(3,\)"):
        clip(estimates, candidates, row_ids=ids, col_ids=ids[:3])
    with pytest.raises(ValueError, match="give col_ids too"):
        clip(estimates, make_pairs(5, 1), row_ids=ids)
    with pytest.raises(ValueError, match="col_ids without row_ids"):
        clip(estimates, candidates, col_ids=ids)
    with pytest.raises(ValueError, match=r"have no candidate, among them \[3\]"):
        clip(estimates, candidates, row_ids=ids, col_ids=torch.tensor([0, 1, 2, 2]))
    with pytest.raises(ValueError, match="duplicates must be one of ignore, negative, positive, error"):
        losses.build("clip", duplicates="drop")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_named(value):
    estimates, candidates = make_pairs(4, 0), make_pairs(4, 1)
    estimates[2, 1, 3] = value
    with pytest.raises(ValueError, match="1 of 4 estimates are not finite, rows 2"):
        losses.build("clip")(estimates, candidates)
    with pytest.raises(ValueError, match="1 of 4 candidates are not finite, rows 2"):
        losses.build("clip")(candidates, estimates)
    with pytest.raises(ValueError, match="overflow"):
        losses.build("clip")(torch.full((2, 3, 5), 1e300, dtype=torch.float64) * 1e8, torch.full((2, 3, 5), 1.0, dtype=torch.float64))
