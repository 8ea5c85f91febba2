"""Figures of a ladder of variants: differences from the reference, accuracies, and accuracy against an axis."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from .style import COLOURS, INK, MUTED, Picture, finish, label, make_figure, percent, percent_axis

NOTED = 0.05
VALID_K = 10  # what a fit validates by is top-10
MAIN, VALID = COLOURS["encoder"], COLOURS["block_oracle"]
DOTTED = (0, (1, 2))
MOST_TICKS = 9  # points of a curve that each have their number on the axis

Row = Mapping[str, Any]


def differences(rows: Sequence[Row], *, reference: str, k: int) -> Picture | None:
    """Difference of each variant from the reference with its interval; None where no variant could be compared.

    Parameters
    ----------
    rows : sequence of dict
        ``name``; ``difference``: None, ``why`` there is none, or ``value``, ``low``, ``high`` in fractions and ``beyond_fits``;
        ``subjects_test``: ``holm``.
    """
    shown = [row for row in rows if row["difference"] is not None]
    compared = [row for row in shown if "why" not in row["difference"]]
    if not compared:
        return None
    clear = [row for row in compared if row["subjects_test"]["holm"] < NOTED and row["difference"]["beyond_fits"] is not False]
    figure, ax = _rows_figure(shown)
    ax.axvline(0, color=INK, linewidth=1)
    beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8}
    for y, row in enumerate(shown):
        d = row["difference"]
        if "why" in d:
            ax.annotate("no result" if row["missing"] else "not comparable", (0, y), (4, 0), color=MUTED, **beside)
            continue
        tint = MAIN if row in clear else MUTED
        low, high = (100 * (d["value"] if d[end] is None else d[end]) for end in ("low", "high"))
        ax.plot([low, high], [y, y], color=tint, linewidth=2.6, alpha=0.45)
        ax.plot(100 * d["value"], y, "o", color=tint, markersize=7)
        ax.annotate(_short_p(row["subjects_test"]["holm"]), (1, y), (4, 0), xycoords=("axes fraction", "data"), **beside)
    ax.margins(x=0.12)
    ax.set_xlabel(f"top-{k} accuracy minus {_short(reference)}, points")
    most = max(clear, key=lambda row: abs(row["difference"]["value"]), default=None)
    return finish(
        figure,
        "differences",
        title=f"No variant differs clearly from {label(reference)}"
        if most is None
        else f"{label(most['name'])} differs most from {label(reference)}: {100 * most['difference']['value']:+.1f} points",
        caption=f"Dot: difference in top-{k} accuracy on the windows that both have, among the same candidates. Line: its interval. p: "
        "signed ranks over subjects, after Holm's correction. Blue: p below 0.05, and, with several seeds, a difference beyond twice the "
        "standard error over seeds.",
        alt=f"Difference in top-{k} accuracy from {label(reference)}, in points: "
        + ", ".join(f"{label(row['name'])} {100 * row['difference']['value']:+.1f}" for row in compared)
        + f"; {len(clear)} of {len(compared)} clear.",
    )


def accuracies(rows: Sequence[Row], *, k: int, chosen: str | None) -> Picture:
    """Accuracy of each variant with its interval, its seeds and chance.

    Parameters
    ----------
    rows : sequence of dict
        ``name``, ``missing``, ``accuracy``, ``chance`` (None where missing), ``published``.
    chosen : str or None
        The variant that validation chooses.
    """
    key = f"top{k}"
    figure, ax = _rows_figure(rows)
    ends = [0.0]
    published = [row for row in rows if row["published"]]
    for y, row in enumerate(rows):
        if row["published"]:
            ax.plot(row["published"]["value"], y + 0.28, "D", color=INK, markersize=4, markerfacecolor="none", zorder=4, clip_on=False)
            ends.append(row["published"]["value"])
        if row["missing"]:
            ax.annotate("no result", (0, y), (4, 0), textcoords="offset points", va="center", fontsize=8, color=MUTED)
            continue
        entry, guess = row["accuracy"][key], row["chance"][key]
        end = max(entry["high"] or entry["value"], guess, *entry["seeds"])
        ends.append(end)
        ax.plot([guess, guess], [y - 0.32, y + 0.32], color=MUTED, linestyle=(0, (1, 1)), linewidth=1.6)
        if row["kind"] == "chance":
            ax.annotate(percent(guess), (end, y), (8, 0), textcoords="offset points", va="center", fontsize=8.5, color=MUTED)
            continue
        if entry["low"] is not None:
            ax.plot([entry["low"], entry["high"]], [y, y], color=MAIN, linewidth=2.6, alpha=0.45)
        ax.plot(entry["value"], y, "o", color=MAIN, markersize=7, clip_on=False)
        if len(entry["seeds"]) > 1:
            ax.plot(entry["seeds"], [y - 0.22] * len(entry["seeds"]), "|", color=MAIN, markersize=5, alpha=0.8)
        text = percent(entry["value"]) + (" (chosen)" if row["name"] == chosen else "")
        ax.annotate(text, (end, y), (8, 0), textcoords="offset points", va="center", fontsize=8.5)
    ax.set_xlim(0, max(ends) * (1.35 if chosen else 1.22) or 1)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))  # so that 100 % is a tick
    ax.set_xticks([tick for tick in ax.get_xticks() if tick <= 1 + 1e-9])
    ax.set_xlim(0, max(ends) * (1.35 if chosen else 1.22) or 1)
    percent_axis(ax.xaxis, max(ends))
    ax.set_xlabel(f"top-{k} accuracy")
    values = [row["accuracy"][key]["value"] for row in rows if not row["missing"] and row["kind"] == "fit"]
    several = any(len(row["accuracy"][key]["seeds"]) > 1 for row in rows if not row["missing"])
    return finish(
        figure,
        "accuracies",
        title=f"Top-{k} accuracy of the variants: {percent(min(values))} to {percent(max(values))}",
        caption="Dot: mean over windows and seeds. Line: its interval. Dotted: chance."
        + (" Ticks above: each seed." if several else "")
        + (" Diamond: published." if published else "")
        + (" Chosen: by validation, not by this figure." if chosen else ""),
        alt=f"Top-{k} accuracy by variant: "
        + ", ".join(f"{label(row['name'])} {'no result' if row['missing'] else percent(row['accuracy'][key]['value'])}" for row in rows)
        + ".",
    )


def curve(rows: Sequence[Row], *, axis: str, k: int, chosen: str | None) -> Picture:
    """Accuracy against an axis with its interval, chance at each point, and validation where it is known.

    Parameters
    ----------
    rows : sequence of dict
        As for ``accuracies``, in order of ``x``.
    """
    key = f"top{k}"
    there = [row for row in rows if not row["missing"] and row["kind"] == "fit"]
    x = [row["x"] for row in there]
    values = [row["accuracy"][key]["value"] for row in there]
    guesses = [row["chance"][key] for row in there]
    figure, ax = make_figure(3.1)
    ax.plot(x, guesses, color=MUTED, linestyle=DOTTED, linewidth=1.6, marker="." if len(x) == 1 else None)
    _band(ax, there, key)
    ax.plot(x, values, "o-", color=MAIN, linewidth=2, markersize=5, zorder=3)
    for row in there:
        seeds = row["accuracy"][key]["seeds"]
        if len(seeds) > 1:
            ax.plot([row["x"]] * len(seeds), seeds, "_", color=MAIN, markersize=6, alpha=0.8)
    validated = [(row["x"], row["validation"]["value"]) for row in there if row["validation"] and k == VALID_K]
    if validated:
        ax.plot(*zip(*validated, strict=True), "s--", color=VALID, linewidth=1.3, markersize=3.5)
    tops = [max(values[i], guesses[i], there[i]["accuracy"][key]["high"] or 0) for i in range(len(there))] + [v for _, v in validated]
    _name_lines(
        ax,
        {"test": (values[-1], MAIN), "chance": (guesses[-1], MUTED)} | ({"validation": (validated[-1][1], VALID)} if validated else {}),
        max(tops),
    )
    if chosen is not None:
        at = next(row for row in there if row["name"] == chosen)
        y = at["validation"]["value"] if validated else at["accuracy"][key]["value"]
        ax.plot(at["x"], y, "s", color=VALID, markersize=8, zorder=4)
        ax.annotate("chosen", (at["x"], y), (0, 8), textcoords="offset points", ha="center", color=VALID, fontweight="bold", fontsize=8.5)
    ax.set_ylim(0, max(tops) * 1.15 or 1)
    _ticks(ax, x)
    percent_axis(ax.yaxis, max(tops))
    ax.grid(axis="x", visible=False)
    ax.set_xlabel(axis)
    ax.set_ylabel(f"top-{k} accuracy")
    absent = [f"{row['x']:g}" for row in rows if row["missing"]]
    varying = len({round(guess, 12) for guess in guesses}) > 1
    return finish(
        figure,
        "curve",
        title=f"Top-{k} accuracy by {axis.partition(', ')[0]}"
        if chosen is None
        else f"Validation chooses {_place(axis, next(row['x'] for row in there if row['name'] == chosen))}",
        caption="Solid: test accuracy, mean over windows and seeds. Band: its interval. Dotted: chance"
        + (", which changes with the number of candidates." if varying else ".")
        + (" Dashed: validation accuracy at the epoch that was kept, among validation's own candidates." if validated else "")
        + (f" No result at {', '.join(absent)}." if absent else ""),
        alt=f"Top-{k} test accuracy by {axis}: "
        + ", ".join(
            f"{row['x']:g} {percent(value)} (chance {percent(guess)})" for row, value, guess in zip(there, values, guesses, strict=True)
        )
        + ".",
    )


def _band(ax: Axes, there: Sequence[Row], key: str) -> None:
    """Fill between the intervals' ends; a line where there is one point, or where a neighbour has no interval."""
    known = [
        (row["x"], row["accuracy"][key]["low"], row["accuracy"][key]["high"]) for row in there if row["accuracy"][key]["low"] is not None
    ]
    if len(known) == len(there) > 1:
        x, low, high = zip(*known, strict=True)
        ax.fill_between(x, low, high, color=MAIN, alpha=0.16, linewidth=0)
    for x_, low_, high_ in known:
        ax.plot([x_, x_], [low_, high_], color=MAIN, linewidth=2.2, alpha=0.35)


