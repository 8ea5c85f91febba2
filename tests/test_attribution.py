"""What is planted in known sensors, in a known band, at a known lag is found there and nowhere else; where nothing is, nothing is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from brainspeech import attribution, models
from brainspeech.batches import BatchConfig, SegmentDataset
from brainspeech.records import FeatureTrack, Segment, Signal, Span
from brainspeech.scaling import Scale, Statistics
from brainspeech.similarity import candidate_normalised

SFREQ, LAG, LATE = 60.0, 0.1, 0.2  # Hz; the lag of the batches; the brain's answer to the sound (s)
N_BLOCKS, PER_BLOCK, SECONDS = 12, 3, 2.0
NAMES = tuple(f"E{c}" for c in range(6))
CARRY = (1, 3, 4)  # the sensors that follow the sound, one feature each


def make(*, n_subjects=2, planted=True, seed=0):
    """Noise on six sensors; sensors 1, 3 and 4 follow one feature each, of 4.8 to 7.2 Hz, 200 ms later."""
    rng = np.random.default_rng(seed)
    seconds = N_BLOCKS * PER_BLOCK * SECONDS
    n = round((seconds + 2) * SFREQ)
    spectrum = np.fft.rfft(rng.normal(size=(3, n)), axis=1)
    hertz = np.fft.rfftfreq(n, 1 / SFREQ)
    feature = np.fft.irfft(spectrum * ((hertz > 4.8) & (hertz < 7.2)), n=n, axis=1)
    feature = (feature / feature.std()).astype(np.float32)
    signals, segments = {}, []
    for s in range(n_subjects):
        data = rng.normal(size=(6, n)).astype(np.float32)
        if planted:
            data[list(CARRY)] += np.roll(feature, round(LATE * SFREQ), axis=1)
        uid = f"d/sub-{s}"
        positions = np.array([[0.5 + 0.5 * np.cos(c), 0.5 + 0.5 * np.sin(c)] for c in range(6)], np.float32)
        signals[uid] = Signal(uid, data, SFREQ, NAMES, ("eeg",) * 6, positions)
        for k in range(N_BLOCKS):
            for i in range(PER_BLOCK):
                onset = (k * PER_BLOCK + i) * SECONDS
                segments.append(
                    Segment(uid, uid, onset, SECONDS, f"{k}-{i}", f"b{k}", "", "", "test", (Span("a", 0.0, n / SFREQ, -onset),))
                )
    tracks = {("a", 0.0, n / SFREQ): FeatureTrack("f", "a", 0.0, n / SFREQ, feature, SFREQ)}
    return SegmentDataset(
        segments,
        signals,
        tracks,
        config=BatchConfig(lag=LAG, baseline=None, clamp=None),
        statistics=Statistics({uid: Scale(NAMES, (0.0,) * 6, (1.0,) * 6) for uid in signals}, 0.0, 1.0, None),
        subjects=tuple(signals),
        fill=0.0,
    )


class Reader(nn.Module):
    """Takes three sensors for the three features, some samples later."""

    def __init__(self, sensors=CARRY, late=LATE - LAG):
        super().__init__()
        self.sensors, self.late = list(sensors), round(late * SFREQ)

    def forward(self, signal, positions, subject, channel_mask=None):
        return torch.roll(signal[:, self.sensors], -self.late, dims=2)


def find(dataset, encoder, **options):
    return attribution.attribute(encoder, dataset, scores=candidate_normalised, n_permutations=399, **options)


def noted(part):
    return [i for i, p in enumerate(part["p"]) if p < 0.05]


def test_what_was_planted_is_found_where_it_is():
    found = find(make(), Reader())
    assert found["margin"] > found["chance"] > 0
    assert noted(found["sensors"]) == list(CARRY)
    assert sum(found["sensors"]["value"]) == pytest.approx(1, abs=1e-3)  # a linear encoder: the parts add up
    assert found["bands"]["hertz"] == [[0.0, 1.0], [1.0, 4.0], [4.0, 8.0], [8.0, 13.0], [13.0, 30.0]]
    np.testing.assert_allclose(found["bands"]["value"], [0, 0, 1, 0, 0], atol=0.03)  # a window of 2 s spills a little
    assert 2 in noted(found["bands"])
    assert [found["lags"]["lag"][i] for i in noted(found["lags"])] == pytest.approx([LATE])
    assert sum(found["lags"]["value"]) == pytest.approx(1, abs=0.1)
    assert found["attention"] is None


@pytest.mark.parametrize("late", [0.0, 0.2])
def test_the_lag_is_the_encoders_own(late):
    """An encoder that reads another time reads another lag, whether or not there is an answer."""
    found = find(make(), Reader(late=late - LAG))["lags"]
    moved = [lag for lag, limit in zip(found["lag"], found["limit"], strict=True) if limit]
    assert moved == pytest.approx([late])


def test_where_nothing_is_little_is_found():
    """Families without an effect have a part that is said to matter in 5 % of cases."""
    false = 0
    for seed in range(12):
        found = find(make(planted=False, seed=seed), Reader(), seed=seed)
        false += sum(bool(noted(found[kind])) for kind in ("sensors", "bands", "lags"))
    assert false <= 6  # of 36; 7 or more have a probability below 0.5 %


def test_sensors_that_are_not_read_have_no_share():
    found = find(make(), Reader(sensors=(1, 1, 1)))["sensors"]
    assert [v for i, v in enumerate(found["value"]) if i != 1] == [0] * 5
    assert [p for i, p in enumerate(found["p"]) if i != 1] == [1] * 5


def test_the_same_seed_gives_the_same():
    dataset = make()
    first, second = (find(dataset, Reader(), n_windows=30, batch_size=size) for size in (7, 64))
    assert first["windows"] == 30
    assert first["sensors"]["p"] == second["sensors"]["p"]
    np.testing.assert_allclose(first["sensors"]["value"], second["sensors"]["value"], atol=1e-3)
    assert find(dataset, Reader(), n_windows=30) == find(dataset, Reader(), n_windows=30)


def test_the_encoder_is_left_as_it_was_and_no_random_number_is_drawn():
    encoder = models.build("conv", n_subjects=2, n_features=3, n_virtual=4, hidden=4, depth=1, n_harmonics=3)
    encoder.train()
    state = torch.get_rng_state()
    find(make(), encoder, n_windows=20)
    assert encoder.training
    assert encoder.spatial_attention.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_attention_is_shown_as_it_is():
    dataset = make()
    torch.manual_seed(0)
    encoder = models.build("conv", n_subjects=2, n_features=3, n_virtual=5, hidden=4, depth=1, n_harmonics=3)
    with torch.no_grad():
        encoder.spatial_attention.heads *= 20
    found = attribution.attend(encoder, dataset)
    batch = dataset.batch([0])
    embedded = encoder.spatial_attention.embed(batch.positions[0])
    weights = (encoder.spatial_attention.heads @ embedded.T).softmax(1)  # (V, C)
    np.testing.assert_allclose(found["mean"], 6 * weights.mean(0).detach(), rtol=1e-3)
    assert found["n_heads"] == 5
    tops = [int(np.argmax(head["weight"])) for head in found["heads"]]
    assert len(set(tops)) == len(tops)
    assert found["heads"][0]["head"] == int(weights.max(1).values.argmax())


def test_windows_are_spread_over_stimuli_and_subjects():
    dataset = make(n_subjects=3)
    rows, truth, stimuli = attribution.choose(dataset.segments, 72, seed=0)
    assert len(rows) == len(set(rows)) == 72
    assert len(stimuli) == N_BLOCKS * PER_BLOCK
    assert set(np.bincount(truth)) == {2}
    assert all(dataset.segments[i].stimulus_id == stimuli[j].stimulus_id for i, j in zip(rows, truth, strict=True))
    assert set(np.unique([dataset.segments[i].subject for i in rows], return_counts=True)[1]) <= set(range(14, 35))
    assert attribution.choose(dataset.segments, 72, seed=0)[0] == rows
    with pytest.raises(ValueError, match="at least two stimuli"):
        attribution.choose(dataset.segments[:1], 10, seed=0)


def test_many_sensors_are_grouped_with_their_neighbours():
    rng = np.random.default_rng(0)
    positions = rng.random((200, 2))
    positions[7] = np.nan
    regions = attribution.group_sensors(positions, np.ones(200, bool), most=20)
    assert sorted(np.concatenate(regions).tolist()) == list(range(200))
    assert len(regions) == 20
    assert [7] in [region.tolist() for region in regions]
    spread = [np.ptp(positions[region], axis=0).max() for region in regions if 7 not in region]
    assert max(spread) < 0.6
    assert [r.tolist() for r in attribution.group_sensors(positions[:5], np.ones(5, bool), most=20)] == [[0], [1], [2], [3], [4]]
    nowhere = attribution.group_sensors(np.full((50, 2), np.nan), np.ones(50, bool), most=20)
    assert sorted(np.concatenate(nowhere).tolist()) == list(range(50))
