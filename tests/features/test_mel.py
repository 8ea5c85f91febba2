"""The mel spectrum: length, silence, values, counts, real speech."""

import json

import numpy as np
import pytest
import soundfile

from brainspeech import features, timing
from brainspeech.features import audio, compute_tracks


@pytest.mark.parametrize("sfreq", [8_000, 11_025, 16_000, 22_050, 44_100])
@pytest.mark.parametrize("seconds", [0.005, 0.0333, 1.0, 2.3457])
def test_length_is_the_rounded_duration(noise, sfreq, seconds):
    sound = noise(seconds, sfreq)
    values, rate = features.build("mel", n_mels=20)(sound, sfreq)
    assert rate == 125.0
    assert values.dtype == np.float32
    assert values.shape == (20, timing.to_samples(sound.shape[1] / sfreq, 125))
    assert np.isfinite(values).all()


def test_hop_sets_the_rate(noise):
    values, rate = features.build("mel", n_mels=40, hop=160)(noise(1.504), 16_000)
    assert (values.shape, rate) == ((40, 150), 100.0)


@pytest.mark.parametrize("level", [0.0, 0.3])
@pytest.mark.parametrize("sfreq", [16_000, 44_100])
def test_silence_is_the_fill(level, sfreq):
    feature = features.build("mel")
    values, _ = feature(np.full((1, sfreq), level, np.float32), sfreq)
    assert feature.fill == -5.0
    np.testing.assert_allclose(values, -5.0, atol=1e-4)


def test_values_are_the_equation(noise):
    """Windowed spectrum, normalised by the window, mel triangles, log: written out for one frame."""
    import torchaudio

    sound = noise(0.5)
    values, _ = features.build("mel", n_mels=20)(sound, 16_000)
    x = sound[0].astype(np.float64)
    x = (x - x.mean()) / x.std()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(512) / 512)
    k = 10
    spectrum = np.fft.rfft(window * x[k * 128 - 256 : k * 128 + 256]) / np.sqrt((window**2).sum())
    triangles = torchaudio.functional.melscale_fbanks(257, 0.0, 8000.0, 20, 16_000).numpy()
    np.testing.assert_allclose(values[:, k], np.log10(np.abs(spectrum) ** 2 @ triangles + 1e-5), atol=1e-4)


def test_a_click_stands_at_its_time():
    sound = np.zeros((1, 16_000), np.float32)
    sound[0, 8_064] = 1.0
    values, rate = features.build("mel")(sound, 16_000)
    assert np.argmax(values.mean(0)) / rate == 8_064 / 16_000


def test_loudness_does_not_matter(noise):
    mel = features.build("mel")
    np.testing.assert_allclose(mel(noise(), 16_000)[0], mel(noise() * 1e-3 + 0.01, 16_000)[0], atol=0.01)


def test_stereo_and_8_khz_are_counted_once_per_sound_also_from_the_cache(noise, tmp_cache, tmp_path):
    soundfile.write(tmp_path / "stereo.wav", noise(2.0, n_rows=2).T * 0.1, 16_000)
    soundfile.write(tmp_path / "slow.wav", noise(2.0, 8_000).T * 0.1, 8_000)

    def read(name):
        data, sfreq = soundfile.read(tmp_path / name, dtype="float32", always_2d=True)
        return data.T, sfreq

    wanted = [("stereo.wav", 0.0, 1.0), ("stereo.wav", 1.0, 2.0), ("slow.wav", 0.0, 2.0)]
    for _ in range(2):
        tracks, counts = compute_tracks(features.build("mel"), wanted, read, fingerprint=str, cache=tmp_cache, progress=False)
        assert counts == {audio.STEREO: 1, audio.SLOW: 1}
        assert {key: track.data.shape for key, track in tracks.items()} == {
            wanted[0]: (120, 125),
            wanted[1]: (120, 125),
            wanted[2]: (120, 250),
        }


@pytest.mark.parametrize(("options", "message"), [({"n_mels": 0}, "n_mels must be"), ({"hop": 600}, "hop must be")])
def test_impossible_options_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        features.build("mel", **options)


@pytest.mark.data
def test_real_speech_is_louder_than_its_pauses(shared, tmp_cache):
    folder = shared / "data" / "speech" / "librivox"
    clips = sorted(folder.glob("*.wav"))
    assert len(clips) == 5

    def read(name):
        data, sfreq = soundfile.read(folder / name, dtype="float32", always_2d=True)
        return data.T, sfreq

    durations = {clip.name: soundfile.info(clip).duration for clip in clips}
    wanted = [(name, 0.0, duration) for name, duration in durations.items()]
    tracks, counts = compute_tracks(features.build("mel"), wanted, read, fingerprint=str, cache=tmp_cache, progress=False)
    assert counts == {}
    differences = []
    for (name, _, duration), track in tracks.items():
        assert track.data.shape == (120, timing.to_samples(duration, 125))
        assert np.isfinite(track.data).all()
        energy = track.data.mean(0)
        times = np.arange(len(energy)) / 125
        pause = np.zeros(len(energy), bool)
        for word in json.loads((folder / name).with_suffix(".json").read_text())["w"]:
            if word["t"] in ("<sil>", "<s>", "</s>"):
                pause |= (times >= word["b"]) & (times < word["b"] + word["d"])
        assert pause.any()
        differences.append(energy[~pause].mean() - energy[pause].mean())
    assert min(differences) > 1.0


@pytest.mark.data
@pytest.mark.parametrize("path", ["speech/libri/libri-1088-134315-0000.wav", "brennan2019/stimuli/DownTheRabbitHoleFinal_SoundFile12.wav"])
def test_real_sounds_have_the_right_length(shared, path):
    data, sfreq = soundfile.read(shared / "data" / path, dtype="float32", always_2d=True)
    values, rate = features.build("mel")(data.T, sfreq)
    assert values.shape == (120, timing.to_samples(len(data) / sfreq, rate))
    assert np.isfinite(values).all()
    assert values.std() > 0.5
