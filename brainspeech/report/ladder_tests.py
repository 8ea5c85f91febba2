"""The variants of a ladder against its reference, window by window: seeds, differences, and two tests with Holm's correction."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brainspeech import statistics

from .comparison import Pairs, difference, pair
from .files import Ranks, load_ranks

FIT_ERRORS = 2  # a difference within so many standard errors over seeds may be the luck of the fits


def read_ranks(rows: Sequence[dict[str, Any]]) -> dict[str, Ranks | str | None]:
    """Read the ranks of every variant with a result; a sentence where they cannot be read."""
    out: dict[str, Ranks | str | None] = {}
    for row in rows:
        if not row["missing"]:
            try:
                out[row["name"]] = load_ranks(row["folder"])
            except RuntimeError as error:
                out[row["name"]] = str(error)
    return out


def add_seeds(row: dict[str, Any], ranks: Ranks | str | None, ks: Sequence[int]) -> None:
    """Put the accuracy of each seed beside the mean of all, and their standard deviation."""
    if not isinstance(ranks, Ranks) or row["row"] not in ranks.rows:
        return
    for k in ks:
        each = (ranks.rows[row["row"]] < k).mean(1)
        row["accuracy"][f"top{k}"] |= {"seeds": [float(x) for x in each], "sd": float(np.std(each, ddof=1)) if len(each) > 1 else None}


def identical(rows: Sequence[Mapping[str, Any]], ranks: Mapping[str, Ranks | str | None]) -> tuple[tuple[str, ...], ...]:
    """Group the variants whose ranks are the same in every window, seed by seed, among the same candidates."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        kept = ranks.get(row["name"])
        if isinstance(kept, Ranks) and row["row"] in kept.rows:
            groups.setdefault(_digest(kept, row["row"]), []).append(row["name"])
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def _digest(kept: Ranks, row: str) -> str:
    """Give a digest of a row's ranks, whatever the order of its windows."""
    order = np.argsort(kept.windows)
    out = hashlib.sha256(repr((kept.candidates.tolist(), kept.windows[order].tolist(), kept.rows[row].shape)).encode())
    out.update(np.ascontiguousarray(kept.rows[row][:, order], dtype=np.int64).tobytes())
    return out.hexdigest()


def compare_all(rows: Sequence[dict[str, Any]], ranks: Mapping[str, Ranks | str | None], reference: str, k: int, **options: int) -> int:
    """Compare every row with the reference and correct the p values of each test for their number, which is returned."""
    first = next(row for row in rows if row["name"] == reference)
    tested = []
    for row in rows:
        if row is first:
            continue
        pairs = _pairs(first, row, ranks, k)
        if isinstance(pairs, str):
            row["difference"] = {"why": pairs}
            continue
        found = difference(pairs, **options)
        error = _fit_error(pairs)
        row["difference"] = {key: found[key] for key in ("value", "low", "high")} | {
            "n_windows": len(pairs.subjects),
            "reference": float(pairs.first.mean()),
            "partly": any(pairs.left),
            "by_beginning": pairs.by_beginning,
            "fit_error": error,
            "beyond_fits": None if error is None else abs(found["value"]) > FIT_ERRORS * error,
        }
        row["subjects_test"] = over_subjects(pairs)
        n_blocks = len(np.unique(pairs.blocks))
        row["blocks_test"] = {"p": found["p"], "n": n_blocks, "smallest": min(1.0, 2.0 ** (1 - n_blocks))}
        tested.append(row)
    for test in ("subjects_test", "blocks_test"):
        for row, corrected in zip(tested, statistics.holm([row[test]["p"] for row in tested]), strict=True):
            row[test]["holm"] = float(corrected)
    return len(tested)


def _pairs(first: Mapping[str, Any], other: Mapping[str, Any], ranks: Mapping[str, Ranks | str | None], k: int) -> Pairs | str:
    """Put the windows of a variant beside those of the reference, or say why that is impossible."""
    if other["missing"]:
        return "no result"
    if first["missing"]:
        return "the reference has no result"
    a, b = ranks[first["name"]], ranks[other["name"]]
    if isinstance(a, str):
        return a
    if isinstance(b, str):
        return b
    return pair((a, first["row"]), (b, other["row"]), k, folders=(Path(first["folder"]), Path(other["folder"])))


def _fit_error(pairs: Pairs) -> float | None:
    """Give the standard error of a difference that comes from the fits alone; None where one of the two has one seed."""
    n = [len(pairs.first), len(pairs.other)]
    if min(n) < 2:
        return None
    return math.sqrt(sum(float(np.var(hits.mean(1), ddof=1)) / len(hits) for hits in (pairs.first, pairs.other)))


def over_subjects(pairs: Pairs) -> dict[str, Any]:
    """Test by signed ranks the differences of the subjects' accuracies, each averaged over seeds.

    Returns
    -------
    dict
        ``p``, two-sided; ``n`` subjects; in how many the variant is ``better``, ``worse``, ``equal``; the ``smallest`` p of n subjects.
    """
    subjects, of = np.unique(pairs.subjects, return_inverse=True)
    per_subject = np.bincount(of, weights=pairs.gain) / np.bincount(of)
    moved = np.where(np.abs(per_subject) > statistics.TOLERANCE, np.sign(per_subject), 0)
    return {
        "p": statistics.signed_rank_p(per_subject),
        "n": len(subjects),
        "better": int((moved > 0).sum()),
        "worse": int((moved < 0).sum()),
        "equal": int((moved == 0).sum()),
        "smallest": statistics.smallest_signed_rank_p(len(subjects)),
    }
