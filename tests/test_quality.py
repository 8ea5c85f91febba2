"""A planted leak is named, a brain that answers is not; spectra are those of the signal; what was seen once is read from the cache."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy.signal import resample_poly

from brainspeech import quality
from brainspeech.cache import Cache
from brainspeech.quality import Sound
from brainspeech.records import Recording, Signal

AUDIO_SFREQ, SFREQ, RATE = 8000.0, 240.0, 120.0  # Hz: the sound, the recording, the preprocessed signal
SECONDS, ONSET = 110.0, 4.003  # of sound, and when it begins (s)
RECORDING = Recording("made", "01")
SOUNDS = [Sound("talk.wav", ONSET, SECONDS, 0.0)]


def make_sound(rng):
    """Speech-like: a hum of 75 to 90 Hz and noise, switched on and off a few times a second."""
    n = round(SECONDS * AUDIO_SFREQ)
    slow = np.interp(np.arange(n) / AUDIO_SFREQ, np.arange(0, SECONDS, 0.06), rng.random(len(np.arange(0, SECONDS, 0.06))) ** 3)
    pitch = 75 + 15 * np.interp(np.arange(n) / AUDIO_SFREQ, np.arange(0, SECONDS, 0.3), rng.random(len(np.arange(0, SECONDS, 0.3))))
    return (slow * (np.sin(2 * np.pi * np.cumsum(pitch) / AUDIO_SFREQ) + 0.3 * rng.normal(size=n)))[None].astype(np.float32)


def at_rate(row):
    """A row at the sound's rate, on the recording's clock."""
    heard = resample_poly(row, int(SFREQ), int(AUDIO_SFREQ))
    out = np.zeros(round((SECONDS + 10) * SFREQ))
    start = round(ONSET * SFREQ)
    out[start : start + len(heard)] = heard
    return out


class Raw:
    """As much of an mne Raw as is needed."""

    def __init__(self, data, names):
        self.data, self.names, self.info, self.n_times = data, names, {"sfreq": SFREQ}, data.shape[1]

    def get_data(self, picks, start, stop):
        return self.data[[self.names.index(name) for name in picks], start:stop]

    def close(self):
        pass


@dataclass
class Made:
    """A dataset of one recording; counts how often the raw is opened."""

    data: np.ndarray
    sound: np.ndarray
    audio_sfreq: float = AUDIO_SFREQ
    opened: list = field(default_factory=list)

    @property
    def names(self):
        return [f"E{i}" for i in range(len(self.data))]

    def read_raw(self, recording):
        self.opened.append(recording.uid)
        return Raw(self.data, self.names)

    def read_stimulus(self, audio):
        return self.sound, self.audio_sfreq

    def fingerprint(self, recording):
        return "made"

    def stimulus_fingerprint(self, audio):
        return audio

    def signal(self):
        data = resample_poly(self.data, 1, 2, axis=1).astype(np.float32)
        n = len(self.data)
        return Signal(RECORDING.uid, data, RATE, tuple(self.names), ("eeg",) * n, np.full((n, 2), 0.5, np.float32))

    def look(self, tmp_path, sounds=SOUNDS):
        return quality.inspect(self, RECORDING, self.signal(), sounds, Cache(tmp_path / "cache"))


def make(*, n_channels=6, seed=0, planted=()):
    """Channels of 1/f noise; ``planted``: (channel, gain, course of the sound) -> added."""
    rng = np.random.default_rng(seed)
    sound = make_sound(rng)
    n_times = round((SECONDS + 10) * SFREQ)
    spectrum = np.fft.rfft(rng.normal(size=(n_channels, n_times)), axis=1)
    data = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.fft.rfftfreq(n_times, 1 / SFREQ), 0.2)), n=n_times, axis=1)
    data /= data.std(1, keepdims=True)
    for channel, gain, course in planted:
        added = at_rate(course(sound[0]))
        data[channel] += gain * added / added.std()
    return Made(1e-5 * data, sound)


def envelope(sound):
    return np.abs(sound)


def answer(sound):
    """What a brain does: the envelope, smoothed over 80 ms, 100 ms later."""
    late = np.concatenate([np.zeros(round(0.1 * AUDIO_SFREQ)), np.abs(sound)])[: len(sound)]
    kernel = np.hanning(round(0.08 * AUDIO_SFREQ))
    return np.convolve(late, kernel / kernel.sum())[: len(sound)]


@pytest.mark.parametrize(
    ("gain", "course", "of"), [(0.1, lambda sound: sound, "waveform, in the recording"), (0.4, envelope, "envelope, in the recording")]
)
def test_a_leak_smaller_than_the_signal_is_named(tmp_path, gain, course, of):
    found = make(planted=[(2, gain, course)]).look(tmp_path)
    flagged, limit = quality.find_leaks([found])
    assert [(leak["recording"], leak["channel"]) for leak in flagged] == [("made/sub-01", "E2")]
    assert flagged[0]["of"] == of
    assert flagged[0]["z"] > limit > 5
    _, said = quality.summarise([found])
    assert len(said) == 1
    assert "made/sub-01: E2" in said[0]


def test_many_clean_channels_are_not_flagged(tmp_path):
    found = [make(n_channels=100, seed=seed).look(tmp_path / str(seed)) for seed in range(3)]
    assert quality.find_leaks(found)[0] == []
    for q in found:
        assert q.highest.max() < 6.5  # what is far from 0 behaves like the normal distribution that the limit is taken from


def test_an_answer_of_the_brain_is_no_leak_however_strong(tmp_path):
    found = make(planted=[(c, gain, answer) for c, gain in enumerate((0.1, 0.3, 1.0, 3.0))]).look(tmp_path)
    assert quality.find_leaks([found])[0] == []


def test_a_leak_beside_an_answer_is_seen(tmp_path):
    found = make(planted=[(0, 0.5, answer), (0, 0.3, envelope), (1, 0.5, answer)]).look(tmp_path)
    assert [leak["channel"] for leak in quality.find_leaks([found])[0]] == ["E0"]


def test_a_late_copy_of_the_sound_is_not_at_lag_0(tmp_path):
    found = make(planted=[(1, 0.3, lambda sound: np.roll(sound, round(0.03 * AUDIO_SFREQ)))]).look(tmp_path)
    assert quality.find_leaks([found])[0] == []


def test_the_phantom_is_clean(tmp_path):
    from brainspeech import datasets
    from brainspeech.preprocess import PreprocessConfig, load_signal

    dataset = datasets.load("simulated", None, n_subjects=1, minutes=2.0, n_channels=64, snr_db=0.0)
    cache = Cache(tmp_path)
    (recording,) = dataset.recordings()
    signal = load_signal(dataset, recording, PreprocessConfig(), cache)
    found = quality.inspect(dataset, recording, signal, quality.sounds_of(dataset.read_events(recording).to_dict("records")), cache)
    assert found.n_lags > 0
    assert quality.find_leaks([found])[0] == []


def test_spectra_are_those_of_the_signal(tmp_path):
    made = make()
    times = np.arange(made.data.shape[1]) / SFREQ
    made.data[:] = 1e-5 * np.random.default_rng(3).normal(size=made.data.shape) + 1e-4 * np.sin(2 * np.pi * 80 * times)
    found = made.look(tmp_path)
    white = 2 * 1e-10 / SFREQ  # density of white noise: its variance over half the rate
    quiet = (quality.HERTZ > 2) & (quality.HERTZ < 50)
    np.testing.assert_allclose(found.before[quiet], np.log10(white), atol=0.1)
    np.testing.assert_allclose(found.after[quiet], np.log10(white), atol=0.1)
    assert 74 < quality.HERTZ[np.nanargmax(found.before)] < 86
    assert np.isnan(found.after[quality.HERTZ > RATE / 2]).all()
    assert np.isnan(found.before[quality.HERTZ > SFREQ / 2]).all()
    values, _ = quality.summarise([found])
    spectrum = values["spectrum"]
    assert (spectrum["unit"], spectrum["recordings"]) == ("V²/Hz", 1)
    assert len(spectrum["before"]["made/sub-01"]) == len(spectrum["after"]["made/sub-01"]) == len(spectrum["hertz"])
    assert spectrum["after"]["made/sub-01"][-1] is None


def test_what_was_seen_once_is_read_from_the_cache(tmp_path):
    made = make(planted=[(2, 0.1, envelope)])
    first, second = made.look(tmp_path), made.look(tmp_path)
    assert made.opened == ["made/sub-01"]
    for name in ("before", "after", "z", "highest"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    made.look(tmp_path, [Sound("talk.wav", ONSET + 1, SECONDS, 0.0)])  # heard at another time: another question
    assert len(made.opened) == 2


@pytest.mark.parametrize("sounds", [[], SOUNDS])
def test_without_a_sound_there_is_nothing_to_compare_with(tmp_path, sounds):
    made = make()
    made.audio_sfreq = 100.0  # a feature track of the user
    found = made.look(tmp_path, sounds)
    assert found.n_lags == 0
    assert np.isnan(found.z).all()
    values, said = quality.summarise([found])
    assert values["leaks"] == {"flagged": [], "hertz": 8.0, "limit": None, "channels": 0, "recordings": 0, "unchecked": 1}
    assert said == []
    assert np.isfinite(found.before).any()


def test_the_sound_is_put_where_it_was_heard():
    rows = np.stack([np.arange(10.0), np.ones(10)]).astype(np.float32)
    heard = quality.hear(
        [Sound("a", 0.3, 0.4, 0.2), Sound("a", -0.1, 0.3, 0.0), Sound("a", 1.8, 9.0, 0.0)], lambda audio, sfreq: rows, 20, 10.0
    )
    expected = np.zeros(20)
    expected[3:7] = [2, 3, 4, 5]
    expected[0:2] = [1, 2]
    expected[18:20] = [0, 1]
    np.testing.assert_array_equal(heard[0], expected)
    np.testing.assert_array_equal(heard[1], (np.arange(20) < 2) | ((np.arange(20) >= 3) & (np.arange(20) < 7)) | (np.arange(20) >= 18))


def test_windows_lie_in_the_sound_and_in_the_recording():
    starts = quality.window_starts([Sound("a", 100.0, 900.0, 0.0)], 2000.0)
    assert len(starts) == quality.MOST_WINDOWS
    assert min(np.diff(starts)) >= quality.WINDOW
    assert min(starts) >= 100 - quality.WINDOW / 2
    assert max(starts) + quality.WINDOW <= 1000 + quality.WINDOW / 2
    assert quality.window_starts([], 30.0) == [0.0]
    assert len(quality.window_starts([], 100.0)) == 5
