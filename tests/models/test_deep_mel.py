from __future__ import annotations

from typing import Any

import pytest
import torch
from test_conv import count, plain_blocks

from brainspeech import models


def make_target(**options) -> Any:
    torch.manual_seed(0)
    return models.build_target("deep_mel", **{"n_features": 4, "n_outputs": 7, "hidden": 6, **options}).eval()


def test_parameters_are_the_papers():
    with torch.device("meta"):
        target = models.build_target("deep_mel", n_features=120)
    assert count(target) == 9_320_128
    assert target.n_outputs == 768
    assert sum(block.norm is not None for block in target.blocks) == 9


def test_output_is_the_descriptions():
    target = make_target().train()
    features = torch.randn(5, 4, 80)
    target(features)  # norms are no longer the identity
    target.eval()
    with torch.no_grad():
        expected = plain_blocks(target.state_dict(), features, depth=10, activation=torch.relu, linear_last=True)
        got = target(features)
    assert got.shape == (5, 7, 80)
    assert got.is_contiguous()
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


def test_candidates_do_not_mix():
    target, features = make_target(), torch.randn(3, 4, 30)
    torch.testing.assert_close(target(features[1:2]), target(features)[1:2], atol=1e-5, rtol=1e-4)


def test_it_is_built_by_name():
    target = make_target(activation="gelu")
    assert (target.name, target.config["n_features"], target.config["activation"]) == ("deep_mel", 4, "gelu")
    again = models.build_target(target.name, **target.config).eval()
    again.load_state_dict(target.state_dict())
    features = torch.randn(2, 4, 30)
    assert torch.equal(again(features), target(features))
    with pytest.raises(ValueError, match=r"Target encoder must be one of deep_mel, or .*, got 'conv'"):
        models.build_target("conv", n_features=3)
    with pytest.raises(ValueError, match=r"Target encoder 'deep_mel': missing a required argument: 'n_features'"):
        models.build_target("deep_mel")
    with pytest.raises(ValueError, match=r"must be a subclass of brainspeech.models.base.TargetEncoder"):
        models.build_target("brainspeech.models.conv:ConvEncoder", n_features=3)


def test_features_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"takes features \(N, 4, T\), got \(2, 5, 30\)"):
        make_target()(torch.randn(2, 5, 30))
