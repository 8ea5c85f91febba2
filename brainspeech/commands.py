"""What the commands do: each takes the arguments of the command line, prints, and gives the exit status.

Only the standard library is imported at the top, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from brainspeech.recipe import Recipe


def _cache(folder: str | None):
    from brainspeech.cache import open_cache

    return open_cache(folder)


def _load(arguments: argparse.Namespace) -> Recipe:
    from brainspeech import recipe as recipes

    return recipes.change(recipes.load(arguments.recipe), arguments.set)


def run(arguments: argparse.Namespace) -> int:
    import dataclasses

    from brainspeech import flow
    from brainspeech import recipe as recipes

    recipe = _load(arguments)
    if arguments.seeds is not None:
        if arguments.seeds < 1:
            raise ValueError(f"--seeds takes a number of 1 or more, got {arguments.seeds}.")
        recipe = dataclasses.replace(recipe, seeds=tuple(recipe.seeds[0] + i for i in range(arguments.seeds)))
    if arguments.variants:
        return _run_variants(recipe, arguments)
    name = recipe.name
    if arguments.variant:
        from brainspeech import variants

        recipe = variants.apply(recipe, arguments.variant)
        name = f"{name}-{arguments.variant}"
    out = Path(arguments.out or Path("runs") / name)
    if arguments.resume and not (out / "recipe.json").is_file():
        raise FileNotFoundError(f"--resume: {out} holds no run (no recipe.json). Leave --resume out to start one.")
    if (out / "report.json").is_file():
        print(f"brainspeech: {out} holds a finished run; what is fitted is not fitted again.", file=sys.stderr)
    elif (out / "recipe.json").is_file():
        print(f"brainspeech: going on with the run in {out}.", file=sys.stderr)
    result = flow.run(
        recipe,
        root=_data(recipe, arguments),
        out=out,
        cache=_cache(arguments.cache),
        source=str(recipes.find(arguments.recipe)),
        progress=not arguments.quiet,
        n_jobs=arguments.n_jobs,
        scheduler=arguments.scheduler,
    )
    return _show(result, out, strict=arguments.strict)


def _run_variants(recipe: Recipe, arguments: argparse.Namespace) -> int:
    from brainspeech import recipe as recipes
    from brainspeech import report, variants

    if arguments.variant:
        raise ValueError("Give --variant for one run, or --variants for a table of them, not both.")
    variants.table(recipe, arguments.variants, n_subjects=2)  # a wrong name is found before gigabytes are on their way
    name = arguments.variants.partition("=")[0].strip()
    name = name if name in variants.TABLES else "variants"
    out = Path(arguments.out or Path("runs") / f"{recipe.name}-{name}")
    variants.check_folder(out)
    if arguments.resume and not variants.is_begun(recipe, arguments.variants, out):
        raise FileNotFoundError(f"--resume: {out} holds no table of variants, nor one of these. Leave --resume out to start one.")
    rows_given = any(setting.partition("=")[0].strip() == "rows" for setting in arguments.set)
    result = variants.run(
        recipe,
        arguments.variants,
        root=_data(recipe, arguments),
        out=out,
        cache=_cache(arguments.cache),
        source=str(recipes.find(arguments.recipe)),
        rows=None if rows_given else ("encoder",),
        progress=not arguments.quiet,
        n_jobs=arguments.n_jobs,
        scheduler=arguments.scheduler,
    )
    print(report.ladder_table(result))
    print(f"\nThe table with its figures: {(out / 'ladder.html').resolve()}")
    return 3 if arguments.strict and result.alarms else 0


def prepare(arguments: argparse.Namespace) -> int:
    from brainspeech import flow

    recipe = _load(arguments)
    if arguments.verify:
        found = _cache(arguments.cache).verify(remove=True)
        print(f"{found.n_whole} entries of the cache are whole, {found.n_unchecked} have no checksum, {len(found.damaged)} were damaged.")
        print("\n".join(f"  removed: {damage}" for damage in found.damaged), end="\n" if found.damaged else "")
        return 1 if found.damaged else 0
    root = arguments.root or _fetched(recipe, progress=not arguments.quiet)  # of several processes only the first comes here
    done = flow.fill_cache(
        recipe,
        root,
        _cache(arguments.cache),
        progress=not arguments.quiet,
        n_jobs=arguments.n_jobs,
        scheduler=arguments.scheduler,
    )
    print(
        f"{recipe.name}: {done['recordings']} recordings, {done['hours']:.2f} h of up to {done['channels']} channels, and "
        f"{done['tracks']} feature tracks of {done['seconds'] / 60:.1f} min of sound are in the cache; {done['segments']} segments."
    )
    return 0


def _data(recipe: Recipe, arguments: argparse.Namespace) -> str | Path | None:
    """Give the folder of the dataset: as it was said, or where the first process fetches it."""
    if arguments.root:
        return arguments.root
    from brainspeech import processes

    processes.start()
    return processes.first(lambda: _fetched(recipe, progress=not arguments.quiet))


def _fetched(recipe: Recipe, *, progress: bool) -> Path | None:
    """Bring an open dataset into data/NAME where no folder was given; None for a dataset that has no manifest."""
    from brainspeech import manifests
    from brainspeech import recipe as recipes

    name = recipe.dataset.name
    if recipe.load is not None or name not in manifests.names():
        return None
    recipes.check(recipes.settle(recipe))  # before gigabytes are on their way
    root = Path("data") / name
    manifest = manifests.load(name)
    if manifest.entries:
        todo = manifests.plan(manifest, root, subjects=recipe.subjects)
        if not todo.n_bytes and not todo.n_unknown_size:
            return root  # by their sizes; what is in the files is for verify
    print(f"brainspeech: no --root DIR, so the files of {name} are fetched into {root}.", file=sys.stderr)
    text, status = manifests.download_command(
        name, root, subjects=recipe.subjects, progress=progress, tell=lambda said: print(said, file=sys.stderr)
    )
    if status:
        raise RuntimeError(text)
    print(text, file=sys.stderr)
    return root


def _show(result, out: Path, *, strict: bool) -> int:
    from brainspeech import report

    print(report.table(result))
    print(f"\nThe report with its figures: {(out / 'report.html').resolve()}")
    return 3 if strict and result.alarms else 0


def describe(arguments: argparse.Namespace) -> int:
    import dataclasses

    from brainspeech import datasets, flow
    from brainspeech import recipe as recipes

    try:
        recipe = _load(arguments)
    except recipes.NoRecipe:
        if arguments.recipe not in datasets.DATASETS:
            raise
        recipe = recipes.Recipe(name=arguments.recipe, title=arguments.recipe, dataset=recipes.Choice(arguments.recipe))
        recipe = recipes.change(recipe, arguments.set)
    if arguments.onsets:
        recipe = recipes.change(recipe, [f"dataset.onsets={arguments.onsets}"])
    if arguments.protocol:
        recipe = recipes.change(recipe, [f"segments.protocol={arguments.protocol}"])
    if arguments.subjects:
        recipe = dataclasses.replace(recipe, subjects=arguments.subjects)
    if recipe.load is None and recipe.dataset.name == "bids":
        return _understand(recipe, arguments)
    found = flow.describe(recipe, arguments.root)
    print(json.dumps(found, indent=2) if arguments.json else _description(recipe.name, found))
    return 0


def _understand(recipe: Recipe, arguments: argparse.Namespace) -> int:
    """Say what is understood of a BIDS folder, then how it is split, if everything is there that the split needs."""
    from brainspeech import flow
    from brainspeech.datasets import bids

    understood = bids.understand(_root(arguments.root), **recipe.dataset.options)
    try:
        found, obstacle = flow.describe(recipe, arguments.root), ""
    except (ValueError, RuntimeError, OSError) as error:
        found, obstacle = {}, str(error)
    if arguments.json:
        print(json.dumps({**found, "understood": understood, "obstacle": obstacle}, indent=2))
    else:
        print(bids.explain(understood))
        print(f"\n{_description(recipe.name, found)}" if found else f"\nNot split: {obstacle}")
    return 0


def _root(folder: str | None) -> str:
    if folder is None:
        raise ValueError("Say where the files are: --root DIR.")
    return folder


def _description(name: str, found: dict) -> str:
    lines = [
        f"{name}: {found['subjects']} subjects, {found['recordings']} recordings, {found['hours']:.2f} h",
        f"{'split':<8}{'segments':>10}{'windows':>10}{'words':>10}{'vocabulary':>12}",
    ]
    for split, counts in found["splits"].items():
        lines.append(
            f"{split:<8}" + "".join(f"{counts[k]:>{n}}" for k, n in (("segments", 10), ("windows", 10), ("words", 10), ("vocabulary", 12)))
        )
    overlap = found["vocabulary_overlap"]
    lines.append("vocabulary of the test split seen in training: " + ("none heard" if overlap is None else f"{overlap:.1%}"))
    lines += [f"left out: {n} {reason}" for reason, n in found["dropped"].items()]
    lines += [f"note: {warning}" for warning in found["warnings"]]
    return "\n".join(lines)


def _open_run(folder: str) -> tuple[Path, dict]:
    from brainspeech import claiming

    if not (Path(folder) / "recipe.json").is_file():
        if (Path(folder) / "ladder.json").is_file():
            names = sorted(path.parent.name for path in Path(folder).glob("*/report.json"))
            raise FileNotFoundError(f"{folder} is a table of variants, see its ladder.html. Its runs are {', '.join(names)}.")
        raise FileNotFoundError(f"{folder} is no run folder (no recipe.json). Make one: brainspeech run RECIPE --out {folder}")
    return Path(folder), claiming.read(Path(folder))


def evaluate(arguments: argparse.Namespace) -> int:
    from brainspeech import flow
    from brainspeech import recipe as recipes

    out, kept = _open_run(arguments.run)
    if not kept.get("source"):
        raise ValueError(
            f"{out / 'recipe.json'} does not name the recipe.py that the run was made from (source): the run was started in Python, or is "
            "a release. Give the call that made it again, with the same folder and other constants of evaluate."
        )
    if not (out / "report.json").is_file():
        raise RuntimeError(f"{out} has not come to its report yet. Go on with it: brainspeech run {kept['source']} --out {out}")
    recipe = recipes.load(kept["source"])
    try:
        recipe = recipes.restore(recipe, kept["recipe"])
    except (TypeError, KeyError, AttributeError) as error:
        raise RuntimeError(
            f"{out / 'recipe.json'} is damaged, or of another version: its constants are not those of a recipe ({error}). "
            f"Delete {out} and run the recipe again."
        ) from error
    other = [setting for setting in arguments.set if not setting.strip().startswith("evaluate.")]
    if other:
        raise ValueError(f"A finished run can only be evaluated in another way (--set evaluate.field=value), got {', '.join(other)}.")
    recipe = recipes.change(recipe, arguments.set)
    result = flow.run(
        recipe,
        root=arguments.root or kept.get("root"),
        out=out,
        cache=_cache(arguments.cache),
        source=kept["source"],
        progress=not (arguments.quiet or arguments.json),
    )
    if arguments.json:
        print((out / "report.json").read_text())
        return 3 if arguments.strict and result.alarms else 0
    return _show(result, out, strict=arguments.strict)


def report(arguments: argparse.Namespace) -> int:
    from brainspeech import report

    if len(arguments.run) > 1:
        runs = [_open_run(run)[0] for run in arguments.run]
        comparison = report.compare(runs)
        out = Path(arguments.out) if arguments.out else runs[0].resolve().parent / "comparison"
        report.write_comparison(comparison, out)
        print(report.comparison_table(comparison))
        print(f"\nThe comparison with its figures: {(out / 'comparison.html').resolve()}")
        return 0
    if arguments.out:
        raise ValueError("--out is for the comparison of several runs; the pages of one run stand in its folder.")
    out, _ = _open_run(arguments.run[0])
    result = report.load(out)
    report.write(result, out, history=report.load_history(out))
    return _show(result, out, strict=False)


def audit(arguments: argparse.Namespace) -> int:
    from brainspeech import segments

    out, _ = _open_run(arguments.run)
    folds = segments.load(out / "segments.json")
    if not any(fold.segments for fold in folds):
        raise RuntimeError(f"{out / 'segments.json'} holds no windows, so there is nothing to prove. Run the recipe again.")
    audits = [segments.audit(fold.segments, blocks=fold.blocks) for fold in folds]
    errors = sorted({error for audit in audits for error in audit.errors})
    texts = sorted({text for audit in audits for text in audit.repeated_texts})
    n_windows = sum(len(fold.segments) for fold in folds)
    if arguments.json:
        print(json.dumps({"windows": n_windows, "folds": len(folds), "errors": errors, "texts_on_two_sides": texts}, indent=2))
    else:
        checked = f"{n_windows} windows" + (f" in {len(folds)} folds" if len(folds) > 1 else "")
        whole = "no window crosses a block, no moment of audio stands on two sides."
        print(f"{checked}: {whole if not errors else f'{len(errors)} leaks.'}")
        print("\n".join(f"  LEAK {error}" for error in errors[:20]) + ("\n" if errors else ""), end="")
        print(f"{len(texts)} sentence texts stand on two sides" + (":" if texts else "."))
        print("\n".join(f"  {text}" for text in texts[:20]) + ("\n" if texts else ""), end="")
    return 1 if errors else 0


def release(arguments: argparse.Namespace) -> int:
    from brainspeech import release

    if arguments.verify:
        found = release.verify(arguments.run)
        print(found.text())
        return 0 if found.ok else 1
    if arguments.out is None:
        raise ValueError("Say where the release goes: brainspeech release RUN DIR.")
    done = release.release(
        arguments.run, arguments.out, name=arguments.name, licence=arguments.licence, despite_alarms=arguments.despite_alarms
    )
    print(done.text())
    return 0


def download(arguments: argparse.Namespace) -> int:
    from brainspeech import manifests

    text, status = manifests.download_command(
        arguments.dataset, arguments.root, subjects=arguments.subjects, what=arguments.what, progress=not arguments.quiet
    )
    print(text)
    return status


def verify(arguments: argparse.Namespace) -> int:
    from brainspeech import manifests

    text, status = manifests.verify_command(
        arguments.dataset,
        arguments.root,
        arguments.json,
        subjects=arguments.subjects,
        what=arguments.what,
        progress=not (arguments.quiet or arguments.json),
    )
    print(text)
    return status


def simulate(arguments: argparse.Namespace) -> int:
    from brainspeech import recipe as recipes
    from brainspeech.datasets import phantom_bids, simulated

    settings = [f"dataset.{setting.removeprefix('dataset.')}" for setting in arguments.set]
    recipe = recipes.change(recipes.Recipe(name="simulate", title="", dataset=recipes.Choice("simulated")), settings)
    folder = phantom_bids.write_bids(simulated.SimulatedDataset(**recipe.dataset.options), arguments.bids, progress=not arguments.quiet)
    print(f"A BIDS folder of simulated listeners: {folder.resolve()}")
    return 0
