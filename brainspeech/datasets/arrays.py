"""Your own recordings, given as arrays or as .mat, .npz and .npy files, with the sound (or a feature of it) beside them.

    from brainspeech.datasets.arrays import ArraysDataset

    dataset = ArraysDataset(
        root="my_study",
        recordings=[
            dict(subject="01", signal="s01.mat", key="eeg", time_axis=0, sfreq=128, unit="uV", montage="biosemi128", events="s01.csv"),
        ],
        stimuli={"story": (sound, 16_000)},
    )

Nothing is read before it is asked for, and nothing is guessed: an array that looks transposed, a wrong number of names, an unknown unit
is an error that says what to change. Files are read without pickle.
"""

from __future__ import annotations

import hashlib
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import mne
import numpy as np
import pandas as pd

from brainspeech import events as events_table
from brainspeech.cache import digest, file_identity
from brainspeech.records import Recording

from .base import Dataset

# Factors to volt, tesla and tesla per metre; both letters that print as micro.
UNITS = {
    "V": 1.0,
    "mV": 1e-3,
    "uV": 1e-6,
    "\N{MICRO SIGN}V": 1e-6,
    "\N{GREEK SMALL LETTER MU}V": 1e-6,
    "nV": 1e-9,
    "T": 1.0,
    "pT": 1e-12,
    "fT": 1e-15,
    "T/m": 1.0,
    "fT/cm": 1e-13,
}
PLAIN_UNITS = ("V", "T", "T/m")
CHANNEL_TYPES = ("eeg", "mag", "grad", "ref_meg", "eog", "ecg", "emg", "stim", "misc")
SOUND_FILES = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff")
ARRAY_FILES = (".mat", ".npz", ".npy")
# Recordings in a format of their own, which MNE reads and this dataset does not.
RAW_FILES = (".fif", ".fif.gz", ".vhdr", ".eeg", ".edf", ".bdf", ".gdf", ".set", ".cnt", ".mff", ".ds", ".con", ".sqd", ".nxe")
# Between which interquartile ranges (the median over channels) a recording can be, in V, T or T/m, and the unit that is likely otherwise.
PLAUSIBLE = {"eeg": (1e-9, 0.1, "V", "uV"), "mag": (1e-17, 1e-5, "T", "fT"), "grad": (1e-15, 1e-3, "T/m", "fT/cm")}
TEXT_COLUMNS = ("kind", "text", "audio", "sequence")

