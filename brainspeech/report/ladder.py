"""The variants of a recipe side by side: the accuracy of each, its difference from one of them with two tests, what validation chooses.

A ladder is what a paper's table of ablations is: one run per variant, all else equal. Differences are taken window by window, on the
windows that both runs have, where the candidates are the same; which variant is chosen is for the validation split, never for the figures
on the test split.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainspeech import retrieval, statistics
from brainspeech.evaluate import RetrievalReport
from brainspeech.figures import label
from brainspeech.listing import some

from .comparison import constants, shared_ks
from .files import load
from .ladder_choice import VALID_K, choose, validation
from .ladder_tests import add_seeds, compare_all, identical, read_ranks
from .words import many

LEVEL = 0.05
NOT_A_VARIANT = ("title", "name", "rows")  # constants that say nothing of how a row is computed: rows names what else was fitted
UNSET = ("-", "{}")  # an option that is not given, and no options


@dataclass(frozen=True)
class Ladder:
    """Variants side by side, as plain values; ``asdict`` gives ladder.json.

    Parameters
    ----------
    title : str
    reference : str
        The variant that the others are compared with.
    k : int
        Differences and tests are of top-k accuracy.
    ks : tuple of int
        The k of the accuracies.
    rows : tuple of dict
        Of each variant, in order: ``name``, ``sentence``, ``kind`` ("fit"; "chance" for the row that needs none), ``x`` (None without an
        axis), ``folder``, ``missing`` (why it has no result, or None), ``published`` ({``value``, ``sd``}), ``changes`` ({constant: [of the
        reference, of this variant]}), ``alarms``; and, None where there is no result, ``n_windows``, ``n_candidates``, ``subjects``,
        ``blocks``, ``folds``, ``seeds``, ``row``, ``chance`` ({"top10": fraction}), ``accuracy`` ({"top10": {``value``, ``low``, ``high``,
        ``sd``, ``seeds``}}), ``validation`` ({``value``, ``sd``, ``fits``, ``epochs``, ``n_candidates``, ``windows``, a digest}),
        ``difference`` ({``value``, ``low``, ``high``, ``n_windows`` that both have, ``partly``: whether one has others too, ``reference``:
        its accuracy on them, ``by_beginning``: whether their lengths differ, ``fit_error``, ``beyond_fits``} or {``why``}),
        ``subjects_test`` and ``blocks_test`` ({``p``, ``holm``, ``n``, ``smallest``, and over subjects ``better``, ``worse``, ``equal``}).
    axis : str or None
        What ``x`` is.
    chosen : str or None
        The variant with the highest validation accuracy.
    choice : str
        What validation chooses, or why it does not, in a sentence.
    compared : int
        Rows that were tested: the number that Holm's correction is for.
    identical : tuple of tuple of str
        Variants whose ranks are the same in every window, group by group.
    source : str
        Where the published numbers stand.
    warnings : tuple of str
        What a reader has to know.
    """

    title: str
    reference: str
    k: int
    ks: tuple[int, ...]
    rows: tuple[dict[str, Any], ...]
    axis: str | None
    chosen: str | None
    choice: str
    compared: int
    identical: tuple[tuple[str, ...], ...]
    source: str
    warnings: tuple[str, ...]

    @property
    def alarms(self) -> list[str]:
        """What makes the table doubtful: variants without a result, and the alarms of the runs."""
        out = [f"{label(row['name'])} has no result: {row['missing']}" for row in self.rows if row["missing"]]
        return out + [f"{label(row['name'])}: {alarm}" for row in self.rows for alarm in row["alarms"]]

    def __getitem__(self, name: str) -> dict[str, Any]:
        """Give the row of a variant; KeyError if there is none."""
        return {row["name"]: row for row in self.rows}[name]


def ladder(
    runs: Mapping[str, str | os.PathLike],
    *,
    reference: str,
    title: str = "",
    names: Mapping[str, str] | None = None,
    axis: str | None = None,
    values: Mapping[str, float] | None = None,
    published: Mapping[str, float | Sequence[float]] | None = None,
    source: str = "",
    chance: str | None = None,
    failed: Mapping[str, str] | None = None,
    row: str | None = None,
    unchosen: str = "",
    n_permutations: int = 10_000,
    n_bootstrap: int = 10_000,
    seed: int = 0,
) -> Ladder:
    """Put the runs of a recipe's variants side by side, each compared with the reference.

    Parameters
    ----------
    runs : mapping of str to path
        Run folder of each variant, in the order of the table. A folder without a report is listed with the reason.
    reference : str
        The variant that the others are compared with.
    names : mapping of str to str
        A sentence for each variant.
    axis : str, optional
        What is varied along a curve, with its unit, such as "lag, s"; the table then follows ``values``.
    values : mapping of str to float
        Where each variant stands on the axis.
    published : mapping of str to float or (float, float)
        Published top-10 accuracy of a variant and its standard deviation over seeds, as fractions.
    source : str
        Where they are published.
    chance : str, optional
        Name of a first row that needs no fit: k / N of the reference's candidates.
    failed : mapping of str to str
        Variants that did not come to their report, and why.
    row : str, optional
        The row of each report that is compared; its leading row otherwise.
    unchosen : str
        Why validation is not asked which variant to take, as a sentence; empty: it is.
    n_permutations, n_bootstrap, seed : int
        Of the tests and intervals of the differences. Intervals of accuracies are those of the runs' reports.

    Returns
    -------
    Ladder

    Raises
    ------
    ValueError
        If there is no variant besides the reference, the reference is none of them, one folder stands for two, a variant has no place on
        the axis, a published number is no fraction, or the runs share no k of top-k.
    RuntimeError
        If no variant has a result.
    """
    failed = dict(failed or {})
    folders = {name: Path(folder) for name, folder in runs.items()}
    order = list(dict.fromkeys([*folders, *failed]))
    _check(order, folders, reference=reference, axis=axis, values=values, published=published, chance=chance)
    if axis is not None and values is not None:
        order.sort(key=lambda name: values[name])
    reports, missing = _read(order, folders, failed, row)
    shared, k = shared_ks(reports.values())
    ks = tuple(sorted({min(shared), k}, reverse=True))
    rows = [
        _describe(name, reports.get(name), missing.get(name), folders.get(name), row=row, ks=ks)
        | {
            "sentence": (names or {}).get(name, ""),
            "x": None if axis is None or values is None else float(values[name]),
            "published": _published(published, name),
            "changes": _changes(reports.get(reference), reports.get(name)),
        }
        for name in order
    ]
    ranks = read_ranks(rows)
    for entry in rows:
        add_seeds(entry, ranks.get(entry["name"]), ks)
    compared = compare_all(rows, ranks, reference, k, n_permutations=n_permutations, n_bootstrap=n_bootstrap, seed=seed)
    same = identical(rows, ranks)
    chosen, choice = (None, unchosen) if unchosen else choose(rows, reference)
    said = _warnings(rows, reports, reference, compared, k)
    if chance is not None:
        rows.insert(0, _chance_row(chance, next(r for r in rows if r["name"] == reference), ks, names, published))
    said += _unmet(rows, published, k)
    return Ladder(title, reference, k, ks, tuple(rows), axis, chosen, choice, compared, same, source, tuple(said))


def _check(
    order: Sequence[str],
    folders: Mapping[str, Path],
    *,
    reference: str,
    axis: str | None,
    values: Mapping[str, float] | None,
    published: Mapping[str, float | Sequence[float]] | None,
    chance: str | None,
) -> None:
    """Refuse what cannot become a table."""
    if reference not in order:
        raise ValueError(f"The reference {reference!r} is none of the variants: {', '.join(order) or 'there are none'}.")
    if len(order) < 2:
        raise ValueError(f"A ladder needs a variant besides the reference, got {reference!r} alone.")
    if chance in order:
        raise ValueError(f"The row of chance cannot be named as a variant is: {chance!r}.")
    seen: dict[Path, str] = {}
    for name, folder in folders.items():
        other = seen.setdefault(folder.resolve(), name)
        if other != name:
            raise ValueError(f"Each run can stand in a ladder once, got {folder} for {other!r} and {name!r}.")
    if (axis is None) is not (values is None):
        raise ValueError("A curve needs both axis, such as 'lag, s', and values, the place of each variant on it; got one of them.")
    lost = [name for name in order if values is not None and not math.isfinite(values.get(name, math.nan))]
    if lost:
        raise ValueError(f"Each variant needs a finite place on the axis {axis!r}; values has none for {', '.join(lost)}.")
    for name in published or {}:
        entry = _published(published, name)
        if not all(0 <= value <= 1 for value in (entry or {}).values() if value is not None):
            raise ValueError(f"Published accuracies are fractions between 0 and 1, got {(published or {})[name]} for {name!r}.")


def _read(
    order: Sequence[str], folders: Mapping[str, Path], failed: Mapping[str, str], row: str | None
) -> tuple[dict[str, RetrievalReport], dict[str, str]]:
    """Read the reports that there are; {variant: why it has none} of the others."""
    reports: dict[str, RetrievalReport] = {}
    missing = dict(failed)
    for name in order:
        if name in missing:
            continue
        try:
            report = load(folders[name])
        except (FileNotFoundError, ValueError) as error:
            missing[name] = str(error)
            continue
        if row is not None and row not in report.rows:
            missing[name] = f"its report has no row {row!r}, only {', '.join(report.rows)}"
        else:
            reports[name] = report
    if not reports:
        raise RuntimeError(
            "No variant has a result, so there is nothing to compare: " + "; ".join(f"{name}: {why}" for name, why in missing.items())
        )
    return reports, missing


# ---------------------------------------------------------------------------------------------------------------------- one variant


def _describe(
    name: str, report: RetrievalReport | None, missing: str | None, folder: Path | None, *, row: str | None, ks: Sequence[int]
) -> dict[str, Any]:
    """Say of a variant what its own report says; all None where there is no report."""
    out: dict[str, Any] = {"name": name, "kind": "fit", "folder": None if folder is None else str(folder), "missing": missing, "alarms": []}
    counts = ("n_windows", "n_candidates", "subjects", "blocks", "folds")
    tests = ("difference", "subjects_test", "blocks_test")
    if report is None or folder is None:
        return out | dict.fromkeys((*counts, *tests, "seeds", "row", "chance", "accuracy", "validation"))
    lead = row or report.curves["lead"]
    entries = {f"top{k}": report.rows[lead][f"top{k}"] | {"sd": None, "seeds": []} for k in ks}
    return (
        out
        | {count: getattr(report, count) for count in counts}
        | dict.fromkeys(tests)
        | {
            "seeds": list(report.seeds),
            "row": lead,
            "chance": {f"top{k}": report.chance[f"top{k}"] for k in ks},
            "accuracy": entries,
            "validation": validation(folder, lead),
            "alarms": list(report.alarms),
        }
    )


def _chance_row(
    name: str,
    reference: Mapping[str, Any],
    ks: Sequence[int],
    names: Mapping[str, str] | None,
    published: Mapping[str, float | Sequence[float]] | None,
) -> dict[str, Any]:
    """Make the row that needs no fit: k / N of the reference's candidates."""
    n = reference["n_candidates"]
    out = dict.fromkeys(reference) | {"name": name, "kind": "chance", "alarms": [], "changes": {}, "published": _published(published, name)}
    out["sentence"] = (names or {}).get(name, "guessing among all candidates, without a fit")
    if n is None:
        return out | {"missing": "the number of candidates is not known without the reference"}
    guesses = {f"top{k}": retrieval.chance(k, n) for k in ks}
    nothing: dict[str, Any] = {"low": None, "high": None, "sd": None, "seeds": []}
    return out | {"n_candidates": n, "chance": guesses, "accuracy": {key: {"value": v, **nothing} for key, v in guesses.items()}}


