"""The command line: its words, its help, and how a command ends.

Only the standard library is imported at the top, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout

from brainspeech import commands, stopping

EPILOG = """examples:
  brainspeech run demo                                      the whole flow on simulated M/EEG, a few minutes on a laptop
  brainspeech run cocktail_eeg --root data/cocktail_eeg     real EEG of a listener between two talkers
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
    if rank and arguments.command not in (commands.run, commands.evaluate):
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
        help="run a table of variants: table2, ablations, lag, window, mels, temperature, subjects (window=1,3,5 for values of one's own), "
        "or names with commas between them",
    )
    run.add_argument("--resume", action="store_true", help="go on with a stopped run; fails where there is none")
    doubts = "if a control is above chance, the lag curve peaks at 0, or a variant has no result"
    run.add_argument("--strict", action="store_true", help=f"exit with status 3 {doubts}")
    _add_spreading(run)
    run.add_argument("--quiet", action="store_true", help="no progress bars")
    run.set_defaults(command=commands.run)

    prepare = verbs.add_parser(
        "prepare",
        help="preprocess signals and compute features into the cache, and stop before training",
        description="Do everything of a run that comes before training, so that a run with the same cache starts training at once.",
    )
    _add_recipe(prepare, root="folder of the dataset (without it the files of an open dataset are fetched into data/NAME)")
    prepare.add_argument("--verify", action="store_true", help="check the files of the cache instead, and remove what is damaged")
    _add_spreading(prepare)
    prepare.add_argument("--quiet", action="store_true", help="no progress bars")
    prepare.set_defaults(command=commands.prepare)

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
    describe.set_defaults(command=commands.describe)

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
    evaluate.set_defaults(command=commands.evaluate)

    report = verbs.add_parser(
        "report",
        help="print the table of a finished run and draw its pages again; or put several runs side by side",
        description="Read report.json and write the pages again. Given several runs (seeds, variants), compare them with the first.",
    )
    report.add_argument("run", metavar="RUN", nargs="+", help="a run folder, such as runs/demo; several are compared with the first")
    report.add_argument("--out", metavar="DIR", help="folder of the comparison's pages (default: comparison, beside the first run)")
    report.set_defaults(command=commands.report)

    audit = verbs.add_parser(
        "audit",
        help="prove that the split of a run does not leak",
        description="Check the windows that a run used: no window crosses a block, no audio interval stands on two sides of the split "
        "(exit status 1 otherwise). Sentence texts that stand on two sides are listed.",
    )
    _add_run(audit)
    audit.add_argument("--json", action="store_true", help="print JSON")
    audit.set_defaults(command=commands.audit)

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
    release.set_defaults(command=commands.release)

    download = verbs.add_parser(
        "download",
        help="fetch a dataset's files, with size and digest checked",
        description="Fetch a dataset into a folder: parallel, resumed where cut, every size and digest checked. Files that are there "
        "and right are not fetched again. A dataset that needs an account says what to do.",
    )
    _add_files(download)
    download.set_defaults(command=commands.download)

    verify = verbs.add_parser(
        "verify",
        help="check a dataset's files: missing, wrong size, wrong digest",
        description="Check the files of a dataset in a folder by name, size and digest, and print the command that repairs them "
        "(exit status 1 if anything is missing or wrong).",
    )
    _add_files(verify)
    verify.add_argument("--json", action="store_true", help="print JSON")
    verify.set_defaults(command=commands.verify)

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
    simulate.set_defaults(command=commands.simulate)
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


if __name__ == "__main__":
    sys.exit(main())
