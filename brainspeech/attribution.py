"""Where in the signal the evidence is that an encoder uses: which sensors, which frequencies, how long after the sound.

By occlusion: a part of the signal is set to 0 (a channel's median), and what the scores lose is put down to that part. What is scored
is the margin of a window: the score of its own candidate minus the mean of all others. Setting a part to 0 changes scores whatever was
heard, so the loss is compared with the same loss under wrong candidates, blocks put in random order as in the report's tests. The largest
of all sensors (of all bands, of all lags) decides: of twenty such families without an effect one has a part that is said to matter.

Occlusion sees what cannot be replaced: of two sensors that say the same neither matters alone.

Shapes: W windows, N candidates, C channels, F features, T times, K parts, R permutations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from brainspeech import statistics
from brainspeech.batches import Batch, SegmentDataset
from brainspeech.models.base import estimator
from brainspeech.models.layers import SpatialAttention
from brainspeech.records import Segment
from brainspeech.timing import to_samples

MOST_WINDOWS = 128
MOST_STIMULI = 100
MOST_REGIONS = 64  # of more sensors, neighbours are occluded together
BANDS = ((0.0, 1.0), (1.0, 4.0), (4.0, 8.0), (8.0, 13.0), (13.0, 30.0), (30.0, 60.0), (60.0, 120.0))  # Hz
SLAB = 0.05  # s of signal that is occluded to see which lags it serves
N_SLABS = 8
LAGS = (-0.2, 0.6)  # s, brain after sound
N_HEADS = 3
ALPHA = 0.05

Scores = Callable[[Tensor, Tensor], Tensor]


def attribute(
    encoder: nn.Module,
    dataset: SegmentDataset,
    *,
    scores: Scores,
    n_windows: int = MOST_WINDOWS,
    n_permutations: int = 999,
    seed: int = 0,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> dict[str, Any]:
    """Find what a fitted encoder reads in the signal of test windows.

    Parameters
    ----------
    encoder : nn.Module
        (signal, positions, subject, channel_mask) -> estimates (B, F, T). Left in the mode it came in.
    dataset : SegmentDataset
        Test windows.
    scores : callable
        (estimates, candidates) -> (B, N), such as ``loss.scores``.
    n_windows : int
        Windows that are looked at, of at most 100 stimuli, evenly spaced; the same for the same seed.
    n_permutations : int
        Draws of the null.

    Returns
    -------
    dict
        ``windows``, ``stimuli``, ``permutations``; ``margin``, and ``chance``, the margin that 5 % of the draws exceed; ``sensors``,
        ``bands`` and ``lags``, each with ``value`` (share of the margin that is lost with a part; None where the margin is not above 0),
        ``limit`` (the share that counts as chance: with it on every part, the largest exceeds its own in 5 % of the draws) and ``p``
        (corrected by the maximum); ``attention`` as `attend` gives it. Lags are read off estimates that are compared frame by frame with
        candidates of norm 1.

    Raises
    ------
    ValueError
        If there are fewer than two stimuli.
    """
    rows, truth, stimuli = choose(dataset.segments, n_windows, seed=seed)
    chosen = dataset.subset(rows)
    candidates = dataset.targets([rows[int(np.argmax(truth == j))] for j in range(len(stimuli))]).to(device, torch.float32)
    positions, present = _layout(dataset)
    regions = group_sensors(positions, present)
    edges = [(low, high) for low, high in BANDS if low < dataset.sfreq / 2]
    slabs = _slabs(dataset.n_times, dataset.sfreq)
    bins, lag_of = _lag_bins(dataset, slabs)

    training = encoder.training
    encoder.to(device).eval()
    sums = _Sums(len(stimuli))
    try:
        with torch.inference_mode(), torch.autocast(torch.device(device).type, enabled=False):
            starts = range(0, len(chosen), batch_size)
            for start in tqdm(starts, desc="attribution", unit="batch", disable=not progress):
                own = truth[start : start + batch_size]
                batch = chosen.batch(np.arange(start, start + len(own))).to(device)
                whole = _estimate(encoder, batch, batch.signal)
                full = scores(whole, candidates)
                sums.add("margin", 0, full, own)
                for k, part in enumerate(_without_regions(batch.signal, regions)):
                    sums.add("sensors", k, full - scores(_estimate(encoder, batch, part), candidates), own)
                for k, part in enumerate(_without_bands(batch.signal, edges, dataset.sfreq)):
                    sums.add("bands", k, full - scores(_estimate(encoder, batch, part), candidates), own)
                unit = candidates / candidates.flatten(1).norm(dim=1).clamp_min(1e-8)[:, None, None]
                sums.add("total", 0, torch.einsum("bft,nft->bn", whole, unit), own)
                for slab, lags in zip(slabs, lag_of, strict=True):
                    part = batch.signal.clone()
                    part[:, :, slab] = 0
                    lost = whole - _estimate(encoder, batch, part)
                    for k in range(len(bins)):
                        at = torch.from_numpy(np.flatnonzero(lags == k)).to(lost.device)
                        if len(at):
                            sums.add("lags", k, torch.einsum("bft,nft->bn", lost[..., at], unit[..., at]), own)
            attention = attend(encoder, dataset)
    finally:
        encoder.train(training)

    draws = np.concatenate(list(statistics.shuffled_blocks(_blocks(stimuli), n_permutations, seed=seed)))
    margin, null = sums.take("margin", 1, len(rows), draws)
    total, _ = sums.take("total", 1, len(rows), draws)
    scale = {name: float(m[0]) if m[0] > 0 else np.nan for name, m in (("margin", margin), ("total", total))}

    def test(kind: str, n_parts: int, whole: float) -> dict[str, list]:
        return _test(*sums.take(kind, n_parts, len(rows), draws), whole)

    by_sensor = np.empty(dataset.n_channels, int)
    for k, region in enumerate(regions):
        by_sensor[region] = k
    sensors = {name: [values[k] for k in by_sensor] for name, values in test("sensors", len(regions), scale["margin"]).items()}
    # Every slab stands for a part of the window: together they are scaled up to all of it.
    share = scale["total"] * sum(s.stop - s.start for s in slabs) / dataset.n_times
    return {
        "windows": len(rows),
        "stimuli": len(stimuli),
        "permutations": len(draws),
        "margin": _digits(margin)[0],
        "chance": _digits([np.quantile(null[0], 1 - ALPHA)])[0],
        "sensors": {"names": list(dataset.ch_names), "positions": [_digits(p) for p in positions], "regions": len(regions), **sensors},
        "bands": {"hertz": [[a, min(b, dataset.sfreq / 2)] for a, b in edges], **test("bands", len(edges), scale["margin"])},
        "lags": {"lag": [round(float(b), 4) for b in bins], **test("lags", len(bins), share)},
        "attention": attention,
    }


class _Sums:
    """Scores summed by stimulus: what is left of (W, N) matrices of many parts, shape (N, N) each."""

    def __init__(self, n_stimuli: int):
        self.n_stimuli = n_stimuli
        self.matrices: dict[tuple[str, int], np.ndarray] = {}

    def add(self, kind: str, part: int, scores: Tensor, own: np.ndarray) -> None:
        matrix = self.matrices.setdefault((kind, part), np.zeros((self.n_stimuli, self.n_stimuli)))
        np.add.at(matrix, own, scores.double().cpu().numpy())

    def take(self, kind: str, n_parts: int, n_windows: int, draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give mean margins (K,) with the right candidates and (K, R) with those of the draws."""
        n = self.n_stimuli
        nothing = np.zeros((n, n))
        observed, null = np.empty(n_parts), np.empty((n_parts, len(draws)))
        for k in range(n_parts):
            matrix = self.matrices.get((kind, k), nothing)
            margins = (matrix - matrix.mean(1, keepdims=True)) * n / (n - 1) / n_windows  # own minus the mean of the others
            observed[k] = np.trace(margins)
            null[k] = margins[np.arange(n), draws].sum(1)
        return observed, null


