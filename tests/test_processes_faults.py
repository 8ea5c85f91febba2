"""One of two processes is killed at any step; the other ends by itself, and the same command goes on to the same report."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_faults import entries, results

KILL = int(signal.SIGKILL)


class Pairs:
    """Starts runs of two processes, without the seconds that importing takes."""

    def __init__(self, folder: Path):
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "fault_pairs.py")],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, out, cache, **hit):
        """Run, and give the exit status of each process, negative for a signal, and what each said."""
        self.count += 1
        said = self.folder / f"said-{self.count}"
        self.process.stdin.write(json.dumps({"out": str(out), "cache": str(cache), "minutes": 0.0, "said": str(said), **hit}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline()), [Path(f"{said}-{rank}").read_text() for rank in range(2)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    pairs = Pairs(tmp_path_factory.mktemp("pairs"))
    with pairs.process:  # which closes its input, and waits
        yield pairs


# In the order in which a run comes to them: (process, where, which time).
LIFE = [
    (0, "an entry is renamed", 3),  # while the other waits for the cache
    (1, "a step", 2),
    (0, "a checkpoint's file is written", 2),
    (0, "checkpoints are swapped", 1),
    (1, "validation", 1),
    (0, "the model is saved", 1),
    (1, "a step", 3),  # of the second row
    (0, "the report is written", 1),  # while the other waits for it
]


def test_a_process_that_is_killed_costs_time_only(pairs, tmp_path):
    assert pairs.run(tmp_path / "whole", tmp_path / "cache of whole") == ([0, 0], ["", ""])
    out, cache = tmp_path / "out", tmp_path / "cache"
    for rank, point, call in LIFE:
        status, said = pairs.run(out, cache, rank=rank, point=point, call=call, signal=KILL)
        place = f"{point} {call} in {rank}"
        assert status[rank] == -KILL, place
        assert status[1 - rank] == 1, f"{place}: {status} {said}"
        assert "lost the other" in said[1 - rank], f"{place}: {said}"
    assert pairs.run(out, cache) == ([0, 0], ["", ""])
    assert results(out) == results(tmp_path / "whole")
    assert entries(cache) == entries(tmp_path / "cache of whole")
