"""Batches against plain loops: order of the steps, lag, masks, targets, statistics."""

import errno
import json
import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from brainspeech.batches import Batch, BatchConfig, SegmentDataset
from brainspeech.records import FeatureTrack, Segment, Signal, Span
from brainspeech.scaling import Statistics, fit_statistics

SFREQ = 120.0
N_WINDOW = 360


def make_signal(uid="d/sub-1", n_channels=3, seconds=30.0, seed=0, names=None, drift=0.0, sfreq=SFREQ):
    rng = np.random.default_rng(seed)
    n_times = round(seconds * sfreq)
    data = rng.standard_normal((n_channels, n_times)) + drift * np.linspace(-1, 1, n_times)
    names = names or tuple(f"E{i}" for i in range(n_channels))
    positions = rng.random((n_channels, 2)).astype(np.float32)
    return Signal(uid, (1e-6 * data).astype(np.float32), sfreq, tuple(names), ("eeg",) * n_channels, positions)


def make_track(audio="a", start=0.0, stop=30.0, n_features=2, sfreq=50.0, seed=0):
    n_frames = round((stop - start) * sfreq)
    data = np.random.default_rng(seed).standard_normal((n_features, n_frames)).astype(np.float32)
    return FeatureTrack("toy", audio, start, stop, data, sfreq)


def make_segment(onset=1.0, uid="d/sub-1", split="train", duration=3.0, stimulus=None, span="a", stop=30.0):
    subject = "/".join(uid.split("/")[:2])
    spans = (Span(span, 0.0, stop, -onset),) if span else ()
    return Segment(uid, subject, onset, duration, stimulus or f"{span}@{onset:g}", "block", "", "", split, spans)


def make_statistics(signals, tracks, segments, **kwargs):
    defaults: dict[str, Any] = {"config": BatchConfig(), "fill": 0.0}
    return fit_statistics([replace(s, split="train") for s in segments], signals, tracks, **(defaults | kwargs))


def make_dataset(segments, signals, tracks, *, config=None, statistics=None, subjects=("d/sub-1",), fill=0.0, **kwargs):
    config = config or BatchConfig()
    statistics = statistics or make_statistics(signals, tracks, segments, config=config, fill=fill)
    return SegmentDataset(segments, signals, tracks, config=config, statistics=statistics, subjects=subjects, fill=fill, **kwargs)


@pytest.fixture
def simple():
    signal, track = make_signal(), make_track()
    segments = [make_segment(onset) for onset in np.arange(1.0, 25.0, 0.5).tolist()]
    return segments, {signal.uid: signal}, {track.key: track}


def loop_signal(signal, segment, scale, config, k):
    """The steps of one window, sample by sample and channel by channel."""
    start = int(np.floor(segment.onset * SFREQ + 0.5))
    out = []
    for channel, median, iqr in zip(signal.data.astype(np.float64), scale.median, scale.iqr, strict=True):
        window = channel[start : start + N_WINDOW]
        if config.baseline is not None:
            window = window - np.mean(window[: round(config.baseline * SFREQ)])
        if config.scale:
            window = (window - median) / iqr
        if config.clamp is not None:
            window = np.clip(window, -config.clamp, config.clamp)
        out.append(window[k:] if k >= 0 else window[:k])
    return np.array(out)


@pytest.mark.parametrize("lag", [0.15, 0.0, -0.1])
@pytest.mark.parametrize(
    "config", [BatchConfig(), BatchConfig(baseline=None), BatchConfig(clamp=0.5), BatchConfig(scale=False, clamp=None)]
)
def test_a_window_equals_the_loop(simple, config, lag):
    segments, signals, tracks = simple
    config = replace(config, lag=lag)
    dataset = make_dataset(segments, signals, tracks, config=config)
    batch = dataset.batch([5, 0])
    k = round(lag * SFREQ)
    assert dataset.n_times == N_WINDOW - abs(k) == batch.signal.shape[2] == batch.target.shape[2]
    for row, index in enumerate([5, 0]):
        signal = signals["d/sub-1"]
        wanted = loop_signal(signal, segments[index], dataset.statistics.scales["d/sub-1"], config, k)
        np.testing.assert_allclose(batch.signal[row], wanted, rtol=1e-4, atol=1e-9 if not config.scale else 1e-4)
    assert batch.signal.dtype == batch.target.dtype == torch.float32


