"""The same work on many items, spread by joblib over processes of this machine or over a dask cluster.

Workers keep what they make where all can read it (the cache); what they hand back is small. What they all need, a dataset for one, is sent
once to each worker of a cluster; between processes of one machine joblib maps its large arrays into memory.

On this machine SIGTERM and Ctrl-C end the workers first: each leaves the item that it has in hand by an exception, so that what is
half-written is removed, and then the run ends. A worker of a cluster finishes the item that it has in hand.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import joblib
import numpy as np
from tqdm import tqdm

from brainspeech import naming, stopping
from brainspeech.cache import Cache

CONNECT = 10.0  # s that a dask scheduler has to answer
WORKERS = 60.0  # s that the first worker of a cluster has to come
# s until an entry that another machine has written must be seen here: network file systems remember for a minute that a file was missing.
PATIENCE = 90.0


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
            outcomes: Generator[_Outcome, None, None] = (_Outcome(name, work(shared, item)) for name, item in items.items())
        elif scheduler is None:
            outcomes = _on_this_machine(work, shared, items, n_processes)
        else:
            outcomes = _on_a_cluster(work, shared, items, scheduler, [str(Path(folder).resolve()) for folder in folders])
        with closing(outcomes):
            for outcome in outcomes:
                results[outcome.name] = outcome.result
                bar.update(sizes[outcome.name])
    return {name: results[name] for name in items}


class Kept(Cache):
    """A cache in which nothing is made: what is not there is an error.

    Parameters
    ----------
    root : path
    patience : float
        Seconds to wait for an entry that another machine has written.
    """

    def __init__(self, root: str | os.PathLike, patience: float = 0.0):
        super().__init__(root)
        self.patience = patience

    def get_or_make(self, kind: str, key: Any, make: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Open an entry.

        Raises
        ------
        Missing
            If it is not there.
        """
        end = time.monotonic() + self.patience
        while (found := self.get(kind, key)) is None:
            if time.monotonic() >= end:
                raise Missing(
                    f"A worker should have made {self.folder(kind, key)}, but it is not there. Do all workers use this cache folder, and "
                    "do they see the same files of the dataset, with the same times of change, and have the same version of brainspeech?"
                )
            time.sleep(1.0)
        return found


class Missing(RuntimeError):
    """An entry is not in the cache."""


# ------------------------------------------------------------------------------------------------------------------ what a worker does


@dataclass(frozen=True)
class _Outcome:
    """What became of an item: its result; or the kind and the text of an error; or nothing, because the worker was told to end."""

    name: str
    result: Any = None
    kind: str = ""
    text: str = ""
    trace: str = ""
    ended: bool = False


class _Ended(BaseException):
    """SIGTERM came to a worker."""


class _Worker:
    """What a worker remembers."""

    ended = False
    busy = False
    token = ""
    shared: Any = None
    files: dict[str, tuple[str, int]] = {}  # noqa: RUF012
    lock = threading.Lock()


class _Shared:
    """What every call needs; where it arrives, the files of recipes can be imported before it is opened."""

    def __init__(self, files: Mapping[str, tuple[str, int]], content: Any):
        self.files, self.content = files, content

    def __reduce__(self) -> tuple[Any, ...]:
        return _Shared, (_Files(self.files), self.content)


class _Sealed:
    """The same as bytes that a worker of a cluster opens: its scheduler, which opens all else, need not know a user's modules."""

    def __init__(self, shared: _Shared):
        from distributed import protocol

        self.data = protocol.pickle.dumps(shared)

    @property
    def content(self) -> Any:
        from distributed import protocol

        return protocol.pickle.loads(self.data).content


class _Files:
    """Names of modules and their files; opening it makes them known, before what comes after it in a tuple is opened."""

    def __init__(self, files: Mapping[str, tuple[str, int]]):
        self.files = files

    def __reduce__(self) -> tuple[Any, ...]:
        return _know, (dict(self.files),)


