"""The scorers that a recipe names, applied to one fitted encoder; what they leave open is chosen on the validation split.

Shapes: W windows, N candidates, F features, T times; scores (W, N), higher is nearer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from brainspeech import prediction, scorers
from brainspeech.batches import Batch, SegmentDataset
from brainspeech.records import Segment
from brainspeech.timing import to_samples

SHIFTS = (-0.05, -0.025, 0.025, 0.05)  # s; one transform of the signal each
GAIN = 0.1  # largest relative change of the amplitude
DROPPED = 0.1  # share of the channels that are set to their median
MOST_OTHERS = 4  # subjects whose layers are asked, of those that have one

Scores = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Split:
    """Windows and the candidates that they are scored against.

    Parameters
    ----------
    windows : SegmentDataset
    candidates : sequence of Segment, length N
    targets : Tensor, shape (N, F, T)
    """

    windows: SegmentDataset
    candidates: Sequence[Segment]
    targets: Tensor


def check(names: Sequence[str], data: SegmentDataset, *, context_width: float, n_layers: int, joint: bool = False) -> None:
    """Find out before hours of training that a scorer does not fit the data.

    Parameters
    ----------
    data : SegmentDataset
        Any split.
    joint : bool
        Whether the features are turned into others that are trained with the encoder.

    Raises
    ------
    ValueError
        If one does not, with what to do.
    """
    if "other_subject" in names and len(data.subjects) < 2:
        raise ValueError(f"The scorer 'other_subject' needs two training subjects or more, got {len(data.subjects)}. Leave it out.")
    duration = data.segments[0].duration
    if "context" in names and context_width < duration:
        raise ValueError(
            f"The scorer 'context' pools windows that do not overlap: evaluate.context_width must be {duration:g} s (a window) or more, "
            f"got {context_width:g} s."
        )
    if "layers" in names and joint:
        raise ValueError("The scorer 'layers' needs features that are kept as they are, but a target_encoder mixes them. Leave one out.")
    if "layers" in names and n_layers < 2:
        raise ValueError(
            f"The scorer 'layers' needs to know how many layers the feature stacks, at least 2: evaluate.n_layers is {n_layers}. "
            "Say so: --set evaluate.n_layers=5"
        )
    if "layers" in names and data.n_features % n_layers:
        raise ValueError(
            f"The scorer 'layers' needs equal parts: {data.n_features} features cannot be divided by evaluate.n_layers={n_layers}."
        )


def apply(
    names: Sequence[str],
    encoder: nn.Module,
    scores: Scores,
    *,
    valid: SegmentDataset,
    test: Split,
    own: np.ndarray,
    context_width: float,
    n_layers: int,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[str, np.ndarray, str]]:
    """Apply scorers to a fitted encoder, one after the other.

    Parameters
    ----------
    names : sequence of str
        Of ``scorers.SCORERS``.
    encoder, scores
        As ``prediction.predict_scores`` takes them.
    valid : SegmentDataset
        Validation windows; scored against the distinct stimuli among them.
    test : Split
    own : array, shape (W, N)
        The encoder's plain scores of the test windows.
    context_width, n_layers, seed
        See ``EvaluateConfig``.

    Yields
    ------
    name : str
    scores : array, shape (W, N)
    chosen : str
        What was chosen on the validation split, in words.
    """
    known = prediction.TestSet.from_segments(valid.segments)
    there = Split(valid, known.candidates, valid.targets(known.first))

    def predict(split: Split, change: Callable[[Batch], Batch] | None = None, score: Scores = scores) -> np.ndarray:
        dataset = split.windows if change is None else _Changed(split.windows, change)
        return prediction.predict_scores(encoder, dataset, split.targets, scores=score, batch_size=batch_size, device=device)

    before = predict(there) if set(names) - {"layers"} else None
    for name in names:
        if name == "layers":
            found, chosen = _fuse(predict, scores, there, test, known.truth, n_layers=n_layers)
        else:
            assert before is not None
            combine: Callable[..., np.ndarray]
            if name == "augment":
                changes = _transforms(valid.ch_names, valid.sfreq, seed=seed)
                combine, options = _stacked(predict, scorers.add_transformed, changes, there, test, before, own)
            elif name == "other_subject":
                combine, options = _stacked(predict, scorers.contrast_subjects, _others(len(valid.subjects)), there, test, before, own)
            elif name == "hubness":
                temperature = scorers.find_temperature(before, known.truth)
                combine, options = _popularity(before / np.float32(temperature), own / np.float32(temperature))
            else:
                combine, options = _context(there, test, before, own, width=context_width)
            setting = scorers.choose(((option, combine(False, option)) for option in options), known.truth)
            found, chosen = combine(True, setting), options[setting]
        yield name, found, chosen


Combine = tuple[Callable[[bool, tuple], np.ndarray], dict[tuple, str]]


def _stacked(
    predict: Callable[..., np.ndarray],
    scorer: Callable[..., np.ndarray],
    changes: Sequence[Callable[[Batch], Batch]],
    valid: Split,
    test: Split,
    before: np.ndarray,
    own: np.ndarray,
) -> Combine:
    """Score changed batches, to be combined with the scores of the unchanged ones at some strength."""
    stacks = [np.stack([predict(split, change) for change in changes]) for split in (valid, test)]
    strengths = scorers.STRENGTHS["augment" if scorer is scorers.add_transformed else "other_subject"]
    unmoved = "; the encoder gives the same scores for all" if np.allclose(stacks[0], before) else ""
    return (
        lambda testing, option: scorer(own if testing else before, stacks[testing], strength=option[0]),
        {(a,): f"strength {a:g} of {len(changes)} variants{unmoved}" for a in strengths},
    )


def _popularity(before: np.ndarray, own: np.ndarray) -> Combine:
    return (
        lambda testing, option: scorers.take_popularity_off(own if testing else before, strength=option[0]),
        {(a,): f"strength {a:g}" for a in scorers.STRENGTHS["hubness"]},
    )


def _context(valid: Split, test: Split, before: np.ndarray, own: np.ndarray, *, width: float) -> Combine:
    """Pool windows at every width, in steps of a window, and weight."""
    duration = valid.windows.segments[0].duration
    layouts = [_layout(split) for split in (valid, test)]

    def combine(testing: bool, option: tuple) -> np.ndarray:
        within, weight = option
        onset, group, place, stretch = layouts[testing]
        return scorers.pool_context(
            own if testing else before,
            scorers.find_neighbours(onset, group, duration=duration, width=within),
            onset=onset,
            place=place,
            stretch=stretch,
            weight=weight,
            tolerance=duration / 2,
        )

    widths = [duration * k for k in range(1, int(width / duration + scorers.SLACK) + 1)]
    options: dict[tuple, str] = {(duration, 0.0): "weight 0: no other window counts"}
    options |= {(w, b): f"weight {b:g} within {w:g} s" for w in widths for b in scorers.STRENGTHS["context"] if b}
    return combine, options


def _layout(split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Say where windows lie in their recordings (onset, group) and candidates in their audio (place, stretch)."""
    windows = split.windows.segments
    places = [prediction.place(candidate) for candidate in split.candidates]
    stretches = [(audio, candidate.block) for (audio, _), candidate in zip(places, split.candidates, strict=True)]
    return (
        np.array([w.onset for w in windows]),
        _numbers([(w.recording, w.block) for w in windows]),
        np.array([start for _, start in places]),
        _numbers(stretches),
    )


