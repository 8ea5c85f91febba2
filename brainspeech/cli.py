"""The command line: brainspeech run, prepare, describe, evaluate, report, audit, release, download, verify, simulate.

Only the standard library is imported at the top, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from brainspeech import stopping

if TYPE_CHECKING:
    from brainspeech.recipe import Recipe

EPILOG = """examples:
  brainspeech run demo                                      the whole flow on simulated M/EEG, a few minutes on a laptop
  brainspeech run cocktail_eeg --root data/cocktail_eeg     real EEG of a listener in a crowd
  brainspeech run my_recipe.py --root data --set train.max_epochs=5
  brainspeech describe demo --json                          who was recorded, what was heard, how it is split
  brainspeech report runs/demo                              the table of a finished run, and where its pages are
  brainspeech audit runs/demo                               prove that the split of a run does not leak

RECIPE is the name of a shipped recipe, a recipe.py, or a folder with one.
Add --help after a command for its options."""

RUN_EPILOG = """--set changes any constant of the recipe, for example
  --set train.max_epochs=5            --set segments.test_ratio=0.3        --set batches.lag=0.2
  --set feature.name=mel              --set feature.n_mels=40              --set model.hidden=160
  --set dataset.subjects=first:3      --set preprocess.highpass=0.5        --set seeds=(1,2,3)
A wrong name is answered with the names there are.

Without --root the files of an open dataset (brennan2019, ds004408, gwilliams2022) are fetched into data/NAME, those of the subjects that
are asked for; what is there is not fetched again. The first line says so, and how much is to come.

