"""The phantom as a BIDS folder, so that every loader and every outside tool can be tried on data whose truth is known."""

from __future__ import annotations

import json
import os
from pathlib import Path

import mne
import mne_bids
import pandas as pd
import soundfile
from tqdm import tqdm

from brainspeech.records import Recording

from .phantom_noise import LINE
from .simulated import SimulatedDataset

TASK = "listening"
COLUMNS = {
    "onset": "Seconds from the first sample of the recording.",
    "duration": "Seconds.",
    "trial_type": "sound, sentence, word or phoneme; or what disturbed the recording: blinks, heartbeat, amplifier_jump.",
    "stim_file": "The sound, below the folder stimuli.",
    "audio_onset": "Seconds from the first sample of the sound.",
    "word": "The word that begins.",
    "phoneme": "The phoneme that begins, in ARPAbet.",
    "sentence": "The sentence that begins.",
    "sequence": "Which sentence a word or phoneme belongs to.",
}


def write_bids(dataset: SimulatedDataset, folder: str | os.PathLike, *, progress: bool = True) -> Path:
    """Write every recording, its events and the sounds as a BIDS folder: EEG as BrainVision, MEG as FIF.

    Parameters
    ----------
    dataset : SimulatedDataset
    folder : path
        New or empty.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        If there is something in the folder already.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; give a new folder.")
    (folder / "stimuli").mkdir(parents=True, exist_ok=True)
    for audio in dataset.stimuli():
        data, sfreq = dataset.read_stimulus(audio)
        # Floats: the sound that is read again is the sound that was heard.
        soundfile.write(folder / "stimuli" / audio, data.T, int(sfreq), **({"subtype": "FLOAT"} if audio.lower().endswith(".wav") else {}))
    for recording in tqdm(dataset.recordings(), desc="write", unit="recording", disable=not progress):
        _write_recording(dataset, recording, folder)
    mne_bids.make_dataset_description(
        path=folder,
        name="brainspeech phantom: simulated listeners to speech",
        dataset_type="raw",
        data_license="CC0",
        authors=["brainspeech"],
        overwrite=True,
        verbose="error",
    )
    (folder / "README").write_text(_describe(dataset))
    return folder


def _write_recording(dataset: SimulatedDataset, recording: Recording, folder: Path) -> None:
    raw = dataset.read_raw(recording)
    disturbed = [(a["onset"], a["duration"], a["description"]) for a in raw.annotations]
    raw.set_annotations(None, verbose="error")
    raw.info["line_freq"] = LINE
    path = mne_bids.BIDSPath(subject=recording.subject, run=recording.run, task=TASK, datatype=dataset.kind, root=folder)
    # Files in single precision: 1 part in 10^7, far below the noise.
    if dataset.kind == "eeg":
        mne_bids.write_raw_bids(raw, path, format="BrainVision", allow_preload=True, verbose="error")
    else:
        # mne-bids 0.20 looks for the head coils of KIT's own format wherever it sees KIT's sensors, and fails on any other: it is shown
        # generic axial gradiometers, and the file is then written as it is.
        shown = raw.copy()
        for channel in shown.info["chs"]:
            channel["coil_type"] = mne.io.constants.FIFF.FIFFV_COIL_AXIAL_GRAD_5CM
        written = mne_bids.write_raw_bids(shown, path, format="FIF", allow_preload=True, verbose="error")
        raw.save(written.fpath, overwrite=True, verbose="error")
    events_path = path.copy().update(suffix="events", extension=".tsv", check=False).fpath
    _events_table(dataset.read_events(recording), disturbed).to_csv(
        events_path, sep="\t", index=False, na_rep="n/a", float_format="%.9g", lineterminator="\n"
    )
    events_path.with_suffix(".json").write_text(
        json.dumps({name: {"Description": text} for name, text in COLUMNS.items()}, indent=1) + "\n"
    )


def _events_table(table: pd.DataFrame, disturbed: list[tuple[float, float, str]]) -> pd.DataFrame:
    """Turn an events table into the columns of ``COLUMNS``; empty cells become missing."""
    heard = table.rename(columns={"kind": "trial_type", "audio": "stim_file"})
    for kind in ("word", "phoneme", "sentence"):
        heard[kind] = heard["text"].where(heard["trial_type"] == kind)
    heard["sequence"] = heard["sequence"].where(heard["sequence"] != "")
    others = pd.DataFrame(disturbed, columns=["onset", "duration", "trial_type"])
    heard = pd.concat([heard[list(COLUMNS)], others], ignore_index=True) if len(others) else heard[list(COLUMNS)]
    return heard.sort_values("onset", kind="stable")


def _describe(dataset: SimulatedDataset) -> str:
    return (
        "Simulated listeners to speech, written by brainspeech. No one was recorded.\n\n"
        f"{dataset.n_subjects} listeners, {dataset.kind}, {dataset.n_channels} sensors, {dataset.sfreq:g} Hz, seed {dataset.seed}, "
        f"{dataset.snr_db:g} dB; nuisances: {', '.join(dataset.nuisances) or 'none'}.\n\n"
        "What is modelled, and what is not, is said in brainspeech.datasets.simulated.\n"
    )
