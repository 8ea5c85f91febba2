"""Figures of what is decoded: words, repeated presentations, features that go along with being decoded well."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from brainspeech.evaluate import RetrievalReport

from .style import COLOURS, INK, MUTED, Picture, colour, finish, label, make_figure, percent, percent_axis, widest

GROUPS = {"all": "all windows", "seen": "word in training", "unseen": "word not in training"}
NOTED = 0.05


def draw_decoded(report: RetrievalReport) -> list[Picture]:
    """Draw what ``curves["decoded"]`` has data for."""
    found: Mapping[str, Any] = report.curves.get("decoded") or {}
    pictures = []
    if "groups" in found.get("words", {}):
        pictures.append(words(report, found["words"]))
    if found.get("repeats"):
        pictures.append(repeats(report, found["repeats"]))
    if any("r" in entry for entry in found.get("regression", {}).get("sets", {}).values()):
        pictures.append(regression(found["regression"]))
    return pictures


def words(report: RetrievalReport, found: Mapping[str, Any]) -> Picture:
    """Top-k accuracy of the word, for all windows and by whether training had it, with what constant answers reach."""
    ks = sorted(int(key[3:]) for key in found["chance"])
    k = max([k for k in ks if k < found["vocabulary"]], default=ks[0])
    key, chance, main = f"top{k}", found["chance"][f"top{k}"], colour(report.curves["lead"])
    groups = [(GROUPS[name], group) for name, group in found["groups"].items() if group["windows"]][::-1]
    figure, ax = make_figure(1.5 + 0.42 * len(groups))
    ends = []
    for y, (_, group) in enumerate(groups):
        entry, frequent = group["sum"][key], group["frequent"][key]
        if entry["low"] is not None:
            ax.plot([entry["low"], entry["high"]], [y, y], color=main, linewidth=2.6, alpha=0.45)
        ax.plot(entry["value"], y, "o", color=main, markersize=7, zorder=3, clip_on=False)
        ax.plot(frequent, y, "D", color=COLOURS["constant"], markersize=5.5, clip_on=False)
        ends.append(max(entry["high"] or entry["value"], frequent))
        ax.annotate(percent(entry["value"]), (ends[-1], y), (8, 0), textcoords="offset points", va="center", fontsize=8.5)
    top = max(*ends, chance)
    ax.axvline(chance, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.4)
    ax.annotate(f"chance {percent(chance)}", (chance, len(groups) - 0.4), (3, 0), textcoords="offset points", color=MUTED, fontsize=8)
    ax.set_yticks(range(len(groups)), [f"{name}\n{group['windows']:,} windows" for name, group in groups])
    ax.set_ylim(-0.6, len(groups) - 0.1)
    ax.set_xlim(0, top * 1.22)
    ax.set_xticks([tick for tick in ax.get_xticks() if tick <= 1 + 1e-9])
    ax.set_xlim(0, top * 1.22)
    ax.grid(axis="y", visible=False)
    percent_axis(ax.xaxis, top)
    ax.set_xlabel(f"word among the {k} best of {found['vocabulary']:,}")
    value, frequent = (found["groups"]["all"][name][key] for name in ("sum", "frequent"))
    return finish(
        figure,
        "decoded_words",
        title=f"The word is among the {k} best of {found['vocabulary']:,} in {percent(value['value'])} of the windows",
        caption="Dot: probabilities of the candidates that share a word, added; line: its interval. "
        f"Diamond: the same {k} words for every window, those that are right most often.",
        alt=f"Top-{k} accuracy of words: "
        + ", ".join(f"{name} {percent(group['sum'][key]['value'])}" for name, group in groups[::-1])
        + f"; constant answers {percent(frequent)}, chance {percent(chance)}.",
    )


def repeats(report: RetrievalReport, found: Mapping[str, Any]) -> Picture:
    """Accuracy against the number of presentations whose scores are averaged."""
    k, lead = widest(report), report.curves["lead"]
    key, n = f"top{k}", found["presentations"]
    x = np.arange(1, n + 1)
    entries = [entry[key] for entry in found["averaged"]]
    values = np.array([entry["value"] for entry in entries])
    alone = np.array([entry[key] for entry in found["alone"]])
    chance = report.chance[key]
    figure, ax = make_figure(2.8)
    main = colour(lead)
    if all(entry["low"] is not None for entry in entries):
        ax.fill_between(x, [e["low"] for e in entries], [e["high"] for e in entries], color=main, alpha=0.18, linewidth=0)
    ax.plot(x, values, "o-", color=main, linewidth=2, markersize=6)
    ax.plot(x, alone, "o", color=INK, markersize=5, fillstyle="none")
    ax.axhline(chance, color=MUTED, linestyle=(0, (1, 2)), linewidth=1.6)
    ax.annotate(
        f"chance {percent(chance)}", (1, chance), (-4, 3), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right"
    )
    top = max(chance, float(alone.max()), *(entry["high"] or entry["value"] for entry in entries))
    ax.set_ylim(0, top * 1.1)
    ax.set_xlim(0.8, n + 0.2)
    ax.set_xticks(x)
    percent_axis(ax.yaxis, top)
    ax.grid(axis="x", visible=False)
    ax.set_xlabel("presentations of the segment to the subject")
    ax.set_ylabel(f"top-{k} accuracy")
    return finish(
        figure,
        "decoded_repeats",
        title=f"Averaged over {n} presentations, top-{k} accuracy goes from {percent(values[0])} to {percent(values[-1])}",
        caption=f"Line: scores averaged over the first r presentations, {found['pairs']:,} pairs of subject and segment, the same for "
        "every r; shaded: interval. Rings: each presentation alone.",
        alt=f"Top-{k} accuracy against presentations: "
        + ", ".join(f"{r} {percent(v)}" for r, v in zip(x.tolist(), values.tolist(), strict=True))
        + f"; chance {percent(chance)}.",
    )


def regression(found: Mapping[str, Any]) -> Picture:
    """R of each set of features, with its null distribution."""
    entries = {name: entry for name, entry in found["sets"].items() if "r" in entry}
    names = list(entries)[::-1]
    clear = [name for name in entries if entries[name]["p_holm"] < NOTED]
    figure, ax = make_figure(1.0 + 0.34 * len(names))
    for y, name in enumerate(names):
        entry = entries[name]
        tint = COLOURS["encoder"] if name in clear else MUTED
        ax.plot([entry["low"], entry["high"]], [y, y], color=MUTED, linewidth=7, alpha=0.3, solid_capstyle="butt")
        ax.plot(entry["r"], y, "o", color=tint, markersize=7)
        p = f"p = {entry['p_holm']:.3f}" if entry["p_holm"] >= 0.001 else f"p = {entry['p_holm']:.1g}"
        ax.annotate(p, (1, y), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center", fontsize=8)
    ax.axvline(0, color=INK, linewidth=1)
    ax.set_yticks(range(len(names)), [label(name) for name in names])
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.margins(x=0.1)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("R, predicted and observed log-odds of held-out stimuli")
    said = ", ".join(label(name) for name in clear)
    return finish(
        figure,
        "decoded_regression",
        title=f"How well a stimulus is decoded goes along with: {said}"
        if clear
        else "No set of word features goes along with being decoded well",
        caption=f"Dot: R, blue where p < {NOTED} after Holm's correction. Grey: 95 % of R with blocks exchanged. {found['stimuli']:,} "
        f"stimuli of {found['blocks']} blocks.",
        alt="R by set of features: " + ", ".join(f"{label(n)} {entries[n]['r']:.2f} (p {entries[n]['p_holm']:.2g})" for n in entries) + ".",
    )
