"""Work that is given to other processes; it imports little, so that they start fast."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from brainspeech.features.base import Feature


def look(shared, item):
    """Say where an item was done, with how many threads, and how often what is shared was loaded there."""
    shared["loaded"] = shared.get("loaded") or [os.getpid(), time.monotonic_ns()]
    time.sleep(0.05)
    return item * shared["factor"], os.getpid(), os.environ.get("OMP_NUM_THREADS"), tuple(shared["loaded"])


def fail(shared, item):
    """Fail at the item that is shared."""
    if item == shared["at"]:
        if shared["how"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise {"value": ValueError, "key": KeyError, "file": FileNotFoundError}[shared["how"]]("not as it should be")
    return item


def write(shared, item):
    """Write something that is removed on the way out, and take long."""
    half = Path(shared) / f"half-{item}"
    half.touch()
    try:
        time.sleep(60)
    finally:
        half.unlink()


class Loaded(Feature):
    """Mean of each tenth of a second, of a feature that has something to load first: a file says that it was."""

    name = "loaded"

    def __init__(self, folder):
        self.folder, self.network = str(folder), None

    def config(self):
        return {"name": self.name, "version": 1}

    def __call__(self, sound, sfreq):
        if self.network is None:
            self.network = np.ones(1)
            (Path(self.folder) / f"loaded-{os.getpid()}-{time.monotonic_ns()}").touch()
        time.sleep(0.05)
        n = round(sound.shape[1] / sfreq * 10)
        return np.stack([part.mean(1) for part in np.array_split(sound, n, axis=1)], 1), 10.0


def read(audio):
    """Give a stimulus, six seconds of numbers that depend on its name."""
    return np.random.default_rng(int(audio[1:])).standard_normal((1, 600)).astype(np.float32), 100.0
