"""RetrievalReport -> report.json, report.md, report.html and figures/, and back.

The page holds everything it needs: its style, its figures as SVG, no script, no link, nothing from the network.
"""

from __future__ import annotations

import html
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from brainspeech import figures
from brainspeech.evaluate import RetrievalReport, plain
from brainspeech.figures import Picture, label, percent, widest

SIMILARITY = "similarity.npy"
HISTORY = "history.json"
History = Mapping[str, Sequence[Mapping[str, Any]]]


def write(report: RetrievalReport, folder: str | os.PathLike, *, history: History | None = None) -> list[Path]:
    """Write the report, its pages and its figures into a folder; each file appears whole or not at all.

    Parameters
    ----------
    history : mapping of str to list of dict, optional
        Epochs of each fit, for the training curves; kept as history.json.

    Returns
    -------
    list of Path
        What was written.
    """
    folder = Path(folder)
    pictures = figures.draw(report, history)
    files = {
        "report.json": (json.dumps(report.to_dict(), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode(),
        "report.md": markdown(report, pictures).encode(),
        "report.html": page(report, pictures).encode(),
        HISTORY: (json.dumps(plain(history or {}), allow_nan=False) + "\n").encode(),
        **{f"figures/{picture.name}.png": picture.png for picture in pictures},
    }
    paths = []
    for name, content in files.items():
        _put(folder / name, content)
        paths.append(folder / name)
    if report.similarity is not None:
        path = folder / "figures" / SIMILARITY
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", suffix=".npy", delete=False) as file:
            np.save(file, report.similarity, allow_pickle=False)
        os.replace(file.name, path)
        paths.append(path)
    return paths


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        file.write(content)
    Path(file.name).chmod(0o644)  # a temporary file is private, a report is not
    os.replace(file.name, path)


def load(folder: str | os.PathLike) -> RetrievalReport:
    """Read the report of a run folder.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If report.json is not a report.
    """
    path = Path(folder) / "report.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: the run has not come to its report. Run: brainspeech evaluate {folder}")
    similarity = path.parent / "figures" / SIMILARITY
    return RetrievalReport.from_dict(
        json.loads(path.read_text(encoding="utf-8")), np.load(similarity, allow_pickle=False) if similarity.is_file() else None
    )


def load_history(folder: str | os.PathLike) -> dict[str, list[dict[str, Any]]]:
    """Read the epochs of each fit that ``write`` kept; empty if there are none."""
    path = Path(folder) / HISTORY
    return json.loads(path.read_text()) if path.is_file() else {}


# ------------------------------------------------------------------------------------------------------------------------ what is said


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
    text += f"; chance is {percent(report.chance[f'top{k}'])} ({_p(row['p_above_chance'])})."
    if row["p_above_shuffled"] is not None:
        text += f" Against the same encoder fitted on shuffled pairs: {_p(row['p_above_shuffled'])}."
    return text


def counts(report: RetrievalReport) -> str:
    """Say how much was tested."""
    parts = [
        _many(report.n_windows, "test window"),
        _many(report.n_candidates, "candidate"),
        _many(report.subjects, "subject"),
        _many(report.blocks, "block"),
        _many(report.folds, "fold"),
        _many(len(report.seeds), "seed"),
    ]
    return ", ".join(parts)


def _many(n: int, noun: str) -> str:
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return f"p = {value:.3f}" if value >= 0.001 else f"p = {value:.1g}"


def _entry(entry: Mapping[str, float | None], *, short: bool = False) -> str:
    digits = 1
    value = percent(entry["value"], digits)
    if entry["low"] is None:
        return value
    limits = f"{100 * (entry['low'] or 0):.{digits}f}, {100 * (entry['high'] or 0):.{digits}f}"
    return f"{value[:-2] if short else value} [{limits}]"


def _cells(report: RetrievalReport, *, disjoint: bool = False) -> tuple[list[str], list[list[str]]]:
    """Give the header and the rows of the main table, or of the one without overlapping candidates."""
    source: Mapping[str, Any] = report.disjoint if disjoint else {"rows": report.rows, "chance": report.chance}
    ks = sorted(int(key[3:]) for key in source["chance"] if key.startswith("top"))
    header = ["row", *(f"top-{k}, %" for k in ks), "median rank"]
    header += [] if disjoint else ["rank in block", "p > chance", "p > shuffled", "p in block"]
    body = []
    for name, row in source["rows"].items():
        cells = [label(name), *(_entry(row[f"top{k}"], short=True).removesuffix(" %") for k in ks), f"{row['median_rank']:.4g}"]
        if not disjoint:
            cells += [
                f"{row['within_block_rank']:.1f}",
                *(_p(row[p]).removeprefix("p = ") for p in ("p_above_chance", "p_above_shuffled", "p_within_block")),
            ]
        body.append(cells)
    n = (report.disjoint if disjoint else report.to_dict())["n_candidates"]
    chance = ["chance", *(percent(source["chance"][f"top{k}"])[:-2] for k in ks), f"{(n - 1) / 2:.4g}"]
    body.append(chance + ([] if disjoint else [f"{report.chance['within_block_rank']:.1f}", "-", "-", "-"]))
    return header, body


def table(report: RetrievalReport) -> str:
    """Lay out the main table as plain text, warnings first."""
    header, body = _cells(report)
    widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
    lines = [f"WARNING: {warning}" for warning in report.alarms]
    lines += [counts(report), ""]
    for line in [header, *body]:
        lines.append(
            "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        )
        if line is header:
            lines.append("-" * (sum(widths) + 2 * len(widths) - 2))
    lines += ["", f"[low, high]: {report.methods['interval']}"]
    lines += [f"note: {warning}" for warning in report.warnings if warning not in report.alarms]
    return "\n".join(lines)


def _counted(report: RetrievalReport) -> list[str]:
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
    lines += [headline(report), "", counts(report) + ".", "", *_markdown_table(*_cells(report)), ""]
    lines += ["Accuracies in % [interval]; rank 0 is best. " + report.methods["interval"], ""]
    lines += [f"- `{name}`: {row['meaning']}" for name, row in report.rows.items() if row["meaning"]]
    lines += ["", *(f"- {text}" for name, text in report.methods.items() if name != "interval"), ""]
    d = report.disjoint
    lines += ["## Candidates that do not overlap", "", f"{d['n_candidates']} candidates, {d['n_windows']} windows.", ""]
    lines += [*_markdown_table(*_cells(report, disjoint=True)), "", "## Figures", ""]
    lines += [line for p in pictures for line in (f"![{p.alt}](figures/{p.name}.png)", "", p.caption, "")]
    notes = [w for w in report.warnings if w not in report.alarms]
    if notes:
        lines += ["## Notes", "", *(f"- {note}" for note in notes), ""]
    lines += ["## Left out and counted", ""]
    lines += [f"- {n:,} {reason}" for reason, n in report.dropped.items()] or ["- nothing was left out"]
    lines += [f"- {text}" for text in _counted(report)]
    if report.examples:
        lines += ["", "## What was heard, and what was found", ""]
        lines += _markdown_table(
            ["rank", "heard", "five best candidates"],
            [[str(e["rank"]), e["heard"], " / ".join(_marked(c) for c in e["candidates"])] for e in report.examples],
        )
    lines += ["", "## Provenance", "", "```json", json.dumps(report.provenance, indent=1, ensure_ascii=False), "```", ""]
    return "\n".join(lines)


def _marked(candidate: Mapping[str, Any]) -> str:
    return f"**{candidate['text']}**" if candidate["correct"] else candidate["text"]


def _markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in body]
    return [f"| {' | '.join(header)} |", f"| {' | '.join('---' for _ in header)} |", *(f"| {' | '.join(line)} |" for line in rows)]


# -------------------------------------------------------------------------------------------------------------------------- the page

CSS = """
:root { color-scheme: light dark; --paper: #fdfdfd; --card: #ffffff; --ink: #1f2832; --muted: #5c6773; --line: #e2e6ea;
  --accent: #2f6fde; --alarm: #a32626; --alarm-paper: #fdeeee; --good: #1c7c4a; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --card: #1b2027; --ink: #e6e9ed; --muted: #9aa5b1; --line: #303841;
  --accent: #7aa7f2; --alarm: #ff9d9d; --alarm-paper: #3a1d20; --good: #6cc997; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 16px 64px; }
h1 { font-size: clamp(1.35rem, 1rem + 1.6vw, 1.9rem); line-height: 1.2; margin: 0 0 4px; text-wrap: balance; }
h2 { font-size: 1.2rem; margin: 44px 0 10px; }
h3 { font-size: 1rem; line-height: 1.35; margin: 0 0 10px; text-wrap: balance; }
p { margin: 0 0 12px; max-width: 72ch; }
.quiet, figcaption, .small { color: var(--muted); font-size: .875rem; }
.finding { font-size: 1.1rem; margin-top: 18px; }
.alarm { background: var(--alarm-paper); color: var(--alarm); border-left: 4px solid var(--alarm); border-radius: 6px; padding: 12px 16px;
  margin: 16px 0; }
.alarm b { display: block; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; background: var(--card); margin: 12px 0; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 8px 12px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border-top: 0; color: var(--muted); font-weight: 600; }
tbody th, th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
tbody th { font-weight: 600; }
tr.lead td, tr.lead th { color: var(--accent); font-weight: 600; }
tr.chance td, tr.chance th { color: var(--muted); }
.limits { color: var(--muted); font-weight: 400; display: block; font-size: .8rem; }
.words td, .words th { white-space: normal; text-align: left; min-width: 150px; }
.words td:first-child, .words th:first-child { min-width: 56px; width: 56px; }
.words ol { margin: 0; padding-left: 1.3em; }
.words .right { color: var(--good); font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px; align-items: start; }
figure { margin: 0; padding: 16px; border: 1px solid var(--line); border-radius: 10px; background: var(--card); min-width: 0; }
@media (max-width: 600px) { figure { padding: 12px 8px; } figure h3, figcaption { padding: 0 6px; } }
figure svg { display: block; width: 100%; height: auto; max-width: 560px; margin: 0 auto 10px; }
dl { margin: 0; max-width: 80ch; } dt { font-weight: 600; } dd { margin: 0 0 8px; color: var(--muted); }
ul { padding-left: 1.2em; margin: 0 0 12px; max-width: 80ch; }
details { border: 1px solid var(--line); border-radius: 10px; background: var(--card); padding: 10px 14px; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.45; }
"""


def page(report: RetrievalReport, pictures: Iterable[Picture] = ()) -> str:
    """Write the report as one page that needs nothing else."""
    e = html.escape
    title = report.title or "Retrieval report"
    d = report.disjoint
    notes = [w for w in report.warnings if w not in report.alarms]
    left_out = [f"{n:,} {reason}" for reason, n in report.dropped.items()] or ["Nothing was left out."]
    meanings = "".join(f"<dt>{e(label(n))}</dt><dd>{e(row['meaning'])}</dd>" for n, row in report.rows.items() if row["meaning"])
    methods = "".join(f"<dt>{e(METHODS.get(name, name))}</dt><dd>{e(text)}</dd>" for name, text in report.methods.items())
    parts = [
        f"<h1>{e(title)}</h1>",
        f'<p class="quiet">{e(counts(report))}</p>',
        *(f'<div class="alarm" role="alert"><b>Warning</b>{e(warning)}</div>' for warning in report.alarms),
        f'<p class="finding">{e(headline(report))}</p>',
        _table(report),
        '<p class="small">Accuracies in % over all windows, with their interval below; rank 0 is best. Ties count as misses.</p>',
        "<h2>Figures</h2>",
        '<div class="figures">',
        *(f"<figure><h3>{e(p.title)}</h3>{p.svg}<figcaption>{e(p.caption)}</figcaption></figure>" for p in pictures),
        "</div>",
        _examples(report),
        "<h2>Candidates that do not overlap</h2>",
        f"<p>Windows overlap, so a near miss may share most of its sound with the right answer. Here candidates are thinned until no two "
        f"share a moment: {d['n_candidates']} candidates, {d['n_windows']} windows.</p>",
        _table(report, disjoint=True),
        f"<h2>What the rows are</h2><dl>{meanings}</dl>",
        f"<h2>How it was tested</h2><dl>{methods}</dl>",
        ("<h2>Notes</h2>" + _list(notes)) if notes else "",
        "<h2>Left out and counted</h2>" + _list([*left_out, *_counted(report)]),
        "<h2>Provenance</h2><details><summary>Configuration, versions, commit</summary>"
        f"<pre>{e(json.dumps(report.provenance, indent=2, ensure_ascii=False))}</pre></details>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{e(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(p for p in parts if p)
        + "\n</main>\n</body>\n</html>\n"
    )


METHODS = {
    "interval": "Intervals",
    "p_above_chance": "p > chance",
    "p_above_shuffled": "p > shuffled",
    "p_within_block": "p in block",
}


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in items) + "</ul>"


