"""What a ladder of variants says: a table for the terminal, markdown, a page, figures, and their files."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from brainspeech import figures
from brainspeech.evaluate import plain
from brainspeech.figures import Picture, label, percent

from .files import put
from .ladder import LEVEL, Ladder
from .ladder_choice import VALID_K
from .page import document, itemise, show, tabulate
from .words import NOTHING, many, markdown_table, plain_table, say_entry, say_p

METHODS = {
    "Accuracies": "Means over all test windows and all seeds; in brackets the two-way bootstrap interval over subjects x blocks of the "
    "run's own report, which takes the fits as they are; sd is over seeds.",
    "Differences": "On the same windows and candidates, in percentage points; interval by the two-way bootstrap over subjects x blocks. "
    "The standard error over seeds, of the two rows' means, is what the luck of the fits alone would do.",
    "p, subjects": "Two-sided Wilcoxon signed-rank test of the subjects' accuracies, each averaged over seeds: about other listeners to "
    "these stimuli. All subjects share the same few fits, so a lucky fit looks like a difference in all of them: a difference within twice "
    "the standard error over seeds is named.",
    "p, blocks": "Two-sided, the two runs swapped at random in each block of the test split, all subjects together: about other stimuli "
    "for these listeners.",
    "Holm": "Corrected for the number of rows that were tested (Holm 1979), each test for itself.",
    "Validation": f"Top-{VALID_K} accuracy on the validation split, among its own candidates, at the epoch that was kept (the lowest "
    "validation loss), mean over seeds and folds. A lag, a temperature or a variant is chosen by this column, never by the test split.",
}


def ladder_table(ladder: Ladder) -> str:
    """Lay out the ladder as plain text, warnings first."""
    lines = [f"WARNING: {alarm}" for alarm in ladder.alarms]
    lines += [_headline(ladder), ladder.choice, "", *plain_table(*main_cells(ladder)), "", *plain_table(*test_cells(ladder))]
    lines += [f"not compared: {text}" for text in _not_compared(ladder)]
    lines += ["", *(f"{name}: {text}" for name, text in METHODS.items())]
    return "\n".join([*lines, *(f"note: {text}" for text in _notes(ladder))])


def write_ladder(ladder: Ladder, folder: str | os.PathLike) -> list[Path]:
    """Write ladder.json, ladder.md, ladder.html and the figures into a folder; each file appears whole or not at all."""
    folder = Path(folder)
    pictures = draw_ladder(ladder)
    files = {
        "ladder.json": (json.dumps(plain(asdict(ladder)), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode(),
        "ladder.md": _markdown(ladder, pictures).encode(),
        "ladder.html": _page(ladder, pictures).encode(),
        **{f"figures/{picture.name}.png": picture.png for picture in pictures},
    }
    for name, content in files.items():
        put(folder / name, content)
    return [folder / name for name in files]


def draw_ladder(ladder: Ladder) -> list[Picture]:
    """Draw the ladder: differences, the curve where there is an axis, accuracies."""
    return figures.draw_ladder(ladder.rows, reference=ladder.reference, k=ladder.k, axis=ladder.axis, chosen=ladder.chosen)


# ---------------------------------------------------------------------------------------------------------------------------- cells


def main_cells(ladder: Ladder) -> tuple[list[str], list[list[str]]]:
    """Give the header and the rows of the table; columns that nothing is known of are left out."""
    wide, *narrow = ladder.ks
    columns = {
        "variant": [label(row["name"]) for row in ladder.rows],
        f"{ladder.axis}": [NOTHING if row["x"] is None else f"{row['x']:g}" for row in ladder.rows],
        f"top-{wide}, %": [_accuracy(row, wide) for row in ladder.rows],
        "sd": [_deviation(row, wide) for row in ladder.rows],
        **{f"top-{k}, %": [_accuracy(row, k) for row in ladder.rows] for k in narrow},
        f"minus {label(ladder.reference)}": [_gain(row) for row in ladder.rows],
        "p (Holm)": [_test(row, "subjects_test", "holm") for row in ladder.rows],
        f"validation top-{VALID_K}, %": [_validated(ladder, row) for row in ladder.rows],
        "candidates": [NOTHING if row["n_candidates"] is None else f"{row['n_candidates']:,}" for row in ladder.rows],
        "chance, %": [NOTHING if row["missing"] else _points(row["chance"][f"top{wide}"]) for row in ladder.rows],
        "published, %": [_published(row) if wide == VALID_K else NOTHING for row in ladder.rows],
    }
    kept = {name: cells for name, cells in columns.items() if set(cells) != {NOTHING}}
    return list(kept), [list(cells) for cells in zip(*kept.values(), strict=True)]


def test_cells(ladder: Ladder) -> tuple[list[str], list[list[str]]]:
    """Give the header and the rows of the table of tests."""
    body = []
    for row in ladder.rows:
        subjects, blocks = row["subjects_test"], row["blocks_test"]
        if not subjects:
            continue
        error = row["difference"]["fit_error"]
        body.append(
            [
                label(row["name"]),
                _gain(row),
                NOTHING if error is None else f"{100 * error:.1f}",
                f"{subjects['better']} / {subjects['worse']} / {subjects['equal']} of {subjects['n']}",
                *(_test(row, "subjects_test", key) for key in ("p", "holm")),
                f"{blocks['n']}",
                *(_test(row, "blocks_test", key) for key in ("p", "holm")),
            ]
        )
    header = ["variant", "difference, points", "standard error over seeds", "subjects better / worse / equal"]
    return [*header, "p, subjects", "Holm", "blocks", "p, blocks", "Holm"], body


def _accuracy(row: Mapping[str, Any], k: int) -> str:
    return "no result" if row["missing"] else say_entry(row["accuracy"][f"top{k}"], short=True).removesuffix(" %")


def _deviation(row: Mapping[str, Any], k: int) -> str:
    sd = None if row["missing"] else row["accuracy"][f"top{k}"]["sd"]
    return NOTHING if sd is None else f"{100 * sd:.1f}"


def _gain(row: Mapping[str, Any]) -> str:
    d = row["difference"]
    if d is None or "why" in d:
        return NOTHING
    return f"{100 * d['value']:+.1f}" + ("" if d["low"] is None else f" [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]")


def _test(row: Mapping[str, Any], test: str, key: str) -> str:
    return NOTHING if row[test] is None else say_p(row[test][key]).removeprefix("p = ")


def _validated(ladder: Ladder, row: Mapping[str, Any]) -> str:
    if not row["validation"]:
        return NOTHING
    return _points(row["validation"]["value"]) + (" (chosen)" if row["name"] == ladder.chosen else "")


def _published(row: Mapping[str, Any]) -> str:
    entry = row["published"]
    if not entry:
        return NOTHING
    return _points(entry["value"]) + ("" if entry["sd"] is None else f" ± {100 * entry['sd']:.1f}")


def _points(value: float) -> str:
    return percent(value).removesuffix(" %")


# ------------------------------------------------------------------------------------------------------------------------ sentences


def _headline(ladder: Ladder) -> str:
    """Say what the reference reaches, and which variants differ from it."""
    first, key = ladder[ladder.reference], f"top{ladder.k}"
    if first["missing"]:
        return f"{label(ladder.reference)}, with which the others would be compared, has no result."
    entry = first["accuracy"][key]
    limits = "" if entry["low"] is None else f" (interval {percent(entry['low'])} to {percent(entry['high'])})"
    text = f"{label(ladder.reference)}: top-{ladder.k} {percent(entry['value'])}{limits}, chance {percent(first['chance'][key])}."
    if not ladder.compared:
        return text + " No variant could be compared with it."
    tested = [row for row in ladder.rows if row["subjects_test"]]
    clear = [row for row in tested if row["subjects_test"]["holm"] < LEVEL]
    below, above = ([label(r["name"]) for r in clear if sign * r["difference"]["value"] > 0] for sign in (-1, 1))
    lucky = [label(r["name"]) for r in clear if r["difference"]["beyond_fits"] is False]
    text += f" Of {many(ladder.compared, 'variant')} compared with it, {len(clear)} differ (p < {LEVEL:g} over subjects, Holm)"
    parts = [f"{side} {', '.join(names)}" for side, names in (("below:", below), ("above:", above)) if names]
    text += f"; {'; '.join(parts)}." if parts else "."
    return text + (f" Within twice the standard error over seeds, so perhaps the luck of the fits: {', '.join(lucky)}." if lucky else "")


def _not_compared(ladder: Ladder) -> list[str]:
    """Say which variants with a result could not be compared, and why."""
    return [
        f"{label(row['name'])}: {row['difference']['why']}"
        for row in ladder.rows
        if not row["missing"] and row["difference"] and "why" in row["difference"]
    ]


def _notes(ladder: Ladder) -> list[str]:
    published = any(row["published"] for row in ladder.rows) and ladder.source
    return [*ladder.warnings, *([f"Published: {ladder.source}."] if published else [])]


def _title(ladder: Ladder) -> str:
    return ladder.title or f"{len(ladder.rows)} variants side by side"


def _counts(ladder: Ladder) -> str:
    """Say how much stands behind the reference's row."""
    first = ladder[ladder.reference]
    fitted = [row for row in ladder.rows if row["kind"] == "fit"]
    text = f"{many(sum(not row['missing'] for row in fitted), 'variant')} of {len(fitted)} with a result"
    if first["missing"]:
        return text
    parts = [many(first[key], noun) for key, noun in (("n_windows", "test window"), ("subjects", "subject"), ("blocks", "block"))]
    return f"{text}; {label(ladder.reference)}: {', '.join([*parts, many(len(first['seeds']), 'seed')])}"


