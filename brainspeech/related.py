"""What the well decoded stimuli have in common: the rank of each stimulus, related to features of its words.

Shapes: W test windows, N candidates (distinct stimuli); scores (W, N), higher is nearer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from brainspeech import lexicon, regression, retrieval
from brainspeech.prediction import TestSet
from brainspeech.protocols import normalised
from brainspeech.records import Segment

NEAR_ANCHOR = 0.05  # s; an anchor was rounded to a sample of the signal
MOST_PERMUTATIONS = 1000  # each is refitted
NO_ANCHORS = (
    "No test window is anchored on a word (segments.test_anchors is 'grid', or the dataset has no words), so no word stands for a window."
)


def anchor_phonemes(candidates: Sequence[Segment], events: Mapping[str, pd.DataFrame], anchor: float) -> list[tuple[str, ...] | None]:
    """Find the phonemes of each candidate's anchor word in the events of the recording it was first heard in; None where there are none."""
    tables = {}
    for uid in {c.recording for c in candidates} & set(events):
        kind = events[uid]["kind"].to_numpy()
        tables[uid] = tuple(events[uid][kind == k].sort_values("onset", kind="stable") for k in ("word", "phoneme"))
    out: list[tuple[str, ...] | None] = []
    for c in candidates:
        word, phoneme = tables.get(c.recording, (None, None))
        out.append(None)
        if word is None or phoneme is None or not c.word or not len(phoneme):
            continue
        near = np.flatnonzero(
            (np.abs(word["onset"].to_numpy() - c.onset - anchor) <= NEAR_ANCHOR) & (word["text"].to_numpy(dtype=object) == c.word)
        )
        if len(near):
            begin = float(word["onset"].iloc[near[0]])
            end = begin + float(word["duration"].iloc[near[0]])
            low, high = np.searchsorted(phoneme["onset"].to_numpy(), [begin - 1e-3, end - 1e-3])
            out[-1] = tuple(phoneme["text"].iloc[low:high]) or None
    return out


def log_odds_of_rank(scores: Sequence[np.ndarray], test: TestSet) -> np.ndarray:
    """Give how well each window is decoded: log((N - rank - 1/2) / (rank + 1/2)), averaged over seeds; shape (W,).

    The log-odds that the true segment is before a random candidate. Unlike the softmax's own log-odds it does not depend on the scale of
    the scores, which differs between subjects and losses, nor on a few windows with large scores.
    """
    n = len(test.candidates)
    ranks = np.stack([retrieval.ranks_from_scores(s, test.truth).ranks.numpy() for s in scores])
    return np.log((n - ranks - 0.5) / (ranks + 0.5)).mean(0)


def by_stimulus(values: np.ndarray, test: TestSet) -> np.ndarray:
    """Average values (W,) over the windows of each candidate, each subject around its own mean; shape (N,)."""
    subject = np.unique(test.subjects, return_inverse=True)[1]
    centred = values - (np.bincount(subject, weights=values) / np.bincount(subject))[subject]
    return np.bincount(test.truth, weights=centred) / np.bincount(test.truth)


def relations(
    scores: Sequence[np.ndarray],
    test: TestSet,
    sets: Sequence[str],
    *,
    n_permutations: int = MOST_PERMUTATIONS,
    seed: int = 0,
    phonemes: Sequence[tuple[str, ...] | None] = (),
    language: str = "en",
    spacy_model: Any = "en_core_web_md",
    phrase_model: str = "",
    progress: bool = False,
) -> dict[str, Any]:
    """Relate how well stimuli are decoded to features of their words.

    Parameters
    ----------
    sets : sequence of str
        Of ``lexicon.SETS``. A set whose library is missing says so and the others are made.
    n_permutations : int
        At most 1000 are made.
    phonemes : sequence of tuple of str or None, length N
        Of each candidate's anchor word. Letters are counted instead where one is not known.

    Returns
    -------
    dict
        ``stimuli``, ``left_out``, ``blocks``, ``subjects``, ``permutations``; and ``sets.NAME`` with ``r``, ``low``, ``high``, ``p``,
        ``p_holm``, ``n_features`` and ``note``, or ``why``.
    """
    anchored = any(normalised(c.word) for c in test.candidates)
    kept = [j for j, c in enumerate(test.candidates) if normalised(c.word if anchored else c.text)]
    blocks = np.unique(test.blocks[kept], return_inverse=True)[1] if kept else np.empty(0, int)
    n_permutations = min(n_permutations, MOST_PERMUTATIONS)
    found: dict[str, Any] = {
        "stimuli": len(kept),
        "left_out": len(test.candidates) - len(kept),
        "blocks": len(np.unique(blocks)),
        "subjects": len(set(test.subjects)),
        "permutations": n_permutations,
    }
    if found["blocks"] < regression.FEWEST_BLOCKS:
        return found | {"why": f"{found['blocks']} blocks with words are too few: at least {regression.FEWEST_BLOCKS} are needed."}
    chosen = [test.candidates[j] for j in kept]
    spoken = [phonemes[j] if phonemes else None for j in kept]
    known = [own for own in spoken if own is not None]
    words_ = lexicon.Words([c.word for c in chosen], [c.text for c in chosen], known if len(known) == len(spoken) else None)
    made: dict[str, np.ndarray] = {}
    entries: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(sets):
        if name in lexicon.OF_WORD and not anchored:
            entries[name] = {"why": NO_ANCHORS}
            continue
        try:
            features = lexicon.make(name, words_, language=language, spacy_model=spacy_model, phrase_model=phrase_model)
        except lexicon.Missing as error:
            entries[name] = {"why": str(error)}
            continue
        if not np.ptp(features.values, axis=0).any():
            entries[name] = {"why": f"It is the same for all {len(kept)} stimuli. {features.note}"}
            continue
        partly = name == "phonemes" and 0 < len(known) < len(spoken)
        lacking = f" {len(spoken) - len(known)} words have no phonemes in the events." if partly else ""
        made[name], entries[name] = features.values, {"note": features.note + lacking}
    if made:
        target = by_stimulus(log_odds_of_rank(scores, test), test)[kept]
        related = regression.relate(target, made, blocks, n_permutations=n_permutations, seed=seed, progress=progress)
        for name, relation in related.items():
            entries[name] |= vars(relation)
    return found | {"sets": entries}
