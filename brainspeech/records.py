"""The nouns that travel between the rooms: Recording, Span, Segment, Signal, FeatureTrack.

All are frozen and checked on creation. Recording, Span and Segment carry no arrays, so a whole dataset of them can be printed, saved
as JSON and compared before a single sample is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class Recording:
    """One continuous raw file of one subject.

    Parameters
    ----------
    dataset : str
        Name of the published collection.
    subject : str
        Subject label without ``sub-``.
    session, run : str
        Labels without ``ses-`` and ``run-``; empty where the dataset has none.
    path : str
        The file relative to the dataset's root; empty where the recording is made in memory.
    """

    dataset: str
    subject: str
    session: str = ""
    run: str = ""
    path: str = ""

    def __post_init__(self) -> None:
        if not self.dataset or not self.subject:
            raise ValueError(f"A recording needs a dataset and a subject, got {self.dataset!r} and {self.subject!r}.")
        for name in ("dataset", "subject", "session", "run"):
            if "/" in getattr(self, name):
                raise ValueError(f"The {name} of a recording must not contain '/', got {getattr(self, name)!r}.")

    @property
    def uid(self) -> str:
        """Identity over all datasets, such as ``gwilliams2022/sub-01/ses-0/run-1``."""
        parts = [self.dataset, f"sub-{self.subject}"]
        parts += [f"ses-{self.session}"] if self.session else []
        parts += [f"run-{self.run}"] if self.run else []
        return "/".join(parts)


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a window during which one stimulus is heard.

    Parameters
    ----------
    audio : str
        Name of the stimulus.
    start, stop : float
        Interval of the stimulus (seconds) that the feature extractor may see: the block's cut of the sound.
    onset : float
        Seconds from the first sample of the window to ``start``; negative when the block began before the window.
    """

    audio: str
    start: float
    stop: float
    onset: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.stop) and math.isfinite(self.onset)):
            raise ValueError(f"A span of {self.audio!r} needs finite times, got {self.start}, {self.stop}, {self.onset}.")
        if not 0 <= self.start < self.stop:
            raise ValueError(f"A span of {self.audio!r} needs 0 <= start < stop, got {self.start} and {self.stop} s.")

    @property
    def key(self) -> tuple[str, float, float]:
        """What the feature track of this span is kept under."""
        return (self.audio, self.start, self.stop)


@dataclass(frozen=True, slots=True)
class Segment:
    """The window of a few seconds that is one example.

    Parameters
    ----------
    recording, subject : str
        Uid of the recording, and its subject with the dataset in front (``gwilliams2022/sub-01``).
    onset, duration : float
        Seconds from the first sample of the raw to the first sample of the window, and its length.
    stimulus_id : str
        Same audio and same interval, whoever heard it: same id.
    block : str
        Uid of the block that the window lies in; the block alone decides the split.
    text, word : str
        The words inside the window, and the one at its anchor (empty on a grid).
    split : {"train", "valid", "test"}
        Side of the split.
    spans : tuple of Span
        What is heard in the window; empty means silence.
    """

    recording: str
    subject: str
    onset: float
    duration: float
    stimulus_id: str
    block: str
    text: str
    word: str
    split: str
    spans: tuple[Span, ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.onset) and self.onset >= 0 and math.isfinite(self.duration) and self.duration > 0):
            raise ValueError(f"{self.recording}: a segment needs onset >= 0 and duration > 0, got {self.onset} and {self.duration} s.")
        if self.split not in SPLITS:
            raise ValueError(f"{self.recording}: split must be one of {', '.join(SPLITS)}, got {self.split!r}.")


@dataclass(frozen=True, slots=True, eq=False)
class Signal:
    """One recording after preprocessing: brain channels only, in physical units, not scaled.

    Parameters
    ----------
    uid : str
        The recording's uid.
    data : array, shape (n_channels, n_times), float32
        Volt (EEG), tesla (magnetometers, axial gradiometers) or tesla per metre (planar gradiometers); finite; channel mean removed.
    sfreq : float
        Sampling rate in Hz.
    ch_names, ch_types : tuple of str
        MNE's names and types.
    positions : array, shape (n_channels, 2), float32
        Sensor layout scaled to [0, 1]; NaN where the file has no position, never 0.
    filter_half_length : float
        Seconds by which the longest zero-phase filter reaches to either side; 0 where none was used.
    dropped : mapping from str to int
        Channels left out and why.
    """

    uid: str
    data: np.ndarray
    sfreq: float
    ch_names: tuple[str, ...]
    ch_types: tuple[str, ...]
    positions: np.ndarray
    filter_half_length: float = 0.0
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n_channels = len(self.ch_names)
        if self.data.ndim != 2 or self.data.shape[0] != n_channels or self.data.dtype != np.float32:
            raise ValueError(
                f"{self.uid}: expected float32 data of shape ({n_channels}, n_times), got {self.data.dtype} {self.data.shape}."
            )
        if self.positions.shape != (n_channels, 2):
            raise ValueError(f"{self.uid}: expected positions of shape ({n_channels}, 2), got {self.positions.shape}.")
        if len(self.ch_types) != n_channels or len(set(self.ch_names)) != n_channels:
            raise ValueError(f"{self.uid}: channel names must be unique and have one type each, got {self.ch_names}.")
        if not self.sfreq > 0:
            raise ValueError(f"{self.uid}: sfreq must be a positive number of Hz, got {self.sfreq}.")
        object.__setattr__(self, "dropped", MappingProxyType(dict(self.dropped)))

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return self.data.shape[1] / self.sfreq


@dataclass(frozen=True, slots=True, eq=False)
class FeatureTrack:
    """A feature of one interval of one stimulus at the feature's own rate; it has seen no audio outside that interval.

    Parameters
    ----------
    name : str
        Name of the feature.
    audio : str
        Name of the stimulus.
    start, stop : float
        Interval in seconds of the stimulus.
    data : array, shape (n_features, n_frames), float32
        n_frames = round((stop - start) x sfreq); finite.
    sfreq : float
        Frames per second.
    """

    name: str
    audio: str
    start: float
    stop: float
    data: np.ndarray
    sfreq: float

    def __post_init__(self) -> None:
        if self.data.ndim != 2 or self.data.dtype != np.float32 or not self.data.shape[1]:
            raise ValueError(
                f"{self.name} of {self.audio!r}: expected float32 data of shape (n_features, n_frames), "
                f"got {self.data.dtype} {self.data.shape}."
            )

    @property
    def key(self) -> tuple[str, float, float]:
        """What the track is kept under; the same as ``Span.key``."""
        return (self.audio, self.start, self.stop)
