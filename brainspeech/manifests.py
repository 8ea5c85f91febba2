"""What a dataset's files are, where they come from, and whether they are there and right.

``data_manifests/X.toml`` says what the dataset is and who may have it; ``X.tsv`` beside it lists every file with size, digest and url.
A dataset whose files nobody could list has no TSV: its TOML says what to obtain by hand and how the filled folder looks. The format of
both is in data_manifests/README.md.
"""

from __future__ import annotations

import csv
import dataclasses
import json as json_
import os
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote

from brainspeech import subjects as subjects_
from brainspeech.download import Bar, Entry, Fault, Outcome, fault_of, fetch, human, missing_bytes

ACCESS = ("open", "registration", "agreement")

# What --what takes. "about" (who took part, the dataset's own README) comes with each; "other" is what no reader here needs.
KINDS = ("recordings", "events", "audio", "other")
WHAT = "recordings,events,audio"

COLUMNS = ["path", "size", "algorithm", "digest", "url"]


@dataclass(frozen=True)
class Declared:
    """The size that a dataset states of itself; None where nobody has counted."""

    subjects: int | None = None
    recordings: int | None = None
    hours: float | None = None
    sfreq: float | None = None
    n_channels: int | None = None
    n_files: int | None = None
    n_bytes: int | None = None
    n_unknown_size: int | None = None


@dataclass(frozen=True)
class Source:
    """A rule that makes urls: ``{path}``, ``{size}``, ``{digest}``, ``{suffix}`` of an entry are put in; ``tried`` says if anyone has."""

    template: str
    tried: bool
    note: str = ""


@dataclass(frozen=True)
class Layout:
    """What a folder that was filled by hand holds: ``n`` paths (None: some) that match ``glob``."""

    glob: str
    what: str
    n: int | None = None


@dataclass(frozen=True)
class Manifest:
    """A dataset: what it is, who may have it, and its files.

    Parameters
    ----------
    licence : str
        SPDX identifier, or ``LicenseRef-...`` for terms that SPDX does not list.
    access : str
        One of ``ACCESS``.
    subject : str
        Regular expression that finds the subject in a path.
    published : tuple of int
        Numbers of the subjects that the paper used.
    original : dict
        Where the files that this archive mirrors came from.
    by_hand : str
        What to do, step by step, where the files cannot be fetched.
    entries : tuple of Entry
        Every file, sorted by path; empty where nobody could list them.
    given : str
        What ``load`` was given, so that a command can be written that works: the name, or a path.
    """

    name: str
    title: str
    version: str
    licence: str
    access: str
    doi: str
    homepage: str
    citation: str
    declared: Declared
    subject: str = ""
    published: tuple[int, ...] = ()
    by_hand: str = ""
    notes: str = ""
    sources: dict[str, Source] = field(default_factory=dict)
    what: dict[str, tuple[str, ...]] = field(default_factory=dict)
    layout: tuple[Layout, ...] = ()
    original: dict[str, Any] = field(default_factory=dict)
    entries: tuple[Entry, ...] = ()
    given: str = ""

    def subject_of(self, path: str) -> str:
        """Give the subject that a path belongs to, as its folder is called; empty for a file of all."""
        found = re.search(self.subject, path) if self.subject else None
        return found[0].strip("/") if found else ""

    def subjects(self) -> list[str]:
        """Give the subjects of the listing, sorted."""
        return sorted({self.subject_of(entry.path) for entry in self.entries} - {""})

    def kind_of(self, path: str) -> str:
        """Say what a file is: the first of events, audio, recordings, about whose patterns match, else other."""
        for kind, patterns in self.what.items():
            if any(fnmatchcase(path, pattern) for pattern in patterns):
                return kind
        return "other"

    def select(self, subjects: str = "all", what: str = WHAT) -> list[Entry]:
        """Keep the files of some subjects (and of all together) and of some kinds (and those about the dataset)."""
        kinds = [kind.strip() for kind in what.split(",")]
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise ValueError(f"--what takes some of {','.join(KINDS)}, got {', '.join(unknown)!r}.")
        keep = {"", *subjects_.select(self.subjects(), subjects, published=self.published or None)}
        return [e for e in self.entries if self.kind_of(e.path) in {*kinds, "about"} and self.subject_of(e.path) in keep]

    def introduction(self) -> str:
        """Say whose work the data are and on what terms, as shown before a download."""
        terms = f"{self.licence}, access: {self.access}"
        return f"{self.title} (version {self.version or 'not stated'})\n{terms}\n{self.homepage}\nPlease cite:\n{self.citation.strip()}"


