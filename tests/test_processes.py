"""Several processes: what they tell each other, and that they fit what one process fits."""

import json
import os
import re
import socket
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import test_train as t
import tiny_runs
import torch
import two_processes

from brainspeech import cli, flow, hub, processes
from brainspeech import recipe as recipes
from brainspeech.cache import Cache
from brainspeech.models.layers import BatchNorm1d

SAME = {"synchronise": True, "batch_size": 15}  # parts of 8 and 7


@pytest.fixture(scope="module")
def two():
    """Run a function of two_processes in both; its answers by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pools = [ProcessPoolExecutor(1, mp_context=get_context("spawn")) for _ in range(2)]

    def run(function, *arguments, each=None, **options):
        own = each or [(), ()]
        jobs = [pool.submit(function, *own[rank], *arguments, **options) for rank, pool in enumerate(pools)]
        return [job.result(timeout=120) for job in jobs]

    run(two_processes.start, port, each=[(0,), (1,)])
    yield run
    run(two_processes.stop)
    for pool in pools:
        pool.shutdown()


def check_weights(got, expected):
    """Compare all weights but those of the constant harmonic: a softmax does not see them, so only rounding moves them."""
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        kept = (slice(None), slice(1, None)) if key.endswith("spatial_attention.heads") else ...
        np.testing.assert_allclose(got[key][kept], value[kept], rtol=1e-4, atol=1e-6, err_msg=key)


def test_one_process_is_alone_and_first():
    assert (processes.rank(), processes.count(), processes.is_first(), processes.is_spread()) == (0, 1, True, False)
    assert processes.alone(lambda: 3) == processes.first(lambda: 3) == 3
    assert processes.total([1.0]) == processes.largest([1.0]) == processes.from_first([1.0]) == [1.0]
    processes.wait()
    processes.check_equal("anything", "text")


def test_processes_agree(two):
    first, second = two(two_processes.agree, each=[(0,), (1,)])
    assert first["who"] == (0, 2, True, True)
    assert second["who"] == (1, 2, False, True)
    for what, expected in {"largest": [1, 0], "total": [3, 1], "from_first": [0.25]}.items():
        assert first[what] == second[what] == expected
    assert (first["first"], second["first"], first["done"], second["done"]) == (0, 1, [0, 10], [1])
    assert (first["alone"], second["alone"]) == (7, None)
    assert first["failed"] == "OSError: the disk is full"
    assert second["failed"] == "Elsewhere: The first process ended with an error: the disk is full"
    assert first["equal"] is None
    assert second["equal"] is None
    assert all("do not see the same shoes" in answer["differing"] for answer in (first, second))
    assert "process 1 for one" in second["differing"]
    assert first["equal and long"] is second["equal and long"] is None
    assert all("do not see the same shoes" in answer["differing late"] for answer in (first, second))


def test_tensors_of_any_dtype_and_layout_are_handed_out(two):
    expected = [[True, False], [1, 1], [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]], 1, [], [1.0, 1.0, 1.0]]
    assert two(two_processes.hand_out) == [expected, expected]


def test_gradients_meet_their_like_whatever_is_used_where(two):
    for passes in two(two_processes.average):
        # own counts in one of two processes, unused in none
        assert passes == [[[30.0, 30.0], [6.0, 6.0], [2.0, 2.0], None]] * 3


def test_an_error_of_one_process_is_no_wait_without_end(two):
    assert two(two_processes.end_together, ()) == [None, None]
    assert two(two_processes.end_together, (0, 1), other=0.2) == [None, None]
    assert two(two_processes.end_together, (0,), other=0.2) == [None, None]
    alone, other = two(two_processes.end_together, (0,), other=None)
    assert alone.startswith("no such thing. This went wrong in process 0 only")
    assert other == "still at it"


def test_without_a_place_to_leave_word_an_error_is_not_waited_with(two):
    """As in processes that the user's own script brought together."""
    assert two(two_processes.end_together, (), board=False) == [None, None]
    said = two(two_processes.end_together, (0, 1), board=False)
    assert [text.startswith(f"no such thing. This went wrong in process {i} only") for i, text in enumerate(said)] == [True, True]


def test_processes_with_other_recipes_do_not_begin(two, tmp_path):
    """Both would train, and each something else."""
    one, another = tiny_runs.tiny(), tiny_runs.tiny("model.activation=relu")
    folders = (str(tmp_path / "run"), str(tmp_path / "cache"))
    for answer in two(two_processes.run, each=[(one, *folders), (another, *folders)]):
        assert answer.startswith("RuntimeError: Processes do not see the same recipe")
    assert not (tmp_path / "run").exists()


