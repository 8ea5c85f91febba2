"""Does another loss than CLIP help? Every preset trains the same narrow encoder on the same phantom, for the same number of steps.

    python benchmarks/losses.py --out runs/losses                               an hour on one core; goes on if it was killed
    python benchmarks/losses.py --out runs/losses --write docs/results.md       the tables of what is there, into the page
    python benchmarks/losses.py --out runs/quick --quick                        a few minutes, to see that it runs

Six listeners hear the same stories; training windows of 3 s begin every 0.25 s and test windows at every word, so that most overlap their
neighbours. A fit is one pass over the training windows, without early stopping. Each loss has its temperature chosen from one grid by the
top-10 accuracy on the validation windows (first seed), is fitted with three seeds, and once more with the sound shifted against the signal.
Losses over several listeners need batches of whole groups (a stimulus and all its listeners); they stand next to CLIP, and their control is
CLIP on the same batches, with a weight of 0 for the other term. ``--out`` keeps one line of JSON per fit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from brainspeech import evaluate, features, flow, losses, models, recipe, retrieval, rows, statistics, train
from brainspeech.cache import Cache
from brainspeech.losses.auxiliary import Weighted

GRID = (0.01, 0.03, 0.1, 0.3, 1.0)
SEEDS = (1, 2, 3)
WEIGHT = 0.2  # of a term over listeners next to CLIP
DATA = {"n_subjects": 6, "minutes": 24.0, "n_channels": 24, "preset": "easy", "snr_db": -19.0, "seed": 0}
ENCODER = {"n_virtual": 24, "hidden": 32, "depth": 4, "n_harmonics": 8}
TRAIN = {"lr": 3e-3, "batch_size": 96, "max_epochs": 1, "max_steps_per_epoch": 180}
BEGIN, END = "<!-- losses: begin -->", "<!-- losses: end -->"


class Arm(NamedTuple):
    """A loss with its sampler; the last of its terms has the temperature that is tuned, ``against`` is what it is compared with."""

    terms: tuple[tuple[str, float], ...]
    grouped: bool = False
    against: str = "clip"

    @property
    def grid(self) -> tuple[float | None, ...]:
        """The temperatures that are tried."""
        return (None,) if self.terms[0][0] == "mse" else GRID


CONTROL = "clip, grouped"
QUEUE = "clip, queue"
MULTIVIEW = ("mv_infonce", "mv_dhel")
ARMS = {name: Arm(((name, 1.0),)) for name in losses.LOSSES if name not in MULTIVIEW}
ARMS[QUEUE] = Arm((("clip", 1.0),))
ARMS[CONTROL] = Arm((("clip", 1.0),), grouped=True)  # what a weight of 0 leaves
ARMS |= {f"clip + {WEIGHT:g} {name}": Arm((("clip", 1.0), (name, WEIGHT)), grouped=True, against=CONTROL) for name in MULTIVIEW}
ARMS |= {name: Arm(((name, 1.0),), grouped=True, against=CONTROL) for name in MULTIVIEW}


class Problem:
    """The phantom, cut and scaled: data with the true pairing, data with a shifted one, and the test windows."""

    def __init__(self, settings: dict[str, Any], folder: Path):
        cache = Cache(folder)
        demo = recipe.load("demo")
        plan = dataclasses.replace(
            demo,
            dataset=recipe.Choice("simulated", settings["data"]),
            preprocess=dataclasses.replace(demo.preprocess, sfreq=40.0),
            segments=dataclasses.replace(demo.segments, stride=0.25, test_ratio=0.15, sfreq=40.0),
        )
        prepared = flow.prepare(plan, None, cache)
        (fold,) = flow.segment(plan, prepared)
        self.test = evaluate.TestSet.from_segments([s for s in fold.segments if s.split == "test"])
        feature, dataset = prepared.feature, prepared.dataset
        tracks, _ = features.compute_tracks(
            feature, features.intervals(fold.segments), dataset.read_stimulus, fingerprint=dataset.stimulus_fingerprint, cache=cache
        )
        shifted, _ = rows.shuffled_pairs(fold.segments, seed=SEEDS[0])
        pools = {"": self.test.candidates}
        given: dict[str, Any] = {"signals": prepared.signals, "tracks": tracks, "fill": feature.fill}
        self.data = {wrong: rows.make_data(plan, segs, pools, **given) for wrong, segs in ((False, fold.segments), (True, shifted))}

    def interval(self, values: np.ndarray) -> list[tuple[float, float, float]]:
        """Give mean and two-way 95 % interval over subjects x blocks of values (M, W)."""
        subject = np.unique(self.test.subjects, return_inverse=True)[1]
        block = np.unique(self.test.blocks[self.test.truth], return_inverse=True)[1]
        shape = (int(subject.max()) + 1, int(block.max()) + 1)
        counts = statistics.cell_sums(np.ones(len(subject)), subject, block, shape)[0]
        limits = statistics.interval(statistics.cell_sums(values, subject, block, shape), counts)
        assert limits is not None  # there are several subjects
        return [(float(v.mean()), float(low), float(high)) for v, (low, high) in zip(values, limits, strict=True)]


class Results:
    """One line of JSON per fit, and the settings on the first line."""

    def __init__(self, path: Path, settings: dict[str, Any]):
        self.path = path
        whole, _, broken = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
        if broken:  # a kill in the middle of a line
            path.write_text(whole and whole + "\n")
        lines = [json.loads(line) for line in whole.splitlines()]
        if lines and lines[0] != json.loads(json.dumps(settings)):
            raise ValueError(f"{path} holds results of other settings: {lines[0]}. Give another --out.")
        if not lines:
            path.write_text(json.dumps(settings) + "\n")
        self.fits = {self.key(**line): line for line in lines[1:] if "arm" in line}
        self.costs: dict[str, list[float]] = next((line["costs"] for line in reversed(lines) if "costs" in line), {})

    @staticmethod
    def key(arm: str, temperature: float | None, seed: int, shuffled: bool = False, **_: Any) -> tuple:
        """What makes a fit."""
        return arm, temperature, seed, shuffled

    def add(self, line: dict[str, Any]) -> None:
        """Append a line."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        if "arm" in line:
            self.fits[self.key(**line)] = line
        else:
            self.costs = line["costs"]

    def temperature(self, arm: str) -> float | None:
        """Give the temperature whose fit with the first seed ranks validation windows best; the first of equals."""
        return max(ARMS[arm].grid, key=lambda t: self.fits[self.key(arm, t, SEEDS[0])]["valid_top10"])

    def hits(self, arm: str, k: int, *, shuffled: bool = False) -> np.ndarray:
        """Tell which test windows are among the k best, shape (n_seeds, W)."""
        seeds = SEEDS[:1] if shuffled else SEEDS
        return np.array([self.fits[self.key(arm, self.temperature(arm), seed, shuffled)]["ranks"] for seed in seeds]) < k

    def next_job(self, arm: str) -> tuple | None:
        """Give the first fit that an arm lacks, (arm, temperature, seed, shuffled); None if it has all."""
        tuning = [self.key(arm, temperature, SEEDS[0]) for temperature in ARMS[arm].grid]
        if missing := [job for job in tuning if job not in self.fits]:
            return missing[0]
        best = self.temperature(arm)
        others = [self.key(arm, best, seed) for seed in SEEDS[1:]] + [self.key(arm, best, SEEDS[0], True)]
        return next((job for job in others if job not in self.fits), None)

    def gain(self, arm: str, k: int) -> np.ndarray:
        """Subtract the hits of what an arm is compared with, shape (n_seeds, W)."""
        return self.hits(arm, k).astype(float) - self.hits(ARMS[arm].against, k)

    def complete(self, arm: str) -> bool:
        """Whether all fits of an arm are there."""
        return self.next_job(arm) is None


