"""Measure a training step of the paper's encoder on a CPU: `python benchmarks/training_step.py`.

One step is forward, backward and Adam on B = 64 segments of 208 channels and 361 samples, F = 1024, the gradient of the estimates given
(no loss). It is timed against

- matrix products of the same number of floating-point operations, in float32: (B x T, 960) @ (960, 320), the shape of one of the encoder's
  convolutions. Operations that are counted are two per multiply-add of the convolutions, of spatial attention applied to the signal and of
  the subject layer; twice as many backward, but no gradient of the signal itself. Norms, activations, Adam and the position embedding are
  not counted;
- the same encoder written plainly from its description: nn.Conv1d, spatial attention for each segment;
- both in bfloat16 under autocast.

All forms take turns, and medians over the repeats are compared. Freed memory is kept for the next step, as in a fit
(``brainspeech.memory``), for all forms alike; ``--give-back`` leaves it to the C library. Times are by the clock; ``--clock cpu`` takes the
processor time of all threads instead, which other work on the machine changes less. Then a process of its own for each precision measures
memory: the peak of anonymous memory over three steps above that of weights, gradients, Adam's moments and the batch.

Exits with 1 if a target is missed: 0.8 of the rate of matrix products in float32, bfloat16 1.9 times faster (only where the processor
multiplies bfloat16), 2.5 and 1.5 GB, spatial attention once per distinct layout and nowhere an embedding of each segment's channels.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from losses_memory import Peak
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from brainspeech import memory, models

GB = 10**9


class Naive(nn.Module):
    """The paper's encoder from its description (Défossez et al. 2023, Methods), nothing shared between segments."""

    def __init__(self, n_subjects: int, n_features: int, n_virtual: int = 270, hidden: int = 320, depth: int = 10):
        super().__init__()
        self.heads = nn.Parameter(torch.randn(n_virtual, 2048) / math.sqrt(2048))
        self.initial = nn.Conv1d(n_virtual, n_virtual, 1)
        self.subjects = nn.Parameter(torch.randn(n_subjects, n_virtual, n_virtual) / math.sqrt(n_virtual))
        self.convs, self.norms, self.gates = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for k in range(depth):
            dilation = 2 ** (k % 5)
            self.convs.append(nn.Conv1d(n_virtual if k == 0 else hidden, hidden, 3, dilation=dilation, padding=dilation))
            self.norms.append(nn.BatchNorm1d(hidden))
            if k % 2:
                self.gates.append(nn.Conv1d(hidden, 2 * hidden, 3, padding=1))
        self.first, self.last = nn.Conv1d(hidden, 2 * hidden, 1), nn.Conv1d(2 * hidden, n_features, 1)

    def forward(self, signal: Tensor, positions: Tensor, subject: Tensor) -> Tensor:
        k = torch.arange(32, dtype=torch.float32)
        x, y = (positions[..., 0] + 0.2)[..., None, None], (positions[..., 1] + 0.2)[..., None, None]
        phase = (2 * math.pi * (k[:, None] * x + k * y) / 1.4).flatten(2)  # (B, C, 1024)
        embedding = torch.cat([phase.cos(), phase.sin()], 2)  # (B, C, 2048)
        scores = torch.einsum("ve,bce->bvc", self.heads, embedding)
        if self.training:
            dropped = (positions - torch.rand(2)).norm(dim=2) <= 0.2
            scores = scores.masked_fill(dropped[:, None], -torch.inf)
        hidden = self.initial(torch.einsum("bvc,bct->bvt", scores.softmax(2), signal))
        hidden = torch.einsum("bio,bit->bot", self.subjects[subject], hidden)
        for k, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            new = functional.gelu(norm(conv(hidden)))
            hidden = new if k == 0 else new + hidden
            if k % 2:
                hidden = functional.glu(self.gates[k // 2](hidden), dim=1)
        return self.last(functional.gelu(self.first(hidden)))

    def copy_from(self, encoder: nn.Module) -> None:
        """Take the weights of the package's encoder."""
        parts = [encoder.spatial_attention.heads, *encoder.initial.parameters(), encoder.subject_layer.weight]
        for what in ("conv", "norm", "glu"):
            parts += [p for block in encoder.blocks if getattr(block, what) is not None for p in getattr(block, what).parameters()]
        parts += encoder.head.parameters()
        mine = [self.heads, *self.initial.parameters(), self.subjects]
        mine += [p for part in (self.convs, self.norms, self.gates, self.first, self.last) for p in part.parameters()]
        with torch.no_grad():
            for own, other in zip(mine, parts, strict=True):
                own.copy_(other)


def make_batch(arguments: argparse.Namespace, n_segments: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Give signal, positions (one layout), subject, and the gradient of the estimates."""
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(n_segments, arguments.channels, arguments.times, generator=generator)
    positions = torch.rand(1, arguments.channels, 2, generator=generator).repeat(n_segments, 1, 1)
    gradient = torch.randn(n_segments, arguments.features, arguments.times, generator=generator) / signal.numel()
    return signal, positions, torch.arange(n_segments) % arguments.subjects, gradient


def make_step(model: nn.Module, *, half: bool) -> Callable[..., None]:
    """Make a function that takes one training step."""
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-4)

    def step(signal: Tensor, positions: Tensor, subject: Tensor, gradient: Tensor) -> None:
        optimiser.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            estimates = model(signal, positions, subject)
        estimates.float().backward(gradient)
        optimiser.step()

    return step


def count_operations(encoder: nn.Module, arguments: argparse.Namespace) -> tuple[float, float]:
    """Count floating-point operations of one segment, forward and forward + backward."""
    n_virtual = encoder.initial.out_channels
    n_weights = sum(m.weight.numel() for m in encoder.modules() if isinstance(m, nn.Conv1d)) + n_virtual**2
    attention = 2 * n_virtual * arguments.channels * arguments.times
    rest = 2 * n_weights * arguments.times
    return attention + rest, 2 * attention + 3 * rest


def make_products(n_operations: float, arguments: argparse.Namespace, dtype: torch.dtype) -> Callable[[], None]:
    """Make a function that multiplies matrices with as many operations."""
    left = torch.randn(arguments.batch * arguments.times, 960).to(dtype)
    right = torch.randn(960, 320).to(dtype)
    n_products = round(n_operations / (2 * left.numel() * 320))

    def multiply() -> None:
        for _ in range(n_products):
            left @ right

    return multiply


class Watch(TorchDispatchMode):
    """Note the largest tensor of position embeddings (its last dimension is n_embedding) that is made."""

    def __init__(self, n_embedding: int):
        super().__init__()
        self.n_embedding, self.n_positions = n_embedding, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.ndim and result.shape[-1] == self.n_embedding:
            self.n_positions = max(self.n_positions, result.numel() // self.n_embedding)
        return result


def check_attention(arguments: argparse.Namespace) -> bool:
    """Say for how many layouts spatial attention is computed in batches of one and of three layouts, and how many positions it embeds."""
    encoder = models.build("conv", n_subjects=arguments.subjects, n_features=2, hidden=4, depth=1)
    attention, signal = encoder.spatial_attention, torch.randn(arguments.batch, arguments.channels, 3)
    good = True
    for n_layouts in (1, 3):
        layouts = torch.rand(n_layouts, arguments.channels, 2)
        positions = layouts[torch.arange(arguments.batch) % n_layouts]
        n_attended = len(attention.find_layouts(positions, None)[0])
        with Watch(attention.heads.shape[1]) as watch:
            attention(signal, positions)
        print(
            f"spatial attention: {arguments.batch} segments of {n_layouts} layout(s): computed for {n_attended}, "
            f"{watch.n_positions} positions embedded at most ({arguments.batch * arguments.channels} channels in the batch)"
        )
        good &= n_attended == n_layouts and watch.n_positions <= max(len(attention.heads), n_layouts * arguments.channels)
    return good


def measure_memory(arguments: argparse.Namespace, *, half: bool) -> None:
    """Print the peak of a step above weights, gradients, moments and the batch, in bytes."""
    torch.manual_seed(0)
    step = make_step(models.build("conv", n_subjects=arguments.subjects, n_features=arguments.features).train(), half=half)
    batch = make_batch(arguments, arguments.batch)
    step(*make_batch(arguments, 2))  # makes gradients and moments, and loads what torch loads late
    with freed_memory(arguments), Peak() as peak:
        for _ in range(3):
            step(*batch)
    print(peak.peak - peak.start)


def spawn_memory(precision: str) -> float:
    """Measure in a process that has done nothing else."""
    command = [sys.executable, __file__, *sys.argv[1:], "--memory-of", precision]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def freed_memory(arguments: argparse.Namespace) -> AbstractContextManager[bool]:
    """Keep freed memory, or leave it to the C library."""
    return nullcontext(False) if arguments.give_back else memory.kept()


def units() -> str:
    """Name what the processor multiplies bfloat16 with (Linux); empty for nothing."""
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.is_file() else set()
    return " ".join(sorted(flags & {"amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16"}))


def compare(arguments: argparse.Namespace) -> dict[str, float]:
    """Let all forms take turns; give median seconds of each."""
    torch.manual_seed(0)
    encoder = models.build("conv", n_subjects=arguments.subjects, n_features=arguments.features)
    naive = Naive(arguments.subjects, arguments.features)
    naive.copy_from(encoder)
    with torch.no_grad():
        few = make_batch(arguments, 4)[:3]
        expected, got = naive.eval()(*few), encoder.eval()(*few)
    print(f"encoder and plain form differ by {float((got - expected).norm() / expected.norm()):.1e} of the estimates' norm")
    forward, both = count_operations(encoder, arguments)
    print(f"counted: {forward / 1e9:.2f} GFLOP forward, {both / 1e9:.2f} GFLOP forward + backward per segment")
    batch = make_batch(arguments, arguments.batch)
    tasks: dict[str, Callable[[], None]] = {}
    for name, half in (("fp32", False), ("bf16", True)):
        multiply = make_products(both * arguments.batch, arguments, torch.bfloat16 if half else torch.float32)
        encoder_step, naive_step = make_step(encoder.train(), half=half), make_step(naive.train(), half=half)
        tasks[f"products {name}"] = multiply
        tasks[f"encoder {name}"] = lambda step=encoder_step: step(*batch)
        tasks[f"plain {name}"] = lambda step=naive_step: step(*batch)
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    with freed_memory(arguments) as keeps:
        print(f"freed memory is {'kept' if keeps else 'left to the C library'}")
        for repeat in range(arguments.repeats + 1):  # the first round warms up
            for name, task in tasks.items():
                began = clock()
                task()
                if repeat:
                    seconds[name].append(clock() - began)
    for name, values in seconds.items():
        median = statistics.median(values)
        rate = both * arguments.batch / median / 1e9
        print(f"{name:14s} {median:8.3f} s (from {min(values):.3f} to {max(values):.3f})  {rate:7.1f} GFLOP/s")
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (("batch", 64), ("channels", 208), ("times", 361), ("features", 1024), ("subjects", 27), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, help="default: as many as torch takes")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--give-back", action="store_true", help="do not keep freed memory")
    parser.add_argument("--memory-of", choices=("fp32", "bf16"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        measure_memory(arguments, half=arguments.memory_of == "bf16")
        return 0
    bf16 = units()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, {arguments.clock} clock")
    print(f"bfloat16 units of the processor: {bf16 or 'none'}")
    took = compare(arguments)
    share, faster = took["products fp32"] / took["encoder fp32"], took["encoder fp32"] / took["encoder bf16"]
    results = [
        ("share of the rate of matrix products, fp32", share, "at least 0.8", share >= 0.8),
        ("bf16 against fp32, times faster", faster, "at least 1.9" if bf16 else "no target here", faster >= 1.9 or not bf16),
        ("plain form against encoder, fp32", took["plain fp32"] / took["encoder fp32"], "", True),
        ("plain form against encoder, bf16", took["plain bf16"] / took["encoder bf16"], "", True),
        ("share of the rate of bf16 products, bf16", took["products bf16"] / took["encoder bf16"], "", True),
    ]
    for precision, limit in (("fp32", 2.5), ("bf16", 1.5)):
        peak = spawn_memory(precision) / GB
        results.append((f"memory over the model, {precision}, GB", peak, f"under {limit}", peak < limit))
    for what, value, target, good in results:
        print(f"{what}: {value:.2f}" + (f" ({target}: {'reached' if good else 'MISSED'})" if target else ""))
    return int(not (check_attention(arguments) and all(good for *_, good in results)))


if __name__ == "__main__":
    sys.exit(main())
