"""The records refuse what the rooms above could not use."""

import dataclasses
import json

import numpy as np
import pytest

from brainspeech.records import FeatureTrack, Recording, Segment, Signal, Span


def test_uid_names_only_what_there_is():
    assert Recording("gwilliams2022", "01", "0", "1").uid == "gwilliams2022/sub-01/ses-0/run-1"
    assert Recording("arrays", "A").uid == "arrays/sub-A"
    assert Recording("arrays", "A", run="2").uid == "arrays/sub-A/run-2"


def test_recording_is_frozen_hashable_and_json_able():
    recording = Recording("arrays", "A", path="a.mat")
    assert Recording(**json.loads(json.dumps(dataclasses.asdict(recording)))) == recording
    assert len({recording, Recording("arrays", "A", path="a.mat")}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        recording.subject = "B"  # type: ignore[misc]


@pytest.mark.parametrize("labels", [("", "01"), ("a", ""), ("a/b", "01"), ("a", "0/1"), ("a", "01", "x/y"), ("a", "01", "", "x/y")])
def test_recording_refuses_labels_that_would_break_its_uid(labels):
    with pytest.raises(ValueError, match=r"recording"):
        Recording(*labels)


@pytest.mark.parametrize(("start", "stop", "onset"), [(1.0, 1.0, 0.0), (-0.1, 1.0, 0.0), (0.0, np.inf, 0.0), (0.0, 1.0, np.nan)])
def test_span_refuses_intervals_that_are_none(start, stop, onset):
    with pytest.raises(ValueError, match=r"'a\.wav'"):
        Span("a.wav", start, stop, onset)


def test_span_and_track_share_their_key():
    track = FeatureTrack("mel", "a.wav", 1.0, 3.0, np.zeros((2, 4), np.float32), 2.0)
    assert Span("a.wav", 1.0, 3.0, -0.5).key == track.key


def make_segment(**changes):
    fields = {"recording": "d/sub-1", "subject": "d/sub-1", "onset": 1.0, "duration": 3.0, "stimulus_id": "x", "block": "b"}
    return Segment(**{**fields, "text": "", "word": "", "split": "train", **changes})


@pytest.mark.parametrize(
    "changes", [{"onset": -0.1}, {"onset": np.nan}, {"duration": 0.0}, {"duration": np.inf}, {"split": "dev"}], ids=lambda c: str(c)
)
def test_segment_refuses(changes):
    assert make_segment().spans == ()
    with pytest.raises(ValueError, match="d/sub-1"):
        make_segment(**changes)


def make_signal(**changes):
    fields = {"uid": "d/sub-1", "data": np.zeros((2, 240), np.float32), "sfreq": 120.0, "ch_names": ("A", "B"), "ch_types": ("eeg", "eeg")}
    return Signal(**{**fields, "positions": np.full((2, 2), np.nan, np.float32), **changes})


def test_signal_knows_its_duration_and_keeps_its_counts():
    counts = {"misc": 3}
    signal = make_signal(dropped=counts)
    counts["misc"] = 4
    assert signal.duration == 2.0
    assert signal.dropped == {"misc": 3}
    with pytest.raises(TypeError):
        signal.dropped["misc"] = 5


@pytest.mark.parametrize(
    "changes",
    [
        {"data": np.zeros((2, 240))},
        {"data": np.zeros((3, 240), np.float32)},
        {"data": np.zeros(240, np.float32)},
        {"positions": np.zeros((2, 3), np.float32)},
        {"ch_types": ("eeg",)},
        {"ch_names": ("A", "A")},
        {"sfreq": 0.0},
    ],
    ids=lambda c: next(iter(c)),
)
def test_signal_refuses(changes):
    with pytest.raises(ValueError, match="d/sub-1"):
        make_signal(**changes)


@pytest.mark.parametrize("data", [np.zeros((2, 4)), np.zeros(4, np.float32), np.zeros((2, 0), np.float32)], ids=["float64", "1-D", "empty"])
def test_feature_track_refuses(data):
    with pytest.raises(ValueError, match=r"mel of 'a\.wav'"):
        FeatureTrack("mel", "a.wav", 0.0, 1.0, data, 4.0)
