"""Fit an encoder with a contrastive loss; the only home of the engine (accelerate).

A run can be killed at any moment: each epoch ends with a checkpoint that replaces the one before in one step, and a resumed run goes on
exactly where the last checkpoint stands, on a CPU to the last bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm import tqdm

from brainspeech import __version__, augment, hub, retrieval, similarity
from brainspeech.batches import Batch, SegmentDataset
from brainspeech.models.linear import Ridge

PRECISIONS = ("auto", "fp32", "bf16")
# A finished or stopped run may be given more epochs or more patience; anything else would be another run.
MAY_CHANGE = ("max_epochs", "patience")
SHOWN = 8  # segments that an error names


@dataclass(frozen=True)
class TrainConfig:
    """How an encoder is fitted. The defaults are those of [1] (Défossez et al. 2023).

    Parameters
    ----------
    lr : float
        Learning rate of Adam, constant.
    batch_size : int
        Segments per step; all but one of them are negatives.
    max_epochs : int
    max_steps_per_epoch : int
        An epoch is a pass over the training segments or this many steps, whichever ends first.
    patience : int
        Epochs without a lower validation loss after which the fit stops.
    seed : int
        Of dropout and of the order of the segments. The encoder's initial weights are the caller's to seed.
    weight_decay : float
        Adam's (L2).
    precision : {"auto", "fp32", "bf16"}
        "auto" is bf16 on a GPU that has it natively, else fp32. The loss is in fp32 in any case.
    augment : tuple of (str, dict)
        Transforms of the training signal in this order (``brainspeech.augment``); a name alone has no options. None by default, as in [1].
    """

    lr: float = 3e-4
    batch_size: int = 256
    max_epochs: int = 200
    max_steps_per_epoch: int = 1200
    patience: int = 10
    seed: int = 2036
    weight_decay: float = 0.0
    precision: str = "auto"
    augment: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}.")
        if self.batch_size < 2:
            raise ValueError(f"batch_size must be at least 2 (a segment needs a negative), got {self.batch_size}.")
        for name in ("max_epochs", "max_steps_per_epoch", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not (self.lr > 0 and math.isfinite(self.lr) and self.weight_decay >= 0):
            raise ValueError(f"lr must be positive and weight_decay at least 0, got {self.lr} and {self.weight_decay}.")
        object.__setattr__(self, "augment", augment.check(self.augment))


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A fitted encoder.

    Parameters
    ----------
    encoder, loss : nn.Module
        In eval mode, with the weights of the best epoch.
    history : list of dict
        One per epoch: epoch (from 0), step, train_loss, valid_loss, valid_top10 (fraction), lr, seconds.
    best_epoch : int
        The epoch with the lowest validation loss.
    path : Path or None
        The checkpoint folder, if one was written.
    device, precision : str
        What it was fitted on ("cuda", "cpu") and in ("fp32", "bf16").
    resumed_at : int
        The first epoch that this call ran; 0 for a fresh fit.
    """

    encoder: nn.Module
    loss: nn.Module
    history: list[dict[str, Any]]
    best_epoch: int
    path: Path | None
    device: str
    precision: str
    resumed_at: int = 0


