"""Alice in Wonderland: 49 listeners, 12.4 minutes, 60 electrodes (Brennan & Hale, PLoS ONE 2019).

Biography
---------
Who: 49 listeners at the University of Michigan, March 2015 to December 2016. The authors analysed 33: eight scored low on the
comprehension questions, eight were noisy.

What was heard: the first chapter of Alice's Adventures in Wonderland, as 12 wavs of 47 to 70 s (723.5 s in all), 2,129 words in 84
sentences. Everybody heard all of it once, in order: 42 recordings with word times make 8.5 h (to the last word of each), the 33 of the
reference 6.7 h.

Device: actiCHamp, 500 Hz, 0.01-200 Hz, easycap M10: electrodes 1 to 61 without 29 (the online reference), one VEOG, one channel AUD (Aux5
in S01) that carries the sound. AUD is typed misc: taken for EEG it would decode itself. Positions are MNE's easycap-M10. Channels that
the authors rejected in their analysis (``proc.rejections``) are kept, as in the reference.

Licence and access: CC-BY-4.0, open. Three forms of the same recordings are read:

- NEMAR nm000180: BIDS, BrainVision ``sub-001`` ... (SNN is sub-0NN), EEG of 45 subjects (4, 16, 24 and 49 are not in it). 62 channels.
- Deep Blue bg257f92t (v1): ``SNN.mat`` in FieldTrip's form (``raw``: ``hdr.label``, ``trial``, microvolt), ``proc/``, ``audio/``.
- Deep Blue bn999738r (v2): ``SNN.vhdr``. Of the Deep Blue forms no EEG file was at hand: they are read as FieldTrip and BrainVision
  define them and as the converter of nm000180 does, and tested on fixtures.

Which source wins where several exist: for the EEG BIDS, then v2, then v1; for word times ``proc/SNN.mat``, then ``events.tsv``, which was
made from it. Both need ``AliceChapterOne-EEG.csv``. A recording without its EEG can be described: once any EEG is in the folder, subjects
without theirs are left out and counted in ``excluded``.

Faults, and what is done about them:

- ``proc.trl`` counts from 150 samples (0.3 s) before each word: its third column is -150 in all 42 files. A word begins at (start -
  offset) / 500. The reference took start / 500, so that words and sounds sit 0.3 s too early; ``onsets="published"`` does so too.
  ``events.tsv`` is corrected already, so 0.3 s are taken off there for ``published`` and nothing is added otherwise. (A count from 1, as
  MATLAB has it, would put everything one sample, 2 ms, earlier; reference and NEMAR do not, nor does this.)
- Nine recordings (2, 24, 26, 27, 30, 32, 34, 35, 36) began after the first sound did. Its trigger is missing, so that every label is one
  too low: as labelled, the gaps between sounds are up to 6.7 s off those of the 33 others; moved up by one, all agree within 0.07 s, and
  the words of "segment 12" are the missing ones. The trigger times are kept, segment k becomes k + 1, and all words of sounds 2 to 12 are
  placed from the word table, those that the cut lost included. Sound 1 was heard in part only and is left out. Inferred from timing:
  nobody has yet compared with AUD. The ``events.tsv`` of these nine is wrong in the same way and gets the same repair.
- The reference dropped these nine (it wants all 2,129 words) and kept 7, 9, 23 and 43, whom the authors dropped. ``subjects="published"``
  gives its 33.
- No word times were published for 28, 29, 31, 33, 46, 47 and 49 (noisy): they cannot be used, and are counted.
- v2's word table has TRUE in row 510, where a spreadsheet took the word "true" for a truth value. It is read as true.
- 21 numbers of ``Order`` (1 to 2150) are not used; words are joined on it, never by row.
- ``RecordingDuration`` is the time of the last sample; the recording is one sample longer. ``channels.tsv`` begins with a byte-order
  mark.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import mne
import numpy as np
import pandas as pd

from brainspeech import events
from brainspeech.cache import digest, file_identity
from brainspeech.records import Recording

from .base import Dataset

N_SUBJECTS = 49
NO_ONSETS = (28, 29, 31, 33, 46, 47, 49)
SHIFTED = (2, 24, 26, 27, 30, 32, 34, 35, 36)
PUBLISHED = frozenset(range(1, N_SUBJECTS + 1)) - set(NO_ONSETS) - set(SHIFTED)
ONSETS = ("corrected", "published")

SFREQ = 500.0
TRL_OFFSET = -150.0  # samples: where a trial's word begins, seen from its first sample
TRL_COLUMNS = ("segment", "tmin", "Order")
EEG_NAMES = tuple(str(k) for k in range(1, 62) if k != 29)
OTHER_TYPES = {"VEOG": "eog", "AUD": "misc", "Aux5": "misc"}
AUDIO = "stimuli/DownTheRabbitHoleFinal_SoundFile{}.wav"
# Seconds, where the wavs are not there: the ends of third-party TextGrids of all 12; that of the 12th is its wav's length to the sample.
AUDIO_SECONDS = (
    57.540612,
    60.845193,
    63.259433,
    69.988571,
    66.272540,
    63.777551,
    62.896848,
    57.310612,
    57.226145,
    61.269660,
    56.170181,
    46.983061,
)
MOVED = "Began after the first sound"
GET = "Run: brainspeech download brennan2019 --root DIR"


class Brennan2019Dataset(Dataset):
    """Alice in Wonderland below a folder, in NEMAR's or Deep Blue's form.

    Parameters
    ----------
    root : path
        The folder of ``participants.tsv`` (BIDS), or of ``S01.mat``.
    onsets : {"corrected", "published"}
        When words and sounds begin; ``published`` is 0.3 s too early, as in the reference.
    subjects : {"all", "published"}
        All whose words can be placed (42), or the reference's 33.
    """

    name = "brennan2019"
    published = PUBLISHED

    def __init__(self, root: str | os.PathLike | None = None, *, onsets: str = "corrected", subjects: str = "all"):
        if root is None:
            raise ValueError(f"{self.name}: say where the files are, root=DIR. {GET}")
        if onsets not in ONSETS:
            raise ValueError(f"{self.name}: onsets must be one of {', '.join(ONSETS)}, got {onsets!r}.")
        if subjects not in ("all", "published"):
            raise ValueError(f"{self.name}: subjects must be all or published, got {subjects!r}.")
        super().__init__(root)
        self._root = Path(root)
        self._shift = -TRL_OFFSET / SFREQ if onsets == "published" else 0.0
        self._recordings = self._list(subjects)
        self._moved: set[str] = set()
        if self._shift:
            self.notes.append("Onsets are those of the reference: words and sounds stand 0.3 s too early.")

    def recordings(self) -> list[Recording]:
        """List one recording per subject whose words can be placed."""
        return list(self._recordings)

    def read_raw(self, recording: Recording) -> mne.io.BaseRaw:
        """Open a recording: 60 EEG channels in V with positions, VEOG, and the sound as a misc channel."""
        path = self._root / recording.path
        if not path.is_file():
            raise FileNotFoundError(f"{recording.uid}: {path} is missing. {GET}")
        raw = _read_fieldtrip(path, recording.uid) if path.suffix == ".mat" else mne.io.read_raw_brainvision(path, verbose="error")
        unknown = [name for name in raw.ch_names if name not in EEG_NAMES and name not in OTHER_TYPES]
        missing = [name for name in EEG_NAMES if name not in raw.ch_names]
        if unknown or missing or raw.info["sfreq"] != SFREQ:
            raise RuntimeError(
                f"{recording.uid}: expected the 60 EEG channels 1 to 61 without 29, VEOG and AUD or Aux5 at {SFREQ:g} Hz, got "
                f"{len(raw.ch_names)} channels at {raw.info['sfreq']:g} Hz ({len(unknown)} unknown: {', '.join(unknown[:5])}; "
                f"{len(missing)} missing: {', '.join(missing[:5])}) in {path}. Run: brainspeech verify brennan2019 --root DIR"
            )
        types = {name: OTHER_TYPES.get(name, "eeg") for name in raw.ch_names}
        raw.set_channel_types(types, on_unit_change="ignore", verbose="error")
        return raw.set_montage("easycap-M10", verbose="error")

    def read_events(self, recording: Recording) -> pd.DataFrame:
        """Read the words and the sounds that they were part of; the labels of nine recordings are moved up by one."""
        table = self._words
        order, label, onset = self._read_times(recording)
        first = table["onset"].reindex(order).to_numpy()
        if np.isnan(first).any():
            raise RuntimeError(f"{recording.uid}: {int(np.isnan(first).sum())} words are not in {self._csv}; are both of one release?")
        # When the sound of each label began, by its first word.
        labels, rows = np.unique(label, return_index=True)
        starts = pd.Series(onset[rows] - first[rows], index=labels)
        if _number(recording) in SHIFTED and labels.max() < table["segment"].max():
            self._say_moved(recording)
            starts.index = starts.index + 1
            words = table[table["segment"].isin(starts.index)]
            onset = words["segment"].map(starts).to_numpy() + words["onset"].to_numpy()
        else:
            words = table.loc[order]
        heard = pd.DataFrame(
            {"kind": "word", "onset": onset - self._shift, "duration": words["duration"].to_numpy(), "text": words["text"].to_numpy()}
        )
        heard = heard.assign(audio=words["audio"].to_numpy(), audio_onset=words["onset"].to_numpy(), sequence=words["sequence"].to_numpy())
        sounds = pd.DataFrame({"kind": "sound", "onset": starts.to_numpy() - self._shift, "text": "", "audio_onset": 0.0, "sequence": ""})
        sounds = sounds.assign(audio=[AUDIO.format(k) for k in starts.index], duration=[self._sound_seconds[k] for k in starts.index])
        return events.check(pd.concat([sounds, heard]), uid=recording.uid)

    def duration(self, recording: Recording) -> float:
        """Give the length in seconds from the BIDS sidecar, else from the recording's header; infinite where neither is there."""
        sidecar = self._bids(_number(recording), "_eeg.json")
        if sidecar.is_file():
            return float(json.loads(sidecar.read_text(encoding="utf-8-sig"))["RecordingDuration"]) + 1 / SFREQ
        return super().duration(recording) if (self._root / recording.path).is_file() else math.inf

    def fingerprint(self, recording: Recording) -> str:
        """Identify a recording by its header and its samples."""
        path = self._root / recording.path
        return digest([file_identity(part) for part in (path, path.with_suffix(".eeg")) if part.suffix == path.suffix or part.is_file()])

    def _list(self, subjects: str) -> list[Recording]:
        """Find the subjects, and say of the others why not."""
        eeg = {k: self._first(self._bids(k, "_eeg.vhdr"), f"S{k:02d}.vhdr", f"S{k:02d}.mat") for k in range(1, N_SUBJECTS + 1)}
        any_eeg = any(eeg.values())
        known = self._known()
        found = []
        for k, path in eeg.items():
            label = f"{k:03d}"
            timed = self._times_file(k)
            if timed is None and (path or k in known):
                why = "no word times were published (noisy)" if k in NO_ONSETS else "neither proc/SNN.mat nor events.tsv is here"
                self.excluded[label] = why
            elif timed and any_eeg and not path:
                self.excluded[label] = "its EEG is not in this folder"
            elif timed and subjects == "published" and k not in PUBLISHED:
                self.excluded[label] = "not among the reference's 33 (fewer than all words, since its labels are shifted)"
            elif timed:
                place = path or self._bids(k, "_eeg.vhdr")
                found.append(Recording(self.name, label, path=place.relative_to(self._root).as_posix()))
        if not found:
            raise FileNotFoundError(f"{self.name}: no proc/SNN.mat and no events.tsv with EEG below {self._root}. {GET}")
        return found

    def _known(self) -> set[int]:
        """Give the subjects that the folder's own lists name."""
        lists = [
            self._root / "participants.tsv",
            self._root / "sourcedata/comprehension-scores.txt",
            self._root / "comprehension-scores.txt",
        ]
        text = "\n".join(path.read_text(encoding="utf-8-sig") for path in lists if path.is_file())
        return {int(k) for k in re.findall(r"^(?:sub-|S)(\d+)\b", text, flags=re.MULTILINE)}

    def _say_moved(self, recording: Recording) -> None:
        """Keep one note of the recordings whose labels were moved, as they are read."""
        self._moved.add(recording.subject)
        self.notes = [note for note in self.notes if not note.startswith(MOVED)]
        names = ", ".join(sorted(self._moved))
        self.notes.append(f"{MOVED} ({len(self._moved)}: {names}): segment k is taken as k + 1, inferred from timing.")

    def _read_times(self, recording: Recording) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Read Order, segment label and onset (s) of a recording's words."""
        path = self._times_file(_number(recording))
        if path is None:
            raise FileNotFoundError(f"{recording.uid}: its word times are missing, proc/SNN.mat or events.tsv below {self._root}. {GET}")
        if path.suffix == ".tsv":
            table = pd.read_csv(path, sep="\t", encoding="utf-8-sig", usecols=["onset", "word_index", "segment"])
            return table["word_index"].to_numpy(), table["segment"].to_numpy(), table["onset"].to_numpy(dtype=float)
        from scipy.io import loadmat

        proc = loadmat(path, variable_names=["proc"])["proc"][0, 0]
        trl, names = proc["trl"], tuple(str(cell[0]) for cell in proc["varnames"].ravel())
        if names != TRL_COLUMNS or trl.shape[1] != 6 or not (trl[:, 2] == TRL_OFFSET).all():
            raise RuntimeError(
                f"{recording.uid}: expected trl as start, stop, {TRL_OFFSET:g}, {', '.join(TRL_COLUMNS)}, got {names} with the offsets "
                f"{np.unique(trl[:, 2]).tolist()} in {path}. Run: brainspeech verify brennan2019 --root DIR"
            )
        return trl[:, 5].astype(int), trl[:, 3].astype(int), (trl[:, 0] - trl[:, 2]) / SFREQ

    @cached_property
    def _csv(self) -> Path:
        path = self._first("sourcedata/AliceChapterOne-EEG.csv", "AliceChapterOne-EEG.csv")
        if path is None:
            raise FileNotFoundError(f"{self.name}: AliceChapterOne-EEG.csv is missing below {self._root}. {GET}")
        return path

    @cached_property
    def _words(self) -> pd.DataFrame:
        """The word table by Order: text, segment, onset and duration within the segment's sound, sentence."""
        table = pd.read_csv(self._csv, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        onset, segment = table["onset"].astype(float), table["Segment"].astype(int)
        words = pd.DataFrame({"text": table["Word"].replace("TRUE", "true"), "segment": segment, "onset": onset})
        words = words.assign(
            duration=table["offset"].astype(float) - onset,
            audio=[AUDIO.format(k) for k in segment],
            sequence=table["Sentence"],
        )
        return words.set_index(table["Order"].astype(int).to_numpy())

    @cached_property
    def _sound_seconds(self) -> dict[int, float]:
        import soundfile

        paths = {k: self._sound(AUDIO.format(k)) for k in range(1, len(AUDIO_SECONDS) + 1)}
        return {k: soundfile.info(path).duration if path else AUDIO_SECONDS[k - 1] for k, path in paths.items()}

    def _sound(self, audio: str) -> Path | None:
        return self._first(audio, f"audio/{Path(audio).name}", Path(audio).name)

    def _stimulus_path(self, audio: str) -> Path:
        return super()._stimulus_path((self._sound(audio) or self._root / audio).relative_to(self._root).as_posix())

    def _times_file(self, k: int) -> Path | None:
        return self._first(f"sourcedata/proc/S{k:02d}.mat", f"proc/S{k:02d}.mat", self._bids(k, "_events.tsv"))

    def _bids(self, k: int, ending: str) -> Path:
        return self._root / f"sub-{k:03d}/eeg/sub-{k:03d}_task-alicelistening{ending}"

    def _first(self, *candidates: str | Path) -> Path | None:
        return next((path for path in (self._root / c for c in candidates) if path.is_file()), None)


def _number(recording: Recording) -> int:
    return int(recording.subject)


def _read_fieldtrip(path: Path, uid: str) -> mne.io.RawArray:
    """Read ``raw`` of Deep Blue's first release: one continuous trial in microvolt, channels named in ``hdr.label``."""
    from pymatreader import read_mat

    content = read_mat(path, variable_names=["raw"])
    try:
        header, trial = content["raw"]["hdr"], content["raw"]["trial"]
        names: Sequence[str] = [str(name) for name in header["label"]]
        data = np.asarray(trial[0] if isinstance(trial, list) else trial, dtype=float)
        data = data.reshape(data.shape[-2:])
        info = mne.create_info(names, float(header["Fs"]), [OTHER_TYPES.get(name, "eeg") for name in names], verbose="error")
        if len(data) != len(names):
            raise ValueError(f"{len(data)} rows for {len(names)} channel names")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise RuntimeError(
            f"{uid}: expected a FieldTrip struct raw with hdr.label, hdr.Fs and one trial, got {error!r} in {path}. "
            "Is it the raw recording, not proc?"
        ) from error
    return mne.io.RawArray(data * 1e-6, info, verbose="error")
