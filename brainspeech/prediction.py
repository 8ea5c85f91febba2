"""A fitted encoder -> scores of test windows against candidates: which windows, which candidates, and what is near to what.

Shapes: W windows, N candidates (distinct stimuli), F features, T times; scores (W, N), higher is nearer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from brainspeech import backend, similarity
from brainspeech.models.base import estimator
from brainspeech.records import Segment


@dataclass(frozen=True, eq=False)
class TestSet:
    """The windows that are scored and the candidates that they are scored against.

    Parameters
    ----------
    subjects, recordings : list of str, length W
        Of each window.
    truth : array of int, shape (W,)
        Column of each window's own candidate.
    candidates : list of Segment, length N
        Unique by ``stimulus_id``; sorted by the audio of the first span, then by time in that audio.
    first : array of int, shape (N,)
        The first window of each candidate: ``dataset.targets(test.first)`` are the candidates' features.
    """

    __test__: ClassVar[bool] = False  # not a test, whatever pytest makes of the name

    subjects: list[str]
    recordings: list[str]
    truth: np.ndarray
    candidates: list[Segment]
    first: np.ndarray

    @classmethod
    def from_segments(cls, segments: Sequence[Segment]) -> TestSet:
        """Collect the test windows; those of several folds, one after the other, share one pool of candidates.

        Raises
        ------
        ValueError
            If there is none, or one of the training split is among them.
        """
        if not segments:
            raise ValueError("No test windows: the test split is empty. Raise segments.test_ratio, or check what was dropped.")
        trained = [s for s in segments if s.split == "train"]
        if trained:
            raise ValueError(
                f"{len(trained)} of {len(segments)} windows belong to the training split (first: {trained[0].recording} at "
                f"{trained[0].onset:.2f} s). Pass the segments whose split is 'test'."
            )
        firsts: dict[str, int] = {}
        for i, segment in enumerate(segments):
            firsts.setdefault(segment.stimulus_id, i)
        first = sorted(firsts.values(), key=lambda i: (*place(segments[i]), i))
        column = {segments[i].stimulus_id: j for j, i in enumerate(first)}
        return cls(
            subjects=[s.subject for s in segments],
            recordings=[s.recording for s in segments],
            truth=np.array([column[s.stimulus_id] for s in segments]),
            candidates=[segments[i] for i in first],
            first=np.array(first),
        )

    @property
    def blocks(self) -> np.ndarray:
        """Block of each candidate as a number, in order of appearance; shape (N,)."""
        names = {block: k for k, block in enumerate(dict.fromkeys(c.block for c in self.candidates))}
        return np.array([names[c.block] for c in self.candidates])


def place(segment: Segment) -> tuple[str, float]:
    """Where a window starts: (audio, seconds in it); a window in which nothing is heard is placed in its recording."""
    if not segment.spans:
        return segment.recording, segment.onset
    span = segment.spans[0]
    return span.audio, span.start - span.onset


@torch.inference_mode()
def predict_scores(
    encoder: nn.Module,
    dataset: Any,
    candidates: Tensor | np.ndarray,
    *,
    scores: Callable[..., Tensor],
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> np.ndarray:
    """Score every window of a dataset against the candidates, batch by batch, in float32; estimates are not kept.

    Parameters
    ----------
    encoder : nn.Module
        (signal, positions, subject, channel_mask) -> estimates (B, F, T). Left in the mode it came in.
    dataset : SegmentDataset
        W windows.
    candidates : array, shape (N, F, T)
    scores : callable
        (estimates, candidates) -> (B, N), such as ``loss.scores``. Candidates that repeat themselves are scored at their own rate where
        that is cheaper and ``scores`` takes them; see ``similarity.prepare``.

    Returns
    -------
    array of float32, shape (W, N)
    """
    training = encoder.training
    encoder.to(device).eval()
    estimate = estimator(encoder)
    wanted = similarity.prepare(torch.as_tensor(candidates).to(device, torch.float32), scores)
    parts = []
    try:
        with torch.autocast(torch.device(device).type, enabled=False), backend.tf32(False):
            for start in range(0, len(dataset), batch_size):
                batch = dataset.batch(np.arange(start, min(start + batch_size, len(dataset)))).to(device)
                estimates = estimate(batch)
                parts.append(scores(estimates.float(), wanted).float().cpu().numpy())
    finally:
        encoder.train(training)
    if not parts:
        raise ValueError("The dataset to score has no windows: the test split is empty.")
    return np.concatenate(parts)


def constant_scores(
    mean_target: Tensor | np.ndarray, candidates: Tensor | np.ndarray, scores: Callable[[Tensor, Tensor], Tensor]
) -> np.ndarray:
    """Score the mean training target (F, T), an estimate that is the same for every window, against candidates (N, F, T); shape (N,)."""
    estimate = torch.as_tensor(mean_target, dtype=torch.float32)[None]
    return scores(estimate, torch.as_tensor(candidates, dtype=torch.float32))[0].detach().cpu().numpy()
