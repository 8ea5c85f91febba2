"""Batches made where the data are: equal to those gathered from memory, on any device."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from brainspeech.batches import Batch, BatchConfig, SegmentDataset
from brainspeech.records import FeatureTrack, Segment, Signal, Span
from brainspeech.resident import Frames, Windows
from brainspeech.scaling import fit_statistics

SFREQ = 40.0


def make_data(*, n_recordings=3, seconds=40.0, scale=1e-13, lag=0.15, artefact=0.0):
    """Recordings with other channels and lengths; windows that hear two sounds, one, or part of one."""
    rng = np.random.default_rng(0)
    signals, segments = {}, []
    tracks = [FeatureTrack("toy", a, 0.0, 12.0, rng.standard_normal((3, 600)).astype(np.float32), 50.0) for a in ("a", "b")]
    for i in range(n_recordings):
        names = ("E0", "E1", "E2", "E3")[i % 2 :][: 4 - i]
        n_times = round((seconds + i) * SFREQ)
        data = scale * (rng.standard_normal((len(names), n_times)) + 5 * rng.standard_normal((len(names), 1)))
        data[0, 640] += artefact * scale
        uid = f"d/sub-{i}"
        positions = rng.random((len(names), 2)).astype(np.float32)
        signals[uid] = Signal(uid, data.astype(np.float32), SFREQ, names, ("mag",) * len(names), positions)
        for onset in (1.0, 6.5, 11.0, 14.25, 20.5):
            spans = (Span("a", 0.0, 12.0, 2.0 - onset), Span("b", 0.0, 12.0, 13.0 - onset))
            segments.append(Segment(uid, uid, onset, 3.0, f"s@{onset:g}", "train", "", "", "train", spans))
    config = BatchConfig(lag=lag)
    table = {track.key: track for track in tracks}
    statistics = fit_statistics(segments, signals, table, config=config, fill=0.5)
    return SegmentDataset(segments, signals, table, config=config, statistics=statistics, subjects=tuple(signals), fill=0.5)


def equal(first, second):
    pairs = [(getattr(first, f.name), getattr(second, f.name)) for f in fields(Batch) if f.name != "known"]
    assert first.known[:3] == second.known[:3]
    return all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in [*pairs, *zip(first.known[3:], second.known[3:], strict=True)])


@pytest.mark.parametrize(("signals", "tracks"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("lag", [0.15, -0.1])
def test_a_batch_of_resident_data_equals_one_gathered_from_memory(signals, tracks, lag):
    dataset = make_data(lag=lag)
    placed = dataset.to("cpu", signals=signals, tracks=tracks)
    rows = [14, 0, 3, 3, 7, 9]
    assert equal(placed.batch(rows), dataset.batch(rows))
    assert torch.equal(placed.targets(rows), dataset.targets(rows))


def test_parts_and_lags_of_resident_data_use_the_same_copy():
    dataset = make_data()
    placed = dataset.to("cpu")
    part = dataset.subset([2, 8, 11])
    beside = part.beside(placed)
    assert beside._windows is placed._windows
    assert equal(beside.batch([0, 2]), dataset.batch([2, 11]))
    assert equal(placed.subset([5, 6]).batch([1]), dataset.batch([6]))
    assert equal(placed.with_lag(-0.2).batch([4]), dataset.with_lag(-0.2).batch([4]))
    with pytest.raises(ValueError, match="share no memory"):
        make_data().beside(placed)


def test_half_precision_keeps_signals_in_any_unit():
    """In teslas a number of 16 bits would be 0; and an artefact of a million IQRs must not become infinite."""
    dataset = make_data(artefact=1e6)
    placed = dataset.to("cpu", half=True)
    rows = range(len(dataset))
    whole, half = dataset.batch(rows), placed.batch(rows)
    assert half.signal.dtype == half.target.dtype == torch.float32
    # Signals lie within some 10 IQRs of their mean, targets within 5 standard deviations.
    error = (half.signal - whole.signal).abs()
    assert 0 < error.max() < 2 * 10 / 2048
    assert 0 < (half.target - whole.target).abs().max() < 5 / 2048
    assert torch.equal(half.signal[~half.channel_mask], whole.signal[~whole.channel_mask])
    assert whole.signal.max() == half.signal.max() == 20
    assert placed._windows.flat.nbytes * 2 == dataset.n_bytes[0]


def test_nothing_of_a_resident_batch_is_computed_elsewhere():
    """The meta device has no numbers: what was computed on the CPU instead would not be there."""
    dataset = make_data().to("meta")
    batch = dataset.batch([0, 1])
    parts = [*(getattr(batch, f.name) for f in fields(Batch) if f.name != "known"), *batch.known[3:]]
    assert {part.device.type for part in parts} == {"meta"}
    assert batch.signal.shape == (2, 4, dataset.n_times)
    assert batch.target.shape == (2, 3, dataset.n_times)


def test_windows_and_frames_equal_their_loops():
    rng = torch.Generator().manual_seed(0)
    signals = [torch.randn(2, 9, generator=rng), torch.randn(3, 7, generator=rng)]
    columns = [torch.tensor([2, 0]), None]
    cpu = torch.device("cpu")
    windows = Windows(signals, columns, 3, device=cpu, half=False, spread=torch.ones(2, 3, 1))
    got = windows.cut(torch.tensor([1, 0]), torch.tensor([4, 6]), 3)
    assert torch.equal(got[0], signals[1][:, 4:7])
    assert torch.equal(got[1], torch.stack([signals[0][1, 6:9], torch.zeros(3), signals[0][0, 6:9]]))
    tracks = [torch.randn(2, 4, generator=rng), torch.randn(2, 3, generator=rng)]
    frames = Frames(tracks, 0.25, device=cpu, half=False)
    index = torch.tensor([[0, 3, frames.fill], [int(frames.begin[1]), frames.fill, 6]])
    picked = frames.pick(index)
    assert torch.equal(picked[0], torch.stack([tracks[0][:, 0], tracks[0][:, 3], torch.full((2,), 0.25)], 1))
    assert torch.equal(picked[1], torch.stack([tracks[1][:, 0], torch.full((2,), 0.25), tracks[1][:, 2]], 1))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("signals", "tracks"), [(True, True), (False, True), (False, False)])
def test_a_batch_made_on_a_gpu_equals_one_gathered_from_memory(signals, tracks):
    dataset = make_data()
    got, wanted = dataset.to("cuda", signals=signals, tracks=tracks).batch([3, 1, 12]), dataset.batch([3, 1, 12])
    for f in fields(Batch):
        torch.testing.assert_close(getattr(got.to("cpu"), f.name), getattr(wanted, f.name), rtol=1e-5, atol=1e-5, equal_nan=True)
