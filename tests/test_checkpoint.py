"""Checkpoints: all or nothing, no flipped bit goes unseen, those of earlier versions are read."""

import json
import random
from dataclasses import fields

import pytest
import torch

from brainspeech import hub
from brainspeech.checkpoint import FILES, Generators, State, Store


def make_state(step=3, seed=0):
    rng = torch.Generator().manual_seed(seed)
    weights = {"encoder.weight": torch.randn(40, 50, generator=rng), "encoder.count": torch.tensor(7)}
    return State(
        config={"seed": 5, "lr": 0.1},
        data="abc",
        weights=weights,
        best={"encoder.weight": torch.zeros(3)},
        moments={"0.exp_avg": torch.randn(40, 50, generator=rng), "0.step": torch.tensor(3.0)},
        param_groups=[{"lr": 0.1, "betas": [0.9, 0.999], "params": [0]}],
        history=[{"epoch": 0, "train_loss": 1 / 3}],
        step=step,
        losses=[0.1 + 0.2, 1 / 7, 2.0][:step],
        seconds=1.5,
    )


def equal(first, second):
    if isinstance(first, dict) and any(isinstance(value, torch.Tensor) for value in first.values()):
        return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    return first == second


def test_everything_comes_back_to_the_last_bit(tmp_path):
    state = make_state()
    Store(tmp_path).save(state)
    back = Store(tmp_path).load()
    for f in fields(State):
        if f.name != "generators":
            assert equal(getattr(state, f.name), getattr(back, f.name)), f.name
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == state.history[0]
    assert Store(tmp_path / "other").load() is None


def test_generators_go_on_where_they_stood(tmp_path):
    python = random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        random.seed(1)
        Store(tmp_path).save(make_state())
        wanted = torch.rand(3), random.random(), random.gauss(0, 1)
        Store(tmp_path).load().generators.put_back()
        got = torch.rand(3), random.random(), random.gauss(0, 1)
        assert torch.equal(got[0], wanted[0])
        assert got[1:] == wanted[1:]
        now = Generators.now()
        first = torch.rand(2)
        now.put_back()
        assert torch.equal(torch.rand(2), first)
    random.setstate(python)


@pytest.mark.parametrize("name", FILES)
def test_a_bit_that_flipped_is_seen(tmp_path, name):
    """The size is right, and so is the file's form: safetensors itself would read it."""
    Store(tmp_path).save(make_state())
    path = tmp_path / "checkpoint" / f"{name}.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    hub.read_tensors(path)
    with pytest.raises(RuntimeError, match=rf"{name}\.safetensors is damaged .* Delete .*checkpoint and give the same command again"):
        Store(tmp_path).load()


def test_a_number_that_changed_in_the_json_is_seen(tmp_path):
    Store(tmp_path).save(make_state())
    path = tmp_path / "checkpoint" / "state.json"
    path.write_text(path.read_text().replace('"next_step": 3', '"next_step": 2'))
    with pytest.raises(RuntimeError, match=r"state\.json is damaged or missing \(it is not what was written\)"):
        Store(tmp_path).load()
    (tmp_path / "checkpoint" / "weights.safetensors").unlink()
    Store(tmp_path).save(make_state())
    (tmp_path / "checkpoint" / "best.safetensors").unlink()
    with pytest.raises(RuntimeError, match=r"best\.safetensors is damaged or missing"):
        Store(tmp_path).load()


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path):
    """It has no digests, and stands at the end of an epoch."""
    Store(tmp_path).save(make_state())
    path = tmp_path / "checkpoint" / "state.json"
    kept = json.loads(path.read_text())
    del kept["files"], kept["digest"]
    kept["sampler"] = {"seed": 5, "next_epoch": 1}
    path.write_text(json.dumps(kept))
    state = Store(tmp_path).load()
    assert (state.step, state.losses, state.seconds) == (0, [], 0.0)


def test_a_write_that_fails_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    Store(tmp_path).save(make_state(step=1))
    write, calls = hub.write_tensors, []

    def full(path, tensors):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        write(path, tensors)

    monkeypatch.setattr(hub, "write_tensors", full)
    with pytest.raises(
        RuntimeError,
        match=r"checkpoint \(optimiser\.safetensors\): .*No space left .* needs 0\.0 MB .* MB are free\. The last checkpoint in",
    ):
        Store(tmp_path).save(make_state(step=2))
    assert Store(tmp_path).load().step == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "metrics.jsonl"]
    calls.clear()
    with pytest.raises(RuntimeError, match="There is no checkpoint yet"):
        Store(tmp_path / "new").save(make_state())


def test_a_folder_that_cannot_be_written_to_is_named_before_the_first_step(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"run folder .*file: .*File exists.* must be a folder, .* Give another one"):
        Store(tmp_path / "file")
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    with pytest.raises(RuntimeError, match=r"Could not write in the run folder .*run: .*Is a directory"):
        Store(tmp_path / "run").clear()

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    Store(tmp_path / "mine").save(make_state())
    monkeypatch.setattr(hub, "write_tensors", forbidden)
    with pytest.raises(RuntimeError, match=r"denied.* stands\. See that .*mine can be written to and give the same command again"):
        Store(tmp_path / "mine").save(make_state())
    monkeypatch.setattr(Store, "_write_metrics", forbidden)
    with pytest.raises(RuntimeError, match=r"Could not write in the run folder .*mine: .*Permission denied"):
        Store(tmp_path / "mine").load()
