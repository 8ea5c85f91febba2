"""What do the scorers of ``evaluate.scorers`` find where there is nothing, and what do they add where there is something?

    python benchmarks/scorers.py null     share of p <= 0.05 on pure noise, 3 designs x 200 simulations: about four minutes on one core
    python benchmarks/scorers.py gain     the demo's encoder at two signal-to-noise ratios, 3 seeds: about eight minutes

null: windows at irregular word onsets; estimates are noise that listeners share in part. `context` pools with weight 1 within 6 s, and its
p values are given twice: on segments that share no window, as reports do it, and (unsafe) on all that do not overlap.
gain: top-1 and top-10 minus those of the plain row, paired, with the two-way bootstrap interval over subjects x blocks.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

from brainspeech import evaluate, flow, recipe, report, scorers, statistics
from brainspeech.cache import Cache
from brainspeech.evaluate import EvaluateConfig
from brainspeech.prediction import TestSet
from brainspeech.records import Segment, Span

SFREQ, N_WINDOW, WIDTH = 20, 60, 6.0
# subjects, blocks, seconds and windows of a block, share of the noise that all listeners have in common
DESIGNS = ((2, 13, 14, 9, 0.0), (6, 5, 14, 9, 0.9), (3, 8, 40, 30, 0.5))


def word_locked(
    seed: int, n_subjects: int, n_blocks: int, seconds: int, per_block: int, common: float
) -> tuple[TestSet, list[Segment], list]:
    """Make a test set with windows at irregular onsets, and two rows of scores that know nothing."""
    rng = np.random.default_rng(seed)
    n_times = n_blocks * seconds * SFREQ
    low = [k * seconds * SFREQ for k in range(n_blocks)]
    onsets = np.concatenate([np.sort(rng.choice(seconds * SFREQ - N_WINDOW, per_block, replace=False)) + start for start in low])
    segs = []
    for s in range(n_subjects):
        for o, k in zip(onsets / SFREQ, np.repeat(np.arange(n_blocks), per_block), strict=True):
            span = Span("a", k * seconds, (k + 1) * seconds, k * seconds - o)
            segs.append(Segment(f"d/{s}", f"d/{s}", o, 3.0, f"{o:09.3f}", f"b{k:02d}", "", "", "test", (span,)))

    def cut(x: np.ndarray) -> np.ndarray:
        smooth = np.stack([np.convolve(row, np.hanning(9), "same") for row in x])
        parts = np.stack([smooth[:, o : o + N_WINDOW] for o in onsets])
        return ((parts - parts.mean(-1, keepdims=True)) / parts.std(-1, keepdims=True)).reshape(len(onsets), -1)

    candidates = cut(rng.normal(size=(2, n_times)))
    rows = []
    for _ in range(2):
        shared = rng.normal(size=(2, n_times))
        own = [np.sqrt(common) * shared + np.sqrt(1 - common) * rng.normal(size=(2, n_times)) for _ in range(n_subjects)]
        rows.append(np.concatenate([cut(x) @ candidates.T for x in own]).astype(np.float32))
    return TestSet.from_segments(segs), segs, rows


def pool(test: TestSet, segs: list[Segment], scores: np.ndarray) -> np.ndarray:
    """Pool neighbouring windows as the scorer `context` does."""
    onset = np.array([s.onset for s in segs])
    group = np.unique([f"{s.recording} {s.block}" for s in segs], return_inverse=True)[1]
    neighbours = scorers.find_neighbours(onset, group, duration=3.0, width=WIDTH)
    place = np.array([c.onset for c in test.candidates])  # all of one audio, which begins with the recording
    return scorers.pool_context(scores, neighbours, onset=onset, place=place, stretch=test.blocks, weight=1.0, tolerance=1.5)


def null(n: int) -> None:
    config = EvaluateConfig(n_bootstrap=1, n_permutations=199, context_width=WIDTH)
    names = ("encoder", "encoder_hubness", "encoder_context", "encoder_context, unsafe")
    print("| subjects | blocks | row | p > chance | p > shuffled | top-10 (chance) |\n| --- | --- | --- | --- | --- | --- |")
    for design in DESIGNS:
        found, top = np.zeros((len(names), 2)), np.zeros(len(names))
        for seed in range(n):
            test, segs, (scores, control) = word_locked(seed, *design)
            rows = {"encoder": [scores], "shuffled": [control]}
            rows |= {"encoder_context": [pool(test, segs, scores)], "shuffled_context": [pool(test, segs, control)]}
            for name, row in (("encoder", scores), ("shuffled", control)):
                rows[f"{name}_hubness"] = [scorers.take_popularity_off(scorers.standardise(row), strength=1.0)]
            safe = evaluate.evaluate(rows, test, config=config).rows
            with mock.patch.object(evaluate, "_reach", return_value=0.0):
                unsafe = evaluate.evaluate(rows, test, config=config).rows
            for i, row in enumerate([safe[name] for name in names[:3]] + [unsafe["encoder_context"]]):
                found[i] += [row[p] <= 0.05 for p in ("p_above_chance", "p_above_shuffled")]
                top[i] += row["top10"]["value"]
        for name, (chance, shuffled), value in zip(names, found / n, top / n, strict=True):
            print(
                f"| {design[0]} | {design[1]} | {name} | {chance:.1%} | {shuffled:.1%} | {value:.1%} ({10 / len(test.candidates):.1%}) |",
                flush=True,
            )


def gain(seeds: str) -> None:
    print("| dB | row | top-1 | gain | top-10 | gain |\n| --- | --- | --- | --- | --- | --- |")
    for snr_db in (None, -22.0):
        settings = ["rows=encoder", f"seeds={seeds}", "evaluate.n_layers=4", f"evaluate.scorers={','.join(scorers.SCORERS)}"]
        constants = recipe.change(recipe.load("demo"), settings + ([] if snr_db is None else [f"dataset.snr_db={snr_db}"]))
        with tempfile.TemporaryDirectory() as folder:
            made = flow.run(constants, out=Path(folder) / "run", cache=Cache(Path(folder) / "cache"), progress=False)
            kept = report.load_ranks(Path(folder) / "run")
        assert kept is not None
        units = [np.unique(labels, return_inverse=True)[1] for labels in (kept.subjects, kept.blocks)]
        shape = (int(units[0].max()) + 1, int(units[1].max()) + 1)
        counts = statistics.cell_sums(np.ones(len(units[0])), *units, shape)[0]
        for name, ranks in kept.rows.items():
            cells = []
            for k in (1, 10):
                hits = (ranks < k).mean(0)
                more = hits - (kept.rows["encoder"] < k).mean(0)
                limits = statistics.interval(statistics.cell_sums(more, *units, shape), counts)
                assert limits is not None
                cells += [f"{hits.mean():.1%}", f"{100 * more.mean():+.1f} [{100 * limits[0, 0]:.1f}, {100 * limits[0, 1]:.1f}]"]
            print(f"| {'demo' if snr_db is None else snr_db} | {name} | {' | '.join(cells)} |", flush=True)
        print(*(w for w in made.warnings if "chosen on" in w), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("null", "gain"))
    parser.add_argument("--n", type=int, default=200, help="simulations of each design")
    parser.add_argument("--seeds", default="1,2,3")
    args = parser.parse_args()
    null(args.n) if args.what == "null" else gain(args.seeds)


if __name__ == "__main__":
    main()