def _changes(ladder: Ladder) -> list[list[str]]:
    """Give variant, constant, its value in the reference and in the variant, line by line."""
    return [[label(row["name"]), constant, *pair] for row in ladder.rows for constant, pair in row["changes"].items()]


BELOW = (
    "Accuracies with their interval; sd over seeds; differences in percentage points, with their interval; p by signed ranks over "
    "subjects, after Holm's correction. Validation: at the best epoch of each fit (the lowest validation loss), mean over seeds."
)
CHANGED = ("variant", "constant", "reference", "here")


# ---------------------------------------------------------------------------------------------------------------------------- pages


def _markdown(ladder: Ladder, pictures: Sequence[Picture]) -> str:
    lines = [f"# {_title(ladder)}", "", _counts(ladder) + ".", ""]
    lines += [line for alarm in ladder.alarms for line in (f"> **Warning.** {alarm}", "")]
    lines += [_headline(ladder), "", ladder.choice, "", *markdown_table(*main_cells(ladder)), "", BELOW, ""]
    lines += [line for p in pictures for line in (f"![{p.alt}](figures/{p.name}.png)", "", p.caption, "")]
    header, body = test_cells(ladder)
    lines += ["## Tests", "", *(markdown_table(header, body) if body else ["Nothing could be compared."]), ""]
    lines += [f"- Not compared: {text}" for text in _not_compared(ladder)]
    lines += ["", *(f"- {name}: {text}" for name, text in METHODS.items()), ""]
    if _notes(ladder):
        lines += ["## Notes", "", *(f"- {text}" for text in _notes(ladder)), ""]
    lines += ["## What the variants are", "", *(f"- {name}: {text}" for name, text in _meanings(ladder)), ""]
    changes = _changes(ladder)
    lines += ["## What each variant changes", ""]
    lines += markdown_table(CHANGED, changes) if changes else ["Nothing that the reports know of."]
    return "\n".join([*lines, ""])


