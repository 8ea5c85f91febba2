"""Decode perceived speech from M/EEG.

The rooms of the package are loaded where they are used: ``import brainspeech`` alone reads no heavy library, and
``brainspeech.datasets``, ``brainspeech.models`` and so on are there at the first mention, and so is ``brainspeech.SpeechDecoder``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brainspeech.decoder import SpeechDecoder as SpeechDecoder

__version__ = "0.1.0"

__all__ = [
    "SpeechDecoder",
    "batches",
    "cache",
    "card",
    "cli",
    "controls",
    "datasets",
    "decoder",
    "evaluate",
    "events",
    "features",
    "flow",
    "hub",
    "losses",
    "models",
    "prediction",
    "preprocess",
    "recipe",
    "records",
    "release",
    "report",
    "retrieval",
    "rows",
    "scorers",
    "segments",
    "similarity",
    "timing",
    "train",
    "variants",
]


def __getattr__(name: str) -> Any:
    if name == "SpeechDecoder":
        return import_module("brainspeech.decoder").SpeechDecoder
    if name in __all__:
        return import_module(f"brainspeech.{name}")
    raise AttributeError(f"module 'brainspeech' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
