from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from brainspeech import models
from brainspeech.models.layers import BatchNorm1d, Conv1d, SpatialAttention, SubjectEmbedding, SubjectLayer, glu, lay_out


def make_encoder(**config) -> Any:
    torch.manual_seed(0)
    options = {"n_subjects": 2, "n_features": 3, "n_virtual": 8, "hidden": 8, "n_harmonics": 4, "depth": 2, **config}
    return models.build("conv", **options).eval()


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_are_the_papers():
    encoder: Any = models.build("conv", n_subjects=27, n_features=1024)
    assert count(encoder) == 9_565_054
    assert count(encoder.subject_layer) == 27 * 72_900
    assert count(encoder.spatial_attention) == 552_960
    assert count(encoder.initial) == 73_170
    assert sum(count(block.conv) for block in encoder.blocks) == 3_027_200
    assert sum(count(block.norm) for block in encoder.blocks) == 6_400
    assert sum(count(block.glu) for block in encoder.blocks if block.glu is not None) == 3_075_200
    assert count(encoder.head) == 861_824


@pytest.mark.parametrize(
    ("options", "change"),
    [
        ({"subject_layer": False, "subject_embedding": 64}, -27 * 72_900 + 27 * 64 + 64 * 320 * 3),
        ({"subject_layer": False}, -27 * 72_900),
        ({"spatial_attention": False, "n_channels": 208}, -552_960 - 73_170 + 208 * 270 + 270),
        ({"spatial_dropout": 0.0}, 0),
        ({"initial": False}, -73_170),
        ({"skips": False}, 0),
        ({"activation": "relu"}, 0),
        ({"glu_every": 0}, -3_075_200),
        # The last convolution goes to 1024 without norm, and its GLU from 1024 to 2048.
        ({"head": False}, -861_824 + 3 * 320 * (1024 - 320) + 1024 - 320 - 640 + (3 * 1024 + 1) * 2048 - (3 * 320 + 1) * 640),
    ],
)
def test_ablations_change_the_number_of_parameters_by(options, change):
    with torch.device("meta"):
        encoder = models.build("conv", n_subjects=27, n_features=1024, **options)
    assert count(encoder) == 9_565_054 + change


def plain_blocks(state, hidden, *, depth, activation, skips=True, glu_every=2, linear_last=False):
    """The residual convolutions from their description, with the weights of `state`, in eval mode."""
    for k in range(depth):
        weight, dilation = state[f"blocks.{k}.conv.weight"], 2 ** (k % 5)
        new = functional.conv1d(hidden, weight, state[f"blocks.{k}.conv.bias"], padding=dilation, dilation=dilation)
        if not (linear_last and k == depth - 1):
            norm = [state[f"blocks.{k}.norm.{part}"][:, None] for part in ("running_mean", "running_var", "weight", "bias")]
            new = activation((new - norm[0]) / (norm[1] + 1e-5).sqrt() * norm[2] + norm[3])
            new = new + hidden if skips and new.shape == hidden.shape else new
        hidden = new
        if glu_every and (k + 1) % glu_every == 0:
            hidden = functional.conv1d(hidden, state[f"blocks.{k}.glu.weight"], state[f"blocks.{k}.glu.bias"], padding=1)
            value, gate = hidden.chunk(2, 1)
            hidden = value * gate.sigmoid()
    return hidden


def plain_estimate(encoder, signal, positions, subject):
    """The encoder from its description, its ablations included."""
    config, state = encoder.config, encoder.state_dict()
    hidden = signal if encoder.spatial_attention is None else encoder.spatial_attention(signal, positions)
    if config["initial"]:
        hidden = torch.einsum("oi,bit->bot", state["initial.weight"][:, :, 0], hidden) + state["initial.bias"][:, None]
    if config["subject_layer"]:
        hidden = torch.einsum("bio,bit->bot", state["subject_layer.weight"][subject], hidden)
    elif config["subject_embedding"]:
        vectors = state["subject_layer.weight"][subject]
        hidden = torch.cat([hidden, vectors[:, :, None] * torch.ones(1, 1, hidden.shape[2])], 1)
    activation = {"gelu": functional.gelu, "relu": torch.relu}[config["activation"]]
    options = {key: config[key] for key in ("depth", "skips", "glu_every")}
    hidden = plain_blocks(state, hidden, activation=activation, linear_last=not config["head"], **options)
    if config["head"]:
        hidden = activation(torch.einsum("oi,bit->bot", state["head.0.weight"][:, :, 0], hidden) + state["head.0.bias"][:, None])
        hidden = torch.einsum("oi,bit->bot", state["head.2.weight"][:, :, 0], hidden) + state["head.2.bias"][:, None]
    return hidden


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subject_layer": False, "subject_embedding": 5},
        {"subject_layer": False},
        {"spatial_attention": False, "n_channels": 6},
        {"initial": False},
        {"initial": False, "subject_layer": False, "subject_embedding": 2, "spatial_attention": False, "n_channels": 6},
        {"skips": False},
        {"activation": "relu"},
        {"glu_every": 0},
        {"head": False},
        {"head": False, "glu_every": 0, "n_features": 8},
        {"head": False, "depth": 3},
    ],
)
def test_estimate_is_the_descriptions(options):
    encoder = make_encoder(**{"depth": 6, **options}).train()
    inputs = torch.randn(4, 6, 70), torch.rand(1, 6, 2).expand(4, -1, -1), torch.tensor([1, 0, 0, 1])
    encoder(*inputs)  # norms are no longer the identity
    encoder.eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(*inputs), plain_estimate(encoder, *inputs), atol=1e-5, rtol=1e-4)


