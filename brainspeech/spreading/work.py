"""Who gives out the work: a loop, the processes of this machine, or a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import joblib
from tqdm import tqdm

from .cluster import on_a_cluster
from .failures import Outcome
from .machine import on_this_machine


def check(n_jobs: int, scheduler: str | os.PathLike | None) -> None:
    """Raise ValueError unless these say in one way where work is done."""
    if isinstance(n_jobs, bool) or not isinstance(n_jobs, int) or (n_jobs < 1 and n_jobs != -1):
        raise ValueError(f"n_jobs must be a number of processes, or -1 for one on each core, got {n_jobs!r}.")
    if scheduler is not None and n_jobs != 1:
        raise ValueError(
            f"n_jobs={n_jobs} counts processes of this machine, and the scheduler {scheduler} has workers of its own: give one of the two."
        )


def is_spread(n_jobs: int, scheduler: str | os.PathLike | None) -> bool:
    """Whether work leaves this process."""
    return scheduler is not None or _n_processes(n_jobs) > 1


def _n_processes(n_jobs: int) -> int:
    return joblib.cpu_count() if n_jobs == -1 else n_jobs


def spread(
    work: Callable[[Any, Any], Any],
    shared: Any,
    items: Mapping[str, Any],
    *,
    n_jobs: int = 1,
    scheduler: str | os.PathLike | None = None,
    folders: Sequence[str | os.PathLike] = (),
    sizes: Mapping[str, int] | None = None,
    done: int = 0,
    desc: str = "",
    unit: str = "it",
    progress: bool = True,
) -> dict[str, Any]:
    """Call ``work(shared, item)`` for every item, and give what comes back by name.

    Parameters
    ----------
    work : callable
        A function of a module. It keeps its results in a folder; what it returns should be small.
    shared : object
        What every call needs. A worker keeps it from call to call, with what was loaded into it.
    items : mapping from str to object
        The items; an error says the name of its own.
    n_jobs : int
        Processes of this machine; -1: one on each core; 1: a plain loop in this process. Each has cores / n_jobs threads, or what
        OMP_NUM_THREADS says.
    scheduler : str or path, optional
        Address (``tcp://HOST:PORT``) or scheduler file of a dask cluster, which then does the work.
    folders : sequence of path
        Folders that the workers of a cluster have to see. Into the first one a file is put for a while, to see that it is the same folder.
    sizes : mapping from str to int, optional
        How far each item moves the bar, instead of 1.
    done : int
        Where the bar begins.

    Raises
    ------
    ValueError, OSError, RuntimeError
        What the first item that failed raised, with the item's name; other kinds of errors come as RuntimeError.
    RuntimeError
        If a worker was killed, or does not see a folder, or nothing of the cluster answers.
    stopping.Stopped
        If SIGTERM or Ctrl-C ended the work; no worker is left.
    """
    check(n_jobs, scheduler)
    sizes = sizes or dict.fromkeys(items, 1)
    n_processes = min(_n_processes(n_jobs), len(items))
    results: dict[str, Any] = {}
    bar = tqdm(total=done + sum(sizes[name] for name in items), initial=done, desc=desc, unit=unit, disable=not progress)
    with bar:
        if scheduler is None and n_processes <= 1:
            outcomes: Generator[Outcome, None, None] = (Outcome(name, work(shared, item)) for name, item in items.items())
        elif scheduler is None:
            outcomes = on_this_machine(work, shared, items, n_processes)
        else:
            outcomes = on_a_cluster(work, shared, items, scheduler, [str(Path(folder).resolve()) for folder in folders])
        with closing(outcomes):
            for outcome in outcomes:
                results[outcome.name] = outcome.result
                bar.update(sizes[outcome.name])
    return {name: results[name] for name in items}
