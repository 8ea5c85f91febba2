"""Simulated listeners: speech-like stories, and sensors that follow them at a stated signal-to-noise ratio.

Biography
---------
Who: ``n_subjects`` listeners who never lived; all hear the same stories, one recording per listener and story.

What was heard: stories of about 2.5 minutes at 16 kHz from the package's own synthesiser (``speech_synthesis``), with exact onsets of
sentences, words and phonemes. Sentences have 4 to 12 words; in each story one sentence comes back about once a minute.

Device: an EEG cap taken from an MNE montage, or a helmet of magnetometers; ``sfreq`` Hz. A recording starts some seconds before the
sound and ends some seconds after it, different in each, so that recording time is never stimulus time.

Licence: none needed. Everything is made from ``seed``, bit-identical on one machine.

The response: drivers (``N_BANDS`` compressed envelopes of a mel-like filterbank, their rises, word onsets) are weighted into
``N_SOURCES`` sources; each source goes through a damped temporal response function with peaks near 60, 115 and 190 ms and a smooth
random map over the sensors. Half of the variance of the weights, response functions and maps is common to all listeners and half is the
listener's own, as is a latency (sd 12 ms). The noise has a 1/f spectrum (with an alpha peak in EEG) and is correlated over neighbouring
sensors; slow drift lies on top.

Not modelled: sources in a head and the fields that they make (maps are random smooth functions of the sensors' positions), head
movement, blinks, heartbeat, line noise, broken channels, attention, changes within a recording, responses to surprise or meaning. The
drivers resemble a mel spectrogram, so a model of mel features has an easier task than on real data: figures obtained here say that the
code works, not how well a method decodes.
"""

from __future__ import annotations

import hashlib
import math
import os
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import scipy.fft
import scipy.signal

from brainspeech import events
from brainspeech.cache import digest
from brainspeech.records import Recording

from . import speech_synthesis
from .base import Dataset
from .speech_synthesis import AUDIO_SFREQ, Story, tell_story

N_BANDS = 16
N_SOURCES = 6
STORY_SECONDS = 150.0
DRIVER_SFREQ = 200.0  # Hz
SNR_BAND = (0.5, 30.0)  # Hz
NOISE_LEVEL = {"eeg": 10e-6, "meg": 100e-15}  # V and T, root mean square per sensor in SNR_BAND
DRIFT = 3.0  # times NOISE_LEVEL, below 0.2 Hz
HEAD_RADIUS = 0.095  # m


