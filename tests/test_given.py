"""Windows that are given go the way of recordings: the same rate, layout, scales and names."""

from dataclasses import replace

import mne
import numpy as np
import pytest

from brainspeech import given
from brainspeech.preprocess import PreprocessConfig, layout, preprocess
from brainspeech.records import FeatureTrack, Segment, Signal, Span
from brainspeech.resampling import resample
from brainspeech.scaling import BatchConfig, Scale, borrow_scale, fit_scale, fit_statistics
from brainspeech.segments import SegmentConfig

NAMES = ("Fz", "Cz", "Pz", "Oz")


def raw(n_times=900, sfreq=90.0, seed=0):
    data = 1e-6 * np.random.default_rng(seed).standard_normal((4, n_times)).cumsum(1)
    return mne.io.RawArray(data, mne.create_info(list(NAMES), sfreq, "eeg", verbose="error"), verbose="error")


def test_windows_are_resampled_as_recordings_are():
    recording = raw()
    data = recording.get_data()
    data -= data.mean(1, keepdims=True)
    expected = preprocess(recording, PreprocessConfig(sfreq=30.0)).data
    got = resample(data, 90.0, 30.0)
    np.testing.assert_allclose(got - got.mean(1, keepdims=True), expected, atol=1e-5 * np.abs(expected).max())
    stacked = resample(np.stack([data, 2 * data]), 90.0, 30.0)
    assert stacked.shape == (2, 4, 300)
    np.testing.assert_allclose(stacked[1], 2 * got, rtol=1e-4, atol=1e-12)


def test_the_layout_of_names_is_that_of_a_recording():
    expected = preprocess(raw(), PreprocessConfig(sfreq=30.0, positions="standard_1005")).positions
    np.testing.assert_allclose(layout(NAMES, montage="standard_1005"), expected)
    assert np.isnan(layout(NAMES)).all()


def signals_and_segments():
    rng = np.random.default_rng(3)
    scale = np.array([1.0, 2.0, 3.0, 4.0])[:, None]
    signals = {
        uid: Signal(uid, (scale * (1 + k) * rng.standard_normal((4, 600))).astype(np.float32), 30.0, NAMES, ("eeg",) * 4, layout(NAMES))
        for k, uid in enumerate(("d/sub-1/run-1", "d/sub-1/run-2", "d/sub-2"))
    }
    heard = (Span("a", 0.0, 3.0, 0.0),)
    segs = [Segment(uid, uid[:7], 3.0 * i, 3.0, f"a {i}", "b", "", "", "train", heard) for uid in list(signals)[::2] for i in range(6)]
    track = FeatureTrack("f", "a", 0.0, 3.0, rng.standard_normal((2, 90)).astype(np.float32), 30.0)
    return signals, segs, {track.key: track}


def test_scales_of_what_is_given_are_those_of_the_training():
    """Fitted on the same windows, or borrowed from the same recordings, they are the same."""
    signals, segs, tracks = signals_and_segments()
    config = BatchConfig(baseline=0.5)
    statistics = fit_statistics(segs, signals, tracks, config=config, fill=0.0)
    first = [s for s in segs if s.recording == "d/sub-1/run-1"]
    fitted = fit_scale(signals["d/sub-1/run-1"], first, config=config)
    np.testing.assert_allclose(fitted.iqr, statistics.scales["d/sub-1/run-1"].iqr)
    assert list(statistics.borrowed) == ["d/sub-1/run-2"]
    trained = {uid: scale for uid, scale in statistics.scales.items() if statistics.n_windows[uid]}
    borrowed, origin = borrow_scale(signals["d/sub-1/run-2"], trained)
    assert borrowed == statistics.scales["d/sub-1/run-2"]
    assert origin == statistics.borrowed["d/sub-1/run-2"]
    assert given.pick_scale(borrowed, ("Oz", "Fz")).iqr == (borrowed.iqr[3], borrowed.iqr[0])


