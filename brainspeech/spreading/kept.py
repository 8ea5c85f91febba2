"""The cache that workers have filled, in which nothing is made any more."""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np

from brainspeech.cache import Cache

# s until an entry that another machine has written must be seen here: network file systems remember for a minute that a file was missing.
PATIENCE = 90.0


class Kept(Cache):
    """A cache in which nothing is made: what is not there is an error.

    Parameters
    ----------
    root : path
    patience : float
        Seconds to wait for an entry that another machine has written.
    """

    def __init__(self, root: str | os.PathLike, patience: float = 0.0):
        super().__init__(root)
        self.patience = patience

    def get_or_make(self, kind: str, key: Any, make: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Open an entry.

        Raises
        ------
        Missing
            If it is not there.
        """
        end = time.monotonic() + self.patience
        while (found := self.get(kind, key)) is None:
            if time.monotonic() >= end:
                raise Missing(
                    f"A worker should have made {self.folder(kind, key)}, but it is not there. Do all workers use this cache folder, and "
                    "do they see the same files of the dataset, with the same times of change, and have the same version of brainspeech?"
                )
            time.sleep(1.0)
        return found


class Missing(RuntimeError):
    """An entry is not in the cache."""