def make_loss(arm: str, temperature: float | None, results: Results, data: rows.Data, *, warmup: int) -> Any:
    """Build a loss; CLIP next to a tuned term has the temperature of the control."""
    n_stimuli = len(data.train.unique())
    options: dict[str, dict[str, Any]] = {
        "isogclr": {"n_rows": n_stimuli, "n_cols": n_stimuli},
        QUEUE: {"queue": (10 * TRAIN["batch_size"], data.train.n_features, data.train.n_times)},
        "mochi": {"n_hardest": 32, "n_mixed": 64, "n_mixed_with_query": 16, "warmup": warmup},
    }
    tuned = {"temperature": temperature} if temperature is not None else {}
    if len(ARMS[arm].terms) == 1:
        ((name, _),) = ARMS[arm].terms
        return losses.build(name, **options.get(arm, {}), **tuned)
    (_, one), (name, weight) = ARMS[arm].terms
    clip = losses.build("clip", temperature=results.temperature(CONTROL))
    return Weighted({"clip": (clip, one), name: (losses.build(name, **tuned), weight)})


def make_encoder(data: rows.Data, seed: int) -> nn.Module:
    """Build the encoder; its weights depend on the seed alone."""
    torch.manual_seed(seed)
    return models.build("conv", n_subjects=len(data.subjects), n_features=data.train.n_features, **ENCODER)


