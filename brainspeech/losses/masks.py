"""Which entries of a (B, N) score matrix are the same thing, or too alike to be told apart; docs/losses.md has a picture.

Every rule takes one description of the rows and one of the columns and gives a bool mask, True where the two are alike. A mask is given to
a loss as ``same=`` (these are one thing: positives, or whatever ``duplicates`` says) or as ``ignore=`` (these are neither positives nor
negatives). ``by_id`` turns a rule into a function of ids, which a loss can evaluate on any batch and across processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from brainspeech import similarity

from .base import Checks

MaskRule = Callable[[Tensor, Tensor], Tensor]

# The threshold from which two windows of one sound are near-duplicates. Windows of 3 s locked to words share about 90 % with their
# neighbour at three words per second.
OVERLAP = 0.5
# Cosine from which two candidates count as the same sound; that of neuraltrain's "identical candidates".
IDENTICAL = 0.999


def same_id(row_ids: Tensor, col_ids: Tensor) -> Tensor:
    """Mark equal ids (B,), (N,) -> (B, N)."""
    return row_ids[:, None] == col_ids


def same_text(row_texts: Sequence[str], col_texts: Sequence[str]) -> Tensor:
    """Mark equal texts, B and N of them, whatever their case and spacing; an empty text equals nothing.

    Returns
    -------
    Tensor, shape (B, N), bool
    """
    rows, cols = ([" ".join(text.lower().split()) for text in texts] for texts in (row_texts, col_texts))
    return torch.from_numpy(
        np.array([[bool(row) and row == col for col in cols] for row in rows], dtype=bool).reshape(len(rows), len(cols))
    )


def overlapping(rows: Tensor, cols: Tensor, *, duration: float, threshold: float = OVERLAP) -> Tensor:
    """Mark windows of the same audio that share more than a fraction of their time.

    Parameters
    ----------
    rows, cols : Tensor, shape (B, 2) and (N, 2)
        Number of the audio file, and onset of the window in it in seconds. Use float64: float32 keeps only milliseconds after two hours.
    duration : float
        Length of a window in seconds.
    threshold : float
        Fraction of the window, in [0, 1): 1 - |difference of onsets| / duration above it is an overlap.

    Returns
    -------
    Tensor, shape (B, N), bool

    Raises
    ------
    ValueError
        If shapes, `duration` or `threshold` do not fit.
    """
    if rows.ndim != 2 or cols.ndim != 2 or rows.shape[1] != 2 or cols.shape[1] != 2:
        raise ValueError(f"Windows must be (n, 2), audio and onset in s, got {tuple(rows.shape)} and {tuple(cols.shape)}.")
    if not duration > 0 or not 0 <= threshold < 1:
        raise ValueError(f"duration must be positive (s) and threshold in [0, 1), got {duration!r} and {threshold!r}.")
    shared = 1 - (rows[:, None, 1] - cols[:, 1]).abs() / duration
    return (rows[:, None, 0] == cols[:, 0]) & (shared > threshold)


def similar(rows: Tensor, cols: Tensor, *, threshold: float = IDENTICAL, chunk: int = 512) -> Tensor:
    """Mark speech features (B, F, T) and (N, F, T) whose cosine is at least `threshold`; `chunk` columns are compared at a time.

    Returns
    -------
    Tensor, shape (B, N), bool
    """
    with torch.no_grad():
        parts = [similarity.cosine(rows, part) >= threshold for part in cols.split(chunk)]
    return torch.cat(parts, 1)


def by_id(ids: Tensor, descriptions: Tensor, rule: MaskRule) -> ById:
    """Turn a rule between descriptions into a rule between ids.

    Parameters
    ----------
    ids : Tensor, shape (n,), int64
        Every id that can occur, for instance all ``stimulus_id`` of the training set; repeated ids must have one description.
    descriptions : Tensor, shape (n, ...)
        What `rule` takes of each.
    rule : callable
        (rows, cols) -> (B, N) bool, such as ``functools.partial(overlapping, duration=3.0)``.

    Returns
    -------
    ById
        (row_ids, col_ids) -> (B, N) bool, for ``ignore=`` or ``same=``. An id that is not in `ids` is a ValueError, or, of ids on a GPU,
        makes the loss NaN.

    Raises
    ------
    ValueError
        If lengths disagree, or an id has two descriptions.
    """
    if ids.ndim != 1 or len(ids) != len(descriptions):
        raise ValueError(f"Each id needs one description, got ids {tuple(ids.shape)} and descriptions {tuple(descriptions.shape)}.")
    known, inverse = ids.unique(return_inverse=True)
    table = descriptions.new_zeros(len(known), *descriptions.shape[1:])
    table[inverse] = descriptions
    if not torch.equal(table[inverse], descriptions):
        raise ValueError("An id has two different descriptions: ids must name what the descriptions describe.")
    return ById(known, table, rule)


class ById:
    """A rule between ids; ``by_id`` makes one.

    Parameters
    ----------
    known : Tensor, shape (n,), int64
        Sorted.
    table : Tensor, shape (n, ...)
        The description of each.
    rule : callable
        (rows, cols) -> (B, N) bool.
    """

    def __init__(self, known: Tensor, table: Tensor, rule: MaskRule) -> None:
        self.rule = rule
        # Brought to each device once: a rule is asked for a mask in every step.
        self._tables = {known.device: (known, table)}

    def __call__(self, row_ids: Tensor, col_ids: Tensor) -> Tensor:
        """Mark alike ids (B,), (N,) -> (B, N).

        Raises
        ------
        ValueError
            If an id on a CPU has no description.
        """
        for ids in (row_ids, col_ids):
            self.check(ids, Checks())
        return self.rule(self._describe(row_ids), self._describe(col_ids)).to(row_ids.device)

    def check(self, ids: Tensor, checks: Checks) -> None:
        """Refuse ids (n,) that have no description."""
        known, _ = self._table(ids.device)
        strange = known[self._place(ids)] != ids
        checks.refuse(strange, lambda: ValueError(f"{int(strange.sum())} ids have no description, among them {ids[strange][:5].tolist()}."))

    def _table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        if device not in self._tables:
            known, table = next(iter(self._tables.values()))
            self._tables[device] = known.to(device), table.to(device)
        return self._tables[device]

    def _place(self, ids: Tensor) -> Tensor:
        known, _ = self._table(ids.device)
        return torch.searchsorted(known, ids).clamp(max=len(known) - 1)

    def _describe(self, ids: Tensor) -> Tensor:
        return self._table(ids.device)[1][self._place(ids)]
