"""A report as one page that holds everything it needs: its style, its figures as SVG, no script, no link, nothing from the network."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from brainspeech.evaluate import RetrievalReport
from brainspeech.figures import Picture, label

from . import decoded
from .words import cells_of, counted, counts, dropped_cells, headline, leak_cells, leak_sentence

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
main > h3 { margin-top: 28px; }
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
a { color: var(--accent); } th a { color: inherit; }
.limits { color: var(--muted); font-weight: 400; display: block; font-size: .8rem; }
.text td, .text th { white-space: normal; text-align: left; min-width: 9.5em; }
.text th:first-child { min-width: 5em; }
.text td { overflow-wrap: anywhere; }
.words td, .words th { white-space: normal; text-align: left; min-width: 150px; }
.words td:first-child, .words th:first-child { min-width: 56px; width: 56px; }
.words ol { margin: 0; padding-left: 1.3em; }
.words .right { color: var(--good); font-weight: 600; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 440px), 1fr)); gap: 16px; align-items: start; }
figure { margin: 0; padding: 16px; border: 1px solid var(--line); border-radius: 10px; background: var(--card); min-width: 0; }
@media (max-width: 600px) { figure { padding: 12px 8px; } figure h3, figcaption { padding: 0 6px; } }
figure svg { display: block; width: 100%; height: auto; max-width: 560px; margin: 0 auto 10px; }
dl { margin: 0; max-width: 80ch; } dt { font-weight: 600; } dd { margin: 0 0 8px; color: var(--muted); }
ul { padding-left: 1.2em; margin: 0 0 12px; max-width: 80ch; }
details { border: 1px solid var(--line); border-radius: 10px; background: var(--card); padding: 10px 14px; }
summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; font-size: .8rem; line-height: 1.45; }
"""


# Figures that have a section of their own, by name.
SIGNAL = ("attention", "sensors", "bands", "lags")
RECORDINGS = ("spectrum",)
DECODED = ("decoded_words", "decoded_repeats", "decoded_regression")


def page(report: RetrievalReport, pictures: Iterable[Picture] = ()) -> str:
    """Write the report as one page that needs nothing else."""
    e = html.escape
    title = report.title or "Retrieval report"
    d = report.disjoint
    pictures = list(pictures)
    notes = [w for w in report.warnings if w not in report.alarms]
    meanings = "".join(f"<dt>{e(label(n))}</dt><dd>{inline(row['meaning'])}</dd>" for n, row in report.rows.items() if row["meaning"])
    methods = "".join(f"<dt>{e(METHODS.get(name, name))}</dt><dd>{inline(text)}</dd>" for name, text in report.methods.items())
    signal, recordings, what = ([p for p in pictures if p.name in names] for names in (SIGNAL, RECORDINGS, DECODED))
    return document(
        title,
        [
            f'<p class="quiet">{e(counts(report))}</p>',
            *(f'<div class="alarm" role="alert"><b>Warning</b>{inline(warning)}</div>' for warning in report.alarms),
            f'<p class="finding">{e(headline(report))}</p>',
            _table(report),
            '<p class="small">Accuracies in % over all windows, with their interval below; rank 0 is best. Ties count as misses.</p>',
            "<h2>Figures</h2>",
            show([p for p in pictures if p not in (*signal, *recordings, *what)]),
            _examples(report),
            _decoded(report, what),
            ("<h2>What the encoder reads in the signal</h2>" + show(signal)) if signal else "",
            _recordings(report, recordings),
            "<h2>Candidates that do not overlap</h2>",
            f"<p>Windows overlap, so a near miss may share most of its sound with the right answer. Here candidates are thinned until no "
            f"two share a moment: {d['n_candidates']} candidates, {d['n_windows']} windows.</p>",
            _table(report, disjoint=True),
            f"<h2>What the rows are</h2><dl>{meanings}</dl>",
            f"<h2>How it was tested</h2><dl>{methods}</dl>",
            ("<h2>Notes</h2>" + itemise(notes)) if notes else "",
            "<h2>What was left out, and why</h2>",
            tabulate(*dropped_cells(report), words=True) if report.dropped else "<p>Nothing was left out.</p>",
            itemise(counted(report)),
            "<h2>Provenance</h2><details><summary>Configuration, versions, commit</summary>"
            f"<pre>{e(json.dumps(report.provenance, indent=2, ensure_ascii=False))}</pre></details>",
        ],
    )


