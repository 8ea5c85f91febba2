"""What a ladder of variants says: a table for the terminal, markdown, a page, figures, and their files."""

from __future__ import annotations

import html
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote

from brainspeech import figures
from brainspeech.figures import Picture, label, percent

from .comparison import say_difference, wrap, write_pages
from .ladder import LEVEL, Ladder, smallest_corrected
from .ladder_choice import VALID_K
from .page import document, inline, itemise, show, tabulate
from .words import NOTHING, many, markdown_table, plain_table, say_entry, say_p

HOLM = "p (Holm)"
METHODS = {
    "top-k": "How often the segment that was heard is among the k candidates nearest to the estimate, over all test windows and all seeds; "
    "in brackets the two-way bootstrap interval over subjects x blocks of the run's own report, which takes the fits as they are.",
    "sd": "Standard deviation of that accuracy over seeds, in percentage points.",
    "minus": "Difference from the row that is named, in percentage points, on the windows that both runs have, among the same candidates; "
    "in brackets the two-way bootstrap interval over subjects x blocks.",
    "windows": "Test windows that both runs have, out of those of the row that is compared with: the difference and the tests rest on "
    "these, each accuracy on all that its run has.",
    "of its own": "The same, out of those of the row itself.",
    "subjects there": "Subjects of these windows.",
    "reference there": "Accuracy of the row that is compared with on these windows.",
    "se": "Standard error of the difference over seeds, in percentage points: what the luck of the fits alone would do. A row that "
    "differs, but by less than twice se, is named at the top.",
    "more/less/same": "In how many subjects the accuracy is higher than, lower than and the same as in the row that is compared with.",
    "p subjects": "Two-sided Wilcoxon signed-rank test of the subjects' accuracies, each averaged over seeds: about other listeners to "
    "these stimuli. All subjects share the same few fits, so a lucky fit looks like a difference in all of them.",
    "p blocks": "Two-sided, the two runs swapped at random in each block of the test split, all subjects together: about other stimuli "
    "for these listeners.",
    "Holm": "The p before it, corrected for the number of rows that were tested (Holm 1979).",
    "chance": "k / N, in brackets N, the number of candidates.",
    "validation": f"Top-{VALID_K} accuracy on the validation split, among its own candidates, at the epoch that was kept (the lowest "
    "validation loss), mean over seeds and folds.",
}
CHOSEN = " A lag, a temperature or a variant is chosen by this column, never by the test split."


