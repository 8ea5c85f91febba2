"""The p values of a report: above chance, above the shuffled control, inside blocks; and which stimuli can be exchanged for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from brainspeech import statistics
from brainspeech.prediction import TestSet
from brainspeech.scorers import SCORERS

from .accuracies import Units, block_columns, thin
from .config import EvaluateConfig

SCORED = ("encoder", "shuffled")  # rows that scorers are applied to
FEW_BLOCKS = 11  # 2^10 swaps cannot reach p < 0.001, so with fewer blocks candidates are permuted instead
FEW_CANDIDATES = 20  # top-10 of so few is near 1 for everyone: the mean rank is tested instead


def p_values(
    scores: Mapping[str, Sequence[np.ndarray]],
    ranks: Mapping[str, np.ndarray],
    units: Units,
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
        for windows, columns, own in block_columns(units.truth, blocks):
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
        f"({n:,} draws; the smallest p there can be is about {smallest_p(units.shape[1], n_kept, n):.2g}).",
        "p_within_block": "One-sided test of the mean rank among the candidates of the same block, on the same segments, against circular "
        "shifts inside blocks: the segments of a block keep their order and are rolled, each block by its own amount. "
        + _shifts(blocks[apart[0.0]], n),
    }
    pooled = [name for name in names if _reach(name, config)]
    if pooled:
        kept = apart[config.context_width]
        methods["p_context"] = (
            f"Rows that pool neighbouring windows ({', '.join(f'`{name}`' for name in pooled)}) are tested on {len(kept)} segments that no "
            f"window within {config.context_width:g} s of both has a part in; the smallest p > chance there can be is about "
            f"{smallest_p(units.shape[1], len(kept), n):.2g}."
        )
    if "shuffled" in ranks:
        credit = {name: (-r if by_rank else r < k).mean(0) for name, r in ranks.items()}  # (W,)
        against = {name: _control_of(name, names) for name in names if row_and_scorer(name)[0] != "shuffled"}
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


def _shifts(blocks: np.ndarray, n: int) -> str:
    """Say how many combinations of shifts blocks have, and how small p can be with them."""
    sizes = np.unique(blocks, return_counts=True)[1].tolist()
    total = math.prod(sizes)
    if total == 1:
        return "No block holds two of them, so there is nothing to roll."
    each = f"{min(sizes)} to {max(sizes)}" if min(sizes) < max(sizes) else f"{max(sizes)}"
    combinations = f"{total:,}" if total < 1_000_000 else f"about {float(total):.0e}"
    return (
        f"{len(sizes)} block(s) of {each} segments have {combinations} combinations of shifts, the true one among "
        f"them ({n:,} draws; the smallest p there can be is about {max(1 / total, 1 / (n + 1)):.2g})."
    )


def row_and_scorer(name: str) -> tuple[str, str]:
    """Give the row and the scorer that a row's name is made of; the scorer is empty where there is none."""
    for scorer in SCORERS:
        row = name.removesuffix(f"_{scorer}")
        if row in SCORED and row != name:
            return row, scorer
    return name, ""


def _control_of(name: str, names: Sequence[str]) -> str:
    control = f"shuffled_{row_and_scorer(name)[1]}"
    return control if control in names else "shuffled"


def _reach(name: str, config: EvaluateConfig) -> float:
    """Seconds by which a row's scores reach beyond their window: two windows that share a neighbour are right or wrong together."""
    return config.context_width if row_and_scorer(name)[1] == "context" else 0.0


def smallest_p(n_blocks: int, n_candidates: int, n: int) -> float:
    """Give the smallest p that `statistics.shuffled_blocks` can lead to: the true order is one of (n_blocks - 1)! x n_candidates."""
    return max(1 / (math.factorial(min(n_blocks, 20) - 1) * n_candidates), 1 / (n + 1))
