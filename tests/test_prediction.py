"""Which windows and candidates are scored, and that scores do not depend on how they are computed."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import test_similarity
import torch
from test_evaluate import segments
from torch import nn

from brainspeech import losses, prediction, retrieval, similarity
from brainspeech.prediction import TestSet


def test_candidates_are_unique_and_in_order_of_time():
    made = segments()
    shuffled = [made[i] for i in np.random.default_rng(0).permutation(len(made))]
    test = TestSet.from_segments(shuffled)
    assert [c.stimulus_id for c in test.candidates] == sorted({s.stimulus_id for s in made})
    assert [test.candidates[j].stimulus_id for j in test.truth] == [s.stimulus_id for s in shuffled]
    assert [shuffled[i] for i in test.first] == test.candidates
    np.testing.assert_array_equal(test.blocks, np.repeat(np.arange(12), 6))


def test_folds_share_one_pool():
    made = segments(n_subjects=1, n_blocks=2)
    folds = [s for s in made if s.block == "block-01"] + [s for s in made if s.block == "block-00"]
    test = TestSet.from_segments(folds)
    assert len(test.candidates) == len(made)
    assert [test.candidates[j] for j in test.truth] == folds


def test_training_windows_and_empty_test_sets_are_refused():
    with pytest.raises(ValueError, match="training split"):
        TestSet.from_segments(segments(1, 1, 1, split="train"))
    with pytest.raises(ValueError, match="empty"):
        TestSet.from_segments([])


class Half(nn.Module):
    """Halves the signal; refuses to run in training mode."""

    def forward(self, signal, positions, subject, channel_mask=None):
        assert not self.training
        assert not torch.is_grad_enabled()
        return signal / 2


class Windows:
    def __init__(self, signal):
        self.signal = signal

    def __len__(self):
        return len(self.signal)

    def batch(self, indices):
        parts = {"signal": self.signal[torch.as_tensor(indices)], "positions": None, "subject": None, "channel_mask": None}
        batch = SimpleNamespace(**parts)
        batch.to = lambda device: batch
        return batch


def test_predicted_scores_do_not_depend_on_the_batch_size():
    generator = torch.Generator().manual_seed(0)
    signal, candidates = torch.randn(7, 2, 5, generator=generator), torch.randn(4, 2, 5, generator=generator)
    encoder = Half().train()
    found = prediction.predict_scores(encoder, Windows(signal), candidates, scores=similarity.candidate_normalised, batch_size=3)
    whole = prediction.predict_scores(encoder, Windows(signal), candidates.numpy(), scores=similarity.candidate_normalised)
    assert encoder.training
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, whole, rtol=1e-6)
    np.testing.assert_allclose(found, similarity.candidate_normalised(signal / 2, candidates), rtol=1e-5)


def test_estimates_of_the_final_scores_have_all_bits(monkeypatch):
    asked = []
    monkeypatch.setattr(prediction.backend, "tf32", lambda on: asked.append(on) or contextlib.nullcontext())
    prediction.predict_scores(Half(), Windows(torch.ones(2, 2, 5)), torch.ones(1, 2, 5), scores=similarity.dot)
    assert asked == [False]


def test_constant_scores_are_those_of_the_mean_target():
    rng = np.random.default_rng(0)
    mean, candidates = rng.normal(size=(2, 5)), rng.normal(size=(4, 2, 5))
    expected = [(mean * c).sum() / np.linalg.norm(c) for c in candidates]
    np.testing.assert_allclose(prediction.constant_scores(mean, candidates, similarity.candidate_normalised), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [losses.build("clip"), losses.build("clip", chunk=100), losses.build("siglip")])
def test_scores_at_the_candidates_own_rate_give_the_same_ranks(loss, monkeypatch):
    candidates = test_similarity.many()
    truth = torch.randint(len(candidates), (40,), generator=torch.Generator().manual_seed(1))
    noise = torch.randn(40, *candidates.shape[1:], generator=torch.Generator().manual_seed(2))
    windows = Windows(candidates[truth] * 0.02 + noise)
    forms = []
    prepare = similarity.prepare
    monkeypatch.setattr(similarity, "prepare", lambda *given: forms.append(prepare(*given)) or forms[-1])
    found = prediction.predict_scores(Half(), windows, candidates, scores=loss.scores, batch_size=16)
    monkeypatch.setattr(similarity, "prepare", lambda candidates, scores: candidates)
    expected = prediction.predict_scores(Half(), windows, candidates, scores=loss.scores, batch_size=16)
    assert isinstance(forms[0], similarity.Repeated)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    ranks = [retrieval.ranks_from_scores(scores, truth).ranks for scores in (found, expected)]
    assert torch.equal(*ranks)
    assert len(ranks[0].unique()) > 10  # neither all right nor all alike
