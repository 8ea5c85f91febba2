"""Encoders by name: (signal, positions, subject) -> estimate of the stimulus features (B, F, T)."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import: only what builds an encoder pays for it
    from .base import Encoder

MODELS = {
    "braindecode": "brainspeech.models.braindecode:BraindecodeEncoder",
    "conv": "brainspeech.models.conv:ConvEncoder",
    "linear_clip": "brainspeech.models.linear:LinearClip",
}


def find(name: str) -> type[Encoder]:
    """Find the class behind a name of ``MODELS``, or behind ``module:Class`` of the user's own.

    Raises
    ------
    ValueError
        If there is none, or if it is no ``Encoder``.
    """
    from .base import Encoder

    if name not in MODELS and ":" not in name:
        raise ValueError(f"Model must be one of {', '.join(sorted(MODELS))}, or 'module:Class' of your own, got {name!r}.")
    module, attribute = MODELS.get(name, name).split(":", 1)
    try:
        encoder = getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(
            f"The model {name!r} was not found ({error}). Is its module where Python looks (PYTHONPATH), or installed?"
        ) from error
    if not (isinstance(encoder, type) and issubclass(encoder, Encoder)):
        raise ValueError(f"The model {name!r} must be a subclass of brainspeech.models.base.Encoder, got {encoder!r}.")
    return encoder


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
    encoder_class = find(name)
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


__all__ = ["MODELS", "build", "find", "needs"]
