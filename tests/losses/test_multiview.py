"""MV-InfoNCE and MV-DHEL: their formulas in loops over views and segments, missing views, and the flat way to call them."""

from __future__ import annotations

import math

import pytest
import torch
from paper_loops import cosines, log_sum_exp, make_vectors, mean

from brainspeech import losses

TAU, V, M = 0.5, 3, 4
VIEWS = make_vectors(V * M, 0).view(V, M, 3, 5)
SPEECH = make_vectors(M, 1)
THERE = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [0, 1, 1, 1]]).bool()


def infonce(views, there, *, denominator="formula", positives="lse"):
    terms = []
    n_views, n = len(views), len(views[0])
    g = [[[[s / TAU for s in row] for row in cosines(views[v], views[w])] for w in range(n_views)] for v in range(n_views)]
    pairs = [(v, w) for v in range(n_views) for w in range(n_views)]
    for i in range(n):
        own = [g[v][w][i][i] for v, w in pairs if v != w and there[v][i] and there[w][i]]
        every = [g[v][w][i][j] for v, w in pairs for j in range(n) if v != w and there[v][i] and there[w][j]]
        if denominator == "code":
            every += [g[v][v][i][j] for v in range(n_views) for j in range(n) if j != i and there[v][i] and there[v][j]]
        terms.append(log_sum_exp(every) - (log_sum_exp(own) if positives == "lse" else mean(own)))
    return mean(terms)


def dhel(views, there, *, positives="lse"):
    terms = []
    n_views, n = len(views), len(views[0])
    g = [[[[s / TAU for s in row] for row in cosines(views[v], views[w])] for w in range(n_views)] for v in range(n_views)]
    for i in range(n):
        own = [g[v][w][i][i] for v in range(n_views) for w in range(v + 1, n_views) if there[v][i] and there[w][i]]
        repel = [[g[v][v][i][j] for j in range(n) if j != i and there[v][j]] for v in range(n_views) if there[v][i]]
        terms.append(sum(log_sum_exp(values) for values in repel if values) - (log_sum_exp(own) if positives == "lse" else mean(own)))
    return mean(terms)


CASES = [("mv_infonce", infonce, {"denominator": d, "positives": p}) for d in ("formula", "code") for p in ("lse", "mean")]
CASES += [("mv_dhel", dhel, {"positives": p}) for p in ("lse", "mean")]
cases = pytest.mark.parametrize(("name", "paper", "options"), CASES)
both = pytest.mark.parametrize("name", ["mv_infonce", "mv_dhel"])


@cases
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("with_speech", [False, True])
def test_paper_loops(name, paper, options, missing, with_speech):
    there = THERE if missing else torch.ones(V, M, dtype=torch.bool)
    loss = losses.build(name, temperature=TAU, **options)
    output = loss(VIEWS, SPEECH if with_speech else None, mask=there if missing else None)
    views = [*VIEWS, SPEECH] if with_speech else list(VIEWS)
    there = [*there.tolist(), [True] * M] if with_speech else there.tolist()
    assert output.loss.item() == pytest.approx(paper(views, there, **options), abs=1e-9)
    assert output.logs["n_views"].item() == pytest.approx(sum(map(sum, there)) / M)


@cases
def test_flat_rows_of_a_batch_are_views_by_their_ids(name, paper, options):
    """What train.fit gives: rows in any order, candidates repeated with them."""
    there = THERE.flatten()
    rows = VIEWS.flatten(0, 1)[there]
    ids = torch.arange(M).repeat(V)[there]
    views = torch.arange(V).repeat_interleave(M)[there]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    expected = paper([*VIEWS, SPEECH], [*THERE.tolist(), [True] * M], **options)
    loss = losses.build(name, temperature=TAU, **options)
    output = loss(rows[order], SPEECH[ids[order]], row_ids=ids[order], col_ids=ids[order], views=views[order])
    assert output.loss.item() == pytest.approx(expected, abs=1e-9)
    few = loss(rows[order], SPEECH, row_ids=ids[order], col_ids=torch.arange(M), views=views[order])
    assert few.loss.item() == pytest.approx(expected, abs=1e-9)


@both
def test_without_views_the_order_says_which_is_which(name):
    flat, ids = VIEWS.flatten(0, 1), torch.arange(M).repeat(V)
    loss = losses.build(name)
    torch.testing.assert_close(loss(flat, SPEECH[ids], row_ids=ids).loss, loss(VIEWS, SPEECH).loss, atol=1e-12, rtol=0)


