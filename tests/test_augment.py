"""Augmentation: seeded, of the signal alone, off by default, and a resumed fit draws what it would have drawn."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from torch import nn

from brainspeech import augment, losses, models
from brainspeech.augment import Augmentation, TimeShift, check
from brainspeech.batches import BatchConfig, SegmentDataset
from brainspeech.records import FeatureTrack, Segment, Signal, Span
from brainspeech.scaling import fit_statistics
from brainspeech.train import TrainConfig, fit

B, C, T, SFREQ = 6, 4, 200, 50.0
OPTIONS = {
    "MaskEncoding": {"max_mask_ratio": 0.3},
    "SmoothTimeMask": {"mask_len_samples": 40},
    "TimeShift": {"max_shift": 0.2},
    "ChannelsDropout": {"p_drop": 0.5},
}


def signal_and_mask():
    signal = torch.randn(B, C, T, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(B, C, dtype=torch.bool)
    mask[:, -1] = False
    return signal.masked_fill(~mask[:, :, None], 0.0), mask


@pytest.mark.parametrize("name", augment.TRANSFORMS)
def test_every_transform_is_seeded_and_keeps_to_the_signal(name):
    signal, mask = signal_and_mask()
    before = signal.clone()
    apply = Augmentation([(name, {"probability": 1.0, **OPTIONS.get(name, {})})], sfreq=SFREQ)
    out = apply(signal, mask, seed=(3, 0, 1))
    assert out.shape == signal.shape
    assert out.dtype == torch.float32
    assert out.isfinite().all()
    assert torch.equal(signal, before)
    assert not torch.allclose(out, signal)
    assert (out[:, -1] == 0).all()  # a channel that is not there
    assert torch.equal(apply(signal, mask, seed=(3, 0, 1)), out)
    if name != "SignFlip":  # with probability 1 there is nothing to draw
        assert not torch.equal(apply(signal, mask, seed=(3, 0, 2)), out)
    never = Augmentation([(name, {**OPTIONS.get(name, {}), "probability": 0.0})], sfreq=SFREQ)
    assert torch.equal(never(signal, mask, seed=(3, 0, 1)), signal)


def test_time_shift_moves_whole_segments_by_no_more_than_it_says():
    signal = torch.arange(T, dtype=torch.float32).expand(300, C, T)
    out = TimeShift(0.5, 0.1, sfreq=SFREQ, random_state=1)(signal)
    shift = 100 - out[:, :, 100]
    assert (shift == shift[:, :1]).all()
    assert set(shift[:, 0].int().tolist()) == set(range(-5, 6))
    assert 0.4 < (shift[:, 0] != 0).float().mean() * 11 / 10 < 0.6
    late = int(shift[:, 0].argmax())
    assert out[late, 0, :6].tolist() == [0, 0, 0, 0, 0, 0]  # 5 samples late: the first sample stands in for what was before it
    assert out[late, 0, -1] == T - 6


def test_transforms_follow_one_another_and_draw_apart():
    signal, mask = signal_and_mask()
    first, second = ("GaussianNoise", {"probability": 1.0, "std": 0.5}), ("AmplitudeScale", {"probability": 1.0})
    both = Augmentation([first, second], sfreq=SFREQ)(signal, mask, seed=(1,))
    other = Augmentation([second, first], sfreq=SFREQ)(signal, mask, seed=(1,))
    assert not torch.allclose(both, other)
    noise = Augmentation([first, first], sfreq=SFREQ)(signal, mask, seed=(1,)) - signal
    assert noise[:, :-1].std() == pytest.approx(0.5 * 2**0.5, rel=0.1)  # the same noise twice would be 1.0


def test_names_and_lists_become_one_form():
    assert check(["SignFlip", ["GaussianNoise", {"std": 0.2}]]) == (("SignFlip", {}), ("GaussianNoise", {"std": 0.2}))
    config = TrainConfig(augment=("SignFlip",))
    assert TrainConfig(**json.loads(json.dumps(asdict(config)))) == config
    assert TrainConfig().augment == ()


def test_bad_input():
    with pytest.raises(ValueError, match=r"must be among AmplitudeScale.*TimeShift, got 'Blur'"):
        TrainConfig(augment=("Blur",))
    with pytest.raises(ValueError, match=r"Mixup cannot be used .* mixes segments"):
        TrainConfig(augment=(("Mixup", {"alpha": 0.5}),))
    with pytest.raises(ValueError, match="takes names or"):
        TrainConfig(augment=(("SignFlip", 0.5),))
    with pytest.raises(ValueError, match="GaussianNoise takes probability, std, got loud"):
        Augmentation([("GaussianNoise", {"loud": 1})], sfreq=SFREQ)
    with pytest.raises(ValueError, match=r"cannot be made with .*probability"):
        Augmentation([("SignFlip", {"probability": 2.0})], sfreq=SFREQ)
    with pytest.raises(ValueError, match="at least a sample"):
        Augmentation([("TimeShift", {"max_shift": 0.001})], sfreq=SFREQ)


def test_what_is_refused_exists():
    transforms = augment._import_transforms()
    assert all(hasattr(transforms, name) for name in (*augment.FROM_BRAINDECODE, *augment.REFUSED))


# --------------------------------------------------------------------------------------------------------------------------- in training

CONFIG = TrainConfig(lr=3e-3, batch_size=8, max_epochs=3, patience=5, seed=3, precision="fp32")
NOISY = replace(CONFIG, augment=(("GaussianNoise", {"std": 0.5}), ("TimeShift", {"max_shift": 0.1}), "ChannelsDropout"))


def make_data():
    rng = np.random.default_rng(0)
    n, sfreq = 1200, 20.0
    sound = rng.standard_normal((3, n)).astype(np.float32)
    track = FeatureTrack("toy", "a", 0.0, n / sfreq, sound, sfreq)
    data = (1e-6 * (rng.standard_normal((C, 3)) @ sound + rng.standard_normal((C, n)))).astype(np.float32)
    signals = {"d/sub-1": Signal("d/sub-1", data, sfreq, tuple("ABCD"), ("eeg",) * C, rng.random((C, 2)).astype(np.float32))}
    segments = [
        Segment("d/sub-1", "d/sub-1", t, 3.0, f"a@{t}", "b", "", "", "train" if t < 40 else "valid", (Span("a", 0.0, n / sfreq, -t),))
        for t in range(57)
    ]
    config, tracks = BatchConfig(), {track.key: track}
    statistics = fit_statistics(segments[:40], signals, tracks, config=config, fill=0.0)
    whole = SegmentDataset(segments, signals, tracks, config=config, statistics=statistics, subjects=("d/sub-1",), fill=0.0)
    return whole.subset(range(40)), whole.subset(range(40, 57))


class Watching(nn.Module):
    """An encoder that keeps what it was shown."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner = models.build("conv", n_subjects=1, n_features=3, n_virtual=4, hidden=6, depth=1, n_harmonics=2)
        self.shown = {True: [], False: []}

    def forward(self, signal, *args, **kwargs):
        self.shown[self.training].append(signal.clone())
        return self.inner(signal, *args, **kwargs)


