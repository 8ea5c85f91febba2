"""What a worker does: it opens what is sent to it, does one item after the other, and says what became of each."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

from brainspeech import naming

from .failures import UNOPENED, Outcome, failed


class Ended(BaseException):
    """SIGTERM came to a worker."""


class _Worker:
    """What a worker remembers."""

    ended = False
    busy = False
    token = ""
    shared: Any = None
    files: dict[str, tuple[str, int]] = {}  # noqa: RUF012
    lock = threading.Lock()


class Shared:
    """What every call needs; where it arrives, the files of recipes can be imported before it is opened."""

    def __init__(self, files: Mapping[str, tuple[str, int]], content: Any):
        self.files, self.content = files, content

    def __reduce__(self) -> tuple[Any, ...]:
        return Shared, (_Files(self.files), self.content)


class Sealed:
    """The same as bytes that a worker of a cluster opens: its scheduler, which opens all else, need not know a user's modules.

    They are made by this process and go where dask sends all it sends, in the same form; no file and no download is opened so.
    """

    def __init__(self, shared: Shared):
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


def recipe_files() -> dict[str, tuple[str, int]]:
    """List the recipes that are loaded in this process: no such name can be imported, so workers are told the file."""
    found = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if name.startswith(naming.RECIPE)}
    return {name: (file, os.stat(file).st_mtime_ns) for name, file in found.items() if file and os.path.isfile(file)}


def begin() -> None:
    """Let SIGTERM, and the death of the process that gives out the work, end the item in hand by an exception.

    Runs first in each process of this machine.
    """
    parent = os.getppid()

    def leave(signum: int, frame: FrameType | None) -> None:
        _Worker.ended = True
        if _Worker.busy:
            _Worker.busy = False
            raise Ended
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


def call(work: Callable[[Any, Any], Any], token: str, shared: Shared | Sealed, name: str, item: Any) -> Outcome:
    """Do one item, and say what became of it; ``shared`` is kept from the first call with a token."""
    if _Worker.ended:
        return Outcome(name, ended=True)
    try:
        if _Worker.token != token:
            _Worker.shared = shared.content
            _Worker.token = token
    except Exception as error:
        return Outcome(name, kind="RuntimeError", text=UNOPENED.format(error), trace=traceback.format_exc())
    try:
        _Worker.busy = True
        result = work(_Worker.shared, item)
        _Worker.busy = False
        return Outcome(name, result)
    except Ended:
        return Outcome(name, ended=True)
    except Exception as error:
        return failed(name, error)
    finally:
        _Worker.busy = False


def call_on_a_cluster(work: Callable[[Any, Any], Any], token: str, shared: Sealed, name: str, item: Any, folders: Sequence[str]) -> Outcome:
    """Do one item at a time in a worker of dask, whatever its number of threads, which are then the item's."""
    from distributed import get_worker
    from threadpoolctl import threadpool_limits

    unseen = [folder for folder in folders if not os.path.exists(folder)]
    if unseen:
        where = f"The worker {get_worker().address} on {socket.gethostname()}"
        need = "Workers need the cache (--cache DIR) and the dataset (--root DIR) under the same paths as here."
        return Outcome(name, kind="RuntimeError", text=f"{where} does not see {unseen[0]}. {need}")
    n_threads = get_worker().state.nthreads
    with _Worker.lock, threadpool_limits(n_threads):
        import torch

        torch.set_num_threads(n_threads)
        return call(work, token, shared, name, item)
