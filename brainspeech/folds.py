"""What is trained on and what is tested in each fold of a recipe, and how folds are put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from brainspeech import features, prediction, segments
from brainspeech.recipe import Recipe
from brainspeech.records import Segment


def configs(recipe: Recipe, tables: Iterable[pd.DataFrame]) -> list[segments.SegmentConfig]:
    """Give the segment constants of each fold: one, or one for each stimulus left out."""
    if recipe.folds != "leave_one_out":
        return [recipe.segments]
    stimuli = sorted({audio for table in tables for audio in table.loc[table["kind"] == "sound", "audio"]})
    if len(stimuli) < 3:
        raise RuntimeError(f"{recipe.name}: leave_one_out needs at least 3 stimuli (train, valid, test), got {len(stimuli)}.")
    found = []
    for k, test in enumerate(stimuli):
        assign = dict.fromkeys(stimuli, "train") | {stimuli[(k + 1) % len(stimuli)]: "valid", test: "test"}
        found.append(dataclasses.replace(recipe.segments, assign=assign))
    return found


def leave_subjects_out(whole: segments.Segmentation) -> list[segments.Segmentation]:
    """Make a fold for each subject with test windows: tested on that subject's, trained and validated on the others'.

    What was dropped is counted in the first fold only, since nothing is dropped twice.

    Raises
    ------
    RuntimeError
        If there are fewer than two subjects, or a fold has nothing to train or to validate on.
    """
    subjects = sorted({s.subject for s in whole.segments if s.split == "test"})
    if len({s.subject for s in whole.segments}) < 2:
        raise RuntimeError(f"leave_subject_out needs at least 2 subjects, got {len({s.subject for s in whole.segments})}.")
    folds = []
    for k, subject in enumerate(subjects):
        kept = [s for s in whole.segments if (s.split == "test") == (s.subject == subject)]
        absent = [split for split in ("train", "valid") if not any(s.split == split for s in kept)]
        if absent:
            raise RuntimeError(f"Without {subject} there is no window left in the split {', '.join(absent)}. Use more subjects.")
        folds.append(dataclasses.replace(whole, segments=kept, dropped=whole.dropped if k == 0 else {}))
    return folds


def scale_windows(segs: Sequence[Sequence[Segment]], fold: int) -> list[Segment]:
    """Give the training windows that other folds have of the subject left out of this one: the scale of its channels is fitted on them."""
    mine = {s.subject for s in segs[fold] if s.split == "test"} - {s.subject for s in segs[fold] if s.split == "train"}
    return [s for s in segs[(fold + 1) % len(segs)] if s.split == "train" and s.subject in mine]


def heard(recipe: Recipe, cut: Sequence[segments.Segmentation]) -> list[list[Segment]]:
    """Give the segments of each fold, with spans that reach as far as the feature may hear."""
    segs = [fold.segments for fold in cut]
    return [features.window_spans(fold) for fold in segs] if recipe.context == "window" else segs


def test_set(segs: Sequence[Sequence[Segment]]) -> prediction.TestSet:
    """Collect the test windows of all folds and what was heard in them."""
    return prediction.TestSet.from_segments([s for fold in segs for s in fold if s.split == "test"])


def pools(recipe: Recipe, test: prediction.TestSet) -> dict[str, list[Segment]]:
    """Give the candidates: under "" what was heard, under other names what is scored in its place."""
    return {"": list(test.candidates)} | {name: _rename(test.candidates, names) for name, names in recipe.rescore.items()}


def _rename(segs: Sequence[Segment], names: Mapping[str, str]) -> list[Segment]:
    """Put other stimuli in place of those that were heard."""
    unknown = sorted({span.audio for s in segs for span in s.spans} - set(names))
    if unknown:
        raise ValueError(f"rescore names no stimulus in place of {', '.join(unknown)}.")
    return [
        dataclasses.replace(
            s,
            spans=tuple(dataclasses.replace(span, audio=names[span.audio]) for span in s.spans),
            stimulus_id="|".join(names[span.audio] for span in s.spans) + " for " + s.stimulus_id,
        )
        for s in segs
    ]


def stack(parts: Sequence[np.ndarray], cut: Sequence[segments.Segmentation]) -> np.ndarray:
    """Put the scores of all folds under each other, shape (W, N)."""
    rows = [sum(s.split == "test" for s in fold.segments) for fold in cut]
    return np.concatenate([np.broadcast_to(part, (n, part.shape[-1])) for part, n in zip(parts, rows, strict=True)])
