from __future__ import annotations

import numpy as np
import pytest
import torch

from brainspeech import models
from brainspeech.models.linear import LinearClip, Ridge, check_lags

LAGS = range(-2, 5, 2)


def make_signal(n_segments, n_channels=3, n_times=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_segments, n_channels, n_times, generator=generator)


def batches(signal, target, subject, size=4):
    def iterate():
        for rows in torch.arange(len(signal)).split(size):
            yield signal[rows], target[rows], subject[rows]

    return iterate


def lag_design(signal, lags):
    """Lagged signal (frames, L x C) at the frames whose lags all lie inside the window, and these frames; with numpy, by loops."""
    n_times = signal.shape[2]
    frames = [t for t in range(n_times) if all(0 <= t + lag < n_times for lag in lags)]
    rows = [np.concatenate([segment[:, t + lag] for lag in lags]) for segment in signal.double().numpy() for t in frames]
    return np.array(rows), frames


def fit_plainly(signal, target, lags, alpha):
    x, frames = lag_design(signal, lags)
    y = target.double().numpy()[:, :, frames].transpose(0, 2, 1).reshape(len(x), -1)
    x_mean, y_mean = x.mean(0), y.mean(0)
    xx = (x - x_mean).T @ (x - x_mean) / len(x)
    scale = np.trace(xx) / len(xx)
    weight = np.linalg.solve(xx + alpha * scale * np.eye(len(xx)), (x - x_mean).T @ (y - y_mean) / len(x))
    return weight, y_mean - x_mean @ weight


def test_lags_must_rise_in_equal_steps():
    assert check_lags(range(0, 61, 3)) == (list(range(0, 61, 3)), 3)
    assert check_lags([4]) == ([4], 1)
    for lags in ([], [3, 2], [0, 1, 3], [0, 0]):
        with pytest.raises(ValueError, match="equal steps"):
            check_lags(lags)


def test_linear_clip_is_the_double_sum():
    torch.manual_seed(0)
    model = LinearClip(2, 4, n_channels=3, lags=[-2, 1, 4], rank=2)
    signal, subject = make_signal(2, n_times=12), torch.tensor([1, 0])
    estimates = model(signal, torch.full((2, 3, 2), torch.nan), subject)
    assert model.filter.bias is not None
    expected = model.filter.bias[None, :, None].expand(2, 4, 12).clone()
    for b in range(2):
        components = model.mix.weight[subject[b]].T @ signal[b]
        for t in range(12):
            for index, lag in enumerate([-2, 1, 4]):
                if 0 <= t + lag < 12:
                    expected[b, :, t] += model.filter.weight[:, :, index] @ components[:, t + lag]
    torch.testing.assert_close(estimates, expected)


def test_linear_clip_is_linear():
    model = models.build("linear_clip", n_subjects=2, n_features=4, n_channels=3)
    a, b = make_signal(2, n_times=80), make_signal(2, n_times=80, seed=1)
    positions, subject = torch.rand(2, 3, 2), torch.tensor([0, -1])

    def apply(signal):
        return model(signal, positions, subject) - model(torch.zeros_like(signal), positions, subject)

    torch.testing.assert_close(apply(2 * a - 3 * b), 2 * apply(a) - 3 * apply(b), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="each of its 3 channels, got a signal with 2"):
        model(a[:, :2], positions[:, :2], subject)


@pytest.mark.parametrize("lags", [range(-2, 5, 2), range(3, 9, 3), range(-6, -1), [0], [0, 5]])
@pytest.mark.parametrize("alpha", [1e-2, 10.0])
def test_ridge_is_the_plain_solution(lags, alpha):
    """Streaming sums over batches, put together from edges, give what one design matrix gives."""
    signal, target = make_signal(10) + 0.5, make_signal(10, n_channels=2, seed=1) - 1
    subject = torch.tensor([0, 1] * 5)
    ridge = Ridge(2, 2, n_channels=3, lags=lags, alphas=[alpha])
    ridge.fit(batches(signal[:6], target[:6], subject[:6]), batches(signal[6:], target[6:], subject[6:], size=3))
    for index in range(2):
        rows = subject == index
        expected, intercept = fit_plainly(signal[rows], target[rows] - ridge.target_mean[:, None], lags, alpha)
        found = ridge.weight[index].permute(2, 1, 0).flatten(0, 1)  # (L x C, K)
        np.testing.assert_allclose(found, expected, atol=1e-5)
        np.testing.assert_allclose(ridge.intercept[index], intercept, atol=1e-5)
        x, frames = lag_design(signal[rows], lags)
        estimates = ridge(signal[rows], torch.rand(5, 3, 2), subject[rows])
        assert estimates.shape == (5, 2, 30)
        inside = estimates[:, :, frames].permute(0, 2, 1).flatten(0, 1)
        np.testing.assert_allclose(inside, x @ expected + intercept, atol=1e-4)
        assert ridge.n_frames[index] == len(x)


