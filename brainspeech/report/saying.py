"""How numbers and tables are said, in whatever part of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from brainspeech.figures import percent


def many(n: int, noun: str) -> str:
    """Write a number of things: ``1 seed``, ``1,200 windows``."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def say_p(value: float | None) -> str:
    """Write a p value, ``-`` where there is none."""
    if value is None:
        return "-"
    return f"p = {value:.3f}" if value >= 0.001 else f"p = {value:.1g}"


def say_entry(entry: Mapping[str, float | None], *, short: bool = False) -> str:
    """Write an accuracy in percent with its interval; ``short`` without the sign."""
    digits = 1
    value = percent(entry["value"], digits)
    if entry["low"] is None:
        return value
    limits = f"{100 * (entry['low'] or 0):.{digits}f}, {100 * (entry['high'] or 0):.{digits}f}"
    return f"{value[:-2] if short else value} [{limits}]"


def plain_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lay out cells in columns, the first to the left, the others to the right."""
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in [header, *body]
    ]
    return [lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]]


def markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Lay out cells as the lines of a markdown table."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in body]
    return [f"| {' | '.join(header)} |", f"| {' | '.join('---' for _ in header)} |", *(f"| {' | '.join(line)} |" for line in rows)]