def test_baseline_comes_before_the_statistics_and_the_scale():
    """On a drifting channel the IQR of the raw signal measures the drift; windows divided by it shrink and the clamp never acts."""
    signal = make_signal(drift=40.0, seconds=60)
    artefact = round(20.5 * SFREQ)
    signal.data[0, artefact : artefact + 10] += 1e-4
    track = make_track(stop=60.0)
    signals, tracks = {signal.uid: signal}, {track.key: track}
    segments = [make_segment(onset, stop=60.0) for onset in np.arange(0.0, 56.0, 1.0).tolist()]
    ours = make_dataset(segments, signals, tracks)
    raw = make_dataset(segments, signals, tracks, config=BatchConfig(baseline=None))
    shrinkage = np.array(raw.statistics.scales[signal.uid].iqr) / np.array(ours.statistics.scales[signal.uid].iqr)
    assert (shrinkage > 3).all()
    batch = ours.batch(range(len(ours)))
    assert batch.signal.abs().max() == 20.0
    assert (batch.signal.abs() == 20.0).sum() == 10 * sum(s.onset + 0.15 <= 20.5 and s.onset + 3 > 20.6 for s in segments)
    assert raw.batch(range(len(raw))).signal.abs().max() < 20.0
    quartiles = np.quantile(ours.with_lag(0).batch(range(len(ours))).signal[:, 1].numpy(), [0.25, 0.5, 0.75])
    np.testing.assert_allclose([quartiles[1], quartiles[2] - quartiles[0]], [0, 1], atol=1e-3)


