"""Sound before a feature: one channel at 16 kHz. The one home of torchaudio's import."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import numpy as np

from brainspeech import timing

from .base import check_stimulus

# What wav2vec2 and the paper's mel spectrum are computed at (Hz).
AUDIO_SFREQ = 16_000
# No recording of speech is sampled slower, and no feature track faster (Hz).
LOWEST_AUDIO_SFREQ = 4_000

STEREO = "stereo sound averaged"
SLOW = "sound sampled below 16 kHz"


def import_torchaudio() -> ModuleType:
    """Import torchaudio.

    Raises
    ------
    RuntimeError
        If it is missing, or cannot be loaded beside the installed torch (the two are built for each other), with the cure.
    """
    try:
        import torchaudio
    except (ImportError, OSError) as error:
        raise RuntimeError(
            f"torchaudio {_version('torchaudio')} cannot be loaded beside torch {_version('torch')}: install a matching pair, "
            'pip install --force-reinstall "torch>=2.9" torchaudio (with the same --index-url for both, if you use one).'
        ) from error
    return torchaudio


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def check_sound(sound: np.ndarray, sfreq: float) -> list[str]:
    """Check a whole sound and say what ``to_mono_16k`` changes about it: averages channels, makes up what lies above half its rate.

    Raises
    ------
    ValueError
        If it is empty, not finite, or sampled like a feature track.
    """
    check_stimulus(sound, sfreq)
    if sfreq < LOWEST_AUDIO_SFREQ:
        raise ValueError(
            f"{sound.shape[0]} rows at {sfreq:g} Hz look like a feature track, and this feature is computed from sound: "
            "use the feature precomputed for it."
        )
    return [STEREO] * (sound.shape[0] > 1) + [SLOW] * (sfreq < AUDIO_SFREQ)


def to_mono(sound: np.ndarray) -> np.ndarray:
    """Average the channels of a sound (n_rows, n_samples) into (n_samples,), float32."""
    return np.asarray(np.mean(sound, axis=0, dtype=np.float64), dtype=np.float32)


def resample(mono: np.ndarray, sfreq: float, new_sfreq: float = AUDIO_SFREQ) -> np.ndarray:
    """Resample a sound (n_samples,) with torchaudio's windowed sinc filter (it cuts what the new rate cannot hold)."""
    if sfreq == new_sfreq:
        return np.asarray(mono, dtype=np.float32)
    import torch

    ratio = timing.rate_ratio(sfreq, new_sfreq)
    wave = torch.from_numpy(np.array(mono, dtype=np.float32))
    # torchaudio wants whole rates; only their ratio matters.
    return import_torchaudio().functional.resample(wave, ratio.denominator, ratio.numerator).numpy()
