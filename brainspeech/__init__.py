"""Decode perceived speech from M/EEG.

The rooms of the package are loaded where they are used: ``import brainspeech`` alone reads no heavy library, and
``brainspeech.datasets``, ``brainspeech.models`` and so on are there at the first mention.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

__all__ = [
    "batches",
    "cache",
    "cli",
    "controls",
    "datasets",
    "evaluate",
    "events",
    "features",
    "flow",
    "hub",
    "losses",
    "models",
    "preprocess",
    "recipe",
    "records",
    "report",
    "retrieval",
    "rows",
    "segments",
    "similarity",
    "timing",
    "train",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return import_module(f"brainspeech.{name}")
    raise AttributeError(f"module 'brainspeech' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
