"""One listener of the phantom in front of the sensors: whose dipoles lie where, what the sensors see of them, and how large it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mne
import numpy as np
import scipy.fft

from . import phantom_head, phantom_noise, phantom_response
from .phantom_noise import SNR_BAND
from .phantom_response import DRIVER_SFREQ, N_SOURCES

NOISE_LEVEL = {"eeg": 10e-6, "meg": 100e-15}  # V and T, root mean square per sensor in SNR_BAND
GAIN_SPREAD = 1.5  # dB, between listeners
# Peak (blinks, heartbeat, jump) or root mean square (line, rhythms) at the sensor that sees most of it, in noise levels.
SIZES = {"line_noise": 0.7, "blinks": 10.0, "heartbeat": 1.5, "amplifier_jump": 8.0, "rhythms": 0.8}


@dataclass(frozen=True, eq=False)
class Listener:
    """A listener and the fields of everything in the head.

    Parameters
    ----------
    info : mne.Info
        The sensors, as the recording's header has them.
    response : phantom_response.Response
    gain_db : float
        By how much this listener's ratio of answer to noise is above the stated one.
    scales : array, shape (n_families, N_SOURCES)
        What the families' contributions are divided by.
    lag_scales : array, shape (N_SOURCES,)
        What the sources are divided by where one lag is planted.
    maps : array, shape (n_channels, N_SOURCES)
        V or T of one unit of each source.
    root : array, shape (n_channels, rank)
        Times white noise it is the background, in noise levels.
    distracting : array, shape (n_channels, 6)
        V or T of one unit of each of ``phantom_head.DISTRACTING``.
    disturbing : dict of array, shape (n_channels,)
        Maps of line noise, blinks and heartbeat; the largest value is 1.
    """

    info: mne.Info
    response: phantom_response.Response
    gain_db: float
    scales: np.ndarray
    lag_scales: np.ndarray
    maps: np.ndarray
    root: np.ndarray
    distracting: np.ndarray
    disturbing: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Planted:
    """What was planted in one recording: all that an ideal observer knows of it. V or T throughout.

    Parameters
    ----------
    ch_names : tuple of str
    maps : array, shape (n_channels, n_sources)
        What the sensors see of one unit of each source; the sources' courses are ``SimulatedDataset.answer``.
    frequencies : array, shape (n_frequencies,)
        From 0 to half the sampling rate in equal steps, for the two densities.
    background : array, shape (n_channels, n_channels)
        Spatial covariance of the background ...
    background_density, sensor_density : array, shape (n_frequencies,)
        ... times this density (per Hz) is its cross-spectrum; that of the sensors' own noise is the identity times the other (in squared
        units per Hz).
    disturbed : array, shape (n_channels, n_maps)
        Maps of what is neither (blinks, heartbeat, line noise); no column where there is nothing of the kind.
    """

    ch_names: tuple[str, ...]
    maps: np.ndarray
    frequencies: np.ndarray
    background: np.ndarray
    background_density: np.ndarray
    sensor_density: np.ndarray
    disturbed: np.ndarray


def make_listener(
    subject: str,
    heard: Sequence[np.ndarray],
    *,
    kind: str,
    n_channels: int,
    sfreq: float,
    snr_db: float,
    lag: bool,
    draw: Callable[..., np.random.Generator],
) -> Listener:
    """Draw a listener, compute the fields of all dipoles, and measure the answer to bring it to the stated ratio.

    Parameters
    ----------
    heard : sequence of array
        Drivers (of plain bands, if ``lag``) over which the size of the answer is measured.
    lag : bool
        Whether one lag is planted.
    draw : callable
        ``draw(*labels)`` gives the generator of a label.
    """
    info = phantom_head.make_info(kind, n_channels, sfreq)
    level = NOISE_LEVEL[kind]
    pose = phantom_head.draw_pose(draw("pose", subject))
    rng = draw("dipoles", subject)
    answering = phantom_head.draw_named(rng, phantom_head.RESPONDING)
    others = phantom_head.draw_named(rng, phantom_head.DISTRACTING)
    gain_db = GAIN_SPREAD * float(rng.standard_normal())

    response = phantom_response.draw_response(draw("response", "everyone"), draw("response", subject))
    scales, lag_scales, covariance = _measure(response, heard, lag=lag)
    maps = phantom_head.fields(info, answering, pose)
    power = float(np.trace(maps @ covariance @ maps.T)) / n_channels
    # 300 dB below the noise is no answer at all, and still a number.
    unit = level * 10 ** ((max(snr_db, -300) + gain_db) / 20) / math.sqrt(max(power, 1e-300))

    away = phantom_head.fields(info, others, pose)
    rhythms, talkers = away[:, :4], away[:, 4:]
    places = np.array([channel["loc"][:3] for channel in info["chs"]])
    disturbing = {
        "line_noise": draw("line", subject).lognormal(0, 0.7, n_channels),
        "blinks": phantom_head.fields(info, phantom_head.eyes(), pose).sum(axis=1),
        "heartbeat": (places - places.mean(axis=0)) @ np.array([-0.7, 0.4, -0.6]) if n_channels > 1 else np.ones(1),
    }
    return Listener(
        info=phantom_head.place_head(info, pose),
        response=response,
        gain_db=gain_db,
        scales=scales,
        lag_scales=lag_scales,
        maps=unit * maps,
        root=_background_root(info, pose, draw("background", subject)),
        distracting=np.concatenate([SIZES["rhythms"] * level * rhythms / np.abs(rhythms).max(), unit * talkers], axis=1),
        disturbing={name: values / np.abs(values).max() for name, values in disturbing.items()},
    )


def plant(listener: Listener, nuisances: Sequence[str], *, kind: str, sfreq: float, silent: bool) -> Planted:
    """Say what is planted in the recordings of a listener; ``silent``: no answer at all."""
    level = NOISE_LEVEL[kind]
    frequencies = np.linspace(0, sfreq / 2, 16_385)
    sensor = phantom_noise.SENSOR_SHARE * phantom_noise.sensor_density(frequencies)
    if "slow_drift" in nuisances:
        sensor = sensor + phantom_noise.DRIFT**2 * phantom_noise.drift_density(frequencies)
    background = level**2 * listener.root @ listener.root.T
    if "distractors" in nuisances:  # their spectrum is another, but this is where they lie
        background = background + listener.distracting @ listener.distracting.T
    disturbing = [disturbing for name, disturbing in listener.disturbing.items() if name in nuisances]
    return Planted(
        ch_names=tuple(listener.info["ch_names"]),
        maps=np.zeros_like(listener.maps) if silent else listener.maps,
        frequencies=frequencies,
        background=background,
        background_density=phantom_noise.background_density(frequencies, alpha=kind == "eeg"),
        sensor_density=level**2 * sensor,
        disturbed=np.stack(disturbing, axis=1) if disturbing else np.empty((len(listener.maps), 0)),
    )


def _background_root(info: mne.Info, pose: phantom_head.Pose, rng: np.random.Generator) -> np.ndarray:
    """Give a root of the background's spatial covariance, of unit power per sensor less the sensors' own share."""
    fields = phantom_head.fields(info, phantom_head.draw_background(rng), pose)
    fields = fields * rng.lognormal(0, 0.5, phantom_head.N_BACKGROUND)
    values, vectors = np.linalg.eigh(fields @ fields.T)
    kept = values > 1e-9 * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept] / values.sum() * len(fields) * (1 - phantom_noise.SENSOR_SHARE))


def _measure(response: phantom_response.Response, heard: Sequence[np.ndarray], *, lag: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure an answer over some stimuli: what families and sources are divided by, and the sources' covariance in the band."""
    if lag:
        lagged = np.concatenate([phantom_response.follow(response, bands) for bands in heard], axis=1)
        lag_scales = np.maximum(lagged.std(axis=1), 1e-12)
        ones = np.ones((len(phantom_response.FAMILIES), N_SOURCES))
        return ones, lag_scales, _band_covariance(lagged / lag_scales[:, None], DRIVER_SFREQ)
    answers = [phantom_response.answer(response, drivers) for drivers in heard]
    families = [np.concatenate(parts, axis=1) for parts in zip(*answers, strict=True)]
    scales = np.stack([family.std(axis=1) for family in families])
    return scales, np.ones(N_SOURCES), _band_covariance(phantom_response.mix(families, scales), DRIVER_SFREQ)


def band_power(data: np.ndarray, sfreq: float) -> float:
    """Give the mean power per row within ``SNR_BAND`` of data of shape (n_rows, n_times), in squared units of the data."""
    return float(np.trace(_band_covariance(data, sfreq))) / len(data)


def _band_covariance(data: np.ndarray, sfreq: float) -> np.ndarray:
    """Give the covariance within ``SNR_BAND`` of data of shape (n_rows, n_times), shape (n_rows, n_rows)."""
    n_times = data.shape[1]
    spectrum = scipy.fft.rfft(data, axis=1)
    frequencies = np.fft.rfftfreq(n_times, 1 / sfreq)
    inside = spectrum[:, (frequencies >= SNR_BAND[0]) & (frequencies <= SNR_BAND[1])]
    return 2 * (inside @ inside.conj().T).real / n_times**2
