"""Two processes compute what one does. They are started once, for all tests."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import gloo_worker
import numpy as np
import pytest
import torch
from paper_loops import make_vectors

from brainspeech import losses

OPTIONS = {
    "mochi": {"warmup": 0, "n_hardest": 4, "n_mixed": 5, "n_mixed_with_query": 3},
    "isogclr": {"n_rows": 12, "n_cols": 12},
}
PRESETS = [(name, OPTIONS.get(name, {})) for name in losses.LOSSES]
PRESETS += [(name, {"symmetric": True, "intra": True}) for name in ("dcl", "dclw")]
PRESETS += [("clip", {"duplicates": "positive", "symmetric": True}), ("sdcon", {"hold": "neither"}), ("clip", {"chunk": 2})]
# Batches are of 7: the second one meets all candidates of the first but one.
PRESETS += [(name, {"queue": (6, gloo_worker.N_FEATURES, 2), **OPTIONS.get(name, {})}) for name in ("clip", "siglip", "mochi")]
presets = pytest.mark.parametrize(("name", "options"), PRESETS, ids=lambda value: value if isinstance(value, str) else "-".join(value))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Run a function of gloo_worker in both processes; its answers by rank."""
    file = tmp_path_factory.mktemp("gloo") / "meeting"
    context = get_context("spawn")
    pools = [ProcessPoolExecutor(1, mp_context=context) for _ in range(2)]

    def run(function, *arguments, each=None, **options):
        """`each` are first arguments that differ by rank."""
        own = each or [(), ()]
        jobs = [pool.submit(function, *own[rank], *arguments, **options) for rank, pool in enumerate(pools)]
        return [job.result(timeout=60) for job in jobs]

    run(gloo_worker.start, str(file), each=[(0,), (1,)])
    yield run
    run(gloo_worker.stop)
    for pool in pools:
        pool.shutdown()


def make_batch(n, seed, *, ids):
    batch = {
        "estimates": make_vectors(n, seed, shape=(gloo_worker.N_FEATURES, 2)),
        "candidates": make_vectors(n, seed + 50, shape=(gloo_worker.N_FEATURES, 2)),
        "row_ids": None,
        "col_ids": None,
    }
    if ids:
        batch["row_ids"] = batch["col_ids"] = torch.tensor([40, 20, 40, 30, 20, 50, 60][:n])
    return batch


def split(batch, at):
    """Cut a batch of all processes into theirs."""
    return [{key: None if value is None else value[piece] for key, value in batch.items()} for piece in (slice(at), slice(at, None))]


def compare(two, name, options, batches, parts, *, trained, blind=False):
    """Check that both processes, on their parts of each batch, give what one gives on whole batches."""
    alone = gloo_worker.steps(name, options, batches, gather=False, trained=trained)
    for result in two(gloo_worker.steps, each=[(name, options, own) for own in parts], gather=True, trained=trained, blind=blind):
        assert result["losses"] == pytest.approx(alone["losses"], abs=1e-12, rel=0)
        assert result["logs"] == pytest.approx(alone["logs"])
        for got, expected in zip(result["gradients"], alone["gradients"], strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-12, rtol=0)
        assert result["state"].keys() == alone["state"].keys()
        for key, expected in alone["state"].items():
            np.testing.assert_allclose(result["state"][key], expected, atol=1e-12, rtol=0, err_msg=key)
    return alone


@presets
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_two_processes_are_one(two, name, options, trained):
    """Two steps of uneven parts with repeated ids, some of them in both processes; each rank's loss is that of the whole batch."""
    batches = [make_batch(7, step, ids=True) for step in range(2)]
    trained = trained and name != "mse" and (name != "sdcon" or bool(options))  # these do not train candidates
    cut = [split(batches[0], 4), split(batches[1], 5)]
    alone = compare(two, name, options, batches, [[pair[rank] for pair in cut] for rank in range(2)], trained=trained)
    assert any(np.abs(gradient).max() > 1e-3 for gradient in alone["gradients"])


@presets
def test_two_processes_that_look_at_no_number_are_one_that_does(two, name, options):
    batches = [make_batch(7, step, ids=True) for step in range(2)]
    cut = [split(batches[0], 4), split(batches[1], 5)]
    compare(two, name, options, batches, [[pair[rank] for pair in cut] for rank in range(2)], trained=False, blind=True)


@pytest.mark.parametrize("name", ["clip", "clip_symmetric", "simclr", "siglip", "isogclr", "mse", "mv_infonce"])
@pytest.mark.parametrize("at", [3, 0], ids=["uneven", "one-empty"])
def test_without_ids_the_place_says_whose_candidate_it_is(two, name, at):
    batch = make_batch(5, 0, ids=False)
    compare(two, name, {}, [batch], [[part] for part in split(batch, at)], trained=False)


def test_extra_candidates_of_any_process_are_negatives_of_all(two):
    batch = make_batch(7, 0, ids=True)
    batch["row_ids"] = batch["col_ids"] = torch.arange(7)
    rows = {"estimates", "row_ids"}
    alone = {key: value[torch.tensor([0, 1, 4, 5])] if key in rows else value for key, value in batch.items()}
    parts = [
        {key: value[:2] if key in rows else value[:4] for key, value in batch.items()},
        {key: value[4:6] if key in rows else value[4:] for key, value in batch.items()},
    ]
    for name in ("clip", "clip_symmetric", "mochi", "mv_infonce"):
        compare(two, name, OPTIONS.get(name, {}), [alone], [[part] for part in parts], trained=True)
    # without ids, the first of each process are its targets
    for part in parts:
        part["row_ids"] = part["col_ids"] = None
    compare(two, "clip", {}, [alone], [[part] for part in parts], trained=True)


def test_every_precision_is_gathered_in_uneven_parts(two):
    first, second = two(gloo_worker.gathered_dtypes)
    assert first == second
    for i, (sizes, dtype_is_kept, values) in enumerate(first):
        assert dtype_is_kept
        assert sizes == [[2, 3], [0, 1]][i % 2]
        assert values == [[[0, 1], [2, 3], [10, 11], [12, 13], [14, 15]], [[10, 11]]][i % 2]


def test_what_processes_cannot_share_is_refused(two):
    for said in two(gloo_worker.refusals):
        assert "ignore must be a function of ids, got a Tensor" in said[0]
        assert "need row_ids" in said[1]


def test_gather_changes_nothing_in_one_process():
    batch = make_batch(5, 0, ids=True)
    for name, options in PRESETS:
        results = [losses.build(name, gather=gather, **options)(**batch).loss for gather in (False, True)]
        assert results[0] == results[1]