def test_estimate_is_contiguous():
    estimate = make_encoder()(torch.randn(2, 6, 20), torch.rand(2, 6, 2), torch.tensor([0, 1]))
    assert estimate.is_contiguous()


@pytest.mark.parametrize("training", [True, False])
def test_layers_give_the_same_in_both_layouts(training):
    """Values, gradients and statistics, with channels innermost as on a CPU and outermost as elsewhere."""
    torch.manual_seed(0)
    signal, target = torch.randn(3, 6, 20), torch.randn(3, 4, 20)
    results = []
    for layout in (lay_out, torch.Tensor.contiguous):
        torch.manual_seed(1)
        conv, norm = Conv1d(6, 8, 3, padding=4, dilation=4), BatchNorm1d(8).train(training)
        x = layout(signal).requires_grad_()
        assert (x.stride(1) == 1) == (layout is lay_out)
        hidden = norm(conv(x))
        assert (hidden.stride(1) == 1) == (layout is lay_out)
        out = glu(hidden)
        (out * target).sum().backward()
        results.append([out, x.grad, *(p.grad for p in (*conv.parameters(), *norm.parameters())), *norm.buffers()])
    for innermost, outermost in zip(*results, strict=True):
        torch.testing.assert_close(innermost, outermost, atol=1e-5, rtol=1e-4)
    plain = functional.glu(nn.BatchNorm1d(8).train(training)(functional.conv1d(signal, conv.weight, conv.bias, padding=4, dilation=4)), 1)
    torch.testing.assert_close(results[0][0], plain, atol=1e-5, rtol=1e-4)


