"""Scorers on a fitted encoder: variants are what they say, choices are made on validation, and what cannot be is refused early."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from brainspeech import prediction, scorers, scoring, similarity
from brainspeech.batches import Batch
from brainspeech.records import Segment, Span

SFREQ = 20.0


class Windows:
    """Windows of two listeners; the signal is the target of the own stimulus under noise, of each listener another factor."""

    def __init__(self, split, *, n_blocks=4, per_block=6, seed=0, noise=15.0):
        rng = np.random.default_rng(seed)
        n = n_blocks * per_block
        self.segments = tuple(
            Segment(
                f"d/{s}", f"d/{s}", 5 + 30.0 * k + 3 * i, 3.0, f"{split}{k}w{i}", f"{split}-{k}", "", "", split,
                (Span(split, 30.0 * k, 30.0 * k + 20, -3.0 * i),),
            )
            for s in range(2) for k in range(n_blocks) for i in range(per_block)
        )  # fmt: skip
        self.features = torch.from_numpy(rng.normal(size=(n, 4, 60)).astype(np.float32))
        self.signal = self.features.repeat(2, 1, 1) + noise * torch.from_numpy(rng.normal(size=(2 * n, 4, 60)).astype(np.float32))
        self.subjects, self.ch_names, self.sfreq, self.n_features = ("d/0", "d/1"), ("a", "b", "c", "d"), SFREQ, 4
        self.subject = torch.arange(2).repeat_interleave(n)

    def __len__(self):
        return len(self.segments)

    def targets(self, indices):
        return self.features[np.asarray(indices) % len(self.features)]

    def batch(self, indices):
        rows = torch.as_tensor(np.asarray(indices))
        there = torch.ones(len(rows), 4, dtype=torch.bool)
        return Batch(self.signal[rows], torch.zeros(len(rows), 4, 2), there, self.subject[rows], self.targets(indices), rows)


class Same(nn.Module):
    def forward(self, signal, positions, subject, channel_mask=None):
        return signal


class Subjects(nn.Module):
    """What it says depends on the subject's layer."""

    def forward(self, signal, positions, subject, channel_mask=None):
        return torch.where(subject[:, None, None] == 0, signal, signal.roll(1, 1))


def apply(names, *, encoder=None, valid=None, test=None, **options):
    encoder, valid, test = encoder or Same(), valid or Windows("valid", seed=1), test or Windows("test", seed=2)
    known = prediction.TestSet.from_segments(test.segments)
    split = scoring.Split(test, known.candidates, test.targets(known.first))
    own = prediction.predict_scores(encoder, test, split.targets, scores=similarity.candidate_normalised)
    given = {"context_width": 6.0, "n_layers": 2, **options}
    found = scoring.apply(names, encoder, similarity.candidate_normalised, valid=valid, test=split, own=own, **given)
    return {name: (scores, chosen) for name, scores, chosen in found}, own, known.truth


def test_every_scorer_gives_scores_and_says_what_was_chosen():
    found, own, truth = apply(scorers.SCORERS)
    assert list(found) == list(scorers.SCORERS)
    for scores, chosen in found.values():
        assert scores.shape == own.shape
        assert scores.dtype == np.float32
        assert chosen
    assert found["context"][1].startswith(("weight 0.5 within", "weight 1 within"))
    assert scorers.mean_log_rank(found["context"][0], truth) < 0.7 * scorers.mean_log_rank(own, truth)
    assert found["layers"][1].startswith("weights 0.")
    assert found["other_subject"][1].endswith("the encoder gives the same scores for all")


def test_the_choice_does_not_see_the_test_split():
    names = ("augment", "layers", "hubness", "context")
    one, _, _ = apply(names, test=Windows("test", seed=2))
    other, _, _ = apply(names, test=Windows("test", seed=3, noise=100.0))
    assert {name: chosen for name, (_, chosen) in one.items()} == {name: chosen for name, (_, chosen) in other.items()}
    blind, own, _ = apply(("context",), valid=Windows("valid", seed=1, noise=1e6), test=Windows("test", seed=2))
    assert "0" in blind["context"][1]
    assert own.shape == blind["context"][0].shape