def run(config, **kwargs):
    train, valid = make_data()
    encoder = Watching()
    return fit(encoder, losses.build("clip"), train, valid, config, progress=False, **kwargs), encoder


def test_only_the_training_signal_is_changed_and_only_when_asked():
    (plain, seen), (noisy, changed) = run(CONFIG), run(NOISY)
    assert len(seen.shown[True]) == len(changed.shown[True]) == 15
    assert not any(torch.equal(a, b) for a, b in zip(seen.shown[True], changed.shown[True], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(seen.shown[False], changed.shown[False], strict=True))
    assert plain.history[0]["train_loss"] != noisy.history[0]["train_loss"]
    assert run(CONFIG)[0].history[-1]["train_loss"] == plain.history[-1]["train_loss"]


def test_a_resumed_fit_draws_what_it_would_have_drawn(tmp_path):
    whole, _ = run(NOISY)
    run(replace(NOISY, max_epochs=1), out=tmp_path)
    rest, _ = run(NOISY, out=tmp_path, resume=True)
    assert rest.resumed_at == 1
    a, b = whole.encoder.state_dict(), rest.encoder.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    with pytest.raises(ValueError, match=r"another configuration: augment"):
        run(CONFIG, out=tmp_path, resume=True)


def test_an_option_that_is_not_taken_is_said_before_training():
    with pytest.raises(ValueError, match="GaussianNoise takes"):
        run(replace(CONFIG, augment=(("GaussianNoise", {"loud": 1}),)))
