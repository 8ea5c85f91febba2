"""The signals of all recordings, from the cache; those that are not there are preprocessed, here or by workers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from brainspeech import spreading
from brainspeech.cache import Cache
from brainspeech.preprocess import PreprocessConfig, load_signal, signal_key
from brainspeech.records import Recording, Signal


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
        It is sent to the workers, if there are any. What reading adds to its ``notes`` is added here, whether a recording is read here,
        by a worker, or was read by an earlier run.
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
    missing = [recording for recording in recordings if cache.get("signals", signal_key(dataset, recording, config)) is None]
    if not missing:
        return
    root = getattr(dataset, "root", None)
    spreading.spread(
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


def _preprocess(shared: tuple[Any, PreprocessConfig, Cache], recording: Recording) -> None:
    """Bring a recording's signal into the cache, with what reading it adds to the notes."""
    dataset, config, cache = shared
    load_signal(dataset, recording, config, cache)
