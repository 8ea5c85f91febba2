"""Seconds and samples."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from brainspeech.timing import rate_ratio, resampled_length, to_samples, to_seconds


@pytest.mark.parametrize(("seconds", "sample"), [(0.5, 1), (1.5, 2), (2.5, 3), (-0.5, 0), (-1.5, -1), (0.4999, 0), (-0.51, -1)])
def test_a_tie_goes_up(seconds, sample):
    assert to_samples(seconds, 1.0) == sample


def test_ties_that_decimals_miss_go_up_and_keep_equal_distances():
    # Half a sample at 120 Hz, written with six decimals; round() alternates between 0, 2, 2, 4, 4 here.
    seconds = np.round((np.arange(200) + 0.5) / 120, 9)
    samples = to_samples(seconds, 120.0)
    assert samples.dtype == np.int64
    np.testing.assert_array_equal(samples, np.arange(200) + 1)


def test_samples_come_back_from_seconds():
    samples = np.arange(0, 5_000_000, 997)
    for sfreq in (120.0, 300.3074951171875, 44_100.0):
        np.testing.assert_array_equal(to_samples(to_seconds(samples, sfreq), sfreq), samples)
    assert to_samples(to_seconds(7, 120.0), 120.0) == 7


@pytest.mark.parametrize("sfreq", [0.0, -1.0, float("nan")])
def test_a_rate_must_be_positive(sfreq):
    with pytest.raises(ValueError, match="positive number of Hz"):
        to_samples(1.0, sfreq)
    with pytest.raises(ValueError, match="positive number of Hz"):
        to_seconds(1, sfreq)


@pytest.mark.parametrize(
    ("n_times", "sfreq", "expected"),
    [
        (3_600_000, 1000.0, 432_000),
        (301, 300.3074951171875, 120),
        (1_081_107, 300.3074951171875, 432_000),  # an hour at the Neuromag rate, to the nearest sample
        (7680, 128.0, 7200),
        (1, 1000.0, 0),
        (25, 1000.0, 3),
        (1, 240.0, 1),  # half a sample: a tie goes up
    ],
)
def test_resampled_length_is_the_rounded_duration(n_times, sfreq, expected):
    assert resampled_length(n_times, sfreq, 120.0) == expected


def test_common_rates_have_exact_ratios():
    assert rate_ratio(1000.0, 120.0) == Fraction(3, 25)
    assert rate_ratio(128.0, 64.0) == Fraction(1, 2)
    assert rate_ratio(120.0, 120.0) == 1


@pytest.mark.parametrize("sfreq", [300.3074951171875, 249.99, 120.004, 360.01, 128.0001])
def test_odd_rates_stay_aligned_for_an_hour(sfreq):
    drift = abs(float(rate_ratio(sfreq, 120.0) / (Fraction(120) / Fraction(sfreq))) - 1) * 3600
    assert drift < 1e-4  # s


@pytest.mark.parametrize("sfreq", [1000.001, 120.0005, 119.9999])
def test_a_rate_without_a_usable_fraction_stays_within_two_samples_an_hour(sfreq):
    ratio = rate_ratio(sfreq, 120.0)
    assert ratio.denominator <= 100_000
    assert abs(float(ratio / (Fraction(120) / Fraction(sfreq))) - 1) * 3600 < 2 / 120