def fit(problem: Problem, results: Results, options: dict, arm: str, temperature: float | None, seed: int, shuffled: bool) -> dict:
    """Train and rank; gives the line of a fit."""
    began = time.monotonic()
    data = problem.data[shuffled]
    steps = options["max_steps_per_epoch"]
    loss = make_loss(arm, temperature, results, data, warmup=steps // 3)
    sampler: dict[str, Any] = {"sampler": "grouped"} if ARMS[arm].grouped else {}
    config = train.TrainConfig(**options, **sampler, seed=seed)
    done = train.fit(make_encoder(data, seed), loss, data.train, data.valid, config, progress=False)
    if done.history[-1]["step"] != steps:
        raise RuntimeError(f"{arm}: expected {steps} steps, got {done.history[-1]['step']}: a pass is too short. Use more minutes.")
    ranks = retrieval.ranks_from_scores(data.score(done.encoder, loss.scores, device=done.device), problem.test.truth).ranks
    line = {"arm": arm, "temperature": temperature, "seed": seed, "shuffled": shuffled, "ranks": ranks.tolist()}
    return line | {"valid_top10": done.history[-1]["valid_top10"], "seconds": round(time.monotonic() - began, 1)}


def costs(problem: Problem, results: Results, n_repeats: int) -> dict[str, list[float]]:
    """Time each loss, forward and backward, on one grouped batch: ratios to CLIP of the loss alone and of a whole training step."""
    data = problem.data[False]
    order = np.argsort(data.train.stimulus_id.numpy(), kind="stable")[: TRAIN["batch_size"]]
    batch, encoder = data.train.batch(order), make_encoder(data, 0)
    built = {arm: make_loss(arm, results.temperature(arm), results, data, warmup=0) for arm in ARMS if results.complete(arm)}
    seconds: dict[str, list[float]] = {arm: [] for arm in ("", *built)}
    for _ in tqdm(range(n_repeats), desc="cost", unit="repeat"):  # interleaved: a busy moment slows all
        began = time.perf_counter()
        estimates = encoder(batch.signal, batch.positions, batch.subject, channel_mask=batch.channel_mask)
        estimates.sum().backward()
        seconds[""].append(time.perf_counter() - began)
        for arm, loss in built.items():
            leaf = estimates.detach().requires_grad_()
            began = time.perf_counter()
            loss(leaf, batch.target, row_ids=batch.stimulus_id, col_ids=batch.stimulus_id).loss.backward()
            seconds[arm].append(time.perf_counter() - began)
    middle = {arm: float(np.median(values)) for arm, values in seconds.items()}
    clip, encoding = middle["clip"], middle.pop("")
    return {arm: [value / clip, (encoding + value) / (encoding + clip)] for arm, value in middle.items()}


def percent(value: float, low: float, high: float, form: str = ".1f") -> str:
    """Write fractions as percent with their interval."""
    return f"{100 * value:{form}} [{100 * low:{form}}, {100 * high:{form}}]"


def table(problem: Problem, results: Results) -> str:
    """Write the tables of all arms that are complete."""
    done = [arm for arm in ARMS if results.complete(arm) and results.complete(ARMS[arm].against)]
    values = []
    for arm in done:
        values += [results.hits(arm, k).mean(0) for k in (1, 10)] + [results.hits(arm, 10, shuffled=True)[0]]
        values += [results.gain(arm, k).mean(0) for k in (1, 10)]
    found = problem.interval(np.array(values, dtype=float))
    n_windows, n_candidates = len(problem.test.truth), len(problem.test.candidates)
    chance = " and ".join(f"{100 * retrieval.chance(k, n_candidates):.1f} % (top-{k})" for k in (1, 10))
    lines = [
        f"{n_windows} test windows of {len(set(problem.test.subjects))} listeners among {n_candidates} candidates "
        f"in {len(set(problem.test.blocks))} blocks; chance is {chance}. {len(SEEDS)} seeds.\n",
        "| loss | temperature | top-1, % | top-10, % | shuffled, top-10, % | top-1 minus CLIP's, points | top-10 minus CLIP's, points "
        "| by seed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    verdict: dict[str, list[str]] = {"above": [], "below": [], "not told apart from": []}
    for i, arm in enumerate(done):
        top1, top10, shuffled, gain1, gain10 = found[5 * i : 5 * i + 5]
        temperature = results.temperature(arm)
        cells = [f"`{arm}`", "-" if temperature is None else f"{temperature:g}", percent(*top1), percent(*top10), percent(*shuffled)]
        if arm == "clip":
            cells += ["", "", ""]
        else:
            by_seed = results.gain(arm, 10).mean(1)
            cells += [percent(*gain1, "+.1f"), percent(*gain10, "+.1f"), f"{100 * by_seed.min():+.1f} to {100 * by_seed.max():+.1f}"]
            word = "above" if gain10[1] > 0 else "below" if gain10[2] < 0 else "not told apart from"
            verdict[word].append(f"`{arm}`")
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("\nTop-10 against CLIP (grouped losses against CLIP on the same batches), by whether the interval holds 0:")
    lines += [f"- {word} CLIP: {', '.join(names) or 'none'}." for word, names in verdict.items()]
    if len(done) < len(ARMS):
        lines.append(f"\nNot finished: {', '.join(f'`{arm}`' for arm in ARMS if arm not in done)}.")
    if results.costs:
        lines += ["\n| loss | its cost, CLIP's = 1 | cost of a training step, CLIP's = 1 |", "| --- | --- | --- |"]
        lines += [f"| `{arm}` | {alone:.2f} | {step:.3f} |" for arm, (alone, step) in results.costs.items()]
    return "\n".join(lines)


def write(page: Path, text: str) -> None:
    """Put the tables between the marks of a page."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} must have the lines {BEGIN} and {END}.")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results and the prepared data; a killed run goes on")
    parser.add_argument("--quick", action="store_true", help="10 steps a fit: it runs, and nothing is learned")
    parser.add_argument("--only", nargs="+", choices=list(ARMS), metavar="LOSS", help="fit these only, and what they are compared with")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="fit nothing; write the tables of what is there into a page")
    args = parser.parse_args()
    options = TRAIN | ({"max_steps_per_epoch": 10} if args.quick else {})
    args.out.mkdir(parents=True, exist_ok=True)
    settings = {"data": DATA, "encoder": ENCODER, "train": options, "grid": GRID, "seeds": SEEDS, "weight": WEIGHT}
    results = Results(args.out / "results.jsonl", settings)
    problem = Problem(settings, args.out / "cache")
    if not args.write:
        needed = {"clip", *(args.only or ARMS)}
        wanted = [arm for arm in ARMS if arm in needed or (arm == CONTROL and any(ARMS[other].grouped for other in needed))]
        n_left = sum(len(ARMS[arm].grid) + len(SEEDS) for arm in wanted)
        with tqdm(total=n_left, desc="fits", unit="fit") as bar:
            for arm in wanted:
                bar.set_postfix_str(arm)
                while job := results.next_job(arm):
                    results.add(fit(problem, results, options, *job))
                    bar.update()
        if set(results.costs) != {arm for arm in ARMS if results.complete(arm)}:
            results.add({"costs": costs(problem, results, n_repeats=5 if args.quick else 30)})
    text = table(problem, results)
    print(text)
    if args.write:
        write(args.write, text)


if __name__ == "__main__":
    main()
