"""Runs of two processes of which one dies where it is told to. One process imports everything, then forks the two of each run.

Each line of its input is a JSON object as that of ``fault_runs``, with ``rank``: the process that is hit. The answer is the exit status of
each. Like a launcher, it asks the other to end when one has died.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from typing import Any

import fault_runs
import torch
from tiny_runs import Study

from brainspeech import figures, processes

PATIENCE = 20.0  # s in which a process has to see by itself that the other is gone


def begin(request: dict[str, Any], rank: int, port: int) -> int:
    """Fork a process of a run, and give its number."""
    child = os.fork()
    if child:
        return child
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
    with open(f"{request['said']}-{rank}", "w") as said:
        os.dup2(said.fileno(), 2)
    status = 99
    try:
        hit = rank == request.get("rank")
        status = fault_runs.run({key: value for key, value in request.items() if hit or key != "point"})
        processes.end()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def end(children: list[int]) -> list[int]:
    """Wait for both, and give how they ended; the other has some seconds when one went wrong, then it is told to."""
    ended: dict[int, int] = {}
    late = float("inf")
    while len(ended) < len(children):
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ended[pid] = os.waitstatus_to_exitcode(status)
            late = min(late, time.monotonic() + PATIENCE) if ended[pid] else late
        elif time.monotonic() > late:
            for child in set(children) - set(ended):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [ended[child] for child in children]


def serve() -> None:
    """Do one run after the other."""
    for line in sys.stdin:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        request = json.loads(line)
        print(json.dumps(end([begin(request, rank, port) for rank in range(2)])), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    figures.draw = lambda *_, **__: [figures.Picture("none", "", "", "", b"", "<svg></svg>")]
    fault_runs.STUDY = Study()
    torch.optim.Adam([torch.zeros(1, requires_grad=True)]).step()
    serve()
