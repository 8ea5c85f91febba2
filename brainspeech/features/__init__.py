"""Features by name: what an encoder learns to predict, one track per stimulus interval at the feature's own rate."""

from __future__ import annotations

import inspect

from brainspeech import naming

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
    return naming.find("feature", name, FEATURES, Feature)


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
