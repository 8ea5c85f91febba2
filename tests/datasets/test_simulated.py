"""Simulated listeners: the same seed gives the same bits, and what the events say is where the sound and the response are."""

from typing import Any

import numpy as np
import pytest
import scipy.signal

from brainspeech.datasets import load
from brainspeech.datasets.phantom_listener import band_power
from brainspeech.datasets.simulated import SimulatedDataset
from brainspeech.datasets.speech_synthesis import AUDIO_SFREQ, LEXICON, PHONEMES, VOCABULARY, tell_story

SMALL: dict[str, Any] = {"n_subjects": 2, "minutes": 0.5, "n_channels": 8, "sfreq": 120.0}


@pytest.fixture(scope="module")
def dataset():
    return SimulatedDataset(**SMALL)


def test_same_seed_same_bits_in_any_order(dataset):
    again = load("simulated", **SMALL)
    assert again.recordings() == dataset.recordings()
    for recording in reversed(again.recordings()):
        np.testing.assert_array_equal(again.read_raw(recording).get_data(), dataset.read_raw(recording).get_data())
        assert again.read_events(recording).equals(dataset.read_events(recording))
        assert again.fingerprint(recording) == dataset.fingerprint(recording)
    np.testing.assert_array_equal(again.read_stimulus("story-01.wav")[0], dataset.read_stimulus("story-01.wav")[0])


def test_another_seed_another_world(dataset):
    other = SimulatedDataset(**SMALL, seed=1)
    recording = dataset.recordings()[0]
    assert not np.array_equal(other.read_stimulus("story-01.wav")[0], dataset.read_stimulus("story-01.wav")[0])
    assert other.fingerprint(recording) != dataset.fingerprint(recording)
    assert other.stimulus_fingerprint("story-01.wav") != dataset.stimulus_fingerprint("story-01.wav")


def test_fingerprints_follow_what_they_stand_for(dataset):
    recording = dataset.recordings()[0]
    prints = {dataset.fingerprint(r) for r in dataset.recordings()}
    for change in ({"snr_db": 0.0}, {"n_channels": 9}, {"kind": "meg"}, {"sfreq": 128.0}, {"response_lag": 0.1}, {"nuisances": "blinks"}):
        changed = SimulatedDataset(**{**SMALL, **change})
        prints.add(changed.fingerprint(recording))
        assert changed.stimulus_fingerprint("story-01.wav") == dataset.stimulus_fingerprint("story-01.wav")
    assert len(prints) == 2 + 6
    # A listener more leaves the first ones as they were.
    assert SimulatedDataset(**{**SMALL, "n_subjects": 3}).fingerprint(recording) == dataset.fingerprint(recording)


def test_minutes_are_shared_out_over_stories():
    dataset = SimulatedDataset(n_subjects=1, minutes=5.0)
    assert [r.uid for r in dataset.recordings()] == ["simulated/sub-01/run-01", "simulated/sub-01/run-02"]
    seconds = [dataset.read_stimulus(f"story-{run}.wav")[0].shape[1] / AUDIO_SFREQ for run in ("01", "02")]
    assert seconds == [150.0, 150.0]


def test_events_lie_inside_the_recording_and_inside_the_sound(dataset):
    for recording in dataset.recordings():
        table = dataset.read_events(recording)
        raw = dataset.read_raw(recording)
        sound = table[table["kind"] == "sound"].iloc[0]
        assert set(table["kind"]) == {"sound", "sentence", "word", "phoneme"}
        assert sound["onset"] >= 3
        assert sound["onset"] + sound["duration"] + 2 <= raw.n_times / raw.info["sfreq"]
        stops = table["audio_onset"] + table["duration"]
        assert stops.max() <= sound["duration"]
        np.testing.assert_allclose(table["onset"] - table["audio_onset"], sound["onset"], atol=1e-9)
    onsets = [dataset.read_events(r)["onset"].iloc[0] for r in dataset.recordings()]
    assert len(set(onsets)) == len(onsets)  # recording time is not stimulus time


def test_sentences_consist_of_their_words_and_words_of_their_phonemes(dataset):
    table = dataset.read_events(dataset.recordings()[0])
    pronunciation = {word: phonemes for words in LEXICON.values() for word, phonemes in words.items()}
    words, phonemes = table[table["kind"] == "word"], table[table["kind"] == "phoneme"]
    for _, sentence in table[table["kind"] == "sentence"].iterrows():
        inside = words[words["sequence"] == sentence["sequence"]]
        assert " ".join(inside["text"]) == sentence["text"]
        assert 4 <= len(inside) <= 12
        assert inside["onset"].iloc[0] == sentence["onset"]
        assert (np.diff(inside["onset"]) - inside["duration"].to_numpy()[:-1] > -1e-9).all()
    for _, word in words.iterrows():
        of_word = phonemes[(phonemes["onset"] > word["onset"] - 1e-9) & (phonemes["onset"] < word["onset"] + word["duration"] - 1e-9)]
        assert tuple(of_word["text"]) == pronunciation[word["text"]]
        assert of_word["duration"].sum() == pytest.approx(word["duration"])


