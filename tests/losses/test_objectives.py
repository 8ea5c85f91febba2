"""Each objective against its formula in plain loops, golden numbers, and other libraries."""

from __future__ import annotations

import math

import pytest
import torch
from paper_loops import X, Y, cosines, log_sum_exp, make_vectors, mean
from torch.nn.functional import cross_entropy

from brainspeech import losses
from brainspeech.losses.contrastive import Contrast, ContrastiveLoss
from brainspeech.losses.objectives import InfoNCE

TAU = 0.5
CLOSE = {"abs": 1e-9, "rel": 0}


def value(name, *arguments, row_ids=None, col_ids=None, **options):
    return losses.build(name, **options)(*arguments, row_ids=row_ids, col_ids=col_ids).loss.item()


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("clip_symmetric", {"temperature": TAU}, 0.9268967698),
        ("clip_symmetric", {"temperature": TAU, "learnable": False}, 0.9268967698),
        ("clip_symmetric", {"temperature": TAU, "label_smoothing": 0.1, "symmetric": False}, 0.9946979425),
        ("dcl", {"temperature": TAU}, 0.4172312755),
        ("dclw", {"temperature": TAU}, 0.450154166),
        ("siglip", {}, 3.1657033765),
        ("simclr", {"temperature": 1.0}, 1.3756573203),
    ],
)
def test_golden_numbers_of_presets(name, options, expected):
    assert value(name, X, Y, **options) == pytest.approx(expected, **CLOSE)


def contrast_of_xy():
    scores = (X.flatten(1) @ Y.flatten(1).T).requires_grad_()
    return Contrast(scores, torch.eye(3).bool(), ~torch.eye(3).bool(), None, None)


def test_golden_rows_and_weights():
    from brainspeech.losses.dcl import Dclw

    rows = InfoNCE(TAU, couple=False)(contrast_of_xy())
    assert rows.tolist() == pytest.approx([0.4399533332, -0.1367175327, 0.948458026], **CLOSE)
    weight = Dclw(TAU, 0.5).weight(contrast_of_xy())
    assert weight.tolist() == pytest.approx([0.8765391607, 0.8765391607, 1.2469216785], **CLOSE)
    assert weight.mean().item() == pytest.approx(1, **CLOSE)


def test_the_dclw_weight_has_a_gradient_only_on_request():
    from brainspeech.losses.dcl import Dclw

    def gradient(**options):
        contrast = contrast_of_xy()
        Dclw(TAU, 0.5, **options)(contrast).mean().backward()
        return contrast.logits.grad

    detached = gradient()
    weight = Dclw(TAU, 0.5).weight(contrast_of_xy())
    # d/ds_ii of -w_i s_ii / tau alone: the denominator does not hold the positive
    torch.testing.assert_close(detached.diagonal(), -weight / TAU / 3, atol=1e-12, rtol=0)
    assert (gradient(detach_weight=False) - detached).abs().max() > 0.05


E4, C4 = make_vectors(4, 0), make_vectors(4, 1)
S4 = cosines(E4, C4)
INNER = {"rows": cosines(E4, E4), "cols": cosines(C4, C4)}


def one_way(scores, *, tau, couple=True, negatives="sum", inner=None, weights=None):
    """Any InfoNCE in loops; row i's own is column i, `inner` are scores within the row's own view."""
    terms = []
    for i, row in enumerate(scores):
        others = [s / tau for j, s in enumerate(row) if j != i]
        if inner is not None:
            others += [s / tau for j, s in enumerate(inner[i]) if j != i]
        denominator = sum(math.exp(o) for o in others)
        if negatives == "mean":
            denominator /= len(others)
        if couple:
            denominator += math.exp(row[i] / tau)
        terms.append(math.log(denominator) - (1 if weights is None else weights[i]) * row[i] / tau)
    return mean(terms)


def transposed(scores):
    return [list(column) for column in zip(*scores, strict=True)]


