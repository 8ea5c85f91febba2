"""Scores of a test set -> a RetrievalReport: accuracies with intervals, controls, references, and what each row can be doubted for.

Shapes: W test windows, N candidates (distinct stimuli), F features, T times; scores (W, N), higher is nearer. A *row* is a line of the
report's table: an encoder, a reference or a control, with one score matrix per seed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from brainspeech import lexicon, retrieval, statistics
from brainspeech.prediction import TestSet, place
from brainspeech.records import Segment
from brainspeech.scorers import SCORERS, check_names

CONTROLS = ("noise", "shuffled")
SCORED = ("encoder", "shuffled")  # rows that scorers are applied to
LEAK = 0.001  # a control whose p is below this is above chance
FEW_BLOCKS = 11  # 2^10 swaps cannot reach p < 0.001, so with fewer blocks candidates are permuted instead
FEW_CANDIDATES = 20  # top-10 of so few is near 1 for everyone: the mean rank is tested instead
MEANINGS = {
    "encoder": "the trained encoder",
    "linear_clip": "a linear filter per subject, trained with the encoder's loss: what is above it is owed to depth",
    "ridge": "ridge regression per subject: the classical backward model",
    "noise": "control: everything refitted on noise with the spectrum and channel covariance of the signal; belongs at chance",
    "shuffled": "control: everything refitted with the sound shifted against the signal; belongs at chance",
    "block_oracle": "reference, not fitted: knows the right block and guesses inside it",
    "constant": "reference: the best estimate that never looks at the signal",
    "ideal": "simulation only: the response that was planted, decoded by those who know it",
    "encoder_augment": "the same encoder, its scores averaged with those of slightly shifted, scaled and thinned copies of the signal",
    "encoder_layers": "the same encoder, parts of the feature (layers) scored one by one and weighed on the validation split",
    "encoder_other_subject": "the same encoder, minus what the layers of other subjects would say",
    "encoder_hubness": "the same encoder, the popularity of each candidate among all test windows taken off; transductive: the ranks of a "
    "window depend on the others, so this is no measure of a decoder that gets one window at a time",
    "encoder_context": "the same encoder, the evidence of a window pooled with that of windows before and after it in its block: it "
    "decides from more signal than one window",
    **{f"shuffled_{scorer}": "control: `shuffled` under the same scorer; belongs at chance" for scorer in SCORERS},
}


@dataclass(frozen=True)
class EvaluateConfig:
    """How accuracies are tested.

    Parameters
    ----------
    n_bootstrap, n_permutations : int
        Replicates of the intervals and of each test.
    confidence : float
        Nominal coverage of the intervals.
    seed : int
        Of the bootstrap, the permutations and the choice of examples.
    topk : tuple of int
        The k of the top-k accuracies.
    n_examples : int
        Test windows whose words are shown beside those of the five best candidates.
    scorers : tuple of str
        Names of ``scorers.SCORERS``: each adds a row ``encoder_X``, the encoder's scores put together in another way, and ``shuffled_X``.
    context_width : float
        Seconds before and after a window from which the scorer ``context`` may take evidence.
    n_layers : int
        Equal parts of the features that the scorer ``layers`` scores one by one, such as layers that are not averaged; 0 for none.
    regression : tuple of str
        Sets of ``lexicon.SETS`` that how well a stimulus is decoded is regressed on; none by default.
    language, spacy_model : str
        Of word frequencies, and of parts of speech and word vectors.
    phrase_model : str
        A transformers model for ``phrase_embedding``; empty: the mean of spaCy's word vectors.
    """

    n_bootstrap: int = 10_000
    n_permutations: int = 10_000
    confidence: float = 0.95
    seed: int = 0
    topk: tuple[int, ...] = (1, 5, 10)
    n_examples: int = 8
    scorers: tuple[str, ...] = ()
    context_width: float = 6.0
    n_layers: int = 0
    regression: tuple[str, ...] = ()
    language: str = "en"
    spacy_model: str = "en_core_web_md"
    phrase_model: str = ""

    def __post_init__(self) -> None:
        if not self.topk or min(self.topk) < 1:
            raise ValueError(f"topk needs numbers of 1 or more, got {self.topk}.")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is a fraction between 0 and 1, got {self.confidence}.")
        if self.n_bootstrap < 1 or self.n_permutations < 1:
            raise ValueError(f"At least one replicate is needed, got {self.n_bootstrap} and {self.n_permutations}.")
        check_names(self.scorers)
        lexicon.check(self.regression)
        if not (math.isfinite(self.context_width) and self.context_width > 0):
            raise ValueError(f"context_width is a positive number of seconds, got {self.context_width}.")
        if self.n_layers < 0:
            raise ValueError(f"n_layers is 0 or the number of layers that the feature stacks, got {self.n_layers}.")


@dataclass(frozen=True, eq=False)
class RetrievalReport:
    """What a run found, as plain values; accuracies are fractions, rank 0 is best, what cannot be said is None.

    ``to_dict`` gives the content of report.json. ``similarity`` (n, n), mean scores by true segment (rows) and candidate (columns) of at
    most 200 candidates, z-scored by row, is kept beside it as an array.
    """

    n_candidates: int
    n_windows: int
    chance: dict[str, float]
    rows: dict[str, dict[str, Any]]
    disjoint: dict[str, Any]
    per_subject: dict[str, Any]
    subjects: int
    blocks: int
    folds: int
    seeds: list[int]
    dropped: dict[str, int]
    warnings: list[str]
    provenance: dict[str, Any]
    methods: dict[str, str] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    title: str = ""
    similarity: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give the report as JSON-able values: finite numbers or None."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "similarity"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], similarity: np.ndarray | None = None) -> RetrievalReport:
        """Make the report of ``to_dict`` again.

        Raises
        ------
        ValueError
            If an entry is missing or unknown.
        """
        names = {f.name for f in dataclasses.fields(cls)} - {"similarity"}
        needed = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
        if not needed <= set(values) <= names:
            raise ValueError(
                f"Not a report: missing {sorted(needed - set(values))}, unknown {sorted(set(values) - names)}. Run the evaluation again."
            )
        return cls(**values, similarity=similarity)

    @property
    def leaks(self) -> list[str]:
        """Names of the controls that are above chance, which none may be."""
        return [name for name, row in self.rows.items() if row.get("control") and row["p_above_chance"] < LEAK]

    @property
    def alarms(self) -> list[str]:
        """What makes the whole table doubtful, in sentences: a control above chance, a peak at lag 0. ``--strict`` fails on it."""
        out = [
            f"The control `{name}` is above chance: p = {self.rows[name]['p_above_chance']:.2g}; something other than the brain's answer "
            "to this sound is decoded, and no row of this table can be trusted until it is found."
            for name in self.leaks
        ]
        lag = self.curves.get("lag")
        if lag and lag["artefact"]:
            out.append(
                f"Decoding peaks at a lag of {1000 * lag['peak']:.0f} ms: an artefact. The brain answers a sound tens of milliseconds "
                "later, so look for sound that leaks into the recording, or for a wrong alignment."
            )
        return out


def plain(value: Any) -> Any:
    """Turn numpy values, tuples and mappings into what JSON knows; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)