def test_the_sound_is_where_the_events_say(dataset):
    """The first word of a sentence comes out of silence: energy before its onset is nothing to that after it."""
    audio, sfreq = dataset.read_stimulus("story-01.wav")
    assert audio.shape == (1, 30 * AUDIO_SFREQ)
    assert audio.dtype == np.float32
    assert sfreq == AUDIO_SFREQ
    assert 0.5 < np.abs(audio).max() < 1
    energy = np.cumsum(audio[0].astype(float) ** 2)
    table = dataset.read_events(dataset.recordings()[0])

    def power(start, stop):
        first, last = (int(np.clip(round(t * AUDIO_SFREQ), 0, audio.shape[1] - 1)) for t in (start, stop))
        return (energy[last] - energy[first]) / (last - first)

    sentences = table[table["kind"] == "sentence"]
    for _, sentence in sentences.iterrows():
        onset, stop = sentence["audio_onset"], sentence["audio_onset"] + sentence["duration"]
        # A stop consonant is silent for its closure, 50 ms as a rule.
        assert power(onset, onset + 0.25) > 100 * power(onset - 0.15, onset - 0.02)
        assert power(stop - 0.15, stop) > 30 * power(stop + 0.02, stop + 0.15)
    vowels = table[(table["kind"] == "phoneme") & table["text"].isin(["AA", "AE", "IY", "AO"])]
    fricatives = table[(table["kind"] == "phoneme") & table["text"].isin(["S", "SH"])]
    share = {}
    for name, events in (("vowels", vowels), ("fricatives", fricatives)):
        pieces = [audio[0, int(e["audio_onset"] * AUDIO_SFREQ) :][: int(e["duration"] * AUDIO_SFREQ)] for _, e in events.iterrows()]
        frequencies, spectrum = scipy.signal.welch(np.concatenate(pieces), AUDIO_SFREQ, nperseg=512)
        share[name] = spectrum[frequencies > 2500].sum() / spectrum.sum()
    assert share["vowels"] < 0.1
    assert share["fricatives"] > 0.8


def test_words_are_english_frequent_ones_often_and_refrains_few():
    story = tell_story(np.random.default_rng(3), duration=150.0, name="s")
    words = [piece.text for piece in story.spoken if piece.kind == "word"]
    assert 150 <= len(VOCABULARY) <= 300
    assert {phoneme for words_ in LEXICON.values() for phonemes in words_.values() for phoneme in phonemes} <= set(PHONEMES)
    assert 2 < len(words) / 150 < 4  # a second, as people speak
    counts = sorted((words.count(word) for word in set(words)), reverse=True)
    assert counts[0] > 8 * np.median(counts)
    sentences = [piece.text for piece in story.spoken if piece.kind == "sentence"]
    repeated = {text for text in sentences if sentences.count(text) > 1}
    assert len(repeated) == 1
    assert sentences.count(repeated.pop()) in (2, 3)
    assert len({piece.sequence for piece in story.spoken if piece.kind == "sentence"}) == len(sentences)


@pytest.mark.parametrize("lag", [0.15, 0.0])
def test_a_planted_lag_is_found_by_cross_correlation(lag):
    dataset = SimulatedDataset(**{**SMALL, "minutes": 1.0}, snr_db=10.0, response_lag=lag, nuisances="none")
    lags = np.arange(-0.3, 0.5, 0.01)
    for recording in dataset.recordings():
        raw = dataset.read_raw(recording)
        sound = dataset.read_events(recording).iloc[0]
        audio, _ = dataset.read_stimulus(sound["audio"])
        times = np.arange(0.5, sound["duration"] - 1.0, 0.01)
        # An envelope that owes nothing to the simulator's own filterbank, high-passed like the sensors.
        envelope = np.convolve(np.abs(audio[0]) ** 0.6, np.hanning(800), mode="same")
        high_pass = scipy.signal.butter(2, 0.5, "high", fs=raw.info["sfreq"], output="sos")
        data = scipy.signal.sosfiltfilt(high_pass, raw.get_data(), axis=1)
        heard = np.interp(times, np.arange(audio.shape[1]) / AUDIO_SFREQ, envelope)
        strength = np.zeros(len(lags))
        for channel in data:
            answered = [np.interp(times + sound["onset"] + at, raw.times, channel) for at in lags]
            strength += np.array([np.corrcoef(heard, a)[0, 1] ** 2 for a in answered])
        assert lags[strength.argmax()] == pytest.approx(lag, abs=0.0201)