class SimulatedDataset(Dataset):
    """Listeners, stories and recordings made in memory from a seed.

    Parameters
    ----------
    root : path, optional
        Not used: nothing is read from or written to disk.
    n_subjects : int
        Listeners.
    minutes : float
        Minutes of sound that each listener hears, over all stories.
    n_channels : int
        Sensors.
    kind : {"eeg", "meg"}
        An EEG cap (a subset of an MNE BioSemi montage) or a helmet of magnetometers.
    sfreq : float
        Sampling rate of the recordings in Hz, at least 70.
    snr_db : float
        Power of the response over power of the noise in decibel, both summed over the sensors and over ``SNR_BAND``; the same in every
        recording. At the default, a ridge from 32 sensors to a log-mel spectrogram reaches r of 0.2 to 0.3 in a story it has not seen.
        ``-inf``: no response at all.
    seed : int
        All randomness comes from here. A recording depends on the seed, its subject and its story, not on what else is read.
    response_lag : float, optional
        Plant one known lag: every source follows the band envelopes (no onsets) exactly this many seconds later, in all listeners
        alike. None: response functions as described above.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    Notes
    -----
    Recordings are named by listener (``01`` ...) and story (run ``01`` ...); story k is the stimulus ``story-01.wav`` and so on.
    """

    name = "simulated"

    def __init__(
        self,
        root: str | os.PathLike | None = None,
        *,
        n_subjects: int = 4,
        minutes: float = 10.0,
        n_channels: int = 32,
        kind: str = "eeg",
        sfreq: float = 240.0,
        snr_db: float = -20.0,
        seed: int = 0,
        response_lag: float | None = None,
    ):
        super().__init__(root)
        if kind not in NOISE_LEVEL:
            raise ValueError(f"simulated: kind must be one of {', '.join(NOISE_LEVEL)}, got {kind!r}.")
        most = 256 if kind == "eeg" else 1000
        for label, value, good, expected in (
            ("n_subjects", n_subjects, n_subjects >= 1, "at least 1"),
            ("minutes", minutes, 0.25 <= minutes < math.inf, "at least 0.25, for a sentence or two"),
            ("n_channels", n_channels, 1 <= n_channels <= most, f"1 to {most} for {kind}"),
            ("sfreq", sfreq, 70 <= sfreq < math.inf, "at least 70 Hz, for the response and the noise reach 30 Hz"),
            ("snr_db", snr_db, snr_db < math.inf, "a number of decibel or -inf"),
            ("seed", seed, seed >= 0, "0 or more"),
            ("response_lag", response_lag, response_lag is None or abs(response_lag) <= 1, "None or -1 to 1 s"),
        ):
            if not good:
                raise ValueError(f"simulated: {label} must be {expected}, got {value}.")
        self.n_subjects, self.minutes, self.n_channels, self.kind = int(n_subjects), float(minutes), int(n_channels), kind
        self.sfreq, self.snr_db, self.seed = float(sfreq), float(snr_db), int(seed)
        self.response_lag = None if response_lag is None else float(response_lag)
        self.n_stories = max(1, round(self.minutes * 60 / STORY_SECONDS))
        self._stories: dict[str, Story] = {}
        self._drivers: dict[str, np.ndarray] = {}

    def recordings(self) -> list[Recording]:
        """List the recordings, sorted by uid."""
        subjects = [f"{s:0{max(2, len(str(self.n_subjects)))}d}" for s in range(1, self.n_subjects + 1)]
        return [Recording(self.name, subject, run=run) for subject in subjects for run in self._runs()]

    def read_raw(self, recording: Recording) -> mne.io.BaseRaw:
        """Make the recording: response to the story plus noise plus drift, in V or T."""
        audio = self._audio_name(recording)
        sound_onset, n_times = self._timing(recording)
        rng = self._rng("noise", recording.uid)
        info, positions = _eeg_cap(self.n_channels, self.sfreq) if self.kind == "eeg" else _meg_helmet(self.n_channels, self.sfreq)
        level = NOISE_LEVEL[self.kind]
        noise = _noise(rng, positions, n_times, self.sfreq, alpha=self.kind == "eeg")
        data = noise * (level / math.sqrt(band_power(noise, self.sfreq)))
        if self.snr_db > -math.inf:
            response = self._response(recording.subject, audio, sound_onset, n_times, positions)
            data += response * (level * 10 ** (self.snr_db / 20) / math.sqrt(band_power(response, self.sfreq)))
        data += DRIFT * level * _drift(rng, data.shape, self.sfreq)
        return mne.io.RawArray(data, info, verbose="error")

    def read_events(self, recording: Recording) -> pd.DataFrame:
        """Read what was heard: the sound, its sentences, words and phonemes."""
        audio = self._audio_name(recording)
        sound_onset, _ = self._timing(recording)
        story = self._story(audio)
        rows = [{"kind": "sound", "onset": sound_onset, "duration": len(story.audio) / AUDIO_SFREQ, "audio": audio, "audio_onset": 0.0}]
        for piece in story.spoken:
            row = {"kind": piece.kind, "onset": sound_onset + piece.onset, "duration": piece.duration, "text": piece.text}
            rows.append(row | {"audio": audio, "audio_onset": piece.onset, "sequence": piece.sequence})
        return events.make(rows, uid=recording.uid)

    def read_stimulus(self, audio: str) -> tuple[np.ndarray, float]:
        """Give the sound of a story, shape (1, n_samples), and its rate."""
        return self._story(audio).audio[None].copy(), float(AUDIO_SFREQ)

    def fingerprint(self, recording: Recording) -> str:
        """Identify a recording by all that it is made from, the code that makes it included."""
        self._audio_name(recording)
        made_from = [self.minutes, self.n_channels, self.kind, self.sfreq, repr(self.snr_db), self.response_lag]
        return digest(["recording", recording.uid, self.seed, *made_from, _code_identity()])

    def stimulus_fingerprint(self, audio: str) -> str:
        """Identify a story by its seed, its length and the code that makes it."""
        self._check_audio(audio)
        return digest(["stimulus", audio, self.seed, self.minutes, _code_identity()])

    def _runs(self) -> list[str]:
        return [f"{k:0{max(2, len(str(self.n_stories)))}d}" for k in range(1, self.n_stories + 1)]

    def _audio_name(self, recording: Recording) -> str:
        if recording not in self.recordings():
            raise ValueError(
                f"{recording.uid} is not one of the {self.n_subjects * self.n_stories} recordings simulated; take one from recordings()."
            )
        return f"story-{recording.run}.wav"

    def _check_audio(self, audio: str) -> None:
        names = [f"story-{run}.wav" for run in self._runs()]
        if audio not in names:
            raise FileNotFoundError(f"simulated: there is no stimulus {audio!r}; the stories are {', '.join(names)}.")

    def _rng(self, *labels: str) -> np.random.Generator:
        """A generator of its own for each label, so that nothing depends on the order of reading."""
        key = hashlib.sha256("\n".join(labels).encode()).digest()
        return np.random.default_rng([self.seed, *np.frombuffer(key, dtype="<u4").tolist()])

    def _timing(self, recording: Recording) -> tuple[float, int]:
        """Seconds from the first sample to the sound, which falls between samples; and number of samples."""
        rng = self._rng("timing", recording.uid)
        onset, tail = float(rng.uniform(3, 8)), float(rng.uniform(2, 5))
        duration = len(self._story(self._audio_name(recording)).audio) / AUDIO_SFREQ
        return onset, math.ceil((onset + duration + tail) * self.sfreq)

    def _story(self, audio: str) -> Story:
        if audio not in self._stories:
            self._check_audio(audio)
            duration = self.minutes * 60 / self.n_stories
            self._stories[audio] = tell_story(self._rng("story", audio), duration=duration, name=audio.removesuffix(".wav"))
        return self._stories[audio]

    def _story_drivers(self, audio: str) -> np.ndarray:
        if audio not in self._drivers:
            self._drivers[audio] = _make_drivers(self._story(audio))
        return self._drivers[audio]

    def _response(self, subject: str, audio: str, sound_onset: float, n_times: int, positions: np.ndarray) -> np.ndarray:
        """Response of the sensors to a story, shape (n_channels, n_times), on an arbitrary scale."""
        common, own = self._rng("response", "everyone"), self._rng("response", subject)

        def draw(*shape: int) -> np.ndarray:
            return (common.standard_normal(shape) + own.standard_normal(shape)) / math.sqrt(2)

        drivers = self._story_drivers(audio)
        weights = draw(N_SOURCES, len(drivers))
        peaks = draw(N_SOURCES, 3)
        maps = _smooth_root(positions, 0.05) @ draw(len(positions), N_SOURCES)
        latency = 0.012 * float(own.standard_normal())
        if self.response_lag is not None:
            weights[:, N_BANDS:] = 0
        delay = 0.0 if self.response_lag is None else self.response_lag
        times = np.arange(n_times) / self.sfreq - sound_onset - delay
        grid = np.arange(drivers.shape[1]) / DRIVER_SFREQ
        sources = np.stack([np.interp(times, grid, source, left=0, right=0) for source in weights @ drivers])
        if self.response_lag is None:
            functions = _response_functions(peaks, latency, self.sfreq)
            sources = scipy.signal.fftconvolve(sources, functions, axes=1)[:, :n_times]
        sources -= sources.mean(axis=1, keepdims=True)
        sources /= np.maximum(sources.std(axis=1, keepdims=True), 1e-12)
        return maps @ sources


