"""Finished runs side by side: rows x runs, differences of the leading row with a paired test, seeds, and the constants that differ.

Runs are compared window by window, on the windows that both have, and only where the candidates are the same: top-k among other candidates
is another question. Windows of different lengths are the same if they begin at the same place of the same stimulus, and so are candidates.
"""

from __future__ import annotations

import html
import json
import os
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from brainspeech import figures, protocols, statistics
from brainspeech.evaluate import FEW_BLOCKS, RetrievalReport, plain
from brainspeech.figures import Picture, label, percent
from brainspeech.writing import put

from .files import Ranks, load, load_ranks
from .page import document, itemise, show, tabulate
from .words import many, markdown_table, plain_table, say_entry, say_p

TERMINAL = 100  # columns
METHOD = (
    "Difference of the leading row's accuracy from the first run, in percentage points, on the windows that both have, among the same "
    "candidates (where their lengths differ: what begins at the same place); interval by the two-way bootstrap over subjects x blocks; p "
    "two-sided, the two runs swapped at random in each block, all subjects together. p is about other stimuli for these listeners; the "
    "interval is about other listeners too, and may contain 0 where p is small. The fits are taken as they are: with one seed each, a part "
    "of a difference is the luck of the fit."
)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, as plain values; ``asdict`` gives comparison.json.

    Parameters
    ----------
    runs : tuple of dict
        Of each run: ``name``, ``folder``, ``title``, ``lead``, ``n_windows``, ``n_candidates``, ``subjects``, ``blocks``, ``seeds``,
        ``chance`` and ``alarms``.
    k : int
        The accuracies are top-k.
    rows : dict
        {row: one entry per run}: ``value``, ``low``, ``high``; None where a run has no such row.
    differences : tuple of dict
        Of each run from the first, for their leading rows: ``value``, ``low``, ``high``, ``p``, ``units`` (what was swapped, and on how
        many windows where they are not all of both); or ``why`` they are not comparable.
    seeds : tuple of list of float
        Accuracy of the leading row with each seed; empty where ranks were not kept.
    constants : dict
        {constant: its value in each run}, those that differ.
    """

    runs: tuple[dict[str, Any], ...]
    k: int
    rows: dict[str, list[dict[str, Any] | None]]
    differences: tuple[dict[str, Any], ...]
    seeds: tuple[list[float], ...]
    constants: dict[str, list[str]]


def compare(runs: Sequence[str | os.PathLike], *, n_permutations: int = 10_000, n_bootstrap: int = 10_000, seed: int = 0) -> Comparison:
    """Put finished runs side by side; the first is what the others are compared with.

    Parameters
    ----------
    runs : sequence of path
        Run folders.

    Raises
    ------
    ValueError
        If there are fewer than two runs, one is named twice, or they share no k of top-k.
    FileNotFoundError
        If one has no report.
    """
    folders = [Path(run) for run in runs]
    if len(folders) < 2:
        raise ValueError(f"A comparison needs at least two runs, got {len(folders)}.")
    if len({f.resolve() for f in folders}) < len(folders):
        raise ValueError(f"Each run can stand in a comparison once, got {', '.join(map(str, folders))}.")
    reports = [load(folder) for folder in folders]
    ranks = [load_ranks(folder) for folder in folders]
    _, k = shared_ks(reports)
    leads = [report.curves["lead"] for report in reports]
    first = (ranks[0], leads[0])
    options = {"n_permutations": n_permutations, "n_bootstrap": n_bootstrap, "seed": seed}
    return Comparison(
        runs=tuple(_describe(*run, k) for run in zip(_names(folders), folders, reports, strict=True)),
        k=k,
        rows={
            row: [r.rows[row][f"top{k}"] if row in r.rows else None for r in reports]
            for row in dict.fromkeys(n for r in reports for n in r.rows)
        },
        differences=tuple(
            _difference(first, (there, lead), k, folders=(folders[0], folder), **options)
            for there, lead, folder in zip(ranks[1:], leads[1:], folders[1:], strict=True)
        ),
        seeds=tuple([] if r is None else [float(x) for x in (r.rows[lead] < k).mean(1)] for r, lead in zip(ranks, leads, strict=True)),
        constants=_differing(reports),
    )


def shared_ks(reports: Iterable[RetrievalReport]) -> tuple[set[int], int]:
    """Give the k that all reports have, and the widest of them that can be missed in all.

    Raises
    ------
    ValueError
        If they share none.
    """
    reports = list(reports)
    shared = set.intersection(*({int(key[3:]) for key in r.chance if key.startswith("top")} for r in reports))
    if not shared:
        raise ValueError("The runs share no k of top-k. Evaluate them with the same evaluate.topk.")
    fewest = min(r.n_candidates for r in reports)
    return shared, max([k for k in shared if k < fewest], default=min(shared))


def _describe(name: str, folder: Path, report: RetrievalReport, k: int) -> dict[str, Any]:
    """Say of a run what its own report says."""
    return {
        "name": name,
        "folder": str(folder),
        "title": report.title,
        "lead": report.curves["lead"],
        **{key: getattr(report, key) for key in ("n_windows", "n_candidates", "subjects", "blocks")},
        "seeds": list(report.seeds),
        "chance": report.chance[f"top{k}"],
        "alarms": report.alarms,
    }


def _names(folders: Sequence[Path]) -> list[str]:
    """Name runs by as few of their folders' last parts as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    n = 1
    while len({p[-n:] for p in parts}) < len(parts):
        n += 1
    return ["/".join(p[-n:]) for p in parts]