class LargestEmbedding(TorchDispatchMode):
    """How many positions the largest embedding that is made inside the block embeds."""

    def __init__(self, n_embedding):
        super().__init__()
        self.n_embedding, self.n_positions = n_embedding, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.ndim and result.shape[-1] == self.n_embedding:
            self.n_positions = max(self.n_positions, result.numel() // self.n_embedding)
        return result


@pytest.mark.parametrize("n_layouts", [1, 3])
def test_attention_is_computed_once_per_distinct_layout(n_layouts):
    torch.manual_seed(0)
    attention, batches = SpatialAttention(6, n_harmonics=4), []
    inner = attention.attend
    attention.attend = lambda positions, *rest: batches.append(len(positions)) or inner(positions, *rest)
    positions = torch.rand(n_layouts, 9, 2)[torch.arange(12) % n_layouts]
    with LargestEmbedding(32) as embedding:
        attention(torch.randn(12, 9, 5), positions, torch.ones(12, 9, dtype=torch.bool))
    assert batches == [n_layouts]
    assert embedding.n_positions == 9 * n_layouts


def test_receptive_field_is_135_samples():
    encoder = make_encoder(depth=10, n_virtual=6)
    signal = torch.randn(1, 4, 201, requires_grad=True)
    encoder(signal, torch.rand(1, 4, 2), torch.tensor([0]))[0, :, 100].sum().backward()
    assert signal.grad is not None
    reached = signal.grad[0].abs().sum(0).nonzero()[:, 0]
    assert (reached.min(), reached.max()) == (100 - 67, 100 + 67)
    assert len(reached) == 135


def test_any_number_of_channels():
    encoder = make_encoder()
    for n_channels in (1, 7, 60):
        assert encoder(torch.randn(2, n_channels, 30), torch.rand(2, n_channels, 2), torch.tensor([0, 1])).shape == (2, 3, 30)


def test_attention_is_the_papers_loop():
    torch.manual_seed(0)
    attention = SpatialAttention(3, n_harmonics=2).eval()
    signal, positions = torch.randn(1, 4, 5), torch.rand(1, 4, 2)
    expected = torch.zeros(3, 5)
    for virtual in range(3):
        weights = []
        for x, y in positions[0].tolist():
            phases = [2 * math.pi * (kx * (x + 0.2) + ky * (y + 0.2)) / 1.4 for kx in range(2) for ky in range(2)]
            embedding = [math.cos(p) for p in phases] + [math.sin(p) for p in phases]
            weights.append(math.exp(sum(h * e for h, e in zip(attention.heads[virtual].tolist(), embedding, strict=True))))
        for channel in range(4):
            expected[virtual] += weights[channel] / sum(weights) * signal[0, channel]
    torch.testing.assert_close(attention(signal, positions)[0], expected)


def test_layouts_of_a_batch_are_kept_apart():
    """Mixed montages in one batch give what each gives alone."""
    torch.manual_seed(0)
    attention = SpatialAttention(6, n_harmonics=4).eval()
    signal, positions = torch.randn(5, 7, 9), torch.rand(7, 2).repeat(5, 1, 1)
    positions[3] = torch.rand(7, 2)
    mask = torch.ones(5, 7, dtype=torch.bool)
    mask[1, 2:], mask[4, 0] = False, False
    together = attention(signal, positions, mask)
    for row in range(5):
        kept = mask[row]
        alone = attention(signal[row : row + 1, kept], positions[row : row + 1, kept])
        torch.testing.assert_close(together[row : row + 1], alone)


def test_without_a_mask_nan_means_no_such_channel():
    encoder = make_encoder()
    signal, positions, subject = torch.randn(2, 6, 20), torch.rand(2, 6, 2), torch.tensor([0, 1])
    positions[:, 4:] = torch.nan
    expected = encoder(signal[:, :4], positions[:, :4], subject)
    torch.testing.assert_close(encoder(signal, positions, subject), expected)
    assert encoder.n_unplaced == 0


def test_real_channels_without_position_are_counted(caplog):
    encoder = make_encoder()
    signal, positions, subject = torch.randn(2, 6, 20), torch.rand(2, 6, 2), torch.tensor([0, 1])
    positions[1, 3:5] = torch.nan
    with caplog.at_level(logging.WARNING):
        encoder(signal, positions, subject, torch.ones(2, 6, dtype=torch.bool))
    assert encoder.n_unplaced == 2
    assert "Up to 2 channels have no position" in caplog.text
    encoder(signal[:, :2], positions[:, :2], subject, torch.ones(2, 2, dtype=torch.bool))
    assert encoder.n_unplaced == 2


@pytest.mark.parametrize("mask", [None, torch.ones(2, 6, dtype=torch.bool)])
def test_no_position_at_all_is_an_error(mask):
    positions = torch.rand(2, 6, 2)
    positions[1] = torch.nan
    with pytest.raises(ValueError, match=r"Segment 1 of the batch.*positions='biosemi128'"):
        make_encoder()(torch.randn(2, 6, 20), positions, torch.tensor([0, 1]), mask)


def test_spatial_dropout_acts_in_training_only():
    torch.manual_seed(0)
    attention = SpatialAttention(6, n_harmonics=4, dropout_radius=0.2)
    grid = torch.stack(torch.meshgrid(torch.linspace(0, 1, 8), torch.linspace(0, 1, 8), indexing="ij"), 2).reshape(1, 64, 2)
    available = torch.ones(1, 64, dtype=torch.bool)
    for _ in range(20):
        dropped = (attention.attend(grid, available)[0] == 0).all(0)
        assert dropped.any()
        assert not dropped.all()
        # the dropped ones lie in one disc, and no kept one lies inside it
        inside = grid[0, dropped]
        assert torch.cdist(inside, inside).max() <= 0.4 + 1e-6
    attention.eval()
    assert (attention.attend(grid, available) > 0).all()


def test_spatial_dropout_never_drops_every_channel():
    torch.manual_seed(0)
    attention = SpatialAttention(4, n_harmonics=4, dropout_radius=2.0)
    signal, positions = torch.randn(3, 5, 8), torch.rand(3, 5, 2)
    trained = attention(signal, positions)
    torch.testing.assert_close(trained, attention.eval()(signal, positions))


def test_subject_layer_is_a_matrix_each():
    torch.manual_seed(0)
    layer = SubjectLayer(3, 4, 5)
    signal, subject = torch.randn(6, 4, 7), torch.tensor([2, 0, 1, 1, 2, -1])
    out = layer(signal, subject)
    for row, index in enumerate(subject.tolist()):
        matrix = layer.weight[index] if index >= 0 else layer.weight.mean(0)
        torch.testing.assert_close(out[row], matrix.T @ signal[row])


def test_unseen_subject_of_the_encoder_gets_the_average():
    encoder = make_encoder()
    inputs = torch.randn(1, 4, 20), torch.rand(1, 4, 2)
    unseen = encoder(*inputs, torch.tensor([-1]))
    with torch.no_grad():
        encoder.subject_layer.weight.copy_(encoder.subject_layer.weight.mean(0).expand(2, -1, -1).clone())
    torch.testing.assert_close(encoder(*inputs, torch.tensor([1])), unseen)


def test_generic_subject_has_its_own_layer():
    torch.manual_seed(0)
    layer = SubjectLayer(2, 4, 4, generic=True, dropout=0.5)
    assert layer.weight.shape == (3, 4, 4)
    signal = torch.randn(1, 4, 7).expand(400, -1, -1)
    own, generic = layer.weight[1].T @ signal[0], layer.weight[2].T @ signal[0]
    subject = torch.ones(400, dtype=torch.int64)
    used_generic = (layer(signal, subject) - generic).abs().amax((1, 2)) < 1e-5
    used_own = (layer(signal, subject.clone()) - own).abs().amax((1, 2)) < 1e-5
    assert 150 < used_generic.sum() < 250
    assert 150 < used_own.sum() < 250
    layer.eval()
    torch.testing.assert_close(layer(signal[:2], torch.tensor([1, -1])), torch.stack([own, generic]))


def test_generic_subject_is_off_by_default():
    assert count(make_encoder(generic_subject=True)) == count(make_encoder()) + 8 * 8


def test_generic_subject_of_an_embedding():
    encoder = make_encoder(subject_layer=False, subject_embedding=3, generic_subject=True)
    assert encoder.subject_layer.weight.shape == (3, 3)
    inputs = torch.randn(1, 4, 20), torch.rand(1, 4, 2)
    unseen = encoder(*inputs, torch.tensor([-1]))
    with torch.no_grad():
        encoder.subject_layer.weight[1] = encoder.subject_layer.weight[2]
    torch.testing.assert_close(encoder(*inputs, torch.tensor([1])), unseen)


def test_unseen_subject_of_an_embedding_gets_the_average():
    torch.manual_seed(0)
    layer = SubjectEmbedding(3, 4)
    signal = torch.randn(2, 5, 7)
    out = layer(signal, torch.tensor([1, -1]))
    assert torch.equal(out[:, :5], signal)
    torch.testing.assert_close(out[0, 5:], layer.weight[1][:, None].expand(-1, 7))
    torch.testing.assert_close(out[1, 5:], layer.weight.mean(0)[:, None].expand(-1, 7))


def test_switches():
    inputs = torch.randn(2, 6, 20), torch.rand(2, 6, 2)
    without_subjects = make_encoder(subject_layer=False)
    assert torch.equal(without_subjects(*inputs, torch.tensor([0, 1])), without_subjects(*inputs, torch.tensor([1, 0])))
    fixed = make_encoder(spatial_attention=False, n_channels=6)
    nowhere = torch.full((2, 6, 2), torch.nan)
    assert torch.equal(fixed(*inputs, torch.tensor([0, 1])), fixed(inputs[0], nowhere, torch.tensor([0, 1])))
    with pytest.raises(ValueError, match="takes 6 channels, got 5"):
        fixed(inputs[0][:, :5], inputs[1][:, :5], torch.tensor([0, 1]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kernel": 4}, "kernel must be odd"),
        ({"depth": 0}, "at least 1"),
        ({"spatial_attention": False}, "n_channels is given if and only if"),
        ({"n_channels": 5}, "n_channels is given if and only if"),
        ({"generic_subject": True, "subject_layer": False}, "needs the subject layer"),
        ({"n_subjects": 0}, "at least one subject"),
        ({"n_subjects": 0, "subject_layer": False, "subject_embedding": 4}, "at least one subject"),
        ({"subject_embedding": 4}, "stands in for the subject layer"),
        ({"subject_embedding": -1, "subject_layer": False}, "size, or 0 for none, got -1"),
        ({"activation": "tanh"}, "one of gelu, relu, got 'tanh'"),
        ({"head": False, "head_width": 9}, "head=False, got 9"),
    ],
)
def test_impossible_options_are_errors(config, message):
    with pytest.raises(ValueError, match=message):
        make_encoder(**config)


def test_bfloat16_autocast_stays_close():
    encoder = make_encoder(depth=4)
    inputs = torch.randn(4, 6, 30), torch.rand(4, 6, 2), torch.tensor([0, 1, 0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(*inputs)
    full = encoder(*inputs)
    assert (half - full).norm() < 0.05 * full.norm()