def test_the_answer_differs_between_listeners():
    dataset = SimulatedDataset(**SMALL, snr_db=30.0, nuisances="none")
    one, two = (dataset.read_raw(r).get_data() for r in dataset.recordings())
    sounds = [dataset.read_events(r)["onset"].iloc[0] for r in dataset.recordings()]
    grid = np.arange(1.0, 25.0, 1 / 120)
    aligned = [
        np.stack([np.interp(grid + s, np.arange(d.shape[1]) / 120, row) for row in d]) for d, s in zip((one, two), sounds, strict=True)
    ]
    same = [abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(*aligned, strict=True)]
    assert max(same) < 0.99


@pytest.mark.parametrize("kind", ["eeg", "meg"])
def test_snr_is_what_is_stated_and_units_are_physical(kind):
    options = {**SMALL, "n_subjects": 6, "n_channels": 24, "kind": kind, "nuisances": "none"}
    quiet, loud = SimulatedDataset(**options, snr_db=-np.inf), SimulatedDataset(**options, snr_db=-6.0)
    level = {"eeg": 10e-6, "meg": 100e-15}[kind]
    ratios = []
    for recording in loud.recordings():
        noise, mixed = quiet.read_raw(recording).get_data() / level, loud.read_raw(recording).get_data() / level
        assert np.sqrt(band_power(noise, 120.0)) == pytest.approx(1, abs=0.15)
        assert np.abs(mixed).max() < 50
        sound = loud.read_events(recording).iloc[0]
        heard = slice(int(sound["onset"] * 120), int((sound["onset"] + sound["duration"]) * 120))
        ratios.append(10 * np.log10(band_power((mixed - noise)[:, heard], 120.0)))
    gains = [loud._listener(recording.subject).gain_db for recording in loud.recordings()]
    np.testing.assert_allclose(np.array(ratios) - gains, -6.0, atol=0.2)
    assert 0.3 < np.std(ratios) < 3  # listeners differ


def test_noise_falls_with_frequency_and_is_shared_by_neighbours():
    dataset = SimulatedDataset(n_subjects=1, minutes=1.0, n_channels=32, sfreq=120.0, snr_db=-np.inf, nuisances="none")
    raw = dataset.read_raw(dataset.recordings()[0])
    data = raw.get_data()
    frequencies, power = scipy.signal.welch(data, 120.0, nperseg=480)
    power = power.mean(axis=0)
    ratio = power[(frequencies > 2) & (frequencies < 4)].mean() / power[(frequencies > 20) & (frequencies < 40)].mean()
    assert 5 < ratio < 20  # 10 for 1/f
    high_pass = scipy.signal.butter(4, 1, "high", fs=120.0, output="sos")
    correlation = np.corrcoef(scipy.signal.sosfiltfilt(high_pass, data, axis=1))
    places = np.array([channel["loc"][:3] for channel in raw.info["chs"]])
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    near, far = (distance > 0) & (distance < 0.05), distance > 0.15
    assert correlation[near].mean() > 0.7
    assert abs(correlation[far]).mean() < 0.6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_subjects": 0}, "n_subjects must be at least 1, got 0"),
        ({"minutes": 0.1}, "minutes must be at least 0.25"),
        ({"n_channels": 300}, "n_channels must be 1 to 256 for eeg, got 300"),
        ({"kind": "fnirs"}, "kind must be one of eeg, meg, got 'fnirs'"),
        ({"sfreq": 50.0}, "sfreq must be at least 70 Hz"),
        ({"snr_db": float("nan")}, "snr_db must be"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"preset": "hard"}, "preset must be one of easy, realistic, gaussian, got 'hard'"),
        ({"nuisances": "hiccups"}, "nuisances must be all, none or among .*, got hiccups"),
        ({"response_lag": 2.0}, "response_lag must be None or -1 to 1 s"),
    ],
)
def test_parameters_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"simulated: {message}"):
        SimulatedDataset(**options)


def test_what_is_not_simulated_is_not_there(dataset):
    stranger = SimulatedDataset(**{**SMALL, "n_subjects": 3}).recordings()[-1]
    with pytest.raises(ValueError, match=r"simulated/sub-03/run-01 is not one of the 2 recordings"):
        dataset.read_raw(stranger)
    with pytest.raises(FileNotFoundError, match=r"no stimulus 'story-02\.wav'; the stories are story-01\.wav"):
        dataset.read_stimulus("story-02.wav")