def _table(report: RetrievalReport, *, disjoint: bool = False) -> str:
    header, body = _cells(report, disjoint=disjoint)
    lines = ['<div class="scroll" tabindex="0"><table><thead><tr>']
    lines += [f'<th scope="col">{html.escape(cell)}</th>' for cell in header]
    lines.append("</tr></thead><tbody>")
    for cells in body:
        kind = {label(report.curves["lead"]): ' class="lead"', "chance": ' class="chance"'}.get(cells[0], "")
        lines.append(f'<tr{kind}><th scope="row">{html.escape(cells[0])}</th>')
        for cell in cells[1:]:
            value, bracket, limits = cell.partition(" [")
            lines.append(
                f"<td>{html.escape(value)}"
                + (f'<span class="limits">{html.escape(limits.rstrip("]"))}</span>' if bracket else "")
                + "</td>"
            )
        lines.append("</tr>")
    return "".join(lines) + "</tbody></table></div>"


def _examples(report: RetrievalReport) -> str:
    if not report.examples:
        return ""
    lines = []
    for example in report.examples:
        best = "".join(
            f'<li class="right">{html.escape(c["text"])}</li>' if c["correct"] else f"<li>{html.escape(c['text'])}</li>"
            for c in example["candidates"]
        )
        heard = f'{html.escape(example["heard"])}<br><span class="quiet">{html.escape(example["subject"])}</span>'
        lines.append(f"<tr><td>{example['rank']}</td><td>{heard}</td><td><ol>{best}</ol></td></tr>")
    return (
        "<h2>What was heard, and what was found</h2>"
        f"<p>Test windows of the {html.escape(label(report.curves['lead']))}, from the best to the worst rank (0 is best). "
        "Green is right.</p>"
        '<div class="scroll" tabindex="0"><table class="words"><thead><tr><th scope="col">rank</th><th scope="col">heard</th>'
        f'<th scope="col">five best candidates</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )
