"""Which subjects a spec names: ``all``, ``published``, ``first:3``, or the dataset's own numbers such as ``1-5,7``."""

from __future__ import annotations

from collections.abc import Collection, Iterable

GRAMMAR = "all, first:N or numbers such as 1-5,7, or published where the paper's list is known"


def number(subject: str) -> int | None:
    """Read a subject's own number: 2 for ``sub-02``, 2002 for ``A2002``; None for a name without one."""
    digits = "".join(c for c in subject if c in "0123456789")
    return int(digits) if digits else None


def numbers(spec: str) -> set[int]:
    """Read numbers and ranges, both ends included: ``1-3,7`` is {1, 2, 3, 7}.

    Raises
    ------
    ValueError
        If the spec is neither, or a range runs backwards.
    """
    wanted: set[int] = set()
    for part in spec.split(","):
        low, dash, high = part.strip().partition("-")
        last = high if dash else low
        if not (low.isdecimal() and last.isdecimal()):
            raise ValueError(f"Subjects must be {GRAMMAR}; got {spec!r}.")
        if int(last) < int(low):
            raise ValueError(f"Subjects {part.strip()!r} runs backwards; write the smaller number first.")
        wanted |= set(range(int(low), int(last) + 1))
    return wanted


def select(names: Iterable[str], spec: str, *, published: Collection[int] | None = None) -> list[str]:
    """Keep the subjects that a spec names, sorted by name.

    Parameters
    ----------
    names : iterable of str
        The subjects there are, as the dataset calls them.
    spec : str
        ``all``; ``first:3`` in the order of the names; numbers and ranges ``1-5,7``; ``published``.
    published : collection of int, optional
        The numbers of the subjects that the paper used. Those that are not among ``names`` are left out.

    Raises
    ------
    ValueError
        If the spec cannot be read, names a subject that is not there, or is ``published`` where no such list is known.
    """
    subjects = sorted(set(names))
    if spec == "all":
        return subjects
    if spec.startswith("first:"):
        count = spec.removeprefix("first:")
        if not count.isdecimal() or int(count) < 1:
            raise ValueError(f"Subjects must be {GRAMMAR}; got {spec!r}.")
        return subjects[: int(count)]
    if spec == "published":
        if published is None:
            raise ValueError("subjects='published': no list of published subjects is known for this dataset; use all or numbers.")
        return [s for s in subjects if number(s) in published]
    wanted = numbers(spec)
    absent = wanted - {number(s) for s in subjects}
    if absent:
        raise ValueError(f"Subjects {sorted(absent)} are not in the dataset; it has {', '.join(subjects)}.")
    return [s for s in subjects if number(s) in wanted]
