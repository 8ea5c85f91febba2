"""The whole flow on one screen: from recordings to a report.

::

    dataset -> events, signals -> segments -> feature tracks -> batches -> fit every row -> scores -> report
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm import tqdm

from brainspeech import controls, datasets, evaluate, features, hub, losses, models, report, retrieval, segments, timing, train
from brainspeech.batches import SegmentDataset, Statistics, fit_statistics
from brainspeech.cache import Cache
from brainspeech.preprocess import filter_half_length, load_signal
from brainspeech.provenance import provenance
from brainspeech.recipe import Recipe
from brainspeech.records import SPLITS, FeatureTrack, Recording, Segment, Signal

# The lags at which the ridge is refitted to see where the brain follows the sound, in seconds.
Scores = Callable[[Tensor, Tensor], Tensor]
LAGS = tuple(round(0.05 * k, 2) for k in range(-6, 11))


@dataclass(frozen=True, eq=False)
class Prepared:
    """What every fit of a run starts from."""

    dataset: datasets.Dataset
    recordings: list[Recording]
    events: dict[str, pd.DataFrame]
    signals: dict[str, Signal]
    feature: features.Feature
    dropped: Counter


@dataclass(frozen=True, eq=False)
class Data:
    """The splits of one fold as batches, and the candidates that all folds share."""

    train: SegmentDataset
    valid: SegmentDataset
    test: SegmentDataset
    pools: dict[str, SegmentDataset]
    statistics: Statistics
    subjects: tuple[str, ...]

    def with_lag(self, lag: float) -> Data:
        """Give the same data at another lag in seconds."""
        pools = {name: pool.with_lag(lag) for name, pool in self.pools.items()}
        splits = {split: getattr(self, split).with_lag(lag) for split in SPLITS}
        return dataclasses.replace(self, pools=pools, **splits)

    def score(self, encoder: nn.Module, scores: Scores, *, pool: str = "", batch_size: int = 256, device: str = "cpu") -> np.ndarray:
        """Score the test windows against the candidates of a pool, shape (W, N)."""
        candidates = self.pools[pool].targets(range(len(self.pools[pool])))
        return evaluate.predict_scores(encoder, self.test, candidates, scores=scores, batch_size=batch_size, device=device)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Scores of the test windows against all candidates, shape (W, N) or (N,) where all have the same, and how the fit went."""

    scores: np.ndarray
    history: list[dict] = field(default_factory=list)


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


def make_data(
    recipe: Recipe,
    segs: Sequence[Segment],
    pools: Mapping[str, Sequence[Segment]],
    *,
    signals: Mapping[str, Signal],
    tracks: Mapping[tuple[str, float, float], FeatureTrack],
    fill: float,
) -> Data:
    """Put segments, signals and tracks together: statistics of the training windows, then one dataset cut into parts that share memory."""
    groups = {split: [s for s in segs if s.split == split] for split in SPLITS}
    groups |= {f"pool {name}": list(pool) for name, pool in pools.items()}
    subjects = tuple(sorted({s.subject for s in groups["train"]}))
    statistics = fit_statistics(groups["train"], signals, tracks, config=recipe.batches, fill=fill)
    whole = SegmentDataset(
        [s for group in groups.values() for s in group],
        signals,
        tracks,
        config=recipe.batches,
        statistics=statistics,
        subjects=subjects,
        fill=fill,
        sfreq=recipe.preprocess.sfreq,
    )
    parts, start = {}, 0
    for name, group in groups.items():
        parts[name] = whole.subset(range(start, start + len(group)))
        start += len(group)
    pool_parts = {name: parts[f"pool {name}"] for name in pools}
    return Data(parts["train"], parts["valid"], parts["test"], pools=pool_parts, statistics=statistics, subjects=subjects)


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
        fitter = Fitter(recipe, segs[k], pools, prepared.signals, tracks, prepared.feature.fill)
        fitter.data.statistics.save(out / ("statistics.json" if len(folds) == 1 else f"statistics-fold-{k + 1}.json"))
        warnings += [w for w in fitter.warnings() if w not in warnings]
        for i, seed in enumerate(recipe.seeds):
            name = "" if len(folds) * len(recipe.seeds) == 1 else f" (fold {k + 1}, seed {seed})"
            for row, fitted in fitter.rows(out, fold=k, seed=seed, progress=progress):
                scores.setdefault(row, [[] for _ in recipe.seeds])[i].append(fitted.scores)
                if fitted.history:
                    histories[row + name] = fitted.history
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
        lag_curve={lag: float(np.mean([curve[lag] for curve in curves])) for lag in LAGS} if curves else None,
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


class Fitter:
    """Fits the rows of one fold: the encoder, its references and its controls, all on the same segments.

    Parameters
    ----------
    recipe : Recipe
    segs : sequence of Segment
        Of all splits of the fold.
    pools : mapping of str to sequence of Segment
        Candidates: under "" what was heard, under any other name what is scored in its place.
    signals, tracks : mapping
        By recording, and by stimulus interval.
    fill : float
        The feature's value where nothing is heard.
    """

    def __init__(
        self,
        recipe: Recipe,
        segs: Sequence[Segment],
        pools: Mapping[str, Sequence[Segment]],
        signals: Mapping[str, Signal],
        tracks: Mapping[tuple[str, float, float], FeatureTrack],
        fill: float,
    ):
        self.recipe, self.segs, self.pools, self.signals, self.tracks, self.fill = recipe, segs, pools, signals, tracks, fill
        self.data = self._data(segs, signals)

    def _data(self, segs: Sequence[Segment], signals: Mapping[str, Signal]) -> Data:
        return make_data(self.recipe, segs, self.pools, signals=signals, tracks=self.tracks, fill=self.fill)

    def warnings(self) -> list[str]:
        """Say what a reader of the report has to know about these data."""
        said = []
        borrowed = self.data.statistics.borrowed
        if borrowed:
            origins = ", ".join(sorted(set(borrowed.values())))
            said.append(f"{len(borrowed)} recordings have no training window of their own and are scaled with statistics of {origins}.")
        if self.data.statistics.flat:
            said.append(f"{sum(self.data.statistics.flat.values())} channels are flat in all training windows and stay at 0.")
        unseen = sorted({s.subject for s in self.data.test.segments} - set(self.data.subjects))
        if unseen:
            how = "the generic subject layer" if self.recipe.model.options.get("generic_subject") else "the average of the subject layers"
            said.append(f"{len(unseen)} test subjects have no training data ({', '.join(unseen)}); the encoder uses {how} for them.")
        return said

    def rows(self, out: Path, *, fold: int, seed: int, progress: bool) -> Iterator[tuple[str, Fitted]]:
        """Fit every row of the recipe and score its estimates, row by row."""
        recipe = self.recipe
        first = fold == 0 and seed == recipe.seeds[0]
        for row in recipe.rows:
            folder = out if row == "encoder" and first else out / "fits" / f"{row}-fold-{fold + 1}-seed-{seed}"
            if row == "constant":
                yield row, self._constant()
            elif row == "ridge":
                yield from self._ridge(progress=progress)
            elif row == "noise":
                noise = {uid: controls.phase_randomise(s, seed=_seed(seed, i)) for i, (uid, s) in enumerate(sorted(self.signals.items()))}
                yield from self._contrastive(row, self._data(self.segs, noise), folder, seed=seed, progress=progress)
            elif row == "shuffled":
                fitted = controls.shift_pairing([s for s in self.segs if s.split != "test"], seed=_seed(seed, 0))
                segs = [*fitted, *(s for s in self.segs if s.split == "test")]
                yield from self._contrastive(row, self._data(segs, self.signals), folder, seed=seed, progress=progress)
            else:
                yield from self._contrastive(row, self.data, folder, seed=seed, progress=progress)

    def _contrastive(self, row: str, data: Data, folder: Path, *, seed: int, progress: bool) -> Iterator[tuple[str, Fitted]]:
        recipe = self.recipe
        choice = recipe.linear_clip if row == "linear_clip" else recipe.model
        shape = {"n_subjects": len(data.subjects), "n_features": data.train.n_features}
        if choice.name == "linear_clip":
            shape["n_channels"] = data.train.n_channels
        torch.manual_seed(seed)
        encoder = models.build(choice.name, **shape, **choice.options)
        loss = losses.build(recipe.loss.name, **recipe.loss.options)
        config = dataclasses.replace(recipe.train, seed=seed)
        fit = train.fit(encoder, loss, data.train, data.valid, config, out=folder, resume=True, progress=progress, name=row)
        hub.save(
            folder / "model",
            fit.encoder,
            config={"recipe": recipe.to_dict(), "subjects": list(data.subjects), "ch_names": list(data.train.ch_names)},
            statistics=dataclasses.asdict(data.statistics),
        )
        for name in self.pools if row == "encoder" else [""]:
            scores = data.score(fit.encoder, loss.scores, pool=name, batch_size=config.batch_size, device=fit.device)
            yield f"{row}_{name}" if name else row, Fitted(scores, [] if name else fit.history)

    def _ridge(self, *, progress: bool) -> Iterator[tuple[str, Fitted]]:
        config = self.recipe.ridge
        data = self.data.with_lag(0.0)
        sfreq = data.train.sfreq
        lags = range(0, timing.to_samples(config.max_lag, sfreq) + 1, max(1, timing.to_samples(config.lag_step, sfreq)))
        ridge = train.fit_ridge(data.train, data.valid, lags=lags, n_components=config.n_components, progress=progress)
        for name in self.pools:
            yield f"ridge_{name}" if name else "ridge", Fitted(data.score(ridge, ridge.scores, pool=name))

    def _constant(self) -> Fitted:
        loss = losses.build(self.recipe.loss.name, **self.recipe.loss.options)
        pool = self.data.pools[""]
        candidates = pool.targets(range(len(pool)))
        return Fitted(evaluate.constant_scores(_mean_direction(self.data.train), candidates, loss.scores))

    def lag_curve(self, *, progress: bool) -> dict[float, float]:
        """Refit the ridge at each single lag and give its top-10 accuracy on the test windows, {lag in s: fraction}.

        Training windows are thinned until they do not overlap, which loses next to nothing and saves most of the time.
        """
        thin = self.data.train.subset(_thinned(self.data.train.segments))
        data = dataclasses.replace(self.data, train=thin)
        columns = {s.stimulus_id: j for j, s in enumerate(data.pools[""].segments)}
        truth = torch.tensor([columns[s.stimulus_id] for s in data.test.segments])
        curve = {}
        for lag in tqdm(LAGS, desc="accuracy against lag", unit="lag", disable=not progress):
            at = data.with_lag(lag)
            ridge = train.fit_ridge(at.train, at.valid, lags=(0,), n_components=self.recipe.ridge.n_components, progress=False)
            ranks = retrieval.ranks_from_scores(torch.from_numpy(at.score(ridge, ridge.scores)), truth).ranks
            curve[lag] = retrieval.topk_accuracy(ranks, 10)
        return curve


def _mean_direction(train: SegmentDataset, *, chunk: int = 256) -> Tensor:
    """Average the training targets, each scaled to norm 1: the constant estimate that is nearest to them all; shape (F, T)."""
    total = torch.zeros(train.n_features, train.n_times)
    rows = train.unique()
    for start in range(0, len(rows), chunk):
        target = train.targets(rows[start : start + chunk])
        total += (target / target.flatten(1).norm(dim=1).clamp_min(1e-8)[:, None, None]).sum(0)
    return total / len(rows)


def _seed(seed: int, i: int) -> int:
    """Give the i-th of a family of seeds that do not meet those of another base seed."""
    return int(np.random.SeedSequence([seed, i]).generate_state(1)[0])


def _thinned(segs: Sequence[Segment]) -> list[int]:
    """Give the indices of windows that do not overlap within a recording, greedily in time."""
    keep: list[int] = []
    last_stop: dict[str, float] = {}
    for i in sorted(range(len(segs)), key=lambda i: (segs[i].recording, segs[i].onset)):
        if segs[i].onset >= last_stop.get(segs[i].recording, 0.0) - 1e-6:
            keep.append(i)
            last_stop[segs[i].recording] = segs[i].onset + segs[i].duration
    return keep