@dataclass(frozen=True, eq=False)
class Pairs:
    """Hits of a row in two runs, window by window, on the windows that both have.

    Parameters
    ----------
    first, other : array of bool, shape (n_seeds, W)
        Whether the own candidate is among the k best; the runs may have different numbers of seeds.
    subjects, blocks : array of str, shape (W,)
    left : tuple of int
        Windows of the first run that the other has not, and the reverse.
    by_beginning : bool
        Whether windows are the same by where they begin, since they have different lengths.
    """

    first: np.ndarray
    other: np.ndarray
    subjects: np.ndarray
    blocks: np.ndarray
    left: tuple[int, int] = (0, 0)
    by_beginning: bool = False

    @property
    def gain(self) -> np.ndarray:
        """What the other run has more, hits averaged over its seeds; shape (W,)."""
        return self.other.mean(0) - self.first.mean(0)


def pair(first: tuple[Ranks | None, str], other: tuple[Ranks | None, str], k: int, *, folders: tuple[Path, Path]) -> Pairs | str:
    """Put the windows of a row that two runs share side by side, or say why that is impossible.

    Parameters
    ----------
    first, other : tuple of (Ranks, row)
    folders : tuple of Path
        Of the two runs, for what is said.
    """
    (a, row_a), (b, row_b) = first, other
    if a is None or b is None:
        folder = folders[0] if a is None else folders[1]
        return f"the ranks of {folder.name} were not kept; write them: brainspeech evaluate {folder}"
    for ranks, row, folder in ((a, row_a, folders[0]), (b, row_b, folders[1])):
        if row not in ranks.rows:
            return f"the ranks of {folder.name} have no row {row} (but {', '.join(ranks.rows)}); write them: brainspeech evaluate {folder}"
    by_beginning = not np.array_equal(a.candidates, b.candidates)
    if by_beginning and not np.array_equal(beginnings(a.candidates), beginnings(b.candidates)):
        n_common = len(np.intersect1d(a.candidates, b.candidates))
        return f"other candidates: {len(a.candidates)} and {len(b.candidates)}, {n_common} in common"
    heard_a, heard_b = (_hearings(ranks.windows, by_beginning=by_beginning) for ranks in (a, b))
    _, at_a, at_b = np.intersect1d(heard_a, heard_b, return_indices=True)
    if not len(at_a):
        return f"other windows: {len(a.windows)} and {len(b.windows)}, none in common"
    return Pairs(
        a.rows[row_a][:, at_a] < k,
        b.rows[row_b][:, at_b] < k,
        a.subjects[at_a],
        a.blocks[at_a],
        left=(len(a.windows) - len(at_a), len(b.windows) - len(at_b)),
        by_beginning=by_beginning,
    )