def _know(files: dict[str, tuple[str, int]]) -> dict[str, tuple[str, int]]:
    """Let modules be imported from their files; one that was imported from another state of its file is forgotten."""
    if _Finder not in sys.meta_path:
        sys.meta_path.append(_Finder)
    for name, file in files.items():
        if _Worker.files.get(name, file) != file:
            sys.modules.pop(name, None)
    _Worker.files.update(files)
    return files


class _Finder:
    """Finds the files of recipes."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> Any:
        """Answer Python's import."""
        return importlib.util.spec_from_file_location(name, _Worker.files[name][0]) if name in _Worker.files else None


def _recipe_files() -> dict[str, tuple[str, int]]:
    """List the recipes that are loaded in this process: no such name can be imported, so workers are told the file."""
    found = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if name.startswith(naming.RECIPE)}
    return {name: (file, os.stat(file).st_mtime_ns) for name, file in found.items() if file and os.path.isfile(file)}


def _begin() -> None:
    """Let SIGTERM, and the death of the process that gives out the work, end the item in hand by an exception.

    Runs first in each process of this machine.
    """
    parent = os.getppid()

    def leave(signum: int, frame: FrameType | None) -> None:
        _Worker.ended = True
        if _Worker.busy:
            _Worker.busy = False
            raise _Ended
        # It waits for an item, or imports what an item needs. The first to go takes the others along: they have time to tidy up.
        timer = threading.Timer(2.0, os._exit, (128 + signum,))
        timer.daemon = True
        timer.start()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10.0)
        os._exit(1)

    signal.signal(signal.SIGTERM, leave)
    threading.Thread(target=watch, daemon=True).start()


def _call(work: Callable[[Any, Any], Any], token: str, shared: _Shared | _Sealed, name: str, item: Any) -> _Outcome:
    """Do one item, and say what became of it; ``shared`` is kept from the first call with a token."""
    if _Worker.ended:
        return _Outcome(name, ended=True)
    try:
        if _Worker.token != token:
            _Worker.shared = shared.content
            _Worker.token = token
    except Exception as error:
        return _Outcome(name, kind="RuntimeError", text=UNOPENED.format(error), trace=traceback.format_exc())
    try:
        _Worker.busy = True
        result = work(_Worker.shared, item)
        _Worker.busy = False
        return _Outcome(name, result)
    except _Ended:
        return _Outcome(name, ended=True)
    except Exception as error:
        return _failed(name, error)
    finally:
        _Worker.busy = False


def _failed(name: str, error: Exception) -> _Outcome:
    kinds = (FileNotFoundError, PermissionError, OSError, ValueError, RuntimeError)
    # A subclass says what it is, for not every one can be made from a text.
    kind = next((kind for kind in kinds if type(error) is kind), next((kind for kind in kinds if isinstance(error, kind)), None))
    text = str(error) if kind is not None else f"{type(error).__name__}: {error}"
    where = "" if name in text else f"{name}: "
    return _Outcome(name, kind="RuntimeError" if kind is None else kind.__name__, text=where + text, trace=traceback.format_exc())


def _call_on_a_cluster(
    work: Callable[[Any, Any], Any], token: str, shared: _Sealed, name: str, item: Any, folders: Sequence[str]
) -> _Outcome:
    """Do one item at a time in a worker of dask, whatever its number of threads, which are then the item's."""
    from distributed import get_worker
    from threadpoolctl import threadpool_limits

    unseen = [folder for folder in folders if not os.path.exists(folder)]
    if unseen:
        where = f"The worker {get_worker().address} on {socket.gethostname()}"
        need = "Workers need the cache (--cache DIR) and the dataset (--root DIR) under the same paths as here."
        return _Outcome(name, kind="RuntimeError", text=f"{where} does not see {unseen[0]}. {need}")
    n_threads = get_worker().state.nthreads
    with _Worker.lock, threadpool_limits(n_threads):
        import torch

        torch.set_num_threads(n_threads)
        return _call(work, token, shared, name, item)


# ------------------------------------------------------------------------------------------------------------------ who gives it out


