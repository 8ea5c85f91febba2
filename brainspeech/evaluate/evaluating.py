"""Scores of every row -> RetrievalReport."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from brainspeech import retrieval
from brainspeech.prediction import TestSet

from .accuracies import Units, among_disjoint, block_oracle, interval_method, ranks_per_seed, ranks_within_blocks, topk_accuracies
from .config import EvaluateConfig
from .findings import LEAK, MEANINGS, RetrievalReport, plain
from .showing import choose_examples, find_lag_peak, mean_similarity, rank_curves
from .significance import p_values, row_and_scorer, smallest_p

CONTROLS = ("noise", "shuffled")


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
    units = Units(np.searchsorted(subjects, test.subjects), blocks[test.truth], test.truth)
    lead = "encoder" if "encoder" in scores else next(iter(scores))

    ranks: dict[str, np.ndarray] = {}
    table: dict[str, dict[str, Any]] = {}
    for name, per_seed in scores.items():
        ranks[name], n_ties, n_nan = ranks_per_seed(per_seed, test.truth)
        within = [ranks_within_blocks(s, test.truth, blocks) for s in per_seed]
        table[name] = {
            "median_rank": retrieval.median_rank(ranks[name].ravel()),
            "within_block_rank": float(np.mean(within)),
            "n_ties": n_ties,
            "n_nan": n_nan,
            "control": name in controls or row_and_scorer(name)[0] in controls,
            "meaning": (meanings or {}).get(name, MEANINGS.get(name, "")),
        }
    tests, methods = p_values(scores, ranks, units, test, config)
    for name, accuracies in topk_accuracies(ranks, units, n_candidates, config).items():
        table[name] = {**accuracies, **table[name], **tests[name]}
    table["block_oracle"] = block_oracle(blocks, test.truth, config)
    chance: dict[str, float] = {f"top{k}": retrieval.chance(k, n_candidates) for k in config.topk}
    chance |= {"median_rank": (n_candidates - 1) / 2, "within_block_rank": table["block_oracle"]["within_block_rank"]}

    report = RetrievalReport(
        n_candidates=n_candidates,
        n_windows=n_windows,
        chance=chance,
        rows=table,
        disjoint=among_disjoint(scores, test, units, config),
        per_subject={
            subject: {
                "windows": int(mine.sum()),
                "rows": topk_accuracies({name: r[:, mine] for name, r in ranks.items()}, units[mine], n_candidates, config),
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
        methods={"interval": interval_method(units.shape, config), **methods},
        curves={"lead": lead, "rank": rank_curves(ranks, blocks, test.truth), "lag": find_lag_peak(lag_curve, lag_metric)},
        examples=choose_examples(scores[lead][0], ranks[lead][0], test, config),
        title=title,
        similarity=mean_similarity(scores[lead], test.truth),
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


def _warnings(report: RetrievalReport, config: EvaluateConfig) -> list[str]:
    out = list(report.alarms)
    trivial = [f"top-{k}" for k in config.topk if k >= report.n_candidates]
    if trivial:
        out.append(f"Only {report.n_candidates} candidate(s): {', '.join(trivial)} cannot be missed, whatever the estimates are.")
    smallest = smallest_p(report.blocks, report.disjoint["n_candidates"], config.n_permutations)
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
