"""The ideal observer: equal to the likelihood written out, calibrated, and beaten by nobody on the Gaussian setting."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch

from brainspeech import features, ideal, losses, models, retrieval, segments, train
from brainspeech.batches import BatchConfig, SegmentDataset
from brainspeech.cache import Cache
from brainspeech.datasets.simulated import SimulatedDataset
from brainspeech.preprocess import PreprocessConfig, load_signal
from brainspeech.records import Segment, Signal, Span
from brainspeech.scaling import fit_statistics

RATE = 40.0


def planted(n_channels=3, n_sources=2, *, disturbed=0, seed=0):
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((n_channels, n_channels))
    frequencies = np.linspace(0, RATE / 2, 2049)
    return SimpleNamespace(
        ch_names=tuple(f"E{k}" for k in range(n_channels)),
        maps=rng.standard_normal((n_channels, n_sources)),
        frequencies=frequencies,
        background=root @ root.T,
        background_density=1 / np.maximum(frequencies, 0.3),
        sensor_density=np.full(len(frequencies), 0.05),
        disturbed=rng.standard_normal((n_channels, disturbed)),
    )


def covariance_by_loops(world, n_times):
    """The covariance over channels and times, entry by entry, from the two spectra."""
    step = world.frequencies[1]
    weight = np.full(len(world.frequencies), step)
    weight[[0, -1]] = step / 2
    n_channels = len(world.maps)
    out = np.empty((n_channels, n_times, n_channels, n_times))
    for t in range(n_times):
        for u in range(n_times):
            wave = weight * np.cos(2 * np.pi * world.frequencies * (t - u) / RATE)
            out[:, t, :, u] = world.background * (world.background_density @ wave) + np.eye(n_channels) * (world.sensor_density @ wave)
    return out.reshape(n_channels * n_times, -1)


@pytest.mark.parametrize("offsets", [False, True])
@pytest.mark.parametrize("disturbed", [0, 1])
def test_scores_are_the_likelihood_written_out(offsets, disturbed):
    """Differences of scores between candidates are those of log-densities of a multivariate normal distribution."""
    n_times, rng = 12, np.random.default_rng(1)
    world = planted(disturbed=disturbed)
    observer = ideal.Observer.make(world, world.ch_names, n_times, PreprocessConfig(sfreq=RATE), None, offsets=offsets)
    windows, templates = rng.standard_normal((4, 3, n_times)), rng.standard_normal((5, 2, n_times))
    scores = observer.score(windows, templates)

    covariance = covariance_by_loops(world, n_times)
    # What is looked past: an offset of each channel, and a map at any time.
    free = [np.kron(np.eye(3), np.ones((n_times, 1)))] if offsets else []
    free += [np.kron(world.disturbed, np.eye(n_times))] if disturbed else []
    seen = scipy.linalg.null_space(np.concatenate(free, axis=1).T) if free else np.eye(3 * n_times)
    expected = np.empty((4, 5))
    for w, window in enumerate(windows):
        for j, template in enumerate(templates):
            mean = seen.T @ (world.maps @ template).ravel()
            expected[w, j] = scipy.stats.multivariate_normal.logpdf(seen.T @ window.ravel(), mean, seen.T @ covariance @ seen)
    np.testing.assert_allclose(scores - scores[:, :1], expected - expected[:, :1], rtol=1e-4, atol=1e-4)


def test_a_baseline_on_both_sides_changes_nothing():
    rng = np.random.default_rng(2)
    world = planted()
    observer = ideal.Observer.make(world, world.ch_names, 30, PreprocessConfig(sfreq=RATE), None, offsets=True)
    windows, templates = rng.standard_normal((3, 3, 30)), rng.standard_normal((4, 2, 30))

    def corrected(values):
        return values - values[..., :8].mean(axis=-1, keepdims=True)

    np.testing.assert_allclose(
        observer.score(corrected(windows), corrected(templates)), observer.score(windows, templates), rtol=1e-5, atol=1e-5
    )


class Toy:
    """A phantom with one source whose answer is a given course; recordings are made by hand."""

    sfreq = RATE

    def __init__(self, course):
        self.course = course

    def recordings(self):
        return [SimpleNamespace(uid="toy/1", subject="1")]

    def planted(self, recording):
        return planted(n_sources=1)

    def answer(self, recording, audio):
        return self.course[None], 200.0, 0.0


def window_at(begin, *, onset=0.0, name=""):
    return Segment("toy/1", "toy/1", onset, 1.0, name or f"a@{begin}", "b", "", "", "test", (Span("a", 0.0, 100.0, -begin),))


@pytest.mark.parametrize("late", [0.0, 0.011, -0.009])
def test_a_candidate_brings_the_sound_before_it_and_a_window_its_place_between_samples(late):
    """An answer 400 ms after the only click is seen in a window that begins 300 ms after it; the window falls beside its sample."""
    grid = np.arange(20_000) / 200
    toy = Toy(np.exp(-0.5 * ((grid - 50.4) / 0.03) ** 2))
    heard = window_at(50.3, onset=5.0 - late)  # its first sample stands at 5.0 s, when the sound is at 50.3 + late
    world = toy.planted(None)
    times = np.arange(1000) / RATE
    data = np.interp(times - 5.0 + 50.3 + late, grid, toy.course) * world.maps
    data += 1e-9 * np.random.default_rng(0).standard_normal(data.shape)
    signal = Signal("toy/1", data.astype(np.float32), RATE, world.ch_names, ("eeg",) * 3, np.full((3, 2), 0.5, np.float32))
    candidates = [window_at(begin) for begin in (40.0, 50.25, 50.3, 50.35, 60.0)]
    scores = ideal.ideal_scores(toy, [heard], candidates, {"toy/1": signal}, config=PreprocessConfig(sfreq=RATE), baseline=None)
    assert scores.argmax() == 2
    # No noise: the score of the truth is m'Qm / 2, what it would be if the template is right, and that of silence is 0.
    observer = ideal.Observer.make(world, world.ch_names, 40, PreprocessConfig(sfreq=RATE), None, offsets=False)
    truth = np.interp(np.arange(40) / RATE + 50.3 + late, grid, toy.course)[None, None]
    assert scores[0, 2] == pytest.approx(observer.score(world.maps @ truth[0][None], truth)[0, 0], rel=1e-3)
    assert scores[0, 0] == scores[0, 4] == 0


def test_gain_is_that_of_the_filters():
    assert ideal.measure_gain(PreprocessConfig(), 120.0) is None
    gain = ideal.measure_gain(PreprocessConfig(highpass=1.0, lowpass=30.0), 240.0)
    np.testing.assert_allclose(gain(np.array([3.0, 10.0, 20.0])), 1.0, atol=0.02)
    assert gain(np.array([0.05, 45.0, 70.0])).max() < 0.02
    plain = ideal.measure_gain(PreprocessConfig(), 240.0)
    np.testing.assert_allclose(plain(np.array([1.0, 10.0, 35.0])), 1.0, atol=0.005)


def test_what_the_observer_is_asked_must_be_there():
    toy = Toy(np.zeros(100))
    with pytest.raises(ValueError, match="needs windows and candidates, got 0 and 1"):
        ideal.ideal_scores(toy, [], [window_at(1.0)], {}, config=PreprocessConfig())
    with pytest.raises(ValueError, match="is not a recording of this phantom"):
        ideal.ideal_scores(toy, [window_at(1.0)], [window_at(1.0)], {}, config=PreprocessConfig())
    with pytest.raises(ValueError, match="3 channels cannot be cleared of 3 disturbances"):
        ideal.Observer.make(planted(disturbed=3), ("E0", "E1", "E2"), 10, PreprocessConfig(sfreq=RATE), None, offsets=True)
    assert ideal.can_observe(SimulatedDataset())
    assert not ideal.can_observe(object())


def test_gap_closed():
    def rows(**values):
        return {name: {"top10": {"value": value}} for name, value in values.items()}

    assert ideal.gap_closed(rows(encoder=0.5, ridge=0.4, ideal=0.8)) == pytest.approx(0.25)
    assert ideal.gap_closed(rows(encoder=0.3, ridge=0.4, ideal=0.8)) == pytest.approx(-0.25)
    assert ideal.gap_closed(rows(encoder=0.5, ridge=0.4)) is None
    assert ideal.gap_closed(rows(encoder=0.99, ridge=0.995, ideal=1.0)) is None


# -------------------------------------------------------------------------------------------------------------- on the Gaussian setting


class World:
    """A small phantom taken through the package: segments, signals, mel features, batches."""

    def __init__(self, folder, **options):
        cache = Cache(folder)
        self.dataset = SimulatedDataset(
            **{"n_subjects": 2, "minutes": 5.0, "n_channels": 20, "sfreq": 120.0, "preset": "gaussian"} | options
        )
        recordings = self.dataset.recordings()
        events = {r.uid: self.dataset.read_events(r) for r in recordings}
        self.config = PreprocessConfig()
        self.signals = {r.uid: load_signal(self.dataset, r, self.config, cache) for r in recordings}
        durations = {uid: signal.duration for uid, signal in self.signals.items()}
        segs = segments.make_segments(recordings, events, durations, segments.SegmentConfig(test_anchors="grid", test_ratio=0.3)).segments
        feature = features.build("mel", n_mels=20)
        tracks, _ = features.compute_tracks(
            feature,
            features.intervals(segs),
            self.dataset.read_stimulus,
            fingerprint=self.dataset.stimulus_fingerprint,
            cache=cache,
            progress=False,
        )
        parts = {split: [s for s in segs if s.split == split] for split in ("train", "valid", "test")}
        config = BatchConfig()
        statistics = fit_statistics(parts["train"], self.signals, tracks, config=config, fill=feature.fill)
        subjects = sorted({s.subject for s in parts["train"]})
        self.data = {
            split: SegmentDataset(part, self.signals, tracks, config=config, statistics=statistics, subjects=subjects, fill=feature.fill)
            for split, part in parts.items()
        }
        firsts = self.data["test"].unique()
        self.candidates = self.data["test"].subset(firsts)
        columns = {s.stimulus_id: j for j, s in enumerate(self.candidates.segments)}
        self.truth = torch.tensor([columns[s.stimulus_id] for s in parts["test"]])

    def observe(self, segs=None):
        return ideal.ideal_scores(
            self.dataset, segs or self.data["test"].segments, self.candidates.segments, self.signals, config=self.config, baseline=0.5
        )

    def ranks(self, scores):
        return retrieval.ranks_from_scores(torch.as_tensor(scores), self.truth).ranks.double().numpy()

    def decode(self, model, scores, *, lag=0.15):
        test, candidates = self.data["test"].with_lag(lag), self.candidates.with_lag(lag)
        batch = test.batch(range(len(test)))
        with torch.inference_mode():
            estimates = model(batch.signal, batch.positions, batch.subject, channel_mask=batch.channel_mask)
            return scores(estimates, candidates.targets(range(len(candidates))))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("cache"))


def test_the_observer_knows_how_often_it_is_right(world):
    """Its posterior is calibrated: the sum of its probabilities for the k best is its top-k accuracy, within the noise of counting."""
    scores = world.observe()
    posterior = np.exp(scores - scores.max(axis=1, keepdims=True))
    posterior = np.sort(posterior / posterior.sum(axis=1, keepdims=True), axis=1)
    ranks = world.ranks(scores)
    for k in (1, 5, 10):
        promised = posterior[:, -k:].sum(axis=1)
        kept = ranks < k
        # Neighbours overlap by 2.5 s: some 3 windows tell as much as one.
        error = np.sqrt(3 * (promised * (1 - promised)).sum()) / len(ranks)
        assert abs(kept.mean() - promised.mean()) < 3 * error
    assert 0.2 < (ranks < 10).mean() < 0.98  # neither chance nor saturated


def test_of_silence_it_knows_nothing(tmp_path):
    quiet = World(tmp_path, snr_db=-np.inf, minutes=2.5, n_subjects=1)
    scores = quiet.observe()
    assert np.ptp(scores) == 0  # all candidates are the same: nothing is expected of any


def test_nothing_beats_it_where_everything_is_gaussian(world):
    """Ridge, linear_clip and a small encoder are at or below the observer, window by window, within noise."""
    best = world.ranks(world.observe())
    n_features = world.data["train"].n_features
    rows = {}
    shifted = {split: data.with_lag(0.0) for split, data in world.data.items()}
    ridge = train.fit_ridge(shifted["train"], shifted["valid"], lags=range(0, 61, 6), n_components=20, progress=False)
    rows["ridge"] = world.ranks(world.decode(ridge, ridge.scores, lag=0.0))
    shape = {"n_subjects": 2, "n_features": n_features}
    encoders = {
        "linear_clip": ("linear_clip", {"n_channels": 20, "rank": 8, "lags": range(-18, 43, 6)}),
        "encoder": ("conv", {"n_virtual": 16, "hidden": 16, "depth": 2, "n_harmonics": 4}),
    }
    loss = losses.build("clip")
    config = train.TrainConfig(lr=2e-3, batch_size=64, max_epochs=4, max_steps_per_epoch=40, patience=4)
    for name, (model, options) in encoders.items():
        torch.manual_seed(0)
        encoder = models.build(model, **shape, **options)
        fit = train.fit(encoder, loss, world.data["train"], world.data["valid"], config, progress=False)
        rows[name] = world.ranks(world.decode(fit.encoder.cpu(), loss.scores))
    chance = (len(world.candidates) - 1) / 2
    assert rows["ridge"].mean() < 0.9 * chance  # the others do decode, so that this is a comparison
    for name, ranks in rows.items():
        for k in (1, 10):
            difference = (best < k).astype(float) - (ranks < k)
            assert difference.mean() > -2 * np.sqrt(3 * difference.var() / len(difference)), name
        assert best.mean() < ranks.mean(), name


def test_windows_of_several_listeners_may_come_mixed(world):
    segs = list(world.data["test"].segments)
    scores = world.observe()
    order = np.random.default_rng(0).permutation(len(segs))[:20]
    np.testing.assert_allclose(world.observe([segs[i] for i in order]), scores[order], rtol=1e-6, atol=1e-6)


def test_nuisances_and_a_resampled_recording_are_survived(tmp_path):
    """A dead channel, blinks, line noise: the observer is no bound any more, but far above chance."""
    hard = World(tmp_path, preset="easy", sfreq=240.0, minutes=2.5)
    assert any(signal.dropped for signal in hard.signals.values())
    ranks = hard.ranks(hard.observe())
    assert (ranks < 10).mean() > 0.8
    other = dataclasses.replace(hard.config, reference="average")
    signals = {uid: dataclasses.replace(s, data=s.data - s.data.mean(axis=0, keepdims=True)) for uid, s in hard.signals.items()}
    scores = ideal.ideal_scores(hard.dataset, hard.data["test"].segments, hard.candidates.segments, signals, config=other)
    assert (hard.ranks(scores) < 10).mean() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "low", "high"), [("easy", 0.15, 0.35), ("realistic", 0.04, 0.12)])
def test_presets_are_as_hard_for_a_ridge_as_they_say(tmp_path, preset, low, high):
    one = World(tmp_path, n_subjects=4, minutes=10.0, n_channels=32, preset=preset)
    shifted = {split: data.with_lag(0.0) for split, data in one.data.items()}
    ridge = train.fit_ridge(shifted["train"], shifted["valid"], lags=range(0, 61, 3), n_components=20, progress=False)
    assert low < float(ridge.correlation.mean()) < high
    assert (one.ranks(one.observe()) < 10).mean() > (one.ranks(one.decode(ridge, ridge.scores, lag=0.0)) < 10).mean()
