"""MOUS, the listeners: 96 Dutch speakers, sentences and word lists, 273 MEG sensors (Schoffelen et al., Scientific Data 2019).

Biography
---------
Who: 102 of the 204 native Dutch speakers of the Mother Of Unification Studies heard the sentences (the others read them and are not
loaded). 96 are used here, one recording each, 80.9 h.

What was heard: isolated sentences, and lists of words made by scrambling such sentences, spoken by a female voice, one wav each; five in a
row under a title (ZINNEN, WOORDEN), a fixation cross before each, a question after some. The order differs between listeners.

Device: CTF at the Donders Institute, 273 axial gradiometers and 28 references, 1200 Hz; triggers in ``UPPT001``.

Licence and access: Donders collection DSC_3011020.09_236 (``GET`` below says where), data use agreement RU-DI-HD-1.0, an account is needed.
Word and phoneme times are not in it: they are the TextGrids that the authors of the decoding paper made. Nothing is downloaded for the
user: the loader takes a folder that holds ``sub-A2*/meg/*.ds``, ``sourcedata/meg_task``, ``stimuli`` and ``derivatives/phonemes``.

Written from descriptions of these files and from the script of the experiment, and tested on files made after them: no recording of the
collection was at hand.

Faults, and what is done about them:

- ``LEFT_OUT`` lists the listeners with two MEG runs or bad ones, ``NEVER_GIVEN`` the numbers without a listener. Who is not in the folder,
  or has several recordings besides the one at rest, is ``excluded`` with that reason.
- Logs (``sourcedata/meg_task/*A2xxx*``) have broken lines and may hold themselves twice: see ``presentation_log``.
- The clocks of log and MEG differ, and triggers are missing on either side. The triggers of fixations (20) and titles (10) are matched with
  the log, and a time in between counts from the match before it. The reference matches the codes by edit distance; here the intervals
  count as well, since the codes alone repeat every five sentences. Sounds before the first match or after the last trigger are left
  out, which a note says.
- The log's row ``Audio onset`` is not the onset of the audio. The experiment's script sets it to when the voice sets in; the wav starts
  with the row ``Start File NNN.wav`` (so does Table 3 of the data descriptor have it). TextGrids count from the start of the wav, which is
  put at ``Start File``. ``onsets="published"`` puts it one row later, as the paper's code does: words and sounds then come late together,
  by the silence at the start of each wav. Where the files say otherwise (the first word of the TextGrids does not come when the voice
  sets in by the log) a note says so.
- A sound lasts as long as its TextGrid, whether or not the wav is there.
- A TextGrid may lack the last word. The identity of a sentence is the number of the line of ``stimuli/stimuli.txt`` that begins with the
  same 45 characters, in lower case; the number of the wav where there is none, which a note says.

Conditions: ``sequence`` is the number in stimuli.txt, with ``/word_list`` behind it for a word list. A sentence and its word lists are
different audio; ``SegmentConfig(group_scrambled=True)`` keeps them in one split, which the paper's protocol does not.
"""

from __future__ import annotations

import os
from pathlib import Path

import mne
import numpy as np
import pandas as pd

from brainspeech import events
from brainspeech.records import Recording

from .alignments import read_textgrid
from .base import Dataset
from .presentation_log import match, read_log, to_recording

GET = (
    "MOUS needs an account and its data use agreement: ask for DSC_3011020.09_236 at "
    "https://data.ru.nl/collections/di/dccn/DSC_3011020.09_236 and copy sub-A2*, sourcedata/meg_task and stimuli into one folder; unpack "
    "https://ai.honu.io/papers/brainmagick/derivatives.zip (word and phoneme times) into the same. Run: brainspeech download schoffelen2019"
)
NUMBERS = range(2002, 2126)
LEFT_OUT = (2011, 2036, 2062, 2063, 2076, 2084)
NEVER_GIVEN = {2012, 2018, 2022, 2023, 2026, 2043, 2044, 2045, 2048, 2054, 2060}
NEVER_GIVEN |= {2074, 2081, 2082, 2087, 2093, 2100, 2107, 2112, 2115, 2118, 2123}
N_CHANNELS = 273
SFREQ = 1200.0
STEM = "EQ_Ramp_Int2_Int1LPF"
FIXATION, TITLE = 20, 10  # triggers
TITLES = {"ZINNEN": "sentence", "WOORDEN": "word_list"}
ONSETS = ("corrected", "published")
PREFIX = 45  # characters that identify a sentence
MAX_VOICE_LAG = 0.1  # s between the first word of a TextGrid and the voice by the log
FEW_MATCHES = 40