@dataclass(frozen=True, eq=False)
class _Units:
    """Which subject, block and stimulus a window belongs to, as numbers."""

    subject: np.ndarray
    block: np.ndarray
    truth: np.ndarray

    def __getitem__(self, keep: np.ndarray) -> _Units:
        return _Units(*(np.unique(part[keep], return_inverse=True)[1] for part in (self.subject, self.block, self.truth)))

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.subject.max()) + 1, int(self.block.max()) + 1


def evaluate(
    rows: Mapping[str, Sequence[np.ndarray]],
    test: TestSet,
    *,
    config: EvaluateConfig | None = None,
    dropped: Mapping[str, int] | None = None,
    warnings: Iterable[str] = (),
    provenance: Mapping[str, Any] | None = None,
    lag_curve: Mapping[float, float] | None = None,
    lag_metric: str = "top-10 accuracy",
    folds: int = 1,
    seeds: Sequence[int] = (),
    controls: Sequence[str] = CONTROLS,
    meanings: Mapping[str, str] | None = None,
    title: str = "",
) -> RetrievalReport:
    """Rank, test and summarise the scores of every row.

    Parameters
    ----------
    rows : mapping of str to sequence of array
        Scores (W, N), or (N,) where every window has the same, one per seed. ``shuffled`` is what the others are tested against;
        ``block_oracle`` is added.
    test : TestSet
    dropped : mapping of str to int
        What was left out on the way, by reason.
    warnings : iterable of str
        What the earlier rooms have to say; the report's own warnings come first.
    lag_curve : mapping of float to float, optional
        Lag in seconds (brain after sound) to ``lag_metric``.
    controls : sequence of str
        Rows that belong at chance.
    meanings : mapping of str to str
        A sentence for each row beyond those of ``MEANINGS``.

    Raises
    ------
    ValueError
        If there are no rows, or the scores are not (W, N).
    """
    config = config or EvaluateConfig()
    n_windows, n_candidates = len(test.truth), len(test.candidates)
    if not rows:
        raise ValueError("At least one row of scores is needed, such as {'encoder': [scores]}.")
    scores = {name: [_checked(name, s, n_windows, n_candidates) for s in per_seed] for name, per_seed in rows.items()}
    blocks = test.blocks
    subjects = sorted(set(test.subjects))
    units = _Units(np.searchsorted(subjects, test.subjects), blocks[test.truth], test.truth)
    lead = "encoder" if "encoder" in scores else next(iter(scores))

    ranks: dict[str, np.ndarray] = {}
    table: dict[str, dict[str, Any]] = {}
    for name, per_seed in scores.items():
        ranks[name], n_ties, n_nan = _ranks(per_seed, test.truth)
        within = [_ranks_within_blocks(s, test.truth, blocks) for s in per_seed]
        table[name] = {
            "median_rank": retrieval.median_rank(ranks[name].ravel()),
            "within_block_rank": float(np.mean(within)),
            "n_ties": n_ties,
            "n_nan": n_nan,
            "control": name in controls or _split(name)[0] in controls,
            "meaning": (meanings or {}).get(name, MEANINGS.get(name, "")),
        }
    tests, methods = _tests(scores, ranks, units, test, config)
    for name, accuracies in _accuracies(ranks, units, n_candidates, config).items():
        table[name] = {**accuracies, **table[name], **tests[name]}
    table["block_oracle"] = _oracle(blocks, test.truth, config)
    chance: dict[str, float] = {f"top{k}": retrieval.chance(k, n_candidates) for k in config.topk}
    chance |= {"median_rank": (n_candidates - 1) / 2, "within_block_rank": table["block_oracle"]["within_block_rank"]}

    report = RetrievalReport(
        n_candidates=n_candidates,
        n_windows=n_windows,
        chance=chance,
        rows=table,
        disjoint=_disjoint(scores, test, units, config),
        per_subject={
            subject: {
                "windows": int(mine.sum()),
                "rows": _accuracies({name: r[:, mine] for name, r in ranks.items()}, units[mine], n_candidates, config),
            }
            for subject, mine in ((subject, units.subject == i) for i, subject in enumerate(subjects))
        },
        subjects=len(subjects),
        blocks=units.shape[1],
        folds=folds,
        seeds=list(seeds) or list(range(max(len(s) for s in scores.values()))),
        dropped=plain(dropped or {}),
        warnings=[],
        provenance=plain(provenance or {}),
        methods={"interval": _interval_method(units.shape, config), **methods},
        curves={"lead": lead, "rank": _rank_curves(ranks, blocks, test.truth), "lag": _lag(lag_curve, lag_metric)},
        examples=_examples(scores[lead][0], ranks[lead][0], test, config),
        title=title,
        similarity=_similarity(scores[lead], test.truth),
    )
    report.warnings.extend([*_warnings(report, config), *warnings])
    return report