A run that was stopped goes on where it stopped when the same command is given again."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 could not, 2 wrong arguments, 3 --strict found a warning."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "30")  # a log file is no place for ten bars a second
    if arguments.command is None:
        parser.print_help()
        return 2
    rank = int(os.environ.get("RANK", "0")) if os.environ.get("WORLD_SIZE", "1") != "1" else 0
    if rank and arguments.command not in (_run, _evaluate):
        return 0  # what no launcher is needed for is done by its first process
    try:
        with stopping.at_once(), _silent() if rank else nullcontext():
            return arguments.command(arguments)
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("BRAINSPEECH_TRACEBACK"):
            raise
        if not (rank and getattr(error, "elsewhere", False)):  # else it was said already
            print(f"brainspeech: {f'process {rank}: ' * (rank > 0)}{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        said = str(error) or "interrupted. What was finished is kept; the same command goes on from there."
        if not rank:
            print(f"\nbrainspeech: {said}", file=sys.stderr)
        return 128 + getattr(error, "signum", 2)
    finally:
        if "brainspeech.processes" in sys.modules:
            sys.modules["brainspeech.processes"].end()


@contextmanager
def _silent() -> Iterator[None]:
    """Print nothing inside the block: the first of several processes speaks for all."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="brainspeech",
        description="Decode perceived speech from M/EEG: which of many speech segments was this brain hearing?",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"brainspeech {_version()}")
    parser.set_defaults(command=None)
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND")

    run = verbs.add_parser(
        "run",
        help="run a recipe from recordings to report",
        description="Run a recipe: preprocess, cut, train the encoder, its references and its controls, evaluate, write the report.",
        epilog=RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_recipe(run, root="folder of the dataset (without it the files of an open dataset are fetched into data/NAME)")
    run.add_argument("--out", metavar="DIR", help="run folder (default: runs/RECIPE)")
    run.add_argument("--seeds", type=int, metavar="N", help="fit everything N times with seeds counting up from the recipe's first")
    run.add_argument("--variant", metavar="V", help="one of the paper's variants, such as no_skips, or of the recipe's own")
    run.add_argument(
        "--variants",
        metavar="TABLE",
        help="run a table of variants: table2, ablations, lag, window, mels, temperature, subjects, or names with commas between them",
    )
    run.add_argument("--resume", action="store_true", help="go on with a stopped run; fails where there is none")
    run.add_argument("--strict", action="store_true", help="exit with status 3 if a control is above chance or the lag curve peaks at 0")
    _add_spreading(run)
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    run.set_defaults(command=_run)

    prepare = verbs.add_parser(
        "prepare",
        help="preprocess signals and compute features into the cache, and stop before training",
        description="Do everything of a run that comes before training, so that a run with the same cache starts training at once.",
    )
    _add_recipe(prepare, root="folder of the dataset (without it the files of an open dataset are fetched into data/NAME)")
    prepare.add_argument("--verify", action="store_true", help="check the files of the cache instead, and remove what is damaged")
    _add_spreading(prepare)
    prepare.add_argument("--quiet", action="store_true", help="no progress bars")
    prepare.set_defaults(command=_prepare)

    describe = verbs.add_parser(
        "describe",
        help="say who was recorded, what was heard, and how it is split",
        description="Read recordings and events, cut and split them, and count. Trains nothing and computes no features.",
    )
    _add_recipe(describe, what="RECIPE or DATASET")
    describe.add_argument("--protocol", choices=("clean", "paper"), help="the recipe's own if not given")
    describe.add_argument("--onsets", choices=("corrected", "published"), help="event times as corrected or as the paper had them")
    describe.add_argument("--subjects", metavar="S", help="all, published, first:3, or the dataset's own numbers such as 1-5,7")
    describe.add_argument("--json", action="store_true", help="print JSON")
    describe.set_defaults(command=_describe)

    evaluate = verbs.add_parser(
        "evaluate",
        help="score the checkpoints of a run again and print its report",
        description="Score the checkpoints of a run on its test split again, write its report again and print the table.",
    )
    _add_run(evaluate)
    evaluate.add_argument("--root", metavar="DIR", help="folder of the dataset, if it has moved since")
    evaluate.add_argument("--cache", metavar="DIR", help="cache folder (default: BRAINSPEECH_CACHE or ~/.cache/brainspeech)")
    evaluate.add_argument(
        "--set", action="append", default=[], metavar="evaluate.field=value", help="change how scores are evaluated; repeatable"
    )
    evaluate.add_argument("--json", action="store_true", help="print report.json instead of the table")
    evaluate.add_argument("--strict", action="store_true", help="exit with status 3 if there is a warning about a control or the lag curve")
    evaluate.add_argument("--quiet", action="store_true", help="no progress bars")
    evaluate.set_defaults(command=_evaluate)

    report = verbs.add_parser(
        "report",
        help="print the table of a finished run and draw its pages again; or put several runs side by side",
        description="Read report.json and write the pages again. Given several runs (seeds, variants), compare them with the first.",
    )
    report.add_argument("run", metavar="RUN", nargs="+", help="a run folder, such as runs/demo; several are compared with the first")
    report.add_argument("--out", metavar="DIR", help="folder of the comparison's pages (default: comparison, beside the first run)")
    report.set_defaults(command=_report)

    audit = verbs.add_parser(
        "audit",
        help="prove that the split of a run does not leak",
        description="Check the windows that a run used: no window crosses a block, no audio interval stands on two sides of the split "
        "(exit status 1 otherwise). Sentence texts that stand on two sides are listed.",
    )
    _add_run(audit)
    audit.add_argument("--json", action="store_true", help="print JSON")
    audit.set_defaults(command=_audit)

    release = verbs.add_parser(
        "release",
        help="put together what can be given away of a finished run, and check that it works",
        description="Weights, model card, report, constants and SHA256SUMS in one folder, loaded and checked in a fresh process. Nothing "
        "of the data goes in.",
    )
    _add_run(release)
    release.add_argument("out", metavar="DIR", nargs="?", help="folder of the release: new, or an earlier release")
    release.add_argument("--name", default="", help="name of the model on its card (default: the recipe's)")
    release.add_argument("--licence", metavar="ID", help="licence of the weights, such as cc-by-4.0")
    release.add_argument("--despite-alarms", action="store_true", help="release although a control is above chance; the card says so")
    release.add_argument("--verify", action="store_true", help="check the released folder RUN instead")
    release.set_defaults(command=_release)

    download = verbs.add_parser(
        "download",
        help="fetch a dataset's files, with size and digest checked",
        description="Fetch a dataset into a folder: parallel, resumed where cut, every size and digest checked. Files that are there "
        "and right are not fetched again. A dataset that needs an account says what to do.",
    )
    _add_files(download)
    download.set_defaults(command=_download)

    verify = verbs.add_parser(
        "verify",
        help="check a dataset's files: missing, wrong size, wrong digest",
        description="Check the files of a dataset in a folder by name, size and digest, and print the command that repairs them "
        "(exit status 1 if anything is missing or wrong).",
    )
    _add_files(verify)
    verify.add_argument("--json", action="store_true", help="print JSON")
    verify.set_defaults(command=_verify)

    simulate = verbs.add_parser(
        "simulate",
        help="write simulated listeners as a BIDS folder",
        description="Simulate M/EEG of listeners and write it as a BIDS folder that any other tool can read.",
    )
    simulate.add_argument("--bids", metavar="DIR", required=True, help="new folder to write")
    simulate.add_argument(
        "--set", action="append", default=[], metavar="field=value", help="what is simulated, such as n_subjects=2, kind=meg"
    )
    simulate.add_argument("--quiet", action="store_true", help="no progress bars")
    simulate.set_defaults(command=_simulate)
    return parser


def _version() -> str:
    from brainspeech import __version__

    return __version__


def _add_recipe(parser: argparse.ArgumentParser, what: str = "RECIPE", root: str = "folder of the dataset") -> None:
    parser.add_argument("recipe", metavar=what, help="name of a shipped recipe, a recipe.py, or a folder with one")
    parser.add_argument("--root", metavar="DIR", help=root)
    parser.add_argument("--cache", metavar="DIR", help="cache folder (default: BRAINSPEECH_CACHE or ~/.cache/brainspeech)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.field=value", help="change a constant of the recipe; repeatable"
    )


def _add_spreading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--n-jobs",
        type=int,
        default=1,
        metavar="N",
        help="preprocess recordings and compute features in N processes (-1: one on each core; default: 1)",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS_OR_FILE",
        help="or on a dask cluster: tcp://HOST:PORT, or a scheduler file; the same files are needed there",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/demo")


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dataset", metavar="DATASET", help="a dataset with a manifest, such as brennan2019")
    parser.add_argument("--root", metavar="DIR", required=True, help="folder of the files")
    parser.add_argument(
        "--subjects", metavar="S", default="all", help="all, published, first:3, or the dataset's own numbers such as 1-5,7"
    )
    parser.add_argument(
        "--what", default="recordings,events,audio", metavar="W", help="kinds of files, comma separated (default: %(default)s)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def _cache(folder: str | None):
    from brainspeech.cache import open_cache

    return open_cache(folder)


def _load(arguments: argparse.Namespace) -> Recipe:
    from brainspeech import recipe as recipes

    return recipes.change(recipes.load(arguments.recipe), arguments.set)


def _run(arguments: argparse.Namespace) -> int:
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
    name = arguments.variants if arguments.variants in variants.TABLES else "variants"
    out = Path(arguments.out or Path("runs") / f"{recipe.name}-{name}")
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
    return 0


def _prepare(arguments: argparse.Namespace) -> int:
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


def _describe(arguments: argparse.Namespace) -> int:
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
    path = Path(folder) / "recipe.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no run folder (no recipe.json). Make one: brainspeech run RECIPE --out {folder}")
    try:
        return Path(folder), json.loads(path.read_text())
    except ValueError as error:
        raise RuntimeError(f"{path} is damaged ({error}). Delete {folder} and run the recipe again.") from error


def _evaluate(arguments: argparse.Namespace) -> int:
    from brainspeech import flow
    from brainspeech import recipe as recipes

    out, kept = _open_run(arguments.run)
    if not (out / "report.json").is_file():
        raise RuntimeError(f"{out} has not come to its report yet. Go on with it: brainspeech run {kept['source']} --out {out}")
    recipe = recipes.restore(recipes.load(kept["source"]), kept["recipe"])
    other = [setting for setting in arguments.set if not setting.strip().startswith("evaluate.")]
    if other:
        raise ValueError(f"A finished run can only be evaluated in another way (--set evaluate.field=value), got {', '.join(other)}.")
    recipe = recipes.change(recipe, arguments.set)
    result = flow.run(
        recipe,
        root=arguments.root or kept["root"],
        out=out,
        cache=_cache(arguments.cache),
        source=kept["source"],
        progress=not (arguments.quiet or arguments.json),
    )
    if arguments.json:
        print((out / "report.json").read_text())
        return 3 if arguments.strict and result.alarms else 0
    return _show(result, out, strict=arguments.strict)


def _report(arguments: argparse.Namespace) -> int:
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


def _audit(arguments: argparse.Namespace) -> int:
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


def _release(arguments: argparse.Namespace) -> int:
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


def _download(arguments: argparse.Namespace) -> int:
    from brainspeech import manifests

    text, status = manifests.download_command(
        arguments.dataset, arguments.root, subjects=arguments.subjects, what=arguments.what, progress=not arguments.quiet
    )
    print(text)
    return status


def _verify(arguments: argparse.Namespace) -> int:
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


def _simulate(arguments: argparse.Namespace) -> int:
    from brainspeech import recipe as recipes
    from brainspeech.datasets import phantom_bids, simulated

    settings = [f"dataset.{setting.removeprefix('dataset.')}" for setting in arguments.set]
    recipe = recipes.change(recipes.Recipe(name="simulate", title="", dataset=recipes.Choice("simulated")), settings)
    folder = phantom_bids.write_bids(simulated.SimulatedDataset(**recipe.dataset.options), arguments.bids, progress=not arguments.quiet)
    print(f"A BIDS folder of simulated listeners: {folder.resolve()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