def test_processes_with_other_encoders_do_not_begin(two):
    for answer in two(two_processes.fit, {"batch_size": 16}, wider=4):
        assert answer["error"].startswith("RuntimeError: Processes do not see the same encoder and loss")
        assert answer["calls"] == 0


def test_prepare_does_not_wait_for_processes_that_have_nothing_to_do(monkeypatch, tmp_path):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "", "MASTER_PORT": ""}.items():
        monkeypatch.setenv(name, value)
    done = {"recordings": 1, "hours": 1.0, "channels": 1, "tracks": 1, "seconds": 1.0, "segments": 1}
    monkeypatch.setattr(flow, "fill_cache", lambda *arguments, **options: done)
    assert cli.main(["prepare", "demo", "--cache", str(tmp_path)]) == 0


@pytest.mark.parametrize("sizes", [(3, 5), (4, 1)])
@pytest.mark.parametrize("innermost", [False, True])
def test_synchronised_batch_norm_is_that_of_the_joined_batch(two, sizes, innermost):
    torch.manual_seed(1)
    whole = (3 + 2 * torch.randn(sum(sizes), 4, 6, dtype=torch.float64)).requires_grad_()
    weights = torch.randn(4, dtype=torch.float64)
    parts = [part.detach().clone() for part in whole.split(sizes)]
    layer = BatchNorm1d(4).double()
    with torch.no_grad():
        layer.weight += weights
    out = layer(whole)
    (out * torch.arange(6)).square().sum().backward()
    later = layer.eval()(whole)
    answers = two(two_processes.normalise, parts, weights, innermost=innermost)
    for what, expected in (("out", out), ("later", later), ("signal", whole.grad)):
        np.testing.assert_allclose(np.concatenate([a[what] for a in answers]), expected.detach(), rtol=1e-10, atol=1e-10)
    for answer in answers:
        np.testing.assert_allclose(answer["weight"], layer.weight.grad, rtol=1e-10)
        for key, value in layer.state_dict().items():
            np.testing.assert_allclose(answer["state"][f"0.{key}"], value, rtol=1e-12)


def test_the_centre_of_spatial_dropout_is_shared_where_it_is_asked_for(two):
    a, b = two(two_processes.centres, (1, 2), shared=False)
    assert a != b
    assert two(two_processes.centres, (1, 2), shared=True) == [a, a]


GROUPED = {"sampler": "grouped", "views": 2}


@pytest.mark.parametrize(("sampler", "loss"), [({}, "clip"), (GROUPED, "clip"), ({}, "siglip"), (GROUPED, "mv_infonce"), ({}, "deep_mel")])
def test_two_processes_fit_what_one_fits(two, sampler, loss):
    alone = two_processes.fit(SAME | sampler, double=True, loss=loss)
    for answer in two(two_processes.fit, SAME | sampler, double=True, loss=loss):
        assert answer["n_processes"] == {2}
        assert not answer["gather"]  # as it was given
        check_weights(answer["loss"], alone["loss"])
        for got, expected in zip(answer["history"], alone["history"], strict=True):
            assert got == pytest.approx(expected, rel=1e-5)
        check_weights(answer["weights"], alone["weights"])


def test_synchronising_is_what_makes_them_the_same(two):
    """The control: without it, two processes fit something else."""
    alone = two_processes.fit({"batch_size": 15}, double=True)
    first, second = two(two_processes.fit, {"batch_size": 15}, double=True)
    assert first["history"] == second["history"] != alone["history"]
    assert all(np.array_equal(first["weights"][key], second["weights"][key]) for key in first["weights"])
    distance = max(np.abs(first["weights"][key] - value).max() for key, value in alone["weights"].items())
    assert distance > 1e-3


def test_negatives_per_device_are_those_of_the_own_process(two):
    """One step: its loss is the mean of what each half of the batch costs by itself."""
    config = {"batch_size": 16, "max_epochs": 1, "max_steps_per_epoch": 1}
    encoder = two_processes.make_encoder(double=True).train()
    encoder.spatial_attention.dropout_radius = 0.0
    loss = t.losses.build("clip")
    halves = np.array_split(t.steps_of(t.DATA["train"], t.replace(t.CONFIG, **config), epoch=0)[0][0], 2)
    expected = []
    for rows in halves:
        batch = t.DATA["train"].batch(rows)
        estimates = encoder(batch.signal, batch.positions, batch.subject, channel_mask=batch.channel_mask).float()
        expected.append(loss(estimates, batch.target, row_ids=batch.stimulus_id, col_ids=batch.stimulus_id).loss.item())
    answers = two(two_processes.fit, config | {"negatives": "per_device"}, double=True, plain=False)
    gathered = two(two_processes.fit, config, double=True)
    # The dropout of channels differs, so the values are near, not equal; against twice as many candidates they are far.
    got = {answer["history"][0]["train_loss"] for answer in answers}
    assert len(got) == 1
    assert got.pop() == pytest.approx(np.mean(expected), abs=0.15)
    assert gathered[0]["history"][0]["train_loss"] - np.mean(expected) == pytest.approx(np.log(2), abs=0.2)


