"""wav2vec2 on a tiny untrained network that was saved like a trained one; nothing is downloaded."""

import json
import pickle
import shutil

import huggingface_hub.constants
import numpy as np
import pytest
import soundfile
import torch
from transformers import HubertConfig, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from brainspeech import features, timing
from brainspeech.features import compute_tracks

from .conftest import tiny_config


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """Leave the network and the user's own cache alone."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "hub"), raising=False)  # transformers 4
    monkeypatch.setattr("transformers.utils.hub._is_offline_mode", True, raising=False)  # transformers 4


@pytest.fixture
def build(tiny):
    def make(norm="layer", **options):
        return features.build("wav2vec2", **{"model": str(tiny(norm)), "layers": (1, 2), "device": "cpu", **options})

    return make


def states(folder, wave):
    """Give all hidden states (n_layers + 1, n_frames, F) of the whole network, by transformers alone."""
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True)
    inputs = extractor(wave, sampling_rate=16_000, return_tensors="pt").input_values
    with torch.no_grad():
        outputs = Wav2Vec2Model.from_pretrained(folder).eval()(inputs, output_hidden_states=True)
    return torch.cat([*outputs.hidden_states[:-1], outputs.last_hidden_state]).numpy()


@pytest.mark.parametrize("norm", ["layer", "group"])
@pytest.mark.parametrize("layers", [(1, 2), [0], (3, 4), (2,)])
def test_values_are_the_mean_of_the_layers(build, tiny, noise, norm, layers):
    sound = noise(1.003) * 0.2 + 0.1
    values, rate = build(norm, layers=layers)(sound, 16_000)
    expected = states(tiny(norm), sound[0])[list(layers)].mean(0).T
    assert rate == 50.0
    assert expected.shape == (16, 49)
    assert values.shape == (16, 50)
    np.testing.assert_allclose(values[:, :49], expected, atol=1e-5)
    np.testing.assert_array_equal(values[:, 49], values[:, 48])


def test_layers_that_are_not_averaged_are_stacked_in_their_order(build, tiny, noise):
    sound = noise(1.003)
    feature = build(layers=(3, 1), average=False)
    values, _ = feature(sound, 16_000)
    expected = states(tiny("layer"), sound[0])
    np.testing.assert_allclose(values[:16, :49], expected[3].T, atol=1e-5)
    np.testing.assert_allclose(values[16:, :49], expected[1].T, atol=1e-5)
    assert feature.n_features == len(values) == 32
    np.testing.assert_allclose(values.reshape(2, 16, -1).mean(0), build(layers=(3, 1))(sound, 16_000)[0], atol=1e-6)
    assert feature.config() == build(layers=(3, 1)).config() | {"average": False}
    assert "average" not in build().config(), "averages keep the key of their cached tracks"


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_batched_is_one_by_one(build, noise, norm):
    feature = build(norm)
    sizes = [(2.0, 16_000), (0.3, 16_000), (1.2345, 22_050), (0.02, 8_000)]
    sounds = [(noise(seconds, sfreq, seed=i), sfreq) for i, (seconds, sfreq) in enumerate(sizes)]
    together = feature.many(sounds)
    assert feature.many([]) == []
    for (values, _), (sound, sfreq) in zip(together, sounds, strict=True):
        np.testing.assert_allclose(values, feature(sound, sfreq)[0], atol=1e-5)


@pytest.mark.parametrize("sfreq", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("seconds", [0.0101, 0.0299, 0.5, 1.0099, 1.01, 2.3457])
def test_length_is_the_rounded_duration(build, noise, sfreq, seconds):
    sound = noise(seconds, sfreq)
    values, rate = build()(sound, sfreq)
    assert (values.dtype, rate) == (np.float32, 50.0)
    assert values.shape == (16, timing.to_samples(sound.shape[1] / sfreq, 50))


def test_a_sound_below_half_a_frame_is_an_error(build, noise):
    with pytest.raises(ValueError, match=r"0.0090 s is too short for one frame at 50 Hz"):
        build()(noise(0.009), 16_000)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_silence_is_finite(build, norm):
    assert np.isfinite(build(norm)(np.zeros((1, 16_000), np.float32), 16_000)[0]).all()


def test_stereo_is_averaged(build, noise):
    stereo = noise(n_rows=2)
    feature = build()
    np.testing.assert_allclose(feature(stereo, 16_000)[0], feature(stereo.mean(0, keepdims=True), 16_000)[0], atol=1e-5)


def test_tracks_of_groups_are_tracks_one_by_one(build, noise, tmp_cache):
    library = {"a": (noise(5.0), 16_000.0), "b": (noise(3.0, 8_000), 8_000.0)}
    wanted = [("a", 0.0, 2.0), ("a", 2.0, 4.9), ("b", 0.5, 3.0)]
    feature = build()
    tracks, counts = compute_tracks(feature, wanted, library.__getitem__, fingerprint=str, cache=tmp_cache, progress=False)
    assert counts == {"sound sampled below 16 kHz": 1}
    for (audio, start, stop), track in tracks.items():
        sound, sfreq = library[audio]
        alone, _ = feature(sound[:, round(start * sfreq) : round(stop * sfreq)], sfreq)
        np.testing.assert_allclose(track.data, alone, atol=1e-5)


def test_key_knows_layers_precision_and_files_but_not_the_device(build, tiny, tmp_path):
    key = build().config()
    json.dumps(key)
    assert build(device="cuda:3").config() == key
    assert build(layers=(1, 3)).config() != key
    assert build(dtype="bfloat16").config() != key
    assert build(random=True).config() != key
    copy = tmp_path / tiny().name
    shutil.copytree(tiny(), copy)
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes())
    assert build(model=str(copy)).config() != key


def test_half_precision_is_near(build, noise):
    full = build()(noise(), 16_000)[0]
    half = build(dtype="bfloat16")(noise(), 16_000)[0]
    assert half.dtype == np.float32
    assert not np.array_equal(half, full)
    assert np.corrcoef(half.ravel(), full.ravel())[0, 1] > 0.99


def test_sixteen_bits_say_how_far_off_they_are_and_are_refused_where_that_is_too_far(build, noise, caplog):
    feature = build(dtype="bfloat16")
    assert feature.error is None
    sound = noise(1.0)
    half, full = feature(sound, 16_000)[0], build()(sound, 16_000)[0]
    off = np.sqrt(np.mean((half[:, :49] - full[:, :49]) ** 2)) / full[:, :49].std()
    assert feature.error == pytest.approx(off, rel=1e-4)
    assert 1e-4 < feature.error < 0.03
    assert f"differ from float32 by {100 * off:.2f} % (RMS)" in caplog.text
    caplog.clear()
    feature(noise(1.0, seed=1), 16_000)
    assert not caplog.text, "said once"
    strict = build(dtype="bfloat16", tolerance=off / 2)
    for _ in range(2):  # the second call is no way around it
        with pytest.raises(RuntimeError, match=r"more than the tolerance.*Use dtype=float32"):
            strict(sound, 16_000)
    assert strict.config() == feature.config()
    assert build().error is None


@pytest.mark.parametrize("random", [False, True])
def test_the_random_state_is_left_alone(build, noise, random):
    before = torch.random.get_rng_state()
    build(random=random)(noise(), 16_000)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_untrained_network_is_the_same_for_a_seed(build, noise):
    one, same, other = (build(random=True, seed=seed)(noise(), 16_000)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other, atol=1e-2)
    assert not np.allclose(one, build()(noise(), 16_000)[0], atol=1e-2)


def test_the_default_untrained_network_needs_no_network(monkeypatch):
    from brainspeech.features import wav2vec2

    feature = features.build("wav2vec2", random=True)
    assert feature.config()["identity"] == "built in"
    small = {"hidden_size": 16, "num_hidden_layers": 18, "num_attention_heads": 2, "intermediate_size": 16, "conv_dim": (8,) * 7}
    monkeypatch.setattr(wav2vec2, "XLSR_53_CONFIG", {**wav2vec2.XLSR_53_CONFIG, **small})
    assert feature(np.zeros((1, 16_000), np.float32), 16_000)[0].shape == (16, 50)


def test_a_missing_model_says_what_to_do():
    feature = features.build("wav2vec2")
    for ask in (feature.config, lambda: feature(np.zeros((1, 16_000), np.float32), 16_000)):
        with pytest.raises(RuntimeError) as caught:
            ask()
        text = str(caught.value)
        assert "'facebook/wav2vec2-large-xlsr-53' is not in the local cache and could not be downloaded" in text
        assert "hf download facebook/wav2vec2-large-xlsr-53 --local-dir FOLDER" in text
        assert "--set feature.model=FOLDER" in text


@pytest.mark.parametrize("model", ["no/such/folder", "nobody/no-such-model"])
def test_a_misspelt_model_is_named(model):
    with pytest.raises(RuntimeError, match=f"the model '{model}' is not in the local cache"):
        features.build("wav2vec2", model=model).config()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"the folder .*gone does not exist"):
        features.build("wav2vec2", model=str(tmp_path / "gone")).config()


@pytest.mark.parametrize("pinned", [False, True])
def test_a_downloaded_model_is_used_offline_and_known_by_its_commit(build, tiny, noise, tmp_path, pinned):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--nobody--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tiny(), repository / "snapshots" / commit)
    feature = build(model="nobody/tiny", **({"revision": commit} if pinned else {}))
    assert feature.config()["model"] == "nobody/tiny"
    assert feature.config()["identity"] == commit
    np.testing.assert_array_equal(feature(noise(), 16_000)[0], build()(noise(), 16_000)[0])


def copy_of(folder, tmp_path, *leave_out):
    out = tmp_path / "copy"
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns(*leave_out))
    return out


def test_a_checkpoint_of_tensors_loads(build, tiny, noise, tmp_path):
    folder = copy_of(tiny(), tmp_path, "model.safetensors")
    torch.save(Wav2Vec2Model.from_pretrained(tiny()).state_dict(), folder / "pytorch_model.bin")
    np.testing.assert_array_equal(build(model=str(folder))(noise(), 16_000)[0], build()(noise(), 16_000)[0])


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_checkpoint_with_code_in_it_is_refused(build, tiny, noise, tmp_path, zipped):
    folder = copy_of(tiny(), tmp_path, "model.safetensors")
    tiny_config().save_pretrained(folder)  # without a dtype, transformers opens the weights once more to find it
    state = {"encoder.layer_norm.weight": Trap(tmp_path / "sprung")}
    if zipped:
        torch.save(state, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(state, protocol=2))
    with pytest.raises(RuntimeError, match=r"the weights in .*copy cannot be read"):
        build(model=str(folder))(noise(), 16_000)
    assert not (tmp_path / "sprung").exists()


def test_damaged_and_missing_weights_are_named(build, tiny, noise, tmp_path):
    folder = copy_of(tiny(), tmp_path)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match=r"the weights in .*copy cannot be read"):
        build(model=str(folder))(noise(), 16_000)
    weights.unlink()
    with pytest.raises(RuntimeError, match=r"Expected model.safetensors or pytorch_model.bin"):
        build(model=str(folder))(noise(), 16_000)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config.json"):
        build(model=str(folder))(noise(), 16_000)


def test_weights_that_lack_tensors_are_an_error_and_not_filled_with_noise(build, tiny, noise, tmp_path):
    folder = copy_of(tiny(), tmp_path)
    tiny_config(num_hidden_layers=5).save_pretrained(folder)
    with pytest.raises(RuntimeError, match=r"lack \d+ tensors of the network, the first is encoder\.layers\.4"):
        build(model=str(folder))(noise(), 16_000)


def test_another_kind_of_model_is_an_error(build, noise, tmp_path):
    HubertConfig(hidden_size=16, num_attention_heads=2).save_pretrained(tmp_path / "hubert")
    with pytest.raises(ValueError, match="is a hubert model, expected wav2vec2"):
        build(model=str(tmp_path / "hubert"))(noise(), 16_000)


def test_another_frame_rate_is_an_error(build, noise, tmp_path):
    tiny_config(conv_stride=(5, 2, 2, 2, 2, 2, 1)).save_pretrained(tmp_path / "fast")
    with pytest.raises(ValueError, match="expected 320 samples from frame to frame"):
        build(model=str(tmp_path / "fast"), random=True)(noise(), 16_000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": ()}, "layers must be"),
        ({"layers": (1, 1)}, "layers must be"),
        ({"layers": (-1,)}, "layers must be"),
        ({"dtype": "int8"}, "dtype must be"),
        ({"tolerance": 0}, "tolerance must be positive"),
    ],
)
def test_impossible_options_are_errors(build, options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_layer_that_the_network_lacks_is_an_error(build, noise):
    with pytest.raises(ValueError, match=r"has 4 layers, got layers \[1, 5\]"):
        build(layers=(1, 5))(noise(), 16_000)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_gpu_gives_what_the_cpu_gives(build, noise):
    sounds = [(noise(2.0), 16_000), (noise(1.0), 16_000)]
    for (there, _), (here, _) in zip(build(device=None).many(sounds), build().many(sounds), strict=True):
        np.testing.assert_allclose(there, here, atol=1e-3)


@pytest.mark.data
def test_real_speech_is_finite_and_has_the_right_length(shared, build, tmp_cache):
    paths = [*sorted((shared / "data" / "speech").rglob("*.wav")), *sorted((shared / "data" / "brennan2019").rglob("*.wav"))]
    assert len(paths) == 7

    def read(name):
        data, sfreq = soundfile.read(name, dtype="float32", always_2d=True)
        return data.T, sfreq

    wanted = [(str(path), 0.0, soundfile.info(path).duration) for path in paths]
    tracks, counts = compute_tracks(build(), wanted, read, fingerprint=str, cache=tmp_cache, progress=False)
    assert counts == {}
    for (_, _, duration), track in tracks.items():
        assert track.data.shape == (16, timing.to_samples(duration, 50))
        assert np.isfinite(track.data).all()
        assert track.data.std(1).max() > 0.01