def test_a_channel_that_was_bad_in_one_recording_takes_its_scale_from_the_others():
    def scale(names, value):
        return Scale(tuple(names), (0.0,) * len(names), (value,) * len(names))

    trained = {"d/sub-1/run-1": scale("AB", 1.0), "d/sub-1/run-2": scale("BC", 3.0), "d/sub-2/run-1": scale("ABCD", 10.0)}
    signal = signals_and_segments()[0]["d/sub-1/run-2"]
    given_now = replace(signal, uid="d/sub-1/given", data=signal.data[:4], ch_names=tuple("ABCD"))
    borrowed, origin = borrow_scale(given_now, trained)
    assert borrowed.iqr == (1.0, 2.0, 3.0, 10.0)
    assert origin == "2 other recording(s) of d/sub-1, for 1 channels all 3 training recording(s)"
    with pytest.raises(RuntimeError, match=r"1 of its 4 channels are in no recording with training windows.*: D\. Leave these"):
        borrow_scale(given_now, {uid: s for uid, s in trained.items() if "sub-1" in uid})


def test_signals_of_windows_hold_each_window_at_its_segment():
    data = np.arange(5 * 4 * 30, dtype=np.float32).reshape(5, 4, 30)
    windows = given.Windows(data, NAMES, ("eeg",) * 4)
    signals, segs = given.make_signals(windows, list("xyxxy"), ["s"] * 5, sfreq=30.0, duration=1.0)
    assert {uid: signal.data.shape for uid, signal in signals.items()} == {"x": (4, 90), "y": (4, 60)}
    for window, segment in zip(data, segs, strict=True):
        start = round(segment.onset * 30)
        np.testing.assert_array_equal(signals[segment.recording].data[:, start : start + 30], window)


def test_picked_channels_keep_their_samples_and_take_their_places():
    signals, _, _ = signals_and_segments()
    signal = signals["d/sub-2"]
    places = np.array([[0.1, 0.2], [0.3, 0.4]])
    picked = given.pick(signal, ("Oz", "Cz"), places)
    np.testing.assert_array_equal(picked.data, signal.data[[3, 1]])
    np.testing.assert_allclose(picked.positions, places)


def test_positions_are_averaged_over_the_recordings_that_know_them():
    nowhere = [np.nan, np.nan]
    positions = {"x": np.array([[0.0, 0.2], nowhere]), "y": np.array([[0.4, 0.4], nowhere])}
    found = given.average_positions(positions, {"x": ("a", "b"), "y": ("a", "b")})
    assert list(found) == ["a"]
    np.testing.assert_allclose(found["a"], [0.2, 0.3])


