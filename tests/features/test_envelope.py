"""The envelope: length, silence, values, what it leaves alone."""

import numpy as np
import pytest
import soundfile

from brainspeech import features, timing
from brainspeech.features import audio, compute_tracks


@pytest.mark.parametrize("sfreq", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("seconds", [0.005, 0.0333, 1.0, 2.3457])
def test_length_is_the_rounded_duration(noise, sfreq, seconds):
    sound = noise(seconds, sfreq)
    values, rate = features.build("envelope")(sound, sfreq)
    assert rate == 125.0
    assert values.dtype == np.float32
    assert values.shape == (1, timing.to_samples(sound.shape[1] / sfreq, 125))
    assert np.isfinite(values).all()
    assert (values >= 0).all()


def test_silence_is_the_fill():
    feature = features.build("envelope")
    values, _ = feature(np.zeros((1, 16_000), np.float32), 16_000)
    assert (values == feature.fill).all()
    assert feature.n_features == 1


@pytest.mark.parametrize(("power", "hop", "k"), [(0.6, 128, 10), (1.0, 160, 0), (0.3, 128, 62)])
def test_values_are_the_equation(noise, power, hop, k):
    """The weighted mean of |x| ** power under a Hann window of two hops, the sound mirrored at its edges."""
    sound = noise(0.5)
    values, rate = features.build("envelope", power=power, hop=hop)(sound, 16_000)
    assert rate == 16_000 / hop
    total = weight = 0.0
    for j in range(-hop, hop + 1):
        i = k * hop + j
        i = -1 - i if i < 0 else 2 * 8000 - 1 - i if i >= 8000 else i
        w = 0.5 + 0.5 * np.cos(np.pi * j / hop)
        total, weight = total + w * abs(float(sound[0, i])) ** power, weight + w
    assert values[0, k] == pytest.approx(total / weight, rel=1e-5)


def test_a_tone_that_beats_gives_its_beat():
    """A 1 kHz tone whose loudness goes up and down at 4 Hz: the envelope is that loudness ** power, times the mean of |sin| ** power."""
    t = np.arange(32_000) / 16_000
    loudness = 1 + 0.8 * np.sin(2 * np.pi * 4 * t)
    values, rate = features.build("envelope")((loudness * np.sin(2 * np.pi * 1000 * t)).astype(np.float32)[None], 16_000)
    expected = np.interp(np.arange(250) / rate, t, loudness) ** 0.6 * np.mean(np.abs(np.sin(2 * np.pi * np.arange(16) / 16)) ** 0.6)
    np.testing.assert_allclose(values[0, 1:-1], expected[1:-1], rtol=1e-2)  # at the edges the mirrored loudness comes in


def test_twice_as_loud_and_stereo(noise):
    sound, feature = noise(1.0), features.build("envelope", power=0.5)
    values, _ = feature(sound, 16_000)
    np.testing.assert_allclose(feature(4 * sound, 16_000)[0], 2 * values, rtol=1e-5)
    np.testing.assert_allclose(feature(np.concatenate([sound, sound]), 16_000)[0], values, rtol=1e-6)
    assert feature.check(np.concatenate([sound, sound]), 16_000) == [audio.STEREO]


def test_cached_is_fresh_and_the_key_has_the_options(noise, tmp_cache):
    sound, feature = noise(2.0), features.build("envelope")
    asked = {"intervals": [("a", 0.0, 1.0), ("a", 0.5, 2.0)], "read_stimulus": lambda name: (sound, 16_000.0)}
    fresh, _ = compute_tracks(feature, **asked, fingerprint=str, cache=tmp_cache, progress=False)
    again, _ = compute_tracks(feature, **asked, fingerprint=str, cache=tmp_cache, progress=False)
    for key, track in fresh.items():
        np.testing.assert_array_equal(again[key].data, track.data)
    np.testing.assert_array_equal(fresh["a", 0.5, 2.0].data, feature(sound[:, 8000:], 16_000)[0])
    assert features.build("envelope", power=0.5).config() != feature.config()


def test_bad_input(noise):
    with pytest.raises(ValueError, match="power must be above 0"):
        features.build("envelope", power=0)
    with pytest.raises(ValueError, match="hop must be from 1 to 16000"):
        features.build("envelope", hop=0)
    with pytest.raises(ValueError, match="use the feature precomputed"):
        features.build("envelope")(noise(1.0, 64), 64)


@pytest.mark.data
def test_speech_is_louder_where_the_words_are(shared):
    import json

    folder = shared / "data" / "speech" / "librivox"
    clip = sorted(folder.glob("*.wav"))[0]
    sound, sfreq = soundfile.read(clip, dtype="float32", always_2d=True)
    values, rate = features.build("envelope")(sound.T, sfreq)
    words = json.loads(clip.with_suffix(".json").read_text())["w"]
    inside = np.zeros(values.shape[1], dtype=bool)
    for word in words:
        if not word["t"].startswith("<"):
            inside[int(word["b"] * rate) : int((word["b"] + word["d"]) * rate)] = True
    assert values[0, inside].mean() > 3 * values[0, ~inside].mean()