def fit(
    encoder: nn.Module,
    loss: nn.Module,
    train: SegmentDataset,
    valid: SegmentDataset,
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    name: str = "train",
) -> Checkpoint:
    """Train an encoder, stop early on the validation loss, and give it back with its best weights.

    Parameters
    ----------
    encoder : nn.Module
        (signal, positions, subject, channel_mask=) -> (B, F, T). Trained in place.
    loss : nn.Module
        (estimates, candidates, row_ids=, col_ids=) -> an object with ``.loss``; its parameters are trained too. Its ``scores`` rank the
        validation candidates; without it, ``similarity.candidate_normalised`` does.
    train, valid : SegmentDataset
    config : TrainConfig
    out : path, optional
        Run folder for ``checkpoint/`` and ``metrics.jsonl``. Without ``resume``, those of an earlier fit are removed.
    resume : bool
        Go on from the checkpoint in ``out``; start afresh where there is none yet.
    progress : bool
        Show a bar.
    name : str
        What the bar calls this fit.

    Raises
    ------
    ValueError
        If there are fewer than two training or validation segments, the checkpoint belongs to another configuration or other data, or an
        augmentation does not take its options.
    RuntimeError
        If the loss is not finite (the error names the batch's segments), or the checkpoint is damaged.
    """
    for what, dataset in (("training", train), ("validation", valid)):
        if len(dataset) < 2:
            raise ValueError(f"A fit needs at least two {what} segments (a segment and a negative), got {len(dataset)}.")
    if resume and out is None:
        raise ValueError("resume=True needs the run folder, got out=None.")
    accelerator, precision = _engine(config.precision)
    encoder.to(accelerator.device)
    loss.to(accelerator.device)
    # One list, encoder first: the order is what the optimiser's checkpoint goes by.
    parameters = [p for p in [*encoder.parameters(), *loss.parameters()] if p.requires_grad]
    optimiser = torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay)
    optimiser = accelerator.prepare(optimiser)
    augmentation = augment.Augmentation(config.augment, sfreq=train.sfreq) if config.augment else None
    run = _Run(encoder, loss, optimiser, accelerator, config, _data_digest(train, valid), augmentation)
    store = None if out is None else _Store(Path(out))
    with _seeded(config.seed):
        if store is not None and not (resume and store.load(run)):
            store.clear()
        resumed_at = len(run.history)
        n_steps = min(len(_batch_order(len(train), config, epoch=0)), config.max_steps_per_epoch)
        with tqdm(total=config.max_epochs * n_steps, initial=resumed_at * n_steps, desc=name, unit="step", disable=not progress) as bar:
            while not run.finished:
                _run_epoch(run, train, valid, bar)
                if store is not None:
                    store.save(run)
    encoder.load_state_dict(_part(run.best, "encoder"))
    loss.load_state_dict(_part(run.best, "loss"))
    return Checkpoint(
        encoder=encoder.eval(),
        loss=loss.eval(),
        history=run.history,
        best_epoch=run.best_epoch,
        path=None if store is None else store.folder,
        device=accelerator.device.type,
        precision=precision,
        resumed_at=resumed_at,
    )


def fit_ridge(
    train: SegmentDataset,
    valid: SegmentDataset,
    *,
    lags: Iterable[int],
    n_components: int = 64,
    alphas: Sequence[float] | None = None,
    batch_size: int = 256,
    progress: bool = True,
    name: str = "ridge",
) -> Ridge:
    """Fit a ridge backward model per subject, batch by batch.

    Parameters
    ----------
    train, valid : SegmentDataset
        The validation segments choose alpha.
    lags : iterable of int
        Samples by which the brain follows the sound, in equal steps, counted from the datasets' own lag (give datasets at lag 0).
    n_components : int
        Principal components that the target is reduced to.
    alphas : sequence of float, optional
        Those that are tried; ``Ridge`` has a default.
    batch_size : int
        Segments held at a time.
    progress : bool
        Show a bar.

    Returns
    -------
    Ridge
        Called like an encoder; its ``scores`` rank. ``counts`` says how many validation segments were of unseen subjects and how many
        subjects had their alpha chosen by the others.

    Raises
    ------
    ValueError
        If a training subject has no segment or a flat signal, a window is shorter than the lags, or no validation segment is of a
        training subject.
    """
    options = {} if alphas is None else {"alphas": tuple(alphas)}
    ridge = Ridge(len(train.subjects), train.n_features, n_channels=train.n_channels, lags=list(lags), n_components=n_components, **options)
    with tqdm(desc=name, unit="batch", disable=not progress) as bar:

        def stream(dataset: SegmentDataset) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for start in range(0, len(dataset), batch_size):
                batch = dataset.batch(range(start, min(start + batch_size, len(dataset))))
                yield batch.signal, batch.target, batch.subject
                bar.update()

        ridge.fit(lambda: stream(train), lambda: stream(valid))
    return ridge.eval()


@dataclass(eq=False)
class _Run:
    """Everything that changes while a fit runs, and what it is made of."""

    encoder: nn.Module
    loss: nn.Module
    optimiser: Any
    accelerator: Accelerator
    config: TrainConfig
    data: str
    augmentation: augment.Augmentation | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    @property
    def best_epoch(self) -> int:
        """The epoch with the lowest validation loss, the first of equals; -1 before the first."""
        return min(range(len(self.history)), key=lambda e: self.history[e]["valid_loss"], default=-1)

    @property
    def finished(self) -> bool:
        """Whether there is no epoch left, or no patience."""
        epochs = len(self.history)
        return epochs >= self.config.max_epochs or epochs - 1 - self.best_epoch >= self.config.patience

    def state(self) -> dict[str, Tensor]:
        """Present weights and buffers of encoder and loss."""
        parts = {"encoder": self.encoder, "loss": self.loss}
        return {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}


def _engine(precision: str) -> tuple[Accelerator, str]:
    """Give the accelerator and the precision it computes in."""
    native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    chosen = ("bf16" if native else "fp32") if precision == "auto" else precision
    # accelerate keeps one precision per process and refuses another; a second fit may well want one.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision="bf16" if chosen == "bf16" else "no")
    if accelerator.num_processes > 1:
        raise RuntimeError(f"A fit runs in one process, got {accelerator.num_processes}. Start it without a launcher.")
    return accelerator, chosen


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's and Python's global generators inside the block, and leave the caller's as they were."""
    state = random.getstate()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