def beginnings(candidates: Iterable[str]) -> np.ndarray:
    """Give where candidates begin, sorted: what is left of their ids without the length."""
    return np.array(sorted(protocols.beginning_of(str(name)) for name in candidates))


def _hearings(windows: Iterable[str], *, by_beginning: bool) -> np.ndarray:
    """Name windows (``Ranks.windows``) so that runs share a name where they share the window.

    Where one of the runs lost a hearing of a stimulus, the second of the one may be the first of the other; so a name says how many there
    are, too.
    """
    parts = [str(name).rpartition(" ") for name in windows]
    heard = [protocols.beginning_of(what) if by_beginning else what for what, _, _ in parts]
    total = Counter(heard)
    return np.array([f"{what} {n} of {total[what]}" for what, (_, _, n) in zip(heard, parts, strict=True)])


def difference(pairs: Pairs, *, n_permutations: int, n_bootstrap: int, seed: int) -> dict[str, Any]:
    """Give the mean gain with its two-way interval, and p by swapping the two runs block by block."""
    _, subject = np.unique(pairs.subjects, return_inverse=True)
    _, block = np.unique(pairs.blocks, return_inverse=True)
    shape = (int(subject.max()) + 1, int(block.max()) + 1)
    counts = statistics.cell_sums(np.ones(len(subject)), subject, block, shape)[0]
    limits = statistics.interval(statistics.cell_sums(pairs.gain, subject, block, shape), counts, n_bootstrap=n_bootstrap, seed=seed)
    sums = np.bincount(block, weights=pairs.gain)
    better, worse = statistics.swap_p(np.stack([sums, -sums]), n_permutations=n_permutations, seed=seed)
    return {
        "value": float(pairs.gain.mean()),
        "low": None if limits is None else float(limits[0, 0]),
        "high": None if limits is None else float(limits[0, 1]),
        "p": float(min(1.0, 2 * min(better, worse))),
        "units": f"{len(sums)} blocks, all subjects together"
        + (f" (p cannot fall below {2.0 ** (1 - len(sums)):.2g})" if len(sums) < FEW_BLOCKS else ""),
    }


def _difference(
    first: tuple[Ranks | None, str], other: tuple[Ranks | None, str], k: int, *, folders: tuple[Path, Path], **options: int
) -> dict[str, Any]:
    """Compare the leading rows of two runs window by window, or say why that is impossible."""
    pairs = pair(first, other, k, folders=folders)
    if isinstance(pairs, str):
        return {"why": pairs}
    found = difference(pairs, **options)
    return found | {"units": found["units"] + _partly(pairs)}


def _partly(pairs: Pairs) -> str:
    """Say on how many windows two runs were compared, where they are not all of both."""
    if not any(pairs.left):
        return ""
    n = len(pairs.subjects)
    return (
        f"; on {n:,} windows of {many(len(np.unique(pairs.subjects)), 'subject')}, out of {n + pairs.left[0]:,} and {n + pairs.left[1]:,}"
    )


def _differing(reports: Sequence[RetrievalReport]) -> dict[str, list[str]]:
    """Name the constants, and versions, that are not the same in all runs."""
    flat = [constants(report) for report in reports]
    names = list(dict.fromkeys(name for values in flat for name in values))
    shown = {name: [values.get(name, "-") for values in flat] for name in names}
    return {name: values for name, values in shown.items() if len(set(values)) > 1}


def constants(report: RetrievalReport) -> dict[str, str]:
    """Write down the constants of a run, and the versions it ran with, one by one."""
    kept = {key: report.provenance.get(key, {}) for key in ("recipe", "versions", "commit", "device")}
    return {name.removeprefix("recipe."): _short(value) for name, value in _flatten(kept)}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for name, value in values.items():
        out += _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else [(prefix + name, value)]
    return out


