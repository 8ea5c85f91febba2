"""Work over processes of this machine, which a signal ends before it ends this one."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import uuid
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import joblib

from brainspeech import stopping

from .failures import KEPT, Outcome, explained, raise_again
from .worker import Ended, Shared, begin, call, recipe_files


def on_this_machine(
    work: Callable[[Any, Any], Any], shared: Any, items: Mapping[str, Any], n_processes: int
) -> Generator[Outcome, None, None]:
    """Give out the items to so many processes, and give what became of each as it is done."""
    token, sent = uuid.uuid4().hex, Shared(recipe_files(), shared)
    failure: Outcome | None = None
    with stopping.at_boundary() as request, _ended_workers(), _ending_workers(request) as end, warnings.catch_warnings():
        # joblib replaces a process that holds 300 MB more than after its first item, and warns of it.
        warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given", category=UserWarning)
        feed = (joblib.delayed(call)(work, token, sent, name, item) for name, item in items.items() if not end.is_set())
        parallel = joblib.Parallel(n_jobs=n_processes, backend="loky", return_as="generator_unordered", batch_size=1, initializer=begin)
        try:
            with _deaf_to_interrupts():
                outcomes = parallel(feed)
            for outcome in outcomes:
                if outcome.ended and not end.is_set():
                    failure = Outcome(outcome.name, kind="RuntimeError", text=f"{outcome.name}: a worker was ended by SIGTERM. {KEPT}")
                    end.set()
                elif outcome.kind and failure is None:
                    failure = outcome
                    end.set()
                elif not outcome.kind and not outcome.ended:
                    yield outcome
        except (Exception, Ended) as error:
            if not end.is_set():
                raise explained(error) from error
    if request.signum:
        raise stopping.Stopped(f"stopped by {stopping.name(request.signum)}. {KEPT}", request.signum)
    if failure is not None:
        raise_again(failure)


@contextmanager
def _ended_workers() -> Iterator[None]:
    """Leave no process behind: the next work needs other libraries and other data in memory."""
    from joblib.externals.loky import get_reusable_executor

    try:
        yield
    finally:
        get_reusable_executor().shutdown(wait=True)


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
