"""Masks: each rule, and what a loss does with one."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from paper_loops import make_vectors

from brainspeech import losses
from brainspeech.losses import masks

E4, C4 = make_vectors(4, 0), make_vectors(4, 1)
IDS = torch.tensor([40, 20, 30, 10])


def test_same_id_and_same_text():
    assert masks.same_id(torch.tensor([1, 2]), torch.tensor([2, 2, 1])).tolist() == [[False, False, True], [True, True, False]]
    texts = masks.same_text(["The  cat", "", "a dog"], ["the cat", "", "A dog "])
    assert texts.tolist() == [[True, False, False], [False, False, False], [False, False, True]]
    assert masks.same_text([], ["a"]).shape == (0, 1)


def test_overlap_is_time_in_common_on_the_same_audio():
    windows = torch.tensor([[0, 10.0], [0, 11.0], [0, 11.5], [0, 12.0], [1, 10.0], [0, 100000.0], [0, 100001.0]], dtype=torch.float64)
    mask = masks.overlapping(windows, windows, duration=3.0)
    alike = {(i, j) for i, j in mask.nonzero().tolist() if i < j}
    # 1 s apart: 2/3 in common; 1.5 s: half, which is not above the threshold of 0.5; another audio: nothing
    assert alike == {(0, 1), (1, 2), (1, 3), (2, 3), (5, 6)}
    assert mask.diagonal().all()
    assert torch.equal(mask, mask.T)
    strict = masks.overlapping(windows, windows, duration=3.0, threshold=0.8)
    assert {(i, j) for i, j in strict.nonzero().tolist() if i < j} == {(1, 2), (2, 3)}
    with pytest.raises(ValueError, match="threshold in"):
        masks.overlapping(windows, windows, duration=3.0, threshold=1.0)
    with pytest.raises(ValueError, match=r"audio and onset in s, got \(7,\)"):
        masks.overlapping(windows[:, 0], windows, duration=3.0)


def test_similar_is_cosine_at_least():
    candidates = torch.cat([C4, 7 * C4[:1], C4[:1] + 0.05 * C4[1:2]])
    assert masks.similar(candidates, candidates, chunk=4)[0].tolist() == [True, False, False, False, True, False]
    assert masks.similar(candidates, candidates, threshold=0.95)[0].tolist() == [True, False, False, False, True, True]


def test_by_id_looks_descriptions_up():
    windows = torch.tensor([[0, 10.0], [0, 11.0], [1, 10.0], [0, 50.0]], dtype=torch.float64)
    rule = masks.by_id(IDS, windows, partial(masks.overlapping, duration=3.0))
    assert rule(torch.tensor([20, 10]), torch.tensor([10, 40, 20])).tolist() == [[False, True, True], [True, False, False]]
    with pytest.raises(ValueError, match=r"2 ids have no description, among them \[99, 5\]"):
        rule(torch.tensor([99, 5]), IDS)
    with pytest.raises(ValueError, match="two different descriptions"):
        masks.by_id(torch.tensor([1, 1]), windows[:2], masks.same_id)
    with pytest.raises(ValueError, match="Each id needs one description"):
        masks.by_id(IDS, windows[:2], masks.same_id)


def test_ignored_entries_are_neither_and_positives_stay():
    ignore = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
    for name in ("clip", "dcl", "cmim"):
        loss = losses.build(name)
        output = loss(E4, C4, row_ids=IDS, ignore=ignore)
        moved = C4.clone()
        moved[1] = make_vectors(1, 9)[0]  # rows 0 and 2 do not see column 1
        estimates = E4.clone().requires_grad_()
        assert output.logs["n_ignored"] == 2
        loss(estimates[[0, 2]], C4, row_ids=IDS[[0, 2]], col_ids=IDS, ignore=ignore[[0, 2]]).loss.backward()
        other = E4.clone().requires_grad_()
        loss(other[[0, 2]], moved, row_ids=IDS[[0, 2]], col_ids=IDS, ignore=ignore[[0, 2]]).loss.backward()
        assert torch.equal(estimates.grad, other.grad)


def test_a_rule_may_be_given_or_set_once():
    windows = torch.tensor([[0, 10.0], [0, 11.0], [1, 10.0], [0, 50.0]], dtype=torch.float64)
    rule = masks.by_id(IDS, windows, partial(masks.overlapping, duration=3.0))
    loss = losses.build("clip")
    given = loss(E4, C4, row_ids=IDS, ignore=rule)
    assert given.logs["n_ignored"] == 2
    plain = loss(E4, C4, row_ids=IDS)
    assert plain.loss != given.loss
    loss.near_duplicates = rule
    assert loss(E4, C4, row_ids=IDS).loss == given.loss


@pytest.mark.parametrize(("name", "n_masked"), [("dcl", 0), ("simclr", 2)])
def test_near_duplicates_of_the_own_side_are_ignored_too(name, n_masked):
    """With row 0 and 1 near-duplicates, moving estimate 1 does not move the loss of row 0."""
    ignore = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]).bool()

    def rule(rows, cols):
        return ignore[rows][:, cols]

    estimates = E4.clone().requires_grad_()
    loss = losses.build(name, symmetric=False, intra=True)
    ids = torch.arange(4)
    contrasts = []
    loss.objective.register_forward_pre_hook(lambda module, arguments: contrasts.append(arguments[0]))
    loss(estimates, C4, row_ids=ids, ignore=rule)
    (seen,) = contrasts
    assert not seen.negative[0, [0, 1, 4, 5]].any()
    assert seen.negative[0, [2, 3, 6, 7]].all()
    assert seen.cols.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_same_says_what_is_one_thing():
    """Two windows with one sentence: the second is a positive."""
    sentence = torch.tensor([7, 7, 8, 9])
    same = masks.by_id(IDS, sentence, masks.same_id)
    loss = losses.build("clip", duplicates="positive")
    torch.testing.assert_close(loss(E4, C4, row_ids=IDS, same=same).loss, loss(E4, C4, row_ids=sentence).loss)


def test_what_duplicates_are():
    scores = losses.build("clip").scores(E4, C4)
    ids = torch.tensor([1, 1, 2, 3])

    def row0(duplicates):
        return losses.build("clip", duplicates=duplicates)(E4[:1], C4, row_ids=ids[:1], col_ids=ids).loss

    torch.testing.assert_close(row0("ignore"), scores[0, [0, 2, 3]].logsumexp(0) - scores[0, 0])
    torch.testing.assert_close(row0("negative"), scores[0].logsumexp(0) - scores[0, 0])
    torch.testing.assert_close(row0("positive"), scores[0].logsumexp(0) - scores[0, :2].mean())
    with pytest.raises(ValueError, match=r"expects each id once, got 1 repeated in col_ids, among them \[1\]"):
        row0("error")
    with pytest.raises(ValueError, match=r"repeated in row_ids, among them \[1\]"):
        losses.build("clip", duplicates="error")(E4, C4[1:], row_ids=ids, col_ids=ids[1:])
    assert losses.build("clip", duplicates="error")(E4, C4, row_ids=IDS).loss == losses.build("clip")(E4, C4).loss


@pytest.mark.parametrize("name", ["clip", "dcl", "dclw", "cmim", "siglip", "isogclr", "simclr", "sdcon", "mochi"])
def test_a_row_without_negative_is_left_out_and_counted(name):
    ignore = torch.zeros(4, 4, dtype=torch.bool)
    ignore[2] = True
    options = {"intra": False} if name == "simclr" else {}
    estimates = E4.clone().requires_grad_()
    output = losses.build(name, symmetric=False, **options)(estimates, C4, row_ids=IDS, ignore=ignore)
    assert output.logs["n_without_negative"] == 1
    rest = [0, 1, 3]
    expected = losses.build(name, symmetric=False, **options)(E4[rest], C4, row_ids=IDS[rest], col_ids=IDS)
    torch.testing.assert_close(output.loss, expected.loss)
    output.loss.backward()
    assert estimates.grad[2].abs().sum() == 0
    assert estimates.grad[rest].abs().sum((1, 2)).all()


def test_rows_without_a_positive_and_bad_masks_are_errors():
    loss = losses.build("clip")
    with pytest.raises(ValueError, match=r"1 ids of the estimates have no candidate, among them \[10\]"):
        loss(E4, C4, row_ids=IDS, same=torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]).bool())
    with pytest.raises(ValueError, match=r"ignore must be a bool mask \(4, 4\), got torch.bool \(4, 3\)"):
        loss(E4, C4, ignore=torch.zeros(4, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="same must be a bool mask"):
        loss(E4, C4, same=torch.eye(4))
    with pytest.raises(ValueError, match="No estimate has a negative"):
        loss(E4, C4, ignore=torch.ones(4, 4, dtype=torch.bool))
