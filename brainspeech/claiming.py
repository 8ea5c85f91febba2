"""The folder of a run: whose it is, and who may write into it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from brainspeech import train, writing
from brainspeech.recipe import Recipe

LOCK = ".lock"
# What is there before the first fit.
BEFORE_FITS = {"recipe.json", "segments.json", LOCK}


def hold(out: Path, recipe: Recipe, *, root: str | os.PathLike | None, source: str) -> FileLock:
    """Claim a run folder, and keep other runs out of it."""
    claim(out, recipe, root=root, source=source)
    lock = FileLock(out / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"Another run is writing into {out}. Wait for it, or give another folder (--out DIR).") from None
    except OSError as error:
        raise RuntimeError(
            f"Could not write {out / LOCK}: {error}. What is in {out} already is kept. Free some space and give the same command again, or "
            "give another folder (--out DIR)."
        ) from error
    return lock


def claim(out: Path, recipe: Recipe, *, root: str | os.PathLike | None, source: str) -> None:
    """Write recipe.json into the run folder, or check that the run that is there has the same constants.

    Raises
    ------
    ValueError
        If the folder holds a run with other constants, or something that is no run.
    RuntimeError
        If it cannot be written (a full disk, no permission); nothing half-written is left.
    """
    constants = recipe.to_dict()
    mine = {"recipe": constants, "root": None if root is None else str(Path(root).resolve()), "source": source}
    path = out / "recipe.json"
    if path.is_file():
        try:
            there = json.loads(path.read_text())
        except ValueError as error:
            raise RuntimeError(f"{path} is damaged ({error}). Delete {out} and run again.") from error
        # How scores are tested changes no fit.
        differing = [
            name for name in _differing(_comparable(there.get("recipe", {})), _comparable(constants)) if not name.startswith("evaluate.")
        ]
        # A run that ended before its first fit, by an error in its constants for one, has nothing to lose.
        if differing and _names(out) - BEFORE_FITS:
            raise ValueError(
                f"{out} holds a run with other constants ({', '.join(differing)}). Give another folder (--out DIR), or delete this one."
            )
    elif out.is_dir() and _names(out):
        raise ValueError(f"{out} is not empty and holds no run (no recipe.json). Give another folder (--out DIR).")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, not a folder. Give another folder (--out DIR).")
    writing.put(path, json.dumps(mine, indent=1).encode())


def _names(out: Path) -> set[str]:
    """Name what is in a folder, but for what kill -9 leaves of a recipe.json or segments.json that was being written."""
    return {path.name for path in out.iterdir() if not path.name.startswith((".recipe.json-", ".segments.json-"))}


def _comparable(constants: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out how a fit is run, which changes nothing of what comes out, and fill in constants that are younger than the run."""
    section = {**dataclasses.asdict(train.TrainConfig()), **constants.get("train", {})}
    free = [name for name in train.HOW if name != "resident" or section[name] != "half"]
    young: dict[str, Any] = {"target_encoder": None, "variants": {}}
    return young | {**constants, "train": json.loads(json.dumps({k: v for k, v in section.items() if k not in free}))}


def _differing(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Name the constants that differ: ``train.lr (was 0.001, now 0.0003)``."""
    found = []
    for name in sorted({*there, *here}):
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{name}.{inner}" for inner in _differing(old, new)]
        elif old != new:
            found.append(f"{name} (was {old}, now {new})")
    return found
