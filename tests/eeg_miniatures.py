"""Small trees of the EEG datasets: the real file names and columns, two listeners, half a minute of sound a run; EEG is noise."""

from __future__ import annotations

import json
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import pybv
import scipy.io
import soundfile
from praatio import textgrid
from praatio.utilities.constants import Interval

AUDIO_SFREQ = 16_000
VOCABULARY = (
    *("alice", "was", "beginning", "to", "get", "very", "tired", "of", "sitting", "by", "her", "sister"),
    *("on", "the", "bank", "and", "having", "nothing", "do", "true", "rabbit", "ran", "close"),
)

# What makes a recipe's run a matter of seconds, as --set has it.
NARROW = (
    "preprocess.sfreq=30",
    "segments.sfreq=30",
    "segments.stride=1",
    "segments.valid_ratio=0.3",
    "segments.test_ratio=0.3",
    "segments.min_block=6",
    "feature.name=mel",
    "feature.n_mels=8",
    "model.hidden=8",
    "model.depth=1",
    "model.n_virtual=6",
    "model.n_harmonics=3",
    "linear_clip.rank=4",
    "ridge.n_components=4",
    "ridge.lag_step=0.1",
    "train.batch_size=16",
    "train.max_epochs=1",
    "train.max_steps_per_epoch=3",
    "evaluate.n_permutations=99",
    "evaluate.n_bootstrap=99",
    "seeds=(1,)",
    "rows=('encoder', 'ridge')",
)


def tell(seconds: float, seed: int) -> pd.DataFrame:
    """Make up words: onset, duration, text, and the sentence (5 words and a pause)."""
    rng = np.random.default_rng(seed)
    rows, time, k = [], 0.25, 0
    while time < seconds - 0.6:
        duration = round(float(rng.uniform(0.2, 0.45)), 3)
        rows.append((time, duration, str(rng.choice(VOCABULARY)), k // 5))
        k += 1
        time = round(time + duration + (0.5 if k % 5 == 0 else 0.0), 3)
    return pd.DataFrame(rows, columns=["onset", "duration", "text", "sentence"])


def write_sound(path: Path, words: pd.DataFrame, seconds: float) -> None:
    """Write a wav whose words are tones, one pitch per word."""
    time = np.arange(round(seconds * AUDIO_SFREQ)) / AUDIO_SFREQ
    sound = 0.001 * np.random.default_rng(0).standard_normal(len(time))
    for onset, duration, text in zip(words["onset"], words["duration"], words["text"], strict=True):
        inside = (time >= onset) & (time < onset + duration)
        sound[inside] += 0.3 * np.sin(2 * np.pi * (200 + 90 * VOCABULARY.index(text)) * time[inside])
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, AUDIO_SFREQ)


def noise(n_channels: int, n_times: int, seed: int) -> np.ndarray:
    """EEG in V: nothing to be found in it."""
    return 1e-5 * np.random.default_rng(seed).standard_normal((n_channels, n_times))


def write_brainvision(path: Path, data: np.ndarray, sfreq: float, ch_names: list[str]) -> None:
    """Write a .vhdr with its .eeg and .vmrk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pybv.write_brainvision(data=data, sfreq=sfreq, ch_names=ch_names, fname_base=path.stem, folder_out=path.parent, overwrite=True)


def write_sidecar(path: Path, data: np.ndarray, sfreq: float) -> None:
    """Write *_eeg.json as mne-bids does: the duration is the time of the last sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"SamplingFrequency": sfreq, "RecordingDuration": (data.shape[1] - 1) / sfreq}))


# ------------------------------------------------------------------------------------------------------------------------- brennan2019

BRENNAN_NAMES = [*(str(k) for k in range(1, 62) if k != 29), "VEOG", "AUD"]
BRENNAN_SOUND = 24.0  # s
BRENNAN_SOUNDS = 4


def brennan_words() -> pd.DataFrame:
    """The columns of AliceChapterOne-EEG.csv that the reference reads, with TRUE where the word true stands."""
    parts = []
    for k in range(1, BRENNAN_SOUNDS + 1):
        words = tell(BRENNAN_SOUND, k)
        part = pd.DataFrame({"Word": words["text"].replace("true", "TRUE"), "Trigger": 1, "Segment": k, "onset": words["onset"]})
        part["offset"] = (words["onset"] + words["duration"]).round(3)
        parts.append(part.assign(Length=words["duration"], Sentence=10 * k + words["sentence"]))
    table = pd.concat(parts, ignore_index=True)
    # Order has gaps, as in the real table.
    table["Order"] = np.arange(1, len(table) + 1) + np.arange(len(table)) // 20
    table["Position"] = table.groupby("Sentence").cumcount() + 1
    return table


