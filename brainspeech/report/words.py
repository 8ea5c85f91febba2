"""What a report says, in sentences, plain text and markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from brainspeech.evaluate import RetrievalReport
from brainspeech.figures import Picture, label, percent, widest

from . import decoded
from .saying import many, markdown_table, plain_table, say_entry, say_p

NOTHING = "-"
SIMPLER = ("ridge", "linear_clip")


def headline(report: RetrievalReport) -> str:
    """Say the result in a sentence or two."""
    k, lead = widest(report), report.curves["lead"]
    row = report.rows[lead]
    entry = row[f"top{k}"]
    among = f"its best {k} candidates" if k > 1 else "its first guess"
    text = (
        f"The {label(lead)} finds the segment that was heard among {among}, out of {report.n_candidates}, in "
        f"{percent(entry['value'])} of the windows"
    )
    if entry["low"] is not None:
        text += f" (interval {percent(entry['low'])} to {percent(entry['high'])})"
    text += f"; chance is {percent(report.chance[f'top{k}'])} ({say_p(row['p_above_chance'])})."
    if row["p_above_shuffled"] is not None:
        text += f" Against the same encoder fitted on shuffled pairs: {say_p(row['p_above_shuffled'])}."
    for name in () if lead in SIMPLER else SIMPLER:
        value = report.rows[name][f"top{k}"]["value"] if name in report.rows else 0.0
        if value > entry["value"]:
            text += f" The {label(name)}, a simpler model, finds more: {percent(value)}."
    return text


def counts(report: RetrievalReport) -> str:
    """Say how much was tested."""
    parts = [
        many(report.n_windows, "test window"),
        many(report.n_candidates, "candidate"),
        many(report.subjects, "subject"),
        many(report.blocks, "block"),
        many(report.folds, "fold"),
        many(len(report.seeds), "seed"),
    ]
    return ", ".join(parts)


def cells_of(report: RetrievalReport, *, disjoint: bool = False) -> tuple[list[str], list[list[str]]]:
    """Give the header and the rows of the main table, or of the one without overlapping candidates."""
    source: Mapping[str, Any] = report.disjoint if disjoint else {"rows": report.rows, "chance": report.chance}
    ks = sorted(int(key[3:]) for key in source["chance"] if key.startswith("top"))
    header = ["row", *(f"top-{k}, %" for k in ks), "median rank"]
    header += [] if disjoint else ["rank in block", "p > chance", "p > shuffled", "p in block"]
    body = []
    for name, row in source["rows"].items():
        cells = [label(name), *(say_entry(row[f"top{k}"], short=True).removesuffix(" %") for k in ks), f"{row['median_rank']:.4g}"]
        if not disjoint:
            cells += [
                f"{row['within_block_rank']:.1f}",
                *(say_p(row[p]).removeprefix("p = ") for p in ("p_above_chance", "p_above_shuffled", "p_within_block")),
            ]
        body.append(cells)
    n = (report.disjoint if disjoint else report.to_dict())["n_candidates"]
    chance = ["chance", *(percent(source["chance"][f"top{k}"])[:-2] for k in ks), f"{(n - 1) / 2:.4g}"]
    body.append(chance + ([] if disjoint else [f"{report.chance['within_block_rank']:.1f}", "-", "-", "-"]))
    return header, body


def table(report: RetrievalReport) -> str:
    """Lay out the main table as plain text, warnings first."""
    lines = [f"WARNING: {warning}" for warning in report.alarms]
    lines += [counts(report), "", *plain_table(*cells_of(report))]
    lines += ["", f"[low, high]: {report.methods['interval']}"]
    lines += [f"note: {warning}" for warning in report.warnings if warning not in report.alarms]
    return "\n".join(lines)


def dropped_cells(report: RetrievalReport) -> tuple[list[str], list[list[str]]]:
    """Give the header and the rows of the table of what was left out, and why."""
    body = []
    for reason, n in report.dropped.items():
        what, colon, why = reason.partition(": ")
        body.append([f"{n:,}", what, why] if colon else [f"{n:,}", "", what])
    return ["how many", "what", "why"], body


def leak_cells(report: RetrievalReport) -> tuple[list[str], list[list[str]]]:
    """Give the header and the rows of the table of channels that carry the sound itself."""
    flagged = report.curves.get("leaks", {}).get("flagged", [])
    body = [[leak["channel"], leak["recording"], leak["of"], f"{leak['z']:.1f}"] for leak in flagged]
    return ["channel", "recording", "follows", "standard deviations"], body


def leak_sentence(report: RetrievalReport) -> str:
    """Say whether a channel follows the sound at lag 0; empty where that was not looked at."""
    leaks = report.curves.get("leaks")
    if not leaks:
        return ""
    unchecked = f" {many(leaks['unchecked'], 'recording')} could not be compared with a sound." if leaks["unchecked"] else ""
    if not leaks["recordings"]:
        return "No recording could be compared with the sound's own waveform (the stimuli are feature tracks, or the windows too short)."
    n = len(leaks["flagged"])
    found = f"{n:,} of {leaks['channels']:,} channels" if n else f"None of {leaks['channels']:,} channels"
    return (
        f"{found} in {many(leaks['recordings'], 'recording')} {'follow' if n > 1 else 'follows'} the waveform or the envelope of the sound "
        f"at lag 0: looked for above {leaks['hertz']:g} Hz, at {leaks['limit']:.1f} standard deviations of circular shifts or more, higher "
        f"than anywhere else within 0.1 s.{unchecked}"
    )


def counted(report: RetrievalReport) -> list[str]:
    """Say which rows have ties or NaN; both count as misses."""
    return [
        f"`{name}`: {row[key]} windows with {what}, counted against the row"
        for name, row in report.rows.items()
        for key, what in (("n_ties", "ties"), ("n_nan", "NaN scores"))
        if row[key]
    ]


def markdown(report: RetrievalReport, pictures: Iterable[Picture] = ()) -> str:
    """Write the report as markdown."""
    lines = [f"# {report.title or 'Retrieval report'}", ""]
    lines += [line for warning in report.alarms for line in (f"> **Warning.** {warning}", "")]
    lines += [headline(report), "", counts(report) + ".", "", *markdown_table(*cells_of(report)), ""]
    lines += ["Accuracies in % [interval]; rank 0 is best. " + report.methods["interval"], ""]
    lines += [f"- `{name}`: {row['meaning']}" for name, row in report.rows.items() if row["meaning"]]
    lines += ["", *(f"- {text}" for name, text in report.methods.items() if name != "interval"), ""]
    d = report.disjoint
    lines += ["## Candidates that do not overlap", "", f"{d['n_candidates']} candidates, {d['n_windows']} windows.", ""]
    lines += [*markdown_table(*cells_of(report, disjoint=True)), "", "## Figures", ""]
    lines += [line for p in pictures for line in (f"![{p.alt}](figures/{p.name}.png)", "", p.caption, "")]
    notes = [w for w in report.warnings if w not in report.alarms]
    if notes:
        lines += ["## Notes", "", *(f"- {note}" for note in notes), ""]
    lines += decoded.markdown(report)
    if leak_sentence(report):
        lines += ["## Sensors and the sound", "", leak_sentence(report), ""]
        lines += [*markdown_table(*leak_cells(report)), ""] if leak_cells(report)[1] else []
    lines += ["## What was left out, and why", ""]
    lines += markdown_table(*dropped_cells(report)) if report.dropped else ["Nothing was left out."]
    lines += ["", *(f"- {text}" for text in counted(report))]
    if report.examples:
        lines += ["", "## What was heard, and what was found", ""]
        lines += markdown_table(
            ["rank", "heard", "five best candidates"],
            [[str(e["rank"]), e["heard"], " / ".join(_marked(c) for c in e["candidates"])] for e in report.examples],
        )
    lines += ["", "## Provenance", "", "```json", json.dumps(report.provenance, indent=1, ensure_ascii=False), "```", ""]
    return "\n".join(lines)


def _marked(candidate: Mapping[str, Any]) -> str:
    return f"**{candidate['text']}**" if candidate["correct"] else candidate["text"]
