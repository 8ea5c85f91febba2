"""A signal at another rate, or through a filter: arrays in and out, linear phase without delay, the ends reflected, worked on in float64.

Resampling is one polyphase filter or two: where the rate falls far enough, a short filter first takes the samples down by a whole number,
and the anti-alias filter, which has the narrow slope and therefore is long, works at the rate in between.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from scipy import fft
from scipy.signal import firwin

from brainspeech.timing import rate_ratio, resampled_length

# The anti-alias filter: samples of the lower rate to either side, and its attenuation in dB from half the lower rate on. It is flat to
# 0.1 % up to 5/12 of the lower rate (50 Hz at 120 Hz) and reaches 0.183 s at 120 Hz, with all but 0.05 % of its energy within 0.092 s; the
# guard of the segments is not meant for it.
ANTIALIAS_REACH = 22
ANTIALIAS_DB = 60.0

# The filter before it lets everything up to half the new rate pass and takes out, by about this many dB, what would fold onto it; at 80 the
# error in the pass band is that of the anti-alias filter alone. It reaches some 0.03 s at 120 Hz. The rate in between is ROOM times the new
# one at least: the more room, the shorter this filter, and the more there is left for the next.
DECIMATION_DB = 80.0
ROOM = Fraction(3, 2)

# Resampling is a chain of matrix products: of each, samples of the new rate (more leave more of the filter's matrix zero) and
# multiplications at most. OpenBLAS does products of up to a million without a copy of the input, which takes half the time.
GROUP = 8
PRODUCT = 1_000_000

# Samples that a filter transforms at a time, at the least.
FILTER_BLOCK = 8192


def resample(data: np.ndarray, sfreq: float, new_sfreq: float) -> np.ndarray:
    """Resample windows that were cut already, as ``preprocess`` resamples recordings; the ends are reflected.

    Parameters
    ----------
    data : array, shape (..., n_times)
    sfreq, new_sfreq : float
        Sampling rates in Hz.

    Returns
    -------
    array of float32, shape (..., round(duration x new_sfreq))
    """
    rows = np.asarray(data, dtype=np.float64).reshape(-1, data.shape[-1])
    n_times = rows.shape[1]
    out = np.empty((len(rows), resampled_length(n_times, sfreq, new_sfreq)), dtype=np.float32)

    def read(start: int, stop: int) -> np.ndarray:
        return rows.take(reflect(start, stop, n_times), axis=1)

    resample_chunks(read, n_times, sfreq, new_sfreq, out, chunk=n_times)
    return out.reshape(*data.shape[:-1], -1)


def resample_chunks(
    read: Callable[[int, int], np.ndarray],
    n_times: int,
    sfreq: float,
    new_sfreq: float,
    out: np.ndarray,
    *,
    chunk: int,
    level: np.ndarray | None = None,
) -> None:
    """Resample chunk by chunk into ``out``, shape (n_channels, n_new), by a polyphase filter; sample k of ``out`` is at k / new_sfreq.

    ``read(start, stop)`` gives float64 input of shape (n_channels, stop - start), also beyond the ends; ``level``, shape (n_channels, 1),
    is taken off. ``chunk`` is the number of input samples read at a time; the result does not depend on it. A channel with a sample that
    is not finite becomes so in ``out``, too.
    """
    n_new = out.shape[1]
    level = np.zeros((len(out), 1)) if level is None else level
    ratio = rate_ratio(sfreq, new_sfreq)
    steps = [] if ratio == 1 and n_new == n_times else _plan(ratio)
    size = GROUP * max(1, int(chunk * ratio) // GROUP)  # whole groups: a sample comes from the same product whatever the chunk
    for start in range(0, n_new, size):
        spans = [(start, min(start + size, n_new))]
        for step in reversed(steps):
            spans.append(step.needs(*spans[-1]))
        block = read(*spans.pop())
        with np.errstate(invalid="ignore"):  # channels that are not finite
            for step in steps:
                block = step.run(block, *spans.pop())
            # Every phase of the kernels sums to 1, so the level may come off now, where there is less to take it off from.
            out[:, start : start + size] = block - level


class _Step:
    """Resampling by up / down with a symmetric kernel of odd length, given at ``up`` times the rate of the input.

    GROUP samples of the result are the product of a stretch of the input, from ``reach`` samples before the first of them on, with a matrix
    whose row i and column k hold the kernel's value at half + (k * down + phase) - (i - reach) * up.
    """

    def __init__(self, up: int, down: int, kernel: NDArray[np.float64]):
        self._up, self._down = up, down
        half = len(kernel) // 2
        self._reach = half // up + 1
        self._width = ((GROUP - 1) * down + up - 1 + half) // up + self._reach + 1
        places = half + np.arange(GROUP) * down - (np.arange(self._width)[:, None] - self._reach) * up
        margin = max(-places.min(), places.max() + up - len(kernel))
        self._padded, self._places = np.pad(kernel, margin), places + margin

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Give the first sample of the input that the samples start to stop are made from, and the one after the last."""
        return self._left(start // GROUP), self._left((stop - 1) // GROUP) + self._width

    def run(self, block: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Make the samples start to stop from the input that they need, shape (n_channels, n_needed)."""
        groups = range(start // GROUP, (stop - 1) // GROUP + 1)
        found = np.empty((len(block), len(groups), GROUP))
        stretches = sliding_window_view(block, self._width, axis=1)
        # After a cycle the kernel stands at the same phase again: the groups that are cycles apart share a matrix, and numpy's loop.
        cycle = self._up // math.gcd(self._up, GROUP)
        stride = cycle * GROUP * self._down // self._up
        n_rows = max(1, PRODUCT // (GROUP * self._width))
        for i, group in enumerate(groups[:cycle]):
            weights = self._padded[self._places + group * GROUP * self._down % self._up]
            apart = stretches[:, self._left(group) - self._left(groups[0]) :: stride][:, : len(groups[i::cycle])]
            for top in range(0, len(block), n_rows):
                rows = slice(top, top + n_rows)
                np.matmul(apart[rows].swapaxes(0, 1), weights, out=found[rows, i::cycle].swapaxes(0, 1))
        return found.reshape(len(block), -1)[:, start - groups[0] * GROUP : stop - groups[0] * GROUP]

    def _left(self, group: int) -> int:
        return group * GROUP * self._down // self._up - self._reach


def _plan(ratio: Fraction) -> list[_Step]:
    """Give the steps from the old rate to ``ratio`` times it, the first of them first."""
    limit = int(1 / ratio / ROOM)
    factor = max([1, *(n for n in range(2, limit + 1) if ratio.denominator % n == 0)])  # a divisor adds no phases to the second kernel
    rest = ratio * factor
    last = _Step(rest.numerator, rest.denominator, _antialias(rest.numerator, rest.denominator))
    return [last] if factor == 1 else [_Step(1, factor, _decimation(factor, ratio)), last]


def _antialias(up: int, down: int) -> NDArray[np.float64]:
    """Design the anti-alias filter at the up-sampled rate: symmetric, of odd length; a constant stays exactly what it is."""
    half = ANTIALIAS_REACH * max(up, down)
    transition = (ANTIALIAS_DB - 7.95) / (2.285 * 2 * np.pi * 2 * half)  # cycles per sample of the up-sampled rate; Kaiser's rule
    kernel = _lowpass(half, 0.5 / max(up, down) - transition / 2, ANTIALIAS_DB)
    phase = np.arange(len(kernel)) % up
    return kernel / np.bincount(phase, weights=kernel)[phase]


def _decimation(factor: int, ratio: Fraction) -> NDArray[np.float64]:
    """Design the filter before decimation by a factor: it keeps what lies below half the new rate, and takes out what would fold there."""
    transition = 1 / factor - float(ratio)
    half = math.ceil((DECIMATION_DB - 7.95) / (2.285 * 2 * np.pi * 2 * transition))
    return _lowpass(half, 0.5 / factor, DECIMATION_DB)


def _lowpass(half: int, edge: float, attenuation: float) -> NDArray[np.float64]:
    """Design a symmetric kernel of sum 1 that is at half its height at ``edge`` cycles per sample."""
    beta = 0.1102 * (attenuation - 8.7)  # Kaiser's rule
    return firwin(2 * half + 1, edge, window=("kaiser", beta), fs=1.0)


def filter_rows(data: np.ndarray, kernel: np.ndarray) -> None:
    """Filter every row in place with a symmetric kernel of odd length, in float64; the ends are reflected."""
    reach, n_times = len(kernel) // 2, data.shape[1]
    size = fft.next_fast_len(max(FILTER_BLOCK, 8 * len(kernel)), real=True)
    response = fft.rfft(kernel, size)
    # Blocks that overlap by the length of the kernel: of each the first 2 * reach samples are wrapped around and not used.
    step = size - 2 * reach
    n_blocks = -(-n_times // step)
    row = np.zeros(n_blocks * step + 2 * reach)
    blocks = sliding_window_view(row, size)[::step]
    before, after = reflect(-reach, 0, n_times), reflect(n_times, n_times + reach, n_times)
    for channel in data:
        row[: n_times + 2 * reach] = np.concatenate([channel[before], channel, channel[after]])
        filtered = fft.irfft(fft.rfft(blocks, axis=1) * response, size, axis=1)[:, 2 * reach :]
        channel[:] = filtered.ravel()[:n_times]


def reflect(start: int, stop: int, n_times: int) -> NDArray[np.int64]:
    """Give the samples that stand at start to stop when the recording is mirrored at its first and last sample, as often as needed."""
    period = max(2 * (n_times - 1), 1)
    times = np.arange(start, stop) % period
    return np.minimum(times, period - times)