def brennan_starts(subject: int) -> list[float]:
    """When each sound begins in a recording; the first one of subject 26 began before."""
    first = -2.0 if subject == 26 else 1.0
    return [first + k * (BRENNAN_SOUND + 0.5) for k in range(BRENNAN_SOUNDS)]


def write_brennan_tables(root: Path, folder: str = "") -> None:
    """Write the word table and the proc files of subjects 1 and 26, whose labels are one too low."""
    source = root / folder
    (source / "proc").mkdir(parents=True, exist_ok=True)
    table = brennan_words()
    table.to_csv(source / "AliceChapterOne-EEG.csv", index=False)
    (source / "comprehension-scores.txt").write_text("SID   Score   Notes\nS01   6/8   use\nS26   6/8   use\nS49   6/8   exclude: noise\n")
    for subject in (1, 26):
        starts = brennan_starts(subject)
        if subject == 26:
            starts = starts[1:]  # the first trigger is not in the recording: what is called 1 is sound 2
        labelled = table[table["Segment"] <= len(starts)]
        onset = np.array([starts[k - 1] for k in labelled["Segment"]]) + labelled["onset"].to_numpy()
        sample = np.round(onset * 500) - 150
        trl = np.column_stack([sample, sample + 650, np.full(len(sample), -150), labelled[["Segment", "onset", "Order"]]]).astype(float)
        varnames = np.array(["segment", "tmin", "Order"], dtype=object)
        scipy.io.savemat(source / f"proc/S{subject:02d}.mat", {"proc": {"subject": f"S{subject:02d}", "trl": trl, "varnames": varnames}})


def brennan_eeg(subject: int) -> np.ndarray:
    """Samples that reach 2 s past the last sound."""
    return noise(len(BRENNAN_NAMES), round((brennan_starts(subject)[-1] + BRENNAN_SOUND + 2) * 500), subject)


def write_brennan_sounds(folder: Path) -> None:
    """Write the wavs."""
    for k in range(1, BRENNAN_SOUNDS + 1):
        write_sound(folder / f"DownTheRabbitHoleFinal_SoundFile{k}.wav", tell(BRENNAN_SOUND, k), BRENNAN_SOUND)


def write_brennan_bids(root: Path) -> Path:
    """Write NEMAR nm000180's form: subjects 001 and 026, and 028 without word times."""
    write_brennan_tables(root, "sourcedata")
    write_brennan_sounds(root / "stimuli")
    (root / "participants.tsv").write_text("\ufeffparticipant_id\tanalyzed\nsub-001\tyes\nsub-026\tyes\nsub-028\tno\n", encoding="utf-8")
    for subject in (1, 26):
        data = brennan_eeg(subject)
        stem = root / f"sub-{subject:03d}/eeg/sub-{subject:03d}_task-alicelistening_eeg"
        names = BRENNAN_NAMES if subject != 1 else [*BRENNAN_NAMES[:-1], "Aux5"]  # as in the real sub-001
        write_brainvision(stem.with_suffix(".vhdr"), data, 500.0, names)
        write_sidecar(stem.with_suffix(".json"), data, 500.0)
        write_brennan_events(root, subject)
    return root


def write_brennan_events(root: Path, subject: int) -> None:
    """Write events.tsv as NEMAR's builder does: from proc, joined on Order, onset = (start - offset) / 500."""
    table = brennan_words().set_index("Order")
    trl = scipy.io.loadmat(root / f"sourcedata/proc/S{subject:02d}.mat")["proc"]["trl"][0, 0]
    words = table.loc[trl[:, 5].astype(int)]
    events = pd.DataFrame({"onset": (trl[:, 0] - trl[:, 2]) / 500, "duration": words["Length"].to_numpy(), "trial_type": "word"})
    events["word"] = words["Word"].to_numpy()
    events["stim_file"] = [f"DownTheRabbitHoleFinal_SoundFile{k}.wav" for k in words["Segment"]]
    events["word_index"], events["sentence_id"] = words.index, words["Sentence"].to_numpy()
    events["segment"] = words["Segment"].to_numpy()
    path = root / f"sub-{subject:03d}/eeg/sub-{subject:03d}_task-alicelistening_events.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    events.to_csv(path, sep="\t", index=False, float_format="%.10g")


def write_brennan_deep_blue(root: Path) -> Path:
    """Write Deep Blue's first release: SNN.mat with the struct raw in microvolt; S26 has no AUD."""
    write_brennan_tables(root)
    write_brennan_sounds(root / "audio")
    for subject in (1, 26):
        data = brennan_eeg(subject) * 1e6
        names = BRENNAN_NAMES
        if subject == 26:
            data, names = data[:-1], names[:-1]
        trial, time = np.empty(1, dtype=object), np.empty(1, dtype=object)
        trial[0], time[0] = data, np.arange(data.shape[1]) / 500
        label = np.array(names, dtype=object)
        header = {"Fs": 500.0, "nChans": float(len(names)), "label": label[:, None]}
        scipy.io.savemat(
            root / f"S{subject:02d}.mat", {"raw": {"hdr": header, "label": label[:, None], "trial": trial, "time": time, "fsample": 500.0}}
        )
    return root


