"""What does ranking cost beyond one matrix product, what do targets at their own rate save, and how many candidates fit?

    python benchmarks/retrieval.py           650 x 650 segments of 1024 x 343, 20,000 candidates in a stream: some two minutes, 3 GiB
    python benchmarks/retrieval.py --full    2,600 x 2,600, and 100,000 in the stream: some fifteen minutes, 11 GiB

Candidates are features at 50 Hz, repeated to 120 Hz in windows that begin anywhere. The naive form is the product of estimates and
candidates, both flattened, and nothing else; its ranks, by sorting the scores, have to be those of ``retrieval.ranks``, except where two
scores are nearer to each other in float64 than float32 tells apart. Exits with 1 if a figure is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import bench

bench.one_thread()

import torch  # noqa: E402

from brainspeech import retrieval, similarity  # noqa: E402

N_FEATURES, N_TIMES, CHUNK = 1024, 343, 512
ROUNDING = 5e-5  # of the scores' standard deviation: twice the largest error that was found in a float32 product of 1,000 x 1,000


def make_candidates(n: int) -> torch.Tensor:
    """Give noise at 50 Hz, repeated to 120 Hz, shape (n, F, T)."""
    generator = torch.Generator().manual_seed(0)
    candidates = torch.empty(n, N_FEATURES, N_TIMES)
    for candidate in candidates:
        begin = torch.rand(1, generator=generator, dtype=torch.float64)
        index = (begin + torch.arange(N_TIMES) * 50 / 120).floor().long()
        candidate.copy_(torch.randn(N_FEATURES, int(index[-1]) + 1, generator=generator)[:, index])
    return candidates


def make_estimates(candidates: torch.Tensor) -> torch.Tensor:
    """Give a little of each candidate in much noise, so that ranks are of all kinds."""
    generator = torch.Generator().manual_seed(1)
    estimates = torch.empty(candidates.shape)
    for estimate, candidate in zip(estimates, candidates, strict=True):
        torch.randn(candidate.shape, generator=generator, out=estimate).add_(candidate, alpha=0.003)
    return estimates


def closest(estimates: torch.Tensor, candidates: torch.Tensor, targets: torch.Tensor, found: torch.Tensor, expected: torch.Tensor) -> float:
    """Give the distance in float64, over the spread of the scores, that candidates have at most crossed to make two ranks differ."""
    worst = 0.0
    for estimate, target, *ranks in zip(estimates.double(), targets.tolist(), found.tolist(), expected.tolist(), strict=True):
        scores = torch.cat([similarity.candidate_normalised(estimate[None], part.double())[0] for part in candidates.split(64)])
        away = scores - scores[target]
        order = away.sort(descending=True).values  # the own candidate, 0, stands at its rank
        crossed = [abs(float(order[rank])) for rank in ranks]
        worst = max(worst, max(crossed) / float(scores.std()))
    return worst


def compare(n: int, repeats: int) -> bool:
    """Print the ratios of time, what memory is taken, and whether ranks are equal."""
    candidates = make_candidates(n)
    estimates = make_estimates(candidates)
    targets = torch.arange(n)
    repeated = similarity.Repeated.of(candidates)
    print(f"{n} x {n} segments of {N_FEATURES} x {N_TIMES}, median of {repeats} turns ({bench.machine()}):")
    product = estimates.flatten(1) @ candidates.flatten(1).T
    order = (product / candidates.flatten(1).norm(dim=1)).argsort(1, descending=True)
    expected = (order == targets[:, None]).int().argmax(1)
    print(f"  top-10 accuracy {retrieval.topk_accuracy(expected, 10):.3f}, median rank {retrieval.median_rank(expected):g}")
    fine = True
    for name, form in (("candidates as they are", candidates), ("at their own rate", repeated)):
        with bench.Peak() as memory:
            found = retrieval.ranks(estimates, form, targets, chunk=CHUNK)
        differ = (found != expected).nonzero()[:, 0]
        nearest = closest(estimates[differ], candidates, differ, found[differ], expected[differ])
        said = f"{len(differ)} of {n}" + (f", where scores lie within {nearest:.1e} of each other in float64" if len(differ) else "")
        fine &= bench.say(f"ranks that differ, {name}", said, nearest < ROUNDING, f"none, but for scores within {ROUNDING:g}")
        taken, limit = (memory.peak - memory.start) / bench.GIB, 2 * CHUNK * N_FEATURES * N_TIMES * 4 / bench.GIB
        fine &= bench.say(f"memory beyond the inputs, {name}", f"{taken:.2f} GiB", taken < limit, f"less than two chunks, {limit:.2f} GiB")
    times = bench.take_turns(
        {
            "product": lambda: lambda: estimates.flatten(1) @ candidates.flatten(1).T,
            "ranks": lambda: lambda: retrieval.ranks(estimates, candidates, targets, chunk=CHUNK),
            "own rate": lambda: lambda: retrieval.ranks(estimates, repeated, targets, chunk=CHUNK),
            "making": lambda: lambda: similarity.Repeated.of(candidates),
        },
        repeats,
    )
    beyond, by_wall = ((getattr(times["ranks"], clock) / getattr(times["product"], clock)) - 1 for clock in ("processor", "wall"))
    said = f"{beyond:+.1%} ({by_wall:+.1%} by the wall clock)"
    fine &= bench.say("ranks, beyond one product", said, beyond <= 0.05, "at most 5 %")
    print(f"  multiplications at the candidates' own rate: {repeated.saving:.2f} times fewer")
    own = bench.ratio("ranks at the candidates' own rate, against one product", times["product"], times["own rate"], at_least=1)
    fine &= own or n < similarity.LEAST_CANDIDATES  # of fewer, evaluation does not take it
    share = times["making"].processor / times["product"].processor
    print(f"  bringing the candidates to their own rate, once: {share:.1%} of one product")
    return fine


def stream(n: int, n_estimates: int = 64) -> bool:
    """Print what memory ranks among n candidates take, which come from a generator in bfloat16."""
    base = make_candidates(CHUNK).bfloat16()

    def parts() -> Iterator[torch.Tensor]:
        for k in range(0, n, CHUNK):  # the same features at other times are other candidates
            yield base.roll(k // CHUNK, dims=2)[: n - k]

    generator = torch.Generator().manual_seed(2)
    targets = torch.randint(n, (n_estimates,), generator=generator)
    own = torch.stack([base[t % CHUNK].roll(t // CHUNK, dims=1) for t in targets.tolist()]).float()
    estimates = make_estimates(own)
    few = torch.cat([part for part, _ in zip(parts(), range(2), strict=False)]).float()
    near = torch.arange(n_estimates)
    scores = retrieval.stream_scores(estimates, (part for part, _ in zip(parts(), range(2), strict=False)))
    same = torch.equal(retrieval.ranks(estimates, few, near), retrieval.ranks_from_scores(scores, near).ranks)
    del few, scores, own
    with bench.Peak() as memory:
        scores = retrieval.stream_scores(estimates, parts())
        found = retrieval.ranks_from_scores(scores, targets).ranks
        best = scores.topk(10).indices
    print(f"{n} candidates in bfloat16 ({n * N_FEATURES * N_TIMES * 2 / bench.GIB:.0f} GiB), {n_estimates} estimates, parts of {CHUNK}:")
    fine = bench.say("peak memory of the process", f"{memory.peak / bench.GIB:.2f} GiB", memory.peak < 4 * bench.GIB, "under 4 GiB")
    fine &= bench.say("scores", str(scores.dtype).removeprefix("torch."), scores.dtype == torch.float32, "float32")
    fine &= bench.say("ranks among the first 1024, against those without a stream", "equal" if same else "different", same, "equal")
    inside = bool(((best == targets[:, None]).any(1) == (found < 10)).all())
    fine &= bench.say("rank below 10 where the own candidate is among the 10 best", "always" if inside else "not always", inside, "always")
    print(f"  median rank {retrieval.median_rank(found):g} of {n}")
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="2,600 x 2,600, and 100,000 candidates in the stream")
    parser.add_argument("--segments", type=int, help="another number of estimates and candidates")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    fine = stream(100_000 if arguments.full else 20_000)
    fine &= compare(arguments.segments or (2600 if arguments.full else 650), arguments.repeats)
    return int(not fine)


if __name__ == "__main__":
    sys.exit(main())
