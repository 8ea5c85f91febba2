"""How fast does a batch come out of memory, against epochs read by MNE, and does memory grow?

    python benchmarks/input.py       some two minutes, 4 GiB

Two recordings of 208 channels and ten minutes at 120 Hz, also as .fif; 512 segments of 3 s. The naive form reads one epoch per segment,
``mne.Epochs(raw, [[start, 0, 1]], ...)`` with its baseline, then scale and clamp in numpy, 256 for a batch, and has no target; a second one
makes the ``mne.Epochs`` of a recording once and reads one after the other. Ours is ``SegmentDataset.batch``, with a target of 40 features
(mel) and of 1024 (wav2vec 2.0). A training step, forward, backward and Adam of the paper's encoder in float32, is timed on 8 segments and
taken times 32. Each at one thread, and with freed memory kept, as in a fit. Exits with 1 if a figure is missed.
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

from brainspeech import memory, models  # noqa: E402
from brainspeech.batches import BatchConfig, SegmentDataset  # noqa: E402
from brainspeech.records import FeatureTrack, Segment, Signal, Span  # noqa: E402
from brainspeech.scaling import fit_statistics  # noqa: E402

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


class Naive:
    """Reads segments one by one through MNE, from .fif files that it writes."""

    def __init__(self, folder: Path, signals: dict[str, Signal], dataset: SegmentDataset):
        self.dataset, self.lag, self.raws, self.epochs, self.place = dataset, round(CONFIG.lag * SFREQ), {}, {}, {}
        self.starts = [int(np.floor(segment.onset * SFREQ + 0.5)) for segment in dataset.segments]
        for uid, signal in signals.items():
            path = folder / f"{uid}_raw.fif"
            info = mne.create_info(list(signal.ch_names), SFREQ, "mag")
            mne.io.RawArray(signal.data, info, verbose="error").save(path, verbose="error")
            self.raws[uid] = mne.io.read_raw_fif(path, preload=False, verbose="error")
            own = [i for i, segment in enumerate(dataset.segments) if segment.recording == uid]
            self.epochs[uid] = self.make_epochs(own)
            self.place |= {i: k for k, i in enumerate(own)}

    def make_epochs(self, rows: list[int]) -> mne.Epochs:
        events = np.array([[self.starts[i], 0, 1] for i in rows])
        raw = self.raws[self.dataset.segments[rows[0]].recording]
        times = {"tmin": 0.0, "tmax": DURATION - 1 / SFREQ, "baseline": (0, 0.5 - 1 / SFREQ)}
        return mne.Epochs(raw, events, **times, preload=False, reject_by_annotation=False, verbose="error")

    def finish(self, rows: list[int], windows: list[np.ndarray]) -> np.ndarray:
        found = []
        for i, window in zip(rows, windows, strict=True):
            scale = self.dataset.statistics.scales[self.dataset.segments[i].recording]
            scaled = (window[:, self.lag :] - np.array(scale.median)[:, None]) / np.array(scale.iqr)[:, None]
            found.append(np.clip(scaled, -CONFIG.clamp, CONFIG.clamp))
        return np.stack(found).astype(np.float32)

    def read(self, rows: list[int]) -> np.ndarray:
        """Make an ``mne.Epochs`` per segment; shape (B, C, T)."""
        return self.finish(rows, [self.make_epochs([i]).get_data(verbose="error")[0] for i in rows])

    def read_made(self, rows: list[int]) -> np.ndarray:
        """Read segment by segment from the ``mne.Epochs`` of the recordings."""
        uids = [self.dataset.segments[i].recording for i in rows]
        windows = [self.epochs[uid][self.place[i]].get_data(verbose="error")[0] for uid, i in zip(uids, rows, strict=True)]
        return self.finish(rows, windows)


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
    rows = np.random.default_rng(3).permutation(len(segments))[:BATCH].tolist()
    print(f"a batch of {BATCH}: {N_CHANNELS} channels x {DURATION:g} s, median of {arguments.repeats} turns ({bench.machine()}):")
    with tempfile.TemporaryDirectory() as name, memory.kept():
        naive = Naive(Path(name), signals, small)
        difference = float(np.abs(naive.read(rows) - small.batch(rows).signal.numpy()).max())
        step = make_step(large, 8)
        times = bench.take_turns(
            {
                "mne": lambda: lambda: naive.read(rows),
                "mne made": lambda: lambda: naive.read_made(rows),
                "mel": lambda: lambda: small.batch(rows),
                "wav2vec2": lambda: lambda: large.batch(rows),
                "step": lambda: step,
            },
            arguments.repeats,
        )
        sizes = growth(small, arguments.epochs)
    fine = bench.say("largest difference between the two, in IQRs", f"{difference:.1e}", difference < 1e-3, "less than 1e-3")
    fine &= bench.ratio("with a target of 40 features, against one mne.Epochs per segment", times["mne"], times["mel"], at_least=50)
    made = times["mne made"].processor / times["mel"].processor
    print(f"  the same, against one read per segment from an mne.Epochs per recording: {made:.1f} times")
    both = times["mne"].wall / times["wav2vec2"].wall
    print(f"  with a target of 1024 features, {BATCH * 1024 * large.n_times * 4 / MB:.0f} MiB, not in the naive form: {both:.1f} times")
    share = times["wav2vec2"].processor / (times["step"].processor * BATCH / 8)
    fine &= bench.say("with a target of 1024 features, of a training step", f"{share:.2%}", share < 0.02, "under 2 %")
    grown = (sizes[-1] - sizes[len(sizes) // 3]) / MB
    fine &= bench.say(f"memory grown over the last two thirds of {len(sizes)} passes", f"{grown:.1f} MiB", grown < 5, "less than 5 MiB")
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
