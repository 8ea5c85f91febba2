"""What the host knows of a batch, and that a training step asks no device for anything.

There is no device here. The meta device stands for one: its tensors have no numbers, so nobody can read them; and what a GPU would wait for
is refused.
"""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_resident import make_data
from torch import nn
from torch._subclasses import FakeTensorMode
from waiting import NoWaiting

from brainspeech import augment, losses, models
from brainspeech.host import Count, Known, Recordings, at_hand
from brainspeech.losses import masks
from brainspeech.losses.auxiliary import Weighted
from brainspeech.losses.joint import Joint
from brainspeech.models.base import estimator
from brainspeech.models.layers import SpatialAttention

CONV = {"n_virtual": 6, "hidden": 8, "depth": 2, "n_harmonics": 3}
ENCODERS = {
    "conv": ("conv", CONV),
    "conv, generic subject": ("conv", CONV | {"generic_subject": True}),
    "conv, embedding": ("conv", CONV | {"subject_layer": False, "subject_embedding": 3}),
    "conv, no attention": ("conv", CONV | {"spatial_attention": False, "n_channels": 4}),
    "linear_clip": ("linear_clip", {"n_channels": 4, "lags": range(-3, 4), "rank": 2}),
    "braindecode": ("braindecode", {"n_channels": 4, "n_times": 114, "n_knots": 4, "width": 4}),
}
SMALL = {"mochi": {"warmup": 0, "n_hardest": 4, "n_mixed": 5, "n_mixed_with_query": 3}, "isogclr": {"n_rows": 12, "n_cols": 12}}
LOSSES = {name: (name, SMALL.get(name, {})) for name in losses.LOSSES}
LOSSES |= {f"{name}, queue": (name, SMALL.get(name, {}) | {"queue": (6, 3, 114)}) for name in ("clip", "siglip", "mochi")}
LOSSES |= {
    f"clip, {duplicates}": ("clip", {"duplicates": duplicates, "symmetric": True}) for duplicates in ("negative", "positive", "error")
}
LOSSES |= {"clip, queue, error": ("clip", {"duplicates": "error", "queue": (6, 3, 114)}), "clip, chunk": ("clip", {"chunk": 2})}


def make_recordings():
    """Five recordings: two with one layout, one with a channel less, one with an unplaced channel, one elsewhere and without a channel."""
    rng = np.random.default_rng(0)
    positions = np.repeat(rng.random((1, 6, 2)).astype(np.float32), 5, axis=0)
    mask = np.ones((5, 6), dtype=bool)
    mask[2, 5] = mask[4, 0] = False
    positions[4] = rng.random((6, 2))
    positions[3, 1:3] = np.nan
    positions[~mask] = np.nan
    return positions, mask


@pytest.mark.parametrize("rows", [[0, 1, 0], [4, 0, 2, 3, 1, 4], [3], [2, 4]])
def test_what_is_known_is_what_an_encoder_finds_by_itself(rows):
    positions, mask = make_recordings()
    known = Recordings(positions, mask).describe(np.array(rows), np.array(rows) - 1, torch.device("cpu"))
    assert known.subjects == (min(rows) - 1, max(rows) - 1)
    torch.manual_seed(0)
    found, told = SpatialAttention(6, n_harmonics=4), SpatialAttention(6, n_harmonics=4)
    told.load_state_dict(found.state_dict())
    batch = torch.from_numpy(positions[rows]), torch.from_numpy(mask[rows])
    alone, given = found.find_layouts(*batch), told.find_layouts(*batch, known)
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(alone, given, strict=True))
    assert found.n_unplaced == told.n_unplaced == known.n_unplaced == (2 if 3 in rows else 0)
    signal = torch.randn(len(rows), 6, 9)
    outputs = []
    for attention, keywords in ((found, {}), (told, {"known": known})):
        torch.manual_seed(1)  # the centre of the dropout
        output = attention(signal, *batch, **keywords)
        output.square().sum().backward()
        outputs.append(output)
    assert torch.equal(*outputs)
    assert torch.equal(found.heads.grad, told.heads.grad)


