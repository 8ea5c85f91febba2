"""Fit an encoder with a contrastive loss; the only home of the engine (accelerate).

A run can be killed at any moment: every epoch, and every few minutes within one, a checkpoint replaces the one before in one step, and a
resumed run goes on exactly where the last checkpoint stands, on a CPU to the last bit.

Nothing in a step waits for a GPU: batches are made ahead; losses, and flags of what is not finite, stay on the device and are read now
and then.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm import tqdm

from brainspeech import augment, hub, loading, memory, processes, retrieval, sampling, similarity, stopping
from brainspeech.batches import Batch, SegmentDataset
from brainspeech.checkpoint import Generators, State, Store
from brainspeech.models.base import estimator
from brainspeech.models.linear import Ridge
from brainspeech.models.synchronised import synchronised
from brainspeech.watching import Watch

logger = logging.getLogger(__name__)

PRECISIONS = ("auto", "fp32", "bf16")
NEGATIVES = ("gathered", "per_device")
# How a fit is run, not what comes out: the same run may be given other values. ("half" of resident is another run.)
HOW = ("resident", "checkpoint_minutes")
# A finished or stopped run may be given more epochs or more patience; anything else would be another run.
MAY_CHANGE = ("max_epochs", "patience", *HOW)
ASKED_EVERY = 50  # steps after which processes with GPUs ask each other whether to stop


@dataclass(frozen=True)
class TrainConfig:
    """How an encoder is fitted. The defaults are those of [1] (Défossez et al. 2023).

    Parameters
    ----------
    lr : float
        Learning rate of Adam, constant.
    batch_size : int
        Segments per step, over all processes together; all but one of them are negatives.
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
    tf32 : bool
        With fp32 on a GPU, let the encoder multiply in TF32: 10 bits of mantissa, sums in fp32, faster since Ampere. False gives all 23
        bits, also to convolutions, which PyTorch computes in TF32 by default. What the loss multiplies has all bits in any case.
    compile : bool
        Compile the encoder (torch.compile): a minute or more at the start, faster steps after it. Needs a C++ compiler. Random numbers are
        drawn by another generator than without, so it is another run.
    resident : {"auto", "full", "half", "never"}
        What a GPU keeps of the data. "full": all signals and tracks; "half": the same with 16 bits per number (off by 1/2048 of a value at
        most); "never": nothing, batches are gathered in pinned memory and sent ahead. "auto" is full where it takes no more than half of
        the free memory, failing that half where the encoder computes in bf16 anyway, failing that the tracks alone. On a CPU "auto" and
        "never" are one.
    sampler : {"segments", "grouped"}
        "segments" draws segments one by one, as in [1]. "grouped" puts all segments of one stimulus (the listeners who heard it) into one
        batch, so that a loss over several views has them; a batch is full when the next group does not go in.
    views : int or None
        With "grouped", at most so many segments of a stimulus go into a batch; the others go into other batches of the epoch.
    negatives : {"gathered", "per_device"}
        With several processes: "gathered" compares each segment with those of all processes, so that the loss is that of one process with
        the whole batch; "per_device" with those of its own process, as in [1], where a batch of 256 was two times 128.
    synchronise : bool
        With several processes: batch norm over the whole batch, and one centre of spatial dropout for all, as in one process. False, as in
        [1]: each process by itself; the running statistics are the first one's.
    augment : tuple of (str, dict)
        Transforms of the training signal in this order (``brainspeech.augment``); a name alone has no options. None by default, as in [1].
    checkpoint_minutes : float
        Minutes after which a checkpoint is written within an epoch: what a power cut can cost at most. 0 is after every step.
    """

    lr: float = 3e-4
    batch_size: int = 256
    max_epochs: int = 200
    max_steps_per_epoch: int = 1200
    patience: int = 10
    seed: int = 2036
    weight_decay: float = 0.0
    precision: str = "auto"
    tf32: bool = True
    compile: bool = False
    resident: str = "auto"
    sampler: str = "segments"
    views: int | None = None
    negatives: str = "gathered"
    synchronise: bool = False
    augment: tuple[Any, ...] = ()
    checkpoint_minutes: float = 10.0

    def __post_init__(self) -> None:
        names = {"precision": PRECISIONS, "resident": loading.RESIDENT, "sampler": sampling.SAMPLERS, "negatives": NEGATIVES}
        for name, known in names.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if not self.checkpoint_minutes >= 0:
            raise ValueError(f"checkpoint_minutes must be at least 0, got {self.checkpoint_minutes}.")
        if self.views is not None and (self.views < 1 or self.sampler != "grouped"):
            raise ValueError(
                f'views must be at least 1 or None, and goes with sampler="grouped", got {self.views} with sampler={self.sampler!r}.'
            )
        if self.synchronise and self.compile:
            raise ValueError("synchronise=True and compile=True do not go together: set one of them to False.")
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
        The first epoch that this call ran or went on with; 0 for a fresh fit.
    placed : str
        Where the data were while it was fitted, and how large they are.
    n_processes : int
    """

    encoder: nn.Module
    loss: nn.Module
    history: list[dict[str, Any]]
    best_epoch: int
    path: Path | None
    device: str
    precision: str
    resumed_at: int = 0
    placed: str = ""
    n_processes: int = 1


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

    With a run folder, SIGTERM and Ctrl-C stop it after the step that is being taken, with a checkpoint from which ``resume`` goes on.

    Started by torchrun or accelerate launch, all processes call it with the same arguments: each takes its part of every batch, and all
    give back the same weights. The first one writes.

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
        If there are fewer than two training or validation segments, or too few for the processes, a loss cannot be compared over
        processes as the configuration says, the checkpoint belongs to another configuration or other data, or an
        augmentation does not take its options.
    RuntimeError
        If the loss is not finite (the error names the batch's segments), the checkpoint is damaged or cannot be written, the data do not
        fit a device that is to keep them, or there is no compiler for ``compile``.
    stopping.Stopped
        If a signal ended it.
    """
    for what, dataset in (("training", train), ("validation", valid)):
        if len(dataset) < 2:
            raise ValueError(f"A fit needs at least two {what} segments (a segment and a negative), got {len(dataset)}.")
    if resume and out is None:
        raise ValueError("resume=True needs the run folder, got out=None.")
    processes.start()
    accelerator, precision = _engine(config.precision)
    device = accelerator.device
    encoder.to(device)
    loss.to(device)
    # One list, encoder first: the order is what the optimiser's checkpoint goes by.
    parameters = [p for p in [*encoder.parameters(), *loss.parameters()] if p.requires_grad]
    fused = True if device.type == "cuda" else None
    optimiser = torch.optim.Adam(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    optimiser = accelerator.prepare(optimiser)
    augmentation = augment.Augmentation(config.augment, sfreq=train.sfreq) if config.augment else None
    estimate = _compile(encoder, device) if config.compile else encoder
    run = _Run(encoder, estimator(estimate), loss, optimiser, accelerator, config, _data_digest(train, valid), augmentation)
    store = None if out is None else Store(Path(out))
    progress = progress and processes.is_first()
    with ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(memory.kept())
        stack.enter_context(_seeded(config.seed))
        stack.enter_context(_tf32(config.tf32 and precision == "fp32"))
        request = stack.enter_context(stopping.at_boundary()) if store else stopping.Request()
        run.average = stack.enter_context(_spread(run, parameters, train, valid))
        _begin(run, store, resume=resume)
        resumed_at = len(run.history)
        keeper = _Keeper(run, store, request)
        (train, valid), placed = loading.place([train, valid], device, config.resident, reduced=precision == "bf16")
        n_steps = len(_steps(train, config, epoch=0))
        done = resumed_at * n_steps + run.step
        with tqdm(total=config.max_epochs * n_steps, initial=done, desc=name, unit="step", disable=not progress) as bar:
            if device.type != "cpu":
                bar.write(f"{name}: {placed}", file=sys.stderr) if progress else logger.info("%s: %s", name, placed)
            while not run.finished:
                _run_epoch(run, train, valid, bar, keeper)
                keeper.ask(now=True)
                keeper.keep()
        keeper.ask(now=True)
        keeper.stop()
    encoder.load_state_dict(_part(run.best, "encoder"))
    loss.load_state_dict(_part(run.best, "loss"))
    return Checkpoint(
        encoder=encoder.eval(),
        loss=loss.eval(),
        history=run.history,
        best_epoch=run.best_epoch,
        path=None if store is None else store.folder,
        device=device.type,
        precision=precision,
        resumed_at=resumed_at,
        placed=placed,
        n_processes=processes.count(),
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
    estimate: Callable[[Batch], Tensor]  # by the encoder, or what it was compiled to
    loss: nn.Module
    optimiser: Any
    accelerator: Accelerator
    config: TrainConfig
    data: str
    augmentation: augment.Augmentation | None = None
    average: Callable[[], None] = lambda: None  # waits until gradients are averaged over processes
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0  # of the epoch after the history
    losses: list[float] = field(default_factory=list)  # of these steps
    seconds: float = 0.0  # spent on them

    @property
    def best_epoch(self) -> int:
        """The epoch with the lowest validation loss, the first of equals; -1 before the first."""
        return min(range(len(self.history)), key=lambda e: self.history[e]["valid_loss"], default=-1)

    @property
    def finished(self) -> bool:
        """Whether there is no epoch left, or no patience."""
        epochs = len(self.history)
        return epochs >= self.config.max_epochs or epochs - 1 - self.best_epoch >= self.config.patience

    @property
    def apart(self) -> bool:
        """Whether each of several processes compares its segments with each other only."""
        return processes.is_spread() and self.config.negatives == "per_device"

    def weights(self) -> dict[str, Tensor]:
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
    return accelerator, chosen


@contextmanager
def _spread(run: _Run, parameters: Sequence[nn.Parameter], *parts: SegmentDataset) -> Iterator[Callable[[], None]]:
    """Make several processes train one encoder inside the block; nothing where there is one."""
    n, config = processes.count(), run.config
    if n == 1:
        yield run.average
        return
    losses: list[Any] = [part for part in run.loss.modules() if isinstance(getattr(part, "gather", None), bool)]
    gathered = config.negatives == "gathered"
    _check_spread(run, losses, parts)
    before = [part.gather for part in losses]
    with ExitStack() as stack:
        stack.enter_context(processes.together())
        if config.synchronise:
            stack.enter_context(synchronised(run.encoder, run.loss))
        for part in losses:
            part.gather = gathered
        try:
            # Batch norms that are synchronised exchange things in the backward pass.
            yield stack.enter_context(processes.averaged_gradients(parameters, meanwhile=not config.synchronise))
        finally:
            for part, was in zip(losses, before, strict=True):
                part.gather = was


def _check_spread(run: _Run, losses: Sequence[nn.Module], parts: Sequence[SegmentDataset]) -> None:
    """Refuse what several processes cannot do together."""
    n, config = processes.count(), run.config
    processes.check_equal("configuration, segments and recordings", f"{run.data} {json.dumps(asdict(config))}")
    processes.check_equal("encoder and loss", str(_tensors(run)))
    if config.batch_size < 2 * n or (config.negatives == "per_device" and config.batch_size % n):
        raise ValueError(
            f"batch_size is shared by all processes: {n} of them need a multiple of {n}, at least {2 * n}, got {config.batch_size}."
        )
    small = min(len(part) for part in parts)
    if small < 2 * n:
        raise ValueError(f"{n} processes need at least {2 * n} segments in each split, got {small}. Start fewer processes.")
    if config.negatives == "gathered" and not losses:
        raise ValueError(
            f"{type(run.loss).__name__} compares with the segments of its own process only (it has no option gather): set "
            'negatives="per_device".'
        )
    norms = {id(b) for part in run.loss.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) for b in part.buffers()}
    remembers = [name for name, buffer in run.loss.named_buffers() if id(buffer) not in norms and buffer.numel() > 1]
    if config.negatives == "per_device" and remembers:
        raise ValueError(
            f"{type(run.loss).__name__} keeps something of every batch ({', '.join(remembers)}), which each process would have its own of: "
            'set negatives="gathered".'
        )
    _steps(parts[0], config, epoch=0)  # what cannot be shared out is refused before the first step, not after the last
    for part in parts[1:]:
        _steps(part, config, epoch=None)


def _tensors(run: _Run) -> list[tuple]:
    """List names, shapes and dtypes of encoder and loss, and what is trained."""
    trained = {f"{part}.{name}" for part in ("encoder", "loss") for name, p in getattr(run, part).named_parameters() if p.requires_grad}
    return [(name, tuple(tensor.shape), tensor.dtype, name in trained) for name, tensor in run.weights().items()]


def _begin(run: _Run, store: Store | None, *, resume: bool) -> None:
    """Put a run where its checkpoint stands, or at the start, in all processes alike."""
    if store is not None:
        restored = processes.first(lambda: resume and _restore(run, store))
        processes.check_equal(f"checkpoint in {store.folder}", str(restored))
        if not restored:
            processes.alone(store.clear)
    processes.hand_out(list(run.weights().values()))


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


def _steps(dataset: SegmentDataset, config: TrainConfig, *, epoch: int | None) -> list[list[np.ndarray]]:
    """Give the rows of each process in each step: an epoch's training steps, or, without an epoch, all segments, always the same."""
    order = sampling.Order(config.sampler, config.batch_size, seed=config.seed, views=config.views)
    apart = config.negatives == "per_device"
    steps = sampling.share(order, dataset.stimulus_id.numpy(), epoch, n_processes=processes.count(), apart=apart)
    return steps if epoch is None else steps[: config.max_steps_per_epoch]


def _compile(encoder: nn.Module, device: torch.device) -> Callable[..., Tensor]:
    """Compile an encoder, after a look at whether there is what that takes."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise RuntimeError(f"compile=True needs a C++ compiler, got no {compiler}. Install one (or name it in CXX), or set compile=False.")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise RuntimeError("compile=True needs triton on a GPU, which is not installed. Install it, or set compile=False.")
    return torch.compile(encoder)


@contextmanager
def _tf32(on: bool) -> Iterator[None]:
    """Let a GPU multiply in TF32 inside the block, or not."""
    if not torch.cuda.is_available():
        yield
        return
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = on
    try:
        yield
    finally:
        for backend, was in zip(backends, before, strict=True):
            backend.allow_tf32 = was


class _Keeper:
    """Writes the checkpoints of a fit, and ends it where a signal asked for that; in several processes all do so after the same step."""

    def __init__(self, run: _Run, store: Store | None, request: stopping.Request):
        self.run, self.store, self.request = run, store, request
        self.last = time.monotonic()
        self.signum = 0  # the signal that all processes know of
        self.n_asked = 0

    def ask(self, *, now: bool = False) -> bool:
        """Say whether a checkpoint is to be written here. Processes with GPUs come to an agreement every so many steps, or `now`."""
        if self.store is None:
            return False
        self.n_asked += 1
        rare = processes.is_spread() and self.run.accelerator.device.type != "cpu" and self.run.config.checkpoint_minutes > 0
        if rare and not now and self.n_asked % ASKED_EVERY:
            return False
        late = processes.is_first() and time.monotonic() - self.last >= 60 * self.run.config.checkpoint_minutes
        signum, due = processes.largest([self.request.signum, late])
        self.signum = int(signum)
        return bool(signum or due)

    def keep(self, generators: Generators | None = None) -> None:
        """Write a checkpoint, with the generators as they are unless earlier ones are given; then stop if that was asked for."""
        store = self.store
        if store is None:
            return
        processes.alone(lambda: store.save(_snapshot(self.run, generators or Generators.now())))
        self.last = time.monotonic()
        self.stop()

    def stop(self) -> None:
        """Raise ``Stopped`` if a signal asked for an end."""
        if not self.signum or self.store is None:
            return
        n_epochs, step = len(self.run.history), self.run.step
        place = f"in epoch {n_epochs} after step {step}" if step else f"after {n_epochs} epoch{'s' * (n_epochs != 1)}"
        raise stopping.Stopped(
            f"stopped by {stopping.name(self.signum)} {place}; the checkpoint {self.store.folder} has it all. "
            "The same command goes on from there.",
            self.signum,
        )


def _run_epoch(run: _Run, train: SegmentDataset, valid: SegmentDataset, bar: tqdm, keeper: _Keeper) -> None:
    """Train one pass, or what is left of it, validate, and keep the weights if they are the best so far."""
    began = time.perf_counter() - run.seconds
    config, epoch = run.config, len(run.history)
    steps, rank = _steps(train, config, epoch=epoch), processes.rank()
    run.encoder.train()
    run.loss.train()
    watch = Watch(train, run.accelerator.device, epoch)
    unread: list[Tensor] = []
    for rows, batch in loading.stream(train, [step[rank] for step in steps[run.step :]], run.accelerator.device):
        seed = (config.seed, epoch, run.step, *([rank] if rank else []))
        if rank:  # The first process draws on as a single one would, and its generators are kept; those of the others follow from the step.
            _reseed(seed)
        if run.augmentation is not None:
            batch = replace(batch, signal=run.augmentation(batch.signal, batch.channel_mask, seed=seed))
        run.optimiser.zero_grad()
        value, _ = _compute(run, rows, batch, watch)
        if run.apart:  # processes are averaged; so that segments are, each counts by how many it has
            value = value * (len(rows) * len(steps[run.step]) / sum(map(len, steps[run.step])))
        run.accelerator.backward(value)
        run.average()
        run.optimiser.step()
        unread.append(value.detach())
        run.step += 1
        bar.update()
        if keeper.ask():
            watch.read()
            run.losses += _read(unread, apart=run.apart)
            run.seconds = time.perf_counter() - began
            keeper.keep()
    watch.read()
    run.losses += _read(unread, apart=run.apart)
    # Running statistics steer no training; all validate with those that are kept.
    processes.hand_out([*run.encoder.buffers(), *run.loss.buffers()])
    generators = Generators.now()

    def pause() -> None:
        keeper.ask(now=True)
        if keeper.signum:
            run.seconds = time.perf_counter() - began
            keeper.keep(generators)

    valid_loss, top10 = _validate(run, valid, pause)
    n_steps = (run.history[-1]["step"] if run.history else 0) + len(steps)
    values = {"train_loss": float(np.mean(run.losses)), "valid_loss": valid_loss, "valid_top10": top10}
    values |= {"lr": config.lr, "seconds": round(time.perf_counter() - began, 3)}
    # All processes go by the first one's numbers: the last bits may differ, and with them the epoch in which a fit ends.
    entry = {"epoch": epoch, "step": n_steps, **dict(zip(values, processes.from_first(list(values.values())), strict=True))}
    run.history.append(entry)
    run.step, run.losses, run.seconds = 0, [], 0.0
    if run.best_epoch == epoch:
        run.best = {key: value.detach().clone() for key, value in run.weights().items()}
    bar.set_postfix(epoch=epoch, train=f"{entry['train_loss']:.3f}", valid=f"{valid_loss:.3f}", top10=f"{top10:.1%}")


def _read(values: list[Tensor], *, apart: bool = False) -> list[float]:
    """Bring losses from the device, all at once, and empty the list; those of processes that are apart are averaged."""
    read = torch.stack(values).tolist() if values else []
    values.clear()
    return [value / processes.count() for value in processes.total(read)] if apart and read else read


def _reseed(seed: Sequence[int]) -> None:
    """Seed torch's and Python's global generators with several numbers."""
    number = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    torch.manual_seed(number)
    random.seed(number)


def _compute(run: _Run, rows: np.ndarray, batch: Batch, watch: Watch) -> tuple[Tensor, Tensor]:
    """Loss and estimates of this process's part of a batch; only the encoder runs in the reduced precision."""
    with run.accelerator.autocast():
        estimates = run.estimate(batch).float()
    watch.see("estimate", rows, estimates.detach().isfinite().flatten(1).all(1))
    try:
        with _tf32(False):
            value = run.loss(estimates, batch.target, row_ids=batch.stimulus_id, col_ids=batch.stimulus_id).loss
    except ValueError:
        if not processes.is_spread():
            watch.read()  # a loss that looks for itself knows rows, but not whose they are
        raise
    watch.see("loss", rows, value.detach().isfinite().expand(len(rows)))
    return value, estimates


@torch.no_grad()
def _validate(run: _Run, valid: SegmentDataset, pause: Callable[[], None]) -> tuple[float, float]:
    """Mean loss over the validation segments, and top-10 accuracy among their distinct stimuli; ``pause`` is called before each batch."""
    run.encoder.eval()
    run.loss.eval()
    device = run.accelerator.device
    first = valid.unique()
    candidates = valid.targets(first).to(device)
    column = {int(valid.stimulus_id[i]): j for j, i in enumerate(first)}
    scores = getattr(run.loss, "scores", similarity.candidate_normalised)
    watch = Watch(valid, device, len(run.history))
    steps, rank = _steps(valid, run.config, epoch=None), processes.rank()
    mine = loading.stream(valid, [step[rank] for step in steps if len(step[rank])], device)
    values, weights, ranks = [], [], []
    for step in steps:
        pause()
        if not len(step[rank]):
            watch.skip()
            continue
        rows, batch = next(mine)
        value, estimates = _compute(run, rows, batch, watch)
        values.append(value)
        weights.append(len(rows) if run.apart else sum(map(len, step)))
        own = torch.tensor([column[int(valid.stimulus_id[row])] for row in rows], device=estimates.device)
        ranks.append(retrieval.ranks(estimates, candidates, own, scores=scores))
    watch.read()
    total = float(sum(value * n for value, n in zip(_read(values), weights, strict=True)))
    n_right = round(retrieval.topk_accuracy(torch.cat(ranks).cpu(), 10) * sum(map(len, ranks))) if ranks else 0
    all_total, all_right = processes.total([total, n_right])
    return (all_total if run.apart else total) / len(valid), all_right / len(valid)


def _data_digest(train: SegmentDataset, valid: SegmentDataset) -> str:
    """Identify the segments, channels, statistics and batch constants of a fit, so that it is not resumed on others."""
    rows = [[s.recording, s.onset, s.duration, s.stimulus_id] for dataset in (train, valid) for s in dataset.segments]
    shapes = [[d.ch_names, d.n_features, d.n_times, d.subjects, asdict(d.config), asdict(d.statistics)] for d in (train, valid)]
    return hashlib.sha256(json.dumps([rows, shapes, len(train)]).encode()).hexdigest()


def _part(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}


def _snapshot(run: _Run, generators: Generators) -> State:
    """Collect all that a fit goes on from."""
    optimiser = run.optimiser.state_dict()
    return State(
        config=asdict(run.config),
        data=run.data,
        weights=run.weights(),
        best=run.best,
        moments={f"{i}.{key}": value for i, state in optimiser["state"].items() for key, value in state.items()},
        param_groups=optimiser["param_groups"],
        history=run.history,
        step=run.step,
        losses=run.losses,
        seconds=run.seconds,
        generators=generators,
    )


def _restore(run: _Run, store: Store) -> bool:
    """Put a run where its checkpoint stands; False where there is none."""
    state = store.load()
    if state is None:
        return False
    mine = json.loads(json.dumps(asdict(run.config)))
    # What an earlier version did not have yet is at its default, which is what that version did.
    stored = json.loads(json.dumps(asdict(TrainConfig()))) | state.config
    fixed = [k for k in mine if k not in MAY_CHANGE or (k == "resident" and "half" in (mine[k], stored[k]))]
    differing = [f"{k} (was {stored[k]}, now {mine[k]})" for k in fixed if stored[k] != mine[k]]
    if differing:
        raise ValueError(f"{store.folder}: cannot resume with another configuration: {', '.join(differing)}. Use another run folder.")
    if state.data != run.data:
        raise ValueError(
            f"{store.folder}: cannot resume on other segments, channels or lag than it was trained on. Use another run folder."
        )
    hub.load_state(run.encoder, _part(state.weights, "encoder"), where=str(store.folder))
    hub.load_state(run.loss, _part(state.weights, "loss"), where=str(store.folder))
    run.best = {k: v.to(run.accelerator.device) for k, v in state.best.items()}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in state.moments.items():
        index, _, field_name = key.partition(".")
        moments.setdefault(int(index), {})[field_name] = value
    # Whether Adam is fused is a matter of the present device.
    present = run.optimiser.state_dict()["param_groups"]
    groups = [kept | {"fused": group["fused"]} for kept, group in zip(state.param_groups, present, strict=True)]
    run.optimiser.load_state_dict({"state": moments, "param_groups": groups})
    state.generators.put_back()
    run.history, run.step, run.losses, run.seconds = state.history, state.step, state.losses, state.seconds
    return True
