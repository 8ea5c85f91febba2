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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from brainspeech import decoded, evaluate, folds, ideal, processes, quality, report, rows, segments, spreading
from brainspeech.cache import Cache
from brainspeech.claiming import LOCK, claim, hold
from brainspeech.listing import merged
from brainspeech.prediction import TestSet
from brainspeech.preparing import Prepared, compute_tracks, describe, fill_cache, load_dataset, prepare, segment, select_subjects, unheard
from brainspeech.provenance import provenance
from brainspeech.recipe import Recipe, check, settle
from brainspeech.records import FeatureTrack, Segment

__all__ = [
    "LOCK",
    "Prepared",
    "claim",
    "compute_tracks",
    "describe",
    "fill_cache",
    "load_dataset",
    "prepare",
    "run",
    "segment",
    "select_subjects",
]


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
    lock = processes.alone(lambda: hold(out, recipe, root=root, source=source))
    try:
        there = out / "recipe.json"
        processes.check_equal(f"run folder {out}", there.read_text() if there.is_file() else "")
        if lock is None:
            return _follow(recipe, root, out, cache)
        return _run(recipe, root, out, cache, progress=progress, n_jobs=n_jobs, scheduler=scheduler)
    finally:
        if lock is not None:
            lock.release()


def _follow(recipe: Recipe, root: str | os.PathLike | None, out: Path, cache: Cache) -> evaluate.RetrievalReport:
    """Take part in the fits of a run whose first process does the rest, and read its report."""
    prepared = processes.first(lambda: prepare(recipe, root, cache, progress=False))
    cut = segment(recipe, prepared)
    segs = folds.heard(recipe, cut)
    pools = folds.pools(recipe, folds.test_set(segs))
    tracks, _ = processes.first(lambda: compute_tracks(recipe, prepared, [*segs, *pools.values()], cache, progress=False))
    for k in range(len(cut)):
        fitter = _fitter(recipe, prepared, segs, pools, tracks, fold=k)
        for seed in recipe.seeds:
            for _ in fitter.rows(out, fold=k, n_folds=len(cut), seed=seed, progress=False):
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
    cut = segment(recipe, prepared)
    segments.save(out / "segments.json", cut)
    texts = _refuse_leaks(recipe, cut)
    segs = folds.heard(recipe, cut)
    test = folds.test_set(segs)
    pools = folds.pools(recipe, test)
    heard = [*segs, *pools.values()]
    tracks, counts = processes.first(
        lambda: compute_tracks(recipe, prepared, heard, cache, progress=progress, n_jobs=n_jobs, scheduler=scheduler)
    )
    found = _Found(recipe, prepared.dropped + Counter({f"stimuli: {reason}": n for reason, n in counts.items()}))
    found.warn([*recipe.notes, *merged(prepared.dataset.notes), *_warnings(recipe, prepared, len(cut))])
    seen, said = quality.survey(prepared.dataset, prepared.recordings, prepared.signals, prepared.events, cache, progress=progress)
    found.warn(said)
    for k, fold in enumerate(cut):
        found.count(fold, len(cut))
        fitter = _fitter(recipe, prepared, segs, pools, tracks, fold=k)
        fitter.data.statistics.save(out / ("statistics.json" if len(cut) == 1 else f"statistics-fold-{k + 1}.json"))
        for i, seed in enumerate(recipe.seeds):
            name = "" if len(cut) * len(recipe.seeds) == 1 else f" (fold {k + 1}, seed {seed})"
            for row, fitted in fitter.rows(out, fold=k, n_folds=len(cut), seed=seed, progress=progress):
                found.add(row, fitted.scores, [i])
                if fitted.history:
                    found.histories[row + name] = fitted.history
        found.warn(fitter.warnings())
        observed = _ideal(recipe, prepared, fitter, test)
        if observed is not None:
            found.add("ideal", observed, range(len(recipe.seeds)))
        if "ridge" in recipe.rows:
            found.curves.append(fitter.lag_curve(progress=progress))
        if k == 0:
            seen["attribution"] = fitter.attribution(progress=progress)
    scores = {row: [folds.stack(parts, cut) for parts in per_seed] for row, per_seed in found.scores.items()}
    told = provenance(recipe.to_dict(), repeated_texts=texts, feature=prepared.feature.config())
    result = _evaluate(found, scores, test, told, n_folds=len(cut))
    closed = ideal.gap_closed(result.rows, metric="top1")
    if closed is not None:
        seen["gap_closed"] = closed
        result.warnings.append(f"From ridge to the ideal observer, the encoder closes {closed:.0%} of the gap (top-1).")
    seen["decoded"] = _decoded(recipe, prepared, scores[result.curves["lead"]], test, segs, progress=progress)
    result = dataclasses.replace(result, curves=result.curves | evaluate.plain(seen))
    report.save_ranks(out, scores, test)
    report.write(result, out, history=found.histories)
    processes.wait()
    return result