def test_layers_are_scored_one_by_one():
    class FirstHalf(nn.Module):
        """Knows the first two features only."""

        def forward(self, signal, positions, subject, channel_mask=None):
            return torch.cat([signal[:, :2], 1e3 * torch.sin(1e4 * signal[:, 2:])], 1)

    found, own, truth = apply(("layers",), encoder=FirstHalf())
    scores, chosen = found["layers"]
    assert float(chosen.split()[1].strip(",")) > 0.8
    assert scorers.mean_log_rank(scores, truth) < 0.8 * scorers.mean_log_rank(own, truth)


def test_other_subjects_layers_are_other_subjects_layers():
    batch = Windows("test").batch([0, 1, 30])
    (change,) = scoring._others(2)
    assert change(batch).subject.tolist() == [1, 1, 0]
    changes = scoring._others(9)
    assert len(changes) == scoring.MOST_OTHERS
    subject = torch.tensor([0, 3, 8, -1])
    changed = np.stack([c(replace(batch, subject=subject)).subject.numpy() for c in changes])
    assert changed.min() >= 0
    assert changed.max() < 9
    assert all(len(set(column)) == len(column) for column in changed.T)
    assert not (changed == subject.numpy()).any()
    found, _, _ = apply(("other_subject",), encoder=Subjects())
    assert not found["other_subject"][1].endswith("for all")


def test_transforms_shift_scale_and_drop_and_are_the_same_for_every_batch():
    data = Windows("test")
    changes = scoring._transforms([f"c{i}" for i in range(20)], SFREQ, seed=3)
    ramp = torch.arange(1.0, 61).expand(2, 20, 60)
    batch = replace(data.batch([0, 1]), signal=ramp)
    for shift, change in zip(scoring.SHIFTS, changes, strict=True):
        out = change(batch).signal
        silent = (out == 0).all(2)
        assert silent.sum(1).tolist() == [2, 2]
        kept = out[~silent]
        gain = kept[0, 30] / (ramp[0, 0, 30] - np.sign(shift))  # one sample of 50 ms, to either side
        assert abs(gain - 1) <= scoring.GAIN + 1e-6
        assert torch.allclose(kept[:, 5:55], gain * (ramp[0, 0, 5:55] - np.sign(shift)), rtol=1e-4)
        alone = change(replace(data.batch([1]), signal=ramp[:1])).signal
        assert torch.equal(alone[0], out[1])
    assert torch.equal(batch.signal, ramp), "a batch is not changed in place"
    again = scoring._transforms([f"c{i}" for i in range(20)], SFREQ, seed=3)[0](batch).signal
    assert torch.equal(again, changes[0](batch).signal)


def test_what_cannot_be_is_refused_before_training():
    data = Windows("valid")
    scoring.check(scorers.SCORERS, data, context_width=6.0, n_layers=2)
    with pytest.raises(ValueError, match=r"context_width must be 3 s .* got 2 s"):
        scoring.check(["context"], data, context_width=2.0, n_layers=0)
    with pytest.raises(ValueError, match=r"at least 2: evaluate\.n_layers is 0.*--set evaluate\.n_layers=5"):
        scoring.check(["layers"], data, context_width=6.0, n_layers=0)
    with pytest.raises(ValueError, match="4 features cannot be divided by"):
        scoring.check(["layers"], data, context_width=6.0, n_layers=3)
    with pytest.raises(ValueError, match="target_encoder mixes them"):
        scoring.check(["layers"], data, context_width=6.0, n_layers=2, joint=True)
    data.subjects = ("d/0",)
    with pytest.raises(ValueError, match="two training subjects or more, got 1"):
        scoring.check(["other_subject"], data, context_width=6.0, n_layers=0)
