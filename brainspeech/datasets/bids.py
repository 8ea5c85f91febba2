"""Any BIDS folder of MEG or EEG, read through mne-bids.

    from brainspeech.datasets import bids

    print(bids.explain(bids.understand("my_study")))         # what was understood, and what is missing; reads no samples
    dataset = bids.BidsDataset("my_study", task="listening")

Recordings are found by their files or, where those have not been fetched yet, by their sidecar files. Bad channels and channel types are
those of channels.tsv, places those of the recording or of electrodes.tsv. What was heard is read as ``bids_events`` says. Nothing is
guessed where two readings are possible: an error lists them and names the option that chooses.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pandas as pd

from brainspeech import events as events_table
from brainspeech.cache import digest, file_identity
from brainspeech.listing import some
from brainspeech.records import Recording

from .arrays import read_sound
from .base import Dataset
from .bids_events import SHOWN, SOUND_FILES, Stimuli, Understood, absent, check_options, faults_of, interpret, place
from .bids_files import DATATYPES, Files, read_json, read_tsv, scan

# Entities that tell the recordings of one session and task apart, as they are written in a recording's ``run``.
APART = ("acq", "rec", "proc", "desc")
# Where x points to the nose and y to the left ear; elsewhere x points to the right ear and y to the nose.
NOSE_FIRST = ("CTF", "4DBti", "KitYokogawa", "EEGLAB", "EEGLAB-HJ")
METRES = {"m": 1.0, "cm": 1e-2, "mm": 1e-3}
# What mne-bids says of channels without a place, such as an ECG's: a signal's own positions say it.
PLACES = re.compile("There are channels without locations|Not setting position of")


class BidsDataset(Dataset):
    """The recordings of a BIDS folder.

    Parameters
    ----------
    root : path
        The folder with dataset_description.json.
    name : str, optional
        First part of every recording's uid; the folder's name if not given.
    task : str or tuple of str, optional
        Tasks that are taken; None: all of them.
    datatype : {None, "meg", "eeg"}
        None: both, where no recording has both.
    space : str, optional
        Which electrodes.tsv, where there are several: the label after ``space-``, or "" for the one without.
    columns : mapping from str to str, optional
        Columns of the events tables for ``onset``, ``duration``, ``kind``, ``audio``, ``audio_onset``, ``word``, ``phoneme``, ``sentence``
        and ``sequence``, where they are not called as usual: ``{"audio": "sound", "audio_onset": "start"}``.
    kinds : mapping from str to str, optional
        What the column ``kind`` (``trial_type``) calls a sound, sentence, word or phoneme: ``{"story_begins": "sound"}``.
    annotation : str or tuple of str, optional
        Labels of the stimulus annotations that are taken, where several annotate the same.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If an option is unknown, or nothing in the folder matches it.
    """

    name = "bids"

    def __init__(
        self,
        root: str | os.PathLike,
        *,
        name: str = "",
        task: str | tuple[str, ...] | None = None,
        datatype: str | None = None,
        space: str | None = None,
        columns: Mapping[str, str] | None = None,
        kinds: Mapping[str, str] | None = None,
        annotation: str | tuple[str, ...] | None = None,
    ):
        if root is None:
            raise ValueError("The dataset bids needs its folder: give root= (--root DIR).")
        super().__init__(root)
        self.root: Path = Path(root)
        self.name = name or self.root.resolve().name
        if datatype not in (None, *DATATYPES):
            raise ValueError(f"{self.name}: datatype must be one of None, {', '.join(DATATYPES)}, got {datatype!r}.")
        check_options(columns, kinds, self.name)
        self.tasks = None if task is None else (task,) if isinstance(task, str) else tuple(task)
        self.datatype, self.space = datatype, space
        self.columns, self.kinds = dict(columns or {}), dict(kinds or {})
        self.labels = None if annotation is None else (annotation,) if isinstance(annotation, str) else tuple(annotation)
        self.stimuli = Stimuli(self.root)
        self._tables: dict[str, tuple[tuple[int, int], pd.DataFrame]] = {}
        self._found: dict[str, Files] = {}
        self._recordings: dict[str, Recording] = {}
        self._find()

    # ------------------------------------------------------------------------------------------------------------ recordings

    def recordings(self) -> list[Recording]:
        """List the recordings, those that have not been fetched too, sorted by uid."""
        return [self._recordings[uid] for uid in sorted(self._recordings)]

    def _find(self) -> None:
        every = [f for f in scan(self.root) if f.entities["sub"] != "emptyroom" and f.entities.get("task") != "noise"]
        tasks = sorted({f.entities.get("task", "") for f in every})
        unknown = sorted(set(self.tasks or ()) - set(tasks))
        if unknown:
            raise ValueError(f"{self.name}: no recording of task {', '.join(unknown)}; the tasks are {', '.join(tasks) or 'none'}.")
        for found in every:
            if (self.tasks and found.entities.get("task", "") not in self.tasks) or self.datatype not in (None, found.datatype):
                continue
            recording = self._name(found, several=len(tasks) > 1)
            if recording.uid in self._found:
                other = self._found[recording.uid]
                raise ValueError(
                    f"{recording.uid}: got {other.folder / other.stem} ({other.datatype}) and {found.folder / found.stem} "
                    f"({found.datatype}); choose with datatype= ({' or '.join(DATATYPES)}) or task=."
                )
            self._found[recording.uid], self._recordings[recording.uid] = found, recording
        if not self._found:
            have = ", ".join(f"{n} {kind}" for kind, n in Counter(f.datatype for f in every).items()) or "none of MEG or EEG"
            raise ValueError(
                f"{self.name}: no recording in {self.root} for datatype={self.datatype!r}, task={self.tasks}; it has {have}. Expected "
                f"files such as sub-01/[ses-1/]eeg/sub-01_task-listening_eeg.vhdr.{_other_root(self.root)}"
            )

    def _name(self, found: Files, *, several: bool) -> Recording:
        """Name a recording: its run says what tells it apart, the task only where the folder has several."""
        own = found.entities
        parts = [own.get("task", "")] * several + [key + own[key] for key in APART if key in own] + [own.get("run", "")]
        path = found.payload or found.expected()
        return Recording(self.name, own["sub"], own.get("ses", ""), "-".join(p for p in parts if p), path.relative_to(self.root).as_posix())

    # ------------------------------------------------------------------------------------------------------------ the raw

    def read_raw(self, recording: Recording) -> mne.io.BaseRaw:
        """Open a recording with mne-bids: names, types, bad channels and places as the sidecar files say.

        Raises
        ------
        FileNotFoundError
            If its file has not been fetched.
        ValueError
            If it has several electrodes.tsv and ``space`` does not choose one.
        RuntimeError
            If mne-bids cannot read it. What it warns of, and brain channels that channels.tsv does not list, are kept in ``notes``.
        """
        import mne_bids

        found, uid = self._lookup(recording), recording.uid
        missing = found.missing()
        if missing:
            raise FileNotFoundError(
                f"{uid}: {', '.join(missing)} is not in {self.root}. Fetch it (datalad get, git annex get, or from where the folder came)."
            )
        electrodes, several = self._electrodes(found, uid)
        found.sidecar()  # of what is wrong with these, mne-bids does not say in which
        payload = found.payload
        assert payload is not None
        own = found.entities
        path = mne_bids.BIDSPath(
            root=self.root,
            subject=own["sub"],
            session=own.get("ses"),
            task=own.get("task"),
            acquisition=own.get("acq"),
            run=own.get("run"),
            recording=own.get("rec"),
            processing=own.get("proc"),
            description=own.get("desc"),
            split="01" if "_split-01_" in payload.name else None,
            suffix=found.datatype,
            datatype=found.datatype,
            extension=payload.suffix,
            check=False,
        )
        try:
            with warnings.catch_warnings(record=True) as said, mne.utils.catch_logging():
                warnings.simplefilter("always")
                raw = mne_bids.read_raw_bids(path, verbose="warning")
        except (RuntimeError, ValueError, KeyError, OSError, AttributeError, TypeError) as error:
            raise RuntimeError(
                f"{uid}: mne-bids cannot read {recording.path}: {type(error).__name__}: {error}. Correct the file that this speaks of "
                "(it may be channels.tsv, events.tsv, electrodes.tsv or a .json beside it), or fetch it again."
            ) from error
        if not raw.n_times:
            size = sum(p.stat().st_size for p in found.own if p.is_file())
            raise RuntimeError(
                f"{uid}: {recording.path} holds no samples (it and the files beside it have {size} bytes). It is cut off: fetch it again."
            )
        for warning in said:
            if not PLACES.match(str(warning.message)):
                self._note(uid, f"mne-bids: {warning.message}")
        unlisted = self._unlisted(found, raw)
        if unlisted:
            self._note(uid, f"channels.tsv does not list {len(unlisted)} brain channels of the file: {_some(unlisted)}.")
        if electrodes is not None and several:  # of several, mne-bids takes none
            self._place(raw, electrodes, uid)
        return raw

    def _note(self, uid: str, text: str) -> None:
        """Keep a sentence for the report."""
        note = f"{uid}: {text}"
        if note not in self.notes:
            self.notes.append(note)

    def _unlisted(self, found: Files, raw: mne.io.BaseRaw) -> list[str]:
        """Name the brain channels of a file that its channels.tsv does not know; they have the type that the file gives them."""
        table = found.channels()
        if table is not None and "name" not in table:
            path = found.inherited("channels", ".tsv")
            raise RuntimeError(f"{path}: expected the columns name, type and units, got {', '.join(table.columns)}. Correct the file.")
        listed = set() if table is None else set(table["name"])
        brain = mne.pick_types(raw.info, meg=True, eeg=True, ref_meg=False, exclude=())
        return [] if table is None else [raw.ch_names[i] for i in brain if raw.ch_names[i] not in listed]

    def _electrodes(self, found: Files, uid: str) -> tuple[Path | None, bool]:
        """Choose a recording's electrodes.tsv, and say whether there was a choice."""
        candidates = found.electrodes()
        if not candidates:
            return None, False
        if self.space is None and len(candidates) > 1:
            listed = ", ".join(f"space={label!r} ({path.name})" for label, path in candidates.items())
            raise ValueError(
                f"{uid}: {len(candidates)} electrode files, and nothing says which to use; choose {listed.replace(', ', ' or ')}."
            )
        label = next(iter(candidates)) if self.space is None else self.space
        if label not in candidates:
            listed = ", ".join(repr(label) for label in candidates)
            raise ValueError(f"{uid}: no electrodes.tsv with space={self.space!r}, there is {listed}.")
        return candidates[label], len(candidates) > 1

    def _place(self, raw: mne.io.BaseRaw, electrodes: Path, uid: str) -> None:
        """Give the EEG channels the places of an electrodes.tsv."""
        system = read_json(electrodes.with_name(electrodes.name.replace("_electrodes.tsv", "_coordsystem.json")))
        unit = system.get("EEGCoordinateUnits")
        if unit not in METRES:
            raise RuntimeError(f"{uid}: the coordsystem.json of {electrodes.name} must give EEGCoordinateUnits m, cm or mm, got {unit!r}.")
        table = read_tsv(electrodes)
        points = np.stack([pd.to_numeric(table[axis], errors="coerce").to_numpy() for axis in "xyz"], axis=1) * METRES[unit]
        if system.get("EEGCoordinateSystem") in NOSE_FIRST:
            points = np.stack([-points[:, 1], points[:, 0], points[:, 2]], axis=1)
        known = {name: point for name, point in zip(table["name"], points, strict=True) if np.isfinite(point).all()}
        eeg = {raw.ch_names[i] for i in mne.pick_types(raw.info, eeg=True, exclude=())}
        montage = mne.channels.make_dig_montage({k: v for k, v in known.items() if k in eeg}, coord_frame="head")
        raw.set_montage(montage, on_missing="ignore", verbose="error")

    def read_stimulus(self, audio: str) -> tuple[np.ndarray, float]:
        """Read a stimulus, shape (n_audio_channels, n_samples), and its rate."""
        return read_sound(self._stimulus_path(audio), f"{self.name}: stimulus {audio!r}")

    def duration(self, recording: Recording) -> float:
        """Give the length in seconds from the recording's header or, where it has not been fetched, from its JSON file."""
        found = self._lookup(recording)
        if not found.missing():
            return super().duration(recording)
        return self._said_duration(found) or float("inf")

    def _said_duration(self, found: Files) -> float | None:
        seconds = found.sidecar().get("RecordingDuration")
        return float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None

    def fingerprint(self, recording: Recording) -> str:
        """Identify a recording by its files, by the sidecar files that say what its channels are, and by ``space``."""
        found = self._lookup(recording)
        files = found.signal_files()
        return digest(["bids", self.space, [[p.relative_to(self.root).as_posix(), file_identity(p)] for p in files]])

    # ------------------------------------------------------------------------------------------------------------ what was heard

    def read_events(self, recording: Recording) -> pd.DataFrame:
        """Read what was heard.

        A sound without a duration is heard to its end. A word that names no stimulus belongs to the sound that is playing.

        Raises
        ------
        RuntimeError
            If there is no events table or nothing in it is speech, with what to do.
        FileNotFoundError
            If the length of a sound has to be read from its file, and the file is missing.
        ValueError
            If ``columns`` names a column that is not there, or times are missing.
        """
        found, uid = self._lookup(recording), recording.uid
        heard = self._hear(found, uid)
        if heard.faults:
            raise RuntimeError(f"{uid}: {' '.join(heard.faults)}")
        if heard.endless:
            raise FileNotFoundError(f"{uid}: {_endless(heard.endless, self.root)}")
        for note in heard.notes:
            if note not in self.notes:
                self.notes.append(note)
        return events_table.make(heard.table.to_dict("records"), uid=uid)

    def _hear(self, found: Files, uid: str) -> Understood:
        """Read and interpret a recording's events and the annotations of its stimuli; faults are listed, not raised."""
        path = found.inherited("events", ".tsv")
        if path is None:
            return Understood(pd.DataFrame(), faults=[f"No events.tsv for {found.stem}; expected {found.folder / found.stem}_events.tsv."])
        if path.is_dir():
            return Understood(pd.DataFrame(), faults=[f"{path} is a folder, expected a table of tab-separated columns."])
        first = interpret(self._table(path), columns=self.columns, kinds=self.kinds)
        table = first.table.copy()
        table["audio"] = [self.stimuli.locate(name) for name in table["audio"]]
        is_sound = (table["kind"] == "sound").to_numpy()
        table.loc[is_sound & table["audio_onset"].isna().to_numpy(), "audio_onset"] = 0.0
        out = Understood(table, tables=[first])
        lengths, starts = table["duration"].to_numpy(dtype=float).copy(), table["audio_onset"].to_numpy(dtype=float)
        for row in np.flatnonzero(is_sound & ~(lengths > 0)):
            length = self.stimuli.duration(table["audio"].iloc[row])
            if length is None:
                out.endless.append(table["audio"].iloc[row])
            else:
                lengths[row] = length - starts[row]
        table["duration"] = lengths
        self._annotate(out, table[is_sound], uid)
        gone = absent(self.columns, out.tables)
        if gone:
            raise ValueError(f"{uid}: no column {', '.join(gone)} in {path.name}; its columns are {', '.join(first.there)}.")
        out.faults += faults_of(out.table, first)
        return out

    def _annotate(self, out: Understood, sounds: pd.DataFrame, uid: str) -> None:
        """Add what the stimuli's annotations say and the recording's events do not."""
        own = set(out.table["kind"]) - {"sound"}
        n_outside = 0
        for audio, heard in sounds.groupby("audio"):
            given: dict[str, str] = {}
            for label, path in self.stimuli.annotations(str(audio)).items():
                if self.labels is not None and label not in self.labels:
                    continue
                annotation = interpret(self._table(self.root / path), columns=self.columns, kinds=self.kinds, label=label)
                out.tables.append(annotation)
                rows = annotation.table[~annotation.table["kind"].isin({*own, "sound"})]
                for kind in sorted(set(rows["kind"])):
                    if given.setdefault(kind, label) != label:
                        raise ValueError(
                            f"{uid}: {audio} has its {kind}s in the annotations {given[kind]} and {label}; "
                            f"choose with annotation={label!r}."
                        )
                # A sound whose end is not known is heard to the end of its annotation here; read_events does not get that far.
                placed, outside = place(heard.fillna({"duration": np.inf}), rows)
                n_outside += outside
                out.table = pd.concat([out.table, placed], ignore_index=True)
        if n_outside:
            out.notes.append(f"{uid}: {n_outside} annotated events lie outside what was heard of their stimulus and are left out.")

    # ------------------------------------------------------------------------------------------------------------ what was understood

    def understand(self) -> dict[str, Any]:
        """Say what is understood of the folder and what is missing, from its small files alone; JSON-able."""
        kinds: Counter[str] = Counter()
        ignored: Counter[str] = Counter()
        columns: dict[str, str] = {}
        faults: dict[str, list[str]] = {}
        names: Counter[str] = Counter()
        missing_files: list[str] = []
        seconds: list[float | None] = []
        notes: list[str] = []
        channels: Counter[str] = Counter()
        n_bad, with_places, spaces = 0, 0, set()
        for recording in self.recordings():
            found, uid = self._lookup(recording), recording.uid
            missing = found.missing()
            missing_files += missing
            seconds.append(self._said_duration(found))
            heard = self._hear(found, uid)
            kinds.update(heard.table["kind"] if len(heard.table) else ())
            names.update(a for a in (heard.table["audio"] if len(heard.table) else ()) if a)
            notes += heard.notes
            for part in heard.tables:
                columns |= {role: column for role, column in part.columns.items() if role not in columns}
                ignored += part.ignored
            for fault in heard.faults:
                faults.setdefault(re.sub(r"\d+ ", "", fault, count=1), []).append(f"{uid}: {fault}")
            if heard.endless and not heard.faults:
                faults.setdefault("endless", []).append(f"{uid}: {_endless(heard.endless, self.root)}")
            elif not heard.faults:
                try:
                    events_table.make(heard.table.to_dict("records"), uid=uid)
                except ValueError as error:
                    faults.setdefault(re.sub(r"\d+", "", str(error).removeprefix(uid)), []).append(str(error))
            described = found.channels()
            if described is not None:
                channels.update(described.get("type", ()))
                n_bad += sum(status == "bad" for status in described.get("status", ()))
            available = found.electrodes()
            spaces |= set(available)
            with_places += bool(available)
            if len(available) > 1 and self.space is None:
                listed = " or ".join(f"space={label!r}" for label in available)
                faults.setdefault("space", []).append(f"{uid}: {len(available)} electrode files; choose {listed}.")
        lacking = sorted(name for name in names if not self.stimuli.exists(name))
        said = [s for s in seconds if s is not None]
        found_all = list(self._found.values())
        problems = [f"{len(texts)} recordings, such as {texts[0]}" if len(texts) > 1 else texts[0] for texts in faults.values()]
        if missing_files:
            problems.insert(0, f"{len(missing_files)} files of recordings are not here: {_some(missing_files)}. Fetch them.")
        if lacking:
            problems.append(f"{len(lacking)} of {len(names)} stimuli are not here: {_some(lacking)}. Fetch them.")
        no_sound = sorted(n for n in names if not n.lower().endswith(SOUND_FILES))
        if no_sound:
            problems.append(f"{len(no_sound)} stimuli are no sound files ({_some(no_sound)}): extract their sound.")
        return {
            "name": self.name,
            "root": str(self.root),
            "bids_version": read_json(self.root / "dataset_description.json").get("BIDSVersion", ""),
            "subjects": len({r.subject for r in self.recordings()}),
            "sessions": sorted({r.session for r in self.recordings() if r.session}),
            "tasks": dict(sorted(Counter(f.entities.get("task", "") for f in found_all).items())),
            "datatypes": dict(sorted(Counter(f.datatype for f in found_all).items())),
            "formats": dict(sorted(Counter(Path(r.path).suffix or "unknown" for r in self.recordings()).items())),
            "recordings": len(found_all),
            "recordings_here": sum(not f.missing() for f in found_all),
            "hours": sum(said) / 3600 if said else None,
            "hours_of": len(said),
            "channels": dict(channels.most_common()),
            "bad_channels": n_bad,
            "electrodes": {"recordings": with_places, "spaces": sorted(spaces), "chosen": self.space},
            "events": dict(sorted(kinds.items())),
            "ignored_events": dict(ignored.most_common()),
            "columns": columns,
            "stimuli": {"named": len(names), "here": len(names) - len(lacking)},
            "notes": notes,
            "missing": problems,
        }

    # ------------------------------------------------------------------------------------------------------------ files

    def _lookup(self, recording: Recording) -> Files:
        if recording.uid not in self._found:
            raise ValueError(f"{recording.uid} is not a recording of {self.name}; take one from recordings().")
        return self._found[recording.uid]

    def _table(self, path: Path) -> pd.DataFrame:
        """Read a table, once as long as it does not change: many recordings share their annotations."""
        stat = path.stat()
        state = (stat.st_mtime_ns, stat.st_size)
        if path.as_posix() not in self._tables or self._tables[path.as_posix()][0] != state:
            self._tables[path.as_posix()] = (state, read_tsv(path))
        return self._tables[path.as_posix()][1]


