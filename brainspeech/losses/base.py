"""What every loss has in common: its result, and which candidate belongs to which estimate.

Shapes: B estimates (rows), N candidates (columns), F features, T times.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class LossOutput(NamedTuple):
    """The scalar to minimise, and detached numbers to log by name."""

    loss: Tensor
    logs: dict[str, Tensor]


class Loss(nn.Module):
    """Compare estimates (B, F, T) with candidates (N, F, T): ``forward`` gives a LossOutput, ``scores`` a Tensor (B, N).

    Attributes
    ----------
    name, config : str, dict
        What ``losses.build`` made it from.
    """

    name: str = ""
    config: dict[str, Any]

    def scores(self, estimates: Tensor, candidates: Tensor) -> Tensor:
        """Score each estimate (B, F, T) against each candidate (N, F, T); higher is nearer."""
        raise NotImplementedError


def pair(n_rows: int, n_cols: int, row_ids: Tensor | None, col_ids: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Find each row's own column, and the other columns with the same id.

    Parameters
    ----------
    n_rows, n_cols : int
        B and N.
    row_ids : Tensor, shape (B,), optional
        What each estimate is of, for instance its ``stimulus_id``. Without ids the first B candidates are the targets.
    col_ids : Tensor, shape (N,), optional
        What each candidate is; `row_ids` if not given, which needs N = B.

    Returns
    -------
    own : Tensor, shape (B,), or None
        Column i where its id is row i's, else the first column with that id. None: column i for row i, and no duplicates.
    duplicate : Tensor, shape (B, N), or None
        True where another column has the row's id.

    Raises
    ------
    ValueError
        If ids are missing or of the wrong length, a row has no candidate, or there are fewer candidates than rows without ids.
    """
    if row_ids is None:
        if col_ids is not None:
            raise ValueError("col_ids without row_ids: give both, or neither (then the first B candidates are the targets).")
        if n_cols < n_rows:
            raise ValueError(f"Without ids the first B candidates are the targets: got {n_rows} estimates, but {n_cols} candidates.")
        return None, None
    if col_ids is None:
        if n_cols != n_rows:
            raise ValueError(f"row_ids alone need as many candidates as estimates, got {n_cols} and {n_rows}: give col_ids too.")
        col_ids = row_ids
    if tuple(row_ids.shape) != (n_rows,) or tuple(col_ids.shape) != (n_cols,):
        raise ValueError(f"Ids must be {(n_rows,)} and {(n_cols,)}, got row_ids {tuple(row_ids.shape)}, col_ids {tuple(col_ids.shape)}.")
    equal = row_ids[:, None] == col_ids
    if not bool(equal.any(1).all()):
        missing = row_ids[~equal.any(1)].unique().tolist()
        raise ValueError(f"{len(missing)} ids of the estimates have no candidate, among them {missing[:5]}.")
    own = equal.int().argmax(1)  # the first, where there are several
    n_common = min(n_rows, n_cols)
    place = torch.arange(n_common, device=own.device)
    own[:n_common] = torch.where(equal[place, place], place, own[:n_common])
    return own, equal.scatter(1, own[:, None], False)
