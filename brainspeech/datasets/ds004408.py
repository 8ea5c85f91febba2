"""The Old Man and the Sea, raw: 19 listeners, an hour each, 128 electrodes (OpenNeuro ds004408).

Biography
---------
Who: 19 healthy adults. They are the listeners of ``broderick2019`` (Dryad 070jc, "Natural Speech"), which has the same recordings at 128
Hz with private alignments; this is the open form, without an account. Recorded for Di Liberto et al. (Current Biology 2015), added to for
Broderick et al. (Current Biology 2018). Never count the two as two datasets.

What was heard: an audio book of The Old Man and the Sea in 20 runs of about three minutes, ``stimuli/audio01.wav`` to ``audio20.wav``, in
order, once. 19 x 20 = 380 recordings, 20.6 h of EEG. Sound and EEG begin together; the EEG goes on after the sound, to a varying extent.

Device: BioSemi ActiveTwo, 128 channels (A1 to D32), 512 Hz, unfiltered and without a reference. Positions are MNE's biosemi128. A
recording without a reference holds what all electrodes share; the recipe takes the average reference, which the paper did not.

Licence and access: CC0, open. ``README`` and the listing are of version 1.0.8. Of the payload nothing was at hand when this was written:
headers, sound and TextGrids are read as their formats define them, and tested on fixtures.

Faults, and what is done about them:

- Files are BrainVision although the device is BioSemi, and ``*_eeg.json`` names Brain Products as the maker: the export's doing. Nothing
  to do.
- ``channels.tsv`` calls channels bad in 285 of the 380 recordings, up to 34 of them. They are marked bad in the raw, and ``preprocess``
  leaves them out and counts them.
- ``RecordingDuration`` is the time of the last sample; the recording is one sample longer. ``participants.tsv`` begins with a byte-order
  mark.
- There is no text: TextGrids (Prosodylab-Aligner, inspected by eye) hold words and phonemes, no sentences and no punctuation. A silence
  of ``PAUSE`` s or more ends a ``sequence``, which stands in for a sentence. ``sil``, ``sp`` and empty intervals are silence.
- Words are in capitals, as the aligner's dictionary has them; read in lower case.
- Word times are another aligner's than the paper's (Gentle), so that its counts cannot be met.

One split for both datasets: a stimulus is called ``oldman/audio01.wav`` here and in ``broderick2019``, and ``stimulus_id`` is that name
and an interval, so the same audio has the same id. Cuts at sentences would follow the alignment, and the two have different ones. The
recipes of both therefore set ``segments.blocks_at="grid"``: blocks every ``min_block`` seconds of the sound, named after sound and
interval, whose hash decides the split. Neither alignment, listener nor dataset enters; only the last block's end is the sound's, which
the wav says. (The paper's protocol cuts at words, on each recording's clock: there the two splits differ.)
"""

from __future__ import annotations

import json
import math
import os
import re
from functools import cache
from pathlib import Path

import mne
import numpy as np
import pandas as pd

from brainspeech import events
from brainspeech.cache import digest, file_identity
from brainspeech.records import Recording

from .alignments import read_textgrid, tier
from .base import Dataset

SFREQ = 512.0
N_CHANNELS = 128
AUDIO = "oldman/audio{:02d}.wav"
SILENCE = ("sil", "sp", "{sl}", "<sil>", "<eps>")
PAUSE = 0.3  # s
GET = "Run: brainspeech download ds004408 --root DIR"


