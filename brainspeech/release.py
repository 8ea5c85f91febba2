"""A finished run -> a folder that can be given away: weights, card, report, constants, checksums; and the proof that it works elsewhere.

Nothing of the data goes in: no sample of a signal or a sound, no words of what was heard, no place on this machine. No code goes in either:
a class of the user's own is named on the card with where it comes from, and a released folder imports nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from brainspeech import card, hub, manifests, naming
from brainspeech import recipe as recipes
from brainspeech import report as reports
from brainspeech.decoder import SpeechDecoder
from brainspeech.download import human
from brainspeech.evaluate import RetrievalReport
from brainspeech.losses.joint import Joint
from brainspeech.pretrained import own_classes
from brainspeech.timing import to_samples

CHECK = "check.safetensors"
CHECKED_FEATURES = 16
# Largest difference of an estimate, in standard deviations of the estimate, that another machine's arithmetic may make.
TOLERANCE = 1e-3
# The class of the user's own without which a decoder can be loaded, and estimates: new candidates alone need it.
OPTIONAL = "feature"
# Entries of a report's curves and rows that quote what was heard.
QUOTES = {"heard", "text", "texts", "word", "words", "examples", "candidates", "vocabulary"}


@dataclass(frozen=True)
class Release:
    """A released folder.

    Parameters
    ----------
    folder : Path
    files : tuple of str
        Relative to the folder.
    n_bytes : int
        Of all of them.
    difference : float
        Of the estimates of a fresh process, in standard deviations.
    notes : tuple of str
        What the one who releases has to know.
    """

    folder: Path
    files: tuple[str, ...]
    n_bytes: int
    difference: float
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Say it in lines."""
        return "\n".join(
            [
                f"{self.folder}: {len(self.files)} files, {human(self.n_bytes)}; loaded in a fresh process, the estimates are the same "
                f"(difference {self.difference:.1g}).",
                *(f"note: {note}" for note in self.notes),
                f"Check it anywhere: cd {self.folder} && sha256sum -c {hub.SUMS}",
            ]
        )


@dataclass(frozen=True)
class Verified:
    """What ``verify`` found: what is wrong, by file, and how far the estimates are off (None where they could not be made)."""

    problems: tuple[str, ...]
    difference: float | None

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def text(self) -> str:
        """Say it in lines."""
        if self.ok:
            return f"All files are as they were released, and the estimates are the same (difference {self.difference:.1g})."
        return "\n".join([f"{len(self.problems)} problems:", *(f"  {problem}" for problem in self.problems)])


