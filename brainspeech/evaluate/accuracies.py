"""Ranks -> top-k accuracies with intervals, over all windows, of a subject, and among candidates that do not overlap."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brainspeech import retrieval, statistics
from brainspeech.prediction import TestSet
from brainspeech.records import Segment

from .config import EvaluateConfig
from .findings import MEANINGS


@dataclass(frozen=True, eq=False)
class Units:
    """Which subject, block and stimulus a window belongs to, as numbers."""

    subject: np.ndarray
    block: np.ndarray
    truth: np.ndarray

    def __getitem__(self, keep: np.ndarray) -> Units:
        return Units(*(np.unique(part[keep], return_inverse=True)[1] for part in (self.subject, self.block, self.truth)))

    @property
    def shape(self) -> tuple[int, int]:
        return int(self.subject.max()) + 1, int(self.block.max()) + 1


def ranks_per_seed(per_seed: Sequence[np.ndarray], truth: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Rank every window's own candidate: (ranks (n_seeds, W), windows with ties, windows with NaN)."""
    found = [retrieval.ranks_from_scores(s, truth) for s in per_seed]
    return np.stack([f.ranks.numpy() for f in found]), sum(f.n_ties for f in found), sum(f.n_nan for f in found)


def block_columns(truth: np.ndarray, blocks: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Give (windows, columns, column of each window's own candidate among them) of each block."""
    for block in range(blocks.max() + 1):
        windows, columns = np.flatnonzero(blocks[truth] == block), np.flatnonzero(blocks == block)
        yield windows, columns, np.searchsorted(columns, truth[windows])


def ranks_within_blocks(scores: np.ndarray, truth: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Rank every window's own candidate among those of its block; shape (W,)."""
    out = np.empty(len(truth))
    for windows, columns, own in block_columns(truth, blocks):
        out[windows] = ranks_per_seed([scores[np.ix_(windows, columns)]], own)[0][0]
    return out


def topk_accuracies(ranks: Mapping[str, np.ndarray], units: Units, n_candidates: int, config: EvaluateConfig) -> dict[str, dict[str, Any]]:
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


def interval_method(shape: tuple[int, int], config: EvaluateConfig) -> str:
    """Say in words how intervals of so many subjects and blocks are made."""
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


def block_oracle(blocks: np.ndarray, truth: np.ndarray, config: EvaluateConfig) -> dict[str, Any]:
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


def among_disjoint(scores: Mapping[str, Sequence[np.ndarray]], test: TestSet, units: Units, config: EvaluateConfig) -> dict[str, Any]:
    """Rank among candidates that do not overlap, the windows whose own candidate is kept."""
    kept = thin(test.candidates)
    windows = np.flatnonzero(np.isin(test.truth, kept))
    own = np.searchsorted(kept, test.truth[windows])
    ranks = {name: ranks_per_seed([s[np.ix_(windows, kept)] for s in per_seed], own)[0] for name, per_seed in scores.items()}
    rows = topk_accuracies(ranks, units[windows], len(kept), config)
    for name, row in rows.items():
        row["median_rank"] = retrieval.median_rank(ranks[name].ravel())
    oracle = block_oracle(np.unique(test.blocks[kept], return_inverse=True)[1], own, config)
    rows["block_oracle"] = {key: oracle[key] for key in (*(f"top{k}" for k in config.topk), "median_rank")}
    chance = {f"top{k}": retrieval.chance(k, len(kept)) for k in config.topk}
    return {"n_candidates": len(kept), "n_windows": len(windows), "chance": chance, "rows": rows}
