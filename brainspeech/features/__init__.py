"""Features by name: what an encoder learns to predict, one track per stimulus interval at the feature's own rate."""

from __future__ import annotations

import inspect
from importlib import import_module

from .base import Feature, compute_tracks, intervals, window_spans

FEATURES = {
    "envelope": "brainspeech.features.envelope:Envelope",
    "mel": "brainspeech.features.mel:Mel",
    "precomputed": "brainspeech.features.precomputed:Precomputed",
    "wav2vec2": "brainspeech.features.wav2vec2:Wav2Vec2",
}


def find(name: str) -> type[Feature]:
    """Find the class behind a name of ``FEATURES``, or behind ``module:Class`` of the user's own.

    Raises
    ------
    ValueError
        If there is none, or if it is no ``Feature``.
    """
    if name not in FEATURES and ":" not in name:
        raise ValueError(f"Feature must be one of {', '.join(sorted(FEATURES))}, or 'module:Class' of your own, got {name!r}.")
    module, attribute = FEATURES.get(name, name).split(":", 1)
    try:
        feature = getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(
            f"The feature {name!r} was not found ({error}). Is its module where Python looks (PYTHONPATH), or installed?"
        ) from error
    if not (isinstance(feature, type) and issubclass(feature, Feature)):
        raise ValueError(f"The feature {name!r} must be a subclass of brainspeech.features.Feature, got {feature!r}.")
    return feature


def build(name: str, **options) -> Feature:
    """Build a feature by name.

    Parameters
    ----------
    name : str
        One of ``FEATURES``, or ``module:Class`` of the user's own.
    **options
        What the feature's class takes.

    Raises
    ------
    ValueError
        If no feature has that name, or the feature has no such option.
    """
    feature = find(name)
    allowed = list(inspect.signature(feature).parameters)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(f"The feature {name} takes {', '.join(allowed) or 'no option'}, got {', '.join(unknown)}.")
    return feature(**options)


__all__ = ["FEATURES", "Feature", "build", "compute_tracks", "find", "intervals", "window_spans"]