def _published(published: Mapping[str, float | Sequence[float]] | None, name: str) -> dict[str, float | None] | None:
    if published is None or name not in published:
        return None
    given = published[name]
    value, *rest = [float(x) for x in given] if isinstance(given, Sequence) else [float(given)]
    return {"value": value, "sd": rest[0] if rest else None}


def _changes(reference: RetrievalReport | None, report: RetrievalReport | None) -> dict[str, list[str]]:
    """Name the constants, and versions, of a variant that are not those of the reference."""
    if reference is None or report is None or reference is report:
        return {}
    here, there = constants(reference), constants(report)
    names = [name for name in {**here, **there} if name not in NOT_A_VARIANT]
    both = {name: [here.get(name, UNSET[0]), there.get(name, UNSET[0])] for name in names}
    return {
        name: pair
        for name, pair in both.items()
        # target_encoder is null in the one and has parts in the other: the parts are listed
        if pair[0] != pair[1] and not set(pair) <= set(UNSET) and not any(other.startswith(f"{name}.") for other in names)
    }


# ---------------------------------------------------------------------------------------------------------- what a reader has to know


def _warnings(
    rows: Sequence[Mapping[str, Any]], reports: Mapping[str, RetrievalReport], reference: str, compared: int, k: int
) -> list[str]:
    """Say what a reader of the table has to know."""
    there = [row for row in rows if not row["missing"]]
    out = [*_uneven(there, "seeds", lambda row: len(row["seeds"]), "each row is the mean of its own")]
    out += _uneven(
        there, "candidates", lambda row: row["n_candidates"], "chance changes with them, and accuracies answer different questions"
    )
    out += _uneven(there, "subjects", lambda row: row["subjects"], "their accuracies are not about the same listeners")
    if any(len(row["seeds"]) == 1 for row in there):
        out.append(
            "One seed each is the luck of one fit: it has no standard deviation, and no test here knows of it. Run more (--seeds 3)."
        )
    out += _hopeless(there, compared)
    out += _unchanged(there, reports, reference)
    lost = [label(row["name"]) for row in there if row["accuracy"][f"top{k}"]["seeds"] == []]
    if lost:
        out.append(f"The ranks of {', '.join(lost)} were not kept: there is no standard deviation over seeds and no test for them.")
    return out


