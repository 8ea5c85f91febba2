"""Figures of what was found: accuracies, ranks, subjects, scores, training, lag. Accuracies start at 0, chance is always drawn."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from brainspeech.evaluate import RetrievalReport

from .style import COLOURS, INK, MUTED, Picture, colour, finish, label, make_figure, percent, percent_axis, widest

MOST_NAMES = 24  # subjects with a name on the axis


def accuracy(report: RetrievalReport) -> Picture:
    """Top-k of every row with its interval, chance as a line."""
    k = widest(report)
    key, chance = f"top{k}", report.chance[f"top{k}"]
    names = list(report.rows)[::-1]
    figure, ax = make_figure(0.9 + 0.3 * len(names))
    ends = [report.rows[n][key]["high"] or report.rows[n][key]["value"] for n in names]
    for y, name in enumerate(names):
        entry = report.rows[name][key]
        analytic = name == "block_oracle"
        if entry["low"] is not None:
            ax.plot([entry["low"], entry["high"]], [y, y], color=colour(name), linewidth=2.6, alpha=0.45)
        ax.plot(entry["value"], y, "D" if analytic else "o", color=colour(name), markersize=5.5 if analytic else 7, clip_on=False)
        ax.annotate(percent(entry["value"]), (ends[y], y), (8, 0), textcoords="offset points", va="center", fontsize=8.5)
    ax.axvline(chance, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.4)
    ax.annotate(f"chance {percent(chance)}", (chance, len(names) - 0.35), (3, 0), textcoords="offset points", color=MUTED, fontsize=8)
    ax.set_yticks(range(len(names)), [label(n) for n in names])
    ax.set_ylim(-0.6, len(names) - 0.1)
    ax.set_xlim(0, max(*ends, chance) * 1.2)
    ax.set_xticks([tick for tick in ax.get_xticks() if tick <= 1 + 1e-9])
    ax.set_xlim(0, max(*ends, chance) * 1.2)
    ax.grid(axis="y", visible=False)
    percent_axis(ax.xaxis, max(*ends, chance))
    ax.set_xlabel(f"own segment among the {k} best of {report.n_candidates} candidates")
    lead = report.curves["lead"]
    value = report.rows[lead][key]["value"]
    return finish(
        figure,
        "accuracy",
        title=f"{label(lead).capitalize()}: top-{k} accuracy {percent(value)}, chance {percent(chance)}",
        caption=f"Dot: mean over all windows. Line: {report.methods['interval']}",
        alt=f"Top-{k} accuracy by row: " + ", ".join(f"{label(n)} {percent(report.rows[n][key]['value'])}" for n in report.rows) + ".",
    )


def rank_curve(report: RetrievalReport) -> Picture:
    """Fraction of windows among the k best for every k."""
    curve, lead = report.curves["rank"], report.curves["lead"]
    ks = np.array(curve["k"])
    k10 = int(np.argmin(np.abs(ks - 10)))
    figure, ax = make_figure(3.2)
    names = sorted(curve["rows"], key=lambda n: -curve["rows"][n][k10])
    ax.plot(ks, curve["chance"], color=MUTED, linestyle=(0, (1, 2)), linewidth=1.6, label="chance")
    for name in names[::-1]:
        control = report.rows[name]["control"]
        style: dict[str, Any] = {"linewidth": 2.8 if name == lead else 1.6, "alpha": 1 if name == lead or not control else 0.85}
        ax.plot(ks, curve["rows"][name], color=colour(name), linestyle="--" if name == "block_oracle" else "-", label=label(name), **style)
    handles, labels = ax.get_legend_handles_labels()
    key: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.02), "frameon": False, "fontsize": 8.5, "handlelength": 1.2}
    legend = ax.legend(handles[::-1], labels[::-1], **key)
    for text, name in zip(legend.get_texts(), [*names, ""], strict=True):
        text.set_color(colour(name) if name else MUTED)
    if len(ks) > 1:
        ax.set_xscale("log")
        ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if t < 0.6 * ks[-1]] + [int(ks[-1])]
        ax.set_xticks(ticks[:: 2 if len(ticks) > 9 else 1], [str(t) for t in ticks[:: 2 if len(ticks) > 9 else 1]])
        ax.minorticks_off()
        ax.set_xlim(1, ks[-1])
    ax.set_ylim(0, 1.02)
    percent_axis(ax.yaxis, 1)
    ax.set_xlabel("k best candidates")
    ax.set_ylabel("windows found")
    found = curve["rows"][lead]
    half = next((int(k) for k, v in zip(ks, found, strict=True) if v >= 0.5), int(ks[-1]))
    return finish(
        figure,
        "rank_curve",
        title=f"Half of the windows are found among the {half} best of {report.n_candidates} candidates"
        if half > 1
        else f"Half of the windows or more are found at first guess among {report.n_candidates} candidates",
        caption="How many windows have their own segment among the k best candidates. A row at chance lies on the dotted line.",
        alt=f"Fraction of windows found against k, log scale. {label(lead)} finds half of the windows with k = {half}; "
        f"guessing needs k = {report.n_candidates // 2}.",
    )


def per_subject(report: RetrievalReport) -> Picture:
    """Accuracy of every subject, sorted."""
    k, lead = widest(report), report.curves["lead"]
    chance = report.chance[f"top{k}"]
    entries = sorted(((part["rows"][lead][f"top{k}"], name) for name, part in report.per_subject.items()), key=lambda e: e[0]["value"])
    values = np.array([e["value"] for e, _ in entries])
    has_interval = all(e["low"] is not None for e, _ in entries)
    # with few draws the value may lie on the edge of its interval
    error = np.clip([[e["value"] - e["low"], e["high"] - e["value"]] for e, _ in entries], 0, None).T if has_interval else None
    top = max(chance, *([e["high"] for e, _ in entries] if has_interval else values))
    named = len(entries) <= MOST_NAMES
    figure, ax = make_figure(0.8 + 0.24 * max(len(entries), 3) if named else 3.0)
    bars: dict[str, Any] = {"color": colour(lead), "alpha": 0.8, "error_kw": {"ecolor": INK, "elinewidth": 1.1}}
    places = np.arange(len(entries))
    if named:
        ax.barh(places, values, height=0.62, xerr=error, **bars)
        ax.axvline(chance, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.6)
        ax.set_yticks(places, [name.rsplit("/", 1)[-1] for _, name in entries])
        ax.set_ylim(-0.6, len(entries) - 0.1 if len(entries) > 2 else 2)
        ax.annotate(f"chance {percent(chance)}", (chance, 1), (4, -2), xycoords=("data", "axes fraction"), textcoords="offset points")
        ax.set_xlim(0, top * 1.06)
        ax.grid(axis="y", visible=False)
        percent_axis(ax.xaxis, top)
        ax.set_xlabel(f"top-{k} accuracy")
    else:
        ax.bar(places, values, width=0.75, yerr=error, **bars)
        ax.axhline(chance, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.6)
        ax.annotate(f"chance {percent(chance)}", (0, chance), (0, 3), textcoords="offset points")
        ax.set_xticks([])
        ax.set_ylim(0, top * 1.06)
        ax.grid(axis="x", visible=False)
        percent_axis(ax.yaxis, top)
        ax.set_xlabel(f"{len(entries)} subjects, sorted")
        ax.set_ylabel(f"top-{k} accuracy")
    above = int((values > chance).sum())
    one = len(entries) == 1
    return finish(
        figure,
        "per_subject",
        title=f"The only subject reaches {percent(values[0])}; chance is {percent(chance)}"
        if one
        else f"{above} of {len(entries)} subjects lie above chance, from {percent(values[0])} to {percent(values[-1])}",
        caption=f"Top-{k} accuracy of the {label(lead)}"
        + (", whiskers by a bootstrap over each subject's blocks." if has_interval else "; one block, so no interval."),
        alt=f"Top-{k} accuracy by subject, from {percent(values[0])} to {percent(values[-1])}, chance {percent(chance)}.",
    )


def similarity(report: RetrievalReport, matrix: np.ndarray) -> Picture:
    """Mean scores of every true segment with every candidate."""
    figure, ax = make_figure(3.9)
    image = ax.imshow(matrix, cmap="magma", vmin=-2, vmax=4, interpolation="nearest", aspect="equal")
    bar = figure.colorbar(image, ax=ax, shrink=0.7, pad=0.02, ticks=[-2, 0, 2, 4])
    bar.outline.set_visible(False)
    bar.set_label("score, sd of its row")
    ax.grid(visible=False)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel("candidate, in order of time")
    ax.set_ylabel("true segment, in order of time")
    diagonal = np.diag(matrix)[np.isfinite(np.diag(matrix))]
    own = float(diagonal.mean()) if len(diagonal) else 0.0
    n, lead = len(matrix), report.curves["lead"]
    shown = f" {n} of {report.n_candidates} segments are shown, evenly spaced." if n < report.n_candidates else ""
    return finish(
        figure,
        "similarity",
        title=f"A segment's own candidate scores {own:.1f} standard deviations above the mean candidate",
        caption=f"Scores of the {label(lead)}, averaged over windows of the same segment, each row z-scored. A bright diagonal is the "
        "segment found; squares around it are blocks told apart; bright columns are candidates that attract everything (hubs)." + shown,
        alt=f"Matrix of scores, {n} true segments by {n} candidates; the diagonal is {own:.1f} standard deviations above the row mean.",
    )


def training(report: RetrievalReport, history: Mapping[str, Sequence[Mapping[str, Any]]]) -> Picture:
    """Losses by epoch: validation of every fit, training of the leading row."""
    lead = report.curves["lead"]
    fits = {name: epochs for name, epochs in history.items() if epochs}
    figure, ax = make_figure(3.0)
    best: list[int] = []
    ends: dict[str, tuple[float, float]] = {}
    low, high = np.inf, 0.0
    for name, epochs in fits.items():
        row = name.split(" (")[0]
        x = np.array([e["epoch"] for e in epochs]) + 1
        valid = np.array([e["valid_loss"] for e in epochs], float)
        main = row == lead
        ax.plot(x, valid, color=colour(row), linewidth=2.2 if main else 1.3, alpha=1 if len(fits) < 9 else 0.6, zorder=3 if main else 2)
        ends.setdefault(row, (x[-1], valid[-1]))
        shown = [valid]
        if main:
            train = np.array([e["train_loss"] for e in epochs], float)
            ax.plot(x, train, color=colour(row), linewidth=1.3, linestyle=(0, (3, 2)))
            at = int(np.nanargmin(valid))
            ax.plot(x[at], valid[at], "o", color=colour(row), markersize=6, zorder=4)
            best.append(int(x[at]))
            shown.append(train)
        low, high = min(low, *(float(np.nanmin(s)) for s in shown)), max(high, *(float(np.nanmax(s)) for s in shown))
    last = max(x for x, _ in ends.values())
    ax.set_xlim(1, max(last, 2) * 1.0)
    gap, y = (high - min(0, low)) * 0.062, -np.inf
    for row, (_, value) in sorted(ends.items(), key=lambda item: item[1][1]):
        y = max(value, y + gap)  # labels of lines that end together move apart
        ax.annotate(
            label(row), (1, y), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points", color=colour(row), va="center"
        )
    ax.set_ylim(min(0, low), max(high * 1.05, y + gap / 2))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("epoch")
    ax.set_ylabel("contrastive loss")
    when = f"epoch {best[0]}" if len(set(best)) == 1 else f"epochs {min(best)} to {max(best)}" if best else "-"
    return finish(
        figure,
        "training",
        title=f"The validation loss of the {label(lead)} is lowest at {when}" if best else "Validation losses by epoch",
        caption=f"Solid: validation loss. Dashed: training loss of the {label(lead)}. Dot: the weights that were kept."
        + (" One line per fold and seed." if len(fits) > len(ends) else ""),
        alt=f"Training and validation loss by epoch for {', '.join(label(r) for r in ends)}; lowest validation loss at {when}.",
    )


def lag(report: RetrievalReport) -> Picture:
    """Accuracy against the lag of the brain after the sound."""
    lag = report.curves["lag"]
    x, y = 1000 * np.array(lag["lag"]), np.array(lag["value"], float)
    is_accuracy = lag["metric"].startswith("top-")
    chance = report.chance.get(f"top{lag['metric'][4:].split()[0]}") if is_accuracy else None
    figure, ax = make_figure(2.9)
    main = COLOURS["ridge"]
    ax.axvspan(-25, 25, color=MUTED, alpha=0.16, linewidth=0)
    ax.annotate("0 ms:\nartefact", (0, 0.99), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=7.5, color=MUTED)
    if chance is not None:
        ax.axhline(chance, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.6)
        beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center", "fontsize": 8}
        ax.annotate(f"chance\n{percent(chance)}", (1, chance), (5, 0), color=MUTED, **beside)
    ax.plot(x, y, "o-", color=main, linewidth=2, markersize=4)
    top, peak = max(float(y.max()), chance or 0), lag["peak"]
    if peak is not None:
        at = int(np.argmax(y))
        ax.plot(x[at], y[at], "o", color=main, markersize=8)
        ax.annotate(f"{x[at]:.0f} ms", (x[at], y[at]), (0, 8), textcoords="offset points", ha="center", fontweight="bold", color=main)
    ax.set_ylim(min(0, float(y.min()) * 1.1), top * 1.28 if top > 0 else 1)
    if is_accuracy:
        percent_axis(ax.yaxis, top)
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("lag of the brain after the sound, ms")
    ax.set_ylabel(textwrap.fill(lag["metric"], 30))
    if peak is None:
        title = "No single lag stands out"
    elif lag["artefact"]:
        title = f"Decoding peaks at {1000 * peak:.0f} ms: an artefact, not a brain response"
    else:
        title = f"Decoding peaks when the brain is read {1000 * peak:.0f} ms after the sound"
        title = title if peak > 0 else f"Decoding peaks {-1000 * peak:.0f} ms before the sound, where no brain response can be"
    alarm = " This curve peaks there: suspect sound that leaks into the recording, or a wrong alignment." if lag["artefact"] else ""
    return finish(
        figure,
        "lag",
        title=title,
        caption="Decoding from the signal at one lag alone. A brain response takes tens of milliseconds, so a peak at 0 ms is an artefact."
        + alarm,
        alt=f"{lag['metric']} against lag from {x[0]:.0f} to {x[-1]:.0f} ms; "
        + (f"peak at {1000 * peak:.0f} ms." if peak is not None else "no peak."),
    )
