"""Tracks that the user brings pass through."""

import numpy as np
import pytest

from brainspeech import features
from brainspeech.features import compute_tracks


def read(tracks):
    return lambda audio: tracks[audio]


def test_the_track_passes_through(tmp_cache):
    envelope = np.random.default_rng(0).normal(size=(3, 640)).astype(np.float32)
    tracks, counts = compute_tracks(
        features.build("precomputed"), [("e", 2.0, 5.0)], read({"e": (envelope, 64.0)}), fingerprint=str, cache=tmp_cache, progress=False
    )
    track = tracks["e", 2.0, 5.0]
    np.testing.assert_array_equal(track.data, envelope[:, 128:320])
    assert (track.sfreq, counts) == (64.0, {})
    assert features.build("precomputed").fill == 0.0


def test_audio_is_refused(tmp_cache, noise):
    with pytest.raises(ValueError, match=r"precomputed of 'a.wav': 1 row\(s\) at 16000 Hz look like audio"):
        compute_tracks(
            features.build("precomputed"),
            [("a.wav", 0, 1)],
            read({"a.wav": (noise(), 16_000)}),
            fingerprint=str,
            cache=tmp_cache,
            progress=False,
        )


def test_stimuli_with_different_features_are_refused(tmp_cache):
    stimuli = {"a": (np.ones((2, 64), np.float32), 64.0), "b": (np.ones((3, 64), np.float32), 64.0)}
    with pytest.raises(ValueError, match="same number of features, got 2 in 'a' and 3 in 'b'"):
        compute_tracks(
            features.build("precomputed"), [("a", 0, 1), ("b", 0, 1)], read(stimuli), fingerprint=str, cache=tmp_cache, progress=False
        )