def release(
    run: str | os.PathLike, out: str | os.PathLike, *, name: str = "", licence: str | None = None, despite_alarms: bool = False
) -> Release:
    """Put together what is released of a finished run, and check in a fresh process that it works.

    The folder loads with ``SpeechDecoder.from_pretrained``; it holds the weights of the run's first fold and seed, statistics, the card,
    the report with its figures, the recipe's constants, an example with its estimate, and the SHA-256 of every file. A class of the user's
    own (``module:Class``) is found as the run found it: in the recipe's file, where Python looks, beside the recipe, or in this folder; the
    card says what has to be imported.

    Parameters
    ----------
    run : path
        A run folder.
    out : path
        New, or an earlier release, which is replaced in one step.
    name : str
        Of the model; without one the recipe's, followed by the variant's where the run is one of a table of variants.
    licence : str, optional
        Of the weights, as hubs write it (``cc-by-4.0``).
    despite_alarms : bool
        Release although the report has an alarm, such as a control above chance; the card then says so on top.

    Raises
    ------
    RuntimeError
        If the run is not finished, its report is of other constants than its weights, it has an alarm, a class of the user's own cannot
        be found, or the released folder does not give the same estimates.
    ValueError
        If ``out`` holds something else.
    """
    run, out = Path(run), Path(out)
    kept = _finished(run)
    report = reports.load(run)
    if report.alarms and not despite_alarms:
        raise RuntimeError(
            f"{run} is not released: {' '.join(report.alarms)} To release it all the same, with this on top of the card, say so "
            "(despite_alarms=True, --despite-alarms)."
        )
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / hub.SUMS).is_file())):
        raise ValueError(f"{out} exists and is no earlier release (it has no {hub.SUMS}). Give another folder.")
    _import_own(run, kept.get("source") or "")
    decoder = SpeechDecoder.from_run(run)
    _check_constants(run, decoder, kept["recipe"], report)
    clean = _without_quotes(report)
    notes = _notes(decoder, report, licence)
    decoder.config_["report"] = card.condense(clean.to_dict(), alarms=clean.alarms)
    name = name or _name_of(run, kept["recipe"])
    with hub.replacing(out) as folder:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.model-") as temporary:
            model = decoder.save(Path(temporary) / "model", name=name, licence=licence)
            for path in model.iterdir():
                os.replace(path, folder / path.name)
        reports.write(clean, folder, history=reports.load_history(run))
        for path in folder.rglob("*.npy"):  # what the figure is drawn from; hubs take no arrays of numpy here
            path.unlink()
        (folder / "recipe.json").write_text(json.dumps({"recipe": kept["recipe"]}, indent=1) + "\n")
        hub.write_tensors(folder / CHECK, _example(decoder))
        (folder / hub.CARD).write_text((folder / hub.CARD).read_text(encoding="utf-8") + _files_section(), encoding="utf-8")
        for path in folder.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)  # some writers make private files
        notes += _places(folder, [kept.get("root"), str(Path.home()), str(run.resolve().parent)])
        _write_sums(folder)
        difference = _reproduce_elsewhere(folder)
        if not difference <= TOLERANCE:
            raise RuntimeError(f"A fresh process does not give the same estimates (difference {difference:.2g}); nothing was released.")
    files = _files(out)
    return Release(out, tuple(files), sum((out / file).stat().st_size for file in files), difference, tuple(notes))


def verify(folder: str | os.PathLike) -> Verified:
    """Check a released folder: every file against its SHA-256, and the estimate of its example in a fresh process.

    Raises
    ------
    FileNotFoundError
        If the folder is no release.
    RuntimeError
        If it needs a class whose module was not imported here: a released folder imports nothing by itself.
    """
    folder = Path(folder)
    if not (folder / hub.SUMS).is_file():
        raise FileNotFoundError(f"{folder} is no released folder (no {hub.SUMS}). Make one: brainspeech release RUN {folder}")
    expected = _read_sums(folder)
    there = set(_files(folder)) - {hub.SUMS}
    problems = [f"{file}: missing" for file in sorted(set(expected) - there)]
    problems += [f"{file}: not in {hub.SUMS}" for file in sorted(there - set(expected))]
    for file in sorted(there & set(expected)):
        if (got := hub.sha256(folder / file)) != expected[file]:
            problems.append(f"{file}: the SHA-256 is {got}, expected {expected[file]}")
    if problems:
        return Verified(tuple(problems), None)
    difference = _reproduce_elsewhere(folder)
    if not difference <= TOLERANCE:
        problems = [f"{CHECK}: the estimates differ by {difference:.2g} standard deviations, expected {TOLERANCE:g} at most"]
    return Verified(tuple(problems), difference)


def push(
    folder: str | os.PathLike,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Release with brainspeech",
) -> str:
    """Verify a released folder and upload all of it to a hub as one commit; see ``hub.push``.

    Raises
    ------
    RuntimeError
        If something in the folder is not as it was released.
    """
    found = verify(folder)
    if not found.ok:
        raise RuntimeError(f"{folder} is not uploaded. {found.text()}")
    return hub.push(Path(folder), repo_id, private=private, token=token, commit_message=commit_message)


def reproduce(folder: str | os.PathLike) -> float:
    """Load a released folder and estimate its example again: the largest difference, in standard deviations of the estimate."""
    folder = Path(folder)
    decoder = SpeechDecoder.from_pretrained(folder)
    decoder.device = "cpu"
    kept = hub.read_tensors(folder / CHECK)
    found = [_difference(_estimate(decoder, kept["signal"].numpy()), kept["estimate"].numpy())]
    if isinstance(decoder.loss_, Joint):
        found.append(_difference(_encode(decoder.loss_, kept["features"]), kept["encoded"].numpy()))
    return max(found)


