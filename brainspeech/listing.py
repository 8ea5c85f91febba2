"""Many names in one sentence, and many sentences that are alike in one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

RECORDING = r"\S+/\S+: "  # how a note of one recording begins
NAMED = 5  # recordings that a note of several names
FILE = r"\S*sub-\S+"  # what names a recording once more, such as the name of its file


def some(names: Iterable[str], most: int) -> str:
    """List the first names, and say how many more there are: ``a, b and 3 more``."""
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def merged(notes: Iterable[str]) -> list[str]:
    """Put notes that differ in their recording and in numbers only into one, which says of how many recordings it is, and of which."""
    alike: dict[str, list[str]] = {}
    for note in dict.fromkeys(notes):
        named = re.match(RECORDING, note)
        form = re.sub(rf"{FILE}|\d+", "", note[named.end() :]) if named else note
        alike.setdefault(form, []).append(note)
    return [note for same in alike.values() for note in _one_of(same)]


def _one_of(same: Sequence[str]) -> Sequence[str]:
    """Let the one with the largest numbers of notes that are alike speak for all, if they are of several recordings."""
    names = list(dict.fromkeys(note.partition(": ")[0] for note in same))
    if len(names) == 1:
        return same
    speaker = max(same, key=lambda note: [float(number) for number in re.findall(r"\d+", re.sub(FILE, "", note.partition(": ")[2]))])
    others = [name for name in names if name != speaker.partition(": ")[0]]
    differ = " with other numbers or names" * (len({note.partition(": ")[2] for note in same}) > 1)
    many = f" ({len(same)} notes in all)" * (len(same) > len(names))
    return [f"{speaker.rstrip('.')}. The same{differ} in {len(others)} more{many}: {some(others, NAMED)}."]