def plant(signal, weights, lag):
    """A target that a backward model can find: target[t] = weights @ signal[t + lag], zeros beyond the window."""
    padded = torch.nn.functional.pad(signal, (0, lag))
    return torch.einsum("kc,bct->bkt", weights, padded)[:, :, lag:]


def test_ridge_finds_what_was_planted_at_its_lag():
    torch.manual_seed(0)
    weights = torch.randn(2, 3, 4)  # a mixing for each of 2 subjects
    signal, subject = make_signal(40, n_channels=4), torch.tensor([0, 1] * 20)
    target = torch.stack([plant(signal[i : i + 1], weights[subject[i]], 4)[0] for i in range(40)])
    ridge = Ridge(2, 3, n_channels=4, lags=range(0, 9, 2))
    ridge.fit(batches(signal[:24], target[:24], subject[:24]), batches(signal[24:32], target[24:32], subject[24:32]))
    assert (ridge.correlation > 0.999).all()
    torch.testing.assert_close(ridge.weight[:, :, :, 2], weights, atol=5e-3, rtol=0)
    elsewhere = ridge.weight[:, :, :, [0, 1, 3, 4]]
    assert elsewhere.abs().max() < 5e-3
    estimates = ridge(signal[32:], torch.rand(8, 4, 2), subject[32:])
    assert (ridge.scores(estimates, target[32:]).argmax(1) == torch.arange(8)).all()


def test_ridge_chooses_a_large_alpha_for_noise_and_a_small_one_for_truth():
    signal, subject = make_signal(30, n_channels=4), torch.zeros(30, dtype=torch.int64)
    truth = plant(signal, torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), 2)
    noisy = truth + 15 * make_signal(30, n_channels=3, seed=2)
    chosen = []
    for target in (truth, noisy):
        ridge = Ridge(1, 3, n_channels=4, lags=range(0, 13))
        ridge.fit(batches(signal[:6], target[:6], subject[:6]), batches(signal[6:], target[6:], subject[6:]))
        chosen.append(float(ridge.alpha[0]))
    assert chosen[0] == pytest.approx(1e-3)
    assert chosen[1] > 0.1


def test_alpha_is_the_best_of_refits_scored_one_by_one():
    signal, target = make_signal(16), make_signal(16, n_channels=2, seed=1)
    target[:, 0] += signal[:, 1] * 0.4
    subject = torch.zeros(16, dtype=torch.int64)
    ridge = Ridge(1, 2, n_channels=3, lags=LAGS)
    ridge.fit(batches(signal[:10], target[:10], subject[:10]), batches(signal[10:], target[10:], subject[10:]))
    x, frames = lag_design(signal[10:], LAGS)
    y = target[10:, :, frames].double().numpy().transpose(0, 2, 1).reshape(len(x), -1)
    curve = []
    for alpha in ridge.alphas:
        weight, _ = fit_plainly(signal[:10], target[:10], LAGS, alpha)
        curve.append(np.mean([np.corrcoef((x @ weight)[:, k], y[:, k])[0, 1] for k in range(2)]))
    assert ridge.alpha[0] == pytest.approx(ridge.alphas[int(np.argmax(curve))])
    assert ridge.correlation[0] == pytest.approx(max(curve), abs=1e-5)


def test_targets_are_reduced_to_principal_components():
    generator = torch.Generator().manual_seed(0)
    sources = torch.randn(12, 2, 30, generator=generator) * torch.tensor([3.0, 1.0])[:, None]
    directions = torch.linalg.qr(torch.randn(7, 2, generator=generator)).Q
    target = directions @ sources + 5
    ridge = Ridge(1, 7, n_channels=3, lags=[0, 1], n_components=2)
    subject = torch.zeros(12, dtype=torch.int64)
    ridge.fit(batches(make_signal(12), target, subject), batches(make_signal(12), target, subject))
    overlap = (ridge.components.T @ directions).abs()
    torch.testing.assert_close(overlap, torch.eye(2), atol=0.1, rtol=0)
    torch.testing.assert_close(ridge.components @ ridge.project(target) + ridge.target_mean[:, None], target, atol=1e-4, rtol=1e-4)
    estimates = ridge(make_signal(12), torch.rand(12, 3, 2), subject)
    assert estimates.shape == (12, 2, 30)
    torch.testing.assert_close(ridge.scores(estimates, target), ridge.scores(estimates, ridge.project(target)))


def test_groups_of_subjects_change_nothing():
    signal, target, subject = make_signal(12), make_signal(12, n_channels=2, seed=1), torch.tensor([0, 1, 2] * 4)
    fitted = []
    for memory in (1, 2**30):
        ridge = Ridge(3, 2, n_channels=3, lags=LAGS)
        ridge.fit(batches(signal, target, subject), batches(signal, target, subject), memory=memory)
        fitted.append(ridge.state_dict())
    for name, value in fitted[0].items():
        assert torch.equal(value, fitted[1][name]), name


