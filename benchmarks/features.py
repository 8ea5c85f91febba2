"""How often is a feature computed when many recordings hear the same stimuli?

    python benchmarks/features.py       a minute or two

27 recordings of the same four stories, each story cut into blocks, windows all over them. Ours is ``features.compute_tracks`` on the
intervals of all windows; the naive form computes the blocks of each recording for itself. Counted are the sounds that the feature is asked
for; the tracks have to be equal, and a second call, or more recordings, has to compute nothing. Exits with 1 if that is not so.

Then, what bfloat16 does to wav2vec2: error of the hidden states and time against float32. The network is the untrained twin of XLSR-53, so
that nothing is downloaded; trained weights say their own error when they are used.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time

import bench

bench.one_thread()

import numpy as np  # noqa: E402

from brainspeech import features  # noqa: E402
from brainspeech.cache import Cache  # noqa: E402
from brainspeech.features.mel import Mel  # noqa: E402
from brainspeech.records import Segment, Span  # noqa: E402

STORIES, STORY_SECONDS, BLOCK_SECONDS, SFREQ = 4, 60.0, 20.0, 16_000.0


class CountedMel(Mel):
    """The mel spectrum, and how often it was asked for."""

    n_computed = 0

    def __call__(self, sound: np.ndarray, sfreq: float) -> tuple[np.ndarray, float]:
        self.n_computed += 1
        return super().__call__(sound, sfreq)


def read_stimulus(audio: str) -> tuple[np.ndarray, float]:
    rng = np.random.default_rng(int(audio))
    return rng.standard_normal((1, round(STORY_SECONDS * SFREQ)), dtype=np.float32), SFREQ


def make_segments(n_recordings: int) -> list[Segment]:
    """Windows of 3 s, one a second, in every recording, each in a block of a story."""
    found = []
    for recording in range(n_recordings):
        for story in range(STORIES):
            for start in np.arange(0, STORY_SECONDS, BLOCK_SECONDS).tolist():
                for onset in np.arange(start, start + BLOCK_SECONDS - 3, 1.0).tolist():
                    span = Span(str(story), start, start + BLOCK_SECONDS, start - onset)
                    found.append(
                        Segment(f"r{recording}", "s", onset, 3.0, f"{story}@{onset}", f"{story}-{start}", "", "", "train", (span,))
                    )
    return found


def compute(feature: CountedMel, segments: list[Segment], cache: Cache) -> tuple[dict, int, float]:
    """Give the tracks of all segments, the number of computations and the seconds of a processor."""
    before, start = feature.n_computed, time.process_time()
    tracks, _ = features.compute_tracks(feature, features.intervals(segments), read_stimulus, fingerprint=str, cache=cache, progress=False)
    return tracks, feature.n_computed - before, time.process_time() - start


def sixteen_bits(seconds: float = 10.0, repeats: int = 3) -> bool:
    """Compare wav2vec2 in bfloat16 and in float32, on one thread."""
    rng = np.random.default_rng(0)
    times = np.arange(round(seconds * SFREQ)) / SFREQ
    voice = np.sin(2 * np.pi * 150 * times) * (1 + np.sin(2 * np.pi * 4 * times)) + 0.3 * rng.standard_normal(len(times))
    sound = voice[None].astype(np.float32), SFREQ
    forms = {dtype: features.build("wav2vec2", random=True, device="cpu", dtype=dtype) for dtype in ("float32", "bfloat16")}
    taken = bench.take_turns({dtype: lambda form=form: lambda: form(*sound) for dtype, form in forms.items()}, repeats)
    error = forms["bfloat16"].error
    print(f"wav2vec2, untrained, {seconds:g} s:")
    fine = bench.say("error of the hidden states in bfloat16, RMS", f"{error:.2%}", error <= 0.03, "at most 3 %")
    return bench.ratio("float32 against bfloat16", taken["float32"], taken["bfloat16"], at_least=1.0) and fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=int, default=27)
    n = parser.parse_args().recordings
    segments = make_segments(n)
    n_blocks = len({segment.block for segment in segments})
    with tempfile.TemporaryDirectory() as name:
        feature = CountedMel()
        tracks, ours, seconds = compute(feature, segments, Cache(f"{name}/ours"))
        again, repeated, _ = compute(feature, segments + make_segments(2 * n), Cache(f"{name}/ours"))
        naive, naive_seconds, equal = 0, 0.0, True
        for recording in range(n):
            own = [segment for segment in segments if segment.recording == f"r{recording}"]
            found, count, taken = compute(feature, own, Cache(f"{name}/{recording}"))
            naive, naive_seconds = naive + count, naive_seconds + taken
            equal &= all(np.array_equal(track.data, tracks[key].data) for key, track in found.items())
    print(f"{n} recordings, {STORIES} stories, {n_blocks} blocks ({bench.machine()}):")
    fine = bench.say("computed", f"{ours} sounds", ours == n_blocks, f"{n_blocks}, once per block")
    fine &= bench.say(
        "computed for each recording by itself", f"{naive} sounds, {naive / ours:.0f} times as many", naive == n * ours, "all"
    )
    fine &= bench.say("values", "equal" if equal else "different", equal, "equal")
    said = f"{repeated} sounds"
    fine &= bench.say(f"computed when {2 * n} recordings come to a warm cache", said, repeated == 0 and len(again) == n_blocks, "none")
    print(f"  processor time of the naive form: {naive_seconds / seconds:.1f} times ours")
    return int(not (sixteen_bits() and fine))


if __name__ == "__main__":
    sys.exit(main())
