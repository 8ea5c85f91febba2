"""A phantom: simulated listeners whose brains answer speech at a stated signal-to-noise ratio, seen by sensors around a head.

Biography
---------
Who: ``n_subjects`` listeners who never lived; all hear the same, one recording per listener and story (or run of sound files).

What was heard: stories of about 2.5 minutes at 16 kHz from the package's own synthesiser (``speech_synthesis``), with exact onsets of
sentences, words and phonemes; in each story one sentence comes back about once a minute. Or, with ``audio=FOLDER``, your own sounds with
their alignments (``speech_files``).

Device: an EEG cap from MNE's BioSemi montages (60 and 128 electrodes are usual), or a helmet of axial gradiometers with KIT's coils (208
are usual); ``sfreq`` Hz. A recording starts some seconds before the sound and ends some seconds after it, different in each, so that
recording time is never stimulus time.

Licence: none needed. Everything is made from ``seed`` (and your sounds), bit-identical on one machine.

Modelled
    *Head*: a sphere; MNE's forward solution from current dipoles to the sensors; for each listener other places and directions of the
    dipoles, another position of the head (turned by some 3 degrees, shifted by some 4 mm), another strength and latency of the answer.
    *Answer*: eight dipoles in both temporal cortices and the left frontal one (``phantom_head.RESPONDING``). They follow a filterbank with
    compression and adaptation, rises of its bands, phonemes by class, words, and the surprisal of both (``phantom_response``), each through
    damped response functions of up to 500 ms. None of these is a target that the package offers, so that a linear model of the target is
    not the right answer by construction. Half of the variance of all weights is common to all listeners, half the listener's own.
    *Background*: 300 dipoles all over the brain with a 1/f spectrum (and an alpha peak in EEG), white noise of each sensor.
    *Nuisances*, each of which can be left out (``phantom_noise.NUISANCES``): latency jitter and gain drift in time, distractors (bursts of
    rhythm, and temporal cortex that follows a talker who is not offered), line noise, blinks, heartbeat, slow drift, an amplifier jump, a
    dead channel. Blinks, heartbeats and jumps are marked by annotations of the raw; ``nuisances_of`` counts them.

Not modelled: the head's real shape, skull holes and anisotropy; a reference electrode (potentials are against infinity); a cortex with
folds, extended sources, feedback, states such as drowsiness; attention that is won and lost; meaning beyond the surprisal of words;
muscles, movement within a recording, eye movements other than blinks; background that is not Gaussian apart from the distractors. Figures
obtained here say how a method fares under these assumptions, not how well it decodes a brain.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pandas as pd
import scipy
import soundfile

from brainspeech import events
from brainspeech.cache import digest, file_identity
from brainspeech.records import Recording

from . import phantom_head, phantom_listener, phantom_noise, phantom_response, speech_files, speech_synthesis
from .base import Dataset
from .phantom_listener import NOISE_LEVEL, SIZES, Listener, Planted, make_listener
from .phantom_noise import NUISANCES, Disturbance
from .phantom_response import DRIVER_SFREQ, N_SOURCES
from .speech_synthesis import AUDIO_SFREQ, Story, tell_story

STORY_SECONDS = 150.0
MINUTES = 10.0
CALIBRATION = 4  # stimuli over which the size of the answer is measured

# At the easy ratio a ridge from 32 electrodes to a log-mel spectrogram reaches r of 0.2 to 0.3 in a story that it has not heard; at the
# realistic one 0.05 to 0.1, as on real EEG. The Gaussian setting is the one whose ideal observer is known exactly.
PRESETS: dict[str, dict] = {
    "easy": {"snr_db": -16.0, "nuisances": NUISANCES},
    "realistic": {"snr_db": -24.0, "nuisances": NUISANCES},
    "gaussian": {"snr_db": -25.0, "nuisances": ()},
}


class SimulatedDataset(Dataset):
    """Listeners, stories and recordings made in memory from a seed.

    Parameters
    ----------
    root : path, optional
        Not used: what is read from disk is ``audio`` alone.
    n_subjects : int
        Listeners.
    minutes : float, optional
        Minutes of sound that each listener hears, over all stories (10 if nothing is said). With ``audio`` the most that is heard: sounds
        are taken in the order of their names while they fit, and a warning counts those that are left out. None: all of them.
    n_channels : int
        Sensors.
    kind : {"eeg", "meg"}
        An EEG cap or a helmet of axial gradiometers.
    sfreq : float
        Sampling rate of the recordings in Hz, at least 70.
    preset : {"easy", "realistic", "gaussian"}
        Signal-to-noise ratio and nuisances, unless they are given: ``PRESETS``.
    snr_db : float, optional
        Power of the answer over power of background and sensor noise in decibel, both summed over the sensors and over ``SNR_BAND``, in the
        median listener (listeners differ by 1.5 dB; nuisances are not counted). ``-inf``: no answer at all.
    nuisances : tuple of str, "all" or "none", optional
        Names from ``NUISANCES``.
    seed : int
        All randomness comes from here. A recording depends on the seed, its subject and what it plays, not on what else is read.
    response_lag : float, optional
        Plant one known lag: every source follows the filterbank (no adaptation, no onsets, no words) exactly this many seconds later, in
        all listeners alike and at all times. None: response functions as described above.
    audio : path, optional
        Folder of sounds with alignments (``speech_files``) to be heard instead of synthesised stories.

    Raises
    ------
    ValueError
        If a parameter is out of its range.
    FileNotFoundError
        If the folder ``audio`` is not there or holds no sound.

    Notes
    -----
    Recordings are named by listener (``01`` ...) and run (``01`` ...). The stories ``story-01.wav`` ... have a run of their own each;
    sounds of a folder keep their names and are played one after the other with a pause of 1 to 3 s, in runs of about 2.5 minutes.
    """

    name = "simulated"

    def __init__(
        self,
        root: str | os.PathLike | None = None,
        *,
        n_subjects: int = 4,
        minutes: float | None = None,
        n_channels: int = 32,
        kind: str = "eeg",
        sfreq: float = 240.0,
        preset: str = "easy",
        snr_db: float | None = None,
        nuisances: Iterable[str] | str | None = None,
        seed: int = 0,
        response_lag: float | None = None,
        audio: str | os.PathLike | None = None,
    ):
        if root is not None:
            raise ValueError(
                f"The dataset 'simulated' is made in memory and reads no files, got root={os.fspath(root)!r}. Leave --root out; for a BIDS "
                f"folder: brainspeech run bids --root {os.fspath(root)}"
            )
        super().__init__()
        self.notes.append(f"Simulated {kind.upper()}: these figures say that the code works, not how well speech is decoded from a brain.")
        for label, choice, allowed in (("kind", kind, list(NOISE_LEVEL)), ("preset", preset, list(PRESETS))):
            if choice not in allowed:
                raise ValueError(f"simulated: {label} must be one of {', '.join(allowed)}, got {choice!r}.")
        snr_db = PRESETS[preset]["snr_db"] if snr_db is None else snr_db
        most = 256 if kind == "eeg" else 1000
        least = 0.0 if audio else 0.25
        checks: tuple[tuple[str, Any, bool, str], ...] = (
            ("n_subjects", n_subjects, n_subjects >= 1, "at least 1"),
            ("minutes", minutes, minutes is None or least <= minutes < math.inf, f"at least {least}, for a sentence or two"),
            ("n_channels", n_channels, 1 <= n_channels <= most, f"1 to {most} for {kind}"),
            ("sfreq", sfreq, 70 <= sfreq < math.inf, "at least 70 Hz, for the response and the noise reach 30 Hz"),
            ("snr_db", snr_db, snr_db < math.inf, "a number of decibel or -inf"),
            ("seed", seed, seed >= 0, "0 or more"),
            ("response_lag", response_lag, response_lag is None or abs(response_lag) <= 1, "None or -1 to 1 s"),
        )
        for label, value, good, expected in checks:
            if not good:
                raise ValueError(f"simulated: {label} must be {expected}, got {value}.")
        self.n_subjects, self.n_channels, self.kind = int(n_subjects), int(n_channels), kind
        self.sfreq, self.snr_db, self.seed, self.preset = float(sfreq), float(snr_db), int(seed), preset
        self.nuisances = phantom_noise.choose(PRESETS[preset]["nuisances"] if nuisances is None else nuisances)
        self.response_lag = None if response_lag is None else float(response_lag)
        self.audio = None if audio is None else Path(audio)
        self.minutes = None if minutes is None else float(minutes)
        if self.audio is None:
            seconds = 60 * (MINUTES if self.minutes is None else self.minutes)
            n_stories = max(1, round(seconds / STORY_SECONDS))
            self._lengths = {f"story-{run}.wav": seconds / n_stories for run in _numbered(n_stories)}
            self._programme = [[name] for name in self._lengths]
        else:
            self._alignments = speech_files.find_sounds(self.audio)
            self._lengths = speech_files.fit_into(self.minutes, self.audio, self._alignments)
            self._programme = speech_files.make_runs(self._lengths, seconds=STORY_SECONDS)
        self._stories: dict[str, Story] = {}
        self._drivers: dict[str, np.ndarray] = {}
        self._listeners: dict[str, Listener] = {}

    # ------------------------------------------------------------------------------------------------------------ what every dataset has

    def recordings(self) -> list[Recording]:
        """List the recordings, sorted by uid."""
        return [Recording(self.name, subject, run=run) for subject in _numbered(self.n_subjects) for run in _numbered(len(self._programme))]

    def stimuli(self) -> list[str]:
        """List the sounds that are heard."""
        return list(self._lengths)

    def read_raw(self, recording: Recording) -> mne.io.BaseRaw:
        """Make the recording, in V or T."""
        plays, n_times = self._timing(recording)
        listener = self._listener(recording.subject)
        level = NOISE_LEVEL[self.kind]
        data = phantom_noise.make_noise(self._rng("noise", recording.uid), listener.root, n_times, self.sfreq, alpha=self.kind == "eeg")
        disturbances = self._disturbances(recording, n_times)
        for name, disturbance in disturbances.items():
            data += SIZES[name] * self._map_of(name, recording, listener)[:, None] * disturbance.course
        if "slow_drift" in self.nuisances:
            data += phantom_noise.make_drift(self._rng("slow_drift", recording.uid), len(data), n_times, self.sfreq)
        data *= level
        if self.snr_db > -math.inf:
            data += listener.maps @ self._courses(recording, plays, n_times)
        if "distractors" in self.nuisances:
            data += listener.distracting @ self._distraction(recording, plays, n_times)
        dead = self._dead_channel(recording)
        if dead is not None:
            data[dead] = 0.0
        raw = mne.io.RawArray(data, listener.info, verbose="error")
        marked = [(onset, d.duration, name) for name, d in disturbances.items() for onset in d.onsets]
        if marked:
            raw.set_annotations(mne.Annotations(*zip(*sorted(marked), strict=True)), verbose="error")
        return raw

    def read_events(self, recording: Recording) -> pd.DataFrame:
        """Read what was heard: the sounds, their sentences, words and phonemes."""
        rows = []
        for audio, onset in self._timing(recording)[0]:
            rows.append({"kind": "sound", "onset": onset, "duration": self._lengths[audio], "audio": audio, "audio_onset": 0.0})
            for piece in self._story(audio).spoken:
                row = {"kind": piece.kind, "onset": onset + piece.onset, "duration": piece.duration, "text": piece.text}
                rows.append(row | {"audio": audio, "audio_onset": piece.onset, "sequence": piece.sequence})
        return events.make(rows, uid=recording.uid)

    def duration(self, recording: Recording) -> float:
        """Give the length of a recording in seconds, without making it."""
        return self._timing(recording)[1] / self.sfreq

    def read_stimulus(self, audio: str) -> tuple[np.ndarray, float]:
        """Give the sound of a story, shape (1, n_samples), or of a file, shape (n_rows, n_samples), and its rate."""
        self._check_audio(audio)
        if self.audio is None:
            return self._story(audio).audio[None].copy(), float(AUDIO_SFREQ)
        data, sfreq = soundfile.read(self.audio / audio, dtype="float32", always_2d=True)
        return np.ascontiguousarray(data.T), float(sfreq)

    def fingerprint(self, recording: Recording) -> str:
        """Identify a recording by all that it is made from, the code that makes it included."""
        heard = self._plays(recording)
        made_from = [self.n_channels, self.kind, self.sfreq, repr(self.snr_db), self.response_lag, list(self.nuisances), self._lengths]
        measured = [*heard, *list(self._lengths)[:CALIBRATION]] if self.audio else []
        sounds = [self.stimulus_fingerprint(audio) for audio in measured]
        return digest(["recording", recording.uid, self.seed, *made_from, sounds, _code_identity()])

    def stimulus_fingerprint(self, audio: str) -> str:
        """Identify a story by its seed, its length and the code that makes it; a file by its content and its alignment's."""
        self._check_audio(audio)
        if self.audio is not None:
            return digest(["sound", file_identity(self.audio / audio), file_identity(self._alignments[audio])])
        return digest(["stimulus", audio, self.seed, self._lengths[audio], _code_identity()])

    # --------------------------------------------------------------------------------------------------------- what only a phantom can say

    def planted(self, recording: Recording) -> Planted:
        """Say what was planted in a recording, but for the courses of its sources (``answer``)."""
        self._plays(recording)
        listener = self._listener(recording.subject)
        return phantom_listener.plant(listener, self.nuisances, kind=self.kind, sfreq=self.sfreq, silent=self.snr_db == -math.inf)

    def answer(self, recording: Recording, audio: str) -> tuple[np.ndarray, float, float]:
        """Give how the sources of a recording's listener answer a stimulus, whether or not this recording plays it.

        Returns
        -------
        courses : array, shape (n_sources, n_times)
            Straight lines run between samples; 0 before the first and after the last.
        sfreq : float
            Samples per second.
        start : float
            Time of the first sample in seconds after the first sample of the sound.
        """
        listener, drivers = self._listener(recording.subject), self._sound_drivers(audio)
        if self.response_lag is not None:
            return phantom_response.follow(listener.response, drivers) / listener.lag_scales[:, None], DRIVER_SFREQ, self.response_lag
        return phantom_response.mix(phantom_response.answer(listener.response, drivers), listener.scales), DRIVER_SFREQ, 0.0

    def nuisances_of(self, recording: Recording) -> dict[str, int]:
        """Count what disturbs a recording: blinks, heartbeats and jumps by their number, dead channels, and 1 for what is always there."""
        found = self._disturbances(recording, self._timing(recording)[1])
        counts = {name: len(found[name].onsets) if name in found and len(found[name].onsets) else 1 for name in self.nuisances}
        if "dead_channel" in counts:
            counts["dead_channel"] = int(self._dead_channel(recording) is not None)
        return counts | {name: 0 for name in ("line_noise",) if name in counts and name not in found}

    # ---------------------------------------------------------------------------------------------------------------- when what is played

    def _plays(self, recording: Recording) -> list[str]:
        if recording not in self.recordings():
            raise ValueError(
                f"{recording.uid} is not one of the {self.n_subjects * len(self._programme)} recordings simulated; "
                "take one from recordings()."
            )
        return self._programme[int(recording.run) - 1]

    def _check_audio(self, audio: str) -> None:
        if audio not in self._lengths:
            what = "stories" if self.audio is None else "sounds"
            raise FileNotFoundError(f"simulated: there is no stimulus {audio!r}; the {what} are {', '.join(self._lengths)}.")

    def _rng(self, *labels: str) -> np.random.Generator:
        """A generator of its own for each label, so that nothing depends on the order of reading."""
        key = hashlib.sha256("\n".join(labels).encode()).digest()
        return np.random.default_rng([self.seed, *np.frombuffer(key, dtype="<u4").tolist()])

    def _timing(self, recording: Recording) -> tuple[list[tuple[str, float]], int]:
        """Give (stimulus, seconds from the first sample to it), which falls between samples; and the number of samples."""
        heard = self._plays(recording)
        rng = self._rng("timing", recording.uid)
        onset, tail = float(rng.uniform(3, 8)), float(rng.uniform(2, 5))
        plays = []
        for audio in heard:
            plays.append((audio, onset))
            onset += self._lengths[audio] + float(rng.uniform(1, 3))
        last, start = plays[-1]
        return plays, math.ceil((start + self._lengths[last] + tail) * self.sfreq)

    def _story(self, audio: str) -> Story:
        if audio not in self._stories:
            self._check_audio(audio)
            if self.audio is None:
                story = tell_story(self._rng("story", audio), duration=self._lengths[audio], name=audio.removesuffix(".wav"))
            else:
                story = speech_files.load_story(self.audio / audio, self._alignments[audio])
            self._stories[audio] = story
        return self._stories[audio]

    def _sound_drivers(self, audio: str) -> np.ndarray:
        if audio not in self._drivers:
            story = self._story(audio)
            bands = phantom_response.filter_bands(story.audio) if self.response_lag is not None else None
            self._drivers[audio] = phantom_response.make_drivers(story) if bands is None else bands
        return self._drivers[audio]

    # ---------------------------------------------------------------------------------------------------------------- what the brain does

    def _listener(self, subject: str) -> Listener:
        if subject not in self._listeners:
            self._listeners[subject] = make_listener(
                subject,
                [self._sound_drivers(audio) for audio in list(self._lengths)[:CALIBRATION]],
                kind=self.kind,
                n_channels=self.n_channels,
                sfreq=self.sfreq,
                snr_db=self.snr_db,
                lag=self.response_lag is not None,
                draw=self._rng,
            )
        return self._listeners[subject]

    def _courses(self, recording: Recording, plays: list[tuple[str, float]], n_times: int) -> np.ndarray:
        """Give the courses of the answering sources over the recording, shape (N_SOURCES, n_times)."""
        times = np.arange(n_times) / self.sfreq
        if "latency_jitter" in self.nuisances and self.response_lag is None:
            times = times - 0.008 * phantom_noise.wander(self._rng("latency_jitter", recording.uid), n_times, self.sfreq, seconds=2.0)
        out = np.zeros((N_SOURCES, n_times))
        for audio, onset in plays:
            courses, sfreq, start = self.answer(recording, audio)
            grid = onset + start + np.arange(courses.shape[1]) / sfreq
            first, last = np.searchsorted(times, [grid[0] - 0.1, grid[-1] + 0.1])
            for row, course in zip(out, courses, strict=True):
                row[first:last] += np.interp(times[first:last], grid, course, left=0, right=0)
        if "gain_drift" in self.nuisances:
            decibel = 2.0 * phantom_noise.wander(self._rng("gain_drift", recording.uid), n_times, self.sfreq, seconds=60.0)
            out *= 10 ** (decibel / 20)
        return out

    def _distraction(self, recording: Recording, plays: list[tuple[str, float]], n_times: int) -> np.ndarray:
        """Give the courses of ``phantom_head.DISTRACTING``, shape (6, n_times)."""
        rng = self._rng("distractors", recording.uid)
        rhythms = [phantom_noise.make_rhythm(rng, n_times, self.sfreq, hertz=hertz) for hertz in (10.0, 10.2, 11.0, 20.0)]
        # The other talker: the same listener's answer to the same speech, backwards in time and turned round.
        still = self._courses(recording, plays, n_times)[:2, ::-1]
        talker = np.roll(still, int(rng.integers(n_times)), axis=1)
        return np.concatenate([np.stack(rhythms), talker])

    def _disturbances(self, recording: Recording, n_times: int) -> dict[str, Disturbance]:
        made = {
            name: make(self._rng(name, recording.uid), n_times, self.sfreq)
            for name, make in phantom_noise.DISTURBING.items()
            if name in self.nuisances
        }
        return {name: disturbance for name, disturbance in made.items() if disturbance is not None}

    def _map_of(self, name: str, recording: Recording, listener: Listener) -> np.ndarray:
        if name != "amplifier_jump":
            return listener.disturbing[name]
        return phantom_noise.draw_jump_map(self._rng("jumping channels", recording.uid), self.n_channels)

    def _dead_channel(self, recording: Recording) -> int | None:
        if "dead_channel" not in self.nuisances or self.n_channels < 8:
            return None
        return int(self._rng("dead_channel", recording.uid).integers(self.n_channels))


def _numbered(n: int) -> list[str]:
    return [f"{k:0{max(2, len(str(n)))}d}" for k in range(1, n + 1)]


def _code_identity() -> str:
    """What a simulation depends on besides its parameters."""
    modules = (phantom_head, phantom_listener, phantom_noise, phantom_response, speech_files, speech_synthesis)
    code = b"".join(Path(str(file)).read_bytes() for file in (__file__, *(module.__file__ for module in modules)))
    return digest([hashlib.sha256(code).hexdigest(), np.__version__, scipy.__version__, mne.__version__])