def _short(value: Any, most: int = 60) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else text[: most - 3] + "..."


# ------------------------------------------------------------------------------------------------------------------------ what is said


def _row_cells(c: Comparison) -> tuple[list[str], list[list[str]]]:
    header = ["row", *(run["name"] for run in c.runs)]
    body = [
        [label(row), *("-" if entry is None else say_entry(entry, short=True).removesuffix(" %") for entry in entries)]
        for row, entries in c.rows.items()
    ]
    body.append(["chance", *(percent(run["chance"]).removesuffix(" %") for run in c.runs)])
    body.append(["windows", *(f"{run['n_windows']:,}" for run in c.runs)])
    body.append(["candidates", *(f"{run['n_candidates']:,}" for run in c.runs)])
    return header, body


def _difference_cells(c: Comparison) -> tuple[list[str], list[list[str]]]:
    body = []
    for run, d in zip(c.runs[1:], c.differences, strict=True):
        if "why" in d:
            body.append([run["name"], "not comparable", "-", d["why"]])
            continue
        body.append([run["name"], say_difference(d), say_p(d["p"]).removeprefix("p = "), d["units"]])
    return ["run", f"minus {c.runs[0]['name']}", "p", "swapped"], body


def say_difference(d: Mapping[str, Any]) -> str:
    """Write a difference in percentage points with its interval: ``-1.2 [-3.0, +0.5]``."""
    return f"{100 * d['value']:+.1f}" + ("" if d["low"] is None else f" [{100 * d['low']:+.1f}, {100 * d['high']:+.1f}]")


def _seed_cells(c: Comparison) -> tuple[list[str], list[list[str]]]:
    """One line for each run with several seeds."""
    body = []
    for run, values in zip(c.runs, c.seeds, strict=True):
        if len(values) > 1:
            each = ", ".join(f"{seed}: {percent(v)}" for seed, v in zip(run["seeds"], values, strict=True))
            body.append([run["name"], percent(float(np.mean(values))), f"{100 * np.std(values, ddof=1):.1f}", each])
    return ["run", "mean of seeds", "standard deviation, points", "each seed"], body


def _headline(c: Comparison) -> str:
    first = c.runs[0]
    values = [c.rows[run["lead"]][i] for i, run in enumerate(c.runs)]
    best = int(np.argmax([entry["value"] if entry else -1 for entry in values]))
    entry = values[best]
    text = f"Highest top-{c.k} accuracy: {c.runs[best]['name']}, {percent(entry['value'] if entry else None)}."
    if best and "why" not in c.differences[best - 1]:
        d = c.differences[best - 1]
        text += f" That is {100 * d['value']:+.1f} points from {first['name']} ({say_p(d['p'])})."
    n_other = sum("why" in d for d in c.differences)
    if n_other:
        text += f" {many(n_other, 'run')} cannot be compared with {first['name']} window by window."
    return text


def _alarms(c: Comparison) -> list[str]:
    return [f"{run['name']}: {alarm}" for run in c.runs for alarm in run["alarms"]]


def comparison_table(c: Comparison) -> str:
    """Lay out the comparison as plain text, warnings first."""
    lines = [f"WARNING: {alarm}" for alarm in _alarms(c)]
    lines += [_headline(c), "", f"top-{c.k}, % [interval]", *plain_table(*_row_cells(c)), "", *plain_table(*_difference_cells(c))]
    header, body = _seed_cells(c)
    lines += ["", *plain_table(header, body)] if body else []
    if c.constants:
        lines += ["", *plain_table(["constant", *(run["name"] for run in c.runs)], [[n, *v] for n, v in c.constants.items()])]
    return "\n".join([*lines, "", *wrap([METHOD])])