def _difference(got: np.ndarray, expected: np.ndarray) -> float:
    """Give the largest difference, in standard deviations of what is expected."""
    if got.shape != expected.shape:
        return float("inf")
    return float(np.abs(got - expected).max() / max(float(expected.std()), 1e-12))


def import_modules(places: Iterable[str]) -> None:
    """Import modules by name, and recipes by their file."""
    for place in places:
        if place.endswith(".py"):
            recipes.load(place)
        else:
            import_module(place)


def _reproduce_elsewhere(folder: Path) -> float:
    """Call ``reproduce`` in a process that knows nothing of this one but where the classes of the user's own are."""
    script = "import sys; from brainspeech import release; release.import_modules(sys.argv[2:]); print(release.reproduce(sys.argv[1]))"
    places = _own_places(folder)
    environment = dict(os.environ)
    if places:
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(place) for place in sys.path)
    done = subprocess.run([sys.executable, "-c", script, str(folder.resolve()), *places], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{folder} cannot be loaded in a fresh process: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return float(done.stdout.split()[-1])


def _own_places(folder: Path) -> list[str]:
    """Say what a fresh process has to import before it loads a folder: what this process has imported already, and nothing else."""
    places = []
    for what, name in _own(folder).items():
        if what == OPTIONAL:
            continue
        try:
            naming.check_at_hand(what, name, {}, where=str(folder / hub.CONFIG))
        except RuntimeError as error:
            raise RuntimeError(f"{error} In Python, after that: brainspeech.release.verify({str(folder)!r}).") from None
        module = name.split(":")[0]
        places.append(str(sys.modules[module].__file__) if module.startswith(naming.RECIPE) else module)
    return list(dict.fromkeys(places))


def _own(folder: Path) -> dict[str, str]:
    """Give the classes of the user's own that a saved folder names, {what: module:Class}."""
    try:
        found = own_classes(json.loads((folder / hub.CONFIG).read_text()))
    except (ValueError, TypeError, AttributeError) as error:
        raise RuntimeError(f"{folder / hub.CONFIG} is damaged ({error}). Save or copy it again.") from error
    return {entry["what"]: entry["name"] for entry in found}


def _import_own(run: Path, source: str) -> None:
    """Import the classes of the user's own that a run was made with, from where the run had them.

    Raises
    ------
    RuntimeError
        If one cannot be found, with its name and what to do.
    """
    recipe = Path(source)
    beside = list(dict.fromkeys([*([str(recipe.parent)] if source else []), os.getcwd()]))
    for what, name in _own(run / "model").items():
        module, _, attribute = name.partition(":")
        if module == "__main__" and what != OPTIONAL:
            raise RuntimeError(
                f"{run} is not released: the {what} {name!r} stands in a script or a notebook, from where no other process can import it. "
                f"Put the class into a file of its own (mine.py), and run again with 'mine:{attribute}'."
            )
        if module not in sys.modules and source and recipe.is_file():
            recipes.load(source)
        if module not in sys.modules:
            _import_from(module, beside)
        if not hasattr(sys.modules.get(module), attribute) and what != OPTIONAL:
            raise RuntimeError(
                f"{run} is not released: the {what} {name!r} was not found where Python looks, nor in {', '.join(beside)}. "
                f"Run brainspeech release where the class can be imported (PYTHONPATH), or in Python after: {naming.how_to_import(name)}."
            )


def _import_from(module: str, folders: Iterable[str]) -> None:
    """Import a module from where Python looks, or from the first of these folders that has it; do nothing where it is nowhere."""
    for folder in ["", *folders]:
        sys.path += [folder] * bool(folder)
        try:
            import_module(module)
            return
        except ModuleNotFoundError as error:
            if not module.startswith(str(error.name)):
                raise RuntimeError(f"The module {module} cannot be imported: {error}.") from error
            if folder:
                sys.path.pop()


def _finished(run: Path) -> dict[str, Any]:
    """Read the recipe.json of a run that came to its report.

    Raises
    ------
    RuntimeError
        If something is missing.
    """
    absent = [name for name in ("recipe.json", f"model/{hub.CONFIG}", "report.json") if not (run / name).is_file()]
    if absent and (run / "ladder.json").is_file():
        names = sorted(path.parent.name for path in run.glob("*/report.json"))
        raise RuntimeError(
            f"{run} is a table of variants. Release one of its runs: {', '.join(names)} (brainspeech release {run}/NAME DIR)."
        )
    if absent:
        raise RuntimeError(f"{run} is no finished run (no {', '.join(absent)}). Go on with it: brainspeech run RECIPE --out {run}")
    try:
        return json.loads((run / "recipe.json").read_text())
    except ValueError as error:
        raise RuntimeError(f"{run / 'recipe.json'} is damaged ({error}). Run the recipe again.") from error


def _name_of(run: Path, recipe: Mapping[str, Any]) -> str:
    """Name a model as its recipe, and the variant where the run is one of a table of variants."""
    run = run.resolve()
    table = run.parent / "ladder.json"
    try:
        rows = json.loads(table.read_text(encoding="utf-8"))["rows"] if table.is_file() else []
        is_variant = any(row["name"] == run.name for row in rows)
    except (ValueError, KeyError, TypeError):
        is_variant = False  # a damaged table says nothing of the run
    return f"{recipe['name']}-{run.name}" if is_variant else recipe["name"]


def _check_constants(run: Path, decoder: SpeechDecoder, recipe: Mapping[str, Any], report: RetrievalReport) -> None:
    """Raise RuntimeError where weights, report and recipe.json are not of one run."""
    others = {"model/config.json": decoder.config_["recipe"], "report.json": report.provenance.get("recipe", {})}
    for where, other in others.items():
        differing = [section for section in (*card.SECTIONS, "seeds", "folds") if other.get(section) != recipe.get(section)]
        if differing:
            raise RuntimeError(
                f"{run}: {where} was made with other constants than recipe.json has ({', '.join(differing)}). Run it to its end again: "
                f"brainspeech evaluate {run}"
            )


def _without_quotes(report: RetrievalReport) -> RetrievalReport:
    """Take out what quotes the stimuli: the examples, and texts that stand on two sides of the split."""
    texts = report.provenance.get("texts_on_two_sides") or []
    found = {**report.provenance, "texts_on_two_sides": [f"{len(texts)} texts, left out of a release"] if texts else []}
    said = (
        [*report.warnings, "Examples of what was heard are left out of this release: they quote the stimuli."] if report.examples else None
    )
    return dataclasses.replace(
        report,
        examples=[],
        provenance=found,
        curves=_unquoted(report.curves),
        warnings=said or report.warnings,
    )


def _unquoted(value: Any) -> Any:
    """Drop the entries of nested dicts and lists that hold quoted text."""
    if isinstance(value, Mapping):
        return {k: _unquoted(v) for k, v in value.items() if not (k in QUOTES and _holds_text(v))}
    return [_unquoted(v) for v in value] if isinstance(value, list) else value


def _holds_text(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_text, value.values()))
    return any(map(_holds_text, value)) if isinstance(value, list) else isinstance(value, str)


