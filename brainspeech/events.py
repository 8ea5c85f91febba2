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
sequence   str     identity of the sentence that a word or phoneme belongs to; empty where there is none. Where a dataset has
                   conditions, a slash and the condition follow: ``17/word_list``
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

    A word or phoneme without ``audio`` takes it, and its ``audio_onset``, from the sound that is playing at its onset, of
    several the one that began last; one that names its ``audio`` takes the ``audio_onset`` from that sound, whatever else is playing.
    """
    rows = list(rows)
    table = pd.DataFrame(rows) if rows else pd.DataFrame(columns=list(COLUMNS))
    for column in ("text", "audio", "sequence"):
        if column not in table:
            table[column] = ""
        table[column] = table[column].astype(object).where(table[column].notna(), "")
    if "audio_onset" not in table:
        table["audio_onset"] = np.nan
    if "kind" in table and "onset" in table:
        table = _locate_in_sounds(table, f"{uid}: " if uid else "")
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
        out[column] = _to_numbers(out[column], where)
        bad = ~np.isfinite(out[column].to_numpy())
        if bad.any():
            row = out[bad].iloc[0]
            cure = "Correct these rows, or leave them out."
            if column == "audio_onset":
                cure = "No sound event plays then: are onsets seconds from the recording's first sample, and the sounds' durations right?"
            raise ValueError(
                f"{where}{bad.sum()} events have no finite {column}, the first is {row['kind']} {row['text']!r} at {row['onset']} s. {cure}"
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


def _to_numbers(column: pd.Series, where: str) -> pd.Series:
    try:
        return pd.to_numeric(column).astype(np.float64)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}the column {column.name} of an events table holds seconds: {error}.") from error


def _locate_in_sounds(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Fill in audio and audio_onset of events that lack them from the sound playing at their onset."""
    table = table.copy()
    table["audio_onset"], table["onset"] = _to_numbers(table["audio_onset"], where), _to_numbers(table["onset"], where)
    is_sound = (table["kind"] == "sound").to_numpy()
    unset = table["audio_onset"].isna().to_numpy()
    table.loc[is_sound & unset, "audio_onset"] = 0.0
    if not (~is_sound & unset).any() or not is_sound.any() or "duration" not in table:
        return table
    sounds = table[is_sound].sort_values("onset")
    lengths, onsets = _to_numbers(sounds["duration"], where).to_numpy(), table["onset"].to_numpy()
    audio, audio_onset = table["audio"].to_numpy(dtype=object).copy(), table["audio_onset"].to_numpy().copy()
    for name in ["", *sounds["audio"].unique()]:
        # An event that names its audio looks among the sounds of that name, one that names none among all of them.
        of_name = (sounds["audio"] == name).to_numpy() if name else np.ones(len(sounds), dtype=bool)
        lacking = np.flatnonzero(~is_sound & unset & (audio == name))
        starts = sounds["onset"].to_numpy()[of_name]
        playing = np.searchsorted(starts, onsets[lacking], side="right") - 1
        inside = (playing >= 0) & (onsets[lacking] < (starts + lengths[of_name])[np.maximum(playing, 0)])
        rows, sound = lacking[inside], playing[inside]
        audio[rows] = sounds["audio"].to_numpy(dtype=object)[of_name][sound]
        audio_onset[rows] = onsets[rows] - starts[sound] + sounds["audio_onset"].to_numpy()[of_name][sound]
    table["audio"], table["audio_onset"] = audio, audio_onset
    return table