def _checked(name: str, scores: np.ndarray, n_windows: int, n_candidates: int) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.shape == (n_candidates,):
        scores = np.broadcast_to(scores, (n_windows, n_candidates))
    if scores.shape != (n_windows, n_candidates):
        raise ValueError(f"Row {name!r}: expected scores of shape ({n_windows}, {n_candidates}), got {scores.shape}.")
    return np.ascontiguousarray(scores, np.float32)


def _ranks(per_seed: Sequence[np.ndarray], truth: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Rank every window's own candidate: (ranks (n_seeds, W), windows with ties, windows with NaN)."""
    found = [retrieval.ranks_from_scores(s, truth) for s in per_seed]
    return np.stack([f.ranks.numpy() for f in found]), sum(f.n_ties for f in found), sum(f.n_nan for f in found)


def _block_columns(truth: np.ndarray, blocks: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Give (windows, columns, column of each window's own candidate among them) of each block."""
    for block in range(blocks.max() + 1):
        windows, columns = np.flatnonzero(blocks[truth] == block), np.flatnonzero(blocks == block)
        yield windows, columns, np.searchsorted(columns, truth[windows])


def _ranks_within_blocks(scores: np.ndarray, truth: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    out = np.empty(len(truth))
    for windows, columns, own in _block_columns(truth, blocks):
        out[windows] = _ranks([scores[np.ix_(windows, columns)]], own)[0][0]
    return out


def _accuracies(ranks: Mapping[str, np.ndarray], units: _Units, n_candidates: int, config: EvaluateConfig) -> dict[str, dict[str, Any]]:
    """Give top-k of every row, over all windows, hits averaged over seeds, each with its interval."""
    hits = np.concatenate([[(r < k).mean(0) for k in config.topk] for r in ranks.values()])  # (M, W)
    counts = statistics.cell_sums(np.ones(len(units.truth)), units.subject, units.block, units.shape)[0]
    sums = statistics.cell_sums(hits, units.subject, units.block, units.shape)
    limits = statistics.interval(sums, counts, n_bootstrap=config.n_bootstrap, confidence=config.confidence, seed=config.seed)
    of_none, of_all = statistics.exact_limits(len(np.unique(units.truth)), config.confidence)
    out: dict[str, dict[str, Any]] = {name: {} for name in ranks}
    for m, (name, k) in enumerate((name, k) for name in ranks for k in config.topk):
        value = retrieval.topk_accuracy(ranks[name].ravel(), k)
        low, high = (None, None) if limits is None else (float(x) for x in limits[m])
        if limits is not None and k < n_candidates and value in (0, 1):
            low, high = (0.0, of_none) if value == 0 else (of_all, 1.0)
        out[name][f"top{k}"] = {"value": float(value), "low": low, "high": high}
    return out


def _tests(
    scores: Mapping[str, Sequence[np.ndarray]],
    ranks: Mapping[str, np.ndarray],
    units: _Units,
    test: TestSet,
    config: EvaluateConfig,
) -> tuple[dict[str, dict[str, float | None]], dict[str, str]]:
    """Compute the p values of every row, and say in words how.

    Only stimuli that do not overlap are exchanged: where windows overlap by irregular amounts, as at word onsets, an exchange breaks the
    pattern of overlaps that estimates and candidates share, and the true pairing varies more than any exchanged one. They are still ranked
    among all candidates. Rows that pool windows share more than overlaps, so fewer of their stimuli are exchanged (see `_reach`).
    """
    blocks = test.blocks
    k, n_candidates = max(config.topk), len(blocks)
    by_rank = n_candidates <= FEW_CANDIDATES
    statistic = "mean rank" if by_rank else f"top-{k} accuracy"

    overall, inside = [], np.zeros((len(scores), n_candidates, n_candidates))
    for row, per_seed in enumerate(scores.values()):
        overall.append(
            statistics.by_stimulus(
                np.mean([-statistics.column_ranks(s) if by_rank else statistics.column_hits(s, k) for s in per_seed], 0), units.truth
            )
        )
        for windows, columns, own in _block_columns(units.truth, blocks):
            local = np.mean([statistics.column_ranks(s[np.ix_(windows, columns)]) for s in per_seed], 0)
            inside[row][np.ix_(columns, columns)] = -statistics.by_stimulus(local, own)
    n, seed = config.n_permutations, config.seed
    names = list(scores)
    apart = {reach: thin(test.candidates, reach) for reach in {0.0} | {_reach(name, config) for name in names}}

    def exchange(matrices: Sequence[np.ndarray], rows: Sequence[str], draw: Callable[..., Iterator[np.ndarray]]) -> dict[str, float]:
        """Permute the stimuli of each row that share nothing."""
        found: dict[str, float] = {}
        for reach, kept in apart.items():
            mine = [i for i, name in enumerate(rows) if _reach(name, config) == reach]
            if mine:
                kept_blocks = np.unique(blocks[kept], return_inverse=True)[1]
                part = np.stack([matrices[i][np.ix_(kept, kept)] for i in mine])
                found |= {
                    rows[i]: float(p) for i, p in zip(mine, statistics.permutation_p(part, draw(kept_blocks, n, seed=seed)), strict=True)
                }
        return found

    above_chance = exchange(overall, names, statistics.shuffled_blocks)
    within = exchange(list(inside), names, statistics.shifted_within_blocks)
    # else no block holds two segments that share nothing
    testable = {reach: np.unique(blocks[kept], return_counts=True)[1].max() > 1 for reach, kept in apart.items()}
    out: dict[str, dict[str, float | None]] = {
        name: {
            "p_above_chance": above_chance[name],
            "p_above_shuffled": None,
            "p_within_block": within[name] if testable[_reach(name, config)] else None,
        }
        for name in names
    }
    n_kept = len(apart[0.0])
    methods = {
        "p_above_chance": f"One-sided test of the {statistic} on {n_kept} segments that do not overlap, ranked among all candidates: "
        "blocks in random order, then the list rolled, the same for all subjects; hubs stay hubs "
        f"({n:,} draws; the smallest p there can be is about {_smallest_p(units.shape[1], n_kept, n):.2g}).",
        "p_within_block": "One-sided test of the mean rank among the candidates of the same block, on the same segments, against circular "
        f"shifts inside blocks ({n:,} draws).",
    }
    pooled = [name for name in names if _reach(name, config)]
    if pooled:
        kept = apart[config.context_width]
        methods["p_context"] = (
            f"Rows that pool neighbouring windows ({', '.join(f'`{name}`' for name in pooled)}) are tested on {len(kept)} segments that no "
            f"window within {config.context_width:g} s of both has a part in; the smallest p > chance there can be is about "
            f"{_smallest_p(units.shape[1], len(kept), n):.2g}."
        )
    if "shuffled" in ranks:
        credit = {name: (-r if by_rank else r < k).mean(0) for name, r in ranks.items()}  # (W,)
        against = {name: _control_of(name, names) for name in names if _split(name)[0] != "shuffled"}
        few = units.shape[1] < FEW_BLOCKS
        if against and few:
            gains = [overall[names.index(name)] - overall[names.index(control)] for name, control in against.items()]
            p = exchange(gains, list(against), statistics.shuffled_blocks)
        elif against:
            gains = [np.bincount(units.block, weights=credit[name] - credit[control]) for name, control in against.items()]
            p = dict(zip(against, map(float, statistics.swap_p(np.stack(gains), n_permutations=n, seed=seed)), strict=True))
        for name in against:
            out[name]["p_above_shuffled"] = p[name]
        n_blocks = units.shape[1]
        methods["p_above_shuffled"] = f"One-sided paired test of the {statistic} against the row `shuffled`: " + (
            f"the gain over it, with candidates exchanged as for p > chance ({n_blocks} blocks are too few to swap the two rows)."
            if few
            else f"the two rows swapped at random in each of {n_blocks} blocks, all subjects together "
            f"({n:,} draws; the smallest p there can be is about {max(2.0**-n_blocks, 1 / (n + 1)):.2g})."
        )
        if any(control != "shuffled" for control in against.values()):
            methods["p_above_shuffled"] += " A scorer's row is compared with `shuffled` under the same scorer."
    return out, methods


def _split(name: str) -> tuple[str, str]:
    """Give the row and the scorer that a row's name is made of; the scorer is empty where there is none."""
    for scorer in SCORERS:
        row = name.removesuffix(f"_{scorer}")
        if row in SCORED and row != name:
            return row, scorer
    return name, ""


def _control_of(name: str, names: Sequence[str]) -> str:
    control = f"shuffled_{_split(name)[1]}"
    return control if control in names else "shuffled"


def _reach(name: str, config: EvaluateConfig) -> float:
    """Seconds by which a row's scores reach beyond their window: two windows that share a neighbour are right or wrong together."""
    return config.context_width if _split(name)[1] == "context" else 0.0


def _smallest_p(n_blocks: int, n_candidates: int, n: int) -> float:
    """Give the smallest p that `statistics.shuffled_blocks` can lead to: the true order is one of (n_blocks - 1)! x n_candidates."""
    return max(1 / (math.factorial(min(n_blocks, 20) - 1) * n_candidates), 1 / (n + 1))


def _oracle(blocks: np.ndarray, truth: np.ndarray, config: EvaluateConfig) -> dict[str, Any]:
    """Give what somebody expects who knows the block of a window and guesses inside it."""
    sizes = np.bincount(blocks)[blocks[truth]]  # candidates to guess among, per window
    row: dict[str, Any] = {f"top{k}": {"value": float(np.minimum(1, k / sizes).mean()), "low": None, "high": None} for k in config.topk}
    curve = [np.minimum(1, k / sizes).mean() for k in range(1, sizes.max() + 1)]
    nothing = dict.fromkeys(("p_above_chance", "p_above_shuffled", "p_within_block"))
    return {
        **row,
        "median_rank": float(np.searchsorted(curve, 0.5)),
        "within_block_rank": float((sizes - 1).mean() / 2),
        "n_ties": 0,
        "n_nan": 0,
        "control": False,
        "meaning": MEANINGS["block_oracle"],
        **nothing,
    }


def thin(candidates: Sequence[Segment], reach: float = 0.0) -> np.ndarray:
    """Keep candidates, earliest first, so that no two that are kept share a moment of the same audio; gives their columns.

    With ``reach``, what is shared includes so many seconds before and after a candidate inside its block.
    """
    kept: list[int] = []
    taken: dict[str, list[tuple[float, float, str]]] = {}
    for i, segment in enumerate(candidates):
        heard = [(s.audio, max(s.start, s.start - s.onset), min(s.stop, s.start - s.onset + segment.duration)) for s in segment.spans]
        heard = heard or [(segment.recording, segment.onset, segment.onset + segment.duration)]
        if any(
            max(start, start2) < min(stop, stop2) - 1e-6 + 2 * reach * (block == segment.block)
            for audio, start, stop in heard
            for start2, stop2, block in taken.get(audio, [])
        ):
            continue
        kept.append(i)
        for audio, start, stop in heard:
            taken.setdefault(audio, []).append((start, stop, segment.block))
    return np.array(kept)


def _disjoint(scores: Mapping[str, Sequence[np.ndarray]], test: TestSet, units: _Units, config: EvaluateConfig) -> dict[str, Any]:
    """Rank among candidates that do not overlap, the windows whose own candidate is kept."""
    kept = thin(test.candidates)
    windows = np.flatnonzero(np.isin(test.truth, kept))
    own = np.searchsorted(kept, test.truth[windows])
    ranks = {name: _ranks([s[np.ix_(windows, kept)] for s in per_seed], own)[0] for name, per_seed in scores.items()}
    rows = _accuracies(ranks, units[windows], len(kept), config)
    for name, row in rows.items():
        row["median_rank"] = retrieval.median_rank(ranks[name].ravel())
    oracle = _oracle(np.unique(test.blocks[kept], return_inverse=True)[1], own, config)
    rows["block_oracle"] = {key: oracle[key] for key in (*(f"top{k}" for k in config.topk), "median_rank")}
    chance = {f"top{k}": retrieval.chance(k, len(kept)) for k in config.topk}
    return {"n_candidates": len(kept), "n_windows": len(windows), "chance": chance, "rows": rows}


def _rank_curves(ranks: Mapping[str, np.ndarray], blocks: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Give the fraction of windows among the k best, for about 60 k from 1 to N."""
    n_candidates = len(blocks)
    ks = np.unique(np.geomspace(1, n_candidates, 60).round().astype(int))
    curves = {name: [retrieval.topk_accuracy(r.ravel(), int(k)) for k in ks] for name, r in ranks.items()}
    sizes = np.bincount(blocks)[blocks[truth]]
    curves["block_oracle"] = [np.minimum(1, k / sizes).mean() for k in ks]
    return plain({"k": ks, "chance": ks / n_candidates, "rows": {n: np.round(c, 5) for n, c in curves.items()}})


def _lag(curve: Mapping[float, float] | None, metric: str) -> dict[str, Any] | None:
    """Sort the lag curve and find its peak; a peak within 25 ms of 0 is an artefact.

    A maximum that does not stand out by three standard deviations from the lags at which no brain can answer (100 ms or more before the
    sound, 450 ms or more after it) is no peak; a curve with fewer than four such lags cannot tell, and its maximum counts.
    """
    points = sorted((float(lag), float(value)) for lag, value in (curve or {}).items() if value is not None and math.isfinite(value))
    if not points:
        return None
    lags, values = zip(*points, strict=True)
    silent = [v for lag, v in points if lag <= -0.1 + 1e-9 or lag >= 0.45 - 1e-9]
    floor = np.mean(silent) + 3 * np.std(silent, ddof=1) if len(silent) >= 4 else min(values)
    peak = lags[int(np.argmax(values))] if max(values) > floor else None
    return {
        "lag": list(lags),
        "value": list(values),
        "metric": metric,
        "peak": peak,
        "artefact": peak is not None and abs(peak) <= 0.025 + 1e-9,
    }


def _examples(scores: np.ndarray, ranks: np.ndarray, test: TestSet, config: EvaluateConfig) -> list[dict[str, Any]]:
    """Show windows from the best to the worst rank: what was heard, and the five best candidates."""
    rng = np.random.default_rng(config.seed)
    order = np.lexsort((rng.random(len(ranks)), ranks))
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(config.n_examples, len(order))).round().astype(int))]
    out = []
    for w in chosen:
        best = np.argsort(-np.nan_to_num(scores[w], nan=-np.inf), kind="stable")[:5]
        out.append(
            {
                "heard": _words(test.candidates[test.truth[w]]),
                "subject": test.subjects[w],
                "rank": int(ranks[w]),
                "candidates": [{"text": _words(test.candidates[c]), "correct": bool(c == test.truth[w])} for c in best],
            }
        )
    return out


def _words(segment: Segment) -> str:
    audio, start = place(segment)
    return segment.text or f"{audio}, {start:.1f} to {start + segment.duration:.1f} s"


def _similarity(per_seed: Sequence[np.ndarray], truth: np.ndarray, most: int = 200) -> np.ndarray:
    """Average scores by true stimulus, z-score each row, keep at most 200 evenly spaced stimuli."""
    with np.errstate(invalid="ignore"):  # infinite scores have no mean: their row is NaN
        matrix = statistics.by_stimulus(np.mean(per_seed, 0), truth) / np.bincount(truth)[:, None]
        spread = matrix.std(1, keepdims=True)
        matrix = (matrix - matrix.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
    keep = np.unique(np.linspace(0, len(matrix) - 1, min(most, len(matrix))).round().astype(int))
    return matrix[np.ix_(keep, keep)].astype(np.float32)


def _interval_method(shape: tuple[int, int], config: EvaluateConfig) -> str:
    n_subjects, n_blocks = shape
    if shape == (1, 1):
        return "None: with one subject and one block there is nothing to draw from."
    if n_subjects == 1:
        drawn = f"{n_blocks} blocks; there is one subject, so the interval says nothing about other listeners"
    elif n_blocks == 1:
        drawn = f"{n_subjects} subjects; there is one block, so the interval says nothing about other stimuli"
    else:
        drawn = f"{n_subjects} subjects x {n_blocks} blocks (two-way)"
    return (
        f"{100 * config.confidence:g} % bootstrap over {drawn}; expanded percentiles (Hesterberg 2015), {config.n_bootstrap:,} replicates."
    )


def _warnings(report: RetrievalReport, config: EvaluateConfig) -> list[str]:
    out = list(report.alarms)
    trivial = [f"top-{k}" for k in config.topk if k >= report.n_candidates]
    if trivial:
        out.append(f"Only {report.n_candidates} candidate(s): {', '.join(trivial)} cannot be missed, whatever the estimates are.")
    smallest = _smallest_p(report.blocks, report.disjoint["n_candidates"], config.n_permutations)
    controlled = any(row["control"] for row in report.rows.values())
    if controlled and 1 / (config.n_permutations + 1) >= LEAK:
        out.append(
            f"{config.n_permutations} permutations are too few to find a control above chance: its p cannot fall below {smallest:.2g}. "
            "Raise n_permutations."
        )
    elif controlled and smallest >= LEAK:
        out.append(
            f"{report.blocks} block(s) with {report.n_candidates} candidates are too few to find a control above chance: its p cannot fall "
            f"below {smallest:.2g}. Test on more blocks."
        )
    if report.subjects == report.blocks == 1:
        out.append("One subject and one block: no interval can be given. Test on more blocks.")
    elif report.blocks == 1:
        out.append("One block: the intervals do not contain the variation between stimuli and are too narrow. Test on more blocks.")
    elif min(n for n in (report.subjects, report.blocks) if n > 1) < 5:
        out.append(f"{report.subjects} subject(s) x {report.blocks} blocks are few: the intervals are rough.")
    for name, row in report.rows.items():
        if row["n_nan"]:
            out.append(f"Row `{name}`: scores of {row['n_nan']} window(s) hold NaN, which counts against the row.")
    return out