def ladder_table(ladder: Ladder) -> str:
    """Lay out the ladder as plain text for a terminal, warnings first."""
    header, body = test_cells(ladder)
    tested = {header[1], HOLM} if body else set()  # what the table of tests says, a few lines below
    sentences = [*(f"WARNING: {alarm}" for alarm in ladder.alarms), _headline(ladder), ladder.choice, *_identical(ladder)]
    parts = [
        wrap(sentences),
        plain_table(*_without(*main_cells(ladder), tested)),
        wrap(_same_candidates(ladder)),
        plain_table([name.partition(",")[0] if name.startswith("Holm,") else name for name in header], body) if body else [],  # 100 columns
        plain_table(*shared_cells(ladder)) if shared_cells(ladder)[1] else [],
        wrap([*_tested(ladder), *(f"not compared: {text}" for text in _not_compared(ladder))]),
        wrap(f"{name}: {text}" for name, text in _methods(ladder)),
        wrap(f"note: {text}" for text in _notes(ladder)),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _without(header: Sequence[str], body: Sequence[Sequence[str]], names: Container[str]) -> tuple[list[str], list[list[str]]]:
    """Leave columns out of a table."""
    kept = [i for i, name in enumerate(header) if name not in names]
    return [header[i] for i in kept], [[cells[i] for i in kept] for cells in body]


def write_ladder(ladder: Ladder, folder: str | os.PathLike) -> list[Path]:
    """Write ladder.json, ladder.md, ladder.html and the figures into a folder; each file appears whole or not at all."""
    folder = Path(folder)
    pictures = draw_ladder(ladder)
    links = _links(ladder, folder)
    markdown, page = _markdown(ladder, pictures, links), _page(ladder, pictures, links)
    return write_pages(folder, "ladder", values=asdict(ladder), markdown=markdown, page=page, pictures=pictures)


def _links(ladder: Ladder, folder: Path) -> dict[str, str]:
    """Give the address of each variant's report as seen from a folder, so that it holds where the folder is moved with its runs."""
    there = {label(row["name"]): Path(row["folder"]) / "report.html" for row in ladder.rows if row["folder"] and not row["missing"]}
    return {name: quote(Path(os.path.relpath(path, folder)).as_posix()) for name, path in there.items() if path.is_file()}


def draw_ladder(ladder: Ladder) -> list[Picture]:
    """Draw the ladder: differences, the curve where there is an axis, accuracies."""
    return figures.draw_ladder(ladder.rows, reference=ladder.reference, k=ladder.k, axis=ladder.axis, chosen=ladder.chosen)


# ---------------------------------------------------------------------------------------------------------------------------- cells


def main_cells(ladder: Ladder) -> tuple[list[str], list[list[str]]]:
    """Give the header and the rows of the table.

    Columns that nothing is known of are left out, and chance and the candidates where they are the same in all rows.
    """
    wide, *narrow = ladder.ks
    columns = {
        "variant": [label(row["name"]) for row in ladder.rows],
        f"{ladder.axis}": [NOTHING if row["x"] is None else f"{row['x']:g}" for row in ladder.rows],
        f"top-{wide}, %": [_accuracy(row, wide) for row in ladder.rows],
        "sd": [_deviation(row, wide) for row in ladder.rows],
        **{f"top-{k}, %": [_accuracy(row, k) for row in ladder.rows] for k in narrow},
        f"minus {label(ladder.reference)}": [_gain(row) for row in ladder.rows],
        HOLM: [_test(row, "subjects_test", "holm") for row in ladder.rows],
        "validation, %": [_validated(ladder, row) for row in ladder.rows],
        "chance (N), %": [_chance(row, wide) for row in ladder.rows],
        "published, %": [_published(row) if wide == VALID_K else NOTHING for row in ladder.rows],
    }
    if _same_candidates(ladder):
        del columns["chance (N), %"]
    kept = {name: cells for name, cells in columns.items() if set(cells) != {NOTHING}}
    return list(kept), [list(cells) for cells in zip(*kept.values(), strict=True)]


def test_cells(ladder: Ladder) -> tuple[list[str], list[list[str]]]:
    """Give the header and the rows of the table of tests."""
    body = []
    for row in ladder.rows:
        subjects = row["subjects_test"]
        if not subjects:
            continue
        error = row["difference"]["fit_error"]
        body.append(
            [
                label(row["name"]),
                _gain(row),
                NOTHING if error is None else f"{100 * error:.1f}",
                f"{subjects['better']}/{subjects['worse']}/{subjects['equal']}",
                *(_test(row, test, key) for test in ("subjects_test", "blocks_test") for key in ("p", "holm")),
            ]
        )
    header = [
        "variant",
        f"minus {label(ladder.reference)}",
        "se",
        "more/less/same",
        "p subjects",
        "Holm, subjects",
        "p blocks",
        "Holm, blocks",
    ]
    return _without(header, body, {"se"} if all(cells[2] == NOTHING for cells in body) else ())


def shared_cells(ladder: Ladder) -> tuple[list[str], list[list[str]]]:
    """Give the header and the rows of the table that says what the comparisons rest on; no rows where that is all windows of all."""
    first = ladder[ladder.reference]
    shared = [row for row in ladder.rows if row["subjects_test"] and row["difference"]["partly"]]
    body = [
        [
            label(row["name"]),
            f"{row['difference']['n_windows']:,} of {first['n_windows']:,}",
            f"{row['difference']['n_windows']:,} of {row['n_windows']:,}",
            f"{row['subjects_test']['n']} of {first['subjects']}",
            _points(row["difference"]["reference"]),
        ]
        for row in shared
    ]
    header = ["variant", "windows", "of its own", "subjects there", "reference there, %"]
    has_more = any(row["n_windows"] > row["difference"]["n_windows"] for row in shared)
    return _without(header, body, () if has_more else ("of its own",))


def _accuracy(row: Mapping[str, Any], k: int) -> str:
    return "no result" if row["missing"] else say_entry(row["accuracy"][f"top{k}"], short=True).removesuffix(" %")


def _chance(row: Mapping[str, Any], k: int) -> str:
    return NOTHING if row["missing"] else f"{_points(row['chance'][f'top{k}'])} ({row['n_candidates']:,})"


def _deviation(row: Mapping[str, Any], k: int) -> str:
    sd = None if row["missing"] else row["accuracy"][f"top{k}"]["sd"]
    return NOTHING if sd is None else f"{100 * sd:.1f}"


def _gain(row: Mapping[str, Any]) -> str:
    d = row["difference"]
    if d is None or "why" in d:
        return NOTHING
    return say_difference(d)


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
    among = f"among its best {ladder.k} candidates" if ladder.k > 1 else "as its first guess"
    limits = "" if entry["low"] is None else f" (interval {percent(entry['low'])} to {percent(entry['high'])})"
    text = f"{label(ladder.reference)} finds the segment that was heard {among}, out of {first['n_candidates']:,}, in "
    text += f"{percent(entry['value'])} of the windows{limits}; chance is {percent(first['chance'][key])}."
    if not ladder.compared:
        return text + " No variant could be compared with it."
    tested = [row for row in ladder.rows if row["subjects_test"]]
    clear = [row for row in tested if row["subjects_test"]["holm"] < LEVEL]
    below, above = ([label(r["name"]) for r in clear if sign * r["difference"]["value"] > 0] for sign in (-1, 1))
    lucky = [label(r["name"]) for r in clear if r["difference"]["beyond_fits"] is False]
    differ = {0: "none differs", 1: "1 differs"}.get(len(clear), f"{len(clear)} differ")
    where = ", each on the windows that both have" if shared_cells(ladder)[1] else ""
    text += (
        f" Of {many(ladder.compared, 'variant')} compared with it{where}, {differ} (p < {LEVEL:g} over subjects, after Holm's correction)"
    )
    parts = [f"{side} {', '.join(names)}" for side, names in (("below:", below), ("above:", above)) if names]
    text += f"; {'; '.join(parts)}." if parts else "."
    smallest = min(smallest_corrected(ladder.rows).values())
    if smallest > LEVEL:
        text += f" None can: with so few subjects no p here comes below {smallest:.2g} after the correction, whatever the difference."
    return text + (f" Within twice the standard error over seeds, so perhaps the luck of the fits: {', '.join(lucky)}." if lucky else "")


def _identical(ladder: Ladder) -> list[str]:
    """Say which rows are one result, whose tests would be a riddle."""
    return [
        f"Identical ranks in every window: {', '.join(map(label, names))}; what sets these rows apart changes nothing here, so a "
        "difference between them is exactly 0, with p = 1."
        for names in ladder.identical
    ]


def _same_candidates(ladder: Ladder) -> list[str]:
    """Say how many candidates there are and what chance is, where that is the same in all rows with a result."""
    there = [row for row in ladder.rows if not row["missing"]]
    if len({(row["n_candidates"], tuple(row["chance"].values())) for row in there}) > 1:
        return []
    chances = " and ".join(f"{percent(there[0]['chance'][f'top{k}'])} (top-{k})" for k in ladder.ks)
    return [f"All rows: {there[0]['n_candidates']:,} candidates, so chance is {chances}."]


def _tested(ladder: Ladder) -> list[str]:
    """Say how many subjects and blocks the tests are over, and how windows of other lengths were paired."""
    tested = [row for row in ladder.rows if row["subjects_test"]]
    over: dict[str, list[str]] = {}
    for row in tested:
        n, m = row["subjects_test"]["n"], row["blocks_test"]["n"]
        over.setdefault(f"{many(n, 'subject')} and {many(m, 'block')}", []).append(label(row["name"]))
    said = [what if len(over) == 1 else f"{what} ({', '.join(names)})" for what, names in over.items()]
    out = [f"Tests over {'; '.join(said)}."] if said else []
    if any(row["difference"]["by_beginning"] for row in tested):
        out.append("Windows of other lengths are paired by where they begin, and so are their candidates.")
    return out


def _methods(ladder: Ladder, *, limits: str = "in brackets") -> list[tuple[str, str]]:
    """Give what is said of each column that there is, under its name; ``limits`` says where an interval stands."""
    columns = {*main_cells(ladder)[0], *test_cells(ladder)[0], *(shared_cells(ladder)[0] if shared_cells(ladder)[1] else ()), "top-k"}
    methods = METHODS if ladder.chosen is None else METHODS | {"validation": METHODS["validation"] + CHOSEN}
    there = [(name, text) for name, text in methods.items() if any(c == name or c.startswith((f"{name} ", f"{name},")) for c in columns)]
    names = {"minus": f"minus {label(ladder.reference)}"}
    return [(names.get(name, name), text.replace("in brackets the two-way", f"{limits} the two-way")) for name, text in there]


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
    text = f"{sum(not row['missing'] for row in fitted)} of {many(len(fitted), 'variant')} with a result"
    if first["missing"]:
        return text
    parts = [many(first[key], noun) for key, noun in (("n_windows", "test window"), ("subjects", "subject"), ("blocks", "block"))]
    return f"{text}; {label(ladder.reference)}: {', '.join([*parts, many(len(first['seeds']), 'seed')])}"


def _changes(ladder: Ladder) -> list[list[str]]:
    """Give variant, constant, its value in the reference and in the variant, line by line."""
    return [[label(row["name"]), constant, *pair] for row in ladder.rows for constant, pair in row["changes"].items()]


def _seeds(ladder: Ladder, row: Mapping[str, Any]) -> str:
    """Say what each seed reached, where there are several."""
    each = [] if row["missing"] or row["kind"] == "chance" else row["accuracy"][f"top{ladder.k}"]["seeds"]
    if len(each) < 2:
        return ""
    said = ", ".join(f"{percent(value)} (seed {seed})" for seed, value in zip(row["seeds"], each, strict=True))
    return f"Top-{ladder.k}: {said}."


def _meanings(ladder: Ladder) -> list[tuple[str, str]]:
    """Say of each variant what it is, why it has no result, and what each seed reached."""
    out = []
    for row in ladder.rows:
        why = f"No result: {row['missing'].removesuffix('.')}." if row["missing"] else ""
        meaning = row["sentence"].removesuffix(".")
        parts = [meaning[:1].upper() + meaning[1:] + "." if meaning else "", why, _seeds(ladder, row)]
        out.append((label(row["name"]), " ".join(part for part in parts if part)))
    return out


LINKED = "The name of a variant leads to its report, which holds all of its seeds."
CHANGED = ("variant", "constant", "in the reference", "in the variant")
NOT_GIVEN = f"{NOTHING}: not given, so that the default holds."


def _below(ladder: Ladder) -> str:
    """Say what stands in the columns of the main table that there are."""
    header, _ = main_cells(ladder)
    parts = ["Accuracies and differences with their interval", "differences in percentage points"]
    parts[1:1] = ["sd over seeds, in points"] if "sd" in header else []
    parts += ["p by signed ranks over subjects, after Holm's correction"] if HOLM in header else []
    return "; ".join(parts) + ". What each column means is said under 'How to read the tables'."


# ---------------------------------------------------------------------------------------------------------------------------- pages


def _markdown(ladder: Ladder, pictures: Sequence[Picture], links: Mapping[str, str]) -> str:
    lines = [f"# {_title(ladder)}", "", _counts(ladder) + ".", ""]
    lines += [line for alarm in ladder.alarms for line in (f"> **Warning.** {alarm}", "")]
    lines += [line for text in (_headline(ladder), ladder.choice, *_identical(ladder)) for line in (text, "")]
    lines += [*markdown_table(*main_cells(ladder)), ""]
    lines += [" ".join([*_same_candidates(ladder), _below(ladder)]), ""]
    lines += [line for p in pictures for line in (f"![{p.alt}](figures/{p.name}.png)", "", p.caption, "")]
    header, body = test_cells(ladder)
    lines += ["## Tests", "", *(markdown_table(header, body) if body else ["Nothing could be compared."]), ""]
    lines += [*markdown_table(*shared_cells(ladder)), ""] if shared_cells(ladder)[1] else []
    lines += [line for text in _tested(ladder) for line in (text, "")]
    lines += [*(f"- Not compared: {text}" for text in _not_compared(ladder)), ""]
    lines += ["## How to read the tables", "", *(f"- {name}: {text}" for name, text in _methods(ladder)), ""]
    if _notes(ladder):
        lines += ["## Notes", "", *(f"- {text}" for text in _notes(ladder)), ""]
    lines += ["## What the variants are", ""]
    lines += [f"- {f'[{name}]({links[name]})' if name in links else name}: {text}" for name, text in _meanings(ladder)]
    changes = _changes(ladder)
    lines += ["", "## What each variant changes", ""]
    lines += [*markdown_table(CHANGED, changes), "", NOT_GIVEN] if changes else ["Nothing that the reports know of."]
    return "\n".join([*lines, ""])


def _page(ladder: Ladder, pictures: Sequence[Picture], links: Mapping[str, str]) -> str:
    e = html.escape
    header, body = test_cells(ladder)
    classes = {label(row["name"]): "chance" for row in ladder.rows if row["kind"] == "chance" or row["missing"]}
    below = " ".join([*_same_candidates(ladder), _below(ladder), *([LINKED] if links else [])])
    changes = _changes(ladder)
    return document(
        _title(ladder),
        [
            f'<p class="quiet">{e(_counts(ladder))}</p>',
            *(f'<div class="alarm" role="alert"><b>Warning</b>{inline(alarm)}</div>' for alarm in ladder.alarms),
            f'<p class="finding">{e(_headline(ladder))}</p>',
            *(f"<p>{e(text)}</p>" for text in (ladder.choice, *_identical(ladder))),
            tabulate(*main_cells(ladder), classes=classes | {label(ladder.reference): "lead"}, links=links),
            f'<p class="small">{e(below)}</p>',
            "<h2>Figures</h2>" + show(pictures),
            "<h2>Tests</h2>" + (tabulate(header, body, links=links) if body else "<p>Nothing could be compared.</p>"),
            tabulate(*shared_cells(ladder), links=links) if shared_cells(ladder)[1] else "",
            *(f'<p class="small">{e(text)}</p>' for text in _tested(ladder)),
            itemise([f"Not compared: {text}" for text in _not_compared(ladder)]),
            "<h2>How to read the tables</h2>" + _defined(_methods(ladder, limits="below it")),
            ("<h2>Notes</h2>" + itemise(_notes(ladder))) if _notes(ladder) else "",
            "<h2>What the variants are</h2>" + _defined(_meanings(ladder), links),
            "<h2>What each variant changes</h2>",
            tabulate(CHANGED, changes, words=True) if changes else "<p>Nothing that the reports know of.</p>",
            f'<p class="small">{e(NOT_GIVEN)}</p>' if changes else "",
        ],
    )


def _defined(pairs: Iterable[tuple[str, str]], links: Mapping[str, str] = MappingProxyType({})) -> str:
    """List terms and what they mean; a term with an address leads there."""
    e = html.escape
    linked = ((f'<a href="{e(links[name])}">{e(name)}</a>' if name in links else e(name), text) for name, text in pairs)
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{e(text)}</dd>" for name, text in linked) + "</dl>"