def _test(observed: np.ndarray, null: np.ndarray, scale: float) -> dict[str, list]:
    """Test each part against the largest of all parts, each in units of its own null."""
    mean, spread = null.mean(1), null.std(1)
    safe = np.where(spread > 1e-9 * max(float(np.abs(observed).max(initial=0)), 1e-12), spread, np.inf)
    largest = ((null - mean[:, None]) / safe[:, None]).max(0)
    p = (1 + (largest[None] >= ((observed - mean) / safe)[:, None] - statistics.TOLERANCE).sum(1)) / (1 + null.shape[1])
    limit = mean + np.where(np.isfinite(safe), spread, 0) * np.quantile(largest, 1 - ALPHA)
    return {"value": _digits(observed / scale), "limit": _digits(limit / scale), "p": _digits(p)}


def _digits(values: Any) -> list[float | None]:
    return [float(f"{v:.4g}") if np.isfinite(v) else None for v in np.asarray(values, float)]


# ---------------------------------------------------------------------------------------------------------- which windows, which parts


def choose(segments: Sequence[Segment], n_windows: int, *, seed: int) -> tuple[list[int], np.ndarray, list[Segment]]:
    """Choose windows of evenly spaced stimuli, as many of each as there is room for, subjects at random.

    Returns
    -------
    rows : list of int, length W
    truth : array of int, shape (W,)
        Stimulus of each window.
    stimuli : list of Segment, length N
        In order of time, block by block.
    """
    of: dict[str, list[int]] = {}
    for i, s in enumerate(segments):
        of.setdefault(s.stimulus_id, []).append(i)
    firsts = sorted((members[0] for members in of.values()), key=lambda i: (*_place(segments[i]), i))
    kept = np.unique(np.linspace(0, len(firsts) - 1, min(len(firsts), MOST_STIMULI, n_windows)).round().astype(int))
    stimuli = [segments[firsts[j]] for j in kept]
    if len(stimuli) < 2:
        raise ValueError(f"Attribution needs at least two stimuli to tell apart, got {len(stimuli)}. Test on more windows.")
    rng = np.random.default_rng(seed)
    rounds = []
    for j, s in enumerate(stimuli):
        members = np.array(of[s.stimulus_id])[rng.permutation(len(of[s.stimulus_id]))]
        rounds += [(turn, rng.random(), int(i), j) for turn, i in enumerate(members)]
    picked = sorted((i, j) for _, _, i, j in sorted(rounds)[:n_windows])
    return [i for i, _ in picked], np.array([j for _, j in picked]), stimuli


