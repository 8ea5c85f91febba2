"""A trained module as one folder: weights (safetensors), config.json, statistics.json, a model card; and that folder on a hub.

Nothing in it is executed when it is read. config.json keeps the SHA-256 of the other files and of itself, so that a file that was changed
or cut is told from a whole one even where its size is right. From a hub come files of these names only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from brainspeech import __version__, models, naming

CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
STATISTICS = "statistics.json"
EXTRA = "extra.safetensors"
CARD = "README.md"
FILES = (CONFIG, WEIGHTS, STATISTICS, EXTRA, CARD)
# What a release may hold besides: nothing that anything runs.
UPLOADED = (".safetensors", ".json", ".md", ".html", ".png")
SUMS = "SHA256SUMS"
MESSAGE = "Upload with brainspeech"
# What save itself writes into config.json.
RESERVED = {"model", "model_config", "version", "statistics", "digests", "seal"}


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
    card: str | None = None,
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
    card : str, optional
        The model card, markdown.

    Raises
    ------
    ValueError
        If the module was not made by ``models.build``, the config cannot be written as JSON, or the folder holds other files.
    """
    folder = Path(folder)
    name, model_config = getattr(module, "name", None), getattr(module, "config", None)
    if not naming.at_hand(name, models.MODELS) or model_config is None:
        known = ", ".join(sorted(models.MODELS))
        raise ValueError(f"Expected a module that models.build made (one of {known}), got {type(module).__name__} named {name!r}.")
    reserved = sorted(RESERVED & config.keys())
    if reserved:
        raise ValueError(f"The config's {', '.join(reserved)} are written by save itself. Leave them out.")
    if folder.resolve() == Path.cwd():
        raise ValueError(f"{folder} is the working directory, which cannot be replaced in one step. Name a folder in it.")
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    foreign = [name for name in there if name not in FILES or CONFIG not in there]  # a README alone is somebody's, not a card
    if foreign or (folder.exists() and not folder.is_dir()):
        found = ", ".join(foreign[:5]) or "it is a file"
        raise ValueError(f"{folder}: expected a folder that is new or holds an earlier save, but found {found}. Save to another folder.")
    entry = {
        "model": name,
        "model_config": model_config,
        "version": __version__,
        "statistics": STATISTICS if statistics else None,
        **config,
    }
    try:
        json.dumps(entry, allow_nan=False)
        statistics_text = json.dumps(statistics, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The config and the statistics must be JSON (finite numbers, text, lists, dicts): {error}.") from error
    with replacing(folder) as temporary:
        write_tensors(temporary / WEIGHTS, module.state_dict())
        if statistics:
            (temporary / STATISTICS).write_text(statistics_text + "\n")
        if extra:
            write_tensors(temporary / EXTRA, extra)
        digests = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        kept = entry | {"digests": digests}
        (temporary / CONFIG).write_text(json.dumps(kept | {"seal": seal(kept)}, indent=1) + "\n")
        if card is not None:
            (temporary / CARD).write_text(card, encoding="utf-8")
    return folder


def load(folder: str | Path) -> Saved:
    """Build the module of a saved folder and fill in its weights, on the CPU, in eval mode.

    Raises
    ------
    FileNotFoundError
        If the folder or one of its files is missing.
    RuntimeError
        If a file is damaged, if it is not the one that was saved (by its digest), if the model is a class of somebody's own whose module
        was not imported, or the weights do not fit the model that the config describes.
    """
    folder = Path(folder)
    recover(folder)
    config = _read_json(folder / CONFIG)
    _check_digests(folder, config)
    name, model_config = config.get("model"), config.get("model_config")
    naming.check_at_hand("model", str(name), models.MODELS, where=str(folder / CONFIG))
    if not naming.at_hand(name, models.MODELS) or not isinstance(name, str) or not isinstance(model_config, dict):
        known = ", ".join(sorted(models.MODELS))
        raise RuntimeError(
            f"{folder / CONFIG}: expected a model among {known} and its model_config, got {name!r} and {model_config!r}. "
            f"It was written by brainspeech {config.get('version')}, this is {__version__}."
        )
    module = models.build(name, **model_config)
    load_state(module, read_tensors(folder / WEIGHTS), where=str(folder / WEIGHTS))
    statistics = _read_json(folder / STATISTICS) if config.get("statistics") else None
    extra = read_tensors(folder / EXTRA) if (folder / EXTRA).exists() else {}
    return Saved(module.eval(), config, statistics, extra)


def seal(config: Mapping[str, Any]) -> str:
    """Compute the SHA-256 of a config, whatever the order and the layout of its entries."""
    plain = {key: value for key, value in config.items() if key != "seal"}
    return hashlib.sha256(json.dumps(json.loads(json.dumps(plain)), sort_keys=True).encode()).hexdigest()


def sha256(path: str | Path) -> str:
    """Compute the SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digests(folder: Path, config: Mapping[str, Any]) -> None:
    """Compare the files with the digests that were kept when they were saved; a folder of an earlier version has none."""
    if "seal" in config and config["seal"] != seal(config):
        raise RuntimeError(f"{folder / CONFIG} is damaged or was changed since it was saved. Save or copy the folder again.")
    kept = config.get("digests", {})
    if not isinstance(kept, dict) or not set(kept) <= set(FILES):
        raise RuntimeError(f"{folder / CONFIG} is damaged: its digests are not those of saved files. Save or copy it again.")
    for name, expected in kept.items():
        path = folder / name
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; a saved folder holds {', '.join(FILES[:2])}.")
        if (got := sha256(path)) != expected:
            raise RuntimeError(
                f"{path} is damaged or of another save: its SHA-256 is {got}, {CONFIG} says {expected}. Save or copy the folder again."
            )


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


# -------------------------------------------------------------------------------------------------------------------------- on a hub


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = MESSAGE,
    branch: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a saved or released folder as one commit, making the repository if there is none.

    Parameters
    ----------
    folder : path
        Only safetensors, JSON, markdown, HTML, PNG and the checksums in it are uploaded.
    repo_id : str
        ``owner/name``. The hub is that of the environment variable ``HF_ENDPOINT``, huggingface.co without one.
    private : bool
        Whether a repository that is made can be seen by its owner alone.
    token : str, optional
        Access token; without one that of ``hf auth login`` or ``HF_TOKEN``.
    commit_message : str
    branch : str, optional
        Where the commit is made; it has to be there. None: main.
    create_pr : bool
        Whether to ask for the commit by a pull request instead of making it.

    Returns
    -------
    str
        The commit's address, or that of the pull request.

    Raises
    ------
    PermissionError
        If nobody is logged in, or the token may not write there.
    ConnectionError
        If the hub cannot be reached.
    RuntimeError
        If the hub refuses for another reason.
    """
    from huggingface_hub import CommitOperationAdd

    folder, repo_id = Path(folder), _check_repo(repo_id)
    _check_digests(folder, _read_json(folder / CONFIG))  # nothing damaged leaves the house
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".") and (p.suffix in UPLOADED or p.name == SUMS))
    operations = [CommitOperationAdd(path_in_repo=p.relative_to(folder).as_posix(), path_or_fileobj=str(p)) for p in paths]
    with _said(repo_id, writing=True):
        api = _api(token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        made = api.create_commit(repo_id, operations, commit_message=commit_message, revision=branch, create_pr=create_pr)
        return str(made.pr_url if create_pr else made.commit_url)


def pull(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
) -> Path:
    """Download a saved folder into huggingface_hub's cache and give its place; what is there already is not fetched again.

    Files of the names that ``save`` writes are fetched and no others: safetensors, JSON and the card.

    Parameters
    ----------
    repo_id : str
        ``owner/name``.
    revision : str, optional
        Branch, tag or commit.
    token : str, optional
    cache_dir : path, optional
        In place of huggingface_hub's own.
    force_download : bool
        Whether to fetch again what is in the cache.
    local_files_only : bool
        Whether to take what is in the cache and ask no hub.

    Raises
    ------
    FileNotFoundError
        If there is no such repository or revision (or it is private and nobody is logged in), or it holds no saved folder.
    PermissionError
        If it is gated.
    ConnectionError
        If the hub cannot be reached and nothing is in the cache.
    """
    from huggingface_hub import snapshot_download

    with _said(_check_repo(repo_id), writing=False):
        place = snapshot_download(
            repo_id,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            endpoint=os.environ.get("HF_ENDPOINT"),
            allow_patterns=list(FILES),
            force_download=force_download,
            local_files_only=local_files_only,
        )
    if not (Path(place) / CONFIG).is_file():
        raise FileNotFoundError(f"{repo_id} holds no {CONFIG}: it is no model that brainspeech saved.")
    return Path(place)


def is_repo_id(name: str) -> bool:
    """Whether a text has the form ``owner/name``."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.startswith(".")


def _check_repo(repo_id: str) -> str:
    if not is_repo_id(repo_id):
        raise ValueError(f"A repository is owner/name, got {repo_id!r}.")
    return repo_id


def _api(token: str | None) -> Any:
    from huggingface_hub import HfApi

    # Read here: huggingface_hub itself reads the variable once, when it is imported.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)


@contextmanager
def _said(repo_id: str, *, writing: bool) -> Iterator[None]:
    """Say in one sentence what a hub's errors mean, and what to do."""
    from huggingface_hub import errors

    where = f"{repo_id} at {os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}"
    login = "Log in (hf auth login), or give token=."
    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise PermissionError(f"{where}: nobody is logged in. {login}") from error
    except errors.GatedRepoError as error:
        raise PermissionError(f"{where} is gated: ask for access on its page. {login}") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        if writing and _status(error) in (401, 403):
            raise PermissionError(f"{where}: nobody is logged in, or the token may not write there. {login}") from error
        raise FileNotFoundError(f"{where}: there is no such repository or revision, or it is private. Check the name. {login}") from error
    except errors.LocalEntryNotFoundError as error:
        said = f"{where} cannot be reached, and nothing of it is in the cache: check the network. ({_first(error)})"
        raise ConnectionError(said) from error
    except errors.HfHubHTTPError as error:
        if _status(error) in (401, 403):
            raise PermissionError(f"{where}: nobody is logged in, or the token may not do this. {login} ({_first(error)})") from error
        raise RuntimeError(f"{where}: the hub answered {_status(error)}: {_first(error)}") from error
    except Exception as error:
        # The library that carries the requests differs between versions of huggingface_hub; its errors tell by their names.
        if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.split(".")[0].startswith(("httpx", "requests")):
            raise ConnectionError(f"{where} cannot be reached: check the network. ({_first(error)})") from error
        raise


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _first(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


__all__ = [
    "CARD",
    "CONFIG",
    "EXTRA",
    "FILES",
    "RESERVED",
    "STATISTICS",
    "SUMS",
    "WEIGHTS",
    "Saved",
    "discard",
    "is_repo_id",
    "load",
    "load_state",
    "pull",
    "push",
    "read_tensors",
    "recover",
    "replacing",
    "save",
    "seal",
    "sha256",
    "write_tensors",
]
