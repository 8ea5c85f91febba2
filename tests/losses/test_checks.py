"""Losses where no number may be looked at, as on a GPU: the same values, gradients and states, and NaN for what is refused on a CPU.

The numbers lie on the CPU all the same, so that both ways can be compared.
"""

from __future__ import annotations

import pytest
import torch
from paper_loops import make_vectors
from waiting import NoWaiting

from brainspeech import losses
from brainspeech.losses import masks

SHAPE = (4, 2)
OPTIONS = {"mochi": {"warmup": 0, "n_hardest": 4, "n_mixed": 5, "n_mixed_with_query": 3}, "isogclr": {"n_rows": 12, "n_cols": 12}}
CASES = [(name, OPTIONS.get(name, {})) for name in losses.LOSSES]
CASES += [(name, {"queue": (6, *SHAPE), **OPTIONS.get(name, {})}) for name in ("clip", "siglip", "mochi")]
CASES += [(name, {"symmetric": True, "intra": True}) for name in ("dcl", "dclw")]
CASES += [("clip", {"duplicates": duplicates, "symmetric": True}) for duplicates in ("negative", "positive")]
CASES += [("mv_infonce", {"denominator": "code", "positives": "mean"}), ("mv_dhel", {"positives": "mean"}), ("clip", {"chunk": 2})]
cases = pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: value if isinstance(value, str) else "-".join(value))
IDS = torch.tensor([40, 20, 40, 30, 20, 50, 60])


@pytest.fixture
def look(monkeypatch):
    """Give the function that forbids, or allows, to look."""
    allowed = [True]
    monkeypatch.setattr("brainspeech.host.at_hand", lambda tensor: allowed[0])

    def set_allowed(value):
        allowed[0] = value

    return set_allowed


def run(loss, calls, *, may_look, look):
    """Call a loss, step by step; give values, logs, gradients and the state at the end."""
    look(may_look)
    seen = []
    for estimates, candidates, keywords in calls:
        estimates, candidates = estimates.clone().requires_grad_(), candidates.clone().requires_grad_()
        if may_look:
            output = loss(estimates, candidates, **keywords)
            output.loss.backward()
        else:
            with NoWaiting("cpu"):
                output = loss(estimates, candidates, **keywords)
                output.loss.backward()
        gradients = [x.grad for x in (estimates, candidates, *loss.parameters()) if x.grad is not None]
        seen.append([output.loss.detach(), *(output.logs[key].double() for key in sorted(output.logs)), *gradients])
        loss.zero_grad()
    look(True)
    return [*seen, list(loss.state_dict().values())]


def compare(name, options, calls, look):
    first, second = (run(losses.build(name, **options).double(), calls, may_look=may, look=look) for may in (True, False))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)
    assert all(step[0].isfinite() for step in first[:-1])


def vectors(n, seed):
    return make_vectors(n, seed, shape=SHAPE)


@cases
def test_steps_with_repeated_segments(name, options, look):
    """What train.fit does; a segment that comes back, and a queue that fills up."""
    ids = [IDS, IDS.roll(3) + 5, IDS.flip(0)]
    calls = [(vectors(7, step), vectors(7, 50 + step), {"row_ids": i, "col_ids": i}) for step, i in enumerate(ids)]
    compare(name, options, calls, look)


@pytest.mark.parametrize("name", ["clip", "clip_symmetric", "simclr", "siglip", "isogclr", "dclw", "mse", "mv_infonce"])
def test_no_ids_and_candidates_that_are_nobodys(name, look):
    plain = (vectors(5, 0), vectors(5, 50), {})
    more = (vectors(4, 1), vectors(7, 51), {"row_ids": torch.tensor([3, 9, 4, 6]), "col_ids": torch.tensor([9, 3, 1, 4, 8, 6, 2])})
    compare(name, OPTIONS.get(name, {}) | ({"symmetric": True} if name == "dclw" else {}), [plain, more], look)


@pytest.mark.parametrize("name", ["clip", "clip_symmetric", "dclw", "siglip", "isogclr", "mochi", "simclr", "cmim"])
def test_a_row_without_a_negative_stands_aside(name, look):
    """Rows 0 and 3 see no negatives; an objective that looks at all rows must not see their stand-ins."""
    ignore = torch.zeros(5, 5, dtype=torch.bool)
    ignore[[0, 3]] = True
    ids = torch.tensor([7, 1, 7, 2, 1])
    options = OPTIONS.get(name, {}) | ({"symmetric": True, "intra": False} if name == "simclr" else {})
    calls = [(vectors(5, step), vectors(5, 60 + step), {"row_ids": ids, "ignore": ignore}) for step in range(2)]
    compare(name, options, calls, look)
    look(False)
    assert losses.build(name, **options).double()(*calls[0][:2], **calls[0][2]).logs["n_without_negative"] == 2