def _meanings(ladder: Ladder) -> list[tuple[str, str]]:
    """Give a sentence and the folder of each variant."""
    return [
        (label(row["name"]), ". ".join(part for part in (row["sentence"].removesuffix("."), row["folder"]) if part) or "no result")
        for row in ladder.rows
    ]


def _page(ladder: Ladder, pictures: Sequence[Picture]) -> str:
    e = html.escape
    header, body = test_cells(ladder)
    classes = {label(row["name"]): "chance" for row in ladder.rows if row["kind"] == "chance" or row["missing"]}
    meanings = "".join(f"<dt>{e(name)}</dt><dd>{e(text)}</dd>" for name, text in _meanings(ladder))
    methods = "".join(f"<dt>{e(name)}</dt><dd>{e(text)}</dd>" for name, text in METHODS.items())
    changes = _changes(ladder)
    return document(
        _title(ladder),
        [
            f'<p class="quiet">{e(_counts(ladder))}</p>',
            *(f'<div class="alarm" role="alert"><b>Warning</b>{e(alarm)}</div>' for alarm in ladder.alarms),
            f'<p class="finding">{e(_headline(ladder))}</p>',
            f"<p>{e(ladder.choice)}</p>",
            tabulate(*main_cells(ladder), classes=classes | {label(ladder.reference): "lead"}),
            f'<p class="small">{e(BELOW)}</p>',
            "<h2>Figures</h2>" + show(pictures),
            "<h2>Tests</h2>" + (tabulate(header, body) if body else "<p>Nothing could be compared.</p>"),
            itemise([f"Not compared: {text}" for text in _not_compared(ladder)]),
            f"<dl>{methods}</dl>",
            ("<h2>Notes</h2>" + itemise(_notes(ladder))) if _notes(ladder) else "",
            f"<h2>What the variants are</h2><dl>{meanings}</dl>",
            "<h2>What each variant changes</h2>",
            tabulate(CHANGED, changes, words=True) if changes else "<p>Nothing that the reports know of.</p>",
        ],
    )
