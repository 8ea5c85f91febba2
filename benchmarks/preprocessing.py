"""How fast is a recording resampled and filtered, against MNE's own functions, and how near to the truth?

    python benchmarks/preprocessing.py              10 minutes of 208 channels at 1000 Hz, to 120 Hz: some two minutes, 4 GiB
    python benchmarks/preprocessing.py --hours 1    an hour: some twenty minutes, 14 GiB

Naive forms: ``raw.resample(120, method="polyphase")``, and ``raw.filter(0.5, 40)`` before it, on a recording in memory. Ours is all of
``preprocess``, with its checks of every channel. Each at one thread. The errors are those of sums of sinusoids, whose samples at 120 Hz are
known: those below 50 Hz have to stay, those from 60 Hz on have to go; between them both filters have their slope, ours below 60 Hz, so
that nothing folds back, MNE's to either side. Last, two recordings in two processes against one in one. Exits with 1 if a figure is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import bench

bench.one_thread()

import mne  # noqa: E402
import numpy as np  # noqa: E402

from brainspeech.preprocess import PreprocessConfig, preprocess  # noqa: E402

N_CHANNELS, SFREQ, NEW = 208, 1000.0, 120.0
BAND = (0.5, 40.0)
PLAIN, BANDED = PreprocessConfig(sfreq=NEW), PreprocessConfig(sfreq=NEW, highpass=BAND[0], lowpass=BAND[1])


def make_raw(data: np.ndarray) -> mne.io.RawArray:
    """Wrap data, which are not copied."""
    return mne.io.RawArray(data, mne.create_info([f"MEG {n:03d}" for n in range(len(data))], SFREQ, "mag"), verbose="error")


def make_noise(minutes: float) -> np.ndarray:
    """White noise of 1e-13 T on an offset of 1e-10 T."""
    rng, n_times = np.random.default_rng(0), round(minutes * 60 * SFREQ)
    data = np.empty((N_CHANNELS, n_times))
    for row in data:
        row[:] = rng.standard_normal(n_times, dtype=np.float32) * np.float32(1e-13)
    data += 1e-10
    return data


def resampled(raw: mne.io.BaseRaw) -> np.ndarray:
    return raw.resample(NEW, method="polyphase", verbose="error").get_data()


def filtered(raw: mne.io.BaseRaw) -> np.ndarray:
    return resampled(raw.filter(*BAND, verbose="error"))


def errors(low: float, high: float, kept: bool, *, seconds: float = 60.0, n_tones: int = 40) -> list[float]:
    """RMS error of (MNE, ours), relative to the tones, of one channel per tone at frequencies from low to high; without and with a band."""
    rng = np.random.default_rng(1)
    frequency, phase = np.linspace(low, high, n_tones)[:, None], rng.uniform(0, 2 * np.pi, (n_tones, 1))

    def tones(sfreq: float) -> np.ndarray:
        return np.sin(2 * np.pi * frequency * np.arange(round(seconds * sfreq)) / sfreq + phase)

    truth, middle = tones(NEW) * kept, slice(round(8 * NEW), -round(8 * NEW))  # the band-pass reaches 3.3 s
    found = []
    for naive, config in ((resampled, PLAIN), (filtered, BANDED)):
        for result in (naive(make_raw(tones(SFREQ))), preprocess(make_raw(tones(SFREQ)), config).data.astype(float)):
            difference = (result - truth)[:, middle]
            found.append(float(np.sqrt(np.mean((difference - difference.mean(axis=1, keepdims=True)) ** 2) * 2)))
    return found


def compare_errors() -> bool:
    """Print both errors, band by band."""
    fine = True
    print("errors, relative to tones of that band (RMS):")
    for low, high, kept, banded in ((1.0, 50.0, True, False), (60.0, 499.0, False, True), (2.0, 38.0, True, True)):
        what = f"tones of {low:g} to {high:g} Hz that {'stay' if kept else 'go'}"
        naive, ours, naive_band, ours_band = errors(low, high, kept)
        fine &= bench.say(f"{what}, resampling", f"{ours:.1e} against {naive:.1e}", ours <= naive, "no larger")
        if banded:
            said = f"{ours_band:.1e} against {naive_band:.1e}"
            fine &= bench.say(f"{what}, band-pass and resampling", said, ours_band <= 1e-3, "below 1e-3")
    naive, ours, *_ = errors(50.5, 59.5, True)
    print(f"  tones of 50.5 to 59.5 Hz, in the slope of both: {ours:.1e} against {naive:.1e}, the price of having nothing fold back")
    return fine


def worker(pipe: Connection, minutes: float) -> None:
    """Preprocess one recording for every word that comes, and send the seconds for which it had a processor."""
    raw = make_raw(make_noise(minutes))
    pipe.send(0.0)
    while pipe.recv():
        start = time.process_time()
        preprocess(raw, BANDED)
        pipe.send(time.process_time() - start)


def compare_processes(minutes: float, repeats: int) -> bool:
    """Print how many times the work two processes do of one: by the wall clock, and if each had a processor of its own all the time.

    The second says whether the two are in each other's way (memory, caches), and not whether the machine is busy with something else.
    """
    context = multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(2):
        here, there = context.Pipe()
        process = context.Process(target=worker, args=(there, minutes), daemon=True)
        process.start()
        pipes.append((here, process))
        here.recv()

    def run(n: int) -> bench.Times:
        start = time.perf_counter()
        for pipe, _ in pipes[:n]:
            pipe.send(True)
        slowest = max(pipe.recv() for pipe, _ in pipes[:n])
        return bench.Times(time.perf_counter() - start, slowest)

    run(2)
    turns = [(run(1), run(2)) for _ in range(repeats)]
    for pipe, process in pipes:
        pipe.send(False)
        process.join()
    value, undisturbed = (median(2 * one[clock] / two[clock] for one, two in turns) for clock in range(2))
    found = f"{value:.2f} times one by the wall clock ({undisturbed:.2f} if each always had a core)"
    return bench.say("two recordings in two processes of one thread", found, value >= 1.7, "at least 1.7, on two idle cores")


def compare_files(data: np.ndarray, repeats: int) -> bool:
    """Print the ratios from a .fif on disk (in the system's memory by then), which MNE reads whole."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "noise_raw.fif"
        make_raw(data).save(path, verbose="error")

        def read(preload: bool) -> mne.io.BaseRaw:
            return mne.io.read_raw_fif(path, preload=preload, verbose="error")

        times = bench.take_turns(
            {"naive": lambda: lambda: resampled(read(True)), "ours": lambda: lambda: preprocess(read(False), PLAIN)}, repeats
        )
    return bench.ratio("reading a .fif and resampling", times["naive"], times["ours"], at_least=1.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1 / 6, help="length of the recording (default: 10 minutes)")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    minutes = arguments.hours * 60
    fine = compare_errors()
    fine &= compare_speed(minutes, arguments.repeats)
    fine &= compare_processes(min(minutes, 10), arguments.repeats)
    return int(not fine)


def compare_speed(minutes: float, repeats: int) -> bool:
    """Print the ratios of a recording in memory, and of a short one on disk."""
    data = make_noise(minutes)
    print(f"{N_CHANNELS} channels x {minutes:g} min, {SFREQ:g} -> {NEW:g} Hz, median of {repeats} turns ({bench.machine()}):")

    def on_copy() -> Callable[[], object]:
        raw = make_raw(data.copy())  # a filter works in place; its copy is not timed
        return lambda: filtered(raw)

    times = bench.take_turns(
        {
            "resample": lambda: lambda: resampled(make_raw(data)),
            "our resampling": lambda: lambda: preprocess(make_raw(data), PLAIN),
            "filter": on_copy,
            "our filter": lambda: lambda: preprocess(make_raw(data), BANDED),
        },
        repeats,
        warm=minutes <= 10,
    )
    fine = bench.ratio("resampling against raw.resample", times["resample"], times["our resampling"], at_least=4)
    fine &= bench.ratio("band-pass and resampling against raw.filter and raw.resample", times["filter"], times["our filter"], at_least=4)
    return fine & (compare_files(data, repeats) if minutes <= 10 else True)


if __name__ == "__main__":
    sys.exit(main())
