"""What is decoded: words instead of segments, words that training never had, repeated presentations, and what relates to it.

All of it from the scores of one row against the candidates; nothing is fitted to the test windows but the regression that describes them.

Shapes: W test windows, N candidates (distinct stimuli), V words; scores (W, N), higher is nearer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from brainspeech import lexicon, related, retrieval, statistics
from brainspeech.evaluate import EvaluateConfig, plain
from brainspeech.prediction import TestSet, place
from brainspeech.protocols import normalised, overlapping, words_of
from brainspeech.records import Segment

CHUNK = 2048  # windows whose scores are aggregated at once: bounds the memory
SAME_PLACE = 0.02  # s; the same segment of two recordings starts at the same place of the sound but for the triggers' jitter


def describe(
    per_seed: Sequence[np.ndarray],
    test: TestSet,
    folds: Sequence[Sequence[Segment]],
    *,
    config: EvaluateConfig | None = None,
    sets: Sequence[str] = (),
    events: Mapping[str, pd.DataFrame] | None = None,
    anchor: float = 0.5,
    language: str = "en",
    spacy_model: Any = "en_core_web_md",
    phrase_model: str = "",
    progress: bool = False,
) -> dict[str, Any]:
    """Say what a row decodes, as plain values: ``words``, ``repeats``, ``regression``.

    Parameters
    ----------
    per_seed : sequence of array, shape (W, N) or (N,)
        Scores of the row, one per seed.
    test : TestSet
    folds : sequence of sequence of Segment
        All segments of each fold; its test windows, fold after fold, are those of ``test``.
    config : EvaluateConfig
        The k, and the replicates and the seed of intervals and tests.
    sets : sequence of str
        Sets of word features (``lexicon.SETS``); none: no regression.
    events : mapping of str to DataFrame, optional
        Events tables by recording, for phonemes and for words that a training window cuts.
    anchor : float
        Seconds from the start of a window to its anchor: ``-segments.tmin``.
    language, spacy_model, phrase_model
        See ``lexicon.make``.

    Returns
    -------
    dict
        A part that cannot be given holds ``why`` instead; one that was not asked for, or has nothing to say, is empty.

    Raises
    ------
    ValueError
        If the folds' test windows are not those of ``test``, scores are not (W, N), or a set of features or the language is unknown.
    """
    config = config or EvaluateConfig()
    windows = [s for fold in folds for s in fold if s.split == "test"]
    if [s.recording for s in windows] != list(test.recordings):
        raise ValueError(
            f"The folds hold {len(windows)} test windows, which are not the {len(test.recordings)} that were scored. Pass the segments "
            "that the test set was made of."
        )
    lexicon.check(sets, language=language)
    scores = [_checked(s, test) for s in per_seed]
    found = {
        "words": words(scores, test, seen_in_training(folds, events), config=config),
        "repeats": repeats(scores, test, windows, config=config),
        "regression": {},
    }
    if sets:
        found["regression"] = related.relations(
            scores,
            test,
            sets,
            n_permutations=config.n_permutations,
            seed=config.seed,
            phonemes=related.anchor_phonemes(test.candidates, events or {}, anchor),
            language=language,
            spacy_model=spacy_model,
            phrase_model=phrase_model,
            progress=progress,
        )
    return plain(found)


def _checked(scores: np.ndarray, test: TestSet) -> np.ndarray:
    scores, shape = np.asarray(scores, np.float32), (len(test.truth), len(test.candidates))
    scores = np.tile(scores, (shape[0], 1)) if scores.ndim == 1 else scores
    if scores.shape != shape:
        raise ValueError(f"Expected scores of shape {shape}, or {shape[1:]} where all windows have the same, got {scores.shape}.")
    return scores


# --------------------------------------------------------------------------------------------------------------------------------- words


def seen_in_training(folds: Sequence[Sequence[Segment]], events: Mapping[str, pd.DataFrame] | None = None) -> np.ndarray:
    """Tell of each test window whether its anchor word sounds in a training window of its own fold; shape (W,), bool.

    Words are compared in lower case and without punctuation. A window's own text holds the words whose middle is inside; a word that it
    cuts was heard in training too, and the events tables, by recording, know it.
    """
    out: list[bool] = []
    tables = {uid: words_of(table) for uid, table in (events or {}).items()}
    for fold in folds:
        of_recording: dict[str, list[Segment]] = {}
        for s in fold:
            if s.split == "train":
                of_recording.setdefault(s.recording, []).append(s)
        heard = {s.text for own in of_recording.values() for s in own}
        heard |= {text for uid, own in of_recording.items() if uid in tables for text in overlapping(own, tables[uid])}
        vocabulary = {word for text in heard for word in normalised(text)}
        out += [all(word in vocabulary for word in normalised(s.word)) for s in fold if s.split == "test"]
    return np.array(out, bool)


def words(scores: Sequence[np.ndarray], test: TestSet, seen: np.ndarray, *, config: EvaluateConfig) -> dict[str, Any]:
    """Compute top-k accuracies of the anchor word, for all windows, and for words that training had or had not.

    Parameters
    ----------
    scores : sequence of array, shape (W, N)
        One per seed; the logits of a softmax over candidates, as they are.
    seen : array of bool, shape (W,)
        From ``seen_in_training``.

    Returns
    -------
    dict
        ``windows``, ``candidates``, ``vocabulary`` (V); ``left_out`` (windows and candidates without an anchor word); ``chance``;
        ``spread``, the effective number of candidates of the softmax as a share of N, median over windows; and
        ``groups.{all,seen,unseen}`` with ``windows``, ``words``, ``sum``, ``nearest`` and ``segment`` (top-k with interval: of the word
        whose candidates' probabilities sum highest, of the word with the nearest candidate, of the segment) and ``frequent`` (the same k
        words for every window, those that are right most often). Or ``why``.
    """
    names = [" ".join(normalised(c.word)) for c in test.candidates]
    columns = np.flatnonzero([name != "" for name in names])
    if not len(columns):
        return {"why": related.NO_ANCHORS}
    vocabulary = list(dict.fromkeys(names[c] for c in columns))
    word_of = np.full(len(names), -1)
    word_of[columns] = [vocabulary.index(names[c]) for c in columns]
    kept = np.flatnonzero(word_of[test.truth] >= 0)
    own = word_of[test.truth[kept]]
    if len(vocabulary) < 2:
        return {"why": f"All {len(kept)} windows with an anchor word have the same one, {vocabulary[0]!r}."}
    ranks: dict[str, np.ndarray] = {name: np.empty((len(scores), len(kept)), int) for name in ("sum", "nearest", "segment")}
    spread = []
    for i, of_seed in enumerate(scores):
        for start in range(0, len(kept), CHUNK):
            part = slice(start, start + CHUNK)
            rows = np.asarray(of_seed[kept[part]], float)
            summed, nearest = by_word(rows[:, columns], word_of[columns])
            ranks["sum"][i, part] = retrieval.ranks_from_scores(summed, own[part]).ranks
            ranks["nearest"][i, part] = retrieval.ranks_from_scores(nearest, own[part]).ranks
            ranks["segment"][i, part] = retrieval.ranks_from_scores(rows, test.truth[kept[part]]).ranks
            spread.append(effective_number(rows))
    often = [word for word, _ in Counter(own.tolist()).most_common()]  # of equals the one that is heard first
    constant = np.argsort(np.array([*often, *sorted(set(range(len(vocabulary))) - set(often))]))[own]  # (kept,)
    groups = {}
    for name, mine in (("all", np.ones(len(kept), bool)), ("seen", seen[kept]), ("unseen", ~seen[kept])):
        group: dict[str, Any] = {"windows": int(mine.sum()), "words": len(set(own[mine].tolist()))}
        if mine.any():
            units = _Units.of(test, kept[mine])
            n = {"sum": len(vocabulary), "nearest": len(vocabulary), "segment": len(names)}
            group |= {how: _accuracies(r[:, mine], units, n[how], config) for how, r in ranks.items()}
            group["frequent"] = {f"top{k}": retrieval.topk_accuracy(constant[mine], k) for k in config.topk}
        groups[name] = group
    return {
        "windows": len(kept),
        "candidates": len(columns),
        "vocabulary": len(vocabulary),
        "left_out": {"windows": len(test.truth) - len(kept), "candidates": len(names) - len(columns)},
        "chance": {f"top{k}": retrieval.chance(k, len(vocabulary)) for k in config.topk},
        "spread": float(np.median(np.concatenate(spread))) / len(names),
        "groups": groups,
    }


def by_word(scores: np.ndarray, word_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Aggregate scores (W, N) over the candidates of each of V words.

    Parameters
    ----------
    word_of : array of int, shape (N,)
        Word of each candidate, from 0 to V - 1, each at least once.

    Returns
    -------
    tuple of array, shape (W, V)
        Logarithm of the sum of exp(score), which orders words as their summed softmax probabilities do, without underflow; and the highest
        score.
    """
    order = np.argsort(word_of, kind="stable")
    starts = np.searchsorted(word_of[order], np.arange(int(word_of.max()) + 1))
    sorted_scores = np.asarray(scores, float)[:, order]
    highest = np.maximum.reduceat(sorted_scores, starts, axis=1)
    shift = np.where(np.isneginf(highest), 0, highest)
    with np.errstate(divide="ignore", invalid="ignore"):  # minus infinity has probability 0, NaN and plus infinity have none: a miss
        total = np.add.reduceat(np.exp(sorted_scores - shift[:, word_of[order]]), starts, axis=1)
        return np.log(total) + shift, highest


