"""One channel at 16 kHz, and torchaudio's import."""

import builtins

import numpy as np
import pytest

from brainspeech.features import audio


@pytest.mark.parametrize("error", [OSError("undefined symbol"), ImportError("no module")])
def test_a_torchaudio_that_does_not_load_names_versions_and_cure(monkeypatch, error):
    versions = {"torch": "2.9.0+cpu", "torchaudio": "2.11.0"}
    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name == "torchaudio":
            raise error
        return real(name, *args, **kwargs)

    monkeypatch.setattr(audio, "version", versions.__getitem__)
    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(RuntimeError) as caught:
        audio.resample(np.zeros(8000, np.float32), 8000)
    text = str(caught.value)
    assert "torchaudio 2.11.0 cannot be loaded beside torch 2.9.0+cpu" in text
    assert 'pip install --force-reinstall "torch>=2.9" torchaudio' in text
    assert "\n" not in text
    assert caught.value.__cause__ is error


def test_a_missing_package_has_no_version():
    assert audio._version("no-such-package-at-all") == "(not installed)"


def test_channels_are_averaged(noise):
    stereo = noise(n_rows=2)
    np.testing.assert_allclose(audio.to_mono(stereo), (stereo[0] + stereo[1]) / 2, atol=1e-6)


@pytest.mark.parametrize("sfreq", [8_000.0, 11_025.0, 44_100.0, 48_000.0])
def test_a_tone_keeps_its_pitch_and_place(sfreq):
    def tone(rate):
        return np.sin(2 * np.pi * 440 * np.arange(int(rate)) / rate).astype(np.float32)

    out = audio.resample(tone(sfreq), sfreq)
    assert out.dtype == np.float32
    assert abs(len(out) - 16_000) <= 1
    np.testing.assert_allclose(out[500:15_000], tone(16_000)[500:15_000], atol=0.01)


def test_what_16_khz_cannot_hold_is_cut():
    tone = np.sin(2 * np.pi * 12_000 * np.arange(44_100) / 44_100).astype(np.float32)
    assert np.abs(audio.resample(tone, 44_100)[500:15_500]).max() < 0.02


def test_what_is_changed_is_said(noise):
    assert audio.check_sound(noise(), 16_000) == []
    assert audio.check_sound(noise(n_rows=2), 8_000) == [audio.STEREO, audio.SLOW]


def test_a_feature_track_is_no_sound():
    with pytest.raises(ValueError, match="1 rows at 64 Hz look like a feature track"):
        audio.check_sound(np.zeros((1, 640), np.float32), 64)
