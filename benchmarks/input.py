"""How fast does a batch come out of memory, against epochs read by MNE, and does memory grow?

    python benchmarks/input.py       some two minutes, 4 GiB

Two recordings of 208 channels and ten minutes at 120 Hz, also as .fif; 512 segments of 3 s. The naive form reads one epoch per segment with
``mne.Epochs`` (baseline there, scale and clamp in numpy), 256 for a batch, and has no target. Ours is ``SegmentDataset.batch``, with a
target of 40 features (mel) and of 1024 (wav2vec 2.0). A training step, forward, backward and Adam of the paper's encoder in float32, is
timed on 8 segments and taken times 32. Each at one thread. Exits with 1 if a figure is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import bench

bench.one_thread()

import mne  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from brainspeech import models  # noqa: E402
from brainspeech.batches import BatchConfig, SegmentDataset, fit_statistics  # noqa: E402
from brainspeech.records import FeatureTrack, Segment, Signal, Span  # noqa: E402

N_CHANNELS, SFREQ, SECONDS, DURATION, BATCH = 208, 120.0, 600.0, 3.0, 256
CONFIG = BatchConfig(lag=0.150, baseline=0.5, clamp=20.0)
MB = 2**20


def make_signal(uid: str, seed: int) -> Signal:
    rng = np.random.default_rng(seed)
    data = (rng.standard_normal((N_CHANNELS, round(SECONDS * SFREQ))) * 1e-13).astype(np.float32)
    names = tuple(f"MEG {n:03d}" for n in range(N_CHANNELS))
    return Signal(uid, data, SFREQ, names, ("mag",) * N_CHANNELS, rng.random((N_CHANNELS, 2)).astype(np.float32))


def make_segments(uids: list[str], n: int) -> list[Segment]:
    rng = np.random.default_rng(5)
    onsets = np.sort(rng.uniform(1, SECONDS - DURATION - 1, n)).round(3).tolist()
    return [
        Segment(uid, uid, onset, DURATION, f"a@{onset}", "block", "", "", "train", (Span("a", 0.0, SECONDS, -onset),))
        for onset, uid in zip(onsets, uids * n, strict=False)
    ]


def make_dataset(signals: dict[str, Signal], segments: list[Segment], n_features: int) -> SegmentDataset:
    values = np.random.default_rng(9).standard_normal((n_features, round(SECONDS * 50)), dtype=np.float32)
    track = FeatureTrack("noise", "a", 0.0, SECONDS, values, 50.0)
    tracks = {track.key: track}
    statistics = fit_statistics(segments, signals, tracks, config=CONFIG, fill=0.0)
    return SegmentDataset(segments, signals, tracks, config=CONFIG, statistics=statistics, subjects=list(signals), fill=0.0)


def read_by_mne(folder: Path, signals: dict[str, Signal], dataset: SegmentDataset) -> Callable[[np.ndarray], np.ndarray]:
    """Write the signals as .fif, and make the function that reads segments one by one; shape (B, C, T)."""
    lag, epochs, place = round(CONFIG.lag * SFREQ), {}, {}
    for uid, signal in signals.items():
        path = folder / f"{signal.uid}_raw.fif"
        info = mne.create_info(list(signal.ch_names), SFREQ, "mag")
        mne.io.RawArray(signal.data, info, verbose="error").save(path, verbose="error")
        raw = mne.io.read_raw_fif(path, preload=False, verbose="error")
        own = [i for i, segment in enumerate(dataset.segments) if segment.recording == uid]
        starts = [int(np.floor(dataset.segments[i].onset * SFREQ + 0.5)) for i in own]
        events = np.array([[start, 0, 1] for start in starts])
        tmax = DURATION - 1 / SFREQ
        epochs[uid] = mne.Epochs(
            raw, events, tmin=0.0, tmax=tmax, baseline=(0, 0.5 - 1 / SFREQ), preload=False, reject_by_annotation=False, verbose="error"
        )
        place |= {i: k for k, i in enumerate(own)}
    scales = {uid: np.array([[s.median], [s.iqr]])[..., None] for uid, s in dataset.statistics.scales.items()}

    def read(rows: np.ndarray) -> np.ndarray:
        windows = []
        for i in rows.tolist():
            uid = dataset.segments[i].recording
            window = epochs[uid][place[i]].get_data(verbose="error")[0][:, lag:]
            median, iqr = scales[uid][:, 0]
            windows.append(np.clip((window - median) / iqr, -CONFIG.clamp, CONFIG.clamp))
        return np.stack(windows).astype(np.float32)

    return read


def make_step(dataset: SegmentDataset, n: int) -> Callable[[], object]:
    """A training step of the paper's encoder on n segments, with the loss left out: the gradient of the estimates is given."""
    encoder = models.build("conv", n_subjects=2, n_features=1024)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=3e-4)
    batch = dataset.batch(np.arange(n))

    def step() -> None:
        optimiser.zero_grad()
        estimates = encoder(batch.signal, batch.positions, batch.subject, channel_mask=batch.channel_mask)
        estimates.backward(torch.ones_like(estimates))
        optimiser.step()

    return step


def growth(dataset: SegmentDataset, n_epochs: int) -> list[int]:
    """Give the memory of this process after each pass over all segments."""
    rng, sizes = np.random.default_rng(0), []
    for _ in range(n_epochs):
        for rows in np.array_split(rng.permutation(len(dataset)), len(dataset) // BATCH):
            dataset.batch(rows)
        sizes.append(bench.anonymous())
    return sizes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30, help="passes over the data to watch memory in")
    arguments = parser.parse_args()
    signals = {uid: make_signal(uid, seed) for seed, uid in enumerate(("first", "second"))}
    segments = make_segments(list(signals), 512)
    small, large = make_dataset(signals, segments, 40), make_dataset(signals, segments, 1024)
    rows = np.random.default_rng(3).permutation(len(segments))[:BATCH]
    print(f"a batch of {BATCH}: {N_CHANNELS} channels x {DURATION:g} s, median of {arguments.repeats} turns ({bench.machine()}):")
    with tempfile.TemporaryDirectory() as name:
        read = read_by_mne(Path(name), signals, small)
        difference = float(np.abs(read(rows) - small.batch(rows).signal.numpy()).max())
        step = make_step(large, 8)
        times = bench.take_turns(
            {
                "mne": lambda: lambda: read(rows),
                "mel": lambda: lambda: small.batch(rows),
                "wav2vec2": lambda: lambda: large.batch(rows),
                "step": lambda: step,
            },
            arguments.repeats,
        )
    fine = bench.say("largest difference between the two, in IQRs", f"{difference:.1e}", difference < 1e-3, "less than 1e-3")
    fine &= bench.ratio("with a target of 40 features, against one epoch read per segment", times["mne"], times["mel"], at_least=50)
    both = times["mne"].wall / times["wav2vec2"].wall
    print(f"  with a target of 1024 features, {BATCH * 1024 * large.n_times * 4 / MB:.0f} MiB, not in the naive form: {both:.1f} times")
    share = times["wav2vec2"].processor / (times["step"].processor * BATCH / 8)
    fine &= bench.say("with a target of 1024 features, of a training step", f"{share:.2%}", share < 0.02, "under 2 %")
    sizes = growth(small, arguments.epochs)
    grown = (sizes[-1] - sizes[len(sizes) // 3]) / MB
    fine &= bench.say(f"memory grown over the last two thirds of {len(sizes)} passes", f"{grown:.1f} MiB", grown < 5, "less than 5 MiB")
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
