"""What a BIDS folder says was heard: the events.tsv of a recording, and the annotations of its stimuli.

Three ways of naming a stimulus are understood: ``stim_file``, a path below ``stimuli/``; ``stim_id`` of the coming extension BEP044
(https://github.com/bids-standard/bids-specification/pull/2022), which stands for ``stimuli/stim-LABEL_audio.wav`` and brings that sound's
``stimuli/stim-LABEL_annot-LABEL_events.tsv`` along, in seconds from the sound's beginning; and whatever column the user names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

ROLES = ("onset", "duration", "kind", "audio", "audio_onset", "word", "phoneme", "sentence", "sequence")
# Columns that are taken for a role, the first that is there, unless the user names another.
USUAL = {
    "onset": ("onset",),
    "duration": ("duration",),
    "kind": ("kind", "trial_type"),
    "audio": ("stim_id", "stim_file"),
    "audio_onset": ("audio_onset",),
    "word": ("word", "text"),
    "phoneme": ("phoneme", "phone"),
    "sentence": ("sentence", "text"),
    "sequence": ("sequence", "sequence_id", "sentence_id"),
}
# What the column of the role ``kind`` calls them, in lower case.
KINDS = {
    "sound": "sound",
    "audio": "sound",
    "word": "word",
    "words": "word",
    "phoneme": "phoneme",
    "phonemes": "phoneme",
    "phone": "phoneme",
    "phones": "phoneme",
    "sentence": "sentence",
    "sentences": "sentence",
}
# A row that names a stimulus and one of these says where it ends.
ENDS = ("stop", "end", "offset")
SOUND_FILES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff")
STIM_ID = re.compile(r"stim-[A-Za-z0-9]+(_part-[A-Za-z0-9]+)?")
SHOWN = 5
COLUMNS = ["kind", "onset", "duration", "text", "audio", "audio_onset", "sequence"]


@dataclass
class Heard:
    """What one table says was heard.

    Parameters
    ----------
    table : DataFrame
        Columns of ``brainspeech.events``, not checked yet: numbers may be NaN, ``audio`` empty.
    columns : mapping from role to column
        What was found under which name.
    there : list of str
        All columns of the table.
    ignored : mapping from str to int
        Rows that are neither sound nor speech, by what they are called.
    """

    table: pd.DataFrame
    columns: dict[str, str] = field(default_factory=dict)
    there: list[str] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def interpret(raw: pd.DataFrame, *, columns: Mapping[str, str], kinds: Mapping[str, str], label: str = "") -> Heard:
    """Find sounds, sentences, words and phonemes among the rows of a table.

    Parameters
    ----------
    raw : DataFrame
        As ``read_tsv`` gives it.
    columns : mapping from role to column
        Names that go before the usual ones.
    kinds : mapping from str to kind
        What the table calls them, besides ``KINDS``.
    label : str
        The annotation's label: what its rows are where no column says it.
    """
    found = {role: _column(raw, role, columns) for role in ROLES}
    named = {role: column for role, column in found.items() if column}

    def values(role: str) -> np.ndarray:
        column = named.get(role)
        return raw[column].to_numpy(dtype=object) if column else np.full(len(raw), "", dtype=object)

    known = {**KINDS, **{called.lower(): kind for called, kind in kinds.items()}}
    called = np.array([str(v).lower() for v in values("kind")], dtype=object)
    kind = np.array([known.get(v, "") for v in called], dtype=object)
    word, phoneme, audio = values("word"), values("phoneme"), values("audio")
    default = known.get(label.lower(), "")
    # A column called text may hold anything: it is words only where something else says so.
    spoken = (word != "") & (named.get("word") != "text" or "word" in columns)
    # In this order: what the row is called; what the annotation is called; what the row has.
    for rows, guess in (
        (np.full(len(raw), bool(default)), default),
        (spoken, "word"),
        (phoneme != "", "phoneme"),
        ((audio != "") & ~np.isin(called, ENDS), "sound"),
    ):
        kind = np.where((kind == "") & rows, guess, kind)
    texts = {"word": word, "phoneme": phoneme, "sentence": values("sentence")}
    text = np.full(len(raw), "", dtype=object)
    for of_kind, column in texts.items():
        text = np.where(kind == of_kind, column, text)
    table = pd.DataFrame(
        {
            "kind": kind,
            "onset": _numbers(values("onset")),
            "duration": _numbers(values("duration")),
            "text": text,
            "audio": audio,
            "audio_onset": _numbers(values("audio_onset")),
            "sequence": values("sequence"),
        },
        columns=COLUMNS,
    )
    left = kind == ""
    ignored = Counter(str(v) or "(no name)" for v in called[left])
    return Heard(table[~left].reset_index(drop=True), named, list(raw.columns), ignored)


def _column(raw: pd.DataFrame, role: str, columns: Mapping[str, str]) -> str:
    if role in columns and columns[role] in raw:
        return columns[role]
    taken = set(columns.values())
    return next((c for c in USUAL[role] if c in raw and c not in taken), "")


def _numbers(values: np.ndarray) -> np.ndarray:
    """Read seconds; what is no number is NaN, and is said by the check of the whole table."""
    return pd.to_numeric(pd.Series(values, dtype=object), errors="coerce").to_numpy(dtype=np.float64)


class Stimuli:
    """The folder ``stimuli/`` of a BIDS folder.

    Parameters
    ----------
    root : path
        The BIDS folder.
    """

    def __init__(self, root: Path):
        self.root = root
        self._files: list[str] | None = None

    @property
    def files(self) -> list[str]:
        """Everything below ``stimuli/``, relative to the root."""
        if self._files is None:
            folder = self.root / "stimuli"
            self._files = (
                sorted(p.relative_to(self.root).as_posix() for p in folder.rglob("*") if not p.is_dir()) if folder.is_dir() else []
            )
        return self._files

    def locate(self, name: str) -> str:
        """Give the path, relative to the root, of what an events table calls a stimulus; the file need not be there."""
        if not name:
            return ""
        if not Path(name).suffix:
            for stem in (name, f"stim-{name}"):
                if not STIM_ID.fullmatch(stem):
                    continue
                own = [f for f in self.files if Path(f).name.startswith(f"{stem}_") and "_annot-" not in f]
                sounds = [f for f in own if f.lower().endswith(SOUND_FILES)]
                others = [f for f in own if not f.lower().endswith((".json", ".tsv"))]
                if sounds or others or stem == name:
                    return (sounds or others or [f"stimuli/{stem}_audio.wav"])[0]
        path = name.replace("\\", "/").lstrip("/")
        return path if path.startswith("stimuli/") else f"stimuli/{path}"

    def annotations(self, audio: str) -> dict[str, str]:
        """List the annotation tables of a stimulus, {label: path relative to the root}."""
        stem = STIM_ID.match(Path(audio).name)
        if stem is None:
            return {}
        form = re.compile(re.escape(stem.group()) + r"_annot-([A-Za-z0-9]+)_events\.tsv")
        return {m.group(1): f for f in self.files if (m := form.fullmatch(Path(f).name))}

    def exists(self, audio: str) -> bool:
        """Whether the file is there; a broken link is not."""
        return (self.root / audio).is_file()

    def duration(self, audio: str) -> float | None:
        """Give the length of a sound file in seconds from its header; None if it is not there, or is no sound file."""
        import soundfile

        if not self.exists(audio):
            return None
        try:
            info = soundfile.info(self.root / audio)
        except (soundfile.LibsndfileError, RuntimeError):
            return None
        return info.frames / info.samplerate


def place(sounds: pd.DataFrame, annotation: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Put the annotation of a stimulus where the stimulus was heard.

    Parameters
    ----------
    sounds : DataFrame
        Every time that this stimulus was heard: onset, duration, audio, audio_onset.
    annotation : DataFrame
        Its rows, ``onset`` in seconds of the stimulus.

    Returns
    -------
    DataFrame
        The rows at their place in the recording.
    int
        How many rows lie outside what was heard of the stimulus, and are left out.
    """
    parts: list[pd.DataFrame] = []
    n_outside = 0
    time = annotation["onset"].to_numpy(dtype=float)
    for audio, *numbers in zip(*(sounds[c] for c in ("audio", "onset", "audio_onset", "duration")), strict=True):
        onset, start, length = (float(number) for number in numbers)
        inside = (time >= start) & (time < start + length)
        n_outside += int((~inside).sum())
        parts.append(annotation.assign(audio=audio, audio_onset=time, onset=time - start + onset)[inside])
    return (pd.concat(parts, ignore_index=True) if parts else annotation[:0]), n_outside


