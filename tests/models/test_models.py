"""What must hold for every encoder in MODELS."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from brainspeech import hub, models

N_SUBJECTS, N_FEATURES, N_CHANNELS, N_TIMES = 3, 6, 5, 40
SMALL: dict[str, dict[str, Any]] = {
    "braindecode": {"n_channels": N_CHANNELS, "n_times": N_TIMES, "n_knots": 4, "width": 4},
    "conv": {"n_virtual": 8, "hidden": 10, "depth": 4, "n_harmonics": 4},
    "linear_clip": {"n_channels": N_CHANNELS, "lags": range(-6, 13, 3), "rank": 4},
}
# The paper's ablations must keep what every encoder keeps.
ABLATIONS: dict[str, dict[str, Any]] = {
    "subject embedding": {"subject_layer": False, "subject_embedding": 3},
    "no initial": {"initial": False},
    "no skips": {"skips": False},
    "relu": {"activation": "relu"},
    "no glu": {"glu_every": 0},
    "no head": {"head": False},
    "no spatial dropout": {"spatial_dropout": 0.0},
    "no spatial attention": {"spatial_attention": False, "n_channels": N_CHANNELS},
    "channels alone": {"spatial_attention": False, "n_channels": N_CHANNELS, "initial": False},
}
CASES = {name: (name, SMALL[name]) for name in sorted(models.MODELS)}
CASES |= {f"conv, {case}": ("conv", SMALL["conv"] | options) for case, options in ABLATIONS.items()}
every_model = pytest.mark.parametrize("name", CASES)


def make_encoder(name, **config):
    torch.manual_seed(0)
    model, options = CASES[name]
    options = {"n_subjects": N_SUBJECTS, "n_features": N_FEATURES, **options, **config}
    return models.build(model, **options).eval()


def make_inputs(n_segments=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(n_segments, N_CHANNELS, N_TIMES, generator=generator)
    positions = torch.rand(1, N_CHANNELS, 2, generator=generator).repeat(n_segments, 1, 1)
    return signal, positions, torch.arange(n_segments) % N_SUBJECTS


@every_model
def test_estimate_has_the_shape_of_the_target(name):
    signal, positions, subject = make_inputs()
    estimate = make_encoder(name)(signal, positions, subject)
    assert estimate.shape == (4, N_FEATURES, N_TIMES)
    assert estimate.isfinite().all()
    assert estimate.std() > 1e-3


@every_model
def test_padded_channels_change_nothing(name):
    signal, positions, subject = make_inputs()
    mask = torch.ones(4, N_CHANNELS, dtype=torch.bool)
    mask[1:, -2:] = False
    silent, junk = signal.masked_fill(~mask[:, :, None], 0.0), signal.masked_fill(~mask[:, :, None], 1e3)
    elsewhere = positions.masked_fill(~mask[:, :, None], torch.nan)
    encoder = make_encoder(name)
    expected = encoder(silent, elsewhere, subject, mask)
    torch.testing.assert_close(encoder(junk, positions, subject, mask), expected)
    assert not torch.allclose(encoder(junk, positions, subject), expected)


@every_model
def test_saved_is_loaded(name):
    inputs = make_inputs()
    encoder = make_encoder(name).train()
    encoder(*inputs)  # moves batch-norm statistics away from where they start
    encoder.eval()
    torch.manual_seed(99)
    again = models.build(encoder.name, **encoder.config).eval()
    assert not torch.equal(again(*inputs), encoder(*inputs))
    again.load_state_dict(encoder.state_dict())
    assert torch.equal(again(*inputs), encoder(*inputs))


@pytest.mark.parametrize("case", ABLATIONS)
def test_saved_in_a_folder_is_loaded(case, tmp_path):
    inputs = make_inputs()
    encoder = make_encoder(f"conv, {case}").train()
    encoder(*inputs)
    encoder.eval()
    hub.save(tmp_path / "model", encoder, config={})
    again = hub.load(tmp_path / "model").module
    assert again.config == encoder.config
    assert torch.equal(again(*inputs), encoder(*inputs))


@every_model
def test_config_keeps_the_defaults(name):
    encoder = make_encoder(name)
    assert encoder.config["n_subjects"] == N_SUBJECTS
    assert set(CASES[name][1]) < set(encoder.config)
    json.dumps({key: list(value) if isinstance(value, range) else value for key, value in encoder.config.items()})


@every_model
def test_subject_matters(name):
    signal, positions, subject = make_inputs()
    encoder = make_encoder(name)
    assert not torch.allclose(encoder(signal, positions, subject), encoder(signal, positions, (subject + 1) % N_SUBJECTS))


@every_model
def test_unseen_subject_is_a_subject_of_its_own(name):
    """Finite, the same for every unseen segment, and unlike that of any subject of the training set."""
    signal, positions, _ = make_inputs()
    encoder = make_encoder(name)
    unseen = encoder(signal, positions, torch.full((4,), -1))
    assert unseen.isfinite().all()
    for subject in range(N_SUBJECTS):
        assert not torch.allclose(encoder(signal, positions, torch.full((4,), subject)), unseen)
    mixed = encoder(signal, positions, torch.tensor([0, -1, 1, -1]))
    torch.testing.assert_close(mixed[1::2], unseen[1::2], atol=1e-5, rtol=1e-4)


@every_model
def test_segments_do_not_mix(name):
    signal, positions, subject = make_inputs()
    encoder = make_encoder(name)
    together = encoder(signal, positions, subject)
    alone = encoder(signal[2:3], positions[2:3], subject[2:3])
    torch.testing.assert_close(alone, together[2:3], atol=1e-5, rtol=1e-4)


@every_model
def test_gradient_reaches_every_parameter(name):
    signal, positions, subject = make_inputs()
    encoder = make_encoder(name).train()
    encoder(signal, positions, subject).square().mean().backward()
    without = [key for key, value in encoder.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
    assert without == []


@every_model
@pytest.mark.parametrize("index", [-2, N_SUBJECTS])
def test_subject_outside_the_table_is_an_error(name, index):
    signal, positions, _ = make_inputs()
    with pytest.raises(ValueError, match=r"Subject indices must lie in 0\.\.2"):
        make_encoder(name)(signal, positions, torch.full((4,), index))


@every_model
def test_shapes_that_disagree_are_errors(name):
    signal, positions, subject = make_inputs()
    encoder = make_encoder(name)
    with pytest.raises(ValueError, match=r"Signal must be \(B, C, T\)"):
        encoder(signal[0], positions, subject)
    with pytest.raises(ValueError, match="Positions of a signal"):
        encoder(signal, positions[:, :-1], subject)
    with pytest.raises(ValueError, match="one index per segment"):
        encoder(signal, positions, subject[:2])
    with pytest.raises(ValueError, match="Channel mask must be"):
        encoder(signal, positions, subject, torch.ones(4, N_CHANNELS + 1, dtype=torch.bool))


def test_unknown_names_and_options_are_errors():
    with pytest.raises(ValueError, match=r"Model must be one of braindecode, conv, linear_clip, or .*, got 'rnn'"):
        models.build("rnn")
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'dropout'\. Its options are n_subjects, n_features"):
        models.build("conv", n_subjects=3, n_features=2, dropout=0.5)
    with pytest.raises(ValueError, match="missing a required argument: 'n_channels'"):
        models.build("linear_clip", n_subjects=3, n_features=2)