def _place(segment: Segment) -> tuple[str, float]:
    if not segment.spans:
        return segment.recording, segment.onset
    return segment.spans[0].audio, segment.spans[0].start - segment.spans[0].onset


def _blocks(stimuli: Sequence[Segment]) -> np.ndarray:
    names = {block: k for k, block in enumerate(dict.fromkeys(s.block for s in stimuli))}
    return np.array([names[s.block] for s in stimuli])


def _each_recording(dataset: SegmentDataset) -> Batch:
    """Give one window of every recording."""
    first: dict[str, int] = {}
    for i, s in enumerate(dataset.segments):
        first.setdefault(s.recording, i)
    return dataset.batch(list(first.values()))


def _layout(dataset: SegmentDataset) -> tuple[np.ndarray, np.ndarray]:
    """Average the positions over recordings, shape (C, 2), NaN where none has one; and which channels are there at all."""
    batch = _each_recording(dataset)
    known = batch.channel_mask & ~batch.positions.isnan().any(2)
    total = torch.where(known[..., None], batch.positions, 0.0).double().sum(0)
    mean = total / known.sum(0)[:, None]  # 0 / 0 is NaN: nowhere placed
    return mean.numpy(), batch.channel_mask.any(0).numpy()


def group_sensors(positions: np.ndarray, present: np.ndarray, most: int = MOST_REGIONS) -> list[np.ndarray]:
    """Part sensors into at most ``most`` regions of neighbours: each alone where there are few; those without a position by their order.

    Parameters
    ----------
    positions : array, shape (C, 2)
    present : array of bool, shape (C,)

    Returns
    -------
    list of array of int
        Every channel in exactly one.
    """
    n_channels = len(positions)
    if n_channels <= most:
        return [np.array([c]) for c in range(n_channels)]
    placed = np.isfinite(positions).all(1) & present
    if placed.sum() <= most // 2:
        return np.array_split(np.arange(n_channels), most)
    where = positions[placed]
    centres = [int(np.argmin(((where - where.mean(0)) ** 2).sum(1)))]
    distance = np.full(len(where), np.inf)
    while len(centres) < most - (not placed.all()):  # the farthest from all centres so far is the next
        distance = np.minimum(distance, ((where - where[centres[-1]]) ** 2).sum(1))
        centres.append(int(np.argmax(distance)))
    nearest = ((where[:, None] - where[centres][None]) ** 2).sum(2).argmin(1)
    index = np.flatnonzero(placed)
    groups = [index[nearest == k] for k in range(len(centres))]
    return [g for g in groups if len(g)] + ([np.flatnonzero(~placed)] if not placed.all() else [])