def check_options(columns: Mapping[str, str] | None, kinds: Mapping[str, str] | None, name: str) -> None:
    """Raise ValueError where a role or a kind is unknown."""
    for role, column in (columns or {}).items():
        if role not in ROLES or not isinstance(column, str):
            raise ValueError(f"{name}: columns takes a name of a column for {', '.join(ROLES)}, got {role!r}: {column!r}.")
    for called, kind in (kinds or {}).items():
        if kind not in ("sound", "sentence", "word", "phoneme") or not isinstance(called, str):
            raise ValueError(f"{name}: kinds says of a name whether it is a sound, sentence, word or phoneme, got {called!r}: {kind!r}.")


def absent(columns: Mapping[str, str], tables: Iterable[Heard]) -> list[str]:
    """Name the columns that the user asked for and no table has."""
    there = {column for heard in tables for column in heard.there}
    return sorted(set(columns.values()) - there)


@dataclass
class Understood:
    """What was understood of a recording's events.

    Parameters
    ----------
    table : DataFrame
        Columns of ``brainspeech.events``, not checked yet.
    tables : list of Heard
        What it was put together from.
    endless : list of str
        Sounds whose length is not known.
    faults : list of str
        What keeps it from being used, in sentences.
    notes : list of str
        What was left out.
    """

    table: pd.DataFrame
    tables: list[Heard] = field(default_factory=list)
    endless: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def faults_of(table: pd.DataFrame, first: Heard) -> list[str]:
    """Say what keeps a table from being used; ``first`` is what the recording's own events say."""
    kind = table["kind"].to_numpy()
    spoken = table[np.isin(kind, ("word", "phoneme", "sentence"))]
    sounds = table[kind == "sound"]
    if not len(table):
        rows = ", ".join(f"{n} {called!r}" for called, n in first.ignored.most_common(SHOWN)) or "no rows"
        return [
            f"No row of the events is a sound or a word (got {rows}; the columns are {', '.join(first.there)}). Say what they are: "
            "kinds={'NAME': 'sound'}, columns={'audio': 'COLUMN', 'word': 'COLUMN'}."
        ]
    loose = spoken[spoken["audio_onset"].isna()]
    if len(loose) and not len(sounds):
        name = loose["audio"].iloc[0] or "no stimulus"
        return [
            f"{len(loose)} words and the like name {name!r} or others, and nothing says when it began: there is no row for the sound "
            "itself, and no column with the time within it. Name the column: columns={'audio_onset': 'COLUMN'}; or add a row per sound."
        ]
    nameless = sounds[sounds["audio"] == ""]
    if len(nameless):
        return [f"{len(nameless)} sounds name no stimulus. Name the column: columns={{'audio': 'COLUMN'}}."]
    return []