def wrap(sentences: Iterable[str]) -> list[str]:
    """Break sentences into lines that fit a terminal; names and paths stay whole."""
    return [
        line
        for sentence in sentences
        for line in textwrap.wrap(sentence, TERMINAL, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    ]


def draw_comparison(c: Comparison) -> list[Picture]:
    """Draw the comparison."""
    names, chance = [run["name"] for run in c.runs], [run["chance"] for run in c.runs]
    return figures.draw_comparison(names, _leading(c), c.differences, chance, k=c.k)


def write_comparison(c: Comparison, folder: str | os.PathLike) -> list[Path]:
    """Write comparison.json, comparison.md, comparison.html and the figure into a folder; each file appears whole or not at all."""
    pictures = draw_comparison(c)
    return write_pages(
        Path(folder), "comparison", values=asdict(c), markdown=_markdown(c, pictures), page=_page(c, pictures), pictures=pictures
    )


def write_pages(folder: Path, name: str, *, values: Mapping[str, Any], markdown: str, page: str, pictures: Sequence[Picture]) -> list[Path]:
    """Write NAME.json, NAME.md, NAME.html and the figures into a folder; each file appears whole or not at all."""
    files = {
        f"{name}.json": (json.dumps(plain(values), indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode(),
        f"{name}.md": markdown.encode(),
        f"{name}.html": page.encode(),
        **{f"figures/{picture.name}.png": picture.png for picture in pictures},
    }
    for path, content in files.items():
        put(folder / path, content)
    return [folder / path for path in files]


def _leading(c: Comparison) -> list[dict[str, Any]]:
    """Give the entry of each run's leading row."""
    entries = [c.rows[run["lead"]][i] for i, run in enumerate(c.runs)]
    return [entry for entry in entries if entry is not None]


def _title(c: Comparison) -> str:
    return f"{len(c.runs)} runs side by side"


def _markdown(c: Comparison, pictures: Sequence[Picture]) -> str:
    lines = [f"# {_title(c)}", ""]
    lines += [line for alarm in _alarms(c) for line in (f"> **Warning.** {alarm}", "")]
    lines += [_headline(c), "", f"Top-{c.k} accuracies in % [interval].", "", *markdown_table(*_row_cells(c)), ""]
    lines += ["## Differences", "", *markdown_table(*_difference_cells(c)), "", METHOD, ""]
    lines += [line for p in pictures for line in (f"![{p.alt}](figures/{p.name}.png)", "", p.caption, "")]
    header, body = _seed_cells(c)
    lines += ["## Seeds", "", *markdown_table(header, body), ""] if body else []
    lines += ["## What differs between the runs", ""]
    constants = [[f"`{name}`", *values] for name, values in c.constants.items()]
    lines += (
        markdown_table(["constant", *(run["name"] for run in c.runs)], constants) if constants else ["Nothing that the reports know of."]
    )
    return "\n".join([*lines, ""])


def _page(c: Comparison, pictures: Sequence[Picture]) -> str:
    e = html.escape
    classes = {label(c.runs[0]["lead"]): "lead", "chance": "chance", "windows": "chance", "candidates": "chance"}
    header, body = _seed_cells(c)
    constants = [[name, *values] for name, values in c.constants.items()]
    titles = [f"{run['name']}: {run['title'] or 'no title'} ({run['folder']})" for run in c.runs]
    return document(
        _title(c),
        [
            *(f'<div class="alarm" role="alert"><b>Warning</b>{e(alarm)}</div>' for alarm in _alarms(c)),
            f'<p class="finding">{e(_headline(c))}</p>',
            tabulate(*_row_cells(c), classes=classes),
            f'<p class="small">Top-{c.k} accuracies in % over all windows of a run, with their interval below.</p>',
            "<h2>Differences</h2>",
            tabulate(*_difference_cells(c), words=True),
            f'<p class="small">{e(METHOD)}</p>',
            show(pictures),
            ("<h2>Seeds</h2>" + tabulate(header, body, words=True)) if body else "",
            "<h2>What differs between the runs</h2>",
            tabulate(["constant", *(run["name"] for run in c.runs)], constants, words=True)
            if constants
            else "<p>Nothing that the reports know of.</p>",
            "<h2>The runs</h2>" + itemise(titles),
        ],
    )
