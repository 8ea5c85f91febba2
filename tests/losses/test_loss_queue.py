"""Candidates of earlier batches as further negatives."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from paper_loops import log_sum_exp, make_vectors, mean
from test_train import CONFIG, DATA, make_encoder, same, without_time

from brainspeech import hub, losses
from brainspeech.train import fit

SHAPE = (7, 3, 5)
QUEUED = ("clip", "clip_symmetric", "dcl", "dclw", "cmim", "siglip", "mochi")
OPTIONS = {"clip_symmetric": {"symmetric": False}, "mochi": {"warmup": 0, "n_hardest": 4, "n_mixed": 5, "n_mixed_with_query": 3}}
# Every batch has an id of the one before it, the third one of its own twice.
BATCHES = [torch.tensor(ids) for ids in ([1, 2, 3, 4], [5, 1, 6, 7], [8, 6, 8, 2], [9, 3, 4, 1])]
every_queue = pytest.mark.parametrize("name", QUEUED)


def build(name="clip", shape=SHAPE, **options):
    return losses.build(name, queue=shape, **{**OPTIONS.get(name, {}), **options}).double()


def batch(step):
    """Estimates, candidates and ids of a step."""
    return make_vectors(4, step), make_vectors(4, 100 + step), BATCHES[step]


def call(loss, step):
    estimates, candidates, ids = batch(step)
    return loss(estimates, candidates, row_ids=ids, col_ids=ids)


def filled(*steps, **options):
    """A loss that has seen some steps."""
    loss = build(**options)
    for step in steps:
        call(loss, step)
    return loss


def paper_loss(estimates, cols, own, others):
    """Défossez et al.'s loss in plain loops: row i has the column own[i] and the columns others[i] in its denominator."""
    terms = []
    for i, x in enumerate(estimates.flatten(1).tolist()):
        scores = []
        for y in cols.flatten(1).tolist():
            scores.append(sum(a * b for a, b in zip(x, y, strict=True)) / (1e-8 + math.sqrt(sum(b * b for b in y))))
        attract = mean([scores[j] for j in own[i]])
        terms.append(log_sum_exp([scores[j] for j in {*own[i], *others[i]}]) - attract)
    return mean(terms)


@pytest.mark.parametrize("duplicates", ["ignore", "negative", "positive"])
def test_plain_loops(duplicates):
    """Four batches of 4 and a queue of 7: the third batch meets candidates 1 to 7 of the first two, the oldest of which has left."""
    loss = build(duplicates=duplicates)
    past, past_ids = [], []
    for step in range(4):
        estimates, candidates, ids = batch(step)
        cols, col_ids = torch.stack([*candidates, *past]), [*ids.tolist(), *past_ids]
        own, others = [], []
        for i, row_id in enumerate(ids.tolist()):
            alike = [j for j, col_id in enumerate(col_ids) if col_id == row_id]
            own.append(alike if duplicates == "positive" else [i])
            others.append([j for j in range(len(cols)) if j != i and (duplicates == "negative" or j not in alike)])
        output = call(loss, step)
        assert output.loss.item() == pytest.approx(paper_loss(estimates, cols, own, others), abs=1e-9)
        assert output.logs["n_queued"] == len(past)
        past, past_ids = [*past, *candidates][-7:], [*past_ids, *ids.tolist()][-7:]