def understand(root: str | os.PathLike, **options: Any) -> dict[str, Any]:
    """Say what is understood of a BIDS folder and what is missing, without reading samples.

    Parameters
    ----------
    root : path
        The BIDS folder.
    **options
        Those of ``BidsDataset``.

    Returns
    -------
    dict
        JSON-able: subjects, sessions, tasks, recordings and how many of them are here, hours (as the sidecar files say), channels, events
        by kind and the rows that are none, the columns they were found in, stimuli; ``missing``: sentences, empty if nothing is.
    """
    return BidsDataset(root, **options).understand()


def explain(found: Mapping[str, Any]) -> str:
    """Put what ``understand`` gives into lines."""

    def counts(values: Mapping[str, int]) -> str:
        return ", ".join(f"{n} {name or '(no name)'}" for name, n in values.items()) or "none"

    sessions = f", sessions {', '.join(found['sessions'])}" if found["sessions"] else ""
    places = found["electrodes"]
    hours = found["hours"]
    length = "length not said" if hours is None else f"{hours:.2f} h" if hours >= 0.1 else f"{hours * 3600:.0f} s"
    lines = [
        f"{found['name']}: BIDS {found['bids_version'] or '(version not said)'}, {found['subjects']} subjects{sessions}",
        f"recordings   {found['recordings']} ({counts(found['datatypes'])}; tasks: {counts(found['tasks'])}), "
        f"{found['recordings_here']} here, {length}"
        + (f" (said of {found['hours_of']})" if 0 < found["hours_of"] < found["recordings"] else ""),
        f"formats      {counts(found['formats'])}",
        f"channels     {counts(found['channels'])}, {found['bad_channels']} bad (all recordings together)",
        f"electrodes   electrodes.tsv for {places['recordings']} recordings"
        + (f", spaces {', '.join(repr(s) for s in places['spaces'])}" if places["spaces"] else "")
        + (f", chosen {places['chosen']!r}" if places["chosen"] is not None else ""),
        f"events       {counts(found['events'])}" + (f"; not used: {counts(found['ignored_events'])}" if found["ignored_events"] else ""),
        "columns      " + (", ".join(f"{role} = {column}" for role, column in found["columns"].items()) or "none"),
        f"stimuli      {found['stimuli']['named']} named, {found['stimuli']['here']} here",
    ]
    lines += [f"note         {note}" for note in found["notes"]]
    lines += [f"MISSING      {problem}" for problem in found["missing"]] or ["nothing is missing"]
    return "\n".join(lines)


def _some(names: list[str]) -> str:
    return some(sorted(set(names)), SHOWN)


def _endless(audios: list[str], root: Path) -> str:
    return (
        f"{len(audios)} sounds have no duration in the events, and their files are not in {root} or are no sound files: {_some(audios)}. "
        "Fetch them, or write the durations."
    )


def _other_root(root: Path) -> str:
    """Say which folder was meant, where it is the one above or one of those below."""
    full = root.resolve()
    above = next((folder.parent for folder in (full, *full.parents) if folder.name.startswith("sub-")), None)
    below = sorted({path.parent.name for path in root.glob("*/sub-*") if path.is_dir()})
    if above is not None:
        return f" Give the folder of the whole study: {above}."
    return f" There are subjects in {root / below[0]}: give that folder." if below else ""
