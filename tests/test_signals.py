"""The signals of all recordings: opened, made where they are missing, and what reading them says."""

import copy
import dataclasses
from types import SimpleNamespace

import mne
import numpy as np
import pytest

from brainspeech import datasets, signals
from brainspeech.cache import Cache
from brainspeech.datasets.simulated import SimulatedDataset
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


class Noted(SimulatedDataset):
    """Reading says something of each recording, of all of them, and of some."""

    def read_raw(self, recording):
        self.notes.append(f"{recording.uid}: no date.")
        if "The clock of this lab is slow." not in self.notes:
            self.notes.append("The clock of this lab is slow.")
        if recording == self.recordings()[1]:
            self.notes.append("Run 2 has a hum.")
        data = np.random.default_rng(0).normal(size=(2, 700)) * 1e-6
        return mne.io.RawArray(data, mne.create_info(2, 70.0, "eeg", verbose="error"), verbose="error")


def noted():
    return Noted(n_subjects=1, minutes=5.0, n_channels=4, sfreq=70.0)


def load(dataset, cache, recordings=None, **options):
    """Load signals, and give the notes."""
    load_signals(dataset, recordings or dataset.recordings(), PreprocessConfig(sfreq=30.0), cache, progress=False, **options)
    return dataset.notes


def spread_here(work, shared, items, **options):
    """Do work in this process as workers do, with a copy of what is shared, the last item first."""
    return {name: work(copy.deepcopy(shared), item) for name, item in reversed(items.items())}


def test_the_notes_are_the_same_whatever_the_cache_has_and_whoever_reads(tmp_path, monkeypatch):
    first = noted()
    uids = [recording.uid for recording in first.recordings()]
    own, said = list(first.notes), [f"{uid}: no date." for uid in uids]
    expected = [*own, said[0], "The clock of this lab is slow.", said[1], "Run 2 has a hum.", *said[2:]]
    assert len(uids) > 1
    assert load(first, Cache(tmp_path / "a")) == expected
    assert load(first, Cache(tmp_path / "a")) == expected  # again
    assert load(noted(), Cache(tmp_path / "a")) == expected  # another process
    monkeypatch.setattr(signals.spreading, "spread", spread_here)
    assert load(noted(), Cache(tmp_path / "b"), n_jobs=2) == expected
    assert load(noted(), Cache(tmp_path / "b")) == expected
    last = first.recordings()[-1]
    load(noted(), Cache(tmp_path / "c"), [last])
    assert load(noted(), Cache(tmp_path / "c"), n_jobs=2) == expected  # what is kept already is not said first
    assert merged(expected)[len(own)].startswith(f"{uids[0]}: no date. The same in {len(uids) - 1} more: ")


def test_a_sentence_of_several_recordings_is_kept_with_each(tmp_path):
    dataset = noted()
    for recording in dataset.recordings():
        dataset.read_raw(recording)  # for their events, which says it before
    load(dataset, Cache(tmp_path))
    again = noted()
    assert "The clock of this lab is slow." in load(again, Cache(tmp_path), again.recordings()[1:])


def test_notes_name_the_recording_as_the_dataset_is_called_now(tmp_path):
    before, now = noted(), noted()
    load(before, Cache(tmp_path))
    now.name = "renamed"
    recordings = [dataclasses.replace(recording, dataset="renamed") for recording in now.recordings()]
    now.fingerprint = lambda recording: before.fingerprint(dataclasses.replace(recording, dataset=before.name))
    assert f"{recordings[0].uid}: no date." in load(now, Cache(tmp_path), recordings)
    assert not [note for note in now.notes if note.startswith(before.recordings()[0].uid)]


def test_notes_outlive_a_recording_that_cannot_be_read(tmp_path, monkeypatch):
    dataset = noted()
    monkeypatch.setattr("brainspeech.preprocess.preprocess", lambda *_, **__: 1 / 0)
    own = list(dataset.notes)
    with pytest.raises(ZeroDivisionError):
        load(dataset, Cache(tmp_path))
    assert dataset.notes == [*own, f"{dataset.recordings()[0].uid}: no date.", "The clock of this lab is slow."]


def test_a_dataset_may_keep_no_notes(tmp_path):
    dataset = noted()
    load(dataset, Cache(tmp_path))
    without = SimpleNamespace(fingerprint=dataset.fingerprint)  # what is in the cache is not read
    signals_of = load_signals(without, dataset.recordings(), PreprocessConfig(sfreq=30.0), Cache(tmp_path), progress=False)
    assert list(signals_of) == [recording.uid for recording in dataset.recordings()]
