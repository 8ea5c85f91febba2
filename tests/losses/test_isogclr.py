"""iSogCLR: one step by hand, the tables, and what makes them right over batches."""

from __future__ import annotations

import math

import pytest
import torch
from paper_loops import cosines, make_vectors

from brainspeech import hub, losses

E4, C4 = make_vectors(4, 0), make_vectors(4, 1)
IDS = torch.tensor([70, 30, 90, 50])
GAMMA, BETA, ETA, RHO = 0.8, 0.9, 0.01, 0.1


def paper_step(scores, state, *, with_positive=False):
    """One step of algorithm 1 in loops, with the running maximum b; updates state {row: [tau, s, u, b]} and gives the loss."""
    terms = []
    n = len(scores) - 1
    for i, row in enumerate(scores):
        tau, s, u, b = state.get(i, (0.07, None, 0.0, -math.inf))
        d = [value - row[i] for j, value in enumerate(row) if j != i or with_positive]
        z = [value / tau for value in d]
        top = max([*z, b])
        e = [math.exp(value - top) for value in z]
        g = sum(e) / n
        s = g if s is None else (1 - GAMMA) * s * math.exp(b - top) + GAMMA * g
        terms.append(sum(w / s * value for w, value in zip(e, d, strict=True)) / n)
        gradient = math.log(s) + top + RHO - sum(w / s * value for w, value in zip(e, z, strict=True)) / n
        u = (1 - BETA) * u + BETA * max(-5.0, min(5.0, gradient))
        state[i] = (min(max(tau - ETA * u, 0.005), 1.0), s, u, top)
    return sum(terms) / len(terms)


def transposed(scores):
    return [list(column) for column in zip(*scores, strict=True)]


@pytest.mark.parametrize("denominator", ["formula", "code"])
def test_three_steps_by_hand(denominator):
    loss = losses.build("isogclr", n_rows=6, n_cols=5, denominator=denominator).double()
    forth, back = {}, {}
    for step in range(3):
        estimates = make_vectors(4, 10 + step)
        scores = cosines(estimates, C4)
        code = denominator == "code"
        expected = (paper_step(scores, forth, with_positive=code) + paper_step(transposed(scores), back, with_positive=code)) / 2
        assert loss(estimates, C4, row_ids=IDS).loss.item() == pytest.approx(expected, abs=1e-9)
    for table, state in ((loss.objective, forth), (loss.back, back)):
        order = IDS.argsort()
        assert table.keys[:4].tolist() == IDS[order].tolist()
        temperatures = [state[i][0] for i in order.tolist()]
        assert table.temperature[:4].tolist() == pytest.approx(temperatures, abs=1e-8)
        assert len(set(temperatures)) == 4
        assert table.temperature[4:].tolist() == pytest.approx([0.07] * (len(table.keys) - 4))


def test_the_gradient_is_that_of_the_softmax_on_a_first_visit():
    """With s = g the estimator is the gradient of tau log mean exp(d / tau)."""
    estimates = E4.clone().requires_grad_()
    loss = losses.build("isogclr", symmetric=False)
    loss(estimates, C4, row_ids=IDS).loss.backward()
    again = E4.clone().requires_grad_()
    scores = loss.scores(again, C4)
    d = (scores - scores.diagonal()[:, None])[~torch.eye(4).bool()].view(4, 3)
    (0.07 * (d / 0.07).logsumexp(1)).mean().backward()
    torch.testing.assert_close(estimates.grad, again.grad)


def test_items_met_in_different_batches_keep_their_own_state():
    """Visiting two halves is remembered by id: the state does not depend on the order of the halves or of rows."""
    states = []
    for halves in ([[0, 1], [2, 3]], [[3, 2], [1, 0]]):
        loss = losses.build("isogclr", n_rows=4, n_cols=4).double()
        for half in halves * 2:
            loss(E4[half], C4[half], row_ids=IDS[half])
        states.append(loss.state_dict())
    assert all(torch.allclose(states[0][key], states[1][key], rtol=0, atol=1e-12) for key in states[0])
    assert states[0]["objective.keys"].tolist() == sorted(IDS.tolist())


def test_rows_have_keys_of_their_own():
    """Two listeners of one segment are two rows and one column."""
    loss = losses.build("isogclr")
    ids = torch.tensor([5, 5, 6, 7])
    loss(E4, C4[[0, 2, 3]], row_ids=ids, col_ids=torch.tensor([5, 6, 7]), row_keys=torch.tensor([15, 25, 16, 17]))
    seen = {name: table.keys[table.keys < torch.iinfo(torch.int64).max].tolist() for name, table in loss.named_children()}
    assert seen == {"objective": [15, 16, 17, 25], "back": [5, 6, 7]}
    with pytest.raises(ValueError, match=r"row_keys must be \(4,\), got \(2,\)"):
        loss(E4, C4, row_ids=ids, row_keys=ids[:2])


def test_state_changes_in_training_only_and_only_with_ids():
    loss = losses.build("isogclr").eval()
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    loss(E4, C4, row_ids=IDS)
    loss.train()(E4, C4)
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())
    loss(E4, C4, row_ids=IDS)
    assert not all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())


def test_state_is_saved_and_loaded(tmp_path):
    loss = losses.build("isogclr", n_rows=8, n_cols=9)
    for step in range(3):
        loss(make_vectors(4, step), C4, row_ids=IDS)
    hub.write_tensors(tmp_path / "loss.safetensors", loss.state_dict())
    again = losses.build("isogclr", n_rows=8, n_cols=9)
    hub.load_state(again, hub.read_tensors(tmp_path / "loss.safetensors"), where="test")
    new = losses.build("isogclr", n_rows=8, n_cols=9)
    results = [each(E4, C4, row_ids=IDS).loss.item() for each in (loss, again, new)]
    assert results[0] == results[1] != results[2]
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in loss.state_dict().items())


def test_rare_and_confusable_items_get_different_temperatures():
    """An item that many others resemble gets the larger temperature: its negatives are not all wrong."""
    generator = torch.Generator().manual_seed(0)
    crowd = torch.randn(1, 1, 16, generator=generator) + 0.3 * torch.randn(10, 1, 16, generator=generator)
    alone = torch.randn(10, 1, 16, generator=generator)
    candidates = torch.cat([crowd, alone])
    loss = losses.build("isogclr", eta=0.05, rho=0.5)
    for _ in range(60):
        loss(candidates + 0.1 * torch.randn(20, 1, 16, generator=generator), candidates, row_ids=torch.arange(20))
    temperature = loss.objective.temperature[:20]
    assert temperature[:10].mean() > 1.3 * temperature[10:].mean()


def test_a_full_table_and_bad_options_are_errors():
    loss = losses.build("isogclr", n_rows=4, n_cols=5)
    loss(E4, C4, row_ids=IDS)
    with pytest.raises(ValueError, match="room for 4, got 8 different ids"):
        loss(E4, C4, row_ids=IDS + 1)
    with pytest.raises(ValueError, match="temperature must be in temperature_range"):
        losses.build("isogclr", temperature=2.0)
    with pytest.raises(ValueError, match="gamma"):
        losses.build("isogclr", gamma=0.0)