def band_power(data: np.ndarray, sfreq: float) -> float:
    """Give the mean power per channel within ``SNR_BAND`` of data of shape (n_channels, n_times), in squared units of the data."""
    n_times = data.shape[1]
    spectrum = np.abs(scipy.fft.rfft(data, axis=1)) ** 2
    frequencies = np.fft.rfftfreq(n_times, 1 / sfreq)
    inside = (frequencies >= SNR_BAND[0]) & (frequencies <= SNR_BAND[1])
    return float(2 * spectrum[:, inside].sum() / n_times**2 / len(data))


def _code_identity() -> str:
    """What a simulation depends on besides its parameters."""
    code = b"".join(Path(file).read_bytes() for file in (__file__, speech_synthesis.__file__))
    return digest([hashlib.sha256(code).hexdigest(), np.__version__, scipy.__version__, mne.__version__])


def _make_drivers(story: Story) -> np.ndarray:
    """What the brain follows, at ``DRIVER_SFREQ`` from the first sample of the sound, each of unit variance.

    Returns
    -------
    drivers : array, shape (N_BANDS + 2, n_frames)
        Band envelopes compressed with the exponent 0.3, their summed rises, word onsets.
    """
    hop, window, n_fft = round(AUDIO_SFREQ / DRIVER_SFREQ), 400, 512
    padded = np.pad(story.audio, (window // 2, window))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][: len(story.audio) // hop + 1]
    power = np.abs(scipy.fft.rfft(frames * np.hanning(window).astype(np.float32), n_fft, axis=1)) ** 2
    bands = ((power @ _filterbank(n_fft).T) ** 0.15).T.astype(np.float64)  # power ** 0.15 is amplitude ** 0.3
    rises = np.maximum(np.diff(bands, axis=1, prepend=bands[:, :1]), 0).sum(axis=0)
    words = np.zeros(bands.shape[1])
    onsets = np.array([piece.onset for piece in story.spoken if piece.kind == "word"]) * DRIVER_SFREQ
    before = onsets.astype(int)
    np.add.at(words, before, 1 - (onsets - before))
    np.add.at(words, before + 1, onsets - before)
    drivers = np.concatenate([bands, [rises, words]])
    return drivers / np.maximum(drivers.std(axis=1, keepdims=True), 1e-12)


def _filterbank(n_fft: int) -> np.ndarray:
    """Triangles with equal steps in mel from 80 to 7600 Hz, shape (N_BANDS, n_fft // 2 + 1)."""
    lowest, highest = (2595 * math.log10(1 + hertz / 700) for hertz in (80.0, 7600.0))
    edges = 700 * (10 ** (np.linspace(lowest, highest, N_BANDS + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(n_fft, 1 / AUDIO_SFREQ)
    up = (frequencies - edges[:-2, None]) / np.diff(edges)[:-1, None]
    down = (edges[2:, None] - frequencies) / np.diff(edges)[1:, None]
    return np.maximum(0, np.minimum(up, down)).astype(np.float32)


def _response_functions(peaks: np.ndarray, latency: float, sfreq: float) -> np.ndarray:
    """Damped responses of 0 to 500 ms after the sound, shape (n_sources, n_taps), from (n_sources, 3) random heights."""
    times = np.arange(round(0.5 * sfreq)) / sfreq
    # Centre (s), width (s) and mean height: P1, N1 and P2 of the auditory response.
    centres, widths, heights = np.array([0.06, 0.115, 0.19]), np.array([0.018, 0.025, 0.04]), np.array([0.6, -1.0, 0.7])
    shapes = np.exp(-0.5 * ((times - centres[:, None] - latency) / widths[:, None]) ** 2)
    return (heights + 0.4 * peaks) @ shapes


def _smooth_root(positions: np.ndarray, length: float) -> np.ndarray:
    """Square root of a Gaussian covariance over sensor positions (m): times white noise it gives smooth maps."""
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=2)
    return np.linalg.cholesky(np.exp(-0.5 * (distance / length) ** 2) + 1e-6 * np.eye(len(positions)))


def _noise(rng: np.random.Generator, positions: np.ndarray, n_times: int, sfreq: float, *, alpha: bool) -> np.ndarray:
    """1/f noise, four fifths of its variance shared between neighbouring sensors, shape (n_channels, n_times)."""
    n_fast = scipy.fft.next_fast_len(n_times, real=True)
    frequencies = np.fft.rfftfreq(n_fast, 1 / sfreq)
    amplitude = 1 / np.sqrt(np.maximum(frequencies, 0.2))
    if alpha:
        amplitude = amplitude * (1 + 1.5 * np.exp(-0.5 * ((frequencies - 10) / 1.2) ** 2))
    amplitude[0] = 0
    shared = _smooth_root(positions, 0.06) @ _coloured(rng, len(positions), amplitude, n_fast)
    single = _coloured(rng, len(positions), amplitude, n_fast)
    return (math.sqrt(0.8) * shared + math.sqrt(0.2) * single)[:, :n_times]


def _drift(rng: np.random.Generator, shape: tuple[int, int], sfreq: float) -> np.ndarray:
    """Slow wandering below 0.2 Hz, each sensor for itself, standard deviation about 1."""
    n_fast = scipy.fft.next_fast_len(2 * shape[1], real=True)  # twice as long, else the end would meet the beginning
    frequencies = np.fft.rfftfreq(n_fast, 1 / sfreq)
    amplitude = np.where((frequencies > 0) & (frequencies < 0.2), 1 / np.maximum(frequencies, 0.005), 0)
    return _coloured(rng, shape[0], amplitude, n_fast)[:, : shape[1]]


def _coloured(rng: np.random.Generator, n_rows: int, amplitude: np.ndarray, n_times: int) -> np.ndarray:
    """Independent Gaussian noise of unit variance with a given amplitude spectrum, shape (n_rows, n_times)."""
    phases = rng.standard_normal((n_rows, len(amplitude), 2)) @ np.array([1, 1j])
    scale = n_times / math.sqrt(4 * float(np.sum(amplitude**2)))
    return scipy.fft.irfft(phases * amplitude * scale, n_times, axis=1)


def _eeg_cap(n_channels: int, sfreq: float) -> tuple[mne.Info, np.ndarray]:
    """Electrodes spread evenly over the smallest BioSemi cap that has enough of them."""
    size = next(size for size in (32, 64, 128, 256) if size >= n_channels)
    montage = mne.channels.make_standard_montage(f"biosemi{size}")
    available = montage.get_positions()["ch_pos"]
    everywhere = np.array(list(available.values()))
    chosen = [0]
    while len(chosen) < n_channels:  # the electrode farthest from those already chosen comes next
        distance = np.linalg.norm(everywhere[:, None] - everywhere[None, chosen], axis=2).min(axis=1)
        chosen.append(int(np.argmax(distance)))
    names = [list(available)[i] for i in sorted(chosen)]
    info = mne.create_info(names, sfreq, "eeg", verbose="error")
    info.set_montage(montage)
    return info, everywhere[sorted(chosen)]


def _meg_helmet(n_channels: int, sfreq: float) -> tuple[mne.Info, np.ndarray]:
    """Magnetometers in equal solid angles on a sphere, open below, pointing outwards."""
    radius, index = HEAD_RADIUS + 0.025, np.arange(n_channels) + 0.5
    height = 1 - 1.25 * index / n_channels  # down to a quarter below the equator
    angle = index * math.pi * (3 - math.sqrt(5))
    outwards = np.stack([np.sqrt(1 - height**2) * np.cos(angle), np.sqrt(1 - height**2) * np.sin(angle), height], axis=1)
    info = mne.create_info([f"SIM{k:03d}" for k in range(1, n_channels + 1)], sfreq, "mag", verbose="error")
    with info._unlock():
        info["dev_head_t"] = mne.transforms.Transform("meg", "head", np.eye(4))
    for channel, normal in zip(info["chs"], outwards, strict=True):
        first = np.cross(normal, [0.0, 0.0, 1.0] if abs(normal[2]) < 0.9 else [1.0, 0.0, 0.0])
        first /= np.linalg.norm(first)
        channel["loc"][:] = np.concatenate([radius * normal, first, np.cross(normal, first), normal])
        channel["coil_type"] = mne.io.constants.FIFF.FIFFV_COIL_POINT_MAGNETOMETER
        channel["coord_frame"] = mne.io.constants.FIFF.FIFFV_COORD_DEVICE
    return info, radius * outwards
