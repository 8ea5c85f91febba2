"""Features by name: what an encoder learns to predict, one track per stimulus interval at the feature's own rate."""

from __future__ import annotations

import inspect
from importlib import import_module

from .base import Feature, compute_tracks, intervals, window_spans

FEATURES = {
    "mel": "brainspeech.features.mel:Mel",
    "precomputed": "brainspeech.features.precomputed:Precomputed",
    "wav2vec2": "brainspeech.features.wav2vec2:Wav2Vec2",
}


def build(name: str, **options) -> Feature:
    """Build a feature by name.

    Parameters
    ----------
    name : str
        One of ``FEATURES``.
    **options
        What the feature's class takes.

    Raises
    ------
    ValueError
        If no feature has that name, or the feature has no such option.
    """
    if name not in FEATURES:
        raise ValueError(f"Feature must be one of {', '.join(sorted(FEATURES))}, got {name!r}.")
    module, attribute = FEATURES[name].split(":")
    feature = getattr(import_module(module), attribute)
    allowed = list(inspect.signature(feature).parameters)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(f"The feature {name} takes {', '.join(allowed) or 'no option'}, got {', '.join(unknown)}.")
    return feature(**options)


__all__ = ["FEATURES", "Feature", "build", "compute_tracks", "intervals", "window_spans"]
