"""Tracks: the length rule, cutting, the cache, counts, contexts."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from brainspeech import features, timing
from brainspeech.features import base
from brainspeech.features.base import Feature, compute_tracks, intervals, window_spans
from brainspeech.records import Segment, Span


class Level(Feature):
    """Mean of each tenth of a second; knows how often it was asked."""

    name = "level"
    fill = -7.0

    def __init__(self):
        self.groups = []

    def config(self):
        return {"name": self.name, "version": 1}

    def __call__(self, sound, sfreq):
        n = base.count_frames(sound.shape[1], sfreq, 10.0)
        edges = np.linspace(0, sound.shape[1], n + 1).astype(int)
        return np.stack([sound[:, a:b].mean(1) for a, b in itertools.pairwise(edges)], 1), 10.0

    def many(self, sounds):
        self.groups.append([sound.shape[1] / sfreq for sound, sfreq in sounds])
        return super().many(sounds)


class Library:
    """Stimuli in memory; knows what was read."""

    def __init__(self, **sounds):
        self.sounds = sounds
        self.read = []

    def __call__(self, audio):
        self.read.append(audio)
        return self.sounds[audio]

    def fingerprint(self, audio):
        return f"content of {audio}"

    def tracks(self, feature, wanted, cache):
        return compute_tracks(feature, wanted, self, fingerprint=self.fingerprint, cache=cache, progress=False)


def ramp(seconds, sfreq=1000.0):
    """Give a sound whose value is its own time in seconds."""
    return (np.arange(round(seconds * sfreq)) / sfreq).astype(np.float32)[None], sfreq


def segment(*spans, duration=3.0, onset=10.0):
    return Segment("d/sub-1", "d/sub-1", onset, duration, "id", "block", "", "", "train", tuple(spans))


def test_importing_features_loads_no_heavy_library():
    heavy = ("torch", "torchaudio", "transformers", "mne", "pandas", "soundfile")
    code = f"import sys, brainspeech.features; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_build_knows_names_and_options():
    assert features.build("mel", n_mels=40).config()["n_mels"] == 40
    with pytest.raises(ValueError, match=r"must be one of envelope, mel, precomputed, wav2vec2, or .*, got 'pitch'"):
        features.build("pitch")
    with pytest.raises(ValueError, match="mel takes n_mels, hop, got bands"):
        features.build("mel", bands=40)
    with pytest.raises(ValueError, match="precomputed takes no option, got zscore"):
        features.build("precomputed", zscore=True)


def test_track_is_the_interval_and_nothing_else(tmp_cache):
    library = Library(a=ramp(10.0))
    tracks, counts = library.tracks(Level(), [("a", 2.0, 3.0), ("a", 0.0, 10.0)], tmp_cache)
    track = tracks["a", 2.0, 3.0]
    assert track.sfreq == 10.0
    assert track.data.dtype == np.float32
    np.testing.assert_allclose(track.data[0], 2.0 + np.arange(10) / 10 + 0.0495, atol=1e-5)
    assert tracks["a", 0.0, 10.0].data.shape == (1, 100)
    assert counts == {}
    assert library.read == ["a"]


def test_cached_is_fresh_and_reads_nothing(tmp_cache):
    library = Library(a=ramp(5.0), b=(np.ones((1, 700), np.float32), 100.0))
    wanted = [("a", 0.0, 2.0), ("a", 3.0, 5.05), ("b", 0.0, 7.0)]
    fresh, counts = library.tracks(Level(), wanted, tmp_cache)
    feature = Level()
    again, counts_again = library.tracks(feature, reversed(wanted), tmp_cache)
    assert library.read == ["a", "b"]
    assert feature.groups == []
    assert list(again) == list(fresh)
    for key in wanted:
        np.testing.assert_array_equal(again[key].data, fresh[key].data)
    assert counts_again == counts == {base.CLIPPED: 1}


def test_what_is_missing_alone_is_computed(tmp_cache):
    library = Library(a=ramp(5.0), b=ramp(5.0))
    library.tracks(Level(), [("a", 0.0, 2.0)], tmp_cache)
    feature = Level()
    library.tracks(feature, [("a", 0.0, 2.0), ("b", 0.0, 3.0)], tmp_cache)
    assert library.read == ["a", "b"]
    assert feature.groups == [[3.0]]


def test_a_changed_stimulus_or_feature_is_computed_again(tmp_cache, monkeypatch):
    library = Library(a=ramp(5.0))
    library.tracks(Level(), [("a", 0.0, 2.0)], tmp_cache)
    monkeypatch.setattr(library, "fingerprint", lambda audio: "another content")
    library.tracks(Level(), [("a", 0.0, 2.0)], tmp_cache)
    changed = Level()
    monkeypatch.setattr(changed, "config", lambda: {"name": "level", "version": 2})
    library.tracks(changed, [("a", 0.0, 2.0)], tmp_cache)
    assert library.read == ["a"] * 3


@pytest.mark.parametrize("sfreq", [64.0, 300.3075, 44_100.0])
def test_length_is_the_rounded_duration_wherever_the_interval_lies(tmp_cache, sfreq):
    rng = np.random.default_rng(1)
    starts = rng.uniform(0, 5, 20).round(3)
    stops = starts + rng.uniform(0.3, 4, 20).round(3)
    library = Library(a=ramp(10.0, sfreq))
    tracks, counts = library.tracks(Level(), [("a", a, b) for a, b in zip(starts, stops, strict=True)], tmp_cache)
    assert len(tracks) == 20
    assert counts == {}
    for (_, start, stop), track in tracks.items():
        assert track.data.shape[1] == timing.to_samples(stop - start, 10.0)


def test_groups_are_bounded_and_of_similar_length(tmp_cache):
    lengths = [1.0, 25.0, 2.0, 29.0, 1.5, 70.0, 3.0]
    library = Library(**{f"s{i}": ramp(length, 100.0) for i, length in enumerate(lengths)})
    feature = Level()
    library.tracks(feature, [(f"s{i}", 0.0, length) for i, length in enumerate(lengths)], tmp_cache)
    assert feature.groups == [[70.0], [29.0, 25.0], [3.0, 2.0, 1.5, 1.0]]


def test_many_stimuli_are_not_held_in_memory_at_once(tmp_cache, monkeypatch):
    monkeypatch.setattr(base, "POOL_SECONDS", 5.0)
    library = Library(**{f"s{i}": ramp(3.0, 100.0) for i in range(5)})
    feature = Level()
    tracks, _ = library.tracks(feature, [(f"s{i}", 0.0, 3.0) for i in range(5)], tmp_cache)
    assert [len(group) for group in feature.groups] == [2, 2, 1]
    assert len(tracks) == 5


def test_a_stimulus_that_ends_early_is_filled_and_counted(tmp_cache):
    library = Library(a=ramp(5.0))
    tracks, counts = library.tracks(Level(), [("a", 4.0, 5.08)], tmp_cache)
    assert counts == {base.CLIPPED: 1}
    assert tracks["a", 4.0, 5.08].data.shape == (1, 11)
    assert tracks["a", 4.0, 5.08].data[0, 9] == pytest.approx(4.9495)
    assert tracks["a", 4.0, 5.08].data[0, 10] == Level.fill


def test_a_lack_that_is_rounding_is_not_counted(tmp_cache):
    library = Library(a=ramp(5.0))
    assert library.tracks(Level(), [("a", 4.0, 5.001)], tmp_cache)[1] == {}


@pytest.mark.parametrize("interval", [("a", 4.0, 5.1), ("a", 4.0, 9.0), ("a", 5.0, 5.05)])
def test_a_stimulus_that_is_too_short_is_an_error(tmp_cache, interval):
    library = Library(a=ramp(5.0))
    with pytest.raises(ValueError, match=rf"'a' is too short: expected at least {interval[2]:.3f} s .*, got 5.000 s"):
        library.tracks(Level(), [interval], tmp_cache)


def test_an_interval_shorter_than_a_frame_is_an_error(tmp_cache):
    with pytest.raises(ValueError, match=r"level of 'a' \[1.000, 1.020\] s: .*too short for one frame"):
        Library(a=ramp(5.0)).tracks(Level(), [("a", 1.0, 1.02)], tmp_cache)


@pytest.mark.parametrize(
    ("stimulus", "message"),
    [
        (np.zeros((1, 0), np.float32), "is empty"),
        (np.zeros(100, np.float32), r"shape \(n_rows, n_samples\)"),
        (np.array([[0, np.nan, 1, np.inf]], np.float32), "2 of the 4 samples"),
    ],
)
def test_a_bad_stimulus_is_named(tmp_cache, stimulus, message):
    with pytest.raises(ValueError, match=f"level of 'a': .*{message}"):
        Library(a=(stimulus, 100.0)).tracks(Level(), [("a", 0.0, 1.0)], tmp_cache)


def test_a_missing_wav_says_where_it_was_expected(tmp_cache, tmp_path):
    from brainspeech.datasets.base import Dataset

    class Folder(Dataset):
        name = "folder"

        def recordings(self):
            return []

        def read_raw(self, recording):
            raise NotImplementedError

        def read_events(self, recording):
            raise NotImplementedError

    dataset = Folder(tmp_path)
    read, fingerprint = dataset.read_stimulus, dataset.stimulus_fingerprint
    with pytest.raises(FileNotFoundError, match=r"folder: the stimulus 'gone.wav' is missing, expected .*gone.wav"):
        compute_tracks(Level(), [("gone.wav", 0, 1)], read, fingerprint=fingerprint, cache=tmp_cache, progress=False)


def test_a_feature_that_breaks_its_promise_is_an_error(tmp_cache, monkeypatch):
    short, broken = Level(), Level()
    monkeypatch.setattr(short, "many", lambda sounds: [(np.zeros((1, 3), np.float32), 10.0)])
    monkeypatch.setattr(broken, "many", lambda sounds: [(np.full((1, 10), np.nan, np.float32), 10.0)])
    library = Library(a=ramp(5.0))
    with pytest.raises(RuntimeError, match=r"expected values of shape \(n_features, 10\), got \(1, 3\)"):
        library.tracks(short, [("a", 0.0, 1.0)], tmp_cache)
    with pytest.raises(RuntimeError, match="not all finite"):
        library.tracks(broken, [("a", 0.0, 1.0)], tmp_cache)


def test_fit_length_makes_up_two_frames_and_no_more():
    values = np.arange(6.0).reshape(2, 3)
    assert base.fit_length(values, 2).tolist() == [[0, 1], [3, 4]]
    assert base.fit_length(values, 5).tolist() == [[0, 1, 2, 2, 2], [3, 4, 5, 5, 5]]
    with pytest.raises(RuntimeError, match="expected 6 frames, got 3"):
        base.fit_length(values, 6)


def test_block_context_asks_for_the_blocks_cuts():
    one, two = Span("a", 0.0, 12.0, -4.0), Span("a", 12.0, 20.0, -1.0)
    assert intervals([segment(one), segment(one), segment(two), segment()], "block") == {("a", 0.0, 12.0), ("a", 12.0, 20.0)}


def test_window_context_asks_for_the_windows_sound_alone():
    segments = [segment(Span("a", 2.0, 12.0, -4.0)), segment(Span("a", 2.0, 12.0, -4.0 + 1e-12)), segment(Span("a", 2.0, 12.0, -8.5))]
    assert intervals(segments, "window") == {("a", 6.0, 9.0), ("a", 10.5, 12.0)}
    assert window_spans(segments)[0].spans == (Span("a", 6.0, 9.0, 0.0),)
    assert intervals(window_spans(segments), "block") == intervals(segments, "window")


def test_window_spans_keep_a_sound_that_begins_inside_and_leave_out_what_is_outside():
    inside, over, ahead = Span("a", 0.0, 9.0, 1.25), Span("b", 0.0, 5.0, -5.0), Span("c", 0.0, 5.0, 3.0)
    (cut,) = window_spans([segment(inside, over, ahead)])
    assert cut.spans == (Span("a", 0.0, 1.75, 1.25),)
    assert (cut.onset, cut.duration, cut.stimulus_id) == (10.0, 3.0, "id")


def test_window_spans_round_to_the_millisecond_inside_the_block():
    third = 361 / 120
    (cut,) = window_spans([segment(Span("a", 1.0, 4.0002, -1 / 3), duration=third)])
    assert cut.spans == (Span("a", 1.333, 4.0, 0.0),)
    (cut,) = window_spans([segment(Span("a", 1.0004, 3.99951, -1e-6), duration=third)])
    assert cut.spans == (Span("a", 1.0004, 3.99951, 0.0),)


def test_an_unknown_context_is_an_error():
    with pytest.raises(ValueError, match="context must be one of block, window, got 'sentence'"):
        intervals([], "sentence")