PAPER_LOOPS = {
    ("clip_symmetric", ()): lambda tau: (one_way(S4, tau=tau) + one_way(transposed(S4), tau=tau)) / 2,
    ("sdcon", ()): lambda tau: one_way(S4, tau=tau),
    ("mochi", ()): lambda tau: one_way(S4, tau=tau),  # before the warm-up ends
    ("cmim", ()): lambda tau: one_way(S4, tau=tau, negatives="mean"),
    ("dcl", ()): lambda tau: one_way(S4, tau=tau, couple=False),
    ("dcl", ("intra", "symmetric")): lambda tau: (
        (one_way(S4, tau=tau, couple=False, inner=INNER["rows"]) + one_way(transposed(S4), tau=tau, couple=False, inner=INNER["cols"])) / 2
    ),
    ("simclr", ()): lambda tau: (one_way(S4, tau=tau, inner=INNER["rows"]) + one_way(transposed(S4), tau=tau, inner=INNER["cols"])) / 2,
    ("dclw", ()): lambda tau: one_way(
        S4,
        tau=tau,
        couple=False,
        weights=[2 - 4 * math.exp(S4[i][i] / 0.5) / sum(math.exp(S4[k][k] / 0.5) for k in range(4)) for i in range(4)],
    ),
}


@pytest.mark.parametrize("tau", [0.1, 0.7])
@pytest.mark.parametrize(("name", "switches"), list(PAPER_LOOPS))
def test_paper_loops(name, switches, tau):
    options = {"temperature": tau} | {switch: True for switch in switches}
    assert value(name, E4, C4, **options) == pytest.approx(PAPER_LOOPS[name, switches](tau), abs=1e-9, rel=1e-12)


def test_siglip_in_loops_with_two_positives():
    ids = torch.tensor([3, 3, 8, 9])
    total = sum(
        math.log1p(math.exp(-(1 if ids[i] == ids[j] else -1) * (5 * S4[i][j] - 2))) for i in range(4) for j in range(4)
    )  # -logsigmoid(x) = log(1 + e^-x)
    assert value("siglip", E4, C4, temperature=0.2, bias=-2.0, row_ids=ids) == pytest.approx(total / 4, **CLOSE)


@pytest.mark.parametrize("positives", ["mean", "lse"])
def test_several_positives_in_loops(positives):
    ids = [3, 3, 8, 9]
    terms = []
    for i in range(4):
        logits = [s / TAU for s in S4[i]]
        own = [logits[j] for j in range(4) if ids[j] == ids[i]]
        terms.append(log_sum_exp(logits) - (mean(own) if positives == "mean" else log_sum_exp(own)))
    loss = ContrastiveLoss(InfoNCE(TAU, positives=positives), similarity="cosine", duplicates="positive")
    assert loss(E4, C4, row_ids=torch.tensor(ids)).loss.item() == pytest.approx(mean(terms), **CLOSE)


def test_mse_is_that_of_the_own_candidate():
    expected = torch.nn.functional.mse_loss(E4, C4[[2, 0, 1, 3]]).item()
    assert value("mse", E4, C4, row_ids=torch.tensor([2, 0, 1, 3]), col_ids=torch.arange(4)) == pytest.approx(expected, **CLOSE)
    torch.testing.assert_close(losses.build("mse").scores(E4, C4), losses.build("clip").scores(E4, C4))


def test_dcl_with_its_positive_put_back_is_infonce():
    contrast = contrast_of_xy()
    torch.testing.assert_close((InfoNCE(TAU, couple=False)(contrast).exp() + 1).log(), InfoNCE(TAU)(contrast), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("negatives", "changes"), [("mean", False), ("sum", True)])
def test_repeating_every_negative_changes_cmim_in_nothing(negatives, changes):
    def compute(times):
        logits = torch.tensor([[0.8, *[0.1, -0.4, 0.7] * times]], dtype=torch.float64)
        positive = torch.arange(logits.shape[1])[None] == 0
        return InfoNCE(0.1, negatives=negatives)(Contrast(logits, positive, ~positive, None, None)).item()

    assert (abs(compute(5) - compute(1)) > 0.1) == changes
    assert (compute(5) == pytest.approx(compute(1), abs=1e-12)) != changes
    assert losses.build("cmim").objective.negatives == "mean"


def test_smoothing_is_that_of_cross_entropy_and_spares_ignored_entries():
    loss = losses.build("clip_symmetric", temperature=TAU, label_smoothing=0.2, symmetric=False)
    scores = loss.scores(E4, C4) / TAU
    torch.testing.assert_close(loss(E4, C4).loss, cross_entropy(scores, torch.arange(4), label_smoothing=0.2))
    ids = torch.tensor([3, 3, 8, 9])
    rows = [cross_entropy(scores[i : i + 1, [0, 2, 3]], torch.tensor([0]), label_smoothing=0.2) for i in (0,)]
    rows += [cross_entropy(scores[1:2, 1:], torch.tensor([0]), label_smoothing=0.2)]
    rows += [cross_entropy(scores[i : i + 1], torch.tensor([i]), label_smoothing=0.2) for i in (2, 3)]
    torch.testing.assert_close(loss(E4, C4, row_ids=ids).loss, torch.stack(rows).mean())