def _batch_order(n: int, config: TrainConfig, *, epoch: int) -> list[np.ndarray]:
    """Cut an epoch's permutation into full batches; the rest waits for another epoch. A set smaller than a batch is one batch."""
    order = np.random.default_rng([config.seed, epoch]).permutation(n)
    if n <= config.batch_size:
        return [order]
    return np.split(order[: n // config.batch_size * config.batch_size], n // config.batch_size)


def _valid_batches(n: int, config: TrainConfig) -> list[np.ndarray]:
    """Cut all validation segments into batches of nearly equal size: the same in every epoch, mixed like those of training."""
    order = np.random.default_rng([config.seed, 0]).permutation(n)
    return np.array_split(order, min(math.ceil(n / config.batch_size), n // 2))


def _stream(dataset: SegmentDataset, batches: Sequence[np.ndarray], device: torch.device) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yield batches on the device. Beside a GPU, a thread gathers the next one while the present one is computed."""
    if device.type == "cpu":
        for rows in batches:
            yield rows, dataset.batch(rows)
        return
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(dataset.batch, batches[0])
        for i, rows in enumerate(batches):
            batch = ahead.result()
            if i + 1 < len(batches):
                ahead = pool.submit(dataset.batch, batches[i + 1])
            yield rows, batch.to(device)


def _run_epoch(run: _Run, train: SegmentDataset, valid: SegmentDataset, bar: tqdm) -> None:
    """Train one pass, validate, and keep the weights if they are the best so far."""
    began = time.perf_counter()
    config, epoch = run.config, len(run.history)
    batches = _batch_order(len(train), config, epoch=epoch)[: config.max_steps_per_epoch]
    run.encoder.train()
    run.loss.train()
    losses = []
    for step, (rows, batch) in enumerate(_stream(train, batches, run.accelerator.device)):
        if run.augmentation is not None:
            signal = run.augmentation(batch.signal, batch.channel_mask, seed=(config.seed, epoch, step))
            batch = replace(batch, signal=signal)
        run.optimiser.zero_grad()
        value, _ = _compute(run, train, rows, batch)
        run.accelerator.backward(value)
        run.optimiser.step()
        losses.append(value.item())
        bar.update()
    valid_loss, top10 = _validate(run, valid)
    n_steps = (run.history[-1]["step"] if run.history else 0) + len(batches)
    entry = {"epoch": epoch, "step": n_steps, "train_loss": float(np.mean(losses)), "valid_loss": valid_loss, "valid_top10": top10}
    run.history.append(entry | {"lr": config.lr, "seconds": round(time.perf_counter() - began, 3)})
    if run.best_epoch == epoch:
        run.best = {key: value.detach().clone() for key, value in run.state().items()}
    bar.set_postfix(epoch=epoch, train=f"{entry['train_loss']:.3f}", valid=f"{valid_loss:.3f}", top10=f"{top10:.1%}")


def _compute(run: _Run, dataset: SegmentDataset, rows: np.ndarray, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss and estimates of a batch; only the encoder runs in the reduced precision."""
    with run.accelerator.autocast():
        estimates = run.encoder(batch.signal, batch.positions, batch.subject, channel_mask=batch.channel_mask).float()
    finite = estimates.isfinite().flatten(1).all(1).cpu().numpy()
    if not finite.all():
        raise _not_finite("estimate", dataset, rows[~finite], run)
    value = run.loss(estimates, batch.target, row_ids=batch.stimulus_id, col_ids=batch.stimulus_id).loss
    if not math.isfinite(value.item()):
        raise _not_finite("loss", dataset, rows, run)
    return value, estimates


@torch.no_grad()
def _validate(run: _Run, valid: SegmentDataset) -> tuple[float, float]:
    """Mean loss over the validation segments, and top-10 accuracy among their distinct stimuli."""
    run.encoder.eval()
    run.loss.eval()
    first = valid.unique()
    candidates = valid.targets(first).to(run.accelerator.device)
    column = {int(valid.stimulus_id[i]): j for j, i in enumerate(first)}
    scores = getattr(run.loss, "scores", similarity.candidate_normalised)
    total, ranks = 0.0, []
    for rows, batch in _stream(valid, _valid_batches(len(valid), run.config), run.accelerator.device):
        value, estimates = _compute(run, valid, rows, batch)
        total += value.item() * len(rows)
        own = torch.tensor([column[int(i)] for i in batch.stimulus_id], device=estimates.device)
        ranks.append(retrieval.ranks(estimates, candidates, own, scores=scores).cpu())
    return total / len(valid), float(retrieval.topk_accuracy(torch.cat(ranks), 10))


def _not_finite(what: str, dataset: SegmentDataset, rows: np.ndarray, run: _Run) -> RuntimeError:
    """Say which segments had something to do with a NaN."""
    segments = [dataset.segments[i] for i in rows]
    names = ", ".join(f"{s.recording} at {s.onset:g} s" for s in segments[:SHOWN])
    more = f" and {len(segments) - SHOWN} more" if len(segments) > SHOWN else ""
    return RuntimeError(
        f"The {what} is not finite in epoch {len(run.history)}: got NaN or infinity for {names}{more}. "
        "Look at the signal of these recordings; if it is all of them, lower the learning rate. The last whole epoch's checkpoint stands."
    )


def _data_digest(train: SegmentDataset, valid: SegmentDataset) -> str:
    """Identify the segments, channels, statistics and batch constants of a fit, so that it is not resumed on others."""
    rows = [[s.recording, s.onset, s.duration, s.stimulus_id] for dataset in (train, valid) for s in dataset.segments]
    shapes = [[d.ch_names, d.n_features, d.n_times, d.subjects, asdict(d.config), asdict(d.statistics)] for d in (train, valid)]
    return hashlib.sha256(json.dumps([rows, shapes, len(train)]).encode()).hexdigest()


def _part(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}


class _Store:
    """The files of a fit: ``checkpoint/`` (state.json and safetensors) and ``metrics.jsonl``, one line per epoch."""

    def __init__(self, out: Path):
        out.mkdir(parents=True, exist_ok=True)
        self.folder = out / "checkpoint"
        self.metrics = out / "metrics.jsonl"

    def clear(self) -> None:
        """Remove what an earlier fit left: its metrics must not stand beside this one's."""
        hub.discard(self.folder)
        self.metrics.write_text("")

    def save(self, run: _Run) -> None:
        """Replace the checkpoint in one step, then add the epoch's line."""
        optimiser = run.optimiser.state_dict()
        moments = {f"{i}.{key}": value for i, state in optimiser["state"].items() for key, value in state.items()}
        generators = {"cpu": torch.get_rng_state()}
        generators |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())} if torch.cuda.is_available() else {}
        state = {
            "version": __version__,
            "config": asdict(run.config),
            "data": run.data,
            "history": run.history,
            # The order of an epoch follows from the seed and the epoch's number, so this is all there is to the sampler.
            "sampler": {"seed": run.config.seed, "next_epoch": len(run.history)},
            "param_groups": optimiser["param_groups"],
            "python_random": random.getstate(),
        }
        with hub.replacing(self.folder) as folder:
            hub.write_tensors(folder / "weights.safetensors", run.state())
            hub.write_tensors(folder / "best.safetensors", run.best)
            hub.write_tensors(folder / "optimiser.safetensors", moments)
            hub.write_tensors(folder / "generators.safetensors", generators)
            (folder / "state.json").write_text(json.dumps(state, indent=1))
        with self.metrics.open("a") as file:
            file.write(json.dumps(run.history[-1]) + "\n")

    def load(self, run: _Run) -> bool:
        """Put a run where the checkpoint stands; False where there is none."""
        hub.recover(self.folder)
        if not self.folder.exists():
            return False
        path = self.folder / "state.json"
        try:
            state = json.loads(path.read_text())
            stored, data = state["config"], state["data"]
            history, groups = state["history"], state["param_groups"]
            version, words, gauss = state["python_random"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RuntimeError(f"{path} is damaged or missing ({error}). Start without resuming, which replaces it.") from error
        mine = json.loads(json.dumps(asdict(run.config)))
        differing = [f"{k} (was {stored.get(k)}, now {mine[k]})" for k in mine if k not in MAY_CHANGE and stored.get(k) != mine[k]]
        if differing:
            raise ValueError(f"{self.folder}: cannot resume with another configuration: {', '.join(differing)}. Use another run folder.")
        if data != run.data:
            raise ValueError(
                f"{self.folder}: cannot resume on other segments, channels or lag than it was trained on. Use another run folder."
            )
        weights = hub.read_tensors(self.folder / "weights.safetensors")
        hub.load_state(run.encoder, _part(weights, "encoder"), where=str(self.folder))
        hub.load_state(run.loss, _part(weights, "loss"), where=str(self.folder))
        device = run.accelerator.device
        run.best = {k: v.to(device) for k, v in hub.read_tensors(self.folder / "best.safetensors").items()}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in hub.read_tensors(self.folder / "optimiser.safetensors").items():
            index, _, field_name = key.partition(".")
            moments.setdefault(int(index), {})[field_name] = value
        run.optimiser.load_state_dict({"state": moments, "param_groups": groups})
        generators = hub.read_tensors(self.folder / "generators.safetensors")
        torch.set_rng_state(generators.pop("cpu"))
        for key, value in generators.items():
            if torch.cuda.is_available() and int(key.removeprefix("cuda.")) < torch.cuda.device_count():
                torch.cuda.set_rng_state(value, int(key.removeprefix("cuda.")))
        random.setstate((version, tuple(words), gauss))
        run.history = history
        self.metrics.write_text("".join(json.dumps(entry) + "\n" for entry in history))
        return True
