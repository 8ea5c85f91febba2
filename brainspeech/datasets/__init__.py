"""Datasets by name: who was recorded, the raw files, what was heard."""

from __future__ import annotations

import os
from importlib import import_module

from .base import Dataset

DATASETS = {
    "arrays": "brainspeech.datasets.arrays:ArraysDataset",
    "bids": "brainspeech.datasets.bids:BidsDataset",
    "brennan2019": "brainspeech.datasets.brennan2019:Brennan2019Dataset",
    "broderick2019": "brainspeech.datasets.broderick2019:Broderick2019Dataset",
    "ds004408": "brainspeech.datasets.ds004408:Ds004408Dataset",
    "gwilliams2022": "brainspeech.datasets.gwilliams2022:Gwilliams2022Dataset",
    "schoffelen2019": "brainspeech.datasets.schoffelen2019:Schoffelen2019Dataset",
    "simulated": "brainspeech.datasets.simulated:SimulatedDataset",
}


def load(name: str, /, root: str | os.PathLike | None = None, **options) -> Dataset:
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
