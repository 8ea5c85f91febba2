"""Figures of several runs side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from .style import COLOURS, INK, MUTED, WIDTH, Picture, finish, percent, percent_axis

NOTED = 0.05


def forest(
    names: Sequence[str], entries: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]], chance: Sequence[float], *, k: int
) -> Picture:
    """Accuracy of each run with its interval, and below it the differences from the first run.

    Parameters
    ----------
    names : sequence of str
        Of the runs, the first being what the others are compared with.
    entries : sequence of dict
        ``value``, ``low``, ``high`` of each run's leading row.
    differences : sequence of dict
        Of each run but the first: ``value``, ``low``, ``high``, ``p``; or ``why`` there is none.
    chance : sequence of float
    """
    n = len(names)
    shown = [textwrap.shorten(name, 26, placeholder="...") if " " in name else name[-26:] for name in names]
    pairs = [(name, d) for name, d in zip(shown[1:], differences, strict=True) if "why" not in d]
    heights = [0.8 + 0.3 * n] + ([0.9 + 0.3 * len(pairs)] if pairs else [])
    figure = Figure(figsize=(WIDTH, sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), 1, gridspec_kw={"height_ratios": heights}, squeeze=False)[:, 0]
    main, ax = COLOURS["encoder"], axes[0]
    ends = []
    for y, (entry, guess) in enumerate(zip(entries, chance, strict=True)):
        ax.plot([guess, guess], [y - 0.32, y + 0.32], color=MUTED, linestyle=(0, (1, 1)), linewidth=1.6)
        if entry["low"] is not None:
            ax.plot([entry["low"], entry["high"]], [y, y], color=main, linewidth=2.6, alpha=0.45)
        ax.plot(entry["value"], y, "o", color=main, markersize=7)
        ends.append(max(entry["high"] or entry["value"], guess))
        ax.annotate(percent(entry["value"]), (ends[-1], y), (8, 0), textcoords="offset points", va="center", fontsize=8.5)
    ax.set_yticks(range(n), shown)
    ax.set_ylim(n - 0.4, -0.6)
    ax.set_xlim(0, max(ends) * 1.22)
    ax.set_xticks([tick for tick in ax.get_xticks() if tick <= 1])
    ax.set_xlim(0, max(ends) * 1.22)
    ax.grid(axis="y", visible=False)
    percent_axis(ax.xaxis, max(ends))
    ax.set_xlabel(f"top-{k} accuracy")
    if pairs:
        _draw_differences(axes[1], pairs)
        axes[1].set_xlabel(f"difference from {shown[0]}, percentage points")
    best = max(range(n), key=lambda i: entries[i]["value"])
    clear = [name for name, d in pairs if d["p"] < NOTED]
    return finish(
        figure,
        "forest",
        title=f"{names[best]} is highest, with {percent(entries[best]['value'])} top-{k}",
        caption="Dot: accuracy of the run's leading row. Line: its interval. Dotted: chance."
        + (" Below: differences on the same windows and candidates, blue where p < 0.05." if pairs else ""),
        alt=f"Top-{k} accuracy by run: "
        + ", ".join(f"{name} {percent(entry['value'])}" for name, entry in zip(names, entries, strict=True))
        + (f"; {len(clear)} of {len(pairs)} differ from {names[0]}." if pairs else "; none can be compared window by window."),
    )


def _draw_differences(ax: Any, pairs: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    ax.axvline(0, color=INK, linewidth=1)
    for y, (_, d) in enumerate(pairs):
        tint = COLOURS["encoder"] if d["p"] < NOTED else MUTED
        low, high = (100 * (d["value"] if d[end] is None else d[end]) for end in ("low", "high"))
        ax.plot([low, high], [y, y], color=tint, linewidth=2.6, alpha=0.45)
        ax.plot(100 * d["value"], y, "o", color=tint, markersize=7)
        p = f"p = {d['p']:.3f}" if d["p"] >= 0.001 else f"p = {d['p']:.1g}"
        ax.annotate(p, (1, y), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center", fontsize=8)
    ax.margins(x=0.12)
    ax.set_yticks(range(len(pairs)), [name for name, _ in pairs])
    ax.set_ylim(len(pairs) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)