def _hopeless(there: Sequence[Mapping[str, Any]], compared: int) -> list[str]:
    """Say where so few subjects were tested, or so many rows, that no p can be small."""
    reach = smallest_corrected(there)
    found = [(n, f"{statistics.smallest_signed_rank_p(n):.2g}", f"{p:.2g}") for n, p in reach.items() if p > LEVEL]
    if not found:
        return []
    numbers, smallest_ps, corrected_ps = (", ".join(map(str, column)) for column in zip(*found, strict=True))
    which = "no row here" if len(reach) == len(found) else "no such row"
    return [
        f"The signed-rank test over {numbers} {'subject' if numbers == '1' else 'subjects'} cannot give p below {smallest_ps}, nor, after "
        f"Holm's correction for {many(compared, 'row')}, below {corrected_ps}: {which} can come below {LEVEL:g}, whatever its difference."
    ]


def smallest_corrected(rows: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Give the smallest p over subjects that a row can reach after Holm's correction, by its number of subjects."""
    tested = [row["subjects_test"]["n"] for row in rows if row["subjects_test"]]
    # Rows with more subjects may have smaller p, and are then corrected for first.
    return {n: min(1.0, sum(other <= n for other in tested) * statistics.smallest_signed_rank_p(n)) for n in sorted(set(tested))}


def _unchanged(there: Sequence[Mapping[str, Any]], reports: Mapping[str, RetrievalReport], reference: str) -> list[str]:
    """Name the variants that were run with the constants of the reference."""
    if reference not in reports:
        return []
    others = [row for row in there if row["name"] != reference and reports[row["name"]].provenance.get("recipe")]
    same = [label(row["name"]) for row in others if not row["changes"]]
    return [f"No constant of {', '.join(same)} differs from those of {label(reference)}: is it a variant?"] if same else []


def _unmet(rows: Sequence[Mapping[str, Any]], published: Mapping[str, float | Sequence[float]] | None, k: int) -> list[str]:
    """Say which published numbers the table does not show."""
    if published and k != VALID_K:
        return [f"Published numbers are top-{VALID_K} and are left out: here top-{k} is the widest that can be missed."]
    there = {row["name"] for row in rows}
    unmet = [label(name) for name in published or {} if name not in there]
    return [f"Published, but no variant of this table: {', '.join(unmet)}."] if unmet else []


def _uneven(rows: Sequence[Mapping[str, Any]], noun: str, count: Callable[[Mapping[str, Any]], int], so: str) -> list[str]:
    """Say which variants have how many of something where they do not all have the same number."""
    groups: dict[int, list[str]] = {}
    for row in rows:
        groups.setdefault(count(row), []).append(label(row["name"]))
    if len(groups) < 2:
        return []
    return [f"Numbers of {noun} differ, {', '.join(f'{n:,} ({some(names, 4)})' for n, names in sorted(groups.items()))}: {so}."]
