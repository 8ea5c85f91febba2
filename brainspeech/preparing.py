"""All of a run that comes before its first fit: recordings, events, signals, segments, feature tracks."""

from __future__ import annotations

import inspect
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from brainspeech import datasets, features, folds, segments, signals, spreading
from brainspeech.cache import Cache
from brainspeech.listing import merged
from brainspeech.preprocess import filter_half_length
from brainspeech.recipe import Recipe, check, settle
from brainspeech.records import FeatureTrack, Recording, Segment, Signal
from brainspeech.subjects import select


@dataclass(frozen=True, eq=False)
class Prepared:
    """What every fit of a run starts from."""

    dataset: datasets.Dataset
    recordings: list[Recording]
    events: dict[str, pd.DataFrame]
    signals: dict[str, Signal]
    feature: features.Feature
    dropped: Counter


def select_subjects(recordings: Sequence[Recording], spec: str, *, published: Collection[int] | None = None) -> list[Recording]:
    """Keep the recordings of the subjects that a spec names.

    Parameters
    ----------
    spec : str
        ``all``; ``published``; ``first:3``; or numbers and ranges of the dataset's own subject numbers, ``1-5,7``.
    published : collection of int, optional
        The numbers of the subjects that the paper used, where the dataset knows them.
    """
    if not recordings:
        raise ValueError("The dataset lists no recording. Check its root (--root DIR) and what its recordings() gives.")
    keep = set(select({r.subject for r in recordings}, spec, published=published))
    return [r for r in recordings if r.subject in keep]


def load_dataset(recipe: Recipe, root: str | os.PathLike | None) -> datasets.Dataset:
    """Open the recipe's dataset at a folder."""
    if recipe.load is not None:
        first = next(iter(inspect.signature(recipe.load).parameters.values()))
        if root is None and first.default is first.empty:
            raise ValueError(f"{recipe.name}: say where the files are: --root DIR (the recipe's README says where they come from).")
        return recipe.load(root, **recipe.dataset.options)
    return datasets.load(recipe.dataset.name, root, **recipe.dataset.options)


def prepare(
    recipe: Recipe,
    root: str | os.PathLike | None,
    cache: Cache,
    *,
    progress: bool = True,
    n_jobs: int = 1,
    scheduler: str | os.PathLike | None = None,
) -> Prepared:
    """Read every recording's events, and preprocess its signal into the cache, once whatever the split.

    Parameters
    ----------
    n_jobs : int
        Processes of this machine over which recordings are spread; -1: one on each core. What comes out is the same.
    scheduler : str or path, optional
        Address or scheduler file of a dask cluster over which they are spread instead; see ``docs/howto/cluster.md``.
    """
    spreading.check(n_jobs, scheduler)
    if scheduler is not None and root is not None:
        root = Path(root).resolve()  # workers stand in other folders
    dataset = load_dataset(recipe, root)
    recordings = select_subjects(dataset.recordings(), recipe.subjects, published=dataset.published)
    tables = {recording.uid: dataset.read_events(recording) for recording in recordings}
    absent = missing_stimuli(dataset, tables)
    if absent:
        raise FileNotFoundError(f"{len(absent)} stimuli cannot be found, the first: {next(iter(absent.values()))}")
    dropped = excluded(dataset) + unselected(dataset, recordings, recipe.subjects)
    loaded = signals.load_signals(dataset, recordings, recipe.preprocess, cache, progress=progress, n_jobs=n_jobs, scheduler=scheduler)
    for signal in loaded.values():
        for reason, n in signal.dropped.items():
            dropped[f"channels: {reason}"] += n
        unplaced = int(np.isnan(signal.positions).any(axis=1).sum())
        if unplaced:
            dropped["channels: without a position, not seen by spatial attention"] += unplaced
    check_times(tables, {uid: signal.duration for uid, signal in loaded.items()})
    feature = features.build(recipe.feature.name, **recipe.feature.options)
    return Prepared(dataset, recordings, tables, loaded, feature, dropped)


