"""Logs of the stimulation program Presentation (Neurobehavioral Systems), and how their clock is put on that of a recording."""

from __future__ import annotations

import os
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats

TICKS = 10_000  # of the log's clock per second
# Seconds: two marks are the same if they have one code and come as long, to this step, after the mark before.
INTERVAL_STEP = 0.05
# A match counts where at least so many in a row have one offset, to so many seconds from each to the next.
MIN_RUN = 6
MAX_JITTER = 0.1
MIN_CORRELATION = 0.9999


def read_log(path: str | os.PathLike) -> pd.DataFrame:
    """Read the first table of a log: one row per event, ``code`` and ``time`` (seconds of the log's clock).

    A line that is broken after a full stop is joined again, and of a log that holds itself twice the first copy is read. The second table
    repeats the first with response times.

    Raises
    ------
    RuntimeError
        If there is no such table.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n").replace(".\n", ".")
    text = text.split("Scenario -")[1] if "Scenario -" in text else text
    lines = text.split("\n")
    head = next((i for i, line in enumerate(lines) if {"Event Type", "Code", "Time"} <= set(line.split("\t"))), None)
    if head is None:
        raise RuntimeError(f"{path}: expected the log of Presentation, a table with the columns Event Type, Code and Time; is it whole?")
    names = lines[head].split("\t")
    code, time = names.index("Code"), names.index("Time")
    rows: list[tuple[str, float]] = []
    for line in lines[head + 1 :]:
        fields = line.split("\t")
        if len(fields) > time and fields[time].strip().isdigit():
            rows.append((fields[code].strip(), int(fields[time]) / TICKS))
        elif rows and not line.strip():
            break  # two empty lines part the tables
    return pd.DataFrame(rows, columns=["code", "time"])


def match(
    log_time: np.ndarray, log_code: np.ndarray, raw_time: np.ndarray, raw_code: np.ndarray, *, where: str
) -> tuple[np.ndarray, np.ndarray]:
    """Match the marks of a log with the triggers of a recording, where either may lack some.

    Titles and fixations come in a rhythm that repeats, so that codes alone match as well one round later. Two marks are taken for the same
    if they have the same code and come equally long after the mark before; the longest common runs are matched first, and
    short ones are chance. What else lies where the nearest match puts it is then added.

    Parameters
    ----------
    log_time, raw_time : array, shape (n_log,) and (n_raw,)
        Seconds on either clock, in order.
    log_code, raw_code : array, shape (n_log,) and (n_raw,)
        What the marks and triggers mean.
    where : str
        Named in errors.

    Returns
    -------
    in_log, in_raw : array, shape (n_matches,)
        Seconds on either clock of what matches.

    Raises
    ------
    RuntimeError
        If fewer than half of the log's marks match, or the order differs.
    """

    def tokens(time: np.ndarray, code: np.ndarray) -> list[tuple[int, int]]:
        gaps = np.round(np.diff(time, prepend=time[:1]) / INTERVAL_STEP).astype(int)
        return list(zip(code.tolist(), gaps.tolist(), strict=True))

    blocks = SequenceMatcher(None, tokens(log_time, log_code), tokens(raw_time, raw_code), autojunk=False).get_matching_blocks()
    in_log = np.concatenate([log_time[block.a : block.a + block.size] for block in blocks])
    in_raw = np.concatenate([raw_time[block.b : block.b + block.size] for block in blocks])
    run = np.cumsum(np.abs(np.diff(in_raw - in_log, prepend=0.0)) > MAX_JITTER)
    lasts = np.bincount(run)[run] >= MIN_RUN if len(run) else run.astype(bool)
    in_log, in_raw = in_log[lasts], in_raw[lasts]
    if len(in_log):
        # With the clocks known, take every mark whose trigger is where the nearest match puts it.
        nearest = np.abs(in_log[:, None] - log_time).argmin(axis=0)
        expected = log_time + (in_raw - in_log)[nearest]
        trigger = np.abs(raw_time[:, None] - expected).argmin(axis=0)
        there = (np.abs(raw_time[trigger] - expected) < MAX_JITTER) & (raw_code[trigger] == log_code)
        in_log, in_raw = log_time[there], raw_time[trigger[there]]
    if len(in_log) < max(3, len(log_time) / 2):
        raise RuntimeError(
            f"{where}: only {len(in_log)} of the {len(log_time)} marks in the log match one of the {len(raw_time)} triggers of the "
            "recording; expected at least half. Is it the log of this recording? If it is, leave the subject out."
        )
    r = float(scipy.stats.spearmanr(in_log, in_raw).statistic)
    if not r > MIN_CORRELATION:
        raise RuntimeError(f"{where}: triggers come in another order than in the log (Spearman r {r:.5f}); leave the subject out.")
    return in_log, in_raw


def to_recording(time: np.ndarray, in_log: np.ndarray, in_raw: np.ndarray) -> np.ndarray:
    """Put times of the log on the clock of the recording, shape (n_times,): from the match before, NaN before the first.

    The clocks drift, and a recording may have been stopped in between: nothing is interpolated.
    """
    before = np.searchsorted(in_log, time, side="right") - 1
    return np.where(before >= 0, time + (in_raw - in_log)[np.maximum(before, 0)], np.nan)
