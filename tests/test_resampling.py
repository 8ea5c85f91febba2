"""Resampling and filtering against their definitions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from brainspeech import resampling as room
from brainspeech.resampling import filter_rows, reflect, resample, resample_chunks
from brainspeech.timing import rate_ratio, resampled_length

RATES = [1000.0, 300.3074951171875, 128.0, 512.0, 5000.0, 600.0, 100.0]


def _noise(n_channels, n_times, seed=0):
    return np.random.default_rng(seed).standard_normal((n_channels, n_times))


def _resample(data, sfreq, *, chunk, new_sfreq=120.0, level=None):
    n_times = data.shape[1]
    out = np.full((len(data), resampled_length(n_times, sfreq, new_sfreq)), np.nan)

    def read(start, stop):
        return data.take(reflect(start, stop, n_times), axis=1)

    resample_chunks(read, n_times, sfreq, new_sfreq, out, chunk=chunk, level=level)
    return out


def _kernels(ratio):
    """The filters as (up, down, kernel): one, or that of the decimation and that of the rest."""
    factor = {Fraction(3, 25): 5, Fraction(15, 64): 2, Fraction(3, 125): 25}.get(ratio, 1)
    rest = ratio * factor
    last = (rest.numerator, rest.denominator, room._antialias(rest.numerator, rest.denominator))
    return [last] if factor == 1 else [(1, factor, room._decimation(factor, ratio)), last]


def _sample(data, kernels, k):
    """Sample k of one row as the sum over the kernel, of samples that are such sums in turn; the input is reflected."""
    if not kernels:
        return data[reflect(k, k + 1, len(data))[0]]
    up, down, kernel = kernels[-1]
    half = len(kernel) // 2
    inside = range(-((half - k * down) // up), (half + k * down) // up + 1)  # |k * down - n * up| <= half
    return sum(kernel[half + k * down - n * up] * _sample(data, kernels[:-1], n) for n in inside)


@pytest.mark.parametrize("sfreq", RATES)
@pytest.mark.parametrize("n_channels", [1, 40])
def test_resampling_is_the_sum_over_the_kernels(sfreq, n_channels, monkeypatch):
    monkeypatch.setattr(room, "PRODUCT", 20_000)  # more than one product for the channels
    data = _noise(n_channels, 1400)
    found = _resample(data, sfreq, chunk=500)
    kernels = _kernels(rate_ratio(sfreq, 120.0))
    n_new = found.shape[1]
    for k in (0, 1, n_new // 2, n_new - 1):
        for channel in {0, n_channels - 1}:
            assert found[channel, k] == pytest.approx(_sample(data[channel], kernels, k), rel=0, abs=1e-12)


@pytest.mark.parametrize("sfreq", [*RATES, 120.0])
@pytest.mark.parametrize("n_channels", [1, 3])
def test_no_sample_depends_on_the_chunk(sfreq, n_channels):
    data, level = _noise(n_channels, 5003), np.arange(n_channels)[:, None] + 0.1
    whole = _resample(data, sfreq, chunk=10**9, level=level)
    for chunk in (1, 97, 1000):
        np.testing.assert_array_equal(_resample(data, sfreq, chunk=chunk, level=level), whole)


@pytest.mark.parametrize("sfreq", [1000.0, 512.0, 300.3074951171875])
def test_a_signal_is_not_moved(sfreq):
    # A symmetric kernel gives the mirrored signal mirrored, where the last sample falls on one of the new rate.
    ratio = rate_ratio(sfreq, 120.0)
    last = ratio.numerator * -(-1000 // ratio.denominator)
    n_times = round(last / ratio) + 1
    data = _noise(1, n_times)
    forward, backward = _resample(data, sfreq, chunk=777), _resample(data[:, ::-1], sfreq, chunk=777)
    np.testing.assert_allclose(forward[:, 1:last], backward[:, last - 1 : 0 : -1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("sfreq", "new_sfreq", "factor"),
    [
        (1000, 120, 5),
        (5000, 120, 25),
        (512, 120, 2),
        (1000, 100, 5),
        (2048, 120, 8),
        (360, 120, 1),
        (600, 120, 1),
        (128, 120, 1),
        (100, 120, 1),
    ],
)
def test_the_first_step_divides_and_leaves_room(sfreq, new_sfreq, factor):
    ratio = rate_ratio(sfreq, new_sfreq)
    steps = room._plan(ratio)
    assert [(step._up, step._down) for step in steps][: len(steps) - 1] == ([(1, factor)] if factor > 1 else [])
    assert Fraction(steps[-1]._up, steps[-1]._down) == ratio * factor
    assert ratio.denominator % factor == 0
    assert factor == 1 or 1 / factor >= 1.5 * ratio


@pytest.mark.parametrize(("factor", "ratio"), [(5, Fraction(3, 25)), (25, Fraction(3, 125)), (2, Fraction(15, 64)), (8, Fraction(15, 256))])
def test_decimation_keeps_what_stays_and_takes_out_what_would_fold_onto_it(factor, ratio):
    kernel = room._decimation(factor, ratio)
    np.testing.assert_allclose(kernel, kernel[::-1], rtol=0, atol=1e-15)
    assert kernel.sum() == pytest.approx(1, rel=1e-12)

    def response(low, high):
        frequencies = np.linspace(low, high, 2001)
        return np.cos(2 * np.pi * frequencies[:, None] * (np.arange(len(kernel)) - len(kernel) // 2)) @ kernel

    # Kaiser's rule misses the 80 dB by up to 3 in so short a kernel; below, the ripple counts twice, since the kernel is 1 at 0 Hz.
    np.testing.assert_allclose(response(0, float(ratio) / 2), 1, rtol=0, atol=2 * 10 ** (-77 / 20))
    assert np.abs(response(1 / factor - float(ratio) / 2, 0.5)).max() < 10 ** (-77 / 20)


def test_a_constant_stays_a_constant():
    # Every phase of the kernel sums to 1, so that a slow drift gets no ripple at the rate of the phases.
    for up, down in ((3, 25), (3, 5), (15, 16), (6, 5), (3933, 9842)):
        kernel = room._antialias(up, down)
        np.testing.assert_allclose([kernel[p::up].sum() for p in range(up)], 1, rtol=1e-12)
        np.testing.assert_allclose(kernel, kernel[::-1], rtol=0, atol=1e-15)
    for sfreq in RATES:
        np.testing.assert_allclose(_resample(np.full((2, 1000), 3.0), sfreq, chunk=300), 3.0, rtol=1e-12)


def test_a_channel_that_is_not_finite_stays_alone():
    data = _noise(3, 4000)
    data[1, 2000] = np.inf
    found = _resample(data, 1000.0, chunk=500)
    assert not np.isfinite(found[1]).all()
    np.testing.assert_array_equal(found[[0, 2]], _resample(data[[0, 2]], 1000.0, chunk=500))


@pytest.mark.parametrize("n_times", [1, 2, 30])
def test_windows_shorter_than_the_filter_are_reflected_as_often_as_needed(n_times):
    data = _noise(1, n_times)
    mirrored = np.pad(data, ((0, 0), (2000, 2000)), mode="reflect") if n_times > 1 else np.full((1, 4001), data[0, 0])
    expected = _resample(mirrored, 1000.0, chunk=10**6)[:, 240:]
    found = resample(data, 1000.0, 120.0)
    assert found.dtype == np.float32
    assert found.shape == (1, resampled_length(n_times, 1000.0, 120.0))
    np.testing.assert_allclose(found, expected[:, : found.shape[1]], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("n_times", "n_taps"), [(4001, 1201), (20_000, 793), (1201, 1201), (300, 3)])
def test_filtering_is_the_convolution_of_the_reflected_signal(n_times, n_taps):
    data = _noise(2, n_times).astype(np.float32)
    kernel = np.hanning(n_taps + 2)[1:-1] / n_taps
    reach = n_taps // 2
    padded = np.pad(data.astype(float), ((0, 0), (reach, reach)), mode="reflect")
    expected = np.stack([np.convolve(row, kernel, mode="valid") for row in padded])
    filter_rows(data, kernel)
    np.testing.assert_allclose(data, expected, rtol=0, atol=1e-7 * np.abs(expected).max())
