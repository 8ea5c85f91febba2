"""A content-addressed store of arrays on disk.

An entry is a folder named after the hash of its key (config and identity of the input). It holds one ``.npy`` per array, opened as a
memory map, and ``entry.json`` with the key, the shapes and the values that are not arrays. An entry is written under a temporary name and
renamed when complete, so a killed process leaves no half entry, two processes may make the same entry at once, and nothing has ever
to be deleted by hand: a changed config or a changed file has another hash.

entry.json also has the CRC-32 of each array and of itself. Opening an entry checks entry.json, and the arrays' sizes; the numbers in them
are checked by ``Cache.verify`` only, since that reads all of them (about 4 GB a second), where opening reads none.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ENTRY = "entry.json"

# Seconds after which a temporary folder is taken for that of a killed process.
STALE = 86_400.0


def digest(key: Any) -> str:
    """Hash a JSON-able key; the order of dict entries does not matter."""
    text = json.dumps(key, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_identity(path: str | os.PathLike) -> str:
    """Identify the present content of a file, or of all files of a folder, by name, size and time of change, without reading it."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return digest([[str(f.relative_to(path.parent)), f.stat().st_size, f.stat().st_mtime_ns] for f in files])


class Verified(NamedTuple):
    """What ``Cache.verify`` found: entries that are whole, those of earlier versions that have no checksum, and the damaged ones."""

    n_whole: int
    n_unchecked: int
    damaged: list[Path]


def open_cache(cache: Cache | str | os.PathLike | None) -> Cache:
    """Give the cache that is given, or that of a folder; None: the folder BRAINSPEECH_CACHE, or else ~/.cache/brainspeech."""
    if isinstance(cache, Cache):
        return cache
    return Cache(cache or os.environ.get("BRAINSPEECH_CACHE") or Path.home() / ".cache" / "brainspeech")


class Cache:
    """Store of arrays under a folder, made when first written to.

    Parameters
    ----------
    root : path
        The folder. Entries of other versions of the package may stand in it.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = Path(root)

    def folder(self, kind: str, key: Any) -> Path:
        """Where the entry of a key is, or would be."""
        name = digest(key)
        return self.root / kind / name[:2] / name

    def get(self, kind: str, key: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Open an entry as (memory-mapped arrays, values); None if there is none that is whole."""
        return _open(self.folder(kind, key))

    def get_or_make(
        self, kind: str, key: Any, make: Callable[[], tuple[Mapping[str, np.ndarray], Mapping[str, Any]]]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Open an entry, or make it with ``make() -> (arrays, values)`` and open it.

        Raises
        ------
        RuntimeError
            If the entry cannot be written (a full disk, no permission); nothing half-written is left.
        """
        found = self.get(kind, key)
        if found is not None:
            return found
        arrays, values = make()
        folder = self.folder(kind, key)
        self._write(folder, key, arrays, values)
        found = _open(folder)
        if found is None:
            raise RuntimeError(f"The cache entry {folder} was written but cannot be read back; check the disk.")
        return found

    def entries(self) -> list[Path]:
        """List the folders of all entries."""
        return sorted(path.parent for path in self.root.glob(f"*/??/*/{ENTRY}") if not path.parent.name.startswith("."))

    def verify(self, folders: Iterable[Path] | None = None, *, remove: bool = False) -> Verified:
        """Read every number of entries and compare it with what was written: a disk can change one without changing a size.

        Parameters
        ----------
        folders : iterable of path, optional
            All entries by default.
        remove : bool
            Move damaged entries out of the way, so that the next run makes them again.
        """
        n_whole, n_unchecked, damaged = 0, 0, []
        for folder in self.entries() if folders is None else folders:
            state = _check(folder)
            n_whole += state is True
            n_unchecked += state is None
            if state is False:
                damaged.append(folder)
                if remove:
                    _discard(folder)
        return Verified(n_whole, n_unchecked, damaged)

    def _write(self, folder: Path, key: Any, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        temporary = _temporary(folder)
        path = temporary
        try:
            temporary.mkdir(parents=True)
            _sweep(folder)
            shapes, sums = {}, {}
            for name, array in arrays.items():
                path = temporary / f"{name}.npy"
                array = np.ascontiguousarray(array).reshape(np.shape(array))
                with open(path, "wb") as file:
                    np.save(file, array, allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())  # a rename may reach the disk before the content does
                shapes[name] = [list(array.shape), str(array.dtype)]
                sums[name] = _crc(array)
            entry = {"key": key, "arrays": shapes, "values": dict(values), "crc32": sums}
            path = temporary / ENTRY
            path.write_text(json.dumps({**entry, "crc32_entry": _crc_entry(entry)}, indent=1, allow_nan=False))
            _rename(temporary, folder)
        except OSError as error:
            needed, free = sum(array.nbytes for array in arrays.values()), _free(self.root)
            raise RuntimeError(
                f"Could not write the cache entry {folder} ({path.name}): {error}. It needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are "
                "free. What is in the cache already is kept. Free some space and give the same command again, or put the cache elsewhere "
                "(--cache DIR)."
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _temporary(folder: Path) -> Path:
    """Name a folder beside an entry that no other process uses."""
    return folder.parent / f".{folder.name[:12]}-{uuid.uuid4().hex[:12]}"


def _sweep(folder: Path) -> None:
    """Remove what killed processes left of this entry."""
    for left in folder.parent.glob(f".{folder.name[:12]}-*"):
        with contextlib.suppress(OSError):  # another process swept it first
            if time.time() - left.stat().st_mtime > STALE:
                shutil.rmtree(left, ignore_errors=True)


def _rename(temporary: Path, folder: Path) -> None:
    """Put a finished entry in its place; the first of two processes wins, a damaged entry gives way."""
    try:
        temporary.rename(folder)
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if _open(folder) is not None:
        return
    _discard(folder)
    try:
        temporary.rename(folder)
    except OSError:
        if _open(folder) is None:
            raise


def _discard(folder: Path) -> None:
    """Remove an entry in one step."""
    damaged = _temporary(folder)
    with contextlib.suppress(FileNotFoundError):  # another process moved it away first
        folder.rename(damaged)
    shutil.rmtree(damaged, ignore_errors=True)


def _free(path: Path) -> int:
    """Bytes that are free where a path is, or would be."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _crc(array: np.ndarray) -> int:
    """Checksum of an array's numbers; three times as fast as SHA-256, and nobody forges a cache of their own."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _crc_entry(entry: Mapping[str, Any]) -> int:
    rest = {name: value for name, value in entry.items() if name != "crc32_entry"}
    return zlib.crc32(json.dumps(json.loads(json.dumps(rest)), sort_keys=True).encode())


def _check(folder: Path) -> bool | None:
    """Whether an entry is what was written; None if it has no checksums."""
    found = _open(folder)
    if found is None:
        return False
    sums = json.loads((folder / ENTRY).read_text()).get("crc32")
    return None if sums is None else all(_crc(array) == sums.get(name) for name, array in found[0].items())


def _open(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    try:
        entry = json.loads((folder / ENTRY).read_text())
        if "crc32_entry" in entry and entry["crc32_entry"] != _crc_entry(entry):
            return None
        arrays = {}
        for name, (shape, dtype) in entry["arrays"].items():
            array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            if list(array.shape) != shape or str(array.dtype) != dtype:
                return None
            arrays[name] = array
        return arrays, entry["values"]
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError):
        return None
