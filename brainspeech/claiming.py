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
    """Claim a run folder, and keep other runs out of it until the lock is released.

    Raises
    ------
    ValueError
        As ``check``; nothing is made then.
    RuntimeError
        If another run holds the folder, or it cannot be written; what it holds is kept.
    """
    check(out, recipe)
    lock = FileLock(out / LOCK)
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RuntimeError(f"Another run is writing into {out}. Wait for it, or give another folder (--out DIR).") from None
    except OSError as error:
        raise RuntimeError(
            f"Could not write {out / LOCK}: {error}. What is in {out} already is kept. Free some space and give the same command again, or "
            "give another folder (--out DIR)."
        ) from error
    try:
        # Only now: before its first fit a run that holds the lock has nothing else by which its folder could be told from a free one.
        claim(out, recipe, root=root, source=source)
    except BaseException:
        lock.release()
        raise
    return lock


def claim(out: Path, recipe: Recipe, *, root: str | os.PathLike | None, source: str) -> None:
    """Write recipe.json into a run folder that is free or has the same constants; the caller holds its lock.

    Raises
    ------
    ValueError
        As ``check``.
    RuntimeError
        If it cannot be written (a full disk, no permission); nothing half-written is left.
    """
    check(out, recipe)
    mine = {"recipe": recipe.to_dict(), "root": None if root is None else str(Path(root).resolve()), "source": source}
    writing.put(out / "recipe.json", json.dumps(mine, indent=1).encode())


def check(out: Path, recipe: Recipe) -> None:
    """Refuse a folder that a run with these constants may not write into; nothing is written.

    Raises
    ------
    ValueError
        If the folder holds a run with other constants, or something that is no run; if it cannot be one.
    RuntimeError
        If its recipe.json is damaged.
    """
    check_place(out)
    if (out / "recipe.json").is_file():
        there = read(out)["recipe"]
        # How scores are tested changes no fit.
        differing = [name for name in _differing(_comparable(there), _comparable(recipe.to_dict())) if not name.startswith("evaluate.")]
        # A run that ended before its first fit, by an error in its constants for one, has nothing to lose.
        if differing and _names(out) - BEFORE_FITS:
            raise ValueError(
                f"{out} holds a run with other constants ({', '.join(differing)}). Give another folder (--out DIR), or delete this one."
            )
    elif out.is_dir() and _names(out) - {LOCK}:
        raise ValueError(f"{out} is not empty and holds no run (no recipe.json). Give another folder (--out DIR).")


def check_place(out: Path) -> None:
    """Refuse a path that is, or lies in, something that is no folder.

    Raises
    ------
    ValueError
        If it is so.
    """
    there = next((path for path in (out, *out.parents) if path.exists()), out)
    if there.exists() and not there.is_dir():
        what = f"{there} is a file, not a folder" if there == out else f"{there} is a file, so there can be no folder {out}"
        raise ValueError(f"{what}. Give another folder (--out DIR).")


def read(out: Path) -> dict[str, Any]:
    """Read the recipe.json of a run: its constants, ``recipe``, and where its data (``root``) and its recipe (``source``) are.

    Raises
    ------
    RuntimeError
        If it is damaged, or not what a run writes.
    """
    path = out / "recipe.json"
    try:
        kept = json.loads(path.read_text())
        if not isinstance(kept, dict) or not isinstance(kept.get("recipe"), dict):
            raise ValueError("it holds no constants of a run")
        if not isinstance(kept["recipe"].get("train", {}), dict):
            raise ValueError(f"its constants of train are no names with values, got {kept['recipe']['train']!r}")
        for name in ("root", "source"):
            if not isinstance(kept.get(name), str | None):
                raise ValueError(f"{name} must be a path, got {kept[name]!r}")
    except ValueError as error:
        raise RuntimeError(f"{path} is damaged ({error}). Delete {out} and run the recipe again.") from error
    return kept


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