def test_unseen_subject_gets_the_average_and_masked_channels_nothing():
    signal, target, subject = make_signal(12), make_signal(12, n_channels=2, seed=1), torch.tensor([0, 1] * 6)
    ridge = Ridge(2, 2, n_channels=3, lags=LAGS)
    ridge.fit(batches(signal, target, subject), batches(signal, target, subject))
    positions = torch.rand(2, 3, 2)
    same = signal[:1].repeat(2, 1, 1)
    seen = ridge(same, positions, torch.tensor([0, 1]))
    torch.testing.assert_close(ridge(same, positions, torch.tensor([-1, -1]))[0], seen.mean(0))
    mask = torch.tensor([[True, True, False]] * 2)
    junk = same.masked_fill(~mask[:, :, None], 7.0)
    silent = same.masked_fill(~mask[:, :, None], 0.0)
    assert torch.equal(ridge(junk, positions, subject[:2], mask), ridge(silent, positions, subject[:2]))


def test_channels_that_a_subject_does_not_have_get_no_weight():
    signal, target, subject = make_signal(12), make_signal(12, n_channels=2, seed=1), torch.tensor([0, 1] * 6)
    signal[subject == 1, 2] = 0.0
    ridge = Ridge(2, 2, n_channels=3, lags=LAGS)
    ridge.fit(batches(signal, target, subject), batches(signal, target, subject))
    assert ridge.weight[1, :, 2].abs().max() < 1e-9
    assert ridge.weight[0, :, 2].abs().max() > 1e-6


def test_saved_ridge_is_loaded():
    signal, target, subject = make_signal(8), make_signal(8, n_channels=5, seed=1), torch.zeros(8, dtype=torch.int64)
    ridge = Ridge(1, 5, n_channels=3, lags=LAGS, n_components=2)
    ridge.fit(batches(signal, target, subject), batches(signal, target, subject))
    again = Ridge(**ridge.config)
    again.load_state_dict(ridge.state_dict())
    positions = torch.rand(8, 3, 2)
    assert torch.equal(again.scores(again(signal, positions, subject), target), ridge.scores(ridge(signal, positions, subject), target))


def test_subjects_without_validation_borrow_alpha_and_are_counted():
    signal, target, subject = make_signal(12), make_signal(12, n_channels=2, seed=1), torch.tensor([0, 1] * 6)
    ridge = Ridge(2, 2, n_channels=3, lags=LAGS)
    only_first = (signal[subject == 0], target[subject == 0], torch.tensor([0, 0, 0, 0, -1, -1]))
    counts = ridge.fit(batches(signal, target, subject), batches(*only_first))
    assert counts == {"n_unseen_valid": 2, "n_subjects_without_valid": 1}
    assert ridge.alpha[1] == ridge.alpha[0]
    assert ridge.correlation.isnan().tolist() == [False, True]
    assert ridge.weight[1].abs().max() > 0


def test_bad_input_is_named():
    signal, target, subject = make_signal(8), make_signal(8, n_channels=2, seed=1), torch.tensor([0, 1] * 4)
    good = batches(signal, target, subject)
    with pytest.raises(RuntimeError, match="call fit"):
        Ridge(2, 2, n_channels=3)(signal, torch.rand(8, 3, 2), subject)
    with pytest.raises(ValueError, match="Subject 2 has no training segments"):
        Ridge(3, 2, n_channels=3, lags=LAGS).fit(good, good)
    with pytest.raises(ValueError, match="is the split empty"):
        Ridge(2, 2, n_channels=3, lags=LAGS).fit(lambda: [], good)
    with pytest.raises(ValueError, match="no validation segment"):
        Ridge(2, 2, n_channels=3, lags=LAGS).fit(good, lambda: [])
    with pytest.raises(ValueError, match="window of 30 samples has no frame"):
        Ridge(2, 2, n_channels=3, lags=range(0, 31)).fit(good, good)
    with pytest.raises(ValueError, match="Subject 0: the signal is flat"):
        Ridge(2, 2, n_channels=3, lags=LAGS).fit(batches(0 * signal, target, subject), good)
    with pytest.raises(ValueError, match="made for targets"):
        Ridge(2, 3, n_channels=3, lags=LAGS).fit(good, good)
    with pytest.raises(ValueError, match="each of its 4 channels"):
        Ridge(2, 2, n_channels=4, lags=LAGS).fit(good, good)
    with pytest.raises(ValueError, match="must agree in B and T"):
        Ridge(2, 2, n_channels=3, lags=LAGS).fit(batches(signal[:, :, 1:], target, subject), good)
    with pytest.raises(ValueError, match="alphas must be positive"):
        Ridge(2, 2, n_channels=3, alphas=[0.0])