PathLike = str | os.PathLike
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ArrayRecording:
    """One recording of a user: its samples, what the channels are, and what was heard.

    Parameters
    ----------
    subject : str
        Subject label.
    signal : array, shape (n_channels, n_times), or path
        Samples; or a .mat, .npz or .npy file, relative to the dataset's root.
    sfreq : float
        Sampling rate in Hz.
    events : DataFrame, list of dict or path
        What was heard when, with the columns of ``brainspeech.events``; or a .csv or .tsv file with them. ``text`` and ``sequence``
        may be left out; a word without ``audio`` takes it from the sound that is playing.
    session, run : str
        Labels, where a subject has several recordings.
    key : str, optional
        Variable of the file. None: the only two-dimensional one.
    time_axis : {0, 1}
        Axis of the array that is time; 0 for arrays of shape (n_times, n_channels).
    extra : mapping from str to sequence of str
        Further variables of the same file to append as channels, and their names: ``{"mast": ("M1", "M2")}``.
    ch_names : sequence of str, optional
        One name per channel of ``signal``. None: those of ``montage`` in its order, else EEG001, EEG002 ...
    ch_types : str or sequence of str
        One of ``CHANNEL_TYPES`` for all channels, or one each, those of ``extra`` last.
    unit : str, float or sequence of these, optional
        Unit of the samples (``UNITS``), or the factor to V, T or T/m: one for all channels, or one each. None: V, T or T/m. EEG or
        MEG of an impossible size is warned of, unless the unit is V, T or T/m in so many words, a number, or one each.
    montage : str, optional
        Name of an MNE montage that has a position for every EEG channel of ``signal``.
    positions : array, shape (n_channels, 3), optional
        Metres, x to the right, y to the nose, z up, from the middle of the head; NaN where unknown. Channels of ``extra`` last,
        or left out.
    """

    subject: str
    signal: np.ndarray | PathLike
    sfreq: float
    events: pd.DataFrame | Iterable[Mapping] | PathLike
    session: str = field(default="", kw_only=True)
    run: str = field(default="", kw_only=True)
    key: str | None = field(default=None, kw_only=True)
    time_axis: int = field(default=1, kw_only=True)
    extra: Mapping[str, Sequence[str]] = field(default_factory=dict, kw_only=True)
    ch_names: Sequence[str] | None = field(default=None, kw_only=True)
    ch_types: str | Sequence[str] = field(default="eeg", kw_only=True)
    unit: str | float | Sequence[str | float] | None = field(default=None, kw_only=True)
    montage: str | None = field(default=None, kw_only=True)
    positions: np.ndarray | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class ArrayStimulus:
    """A sound, or a feature of it that the user computed.

    Parameters
    ----------
    data : array, shape (n_samples,) or (n_features, n_samples), or path
        Samples; or a sound file; or a .mat, .npz or .npy file.
    sfreq : float, optional
        Samples per second; a sound file says its own.
    key : str, optional
        Variable of the file.
    cell : int, optional
        Which cell of a MATLAB cell array, counted from 0.
    time_axis : {0, 1}
        Axis of a two-dimensional array that is time; a single row or column needs no saying.
    """

    data: np.ndarray | PathLike
    sfreq: float | None = None
    key: str | None = field(default=None, kw_only=True)
    cell: int | None = field(default=None, kw_only=True)
    time_axis: int = field(default=1, kw_only=True)