def _on_this_machine(
    work: Callable[[Any, Any], Any], shared: Any, items: Mapping[str, Any], n_processes: int
) -> Generator[_Outcome, None, None]:
    token, sent = uuid.uuid4().hex, _Shared(_recipe_files(), shared)
    failure: _Outcome | None = None
    with stopping.at_boundary() as request, _ended_workers(), _ending_workers(request) as end, warnings.catch_warnings():
        # joblib replaces a process that holds 300 MB more than after its first item, and warns of it.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given", category=UserWarning)
        feed = (joblib.delayed(_call)(work, token, sent, name, item) for name, item in items.items() if not end.is_set())
        parallel = joblib.Parallel(n_jobs=n_processes, backend="loky", return_as="generator_unordered", batch_size=1, initializer=_begin)
        try:
            with _deaf_to_interrupts():
                outcomes = parallel(feed)
            for outcome in outcomes:
                if outcome.ended and not end.is_set():
                    failure = _Outcome(outcome.name, kind="RuntimeError", text=f"{outcome.name}: a worker was ended by SIGTERM. {KEPT}")
                    end.set()
                elif outcome.kind and failure is None:
                    failure = outcome
                    end.set()
                elif not outcome.kind and not outcome.ended:
                    yield outcome
        except (Exception, _Ended) as error:
            if not end.is_set():
                raise _explained(error) from error
    if request.signum:
        raise stopping.Stopped(f"stopped by {stopping.name(request.signum)}. {KEPT}", request.signum)
    if failure is not None:
        _raise(failure)


@contextmanager
def _ended_workers() -> Iterator[None]:
    """Leave no process behind: the next work needs other libraries and other data in memory."""
    from joblib.externals.loky import get_reusable_executor

    try:
        yield
    finally:
        get_reusable_executor().shutdown(wait=True)


UNOPENED = (
    "A worker cannot open what is sent to it ({}). The module of a dataset or feature of your own has to be where Python looks "
    "(PYTHONPATH), for workers too."
)
KEPT = "What was finished is kept; the same command goes on from there."


@contextmanager
def _ending_workers(request: stopping.Request) -> Iterator[threading.Event]:
    """Give an event that ends the workers when it is set; a signal to this process sets it."""
    end, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            if request.signum:
                end.set()
            if end.is_set():
                for worker in _workers():
                    worker.terminate()  # SIGTERM
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield end
    finally:
        over.set()
        thread.join()


def _workers() -> list[multiprocessing.process.BaseProcess]:
    """List the processes that joblib has started here."""
    return [child for child in multiprocessing.active_children() if type(child).__module__.startswith("joblib.externals.loky")]


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Start processes to which Ctrl-C in the terminal says nothing: they are ended by this one."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    from joblib.externals.loky.backend import get_context

    # These start the two processes that count locks, each of which would let Ctrl-C through again.
    resource_tracker.ensure_running()
    get_context("loky").Lock()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _on_a_cluster(
    work: Callable[[Any, Any], Any], shared: Any, items: Mapping[str, Any], scheduler: str | os.PathLike, folders: Sequence[str]
) -> Generator[_Outcome, None, None]:
    if not items:
        return
    with _connected(scheduler) as client, _mark(folders) as seen:
        try:
            token, sent = uuid.uuid4().hex, _Sealed(_Shared(_recipe_files(), shared))
            with joblib.parallel_config("dask", client=client, scatter=[sent]):
                parallel = joblib.Parallel(return_as="generator_unordered", batch_size=1, pre_dispatch="all")
                outcomes = parallel(joblib.delayed(_call_on_a_cluster)(work, token, sent, name, item, seen) for name, item in items.items())
        except Exception as error:
            raise _explained(error) from error
        try:
            for outcome in outcomes:
                if outcome.kind:
                    _raise(outcome)
                yield outcome
        except (ValueError, OSError, RuntimeError):
            raise
        except Exception as error:
            raise _explained(error) from error
        finally:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that tasks were given up
                outcomes.close()