def missing_stimuli(dataset: datasets.Dataset, tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Look for every stimulus that is heard, before hours are spent on the rest; {name: what is wrong}."""
    absent = {}
    for audio in sorted({audio for table in tables.values() for audio in table["audio"]}):
        try:
            dataset.stimulus_fingerprint(audio)
        except OSError as error:
            absent[audio] = str(error)
    return absent


def check_times(tables: Mapping[str, pd.DataFrame], durations: Mapping[str, float]) -> None:
    """Refuse events tables whose clock cannot be the recordings'; a single recording that broke off early is no reason.

    Raises
    ------
    ValueError
        If in most recordings most events lie past the end.
    """
    late = {uid: int((table["onset"] >= durations[uid]).sum()) for uid, table in tables.items()}
    bad = [uid for uid, n in late.items() if n > len(tables[uid]) / 2]
    if len(bad) > len(tables) / 2:
        uid = bad[0]
        raise ValueError(
            f"In {len(bad)} of {len(tables)} recordings most events begin after the end: {late[uid]} of {len(tables[uid])} in {uid}, the "
            f"last at {tables[uid]['onset'].max():.1f} s of {durations[uid]:.1f} s. Onsets are seconds from the first sample: are they in "
            "ms, or is the sampling rate wrong?"
        )


def unheard(tables: Mapping[str, pd.DataFrame], durations: Mapping[str, float]) -> list[str]:
    """Name recordings that go on for longer after their last event than up to it: a wrong sampling rate looks like that."""
    last = {uid: float((table["onset"] + table["duration"]).max()) for uid, table in tables.items() if len(table)}
    long = [uid for uid, end in last.items() if math.isfinite(durations[uid]) and durations[uid] > 1.8 * end]
    if not long:
        return []
    return [
        f"{len(long)} recordings are much longer than what was heard in them ({long[0]}: {durations[long[0]]:.0f} s, the last event ends "
        f"at {last[long[0]]:.0f} s): is the sampling rate right?"
    ]


def segment(recipe: Recipe, prepared: Prepared) -> list[segments.Segmentation]:
    """Cut every recording into segments with a split, once for each fold."""
    durations = {uid: signal.duration for uid, signal in prepared.signals.items()}
    guard = max(signal.filter_half_length for signal in prepared.signals.values())
    cut = [
        segments.make_segments(prepared.recordings, prepared.events, durations, config, guard=guard)
        for config in folds.configs(recipe, prepared.events.values())
    ]
    return folds.leave_subjects_out(cut[0]) if recipe.folds == "leave_subject_out" else cut


def compute_tracks(
    recipe: Recipe,
    prepared: Prepared,
    parts: Iterable[Iterable[Segment]],
    cache: Cache,
    *,
    progress: bool = True,
    n_jobs: int = 1,
    scheduler: str | os.PathLike | None = None,
) -> tuple[dict[tuple[str, float, float], FeatureTrack], dict[str, int]]:
    """Compute the feature of everything that is heard in some segments, into the cache; and count what was done to stimuli.

    ``n_jobs`` and ``scheduler`` as in ``prepare``.
    """
    root = prepared.dataset.root
    return features.compute_tracks(
        prepared.feature,
        features.intervals([s for part in parts for s in part], recipe.context),
        prepared.dataset.read_stimulus,
        fingerprint=prepared.dataset.stimulus_fingerprint,
        cache=cache,
        progress=progress,
        n_jobs=n_jobs,
        scheduler=scheduler,
        folders=[] if root is None else [root],
    )


def fill_cache(
    recipe: Recipe,
    root: str | os.PathLike | None,
    cache: Cache,
    *,
    progress: bool = True,
    n_jobs: int = 1,
    scheduler: str | os.PathLike | None = None,
) -> dict[str, float]:
    """Do all of a run that comes before training, so that the run finds it in the cache: signals, blocks, features; nothing is fitted.

    ``n_jobs`` and ``scheduler`` as in ``prepare``.

    Returns
    -------
    dict
        ``recordings``, ``hours`` and ``channels`` (the most of a recording) of signal, ``segments``, ``tracks`` and ``seconds`` of feature.
    """
    recipe = settle(recipe)
    check(recipe)
    prepared = prepare(recipe, root, cache, progress=progress, n_jobs=n_jobs, scheduler=scheduler)
    segs = folds.heard(recipe, segment(recipe, prepared))
    tracks, _ = compute_tracks(recipe, prepared, segs, cache, progress=progress, n_jobs=n_jobs, scheduler=scheduler)
    return {
        "recordings": len(prepared.signals),
        "hours": sum(signal.duration for signal in prepared.signals.values()) / 3600,
        "channels": max(len(signal.ch_names) for signal in prepared.signals.values()),
        "segments": len({s.stimulus_id for part in segs for s in part}),
        "tracks": len(tracks),
        "seconds": sum(track.stop - track.start for track in tracks.values()),
    }


def describe(recipe: Recipe, root: str | os.PathLike | None) -> dict:
    """Count subjects, recordings, hours and splits from events and headers alone: no signal is filtered, no feature is made."""
    recipe = settle(recipe)
    check(recipe, ["dataset"])
    dataset = load_dataset(recipe, root)
    recordings = select_subjects(dataset.recordings(), recipe.subjects, published=dataset.published)
    tables = {recording.uid: dataset.read_events(recording) for recording in recordings}
    durations = {recording.uid: dataset.duration(recording) for recording in recordings}
    ends = {uid: float((table["onset"] + table["duration"]).max()) if len(table) else 0.0 for uid, table in tables.items()}
    check_times(tables, durations)
    absent = missing_stimuli(dataset, tables)
    open_ended = sum(math.isinf(duration) for duration in durations.values())
    configs = folds.configs(recipe, tables.values())
    fold = segments.make_segments(recordings, tables, durations, configs[0], guard=filter_half_length(recipe.preprocess))
    return {
        "subjects": len({r.subject for r in recordings}),
        "recordings": len(recordings),
        "hours": sum(ends[uid] if math.isinf(duration) else duration for uid, duration in durations.items()) / 3600,
        **segments.describe(fold, tables),
        "dropped": dict(excluded(dataset) + unselected(dataset, recordings, recipe.subjects) + Counter(fold.dropped)),
        "warnings": [
            *merged(dataset.notes),
            *unheard(tables, durations),
            *fold.warnings,
            *([f"{len(absent)} stimuli are not here, and a run needs them ({next(iter(absent))} for one)."] if absent else []),
            *([f"{open_ended} recordings are open-ended: no file says their length; their last event does."] if open_ended else []),
            *([f"These are the counts of fold 1 of {len(configs)}."] if len(configs) > 1 else []),
            *(["Each subject's test windows are tested without that subject's training windows."] * (recipe.folds == "leave_subject_out")),
        ],
    }


def excluded(dataset: datasets.Dataset) -> Counter:
    """Count what the dataset knows of and does not offer, by reason."""
    return Counter(f"recordings: {reason}" for reason in dataset.excluded.values())


def unselected(dataset: datasets.Dataset, chosen: Sequence[Recording], spec: str) -> Counter:
    """Count the recordings that a choice of subjects leaves out."""
    return +Counter({f"recordings: left out by subjects={spec}": len(dataset.recordings()) - len(chosen)})
