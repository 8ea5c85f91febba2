"""The files of a fit: ``checkpoint/`` (state.json and safetensors) and ``metrics.jsonl``, one line per epoch.

A checkpoint takes the place of the one before in one step. It stands between two steps, at the end of an epoch or within one, and holds
all that the next step depends on: weights, optimiser, generators, and how far the epoch has come. state.json names the digest of every
file beside it, so that a flipped bit is not trained on.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from brainspeech import __version__, hub, processes

STATE = "state.json"
FILES = ("weights", "best", "optimiser", "generators")


@dataclass(eq=False)
class State:
    """All that a fit goes on from.

    Parameters
    ----------
    config, data : dict, str
        What was asked for, and on which data.
    weights, best : dict of Tensor
        Present and best weights and buffers.
    moments : dict of Tensor
        The optimiser's, ``INDEX.NAME``.
    param_groups : list of dict
        The optimiser's.
    history : list of dict
        One per finished epoch.
    step : int
        Steps taken in the epoch after these.
    losses : list of float
        Of those steps.
    seconds : float
        Spent on those steps.
    generators : Generators
    made_of : dict of list
        What encoder and loss were made of: class, name, options; empty in checkpoints of earlier versions.
    """

    config: dict[str, Any]
    data: str
    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    moments: dict[str, Tensor]
    param_groups: list[dict[str, Any]]
    history: list[dict[str, Any]]
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    generators: Generators = field(default_factory=lambda: Generators.now())
    made_of: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Generators:
    """States of the global generators that a fit draws from."""

    torch: dict[str, Tensor]
    python: Any

    @classmethod
    def now(cls) -> Generators:
        """Read them."""
        states = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            states |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
        return cls(states, random.getstate())

    def put_back(self) -> None:
        """Set them; those of devices that are not here are left out."""
        torch.set_rng_state(self.torch["cpu"])
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for i in range(n_devices):
            if f"cuda.{i}" in self.torch:
                torch.cuda.set_rng_state(self.torch[f"cuda.{i}"], i)
        version, words, gauss = self.python
        random.setstate((version, tuple(words), gauss))


class Store:
    """Where a fit writes its checkpoints.

    Parameters
    ----------
    out : path
        The run folder; made if missing.

    Raises
    ------
    RuntimeError
        If it cannot be made.
    """

    def __init__(self, out: Path):
        with _writing(out):
            out.mkdir(parents=True, exist_ok=True)
        self.folder = out / "checkpoint"
        self.metrics = out / "metrics.jsonl"

    def clear(self) -> None:
        """Remove what an earlier fit left: its metrics must not stand beside this one's."""
        with _writing(self.folder.parent):
            hub.discard(self.folder)
            self.metrics.write_text("")

    def save(self, state: State) -> None:
        """Replace the checkpoint in one step, then the lines of the finished epochs.

        Raises
        ------
        RuntimeError
            If it cannot be written; the checkpoint before stands.
        """
        tensors = dict(zip(FILES, (state.weights, state.best, state.moments, state.generators.torch), strict=True))
        needed = sum(tensor.nbytes for group in tensors.values() for tensor in group.values())
        path = self.folder
        try:
            with hub.replacing(self.folder) as folder:
                digests = {}
                for name, group in tensors.items():
                    path = folder / f"{name}.safetensors"
                    hub.write_tensors(path, group)
                    digests[path.name] = _digest(path)
                path = folder / STATE
                path.write_text(_sealed(_plain(state) | {"files": digests}))
                for file in folder.iterdir():
                    _sync(file)  # a rename may reach the disk before the content does
            path = self.metrics
            self._write_metrics(state.history)
        except (OSError, SafetensorError) as error:
            raise RuntimeError(self._said(error, path, needed)) from error

    def _said(self, error: Exception, path: Path, needed: int) -> str:
        free = shutil.disk_usage(self.folder.parent).free
        stands = f"The last checkpoint in {self.folder} stands" if (self.folder / STATE).exists() else "There is no checkpoint yet"
        # safetensors gives no number of an error, only its text.
        forbidden = isinstance(error, PermissionError) or any(word in str(error) for word in ("Permission denied", "Read-only"))
        advice = f"See that {self.folder.parent} can be written to" if forbidden else "Free some space"
        return (
            f"Could not write the checkpoint {self.folder} ({path.name}): {error}. It needs {needed / 1e6:.1f} MB beside the one before, "
            f"{free / 1e6:.1f} MB are free. {stands}. {advice} and give the same command again: it goes on from there."
        )

    def _write_metrics(self, history: list[dict[str, Any]]) -> None:
        temporary = self.metrics.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in history))
        temporary.replace(self.metrics)

    def load(self) -> State | None:
        """Read the checkpoint; None where there is none.

        Raises
        ------
        RuntimeError
            If a file is damaged or missing.
        """
        with _writing(self.folder.parent):
            hub.recover(self.folder)
        if not self.folder.exists():
            return None
        kept = self._read_state()
        tensors = {}
        for name in FILES:
            path = self.folder / f"{name}.safetensors"
            # A checkpoint of an earlier version names no digests.
            if "files" in kept and (not path.is_file() or _digest(path) != kept["files"].get(path.name)):
                raise RuntimeError(
                    f"{path} is damaged or missing: it is not what was written. Delete {self.folder} and give the same command again: "
                    "the fit begins anew."
                )
            tensors[name] = hub.read_tensors(path)
        try:
            sampler = kept["sampler"]
            state = State(
                config=kept["config"],
                data=kept["data"],
                weights=tensors["weights"],
                best=tensors["best"],
                moments=tensors["optimiser"],
                param_groups=kept["param_groups"],
                history=kept["history"],
                step=sampler.get("next_step", 0),
                losses=sampler.get("losses", []),
                seconds=sampler.get("seconds", 0.0),
                generators=Generators(tensors["generators"], kept["python_random"]),
                made_of=kept.get("made_of", {}),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise self._damaged(error) from error
        if processes.is_first():
            with _writing(self.folder.parent):
                self._write_metrics(state.history)
        return state

    def _read_state(self) -> dict[str, Any]:
        try:
            kept = json.loads((self.folder / STATE).read_text())
            seal = kept.pop("digest", None)
            if seal is not None and seal != _seal(kept):
                raise ValueError("it is not what was written")
            return kept
        except (OSError, ValueError, AttributeError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> RuntimeError:
        return RuntimeError(
            f"{self.folder / STATE} is damaged or missing ({error}). Delete {self.folder} and give the same command again: "
            "the fit begins anew."
        )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RuntimeError(
            f"Could not write in the run folder {folder}: {error}. It must be a folder, with space, that can be written to. "
            "Give another one, or make room there."
        ) from error


def _plain(state: State) -> dict[str, Any]:
    return {
        "version": __version__,
        "config": state.config,
        "data": state.data,
        "made_of": state.made_of,
        "history": state.history,
        # The order of an epoch follows from the seed and the epoch's number, so this is all there is to the sampler.
        "sampler": {
            "seed": state.config["seed"],
            "next_epoch": len(state.history),
            "next_step": state.step,
            "losses": state.losses,
            "seconds": state.seconds,
        },
        "param_groups": state.param_groups,
        "python_random": state.generators.python,
    }


def _sealed(kept: Mapping[str, Any]) -> str:
    return json.dumps({**kept, "digest": _seal(json.loads(json.dumps(kept)))}, indent=1)


def _seal(kept: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