# ------------------------------------------------------------------------------------------------------------------------------ reading


def folder() -> Path:
    """Give the folder of the manifests that come with the package, from a checkout or from an installed wheel."""
    for place in (Path(__file__).parent / "_shipped" / "data_manifests", Path(__file__).parent.parent / "data_manifests"):
        if place.is_dir():
            return place
    raise FileNotFoundError("The shipped manifests are missing; install brainspeech again.")


def names() -> list[str]:
    """Give the datasets that have a manifest."""
    return sorted(path.stem for path in folder().glob("*.toml"))


def load(name: str | os.PathLike) -> Manifest:
    """Read the manifest of a dataset.

    Parameters
    ----------
    name : str or path
        A name of ``names()``, or the path of a .toml of your own; the .tsv is looked for beside it.

    Raises
    ------
    ValueError
        If there is none, or it breaks the format; the message names the file.
    """
    path = Path(name)
    if path.suffix != ".toml":
        if str(name) not in names():
            raise ValueError(f"No manifest of a dataset {str(name)!r}: expected one of {', '.join(names())}, or the path of a .toml.")
        path = folder() / f"{name}.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        manifest = dataclasses.replace(_manifest(path.stem, table), given=str(name))
        listing = path.with_suffix(".tsv")
        return dataclasses.replace(manifest, entries=_entries(listing, manifest.sources)) if listing.is_file() else manifest
    except (tomllib.TOMLDecodeError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _manifest(name: str, table: dict[str, Any]) -> Manifest:
    values = dict(table)
    values["declared"] = Declared(**values.get("declared", {}))
    values["sources"] = {key: Source(**rule) for key, rule in values.pop("urls", {}).items()}
    values["what"] = {kind: tuple(patterns) for kind, patterns in values.get("what", {}).items()}
    values["layout"] = tuple(Layout(**item) for item in values.get("layout", []))
    values["published"] = tuple(sorted(subjects_.numbers(values["published"]))) if values.get("published") else ()
    manifest = Manifest(name=name, **values)
    if manifest.access not in ACCESS:
        raise ValueError(f"access must be one of {', '.join(ACCESS)}, got {manifest.access!r}")
    if unknown := set(manifest.what) - {*KINDS, "about"}:
        raise ValueError(f"[what] takes {', '.join(KINDS)} and about, got {', '.join(sorted(unknown))}")
    return manifest


def _entries(listing: Path, sources: dict[str, Source]) -> tuple[Entry, ...]:
    with open(listing, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if rows.fieldnames != COLUMNS:
            raise ValueError(f"{listing.name} must have the columns {', '.join(COLUMNS)}, got {rows.fieldnames}")
        entries = tuple(_entry(row, sources) for row in rows)
    paths = [entry.path for entry in entries]
    if paths != sorted(set(paths)):
        raise ValueError(f"{listing.name} must be sorted by path, each once")
    return entries


def _entry(row: dict[str, str], sources: dict[str, Source]) -> Entry:
    url, size = row["url"], row["size"]
    if "://" not in url:
        if url not in sources:
            raise ValueError(f"{row['path']}: url must be one of [urls] ({', '.join(sources)}) or a url, got {url!r}")
        suffix = "".join(re.findall(r"(?:\.\w{1,4}){1,2}$", row["path"].rsplit("/", 1)[-1]))
        url = sources[url].template.format(path=quote(row["path"]), size=size, digest=row["digest"], suffix=suffix)
    return Entry(row["path"], int(size) if size else None, row["algorithm"], row["digest"], url)


# ----------------------------------------------------------------------------------------------------------------------------- download


@dataclass(frozen=True)
class Plan:
    """What a download would bring.

    Parameters
    ----------
    entries : tuple of Entry
        The files asked for, those that are there too.
    n_bytes : int
        Still to come, of the files whose size is stated.
    n_unknown_size : int
        Files still to come whose size nobody has stated.
    notes : tuple of str
        What the user should know first.
    """

    manifest: Manifest
    root: Path
    subjects: str
    what: str
    entries: tuple[Entry, ...]
    n_bytes: int
    n_unknown_size: int
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Say it in lines: whose data, how much, what to know."""
        unknown = f" and {self.n_unknown_size} files whose size nobody has stated" if self.n_unknown_size else ""
        head = f"{len(self.entries)} files into {self.root}: {human(self.n_bytes)}{unknown} to come."
        return "\n".join([self.manifest.introduction(), "", head, *(f"note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Download:
    """What a download brought."""

    plan: Plan
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> list[Outcome]:
        """The files that could not be had."""
        return [outcome for outcome in self.outcomes if outcome.state == "failed"]

    def text(self) -> str:
        """Say it in lines: counts, then every failure by name, then what to do."""
        counts = Counter(outcome.state for outcome in self.outcomes)
        lines = [f"{counts['fetched']} files fetched, {counts['there']} were there, {counts['failed']} failed."]
        lines += [f"  FAILED {outcome.path}: {outcome.reason}" for outcome in self.failed]
        again = command("download", self.plan.manifest, self.plan.root, self.plan.subjects, self.plan.what)
        lines += [f"The same command fetches only what is missing: {again}"] if self.failed else []
        return "\n".join(lines)


def plan(name: str | os.PathLike | Manifest, root: str | os.PathLike, *, subjects: str = "all", what: str = WHAT) -> Plan:
    """Say what a download would bring into a folder, without touching the network.

    Parameters
    ----------
    name : str, path or Manifest
        The dataset.
    root : path
        Its folder, there or not.
    subjects : str
        ``all``, ``published``, ``first:3`` or the dataset's own numbers ``1-5,7``. Files of all subjects always come.
    what : str
        Some of ``recordings,events,audio,other``. Files about the dataset always come.

    Raises
    ------
    PermissionError
        If the files are behind an account or an agreement: what to do, step by step.
    FileNotFoundError
        If the access is open, but nobody could list the files: likewise.
    """
    manifest = name if isinstance(name, Manifest) else load(name)
    root = Path(root)
    if not manifest.entries:
        raise (FileNotFoundError if manifest.access == "open" else PermissionError)(_ask(manifest, root))
    entries = manifest.select(subjects, what)
    n_bytes, n_unknown = missing_bytes(entries, root)
    notes = [f"nobody has tried the urls of {key!r} yet ({s.template})" for key, s in manifest.sources.items() if not s.tried]
    if subjects == "published":
        absent = set(manifest.published) - {subjects_.number(s) for s in manifest.subjects()}
        notes += [f"published subjects that this archive does not hold: {', '.join(map(str, sorted(absent)))}"] if absent else []
    return Plan(manifest, root, subjects, what, tuple(entries), n_bytes, n_unknown, tuple(notes))


def _ask(manifest: Manifest, root: Path) -> str:
    holds = "\n".join(f"  {item.glob}   {item.what}" for item in manifest.layout)
    why = "is open, but its files could not be listed, so none is fetched" if manifest.access == "open" else f"needs a {manifest.access}"
    return (
        f"{manifest.name} {why}. By hand:\n{manifest.by_hand.strip()}\nThen {root} holds\n{holds}\n"
        f"Check it: {command('verify', manifest, root)}"
    )


def download(
    name: str | os.PathLike | Manifest,
    root: str | os.PathLike,
    *,
    subjects: str = "all",
    what: str = WHAT,
    workers: int = 8,
    progress: bool = True,
    tell: Callable[[str], None] = lambda text: None,
    **transfer: Any,
) -> Download:
    """Bring a dataset's files into a folder; what is there and right is left alone, what was cut is continued.

    Parameters
    ----------
    name, root, subjects, what
        As in :func:`plan`.
    workers : int
        Transfers at once.
    progress : bool
        Show one bar for the whole.
    tell : callable
        Is given licence, citation and what is to come, once, before the first byte.
    **transfer
        What :func:`brainspeech.download.fetch` takes besides (``tries``, ``pause``).

    Raises
    ------
    PermissionError, FileNotFoundError
        As :func:`plan`; not if the folder has been filled by hand.
    RuntimeError
        If the disk is too small or full, or another download runs on the folder.
    """
    manifest = name if isinstance(name, Manifest) else load(name)
    root = Path(root)
    if not manifest.entries and not _layout_faults(manifest, root):
        return Download(Plan(manifest, root, subjects, what, (), 0, 0), ())
    todo = plan(manifest, root, subjects=subjects, what=what)
    tell(todo.text())
    return Download(todo, tuple(fetch(todo.entries, root, workers=workers, progress=progress, **transfer)))


# ------------------------------------------------------------------------------------------------------------------------------- verify


@dataclass(frozen=True)
class Verification:
    """What was found in a folder.

    Parameters
    ----------
    n_files, n_bytes : int
        Files asked for and what they should weigh as far as it is stated.
    n_right : int
        Files whose digest is right.
    size_only, existence_only : int
        Files of which the listing states no digest, and neither digest nor size: they are there, and no more is known.
    faults : tuple of Fault
        Everything else, by path.
    absent_subjects : tuple of str
        Subjects of whom not one file is there.
    layout : tuple of dict
        For a folder filled by hand: glob, what, expected and got counts.
    repair : str
        The command, or the steps, that put it right; empty if all is right.
    """

    name: str
    root: Path
    n_files: int
    n_bytes: int
    n_right: int
    size_only: int
    existence_only: int
    faults: tuple[Fault, ...]
    absent_subjects: tuple[str, ...]
    layout: tuple[dict[str, Any], ...]
    repair: str

    @property
    def ok(self) -> bool:
        """Whether nothing is missing or wrong, as far as the listing can tell."""
        return not self.repair

    def to_dict(self) -> dict[str, Any]:
        """Give it as JSON-able values."""

        def of(kind: str) -> list[Any]:
            some = [fault for fault in self.faults if fault.kind == kind]
            return [{"path": f.path, "expected": f.expected, "got": f.got} if f.got else f.path for f in some]

        kinds = {"missing": "missing", "wrong_size": "size", "wrong_digest": "digest", "refused": "refused"}
        counts = ("n_files", "n_bytes", "n_right", "size_only", "existence_only")
        return {
            "dataset": self.name,
            "root": str(self.root),
            "ok": self.ok,
            **{name: getattr(self, name) for name in counts},
            **{key: of(kind) for key, kind in kinds.items()},
            "absent_subjects": list(self.absent_subjects),
            "layout": list(self.layout),
            "repair": self.repair,
        }

    def text(self) -> str:
        """Say it in lines; a subject of whom nothing is there takes one line, not one a file."""
        lines = [f"{self.name} in {self.root}: {self.n_right} of {self.n_files} files have the right digest."] if self.n_files else []
        if self.size_only or self.existence_only:
            lines.append(f"no digest is known of {self.size_only} files of the right size, and no size either of {self.existence_only}")
        gone = set(self.absent_subjects)
        for fault in self.faults:
            if fault.kind != "missing" or not gone & set(fault.path.split("/")):
                said = f": expected {fault.expected}, got {fault.got}" if fault.got else ""
                lines.append(f"  {fault.kind.upper()} {fault.path}{said}")
        if gone:
            lines.append(f"  nothing of {len(gone)} subjects: {', '.join(sorted(gone))} (if that is meant, verify with --subjects)")
        for item in self.layout:
            expected = "" if item["expected"] is None else f" of {item['expected']}"
            lines.append(f"  {item['got']}{expected} {item['what']} ({item['glob']})")
        lines.append(f"To repair: {self.repair}" if self.repair else "All there.")
        return "\n".join(lines)


def verify(
    name: str | os.PathLike | Manifest,
    root: str | os.PathLike,
    *,
    subjects: str = "all",
    what: str = WHAT,
    workers: int | None = None,
    progress: bool = True,
) -> Verification:
    """Compare a folder with its dataset's manifest; reads every byte, writes none.

    A folder that was filled by hand has no listing to be compared with: what the manifest says it holds is counted, and there must be
    some of each.

    Raises
    ------
    FileNotFoundError
        If the folder is not there, with the command that fetches.
    """
    manifest = name if isinstance(name, Manifest) else load(name)
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder. Fetch the dataset: {command('download', manifest, root)}")
    if not manifest.entries:
        counts = _count_layout(manifest, root)
        lacking = _layout_faults(manifest, root)
        repair = (f"there is none of {', '.join(lacking)}.\n" + _ask(manifest, root)) if lacking else ""
        return Verification(manifest.name, root, 0, 0, 0, 0, 0, (), (), counts, repair)
    entries = manifest.select(subjects, what)
    bar = Bar(sum(entry.size or 0 for entry in entries), "verify", progress=progress)
    try:
        with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:  # hashing lets the other threads run
            found = list(pool.map(lambda entry: fault_of(entry, root, seen=bar.add), entries))
    finally:
        bar.close()
    faults = tuple(fault for fault in found if fault is not None)
    right = [entry for entry, fault in zip(entries, found, strict=True) if fault is None]
    there = {manifest.subject_of(e.path) for e, fault in zip(entries, found, strict=True) if fault is None or fault.kind != "missing"}
    return Verification(
        name=manifest.name,
        root=root,
        n_files=len(entries),
        n_bytes=sum(entry.size or 0 for entry in entries),
        n_right=sum(bool(entry.algorithm) for entry in right),
        size_only=sum(not entry.algorithm and entry.size is not None for entry in right),
        existence_only=sum(not entry.algorithm and entry.size is None for entry in right),
        faults=faults,
        absent_subjects=tuple(sorted({manifest.subject_of(entry.path) for entry in entries} - there - {""})),
        layout=(),
        repair=command("download", manifest, root, subjects, what) if faults else "",
    )


def _count_layout(manifest: Manifest, root: Path) -> tuple[dict[str, Any], ...]:
    return tuple(
        {"glob": item.glob, "what": item.what, "expected": item.n, "got": sum(1 for _ in root.glob(item.glob)) if root.is_dir() else 0}
        for item in manifest.layout
    )


def _layout_faults(manifest: Manifest, root: Path) -> list[str]:
    return [item["glob"] for item in _count_layout(manifest, root) if not item["got"]]


# ------------------------------------------------------------------------------------------------------------------------- command line


def command(verb: str, manifest: Manifest, root: str | os.PathLike, subjects: str = "all", what: str = WHAT) -> str:
    """Write a command as a user types it."""
    words = ["brainspeech", verb, manifest.given or manifest.name, "--root", str(root)]
    words += ["--subjects", subjects] if subjects != "all" else []
    words += ["--what", what] if what != WHAT else []
    return shlex.join(words)


def download_command(
    name: str,
    root: str | os.PathLike,
    subjects: str = "all",
    what: str = WHAT,
    *,
    progress: bool = True,
    tell: Callable[[str], None] = print,
) -> tuple[str, int]:
    """Do what ``brainspeech download`` does; give the text to print and the exit status: 0, or 1 if a file failed."""
    result = download(name, root, subjects=subjects, what=what, progress=progress, tell=tell)
    if not result.plan.manifest.entries:
        return f"{root} has been filled by hand; nothing to fetch.\n" + verify(name, root, progress=False).text(), 0
    return result.text(), int(bool(result.failed))


def verify_command(
    name: str,
    root: str | os.PathLike,
    json: bool = False,
    *,
    subjects: str = "all",
    what: str = WHAT,
    progress: bool = True,
) -> tuple[str, int]:
    """Do what ``brainspeech verify`` does; give the text (or JSON) to print and the exit status: 0, or 1 if a file is missing or wrong."""
    result = verify(name, root, subjects=subjects, what=what, progress=progress and not json)
    return (json_.dumps(result.to_dict(), indent=2) if json else result.text()), int(not result.ok)