def _numbers(labels: Sequence[tuple[str, str]]) -> np.ndarray:
    number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.array([number[label] for label in labels])


def _fuse(
    predict: Callable[..., np.ndarray], scores: Scores, valid: Split, test: Split, truth: np.ndarray, *, n_layers: int
) -> tuple[np.ndarray, str]:
    size = valid.targets.shape[1] // n_layers
    parts = [slice(k * size, (k + 1) * size) for k in range(n_layers)]

    def by_layer(estimates: Tensor, candidates: Tensor) -> Tensor:
        return torch.cat([scores(estimates[:, part], candidates[:, part]) for part in parts], 1)

    stacks = [
        predict(split, None, by_layer).reshape(len(split.windows), n_layers, len(split.targets)).swapaxes(0, 1) for split in (valid, test)
    ]
    weights = scorers.fusion_weights(stacks[0], truth)
    return scorers.fuse(stacks[1], weights), "weights " + ", ".join(f"{w:.2f}" for w in weights)


class _Changed:
    """A dataset whose batches are changed before the encoder sees them."""

    def __init__(self, dataset: SegmentDataset, change: Callable[[Batch], Batch]):
        self.dataset, self.change = dataset, change

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: np.ndarray) -> Batch:
        return self.change(self.dataset.batch(indices))


def _transforms(ch_names: Sequence[str], sfreq: float, *, seed: int) -> list[Callable[[Batch], Batch]]:
    """Make transforms after which a signal is as good an answer to the same sound: earlier or later, louder or softer, sensors missing.

    Each does the same to all windows, so scores do not depend on batches; those of ``augment`` draw anew for every window.
    """
    rng = np.random.default_rng(seed)
    n_dropped = round(DROPPED * len(ch_names))

    def make(shift: float) -> Callable[[Batch], Batch]:
        samples = int(np.sign(shift)) * max(1, to_samples(abs(shift), sfreq))
        gain, dropped = 1 + GAIN * rng.uniform(-1, 1), rng.permutation(len(ch_names))[:n_dropped]

        def change(batch: Batch) -> Batch:
            n_times = batch.signal.shape[-1]
            source = torch.arange(n_times).sub(samples).clamp(0, n_times - 1)  # what comes in at an edge repeats the edge's sample
            signal = batch.signal[..., source] * gain
            signal[:, torch.from_numpy(dropped)] = 0.0
            return dataclasses.replace(batch, signal=signal)

        return change

    return [make(shift) for shift in SHIFTS]


def _others(n_subjects: int) -> list[Callable[[Batch], Batch]]:
    """Make changes that give each segment the layer of another training subject, a different one in each."""
    steps = np.unique(np.linspace(1, n_subjects - 1, min(MOST_OTHERS, n_subjects - 1)).round().astype(int))

    def make(step: int) -> Callable[[Batch], Batch]:
        def change(batch: Batch) -> Batch:
            unseen = batch.subject < 0
            other = torch.where(unseen, step % n_subjects, (batch.subject + step) % n_subjects)
            return dataclasses.replace(batch, subject=other, known=None)

        return change

    return [make(int(step)) for step in steps]