def test_processes_stop_after_the_same_step_and_go_on_to_the_same_bits(two, tmp_path):
    changes = {"batch_size": 16}
    expected = two(two_processes.fit, changes, out=str(tmp_path / "whole"))
    cut = two(two_processes.fit, changes, out=str(tmp_path / "cut"), stop_at=7)
    assert all(answer["error"].startswith("Stopped: stopped by SIGTERM in epoch 0 after step 7") for answer in cut)
    assert [answer["calls"] for answer in cut] == [7, 7]
    rest = two(two_processes.fit, changes, out=str(tmp_path / "cut"), resume=True)
    for got, whole in zip(rest, expected, strict=True):
        assert got["history"] == whole["history"]
        assert all(np.array_equal(got["weights"][key], value) for key, value in whole["weights"].items())
    lines = [
        two_processes.alike([json.loads(line) for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()])
        for run in ("whole", "cut")
    ]
    assert lines[0] == lines[1] == expected[0]["history"]


def test_a_segment_that_is_not_finite_is_named_by_the_process_that_has_it(two):
    rows = t.steps_of(t.DATA["train"], t.replace(t.CONFIG, batch_size=16), epoch=0)[1][0]
    first, second = two(two_processes.fit, {"batch_size": 16}, spoilt=[int(rows[-1])])
    segment = t.DATA["train"].segments[rows[-1]]
    assert "got NaN or infinity for" in second["error"]
    assert f"{segment.recording} at {segment.onset:g} s" in second["error"]  # batch norm spreads it over those of its process
    assert first["error"].startswith("Elsewhere: Something is not finite in another process")
    assert first["calls"] == second["calls"] == 2


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"batch_size": 3}, {}, "2 of them need a multiple of 2, at least 4, got 3"),
        ({"batch_size": 15, "negatives": "per_device"}, {}, "need a multiple of 2, at least 4, got 15"),
        ({}, {"plain": True}, r'no option gather\): set negatives="per_device"'),
        ({"negatives": "per_device"}, {"loss": "isogclr"}, "keeps something of every batch"),
        ({"negatives": "per_device", "batch_size": 4, "sampler": "grouped"}, {}, "two largest have"),
    ],
)
def test_what_processes_cannot_do_together_is_refused(two, changes, options, said):
    for answer in two(two_processes.fit, changes, **options):
        assert answer["calls"] == 0
        assert re.search(f"^ValueError: .*{said}", answer["error"]), answer["error"]


def test_synchronise_and_compile_do_not_go_together():
    with pytest.raises(ValueError, match="synchronise=True and compile=True"):
        t.TrainConfig(synchronise=True, compile=True)


def test_a_run_in_two_processes_has_the_report_of_one(tmp_path):
    # A name of another class begins with that class's options.
    settings = ("model.name=two_processes:DoubleConv", *tiny_runs.TINY, "rows=encoder,ridge")
    settings += ("train.synchronise=True", "train.batch_size=15")
    cache = tmp_path / "cache"
    flow.run(recipes.change(recipes.load("demo"), settings), out=tmp_path / "one", cache=Cache(cache), progress=False)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "brainspeech"]
    command = [*launcher, "run", "demo", *tiny_runs.set_flags(settings), "--cache", str(cache), "--out", str(tmp_path / "two")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=600)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("top-10") == 1  # one process speaks
    reports = [json.loads((tmp_path / run / "report.json").read_text()) for run in ("one", "two")]
    assert reports[0]["rows"] == reports[1]["rows"]
    said = "Fitted by 2 processes with batches of 15 segments, compared with all of them; batch norm over all of them."
    assert [w for w in reports[1]["warnings"] if w not in reports[0]["warnings"]] == [said]
    one, two = (hub.read_tensors(tmp_path / run / "checkpoint" / "best.safetensors") for run in ("one", "two"))
    check_weights(two, one)