class ArraysDataset(Dataset):
    """A dataset of the user's own, from arrays or array files.

    Parameters
    ----------
    root : path, optional
        Folder that relative paths start from; without one, the working directory.
    name : str
        Name of the dataset, the first part of every recording's uid.
    recordings : iterable of ArrayRecording or dict
        The recordings; a dict has the fields of ``ArrayRecording``.
    stimuli : mapping from str to path, (array, sfreq), ArrayStimulus or dict
        The stimuli by the name that events call them. A name that is not here is a sound file below ``root``.

    Raises
    ------
    ValueError
        If an array, a label or a unit does not fit what is said about it.
    FileNotFoundError
        When a file that is missing is read.
    """

    def __init__(
        self,
        root: PathLike | None = None,
        *,
        name: str = "arrays",
        recordings: Iterable[ArrayRecording | Mapping[str, Any]] = (),
        stimuli: Mapping[str, Any] | None = None,
    ):
        self.name = name
        super().__init__(root)
        self._warned = False
        self._given: dict[str, ArrayRecording] = {}
        self._recordings: dict[str, Recording] = {}
        if isinstance(recordings, Mapping | ArrayRecording | str | os.PathLike):
            raise ValueError(f"{name}: recordings is a list with one dict for each, got a {type(recordings).__name__}; put it into [ ].")
        for index, item in enumerate(recordings):
            where = f"{name}: recording {index}"
            _refuse_raw(item, where)
            given = _from_fields(ArrayRecording, item, where=where)
            recording = _name(name, given, where)
            if recording.uid in self._given:
                raise ValueError(f"{recording.uid}: two recordings have this subject, session and run; give them different runs.")
            _check_recording(given, recording.uid)
            self._given[recording.uid], self._recordings[recording.uid] = given, recording
        self._stimuli = {audio: _as_stimulus(item, where=f"{name}: stimulus {audio!r}") for audio, item in (stimuli or {}).items()}

    def recordings(self) -> list[Recording]:
        """List the recordings, sorted by uid."""
        return [self._recordings[uid] for uid in sorted(self._recordings)]

    def read_raw(self, recording: Recording) -> mne.io.BaseRaw:
        """Read the samples into memory in V, T or T/m, with names, types and positions."""
        given, uid = self._lookup(recording), recording.uid
        parts, names = self._read_parts(given, uid)
        n_main = len(parts[0])
        data = np.concatenate(parts).astype(np.float64)
        types = [given.ch_types] * len(names) if isinstance(given.ch_types, str) else list(given.ch_types)
        unit = 1.0 if given.unit is None else given.unit
        units = [unit] * len(names) if isinstance(unit, str | float | int) else list(unit)
        for label, values in (("ch_types", types), ("unit", units)):
            if len(values) != len(names):
                raise ValueError(f"{uid}: expected one {label} or {len(names)} (channels of extra included), got {len(values)}.")
        if len(set(names)) != len(names):
            twice = sorted({n for n in names if names.count(n) > 1})
            raise ValueError(f"{uid}: channel names must be unique, got {', '.join(twice)} more than once; rename in ch_names or extra.")
        data *= np.array([_unit_factor(unit, uid) for unit in units])[:, None]
        info = mne.create_info(names, float(given.sfreq), types, verbose="error")
        if given.montage is not None:
            _place_on_montage(info, given.montage, n_main, uid)
        elif given.positions is not None:
            _place_at(info, given.positions, n_main, uid)
        if given.unit is None or (isinstance(given.unit, str) and given.unit not in PLAIN_UNITS):
            self._doubt(_doubts_of_unit(data, types, "no unit" if given.unit is None else f"unit={given.unit!r}", uid))
        return mne.io.RawArray(data, info, verbose="error")

    def _doubt(self, doubts: Sequence[str]) -> None:
        """Keep doubts for the report, and warn of the first at once: a study takes hours."""
        if doubts and not self._warned:
            warnings.warn(f"{doubts[0]} Further recordings of which this is true stand in the report.", stacklevel=3)
            self._warned = True
        self.notes += [note for note in doubts if note not in self.notes]

    def read_events(self, recording: Recording) -> pd.DataFrame:
        """Read what was heard; events beyond the end of the recording are kept."""
        given, uid = self._lookup(recording), recording.uid
        rows: Any = given.events
        if isinstance(rows, str | os.PathLike):
            path = self._existing(rows, uid)
            uid = f"{uid} ({path.name})"
            rows = _read_table(path, uid)
        if isinstance(rows, pd.DataFrame):
            rows = rows.to_dict("records")
        rows = list(rows) if isinstance(rows, Iterable) and not isinstance(rows, mne.Annotations) else [rows]
        if not all(isinstance(row, Mapping) for row in rows):
            raise ValueError(
                f"{uid}: events are a DataFrame, a list of dicts or a .csv or .tsv file with the columns "
                f"{', '.join(events_table.COLUMNS)}, got {type(given.events).__name__}; write a row for each sound and word."
            )
        return events_table.make(rows, uid=uid)

    def read_stimulus(self, audio: str) -> tuple[np.ndarray, float]:
        """Read a stimulus: shape (n_rows, n_samples), and its rate."""
        if audio not in self._stimuli:
            return read_sound(self._stimulus_path(audio), f"{self.name}: stimulus {audio!r}")
        given, where = self._stimuli[audio], f"{self.name}: stimulus {audio!r}"
        values: Any = given.data
        if isinstance(values, str | os.PathLike):
            path = self._existing(values, where)
            if path.suffix.lower() in SOUND_FILES:
                return read_sound(path, where)
            values = _read_variable(path, given.key, where)
            where = f"{where} ({path.name})"
        return _as_rows(values, given, where), float(given.sfreq)  # type: ignore[arg-type]

    def fingerprint(self, recording: Recording) -> str:
        """Identify a recording by the bytes of its array or the identity of its file, and by all that was said about it."""
        given = self._lookup(recording)
        said = {f.name: getattr(given, f.name) for f in fields(given) if f.name not in ("signal", "events", "positions")}
        said["unit"] = 1.0 if given.unit is None else given.unit
        said["positions"] = None if given.positions is None else _hash_array(given.positions)
        return digest(["arrays", recording.uid, self._identify(given.signal, recording.uid), _plain(said)])

    def stimulus_fingerprint(self, audio: str) -> str:
        """Identify a stimulus by the bytes of its array or the identity of its file, and by all that was said about it."""
        if audio not in self._stimuli:
            return super().stimulus_fingerprint(audio)
        given = self._stimuli[audio]
        identity = self._identify(given.data, f"{self.name}: stimulus {audio!r}")
        return digest(["arrays", identity, _plain([given.sfreq, given.key, given.cell, given.time_axis])])

    def _stimulus_path(self, audio: str) -> Path:
        if self.root is None:
            known = ", ".join(map(repr, self._stimuli)) or "none"
            raise FileNotFoundError(
                f"{self.name}: the stimulus {audio!r} is not among those given ({known}), and there is no root folder to look in; "
                f"add it to stimuli= or give root=."
            )
        try:
            return super()._stimulus_path(audio)
        except FileNotFoundError as error:
            near = sorted(p.name for p in (self.root / audio).parent.glob("*") if p.stem == Path(audio).stem and p.is_file())
            like = f" There is {', '.join(near)}: events name a sound by its whole file name." if near else ""
            raise FileNotFoundError(
                f"{error}{like} Put the file there, correct the name in the events, or say where it is: stimuli={{{audio!r}: PATH}}."
            ) from error

    def _lookup(self, recording: Recording) -> ArrayRecording:
        if recording.uid not in self._given:
            raise ValueError(f"{recording.uid} is not a recording of {self.name}; take one from recordings().")
        return self._given[recording.uid]

    def _existing(self, path: PathLike, where: str) -> Path:
        full = Path(path) if self.root is None else self.root / path
        if full.is_dir():
            raise ValueError(f"{where}: {full} is a folder, expected a file; give a recording for each file in it.")
        if not full.is_file():
            hint = "the working directory" if self.root is None else f"root={str(self.root)!r}"
            raise FileNotFoundError(f"{where}: the file {full} is missing; paths start from {hint}.")
        return full

    def _identify(self, data: np.ndarray | PathLike, where: str) -> str:
        return file_identity(self._existing(data, where)) if isinstance(data, str | os.PathLike) else _hash_array(data)

    def _read_parts(self, given: ArrayRecording, uid: str) -> tuple[list[np.ndarray], list[str]]:
        """Arrays of shape (n_channels, n_times), that of the signal first, and the names of all channels."""
        n_expected = None if given.ch_names is None else len(given.ch_names)
        if not isinstance(given.signal, str | os.PathLike):
            main = _as_channels(given.signal, given, uid, n_expected=n_expected)
            return [main], _channel_names(given, len(main), uid)
        path = self._existing(given.signal, uid)
        where = f"{uid} ({path.name})"
        main = _as_channels(_read_variable(path, given.key, where, besides=tuple(given.extra)), given, where, n_expected=n_expected)
        parts, names = [main], _channel_names(given, len(main), where)
        for key, extra_names in given.extra.items():
            part = _as_channels(_read_variable(path, key, where), given, f"{where}, {key}", n_expected=len(extra_names))
            if part.shape[1] != parts[0].shape[1]:
                raise ValueError(f"{where}: {key} has {part.shape[1]} samples, expected the {parts[0].shape[1]} of the signal.")
            parts.append(part)
            names += list(extra_names)
        return parts, names