def document(title: str, parts: Iterable[str]) -> str:
    """Put a page around its parts."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n<h1>{html.escape(title)}</h1>\n"
        + "\n".join(p for p in parts if p)
        + "\n</main>\n</body>\n</html>\n"
    )


def show(pictures: Iterable[Picture]) -> str:
    """Put figures beside each other."""
    drawn = (f"<figure><h3>{html.escape(p.title)}</h3>{p.svg}<figcaption>{html.escape(p.caption)}</figcaption></figure>" for p in pictures)
    return '<div class="figures">' + "".join(drawn) + "</div>"


def _recordings(report: RetrievalReport, pictures: Sequence[Picture]) -> str:
    sentence = leak_sentence(report)
    if not pictures and not sentence:
        return ""
    header, body = leak_cells(report)
    flagged = tabulate(header, body, words=True) if body else ""
    return "<h2>The recordings</h2>" + (f"<p>{html.escape(sentence)}</p>" if sentence else "") + flagged + show(pictures)


def _decoded(report: RetrievalReport, pictures: Sequence[Picture]) -> str:
    lines = []
    for part in decoded.parts(report):
        lines.append(f"<h3>{html.escape(part.title)}</h3>" + "".join(f"<p>{inline(text)}</p>" for text in part.sentences))
        lines.append(tabulate(part.header, part.body, classes=part.classes) if part.body else "")
        lines.append(itemise(part.notes))
    return ("<h2>What is decoded</h2>" + "".join(lines) + show(pictures)) if lines else ""


METHODS = {
    "interval": "Intervals",
    "p_above_chance": "p > chance",
    "p_above_shuffled": "p > shuffled",
    "p_within_block": "p in block",
}


def inline(text: str) -> str:
    """Escape a sentence; what stands between backticks, such as the name of a row, is set as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def itemise(items: Sequence[str]) -> str:
    """List sentences; nothing for none."""
    return "<ul>" + "".join(f"<li>{inline(item)}</li>" for item in items) + "</ul>" if items else ""


def _table(report: RetrievalReport, *, disjoint: bool = False) -> str:
    return tabulate(*cells_of(report, disjoint=disjoint), classes={label(report.curves["lead"]): "lead", "chance": "chance"})


def tabulate(
    header: Sequence[str],
    body: Sequence[Sequence[str]],
    *,
    classes: Mapping[str, str] = MappingProxyType({}),
    links: Mapping[str, str] = MappingProxyType({}),
    words: bool = False,
) -> str:
    """Make a table that scrolls sideways where the screen is narrow; what a cell has in brackets stands below.

    Parameters
    ----------
    classes : mapping of str to str
        Class of the rows with that first cell.
    links : mapping of str to str
        Address that the first cell of a row leads to.
    words : bool
        Cells are text, which is broken and stands to the left.
    """
    lines = [f'<div class="scroll" tabindex="0"><table class="{"text" if words else "numbers"}"><thead><tr>']
    lines += [f'<th scope="col">{html.escape(cell)}</th>' for cell in header]
    lines.append("</tr></thead><tbody>")
    for cells in body:
        kind = f' class="{classes[cells[0]]}"' if cells[0] in classes else ""
        name = html.escape(cells[0])
        name = f'<a href="{html.escape(links[cells[0]])}">{name}</a>' if cells[0] in links else name
        lines.append(f'<tr{kind}><th scope="row">{name}</th>')
        for cell in cells[1:]:
            value, bracket, limits = cell.partition(" [")
            below = f'<span class="limits">{html.escape(limits.rstrip("]"))}</span>' if bracket and not words else ""
            lines.append(f"<td>{html.escape(value if below else cell)}{below}</td>")
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
        "Green is right. Seconds: where a window begins in its audio; neighbours may have the same words.</p>"
        '<div class="scroll" tabindex="0"><table class="words"><thead><tr><th scope="col">rank</th><th scope="col">heard</th>'
        f'<th scope="col">five best candidates</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )
