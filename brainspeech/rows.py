"""The rows of a report: the encoder, its references and its controls, fitted on the same segments, scored against the same candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from brainspeech import attribution, controls, evaluate, hub, losses, models, prediction, processes, retrieval, scoring, timing, train
from brainspeech.batches import SegmentDataset
from brainspeech.losses.joint import Joint
from brainspeech.recipe import Recipe
from brainspeech.records import SPLITS, FeatureTrack, Segment, Signal
from brainspeech.scaling import Statistics, fit_statistics

# The lags at which the ridge is refitted to see where the brain follows the sound, in seconds.
LAGS = tuple(round(0.05 * k, 2) for k in range(-6, 11))

Scores = Callable[[Tensor, Tensor], Tensor]


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
        return prediction.predict_scores(encoder, self.test, candidates, scores=scores, batch_size=batch_size, device=device)


@dataclass(frozen=True, eq=False)
class Fitted:
    """Scores of the test windows against all candidates, shape (W, N) or (N,) where all have the same, and how the fit went."""

    scores: np.ndarray
    history: list[dict] = field(default_factory=list)


def make_data(
    recipe: Recipe,
    segs: Sequence[Segment],
    pools: Mapping[str, Sequence[Segment]],
    *,
    signals: Mapping[str, Signal],
    tracks: Mapping[tuple[str, float, float], FeatureTrack],
    fill: float,
    unlabelled: Sequence[Segment] = (),
) -> Data:
    """Put segments, signals and tracks together: statistics of the training windows, then one dataset cut into parts that share memory.

    ``unlabelled`` are windows of the training split that are not trained on, of subjects left out, and give their channels a scale.
    """
    groups = {split: [s for s in segs if s.split == split] for split in SPLITS}
    groups |= {f"pool {name}": list(pool) for name, pool in pools.items()}
    subjects = tuple(sorted({s.subject for s in groups["train"]}))
    statistics = fit_statistics([*groups["train"], *unlabelled], signals, tracks, config=recipe.batches, fill=fill)
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
    unlabelled : sequence of Segment
        See ``make_data``.
    """

    def __init__(
        self,
        recipe: Recipe,
        segs: Sequence[Segment],
        pools: Mapping[str, Sequence[Segment]],
        signals: Mapping[str, Signal],
        tracks: Mapping[tuple[str, float, float], FeatureTrack],
        fill: float,
        *,
        unlabelled: Sequence[Segment] = (),
    ):
        self.recipe, self.segs, self.pools, self.signals, self.tracks, self.fill = recipe, segs, pools, signals, tracks, fill
        self.unlabelled = unlabelled
        self.data = self._data(segs, signals)
        self.said: list[str] = []
        self.place = ""
        self._chosen: dict[str, dict[str, list[str]]] = {}  # by scorer: what was chosen on validation, and where
        self._check_scorers()
        if "shuffled" in recipe.rows:  # found out before hours of training, not after
            _, left = shuffled_pairs(segs, seed=_seed(recipe.seeds[0], 0))
            if left:
                self.said.append(
                    f"shuffled: {left} windows stand in splits of a recording that are too short to be shifted by 5 s; they are not used."
                )
        self._ridge_rows: list[tuple[str, Fitted]] = []  # nothing in them depends on the seed
        self._seen: tuple[nn.Module, Scores, torch.device | str] | None = None  # the first seed's encoder, its scores, where it is

    def _data(self, segs: Sequence[Segment], signals: Mapping[str, Signal]) -> Data:
        return make_data(self.recipe, segs, self.pools, signals=signals, tracks=self.tracks, fill=self.fill, unlabelled=self.unlabelled)

    def _check_scorers(self) -> None:
        config = self.recipe.evaluate
        taken = sorted(set(config.scorers) & set(self.recipe.rescore))
        if taken:
            raise ValueError(f"{self.recipe.name}: rescore names a row like the scorer {', '.join(taken)}. Give it another name.")
        joint = self.recipe.target_encoder is not None
        scoring.check(config.scorers, self.data.valid, context_width=config.context_width, n_layers=config.n_layers, joint=joint)

    def warnings(self) -> list[str]:
        """Say what a reader of the report has to know about these data."""
        said = list(self.said)
        borrowed = self.data.statistics.borrowed
        if borrowed:
            origins = ", ".join(sorted(set(borrowed.values())))
            said.append(f"{len(borrowed)} recordings have no training window of their own and are scaled with statistics of {origins}.")
        shifted = sum(getattr(self.data, split).shifted for split in SPLITS)
        if shifted:
            said.append(f"{shifted} windows ended one sample after their recording by rounding and begin one sample earlier.")
        if self.data.statistics.flat:
            said.append(f"{sum(self.data.statistics.flat.values())} channels are flat in all training windows and stay at 0.")
        unseen = sorted({s.subject for s in self.data.test.segments} - set(self.data.subjects))
        if unseen:
            options = self.recipe.model.options
            parts = "subject embeddings" if options.get("subject_embedding") else "subject layers"
            how = "the generic subject layer" if options.get("generic_subject") else f"the average of the {parts}"
            if options.get("subject_layer") is False and not options.get("subject_embedding"):
                how = "the same weights as for all"
            who = "The subject left out has" if self.unlabelled else f"{len(unseen)} test subjects have"
            named = "" if self.unlabelled else f" ({', '.join(unseen)})"
            said.append(f"{who} no training data{named}; the encoder uses {how} for them.")
        for scorer, found in self._chosen.items():
            chosen = "; ".join(f"{what} ({', '.join(places)})" if any(places) else what for what, places in found.items())
            said.append(f"encoder_{scorer}: chosen on the validation split: {chosen}.")
        said += self._say_smaller()
        if self.recipe.target_encoder is not None:
            said.append("What the encoder reads (sensors, bands, lags) is not shown for a target encoder that is trained jointly.")
        return said

    def rows(self, out: Path, *, fold: int = 0, n_folds: int = 1, seed: int, progress: bool) -> Iterator[tuple[str, Fitted]]:
        """Fit every row of the recipe and score its estimates, row by row.

        Of several processes all fit the encoders, and the first one does and gives everything else.
        """
        recipe = self.recipe
        first = fold == 0 and seed == recipe.seeds[0]
        self.place = ", ".join([f"fold {fold + 1} of {n_folds}"] * (n_folds > 1) + [f"seed {seed}"] * (len(recipe.seeds) > 1))
        for row in recipe.rows:
            folder = out if row == "encoder" and first else out / "fits" / f"{row}-fold-{fold + 1}-seed-{seed}"
            if row == "ideal":
                continue  # knows the simulation, not the data: the flow asks it
            if row in ("constant", "ridge") and not processes.is_first():
                continue
            if row == "constant":
                yield row, self._constant()
            elif row == "ridge":
                self._ridge_rows = self._ridge_rows or list(self._ridge(progress=progress))
                yield from self._ridge_rows
            elif row == "noise":
                noise = {uid: controls.phase_randomise(s, seed=_seed(seed, i)) for i, (uid, s) in enumerate(sorted(self.signals.items()))}
                yield from self._contrastive(row, self._data(self.segs, noise), folder, seed=seed, progress=progress)
            elif row == "shuffled":
                segs, _ = shuffled_pairs(self.segs, seed=_seed(seed, 0))
                yield from self._contrastive(row, self._data(segs, self.signals), folder, seed=seed, progress=progress)
            else:
                yield from self._contrastive(row, self.data, folder, seed=seed, progress=progress)

    def _contrastive(self, row: str, data: Data, folder: Path, *, seed: int, progress: bool) -> Iterator[tuple[str, Fitted]]:
        recipe = self.recipe
        choice = recipe.linear_clip if row == "linear_clip" else recipe.model
        shape = {"n_subjects": len(data.subjects), "n_features": data.train.n_features}
        sizes = {"n_channels": data.train.n_channels, "n_times": data.train.n_times}
        needed = models.needs(choice.name) | ({"n_channels"} if choice.options.get("spatial_attention") is False else set())
        shape |= {size: n for size, n in sizes.items() if size in needed}
        torch.manual_seed(seed)
        options = dict(choice.options)
        if choice.name == "linear_clip":
            options.setdefault("lags", tuple(lag - timing.to_samples(recipe.batches.lag, data.train.sfreq) for lag in self._lags()))
        target = None
        if recipe.target_encoder is not None:
            target = models.build_target(recipe.target_encoder.name, n_features=shape["n_features"], **recipe.target_encoder.options)
            shape["n_features"] = target.n_outputs
        encoder = models.build(choice.name, **shape, **options)
        loss = losses.build(recipe.loss.name, **recipe.loss.options)
        loss = loss if target is None else Joint(loss, target)
        config = dataclasses.replace(recipe.train, seed=seed)
        fit = train.fit(encoder, loss, data.train, data.valid, config, out=folder, resume=True, progress=progress, name=self._label(row))
        if not processes.is_first():
            return
        self._say_processes([entry.get("n_processes", 1) for entry in fit.history])
        if fit.device != "cpu":
            self._say(f"Fitted on {fit.device} in {fit.precision}. {fit.placed}")
        hub.save(
            folder / "model",
            fit.encoder,
            config={
                "recipe": recipe.to_dict(),
                "subjects": list(data.subjects),
                "ch_names": list(data.train.ch_names),
                "ch_types": sorted({kind for signal in self.signals.values() for kind in signal.ch_types}),
                "fill": self.fill,
                **({} if target is None else {"target_encoder": {"name": target.name, "config": target.config}}),
            },
            statistics=dataclasses.asdict(data.statistics),
            # Where each recording's channels are, in the order of its statistics.
            extra={f"positions/{uid}": torch.from_numpy(np.array(signal.positions)) for uid, signal in self.signals.items()}
            | ({} if target is None else {f"target_encoder/{key}": value for key, value in target.state_dict().items()}),
        )
        if row == "encoder" and self._seen is None:
            self._seen = fit.encoder, loss.scores, fit.device
        for name in self.pools if row == "encoder" else [""]:
            scores = data.score(fit.encoder, loss.scores, pool=name, batch_size=config.batch_size, device=fit.device)
            yield f"{row}_{name}" if name else row, Fitted(scores, [] if name else fit.history)
            if not name and row in evaluate.SCORED:
                yield from self._scored(row, data, fit, loss.scores, scores)

    def _scored(self, row: str, data: Data, fit: train.Checkpoint, scores: Scores, own: np.ndarray) -> Iterator[tuple[str, Fitted]]:
        """Apply the recipe's scorers to a fitted encoder."""
        config, pool = self.recipe.evaluate, data.pools[""]
        test = scoring.Split(data.test, pool.segments, pool.targets(range(len(pool))))
        found = scoring.apply(
            config.scorers,
            fit.encoder,
            scores,
            valid=data.valid,
            test=test,
            own=own,
            context_width=config.context_width,
            n_layers=config.n_layers,
            seed=config.seed,
            batch_size=self.recipe.train.batch_size,
            device=fit.device,
        )
        for name, scored, chosen in found:
            if row == "encoder":
                self._chosen.setdefault(name, {}).setdefault(chosen, []).append(self.place)
            yield f"{row}_{name}", Fitted(scored)

    def _say_smaller(self) -> list[str]:
        """Say where the encoder is the paper's made smaller."""
        paper = {"hidden": (320, "channels"), "depth": (10, "convolutions")}
        options = self.recipe.model.options if self.recipe.model.name == "conv" else {}
        smaller = [f"{options[k]} instead of {n} {what}" for k, (n, what) in paper.items() if options.get(k, n) < n]
        return [f"The encoder is narrower than the paper's ({', '.join(smaller)})."] if smaller else []

    def _say_processes(self, counts: Sequence[int]) -> None:
        """Say how many processes ended each epoch of a fit, where they were several; another run may have ended what one began."""
        if max(counts, default=1) == 1:
            return
        config = self.recipe.train
        turns = [n for i, n in enumerate(counts) if not i or counts[i - 1] != n]
        against = "all of them" if config.negatives == "gathered" else "those of their own process"
        norm = "over all of them" if config.synchronise else "over those of each process"
        who = ", then ".join(map(str, turns))
        self._say(f"Fitted by {who} processes with batches of {config.batch_size} segments, compared with {against}; batch norm {norm}.")

    def _say(self, said: str) -> None:
        if said not in self.said:
            self.said.append(said)

    def _label(self, row: str) -> str:
        return f"{row} ({self.place})" if self.place else row

    def _lags(self) -> range:
        """Give the lags of the linear models in samples after the sound."""
        config, sfreq = self.recipe.ridge, self.data.train.sfreq
        return range(0, timing.to_samples(config.max_lag, sfreq) + 1, max(1, timing.to_samples(config.lag_step, sfreq)))

    def _ridge(self, *, progress: bool) -> Iterator[tuple[str, Fitted]]:
        config = self.recipe.ridge
        data = self.data.with_lag(0.0)
        ridge = train.fit_ridge(
            data.train, data.valid, lags=self._lags(), n_components=config.n_components, progress=progress, name=self._label("ridge")
        )
        if ridge.counts["n_unseen_valid"]:
            self.said.append(f"ridge: {ridge.counts['n_unseen_valid']} validation windows of unseen subjects were not used.")
        if ridge.counts["n_subjects_without_valid"]:
            self.said.append(
                f"ridge: {ridge.counts['n_subjects_without_valid']} subjects without validation windows took the others' alpha."
            )
        for name in self.pools:
            yield f"ridge_{name}" if name else "ridge", Fitted(data.score(ridge, ridge.scores, pool=name))

    def _constant(self) -> Fitted:
        loss = losses.build(self.recipe.loss.name, **self.recipe.loss.options)
        pool = self.data.pools[""]
        candidates = pool.targets(range(len(pool)))
        return Fitted(prediction.constant_scores(_mean_direction(self.data.train), candidates, loss.scores))

    def attribution(self, *, progress: bool) -> dict:
        """Find which sensors, bands and lags the first seed's encoder reads; nothing where there is nothing to tell apart."""
        if self._seen is None or len(self.data.test.unique()) < 2 or self.recipe.target_encoder is not None:
            return {}
        encoder, scores, device = self._seen
        seed = self.recipe.evaluate.seed
        return attribution.attribute(encoder, self.data.test, scores=scores, seed=seed, device=device, progress=progress)

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


def shuffled_pairs(segs: Sequence[Segment], *, seed: int) -> tuple[list[Segment], int]:
    """Shift the pairing of all windows but those of the test split, recording by recording and split by split.

    Returns
    -------
    list of Segment
        Without the windows of recordings whose part of a split is too short to be shifted.
    int
        How many windows were left out.

    Raises
    ------
    ValueError
        If a split loses all its windows.
    """
    groups: dict[tuple[str, str], list[Segment]] = {}
    for s in segs:
        if s.split != "test":
            groups.setdefault((s.recording, s.split), []).append(s)
    out: list[Segment] = []
    for members in groups.values():
        try:
            out += controls.shift_pairing(members, seed=seed)
        except ValueError:
            continue
    lost = [split for split in ("train", "valid") if not any(s.split == split for s in out)]
    if lost:
        raise ValueError(
            f"The control `shuffled` cannot be fitted: in no recording is the {' or '.join(lost)} split long enough to be shifted by 5 s. "
            "Use longer recordings or another segments.valid_ratio, or leave the control out (--set rows=encoder,ridge,noise)."
        )
    out += [s for s in segs if s.split == "test"]
    return out, len(segs) - len(out)


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
