"""The signals of all recordings: opened, made where they are missing, and what reading them says."""

from types import SimpleNamespace

import numpy as np
import pytest

from brainspeech import datasets, signals
from brainspeech.cache import Cache
from brainspeech.listing import merged
from brainspeech.preprocess import PreprocessConfig
from brainspeech.signals import load_signals


@pytest.fixture
def dataset():
    return datasets.load("simulated", None, n_subjects=1, minutes=5.0, n_channels=4, sfreq=70.0)


def test_every_recording_has_its_signal_and_what_is_kept_is_not_read_again(dataset, tmp_path, monkeypatch):
    recordings, cache = dataset.recordings(), Cache(tmp_path / "cache")
    config = PreprocessConfig(sfreq=30.0)
    first = load_signals(dataset, recordings, config, cache, progress=False)
    assert list(first) == [recording.uid for recording in recordings]
    monkeypatch.setattr(dataset, "read_raw", lambda recording: pytest.fail("read again"))
    for n_jobs in (1, 2):
        again = load_signals(dataset, recordings, config, cache, progress=False, n_jobs=n_jobs)
        for uid, signal in first.items():
            np.testing.assert_array_equal(signal.data, again[uid].data)


def test_what_workers_say_of_many_recordings_is_counted_in_the_notes(dataset, tmp_path, monkeypatch):
    recordings, config = dataset.recordings(), PreprocessConfig(sfreq=30.0)
    monkeypatch.setattr(signals.spreading, "spread", lambda work, shared, items, **options: {uid: [f"{uid}: no date."] for uid in items})
    monkeypatch.setattr(signals, "load_signal", lambda dataset, recording, config, cache: cache.get_or_make("signal", recording.uid))
    with pytest.raises(signals.spreading.Missing):  # for nothing was made here
        load_signals(dataset, recordings, config, Cache(tmp_path), progress=False, n_jobs=2)
    assert len(recordings) > 1
    assert dataset.notes[-len(recordings) :] == [f"{recording.uid}: no date." for recording in recordings]
    assert merged(dataset.notes)[-1] == f"{recordings[0].uid}: no date. The same in {len(recordings) - 1} more: {recordings[1].uid}."


def test_a_worker_gives_back_what_reading_adds_to_the_notes(tmp_path, monkeypatch):
    dataset = SimpleNamespace(notes=["Simulated."])
    monkeypatch.setattr(signals, "load_signal", lambda dataset, *_: dataset.notes.append("d/sub-1: no date."))
    assert signals._preprocess((dataset, PreprocessConfig(), Cache(tmp_path)), SimpleNamespace()) == ["d/sub-1: no date."]
