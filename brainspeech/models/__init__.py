"""Encoders by name: (signal, positions, subject) -> estimate of the stimulus features (B, F, T)."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import: only what builds an encoder pays for it
    from .base import Encoder

MODELS = {
    "conv": "brainspeech.models.conv:ConvEncoder",
    "linear_clip": "brainspeech.models.linear:LinearClip",
}


def build(name: str, **config) -> Encoder:
    """Build an encoder by name.

    Parameters
    ----------
    name : str
        One of ``MODELS``.
    **config
        The options of that encoder's class; the returned module keeps them, defaults included, as ``.config``, so that
        ``build(module.name, **module.config)`` makes the same architecture again.

    Raises
    ------
    ValueError
        If no model has that name, or if it has no such option.
    """
    if name not in MODELS:
        raise ValueError(f"Model must be one of {', '.join(sorted(MODELS))}, got {name!r}.")
    module, attribute = MODELS[name].split(":")
    encoder_class = getattr(import_module(module), attribute)
    signature = inspect.signature(encoder_class)
    try:
        bound = signature.bind(**config)
    except TypeError as error:
        raise ValueError(f"Model {name!r}: {error}. Its options are {', '.join(signature.parameters)}.") from error
    bound.apply_defaults()
    encoder = encoder_class(**bound.arguments)
    encoder.name = name
    encoder.config = dict(bound.arguments)
    return encoder


__all__ = ["MODELS", "build"]
