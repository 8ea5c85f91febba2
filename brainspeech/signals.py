"""The signals of all recordings, from the cache; those that are not there are preprocessed, here or by workers."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from brainspeech import spreading
from brainspeech.cache import Cache
from brainspeech.listing import some
from brainspeech.preprocess import PreprocessConfig, load_signal
from brainspeech.records import Recording, Signal

RECORDING = r"\S+/\S+: "  # how a note of one recording begins
NAMED = 5  # recordings that a note of several names


def load_signals(
    dataset: Any,
    recordings: Sequence[Recording],
    config: PreprocessConfig,
    cache: Cache,
    *,
    progress: bool = True,
    n_jobs: int = 1,
    scheduler: str | os.PathLike | None = None,
) -> dict[str, Signal]:
    """Open the Signal of every recording, by its uid, and preprocess what the cache does not have.

    Parameters
    ----------
    dataset : Dataset
        It is sent to the workers, if there are any; what their reading adds to its ``notes`` is added here.
    n_jobs : int
        Processes of this machine over which recordings are spread; -1: one on each core.
    scheduler : str or path, optional
        Address or scheduler file of a dask cluster over which they are spread instead.

    Raises
    ------
    ValueError, OSError, RuntimeError
        As reading and preprocessing a recording, and ``spreading.spread``.
    """
    spreading.check(n_jobs, scheduler)
    if spreading.is_spread(n_jobs, scheduler):
        _fill(dataset, recordings, config, cache, progress=progress, n_jobs=n_jobs, scheduler=scheduler)
        cache, progress = spreading.Kept(cache.root, spreading.PATIENCE if scheduler else 0.0), False
    bar = tqdm(recordings, desc="preprocess", unit="recording", disable=not progress)
    return {recording.uid: load_signal(dataset, recording, config, cache) for recording in bar}


def _fill(
    dataset: Any,
    recordings: Sequence[Recording],
    config: PreprocessConfig,
    cache: Cache,
    *,
    progress: bool,
    n_jobs: int,
    scheduler: str | os.PathLike | None,
) -> None:
    """Let workers preprocess what the cache does not have."""
    kept = spreading.Kept(cache.root)
    missing = [recording for recording in recordings if not _is_kept(dataset, recording, config, kept)]
    if not missing:
        return
    root = getattr(dataset, "root", None)
    notes = spreading.spread(
        _preprocess,
        (dataset, config, Cache(cache.root.resolve())),
        {recording.uid: recording for recording in missing},
        n_jobs=n_jobs,
        scheduler=scheduler,
        folders=[cache.root] if root is None else [cache.root, root],
        done=len(recordings) - len(missing),
        desc="preprocess",
        unit="recording",
        progress=progress,
    )
    dataset.notes[:] = _merged([*dataset.notes, *(note for said in notes.values() for note in said)])


def _is_kept(dataset: Any, recording: Recording, config: PreprocessConfig, kept: spreading.Kept) -> bool:
    try:
        load_signal(dataset, recording, config, kept)
    except spreading.Missing:
        return False
    return True


def _preprocess(shared: tuple[Any, PreprocessConfig, Cache], recording: Recording) -> list[str]:
    """Bring a recording's signal into the cache, and give what reading it added to the notes."""
    dataset, config, cache = shared
    before = set(dataset.notes)
    load_signal(dataset, recording, config, cache)
    return [note for note in dataset.notes if note not in before]


def _merged(notes: Sequence[str]) -> list[str]:
    """Put notes that differ in their recording and in numbers only into one, which says of how many recordings it is, and of which."""
    alike: dict[str, list[str]] = {}
    for note in dict.fromkeys(notes):
        named = re.match(RECORDING, note)
        alike.setdefault(re.sub(r"\d+", "", note[named.end() :]) if named else note, []).append(note)
    return [note for same in alike.values() for note in _one_of(same)]


def _one_of(same: Sequence[str]) -> Sequence[str]:
    """Let the first of notes that are alike speak for all, if they are of several recordings."""
    names = list(dict.fromkeys(note.partition(": ")[0] for note in same))
    if len(names) == 1:
        return same
    numbers = " with other numbers" * (len({note.partition(": ")[2] for note in same}) > 1)
    return [f"{same[0]} The same{numbers} in {len(names) - 1} more: {some(names[1:], NAMED)}."]
