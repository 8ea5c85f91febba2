"""Measure what a contrastive loss needs with and without `chunk=`: `python benchmarks/losses_memory.py [--full]`.

Candidates in bfloat16 lie in a file that is mapped into memory. A process of its own computes the loss of some estimates against all of
them, forward and backward, and prints the peak of its own (anonymous) memory above what it had before; pages of the file are not counted,
since the system can drop them. ``--full`` is 256 estimates against 16,384 candidates of 1024 x 343, where the dense form's float32 copy
alone would be 23 GB: it is not made but computed. Without it estimates and features x times are a sixteenth of these, candidates an eighth.
Exits with 1 if chunks need more than a tenth.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import Peak

MB = 2**20


def measure(file: Path, shape: tuple[int, int, int, int], preset: str, chunk: int | None) -> None:
    """Print peak bytes, seconds and loss of one forward and backward pass."""
    import torch

    from brainspeech import losses

    n_estimates, n_candidates, n_features, n_times = shape
    size = n_candidates * n_features * n_times
    candidates = torch.from_file(str(file), size=size, dtype=torch.bfloat16).view(n_candidates, n_features, n_times)
    estimates = torch.randn(n_estimates, n_features, n_times, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = losses.build(preset, chunk=chunk)
    small = torch.randn((chunk or 4) + 1, 2, 3).requires_grad_()
    loss(small, small.detach()).loss.backward()  # the first backward pass through a chunk loads 100 MB of torch
    began = time.perf_counter()
    with Peak() as memory:
        value = loss(estimates, candidates).loss
        value.backward()
    print(memory.peak - memory.start, time.perf_counter() - began, value.item(), estimates.grad.abs().sum().item())


def write(file: Path, shape: tuple[int, int, int, int], *, sparse: bool) -> None:
    """Write candidates: noise, or a file with holes (zeros) where only memory is looked at."""
    import torch

    _, n_candidates, n_features, n_times = shape
    if sparse:
        with file.open("wb") as stream:
            stream.truncate(n_candidates * n_features * n_times * 2)
        return
    stored = torch.from_file(str(file), shared=True, size=n_candidates * n_features * n_times, dtype=torch.bfloat16)
    stored.normal_(generator=torch.Generator().manual_seed(1))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="clip", help="name of the loss (default: clip)")
    parser.add_argument("--estimates", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=2048)
    parser.add_argument("--features", type=int, default=128)
    parser.add_argument("--times", type=int, default=172)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--full", action="store_true", help="256 x 16384 of 1024 x 343 (an 11.5 GB file with holes; minutes)")
    parser.add_argument("--measure", nargs=2, metavar=("FILE", "CHUNK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    shape = (arguments.estimates, arguments.candidates, arguments.features, arguments.times)
    if arguments.measure:
        file, chunk = arguments.measure
        measure(Path(file), shape, arguments.preset, int(chunk) or None)
        return 0
    if arguments.full:
        shape = (256, 16384, 1024, 343)
    sizes = [word for pair in zip(("--estimates", "--candidates", "--features", "--times"), map(str, shape), strict=True) for word in pair]

    def run(file: Path, chunk: int) -> tuple[float, ...]:
        # A process inherits the peak of the one that starts it, so each form has one that has done nothing else.
        command = [sys.executable, __file__, *sizes, "--preset", arguments.preset, "--measure", str(file), str(chunk)]
        # glibc gives freed memory back at once above a size, at most 32 MB, that a chunk of the full form has; a small one has it by this.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        return tuple(float(word) for word in output.split())

    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "candidates.bf16"
        write(file, shape, sparse=arguments.full)
        chunked, seconds, value, gradient = run(file, arguments.chunk)
        if arguments.full:
            dense = 4.0 * shape[1] * shape[2] * shape[3]
            said = "its float32 copy of the candidates alone, computed"
        else:
            dense, dense_seconds, dense_value, dense_gradient = run(file, 0)
            change, gradient_change = abs(value - dense_value), abs(gradient / dense_gradient - 1)
            said = f"{dense_seconds:.1f} s; the loss differs by {change:.1e}, its gradient's size by a factor of 1 + {gradient_change:.1e}"
    print(f"{arguments.preset}: {shape[0]} estimates against {shape[1]} candidates of {shape[2]} x {shape[3]} in bfloat16")
    print(f"dense:      {dense / MB:10.1f} MB ({said})")
    print(f"chunk={arguments.chunk}:   {chunked / MB:10.1f} MB ({seconds:.1f} s)")
    print(f"chunks need {chunked / dense:.3f} of the dense form's memory (limit 0.1)")
    return int(chunked > dense / 10)


if __name__ == "__main__":
    sys.exit(main())
