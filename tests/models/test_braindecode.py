"""Networks of braindecode as encoders: what stands before and after them."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from brainspeech import models
from brainspeech.models import braindecode as adapter

C, T, F, S = 8, 343, 5, 3
# The windows are long enough for it, but it says so of anything shorter than 441 samples at this rate.
SHORT = "ignore:n_times \\(343\\) is smaller than the minimum required:UserWarning"


def build(model, **config):
    torch.manual_seed(0)
    options = {"n_subjects": S, "n_features": F, "n_channels": C, "n_times": T, "n_knots": 6, "width": 4} | config
    return models.build("braindecode", model=model, **options)


def inputs(n_segments=2):
    generator = torch.Generator().manual_seed(1)
    signal = torch.randn(n_segments, C, T, generator=generator)
    return signal, torch.rand(n_segments, C, 2, generator=generator), torch.arange(n_segments) % S


@pytest.mark.filterwarnings(SHORT)
# torch, once, of CTNet's even kernels: a matter of speed
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("model", adapter.NETWORKS)
def test_every_network_gives_an_estimate_that_can_be_learned(model):
    encoder = build(model)
    estimate = encoder(*inputs())
    assert estimate.shape == (2, F, T)
    assert encoder.time_axis == "given"
    estimate.square().mean().backward()
    assert [key for key, value in encoder.named_parameters() if value.grad is None] == []


def test_the_listed_networks_may_be_used_by_everyone():
    """Some of braindecode's networks are for non-commercial use only; BrainModule is one of them."""
    zoo = adapter._import_networks()
    licences = {name: getattr(zoo, name)._hub_mixin_info.model_card_data.license for name in adapter.NETWORKS}
    assert set(licences.values()) <= {"bsd-3-clause", "mit", "apache-2.0"}
    with pytest.raises(ValueError, match="The network must be one of AttentionBaseNet"):
        build("BrainModule")


def test_between_knots_the_estimate_is_a_straight_line():
    encoder = build("EEGNet", n_times=60, n_knots=6).eval()
    signal, positions, subject = inputs()
    estimate = encoder(signal[:, :, :60], positions, subject)
    bends = estimate.diff(n=2).abs().amax((0, 1)) > 1e-5
    # Knots stand at samples 4.5, 14.5 ... 54.5, so only there the slope changes, and beyond the outer ones there is none.
    assert {int(i) for i in bends.nonzero()} <= {k + d for k in range(4, 60, 10) for d in (-1, 0)}
    assert int(bends.sum()) >= 6
    torch.testing.assert_close(estimate[:, :, :5], estimate[:, :, :1].expand(-1, -1, 5))


@pytest.mark.filterwarnings(SHORT)
@pytest.mark.parametrize("model", ["ShallowFBCSPNet", "Deep4Net"])
@torch.no_grad()
def test_a_sequence_is_kept_and_stands_where_it_looks(model):
    """A jolt at one sample changes the estimate most around that sample."""
    encoder = build(model, options={"final_conv_length": 1}).eval()
    assert encoder.time_axis == "kept"
    signal, positions, subject = inputs()
    before = encoder(signal, positions, subject)
    # No further out: the first and the last frame lie half a reach inside the window.
    for sample in (130, 170, 210):
        jolted = signal.clone()
        jolted[:, :, sample] += 5.0
        change = (encoder(jolted, positions, subject) - before).abs().sum((0, 1))
        middle = float((change * torch.arange(T)).sum() / change.sum())
        assert abs(middle - sample) < 20


def test_without_a_subject_layer_nothing_depends_on_the_subject():
    signal, positions, subject = inputs()
    encoder = build("EEGNet", subject_layer=False).eval()
    assert torch.equal(encoder(signal, positions, subject), encoder(signal, positions, torch.full((2,), -1)))
    with pytest.raises(ValueError, match="Subject indices must lie in"):
        encoder(signal, positions, torch.full((2,), S))
    with pytest.raises(ValueError, match="generic subject needs the subject layer"):
        build("EEGNet", subject_layer=False, generic_subject=True)


def test_unseen_subjects_take_the_generic_layer():
    signal, positions, _ = inputs()
    encoder = build("EEGNet", generic_subject=True, subject_dropout=0.0).eval()
    unseen = torch.full((2,), -1)
    before = encoder(signal, positions, unseen)
    with torch.no_grad():
        encoder.subject_layer.weight[-1] += 0.1
    assert not torch.allclose(encoder(signal, positions, unseen), before)


def test_bad_input():
    signal, positions, subject = inputs()
    with pytest.raises(ValueError, match=r"built for 8 channels and 343 samples, got \(8, 342\)"):
        build("EEGNet")(signal[:, :, 1:], positions, subject)
    with pytest.raises(ValueError, match=r"EEGNet cannot be built .* TypeError: .*no_such"):
        build("EEGNet", options={"no_such": 1})
    with pytest.raises(ValueError, match="ShallowFBCSPNet cannot be built for 8 channels, 50 samples"):
        build("ShallowFBCSPNet", n_times=50)
    with pytest.raises(ValueError, match="n_knots from 2 to n_times"):
        build("EEGNet", n_knots=1)
    with pytest.raises(ValueError, match="no_such"):
        build("EEGNet", no_such=1)


def test_the_interpolation_sums_to_one_and_is_not_saved():
    encoder = build("EEGNet")
    np.testing.assert_allclose(encoder.interpolation.sum(0).numpy(), 1.0, rtol=1e-6)
    assert "interpolation" not in encoder.state_dict()


def test_braindecode_is_imported_by_who_uses_it():
    script = (
        "import sys; from brainspeech import models; import brainspeech.models.braindecode, brainspeech.augment; "
        "models.build('conv', n_subjects=1, n_features=2, hidden=4, n_virtual=4); print('braindecode' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip() == "False"
