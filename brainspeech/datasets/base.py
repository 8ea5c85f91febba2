"""What every dataset answers: who was recorded, the raw, what was heard, and the stimulus itself."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from brainspeech.cache import file_identity
from brainspeech.records import Recording

if TYPE_CHECKING:
    import mne


class Dataset(ABC):
    """A published collection, or a user's own.

    ``recordings``, ``read_raw`` and ``read_events`` are what a new dataset writes. ``read_stimulus`` and the two fingerprints have defaults
    for files below ``root``: events name a stimulus by its path relative to ``root``.

    Attributes
    ----------
    published : collection of int, optional
        Numbers of the subjects that the reference used; None: no such list is known.
    excluded : mapping from str to str
        What is known of and not among ``recordings()``, and why: ``{subject: reason}``, or ``{subject/run: reason}``.
    notes : list of str
        Sentences that belong in a report: what was repaired, and what the data cannot tell. Reading events may add to them.
    """

    name: str = ""
    published: Collection[int] | None = None

    def __init__(self, root: str | os.PathLike | None = None):
        self.root = None if root is None else Path(root)
        self.excluded: dict[str, str] = {}
        self.notes: list[str] = []
        if self.root is not None and self.root.is_file():
            raise ValueError(f"{self.name}: {self.root} is a file, expected the dataset's folder.")
        if self.root is not None and not self.root.is_dir():
            raise FileNotFoundError(f"{self.name}: the folder {self.root} does not exist.")

    @abstractmethod
    def recordings(self) -> list[Recording]:
        """List the recordings, sorted by uid; reads no samples."""

    @abstractmethod
    def read_raw(self, recording: Recording) -> mne.io.BaseRaw:
        """Open a recording as MNE reads it, units in MNE's convention (V, T), without preloading where the format allows."""

    @abstractmethod
    def read_events(self, recording: Recording) -> pd.DataFrame:
        """Read what was heard as a checked events table (see ``brainspeech.events``), onsets from sample 0 of the raw."""

    def duration(self, recording: Recording) -> float:
        """Give the length of a recording in seconds, without reading its samples.

        ``math.inf`` means open-ended: neither a header nor a sidecar file is there to say it. Here the header says it, through
        ``read_raw``; a dataset that can be described without its recordings looks into its sidecar files.
        """
        raw = self.read_raw(recording)
        return raw.n_times / raw.info["sfreq"]

    def read_stimulus(self, audio: str) -> tuple[np.ndarray, float]:
        """Read a stimulus.

        Parameters
        ----------
        audio : str
            Its name in the events table.

        Returns
        -------
        data : array, shape (n_rows, n_samples), float32
            One row per audio channel; or, where the stimulus is a feature track of the user, one row per feature.
        sfreq : float
            Samples per second.

        Raises
        ------
        FileNotFoundError
            If the file is missing.
        """
        import soundfile

        data, sfreq = soundfile.read(self._stimulus_path(audio), dtype="float32", always_2d=True)
        return np.ascontiguousarray(data.T), float(sfreq)

    def fingerprint(self, recording: Recording) -> str:
        """Identify the present content of a recording for the cache."""
        if self.root is None or not recording.path:
            raise RuntimeError(f"{recording.uid}: the dataset {self.name} has to say how its recordings are identified.")
        return file_identity(self.root / recording.path)

    def stimulus_fingerprint(self, audio: str) -> str:
        """Identify the present content of a stimulus for the cache."""
        return file_identity(self._stimulus_path(audio))

    def _stimulus_path(self, audio: str) -> Path:
        if self.root is None:
            raise RuntimeError(f"{self.name}: the stimulus {audio!r} cannot be read, the dataset has no root folder.")
        path = (self.root / audio).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise ValueError(f"{self.name}: the stimulus {audio!r} lies outside the dataset's folder {self.root}.")
        if not path.is_file():
            raise FileNotFoundError(f"{self.name}: the stimulus {audio!r} is missing, expected {path}.")
        return path