def _refuse_raw(item: Any, where: str) -> None:
    """Raise ValueError, with the way to go, where a recording is given as a Raw or as a file that MNE reads."""
    values = item.values() if isinstance(item, Mapping) else [getattr(item, "signal", item)]
    for value in values:
        if hasattr(value, "info") and hasattr(value, "get_data"):
            said = f"an mne {type(value).__name__}"
            if hasattr(value, "events"):
                cure = "Give whole recordings here; SpeechDecoder.fit takes Epochs with their targets."
            else:
                cure = (
                    "Write a dataset whose read_raw gives it (docs/howto/bring_your_own_data.md, 'A Raw or a .fif file'; "
                    "docs/howto/add_dataset.md); or give signal=raw.get_data(), sfreq=raw.info['sfreq'], ch_names=raw.ch_names, "
                    "ch_types=raw.get_channel_types(), which leaves bad channels in and positions out."
                )
        elif isinstance(value, str | os.PathLike) and os.fspath(value).lower().endswith(RAW_FILES):
            said = f"the file {os.fspath(value)}"
            cure = (
                "Write a dataset whose read_raw opens it with MNE (docs/howto/bring_your_own_data.md, 'A Raw or a .fif file'; "
                "docs/howto/add_dataset.md); a BIDS folder needs none (load('bids', root))."
            )
        else:
            continue
        raise ValueError(f"{where}: got {said}, expected an array of samples or a {', '.join(ARRAY_FILES)} file in signal. {cure}")


