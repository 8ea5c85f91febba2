"""The whole flow on one screen: from recordings to a report.

::

    dataset -> events, signals -> segments -> feature tracks -> batches -> fit every row -> scores -> report
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from brainspeech import (
    datasets,
    decoded,
    evaluate,
    features,
    ideal,
    prediction,
    processes,
    quality,
    report,
    rows,
    segments,
    signals,
    spreading,
    train,
)
from brainspeech.cache import Cache
from brainspeech.preprocess import filter_half_length
from brainspeech.provenance import provenance
from brainspeech.recipe import Recipe, check, settle
from brainspeech.records import FeatureTrack, Recording, Segment, Signal
from brainspeech.subjects import select

LOCK = ".lock"


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
    folds = [
        segments.make_segments(prepared.recordings, prepared.events, durations, config, guard=guard)
        for config in fold_configs(recipe, prepared.events.values())
    ]
    return leave_subjects_out(folds[0]) if recipe.folds == "leave_subject_out" else folds


def leave_subjects_out(whole: segments.Segmentation) -> list[segments.Segmentation]:
    """Make a fold for each subject with test windows: tested on that subject's, trained and validated on the others'.

    What was dropped is counted in the first fold only, since nothing is dropped twice.

    Raises
    ------
    RuntimeError
        If there are fewer than two subjects, or a fold has nothing to train or to validate on.
    """
    subjects = sorted({s.subject for s in whole.segments if s.split == "test"})
    if len({s.subject for s in whole.segments}) < 2:
        raise RuntimeError(f"leave_subject_out needs at least 2 subjects, got {len({s.subject for s in whole.segments})}.")
    folds = []
    for k, subject in enumerate(subjects):
        kept = [s for s in whole.segments if (s.split == "test") == (s.subject == subject)]
        absent = [split for split in ("train", "valid") if not any(s.split == split for s in kept)]
        if absent:
            raise RuntimeError(f"Without {subject} there is no window left in the split {', '.join(absent)}. Use more subjects.")
        folds.append(dataclasses.replace(whole, segments=kept, dropped=whole.dropped if k == 0 else {}))
    return folds


def scale_windows(segs: Sequence[Sequence[Segment]], fold: int) -> list[Segment]:
    """Give the training windows that other folds have of the subject left out of this one: the scale of its channels is fitted on them."""
    mine = {s.subject for s in segs[fold] if s.split == "test"} - {s.subject for s in segs[fold] if s.split == "train"}
    return [s for s in segs[(fold + 1) % len(segs)] if s.split == "train" and s.subject in mine]


def heard_segments(recipe: Recipe, folds: Sequence[segments.Segmentation]) -> list[list[Segment]]:
    """Give the segments of each fold, with spans that reach as far as the feature may hear."""
    segs = [fold.segments for fold in folds]
    return [features.window_spans(fold) for fold in segs] if recipe.context == "window" else segs


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
    segs = heard_segments(recipe, segment(recipe, prepared))
    tracks, _ = compute_tracks(recipe, prepared, segs, cache, progress=progress, n_jobs=n_jobs, scheduler=scheduler)
    return {
        "recordings": len(prepared.signals),
        "hours": sum(signal.duration for signal in prepared.signals.values()) / 3600,
        "channels": max(len(signal.ch_names) for signal in prepared.signals.values()),
        "segments": len({s.stimulus_id for part in segs for s in part}),
        "tracks": len(tracks),
        "seconds": sum(track.stop - track.start for track in tracks.values()),
    }


def fold_configs(recipe: Recipe, tables: Iterable[pd.DataFrame]) -> list[segments.SegmentConfig]:
    """Give the segment constants of each fold: one, or one for each stimulus left out."""
    if recipe.folds != "leave_one_out":
        return [recipe.segments]
    stimuli = sorted({audio for table in tables for audio in table.loc[table["kind"] == "sound", "audio"]})
    if len(stimuli) < 3:
        raise RuntimeError(f"{recipe.name}: leave_one_out needs at least 3 stimuli (train, valid, test), got {len(stimuli)}.")
    configs = []
    for k, test in enumerate(stimuli):
        assign = dict.fromkeys(stimuli, "train") | {stimuli[(k + 1) % len(stimuli)]: "valid", test: "test"}
        configs.append(dataclasses.replace(recipe.segments, assign=assign))
    return configs


def run(
    recipe: Recipe,
    *,
    root: str | os.PathLike | None = None,
    out: str | os.PathLike,
    cache: Cache,
    source: str = "",
    progress: bool = True,
    n_jobs: int = 1,
    scheduler: str | os.PathLike | None = None,
) -> evaluate.RetrievalReport:
    """Run a recipe from recordings to report.

    A run that was stopped goes on where it stopped when it is run again with the same constants into the same folder.

    Parameters
    ----------
    recipe : Recipe
        The constants.
    root : path, optional
        Folder of the dataset.
    out : path
        Run folder.
    cache : Cache
        Where preprocessed signals and feature tracks are kept.
    source : str
        Where the recipe came from, kept in the run folder so that ``evaluate`` finds it again.
    n_jobs, scheduler
        Where signals and features are computed, as in ``prepare``: no constant of the run.

    Raises
    ------
    ValueError
        If ``out`` holds a run with other constants, or something that is no run; if the recipe contradicts itself.
    """
    out = Path(out)
    spreading.check(n_jobs, scheduler)
    recipe = settle(recipe)
    check(recipe)
    processes.start()
    processes.check_equal("recipe", json.dumps(recipe.to_dict(), sort_keys=True))
    progress = progress and processes.is_first()
    lock = processes.alone(lambda: _hold(out, recipe, root=root, source=source))
    there = out / "recipe.json"
    processes.check_equal(f"run folder {out}", there.read_text() if there.is_file() else "")
    if lock is None:
        return _follow(recipe, root, out, cache)
    with lock:
        return _run(recipe, root, out, cache, progress=progress, n_jobs=n_jobs, scheduler=scheduler)


def _hold(out: Path, recipe: Recipe, *, root: str | os.PathLike | None, source: str) -> FileLock:
    """Claim a run folder, and keep other runs out of it."""
    claim(out, recipe, root=root, source=source)
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"Another run is writing into {out}. Wait for it, or give another folder (--out DIR).") from None
    return lock


def _follow(recipe: Recipe, root: str | os.PathLike | None, out: Path, cache: Cache) -> evaluate.RetrievalReport:
    """Take part in the fits of a run whose first process does the rest, and read its report."""
    prepared = processes.first(lambda: prepare(recipe, root, cache, progress=False))
    folds = segment(recipe, prepared)
    segs = heard_segments(recipe, folds)
    pools = _pools(recipe, _test_set(segs))
    tracks, _ = processes.first(lambda: compute_tracks(recipe, prepared, [*segs, *pools.values()], cache, progress=False))
    for k in range(len(folds)):
        fitter = _fitter(recipe, prepared, segs, pools, tracks, fold=k)
        for seed in recipe.seeds:
            for _ in fitter.rows(out, fold=k, n_folds=len(folds), seed=seed, progress=False):
                pass
    processes.wait()
    return report.load(out)


def _run(
    recipe: Recipe,
    root: str | os.PathLike | None,
    out: Path,
    cache: Cache,
    *,
    progress: bool,
    n_jobs: int,
    scheduler: str | os.PathLike | None,
) -> evaluate.RetrievalReport:
    """Go from recordings to report in a folder that is claimed and locked."""
    prepared = processes.first(lambda: prepare(recipe, root, cache, progress=progress, n_jobs=n_jobs, scheduler=scheduler))
    folds = segment(recipe, prepared)
    segments.save(out / "segments.json", folds)
    audits = [segments.audit(fold.segments, blocks=fold.blocks) for fold in folds]
    errors = [error for audit in audits for error in audit.errors]
    texts = sorted({text for audit in audits for text in audit.repeated_texts})
    if errors:
        cure = ""
        if recipe.segments.protocol == "paper":
            cure = " The paper's protocol cuts on each recording's own clock, which differs between these: use segments.protocol=clean."
        raise RuntimeError(f"The split leaks in {len(errors)} places, nothing was trained: {'; '.join(errors[:3])}{cure}")

    segs = heard_segments(recipe, folds)
    test = _test_set(segs)
    pools = _pools(recipe, test)
    heard = [*segs, *pools.values()]
    tracks, counts = processes.first(
        lambda: compute_tracks(recipe, prepared, heard, cache, progress=progress, n_jobs=n_jobs, scheduler=scheduler)
    )
    dropped = prepared.dropped + Counter({f"stimuli: {reason}": n for reason, n in counts.items()})
    warnings = [*recipe.notes, *prepared.dataset.notes]
    warnings += unheard(prepared.events, {uid: signal.duration for uid, signal in prepared.signals.items()})
    if recipe.folds == "leave_one_out":
        warnings.append(f"Splits assigned by name: each of the {len(folds)} stimuli is the test split once and the valid split once.")
    if recipe.folds == "leave_subject_out":
        warnings.append(
            f"Each of the {len(folds)} subjects was left out of training once and tested then; only the scale of its channels was fitted "
            "on its own windows, without labels."
        )
    seen, said = quality.survey(prepared.dataset, prepared.recordings, prepared.signals, prepared.events, cache, progress=progress)
    warnings += said
    scores: dict[str, list[list[np.ndarray]]] = {}
    histories: dict[str, list[dict]] = {}
    curves = []
    for k, fold in enumerate(folds):
        over = f" (over {len(folds)} folds)" if recipe.folds == "leave_one_out" else ""
        dropped += Counter({f"windows: {reason}{over}": n for reason, n in fold.dropped.items()})
        warnings += [w for w in fold.warnings if w not in warnings and not (recipe.folds and w.startswith("Splits assigned"))]
        fitter = _fitter(recipe, prepared, segs, pools, tracks, fold=k)
        fitter.data.statistics.save(out / ("statistics.json" if len(folds) == 1 else f"statistics-fold-{k + 1}.json"))
        for i, seed in enumerate(recipe.seeds):
            name = "" if len(folds) * len(recipe.seeds) == 1 else f" (fold {k + 1}, seed {seed})"
            for row, fitted in fitter.rows(out, fold=k, n_folds=len(folds), seed=seed, progress=progress):
                scores.setdefault(row, [[] for _ in recipe.seeds])[i].append(fitted.scores)
                if fitted.history:
                    histories[row + name] = fitted.history
        warnings += [w for w in fitter.warnings() if w not in warnings]
        if "ideal" in recipe.rows and ideal.can_observe(prepared.dataset):
            observed = ideal.ideal_scores(
                prepared.dataset,
                fitter.data.test.segments,
                test.candidates,
                prepared.signals,
                config=recipe.preprocess,
                baseline=recipe.batches.baseline,
            )
            for per_seed in scores.setdefault("ideal", [[] for _ in recipe.seeds]):
                per_seed.append(observed)
        if "ridge" in recipe.rows:
            curves.append(fitter.lag_curve(progress=progress))
        if k == 0:
            seen["attribution"] = fitter.attribution(progress=progress)
    stacked = {row: [_stack(parts, folds) for parts in per_seed] for row, per_seed in scores.items()}
    result = evaluate.evaluate(
        stacked,
        test,
        config=recipe.evaluate,
        title=recipe.title,
        dropped=dict(dropped),
        warnings=warnings,
        provenance=provenance(recipe.to_dict(), repeated_texts=texts, feature=prepared.feature.config()),
        lag_curve={lag: float(np.mean([curve[lag] for curve in curves])) for lag in rows.LAGS} if curves else None,
        lag_metric="top-10 accuracy of a ridge refitted at this lag",
        folds=len(folds),
        seeds=list(recipe.seeds),
    )
    closed = ideal.gap_closed(result.rows, metric="top1")
    if closed is not None:
        seen["gap_closed"] = closed
        result.warnings.append(f"From ridge to the ideal observer, the encoder closes {closed:.0%} of the gap (top-1).")
    seen["decoded"] = decoded.describe(
        stacked[result.curves["lead"]],
        test,
        segs,
        config=recipe.evaluate,
        sets=recipe.evaluate.regression,
        events=prepared.events,
        anchor=-recipe.segments.tmin,
        language=recipe.evaluate.language,
        spacy_model=recipe.evaluate.spacy_model,
        phrase_model=recipe.evaluate.phrase_model,
        progress=progress,
    )
    result = dataclasses.replace(result, curves=result.curves | evaluate.plain(seen))
    report.save_ranks(out, stacked, test)
    report.write(result, out, history=histories)
    processes.wait()
    return result


def _test_set(segs: Sequence[Sequence[Segment]]) -> prediction.TestSet:
    """Collect the test windows of all folds and what was heard in them."""
    return prediction.TestSet.from_segments([s for fold in segs for s in fold if s.split == "test"])


def _pools(recipe: Recipe, test: prediction.TestSet) -> dict[str, list[Segment]]:
    """Give the candidates: under "" what was heard, under other names what is scored in its place."""
    return {"": list(test.candidates)} | {name: _rename(test.candidates, names) for name, names in recipe.rescore.items()}


def _fitter(
    recipe: Recipe,
    prepared: Prepared,
    segs: Sequence[Sequence[Segment]],
    pools: Mapping[str, Sequence[Segment]],
    tracks: Mapping[tuple[str, float, float], FeatureTrack],
    *,
    fold: int,
) -> rows.Fitter:
    """Put together what the rows of a fold are fitted on."""
    unlabelled = scale_windows(segs, fold) if recipe.folds == "leave_subject_out" else []
    return rows.Fitter(recipe, segs[fold], pools, prepared.signals, tracks, prepared.feature.fill, unlabelled=unlabelled)


def excluded(dataset: datasets.Dataset) -> Counter:
    """Count what the dataset knows of and does not offer, by reason."""
    return Counter(f"recordings: {reason}" for reason in dataset.excluded.values())


def unselected(dataset: datasets.Dataset, chosen: Sequence[Recording], spec: str) -> Counter:
    """Count the recordings that a choice of subjects leaves out."""
    return +Counter({f"recordings: left out by subjects={spec}": len(dataset.recordings()) - len(chosen)})


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
    configs = fold_configs(recipe, tables.values())
    fold = segments.make_segments(recordings, tables, durations, configs[0], guard=filter_half_length(recipe.preprocess))
    return {
        "subjects": len({r.subject for r in recordings}),
        "recordings": len(recordings),
        "hours": sum(ends[uid] if math.isinf(duration) else duration for uid, duration in durations.items()) / 3600,
        **segments.describe(fold, tables),
        "dropped": dict(excluded(dataset) + unselected(dataset, recordings, recipe.subjects) + Counter(fold.dropped)),
        "warnings": [
            *dataset.notes,
            *unheard(tables, durations),
            *fold.warnings,
            *([f"{len(absent)} stimuli are not here, and a run needs them ({next(iter(absent))} for one)."] if absent else []),
            *([f"{open_ended} recordings are open-ended: no file says their length; their last event does."] if open_ended else []),
            *([f"These are the counts of fold 1 of {len(configs)}."] if len(configs) > 1 else []),
            *(["Each subject's test windows are tested without that subject's training windows."] * (recipe.folds == "leave_subject_out")),
        ],
    }


def claim(out: Path, recipe: Recipe, *, root: str | os.PathLike | None, source: str) -> None:
    """Write recipe.json into the run folder, or check that the run that is there has the same constants."""
    constants = recipe.to_dict()
    mine = {"recipe": constants, "root": None if root is None else str(Path(root).resolve()), "source": source}
    path = out / "recipe.json"
    if path.is_file():
        try:
            there = json.loads(path.read_text())
        except ValueError as error:
            raise RuntimeError(f"{path} is damaged ({error}). Delete {out} and run again.") from error
        # How scores are tested changes no fit.
        differing = [
            name for name in _differing(_comparable(there.get("recipe", {})), _comparable(constants)) if not name.startswith("evaluate.")
        ]
        # A run that ended before its first fit, by an error in its constants for one, has nothing to lose.
        if differing and any(path.name not in ("recipe.json", "segments.json", LOCK) for path in out.iterdir()):
            raise ValueError(
                f"{out} holds a run with other constants ({', '.join(differing)}). Give another folder (--out DIR), or delete this one."
            )
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no run (no recipe.json). Give another folder (--out DIR).")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, not a folder. Give another folder (--out DIR).")
    out.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(mine, indent=1))
    temporary.replace(path)


def _comparable(constants: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out how a fit is run, which changes nothing of what comes out, and fill in constants that are younger than the run."""
    section = {**dataclasses.asdict(train.TrainConfig()), **constants.get("train", {})}
    free = [name for name in train.HOW if name != "resident" or section[name] != "half"]
    young: dict[str, Any] = {"target_encoder": None, "variants": {}}
    return young | {**constants, "train": json.loads(json.dumps({k: v for k, v in section.items() if k not in free}))}


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Name the constants that differ: ``train.lr (was 0.001, now 0.0003)``."""
    found = []
    for name in sorted({*there, *here}):
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{name}.{inner}" for inner in _differing(old, new)]
        elif old != new:
            found.append(f"{name} (was {old}, now {new})")
    return found


def _stack(parts: Sequence[np.ndarray], folds: Sequence[segments.Segmentation]) -> np.ndarray:
    """Put the scores of all folds under each other, shape (W, N)."""
    rows = [sum(s.split == "test" for s in fold.segments) for fold in folds]
    return np.concatenate([np.broadcast_to(part, (n, part.shape[-1])) for part, n in zip(parts, rows, strict=True)])


def _rename(segs: Sequence[Segment], names: Mapping[str, str]) -> list[Segment]:
    """Put other stimuli in place of those that were heard."""
    unknown = sorted({span.audio for s in segs for span in s.spans} - set(names))
    if unknown:
        raise ValueError(f"rescore names no stimulus in place of {', '.join(unknown)}.")
    return [
        dataclasses.replace(
            s,
            spans=tuple(dataclasses.replace(span, audio=names[span.audio]) for span in s.spans),
            stimulus_id="|".join(names[span.audio] for span in s.spans) + " for " + s.stimulus_id,
        )
        for s in segs
    ]
