"""A report and its pages in a run folder; each file appears whole or not at all."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brainspeech import figures
from brainspeech.evaluate import RetrievalReport, plain
from brainspeech.prediction import TestSet
from brainspeech.retrieval import ranks_from_scores
from brainspeech.writing import put

from .page import page
from .words import markdown

SIMILARITY = "similarity.npy"
HISTORY = "history.json"
RANKS = "ranks.npz"
History = Mapping[str, Sequence[Mapping[str, Any]]]


def write(report: RetrievalReport, folder: str | os.PathLike, *, history: History | None = None) -> list[Path]:
    """Write the report, its pages and its figures into a folder; each file appears whole or not at all.

    Parameters
    ----------
    history : mapping of str to list of dict, optional
        Epochs of each fit, for the training curves; kept as history.json.

    Returns
    -------
    list of Path
        What was written.
    """
    folder = Path(folder)
    pictures = figures.draw(report, history)
    files = {
        "report.md": markdown(report, pictures).encode(),
        "report.html": page(report, pictures).encode(),
        HISTORY: (json.dumps(plain(history or {}), allow_nan=False) + "\n").encode(),
        **{f"figures/{picture.name}.png": picture.png for picture in pictures},
    }
    if report.similarity is not None:
        buffer = io.BytesIO()
        np.save(buffer, report.similarity, allow_pickle=False)
        files[f"figures/{SIMILARITY}"] = buffer.getvalue()
    # Last: a folder with a report.json is a finished run, and a table of variants does not run it again.
    files["report.json"] = (json.dumps(report.to_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
    for name, content in files.items():
        put(folder / name, content)
    return [folder / name for name in files]


def load(folder: str | os.PathLike) -> RetrievalReport:
    """Read the report of a run folder.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If report.json is not a report.
    """
    path = Path(folder) / "report.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: the run has not come to its report. Go on with it: brainspeech run RECIPE --out {folder}"
        )
    similarity = path.parent / "figures" / SIMILARITY
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Write it again: brainspeech evaluate {folder}") from error
    return RetrievalReport.from_dict(values, np.load(similarity, allow_pickle=False) if similarity.is_file() else None)


def load_history(folder: str | os.PathLike) -> dict[str, list[dict[str, Any]]]:
    """Read the epochs of each fit that ``write`` kept; empty if there are none."""
    path = Path(folder) / HISTORY
    return json.loads(path.read_text()) if path.is_file() else {}


# ----------------------------------------------------------------------------------------------------------- window by window, to compare


@dataclass(frozen=True, eq=False)
class Ranks:
    """The rank of every test window's own candidate in every row of a run, and which windows and candidates these were.

    Parameters
    ----------
    rows : mapping of str to array of int32, shape (n_seeds, W)
    windows : array of str, shape (W,)
        Recording, stimulus and how often it was heard before: equal where the window is the same.
    subjects, blocks : array of str, shape (W,)
    candidates : array of str, shape (N,)
        Stimulus ids, sorted.
    """

    rows: Mapping[str, np.ndarray]
    windows: np.ndarray
    subjects: np.ndarray
    blocks: np.ndarray
    candidates: np.ndarray


def save_ranks(folder: str | os.PathLike, scores: Mapping[str, Sequence[np.ndarray]], test: TestSet) -> Path:
    """Keep the rank of every test window, so that runs on the same windows can be compared window by window.

    Parameters
    ----------
    scores : mapping of str to sequence of array
        (W, N) of each row, one per seed; what was evaluated.
    """
    names = [test.candidates[j].stimulus_id for j in test.truth]
    seen: Counter = Counter()
    windows = []
    for key in zip(test.recordings, names, strict=True):
        windows.append(f"{key[0]} {key[1]} {seen[key]}")
        seen[key] += 1
    arrays: dict[str, Any] = {
        f"row {row}": np.stack([ranks_from_scores(s, test.truth).ranks.numpy() for s in per_seed]).astype(np.int32)
        for row, per_seed in scores.items()
    }
    arrays |= {
        "windows": np.array(windows),
        "subjects": np.array(test.subjects),
        "blocks": np.array([test.candidates[j].block for j in test.truth]),
        "candidates": np.array(sorted(c.stimulus_id for c in test.candidates)),
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    path = Path(folder) / RANKS
    put(path, buffer.getvalue())
    return path


def load_ranks(folder: str | os.PathLike) -> Ranks | None:
    """Read what ``save_ranks`` kept; None where a run has none (it was made before they were kept)."""
    path = Path(folder) / RANKS
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            rows = {name.removeprefix("row "): kept[name] for name in kept.files if name.startswith("row ")}
            return Ranks(rows, *(kept[name] for name in ("windows", "subjects", "blocks", "candidates")))
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RuntimeError(f"{path} is damaged ({error}). Delete it and write it again: brainspeech evaluate {folder}") from error