def _name(dataset: str, given: ArrayRecording, where: str) -> Recording:
    """Name a recording; ``sub-01`` is the subject 01."""
    path = os.fspath(given.signal) if isinstance(given.signal, str | os.PathLike) else ""
    subject, session = str(given.subject).removeprefix("sub-"), str(given.session).removeprefix("ses-")
    if given.subject is None or not subject:
        raise ValueError(f"{where}: subject is a label such as '01', got {given.subject!r}.")
    try:
        return Recording(dataset, subject, session, str(given.run).removeprefix("run-"), path)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _doubts_of_unit(data: np.ndarray, types: Sequence[str], said: str, uid: str) -> list[str]:
    """Say of EEG that it cannot be in volt, and of MEG that it cannot be in tesla."""
    doubts = []
    for kind, (low, high, unit, likely) in PLAUSIBLE.items():
        own = data[[of == kind for of in types], :: max(1, data.shape[1] // 20_000)]
        own = own[np.isfinite(own).all(axis=1)]  # preprocess counts the others
        if not own.size:
            continue
        spread = float(np.median(np.subtract(*np.quantile(own, [0.75, 0.25], axis=1))))
        if spread and not low <= spread <= high:
            doubts.append(
                f"{uid}: {said} is said, and half of the samples of a channel lie within {spread:.2g} {unit}, which is no {kind}. Say "
                f"the unit of the samples, such as unit={likely!r}; unit={unit!r} is taken without a word."
            )
    return doubts


def read_sound(path: Path, where: str) -> tuple[np.ndarray, float]:
    """Read a sound file, shape (n_audio_channels, n_samples), and its rate."""
    import soundfile

    try:
        data, sfreq = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        size = path.stat().st_size
        raise RuntimeError(
            f"{where}: {path} ({size} bytes) cannot be read as sound ({error.error_string}). Fetch it again, or convert it to .wav."
        ) from error
    return np.ascontiguousarray(data.T), float(sfreq)


def _from_fields(kind: type[T], item: T | Mapping[str, Any], *, where: str) -> T:
    if isinstance(item, kind):
        return item
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    if not isinstance(item, Mapping):
        raise ValueError(f"{where}: expected an {kind.__name__} or a dict with its fields, got {type(item).__name__}.")
    unknown = sorted(set(item) - set(known))
    if unknown:
        raise ValueError(f"{where}: unknown fields {', '.join(map(str, unknown))}; the fields are {', '.join(known)}.")
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]  # type: ignore[arg-type]
    lacking = [name for name in needed if name not in item]
    if lacking:
        got = ", ".join(map(str, item)) or "nothing"
        raise ValueError(f"{where}: {', '.join(lacking)} must be given, got {got}; the fields are {', '.join(known)}.")
    return kind(**item)


def _as_stimulus(item: Any, *, where: str) -> ArrayStimulus:
    if isinstance(item, str | os.PathLike):
        item = ArrayStimulus(item)
    elif isinstance(item, tuple) and len(item) == 2:
        item = ArrayStimulus(*item)
    elif isinstance(item, np.ndarray):
        raise ValueError(f"{where}: got an array of shape {item.shape} without its rate; give (array, sfreq).")
    given: ArrayStimulus = _from_fields(ArrayStimulus, item, where=where)
    is_path = isinstance(given.data, str | os.PathLike)
    suffix = Path(given.data).suffix.lower() if isinstance(given.data, str | os.PathLike) else ""
    if is_path and suffix not in SOUND_FILES + ARRAY_FILES:
        raise ValueError(f"{where}: expected a file that ends in {', '.join(SOUND_FILES + ARRAY_FILES)}, got {given.data}.")
    if suffix in SOUND_FILES:
        if given.sfreq is not None or given.key is not None or given.cell is not None:
            raise ValueError(f"{where}: a sound file says its own rate and has no variables; leave out sfreq, key and cell.")
    elif not _is_rate(given.sfreq):
        raise ValueError(f"{where}: sfreq must be a positive number of Hz, got {given.sfreq!r}.")
    _check_time_axis(given.time_axis, where)
    if not is_path:
        _as_rows(given.data, given, where)
    return given


def _check_recording(given: ArrayRecording, uid: str) -> None:
    """Check what can be checked without opening a file."""
    if not _is_rate(given.sfreq):
        raise ValueError(f"{uid}: sfreq must be a positive number of Hz, got {given.sfreq!r}.")
    _check_time_axis(given.time_axis, uid)
    types = {given.ch_types} if isinstance(given.ch_types, str) else set(given.ch_types)
    if not types <= set(CHANNEL_TYPES):
        raise ValueError(f"{uid}: channel types must be among {', '.join(CHANNEL_TYPES)}, got {', '.join(sorted(map(str, types)))}.")
    if given.montage is not None and given.positions is not None:
        raise ValueError(f"{uid}: got both a montage and positions; give one of them.")
    if isinstance(given.signal, str | os.PathLike):
        if Path(given.signal).suffix.lower() not in ARRAY_FILES:
            raise ValueError(
                f"{uid}: expected an array or a file that ends in {', '.join(ARRAY_FILES)}, got {given.signal}. Read it, give the array."
            )
        return
    if given.extra or given.key is not None:
        raise ValueError(f"{uid}: key and extra name variables of a file, but the signal is an array; append further channels to it.")
    main = _as_channels(given.signal, given, uid, n_expected=None if given.ch_names is None else len(given.ch_names))
    _channel_names(given, len(main), uid)


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and bool(math.isfinite(value) and value > 0)


def _check_time_axis(axis: int, where: str) -> None:
    if axis not in (0, 1):
        raise ValueError(f"{where}: time_axis must be 0 or 1, got {axis!r}.")


def _as_channels(values: Any, given: ArrayRecording, where: str, *, n_expected: int | None) -> np.ndarray:
    """Bring an array to the shape (n_channels, n_times)."""
    array = _as_numbers(values, where)
    if array.ndim == 1 and n_expected == 1:
        array = array[None] if given.time_axis == 1 else array[:, None]
    if array.ndim != 2:
        cure = "; give one continuous recording, not windows of it (SpeechDecoder.fit takes windows)" if array.ndim == 3 else ""
        raise ValueError(f"{where}: expected a two-dimensional array of channels and samples, got the shape {array.shape}{cure}.")
    shape = array.shape
    array = array if given.time_axis == 1 else array.T
    order = "(n_channels, n_times)" if given.time_axis == 1 else "(n_times, n_channels)"
    if n_expected is not None and len(array) != n_expected:
        cure = f"pass time_axis={1 - given.time_axis}" if array.shape[1] == n_expected else "correct the names"
        raise ValueError(f"{where}: got {n_expected} channel names for an array {order} of shape {shape}; {cure}.")
    if n_expected is None and len(array) > array.shape[1]:
        raise ValueError(
            f"{where}: expected an array {order}, got the shape {shape} with more channels than samples; if it is transposed, pass "
            f"time_axis={1 - given.time_axis}, if not, name the channels in ch_names."
        )
    if not array.shape[1]:
        raise ValueError(f"{where}: the array of shape {shape} has no samples.")
    return array


def _as_rows(values: Any, given: ArrayStimulus, where: str) -> np.ndarray:
    """Bring a stimulus to the shape (n_rows, n_samples), float32."""
    is_cell = isinstance(values, list) or (isinstance(values, np.ndarray) and values.dtype == object)
    if is_cell:
        cells = values if isinstance(values, list) else list(values.ravel(order="F"))
        if given.cell is None or not 0 <= given.cell < len(cells):
            raise ValueError(
                f"{where}: expected a cell between 0 and {len(cells) - 1} of the {len(cells)} there are, got cell={given.cell}."
            )
        values = cells[given.cell]
    elif given.cell is not None:
        raise ValueError(f"{where}: got cell={given.cell}, but the variable is no cell array; leave it out.")
    array = _as_numbers(values, where)
    if array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)  # MATLAB's vectors have two axes
    if array.ndim == 1:
        array = array[None]
    elif array.ndim == 2 and given.time_axis == 0:
        array = array.T
    if array.ndim != 2 or not array.size:
        raise ValueError(f"{where}: expected an array (n_samples,) or (n_features, n_samples), got the shape {array.shape}.")
    if len(array) > array.shape[1]:
        raise ValueError(
            f"{where}: expected an array (n_features, n_samples), got {len(array)} rows of {array.shape[1]} samples; "
            f"if it is transposed, pass time_axis={1 - given.time_axis}."
        )
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: {int((~np.isfinite(array)).sum())} samples are not finite; replace them.")
    return np.ascontiguousarray(array, dtype=np.float32)


