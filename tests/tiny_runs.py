"""Runs of seconds: simulated listeners, few sensors, narrow encoders, for the tests of the whole flow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from brainspeech import datasets
from brainspeech import recipe as recipes
from brainspeech.datasets.arrays import ArraysDataset
from brainspeech.recipe import Choice, Recipe

# The demo made small, as --set has it.
TINY = (
    "dataset.minutes=5",
    "dataset.n_subjects=2",
    "dataset.n_channels=6",
    "dataset.sfreq=70",
    "preprocess.sfreq=30",
    "segments.sfreq=30",
    "segments.stride=2",
    "feature.n_mels=8",
    "model.hidden=8",
    "model.depth=1",
    "model.n_virtual=6",
    "model.n_harmonics=3",
    "linear_clip.rank=4",
    "ridge.n_components=4",
    "ridge.lag_step=0.1",
    "train.batch_size=16",
    "train.max_epochs=2",
    "train.max_steps_per_epoch=4",
    "evaluate.n_permutations=199",
    "evaluate.n_bootstrap=99",
)


def tiny(*settings: str) -> Recipe:
    """Give the demo's recipe made small, with further changes."""
    return recipes.change(recipes.load("demo"), [*TINY, *settings])


def set_flags(settings: Iterable[str] = TINY) -> list[str]:
    """Give settings as arguments of the command line."""
    return [part for setting in settings for part in ("--set", setting)]


@dataclass(frozen=True)
class Listeners:
    """What simulated listeners heard and how their sensors answered, as arrays."""

    recordings: tuple[dict[str, Any], ...]
    stimuli: dict[str, tuple[np.ndarray, float]]


@cache
def listeners(*, n_subjects: int = 2, minutes: float = 5.0, **options: Any) -> Listeners:
    """Simulate listeners once per test session."""
    simulated = datasets.load("simulated", None, n_subjects=n_subjects, minutes=minutes, **({"n_channels": 6, "sfreq": 70.0} | options))
    recordings = []
    for recording in simulated.recordings():
        raw = simulated.read_raw(recording)
        recordings.append(
            {
                "subject": recording.subject,
                "run": recording.run,
                "signal": raw.get_data(),
                "sfreq": raw.info["sfreq"],
                "ch_names": tuple(raw.ch_names),
                "montage": None,
                "positions": np.array([ch["loc"][:3] for ch in raw.info["chs"]]),
                "events": simulated.read_events(recording),
            }
        )
    audios = sorted({audio for r in recordings for audio in r["events"]["audio"]})
    return Listeners(tuple(recordings), {audio: simulated.read_stimulus(audio) for audio in audios})


class Study:
    """A study of one's own: the arrays of simulated listeners, after ``change(recordings, stimuli)`` had its way with copies of them."""

    def __init__(self, change: Callable[[list[dict], dict], object] = lambda recordings, stimuli: None, **options: Any):
        given = listeners(**options)
        self.recordings = [r | {"signal": r["signal"].copy()} for r in given.recordings]
        self.stimuli = dict(given.stimuli)
        change(self.recordings, self.stimuli)

    def audios(self) -> list[str]:
        """Name what was heard."""
        return sorted({audio for r in self.recordings for audio in r["events"]["audio"]})

    def load(self, root: Any = None) -> ArraysDataset:
        """Open it, as a recipe does."""
        return ArraysDataset(root, name="study", recordings=self.recordings, stimuli=self.stimuli)

    def recipe(self, **changes: Any) -> Recipe:
        """Give a tiny recipe for it."""
        base = replace(tiny(), name="study", dataset=Choice("study"), load=self.load)
        return replace(base, **changes)
