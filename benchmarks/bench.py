"""What the benchmarks share: forms of the same computation timed in turns, and a line for each ratio with what is asked of it.

A machine is never alone: the forms take turns, so that each meets the same neighbours, and the median of the repeats is taken. Beside the
time that passed (wall) stands that which the process had a processor for: on a busy machine the two differ, and the second is what a
quiet machine would show.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

GIB = 2**30


class Times(NamedTuple):
    """Median seconds of one form: passed, and on a processor (of all threads of this process)."""

    wall: float
    processor: float


def one_thread() -> None:
    """Keep every library to one thread; to be called before numpy and torch are imported."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = "1"


def take_turns(forms: Mapping[str, Callable[[], Callable[[], object]]], repeats: int, *, warm: bool = True) -> dict[str, Times]:
    """Time forms in turns, ``repeats`` times each, and once before, untimed, if ``warm``.

    A form prepares what it needs and gives a function, which is timed.
    """
    taken: dict[str, list[Times]] = {name: [] for name in forms}
    for turn in range(repeats + warm):
        for name, form in forms.items():
            timed = form()
            wall, processor = time.perf_counter(), time.process_time()
            timed()
            times = Times(time.perf_counter() - wall, time.process_time() - processor)
            if turn >= warm:
                taken[name].append(times)
            del timed
    return {name: Times(*(statistics.median(values) for values in zip(*rows, strict=True))) for name, rows in taken.items()}


def ratio(what: str, slow: Times, fast: Times, *, at_least: float) -> bool:
    """Print how many times faster, by both clocks, and tell whether the processor's says enough."""
    value = slow.processor / fast.processor
    return say(what, f"{value:.2f} times ({slow.wall / fast.wall:.2f} by the wall clock)", value >= at_least, f"at least {at_least:g}")


def say(what: str, found: str, enough: bool, wanted: str) -> bool:
    """Print one figure, what is wanted of it, and whether it is."""
    print(f"  {what}: {found}; wanted: {wanted}{'' if enough else '  <- MISSED'}", flush=True)
    return enough


def machine() -> str:
    """Say where this runs, in words."""
    return f"{len(os.sched_getaffinity(0))} cores, CPU"


def anonymous() -> int:
    """Give the memory of this process in bytes that the system cannot drop, which pages of mapped files are not (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon: this benchmark needs Linux 4.5 or newer.")


class Peak:
    """Sample anonymous memory every 2 ms: ``start``, and the highest, ``peak``, in bytes."""

    def __enter__(self) -> Peak:
        self.start = self.peak = anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, anonymous())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous())