def test_statistics_equal_the_loop(simple):
    segments, signals, tracks = simple
    statistics = make_statistics(signals, tracks, segments)
    windows = np.concatenate(
        [loop_signal(signals["d/sub-1"], s, statistics.scales["d/sub-1"], BatchConfig(scale=False, clamp=None), 0) for s in segments],
        axis=1,
    )
    low, middle, high = np.quantile(windows, [0.25, 0.5, 0.75], axis=1)
    np.testing.assert_allclose(statistics.scales["d/sub-1"].median, middle, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(statistics.scales["d/sub-1"].iqr, high - low, rtol=1e-6)
    raw = make_dataset(
        segments, signals, tracks, statistics=replace(statistics, target_mean=0.0, target_std=1.0), config=BatchConfig(lag=0.15)
    )
    target = raw.with_lag(0.0).targets(range(len(segments))).double()
    np.testing.assert_allclose([statistics.target_mean, statistics.target_std], [target.mean(), target.std(correction=0)], rtol=1e-6)
    assert statistics.n_windows == {"d/sub-1": len(segments)}
    assert statistics.flat == statistics.borrowed == {}


def test_few_windows_are_chosen_by_seed(simple):
    segments, signals, tracks = simple
    first, again, other = (make_statistics(signals, tracks, segments, max_windows=5, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.scales != other.scales
    assert first.n_windows == {"d/sub-1": 5}


def test_statistics_come_back_from_json_to_the_last_bit(simple, tmp_path):
    segments, signals, tracks = simple
    signals["d/sub-1/run-2"] = make_signal("d/sub-1/run-2", seed=1)
    statistics = make_statistics(signals, tracks, segments)
    statistics.save(tmp_path / "statistics.json")
    assert Statistics.load(tmp_path / "statistics.json") == statistics
    (tmp_path / "statistics.json").write_text(json.dumps({"scales": {}}))
    with pytest.raises(RuntimeError, match=r"statistics.json: expected the statistics"):
        Statistics.load(tmp_path / "statistics.json")


def test_statistics_that_cannot_be_written_leave_those_before(simple, tmp_path, monkeypatch):
    segments, signals, tracks = simple
    statistics, path = make_statistics(signals, tracks, segments), tmp_path / "statistics.json"
    statistics.save(path)

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    said = r"statistics\.json \(0\.\d+ MB\): .*No space left.* MB are free\. The statistics\.json that was there before is kept"
    with pytest.raises(RuntimeError, match=said):
        replace(statistics, target_mean=7.0).save(path)
    assert Statistics.load(path) == statistics
    assert [p.name for p in tmp_path.iterdir()] == ["statistics.json"]


def test_a_recording_without_training_windows_borrows():
    signals = {s.uid: s for s in (make_signal(f"d/sub-{i}/run-{j}", seed=10 * i + j) for i, j in [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1)])}
    track = make_track()
    segments = [make_segment(2.0 * k, uid=uid) for uid in ("d/sub-1/run-1", "d/sub-1/run-2", "d/sub-2/run-1") for k in range(5)]
    statistics = make_statistics(signals, {track.key: track}, segments)
    assert statistics.borrowed == {
        "d/sub-1/run-3": "2 other recording(s) of d/sub-1",
        "d/sub-3/run-1": "all 3 training recording(s) with its channels",
    }
    own = np.mean([statistics.scales[f"d/sub-1/run-{j}"].iqr for j in (1, 2)], axis=0)
    np.testing.assert_allclose(statistics.scales["d/sub-1/run-3"].iqr, own)
    assert statistics.n_windows["d/sub-3/run-1"] == 0
    signals["d/sub-4"] = make_signal("d/sub-4", names=("A", "B", "C"))
    with pytest.raises(RuntimeError, match="d/sub-4: 3 of its 3 channels are in no recording with training windows"):
        make_statistics(signals, {track.key: track}, segments)


def test_a_flat_channel_stays_zero_and_is_counted(simple):
    segments, signals, tracks = simple
    signals["d/sub-1"].data[1] = 0
    dataset = make_dataset(segments, signals, tracks)
    assert dataset.statistics.flat == {"d/sub-1": 1}
    assert dataset.statistics.scales["d/sub-1"].iqr[1] == 1.0
    signal = dataset.batch([0]).signal[0]
    assert (signal[1] == 0).all()
    assert signal[0].std() > 0.1


def test_a_planted_response_meets_its_sound_at_the_lag():
    """The brain repeats the target 150 ms later: at that lag, and only there, signal and target are the same."""
    track = make_track(sfreq=SFREQ, n_features=1)
    signal = make_signal(n_channels=1)
    signal.data[0, 18:] = 1e-6 * track.data[0, :-18]
    segments = [make_segment(onset) for onset in np.arange(1.0, 25.0, 0.7).tolist()]
    dataset = make_dataset(segments, {signal.uid: signal}, {track.key: track})

    def agreement(lag):
        batch = dataset.with_lag(lag).batch(range(len(segments)))
        x, y = batch.signal[:, 0], batch.target[:, 0]
        x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
        return float(torch.cosine_similarity(x, y, dim=1).mean())

    assert agreement(0.15) > 0.9999
    assert max(abs(agreement(lag)) for lag in (-0.15, 0.0, 0.1, 0.2)) < 0.2


@pytest.mark.parametrize("sfreq", [SFREQ, 49.9, 128.0, 10.0])
def test_targets_take_the_nearest_frame_and_fill_the_rest(sfreq):
    """A window that touches two sounds and silence, frame by frame."""
    tracks = [make_track("a", 1.0, 3.0, sfreq=sfreq), make_track("b", 0.0, 4.0, sfreq=sfreq, seed=1)]
    spans = (Span("a", 1.0, 3.0, -1.0), Span("b", 0.0, 4.0, 1.5))
    segment = replace(make_segment(2.0), spans=spans)
    silent = replace(make_segment(4.0), spans=())
    signal = make_signal()
    dataset = make_dataset([segment, silent], {signal.uid: signal}, {t.key: t for t in tracks}, fill=-5.0, config=BatchConfig(lag=0.0))
    mean, std = dataset.statistics.target_mean, dataset.statistics.target_std
    target = dataset.targets([0, 1]) * std + mean
    for t in range(N_WINDOW):
        wanted = np.full(2, -5.0)
        for track, span in zip(tracks, spans, strict=True):
            since = t / SFREQ - span.onset
            if -1e-9 <= since < span.stop - span.start - 1e-9:
                distance = np.abs(np.arange(track.data.shape[1]) / track.sfreq - since)
                wanted = track.data[:, np.flatnonzero(distance <= distance.min() + 1e-9)[-1]]
        np.testing.assert_allclose(target[0, :, t], wanted, atol=1e-5)
    np.testing.assert_allclose(target[1], -5.0, atol=1e-5)
    heard = target[0].numpy()[:, target[0, 0].numpy() > -4.9]
    np.testing.assert_allclose([heard.mean(), heard.std()], [mean, std], atol=1e-4)


def test_lag_cuts_brain_and_sound_at_opposite_ends(simple):
    segments, signals, tracks = simple
    dataset = make_dataset(segments, signals, tracks, config=BatchConfig(lag=0.0))
    whole = dataset.batch([3])
    later, earlier = dataset.with_lag(0.15).batch([3]), dataset.with_lag(-0.15).batch([3])
    assert torch.equal(later.signal, whole.signal[..., 18:])
    assert torch.equal(later.target, whole.target[..., :-18])
    assert torch.equal(earlier.signal, whole.signal[..., :-18])
    assert torch.equal(earlier.target, whole.target[..., 18:])
    with pytest.raises(ValueError, match="leaves nothing"):
        dataset.with_lag(3.0)


def test_mixed_montages_share_a_union_of_channels():
    first = make_signal("d/sub-1", names=("A", "B", "C"))
    second = make_signal("d/sub-2", names=("C", "D"), n_channels=2, seed=5)
    second.positions[1] = np.nan
    track = make_track()
    signals, tracks = {s.uid: s for s in (first, second)}, {track.key: track}
    segments = [make_segment(onset, uid=uid) for onset in (1.0, 5.0, 9.0) for uid in signals]
    dataset = make_dataset(segments, signals, tracks, subjects=("d/sub-2",))
    assert dataset.ch_names == ("A", "B", "C", "D")
    batch = dataset.batch([0, 1])
    assert batch.channel_mask.tolist() == [[True, True, True, False], [False, False, True, True]]
    assert batch.subject.tolist() == [-1, 0]
    assert (batch.signal[0, 3] == 0).all()
    assert (batch.signal[1, :2] == 0).all()
    np.testing.assert_array_equal(batch.positions[0, :3], first.positions)
    np.testing.assert_array_equal(batch.positions[1, 2], second.positions[0])
    assert batch.positions[1, [0, 1, 3]].isnan().all()
    alone = make_dataset([segments[1]], {second.uid: second}, tracks, statistics=dataset.statistics)
    assert torch.equal(batch.signal[1, 2:], alone.batch([0]).signal[0])
    only_first = make_dataset(segments[::2], signals, tracks, statistics=dataset.statistics)
    assert only_first.n_channels == 4


def test_stimulus_ids_are_equal_for_equal_names_in_any_process(simple):
    segments, signals, tracks = simple
    segments = [replace(s, stimulus_id=name) for s, name in zip(segments, ["x", "y", "x", "z"], strict=False)]
    dataset = make_dataset(segments, signals, tracks)
    ids = dataset.batch(range(4)).stimulus_id
    assert ids.dtype == torch.int64
    assert ids[0] == ids[2]
    assert len(ids.unique()) == 3
    assert ids[0] == 0x2D711642B726B04401627CA9FBAC32F5C8530FB1903CC4DB02258717921A4881 >> (256 - 63)  # sha256 of "x"
    assert dataset.unique() == [0, 1, 3]


def test_equal_hashes_of_different_names_are_an_error(simple, monkeypatch):
    class Constant:
        def __init__(self, _):
            pass

        def digest(self):
            return b"12345678"

    segments, signals, tracks = simple
    statistics = make_statistics(signals, tracks, segments)
    monkeypatch.setattr("brainspeech.batches.hashlib.sha256", Constant)
    with pytest.raises(RuntimeError, match="same hash"):
        make_dataset(segments, signals, tracks, statistics=statistics)


def test_subsets_and_lags_share_memory(simple):
    segments, signals, tracks = simple
    dataset = make_dataset(segments, signals, tracks)
    part = dataset.subset([7, 2, 2])
    whole, few = dataset.batch([7, 2]), part.batch([0, 2])
    assert part.segments == (segments[7], segments[2], segments[2])
    for name in Batch.__dataclass_fields__:
        torch.testing.assert_close(getattr(few, name), getattr(whole, name), rtol=0, atol=0, equal_nan=True)
    signals["d/sub-1"].data[:] = 0
    assert (part.with_lag(0.1).batch([0]).signal.std(dim=2) < 1e-5).all()


def test_what_the_host_knows_of_a_batch_is_true(simple):
    segments, signals, tracks = simple
    other = replace(make_signal(), uid="d/sub-2", positions=np.array([[0.1, 0.2], [np.nan, np.nan], [0.3, 0.4]], np.float32))
    more = [replace(s, recording="d/sub-2", subject="d/sub-2") for s in segments]
    dataset = make_dataset([*segments, *more], signals | {other.uid: other}, tracks)
    batch = dataset.batch([len(segments), 1, 2, len(segments) + 3])
    known = batch.known
    assert known.subjects == (int(batch.subject.min()), int(batch.subject.max()))
    assert (known.n_unplaced, known.nowhere) == (1, -1)
    available = known.available[known.layout]
    assert torch.equal(available, batch.channel_mask & ~batch.positions.isnan().any(2))
    assert torch.equal(known.points[known.place][known.layout], batch.positions.masked_fill(~available[:, :, None], 0))
    assert dataset.subset([1, 2]).batch([0, 1]).known.n_unplaced == 0
    assert replace(batch, known=None).to("cpu").known is None


def test_a_memory_mapped_signal_is_read_and_gives_the_same(simple, tmp_path):
    segments, signals, tracks = simple
    np.save(tmp_path / "data.npy", signals["d/sub-1"].data)
    mapped = replace(signals["d/sub-1"], data=np.load(tmp_path / "data.npy", mmap_mode="r"))
    dataset = make_dataset(segments, signals, tracks)
    again = make_dataset(segments, {mapped.uid: mapped}, tracks)
    assert again.statistics == dataset.statistics
    assert torch.equal(again.batch([4]).signal, dataset.batch([4]).signal)


def test_a_window_one_sample_too_long_is_moved_back_and_counted(simple):
    segments, signals, tracks = simple
    last = make_segment(27.0 + 0.6 / SFREQ)
    dataset = make_dataset([*segments, last], signals, tracks, config=BatchConfig(lag=0.0, baseline=None, scale=False, clamp=None))
    assert dataset.shifted == 1
    np.testing.assert_array_equal(dataset.batch([len(segments)]).signal[0], signals["d/sub-1"].data[:, -N_WINDOW:])
    assert dataset.subset([0]).shifted == 0
    with pytest.raises(RuntimeError, match=r"d/sub-1: the window at 27\.02 s .* ends 2 samples after"):
        make_dataset([*segments, make_segment(27.02)], signals, tracks, statistics=dataset.statistics, config=dataset.config)


def test_a_recording_shorter_than_a_window_is_an_error(simple):
    segments, signals, tracks = simple
    short = make_signal(seconds=359 / SFREQ)
    with pytest.raises(RuntimeError, match="d/sub-1: the window at 0"):
        make_dataset([make_segment(0.0)], {short.uid: short}, tracks, statistics=make_statistics(signals, tracks, segments))


def test_bad_input_is_named(simple):
    segments, signals, tracks = simple
    statistics = make_statistics(signals, tracks, segments)
    with pytest.raises(ValueError, match="needs segments, got none"):
        make_dataset([], signals, tracks, statistics=statistics)
    with pytest.raises(ValueError, match="need training segments, got none"):
        fit_statistics([], signals, tracks, config=BatchConfig(), fill=0.0)
    with pytest.raises(ValueError, match=r"1 of 2 from another split, first d/sub-1 at 9.0 s \(test\)"):
        fit_statistics([segments[0], make_segment(9.0, split="test")], signals, tracks, config=BatchConfig(), fill=0.0)
    with pytest.raises(RuntimeError, match="no signal of d/sub-9"):
        make_dataset([make_segment(1.0, uid="d/sub-9")], signals, tracks, statistics=statistics)
    with pytest.raises(RuntimeError, match=r"no feature track for 'c' from 0.0 to 30.0 s"):
        make_dataset([make_segment(1.0, span="c")], signals, tracks, statistics=statistics)
    with pytest.raises(ValueError, match="fill must be a finite number, got nan"):
        make_dataset(segments, signals, tracks, fill=np.nan)
    with pytest.raises(RuntimeError, match="No segment hears anything"):
        make_dataset([make_segment(1.0, span="")], signals, tracks, statistics=statistics)
    with pytest.raises(ValueError, match=r"expected a signal at 100\.0 Hz, got 120\.0 Hz"):
        make_dataset(segments, signals, tracks, statistics=statistics, sfreq=100.0)
    with pytest.raises(ValueError, match="one duration"):
        make_dataset([*segments, make_segment(1.0, duration=2.0)], signals, tracks, statistics=statistics)
    with pytest.raises(ValueError, match=r"baseline of 0\.5 s, the batches have 0\.2 s"):
        make_dataset(segments, signals, tracks, statistics=statistics, config=BatchConfig(baseline=0.2))
    with pytest.raises(ValueError, match="no statistics for this recording"):
        make_dataset(segments, signals, tracks, statistics=replace(statistics, scales={}))
    renamed = replace(signals["d/sub-1"], ch_names=("E0", "E1", "X"))
    with pytest.raises(ValueError, match=r"differ in channels .*'E2', 'X'"):
        make_dataset(segments, {renamed.uid: renamed}, tracks, statistics=statistics)
    with pytest.raises(IndexError, match=r"0\.\.47, got 48\.\.48"):
        make_dataset(segments, signals, tracks, statistics=statistics).batch([48])
    both = tracks | {("b", 0.0, 30.0): make_track("b", n_features=3)}
    with pytest.raises(ValueError, match="number of features"):
        make_dataset([*segments, make_segment(1.0, span="b")], signals, both, statistics=statistics)
    flat = FeatureTrack("toy", "a", 0.0, 30.0, np.ones((2, 1500), np.float32), 50.0)
    with pytest.raises(RuntimeError, match="must be finite and change"):
        make_statistics(signals, {flat.key: flat}, segments)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_signal_that_is_not_finite_is_an_error(simple, value):
    segments, signals, tracks = simple
    statistics = make_statistics(signals, tracks, segments)
    signals["d/sub-1"].data[2, 100] = value
    with pytest.raises(RuntimeError, match="d/sub-1: the signal holds NaN or infinite"):
        make_dataset(segments, signals, tracks, statistics=statistics)


@pytest.mark.parametrize("kwargs", [{"lag": np.nan}, {"baseline": 0.0}, {"clamp": -1.0}])
def test_config_is_checked(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        BatchConfig(**kwargs)


def test_a_batch_of_256_is_gathered_from_memory_alone(simple, monkeypatch):
    """No file is opened once the dataset is made."""
    segments, signals, tracks = simple
    dataset = make_dataset(segments, signals, tracks)

    def refuse(*_, **__):
        raise AssertionError("a batch opened a file")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("numpy.load", refuse)
    batch = dataset.batch(np.arange(256) % len(dataset))
    assert batch.signal.shape == (256, 3, N_WINDOW - 18)
    assert batch.to("cpu").target.shape == (256, 2, N_WINDOW - 18)