@both
def test_gradcheck(name):
    loss = losses.build(name, temperature=TAU)
    assert torch.autograd.gradcheck(lambda x: loss(x, SPEECH, mask=THERE).loss, VIEWS.clone().requires_grad_())


def test_distractors_are_negatives_only():
    distractors = make_vectors(2, 7)
    loss = losses.build("mv_infonce", temperature=TAU)
    more = loss(VIEWS, torch.cat([SPEECH, distractors])).loss.item()
    views = [torch.cat([v, torch.zeros_like(distractors) + 1]) for v in VIEWS] + [torch.cat([SPEECH, distractors])]
    there = [[True] * M + [False] * 2] * V + [[True] * (M + 2)]
    n_views = V + 1
    g = [[[[s / TAU for s in row] for row in cosines(views[v], views[w])] for w in range(n_views)] for v in range(n_views)]
    pairs = [(v, w) for v in range(n_views) for w in range(n_views) if v != w]
    terms = [
        log_sum_exp([g[v][w][i][j] for v, w in pairs for j in range(M + 2) if there[w][j]]) - log_sum_exp([g[v][w][i][i] for v, w in pairs])
        for i in range(M)
    ]
    assert more == pytest.approx(mean(terms), abs=1e-9)


def test_ignored_instances_do_not_repel():
    ignored = torch.zeros(M, M, dtype=torch.bool)
    ignored[0, 1] = ignored[1, 0] = True
    loss = losses.build("mv_dhel", temperature=TAU)
    output = loss(VIEWS, ignore=lambda a, b: ignored[a][:, b])
    g = [[[s / TAU for s in row] for row in cosines(v, v)] for v in VIEWS]
    own = [[cosines(VIEWS[v], VIEWS[w])[i][i] / TAU for v in range(V) for w in range(v + 1, V)] for i in range(M)]
    terms = [
        sum(log_sum_exp([g[v][i][j] for j in range(M) if j != i and not ignored[i, j]]) for v in range(V)) - log_sum_exp(own[i])
        for i in range(M)
    ]
    assert output.loss.item() == pytest.approx(mean(terms), abs=1e-9)


def test_a_view_of_one_segment_repels_nothing_and_is_counted():
    there = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 0, 0]]).bool()
    estimates = VIEWS.clone().requires_grad_()
    output = losses.build("mv_dhel", temperature=TAU)(estimates, mask=there)
    assert output.logs["n_without_negative"] == 1
    assert output.loss.item() == pytest.approx(dhel(list(VIEWS), there.tolist()), abs=1e-9)
    output.loss.backward()
    assert estimates.grad.isfinite().all()


@both
def test_many_views_and_extreme_scores_stay_finite(name):
    views = make_vectors(40 * 6, 0, dtype=torch.float32).view(40, 6, 3, 5)
    loss = losses.build(name, temperature=0.005)
    views.requires_grad_()
    output = loss(views, make_vectors(6, 1, dtype=torch.float32)).loss
    output.backward()
    assert output.isfinite()
    assert views.grad.isfinite().all()


@both
def test_bad_input_is_named(name):
    loss = losses.build(name)
    with pytest.raises(ValueError, match=r"1 segments have one view only, among them \[0\]"):
        loss(VIEWS, mask=torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]).bool())
    with pytest.raises(ValueError, match="at least two different segments"):
        loss(VIEWS[:, :1], SPEECH[:1])
    with pytest.raises(ValueError, match=r"mask must be a bool Tensor \(3, 4\), got torch.bool \(4, 3\)"):
        loss(VIEWS, mask=THERE.T)
    with pytest.raises(ValueError, match="no candidates, needs estimates"):
        loss(VIEWS[0])
    with pytest.raises(ValueError, match="must agree in features and times"):
        loss(VIEWS, SPEECH[:, :2])
    with pytest.raises(ValueError, match=r"per instance, \(4,\), got \(3,\)"):
        loss(VIEWS, row_ids=torch.arange(3))
    with pytest.raises(ValueError, match=r"views must be \(4,\), got \(3,\)"):
        loss(VIEWS[0], SPEECH, views=torch.arange(3))
    with pytest.raises(ValueError, match="have a view axis"):
        loss(VIEWS, SPEECH, views=torch.arange(4))
    broken = VIEWS.clone()
    broken[1, 2, 0, 0] = math.nan
    with pytest.raises(ValueError, match="1 of 12 estimates are not finite, rows 6"):
        loss(broken, SPEECH)
