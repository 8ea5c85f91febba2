"""How much of what is there does a decoder find, with more or less to learn from, at two signal-to-noise ratios?

    python benchmarks/phantom.py            three training sizes x two ratios, 3 seeds: some two hours on two cores
    python benchmarks/phantom.py --quick    the smallest and the largest size, one ratio, one seed: about five minutes

Every phantom has four listeners in front of 32 electrodes, with all nuisances; the test stimuli stay the same while training windows are
thinned by whole blocks. Rows: the encoder of the demo, linear_clip, ridge, and the ideal observer, which knows what was planted. The gap is
that between ridge and observer, of which the encoder closes the share given. The Gaussian setting, where the observer is the bound, is run
with ``--preset gaussian``.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from brainspeech import features, flow, ideal, prediction, recipe, retrieval, rows
from brainspeech.cache import Cache
from brainspeech.records import Segment

FRACTIONS = (0.25, 0.5, 1.0)
RATIOS = {"realistic": (-16.0, -24.0), "gaussian": (-22.0, -28.0)}


def thin(segs: list[Segment], fraction: float) -> list[Segment]:
    """Keep a fraction of the training blocks, always the same ones, and all other windows."""
    blocks = sorted({s.block for s in segs if s.split == "train"})
    order = np.random.default_rng(0).permutation(len(blocks))
    kept = {blocks[i] for i in order[: max(1, round(fraction * len(blocks)))]}
    return [s for s in segs if s.split != "train" or s.block in kept]


def run(args: argparse.Namespace, cache: Cache, *, snr_db: float, fractions: tuple[float, ...], n_seeds: int) -> None:
    """Make one phantom, fit every row at every size, and print a line for each size."""
    constants = recipe.load("demo")
    constants = dataclasses.replace(
        constants,
        dataset=recipe.Choice(
            "simulated",
            {"n_subjects": 4, "minutes": args.minutes, "n_channels": args.channels, "preset": args.preset, "snr_db": snr_db},
        ),
        train=dataclasses.replace(constants.train, max_epochs=args.epochs, patience=3),
        rows=("encoder", "linear_clip", "ridge"),
    )
    prepared = flow.prepare(constants, None, cache, progress=False)
    (fold,) = flow.segment(constants, prepared)
    test = prediction.TestSet.from_segments([s for s in fold.segments if s.split == "test"])
    tracks, _ = features.compute_tracks(
        prepared.feature,
        features.intervals(fold.segments),
        prepared.dataset.read_stimulus,
        fingerprint=prepared.dataset.stimulus_fingerprint,
        cache=cache,
        progress=False,
    )
    windows = [s for s in fold.segments if s.split == "test"]
    bound = ideal.ideal_scores(
        prepared.dataset, windows, test.candidates, prepared.signals, config=constants.preprocess, baseline=constants.batches.baseline
    )
    best = top10(bound, test.truth)
    for fraction in fractions:
        segs = thin(fold.segments, fraction)
        found: dict[str, list[float]] = {}
        begin = time.monotonic()
        for seed in range(n_seeds):
            fitter = rows.Fitter(
                dataclasses.replace(constants, seeds=(seed,)), segs, {"": test.candidates}, prepared.signals, tracks, prepared.feature.fill
            )
            with tempfile.TemporaryDirectory() as out:
                for name, fitted in fitter.rows(Path(out), fold=0, seed=seed, progress=False):
                    found.setdefault(name, []).append(top10(fitted.scores, test.truth))
        means = {name: float(np.mean(values)) for name, values in found.items()}
        table = {name: {"top10": {"value": value}} for name, value in {**means, "ideal": best}.items()}
        closed = ideal.gap_closed(table)
        spread = float(np.ptp(found["encoder"]))
        hours = sum(s.split == "train" for s in segs) * constants.segments.stride / 3600
        print(
            f"| {snr_db:.0f} | {60 * hours / 4:.1f} | {means['encoder']:.3f} (range {spread:.3f}) | {means['linear_clip']:.3f} "
            f"| {means['ridge']:.3f} | {best:.3f} | {10 / len(test.candidates):.3f} | {'-' if closed is None else f'{closed:.2f}'} "
            f"| {time.monotonic() - begin:.0f} |",
            flush=True,
        )


def top10(scores: np.ndarray, truth: np.ndarray) -> float:
    """Give the top-10 accuracy of scores (W, N)."""
    return retrieval.topk_accuracy(retrieval.ranks_from_scores(torch.as_tensor(scores), torch.as_tensor(truth)).ranks, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--preset", choices=sorted(RATIOS), default="realistic")
    parser.add_argument("--minutes", type=float, default=None, help="of sound for each listener; 20, or 10 with --quick")
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=None, help="at most; 12, or 4 with --quick")
    args = parser.parse_args()
    args.minutes = args.minutes or (10.0 if args.quick else 20.0)
    args.epochs = args.epochs or (4 if args.quick else 12)
    print("| dB | minutes to learn from, a listener | encoder | linear_clip | ridge | ideal | chance | gap closed | s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for snr_db in RATIOS[args.preset][:1] if args.quick else RATIOS[args.preset]:
            run(
                args,
                Cache(folder),
                snr_db=snr_db,
                fractions=(FRACTIONS[0], FRACTIONS[-1]) if args.quick else FRACTIONS,
                n_seeds=1 if args.quick else 3,
            )


if __name__ == "__main__":
    main()
