"""MEG-MASC: 27 listeners, four stories, 208 MEG sensors (Gwilliams et al., Scientific Data 2023).

Biography
---------
Who: 27 English speakers at New York University Abu Dhabi. 22 heard the four stories in two sessions; sub-03, 12, 16, 20 and 21 have one
session. 49 sessions x 4 stories = 196 recordings, 56.2 h by the last event of each.

What was heard: LW1, Cable Spool Boy, Easy Money and The Black Willow (``task-0`` to ``task-3``), synthesised by three macOS voices that
change every 5 to 20 sentences, in 30 sound files of 1 to 3 minutes; a comprehension question after each. Lists of words shuffled from the
preceding text stand between the sentences, and 8 pseudo-words inside them. Everybody hears the same audio, most of them twice: only a
split by stimulus is a split.

Device: KIT, 208 axial gradiometers and 16 references, 1000 Hz, 0.01-200 Hz (``channels.tsv`` says 0.03-200 Hz).

Licence and access: CC0, open. OSF ag3kj, h2tzn and u5327, merged into one folder; or NEMAR nm000229, the same in one piece.

Faults, and what is done about them:

- ``events.tsv`` comes in two forms. OSF's ``trial_type`` holds the repr of a Python dict, read with ``ast.literal_eval``; NEMAR's has one
  column per key. Both give one table.
- A sound row calls its file ``stimuli/audio/LW1_0.0.wav`` or ``The_Black_Willow_3.0.wav``; on disk it is ``lw1_0.wav``, and so do the words
  have it, in lower case or not. Names are put in lower case and lose the ``.0``.
- ``README.md`` calls the fourth story The Black Widow, and ``meg.json`` says that ``task-0`` to ``task-3`` count within a session. In the
  events the number is the story's, in every file seen, and a file whose story is another is an error.
- ``events.tsv`` gives a sound no duration. A sound lasts until its last word or phoneme ends, whether or not the wav is there, so that no
  block depends on which files are on disk; the wavs are 0.3 to 2.6 s longer (by their size in NEMAR's listing, at 22,050 Hz).
- Words that the aligner (Gentle) did not find are not in the table. They are neither counted nor guessed.
- ``RecordingDuration`` in ``meg.json`` is the time of the last sample; the recording is one sample longer.
- ``*_headshape.pos`` are FastSCAN files in millimetres under a name that MNE does not read: read here. A recording that lacks its markers
  or either of its head shape files has no device-to-head transform; sensor layouts do not need it.
- ``channels.tsv`` begins with a byte-order mark. Channels that it calls bad are marked bad (none in sub-01 and sub-02).

Conditions: ``sequence`` is ``story-number`` for a sentence, ``story-number/word_list`` for a word list and ``story-number/pseudo_words``
for a sentence with a pseudo-word in it. All are kept, as in the reference; the authors' own analyses leave the last two out.

Events alone (no ``.con``, no wav) are enough for everything but ``read_raw`` and ``read_stimulus``.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
from functools import lru_cache
from pathlib import Path

import mne
import numpy as np
import pandas as pd

from brainspeech import events
from brainspeech.cache import digest, file_identity
from brainspeech.records import Recording

from .base import Dataset

STORIES = ("lw1", "cable_spool_fort", "easy_money", "the_black_willow")  # by task
SESSIONS = ("0", "1")
N_CHANNELS = 208
# What is read of NEMAR's columns, which are the keys of OSF's dicts.
KEYS = ("kind", "story", "start", "sound", "phoneme", "word", "sequence_id", "condition")
MAX_HEAD_POINTS = 10_000  # with more, MNE warns and thins them out
MAX_JITTER = 0.05  # s between a word's time and the time of its sound plus its place in it
GET = "Run: brainspeech download gwilliams2022 --root DIR (or merge OSF ag3kj, h2tzn and u5327 into one folder)."


class Gwilliams2022Dataset(Dataset):
    """MEG-MASC below a folder, in NEMAR's or in OSF's form.

    Parameters
    ----------
    root : path
        The folder of participants.tsv.

    Raises
    ------
    FileNotFoundError
        If the folder has no participants.tsv.
    """

    name = "gwilliams2022"
    published = range(1, 28)

    def __init__(self, root: str | os.PathLike | None = None):
        if root is None:
            raise ValueError(f"{self.name}: say where the files are, root=DIR. {GET}")
        super().__init__(root)
        self._root = Path(root)
        made = self._list_made()
        self._recordings = [r for r in made if self._beside(r, "events.tsv").is_file()]
        here = {r.subject for r in self._recordings}
        for r in made:
            if r not in self._recordings:
                place = f"{r.subject}/ses-{r.session}/run-{r.run}" if r.subject in here else r.subject
                self.excluded[place] = "no events.tsv in this folder"

    def recordings(self) -> list[Recording]:
        """List participants x sessions x stories, as far as their events are there; the others are ``excluded``."""
        return list(self._recordings)

    def read_raw(self, recording: Recording) -> mne.io.BaseRaw:
        """Open a .con file; with markers and head shape where all of them are there."""
        path = self._root / recording.path
        if not path.is_file():
            raise FileNotFoundError(f"{recording.uid}: {path} is missing. {GET}")
        session = path.name.split("_task-")[0]
        names = (path.name.replace("_meg.con", "_markers.*"), f"{session}_acq-ELP_headshape.*", f"{session}_acq-HSP_headshape.*")
        found = [sorted(path.parent.glob(name)) for name in names]
        options = {}
        if all(found):
            mrk, elp, hsp = (paths[0] for paths in found)
            options = {"mrk": mrk, "elp": read_points(elp), "hsp": read_points(hsp)}
        raw = mne.io.read_raw_kit(path, stim=None, verbose="error", **options)
        return check_channels(raw, self._beside(recording, "channels.tsv"), n_channels=N_CHANNELS, where=recording.uid)

    def read_events(self, recording: Recording) -> pd.DataFrame:
        """Read sounds, sentences, words and phonemes from either form of events.tsv."""
        path = self._beside(recording, "events.tsv")
        if not path.is_file():
            raise FileNotFoundError(f"{recording.uid}: {path} is missing. {GET}")
        return make_events(read_table(path), story=STORIES[int(recording.run)], where=f"{recording.uid} ({path.name})")

    def duration(self, recording: Recording) -> float:
        """Give the length in seconds by meg.json, else by the recording; infinite where neither is there."""
        path = self._beside(recording, "meg.json")
        if path.is_file():
            said = json.loads(path.read_text(encoding="utf-8-sig"))
            return float(said["RecordingDuration"]) + 1 / float(said["SamplingFrequency"])
        if not (self._root / recording.path).is_file():
            return math.inf
        raw = self.read_raw(recording)
        return raw.n_times / raw.info["sfreq"]

    def fingerprint(self, recording: Recording) -> str:
        """Identify a recording by its .con file and by the table that says which channels are bad."""
        channels = self._beside(recording, "channels.tsv")
        return digest([super().fingerprint(recording), file_identity(channels) if channels.is_file() else ""])

    def _beside(self, recording: Recording, ending: str) -> Path:
        return self._root / recording.path.replace("_meg.con", f"_{ending}")

    def _list_made(self) -> list[Recording]:
        path = self._root / "participants.tsv"
        if not path.is_file():
            raise FileNotFoundError(f"{self.name}: {path} is missing, expected the dataset's top folder. {GET}")
        table = pd.read_csv(path, sep="\t", dtype=str, encoding="utf-8-sig")
        n_sessions = table.get("n_sessions", pd.Series("2", index=table.index)).astype(int)
        made = []
        for participant, n in zip(table["participant_id"], n_sessions, strict=True):
            for session in SESSIONS[:n]:
                for task in range(len(STORIES)):
                    file = f"{participant}/ses-{session}/meg/{participant}_ses-{session}_task-{task}_meg.con"
                    made.append(Recording(self.name, participant.removeprefix("sub-"), session, str(task), file))
        return sorted(made, key=lambda recording: recording.uid)


def read_table(path: Path) -> pd.DataFrame:
    """Read events.tsv of either form into onset, duration and ``KEYS``; a key that an event lacks is empty."""
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    if "kind" not in table:
        try:
            values = [_read_dict(text) for text in table["trial_type"]]
        except (ValueError, SyntaxError, AttributeError) as error:
            raise RuntimeError(f"{path}: expected the repr of a dict in every trial_type, got one that is none ({error}). {GET}") from error
        table = pd.DataFrame(values, columns=list(KEYS), dtype=str).assign(onset=table["onset"], duration=table["duration"])
    missing = [name for name in ("onset", "duration", *KEYS) if name not in table]
    if missing:
        raise RuntimeError(f"{path}: expected the columns onset, duration and {', '.join(KEYS)}; missing {', '.join(missing)}. {GET}")
    return table[["onset", "duration", *KEYS]].replace("n/a", "")


@lru_cache(maxsize=200_000)  # every recording of a story repeats the same ones
def _read_dict(text: str) -> tuple[str, ...]:
    # Python's repr of a missing number is no literal.
    found = ast.literal_eval(re.sub(r"(?<=: )nan(?=[,}])", "None", text))
    return tuple("" if found.get(key) is None else str(found[key]) for key in KEYS)


def make_events(table: pd.DataFrame, *, story: str, where: str) -> pd.DataFrame:
    """Make a checked events table of what ``read_table`` gave.

    Raises
    ------
    RuntimeError
        If the file tells another story, or if a word is not where its sound and its place in it put it.
    """
    told = set(table["story"].str.lower())
    if told != {story}:
        raise RuntimeError(f"{where}: expected the story {story}, got {', '.join(sorted(told))}. Run: brainspeech verify gwilliams2022")
    kind, is_sound = table["kind"], (table["kind"] == "sound").to_numpy()
    audio = table["sound"].str.lower().str.replace(r"\.0\.wav$", ".wav", regex=True)
    onset, length, start = (table[name].to_numpy(dtype=float, copy=True) for name in ("onset", "duration", "start"))

    begins = pd.Series(onset[is_sound], index=audio[is_sound])
    off = np.abs(onset - start - audio.map(begins).to_numpy())
    if not (off <= MAX_JITTER).all():
        row = table[~(off <= MAX_JITTER)].iloc[0]
        raise RuntimeError(
            f"{where}: {(~(off <= MAX_JITTER)).sum()} events are not where their sound puts them, the first is {row['kind']} "
            f"{row['word']!r} at {row['onset']} s, {row['start']} s into {row['sound']}. Run: brainspeech verify gwilliams2022"
        )
    ends = pd.Series((start + length)[~is_sound]).groupby(audio[~is_sound].to_numpy()).max()
    length[is_sound] = audio[is_sound].map(ends).to_numpy() - start[is_sound]

    number = pd.to_numeric(table["sequence_id"]).fillna(-1).astype(int).astype(str)
    # The mark of a sentence is the one of its words that is out of the ordinary.
    odd = table["condition"].where(~table["condition"].isin(("", "sentence")))
    mark = odd.groupby(number).transform("first").fillna("").to_numpy()
    sequence = (story + "-" + number).to_numpy() + np.where(mark == "", "", "/" + mark.astype(object))
    made = pd.DataFrame(
        {
            "kind": kind,
            "onset": onset,
            "duration": length,
            "text": np.where(kind == "word", table["word"], np.where(kind == "phoneme", table["phoneme"], "")),
            "audio": audio,
            "audio_onset": start,
            "sequence": np.where(is_sound, "", sequence),
        }
    )
    return events.check(pd.concat([made, make_sentences(made)]), uid=where)


def make_sentences(table: pd.DataFrame) -> pd.DataFrame:
    """Make one row per sentence, from its first word to the end of its last."""
    words = table[table["kind"] == "word"].sort_values("onset", kind="stable")
    words = words.assign(stop=words["onset"] + words["duration"])
    first = words.groupby("sequence", sort=False, as_index=False).agg(
        onset=("onset", "first"),
        stop=("stop", "max"),
        text=("text", " ".join),
        audio=("audio", "first"),
        audio_onset=("audio_onset", "first"),
    )
    return first.assign(kind="sentence", duration=first["stop"] - first["onset"]).drop(columns="stop")


def read_points(path: Path) -> np.ndarray:
    """Read a FastSCAN file of points in millimetres as metres, shape (n_points, 3), thinned out to what MNE takes."""
    points = np.loadtxt(path, comments="%", ndmin=2) * 1e-3
    return points[:: math.ceil(len(points) / MAX_HEAD_POINTS)]


def check_channels(raw: mne.io.BaseRaw, table: Path, *, n_channels: int, where: str) -> mne.io.BaseRaw:
    """Check the number of MEG channels, and mark bad what channels.tsv, if it is there, calls bad.

    Raises
    ------
    RuntimeError
        If there are more or fewer sensors.
    """
    n_found = raw.get_channel_types().count("mag")
    if n_found != n_channels:
        raise RuntimeError(f"{where}: expected {n_channels} MEG channels, got {n_found}. Run: brainspeech verify gwilliams2022")
    if table.is_file():
        status = pd.read_csv(table, sep="\t", dtype=str, encoding="utf-8-sig")
        bad = set(status.loc[status["status"] == "bad", "name"])
        raw.info["bads"] = [name for name in raw.ch_names if name in bad]
    return raw
