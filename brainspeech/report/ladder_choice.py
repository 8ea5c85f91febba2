"""Which variant of a ladder validation chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brainspeech import cache, protocols, segments
from brainspeech.figures import label

from .files import load_history

VALID_K = 10  # what a fit writes down of its validation is top-10


def validation(folder: Path, row: str) -> dict[str, Any] | None:
    """Average the validation accuracy of a row's fits, each at the epoch that was kept: the one with the lowest validation loss."""
    fits = {name: epochs for name, epochs in load_history(folder).items() if name == row or name.startswith(f"{row} (")}
    kept = []
    for epochs in fits.values():
        known = [e for e in epochs if e.get("valid_loss") is not None and e.get("valid_top10") is not None]
        if known:
            kept.append(min(known, key=lambda e: e["valid_loss"]))
    if not kept:
        return None
    found = [float(e["valid_top10"]) for e in kept]
    n_candidates, windows = _valid_windows(folder)
    return {
        "value": float(np.mean(found)),
        "sd": float(np.std(found, ddof=1)) if len(found) > 1 else None,
        "fits": len(found),
        "epochs": [int(e["epoch"]) for e in kept],
        "n_candidates": n_candidates,
        "windows": windows,
    }


def _valid_windows(folder: Path) -> tuple[float | None, str | None]:
    """Give the number of validation's candidates, averaged over folds, and a digest of its windows; None where a run kept no segments.

    Windows of other lengths that begin at the same places have the same digest.
    """
    path = folder / "segments.json"
    if not path.is_file():
        return None, None
    folds = [[s for s in fold.segments if s.split == "valid"] for fold in segments.load(path)]
    n = float(np.mean([len({s.stimulus_id for s in fold}) for fold in folds]))
    return n, cache.digest([sorted(f"{s.recording} {protocols.beginning_of(s.stimulus_id)}" for s in fold) for fold in folds])


def choose(rows: Sequence[Mapping[str, Any]], reference: str) -> tuple[str | None, str]:
    """Find the variant with the highest validation accuracy on the same windows, or say why validation cannot choose."""
    there = [row for row in rows if not row["missing"]]
    known = [row for row in there if row["validation"] is not None]
    silent = [label(row["name"]) for row in there if row["validation"] is None]
    ours = next((row for row in known if row["name"] == reference), known[0] if known else None)
    same = [row for row in known if ours and row["validation"]["windows"] == ours["validation"]["windows"]]
    other = [label(row["name"]) for row in known if row not in same]
    left = f" Not asked, since their fits kept no validation accuracy: {', '.join(silent)}." if silent else ""
    if other:
        left += f" Not asked, since their validation windows are others than those of {label(same[0]['name'])}: {', '.join(other)}."
    few = same[0]["validation"]["n_candidates"] if same else None
    if few is not None and few <= VALID_K:
        return None, f"Validation cannot choose: it has {few:g} candidates, among which every one is in the top {VALID_K}.{left}"
    if len(same) < 2:
        return None, "Validation cannot choose: fewer than two variants have an accuracy on the same validation windows." + left
    best = max(row["validation"]["value"] for row in same)
    equal = [row["name"] for row in same if row["validation"]["value"] == best]
    text = f"Validation chooses {label(equal[0])}: top-{VALID_K} {100 * best:.1f} % on the validation split"
    text += f", the same as {', '.join(map(label, equal[1:]))}; the first in the table is taken" if len(equal) > 1 else ""
    if same[0]["validation"]["windows"] is None:
        text += "; the runs did not keep their segments, so that these are the same windows is taken on trust"
    return equal[0], f"{text}.{left}"