def _estimate(encoder: nn.Module, batch: Batch, signal: Tensor) -> Tensor:
    return estimator(encoder)(replace(batch, signal=signal)).float()


def _without_regions(signal: Tensor, regions: Sequence[np.ndarray]) -> Iterator[Tensor]:
    for region in regions:
        part = signal.clone()
        part[:, torch.from_numpy(region).to(signal.device)] = 0
        yield part


def _without_bands(signal: Tensor, edges: Sequence[tuple[float, float]], sfreq: float) -> Iterator[Tensor]:
    # Mirrored at its end a window has no jump, which would spill every band into all others.
    n_times = signal.shape[2]
    spectrum = torch.fft.rfft(torch.cat([signal, signal.flip(2)], dim=2), dim=2)
    hertz = torch.fft.rfftfreq(2 * n_times, 1 / sfreq, device=signal.device)
    for low, high in edges:
        outside = (hertz < low) | (hertz >= high)
        yield torch.fft.irfft(spectrum * outside, n=2 * n_times, dim=2)[..., :n_times]


def _slabs(n_times: int, sfreq: float) -> list[slice]:
    """Place short stretches of signal evenly over the middle half of a window."""
    n = min(max(1, to_samples(SLAB, sfreq)), max(1, n_times // 4))
    firsts = np.unique(np.linspace(n_times // 4, max(n_times // 4, 3 * n_times // 4 - n), N_SLABS).round().astype(int))
    return [slice(int(f), int(f) + n) for f in firsts]


def _lag_bins(dataset: SegmentDataset, slabs: Sequence[slice]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Give the middles of the bins of lags, and for each slab the bin of every frame of the estimate (-1: none)."""
    step = (slabs[0].stop - slabs[0].start) / dataset.sfreq
    bins = np.arange(np.ceil(LAGS[0] / step), np.floor(LAGS[1] / step) + 1) * step
    times = np.arange(dataset.n_times)
    out = []
    for slab in slabs:
        middle = (slab.start + slab.stop - 1) / 2
        lag = (middle - times) / dataset.sfreq + to_samples(dataset.config.lag, dataset.sfreq) / dataset.sfreq
        k = np.floor(lag / step + 0.5 + 1e-6).astype(int) - round(bins[0] / step)
        out.append(np.where((k >= 0) & (k < len(bins)), k, -1))
    return bins, out


# --------------------------------------------------------------------------------------------------------------------- spatial attention


@torch.inference_mode()
def attend(encoder: nn.Module, dataset: SegmentDataset) -> Mapping[str, Any] | None:
    """Give the weights of an encoder's spatial attention on the sensors, averaged over recordings; None if it has none.

    Returns
    -------
    dict
        ``n_heads``; ``mean``: weight of each sensor, averaged over heads, times the number of sensors (1: as much as any). ``heads``:
        those that look most at one place, no two at the same sensor: ``head`` and the ``weight`` of each sensor.
    """
    attention = getattr(encoder, "spatial_attention", None)
    if not isinstance(attention, SpatialAttention):
        return None
    training = attention.training
    attention.eval()
    device = attention.heads.device
    batch = _each_recording(dataset)
    positions, available, layout = attention.find_layouts(batch.positions.to(device), batch.channel_mask.to(device))
    weights = attention.attend(positions, available).double().cpu().numpy()  # (L, V, C)
    attention.train(training)
    counts = np.ones(1) if layout is None else np.bincount(layout.cpu().numpy(), minlength=len(weights))
    mean = np.einsum("l,lvc->vc", counts / counts.sum(), weights)
    heads: list[dict[str, Any]] = []
    taken: set[int] = set()
    for head in np.argsort(-mean.max(1), kind="stable"):
        peak = int(mean[head].argmax())
        if peak not in taken and len(heads) < N_HEADS:
            taken.add(peak)
            heads.append({"head": int(head), "weight": _digits(mean[head] * mean.shape[1])})
    return {"n_heads": len(mean), "mean": _digits(mean.mean(0) * mean.shape[1]), "heads": heads}