@pytest.mark.parametrize("name", ["mv_infonce", "mv_dhel"])
@pytest.mark.parametrize("with_speech", [False, True])
def test_views_that_are_missing_may_hold_anything(name, with_speech, look):
    there = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1], [0, 1, 1, 1]]).bool()
    views = vectors(12, 0).view(3, 4, *SHAPE).masked_fill(~there[:, :, None, None], torch.nan)
    results = []
    for may_look in (True, False):
        look(may_look)
        estimates = views.clone().requires_grad_()
        output = losses.build(name)(estimates, vectors(6, 1) if with_speech else None, mask=there)
        output.loss.backward()
        results.append([output.loss.detach(), estimates.grad, *(value.double() for value in output.logs.values())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-12)


def test_views_of_near_duplicates(look):
    windows = torch.tensor([[0, 10.0], [0, 11.0], [1, 10.0], [0, 50.0]], dtype=torch.float64)
    rule = masks.by_id(torch.tensor([20, 30, 40, 50]), windows, lambda rows, cols: masks.overlapping(rows, cols, duration=3.0))
    ids = torch.tensor([40, 20, 40, 30, 20, 50])
    for name in ("mv_infonce", "clip"):
        compare(name, {}, [(vectors(6, 0), vectors(6, 50), {"row_ids": ids, "col_ids": ids, "ignore": rule})], look)


NAN = vectors(7, 0).index_fill(0, torch.tensor([2]), torch.nan)
REFUSED = {
    "an estimate that is not finite": ("clip", {}, NAN, {"row_ids": IDS}),
    "an estimate that overflows": ("mse", {}, vectors(7, 0) * 1e200, {"row_ids": IDS}),
    "an estimate that is not finite, of a view": ("mv_dhel", {}, NAN, {"row_ids": IDS}),
    "an id without a candidate": ("siglip", {}, vectors(7, 0), {"row_ids": IDS, "col_ids": IDS + (IDS == 60)}),
    "an id without a candidate, in a regression": ("mse", {}, vectors(7, 0), {"row_ids": IDS, "col_ids": IDS + (IDS == 60)}),
    "a repeated id": ("clip", {"duplicates": "error"}, vectors(7, 0), {"row_ids": IDS}),
    "nothing that is a negative": ("clip", {}, vectors(7, 0), {"row_ids": IDS * 0}),
    "a segment with one view": ("mv_infonce", {}, vectors(7, 0), {"row_ids": IDS, "col_ids": IDS + (IDS == 60)}),
    "one segment only": ("mv_infonce", {}, vectors(7, 0), {"row_ids": IDS * 0}),
    "a table that is full": ("isogclr", {"n_rows": 4, "n_cols": 9}, vectors(7, 0), {"row_ids": IDS}),
    "an id without a description": ("clip", {}, vectors(7, 0), {"row_ids": IDS, "ignore": masks.by_id(IDS[:4], IDS[:4], masks.same_id)}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_cpu_refuses_makes_the_loss_nan(case, look):
    name, options, estimates, keywords = REFUSED[case]
    keywords = {"col_ids": keywords["row_ids"], **keywords}
    for may_look in (True, False):
        look(may_look)
        loss = losses.build(name, **options).double()
        if may_look:
            with pytest.raises(ValueError, match=r"."):
                loss(estimates, vectors(7, 50), **keywords)
        else:
            assert loss(estimates, vectors(7, 50), **keywords).loss.isnan()


def test_an_id_in_the_queue_makes_the_loss_nan(look):
    loss = losses.build("clip", duplicates="error", queue=(6, *SHAPE)).double()
    look(False)
    ids = torch.arange(3)
    assert loss(vectors(3, 0), vectors(3, 1), row_ids=ids).loss.isfinite()
    assert loss(vectors(3, 2), vectors(3, 3), row_ids=ids + 3).loss.isfinite()
    assert loss(vectors(3, 4), vectors(3, 5), row_ids=ids + 5).loss.isnan()
