"""Feature tracks that the user brings: envelopes, spectra, embeddings computed elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from .audio import LOWEST_AUDIO_SFREQ
from .base import Feature, check_stimulus

VERSION = 1


class Precomputed(Feature):
    """The stimulus itself, (n_features, n_samples) at its own rate, unchanged."""

    name = "precomputed"

    def config(self) -> dict[str, Any]:
        """Give the cache key's part."""
        return {"name": self.name, "version": VERSION}

    def check(self, stimulus: np.ndarray, sfreq: float) -> list[str]:
        """Check that the stimulus is a feature track and not a sound."""
        check_stimulus(stimulus, sfreq)
        if stimulus.shape[0] <= 2 and sfreq >= LOWEST_AUDIO_SFREQ:
            raise ValueError(
                f"{stimulus.shape[0]} row(s) at {sfreq:g} Hz look like audio, and the feature precomputed passes its input through: "
                "use mel or wav2vec2, or give a feature track of lower rate."
            )
        return []

    def __call__(self, sound: np.ndarray, sfreq: float) -> tuple[np.ndarray, float]:
        """Give the track and its rate back."""
        self.check(sound, sfreq)
        self.n_features = sound.shape[0]
        return np.asarray(sound, dtype=np.float32), float(sfreq)
