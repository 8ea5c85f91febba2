"""Rows and columns of a batch, of all processes where it is spread: which column is whose, and what the others are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from brainspeech import host

from . import gather, masks
from .base import Checks

DUPLICATES = ("ignore", "negative", "positive", "error")


class Pool(NamedTuple):
    """The ids of all rows and columns, in the order of processes, and the candidates.

    Attributes
    ----------
    candidates : Tensor, shape (N, F, T)
    row_ids, col_ids : Tensor, shape (B,) and (N,)
        As given, else made so that row i's own column is the one in its place.
    place : Tensor, shape (B,)
        The column in each row's own place; -1 where there is none.
    n_rows, n_cols : list of int
        Rows and columns of each process.
    has_ids, spread : bool
        Whether ids were given, and whether there is more than one process.
    """

    candidates: Tensor
    row_ids: Tensor
    col_ids: Tensor
    place: Tensor
    n_rows: list[int]
    n_cols: list[int]
    has_ids: bool
    spread: bool

    def all_rows(self, local: Tensor) -> Tensor:
        """Concatenate what is compared with, one per estimate, over processes."""
        return gather.columns(local, self.n_rows) if self.spread else local

    def rows(self, local: Tensor) -> Tensor:
        """Concatenate what each process computed for its estimates."""
        return gather.rows(local, self.n_rows) if self.spread else local

    def cols(self, local: Tensor) -> Tensor:
        """Concatenate what each process computed for its candidates."""
        return gather.rows(local, self.n_cols) if self.spread else local

    def row_values(self, local: Tensor) -> Tensor:
        """Concatenate numbers that need no gradient, one per estimate."""
        return gather.values(local, self.n_rows) if self.spread else local


def collect(estimates: Tensor, candidates: Tensor, row_ids: Tensor | None, col_ids: Tensor | None, *, spread: bool) -> Pool:
    """Collect candidates and ids from all processes; estimates stay where they are."""
    device = estimates.device
    n_rows, n_cols = [len(estimates)], [len(candidates)]
    if spread:
        n_rows, n_cols = gather.lengths(len(estimates), len(candidates))
        candidates = gather.columns(candidates.to(device), n_cols)
    made_rows, made_cols, place = _numbers(n_rows, n_cols)
    if row_ids is None:
        row_ids, col_ids = host.upload(made_rows, device), host.upload(made_cols, device)
        return Pool(candidates, row_ids, col_ids, host.upload(place, device), n_rows, n_cols, False, spread)
    row_ids = row_ids.to(device)
    col_ids = row_ids if col_ids is None else col_ids.to(device)
    if spread:
        row_ids, col_ids = gather.values(row_ids, n_rows), gather.values(col_ids, n_cols)
    return Pool(candidates, row_ids, col_ids, host.upload(place, device), n_rows, n_cols, True, spread)


def _numbers(n_rows: list[int], n_cols: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Number rows 0..B-1 and columns so that, in every process, the first columns are its rows'; and give each row's place."""
    cols: list[int] = []
    place: list[int] = []
    start, stranger = 0, sum(n_rows)
    for rows_here, cols_here in zip(n_rows, n_cols, strict=True):
        place += [len(cols) + i if i < cols_here else -1 for i in range(rows_here)]
        n_own = min(rows_here, cols_here)
        cols += range(start, start + n_own)
        cols += range(stranger, stranger + cols_here - n_own)
        start, stranger = start + rows_here, stranger + cols_here - n_own
    return torch.arange(sum(n_rows)), torch.tensor(cols, dtype=torch.int64), torch.tensor(place, dtype=torch.int64)


def split(same: Tensor, pool: Pool, duplicates: str, checks: Checks) -> tuple[Tensor, Tensor]:
    """Split the entries of the score matrix into positives and negatives; an entry in neither is ignored.

    Parameters
    ----------
    same : Tensor, shape (B, N) or (B, N + K), bool
        Which entries are of one thing. Columns after the pool's are those of a queue, none of which is a row's own.
    pool : Pool
    duplicates : {"ignore", "negative", "positive", "error"}
        What the columns are that are the same as a row, but not its own.
    checks : Checks
        Of a column for each row, and of repeated ids under "error".
    """
    own = own_columns(same[:, : len(pool.col_ids)], pool, checks)
    if duplicates == "error":
        _refuse_repeats("row_ids", pool.row_ids, checks)
        _refuse_repeats("col_ids", pool.col_ids, checks)
    if duplicates == "positive":
        return same, ~same
    positive = torch.zeros_like(same).scatter(1, own[:, None], True)
    return positive, ~positive if duplicates == "negative" else ~same


def own_columns(same: Tensor, pool: Pool, checks: Checks) -> Tensor:
    """Choose each row's own column (B,): the one in its place if that is the same as the row, else the first that is."""
    if not len(same):  # one process's part of a batch may be empty
        return pool.place
    without = ~same.any(1)

    def error() -> ValueError:
        missing = pool.row_ids[without].unique().tolist()
        return ValueError(f"{len(missing)} ids of the estimates have no candidate, among them {missing[:5]}.")

    checks.refuse(without, error)
    in_place = (pool.place >= 0) & same.gather(1, pool.place.clamp(min=0)[:, None])[:, 0]
    return torch.where(in_place, pool.place, same.int().argmax(1))


def occurrence(ids: Tensor) -> Tensor:
    """Number the occurrences of each id from 0, in their order."""
    return masks.same_id(ids, ids).tril(-1).sum(1)


def _refuse_repeats(what: str, ids: Tensor, checks: Checks) -> None:
    again = occurrence(ids) > 0

    def error() -> ValueError:
        repeated = ids[again].unique().tolist()
        return ValueError(
            f'duplicates="error" expects each id once, got {len(repeated)} repeated in {what}, among them {repeated[:5]}. '
            'Draw batches of distinct segments, or choose "ignore", "negative" or "positive".'
        )

    checks.refuse(again, error)


def refuse_queued(row_ids: Tensor, queued: Tensor, checks: Checks) -> None:
    """Refuse rows whose id is in the queue."""
    there = masks.same_id(row_ids, queued.to(row_ids.device)).any(1)

    def error() -> ValueError:
        repeated = row_ids[there].unique().tolist()
        return ValueError(
            f'duplicates="error" expects no id of a row in the queue, got {len(repeated)}, among them {repeated[:5]}. '
            'Make the queue shorter than an epoch, or choose "ignore", "negative" or "positive".'
        )

    checks.refuse(there, error)