def effective_number(scores: np.ndarray) -> np.ndarray:
    """Give how many candidates a softmax over (W, N) scores spreads over: exp of its entropy, from 1 to N; shape (W,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return np.exp(-(p * np.log(np.where(p > 0, p, 1))).sum(1))


@dataclass(frozen=True, eq=False)
class _Units:
    """Subject and block of some windows, numbered from 0, each of shape (W,), and how many stimuli they are of."""

    subject: np.ndarray
    block: np.ndarray
    n_stimuli: int

    @classmethod
    def of(cls, test: TestSet, windows: np.ndarray) -> _Units:
        truth = test.truth[windows]
        subjects, blocks = np.array(test.subjects)[windows], test.blocks[truth]
        subject, block = (np.unique(part, return_inverse=True)[1] for part in (subjects, blocks))
        return cls(subject, block, len(np.unique(truth)))


def _limits(values: np.ndarray, units: _Units, config: EvaluateConfig) -> np.ndarray | None:
    """Bootstrap the means of (M, W) values over subjects x blocks; (M, 2), or None where nothing can be drawn."""
    shape = (int(units.subject.max()) + 1, int(units.block.max()) + 1)
    counts = statistics.cell_sums(np.ones(len(units.subject)), units.subject, units.block, shape)[0]
    sums = statistics.cell_sums(values, units.subject, units.block, shape)
    return statistics.interval(sums, counts, n_bootstrap=config.n_bootstrap, confidence=config.confidence, seed=config.seed)


def _accuracies(ranks: np.ndarray, units: _Units, n: int, config: EvaluateConfig) -> dict[str, dict[str, float | None]]:
    """Give top-k of ranks (n_seeds, W) among n, hits averaged over seeds, each with its interval.

    Where all are missed, or all hit although k < n, the interval is that of Clopper and Pearson over stimuli, as in the main table.
    """
    limits = _limits(np.stack([(ranks < k).mean(0) for k in config.topk]), units, config)
    of_none, of_all = statistics.exact_limits(units.n_stimuli, config.confidence)
    out: dict[str, dict[str, float | None]] = {}
    for m, k in enumerate(config.topk):
        value = retrieval.topk_accuracy(ranks.ravel(), k)
        low, high = (None, None) if limits is None else (float(limits[m, 0]), float(limits[m, 1]))
        if limits is not None and k < n and value in (0, 1):
            low, high = (0.0, of_none) if value == 0 else (of_all, 1.0)
        out[f"top{k}"] = {"value": value, "low": low, "high": high}
    return out


# ------------------------------------------------------------------------------------------------------------------------------- repeats


def repeats(scores: Sequence[np.ndarray], test: TestSet, windows: Sequence[Segment], *, config: EvaluateConfig) -> dict[str, Any]:
    """Average scores over the first r presentations of the same segment to the same subject, and compute accuracy against r.

    R is the largest number of presentations that at least half of the repeated segments have; only those that have R count, the same for
    every r.

    Parameters
    ----------
    windows : sequence of Segment
        The W test windows.

    Returns
    -------
    dict
        ``presentations`` (R), ``pairs`` (subject and segment), ``repeated`` (pairs with two or more); ``averaged``, top-k with interval
        for r = 1 to R; ``alone``, top-k of each presentation by itself; ``gain``, top-k at R minus top-k at 1 with interval. Empty if
        nothing is repeated.
    """
    groups = [own for own in presentations(test, windows) if len(own) > 1]
    if not groups:
        return {}
    sizes = np.array([len(own) for own in groups])
    most = int(np.sort(sizes)[len(sizes) // 2])
    chosen = np.array([own[:most] for own in groups if len(own) >= most])  # (pairs, R)
    truth = test.truth[chosen[:, 0]]
    units = _Units.of(test, chosen[:, 0])
    averaged, alone = (np.empty((len(scores), most, len(chosen)), int) for _ in range(2))
    for i, of_seed in enumerate(scores):
        for start in range(0, len(chosen), CHUNK):
            part = slice(start, start + CHUNK)
            total = np.zeros((len(truth[part]), len(test.candidates)))
            for r in range(most):
                rows = np.asarray(of_seed[chosen[part, r]], float)
                total += rows
                averaged[i, r, part] = retrieval.ranks_from_scores(total / (r + 1), truth[part]).ranks
                alone[i, r, part] = retrieval.ranks_from_scores(rows, truth[part]).ranks
    gains = np.stack([(averaged[:, -1] < k).mean(0) - (averaged[:, 0] < k).mean(0) for k in config.topk])  # (K, pairs)
    limits = _limits(gains, units, config)
    return {
        "presentations": most,
        "pairs": len(chosen),
        "repeated": len(groups),
        "averaged": [_accuracies(averaged[:, r], units, len(test.candidates), config) for r in range(most)],
        "alone": [{f"top{k}": retrieval.topk_accuracy(alone[:, r].ravel(), k) for k in config.topk} for r in range(most)],
        "gain": {
            f"top{k}": {
                "value": float(gains[m].mean()),
                "low": None if limits is None else float(limits[m, 0]),
                "high": None if limits is None else float(limits[m, 1]),
            }
            for m, k in enumerate(config.topk)
        },
    }


def presentations(test: TestSet, windows: Sequence[Segment]) -> list[list[int]]:
    """Group windows by subject and segment, in the order heard; windows that overlap in a recording are one presentation, the first.

    Only windows at the same place of the same sound are the same segment, whatever their identity is (that of the paper is its words).
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for i, segment in enumerate(windows):
        groups.setdefault((segment.subject, int(test.truth[i])), []).append(i)
    order = {uid: n for n, uid in enumerate(dict.fromkeys(test.recordings))}
    out = []
    for own in groups.values():
        own.sort(key=lambda i: (order[windows[i].recording], windows[i].onset))
        kept: list[int] = []
        for i in own:
            (audio, start), (first_audio, first_start) = place(windows[i]), place(windows[own[0]])
            if audio != first_audio or abs(start - first_start) > SAME_PLACE:
                continue
            last = windows[kept[-1]] if kept else None
            if last is None or last.recording != windows[i].recording or windows[i].onset >= last.onset + last.duration - SAME_PLACE:
                kept.append(i)
        out.append(kept)
    return out
