"""A small file, written whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

FULL = frozenset({errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)})


def put(path: Path, content: bytes) -> None:
    """Write a file so that it appears whole or not at all; one that stood there before is kept until then.

    Raises
    ------
    RuntimeError
        If it cannot be written, as on a full disk; nothing half-written is left.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            temporary = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before the content does
        temporary.chmod(0o644)  # a temporary file is private, what a run writes is not
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)  # else it counts as what is not free
        raise RuntimeError(_said(path, len(content), error)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _said(path: Path, size: int, error: OSError) -> str:
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    stands = f"The {path.name} that was there before is kept" if path.is_file() else f"There was no {path.name} before"
    advice = "Free some space" if error.errno in FULL else f"See that {path} is a file that can be written"
    return (
        f"Could not write {path} ({size / 1e6:.3g} MB): {error}. {shutil.disk_usage(folder).free / 1e6:.3g} MB are free. {stands}. "
        f"{advice} and give the same command again."
    )