def test_a_recording_without_any_position_is_named_by_its_segment():
    positions, mask = make_recordings()
    positions[3] = np.nan
    known = Recordings(positions, mask).describe(np.array([0, 3, 3]), np.zeros(3, dtype=int), torch.device("meta"))
    assert known.nowhere == 1
    attention = SpatialAttention(6, n_harmonics=4).to("meta")
    with pytest.raises(ValueError, match=r"Segment 1 of the batch.*got none among 6.*positions='biosemi128'"):
        attention(torch.zeros(3, 6, 9, device="meta"), torch.zeros(3, 6, 2, device="meta"), known=known)


def test_a_count_is_read_again_only_where_others_wrote_to_it(monkeypatch):
    buffer, count, reads = torch.zeros((), dtype=torch.int64), Count(), []
    monkeypatch.setattr("brainspeech.host.at_hand", lambda tensor: False)
    monkeypatch.setattr(torch.Tensor, "__int__", lambda tensor: reads.append(tensor) or tensor.item())
    assert [count.read(buffer) for _ in range(3)] == [0, 0, 0]
    assert len(reads) == 1
    buffer += 1
    count.note(buffer, 1)
    assert count.read(buffer) == 1
    assert len(reads) == 1
    buffer += 5
    assert count.read(buffer) == 6
    assert count.read(buffer.clone()) == 6
    assert len(reads) == 3


def test_the_memory_of_all_tensors_is_kept_until_a_stream_is_done():
    asked = []
    known = Known((0, 1), 0, -1, *[SimpleNamespace(record_stream=asked.append)] * 4)
    known.record_stream("side")
    assert asked == ["side"] * 4


def make_encoder(name):
    model, options = ENCODERS[name]
    torch.manual_seed(0)
    return models.build(model, n_subjects=3, n_features=3, **options)


def make_loss(name):
    loss, options = LOSSES[name]
    return losses.build(loss, **options)


