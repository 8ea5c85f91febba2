"""From a raw recording as MNE reads it to a Signal: brain channels only, resampled, in physical units, not scaled.

The recording is read once, in time chunks, never as a whole, and worked on in float64; what is kept is float32 at the new rate. Every
chunk is resampled and has each channel's level taken off. References and filters work on the result, at the new rate.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import mne
import numpy as np
from numpy.typing import NDArray

from brainspeech.cache import Cache
from brainspeech.listing import some
from brainspeech.records import Recording, Signal
from brainspeech.resampling import filter_rows, reflect, resample_chunks
from brainspeech.timing import resampled_length

# Part of the cache key: raise it when the same config gives other numbers, or an entry keeps more. 4: what reading adds to the notes.
VERSION = 4

# Samples (of all channels of the file together) that are read at a time: 4 MiB in float64, which stay near the processor also where
# another process is at work beside this one.
CHUNK_VALUES = 524_288

# Single samples, spread over the recording, whose median is the level that is taken off a channel; odd, so that it is one of them.
LOOKS = 15

# Hz between a notch and full passage on either side; MNE's notch takes half of it and so reaches twice as far in time.
NOTCH_TRANSITION = 1.0

# Lowest correlation, per axis, of a helmet layout with the projection of the sensors' own locations. The right layouts of KIT, CTF and
# Neuromag files reach 0.996, those of another KIT system (which has the same channel names) 0.42 at the most.
LAYOUT_AGREEMENT = 0.9

CHANNEL_PICKS = (None, "meg", "eeg", "mag", "grad")

# Names that stand for sound, triggers and auxiliary inputs in the vendors' files, whatever their type says.
NOT_BRAIN = re.compile(
    r"(sti|status|trig|ttl|din\d|marker|photo|diode|aud|aux|misc|mic|sound|speech|voice|envelope|adc|uadc|dac|uppt|udio|sclk)",
    re.IGNORECASE,
)
# Sensors that are not on the brain but come typed as brain channels, by kind: BioSemi's peripheral inputs and the eyes, heart and muscles
# in most EEG formats; CTF's reference sensors through FieldTrip.
PERIPHERAL = {
    "eeg": re.compile(r"gsr\d?|erg\d|resp|plet|temp|([a-z]?eog|ecg|ekg|emg)([ _-]?\d+)?", re.IGNORECASE),
    "meg": re.compile(r"(B[GPQR]\d|[GPQR]\d\d)(-\d+)?"),
}


@dataclass(frozen=True, slots=True)
class PreprocessConfig:
    """What is done to a recording before it is cut into segments.

    Parameters
    ----------
    sfreq : float
        Sampling rate of the result in Hz; 120 in the paper.
    highpass, lowpass : float or None
        Edges of the pass band in Hz (zero-phase FIR, MNE's design); None leaves that side open. The paper has neither.
    notch : tuple of float
        Frequencies in Hz that are taken out. Line noise at or above sfreq / 2 needs none: the anti-alias filter takes it out.
    reference : None, "average" or tuple of str
        EEG only. None keeps the recording's reference; "average" takes the mean of the good channels; names (such as the mastoids) take the
        mean of those channels, which are then left out.
    channels : None, "meg", "eeg", "mag" or "grad"
        Kind of the brain channels; None means MEG if there is any, else EEG. Reference magnetometers are never among them.
    positions : str or None
        MNE's name of a montage (such as "biosemi128") for recordings of EEG without any position; it changes no other recording.

    Raises
    ------
    ValueError
        If a field is out of its range.
    """

    sfreq: float = 120.0
    highpass: float | None = None
    lowpass: float | None = None
    notch: tuple[float, ...] = ()
    reference: str | tuple[str, ...] | None = None
    channels: str | None = None
    positions: str | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sfreq) and self.sfreq > 0):
            raise ValueError(f"sfreq must be a positive number of Hz, got {self.sfreq}.")
        nyquist = self.sfreq / 2
        for name in ("highpass", "lowpass"):
            edge = getattr(self, name)
            if edge is not None and not 0 < edge < nyquist:
                raise ValueError(f"{name} must lie between 0 and sfreq / 2 = {nyquist:g} Hz, got {edge}. None leaves that side open.")
        if self.highpass is not None and self.lowpass is not None and self.highpass >= self.lowpass:
            raise ValueError(f"highpass must be below lowpass, got {self.highpass} and {self.lowpass} Hz.")
        # A config that was read from JSON has lists.
        object.__setattr__(self, "notch", tuple(self.notch))
        for frequency in self.notch:
            if not NOTCH_TRANSITION < frequency - _notch_width(frequency) < frequency + _notch_width(frequency) < nyquist:
                raise ValueError(
                    f"notch frequencies must lie between {2 * NOTCH_TRANSITION:g} Hz and a good {NOTCH_TRANSITION:g} Hz below "
                    f"sfreq / 2 = {nyquist:g} Hz, got {frequency}. From sfreq / 2 on the anti-alias filter takes the line out."
                )
        if isinstance(self.reference, str):
            if self.reference != "average":
                raise ValueError(
                    f"reference must be None, 'average' or a tuple of channel names, got {self.reference!r}. "
                    f"One channel is written as ({self.reference!r},)."
                )
        elif self.reference is not None:
            object.__setattr__(self, "reference", tuple(self.reference))
            if not self.reference or len(set(self.reference)) != len(self.reference):
                raise ValueError(f"reference needs channel names, each once, got {self.reference!r}.")
        if self.channels not in CHANNEL_PICKS:
            raise ValueError(f"channels must be one of {', '.join(map(str, CHANNEL_PICKS))}, got {self.channels!r}.")
        if self.positions is not None:
            _make_montage(self.positions)


def preprocess(raw: mne.io.BaseRaw, config: PreprocessConfig, *, uid: str = "") -> Signal:
    """Turn a raw recording into a Signal: pick, re-reference, resample, filter; nothing is scaled.

    Parameters
    ----------
    raw : mne.io.BaseRaw
        The recording; it is not changed, and it is read in chunks where it is not preloaded.
    config : PreprocessConfig
        What to do.
    uid : str
        The recording's uid, for the result and for the errors.

    Returns
    -------
    signal : Signal
        Data in V, T or T/m, round(duration x sfreq) samples, every channel's mean removed; ``dropped`` counts what was left out and why.
        Sample k lies k / sfreq seconds after the first sample of the raw. ``filter_half_length`` is the reach of band-pass and notch
        together; the anti-alias filter, which reaches 22 to 28 samples of the lower rate, is not in it.

    Raises
    ------
    ValueError
        If the raw has no channel of the kind asked for, an audio, trigger or auxiliary channel is typed as brain, the reference is not
        there, or the filter is longer than the recording.
    RuntimeError
        If more than half of the channels are bad, flat or not finite, or a reference channel is.
    """
    where = uid or "the recording"
    dropped: dict[str, int] = {}
    candidates, reference = _pick(raw, config, where, dropped)
    n_times = resampled_length(raw.n_times, raw.info["sfreq"], config.sfreq)
    if not n_times:
        raise RuntimeError(f"{where}: {raw.n_times} samples at {raw.info['sfreq']:g} Hz are not one sample at {config.sfreq:g} Hz.")
    kernel = _design_filter(config)
    if kernel is not None and len(kernel) > n_times:
        raise ValueError(
            f"{where}: the filter is {len(kernel) / config.sfreq:.2f} s long, the recording only {n_times / config.sfreq:.2f} s. "
            "Leave out the filter, or raise the high-pass (a notch takes about 3.3 s)."
        )
    marked = {pick: "marked bad" for pick in [*candidates, *reference] if raw.ch_names[pick] in raw.info["bads"]}
    _keep(raw, candidates, reference, marked, where, {})  # before hours of reading
    picks = [pick for pick in [*candidates, *reference] if pick not in marked]
    source = _Source(raw, picks)
    # A reference is taken off afterwards, which is the same; the difference may be much smaller than either, hence float64.
    data = np.empty((len(picks), n_times), dtype=np.float32 if config.reference is None else np.float64)
    resample_chunks(source.read, raw.n_times, raw.info["sfreq"], config.sfreq, data, chunk=_chunk(raw), level=source.level)
    kept = _keep(raw, candidates, reference, marked | source.faults(data), where, dropped)
    data = _subtract_reference(data, [picks.index(pick) for pick in kept], [picks.index(pick) for pick in reference], config.reference)
    positions = _find_positions(raw.info, candidates, config.positions, where)
    if kernel is not None:
        filter_rows(data, kernel)
    data -= data.mean(axis=1, dtype=np.float64, keepdims=True).astype(np.float32)
    return Signal(
        uid=uid,
        data=data,
        sfreq=config.sfreq,
        ch_names=tuple(raw.ch_names[pick] for pick in kept),
        ch_types=tuple(raw.get_channel_types(picks=kept)),
        positions=positions[[candidates.index(pick) for pick in kept]],
        filter_half_length=filter_half_length(config),
        dropped=dropped,
    )


def filter_half_length(config: PreprocessConfig) -> float:
    """Give the seconds by which band-pass and notch together reach to either side; 0 where there is neither."""
    kernel = _design_filter(config)
    return 0.0 if kernel is None else len(kernel) // 2 / config.sfreq


class Source(Protocol):
    """What ``load_signal`` needs of a dataset; every ``brainspeech.datasets.Dataset`` has it, and ``notes``, which another may lack."""

    def read_raw(self, recording: Recording) -> mne.io.BaseRaw: ...
    def fingerprint(self, recording: Recording) -> str: ...


def load_signal(dataset: Source, recording: Recording, config: PreprocessConfig, cache: Cache) -> Signal:
    """Open a recording's Signal from the cache, or read and preprocess the recording once.

    The entry depends on the config and on the content of the file, not on any split. The data come as a memory map. What reading adds to
    the dataset's ``notes`` is kept in the entry, and is added to them also where the recording is not read.
    """

    def make() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        with _listen(dataset) as said:
            raw = dataset.read_raw(recording)
            try:
                signal = preprocess(raw, config, uid=recording.uid)
            finally:
                raw.close()
        values = {
            "uid": recording.uid,
            "notes": said,
            "sfreq": signal.sfreq,
            "ch_names": signal.ch_names,
            "ch_types": signal.ch_types,
            "filter_half_length": signal.filter_half_length,
            "dropped": dict(signal.dropped),
        }
        return {"data": signal.data, "positions": signal.positions}, values

    arrays, values = cache.get_or_make("signals", signal_key(dataset, recording, config), make)
    # The same files may have been read under another name of the dataset, with which notes begin.
    named = f"{values['uid']}:"
    _add_notes(dataset, [f"{recording.uid}:{note.removeprefix(named)}" if note.startswith(named) else note for note in values["notes"]])
    return Signal(
        uid=recording.uid,
        data=arrays["data"],
        sfreq=values["sfreq"],
        ch_names=tuple(values["ch_names"]),
        ch_types=tuple(values["ch_types"]),
        positions=arrays["positions"],
        filter_half_length=values["filter_half_length"],
        dropped=values["dropped"],
    )


def signal_key(dataset: Source, recording: Recording, config: PreprocessConfig) -> dict[str, Any]:
    """Give the key of a recording's entry among the cache's ``signals``."""
    return {"config": dataclasses.asdict(config), "recording": dataset.fingerprint(recording), "version": VERSION}


@contextmanager
def _listen(dataset: Any) -> Iterator[list[str]]:
    """Give a list that holds, at the end, what was added to a dataset's notes meanwhile.

    The notes are empty meanwhile: a sentence that was said before, of another recording or of this one, is said of this one too.
    """
    said: list[str] = []
    notes = getattr(dataset, "notes", None)
    if notes is None:
        yield said
        return
    held = list(notes)
    notes.clear()
    try:
        yield said
    finally:
        said += dataset.notes  # which reading may have bound anew
        dataset.notes[:] = held
        _add_notes(dataset, said)


def _add_notes(dataset: Any, said: Iterable[str]) -> None:
    """Add sentences to a dataset's notes that are not among them; one that keeps no notes has none."""
    notes = getattr(dataset, "notes", None)
    if notes is not None:
        notes += [note for note in dict.fromkeys(said) if note not in notes]


def _pick(raw: mne.io.BaseRaw, config: PreprocessConfig, where: str, dropped: dict[str, int]) -> tuple[list[int], list[int]]:
    """Give the indices of the brain channels, bad ones included, and those of the reference channels."""
    types = raw.get_channel_types()
    chosen = config.channels or ("meg" if {"mag", "grad"} & set(types) else "eeg")
    kinds = ("mag", "grad") if chosen == "meg" else (chosen,)
    picks = [pick for pick, kind in enumerate(types) if kind in kinds]
    if not picks:
        found = ", ".join(f"{types.count(kind)} {kind}" for kind in sorted(set(types)))
        raise ValueError(f"{where}: no {' or '.join(kinds)} channel for channels={config.channels!r}, the raw has {found}.")

    reference: list[int] = []
    if config.reference is not None:
        if chosen != "eeg":
            raise ValueError(
                f"{where}: reference={config.reference!r} is for EEG, the picks are {' and '.join(kinds)}. Set reference=None."
            )
        if config.reference != "average":
            wrong = [name for name in config.reference if name not in raw.ch_names or types[raw.ch_names.index(name)] != "eeg"]
            if wrong:
                raise ValueError(
                    f"{where}: the reference channels {', '.join(wrong)} are not EEG channels of this raw. "
                    "Name channels that are there, or retype them with raw.set_channel_types({name: 'eeg'})."
                )
            reference = [raw.ch_names.index(name) for name in config.reference]

    wrong = [raw.ch_names[pick] for pick in picks if NOT_BRAIN.match(raw.ch_names[pick])]
    if wrong:
        raise ValueError(
            f"{where}: expected brain channels only, got {', '.join(wrong)} typed as {' or '.join(kinds)}. "
            f"Retype them after reading: raw.set_channel_types({{{', '.join(f'{name!r}: {_retype(name)!r}' for name in wrong)}}})."
        )
    picks = _leave_out(picks, set(reference), "used as reference", dropped)
    elsewhere = PERIPHERAL["eeg" if chosen == "eeg" else "meg"]
    picks = _leave_out(picks, {pick for pick in picks if elsewhere.fullmatch(raw.ch_names[pick])}, "not on the brain", dropped)
    if not picks:
        raise ValueError(f"{where}: no brain channel is left once {', '.join(dropped)} channels are out.")
    return picks, reference


def _retype(name: str) -> str:
    """Give the type that a channel of this name should have had."""
    return "stim" if re.match(r"(sti|status|trig|ttl|din|marker)", name, re.IGNORECASE) else "misc"


def _leave_out(picks: list[int], out: set[int], reason: str, dropped: dict[str, int]) -> list[int]:
    if out:
        dropped[reason] = len(out)
    return [pick for pick in picks if pick not in out]


class _Source:
    """Reads a recording, and remembers which channels never moved.

    Attributes
    ----------
    level : array, shape (n_picks, 1)
        A sample of each channel that is typical of it: the median of a few, so a start far from the rest does not count.
    """

    def __init__(self, raw: mne.io.BaseRaw, picks: Sequence[int]):
        self._raw, self._picks = raw, list(picks)
        looks = np.linspace(0, raw.n_times - 1, LOOKS).round().astype(int)
        values = [raw.get_data(picks=self._picks, start=look, stop=look + 1) for look in looks.tolist()]
        self.level = np.sort(np.concatenate(values, axis=1), axis=1)[:, LOOKS // 2, None]
        self._moved = np.zeros(len(picks), dtype=bool)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read samples start to stop, shape (n_picks, stop - start), float64; beyond its ends the recording is reflected."""
        times = reflect(start, stop, self._raw.n_times)
        first, last = int(times.min()), int(times.max())
        block = self._raw.get_data(picks=self._picks, start=first, stop=last + 1)
        self._moved[~self._moved] = (block[~self._moved] != self.level[~self._moved]).any(axis=1)
        return block if start >= 0 and stop <= self._raw.n_times else block.take(times - first, axis=1)

    def faults(self, data: np.ndarray) -> dict[int, str]:
        """Say what is wrong with the channels that never moved, or whose data, resampled from all that was read, are not finite."""
        with np.errstate(invalid="ignore"):  # infinities of both signs
            finite = np.isfinite(data.sum(axis=1))
        found = {pick: "not finite" for pick, ok in zip(self._picks, finite, strict=True) if not ok}
        return found | {pick: "flat" for pick, ok in zip(self._picks, self._moved | ~finite, strict=True) if not ok}


def _keep(
    raw: mne.io.BaseRaw, candidates: list[int], reference: list[int], faults: dict[int, str], where: str, dropped: dict[str, int]
) -> list[int]:
    """Leave out the bad channels and count them; too many are an error."""
    broken = [f"{raw.ch_names[pick]} ({faults[pick]})" for pick in reference if pick in faults]
    if broken:
        raise RuntimeError(f"{where}: the reference channels {', '.join(broken)} cannot be used. Choose another reference.")
    kept = candidates
    for reason in ("marked bad", "not finite", "flat"):
        kept = _leave_out(kept, {pick for pick in kept if faults.get(pick) == reason}, reason, dropped)
    lost = len(candidates) - len(kept)
    if 2 * lost > len(candidates):
        names = [f"{raw.ch_names[pick]} ({faults[pick]})" for pick in candidates if pick in faults]
        left = f"more than half, {lost} of {len(candidates)} channels, cannot be used" if kept else "no usable channel remains"
        raise RuntimeError(f"{where}: {left}: {some(names, 12)}. Check the file, or leave this recording out.")
    return kept


def _subtract_reference(
    data: np.ndarray, kept: list[int], reference: list[int], choice: str | tuple[str, ...] | None
) -> NDArray[np.float32]:
    """Give the rows that are kept, less the mean of all of them or of the reference's rows where there is one to be taken."""
    if choice is not None:
        data[kept] -= data[kept if choice == "average" else reference].mean(axis=0)
    return data.astype(np.float32, copy=False) if kept == list(range(len(data))) else data[kept].astype(np.float32, copy=False)


def _chunk(raw: mne.io.BaseRaw) -> int:
    return max(1, CHUNK_VALUES // len(raw.ch_names))


def _notch_width(frequency: float) -> float:
    """Hz from the centre of a notch to full passage."""
    return frequency / 400 + NOTCH_TRANSITION


def _design_filter(config: PreprocessConfig) -> np.ndarray | None:
    """Design band-pass and notch as one symmetric kernel of odd length; None if the config has neither."""
    kernels = []
    if config.highpass is not None or config.lowpass is not None:
        kernels.append(mne.filter.create_filter(None, config.sfreq, config.highpass, config.lowpass, verbose="error"))
    for frequency in config.notch:
        width = _notch_width(frequency)
        kernels.append(
            mne.filter.create_filter(
                None,
                config.sfreq,
                frequency + width,
                frequency - width,
                l_trans_bandwidth=NOTCH_TRANSITION,
                h_trans_bandwidth=NOTCH_TRANSITION,
                verbose="error",
            )
        )
    if not kernels:
        return None
    kernel = kernels[0]
    for other in kernels[1:]:
        kernel = np.convolve(kernel, other)
    return kernel


def _find_positions(info: mne.Info, picks: list[int], montage: str | None, where: str) -> NDArray[np.float32]:
    """Give the layout of the picks in [0, 1], shape (n_picks, 2), from the helmet's layout or by projection; NaN where the file has none.

    Scaled over all picks, bad ones included, so that a sensor stands at the same place whichever others were bad.
    """
    locations = _locations(info, picks)
    is_eeg = info.get_channel_types(picks=picks)[0] == "eeg"
    if montage is not None and is_eeg and np.isnan(locations).all():
        info = info.copy()
        info.set_montage(_make_montage(montage), match_case=False, on_missing="ignore", verbose="error")
        locations = _locations(info, picks)
        if np.isnan(locations).all():
            raise ValueError(
                f"{where}: positions={montage!r} knows none of the channels {', '.join(info['ch_names'][pick] for pick in picks[:5])} ... "
                "Rename the channels after reading, or choose another montage."
            )
    known = np.isfinite(locations[:, 0])
    positions = np.full((len(picks), 2), np.nan, dtype=np.float32)
    if not known.any():
        return positions
    # The head's origin for electrodes, as MNE's topomaps have it; a helmet's own centre for MEG sensors.
    flat = _project(locations[known] - (0.0 if is_eeg else _centre(locations[known])))
    if not is_eeg:
        layout = _helmet_layout(info, [info["ch_names"][pick] for pick, ok in zip(picks, known, strict=True) if ok])
        flat = layout if layout is not None and _agree(layout, flat) else flat
    low, span = flat.min(axis=0), np.ptp(flat, axis=0)
    wide = span > 1e-6 * span.max()  # electrodes on one line, or a single one, stand in the middle
    positions[known] = np.where(wide, (flat - low) / np.where(wide, span, 1.0), 0.5)
    return positions


def layout(channels: mne.Info | Sequence[str], *, montage: str | None = None) -> NDArray[np.float32]:
    """Give the layout of channels in [0, 1] as ``preprocess`` does, shape (n_channels, 2); NaN where there is no position.

    Parameters
    ----------
    channels : mne.Info or sequence of str
        Names alone are EEG channels without positions.
    montage : str, optional
        MNE's name of a montage for EEG without any position.
    """
    info = channels if isinstance(channels, mne.Info) else mne.create_info(list(channels), 1.0, "eeg", verbose="error")
    return _find_positions(info, list(range(len(info["ch_names"]))), montage, "the channels given")


def _make_montage(name: str) -> mne.channels.DigMontage:
    try:
        with mne.use_log_level("error"):  # MNE warns of names that it has renamed, and still knows
            return mne.channels.make_standard_montage(name)
    except ValueError:
        known = ", ".join(mne.channels.get_builtin_montages())
        raise ValueError(f"positions must be None or one of MNE's montages ({known}), got {name!r}.") from None


def _locations(info: mne.Info, picks: list[int]) -> NDArray[np.float64]:
    """Give the 3-D locations, shape (n_picks, 3); NaN where unknown, which readers write as NaN or as the origin."""
    locations = np.array([info["chs"][pick]["loc"][:3] for pick in picks], dtype=np.float64)
    locations[~np.isfinite(locations).all(axis=1) | ~locations.any(axis=1)] = np.nan
    return locations


def _project(locations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Flatten points around the origin as MNE's topomaps do: the distance from the vertex along the sphere is kept."""
    radius = np.linalg.norm(locations, axis=1)
    polar = np.arccos(np.clip(locations[:, 2] / np.where(radius > 0, radius, 1.0), -1, 1))
    azimuth = np.arctan2(locations[:, 1], locations[:, 0])
    return (radius * polar * np.stack([np.cos(azimuth), np.sin(azimuth)])).T


def _centre(locations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit a sphere by least squares and give its centre; the origin when too few sensors define one."""
    design = np.c_[2 * locations, np.ones(len(locations))]
    if len(locations) < 16 or np.linalg.cond(design) > 1e6:
        return np.zeros(3)
    return np.linalg.lstsq(design, (locations**2).sum(axis=1), rcond=None)[0][:3]


def _helmet_layout(info: mne.Info, names: list[str]) -> NDArray[np.float64] | None:
    """Give MNE's layout of the helmet for these sensors, shape (n_sensors, 2); None if MNE has none that has them all."""
    try:
        layout = mne.find_layout(info, exclude=())
    except (RuntimeError, NotImplementedError, ValueError):  # a helmet that MNE cannot tell
        return None
    if layout is None:
        return None
    # CTF appends the number of the acquisition system to the names of the sensors: MLC11-4304.
    places = {name.rsplit("-", 1)[0]: place[:2] for name, place in zip(layout.names, layout.pos, strict=True)}
    bare = [name.rsplit("-", 1)[0] for name in names]
    return np.array([places[name] for name in bare]) if set(bare) <= set(places) else None


def _agree(layout: NDArray[np.float64], projection: NDArray[np.float64]) -> bool:
    """Tell whether a layout has the sensors where the file has them: all KIT systems use the same names for other places."""
    if len(layout) < 16:
        return False
    return all(np.corrcoef(layout[:, axis], projection[:, axis])[0, 1] > LAYOUT_AGREEMENT for axis in (0, 1))
