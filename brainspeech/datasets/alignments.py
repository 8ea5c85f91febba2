"""Forced alignments that people keep in files: Praat's TextGrid, read by praatio."""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd
from praatio import textgrid
from praatio.data_classes.point_tier import PointTier


def read_textgrid(path: str | os.PathLike) -> dict[str, pd.DataFrame]:
    """Read a TextGrid, in the long or the short format, UTF-8 or UTF-16.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    dict from str to DataFrame
        Tiers by name in the file's order, each with the columns ``onset`` and ``duration`` (seconds) and ``text``, in order of time.
        Intervals and points without a label are left out: nothing was said there. A point has duration 0.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RuntimeError
        If it is no TextGrid, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a TextGrid.")
    try:
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False, reportingMode="silence")
    except Exception as error:  # praatio lets the errors of a parser at the wrong place through
        raise RuntimeError(f"{path} cannot be read as a TextGrid ({type(error).__name__}: {error}); is it whole?") from error
    return {name: _table(grid.getTier(name)) for name in grid.tierNames}


def tier(tiers: dict[str, pd.DataFrame], beginning: str, *, where: str) -> pd.DataFrame:
    """Take the tier whose name begins so, whatever its case: aligners write ``word``, ``words``, ``phone``, ``phones``.

    Raises
    ------
    RuntimeError
        If no tier, or more than one, has such a name.
    """
    names = [name for name in tiers if name.lower().startswith(beginning.lower())]
    if len(names) != 1:
        raise RuntimeError(f"{where}: expected one tier whose name begins with {beginning!r}, got {', '.join(tiers) or 'no tier'}.")
    return tiers[names[0]]


def _table(tier: textgrid.textgrid_tier.TextgridTier) -> pd.DataFrame:
    if isinstance(tier, PointTier):
        rows = [(point.time, 0.0, point.label) for point in tier.entries]
    else:
        rows = [(interval.start, interval.end - interval.start, interval.label) for interval in tier.entries]
    table = pd.DataFrame(rows, columns=["onset", "duration", "text"])
    table = table.astype({"onset": float, "duration": float, "text": object})
    spoken = table["text"].str.strip() != ""
    return table[spoken].sort_values("onset", kind="stable").reset_index(drop=True)
