"""What must hold for every loss in LOSSES."""

from __future__ import annotations

import inspect
import json

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
def test_common_arguments_have_one_name(name):
    parameters = inspect.signature(losses.build(name).__class__).parameters
    assert {"similarity", "gather", "chunk"} <= set(parameters)
    if not name.startswith(("mv_", "mse")):
        assert {"temperature", "symmetric", "duplicates"} <= set(parameters)
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())
    json.dumps(losses.build(name).config)


# iSogCLR's gradient is an estimator's and not that of its value (test_isogclr has it); DCLW's weight is held still.
@pytest.mark.parametrize("name", sorted(set(losses.LOSSES) - {"isogclr"}))
def test_gradient_is_that_of_finite_differences(name):
    ids = torch.tensor([1, 2, 1, 3])
    estimates, candidates = (make_pairs(4, seed)[:, :2, :2].double() for seed in (1, 0))
    loss = losses.build(name, **({"detach_weight": False} if name == "dclw" else {}))
    assert torch.autograd.gradcheck(lambda x: loss(x, candidates, row_ids=ids).loss, (estimates.requires_grad_(),))
    if name != "sdcon":
        assert torch.autograd.gradcheck(lambda y: loss(estimates.detach(), y, row_ids=ids).loss, (candidates.requires_grad_(),))


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


@every_loss
def test_bad_input_is_named(name):
    loss = losses.build(name)
    estimates, candidates, ids = make_pairs(seed=1), make_pairs(), torch.arange(8)
    with pytest.raises(ValueError, match=r"must agree in features and times, got \(8, 5, 7\) and \(8, 5, 6\)"):
        loss(estimates, candidates[:, :, 1:])
    with pytest.raises(ValueError, match="got 8 estimates, but 7 candidates"):
        loss(estimates, candidates[:7])
    with pytest.raises(ValueError, match=r"Ids must be \(8,\) and \(8,\), got row_ids \(7,\)"):
        loss(estimates, candidates, row_ids=ids[:7], col_ids=ids)
    with pytest.raises(ValueError, match="col_ids without row_ids"):
        loss(estimates, candidates, col_ids=ids)
    with pytest.raises(ValueError, match="give col_ids too"):
        loss(estimates[:6], candidates, row_ids=ids[:6])
    broken = estimates.clone()
    broken[2, 1, 3] = torch.nan
    with pytest.raises(ValueError, match="1 of 8 estimates are not finite, rows 2"):
        loss(broken, candidates)
    with pytest.raises(ValueError, match="1 of 8 candidates are not finite, rows 2"):
        loss(estimates, broken)


@every_loss
def test_calls_of_training_with_repeated_segments(name):
    """What train.fit does: one batch with two listeners of a segment, ids that are hashes, then validation."""
    ids = torch.tensor([2**62, -(2**61), 5, 2**62, 9, 10, 11, 12])
    loss = losses.build(name)
    candidates = make_pairs()[[0, 1, 2, 0, 4, 5, 6, 7]]
    for _ in range(2):
        assert loss(make_pairs(seed=1), candidates, row_ids=ids, col_ids=ids).loss.isfinite()
    with torch.no_grad():
        assert loss.eval()(make_pairs(seed=2), candidates, row_ids=ids + 1, col_ids=ids + 1).loss.isfinite()


def test_unknown_names_and_options_are_errors():
    with pytest.raises(ValueError, match=r"Loss must be one of clip, clip_symmetric, .*, got 'mae'"):
        losses.build("mae")
    with pytest.raises(ValueError, match="tau"):
        losses.build("clip", tau=0.1)


def test_a_loss_of_the_users_own_is_built_by_module_and_class(tmp_path, monkeypatch):
    (tmp_path / "my_losses.py").write_text(
        "from brainspeech.losses.contrastive import ContrastiveLoss\nfrom brainspeech.losses.objectives import InfoNCE\n\n\n"
        "class Mine(ContrastiveLoss):\n    def __init__(self, *, temperature: float = 0.5):\n"
        "        super().__init__(InfoNCE(temperature), similarity='cosine')\n\n\nclass Neither:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    mine = losses.build("my_losses:Mine", temperature=0.1)
    assert (mine.name, mine.config) == ("my_losses:Mine", {"temperature": 0.1})
    expected = losses.build("clip", similarity="cosine", temperature=0.1)(make_pairs(seed=1), make_pairs())
    assert torch.equal(mine(make_pairs(seed=1), make_pairs()).loss, expected.loss)
    assert losses.find("clip").__name__ == "ClipLoss"
    with pytest.raises(ValueError, match=r"'my_losses:Mine': .*'tau'.*Its options are temperature"):
        losses.build("my_losses:Mine", tau=0.1)
    with pytest.raises(ValueError, match=r"'my_losses:Neither' must be a subclass of brainspeech\.losses\.base\.Loss"):
        losses.build("my_losses:Neither")
    for absent in ("my_losses:Absent", "no_such_module:Mine"):
        with pytest.raises(ValueError, match=r"was not found .*PYTHONPATH"):
            losses.build(absent)
