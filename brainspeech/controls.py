"""Two ways to take the answer out of the data and leave the rest: phase-randomised signal, and shifted pairing.

A pipeline that is refitted on either must fall to chance; where it does not, something else than the response to the sound is decoded.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy.fft

from brainspeech.records import Segment, Signal


def phase_randomise(signal: Signal, *, seed: int) -> Signal:
    """Keep a recording's spectra and channel covariance, and nothing of when things happened.

    The same random phase is added to all channels at each frequency, so that power and cross-spectra stay (Prichard and Theiler, Phys. Rev.
    Lett. 73, 951, 1994). Mean and, for an even length, the Nyquist frequency are kept as they are.

    Parameters
    ----------
    signal : Signal
        One recording.
    seed : int
        Each recording gets phases of its own from the seed and its uid.
    """
    n_times = signal.data.shape[1]
    n_random = (n_times - 1) // 2  # frequencies that have a phase
    rng = np.random.default_rng([seed, zlib.crc32(signal.uid.encode())])
    turn = np.exp(2j * np.pi * rng.random(n_random))
    data = np.empty(signal.data.shape, dtype=np.float32)
    # One channel at a time in double precision: an hour at 120 Hz takes 10 MB beside the result. scipy transforms any length fast.
    for row, channel in enumerate(signal.data):
        spectrum = scipy.fft.rfft(channel.astype(np.float64))
        spectrum[1 : n_random + 1] *= turn
        data[row] = scipy.fft.irfft(spectrum, n=n_times)
    return replace(signal, data=data)


def shift_pairing(segments: Sequence[Segment], *, min_shift: float = 5.0, seed: int) -> list[Segment]:
    """Pair each window of signal with what was heard at another time.

    In each recording and split the heard side (``stimulus_id``, ``text``, ``word``, ``spans``) is rolled along time by one random number of
    windows, so that neighbours stay neighbours; the signal's side (recording, onset, block, split) stays.

    Parameters
    ----------
    segments : sequence of Segment
        Any number of recordings and splits.
    min_shift : float
        No window is paired with what the same stimulus plays less than this many seconds from its own place, in recording time or in the
        stimulus's time (a sound may be heard twice).
    seed : int
        Decides the shifts; the order of the segments does not.

    Returns
    -------
    list of Segment
        In the order given.

    Raises
    ------
    ValueError
        If a recording's split has no such shift.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for i, segment in enumerate(segments):
        groups.setdefault((segment.recording, segment.split), []).append(i)
    out = list(segments)
    for (recording, split), members in groups.items():
        order = sorted(members, key=lambda i: (segments[i].onset, segments[i].stimulus_id))
        onset = np.array([segments[i].onset for i in order])
        audio = np.array([segments[i].spans[0].audio if segments[i].spans else "" for i in order])
        place = np.array([segments[i].spans[0].start - segments[i].spans[0].onset if segments[i].spans else -np.inf for i in order])
        rng = np.random.default_rng([seed, zlib.crc32(f"{recording} {split}".encode())])
        for k in rng.permutation(np.arange(1, len(order))).tolist():
            if _is_far(onset, audio, place, k, min_shift):
                break
        else:
            raise ValueError(
                f"{recording}: the {split} split is too short to shift its {len(order)} windows by {min_shift:g} s, they span "
                f"{onset[-1] - onset[0]:g} s. Leave this recording out of the shifted control, or use a smaller min_shift."
            )
        for here, there in zip(order, np.roll(order, -k).tolist(), strict=True):
            heard = segments[there]
            out[here] = replace(segments[here], stimulus_id=heard.stimulus_id, text=heard.text, word=heard.word, spans=heard.spans)
    return out


def _is_far(onset: np.ndarray, audio: np.ndarray, place: np.ndarray, k: int, min_shift: float) -> bool:
    """Tell whether a roll by ``k`` windows takes every one of them far enough from its own sound."""
    same = audio == np.roll(audio, -k)
    near = np.abs(onset - np.roll(onset, -k)) < min_shift
    heard = np.isfinite(place)
    position = np.where(heard, place, 0.0)
    near |= heard & np.roll(heard, -k) & (np.abs(position - np.roll(position, -k)) < min_shift)
    return not (same & near).any()
