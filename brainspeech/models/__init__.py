"""Encoders by name: (signal, positions, subject) -> estimate of the stimulus features (B, F, T); and target encoders by name."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from brainspeech import naming

if TYPE_CHECKING:  # torch takes seconds to import: only what builds an encoder pays for it
    from .base import Encoder, TargetEncoder

MODELS = {
    "braindecode": "brainspeech.models.braindecode:BraindecodeEncoder",
    "conv": "brainspeech.models.conv:ConvEncoder",
    "linear_clip": "brainspeech.models.linear:LinearClip",
}

TARGET_ENCODERS = {
    "deep_mel": "brainspeech.models.deep_mel:DeepMel",
}


def find(name: str) -> type[Encoder]:
    """Find the class behind a name of ``MODELS``, or behind ``module:Class`` of the user's own.

    Raises
    ------
    ValueError
        If there is none, or if it is no ``Encoder``.
    """
    from .base import Encoder

    return naming.find("model", name, MODELS, Encoder)


def find_target(name: str) -> type[TargetEncoder]:
    """Find the class behind a name of ``TARGET_ENCODERS``, or behind ``module:Class`` of the user's own.

    Raises
    ------
    ValueError
        If there is none, or if it is no ``TargetEncoder``.
    """
    from .base import TargetEncoder

    return naming.find("target encoder", name, TARGET_ENCODERS, TargetEncoder)


def needs(name: str) -> set[str]:
    """Name what a model's class cannot do without: n_subjects, n_features, and for some n_channels and n_times."""
    parameters = inspect.signature(find(name)).parameters.values()
    return {p.name for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def build(name: str, **config) -> Encoder:
    """Build an encoder by name.

    Parameters
    ----------
    name : str
        One of ``MODELS``, or ``module:Class`` of the user's own.
    **config
        The options of that encoder's class; the returned module keeps them, defaults included, as ``.config``, so that
        ``build(module.name, **module.config)`` makes the same architecture again.

    Raises
    ------
    ValueError
        If no model has that name, or if it has no such option.
    """
    return naming.build("model", name, find(name), config)


def build_target(name: str, **config) -> TargetEncoder:
    """Build a target encoder by name; as ``build``, with ``TARGET_ENCODERS``."""
    return naming.build("target encoder", name, find_target(name), config)


__all__ = ["MODELS", "TARGET_ENCODERS", "build", "build_target", "find", "find_target", "needs"]
