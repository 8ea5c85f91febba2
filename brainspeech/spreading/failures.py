"""What became of an item, and what is said where a worker, joblib or dask failed."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

UNOPENED = (
    "A worker cannot open what is sent to it ({}). The module of a dataset or feature of your own has to be where Python looks "
    "(PYTHONPATH), for workers too."
)
KEPT = "What was finished is kept; the same command goes on from there."


@dataclass(frozen=True)
class Outcome:
    """What became of an item: its result; or the kind and the text of an error; or nothing, because the worker was told to end."""

    name: str
    result: Any = None
    kind: str = ""
    text: str = ""
    trace: str = ""
    ended: bool = False


def failed(name: str, error: Exception) -> Outcome:
    """Say what an item has raised, as it can be sent: the nearest kind of error that is made from a text, and the text."""
    kinds = (FileNotFoundError, PermissionError, OSError, ValueError, RuntimeError)
    # A subclass says what it is, for not every one can be made from a text.
    kind = next((kind for kind in kinds if type(error) is kind), next((kind for kind in kinds if isinstance(error, kind)), None))
    text = str(error) if kind is not None else f"{type(error).__name__}: {error}"
    where = "" if name in text else f"{name}: "
    return Outcome(name, kind="RuntimeError" if kind is None else kind.__name__, text=where + text, trace=traceback.format_exc())


def raise_again(failure: Outcome) -> None:
    """Raise here what an item has raised in its worker."""
    kind = {"ValueError": ValueError, "OSError": OSError, "FileNotFoundError": FileNotFoundError, "PermissionError": PermissionError}
    raise kind.get(failure.kind, RuntimeError)(failure.text) from _InWorker(failure.trace)


class _InWorker(Exception):
    """The traceback of a worker."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def explained(error: BaseException) -> RuntimeError:
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
