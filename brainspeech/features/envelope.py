"""The amplitude envelope of the sound: one row, compressed like loudness."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.signal import upfirdn

from .audio import AUDIO_SFREQ, check_sound, resample, to_mono
from .base import Feature, count_frames, fit_length

VERSION = 1


class Envelope(Feature):
    """Smoothed ``|sound| ** power`` at 16000 / hop frames per second (125 Hz).

    Channels averaged, resampled to 16 kHz, rectified, compressed, and averaged under a Hann window of two hops, which passes half the
    amplitude at half the frame rate and nothing at the frame rate. Frame k is centred at k x hop / 16000 s; the sound is mirrored at its
    edges, so no frame sees anything outside the cut. The level is that of the file: a sound recorded twice as loud has an envelope
    2 ** power as large.

    Compression with an exponent of 0.6 before smoothing is the power law of [1], which found it to track the EEG of a listener better
    than no compression. There it is applied in each band of an auditory filterbank; here to the whole sound.

    Parameters
    ----------
    power : float
        Exponent; 1 is the plain rectified envelope.
    hop : int
        Samples at 16 kHz from frame to frame.

    References
    ----------
    [1] Biesmans, Das, Francart, Bertrand. Auditory-inspired speech envelope extraction methods for improved EEG-based auditory attention
    detection in a cocktail party scenario. IEEE Transactions on Neural Systems and Rehabilitation Engineering 25(5), 2017.
    """

    name = "envelope"
    fill = 0.0
    n_features = 1

    def __init__(self, power: float = 0.6, hop: int = 128):
        if not 0 < power <= 1:
            raise ValueError(f"power must be above 0 and at most 1 (no compression), got {power}.")
        if not 1 <= hop <= AUDIO_SFREQ:
            raise ValueError(f"hop must be from 1 to {AUDIO_SFREQ} samples (a frame per second), got {hop}.")
        self.power, self.hop = float(power), int(hop)

    def config(self) -> dict[str, Any]:
        """Give the cache key's part."""
        return {"name": self.name, "version": VERSION, "power": self.power, "hop": self.hop}

    def check(self, stimulus: np.ndarray, sfreq: float) -> list[str]:
        """Check that the stimulus is a sound, and say what will be changed about it."""
        return check_sound(stimulus, sfreq)

    def __call__(self, sound: np.ndarray, sfreq: float) -> tuple[np.ndarray, float]:
        """Compute (1, n_frames) of one sound, float32, and the rate."""
        self.check(sound, sfreq)
        rate = AUDIO_SFREQ / self.hop
        n_frames = count_frames(sound.shape[1], sfreq, rate)
        loudness = np.abs(resample(to_mono(sound), sfreq)).astype(np.float64) ** self.power
        n_centred = len(loudness) // self.hop + 1
        # A sound shorter than a hop cannot be mirrored that far; numpy then mirrors its mirror image.
        padded = np.pad(loudness, self.hop, mode="symmetric")
        window = np.hanning(2 * self.hop + 1)
        window /= window.sum()
        # Output k of the filter ends at sample k x hop of its input: frame k's window ends at (k + 2) x hop of the padded sound.
        values = upfirdn(window, padded, down=self.hop)[2 : 2 + n_centred]
        return fit_length(values[None].astype(np.float32), n_frames), rate
