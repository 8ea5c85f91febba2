"""The events table: what was heard, and when.

A table is a pandas DataFrame with these columns and no others:

========== ======= ==================================================================================================
column     type    meaning
========== ======= ==================================================================================================
kind       str     ``sound``, ``sentence``, ``word`` or ``phoneme``
onset      float   seconds from the first sample of the raw
duration   float   seconds
text       str     the word, the sentence or the phoneme; empty for a sound
audio      str     name of the stimulus that is heard
audio_onset float  seconds from the first sample of the stimulus
sequence   str     identity of the sentence that a word or phoneme belongs to; empty where there is none
========== ======= ==================================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

KINDS = ("sound", "sentence", "word", "phoneme")
COLUMNS = ("kind", "onset", "duration", "text", "audio", "audio_onset", "sequence")


def make(rows: Iterable[Mapping], *, uid: str = "") -> pd.DataFrame:
    """Make a checked table from dicts; ``text`` and ``sequence`` may be left out.

    A word or phoneme without ``audio`` takes it, and its ``audio_onset``, from the sound that is playing at its onset.
    """
    table = pd.DataFrame(list(rows))
    for column in ("text", "audio", "sequence"):
        if column not in table:
            table[column] = ""
        table[column] = table[column].fillna("")
    if "audio_onset" not in table:
        table["audio_onset"] = np.nan
    if "kind" in table and "onset" in table:
        table = _locate_in_sounds(table)
    return check(table, uid=uid)


def check(table: pd.DataFrame, *, uid: str = "") -> pd.DataFrame:
    """Check a table and return it sorted by onset, with exactly the columns above.

    Raises
    ------
    ValueError
        If a column is missing or unknown, a kind is unknown, a time is not finite or negative.
    """
    where = f"{uid}: " if uid else ""
    missing = [c for c in COLUMNS if c not in table]
    unknown = [c for c in table.columns if c not in COLUMNS]
    if missing or unknown:
        raise ValueError(f"{where}an events table has the columns {', '.join(COLUMNS)}; missing {missing}, unknown {unknown}.")
    out = table.loc[:, list(COLUMNS)].copy()
    kinds = set(out["kind"]) - set(KINDS)
    if kinds:
        raise ValueError(f"{where}event kinds must be among {', '.join(KINDS)}, got {sorted(map(str, kinds))}.")
    for column in ("text", "audio", "sequence", "kind"):
        out[column] = out[column].astype(str)
    for column in ("onset", "duration", "audio_onset"):
        out[column] = pd.to_numeric(out[column]).astype(np.float64)
        bad = ~np.isfinite(out[column].to_numpy())
        if bad.any():
            row = out[bad].iloc[0]
            raise ValueError(
                f"{where}{bad.sum()} events have no finite {column}, the first is {row['kind']} {row['text']!r} at {row['onset']} s."
            )
    for column in ("duration", "audio_onset"):
        bad = out[column].to_numpy() < 0
        if bad.any():
            row = out[bad].iloc[0]
            raise ValueError(
                f"{where}{bad.sum()} events have a negative {column}, the first is {row['kind']} {row['text']!r} at {row['onset']} s."
            )
    nameless = out["audio"].to_numpy() == ""
    if nameless.any():
        row = out[nameless].iloc[0]
        raise ValueError(
            f"{where}{nameless.sum()} events name no stimulus (audio), the first is {row['kind']} {row['text']!r} at {row['onset']} s: "
            "name it, or add the sound event that was playing."
        )
    order = np.lexsort((out["kind"].map(KINDS.index).to_numpy(), out["onset"].to_numpy()))
    return out.iloc[order].reset_index(drop=True)


def _locate_in_sounds(table: pd.DataFrame) -> pd.DataFrame:
    """Fill in audio and audio_onset of events that lack them from the sound playing at their onset."""
    table = table.copy()
    table["audio_onset"] = pd.to_numeric(table["audio_onset"]).astype(np.float64)
    is_sound = (table["kind"] == "sound").to_numpy()
    unset_sound = is_sound & table["audio_onset"].isna().to_numpy()
    table.loc[unset_sound, "audio_onset"] = 0.0
    lacking = np.flatnonzero(~is_sound & table["audio_onset"].isna().to_numpy())
    sounds = table[is_sound].sort_values("onset")
    if not len(lacking) or not len(sounds):
        return table
    onsets = table["onset"].to_numpy(dtype=float)[lacking]
    starts = sounds["onset"].to_numpy(dtype=float)
    playing = np.searchsorted(starts, onsets, side="right") - 1
    inside = playing >= 0
    stops = starts + sounds["duration"].to_numpy(dtype=float)
    inside &= onsets < stops[np.maximum(playing, 0)]
    rows, sound = lacking[inside], playing[inside]
    audio, audio_onset = table["audio"].to_numpy(dtype=object), table["audio_onset"].to_numpy(dtype=float).copy()
    audio[rows] = sounds["audio"].to_numpy()[sound]
    audio_onset[rows] = onsets[inside] - starts[sound] + sounds["audio_onset"].to_numpy(dtype=float)[sound]
    table["audio"], table["audio_onset"] = audio, audio_onset
    return table
