"""Figures of the signal: where the encoder looks, what its scores rest on, and the spectra of the recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from scipy.interpolate import RBFInterpolator

from .style import COLOURS, INK, MUTED, WIDTH, Picture, finish, make_figure, percent, percent_axis

PIXELS = 120  # of a scalp map along each axis
DARK, LIGHT = "#1b1b1b", "#f4f4f4"  # on a map, whose colours do not follow the page's
NOTED = 0.05  # p below which a part is marked
RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MOST_BARS = 16  # sensors in a list, where nothing says where they are
OCCLUSION = "By occlusion: set to 0, and what the scores of the right candidates lose above those of wrong ones."


def scalp(
    ax: Axes,
    positions: np.ndarray,
    values: np.ndarray,
    *,
    low: float,
    high: float,
    cmap: str,
    dots: str = DARK,
    marked: np.ndarray | None = None,
) -> Any:
    """Draw values (C,) between sensors at positions (C, 2), seen from above, nose up; those that are ``marked`` get a ring.

    Returns
    -------
    matplotlib image or path collection
        For a colour bar.
    """
    known = np.isfinite(positions).all(1) & np.isfinite(values)
    where, values = positions[known], values[known]
    reach = max(float(np.sqrt(((where - 0.5) ** 2).sum(1)).max()), 0.5) + 0.05
    ax.set_aspect("equal")
    ax.set_axis_off()
    ax.set_xlim(0.5 - reach - 0.09, 0.5 + reach + 0.09)
    ax.set_ylim(0.5 - reach - 0.05, 0.5 + reach + 0.13)
    outline: dict[str, Any] = {"color": MUTED, "linewidth": 1.2, "zorder": 3}
    ax.plot([0.42, 0.5, 0.58], [0.5 + reach - 0.006, 0.5 + reach + 0.1, 0.5 + reach - 0.006], **outline)
    for side in (-1, 1):
        turn = np.linspace(-np.pi / 2, np.pi / 2, 20)
        ax.plot(0.5 + side * (reach + 0.06 * np.cos(turn)), 0.5 + 0.12 * np.sin(turn), **outline)
    rim = ax.add_patch(Circle((0.5, 0.5), reach, fill=False, edgecolor=MUTED, linewidth=1.2, zorder=3))
    spread = where - where.mean(0)
    if len(where) >= 6 and np.linalg.matrix_rank(spread, tol=1e-3) == 2:
        axis = np.linspace(0.5 - reach, 0.5 + reach, PIXELS)
        grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        # A little smoothing, so that sensors at one place (the pairs of a helmet) do not contradict each other.
        between = RBFInterpolator(where, values, kernel="thin_plate_spline", smoothing=1e-3)(grid)
        image: Any = ax.imshow(
            np.clip(between, low, high).reshape(PIXELS, PIXELS),
            extent=(axis[0], axis[-1], axis[0], axis[-1]),
            origin="lower",
            cmap=cmap,
            vmin=low,
            vmax=high,
            interpolation="bilinear",
            zorder=1,
        )
        image.set_clip_path(rim)
        ax.plot(where[:, 0], where[:, 1], ".", color=dots, markersize=2.4, alpha=0.8, zorder=4)
    else:
        image = ax.scatter(where[:, 0], where[:, 1], c=values, cmap=cmap, vmin=low, vmax=high, s=60, zorder=4)
    if marked is not None:
        ring = where[marked[known]]
        ax.plot(ring[:, 0], ring[:, 1], "o", markerfacecolor="none", markeredgecolor=DARK, markersize=6, markeredgewidth=1.1, zorder=5)
    return image


def _positions(sensors: Mapping[str, Any]) -> np.ndarray:
    return np.array([[np.nan if v is None else v for v in p] for p in sensors["positions"]], float)


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in values], float)


def attention(attribution: Mapping[str, Any]) -> Picture | None:
    """Mean weight of each sensor over the heads of the spatial attention, and the heads that look most at one place."""
    found = attribution.get("attention")
    positions = _positions(attribution["sensors"])
    if not found or not np.isfinite(positions).all(1).any():
        return None
    names = attribution["sensors"]["names"]
    maps = [("mean of all heads", _numbers(found["mean"]))]
    maps += [(f"head {h['head'] + 1}", _numbers(h["weight"])) for h in found["heads"]]
    n_rows = (len(maps) + 1) // 2
    figure = Figure(figsize=(WIDTH, 2.25 * n_rows), layout="constrained")
    for ax, (title, weight) in zip(figure.subplots(n_rows, 2, squeeze=False).flat, maps, strict=False):
        top = float(np.nanmax(weight))
        scalp(ax, positions, weight, low=0, high=top, cmap="magma", dots=LIGHT)
        ax.set_title(f"{title}\nup to {top:.1f} x", fontsize=8.5, color=INK)
    for ax in figure.axes[len(maps) :]:
        ax.set_axis_off()
    order = np.argsort(-np.nan_to_num(maps[0][1]))
    best = [names[i] for i in order[:3]]
    return finish(
        figure,
        "attention",
        title=f"The encoder's attention rests most on {', '.join(best[:-1])} and {best[-1]}"
        if len(best) > 1
        else "The encoder's attention has one sensor to look at",
        caption=f"Weight of each sensor in the spatial attention, 1 x being as much as any: the mean of all {found['n_heads']} heads, "
        "averaged over recordings, and the heads that look most at one place; each map from 0 (dark) to its own largest. It says where the "
        "encoder looks, not what it finds there: later layers may weigh a head with either sign, or not at all.",
        alt=f"Scalp maps of the attention weights; the mean is largest at {', '.join(best)}, {maps[0][1][order[0]]:.1f} times as much "
        "as an even share.",
    )


def sensors(attribution: Mapping[str, Any]) -> Picture | None:
    """What is lost with each sensor."""
    part = attribution["sensors"]
    values, p, names = _numbers(part["value"]), _numbers(part["p"]), part["names"]
    if not np.isfinite(values).any():
        return None
    positions, marked = _positions(part), (p < NOTED) & np.isfinite(values)
    top = max(float(np.nanmax(np.abs(values))), 1e-9)
    together = part["regions"] < len(names)
    what = f"sensors (occluded in {part['regions']} regions of neighbours)" if together else "sensors"
    if np.isfinite(positions).all(1).any():
        figure, ax = make_figure(3.6)
        image = scalp(ax, positions, values, low=-top, high=top, cmap="RdBu_r", marked=marked)
        bar = figure.colorbar(image, ax=ax, shrink=0.75, pad=0.02)
        bar.outline.set_visible(False)
        percent_axis(bar.ax.yaxis, top)
        bar.set_label("share of the margin that is lost")
    else:
        order = np.argsort(-values)[:MOST_BARS][::-1]
        figure, ax = make_figure(0.8 + 0.24 * max(3, len(order)))
        _bars(ax, [names[i] for i in order], values[order], _numbers(part["limit"])[order], p[order])
    n, most = int(marked.sum()), int(np.nanargmax(values))
    title = (
        f"{n} of {len(names)} {what} carry evidence, the largest share at {names[most]}" if n else "No sensor alone carries the evidence"
    )
    return finish(
        figure,
        "sensors",
        title=title,
        caption=f"{OCCLUSION} Red: evidence is lost with the sensor. Blue: scores are better without it. Rings: more than chance "
        f"(p < {NOTED}, corrected by the maximum over sensors). Of two sensors that say the same neither is missed." + _basis(attribution),
        alt=f"Share of the score margin lost with each sensor; {n} of {len(names)} exceed chance, the largest is {names[most]} "
        f"with {percent(values[most])}.",
    )


def bands(attribution: Mapping[str, Any]) -> Picture | None:
    """What is lost with each frequency band."""
    part = attribution["bands"]
    values, limit, p = _numbers(part["value"]), _numbers(part["limit"]), _numbers(part["p"])
    if not np.isfinite(values).any():
        return None
    names = [f"{low:g}-{high:g} Hz" if low else f"below {high:g} Hz" for low, high in part["hertz"]]
    figure, ax = make_figure(0.9 + 0.3 * len(names))
    _bars(ax, names[::-1], values[::-1], limit[::-1], p[::-1])
    noted = [i for i in np.argsort(-values) if p[i] < NOTED]
    title = "No frequency band alone carries the evidence"
    if noted:
        title = f"The largest share of evidence is at {names[noted[0]]}: without it {percent(values[noted[0]], 0)} of the margin is lost"
        title = title.replace("at below", "below")
    return finish(
        figure,
        "bands",
        title=title,
        caption=f"{OCCLUSION} Bar: the share of the margin that is lost without the band, in all sensors at once; shares need not add up "
        f"to 100 %. Tick: what the largest band reaches by chance. Full colour: p < {NOTED}, corrected by the maximum over bands."
        + _basis(attribution),
        alt="Share of the score margin lost without each band: "
        + ", ".join(f"{n} {percent(v)}" for n, v in zip(names, values, strict=True))
        + ".",
    )


def lags(attribution: Mapping[str, Any]) -> Picture | None:
    """What is lost with the signal at each lag."""
    part = attribution["lags"]
    values, limit, p = _numbers(part["value"]), _numbers(part["limit"]), _numbers(part["p"])
    if not np.isfinite(values).any():
        return None
    x = 1000 * np.array(part["lag"])
    step = float(x[1] - x[0]) if len(x) > 1 else 50.0
    figure, ax = make_figure(2.8)
    main = COLOURS["encoder"]
    ax.axvline(0, color=MUTED, linewidth=0.8)
    colours = [main if q < NOTED else MUTED for q in p]
    ax.bar(x, values, width=0.8 * step, color=colours, alpha=0.85)
    ax.plot(x, limit, "_", color=INK, markersize=9, markeredgewidth=1.4)
    percent_axis(ax.yaxis, max(float(np.nanmax(np.abs(values))), 0.06))
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("lag of the brain after the sound, ms")
    ax.set_ylabel("share of the margin lost")
    noted = x[p < NOTED]
    where = f"{noted.min():.0f} ms" if len(noted) == 1 else f"{noted.min():.0f} to {noted.max():.0f} ms" if len(noted) else ""
    return finish(
        figure,
        "lags",
        title=f"The encoder reads the brain {where} after the sound" if where else "No lag alone carries the evidence",
        caption=f"What the estimate of a moment of sound loses without {step:.0f} ms of signal, by how long after the sound these are. "
        f"Tick: what the largest lag reaches by chance. Full colour: p < {NOTED}, corrected by the maximum over lags. An encoder sees no "
        "farther than its convolutions reach." + _basis(attribution),
        alt="Share of the score margin by lag; " + (f"lags above chance: {where}." if where else "no lag above chance."),
    )


def _bars(ax: Axes, names: Sequence[str], values: np.ndarray, limit: np.ndarray, p: np.ndarray) -> None:
    places = np.arange(len(names))
    ax.barh(places, values, height=0.62, color=[COLOURS["encoder"] if q < NOTED else MUTED for q in p], alpha=0.85)
    ax.plot(limit, places, "|", color=INK, markersize=11, markeredgewidth=1.4)
    ax.axvline(0, color=MUTED, linewidth=0.8)
    ax.set_yticks(places, names)
    ax.grid(axis="y", visible=False)
    percent_axis(ax.xaxis, max(float(np.nanmax(np.abs(values))), 0.06))
    ax.set_xlabel("share of the margin that is lost")


def _basis(attribution: Mapping[str, Any]) -> str:
    return f" {attribution['windows']} test windows of {attribution['stimuli']} segments, {attribution['permutations']} draws."


def spectrum(found: Mapping[str, Any]) -> Picture:
    """Power spectral density of every recording before and after preprocessing."""
    hertz = np.array(found["hertz"])
    before, after = (np.array([_numbers(v) for v in found[when].values()]) for when in ("before", "after"))
    uids, n = list(found["before"]), found["recordings"]
    figure, ax = make_figure(3.0)
    alpha = float(np.clip(3 / np.sqrt(len(uids)), 0.15, 0.9))
    ends: dict[str, tuple[np.ndarray, str]] = {"before": (before, MUTED), "after": (after, COLOURS["encoder"])}
    for when, (lines, tint) in ends.items():
        for k, line in enumerate(lines):
            ax.plot(
                hertz, 10**line, color=tint, linewidth=0.9, alpha=alpha, label=when if not k else None, zorder=3 if when == "after" else 2
            )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if t <= hertz[-1]]
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set_xlim(hertz[0], hertz[-1])
    # Where a filter leaves nothing there is nothing to see: eight decades are enough.
    top = float(np.nanmax([before, after] if before.shape == after.shape else before))
    ax.set_ylim(10 ** max(float(np.nanmin([np.nanmin(before), np.nanmin(after)])) - 0.2, top - 8), 10 ** (top + 0.3))
    ax.yaxis.set_major_formatter(lambda value, _: "10" + f"{np.log10(value):.0f}".translate(RAISED) if value > 0 else "")
    legend = ax.legend(loc="lower left", frameon=False, fontsize=8.5, handlelength=1.2)
    for text, (_, tint) in zip(legend.get_texts(), ends.values(), strict=True):
        text.set_color(tint)
    ax.set_xlabel("frequency, Hz")
    ax.set_ylabel(f"median over channels, {found['unit']}")
    with np.errstate(invalid="ignore"):
        change = np.array([np.median(c[np.isfinite(c)]) if np.isfinite(c).any() else -np.inf for c in (after - before).T])
    kept = hertz[change > -0.3]
    level = np.array([np.nanmedian(line) for line in before])
    apart = [uid for uid, value in zip(uids, level, strict=True) if abs(value - np.median(level)) > 1]
    said = f" More than ten times stronger or weaker than the median: {', '.join(apart[:6])}." if apart else ""
    shown = f" {len(uids)} of {n} are shown." if len(uids) < n else ""
    return finish(
        figure,
        "spectrum",
        title=f"Preprocessing keeps {kept.min():.2g} to {kept.max():.2g} Hz"
        if len(kept)
        else "Preprocessing keeps no frequency at its power",
        caption=f"Power spectral density of each of {n} recordings before and after preprocessing, median over its channels, up to 5 "
        "minutes. A line apart from the others is a recording to look at; a spike at 50 or 60 Hz and its multiples is the power line."
        + said
        + shown,
        alt=f"Spectra of {len(uids)} recordings before and after preprocessing on logarithmic axes, {hertz[0]:g} to {hertz[-1]:.0f} Hz.",
    )
