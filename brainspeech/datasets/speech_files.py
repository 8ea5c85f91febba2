"""A folder of sounds with their words: the stimuli of a phantom that hears real speech.

For each sound ``X.wav`` (or .flac, .ogg) the alignment beside it, the first of these that is there:

``X.TextGrid``
    Praat's intervals; tiers whose names begin with "word" and "phone" are words and phonemes.
``X.phone.json``, ``X.json``
    What pocketsphinx writes: ``{"t": text, "w": [{"b": onset, "d": duration, "t": "and(2)", "w": [phonemes]}, ...]}``.
``X.csv``
    Columns onset, duration, text; optional kind (word, if there is no such column, phoneme, sentence).

Silence and noise (``<sil>``, ``SIL``, ``sp``, ``[noise]``, an empty text) are left out, and the number of a variant goes: ``and(2)`` is
``and``. Sentences are what stands between pauses of ``PAUSE`` seconds, where the alignment has none.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.signal
import soundfile

from brainspeech.timing import rate_ratio

from .speech_synthesis import AUDIO_SFREQ, Spoken, Story

SOUNDS = (".wav", ".flac", ".ogg")
ALIGNMENTS = (".TextGrid", ".phone.json", ".json", ".csv")
PAUSE = 0.3  # s
SLACK = 0.05  # s by which an alignment may end after its sound
_NOT_SPOKEN = re.compile(r"(<.*>|\[.*\]|\{.*\}|sil|sp|spn|ssil|s?pau|)", re.IGNORECASE)
_VARIANT = re.compile(r"\(\d+\)$")

Piece = tuple[str, float, float, str]  # kind, onset, duration, text


def find_sounds(folder: Path) -> dict[str, Path]:
    """List the sounds of a folder, {name: alignment}, sorted by name.

    Raises
    ------
    FileNotFoundError
        If the folder is not there, or holds no sound.
    ValueError
        If a sound has no alignment, with the names that are looked for.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"simulated: the folder of sounds {folder} does not exist.")
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in SOUNDS:
            continue
        beside = [path.with_name(path.stem + ending) for ending in ALIGNMENTS]
        there = [p for p in beside if p.is_file()]
        if not there:
            raise ValueError(f"simulated: {path} has no alignment; expected one of {', '.join(p.name for p in beside)} beside it.")
        found[path.name] = there[0]
    if not found:
        raise FileNotFoundError(f"simulated: {folder} holds no sound ({', '.join(SOUNDS)}).")
    return found


def fit_into(minutes: float | None, folder: Path, names: Iterable[str]) -> dict[str, float]:
    """Take the sounds that fit into the minutes, in order, {name: seconds}, and warn of those that do not; None takes all.

    Raises
    ------
    ValueError
        If not even the first one fits.
    """
    lengths = {name: float(soundfile.info(folder / name).duration) for name in names}
    kept: dict[str, float] = {}
    for name, length in lengths.items():
        if minutes is not None and sum(kept.values()) + length > minutes * 60:
            break
        kept[name] = length
    if not kept:
        first = next(iter(lengths.values()))
        raise ValueError(f"simulated: no sound of {folder} fits into minutes={minutes}; the first lasts {first:.1f} s.")
    if len(kept) < len(lengths):
        warnings.warn(
            f"simulated: {len(kept)} of {len(lengths)} sounds of {folder} fit into minutes={minutes}; the others are left out. "
            "Set minutes=None to hear all.",
            stacklevel=3,
        )
    return kept


def make_runs(lengths: dict[str, float], *, seconds: float) -> list[list[str]]:
    """Put sounds into runs, in order: a run that has reached so many seconds is closed."""
    runs: list[list[str]] = [[]]
    total = 0.0
    for name, length in lengths.items():
        if total >= seconds:
            runs.append([])
            total = 0.0
        runs[-1].append(name)
        total += length
    return runs