def _name_lines(ax: Axes, ends: Mapping[str, tuple[float, str]], top: float) -> None:
    """Write the names of lines beside their ends; those that end together move apart."""
    gap, y = top * 0.075, -math.inf
    for name, (value, tint) in sorted(ends.items(), key=lambda item: item[1][0]):
        y = max(value, y + gap)
        ax.annotate(
            name, (1, y), (5, 0), xycoords=("axes fraction", "data"), textcoords="offset points", color=tint, va="center", fontsize=8.5
        )


def _ticks(ax: Axes, x: Sequence[float]) -> None:
    """Mark the points themselves, on a logarithmic axis where they span two decades."""
    if min(x) > 0 and max(x) / min(x) >= 30:
        ax.set_xscale("log")
    if len(x) <= MOST_TICKS and _apart(ax, x):
        ax.xaxis.set_major_locator(FixedLocator(list(x)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _apart(ax: Axes, x: Sequence[float]) -> bool:
    """Whether numbers at these points would not run into each other."""
    at = [math.log(v) for v in x] if ax.get_xscale() == "log" else list(x)
    return len(at) == 1 or min(b - a for a, b in itertools.pairwise(at)) > 0.07 * (at[-1] - at[0])


def _rows_figure(rows: Sequence[Row]) -> tuple[Figure, Axes]:
    figure, ax = make_figure(0.8 + 0.32 * len(rows))
    ax.set_yticks(range(len(rows)), [_short(row["name"]) for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
    return figure, ax


def _place(axis: str, x: float) -> str:
    """Write a point of an axis: lag 0.15 s."""
    name, _, unit = axis.partition(", ")
    return f"{name} {x:g} {unit}".rstrip()


def _short(name: str) -> str:
    """Cut a name to what fits beside an axis."""
    return textwrap.shorten(label(name), 26, placeholder="...") if " " in label(name) else name[-26:]


def _short_p(p: float) -> str:
    return f"p = {p:.3f}" if p >= 0.001 else f"p = {p:.1g}"
