"""The whole flow on one screen: from recordings to a report.

::

    dataset -> events, signals -> segments -> feature tracks -> batches -> fit every row -> scores -> report
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from brainspeech import datasets, evaluate, features, report, rows, segments
from brainspeech.cache import Cache
from brainspeech.preprocess import filter_half_length, load_signal
from brainspeech.provenance import provenance
from brainspeech.recipe import Recipe
from brainspeech.records import Recording, Segment, Signal


@dataclass(frozen=True, eq=False)
class Prepared:
    """What every fit of a run starts from."""

    dataset: datasets.Dataset
    recordings: list[Recording]
    events: dict[str, pd.DataFrame]
    signals: dict[str, Signal]
    feature: features.Feature
    dropped: Counter


def select_subjects(recordings: Sequence[Recording], spec: str) -> list[Recording]:
    """Keep the recordings of the subjects that a spec names.

    Parameters
    ----------
    spec : str
        ``all``; ``first:3``; or numbers and ranges of the dataset's own subject numbers, ``1-5,7``.
    """
    subjects = sorted({r.subject for r in recordings})
    if spec == "all":
        return list(recordings)
    if spec.startswith("first:") and spec[6:].isdigit() and int(spec[6:]) > 0:
        keep = set(subjects[: int(spec[6:])])
    else:
        wanted: set[int] = set()
        for part in spec.split(","):
            low, dash, high = part.strip().partition("-")
            if not low.isdigit() or (dash and not high.isdigit()):
                raise ValueError(f"Subjects must be all, first:N or numbers such as 1-5,7; got {spec!r}.")
            wanted |= set(range(int(low), int(high if dash else low) + 1))
        numbers = {s: "".join(c for c in s if c.isdigit()) for s in subjects}
        keep = {s for s, number in numbers.items() if number and int(number) in wanted}
        absent = wanted - {int(numbers[s]) for s in keep}
        if absent:
            raise ValueError(f"Subjects {sorted(absent)} are not in the dataset; it has {', '.join(subjects)}.")
    return [r for r in recordings if r.subject in keep]


def load_dataset(recipe: Recipe, root: str | os.PathLike | None) -> datasets.Dataset:
    """Open the recipe's dataset at a folder."""
    if recipe.load is not None:
        return recipe.load(root, **recipe.dataset.options)
    return datasets.load(recipe.dataset.name, root, **recipe.dataset.options)


def prepare(recipe: Recipe, root: str | os.PathLike | None, cache: Cache, *, progress: bool = True) -> Prepared:
    """Read every recording's events, and preprocess its signal into the cache, once whatever the split."""
    dataset = load_dataset(recipe, root)
    recordings = select_subjects(dataset.recordings(), recipe.subjects)
    dropped: Counter = Counter()
    signals, tables = {}, {}
    for recording in tqdm(recordings, desc="preprocess", unit="recording", disable=not progress):
        tables[recording.uid] = dataset.read_events(recording)
        signals[recording.uid] = load_signal(dataset, recording, recipe.preprocess, cache)
        for reason, n in signals[recording.uid].dropped.items():
            dropped[f"channels: {reason}"] += n
    feature = features.build(recipe.feature.name, **recipe.feature.options)
    return Prepared(dataset, recordings, tables, signals, feature, dropped)


def segment(recipe: Recipe, prepared: Prepared) -> list[segments.Segmentation]:
    """Cut every recording into segments with a split, once for each fold."""
    durations = {uid: signal.duration for uid, signal in prepared.signals.items()}
    guard = max(signal.filter_half_length for signal in prepared.signals.values())
    return [
        segments.make_segments(prepared.recordings, prepared.events, durations, config, guard=guard)
        for config in fold_configs(recipe, prepared.events.values())
    ]


