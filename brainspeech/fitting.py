"""What a decoder is given -> a fit: a dataset, segments, or windows with their targets, by the rooms that a recipe's run goes through.

Shapes: n windows, N candidates, W test windows, C channels, F features, T_w samples of a window.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brainspeech import datasets, evaluate, features, flow, given, processes, rows, segments
from brainspeech import recipe as recipes
from brainspeech.cache import Cache
from brainspeech.listing import merged
from brainspeech.pretrained import Tracks
from brainspeech.recipe import Choice, Recipe
from brainspeech.records import SPLITS, Segment, Signal
from brainspeech.timing import to_samples


@dataclass(frozen=True, eq=False)
class Material:
    """What a fit takes.

    Parameters
    ----------
    recipe : Recipe
    segments : sequence of Segment
    signals, tracks : mapping
        By recording; by ``Span.key``.
    fill : float
        The feature's value where nothing is heard.
    feature : mapping, optional
        The feature's config; None where its tracks were given.
    said : sequence of str
        What a reader of the result has to know.
    """

    recipe: Recipe
    segments: Sequence[Segment]
    signals: Mapping[str, Signal]
    tracks: Tracks
    fill: float = 0.0
    feature: Mapping[str, Any] | None = None
    said: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Fit:
    """What came of a fit, beside the folder that it wrote.

    Parameters
    ----------
    scores, test : array (W, N), TestSet, or None
        Of the test windows; None where there are none.
    history : list of dict
        Epochs.
    warnings : list of str
        What a reader of the result has to know.
    """

    scores: np.ndarray | None
    test: evaluate.TestSet | None
    history: list[dict[str, Any]]
    warnings: list[str]


def from_dataset(
    recipe: Recipe, dataset: datasets.Dataset, *, feature: features.Feature | None, cache: Cache, progress: bool = False
) -> Material:
    """Go the way of ``flow.run`` up to the fit; a ``feature`` object is taken in place of the one that the recipe names.

    Raises
    ------
    RuntimeError
        If the split leaks.
    """
    known = recipe if feature is None else dataclasses.replace(recipe, feature=Choice("precomputed"))
    recipes.check(known)
    prepared = flow.prepare(known, None, cache, progress=progress)
    feature = feature or prepared.feature
    fold = flow.segment(recipe, prepared)[0]
    leaks = segments.audit(fold.segments, blocks=fold.blocks).errors
    if leaks:
        raise RuntimeError(f"The split leaks in {len(leaks)} places, nothing was trained: {'; '.join(leaks[:3])}")
    segs = features.window_spans(fold.segments) if recipe.context == "window" else fold.segments
    tracks, _ = features.compute_tracks(
        feature,
        features.intervals(segs, recipe.context),
        dataset.read_stimulus,
        fingerprint=dataset.stimulus_fingerprint,
        cache=cache,
        progress=progress,
    )
    return Material(recipe, segs, prepared.signals, tracks, feature.fill, feature.config(), [*merged(dataset.notes), *fold.warnings])


def from_windows(
    recipe: Recipe,
    data: Any,
    targets: Any,
    *,
    subject: Any,
    stimuli: Sequence[Any] | None,
    blocks: Sequence[Any] | None,
    ch_names: Sequence[str] | None,
    ch_types: str | Sequence[str],
    positions: np.ndarray | None,
    sfreq: float | None,
) -> Material:
    """Make segments, signals and tracks of windows (n, C, T_w) or mne.Epochs and their targets (n, F, n_frames); see ``SpeechDecoder.fit``.

    Raises
    ------
    ValueError
        If what is given does not belong together.
    """
    targets = np.asarray(targets)
    if targets.dtype.kind not in "fiu" or not np.isfinite(targets).all():
        raise ValueError(f"Targets must be finite numbers, (n, F, n_frames), got {targets.dtype} {targets.shape}; are there NaN?")
    rate = recipe.preprocess.sfreq
    options: dict[str, Any] = {"ch_types": ch_types, "from_sfreq": sfreq, "montage": recipe.preprocess.positions}
    usual = to_samples(recipe.segments.duration, rate)
    windows = given.read_windows(data, sfreq=rate, n_times=None, usual=usual, ch_names=ch_names, **options)
    if positions is not None:
        windows = dataclasses.replace(windows, positions=np.asarray(positions, dtype=np.float32))
    length = round(windows.data.shape[2] / rate, 6)
    recipe = dataclasses.replace(recipe, segments=dataclasses.replace(recipe.segments, tmin=0.0, tmax=length, sfreq=rate))
    segs, signals, tracks = given.with_targets(windows, targets, recipe.segments, subject=subject, stimuli=stimuli, blocks=blocks)
    return Material(recipe, segs, signals, tracks)


def fit(material: Material, folder: Path, *, progress: bool = False) -> Fit:
    """Fit the row ``encoder`` of a recipe; what it saves is in ``folder/model``.

    Raises
    ------
    ValueError
        If there are no training or no validation windows, or several processes.
    """
    processes.start()
    if processes.is_spread():
        raise ValueError(
            f"SpeechDecoder.fit is for one process, got {processes.count()}: only the first one would have the fit. Share a run "
            "(SpeechDecoder.run(dataset, out), or brainspeech run) among processes and open it with SpeechDecoder.from_run(out)."
        )
    recipe, segs = material.recipe, material.segments
    counts = {split: sum(s.split == split for s in segs) for split in SPLITS}
    if not counts["train"] or not counts["valid"]:
        raise ValueError(f"A fit needs training and validation windows, got {counts}. Give more stimuli, other ratios or another seed.")
    tested = [s for s in segs if s.split == "test"]
    # The fit scores its test windows; without any it scores those of the validation, which is nobody's business.
    stand_in = [] if tested else [dataclasses.replace(s, split="test") for s in segs if s.split == "valid"]
    test = evaluate.TestSet.from_segments(tested or stand_in)
    given_data: dict[str, Any] = {"signals": material.signals, "tracks": material.tracks, "fill": material.fill}
    fitter = rows.Fitter(recipe, [*segs, *stand_in], {"": test.candidates}, **given_data)
    fitted = dict(fitter.rows(folder, seed=recipe.seeds[0], progress=progress))["encoder"]
    scores = fitted.scores if tested else None
    return Fit(scores, test if tested else None, fitted.history, [*material.said, *fitter.warnings()])
