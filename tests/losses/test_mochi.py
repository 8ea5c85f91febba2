"""MoCHi: the Gram form against vectors that are really made, and what the mixtures are made of."""

from __future__ import annotations

import pytest
import torch
from paper_loops import X, Y, make_vectors
from torch.nn.functional import normalize

from brainspeech import losses
from brainspeech.losses.mochi import HardMixtures, mix, mix_with_query

FLOAT = torch.float64


def test_golden_numbers():
    first, second = torch.tensor(0.6, dtype=FLOAT), torch.tensor(0.8, dtype=FLOAT)  # q = [1, 0]
    gram = torch.tensor(0.6 * 0.8 - 0.8 * 0.6, dtype=FLOAT)
    a, b = torch.tensor(0.25, dtype=FLOAT), torch.tensor(0.4, dtype=FLOAT)
    assert mix(first, second, gram, a).item() == pytest.approx(0.9486832981, abs=1e-9)
    assert mix(first, second, gram, a).item() / 0.2 == pytest.approx(4.7434164903, abs=1e-9)
    assert mix_with_query(first, b).item() / 0.2 == pytest.approx(4.2274445152, abs=1e-9)


def test_gram_form_has_value_and_gradient_of_the_vectors():
    n1, n2 = (normalize(make_vectors(6, seed, shape=(15,)), dim=1) for seed in (1, 2))
    a = torch.rand(6, generator=torch.Generator().manual_seed(3), dtype=FLOAT)

    def made(raw):
        q = normalize(raw, dim=1)
        pair = normalize(a[:, None] * n1 + (1 - a[:, None]) * n2, dim=1)
        with_query = normalize(a[:, None] / 2 * q + (1 - a[:, None] / 2) * n2, dim=1).detach()
        return (q * pair).sum(1), (q * with_query).sum(1)

    def gram_form(raw):
        q = normalize(raw, dim=1)
        s1, s2 = (q * n1).sum(1), (q * n2).sum(1)
        return mix(s1, s2, (n1 * n2).sum(1), a), mix_with_query(s2, a / 2)

    for which in (0, 1):
        gradients = []
        for function in (made, gram_form):
            raw = make_vectors(6, 0, shape=(15,)).requires_grad_()
            output = function(raw)[which]
            (gradient,) = torch.autograd.grad((output * torch.arange(1, 7)).sum(), raw)
            gradients += [output.detach(), gradient]
        torch.testing.assert_close(gradients[2], gradients[0], atol=1e-12, rtol=0)
        torch.testing.assert_close(gradients[3], gradients[1], atol=1e-12, rtol=0)


def test_mixtures_are_of_the_hardest_that_are_not_ignored():
    """Row 0's nearest negatives are near-duplicates: masked, they are never mixed."""
    scores = torch.tensor([[1.0, 0.99, 0.98, 0.2, 0.1, -0.9]], dtype=FLOAT)
    negative = torch.tensor([[False, False, False, True, True, True]])
    gram = torch.full((6, 6), 0.5, dtype=FLOAT)
    mixtures = HardMixtures(2, 50, 50)
    extra = mixtures(scores, negative, lambda: gram)
    assert extra.shape == (1, 100)
    # pairs of .2 and .1 alone, norm in [sqrt(.75), 1]; the query with .2 or .1
    assert extra[0, :50].max() <= 0.2 / 0.75**0.5
    assert extra[0, :50].min() >= 0.1
    unmasked = HardMixtures(2, 50, 50)(scores, torch.tensor([[False, True, True, True, True, True]]), lambda: gram)
    assert unmasked[0, :50].min() > 0.9
    easier = HardMixtures(3, 50, 0)(scores, negative, lambda: gram)
    assert easier.min() < 0


def test_warm_up_training_mode_and_seed():
    loss = losses.build("mochi", warmup=2, n_hardest=3, n_mixed=4, n_mixed_with_query=2)
    plain = losses.build("clip", temperature=0.2, similarity="cosine")(X, Y).loss
    steps = [loss(X, Y).loss for _ in range(4)]
    torch.testing.assert_close(steps[:2], [plain, plain])
    assert min(steps[2:]) > plain + 0.1
    assert steps[2] != steps[3]
    torch.testing.assert_close(loss.eval()(X, Y).loss, plain)
    again = losses.build("mochi", warmup=2, n_hardest=3, n_mixed=4, n_mixed_with_query=2)
    assert [again(X, Y).loss for _ in range(4)] == steps
    resumed = losses.build("mochi", warmup=2, n_hardest=3, n_mixed=4, n_mixed_with_query=2)
    resumed.extra_negatives.step += 3
    assert resumed(X, Y).loss == steps[3]


def test_candidates_get_no_gradient_through_mixtures():
    """Of two trained rows the loss's gradient for candidates is that of real columns alone, in a denominator that mixtures enlarge."""
    candidates = make_vectors(4, 1).requires_grad_()
    estimates = make_vectors(4, 0)
    loss = losses.build("mochi", warmup=0, n_hardest=3, n_mixed=5, n_mixed_with_query=2)
    loss(estimates, candidates).loss.backward()
    reference = make_vectors(4, 1).requires_grad_()
    scores = loss.scores(estimates, reference)
    mixtures = HardMixtures(3, 5, 2)(scores.detach(), ~torch.eye(4).bool(), lambda: loss.scores(reference.detach(), reference.detach()))
    logits = torch.cat([scores, mixtures], 1) / 0.2
    torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    torch.testing.assert_close(candidates.grad, reference.grad, atol=1e-12, rtol=0)


def test_one_negative_is_enough_and_none_counts_nothing():
    loss = losses.build("mochi", warmup=0, n_mixed=3, n_mixed_with_query=3)
    ids = torch.tensor([1, 1, 2])
    assert loss(X[:2], Y[:2]).loss.isfinite()
    output = loss(X, Y[[0, 2]], row_ids=ids, col_ids=torch.tensor([1, 2]))
    assert output.loss.isfinite()
    ignore = torch.tensor([[True, True, True], [False, False, False], [False, False, False]])
    output = loss(X, Y, row_ids=torch.arange(3), ignore=ignore)
    assert output.loss.isfinite()
    assert output.logs["n_without_negative"] == 1


def test_bad_options_are_errors():
    with pytest.raises(ValueError, match="similarity must be one of cosine, got 'dot'"):
        losses.build("mochi", similarity="dot")
    with pytest.raises(ValueError, match="n_hardest must be positive"):
        losses.build("mochi", n_hardest=0)