# ------------------------------------------------------------------------------------------------------------ ds004408, broderick2019

RUNS = (1, 2)
SEA_SOUND = 31.0  # s
SEA_EEG = 33.0


def sea_words(run: int) -> pd.DataFrame:
    """The words of a run of The Old Man and the Sea."""
    return tell(SEA_SOUND, 100 + run)


def write_ds004408(root: Path) -> Path:
    """Write the BIDS tree: channel A5 of sub-001 is bad in run 1."""
    names = mne.channels.make_standard_montage("biosemi128").ch_names
    for run in RUNS:
        write_sound(root / f"stimuli/audio{run:02d}.wav", sea_words(run), SEA_SOUND)
        write_sea_textgrid(root / f"stimuli/audio{run:02d}.TextGrid", sea_words(run))
        for subject in (1, 2):
            data = noise(len(names), round(SEA_EEG * 512), 10 * subject + run)
            stem = f"sub-{subject:03d}/eeg/sub-{subject:03d}_task-listening_run-{run:02d}_"
            write_brainvision(root / f"{stem}eeg.vhdr", data, 512.0, names)
            write_sidecar(root / f"{stem}eeg.json", data, 512.0)
            status = ["bad" if name == "A5" and (subject, run) == (1, 1) else "good" for name in names]
            table = pd.DataFrame({"name": names, "type": "EEG", "units": "V", "description": "ElectroEncephaloGram"})
            table = table.assign(sampling_frequency=512.0, status=status, status_description="n/a")
            table.to_csv(root / f"{stem}channels.tsv", sep="\t", index=False, encoding="utf-8-sig")
    (root / "participants.tsv").write_text("participant_id\tage\nsub-001\tn/a\nsub-002\tn/a\n", encoding="utf-8-sig")
    return root


def write_sea_textgrid(path: Path, words: pd.DataFrame) -> None:
    """Write words in capitals and two phonemes each, silences labelled as Prosodylab-Aligner does."""
    intervals, phonemes = [], []
    for onset, duration, text in zip(words["onset"], words["duration"], words["text"], strict=True):
        intervals.append(Interval(onset, round(onset + duration, 3), text.upper()))
        middle = round(onset + duration / 2, 3)
        phonemes += [Interval(onset, middle, "AH0"), Interval(middle, round(onset + duration, 3), "T")]
    grid = textgrid.Textgrid()
    for name, entries in (("phones", phonemes), ("words", intervals)):
        every, last = [], 0.0
        for entry in entries:
            if entry.start - last > 1e-6:
                every.append(Interval(last, entry.start, "sp" if last else "sil"))
            every.append(entry)
            last = entry.end
        grid.addTier(textgrid.IntervalTier(name, every, 0.0, SEA_SOUND))
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(str(path), format="long_textgrid", includeBlankSpaces=True)


def sea_text(run: int) -> str:
    """The text that was read, a full stop after every sentence."""
    words = sea_words(run)
    return " ".join(" ".join(own["text"]).capitalize() + "." for _, own in words.groupby("sentence"))


def write_broderick2019(root: Path) -> Path:
    """Write Dryad's tree and the private files: another aligner's times, and one word that it did not find."""
    for run in RUNS:
        words = sea_words(run)
        write_sound(root / f"private/audio{run}.wav", words, SEA_SOUND)
        entries: list[dict] = []
        for i, (onset, duration, text) in enumerate(zip(words["onset"], words["duration"], words["text"], strict=True)):
            if i == 7:
                entries.append({"case": "not-found-in-audio", "word": text})
                continue
            start, end = round(onset + 0.02, 3), round(onset + 0.02 + duration, 3)
            phones = [{"phone": "ah_B", "duration": round(duration / 2, 3)}, {"phone": "t_E", "duration": round(duration / 2, 3)}]
            entries.append({"case": "success", "word": text, "alignedWord": text, "start": start, "end": end, "phones": phones})
        (root / f"private/align{run}.json").write_text(json.dumps({"transcript": sea_text(run), "words": entries}))
        (root / f"private/oldman_run{run}.txt").write_text(sea_text(run))
        for subject in (1, 2):
            n_times = round(SEA_EEG * 128)
            content = {"eegData": 1e6 * noise(128, n_times, 50 * subject + run).T, "mastoids": 1e6 * noise(2, n_times, run).T, "fs": 128.0}
            path = root / f"EEG/Subject{subject}/Subject{subject}_Run{run}.mat"
            path.parent.mkdir(parents=True, exist_ok=True)
            scipy.io.savemat(path, content)
    return root
