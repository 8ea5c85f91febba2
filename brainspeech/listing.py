"""Many names in one sentence."""

from __future__ import annotations

from collections.abc import Iterable


def some(names: Iterable[str], most: int) -> str:
    """List the first names, and say how many more there are: ``a, b and 3 more``."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
