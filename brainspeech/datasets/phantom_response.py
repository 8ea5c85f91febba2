"""What the phantom's brain follows in a sound, and how each of its sources answers.

None of it is a target that the package offers: an auditory filterbank with compression and adaptation, rises of its bands, phonemes by
their class, words, and how surprising both are. Everything depends on one stimulus alone.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.signal

from .speech_synthesis import AUDIO_SFREQ, Story

N_BANDS = 16
DRIVER_SFREQ = 200.0  # Hz, of drivers and source courses
REACH = 0.5  # s: no source answers longer than this
ADAPTATION = 0.25  # s over which a band adapts to its own level
COMPRESSION = 0.3  # exponent of the amplitude
LOUDNESS = 0.05  # root mean square to which a sound is brought before it is compressed
PHONEME_BITS, WORD_BITS = 5.0, 9.0  # usual surprisals, by which they are divided

# Rows of the drivers.
ACOUSTIC = slice(0, N_BANDS + 1)  # adapted bands, and their summed rises
PHONETIC = slice(N_BANDS + 1, N_BANDS + 6)  # phoneme onsets; of these the vowels, the sonorants, the obstruents; phoneme surprisal
LEXICAL = slice(N_BANDS + 6, N_BANDS + 8)  # word onsets, word surprisal
FAMILIES = (ACOUSTIC, PHONETIC, LEXICAL)
N_DRIVERS = N_BANDS + 8

_VOWELS = {"IY", "IH", "EH", "AE", "AA", "AO", "UH", "UW", "AH", "ER", "EY", "AY", "OY", "AW", "OW"}
_SONORANTS = {"M", "N", "NG", "L", "R", "W", "Y"}

# Centres (s), widths (s) and mean heights of the three waves of each family: P1, N1 and P2 of sound; responses to phonemes; to words,
# the last of them the N400.
_WAVES = {
    "acoustic": ((0.060, 0.115, 0.190), (0.018, 0.025, 0.040), (0.3, -1.0, 0.7)),
    "phonetic": ((0.090, 0.160, 0.270), (0.022, 0.032, 0.050), (0.3, -0.8, 0.6)),
    "lexical": ((0.150, 0.240, 0.370), (0.030, 0.045, 0.050), (0.2, 0.5, -1.0)),
}
# Share of each family (columns as in _WAVES) in the variance of each source of ``phantom_head.RESPONDING`` (rows).
_SHARES = np.array(
    [
        [1.0, 0.1, 0.0],  # auditory
        [1.0, 0.1, 0.0],
        [0.7, 0.3, 0.0],  # belt
        [0.7, 0.3, 0.0],
        [0.3, 0.7, 0.1],  # superior temporal
        [0.3, 0.7, 0.1],
        [0.0, 0.3, 0.7],  # middle temporal
        [0.0, 0.0, 1.0],  # inferior frontal
    ]
)
N_SOURCES = len(_SHARES)


def make_drivers(story: Story) -> np.ndarray:
    """Give what the brain follows, shape (N_DRIVERS, n_frames), at ``DRIVER_SFREQ`` from the first sample of the sound."""
    bands = filter_bands(story.audio)
    adapted = _adapt(bands)
    rises = np.maximum(np.diff(adapted, axis=1, prepend=adapted[:, :1]), 0).sum(axis=0)
    words = [piece for piece in story.spoken if piece.kind == "word"]
    phonemes = [piece for piece in story.spoken if piece.kind == "phoneme"]
    classes = [_class(piece.text) for piece in phonemes]
    rows = [
        _impulses([p.onset for p in phonemes], np.ones(len(phonemes)), bands.shape[1]),
        *(_impulses([p.onset for p in phonemes], np.array([float(c == k) for c in classes]), bands.shape[1]) for k in range(3)),
        _impulses([p.onset for p in phonemes], surprisal([p.text for p in phonemes], start=40) / PHONEME_BITS, bands.shape[1]),
        _impulses([p.onset for p in words], np.ones(len(words)), bands.shape[1]),
        _impulses([p.onset for p in words], surprisal([p.text for p in words], start=1000) / WORD_BITS, bands.shape[1]),
    ]
    return np.concatenate([adapted, [rises], np.stack(rows)])


def filter_bands(audio: np.ndarray) -> np.ndarray:
    """Give the compressed amplitude of each band of a sound at ``AUDIO_SFREQ``, shape (N_BANDS, n_frames), frame k at k / DRIVER_SFREQ."""
    sound = audio * (LOUDNESS / max(float(np.sqrt(np.mean(audio.astype(np.float64) ** 2))), 1e-9))
    hop, window, n_fft = round(AUDIO_SFREQ / DRIVER_SFREQ), 400, 512
    padded = np.pad(sound, (window // 2, window)).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][: len(sound) // hop + 1]
    power = np.abs(scipy.fft.rfft(frames * np.hanning(window).astype(np.float32), n_fft, axis=1)) ** 2
    return ((power @ _filterbank(n_fft).T) ** (COMPRESSION / 2)).T.astype(np.float64)


def _adapt(bands: np.ndarray) -> np.ndarray:
    """Divide each band by what it has lately been: a steady sound fades, a change stands out."""
    decay = math.exp(-1 / (ADAPTATION * DRIVER_SFREQ))
    lately = scipy.signal.lfilter([1 - decay], [1, -decay], bands, axis=1)
    return bands / (0.3 + lately)


def _filterbank(n_fft: int) -> np.ndarray:
    """Triangles with equal steps on the ERB-rate scale from 80 to 7600 Hz, shape (N_BANDS, n_fft // 2 + 1).

    The scale is that of Glasberg and Moore, Hear. Res. 47, 103 (1990), equation 4.
    """
    lowest, highest = (21.4 * math.log10(1 + 0.00437 * hertz) for hertz in (80.0, 7600.0))
    edges = (10 ** (np.linspace(lowest, highest, N_BANDS + 2) / 21.4) - 1) / 0.00437
    frequencies = np.fft.rfftfreq(n_fft, 1 / AUDIO_SFREQ)
    up = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    down = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(up, down)).astype(np.float32)


def _class(phoneme: str) -> int:
    """Tell a vowel (0), a sonorant (1) and an obstruent (2) by its ARPAbet name, with or without its stress."""
    name = phoneme.rstrip("012").upper()
    return 0 if name in _VOWELS else 1 if name in _SONORANTS else 2


def surprisal(tokens: list[str], *, start: int) -> np.ndarray:
    """Give -log2 p of each token for a listener who has heard only what came before it, of ``start`` possible tokens to begin with.

    p mixes how often the token was heard with how often it followed its predecessor, half and half.
    """
    alone: Counter[str] = Counter()
    after: Counter[tuple[str, str]] = Counter()
    values, previous = [], ""
    for n, token in enumerate(tokens):
        frequent = (alone[token] + 1) / (n + start)
        expected = after[previous, token] / alone[previous] if alone[previous] else frequent
        values.append(-math.log2(0.5 * frequent + 0.5 * expected))
        alone[token] += 1
        after[previous, token] += 1
        previous = token
    return np.array(values)


def _impulses(onsets: list[float], heights: np.ndarray, n_frames: int) -> np.ndarray:
    """Put impulses between frames, shared out over the two nearest, shape (n_frames,)."""
    out = np.zeros(n_frames + 2)
    at = np.array(onsets) * DRIVER_SFREQ
    before = np.minimum(at.astype(int), n_frames)
    np.add.at(out, before, heights * (1 - (at - before)))
    np.add.at(out, before + 1, heights * (at - before))
    return out[:n_frames]


@dataclass(frozen=True, eq=False)
class Response:
    """How one listener's sources answer: per family a filter over drivers and times.

    Parameters
    ----------
    weights : list of array
        Per family, shape (N_SOURCES, rows of the family).
    functions : list of array
        Per family, shape (N_SOURCES, n_taps) at ``DRIVER_SFREQ``.
    """

    weights: list[np.ndarray]
    functions: list[np.ndarray]


def draw_response(common: np.random.Generator, own: np.random.Generator) -> Response:
    """Draw a listener: half of the variance is everyone's, half is the listener's, and so is a latency (sd 12 ms)."""

    def draw(*shape: int) -> np.ndarray:
        return (common.standard_normal(shape) + own.standard_normal(shape)) / math.sqrt(2)

    latency = 0.012 * float(own.standard_normal())
    weights, functions = [], []
    for family, waves in zip(FAMILIES, _WAVES.values(), strict=True):
        weights.append(0.7 + draw(N_SOURCES, family.stop - family.start))
        functions.append(response_functions(waves, draw(N_SOURCES, 3), latency))
    return Response(weights, functions)


def response_functions(waves: tuple, heights: np.ndarray, latency: float) -> np.ndarray:
    """Give damped responses of 0 to ``REACH`` s after the sound, shape (n_sources, n_taps).

    ``heights`` (n_sources, 3) are normal deviates from the mean heights, of which they change four tenths.
    """
    times = np.arange(round(REACH * DRIVER_SFREQ)) / DRIVER_SFREQ
    centres, widths, means = (np.array(part) for part in waves)
    shapes = np.exp(-0.5 * ((times - centres[:, None] - latency) / widths[:, None]) ** 2)
    fade = np.minimum(1, (REACH - times) / 0.05)
    return (means * (1 + 0.4 * heights)) @ shapes * fade


def answer(response: Response, drivers: np.ndarray) -> list[np.ndarray]:
    """Give what each family contributes to the sources, each of shape (N_SOURCES, n_frames + n_taps - 1), before their shares."""
    out = []
    for family, weights, functions in zip(FAMILIES, response.weights, response.functions, strict=True):
        # What is steady is no response: a band's mean would only be an offset that begins and ends with the sound.
        moving = drivers[family] - (drivers[family].mean(axis=1, keepdims=True) if family is ACOUSTIC else 0.0)
        out.append(scipy.signal.fftconvolve(weights @ moving, functions, axes=1))
    return out


def mix(families: list[np.ndarray], scales: np.ndarray) -> np.ndarray:
    """Add the families up by their shares; ``scales`` (n_families, N_SOURCES) are the standard deviations to divide by."""
    shares = np.sqrt(_SHARES.T)
    return sum(f * (share / scale)[:, None] for f, share, scale in zip(families, shares, np.maximum(scales, 1e-12), strict=True))


def follow(response: Response, bands: np.ndarray) -> np.ndarray:
    """Weight plain bands into sources, shape (N_SOURCES, n_frames): what is heard when one lag is planted."""
    return np.abs(response.weights[0][:, : len(bands)]) @ (bands - bands.mean(axis=1, keepdims=True))
