"""The paper's mel spectrum of the sound."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from .audio import AUDIO_SFREQ, check_sound, import_torchaudio, resample, to_mono
from .base import Feature, count_frames, fit_length

N_FFT = 512
# Added before the logarithm: silence is log10(1e-5) = -5.
FLOOR = 1e-5
VERSION = 1


class Mel(Feature):
    """Log mel spectrum at 16000 / hop frames per second (125 Hz).

    As in [1] (Défossez et al. 2023, the released code's MelSpectrum): channels averaged, the cut sound standardised at its own rate,
    resampled to 16 kHz, power spectrum of 512 samples normalised by the window, log10(x + 1e-5). Frame k is centred at k x hop / 16000 s;
    the sound is mirrored at its edges, so no frame sees anything outside the cut. Of the centred frames, one beyond round(duration x rate)
    is left out.

    Parameters
    ----------
    n_mels : int
        Number of mel bands. The paper's 120 are more than 257 frequencies can serve: one low band is empty and stays at -5.
    hop : int
        Samples at 16 kHz from frame to frame.
    """

    name = "mel"
    fill = float(np.log10(FLOOR))

    def __init__(self, n_mels: int = 120, hop: int = 128):
        if not 1 <= n_mels <= N_FFT // 2 + 1:
            raise ValueError(f"n_mels must be from 1 to {N_FFT // 2 + 1}, got {n_mels}.")
        if not 1 <= hop <= N_FFT:
            raise ValueError(f"hop must be from 1 to {N_FFT} samples, or parts of the sound are skipped; got {hop}.")
        self.n_features = self.n_mels = int(n_mels)
        self.hop = int(hop)

    def config(self) -> dict[str, Any]:
        """Give the cache key's part."""
        return {"name": self.name, "version": VERSION, "n_mels": self.n_mels, "hop": self.hop}

    def check(self, stimulus: np.ndarray, sfreq: float) -> list[str]:
        """Check that the stimulus is a sound, and say what will be changed about it."""
        return check_sound(stimulus, sfreq)

    def __call__(self, sound: np.ndarray, sfreq: float) -> tuple[np.ndarray, float]:
        """Compute (n_mels, n_frames) of one sound, float32, and the rate."""
        self.check(sound, sfreq)
        rate = AUDIO_SFREQ / self.hop
        n_frames = count_frames(sound.shape[1], sfreq, rate)
        wave = resample(_standardise(to_mono(sound)), sfreq)
        # The mirrored edges need more samples than half a spectrum; a sound that short is followed by silence.
        n_centred = len(wave) // self.hop + 1
        wave = np.pad(wave, (0, max(0, N_FFT - len(wave))))
        torchaudio = import_torchaudio()
        with warnings.catch_warnings():
            # Said in the class's docstring; the paper's 120 bands are kept.
            warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values", category=UserWarning)
            transform = torchaudio.transforms.MelSpectrogram(
                AUDIO_SFREQ, n_fft=N_FFT, hop_length=self.hop, n_mels=self.n_mels, normalized=True, power=2.0
            )
        values = torch.log10(transform(torch.from_numpy(wave)) + FLOOR).numpy()
        return fit_length(values[:, :n_centred], n_frames), rate


def _standardise(mono: np.ndarray) -> np.ndarray:
    """Give (x - mean) / std; zeros for a sound that does not move, also one that rests beside zero."""
    wave = mono.astype(np.float64)
    std = wave.std()
    return ((wave - wave.mean()) / (std if std > 0 else 1.0)).astype(np.float32)