@contextmanager
def _connected(scheduler: str | os.PathLike) -> Iterator[Any]:
    """Connect with a dask scheduler that has a worker."""
    try:
        import distributed
    except ImportError as error:
        raise RuntimeError(
            f"The scheduler {scheduler} needs dask, which is not installed here: pip install 'brainspeech[cluster]'"
        ) from error
    address = _address(scheduler)
    try:
        client = distributed.Client(address, timeout=CONNECT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"No dask scheduler answers at {address} within {CONNECT:g} s ({error}). Start one: dask scheduler --scheduler-file FILE"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKERS)
        except TimeoutError as error:
            raise ConnectionError(
                f"The dask scheduler at {address} has had no worker for {WORKERS:g} s. Start some: dask worker --scheduler-file FILE"
            ) from error
        _check_versions(client)
        noise = logging.getLogger("tornado.application")
        before = noise.disabled
        try:
            yield client
        except BaseException:
            noise.disabled = True  # of results that are on their way and that nobody waits for any more
            raise
        finally:
            client.close()
            noise.disabled = before


def _check_versions(client: Any) -> None:
    """Refuse a cluster without this version of brainspeech: its scheduler would wait for ever."""
    found = client.get_versions(packages=["brainspeech"])
    mine = found["client"]["packages"]["brainspeech"]
    others = {"scheduler": found["scheduler"], **{f"worker {address}": versions for address, versions in found["workers"].items()}}
    for where, versions in others.items():
        there = versions["packages"].get("brainspeech") if versions else None
        if there != mine:
            raise RuntimeError(f"The {where} of the dask cluster has brainspeech {there}, expected {mine} as here: use one environment.")


def _address(scheduler: str | os.PathLike) -> str:
    """Give the address that a scheduler file, or an address, says."""
    text = os.fspath(scheduler)
    if "://" in text:
        return text
    path = Path(text)
    if not path.is_file():
        if re.fullmatch(r"[\w.-]+:\d+", text):
            return f"tcp://{text}"
        raise FileNotFoundError(
            f"The scheduler file {text} does not exist. Give the file of dask scheduler --scheduler-file FILE, or an address (tcp://HOST:PORT)."
        )
    try:
        return str(json.loads(path.read_text())["address"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{text} is no scheduler file of dask: expected JSON with an address in it ({error!r}).") from error


@contextmanager
def _mark(folders: Sequence[str]) -> Iterator[list[str]]:
    """Put a file into the first folder, and give what workers have to see: the file, and the other folders."""
    if not folders:
        yield []
        return
    mark = Path(folders[0]) / f".seen-{uuid.uuid4().hex}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield [str(mark), *folders[1:]]
    finally:
        mark.unlink(missing_ok=True)


def _raise(failure: _Outcome) -> None:
    kind = {"ValueError": ValueError, "OSError": OSError, "FileNotFoundError": FileNotFoundError, "PermissionError": PermissionError}
    raise kind.get(failure.kind, RuntimeError)(failure.text) from _InWorker(failure.trace)


class _InWorker(Exception):
    """The traceback of a worker."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _explained(error: BaseException) -> RuntimeError:
    """Say what it means that joblib or dask failed."""
    kind, text = type(error).__name__, str(error)
    said = [line for line in f"{error.__cause__ or text}".splitlines() if line.strip(" '\"")]
    last = (said[-1] if said else kind).strip(" '\"")
    if "pickle" in text.lower() or kind == "PicklingError":
        return RuntimeError(f"The dataset or the feature cannot be sent to another process ({last}). Use one process: n_jobs=1.")
    if "un-serialize" in text:
        return RuntimeError(UNOPENED.format(last))
    if kind in ("TerminatedWorkerError", "BrokenProcessPool", "KilledWorker", "FutureCancelledError"):
        return RuntimeError(
            "A worker was killed; most often the system does that where memory runs out. Use fewer workers at once (--n-jobs N, or "
            f"dask worker --nworkers N). {KEPT}"
        )
    return RuntimeError(f"The work could not be spread: {kind}: {text}")
