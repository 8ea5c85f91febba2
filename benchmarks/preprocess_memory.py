"""Measure the peak memory of preprocess on a long recording on disk: `python benchmarks/preprocess_memory.py [--minutes 60]`.

Writes noise of 208 channels at 1000 Hz as .fif parts into a temporary folder (an hour is 3 GiB), preprocesses it in a process of its
own, and prints the peak resident memory of that process, also as a ratio to the raw in float64. Exits with 1 above 3 GiB.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

N_CHANNELS, SFREQ = 208, 1000.0
PART_MINUTES = 5.0
LIMIT_GIB = 3.0


def write_parts(folder: Path, minutes: float) -> None:
    """Write the recording in parts of five minutes: white noise of 1e-13 T on an offset of 1e-10 T."""
    import mne
    import numpy as np

    info = mne.create_info([f"MEG {n:03d}" for n in range(N_CHANNELS)], SFREQ, "mag")
    rng = np.random.default_rng(0)
    left, part = minutes, 0
    while left > 0:
        n_times = round(min(left, PART_MINUTES) * 60 * SFREQ)
        data = rng.standard_normal((N_CHANNELS, n_times)) * 1e-13 + 1e-10
        mne.io.RawArray(data, info, verbose="error").save(folder / f"part{part:02d}_raw.fif", buffer_size_sec=1.0, verbose="error")
        left, part = left - PART_MINUTES, part + 1


def measure(folder: Path, highpass: float | None) -> None:
    """Preprocess the parts as one recording and print shape, seconds and peak memory."""
    import mne

    from brainspeech.preprocess import PreprocessConfig, preprocess

    started = time.perf_counter()
    raws = [mne.io.read_raw_fif(path, verbose="error") for path in sorted(folder.glob("*_raw.fif"))]
    raw = mne.concatenate_raws(raws, verbose="error")
    signal = preprocess(raw, PreprocessConfig(highpass=highpass), uid="benchmark")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
    print(*signal.data.shape, time.perf_counter() - started, peak)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="length of the recording (default: 60)")
    parser.add_argument("--highpass", type=float, default=None, help="also filter, edge in Hz (default: no filter)")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.write:
        write_parts(arguments.write, arguments.minutes)
        return 0
    if arguments.measure:
        measure(arguments.measure, arguments.highpass)
        return 0
    with tempfile.TemporaryDirectory() as name:
        # A process inherits the peak of the one that starts it, so this one does nothing big itself.
        command = [sys.executable, __file__, "--minutes", str(arguments.minutes)]
        command += ["--highpass", str(arguments.highpass)] if arguments.highpass else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, "--write", name], check=True, env=environment)
        size = sum(path.stat().st_size for path in Path(name).iterdir()) / 2**30
        output = subprocess.run([*command, "--measure", name], check=True, capture_output=True, text=True, env=environment).stdout
    n_channels, n_times, seconds, peak = (float(word) for word in output.split())
    whole = N_CHANNELS * arguments.minutes * 60 * SFREQ * 8 / 2**30
    print(f"raw: {N_CHANNELS} channels x {arguments.minutes:g} min at {SFREQ:g} Hz, {size:.2f} GiB on disk, {whole:.2f} GiB in float64")
    print(f"signal: {n_channels:.0f} x {n_times:.0f}, made in {seconds:.1f} s")
    print(f"peak memory: {peak:.2f} GiB = {peak / whole:.2f} of the raw in float64 (limit {LIMIT_GIB:g} GiB)")
    return int(peak > LIMIT_GIB)


if __name__ == "__main__":
    sys.exit(main())