def test_equal_targets_are_one_stimulus_and_windows_of_a_block_one_split():
    rng = np.random.default_rng(0)
    targets = rng.standard_normal((30, 2, 9))
    targets[20:] = targets[:10]
    windows = given.Windows(rng.standard_normal((30, 4, 30)).astype(np.float32), NAMES, ("eeg",) * 4)
    config = SegmentConfig(tmin=0.0, tmax=1.0, sfreq=30.0)
    segs, signals, tracks = given.with_targets(windows, targets, config, subject=["1"] * 20 + ["2"] * 10, stimuli=None, blocks=None)
    assert len(tracks) == len({s.stimulus_id for s in segs}) == 20
    assert [s.split for s in segs[20:]] == [s.split for s in segs[:10]]
    assert {s.recording for s in segs} == set(signals) == {"arrays/sub-1", "arrays/sub-2"}
    assert all(track.sfreq == 9.0 for track in tracks.values())
    blocks = [i % 10 // 5 for i in range(30)]
    segs, _, _ = given.with_targets(windows, targets, config, subject="1", stimuli=None, blocks=blocks)
    assert len({(s.block, s.split) for s in segs}) == 2


@pytest.mark.parametrize("length", [{"n_times": 90}, {"n_times": None, "usual": 90}], ids=["demanded", "usual"])
@pytest.mark.parametrize("rate", [30.0, 15.0, 100.0])
def test_windows_with_both_ends_counted_are_those_of_epochs(length, rate):
    """An array is cut where the same Epochs are, and the user is told of it."""
    n_given = round(3 * rate) + 1
    data = 1e-6 * np.random.default_rng(0).standard_normal((2, 4, n_given))
    epochs = mne.EpochsArray(data, mne.create_info(list(NAMES), rate, "eeg", verbose="error"), verbose="error")
    of_epochs = given.read_windows(epochs, sfreq=30.0, **length)
    options = {"sfreq": 30.0, "ch_names": NAMES, "from_sfreq": rate, **length}
    if rate == 100.0:  # 301 samples are 90 at 30 Hz
        of_array, n_cut = given.read_windows(data, **options), 0
    else:
        with pytest.warns(UserWarning, match=rf"Got windows of {n_given} samples at {rate:g} Hz, expected 90 at 30 Hz \(3 s\): both ends"):
            of_array = given.read_windows(data, **options)
        n_cut = 1 if rate == 30.0 else 2
    assert of_array.data.shape == (2, 4, 90)
    assert of_array.n_cut == of_epochs.n_cut == n_cut
    np.testing.assert_array_equal(of_array.data, of_epochs.data)
    if rate == 30.0:
        np.testing.assert_array_equal(of_array.data, data[..., :90].astype(np.float32))


def test_windows_of_another_length_than_usual_are_kept_whole():
    options = {"sfreq": 30.0, "n_times": None, "ch_names": NAMES}
    for n_given in (60, 89, 90, 92):
        read = given.read_windows(np.ones((2, 4, n_given)), usual=90, **options)
        assert (read.data.shape[2], read.n_cut) == (n_given, 0)
    assert given.read_windows(np.ones((2, 4, 91)), **options).data.shape[2] == 91  # nothing is usual


def test_targets_with_a_frame_for_each_sample_are_cut_with_the_windows():
    """Else 91 frames would be spread over the 90 samples that are left."""
    rng = np.random.default_rng(0)
    windows = given.Windows(rng.standard_normal((30, 4, 30)).astype(np.float32), NAMES, ("eeg",) * 4, n_cut=1)
    config, options = SegmentConfig(tmin=0.0, tmax=1.0, sfreq=30.0), {"subject": "1", "stimuli": None, "blocks": None}
    targets = rng.standard_normal((30, 2, 31))
    with pytest.warns(UserWarning, match="features of 31 frames for windows of 30 samples: both ends are counted"):
        _, _, tracks = given.with_targets(windows, targets, config, **options)
    assert {(track.sfreq, track.data.shape) for track in tracks.values()} == {(30.0, (2, 30))}
    _, _, tracks = given.with_targets(windows, targets[..., :9], config, **options)
    assert {track.sfreq for track in tracks.values()} == {9.0}


@pytest.mark.parametrize(
    ("signal", "options", "said"),
    [
        (np.zeros((2, 3, 90)), {}, "Windows of 3 channels need ch_names"),
        (np.zeros((2, 3, 90)), {"ch_names": ["a", "b", "b"]}, "as many names, each once"),
        (np.zeros((2, 3, 90), complex), {"ch_names": list("abc")}, "must be numbers of shape"),
        (np.zeros((0, 3, 90)), {"ch_names": list("abc")}, "must be numbers of shape"),
        (np.zeros((2, 3, 92)), {"ch_names": list("abc")}, r"Expected windows of 90 samples at 30 Hz \(3 s\), got 92"),
        (np.zeros((2, 3, 89)), {"ch_names": list("abc")}, r"Expected windows of 90 samples at 30 Hz \(3 s\), got 89"),
        (np.zeros((2, 3, 90)), {"ch_names": list("abc"), "from_sfreq": 60.0}, r"got 90 at 60 Hz \(1.5 s\)"),
    ],
)
def test_windows_that_are_none_are_named(signal, options, said):
    with pytest.raises(ValueError, match=said):
        given.read_windows(signal, sfreq=30.0, n_times=90, **options)