def _as_numbers(values: Any, where: str) -> np.ndarray:
    array = np.asarray(values) if not isinstance(values, list | dict) else np.asarray(None)
    if array.dtype.kind not in "fiub":
        kind = type(values).__name__ if array.dtype == object else str(array.dtype)
        raise ValueError(
            f"{where}: expected an array of real numbers, got {kind}; name the right variable of a file in key, or give a numpy array."
        )
    return array


def _channel_names(given: ArrayRecording, n_channels: int, where: str) -> list[str]:
    if given.ch_names is not None:
        return [str(name) for name in given.ch_names]
    if given.montage is not None:
        names = _montage(given.montage, where).ch_names
        if len(names) != n_channels:
            raise ValueError(
                f"{where}: the montage {given.montage} has {len(names)} positions, the signal {n_channels} channels; name them in ch_names."
            )
        return list(names)
    return [f"EEG{k:03d}" for k in range(1, n_channels + 1)]


def _unit_factor(unit: str | float, uid: str) -> float:
    if isinstance(unit, str):
        if unit not in UNITS:
            raise ValueError(f"{uid}: unit must be one of {', '.join(UNITS)} or a factor to V, T or T/m, got {unit!r}.")
        return UNITS[unit]
    if not (math.isfinite(unit) and unit != 0):
        raise ValueError(f"{uid}: a unit's factor must be finite and not 0, got {unit!r}.")
    return float(unit)


