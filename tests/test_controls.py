"""Controls keep everything but the answer: spectra and covariance, or the windows and their sounds."""

import collections
import dataclasses

import numpy as np
import pytest

from brainspeech.controls import phase_randomise, shift_pairing
from brainspeech.records import Segment, Signal, Span


def make_signal(n_times, n_channels=5, uid="toy/sub-0"):
    """Correlated channels with a 1/f spectrum, in volts."""
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft(rng.standard_normal((n_channels, n_times)))
    frequency = np.arange(spectrum.shape[1])
    spectrum[:, 1:] /= np.sqrt(frequency[1:])
    data = 1e-5 * rng.standard_normal((n_channels, n_channels)) @ np.fft.irfft(spectrum, n=n_times)
    names = tuple(f"c{i}" for i in range(n_channels))
    positions = np.zeros((n_channels, 2), dtype=np.float32)
    return Signal(uid, (data + 3e-6).astype(np.float32), 120.0, names, ("eeg",) * n_channels, positions, 0.5, {"bad": 1})


@pytest.mark.parametrize("n_times", [12000, 12001, 11987])  # even, odd, prime
def test_phases_leave_spectra_and_covariance(n_times):
    signal = make_signal(n_times)
    noise = phase_randomise(signal, seed=1)
    assert noise.data.dtype == np.float32
    assert noise.data.shape == signal.data.shape
    before, after = (np.fft.rfft(s.data.astype(np.float64)) for s in (signal, noise))
    np.testing.assert_allclose(np.abs(after), np.abs(before), rtol=1e-5, atol=1e-5 * np.abs(before).mean())
    for f in (1, 17, 400):  # cross-spectra: phases between channels stay
        cross = [np.outer(x[:, f], x[:, f].conj()) for x in (before, after)]
        np.testing.assert_allclose(cross[1], cross[0], rtol=1e-4, atol=1e-5 * np.abs(cross[0]).max())
    covariance = np.cov(signal.data.astype(np.float64))
    np.testing.assert_allclose(np.cov(noise.data.astype(np.float64)), covariance, rtol=1e-5, atol=1e-5 * np.abs(covariance).max())
    np.testing.assert_allclose(noise.data.mean(1), signal.data.mean(1), rtol=1e-3)


def test_phases_take_the_timing():
    signal = make_signal(60000)
    noise = phase_randomise(signal, seed=1)
    for a, b in zip(signal.data, noise.data, strict=True):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.15  # about 1 / sqrt(independent samples) of a 1/f signal


def test_mean_and_nyquist_are_kept():
    data = np.tile(np.array([1.0, -1.0], dtype=np.float32), (1, 50)) + np.float32(2)
    signal = Signal("u", data, 120.0, ("c",), ("eeg",), np.zeros((1, 2), dtype=np.float32))
    np.testing.assert_allclose(phase_randomise(signal, seed=0).data, data, atol=1e-6)


@pytest.mark.parametrize("n_times", [1, 2, 3])
def test_very_short_signals_survive(n_times):
    signal = make_signal(8)
    short = dataclasses.replace(signal, data=signal.data[:, :n_times].copy())
    assert np.isfinite(phase_randomise(short, seed=0).data).all()


def test_phases_depend_on_the_seed_and_the_recording_only():
    signal = make_signal(1000)
    once = phase_randomise(signal, seed=1)
    np.testing.assert_array_equal(once.data, phase_randomise(signal, seed=1).data)
    assert not np.allclose(once.data, phase_randomise(signal, seed=2).data)
    # With phases in common, two recordings would go on resembling each other.
    assert not np.allclose(once.data, phase_randomise(dataclasses.replace(signal, uid="toy/sub-1"), seed=1).data)
    assert (once.uid, once.filter_half_length, dict(once.dropped)) == (signal.uid, 0.5, {"bad": 1})


