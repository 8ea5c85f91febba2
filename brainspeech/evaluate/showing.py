"""What a report shows of its scores beside the table: curves, examples in words, the similarity of stimuli."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from brainspeech import retrieval, statistics
from brainspeech.prediction import TestSet, place
from brainspeech.records import Segment

from .config import EvaluateConfig
from .findings import plain


def rank_curves(ranks: Mapping[str, np.ndarray], blocks: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Give the fraction of windows among the k best, for about 60 k from 1 to N."""
    n_candidates = len(blocks)
    ks = np.unique(np.geomspace(1, n_candidates, 60).round().astype(int))
    curves = {name: [retrieval.topk_accuracy(r.ravel(), int(k)) for k in ks] for name, r in ranks.items()}
    sizes = np.bincount(blocks)[blocks[truth]]
    curves["block_oracle"] = [np.minimum(1, k / sizes).mean() for k in ks]
    return plain({"k": ks, "chance": ks / n_candidates, "rows": {n: np.round(c, 5) for n, c in curves.items()}})


def find_lag_peak(curve: Mapping[float, float] | None, metric: str) -> dict[str, Any] | None:
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


def choose_examples(scores: np.ndarray, ranks: np.ndarray, test: TestSet, config: EvaluateConfig) -> list[dict[str, Any]]:
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
    """Quote a segment with where it begins in its audio: neighbours may have the same words."""
    audio, start = place(segment)
    return f"{segment.text} ({start:.1f} s)" if segment.text else f"{audio}, {start:.1f} to {start + segment.duration:.1f} s"


def mean_similarity(per_seed: Sequence[np.ndarray], truth: np.ndarray, most: int = 200) -> np.ndarray:
    """Average scores by true stimulus, z-score each row, keep at most 200 evenly spaced stimuli."""
    with np.errstate(invalid="ignore"):  # infinite scores have no mean: their row is NaN
        matrix = statistics.by_stimulus(np.mean(per_seed, 0), truth) / np.bincount(truth)[:, None]
        spread = matrix.std(1, keepdims=True)
        matrix = (matrix - matrix.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)
    keep = np.unique(np.linspace(0, len(matrix) - 1, min(most, len(matrix))).round().astype(int))
    return matrix[np.ix_(keep, keep)].astype(np.float32)
