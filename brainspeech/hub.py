"""A trained module as one folder: weights (safetensors), config.json, statistics.json. Nothing in it is executed when it is read."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from brainspeech import __version__, models

CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
STATISTICS = "statistics.json"
EXTRA = "extra.safetensors"
FILES = (CONFIG, WEIGHTS, STATISTICS, EXTRA)


class Saved(NamedTuple):
    """What ``load`` gives back: the module in eval mode, its config, the statistics (None if none were saved) and the extra tensors."""

    module: nn.Module
    config: dict[str, Any]
    statistics: dict[str, Any] | None
    extra: dict[str, Tensor]


def save(
    folder: str | Path,
    module: nn.Module,
    *,
    config: Mapping[str, Any],
    statistics: Mapping[str, Any] | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> Path:
    """Save a module with all that is needed to use it again; an earlier save in the folder is replaced in one step.

    Parameters
    ----------
    folder : path
        Made if missing. It may hold an earlier save, and nothing else.
    module : nn.Module
        Made by ``models.build``: its ``name`` and ``config`` are saved as ``model`` and ``model_config``.
    config : mapping
        JSON-able: ``feature``, ``preprocessing``, ``subjects`` and whatever else it takes to use the module; kept as it is.
    statistics : mapping, optional
        JSON-able; what the batches were scaled with.
    extra : mapping of tensors, optional

    Raises
    ------
    ValueError
        If the module was not made by ``models.build``, the config cannot be written as JSON, or the folder holds other files.
    """
    folder = Path(folder)
    name, model_config = getattr(module, "name", None), getattr(module, "config", None)
    if not _is_known(name) or model_config is None:
        known = ", ".join(sorted(models.MODELS))
        raise ValueError(f"Expected a module that models.build made (one of {known}), got {type(module).__name__} named {name!r}.")
    reserved = sorted({"model", "model_config", "version", "statistics"} & config.keys())
    if reserved:
        raise ValueError(f"The config's {', '.join(reserved)} are written by save itself. Leave them out.")
    if folder.exists() and (not folder.is_dir() or (foreign := sorted(p.name for p in folder.iterdir() if p.name not in FILES))):
        found = ", ".join(foreign[:5]) if folder.is_dir() else "it is a file"
        raise ValueError(f"{folder}: expected a folder that is new or holds an earlier save, but found {found}. Save to another folder.")
    entry = {
        "model": name,
        "model_config": model_config,
        "version": __version__,
        "statistics": STATISTICS if statistics else None,
        **config,
    }
    try:
        text = json.dumps(entry, indent=1, allow_nan=False)
        statistics_text = json.dumps(statistics, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The config and the statistics must be JSON (finite numbers, text, lists, dicts): {error}.") from error
    with replacing(folder) as temporary:
        write_tensors(temporary / WEIGHTS, module.state_dict())
        (temporary / CONFIG).write_text(text + "\n")
        if statistics:
            (temporary / STATISTICS).write_text(statistics_text + "\n")
        if extra:
            write_tensors(temporary / EXTRA, extra)
    return folder


def load(folder: str | Path) -> Saved:
    """Build the module of a saved folder and fill in its weights, on the CPU, in eval mode.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    RuntimeError
        If a file is damaged, or the weights do not fit the model that the config describes.
    """
    folder = Path(folder)
    recover(folder)
    config = _read_json(folder / CONFIG)
    name, model_config = config.get("model"), config.get("model_config")
    if isinstance(name, str) and ":" in name and not _is_known(name):
        raise RuntimeError(f"{folder / CONFIG}: the model {name!r} is somebody's own; import its module first, if you trust it.")
    if not isinstance(name, str) or not _is_known(name) or not isinstance(model_config, dict):
        known = ", ".join(sorted(models.MODELS))
        raise RuntimeError(
            f"{folder / CONFIG}: expected a model among {known} and its model_config, got {name!r} and {model_config!r}. "
            f"It was written by brainspeech {config.get('version')}, this is {__version__}."
        )
    module = models.build(name, **model_config)
    load_state(module, read_tensors(folder / WEIGHTS), where=str(folder / WEIGHTS))
    statistics = _read_json(folder / config["statistics"]) if config.get("statistics") else None
    extra = read_tensors(folder / EXTRA) if (folder / EXTRA).exists() else {}
    return Saved(module.eval(), config, statistics, extra)


def _is_known(name: Any) -> bool:
    """Whether a model is the package's own, or module:Class of a module that was imported already: a file's word imports nothing."""
    return isinstance(name, str) and (name in models.MODELS or (":" in name and name.split(":")[0] in sys.modules))


def load_state(module: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Fill in a module's weights after checking names, shapes and types.

    Raises
    ------
    RuntimeError
        Naming what was got and what was expected.
    """
    own = module.state_dict()
    problems = [f"{name}: missing, expected {tuple(own[name].shape)}" for name in own if name not in state]
    problems += [f"{name}: got {tuple(state[name].shape)}, but the model has none" for name in state if name not in own]
    for name in own.keys() & state.keys():
        got, expected = state[name], own[name]
        if got.shape != expected.shape or got.dtype != expected.dtype:
            problems.append(f"{name}: got {tuple(got.shape)} {got.dtype}, expected {tuple(expected.shape)} {expected.dtype}")
    if problems:
        shown = "; ".join(sorted(problems)[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise RuntimeError(f"{where} does not fit {type(module).__name__}: {shown}. Was it saved from another model or configuration?")
    module.load_state_dict(dict(state))


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors as safetensors; names that share one tensor (tied weights) are written once and share it again when read."""
    kept: dict[tuple, str] = {}
    aliases: dict[str, str] = {}
    unique: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach()
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and place in kept:
            aliases[name] = kept[place]
            continue
        kept[place] = name
        # A clone has no memory in common with any other tensor, which safetensors asks for.
        unique[name] = tensor.cpu().contiguous().clone()
    save_file(unique, str(path), metadata={"aliases": json.dumps(aliases)})


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read what ``write_tensors`` wrote, on the CPU.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    RuntimeError
        If the file is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a saved folder holds {', '.join(FILES[:2])}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no dict)
            aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
        return tensors | {alias: tensors[name] for alias, name in aliases.items()}
    except (SafetensorError, ValueError, KeyError) as error:
        raise RuntimeError(f"{path} is damaged: {error}. Save or copy it again.") from error


@contextmanager
def replacing(folder: str | Path) -> Iterator[Path]:
    """Give an empty temporary folder that takes the place of ``folder`` when the block ends without an error.

    At every moment a whole old or a whole new folder is on the disk; ``recover`` finds it after a kill.
    """
    folder = Path(folder)
    new, old = _beside(folder, "new"), _beside(folder, "old")
    folder.parent.mkdir(parents=True, exist_ok=True)
    recover(folder)
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def recover(folder: str | Path) -> None:
    """Put the old folder back where a process was killed between moving it away and putting the new one in its place."""
    folder = Path(folder)
    old = _beside(folder, "old")
    if old.exists():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(folder)


def discard(folder: str | Path) -> None:
    """Remove a folder that ``replacing`` made, in one step: a kill leaves all of it or none."""
    folder = Path(folder)
    recover(folder)
    new = _beside(folder, "new")
    shutil.rmtree(new, ignore_errors=True)
    if folder.exists():
        folder.rename(new)
        shutil.rmtree(new)


def _beside(folder: Path, word: str) -> Path:
    return folder.parent / f".{folder.name}.{word}"


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; a saved folder holds {', '.join(FILES[:2])}.")
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise RuntimeError(f"{path} is damaged: {error}. Save or copy it again.") from error
    if not isinstance(value, dict):
        raise RuntimeError(f"{path} is damaged: expected a JSON object, got {type(value).__name__}. Save or copy it again.")
    return value


__all__ = [
    "CONFIG",
    "EXTRA",
    "STATISTICS",
    "WEIGHTS",
    "Saved",
    "discard",
    "load",
    "load_state",
    "read_tensors",
    "recover",
    "replacing",
    "save",
    "write_tensors",
]