def _refuse_leaks(recipe: Recipe, cut: Sequence[segments.Segmentation]) -> list[str]:
    """Raise where the split leaks; give the sentence texts that stand on two sides of it."""
    audits = [segments.audit(fold.segments, blocks=fold.blocks) for fold in cut]
    errors = [error for audit in audits for error in audit.errors]
    if errors:
        cure = ""
        if recipe.segments.protocol == "paper":
            cure = " The paper's protocol cuts on each recording's own clock, which differs between these: use segments.protocol=clean."
        raise RuntimeError(f"The split leaks in {len(errors)} places, nothing was trained: {'; '.join(errors[:3])}{cure}")
    return sorted({text for audit in audits for text in audit.repeated_texts})


def _warnings(recipe: Recipe, prepared: Prepared, n_folds: int) -> list[str]:
    """Say what is known of a run before anything is fitted."""
    said = unheard(prepared.events, {uid: signal.duration for uid, signal in prepared.signals.items()})
    if recipe.folds == "leave_one_out":
        said.append(f"Splits assigned by name: each of the {n_folds} stimuli is the test split once and the valid split once.")
    if recipe.folds == "leave_subject_out":
        said.append(
            f"Each of the {n_folds} subjects was left out of training once and tested then; only the scale of its channels was fitted "
            "on its own windows, without labels."
        )
    return said


@dataclass(eq=False)
class _Found:
    """What a run finds fold by fold."""

    recipe: Recipe
    dropped: Counter
    warnings: list[str] = field(default_factory=list)
    scores: dict[str, list[list[np.ndarray]]] = field(default_factory=dict)  # by row, then by seed, then by fold
    histories: dict[str, list[dict]] = field(default_factory=dict)
    curves: list[dict[float, float]] = field(default_factory=list)

    def warn(self, said: Iterable[str]) -> None:
        """Keep what was not said before."""
        self.warnings += [warning for warning in dict.fromkeys(said) if warning not in self.warnings]

    def count(self, fold: segments.Segmentation, n_folds: int) -> None:
        """Keep what a fold dropped and warns of."""
        over = f" (over {n_folds} folds)" if self.recipe.folds == "leave_one_out" else ""
        self.dropped += Counter({f"windows: {reason}{over}": n for reason, n in fold.dropped.items()})
        self.warn(w for w in fold.warnings if not (self.recipe.folds and w.startswith("Splits assigned")))

    def add(self, row: str, scores: np.ndarray, seeds: Iterable[int]) -> None:
        """Keep a fold's scores of a row, for some of the seeds."""
        kept = self.scores.setdefault(row, [[] for _ in self.recipe.seeds])
        for i in seeds:
            kept[i].append(scores)


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
    unlabelled = folds.scale_windows(segs, fold) if recipe.folds == "leave_subject_out" else []
    return rows.Fitter(recipe, segs[fold], pools, prepared.signals, tracks, prepared.feature.fill, unlabelled=unlabelled)


def _ideal(recipe: Recipe, prepared: Prepared, fitter: rows.Fitter, test: TestSet) -> np.ndarray | None:
    """Score a fold's test windows by an observer that knows what simulated listeners answer to; None where it is not asked or not known."""
    dataset = prepared.dataset
    if "ideal" not in recipe.rows or not ideal.can_observe(dataset):
        return None
    return ideal.ideal_scores(
        dataset,
        fitter.data.test.segments,
        test.candidates,
        prepared.signals,
        config=recipe.preprocess,
        baseline=recipe.batches.baseline,
    )


def _evaluate(
    found: _Found, scores: Mapping[str, Sequence[np.ndarray]], test: TestSet, told: dict[str, Any], *, n_folds: int
) -> evaluate.RetrievalReport:
    """Make the report of all folds and seeds."""
    recipe, curves = found.recipe, found.curves
    return evaluate.evaluate(
        scores,
        test,
        config=recipe.evaluate,
        title=recipe.title,
        dropped=dict(found.dropped),
        warnings=found.warnings,
        provenance=told,
        lag_curve={lag: float(np.mean([curve[lag] for curve in curves])) for lag in rows.LAGS} if curves else None,
        lag_metric="top-10 accuracy of a ridge refitted at this lag",
        folds=n_folds,
        seeds=list(recipe.seeds),
    )


def _decoded(
    recipe: Recipe,
    prepared: Prepared,
    scores: Sequence[np.ndarray],
    test: TestSet,
    segs: Sequence[Sequence[Segment]],
    *,
    progress: bool,
) -> dict[str, Any]:
    """Say what the leading row decodes: words, and what its scores go with."""
    return decoded.describe(
        scores,
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
