"""Which files of a BIDS folder belong to a recording: its own, and the sidecar files that it inherits."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

DATATYPES = ("meg", "eeg")
# What a recording's file ends in, the one to open first where there are several (.vhdr names its .eeg and .vmrk).
ENDINGS = (".vhdr", ".edf", ".bdf", ".set", ".fif", ".ds", ".con", ".sqd")
COMPANIONS = {".vhdr": (".eeg", ".vmrk")}


def read_tsv(path: Path) -> pd.DataFrame:
    """Read a BIDS table as text; ``n/a`` becomes empty. The byte-order mark that some files begin with is no part of a name."""
    try:
        # A quotation mark is a character like any other in these files; words such as "null" and "NA" are words.
        table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig", quoting=3)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise RuntimeError(f"{path} is no table of tab-separated columns: {error}.") from error
    return table.replace("n/a", "").map(str.strip) if len(table) else table


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object; one that is not there is empty."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig")) if path.is_file() else {}
    except ValueError as error:
        raise RuntimeError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise RuntimeError(f"{path}: expected a JSON object, {{...}}, got a {type(content).__name__}. Correct the file.")
    return content


def entities_of(name: str) -> dict[str, str]:
    """Split a BIDS name into its entities: ``{"sub": "01", "task": "listening"}``."""
    parts = (part.partition("-") for part in name.split("_")[:-1])
    return {key: value for key, dash, value in parts if dash}


@dataclass
class Files:
    """The files of one recording.

    Parameters
    ----------
    root, folder : Path
        The BIDS folder, and the one below it that the recording is in.
    datatype : {"meg", "eeg"}
    entities : dict
        What its names say, ``split`` left out.
    own : list of Path
        Its file, or files, and the sidecar files that bear its name.
    """

    root: Path
    folder: Path
    datatype: str
    entities: dict[str, str]
    own: list[Path] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return "_".join(f"{key}-{value}" for key, value in self.entities.items())

    @property
    def payload(self) -> Path | None:
        """The file to open it by: its name is there, though a link may lead nowhere."""
        named = [p for p in self.own if _suffix(p) == self.datatype and p.suffix.lower() in ENDINGS]
        return min(named, key=lambda p: (ENDINGS.index(p.suffix.lower()), p.name), default=None)

    def expected(self) -> Path:
        """Give the place of its file where there is none: as scans.tsv says, else with an ending that is not known."""
        form = re.compile(re.escape(f"{self.datatype}/{self.stem}") + rf"(_split-\d+)?_{self.datatype}\.\w+")
        for scans in self.folder.parent.glob("*_scans.tsv"):
            for name in read_tsv(scans).get("filename", pd.Series(dtype=str)):
                if form.fullmatch(name):
                    return self.folder.parent / name
        return self.folder / f"{self.stem}_{self.datatype}"

    def missing(self) -> list[str]:
        """Name the files, relative to the root, without which it cannot be opened and that are not there."""
        payload = self.payload
        if payload is None:
            path = self.expected().relative_to(self.root).as_posix()
            return [path if Path(path).suffix else f"{path}.*"]
        wanted = [payload, *(payload.with_suffix(s) for s in COMPANIONS.get(payload.suffix, ()))]
        return [p.relative_to(self.root).as_posix() for p in wanted if not p.exists()]

    def levels(self) -> list[Path]:
        """List the folders from the root down to its own: a sidecar file may stand in any of them."""
        return [self.root, *reversed([p for p in [self.folder, *self.folder.parents] if p != self.root and p.is_relative_to(self.root)])]

    def matching(self, suffix: str, extension: str) -> list[Path]:
        """List the sidecar files that hold for it, the most general first (BIDS's inheritance)."""
        out: list[tuple[int, int, Path]] = []
        for depth, level in enumerate(self.levels()):
            for path in level.glob(f"*{suffix}{extension}"):
                of = entities_of(path.name)
                if _suffix(path) == suffix and of.items() <= self.entities.items() and path.exists():
                    out.append((depth, len(of), path))
        return [path for _, _, path in sorted(out)]

    def inherited(self, suffix: str, extension: str) -> Path | None:
        """Give the most particular sidecar file that holds for it."""
        matching = self.matching(suffix, extension)
        return matching[-1] if matching else None

    def sidecar(self) -> dict[str, Any]:
        """Put its JSON files together, the most particular on top."""
        content: dict[str, Any] = {}
        for path in self.matching(self.datatype, ".json"):
            content |= read_json(path)
        return content

    def electrodes(self) -> dict[str, Path]:
        """List the electrodes.tsv that hold for it by their space ("" without one); of one space, the most particular."""
        out: dict[str, tuple[int, Path]] = {}
        for level in self.levels():
            for path in sorted(level.glob("*_electrodes.tsv")):
                of = entities_of(path.name)
                label = of.pop("space", "")
                if of.items() <= self.entities.items() and len(of) >= out.get(label, (0, path))[0]:
                    out[label] = (len(of), path)
        return {label: path for label, (_, path) in sorted(out.items())}

    def channels(self) -> pd.DataFrame | None:
        """Read its channels.tsv, if there is one."""
        path = self.inherited("channels", ".tsv")
        return None if path is None else read_tsv(path)

    def signal_files(self) -> list[Path]:
        """List all that the signal depends on: the recording itself, and what says what its channels are and where."""
        own = [p for p in self.own if _suffix(p) != "events"]
        about = re.compile(r"_(channels|electrodes|coordsystem|headshape|markers)\.\w+$")
        shared = [p for level in self.levels() for p in level.glob("*") if about.search(p.name)]
        return sorted({p for p in [*own, *shared] if p.exists()})


def scan(root: Path) -> list[Files]:
    """Find every recording below a BIDS folder, by its file or by its sidecar files."""
    out: dict[Path, Files] = {}
    for datatype in DATATYPES:
        for folder in sorted([*root.glob(f"sub-*/{datatype}"), *root.glob(f"sub-*/ses-*/{datatype}")]):
            for path in sorted(folder.iterdir()):
                entities = entities_of(path.name)
                if "sub" not in entities or _suffix(path) not in (datatype, "events", "channels"):
                    continue
                entities.pop("split", None)
                files = Files(root, folder, datatype, entities)
                out.setdefault(folder / files.stem, files).own.append(path)
    # A file that holds for several recordings (sub-01_task-x_events.tsv beside ..._run-1_eeg.json) is no recording of its own.
    recorded = [f for f in out.values() if any(_suffix(p) == f.datatype for p in f.own)]
    return [
        f
        for f in out.values()
        if f in recorded or not any(f.folder == r.folder and f.entities.items() <= r.entities.items() for r in recorded)
    ]


def _suffix(path: Path) -> str:
    return path.name.split("_")[-1].split(".")[0]
