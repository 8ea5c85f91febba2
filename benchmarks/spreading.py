"""How much sooner are recordings preprocessed by several processes (``--n-jobs``) than by one?

    python benchmarks/spreading.py                    16 recordings of 10 minutes, 208 channels at 1000 Hz, two processes: some minutes
    python benchmarks/spreading.py --n-jobs 8 --recordings 64

All of ``load_signals`` is timed, the start of the processes included (some seconds, which short recordings do not earn back), with one
thread each and an empty cache every time. The recordings are read from one .fif on disk (in the system's memory by then). No figure is
wanted: it depends on the cores that are idle.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import bench

bench.one_thread()

import mne  # noqa: E402
import numpy as np  # noqa: E402

from brainspeech.cache import Cache  # noqa: E402
from brainspeech.preprocess import PreprocessConfig  # noqa: E402
from brainspeech.records import Recording  # noqa: E402
from brainspeech.signals import load_signals  # noqa: E402

N_CHANNELS, SFREQ = 208, 1000.0
CONFIG = PreprocessConfig(sfreq=120.0, highpass=0.5, lowpass=40.0)


class Files:
    """Recordings that all read one file."""

    def __init__(self, path: Path):
        self.path, self.notes = path, []

    def fingerprint(self, recording: Recording) -> str:
        return recording.uid

    def read_raw(self, recording: Recording) -> mne.io.BaseRaw:
        return mne.io.read_raw_fif(self.path, verbose="error")


def write(path: Path, minutes: float) -> None:
    """Write white noise of 1e-13 T."""
    data = np.random.default_rng(0).standard_normal((N_CHANNELS, round(minutes * 60 * SFREQ)), dtype=np.float32) * 1e-13
    info = mne.create_info([f"MEG {n:03d}" for n in range(N_CHANNELS)], SFREQ, "mag")
    mne.io.RawArray(data, info, verbose="error").save(path, verbose="error")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--n-jobs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "noise_raw.fif", arguments.minutes)
        dataset = Files(Path(folder) / "noise_raw.fif")
        recordings = [Recording("noise", f"{n:02d}") for n in range(arguments.recordings)]

        def seconds(n_jobs: int) -> float:
            with tempfile.TemporaryDirectory(dir=folder) as cache:
                start = time.perf_counter()
                load_signals(dataset, recordings, CONFIG, Cache(cache), progress=False, n_jobs=n_jobs)
                return time.perf_counter() - start

        for _ in range(arguments.repeats):
            one, several = seconds(1), seconds(arguments.n_jobs)
            ratios.append(one / several)
            print(f"  one process {one:.1f} s, {arguments.n_jobs} processes {several:.1f} s: {ratios[-1]:.2f} times", flush=True)
    print(
        f"{arguments.recordings} recordings of {arguments.minutes:g} min ({bench.machine()}): {statistics.median(ratios):.2f} times, median"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