def _montage(name: str, where: str) -> mne.channels.DigMontage:
    if isinstance(name, mne.channels.DigMontage):
        raise ValueError(
            f"{where}: montage is a name, such as 'biosemi128', got a DigMontage; give its places as positions="
            "[montage.get_positions()['ch_pos'][name] for name in ch_names]."
        )
    known = mne.channels.get_builtin_montages()
    if name not in known:
        raise ValueError(f"{where}: montage must be one of {', '.join(known)}, got {name!r}.")
    return mne.channels.make_standard_montage(name)


def _place_on_montage(info: mne.Info, name: str, n_main: int, uid: str) -> None:
    montage = _montage(name, uid)
    eeg = [info.ch_names[i] for i in mne.pick_types(info, eeg=True, exclude=())]
    if not eeg:
        raise ValueError(f"{uid}: the montage {name} places EEG channels, and there are none; give positions for MEG.")
    missing = [channel for channel in eeg if channel not in montage.ch_names and channel in info.ch_names[:n_main]]
    if missing:
        raise ValueError(
            f"{uid}: {len(missing)} EEG channels have no position in the montage {name}: {', '.join(missing[:10])}. "
            "Rename them, type them misc, or give positions with NaN where unknown."
        )
    info.set_montage(montage, on_missing="ignore", verbose="error")  # those of extra may lack one


