"""Hidden states of a pretrained wav2vec2, the paper's target."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, Wav2Vec2Config, Wav2Vec2Model
from transformers.utils import cached_file

from brainspeech.cache import file_identity

from .audio import AUDIO_SFREQ, check_sound, resample, to_mono
from .base import Feature, Sound, count_frames, fit_length

logger = logging.getLogger(__name__)

XLSR_53 = "facebook/wav2vec2-large-xlsr-53"
# The architecture that XLSR_53 publishes, so that its untrained twin needs no network.
XLSR_53_CONFIG: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
# Samples from frame to frame at 16 kHz: the product of the convolutions' strides, the same in all wav2vec2.
STRIDE = 320
# Samples that one frame needs: the convolutions' receptive field.
SHORTEST = 400
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
VERSION = 1
PROBE = 10.0  # s of the first sound on which a reduced precision is compared with float32


class Wav2Vec2(Feature):
    """Hidden states of a wav2vec2 network at 50 Hz, averaged over some layers, no gradient, nothing trained.

    As in [1] (Défossez et al. 2023; layers as in the released code, which averages five, not the last four): channels averaged, 16 kHz,
    the whole cut sound normalised to zero mean and unit variance as the published feature extractor does.

    Frame k stands at k x 320 / 16000 s and sees the 25 ms that begin there. The convolutions give floor((n_samples - 400) / 320) + 1
    frames, which is round(duration x 50) or one less: then the last frame is repeated. The reference takes the frames it has (~49.9 Hz) as
    evenly spread over the interval, so that its frames run up to one frame (20 ms) late towards the interval's end; here a frame stays
    where its samples are.

    Sounds of similar length go through the network together, padded and masked, where its convolutions normalise each frame
    (``feat_extract_norm == "layer"``); a network that normalises over time (the base models) takes them one by one, because padding would
    change the values.

    Parameters
    ----------
    model : str or path
        Name on the Hugging Face hub, or a folder with config.json and model.safetensors (or pytorch_model.bin, of which only tensors are
        read). What the local cache has is used without asking the network; HF_HUB_OFFLINE=1 never asks it.
    layers : sequence of int
        Hidden states to average: 0 is the input of the first layer, k the output of layer k, that of the last after the final norm.
    average : bool
        False: the layers are stacked along the features instead, in the order of `layers`, (n_layers x hidden_size, n_frames).
    revision : str
        Branch, tag or commit on the hub. A commit is its own identity: with it, cached tracks open where the model is not at hand.
    device : str, optional
        Such as ``"cuda:1"``; by default the GPU if there is one. No part of the cache key.
    dtype : {"float32", "bfloat16", "float16"}
        Precision of the network; what comes out is float32. Before anything is computed in 16 bits, some seconds of the first sound go
        through the network in both; how far they are apart is logged, and kept as ``error``.
    tolerance : float
        RMS difference of these hidden states, relative to their standard deviation, above which 16 bits are refused. No part of the cache
        key.
    random : bool
        Untrained network of the same architecture: a control.
    seed : int
        Seed of the untrained network.
    """

    name = "wav2vec2"
    fill = 0.0

    def __init__(
        self,
        model: str | Path = XLSR_53,
        layers: Sequence[int] = (14, 15, 16, 17, 18),
        *,
        average: bool = True,
        revision: str = "main",
        device: str | None = None,
        dtype: str = "float32",
        tolerance: float = 0.03,
        random: bool = False,
        seed: int = 0,
    ):
        self.model = str(model)
        self.layers = tuple(int(layer) for layer in layers)
        if not self.layers or min(self.layers) < 0 or len(set(self.layers)) < len(self.layers):
            raise ValueError(f"layers must be distinct numbers from 0 (the input of the first layer), got {list(layers)}.")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
        self.average = bool(average)
        self.revision, self.device, self.dtype, self.random, self.seed = revision, device, dtype, bool(random), int(seed)
        if not tolerance > 0:
            raise ValueError(f"tolerance must be positive, got {tolerance}.")
        self.tolerance = tolerance
        self.error: float | None = None
        self._network: Wav2Vec2Model | None = None

    def config(self) -> dict[str, Any]:
        """Give the cache key's part, with the identity of the weights: the hub's commit, or the folder's files.

        Raises
        ------
        RuntimeError
            If the model is neither a folder nor in the local cache, and the hub cannot be reached.
        """
        out = {"name": self.name, "version": VERSION, "layers": list(self.layers), "dtype": self.dtype, "model": Path(self.model).name}
        if self._folder is None:
            out |= {"model": self.model, "identity": self._commit()}
        else:
            out |= {"identity": file_identity(self._folder)}
        out |= {} if self.average else {"average": False}  # averages keep the key that they have always had
        return out | ({"random": True, "seed": self.seed} if self.random else {})

    def check(self, stimulus: np.ndarray, sfreq: float) -> list[str]:
        """Check that the stimulus is a sound, and say what will be changed about it."""
        return check_sound(stimulus, sfreq)

    def __call__(self, sound: np.ndarray, sfreq: float) -> tuple[np.ndarray, float]:
        """Compute (n_features, n_frames) of one sound, float32, and the rate."""
        return self.many([(sound, sfreq)])[0]

    def many(self, sounds: Sequence[Sound]) -> list[Sound]:
        """Compute several sounds in one pass where the network allows it."""
        rate = AUDIO_SFREQ / STRIDE
        lengths = [count_frames(sound.shape[1], sfreq, rate) for sound, sfreq in sounds]
        waves = []
        for sound, sfreq in sounds:
            self.check(sound, sfreq)
            waves.append(_normalise(resample(to_mono(sound), sfreq)))
        # Making a network draws random numbers, and transformers 4 does in every pass: whoever trains next must not notice.
        with torch.random.fork_rng(devices=[]):
            network = self._load()
            if network.dtype != DTYPES[self.dtype]:
                self._reduce(network, next((wave for wave in waves if len(wave)), np.zeros(SHORTEST, np.float32)))
            together = network.config.feat_extract_norm == "layer"
            batches = [waves] if together else [[wave] for wave in waves]
            values = [one for batch in batches if batch for one in self._embed(network, batch)]
        return [(fit_length(one, n_frames), rate) for one, n_frames in zip(values, lengths, strict=True)]

    def _reduce(self, network: Any, wave: np.ndarray) -> None:
        """Put the network into its 16 bits, after a look at what that does to a sound."""
        probe = wave[: round(PROBE * AUDIO_SFREQ)]
        (full,) = self._embed(network, [probe])
        network.to(DTYPES[self.dtype])
        (reduced,) = self._embed(network, [probe])
        self.error = float(np.sqrt(np.mean((reduced - full) ** 2)) / max(float(full.std()), 1e-12))
        seconds = len(probe) / AUDIO_SFREQ
        if not self.error <= self.tolerance:
            error, self._network = self.error, None
            raise RuntimeError(
                f"wav2vec2: in {self.dtype} the hidden states of the first {seconds:.1f} s differ from float32 by {error:.2%} of their "
                f"standard deviation (RMS), more than the tolerance of {self.tolerance:.2%}. Use dtype=float32, or raise feature.tolerance."
            )
        logger.warning(
            "wav2vec2 in %s: hidden states of %.1f s differ from float32 by %.2f %% (RMS).", self.dtype, seconds, 100 * self.error
        )

    @torch.no_grad()
    def _embed(self, network: Wav2Vec2Model, waves: Sequence[np.ndarray]) -> list[np.ndarray]:
        n_samples = np.array([max(len(wave), SHORTEST) for wave in waves])
        padded = torch.zeros(len(waves), int(n_samples.max()))
        for row, wave in zip(padded, waves, strict=True):
            row[: len(wave)] = torch.from_numpy(wave)
        mask = None
        if (n_samples < n_samples.max()).any():
            mask = torch.from_numpy(np.arange(n_samples.max()) < n_samples[:, None]).long().to(network.device)
        outputs = network(padded.to(network.device, network.dtype), attention_mask=mask, output_hidden_states=True)
        states = list(outputs.hidden_states)
        # transformers 4 gives the last one after the final norm, transformers 5 before it.
        states[-1] = outputs.last_hidden_state
        chosen = [states[layer].float() for layer in self.layers]
        kept = torch.stack(chosen).mean(0) if self.average else torch.cat(chosen, 2)  # (B, n_frames, F)
        n_frames = (n_samples - SHORTEST) // STRIDE + 1
        return [one[:n].T.contiguous().cpu().numpy() for one, n in zip(kept, n_frames, strict=True)]

    @property
    def _folder(self) -> Path | None:
        """The folder that ``model`` names; None if it is a name on the hub."""
        path = Path(self.model).expanduser()
        if path.is_dir():
            return path
        if self.model.startswith(("/", ".", "~")):
            raise FileNotFoundError(f"wav2vec2: the folder {path} does not exist; feature.model is a folder or a name such as {XLSR_53}.")
        return None

    def _commit(self) -> str:
        """Give the commit that ``revision`` stands for."""
        if self.random and self.model == XLSR_53:
            return "built in"
        if re.fullmatch("[0-9a-f]{40}", self.revision):
            return self.revision
        return self._file("config.json").parent.name

    def _file(self, *names: str) -> Path:
        """Find the first of some files of the hub's model in the local cache, else download it."""
        errors: list[Exception] = []
        for local in (True, False):
            for name in names:
                try:
                    path = cached_file(self.model, name, revision=self.revision, local_files_only=local)
                except (OSError, ValueError) as error:  # not to be had; not a name that the hub could know
                    errors.append(error)
                else:
                    if path is not None:
                        return Path(path)
        why = str(errors[-1]).splitlines()[0] if errors else f"there is no {' or '.join(names)}"
        raise RuntimeError(
            f"wav2vec2: the model {self.model!r} is not in the local cache and could not be downloaded ({why}). "
            f"On a machine with network run: hf download {self.model} --local-dir FOLDER. Copy the folder here and pass it: "
            "--set feature.model=FOLDER"
        ) from (errors[-1] if errors else None)

    def _load(self) -> Wav2Vec2Model:
        if self._network is None:
            network = self._untrained() if self.random else self._pretrained()
            # Layers above the highest one asked for would be computed for nothing; one stays, for its input is that layer's output.
            network.encoder.layers = network.encoder.layers[: max(self.layers) + 1]
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            self._network = network.eval().to(device=device, dtype=torch.float32)
            self.n_features = network.config.hidden_size * (1 if self.average else len(self.layers))
        return self._network

    def _untrained(self) -> Wav2Vec2Model:
        if self.model == XLSR_53:
            config = Wav2Vec2Config(**XLSR_53_CONFIG)
        else:
            config = self._read_config(self._folder or self._file("config.json").parent)
        self._check_architecture(config)
        torch.manual_seed(self.seed)
        return Wav2Vec2Model(config)

    def _pretrained(self) -> Wav2Vec2Model:
        folder = self._folder
        if folder is None:
            self._file("config.json")
            folder = self._file(*WEIGHTS).parent
        self._check_architecture(self._read_config(folder))
        try:
            loaded: Any = Wav2Vec2Model.from_pretrained(folder, local_files_only=True, weights_only=True, output_loading_info=True)
        except Exception as error:  # Each format has its own; what is refused as more than tensors is among them.
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise RuntimeError(
                f"wav2vec2: the weights in {folder} cannot be read ({why}). Expected {' or '.join(WEIGHTS)} with nothing but tensors: "
                "copy or download the model again."
            ) from error
        network, info = loaded
        # What the file lacks is filled with random numbers by transformers; the mask's embedding is used in training only.
        missing = sorted(set(info["missing_keys"]) - {"masked_spec_embed"})
        if missing:
            raise RuntimeError(
                f"wav2vec2: the weights in {folder} lack {len(missing)} tensors of the network, the first is {missing[0]}: "
                "expected the weights that belong to the config.json beside them; copy or download both again."
            )
        return network

    def _read_config(self, folder: Path) -> Wav2Vec2Config:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"wav2vec2: the folder {folder} has no config.json; expected a model that transformers has saved.")
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if not isinstance(config, Wav2Vec2Config):
            raise ValueError(f"wav2vec2: {self.model} is a {config.model_type} model, expected wav2vec2.")
        return config

    def _check_architecture(self, config: Wav2Vec2Config) -> None:
        if max(self.layers) > config.num_hidden_layers:
            raise ValueError(f"wav2vec2: {self.model} has {config.num_hidden_layers} layers, got layers {list(self.layers)}.")
        strides, shortest = 1, 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            shortest += (kernel - 1) * strides
            strides *= stride
        if (strides, shortest) != (STRIDE, SHORTEST):
            raise ValueError(
                f"wav2vec2: expected {STRIDE} samples from frame to frame and {SHORTEST} in one, "
                f"got {strides} and {shortest} in {self.model}."
            )


def _normalise(wave: np.ndarray) -> np.ndarray:
    """Give (x - mean) / sqrt(variance + 1e-7), what the published feature extractor does with ``do_normalize=True``."""
    return ((wave - wave.mean(dtype=np.float64)) / np.sqrt(wave.var(dtype=np.float64) + 1e-7)).astype(np.float32)
