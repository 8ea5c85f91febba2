"""Datasets by name: who was recorded, the raw files, what was heard."""

from __future__ import annotations

import os
from importlib import import_module

from .base import Dataset

DATASETS = {
    "arrays": "brainspeech.datasets.arrays:ArraysDataset",
    "simulated": "brainspeech.datasets.simulated:SimulatedDataset",
}


def load(name: str, root: str | os.PathLike | None = None, **options) -> Dataset:
    """Load a dataset by name.

    Parameters
    ----------
    name : str
        One of ``DATASETS``.
    root : path, optional
        Folder of the files; a dataset that is made in memory needs none.
    **options
        What the dataset's class takes besides.

    Raises
    ------
    ValueError
        If no dataset has that name.
    """
    if name not in DATASETS:
        raise ValueError(f"Dataset must be one of {', '.join(sorted(DATASETS))}, got {name!r}.")
    module, attribute = DATASETS[name].split(":")
    return getattr(import_module(module), attribute)(root=root, **options)


__all__ = ["DATASETS", "Dataset", "load"]
