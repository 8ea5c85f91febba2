"""A target encoder inside the loss: trained, saved and resumed with it; candidates are encoded once and never stale."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_train import CONFIG, DATA, Dying, same, without_time
from torch import nn

from brainspeech import losses, models, similarity
from brainspeech.losses.joint import Joint
from brainspeech.train import fit


def make_target(seed=1, **options) -> Any:
    torch.manual_seed(seed)
    config = {"n_features": 3, "n_outputs": 5, "hidden": 6, "depth": 2, **options}
    return models.build_target("deep_mel", **config)


def make_joint(name="clip", *, seed=1, **options) -> Any:
    return Joint(losses.build(name), make_target(seed), **options)


def make_encoder(seed=0):
    torch.manual_seed(seed)
    return models.build("conv", n_subjects=2, n_features=5, n_virtual=6, hidden=8, depth=2, n_harmonics=3)


def make_vectors(n_estimates=4, n_candidates=9):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n_estimates, 5, 12, generator=generator), torch.randn(n_candidates, 3, 12, generator=generator)


class Counting(nn.Module):
    """A target encoder that counts what it encodes."""

    def __init__(self):
        super().__init__()
        self.inner, self.n_encoded = make_target(), 0

    def forward(self, features):
        self.n_encoded += len(features)
        return self.inner(features)


def run(loss, *, encoder=None, **kwargs):
    return fit(encoder or make_encoder(), loss, DATA["train"], DATA["valid"], CONFIG, progress=False, **kwargs)


def test_fit_trains_both_encoders():
    loss = make_joint()
    before = {key: value.clone() for key, value in loss.named_parameters()}
    torch.manual_seed(0)
    encoder = models.build("linear_clip", n_subjects=2, n_features=5, n_channels=4, lags=range(-3, 4), rank=4)
    fitted = run(loss, encoder=encoder)
    assert fitted.history[-1]["train_loss"] < 0.5 * fitted.history[0]["train_loss"]
    assert fitted.history[-1]["valid_loss"] < 0.5 * fitted.history[0]["valid_loss"]
    unmoved = [key for key, value in fitted.loss.named_parameters() if torch.equal(value, before[key])]
    assert unmoved == []
    assert all(key.startswith("target_encoder.") for key in before)


def test_a_resumed_fit_is_exact(tmp_path):
    counting = make_joint()
    counting.loss = Dying(-1, KeyboardInterrupt())
    whole = run(counting, out=tmp_path / "whole")
    per_epoch = counting.loss.calls // CONFIG.max_epochs
    cut = make_joint()
    cut.loss = Dying(per_epoch + 3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        run(cut, out=tmp_path / "cut")
    rest = run(make_joint(seed=7), encoder=make_encoder(seed=8), out=tmp_path / "cut", resume=True)
    assert rest.resumed_at == 1
    assert same(rest.loss, whole.loss)
    assert same(rest.encoder, whole.encoder)
    assert without_time(rest.history) == without_time(whole.history)


@pytest.mark.parametrize("name", ["clip", "clip_symmetric", "dcl"])
def test_it_is_the_inner_loss_of_encoded_candidates(name):
    """Values and gradients, with an id that repeats: both copies count in the batch statistics."""
    estimates, candidates = make_vectors(9, 9)
    candidates[3] = candidates[0]
    ids = torch.tensor([4, 1, 2, 4, 5, 6, 7, 8, 9])
    joint, target = make_joint(name).train(), make_target().train()
    got = joint(estimates, candidates, row_ids=ids, col_ids=ids).loss
    expected = losses.build(name)(estimates, target(candidates), row_ids=ids, col_ids=ids).loss
    torch.testing.assert_close(got, expected)
    got.backward()
    expected.backward()
    for mine, naive in zip(joint.target_encoder.parameters(), target.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, naive.grad)
    assert torch.equal(joint.target_encoder.blocks[0].norm.running_mean, target.blocks[0].norm.running_mean)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_scores_equal_the_naive_form(mode, batch_size):
    estimates, candidates = make_vectors()
    joint = make_joint(batch_size=batch_size).eval()
    with mode():
        expected = similarity.candidate_normalised(estimates, joint.target_encoder(candidates))
        for _ in range(2):
            torch.testing.assert_close(joint.scores(estimates, candidates), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_candidates_are_encoded_once(mode):
    estimates, candidates = make_vectors()
    joint = Joint(losses.build("clip"), Counting(), batch_size=4).eval()
    with mode():
        for _ in range(3):
            joint.scores(estimates, candidates)
        assert joint.target_encoder.n_encoded == 9
        for _ in range(3):  # as retrieval.ranks asks for them
            [joint.scores(estimates, part) for part in candidates.split(4)]
        assert joint.target_encoder.n_encoded == 9
        tight = Joint(losses.build("clip"), Counting(), batch_size=4, memory=0).eval()
        torch.testing.assert_close(tight.scores(estimates, candidates), joint.scores(estimates, candidates))
        tight.scores(estimates, candidates)
        assert tight.target_encoder.n_encoded == 18


def test_remembered_candidates_fit_in_the_memory():
    estimates, candidates = make_vectors()
    one = 4 * 12 * (3 + 5)  # bytes of a candidate and what it becomes
    joint = Joint(losses.build("clip"), Counting(), batch_size=1, memory=3 * one).eval()
    with torch.no_grad():
        joint.scores(estimates, candidates)
        joint.scores(estimates, candidates[6:])
        assert joint.target_encoder.n_encoded == 9
        joint.scores(estimates, candidates[:1])
        assert joint.target_encoder.n_encoded == 10
        joint.scores(estimates, candidates[7:])
        assert joint.target_encoder.n_encoded == 10
        joint.scores(estimates, candidates[6:7])
        assert joint.target_encoder.n_encoded == 11


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", ["weights", "statistics", "state", "content", "training"])
def test_nothing_stale_is_used(mode, change):
    estimates, candidates = make_vectors()
    joint = make_joint().eval()
    with mode():
        before = joint.scores(estimates, candidates)
    with torch.no_grad():
        if change == "weights":
            joint.target_encoder.blocks[0].conv.weight.mul_(2)
        elif change == "statistics":
            joint.target_encoder.blocks[0].norm.running_mean.add_(1)
        elif change == "state":
            joint.load_state_dict(make_joint(seed=5).state_dict())
        elif change == "content":
            candidates[2] += 1
        else:
            joint.train()
            joint(*make_vectors(9, 9))
            joint.eval()
    with mode():
        after = joint.scores(estimates, candidates)
        expected = similarity.candidate_normalised(estimates, joint.target_encoder(candidates))
    torch.testing.assert_close(after, expected)
    assert not torch.allclose(after, before)


def test_estimates_never_write_to_what_is_remembered():
    """A target encoder that gives its input back."""

    class Same(nn.Linear):
        def forward(self, input):
            return input

    joint = Joint(losses.build("clip"), Same(1, 1)).eval()
    estimates, candidates = torch.randn(2, 3, 4), torch.rand(5, 3, 4)
    with torch.no_grad():
        joint.scores(estimates, candidates)
        candidates.zero_()
        assert torch.equal(joint.scores(estimates, candidates), torch.zeros(2, 5))


def test_it_computes_in_float32_under_autocast():
    candidates = make_vectors()[1]
    joint = make_joint().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = joint.encode(candidates.bfloat16())
    assert half.dtype == torch.float32
    assert torch.equal(half, joint.encode(candidates.bfloat16().float()))


def test_config_says_what_is_inside():
    joint = make_joint("dcl")
    assert joint.config["loss"]["name"] == "dcl"
    again = models.build_target(joint.config["target_encoder"]["name"], **joint.config["target_encoder"]["config"])
    again.load_state_dict(joint.target_encoder.state_dict())
    assert same(again, joint.target_encoder)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        make_joint(batch_size=0)