@pytest.fixture
def _meta(monkeypatch):
    """Autocast knows no meta device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def train(encoder, loss, data, *, steps=2):
    """Take steps as ``train.fit`` takes them, from the indices of the segments to Adam; give the losses."""
    estimate = estimator(encoder)
    parameters = [p for p in [*encoder.parameters(), *loss.parameters()] if p.requires_grad]
    optimiser = torch.optim.Adam(parameters)
    values = []
    for step in range(steps):
        batch = data.batch(np.array([0, 5, 10, 1, 6, 11, 12, 8]) + step)  # three recordings, one sound three times
        optimiser.zero_grad()
        estimates = estimate(batch).float()
        estimates.detach().isfinite().flatten(1).all(1)
        ids = batch.stimulus_id
        value = loss(estimates, batch.target, row_ids=ids, col_ids=ids).loss
        value.backward()
        optimiser.step()
        values.append(value.detach())
    return values


@pytest.mark.usefixtures("_meta")
@pytest.mark.parametrize("name", ENCODERS)
def test_a_step_of_every_encoder_waits_for_nothing(name):
    data, encoder, loss = make_data().to("meta"), make_encoder(name).to("meta"), losses.build("clip")
    with NoWaiting("meta") as seen:
        values = train(encoder, loss, data)
    assert {value.device.type for value in values} == {"meta"}
    assert seen.n_operations > 100


@pytest.mark.usefixtures("_meta")
@pytest.mark.parametrize("name", LOSSES)
def test_a_step_of_every_loss_waits_for_nothing(name):
    data, encoder = make_data().to("meta"), make_encoder("conv").to("meta")
    with torch.device("meta"):
        loss = make_loss(name)
    with NoWaiting("meta"):
        train(encoder, loss, data)


@pytest.mark.usefixtures("_meta")
def test_a_step_of_losses_in_losses_and_of_masks_waits_for_nothing():
    whole = make_data()
    data, encoder = whole.to("meta"), make_encoder("conv").to("meta")
    with torch.device("meta"):
        views = Weighted({"clip": (losses.build("clip"), 1.0), "views": (losses.build("mv_dhel"), 0.2)})
        joint = Joint(losses.build("clip"), models.build_target("deep_mel", n_features=3, n_outputs=3, hidden=4, depth=2))
    with NoWaiting("meta"):
        train(encoder, views, data)
        train(encoder, joint, data)
    masked = losses.build("clip")
    masked.near_duplicates = masks.by_id(whole.stimulus_id, torch.arange(len(whole)).clamp(max=0), masks.same_id)
    train(encoder, masked, data)  # the table goes to the device once
    with NoWaiting("meta"):
        train(encoder, masked, data)


@pytest.mark.usefixtures("_meta")
def test_what_waits_is_seen():
    """The check itself: an encoder that is told nothing, a mask, a number, a copy."""
    data, encoder = make_data().to("meta"), make_encoder("conv").to("meta")
    batch = data.batch([0, 1, 5])
    values = batch.signal
    with NoWaiting("meta"):
        for wait in (
            lambda: encoder(values, batch.positions, batch.subject, batch.channel_mask),
            lambda: values[values[:, :, 0] > 0],
            lambda: values.sum().item(),
            lambda: torch.isin(batch.subject, batch.subject),
            lambda: torch.ones(3).to("meta"),
        ):
            with pytest.raises((AssertionError, NotImplementedError, RuntimeError)):
                wait()


@pytest.mark.usefixtures("_meta")
def test_moving_segments_in_time_waits_for_nothing():
    batch = make_data().to("meta").batch([0, 5, 10])
    shift = augment.Augmentation([("TimeShift", {"max_shift": 0.1})], sfreq=40.0)
    with NoWaiting("meta"):
        assert shift(batch.signal, batch.channel_mask, seed=(0, 1)).shape == batch.signal.shape


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize("name", ["clip", "clip_symmetric", "siglip", "isogclr", "dclw", "mse", "mv_infonce", "mv_dhel", "clip, queue"])
def test_a_forward_pass_on_a_gpu_that_is_made_up_waits_for_nothing(name, monkeypatch):
    """PyTorch's own account of what depends on numbers: tensors that claim to be on a GPU, and have none.

    A backward pass needs a real one.
    """
    batch = make_data().batch([0, 5, 10, 1, 6, 11, 12, 8])
    monkeypatch.setattr("brainspeech.host.upload", lambda values, device: values.to(device, non_blocking=True))  # nothing can be pinned
    with FakeTensorMode() as mode:
        with torch.device("cuda"):
            encoder, loss = make_encoder("conv"), make_loss(name)
        inputs = [mode.from_tensor(part).to("cuda") for part in (batch.signal, batch.positions, batch.subject, batch.channel_mask)]
        known = batch.known._replace(**{k: mode.from_tensor(v).to("cuda") for k, v in batch.known._asdict().items() if k in TENSORS})
        target, ids = (mode.from_tensor(part).to("cuda") for part in (batch.target, batch.stimulus_id))
        with NoWaiting("cuda"):
            estimates = encoder(*inputs, known=known)
            value = loss(estimates, target, row_ids=ids, col_ids=ids).loss
    assert not at_hand(value)
    assert value.device.type == "cuda"


TENSORS = ("layout", "place", "available", "points")


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("rows", [[0, 1, 2, 4], [0, 5, 10, 1, 6, 11]])
def test_a_batch_with_and_without_what_is_known_trains_to_the_same_bits(name, rows):
    data, results = make_data(), []
    for told in (True, False):
        encoder, batch = make_encoder(name), data.batch(rows)
        torch.manual_seed(3)
        keywords = {"known": batch.known} if told else {}
        estimate = encoder(batch.signal, batch.positions, batch.subject, channel_mask=batch.channel_mask, **keywords)
        estimate.square().mean().backward()
        results.append([estimate, *(p.grad for p in encoder.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class Own(nn.Module):
    """An encoder of a user's, which knows of nothing."""

    def forward(self, signal, positions, subject, channel_mask=None):
        return signal


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def test_an_encoder_without_the_keyword_is_called_without_it():
    batch = make_data().batch([0, 5])
    for encoder in (Own(), Wrapped(Own())):
        assert torch.equal(estimator(encoder)(batch), batch.signal)
    seen = []
    encoder = make_encoder("conv")
    encoder.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs["known"]), with_kwargs=True)
    for each in (encoder, Wrapped(encoder), torch.compile(encoder, backend="eager", disable=True)):
        estimator(each)(batch)
    assert len(seen) == 3
    assert all(known is batch.known for known in seen)


def test_subjects_on_a_device_are_checked_by_what_is_known():
    batch = make_data().to("meta").batch([0, 1])
    encoder = models.build("linear_clip", n_subjects=3, n_features=3, n_channels=4).to("meta")
    wrong = batch.known._replace(subjects=(0, 3))
    with pytest.raises(ValueError, match=r"Subject indices must lie in 0\.\.2"):
        encoder(batch.signal, batch.positions, batch.subject, batch.channel_mask, known=wrong)
