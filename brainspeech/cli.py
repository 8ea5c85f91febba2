"""The command line: brainspeech run, describe, evaluate, report, audit.

Only the standard library is imported at the top, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

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

A run that was stopped goes on where it stopped when the same command is given again."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status: 0 done, 1 could not, 2 wrong arguments, 3 --strict found a warning."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help()
        return 2
    try:
        return arguments.command(arguments)
    except (ValueError, RuntimeError, OSError) as error:
        if os.environ.get("BRAINSPEECH_TRACEBACK"):
            raise
        print(f"brainspeech: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nbrainspeech: interrupted. What is done is kept; the same command goes on from here.", file=sys.stderr)
        return 130


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
    _add_recipe(run)
    run.add_argument("--out", metavar="DIR", help="run folder (default: runs/RECIPE)")
    run.add_argument("--seeds", type=int, metavar="N", help="fit everything N times with seeds counting up from the recipe's first")
    run.add_argument("--resume", action="store_true", help="go on with a stopped run; fails where there is none")
    run.add_argument("--strict", action="store_true", help="exit with status 3 if a control is above chance or the lag curve peaks at 0")
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    run.set_defaults(command=_run)

    describe = verbs.add_parser(
        "describe",
        help="say who was recorded, what was heard, and how it is split",
        description="Read recordings and events, cut and split them, and count. Trains nothing and computes no features.",
    )
    _add_recipe(describe, what="RECIPE or DATASET")
    describe.add_argument("--protocol", choices=("clean", "paper"), help="the recipe's own if not given")
    describe.add_argument("--subjects", metavar="S", help="all, first:3, or the dataset's own numbers such as 1-5,7")
    describe.add_argument("--json", action="store_true", help="print JSON")
    describe.set_defaults(command=_describe)

    evaluate = verbs.add_parser(
        "evaluate",
        help="score the checkpoints of a run again and print its report",
        description="Score the checkpoints of a run on its test split again, write its report again and print the table. "
        "Trains only what is missing.",
    )
    _add_run(evaluate)
    evaluate.add_argument("--root", metavar="DIR", help="folder of the dataset, if it has moved since")
    evaluate.add_argument("--cache", metavar="DIR", help="cache folder (default: BRAINSPEECH_CACHE or ~/.cache/brainspeech)")
    evaluate.add_argument("--json", action="store_true", help="print report.json instead of the table")
    evaluate.add_argument("--strict", action="store_true", help="exit with status 3 if there is a warning about a control or the lag curve")
    evaluate.add_argument("--quiet", action="store_true", help="no progress bars")
    evaluate.set_defaults(command=_evaluate)

    report = verbs.add_parser(
        "report",
        help="print the table of a finished run and draw its pages again",
        description="Read report.json and write the pages again.",
    )
    _add_run(report)
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
    return parser


def _version() -> str:
    from brainspeech import __version__

    return __version__


def _add_recipe(parser: argparse.ArgumentParser, what: str = "RECIPE") -> None:
    parser.add_argument("recipe", metavar=what, help="name of a shipped recipe, a recipe.py, or a folder with one")
    parser.add_argument("--root", metavar="DIR", help="folder of the dataset")
    parser.add_argument("--cache", metavar="DIR", help="cache folder (default: BRAINSPEECH_CACHE or ~/.cache/brainspeech)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.field=value", help="change a constant of the recipe; repeatable"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder, such as runs/demo")


def _cache(folder: str | None):
    from brainspeech.cache import Cache

    return Cache(folder or os.environ.get("BRAINSPEECH_CACHE") or Path.home() / ".cache" / "brainspeech")


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
    out = Path(arguments.out or Path("runs") / recipe.name)
    if arguments.resume and not (out / "recipe.json").is_file():
        raise FileNotFoundError(f"--resume: {out} holds no run (no recipe.json). Leave --resume out to start one.")
    result = flow.run(
        recipe,
        root=arguments.root,
        out=out,
        cache=_cache(arguments.cache),
        source=str(recipes.find(arguments.recipe)),
        progress=not arguments.quiet,
    )
    return _show(result, out, strict=arguments.strict)


def _show(result, out: Path, *, strict: bool) -> int:
    from brainspeech import report

    print(report.table(result))
    print(f"\nThe report with its figures: {(out / 'report.html').resolve()}")
    return 3 if strict and result.alarms else 0


def _describe(arguments: argparse.Namespace) -> int:
    import dataclasses

    from brainspeech import datasets, flow
    from brainspeech import recipe as recipes

    if arguments.recipe in datasets.DATASETS and not Path(arguments.recipe).exists():
        recipe = recipes.Recipe(name=arguments.recipe, title=arguments.recipe, dataset=recipes.Choice(arguments.recipe))
        recipe = recipes.change(recipe, arguments.set)
    else:
        recipe = _load(arguments)
    if arguments.protocol:
        recipe = dataclasses.replace(recipe, segments=dataclasses.replace(recipe.segments, protocol=arguments.protocol))
    if arguments.subjects:
        recipe = dataclasses.replace(recipe, subjects=arguments.subjects)
    found = flow.describe(recipe, arguments.root)
    print(json.dumps(found, indent=2) if arguments.json else _description(recipe.name, found))
    return 0


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
    return Path(folder), json.loads(path.read_text())


def _evaluate(arguments: argparse.Namespace) -> int:
    from brainspeech import flow
    from brainspeech import recipe as recipes

    out, kept = _open_run(arguments.run)
    recipe = recipes.restore(recipes.load(kept["source"]), kept["recipe"])
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

    out, _ = _open_run(arguments.run)
    result = report.load(out)
    report.write(result, out, history=report.load_history(out))
    return _show(result, out, strict=False)


def _audit(arguments: argparse.Namespace) -> int:
    from brainspeech import segments

    out, _ = _open_run(arguments.run)
    folds = segments.load(out / "segments.json")
    audits = [segments.audit(fold.segments, blocks=fold.blocks) for fold in folds]
    errors = sorted({error for audit in audits for error in audit.errors})
    texts = sorted({text for audit in audits for text in audit.repeated_texts})
    n_windows = sum(len(fold.segments) for fold in folds)
    if arguments.json:
        print(json.dumps({"windows": n_windows, "folds": len(folds), "errors": errors, "texts_on_two_sides": texts}, indent=2))
    else:
        checked = f"{n_windows} windows" + (f" in {len(folds)} folds" if len(folds) > 1 else "")
        print(f"{checked}: " + ("no window crosses a block, no audio stands on two sides." if not errors else f"{len(errors)} leaks."))
        print("\n".join(f"  LEAK {error}" for error in errors[:20]) + ("\n" if errors else ""), end="")
        print(f"{len(texts)} sentence texts stand on two sides" + (":" if texts else "."))
        print("\n".join(f"  {text}" for text in texts[:20]) + ("\n" if texts else ""), end="")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
