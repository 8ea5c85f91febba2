"""Variants of a recipe: the ladder and the ablations of Défossez et al. 2023, its curves, and a run of them all with one table at the end.

A variant is a name for some ``--set``. Nothing here decides between variants: the table shows each one's validation accuracy beside the
test accuracy, and only the former may choose.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brainspeech import claiming, flow, processes, report, subjects
from brainspeech import recipe as recipes
from brainspeech.cache import Cache
from brainspeech.recipe import Recipe
from brainspeech.writing import FULL

REFERENCE = "reference"
MEL = ("feature.name=mel", "feature.n_mels=120")
ALONE = "target_encoder=None"
NO_SUBJECTS = ("model.generic_subject=False", "model.subject_layer=False")


@dataclass(frozen=True)
class Variant:
    """A change of a recipe: what it means, and the settings that make it, as ``--set`` takes them."""

    meaning: str
    settings: tuple[str, ...] = ()


VARIANTS: dict[str, Variant] = {
    REFERENCE: Variant("the recipe as it is"),
    # The rows of Table 2, from the bottom up; its first row, random, is chance and needs no fit.
    "base": Variant("mean squared error on 120 mels", (*MEL, "loss.name=mse", ALONE)),
    "contrastive": Variant("the contrastive loss on 120 mels", (*MEL, "loss.name=clip", ALONE)),
    "deep_mel": Variant("an audio encoder trained jointly from 120 mels", (*MEL, "loss.name=clip", "target_encoder=deep_mel")),
    "wav2vec2": Variant("the contrastive loss on wav2vec 2.0", ("feature.name=wav2vec2", "loss.name=clip", ALONE)),
    # The ablations.
    "subject_embedding": Variant(
        "a vector for each subject instead of a layer", ("model.subject_layer=False", "model.subject_embedding=64")
    ),
    "clamp_100": Variant("clamp at 100 instead of 20", ("batches.clamp=100",)),
    "no_spatial_dropout": Variant("no spatial dropout", ("model.spatial_dropout=0",)),
    "relu": Variant("ReLU instead of GELU", ("model.activation=relu",)),
    "no_skips": Variant("no skip connections", ("model.skips=False",)),
    "no_head": Variant("no final convolutions", ("model.head=False",)),
    "no_initial": Variant("no initial 1x1 convolution", ("model.initial=False",)),
    "no_spatial_attention": Variant("no spatial attention", ("model.spatial_attention=False",)),
    "no_glu": Variant("no GLU convolutions", ("model.glu_every=0",)),
    "no_subject_layer": Variant("no subject layer", NO_SUBJECTS),
    "no_clamp": Variant("no clamping", ("batches.clamp=None",)),
}
ABLATIONS = tuple(VARIANTS)[tuple(VARIANTS).index("subject_embedding") :]


@dataclass(frozen=True)
class Table:
    """Variants that belong in one table.

    Parameters
    ----------
    title, reference : str
        ``reference`` is the variant that the others are compared with.
    variants : mapping of str to Variant
    axis : str
        What changes along a curve, with its unit; empty where the variants are no curve.
    values : mapping of str to float
        Where on the axis each variant lies.
    unchosen : str
        Why validation does not choose between them; empty where it does.
    """

    title: str
    reference: str
    variants: Mapping[str, Variant]
    axis: str = ""
    values: Mapping[str, float] = dataclasses.field(default_factory=dict)
    unchosen: str = ""


@dataclass(frozen=True)
class Curve:
    """One constant at several values.

    Parameters
    ----------
    axis : str
        Its name and unit.
    setting : callable
        (recipe, value, all values of the curve) -> the settings that put it in force.
    values : tuple of float
        Unless others are asked for.
    present : callable
        recipe -> the value that the recipe has, or None.
    counts : bool
        Whether values are numbers of something.
    """

    axis: str
    setting: Callable[[Recipe, float, Sequence[float]], tuple[str, ...]]
    values: tuple[float, ...]
    present: Callable[[Recipe], float | None]
    counts: bool = False


def _room(recipe: Recipe, lengths: Sequence[float]) -> float:
    """Give the room that windows of all lengths have: that of the longest, so that they begin at the same places."""
    return max(*lengths, recipe.segments.room or 0)


CURVES: dict[str, Curve] = {
    "lag": Curve(
        "lag, ms",
        lambda recipe, value, values: (f"batches.lag={value / 1000:g}",),
        (0, 50, 100, 150, 200, 250, 300),
        lambda recipe: 1000 * recipe.batches.lag,
    ),
    "window": Curve(
        "window, s",
        lambda recipe, value, values: (
            f"segments.tmax={recipe.segments.tmin + value:g}",
            f"segments.room={_room(recipe, values):g}",
        ),
        (1, 2, 3, 4, 5),
        lambda recipe: recipe.segments.duration,
    ),
    "mels": Curve(
        "mel bands",
        lambda recipe, value, values: ("feature.name=mel", f"feature.n_mels={value:g}"),
        (20, 40, 80, 120),
        lambda recipe: recipe.feature.options.get("n_mels", 120),  # of another feature, the number of the paper
        counts=True,
    ),
    "temperature": Curve(
        "temperature",
        lambda recipe, value, values: (f"loss.temperature={value:g}",),
        (0.1, 0.3, 1, 3, 10),
        lambda recipe: recipe.loss.options.get("temperature"),
    ),
}
RUNGS = ("base", "contrastive", "deep_mel", "wav2vec2")
RANDOM = "random"  # chance, which needs no fit


def _beside(names: Sequence[str], values: Sequence[float], deviations: Sequence[float]) -> dict[str, tuple[float, float]]:
    return dict(zip(names, zip(values, deviations, strict=True), strict=True))


# Top-10 accuracy in per cent, mean and standard deviation over three seeds, of Table 2 and of the table of ablations, which comes from an
# older run.
PUBLISHED: dict[str, dict[str, dict[str, tuple[float, float]]]] = {
    "table2": {
        "brennan2019": _beside((RANDOM, *RUNGS), (5.3, 6.0, 8.0, 24.7, 25.7), (0.1, 0.9, 4.8, 3.2, 2.9)),
        "broderick2019": _beside((RANDOM, *RUNGS), (0.5, 1.0, 9.7, 15.4, 17.7), (0.1, 0.3, 1.0, 1.6, 0.6)),
        "gwilliams2022": _beside((RANDOM, *RUNGS), (0.7, 12.4, 55.1, 64.4, 70.7), (0.1, 1.2, 0.7, 0.8, 0.1)),
        "schoffelen2019": _beside((RANDOM, *RUNGS), (0.8, 20.6, 55.1, 61.2, 67.5), (0.1, 1.8, 0.9, 0.6, 0.4)),
    },
    "ablations": {
        "schoffelen2019": _beside(
            (REFERENCE, *ABLATIONS),
            (67.3, 64.6, 66.9, 67.3, 65.6, 65.3, 67.2, 62.7, 65.6, 66.7, 42.4, 1.5),
            (0.36, 0.31, 0.79, 0.12, 0.56, 0.28, 0.32, 0.79, 0.28, 0.23, 0.06, 0.36),
        ),
        "gwilliams2022": _beside(
            (REFERENCE, *ABLATIONS),
            (66.7, 66.7, 66.5, 65.2, 64.9, 62.4, 65.1, 64.0, 61.9, 66.3, 44.3, 22.3),
            (0.15, 0.25, 0.36, 0.09, 1.29, 0.30, 0.92, 0.62, 0.35, 0.17, 1.24, 23.17),
        ),
        "broderick2019": _beside(
            (REFERENCE, *ABLATIONS),
            (13.4, 14.7, 13.3, 12.3, 12.5, 11.0, 11.2, 11.9, 11.9, 6.9, 6.9, 1.0),
            (0.39, 0.45, 0.24, 1.14, 0.22, 1.33, 0.89, 0.52, 0.42, 5.13, 1.25, 0.39),
        ),
        "brennan2019": _beside(
            (REFERENCE, *ABLATIONS),
            (25.7, 29.4, 27.1, 26.8, 24.6, 24.3, 19.0, 22.1, 20.6, 6.0, 20.2, 14.1),
            (2.93, 0.59, 2.63, 0.68, 2.12, 2.67, 4.40, 1.92, 2.15, 0.17, 1.34, 1.02),
        ),
    },
}
SOURCES = {
    "table2": "Défossez et al. 2023, Table 2: the paper's protocol, three seeds",
    "ablations": "published with the code of Défossez et al. 2023: an older run than Table 2, to be compared with its own reference",
}
SUBJECTS = "subjects"  # a curve, too, but its points depend on who there is
NO_CHOICE = "Validation chooses no number of subjects: more of them are more data, not a setting, and each number has its own windows."
TABLES = ("table2", "ablations", *CURVES, SUBJECTS)


def known(recipe: Recipe) -> dict[str, Variant]:
    """Give all variants of a recipe by name: those of the paper, and its own."""
    return VARIANTS | {
        name: Variant(f"the recipe's own: {', '.join(settings)}", tuple(settings)) for name, settings in recipe.variants.items()
    }


def apply(recipe: Recipe, variant: str | Variant) -> Recipe:
    """Give a recipe with a variant's settings.

    Raises
    ------
    ValueError
        If there is no such variant, or the recipe has nothing that it changes.
    """
    name = variant if isinstance(variant, str) else ""
    if isinstance(variant, str):
        if variant not in (all_of_them := known(recipe)):
            raise ValueError(f"Unknown variant {variant!r}; there are {', '.join(all_of_them)}.")
        variant = all_of_them[variant]
    if name in ABLATIONS and recipe.model.name != "conv" and any(s.startswith("model.") for s in variant.settings):
        raise ValueError(f"The variant {name!r} changes the model 'conv', but {recipe.name} has {recipe.model.name!r}.")
    return recipes.change(recipe, variant.settings)


def table(recipe: Recipe, what: str, *, n_subjects: int | None = None, names: Sequence[str] = ()) -> Table:
    """Collect the variants of one table.

    Parameters
    ----------
    what : str
        ``table2``, ``ablations``; a curve: ``lag``, ``window``, ``mels``, ``temperature``, ``subjects``, with values of one's own if they
        follow (``subjects=3,6,9``); or names of variants with commas between them, compared with the recipe as it is.
    n_subjects : int, optional
        How many there are; for ``subjects``.
    names : sequence of str
        Who they are, in their order; for ``subjects``, unless the recipe takes the first of all there are. With them, more than there are
        is an error.

    Raises
    ------
    ValueError
        If it names something that there is not.
    """
    if what == "table2":
        return Table("From regression to contrastive learning on wav2vec 2.0", "wav2vec2", {name: VARIANTS[name] for name in RUNGS})
    if what == "ablations":
        return Table("Ablations", REFERENCE, {name: VARIANTS[name] for name in (REFERENCE, *ABLATIONS)})
    curve, asked, text = what.partition("=")
    if asked and curve not in (*CURVES, SUBJECTS):
        raise ValueError(f"Values can follow {', '.join((*CURVES, SUBJECTS))}, as in window=1,3,5; got {what!r}.")
    if curve == SUBJECTS:
        return _subjects(recipe, n_subjects, names, _values(what, text, counts=True) if asked else ())
    if curve in CURVES:
        return _curve(recipe, curve, _values(what, text, counts=CURVES[curve].counts) if asked else CURVES[curve].values)
    names = [name.strip() for name in what.split(",") if name.strip()]
    unknown = [name for name in names if name not in known(recipe)]
    if unknown or not names:
        raise ValueError(
            f"--variants takes {', '.join(TABLES)}, or variants with commas between them ({', '.join(known(recipe))}); "
            f"got {', '.join(unknown) or 'nothing'}."
        )
    chosen = dict.fromkeys([REFERENCE, *names])
    return Table("Variants", REFERENCE, {name: known(recipe)[name] for name in chosen})


def _values(what: str, text: str, *, counts: bool) -> tuple[float, ...]:
    """Read the values that are asked for, in order."""
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        values = []
    if len(values) < 2 or not all(map(math.isfinite, values)):
        raise ValueError(f"A curve takes two or more different numbers with commas between them, as in window=1,3,5; got {what!r}.")
    if counts and not all(value >= 1 and value == int(value) for value in values):
        raise ValueError(f"{what.partition('=')[0]} takes whole numbers from 1 on, got {what!r}.")
    return tuple(values)


def _subjects(recipe: Recipe, n_subjects: int | None, names: Sequence[str], asked: Sequence[float]) -> Table:
    """Collect the points of the curve over subjects: the first 1, 2, 4 ... and all, or those asked for; the reference has the most."""
    if n_subjects is None or n_subjects < 2:
        raise ValueError(f"The curve over subjects needs at least 2 subjects, got {n_subjects}.")
    numbers = [int(n) for n in asked] or [2**k for k in range(n_subjects.bit_length()) if 2**k < n_subjects] + [n_subjects]
    if names and numbers[-1] > len(names):
        raise ValueError(f"The curve over subjects was asked for the first {numbers[-1]}, but there are {len(names)}. Ask for fewer.")
    first = recipe.subjects == "all" or recipe.subjects.startswith("first:")
    spec = {n: f"first:{n}" if first else ",".join(str(subjects.number(name)) for name in names[:n]) for n in numbers}
    points = {f"subjects-{n}": Variant(f"the first {n} of {n_subjects}", (f"subjects={spec[n]}",)) for n in numbers}
    at = dict(zip(points, map(float, numbers), strict=True))
    return Table("Number of subjects", f"subjects-{numbers[-1]}", points, SUBJECTS, at, NO_CHOICE)


def _curve(recipe: Recipe, what: str, values: Sequence[float]) -> Table:
    """Collect the points of a curve; the reference is the nearest to what the recipe has, or the middle one."""
    curve = CURVES[what]
    quantity, _, unit = curve.axis.partition(", ")
    where = f", where {_room(recipe, values):g} s fit" if what == "window" else ""
    points = {
        f"{what}-{value:g}": Variant(f"{quantity}: {value:g} {unit}".rstrip() + where, curve.setting(recipe, value, values))
        for value in values
    }
    at = dict(zip(points, values, strict=True))
    present = curve.present(recipe)
    middle = list(points)[len(points) // 2]
    reference = middle if present is None else min(at, key=lambda name: abs(at[name] - present))
    return Table(quantity.capitalize(), reference, points, curve.axis, at)


def run(
    recipe: Recipe,
    what: str,
    *,
    root: str | os.PathLike | None,
    out: str | os.PathLike,
    cache: Cache,
    source: str = "",
    rows: Sequence[str] | None = ("encoder",),
    progress: bool = True,
    n_jobs: int = 1,
    scheduler: str | os.PathLike | None = None,
) -> report.Ladder:
    """Run all variants of a table, each into its own folder under ``out``, and write the table.

    What is finished is not run again, so a run that was stopped goes on with the same call. A variant that cannot be run is listed with the
    reason.

    Parameters
    ----------
    recipe : Recipe
    what : str
        See ``table``.
    rows : sequence of str or None
        Rows of the report of every variant but the reference, which has the recipe's; None: the recipe's for all.
    n_jobs, scheduler
        As in ``flow.run``.

    Raises
    ------
    ValueError
        If ``out`` is the folder of a run.
    RuntimeError
        If the reference cannot be run, or nothing else can.
    """
    processes.start()
    processes.alone(lambda: check_folder(Path(out)))
    names = _chosen_subjects(recipe, root) if what.partition("=")[0] == SUBJECTS else []
    plan = table(recipe, what, n_subjects=len(names), names=names)
    out = Path(out)
    failed: dict[str, str] = {}
    # The reference first: without it there is no table, and the others would have been fitted for nothing.
    for i, name in enumerate(sorted(plan.variants, key=lambda name: name != plan.reference)):
        variant = plan.variants[name]
        print(f"brainspeech: variant {i + 1} of {len(plan.variants)}: {name} ({variant.meaning}).", file=sys.stderr)
        try:
            one = apply(recipe, name if name in known(recipe) else variant)
            if rows is not None and name != plan.reference:
                one = dataclasses.replace(one, rows=tuple(rows))
            one = dataclasses.replace(one, title=f"{recipe.title} ({variant.meaning})")
            _run_one(one, root=root, out=out / name, cache=cache, source=source, progress=progress, n_jobs=n_jobs, scheduler=scheduler)
        except processes.Lost:
            raise  # says nothing of the variant
        except (ValueError, RuntimeError, OSError) as error:
            cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
            if isinstance(cause, OSError) and cause.errno in FULL:
                raise  # the next would meet the same disk
            if name == plan.reference:
                raise RuntimeError(f"The reference of the table, {name}, cannot be run: {error}") from error
            failed[name] = str(error)
            print(f"brainspeech: {name} cannot be run: {error}", file=sys.stderr)
            processes.end_together(error)
        else:
            processes.end_together(None)
    result = _compare(recipe, what, plan, out, failed)
    processes.alone(lambda: report.write_ladder(result, out))
    return result


def check_folder(out: Path) -> None:
    """Refuse a folder that holds a run: a table would be mixed with what is there.

    Raises
    ------
    ValueError
        If it holds one, or cannot be a folder.
    """
    claiming.check_place(out)
    there = [name for name in ("recipe.json", "report.json") if (out / name).is_file()]
    if there:
        raise ValueError(f"{out} holds a run ({', '.join(there)}), not a table of variants. Give another folder (--out DIR).")


def is_begun(recipe: Recipe, what: str, out: Path) -> bool:
    """Whether a folder holds a table, or the run of a variant that ``table`` gives for the same words."""
    if (out / "ladder.json").is_file():
        return True
    if what.partition("=")[0] == SUBJECTS:  # its points depend on who there is
        return any(out.glob(f"{SUBJECTS}-*/recipe.json"))
    return any((out / name / "recipe.json").is_file() for name in table(recipe, what).variants)


def _chosen_subjects(recipe: Recipe, root: str | os.PathLike | None) -> list[str]:
    """Name the subjects that a recipe takes, in their order."""
    dataset = flow.load_dataset(recipe, root)
    chosen = flow.select_subjects(dataset.recordings(), recipe.subjects, published=dataset.published)
    return sorted({recording.subject for recording in chosen})


def _run_one(recipe: Recipe, *, root: str | os.PathLike | None, out: Path, source: str, **options: Any) -> None:
    """Run one variant unless its folder holds the finished run; all processes do what the first one finds."""
    finished = processes.alone(lambda: _finished(recipe, out, root, source))
    if not processes.from_first([bool(finished)])[0]:
        flow.run(recipe, root=root, out=out, source=source, **options)


def _compare(recipe: Recipe, what: str, plan: Table, out: Path, failed: Mapping[str, str]) -> report.Ladder:
    """Put the runs of a table side by side, the published numbers beside them."""
    return report.ladder(
        {name: out / name for name in plan.variants if name not in failed},
        reference=plan.reference,
        title=f"{plan.title}: {recipe.title}",
        names={name: variant.meaning for name, variant in plan.variants.items()},
        axis=plan.axis or None,
        values=plan.values or None,
        failed=failed,
        published={name: (mean / 100, sd / 100) for name, (mean, sd) in PUBLISHED.get(what, {}).get(recipe.dataset.name, {}).items()},
        source=SOURCES.get(what, ""),
        chance=None if plan.axis else RANDOM,
        unchosen=plan.unchosen,
    )


def _finished(recipe: Recipe, out: Path, root: str | os.PathLike | None, source: str) -> bool:
    """Whether a folder holds the finished run of this very recipe."""
    if not (out / "report.json").is_file():
        return False
    claiming.hold(out, recipes.settle(recipe), root=root, source=source).release()
    return report.load(out).provenance.get("recipe", {}).get("evaluate") == recipe.to_dict()["evaluate"]
