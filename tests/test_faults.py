"""A run is ended at any step, by SIGTERM or by kill -9, or finds no space on the disk; the same command goes on to the same report."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import test_train
import torch

from brainspeech import losses
from brainspeech.cache import Cache
from brainspeech.checkpoint import Store
from brainspeech.train import fit

KILL, TERM = int(signal.SIGKILL), int(signal.SIGTERM)


class Server:
    """Starts runs, each a process of its own, without the seconds that importing takes."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "fault_runs.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, out, cache, *, minutes=10.0, **hit):
        """Start a run and give its number and the file with what it says."""
        self.count += 1
        said = self.folder / f"said-{self.count}.txt"
        return self.ask({"out": str(out), "cache": str(cache), "minutes": minutes, "said": str(said), **hit}), said

    def end(self, started):
        """Wait for a run and give its exit status, negative for a signal, and what it said."""
        number, said = started
        return self.ask({"wait": number}), said.read_text()

    def run(self, out, cache, **options):
        return self.end(self.start(out, cache, **options))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    with server.process:  # which closes its input, and waits
        yield server


def results(out):
    """Give all numbers of a run: the report without its provenance, the scores' ranks, and the weights."""
    report = json.loads((out / "report.json").read_text())
    del report["provenance"]
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in entry.items() if k != "seconds"} for entry in metrics]
    return report, metrics, (out / "model" / "weights.safetensors").read_bytes()


def entries(cache):
    """Name what a cache holds."""
    return {str(folder.relative_to(cache)) for folder in Cache(cache).entries()}


def half_written(folder):
    """Find what was begun and not finished."""
    return [path for path in Path(folder).rglob(".*") if path.name != ".lock"]


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """A run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    assert server.run(folder / "out", folder / "cache") == (0, "")
    return results(folder / "out"), entries(folder / "cache")


# In the order in which a run comes to them; the command is the same each time, so each begins where the one before was ended.
LIFE = [
    ("an array is written", 1, KILL),
    ("an array is written", 2, TERM),
    ("an entry is renamed", 3, KILL),
    ("an entry is renamed", 12, TERM),
    ("a step", 2, KILL),
    ("a step", 1, TERM),
    ("a checkpoint's file is written", 2, KILL),
    ("a checkpoint's file is written", 3, TERM),
    ("checkpoints are swapped", 1, KILL),
    ("validation", 1, TERM),
    ("a step", 2, KILL),
    ("the model is saved", 1, KILL),
    ("the model is saved", 1, TERM),
    ("a step", 3, TERM),  # of the second row
    ("the report is written", 1, KILL),
    ("the report is written", 1, TERM),
]


def test_a_run_that_is_ended_at_every_stage_comes_to_the_same_report(server, whole, tmp_path):
    """Between two of its ends the run gets as far as it can, with a checkpoint after every step."""
    out, cache = tmp_path / "out", tmp_path / "cache"
    steps = []
    for point, call, signum in LIFE:
        status, said = server.run(out, cache, minutes=0.0, point=point, call=call, signal=signum)
        place = f"{point} {call} {signum}"
        if signum == KILL:
            assert (status, said) == (-KILL, ""), place
        else:
            assert status == 128 + TERM, f"{place}: {said}"
            assert "stopped by SIGTERM" in said
            assert "he same command goes on from there." in said
            # What had been killed before may lie about; what is told to end leaves nothing more.
            assert len(half_written(out)) == 0, place
        state = out / "checkpoint" / "state.json"
        if state.exists():
            sampler = json.loads(state.read_text())["sampler"]
            steps.append((sampler["next_epoch"], sampler["next_step"]))
    assert steps == sorted(steps)  # never back
    assert len({step for _, step in steps}) > 3
    assert server.run(out, cache, minutes=0.0) == (0, "")
    assert results(out) == whole[0]
    assert entries(cache) == whole[1]
    assert Cache(cache).verify() == (len(whole[1]), 0, [])


def test_two_runs_on_one_cache_are_both_right(server, whole, tmp_path):
    cache = tmp_path / "cache"
    started = [server.start(tmp_path / name, cache) for name in ("a", "b")]
    assert [server.end(run) for run in started] == [(0, "")] * 2
    assert results(tmp_path / "a") == results(tmp_path / "b") == whole[0]
    assert entries(cache) == whole[1]
    assert Cache(cache).verify() == (len(whole[1]), 0, [])
    assert half_written(cache) == []


@contextmanager
def small_disk(folder, size):
    """Mount a disk of so many kB, which ``grow`` makes larger."""
    folder.mkdir()

    def mount(*options):
        return subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(folder)], capture_output=True, text=True)

    if shutil.which("mount") is None or (done := mount(f"size={size}k")).returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip() if shutil.which('mount') else 'no mount'}")
    try:
        yield lambda kilobytes: mount("remount", f"size={kilobytes}k").check_returncode()
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_while_caching(server, whole, tmp_path):
    with small_disk(tmp_path / "disk", 300) as grow:
        cache = tmp_path / "disk" / "cache"
        status, said = server.run(tmp_path / "out", cache)
        assert status == 1
        assert "Could not write the cache entry" in said
        assert ".npy)" in said
        assert "MB are free. What is in the cache already is kept. Free some space and give the same command again" in said
        assert half_written(cache) == []
        kept = entries(cache)
        assert kept < whole[1]
        assert Cache(cache).verify() == (len(kept), 0, [])
        grow(20_000)
        assert server.run(tmp_path / "out", cache) == (0, "")
        assert results(tmp_path / "out") == whole[0]


def test_a_full_disk_while_a_checkpoint_is_written(tmp_path):
    def run(out, n_epochs=3, **options):
        config = test_train.replace(test_train.CONFIG, max_epochs=n_epochs)
        data = test_train.DATA
        return fit(
            test_train.make_encoder(), losses.build("clip"), data["train"], data["valid"], config, out=out, progress=False, **options
        )

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    wanted = run(tmp_path / "whole")
    with small_disk(tmp_path / "disk", 500):
        out = tmp_path / "disk" / "out"
        run(out, n_epochs=1)
        filler = tmp_path / "disk" / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(out).free - 8_192))
        with pytest.raises(
            RuntimeError, match=r"checkpoint \(\w+\.safetensors\): .* It needs .* MB are free\. The last checkpoint in .* stands"
        ):
            run(out, resume=True)
        assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []
        assert len(Store(out).load().history) == 1
        filler.unlink()
        rest = run(out, resume=True)
        assert rest.resumed_at == 1
        assert test_train.same(rest.encoder, wanted.encoder)
    torch.set_num_threads(threads)