class Ds004408Dataset(Dataset):
    """The Old Man and the Sea below a BIDS folder.

    Parameters
    ----------
    root : path
        The folder of ``participants.tsv``, ``stimuli`` and ``sub-001``.
    """

    name = "ds004408"
    published = frozenset(range(1, 20))

    def __init__(self, root: str | os.PathLike | None = None):
        if root is None:
            raise ValueError(f"{self.name}: say where the files are, root=DIR. {GET}")
        super().__init__(root)
        self._root = Path(root)
        self._recordings = self._list()
        self._alignment = cache(self._read_alignment)

    def recordings(self) -> list[Recording]:
        """List subjects x runs; of a folder with sidecar files alone, those that it describes."""
        return list(self._recordings)

    def read_raw(self, recording: Recording) -> mne.io.BaseRaw:
        """Open a recording: 128 EEG channels in V with positions, those that channels.tsv calls bad marked."""
        path = self._root / recording.path
        if not path.is_file():
            raise FileNotFoundError(f"{recording.uid}: {path} is missing. {GET}")
        raw = mne.io.read_raw_brainvision(path, verbose="error")
        montage = mne.channels.make_standard_montage("biosemi128")
        if set(raw.ch_names) != set(montage.ch_names) or raw.info["sfreq"] != SFREQ:
            raise RuntimeError(
                f"{recording.uid}: expected the {N_CHANNELS} channels A1 to D32 at {SFREQ:g} Hz, got {len(raw.ch_names)} "
                f"({', '.join(raw.ch_names[:3])} ...) at {raw.info['sfreq']:g} Hz in {path}. Run: brainspeech verify ds004408 --root DIR"
            )
        sidecar = self._beside(recording, "channels.tsv")
        if sidecar.is_file():
            table = pd.read_csv(sidecar, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
            raw.info["bads"] = [name for name in table.loc[table["status"] == "bad", "name"] if name in raw.ch_names]
        return raw.set_montage(montage, verbose="error")

    def read_events(self, recording: Recording) -> pd.DataFrame:
        """Read the sound, which begins with the recording, and its words and phonemes."""
        return self._alignment(int(recording.run)).copy()

    def duration(self, recording: Recording) -> float:
        """Give the length in seconds from the sidecar, else from the header; infinite where neither is there."""
        sidecar = self._beside(recording, "eeg.json")
        if sidecar.is_file():
            return float(json.loads(sidecar.read_text(encoding="utf-8-sig"))["RecordingDuration"]) + 1 / SFREQ
        return super().duration(recording) if (self._root / recording.path).is_file() else math.inf

    def fingerprint(self, recording: Recording) -> str:
        """Identify a recording by its header, its samples and what is said of its channels."""
        path = self._root / recording.path
        beside = (path.with_suffix(".eeg"), self._beside(recording, "channels.tsv"))
        return digest([file_identity(part) for part in (path, *beside) if part == path or part.is_file()])

    def _list(self) -> list[Recording]:
        """Find the recordings; those without their EEG are left out once any EEG is there."""
        found = {}
        for ending in ("eeg.json", "eeg.vhdr"):
            for path in sorted(self._root.glob(f"sub-*/eeg/sub-*_task-listening_run-*_{ending}")):
                labels = re.fullmatch(r"sub-(\w+)_task-listening_run-(\d+)_eeg\.\w+", path.name)
                if labels and path.is_file():
                    eeg = path.with_suffix(".vhdr")
                    found[labels[1], labels[2]] = Recording(
                        self.name, labels[1], run=labels[2], path=eeg.relative_to(self._root).as_posix()
                    )
        there = {key for key, recording in found.items() if (self._root / recording.path).is_file()}
        if there:
            gone = {subject for subject, _ in found} - {subject for subject, _ in there}
            self.excluded = dict.fromkeys(sorted(gone), "its EEG is not in this folder")
            partly = [key for key in found if key not in there and key[0] not in gone]
            self.excluded |= {f"{subject}/{run}": "its EEG is not in this folder" for subject, run in partly}
        if not found:
            raise FileNotFoundError(f"{self.name}: no sub-*/eeg/*_task-listening_run-*_eeg.vhdr below {self._root}. {GET}")
        return [found[key] for key in sorted(there or found)]

    def _read_alignment(self, run: int) -> pd.DataFrame:
        path = self._root / f"stimuli/audio{run:02d}.TextGrid"
        if not path.is_file():
            raise FileNotFoundError(f"{self.name}: {path} is missing. {GET}")
        tiers = read_textgrid(path)
        words, phonemes = (spoken(tier(tiers, name, where=str(path))) for name in ("word", "phon"))
        words["text"] = words["text"].str.lower()
        words["sequence"] = [f"{run:02d}/{k}" for k in number_phrases(words)]
        phonemes["sequence"] = words["sequence"].to_numpy()[
            np.maximum(np.searchsorted(words["onset"], phonemes["onset"], side="right") - 1, 0)
        ]
        return heard(run, words, phonemes, self._sound(run), uid=self.name)

    def _sound(self, run: int) -> Path:
        return self._root / f"stimuli/audio{run:02d}.wav"

    def _stimulus_path(self, audio: str) -> Path:
        return super()._stimulus_path(self._sound(run_of(audio, self.name)).relative_to(self._root).as_posix())

    def _beside(self, recording: Recording, ending: str) -> Path:
        path = self._root / recording.path
        return path.with_name(path.name.removesuffix("eeg.vhdr") + ending)


def run_of(audio: str, where: str) -> int:
    """Read the run from the name that both datasets give a sound."""
    found = re.fullmatch(r"oldman/audio(\d\d)\.wav", audio)
    if not found:
        raise ValueError(f"{where}: a stimulus is called {AUDIO.format(1)}, ..., got {audio!r}.")
    return int(found[1])


def heard(run: int, words: pd.DataFrame, phonemes: pd.DataFrame, sound: Path, *, uid: str) -> pd.DataFrame:
    """Make the events table of a run whose sound begins with the recording.

    Parameters
    ----------
    run : int
        Number of the run, 1 to 20.
    words, phonemes : DataFrame
        With onset, duration (s in the sound), text and sequence.
    sound : path
        The wav; where it is not there, the sound lasts until its last word or phoneme ends.
    uid : str
        What errors name.
    """
    import soundfile

    parts = pd.concat([words.assign(kind="word"), phonemes.assign(kind="phoneme")])
    last = float((parts["onset"] + parts["duration"]).max())
    seconds = soundfile.info(sound).duration if sound.is_file() else last
    if last > seconds + 1e-3:
        raise RuntimeError(
            f"{uid}: the words of run {run} end at {last:.3f} s, the sound at {seconds:.3f} s ({sound}); is it another run's?"
        )
    whole = pd.DataFrame([{"kind": "sound", "onset": 0.0, "duration": seconds, "text": "", "sequence": ""}])
    table = pd.concat([whole, parts])
    return events.check(table.assign(audio=AUDIO.format(run), audio_onset=table["onset"]), uid=uid)


def spoken(table: pd.DataFrame) -> pd.DataFrame:
    """Leave out the intervals that an aligner labels as silence."""
    return table[~table["text"].str.strip().str.lower().isin(SILENCE)].reset_index(drop=True)


def number_phrases(words: pd.DataFrame) -> np.ndarray:
    """Count up at every word that follows ``PAUSE`` s of silence or more."""
    onset = words["onset"].to_numpy()
    silence = onset[1:] - (onset + words["duration"].to_numpy())[:-1]
    return np.concatenate([[0], np.cumsum(silence >= PAUSE - 1e-6)]) if len(words) else np.zeros(0, dtype=int)
