"""How long is it from `brainspeech run` to the first training step, when the cache is warm?

    python benchmarks/startup.py       some two minutes

The demo is started in a process of its own, once to fill an empty cache, then again for every repeat with a new run folder; each ends when
the optimiser has taken its first step. Beside it, the imports alone, and the largest of them with ``--imports``. Exits with 1 above ten
seconds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import bench

LIMIT = 10.0
RUN = """
import os, sys, time
from torch.optim.optimizer import register_optimizer_step_post_hook
def end(*_):
    print("first step", time.process_time(), flush=True)
    os._exit(0)
register_optimizer_step_post_hook(end)
from brainspeech.cli import main
sys.exit(main())
"""
IMPORTS = "import brainspeech.cli, brainspeech.flow, brainspeech.recipe"


def first_step(recipe: str, folder: Path, cache: Path) -> bench.Times:
    """Start a run and give the seconds to the end of its first step, passed and on a processor."""
    command = [sys.executable, "-c", RUN, "run", recipe, "--out", str(folder), "--cache", str(cache)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall = time.perf_counter() - start
    if not done.stdout.startswith("first step"):
        raise RuntimeError(f"{recipe} took no step: {done.stderr[-2000:]}")
    return bench.Times(wall, float(done.stdout.split()[-1]))


def imports() -> float:
    """Give the seconds that the imports of a run take."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - start


def largest(n: int = 12) -> list[tuple[float, str]]:
    """Give the modules whose import takes longest, those inside counted: (seconds, name)."""
    done = subprocess.run([sys.executable, "-X", "importtime", "-c", IMPORTS], check=True, capture_output=True, text=True)
    rows = (line.removeprefix("import time:").split("|") for line in done.stderr.splitlines() if line.startswith("import time:"))
    return sorted(((int(row[1]) / 1e6, row[2].strip()) for row in rows if row[1].strip().isdigit()), reverse=True)[:n]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo", help="name or folder of the recipe, which has to need no data (default: demo)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--imports", action="store_true", help="list the modules whose import takes longest")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        cold = first_step(arguments.recipe, Path(name) / "cold", Path(name) / "cache")
        warm, imported = [], []
        for k in range(arguments.repeats):
            warm.append(first_step(arguments.recipe, Path(name) / f"warm{k}", Path(name) / "cache"))
            imported.append(imports())
    wall, processor = (median(getattr(times, clock) for times in warm) for clock in ("wall", "processor"))
    print(f"{arguments.recipe}, median of {arguments.repeats} ({bench.machine()}):")
    said = f"{wall:.1f} s, in which it had a processor for {processor:.1f} s"
    fine = bench.say("first training step, warm cache", said, wall < LIMIT, f"under {LIMIT:g} s")
    print(f"  of which imports {median(imported):.1f} s; with an empty cache {cold.wall / wall:.1f} times as long")
    if arguments.imports:
        for seconds, module in largest():
            print(f"  {seconds:6.2f} s  {module}")
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
