"""What must hold for every loss in LOSSES."""

from __future__ import annotations

import pytest
import torch

from brainspeech import losses

every_loss = pytest.mark.parametrize("name", sorted(losses.LOSSES))


def make_pairs(n=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 5, 7, generator=generator)


@every_loss
def test_loss_is_finite_and_gradient_flows(name):
    estimates = make_pairs(seed=1).requires_grad_()
    output = losses.build(name)(estimates, make_pairs())
    assert output.loss.shape == ()
    assert output.loss.isfinite()
    output.loss.backward()
    assert (estimates.grad.abs().sum((1, 2)) > 0).all()
    assert not any(value.requires_grad for value in output.logs.values())


@every_loss
def test_perfect_is_lower_than_shuffled(name):
    candidates = make_pairs()
    loss = losses.build(name)
    assert loss(candidates, candidates).loss < loss(candidates.roll(1, 0), candidates).loss - 1


@every_loss
def test_scores_of_perfect_estimates_are_highest_at_their_own(name):
    candidates = make_pairs()
    scores = losses.build(name).scores(candidates[:6], candidates)
    assert scores.shape == (6, 8)
    assert (scores.argmax(1) == torch.arange(6)).all()


@every_loss
def test_order_of_the_batch_does_not_matter(name):
    estimates, candidates = make_pairs(seed=1), make_pairs()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    loss = losses.build(name)
    torch.testing.assert_close(loss(estimates[order], candidates[order]).loss, loss(estimates, candidates).loss)


@every_loss
def test_config_is_kept(name):
    loss = losses.build(name)
    again = losses.build(loss.name, **loss.config)
    again.load_state_dict(loss.state_dict())
    assert again.config == loss.config
    assert torch.equal(again(make_pairs(seed=1), make_pairs()).loss, loss(make_pairs(seed=1), make_pairs()).loss)


def test_unknown_names_and_options_are_errors():
    with pytest.raises(ValueError, match="Loss must be one of clip, got 'mse'"):
        losses.build("mse")
    with pytest.raises(ValueError, match="temperature"):
        losses.build("clip", temperature=0.1)