def _notes(decoder: SpeechDecoder, report: RetrievalReport, licence: str | None) -> list[str]:
    dataset = decoder.config_["recipe"]["dataset"]["name"]
    notes = [f"the report has an alarm, and the card says so: {alarm}" for alarm in report.alarms]
    if not any(row["control"] for row in report.rows.values()):
        notes.append("no control was fitted: nothing shows that the figures are owed to the brain.")
    if dataset in manifests.names():
        notes.append(f"fitted on {dataset}, licence of the data: {manifests.load(dataset).licence}; its terms hold for the weights too.")
    elif dataset != "simulated":
        notes.append(f"no manifest states the licence of {dataset}: make sure that weights fitted on it may be given away.")
    if licence is None:
        notes.append("no licence of the weights is stated (licence=, --licence).")
    for entry in own_classes(decoder.config_):
        need = "is needed for new candidates" if entry["what"] == OPTIONAL else "is needed"
        origin = f" ({entry['origin']})" if entry["origin"] else ""
        notes.append(f"{entry['name']} {need} and is no part of it; give it along{origin}. The card says so.")
    if report.folds > 1 or len(report.seeds) > 1:
        notes.append(f"the weights are those of the first of {report.folds} folds and {len(report.seeds)} seeds; the report is on all.")
    return notes