class Schoffelen2019Dataset(Dataset):
    """The listeners of MOUS, from a folder that the user has filled.

    Parameters
    ----------
    root : path
        The folder with sub-A2002 and the others.
    onsets : {"corrected", "published"}
        Where a sound begins: at the log's ``Start File``, or one row later.

    Raises
    ------
    PermissionError
        If no folder is given: the files cannot be had without an account.
    FileNotFoundError
        If the folder holds no recording.
    """

    name = "schoffelen2019"
    published = frozenset(NUMBERS) - NEVER_GIVEN - frozenset(LEFT_OUT)

    def __init__(self, root: str | os.PathLike | None = None, *, onsets: str = "corrected"):
        if root is None:
            raise PermissionError(f"{self.name}: give the folder that you filled, root=DIR. {GET}")
        if onsets not in ONSETS:
            raise ValueError(f"onsets must be one of {', '.join(ONSETS)}, got {onsets!r}.")
        super().__init__(root)
        self._root, self._onsets = Path(root), onsets
        self._grids: dict[int, pd.DataFrame] = {}
        self._lines: dict[str, str] = {}
        self._recordings: list[Recording] = []
        for number in sorted(set(NUMBERS) - NEVER_GIVEN):
            subject = f"A{number}"
            found = [path for path in (self._root / f"sub-{subject}" / "meg").glob("*.ds") if "rest" not in path.name]
            if number in LEFT_OUT:
                self.excluded[subject] = "two MEG runs, or a bad one"
            elif len(found) == 1:
                self._recordings.append(Recording(self.name, subject, path=found[0].relative_to(self._root).as_posix()))
            else:
                self.excluded[subject] = "several recordings of the task" if found else "not in this folder"
        if not self._recordings:
            raise FileNotFoundError(f"{self.name}: {root} holds no sub-A2*/meg/*.ds. {GET}")

    def recordings(self) -> list[Recording]:
        """List the listeners whose one recording is there; the others are ``excluded``."""
        return list(self._recordings)

    def read_raw(self, recording: Recording) -> mne.io.BaseRaw:
        """Open a .ds folder; references, triggers and other inputs stay beside the 273 sensors."""
        path = self._root / recording.path
        if not path.is_dir():
            raise FileNotFoundError(f"{recording.uid}: {path} is missing. {GET}")
        return check_channels(mne.io.read_raw_ctf(path, verbose="error"), where=recording.uid)

    def read_events(self, recording: Recording) -> pd.DataFrame:
        """Read the log, put it on the clock of the MEG, and place sounds, sentences, words and phonemes."""
        uid = recording.uid
        raw = self.read_raw(recording)
        triggers = mne.find_events(raw, stim_channel="UPPT001", shortest_event=1, initial_event=True, verbose="error")
        seconds, codes = (triggers[:, 0] - raw.first_samp) / raw.info["sfreq"], triggers[:, 2]

        log = read_log(self._log_path(recording))
        title = log["code"].str.extract(f"({'|'.join(TITLES)})", expand=False)
        mark = np.where(title.notna(), TITLE, np.where(log["code"].str.contains("FIX"), FIXATION, 0))
        sounds = self._sounds(log, title.ffill().map(TITLES).to_numpy(dtype=object), uid)
        sent, got = mark > 0, np.isin(codes, (FIXATION, TITLE))
        in_log, in_raw = match(log["time"].to_numpy()[sent], mark[sent], seconds[got], codes[got], where=uid)
        if len(in_log) < FEW_MATCHES:
            self._note(f"{uid}: only {len(in_log)} triggers match the log.")
        onset = to_recording(sounds["onset"].to_numpy(), in_log, in_raw)
        kept = (onset >= 0) & (onset <= seconds[-1])
        if not kept.all():
            self._note(f"{uid}: {(~kept).sum()} of {len(kept)} sounds, before the first match or after the last trigger, are left out.")
        return events.check(self._place(sounds.assign(onset=onset)[kept], uid), uid=uid)

    def _log_path(self, recording: Recording) -> Path:
        folder = self._root / "sourcedata" / "meg_task"
        found = sorted(folder.glob(f"*{recording.subject}*"))
        if len(found) != 1:
            raise FileNotFoundError(f"{recording.uid}: expected one log {folder}/*{recording.subject}*, got {len(found)}. {GET}")
        return found[0]

    def _sounds(self, log: pd.DataFrame, condition: np.ndarray, uid: str) -> pd.DataFrame:
        """Give number, onset (seconds of the log) and condition of each sound."""
        number = log["code"].str.extract(r"Start File\s+(\d+)\.wav", expand=False)
        rows = np.flatnonzero(number.notna().to_numpy()[:-1])  # a log that ends with such a row broke off before anything was heard
        if not len(rows):
            raise RuntimeError(f"{uid}: the log has no row 'Start File NNN.wav'; expected that of the auditory task. {GET}")
        time = log["time"].to_numpy()
        start, voice = time[rows], time[rows + 1]
        numbers = number.iloc[rows].astype(int).to_numpy()
        first_word = np.array([grid.loc[grid["kind"] == "word", "onset"].min() for grid in map(self._read_grid, numbers.tolist())])
        lag = float(np.nanmedian(first_word - (voice - start)))
        if abs(lag) > MAX_VOICE_LAG:
            self._note(
                f"{uid}: the first word of a TextGrid comes {lag:+.3f} s (median) from the voice by the log: TextGrids do not seem to "
                "count from 'Start File'; compare onsets='published'."
            )
        return pd.DataFrame({"number": numbers, "onset": start if self._onsets == "corrected" else voice, "condition": condition[rows]})

    def _place(self, sounds: pd.DataFrame, uid: str) -> pd.DataFrame:
        """Put the TextGrid of each sound at its onset."""
        parts, unknown = [], set()
        for number, onset, condition in zip(sounds["number"], sounds["onset"], sounds["condition"], strict=True):
            grid = self._read_grid(number)
            line = self._find_line(" ".join(grid.loc[grid["kind"] == "word", "text"]))
            if line is None:
                unknown.add(number)
            sequence = (line or str(number)) + ("/word_list" if condition == "word_list" else "")
            part = grid.assign(audio_onset=grid["onset"], onset=grid["onset"] + onset, audio=f"stimuli/audio_files/{STEM}{number:03d}.wav")
            parts.append(part.assign(sequence=np.where(grid["kind"] == "sound", "", sequence)))
        if unknown:
            self._note(
                f"{uid}: stimuli.txt has no line that begins like {len(unknown)} of {len(sounds)} sounds ({min(unknown)} is one): these "
                "go by the number of their wav."
            )
        return pd.concat(parts, ignore_index=True)

    def _read_grid(self, number: int) -> pd.DataFrame:
        """Give the sound, sentence, words and phonemes of a wav: kind, onset from its start, duration, text."""
        if number not in self._grids:
            path = self._root / "derivatives" / "phonemes" / f"{STEM}{number:03d}.TextGrid"
            if not path.is_file():
                raise FileNotFoundError(f"{self.name}: {path} is missing. {GET}")
            tiers = read_textgrid(path)
            if not {"ORT-MAU", "MAU"} <= set(tiers):
                raise RuntimeError(f"{path}: expected the tiers ORT-MAU and MAU, got {', '.join(tiers)}. {GET}")
            spoken = {name: tiers[name][tiers[name]["text"] != "<p:>"] for name in ("ORT-MAU", "MAU")}
            words = spoken["ORT-MAU"]
            if words.empty:
                raise RuntimeError(f"{path}: the tier ORT-MAU has no word. {GET}")
            end = max(float((tier["onset"] + tier["duration"]).max()) for tier in tiers.values() if len(tier))
            first, last = words["onset"].min(), (words["onset"] + words["duration"]).max()
            whole = [("sound", 0.0, end, ""), ("sentence", first, last - first, " ".join(words["text"]))]
            self._grids[number] = pd.concat(
                [
                    pd.DataFrame(whole, columns=["kind", "onset", "duration", "text"]),
                    words.assign(kind="word"),
                    spoken["MAU"].assign(kind="phoneme"),
                ],
                ignore_index=True,
            )
        return self._grids[number]

    def _find_line(self, text: str) -> str | None:
        """Find the number of the line of stimuli.txt that begins like a text; of equal ones the first."""
        if not self._lines:
            path = self._root / "stimuli" / "stimuli.txt"
            if not path.is_file():
                raise FileNotFoundError(f"{self.name}: {path} is missing. {GET}")
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                number, _, words = line.strip().partition(" ")
                if number.isdigit():
                    self._lines.setdefault(_prefix(words), str(int(number)))
        return self._lines.get(_prefix(text))

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


def _prefix(text: str) -> str:
    return " ".join("".join(c for c in text.lower() if c.isalnum() or c.isspace()).split())[:PREFIX]


def check_channels(raw: mne.io.BaseRaw, *, where: str) -> mne.io.BaseRaw:
    """Check that a raw has the sensors and the rate of this scanner; RuntimeError if not."""
    n_found, sfreq = raw.get_channel_types().count("mag"), raw.info["sfreq"]
    if n_found != N_CHANNELS or sfreq != SFREQ:
        raise RuntimeError(f"{where}: expected {N_CHANNELS} MEG channels at {SFREQ:g} Hz, got {n_found} at {sfreq:g} Hz. {GET}")
    return raw