def load_story(path: Path, alignment: Path) -> Story:
    """Read a sound, brought to one channel at ``AUDIO_SFREQ``, and what is said in it.

    Raises
    ------
    ValueError
        If the alignment cannot be read, holds no word, or ends after the sound.
    """
    data, sfreq = soundfile.read(path, dtype="float32", always_2d=True)
    ratio = rate_ratio(float(sfreq), float(AUDIO_SFREQ))
    mono = data.mean(axis=1)
    audio = mono if ratio == 1 else scipy.signal.resample_poly(mono, ratio.numerator, ratio.denominator)
    pieces = read_alignment(alignment)
    words = [p for p in pieces if p[0] == "word"]
    if not words:
        raise ValueError(f"simulated: {alignment} holds no word.")
    length = len(mono) / sfreq
    late = [p for p in pieces if p[1] + p[2] > length + SLACK]
    if late:
        kind, onset, _, text = late[0]
        raise ValueError(
            f"simulated: {len(late)} pieces of {alignment.name} end after their sound, which is {length:.3f} s long; the first is the "
            f"{kind} {text!r} at {onset:.3f} s. Is it the alignment of another sound?"
        )
    # What ends a little late ends with the sound.
    pieces = [(kind, onset, min(duration, length - onset), text) for kind, onset, duration, text in pieces if onset < length]
    return Story(np.ascontiguousarray(audio, dtype=np.float32), tuple(_with_sentences(pieces, path.stem)))


def read_alignment(path: Path) -> list[Piece]:
    """Read words, and phonemes and sentences where there are some, cleaned, in order of time: (kind, onset, duration, text)."""
    if path.suffix == ".TextGrid":
        raw = _read_textgrid(path)
    elif path.suffix == ".json":
        raw = _read_json(path)
    else:
        raw = _read_csv(path)
    pieces = []
    for kind, onset, duration, text in raw:
        if not (math.isfinite(onset) and math.isfinite(duration) and onset >= 0 and duration >= 0):
            raise ValueError(f"simulated: {path}: the {kind} {text!r} has no proper time, got onset {onset} and duration {duration}.")
        spoken = _VARIANT.sub("", text.strip())
        if not _NOT_SPOKEN.fullmatch(spoken):
            pieces.append((kind, onset, duration, spoken))
    return sorted(pieces, key=lambda piece: (piece[1], -piece[2]))


def _read_textgrid(path: Path) -> Iterable[Piece]:
    from .alignments import read_textgrid

    for tier, table in read_textgrid(path).items():
        kind = next((kind for kind in ("word", "phone", "sentence") if tier.lower().startswith(kind)), None)
        if kind:
            for onset, duration, text in zip(table["onset"], table["duration"], table["text"], strict=True):
                yield "phoneme" if kind == "phone" else kind, float(onset), float(duration), str(text)


def _read_json(path: Path) -> Iterable[Piece]:
    try:
        words = json.loads(path.read_text())["w"]
        for word in words:
            yield "word", float(word["b"]), float(word["d"]), str(word["t"])
            for phoneme in word.get("w", ()):
                yield "phoneme", float(phoneme["b"]), float(phoneme["d"]), str(phoneme["t"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f'simulated: {path} is not an alignment as pocketsphinx writes it, {{"w": [{{"b": s, "d": s, "t": word}}]}} ({error!r}).'
        ) from error


def _read_csv(path: Path) -> Iterable[Piece]:
    table = pd.read_csv(path, keep_default_na=False, dtype={"text": str})
    missing = sorted({"onset", "duration", "text"} - set(table.columns))
    if missing:
        raise ValueError(f"simulated: {path} lacks the columns {', '.join(missing)}; it has {', '.join(table.columns)}.")
    kinds = table["kind"] if "kind" in table else pd.Series("word", index=table.index)
    unknown = sorted(set(kinds) - {"word", "phoneme", "sentence"})
    if unknown:
        raise ValueError(f"simulated: {path}: kind must be word, phoneme or sentence, got {', '.join(map(str, unknown))}.")
    for kind, onset, duration, text in zip(kinds, table["onset"], table["duration"], table["text"], strict=True):
        yield str(kind), float(onset), float(duration), str(text)


def _with_sentences(pieces: list[Piece], name: str) -> Iterable[Spoken]:
    """Say which sentence each piece belongs to, and put the sentences in where there are none."""
    words = [p for p in pieces if p[0] == "word"]
    sentences = [p for p in pieces if p[0] == "sentence"]
    if not sentences:
        groups = [[words[0]]]
        for before, word in itertools.pairwise(words):
            if word[1] - (before[1] + before[2]) >= PAUSE:
                groups.append([])
            groups[-1].append(word)
        sentences = [("sentence", g[0][1], g[-1][1] + g[-1][2] - g[0][1], " ".join(word[3] for word in g)) for g in groups]
    begins = np.array([s[1] for s in sentences])
    for kind, onset, duration, text in sorted([*sentences, *(p for p in pieces if p[0] != "sentence")], key=lambda p: (p[1], -p[2])):
        k = max(0, int(np.searchsorted(begins, onset + 1e-6, side="right")) - 1)
        yield Spoken(kind, onset, duration, text, f"{name}/{k:03d}")