def make_window(recording, onset, split, audio="a", start=None):
    start = onset if start is None else start
    span = Span(audio, 0.0, 1000.0, -start)
    return Segment(recording, "toy/s", onset, 3.0, f"{audio}@{start:g}", "block", f"text {start:g}", f"w{start:g}", split, (span,))


def place(segment):
    return segment.spans[0].audio, segment.spans[0].start - segment.spans[0].onset


@pytest.fixture(scope="module")
def windows():
    out = []
    for recording in ("toy/sub-0", "toy/sub-1"):
        for split, first in (("train", 0.0), ("valid", 200.0), ("test", 300.0)):
            out += [make_window(recording, first + 0.5 * k, split) for k in range(80)]
    return out


def test_no_window_keeps_what_it_heard(windows):
    moved = shift_pairing(windows, seed=0)
    for before, after in zip(windows, moved, strict=True):
        assert abs(place(after)[1] - place(before)[1]) >= 5.0
        for name in ("recording", "subject", "onset", "duration", "block", "split"):
            assert getattr(after, name) == getattr(before, name)
        # The heard side moves as one.
        assert (after.stimulus_id, after.text, after.word) == tuple(f"{x}{place(after)[1]:g}" for x in ("a@", "text ", "w"))


def test_the_shift_is_circular_within_recording_and_split(windows):
    moved = shift_pairing(windows, seed=0)
    shifts = set()
    for recording in ("toy/sub-0", "toy/sub-1"):
        for split in ("train", "valid", "test"):
            before, after = ([s for s in w if (s.recording, s.split) == (recording, split)] for w in (windows, moved))
            ids = [s.stimulus_id for s in before]
            k = ids.index(after[0].stimulus_id)
            assert [s.stimulus_id for s in after] == ids[k:] + ids[:k]
            shifts.add(k)
    assert len(shifts) > 1


def test_the_shift_depends_on_the_seed_and_not_on_the_order(windows):
    pairs = {(s.recording, s.onset): s.stimulus_id for s in shift_pairing(windows, seed=3)}
    assert pairs == {(s.recording, s.onset): s.stimulus_id for s in shift_pairing(windows[::-1], seed=3)}
    assert pairs != {(s.recording, s.onset): s.stimulus_id for s in shift_pairing(windows, seed=4)}


def test_a_sound_heard_twice_is_not_paired_with_itself():
    twice = [make_window("r", 0.5 * k + offset, "train", start=0.5 * k) for offset in (0.0, 500.0) for k in range(40)]
    for seed in range(20):
        moved = shift_pairing(twice, seed=seed)
        assert min(abs(place(a)[1] - place(b)[1]) for a, b in zip(twice, moved, strict=True)) >= 5.0


def test_another_stimulus_may_be_near():
    alternating = [make_window("r", 3.0 * k, "test", audio="ab"[k % 2], start=3.0 * k) for k in range(4)]
    moved = shift_pairing(alternating, seed=0)
    assert collections.Counter(s.stimulus_id for s in moved) == collections.Counter(s.stimulus_id for s in alternating)
    for before, after in zip(alternating, moved, strict=True):
        assert place(before)[0] != place(after)[0] or abs(place(before)[1] - place(after)[1]) >= 5


def test_windows_of_silence_are_moved_too():
    silent = [dataclasses.replace(make_window("r", 0.5 * k, "train"), spans=(), stimulus_id=f"{k}") for k in range(60)]
    moved = shift_pairing(silent, seed=0)
    assert min(abs(int(a.stimulus_id) - int(b.stimulus_id)) for a, b in zip(silent, moved, strict=True)) >= 10


@pytest.mark.parametrize("n", [1, 15])
def test_a_split_too_short_to_shift_is_named(windows, n):
    short = [make_window("toy/sub-9", 0.5 * k, "valid") for k in range(n)]
    with pytest.raises(ValueError, match="toy/sub-9: the valid split is too short to shift"):
        shift_pairing([*windows, *short], seed=0)
