"""A decoder is fitted on windows in arrays or epochs: split by stimulus, at chance once the pairing is broken, and strict."""

import dataclasses

import mne
import numpy as np
import pytest

from brainspeech import SpeechDecoder, hub
from brainspeech.recipe import Choice
from brainspeech.segments import SegmentConfig
from brainspeech.train import TrainConfig

SFREQ = 30.0


def planted(n_stimuli=60, n_channels=5, seed=0):
    """Windows of two listeners whose channels follow every stimulus by 0.1 s, in noise: signals, targets, who, what."""
    rng = np.random.default_rng(seed)
    sound = rng.standard_normal((n_stimuli, 3, 70)).cumsum(2)
    sound -= sound.mean(2, keepdims=True)
    signals, targets, who, what = [], [], [], []
    for subject in "ab":
        mixing = rng.standard_normal((n_channels, 3))
        for k in range(n_stimuli):
            brain = mixing @ sound[k, :, 7:67] + rng.standard_normal((n_channels, 60))
            signals.append(1e-6 * brain)
            targets.append(sound[k, :, 10:70])  # at 30 Hz, 3 samples are 0.1 s
            who.append(subject)
            what.append(f"word {k}")
    return np.array(signals), np.array(targets), who, what


def linear(**changes):
    values = {
        "model": Choice("linear_clip", {"rank": 3, "lags": (0,)}),
        "preprocess": dataclasses.replace(SpeechDecoder().preprocess, sfreq=SFREQ),
        "segments": SegmentConfig(sfreq=SFREQ, valid_ratio=0.2, test_ratio=0.2),
        "train": TrainConfig(lr=0.03, batch_size=16, max_epochs=8),
        "lag": 0.1,
    }
    return SpeechDecoder(**(values | changes))


def test_arrays_are_fitted_split_by_stimulus_and_scored(tmp_path):
    signals, targets, who, what = planted()
    decoder = linear().fit(signals, targets, subject=who, stimuli=what, ch_names=list("vwxyz"))
    names = {s.stimulus_id for s in decoder.test_.candidates}
    assert 5 < len(names) < 25
    assert len(decoder.test_.truth) == 2 * len(names)  # both listeners' windows of a stimulus are on one side
    assert decoder.score(k=1) > 0.5
    new, new_targets, who, _ = planted(n_stimuli=60)
    mine = [i for i in range(len(new)) if f"word {i % 60}" in names]
    assert decoder.score(new[mine], new_targets[mine], k=1, subject=[who[i] for i in mine]) == decoder.score(k=1)
    decoder.save(tmp_path / "model")
    loaded = SpeechDecoder.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(signals[:4], subject="a"), decoder.predict(signals[:4], subject="a"))
    with pytest.raises(ValueError, match="fitted on targets that were given"):
        loaded.candidates([(np.zeros(48_000, np.float32), 16_000)])
    with pytest.raises(ValueError, match="There are no test windows"):
        loaded.score()


def small_conv(**changes):
    values = {
        "model": Choice("conv", {"n_virtual": 5, "hidden": 6, "depth": 1, "n_harmonics": 2}),
        "train": TrainConfig(lr=0.01, batch_size=16, max_epochs=2),
    }
    return linear(**(values | changes))


def epochs_of(signals):
    info = mne.create_info(list("vwxyz"), SFREQ, "eeg")
    places = {name: 0.09 * np.eye(5, 3)[i] + 0.01 * i for i, name in enumerate("vwxyz")}
    info.set_montage(mne.channels.make_dig_montage(places, coord_frame="head"))
    return mne.EpochsArray(signals, info, verbose="error")


def test_epochs_are_fitted_with_an_audio_encoder(tmp_path):
    """Trained jointly, saved with the encoder, and used wherever candidates are compared."""
    signals, targets, who, what = planted()
    epochs, heard = epochs_of(signals), {"subject": who, "stimuli": what}
    ear = Choice("deep_mel", {"n_outputs": 4, "hidden": 4, "depth": 2})
    decoder = small_conv(target_encoder=ear).fit(epochs, targets, **heard)
    names = {s.stimulus_id for s in decoder.test_.candidates}
    mine = [i for i, name in enumerate(what) if name in names]
    given = {"subject": [who[i] for i in mine], "stimuli": [what[i] for i in mine]}
    assert decoder.score(epochs[mine], targets[mine], k=3, **given) == decoder.score(k=3)
    candidates = decoder.candidates(targets[:9])
    assert decoder.predict(epochs[:2], subject="a").shape == (2, 4, 57)
    assert candidates.shape == (9, 3, 57)
    scores = decoder.scores(epochs[:5], candidates, subject="a")
    loaded = SpeechDecoder.load(decoder.save(tmp_path / "model"))
    np.testing.assert_array_equal(loaded.scores(epochs[:5], candidates, subject="a"), scores)
    assert loaded.target_encoder == ear
    with pytest.raises(ValueError, match="was fitted on 3 features, the candidates have 4"):
        loaded.candidates(np.ones((2, 4, 60)))
    with pytest.raises(ValueError, match="whole numbers, got float64"):
        loaded.rank(epochs[:2], candidates, [0.5, 1.0], subject="a")
    # Without the weights of the audio encoder there is nothing to compare with.
    folder = tmp_path / "model"
    extra = {key: value for key, value in hub.read_tensors(folder / hub.EXTRA).items() if key.startswith("positions/")}
    saved = hub.load(folder)
    config = {key: value for key, value in saved.config.items() if key not in hub.RESERVED}
    hub.save(folder, saved.module, config=config, statistics=saved.statistics, extra=extra)
    with pytest.raises(RuntimeError, match="trained jointly with a target_encoder, which is not in this folder"):
        SpeechDecoder.load(folder)


def test_shuffled_targets_are_at_chance():
    signals, targets, who, what = planted()
    order = np.random.default_rng(1).permutation(60)
    decoder = linear().fit(signals, targets[np.r_[order, order]], subject=who, stimuli=[what[i] for i in order] * 2, ch_names=list("vwxyz"))
    assert decoder.score(k=1) < 0.3


def test_arrays_that_do_not_belong_together_are_named():
    signals, targets, who, what = planted(n_stimuli=20)
    given = {"subject": who, "stimuli": what, "ch_names": list("vwxyz")}
    with pytest.raises(ValueError, match="heard the stimulus 'word 0' but have different targets"):
        linear().fit(signals, targets + np.arange(40)[:, None, None], **given)
    with pytest.raises(ValueError, match="but are of two blocks"):
        linear().fit(signals, targets, blocks=range(40), **given)
    with pytest.raises(ValueError, match="one for each of 40 windows, got"):
        linear().fit(signals, targets[:3], **given)
    with pytest.raises(ValueError, match=r"needs training and validation windows.*'valid': 0"):
        linear(segments=SegmentConfig(sfreq=SFREQ, valid_ratio=0.0)).fit(signals, targets, **given)
    with pytest.raises(ValueError, match="and no targets"):
        linear().fit(signals)
    with pytest.raises(ValueError, match="are there NaN"):
        linear().fit(signals, np.where(targets == targets[3, 0, 0], np.nan, targets), **given)