def test_reverse_direction_leaves_out_candidates_that_are_nobodys():
    """Three distractors are negatives forth; back, only the four own candidates are rows."""
    candidates = torch.cat([C4, make_vectors(3, 2)])
    loss = losses.build("clip_symmetric", temperature=TAU, learnable=False)
    scores = loss.scores(E4, candidates) / TAU
    expected = (cross_entropy(scores, torch.arange(4)) + cross_entropy(scores[:, :4].T, torch.arange(4))) / 2
    torch.testing.assert_close(loss(E4, candidates).loss, expected)


def test_the_learned_temperature_is_clamped_and_comes_back():
    loss = losses.build("clip_symmetric")
    scale = loss.objective.scale
    for start, bound in ((50.0, 100.0), (-50.0, 1.0)):
        scale.log_change.data.fill_(start)
        loss(E4, C4).loss.backward()
        assert scale(torch.ones(1)).item() == pytest.approx(bound, rel=1e-6)
        assert scale.log_change.grad != 0  # at the bound, not beyond it, so that a step leads back
        scale.log_change.grad = None
    with pytest.raises(ValueError, match=r"learnable temperature must be in \[0.01, 1\], got 2"):
        losses.build("clip_symmetric", temperature=2.0)
    assert not list(losses.build("clip_symmetric", learnable=False).parameters())


def test_siglip_learns_its_scale_and_bias():
    loss = losses.build("siglip")
    loss(E4, C4).loss.backward()
    assert {name for name, p in loss.named_parameters() if p.grad is not None and p.grad != 0} == {
        "objective.bias",
        "objective.scale.log_change",
    }


@pytest.mark.parametrize("hold", ["candidates", "estimates", "neither"])
def test_sdcon_holds_one_side(hold):
    estimates, candidates = make_vectors(4, 0).requires_grad_(), make_vectors(4, 1).requires_grad_()
    losses.build("sdcon", hold=hold)(estimates, candidates).loss.backward()
    assert (estimates.grad is None) == (hold == "estimates")
    assert (candidates.grad is None) == (hold == "candidates")


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_simclr_is_ntxent_of_pytorch_metric_learning(temperature):
    NTXentLoss = pytest.importorskip("pytorch_metric_learning.losses").NTXentLoss
    labels = torch.arange(6).repeat(2)
    a, b = make_vectors(6, 0), make_vectors(6, 1)
    expected = NTXentLoss(temperature=temperature)(torch.cat([a, b]).flatten(1), labels)
    assert value("simclr", a, b, temperature=temperature) == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_mean_positives_are_supcon_of_pytorch_metric_learning(temperature):
    SupConLoss = pytest.importorskip("pytorch_metric_learning.losses").SupConLoss
    rows, cols = torch.tensor([1, 2, 3, 1]), torch.tensor([2, 1, 1, 3, 5])
    a, b = make_vectors(4, 0), make_vectors(5, 1)
    expected = SupConLoss(temperature=temperature)(a.flatten(1), rows, ref_emb=b.flatten(1), ref_labels=cols)
    loss = ContrastiveLoss(InfoNCE(temperature), similarity="cosine", duplicates="positive")
    assert loss(a, b, row_ids=rows, col_ids=cols).loss.item() == pytest.approx(expected.item(), abs=1e-9)


def test_options_that_make_no_sense_are_errors():
    for options, message in [
        ({"temperature": 0.0}, "temperature must be positive, got 0"),
        ({"similarity": "cosin"}, "similarity must be one of candidate_normalised, cosine, dot, correlation, or a function, got 'cosin'"),
        ({"chunk": 0}, "chunk must be a positive number"),
        ({"duplicates": "drop"}, "duplicates must be one of ignore, negative, positive, error, got 'drop'"),
    ]:
        with pytest.raises(ValueError, match=message):
            losses.build("clip", **options)
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        losses.build("clip_symmetric", label_smoothing=1.0)
    with pytest.raises(ValueError, match="sigma must be positive"):
        losses.build("dclw", sigma=-1.0)
