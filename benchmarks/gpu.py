"""Time training on a GPU: `python benchmarks/gpu.py [--quick]`.

A simulated set of the size of Gwilliams et al. 2022 (27 subjects, 208 channels, 56 h at 120 Hz; 1024 features at 50 Hz), batches of 256,
the encoder of Défossez et al. 2023. Every recording's numbers are those of one random hour, so that 20 GB on the device are 0.4 GB here.
Each way of training is a fit by ``brainspeech.train``: an epoch to warm up, then one that is timed, with its validation on two batches. The
plain form is a loop as PyTorch's tutorials have it, with a Dataset, a DataLoader and a look at each loss, the same encoder and precision.
The ways take turns for ``--rounds`` rounds; the medians are printed.

The share is that of the rate at which this device multiplies two square matrices in the same precision, counting what torch's flop counter
counts (matrix products and convolutions) forward and backward. An epoch is 1200 steps. Without a GPU there is only ``--quick``: small
numbers, to see that it works.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from brainspeech import losses, models, train
from brainspeech.batches import BatchConfig, SegmentDataset
from brainspeech.records import FeatureTrack, Segment, Signal, Span
from brainspeech.scaling import Scale, Statistics

STEPS_OF_AN_EPOCH = 1200
WINDOW = 3.0


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    n_subjects: int = 27
    n_channels: int = 208
    hours: float = 56.0
    n_features: int = 1024
    batch_size: int = 256
    n_steps: int = 60
    encoder: tuple[tuple[str, Any], ...] = ()
    n_matrix: int = 8192


QUICK = Size(2, 6, 0.2, 8, 16, 3, (("n_virtual", 8), ("hidden", 8), ("depth", 2), ("n_harmonics", 3)), 256)

# name -> (changes of the configuration, the plain form that it stands beside)
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "fp32 resident": ({"precision": "fp32", "tf32": False}, "fp32"),
    "tf32 resident": ({"precision": "fp32", "tf32": True}, "tf32"),
    "bf16 resident": ({"precision": "bf16"}, "bf16"),
    "bf16 resident compiled": ({"precision": "bf16", "compile": True}, "bf16"),
    "bf16 resident in half": ({"precision": "bf16", "resident": "half"}, "bf16"),
    "bf16 prefetched": ({"precision": "bf16", "resident": "never"}, "bf16"),
}


def make_data(size: Size, sfreq: float = 120.0) -> tuple[SegmentDataset, SegmentDataset]:
    """Simulate training and validation segments: noise, since nothing depends on what is in it."""
    rng = np.random.default_rng(0)
    n_recordings = 2 * size.n_subjects
    seconds = size.hours * 3600 / n_recordings
    data = rng.standard_normal((size.n_channels, round(seconds * sfreq)), dtype=np.float32)
    names = tuple(f"M{c}" for c in range(size.n_channels))
    positions = rng.random((size.n_channels, 2), dtype=np.float32)
    signals, segments, tracks = {}, [], {}
    for story in range(2):
        frames = rng.standard_normal((size.n_features, round(seconds * 50)), dtype=np.float32)
        track = FeatureTrack("noise", f"story-{story}", 0.0, seconds, frames, 50.0)
        tracks[track.key] = track
    for r in range(n_recordings):
        subject, uid = f"d/sub-{r // 2}", f"d/sub-{r // 2}/run-{r % 2}"
        signals[uid] = Signal(uid, data, sfreq, names, ("mag",) * size.n_channels, positions)
        for onset in np.arange(0.0, seconds - WINDOW, 1.5).tolist():
            span = (Span(f"story-{r % 2}", 0.0, seconds, -onset),)
            segments.append(Segment(uid, subject, onset, WINDOW, f"{r % 2}@{onset:g}", "train", "", "", "train", span))
    config = BatchConfig()
    scale = Scale(names, (0.0,) * size.n_channels, (1.35,) * size.n_channels)
    fitted = Statistics(dict.fromkeys(signals, scale), 0.0, 1.0, config.baseline)
    subjects = sorted({s.subject for s in segments})
    whole = SegmentDataset(segments, signals, tracks, config=config, statistics=fitted, subjects=subjects, fill=0.0)
    return whole, whole.subset(range(2 * size.batch_size))


def build(dataset: SegmentDataset, size: Size) -> nn.Module:
    """Build the encoder."""
    torch.manual_seed(0)
    return models.build("conv", n_subjects=len(dataset.subjects), n_features=dataset.n_features, **dict(size.encoder))


def time_fit(data: tuple[SegmentDataset, SegmentDataset], size: Size, changes: dict[str, Any]) -> tuple[float, str]:
    """Give the seconds of a step, from the second epoch of a fit, and where the data were."""
    steps = min(size.n_steps, len(data[0]) // size.batch_size)
    config = train.TrainConfig(batch_size=size.batch_size, max_epochs=2, max_steps_per_epoch=steps)
    config = replace(config, **({"resident": "full"} | changes))
    fitted = train.fit(build(data[0], size), losses.build("clip"), *data, config, progress=False)
    return fitted.history[1]["seconds"] / (fitted.history[1]["step"] - fitted.history[0]["step"]), fitted.placed


class Plain(Dataset):
    """One segment at a time, as a Dataset of PyTorch's gives them."""

    def __init__(self, dataset: SegmentDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        batch = self.dataset.batch([i])
        return batch.signal[0], batch.positions[0], batch.channel_mask[0], batch.subject[0], batch.target[0]


def time_plain(dataset: SegmentDataset, size: Size, precision: str, device: torch.device) -> float:
    """Give the seconds of a step of the plain loop."""
    steps = min(size.n_steps, len(dataset) // size.batch_size)
    n_workers = 0 if device.type == "cpu" else min(16, os.cpu_count() or 1)
    chosen = torch.randperm(len(dataset))[: 2 * steps * size.batch_size].tolist()
    loader = DataLoader(
        torch.utils.data.Subset(Plain(dataset), chosen),
        size.batch_size,
        num_workers=n_workers,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    encoder = build(dataset, size).to(device)
    optimiser = torch.optim.Adam(encoder.parameters(), lr=3e-4)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    seen, began, count = [], 0.0, 0
    for signal, positions, mask, subject, target in loader:
        if count == min(10, steps // 2):  # warm by now
            began, warm = time.perf_counter(), count
        signal, positions, mask, subject, target = (x.to(device) for x in (signal, positions, mask, subject, target))
        optimiser.zero_grad()
        with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
            estimate = encoder(signal, positions, subject, channel_mask=mask)
        x, y = estimate.float().flatten(1), target.flatten(1)
        loss = nn.functional.cross_entropy(x @ (y / y.norm(dim=1, keepdim=True)).T, torch.arange(len(x), device=device))
        loss.backward()
        optimiser.step()
        seen.append(loss.item())
        count += 1
    return (time.perf_counter() - began) / (count - warm)


def matmul_rate(n: int, precision: str, device: torch.device) -> float:
    """Measure how many floating-point operations per second two square matrices take."""
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    seconds = []
    for _ in range(12):
        wait()
        began = time.perf_counter()
        a @ b
        wait()
        seconds.append(time.perf_counter() - began)
    torch.backends.cuda.matmul.allow_tf32 = False
    return 2 * n**3 / statistics.median(seconds[2:])


def count_flops(dataset: SegmentDataset, size: Size) -> float:
    """Count the operations of a segment, forward and backward."""
    batch = dataset.batch(range(4))
    encoder = build(dataset, size)
    with FlopCounterMode(display=False) as counter:
        encoder(batch.signal, batch.positions, batch.subject, channel_mask=batch.channel_mask).square().mean().backward()
    return counter.get_total_flops() / 4


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small numbers, also on a CPU")
    parser.add_argument("--rounds", type=int, default=3, help="how often the ways take turns (default: %(default)s)")
    parser.add_argument("--ways", default=",".join(WAYS), help="which ways, commas between them (default: %(default)s)")
    arguments = parser.parse_args()
    ways = arguments.ways.split(",")
    unknown = [way for way in ways if way not in WAYS]
    if unknown:
        print(f"Unknown: {'; '.join(unknown)}. There are: {'; '.join(WAYS)}.", file=sys.stderr)
        return 2
    if not torch.cuda.is_available() and not arguments.quick:
        print("There is no GPU here, and this times one. --quick shows on a CPU that it works.", file=sys.stderr)
        return 1
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = QUICK if arguments.quick else Size()
    print(f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}")
    data = make_data(size)
    flops = count_flops(data[0], size)
    n_bytes = sum(data[0].n_bytes) / 1e9
    print(
        f"{size.n_subjects} subjects, {size.n_channels} channels, {size.hours:g} h; batches of {size.batch_size}; {n_bytes:.2f} GB in fp32;"
    )
    print(f"{flops / 1e9:.3g} GFLOP per segment, forward and backward")
    precisions = sorted({WAYS[way][1] for way in ways})
    rates = {precision: matmul_rate(size.n_matrix, precision, device) for precision in precisions}
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for precision in precisions:
            seconds.setdefault(f"plain loop, {precision}", []).append(time_plain(data[0], size, precision, device))
        for way in ways:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            step, placed = time_fit(data, size, WAYS[way][0])
            if way not in seconds:
                print(f"{way}: {placed}")
            seconds.setdefault(way, []).append(step)
            peaks[way] = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan")
    print(f"{'':<28}{'segments/s':>12}{'ms/step':>10}{'min/epoch':>11}{'of matmul':>11}{'of plain':>10}{'peak GB':>9}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, step in medians.items():
        precision = WAYS[name][1] if name in WAYS else name.rsplit(" ", 1)[1]
        share = flops * size.batch_size / step / rates[precision]
        ratio = medians[f"plain loop, {precision}"] / step
        print(
            f"{name:<28}{size.batch_size / step:>12.1f}{1e3 * step:>10.1f}{step * STEPS_OF_AN_EPOCH / 60:>11.2f}"
            f"{share:>11.1%}{ratio:>9.2f}x{peaks.get(name, float('nan')):>9.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