@every_queue
@pytest.mark.parametrize("chunk", [None, 2])
def test_a_queue_is_candidates_that_are_nobodys_own(name, chunk):
    """Value and gradient are those of the plain loss that is given the queue's candidates behind its own, of all steps together."""
    loss, plain = build(name, chunk=chunk), losses.build(name, **OPTIONS.get(name, {})).double()
    seen = torch.zeros(0, 3, 5, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    leaves, totals = [], [0.0, 0.0]
    for step in range(4):
        estimates, candidates, ids = batch(step)
        leaves += [estimates.requires_grad_(), candidates.requires_grad_()]
        totals[0] += loss(estimates, candidates, row_ids=ids, col_ids=ids).loss
        columns = torch.cat([candidates, seen[0]]), torch.cat([ids, seen[1]])
        totals[1] += plain(estimates, columns[0], row_ids=ids, col_ids=columns[1]).loss
        seen = torch.cat([seen[0], candidates.detach()])[-7:], torch.cat([seen[1], ids])[-7:]
    torch.testing.assert_close(totals[0], totals[1], atol=1e-12, rtol=0)
    for got, expected in zip(torch.autograd.grad(totals[0], leaves), torch.autograd.grad(totals[1], leaves), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@every_queue
def test_an_empty_queue_is_none(name):
    torch.testing.assert_close(
        call(build(name), 0).loss, call(losses.build(name, **OPTIONS.get(name, {})).double(), 0).loss, atol=0, rtol=0
    )


@every_queue
def test_validation_neither_uses_nor_changes_it(name):
    loss, plain = filled(0, 1, name=name), losses.build(name, **OPTIONS.get(name, {})).double().eval()
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    output = call(loss.eval(), 2)
    assert torch.equal(output.loss, call(plain, 2).loss)
    assert "n_queued" not in output.logs
    assert all(torch.equal(value, before[key]) for key, value in loss.state_dict().items())


def test_first_in_first_out():
    loss = filled(0, 1)
    features, ids = loss.queue.content()
    assert ids.tolist() == [2, 3, 4, 5, 1, 6, 7]
    assert torch.equal(features, torch.cat([batch(0)[1][1:], batch(1)[1]]))
    small = filled(0, shape=(3, 3, 5))  # a batch that is larger than the queue
    assert small.queue.content()[1].tolist() == [2, 3, 4]
    assert filled(0).queue.content()[1].tolist() == [1, 2, 3, 4]


def test_it_keeps_no_gradient_and_no_memory_of_the_batch():
    loss, (estimates, candidates, ids) = build(), batch(0)
    loss(estimates, candidates.requires_grad_(), row_ids=ids)
    kept = loss.queue.content()[0]
    assert not kept.requires_grad
    with torch.no_grad():
        candidates.zero_()
    assert (kept != 0).all()


def test_it_may_be_kept_in_bfloat16():
    loss = losses.build("clip", queue=SHAPE, queue_dtype="bfloat16")
    for step in range(2):
        estimates, candidates, ids = batch(step)
        value = loss(estimates.float(), candidates.float(), row_ids=ids).loss
    assert loss.queue.features.dtype == torch.bfloat16
    assert value.dtype == torch.float32
    rounded = losses.build("clip")(
        estimates.float(),
        torch.cat([candidates.float(), batch(0)[1].bfloat16().float()]),
        row_ids=ids,
        col_ids=torch.cat([ids, BATCHES[0]]),
    )
    torch.testing.assert_close(value, rounded.loss)


def test_near_duplicates_in_the_queue_are_ignored():
    loss = filled(0)
    loss.near_duplicates = lambda rows, cols: (rows[:, None] - cols).abs() == 1
    # In the batch 5-6 and 6-7, both ways; with the queue 5-4 and 1-2; and 1 is in the queue itself.
    assert call(loss, 1).logs["n_ignored"] == 4 + 2 + 1
    loss.near_duplicates = None
    assert call(filled(0), 1).logs["n_ignored"] == 1


def test_it_is_saved_and_loaded_before_and_after_its_first_use(tmp_path):
    for i, steps in enumerate([(), (0,), (0, 1, 2)]):
        first, second = filled(*steps), filled(3)
        hub.write_tensors(tmp_path / f"{i}.safetensors", first.state_dict())
        hub.load_state(second, hub.read_tensors(tmp_path / f"{i}.safetensors"), where="test")
        assert torch.equal(call(first, 3).loss, call(second, 3).loss)
    again = losses.build("clip", **json.loads(json.dumps(first.config))).double()
    again.load_state_dict(first.state_dict())
    assert again.queue.content()[1].tolist() == first.queue.content()[1].tolist()
    with pytest.raises(RuntimeError, match=r"queue\.features: got"):
        hub.load_state(build(shape=(8, 3, 5)), first.state_dict(), where="test")


def test_a_resumed_fit_goes_on_with_the_same_queue(tmp_path):
    """To the same last bit; and the queue has a say in the fit."""

    def run(epochs, *, queue=(40, DATA["train"].n_features, DATA["train"].n_times), **where):
        loss = losses.build("clip", **({"queue": queue} if queue else {}))
        return fit(make_encoder(), loss, DATA["train"], DATA["valid"], replace(CONFIG, max_epochs=epochs), progress=False, **where)

    run(1, out=tmp_path)
    resumed, whole = run(3, out=tmp_path, resume=True), run(3)
    assert resumed.resumed_at == 1
    assert same(resumed.encoder, whole.encoder)
    assert same(resumed.loss, whole.loss)
    assert without_time(resumed.history) == without_time(whole.history)
    assert whole.loss.queue.n_filled == 40
    assert without_time(run(3, queue=None).history) != without_time(whole.history)


def test_bad_input_is_named():
    estimates, candidates, ids = batch(0)
    with pytest.raises(ValueError, match="goes with symmetric=False"):
        losses.build("clip_symmetric", queue=SHAPE)
    for name in ("mse", "mv_infonce", "isogclr"):
        with pytest.raises(ValueError, match=rf"Loss '{name}' has no queue, .* with one are {', '.join(QUEUED)}\."):
            losses.build(name, queue=SHAPE)
    for wrong in (4096, (0, 3, 5), (7,), (7.0, 3, 5)):
        with pytest.raises(ValueError, match=r"queue must be \(K, F, T\)"):
            losses.build("clip", queue=wrong)
    with pytest.raises(ValueError, match="queue_dtype must be one of float32, bfloat16, got 'int8'"):
        losses.build("clip", queue=SHAPE, queue_dtype="int8")
    with pytest.raises(ValueError, match=r"shape \(7, 3, 4\), got candidates \(4, 3, 5\): build the loss with queue=\(7, 3, 5\)"):
        build(shape=(7, 3, 4))(estimates, candidates, row_ids=ids)
    with pytest.raises(ValueError, match="A queue needs row_ids"):
        build()(estimates, candidates)
    with pytest.raises(ValueError, match="With a queue ignore must be a function of ids, got a Tensor"):
        build()(estimates, candidates, row_ids=ids, ignore=torch.zeros(4, 4, dtype=torch.bool))
    loss = filled(0, duplicates="error")
    with pytest.raises(ValueError, match=r"no id of a row in the queue, got 1, among them \[1\]"):
        call(loss, 1)