def _place_at(info: mne.Info, positions: np.ndarray, n_main: int, uid: str) -> None:
    try:
        places = np.asarray(positions, dtype=np.float64)
    except (TypeError, ValueError) as error:
        got = type(positions).__name__
        raise ValueError(f"{uid}: positions are an array ({n_main}, 3) in the order of the channels, got a {got}.") from error
    n_all = len(info.ch_names)
    if places.shape not in ((n_main, 3), (n_all, 3)):
        raise ValueError(f"{uid}: expected positions of shape ({n_main}, 3), got {places.shape}.")
    known = np.flatnonzero(np.isfinite(places).all(axis=1))
    farthest = float(np.linalg.norm(places[known], axis=1).max(initial=0.0))
    if farthest > 0.5:
        raise ValueError(f"{uid}: positions are in metres from the middle of the head, got {farthest:.3g}; divide millimetres by 1000.")
    types = info.get_channel_types()
    electrodes = {info.ch_names[i]: places[i] for i in known if types[i] == "eeg"}
    if electrodes:
        info.set_montage(mne.channels.make_dig_montage(electrodes, coord_frame="head"), on_missing="ignore", verbose="error")
    for i in known:
        if types[i] in ("mag", "grad"):
            info["chs"][i]["loc"][:3] = places[i]


def _read_table(path: Path, uid: str) -> pd.DataFrame:
    separators = {".csv": ",", ".tsv": "\t"}
    if path.suffix.lower() not in separators:
        raise ValueError(f"{uid}: expected events in a .csv or .tsv file, got {path}.")
    try:
        # Words such as "null" and "NA" are words: only the columns of numbers have missing values. A byte-order mark is no part of a name.
        table = pd.read_csv(path, sep=separators[path.suffix.lower()], dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RuntimeError(f"{uid}: {path} is not in UTF-8 ({error}). Save it as UTF-8.") from error
    except pd.errors.EmptyDataError as error:
        raise RuntimeError(
            f"{uid}: {path} is empty. Write a first line with the columns {', '.join(events_table.COLUMNS)}, and a row for each event."
        ) from error
    except pd.errors.ParserError as error:
        raise RuntimeError(f"{uid}: {path} is no table ({str(error).strip()}). Correct that line, or quote the text in it.") from error
    for column in table.columns.difference(list(TEXT_COLUMNS)):
        table[column] = table[column].replace({"": None, "n/a": None})
    return table


def _read_variable(path: Path, key: str | None, where: str, *, besides: tuple[str, ...] = ()) -> Any:
    """Read one variable of a file; without a key, the only one that has two dimensions (and is not among ``besides``)."""
    try:
        variables = _read_file(path, key)
    except Exception as error:  # each reader has its own kinds of error for a damaged file
        raise RuntimeError(f"{where}: {path} cannot be read ({type(error).__name__}: {error}); is it whole, free of objects?") from error
    if key is not None:
        if key not in variables:
            names = sorted(_read_file(path, None))
            raise ValueError(f"{where}: {path} has no variable {key!r}, it has {', '.join(names)}.")
        return variables[key]
    usable = [name for name, value in variables.items() if name not in besides and np.ndim(value) == 2 and np.size(value) > 1]
    if len(usable) != 1:
        raise ValueError(f"{where}: {path} has {len(usable)} two-dimensional variables ({', '.join(usable)}); name one in key.")
    return variables[usable[0]]


def _read_file(path: Path, key: str | None) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return {key or path.stem: np.load(path, allow_pickle=False)}
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if key in (None, name)}
    from scipy.io import loadmat

    wanted = None if key is None else [key]
    try:
        variables = loadmat(path, variable_names=wanted)
    except NotImplementedError:  # scipy does not read v7.3, which is HDF5
        from pymatreader import read_mat

        variables = read_mat(path, variable_names=wanted)
    return {name: value for name, value in variables.items() if not name.startswith(("__", "#"))}


def _hash_array(array: np.ndarray) -> str:
    array = np.ascontiguousarray(array)
    return digest([str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()])


def _plain(value: Any) -> Any:
    """Turn what a user said into something that JSON knows."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, str | type(None)):
        return value
    if isinstance(value, Iterable):
        return [_plain(v) for v in value]
    return value.item() if isinstance(value, np.generic) else value
