"""Runs that die where they are told to. One process imports everything, then forks one child for each run it is asked for.

Each line of its input is a JSON object: ``out``, ``cache``, ``minutes`` (between checkpoints), ``said`` (a file for what the run says) and,
if the run is to be hit, ``point``, ``call`` and ``signal``. The answer is the child's process id. ``{"wait": ID}`` is answered with the
child's exit status, negative for a signal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_runs import Study

from brainspeech import cache, figures, flow, hub, report, stopping, train

SETTINGS = {"rows": ("encoder", "linear_clip")}


def swap(self: Path, target: Path) -> bool:
    """Whether a renaming puts a new checkpoint in the place of the one that was moved away."""
    return self.name == ".checkpoint.new" and hub._beside(target, "old").exists()


# What is counted, and whether the signal comes before or after that call: (owner, name, before, which calls count).
POINTS: dict[str, tuple[Any, str, bool, Callable[..., bool]]] = {
    "an array is written": (np, "save", False, lambda *_, **__: True),
    "an entry is renamed": (cache, "_rename", True, lambda *_, **__: True),
    "a step": (train, "_compute", False, lambda *_, **__: torch.is_grad_enabled()),
    "validation": (train, "_compute", False, lambda *_, **__: not torch.is_grad_enabled()),
    "a checkpoint's file is written": (hub, "write_tensors", False, lambda path, _: ".checkpoint.new" in str(path)),
    "checkpoints are swapped": (Path, "rename", True, swap),
    "the model is saved": (hub, "save", True, lambda *_, **__: True),
    "the report is written": (report, "write", True, lambda *_, **__: True),
}


def hit(point: str, call: int, signum: int) -> None:
    """Send this process a signal at the n-th call."""
    owner, name, before, counts = POINTS[point]
    inner = getattr(owner, name)
    calls = 0

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += bool(counts(*args, **kwargs))
        due = calls == call and bool(counts(*args, **kwargs))
        if before and due:
            os.kill(os.getpid(), signum)
        result = inner(*args, **kwargs)
        if due and not before:
            os.kill(os.getpid(), signum)
        return result

    setattr(owner, name, wrapped)


def run(request: dict[str, Any]) -> int:
    """Run as the command line does, and give its exit status."""
    recipe = STUDY.recipe(**SETTINGS)
    recipe = replace(recipe, train=replace(recipe.train, checkpoint_minutes=request["minutes"]))
    if "point" in request:
        hit(request["point"], request["call"], request["signal"])
    try:
        with stopping.at_once():
            flow.run(recipe, out=request["out"], cache=cache.Cache(request["cache"]), progress=False)
    except stopping.Stopped as error:
        print(error, file=sys.stderr)
        return 128 + error.signum
    except (ValueError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def serve() -> None:
    """Fork a child for each request."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            status = os.waitstatus_to_exitcode(os.waitpid(request["wait"], 0)[1])
            print(status, flush=True)
            continue
        child = os.fork()
        if child == 0:
            with open(request["said"], "w") as said:
                os.dup2(said.fileno(), 2)
            status = 99
            try:
                status = run(request)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in the terminal is for pytest
    figures.draw = lambda *_, **__: [figures.Picture("none", "", "", "", b"", "<svg></svg>")]  # half of a run's time, and no number
    STUDY = Study()
    # torch imports seconds of itself at the first optimiser.
    torch.optim.Adam([torch.zeros(1, requires_grad=True)]).step()
    serve()