def _example(decoder: SpeechDecoder) -> dict[str, torch.Tensor]:
    """Make a window of noise at the scale of a recording, and what is estimated from it."""
    recipe = decoder.recipe_
    scale = decoder.statistics_.scales[_recording(decoder)]
    shape = (1, len(scale.ch_names), to_samples(recipe.segments.duration, recipe.preprocess.sfreq))
    noise = np.random.default_rng(0).standard_normal(shape)
    signal = (np.array(scale.median)[:, None] + np.array(scale.iqr)[:, None] * noise / 1.349).astype(np.float32)  # the IQR of noise
    device, decoder.device = decoder.device, "cpu"
    try:
        example = {"signal": torch.from_numpy(signal), "estimate": torch.from_numpy(_estimate(decoder, signal))}
    finally:
        decoder.device = device
    if not isinstance(decoder.loss_, Joint):
        return example
    n_features = decoder.config_["target_encoder"]["config"]["n_features"]
    features = torch.from_numpy(np.random.default_rng(1).standard_normal((1, n_features, shape[2])).astype(np.float32))
    return example | {"features": features, "encoded": torch.from_numpy(_encode(decoder.loss_, features))}


def _recording(decoder: SpeechDecoder) -> str:
    """Give the first recording of a listener of the training; those of a listener left out have a scale too."""
    uids = list(decoder.statistics_.scales)
    return next((uid for uid in uids if "/".join(uid.split("/")[:2]) in decoder.subjects_), uids[0])


def _estimate(decoder: SpeechDecoder, signal: np.ndarray) -> np.ndarray:
    uid = _recording(decoder)
    scale = decoder.statistics_.scales[uid]
    return np.ascontiguousarray(decoder.predict(signal, recording=uid, ch_names=scale.ch_names)[:, :CHECKED_FEATURES])


@torch.inference_mode()
def _encode(loss: Joint, features: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(loss.cpu().encode(features).numpy()[:, :CHECKED_FEATURES])


def _files_section() -> str:
    return "\n".join(
        [
            "",
            "## Files",
            "",
            "- `weights.safetensors`, `config.json`, `statistics.json`, `extra.safetensors`: the decoder",
            "- `report.html`, `report.md`, `report.json`, `figures/`: how it was tested",
            "- `recipe.json`: the constants of the run",
            f"- `{CHECK}`: noise and what is estimated from it, to check that it works elsewhere",
            f"- `{hub.SUMS}`: `sha256sum -c {hub.SUMS}`",
            "",
            "Nothing of the data is among them, and no code.",
            "",
        ]
    )


def _files(folder: Path) -> list[str]:
    """List the files of a folder, relative and sorted, hidden ones left out."""
    found = [p.relative_to(folder) for p in folder.rglob("*") if p.is_file()]
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


def _write_sums(folder: Path) -> None:
    lines = [f"{hub.sha256(folder / file)}  {file}" for file in _files(folder) if file != hub.SUMS]
    (folder / hub.SUMS).write_text("\n".join(lines) + "\n")


def _read_sums(folder: Path) -> dict[str, str]:
    sums = {}
    for line in (folder / hub.SUMS).read_text().splitlines():
        digest, gap, file = line.partition("  ")
        if not gap or len(digest) != 64 or file.startswith("/") or ".." in Path(file).parts:
            raise RuntimeError(f"{folder / hub.SUMS} is damaged: {line!r} is no SHA-256 and a file below the folder.")
        sums[file] = digest
    return sums


def _places(folder: Path, places: Sequence[str | None]) -> list[str]:
    """Say in which files a place on this machine is named."""
    named = {place for place in places if place and len(place) > 3}
    texts = [file for file in _files(folder) if Path(file).suffix in (".json", ".md")]
    found = [file for file in texts if any(place in (folder / file).read_text(encoding="utf-8") for place in named)]
    return [f"a folder of this machine is named in {', '.join(found)}; see whether it may be."] if found else []
