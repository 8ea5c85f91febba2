"""Seconds and samples: the one rounding rule of the package.

A time in seconds falls on the nearest sample; a tie goes up. Python's and numpy's round send ties to the even neighbour, so that
equal distances in time would become unequal distances in samples.
"""

from __future__ import annotations

from fractions import Fraction
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A time that was written in decimal and read back can miss its tie by a few ulp: 1e-6 samples absorbs that and nothing real.
TIE = 1e-6


@overload
def to_samples(seconds: float, sfreq: float) -> int: ...
@overload
def to_samples(seconds: NDArray, sfreq: float) -> NDArray[np.int64]: ...
def to_samples(seconds, sfreq):
    """Give the sample nearest to a time; ties go up.

    Parameters
    ----------
    seconds : float or array
        Time in seconds, counted from sample 0.
    sfreq : float
        Sampling rate in Hz.
    """
    if not sfreq > 0:
        raise ValueError(f"sfreq must be a positive number of Hz, got {sfreq}.")
    samples = np.floor(np.asarray(seconds, dtype=np.float64) * sfreq + 0.5 + TIE).astype(np.int64)
    return samples if samples.ndim else int(samples)


def to_seconds(samples: ArrayLike, sfreq: float) -> float | NDArray[np.float64]:
    """Give the time in seconds of a sample counted from 0."""
    if not sfreq > 0:
        raise ValueError(f"sfreq must be a positive number of Hz, got {sfreq}.")
    seconds = np.asarray(samples, dtype=np.float64) / sfreq
    return seconds if seconds.ndim else float(seconds)


def resampled_length(n_times: int, sfreq: float, new_sfreq: float) -> int:
    """Give the number of samples that ``n_times`` samples at ``sfreq`` become at ``new_sfreq``: round(duration x new_sfreq)."""
    return to_samples(n_times / sfreq, new_sfreq)


def rate_ratio(sfreq: float, new_sfreq: float, *, max_denominator: int = 10_000) -> Fraction:
    """Give new_sfreq / sfreq as a fraction (up / down) for a polyphase resampler.

    An odd rate (300.3075 Hz) has no small exact fraction: the nearest one with a denominator of ``max_denominator`` at the most is taken if
    it is off by less than 1e-8 (0.04 ms in an hour), else the nearest one with a denominator ten times as large, off by 5e-6 at the
    worst (18 ms in an hour: a rate that differs from the new one in the sixth digit).
    """
    exact = Fraction(new_sfreq) / Fraction(sfreq)
    ratio = exact.limit_denominator(max_denominator)
    if abs(ratio / exact - 1) < 1e-8:
        return ratio
    return exact.limit_denominator(10 * max_denominator)