def fold_configs(recipe: Recipe, tables: Iterable[pd.DataFrame]) -> list[segments.SegmentConfig]:
    """Give the segment constants of each fold: one, or one for each stimulus left out."""
    if recipe.folds is None:
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

    Raises
    ------
    ValueError
        If ``out`` holds a run with other constants, or something that is no run.
    """
    out = Path(out)
    claim(out, recipe, root=root, source=source)
    prepared = prepare(recipe, root, cache, progress=progress)
    folds = segment(recipe, prepared)
    segments.save(out / "segments.json", folds)
    audits = [segments.audit(fold.segments, blocks=fold.blocks) for fold in folds]
    errors = [error for audit in audits for error in audit.errors]
    if errors:
        raise RuntimeError(f"The split leaks in {len(errors)} places, nothing was trained: " + "; ".join(errors[:3]))

    segs = [fold.segments for fold in folds]
    if recipe.context == "window":
        segs = [features.window_spans(fold) for fold in segs]
    test = evaluate.TestSet.from_segments([s for fold in segs for s in fold if s.split == "test"])
    pools = {"": test.candidates} | {name: _rename(test.candidates, names) for name, names in recipe.rescore.items()}
    heard = [s for part in [*segs, *pools.values()] for s in part]
    tracks, counts = features.compute_tracks(
        prepared.feature,
        features.intervals(heard, recipe.context),
        prepared.dataset.read_stimulus,
        fingerprint=prepared.dataset.stimulus_fingerprint,
        cache=cache,
        progress=progress,
    )
    dropped = prepared.dropped + Counter({f"stimuli: {reason}": n for reason, n in counts.items()})
    warnings = list(recipe.notes)
    if recipe.folds:
        warnings.append(f"Splits assigned by name: each of the {len(folds)} stimuli is the test split once and the valid split once.")
    scores: dict[str, list[list[np.ndarray]]] = {}
    histories: dict[str, list[dict]] = {}
    curves = []
    for k, fold in enumerate(folds):
        dropped += Counter({f"windows: {reason}": n for reason, n in fold.dropped.items()})
        warnings += [w for w in fold.warnings if w not in warnings and not (recipe.folds and w.startswith("Splits assigned"))]
        fitter = rows.Fitter(recipe, segs[k], pools, prepared.signals, tracks, prepared.feature.fill)
        fitter.data.statistics.save(out / ("statistics.json" if len(folds) == 1 else f"statistics-fold-{k + 1}.json"))
        for i, seed in enumerate(recipe.seeds):
            name = "" if len(folds) * len(recipe.seeds) == 1 else f" (fold {k + 1}, seed {seed})"
            for row, fitted in fitter.rows(out, fold=k, seed=seed, progress=progress):
                scores.setdefault(row, [[] for _ in recipe.seeds])[i].append(fitted.scores)
                if fitted.history:
                    histories[row + name] = fitted.history
        warnings += [w for w in fitter.warnings() if w not in warnings]
        if "ridge" in recipe.rows:
            curves.append(fitter.lag_curve(progress=progress))
    result = evaluate.evaluate(
        {row: [_stack(parts, folds) for parts in per_seed] for row, per_seed in scores.items()},
        test,
        config=recipe.evaluate,
        title=recipe.title,
        dropped=dict(dropped),
        warnings=warnings,
        provenance=provenance(recipe.to_dict(), repeated_texts=audits[0].repeated_texts, feature=prepared.feature.config()),
        lag_curve={lag: float(np.mean([curve[lag] for curve in curves])) for lag in rows.LAGS} if curves else None,
        lag_metric="top-10 accuracy of a ridge refitted at this lag",
        folds=len(folds),
        seeds=list(recipe.seeds),
    )
    report.write(result, out, history=histories)
    return result


def describe(recipe: Recipe, root: str | os.PathLike | None) -> dict:
    """Count subjects, recordings, hours and splits from events and headers alone: no signal is filtered, no feature is made."""
    dataset = load_dataset(recipe, root)
    recordings = select_subjects(dataset.recordings(), recipe.subjects)
    tables, durations = {}, {}
    for recording in recordings:
        raw = dataset.read_raw(recording)
        tables[recording.uid] = dataset.read_events(recording)
        durations[recording.uid] = raw.n_times / raw.info["sfreq"]

    configs = fold_configs(recipe, tables.values())
    fold = segments.make_segments(recordings, tables, durations, configs[0], guard=filter_half_length(recipe.preprocess))
    return {
        "subjects": len({r.subject for r in recordings}),
        "recordings": len(recordings),
        "hours": sum(durations.values()) / 3600,
        **segments.describe(fold, tables),
        "dropped": dict(fold.dropped),
        "warnings": [*fold.warnings, *([f"these are the counts of fold 1 of {len(configs)}"] if recipe.folds else [])],
    }


def claim(out: Path, recipe: Recipe, *, root: str | os.PathLike | None, source: str) -> None:
    """Write recipe.json into the run folder, or check that the run that is there has the same constants."""
    constants = recipe.to_dict()
    mine = {"recipe": constants, "root": None if root is None else str(Path(root).resolve()), "source": source}
    path = out / "recipe.json"
    if path.is_file():
        there = json.loads(path.read_text())
        differing = sorted(k for k in constants if there.get("recipe", {}).get(k) != constants[k])
        if differing:
            raise ValueError(
                f"{out} holds a run with other constants ({', '.join(differing)}). Give another folder (--out DIR), or delete this one."
            )
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no run (no recipe.json). Give another folder (--out DIR).")
    out.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(mine, indent=1))
    temporary.replace(path)


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
