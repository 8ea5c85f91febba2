"""Fit an encoder with a contrastive loss; the only home of the engine (accelerate).

A run can be killed at any moment: every epoch, and every few minutes within one, a checkpoint replaces the one before in one step, and a
resumed run goes on exactly where the last checkpoint stands, on a CPU to the last bit.

Nothing in a step waits for a GPU: batches are made ahead; losses, and flags of what is not finite, stay on the device and are read now
and then.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from tqdm import tqdm

from brainspeech import augment, backend, host, loading, memory, processes, retrieval, similarity, stopping, teamwork
from brainspeech.batches import Batch, SegmentDataset
from brainspeech.checkpoint import Generators, Store
from brainspeech.models.base import estimator
from brainspeech.models.linear import Ridge
from brainspeech.running import Keeper, Run, begin, data_digest, part_of, steps_of
from brainspeech.settings import HOW, TrainConfig
from brainspeech.watching import Watch

__all__ = ["HOW", "Checkpoint", "TrainConfig", "fit", "fit_ridge"]

logger = logging.getLogger(__name__)

# tqdm's own without the rate, so that how the last epoch went has room in 100 columns.
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A fitted encoder.

    Parameters
    ----------
    encoder, loss : nn.Module
        In eval mode, with the weights of the best epoch.
    history : list of dict
        One per epoch: epoch (from 0), step, train_loss, valid_loss, valid_top10 (fraction), lr, seconds, and n_processes where several
        ended it.
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
        If there are fewer than two training or validation segments, or too few for the processes, nothing requires a gradient, a loss
        cannot be compared over processes as the configuration says, the checkpoint belongs to another configuration or other data, or an
        augmentation does not take its options.
    RuntimeError
        If an estimate, the loss or a gradient is not finite (the error names the batch's segments), weights are not from the start, the
        checkpoint is damaged or cannot be written, memory does not suffice, or there is no compiler for ``compile``.
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
    # Encoder first: the order is what the optimiser's checkpoint goes by.
    parts = {"encoder": encoder, "loss": loss}
    trained = {f"{part}.{key}": p for part, module in parts.items() for key, p in module.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("There is nothing to fit: no parameter of the encoder or the loss requires a gradient. Unfreeze some of them.")
    fused = True if device.type == "cuda" else None
    optimiser = torch.optim.Adam(trained.values(), lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    store = None if out is None else Store(Path(out))
    run = Run(
        encoder,
        estimator(backend.compiled(encoder, device) if config.compile else encoder),
        loss,
        accelerator.prepare(optimiser),
        accelerator,
        config,
        data_digest(train, valid),
        trained,
        tf32=config.tf32 and precision == "fp32",
        checkpoint=None if store is None else store.folder,
        side=loading.side_stream(device),
        augmentation=augment.Augmentation(config.augment, sfreq=train.sfreq) if config.augment else None,
    )
    progress = progress and processes.is_first()
    with ExitStack() as stack:
        if device.type == "cpu":
            stack.enter_context(memory.kept())
        stack.enter_context(backend.roomy(config.batch_size))
        stack.enter_context(backend.seeded(config.seed))
        stack.enter_context(backend.tf32(run.tf32))
        request = stack.enter_context(stopping.at_boundary()) if store else stopping.Request()
        run.average = stack.enter_context(teamwork.spread(run, train, valid))
        begin(run, store, resume=resume)
        resumed_at = len(run.history)
        keeper = Keeper(run, store, request)
        (train, valid), placed = loading.place([train, valid], device, config.resident, reduced=precision == "bf16")
        n_steps = len(steps_of(train, config, epoch=0))
        done = resumed_at * n_steps + run.step
        total = config.max_epochs * n_steps
        with tqdm(total=total, initial=done, desc=name, unit="step", bar_format=BAR, disable=not progress) as bar:
            if device.type != "cpu":
                bar.write(f"{name}: {placed}", file=sys.stderr) if progress else logger.info("%s: %s", name, placed)
            chance = retrieval.chance(10, len(valid.unique()))
            if run.history:
                bar.set_postfix_str(_say(run.history[-1], chance))
            while not run.finished:
                _run_epoch(run, train, valid, bar, keeper)
                bar.set_postfix_str(_say(run.history[-1], chance))
                keeper.ask(now=True)
                keeper.keep()
        keeper.ask(now=True)
        keeper.stop()
    encoder.load_state_dict(part_of(run.best, "encoder"))
    loss.load_state_dict(part_of(run.best, "loss"))
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


def _engine(precision: str) -> tuple[Accelerator, str]:
    """Give the accelerator and the precision it computes in."""
    native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    chosen = ("bf16" if native else "fp32") if precision == "auto" else precision
    # accelerate keeps one precision per process and refuses another; a second fit may well want one.
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision="bf16" if chosen == "bf16" else "no")
    return accelerator, chosen


def _run_epoch(run: Run, train: SegmentDataset, valid: SegmentDataset, bar: tqdm, keeper: Keeper) -> None:
    """Train one pass, or what is left of it, validate, and keep the weights if they are the best so far."""
    began = time.perf_counter() - run.seconds
    config, epoch = run.config, len(run.history)
    steps, rank = steps_of(train, config, epoch=epoch), processes.rank()
    run.encoder.train()
    run.loss.train()
    watch = _watch(run, train)
    unread: list[Tensor] = []
    for rows, batch in loading.stream(train, [step[rank] for step in steps[run.step :]], run.accelerator.device, run.side):
        seed = (config.seed, epoch, run.step, *([rank] if rank else []))
        if rank:  # The first process draws on as a single one would, and its generators are kept; those of the others follow from the step.
            backend.reseed(seed)
        if run.augmentation is not None:
            batch = replace(batch, signal=run.augmentation(batch.signal, batch.channel_mask, seed=seed))
        run.optimiser.zero_grad()
        value, estimates = _compute(run, rows, batch, watch)
        if run.apart:  # processes are averaged; so that segments are, each counts by how many it has
            value = value * (len(rows) * len(steps[run.step]) / sum(map(len, steps[run.step])))
        _backward(run, value, estimates)
        run.average()
        watch.see_gradients(rows, run.trained)
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
    if processes.is_spread():
        entry["n_processes"] = processes.count()  # others may end the fit
    run.history.append(entry)
    run.step, run.losses, run.seconds = 0, [], 0.0
    if run.best_epoch == epoch:
        run.best = {key: value.detach().clone() for key, value in run.weights().items()}


def _say(entry: dict[str, Any], chance: float) -> str:
    """Say how an epoch's validation went; what matters most comes first, since a terminal cuts off the end."""
    top10, guessed = (f"{100 * share:.{0 if share >= 0.0995 else 1}f} %" for share in (entry["valid_top10"], chance))
    return f"valid top-10 {top10} (chance {guessed}), loss {entry['valid_loss']:.2f}"


def _watch(run: Run, dataset: SegmentDataset) -> Watch:
    return Watch(dataset, run.accelerator.device, len(run.history), lr=run.config.lr, checkpoint=run.checkpoint)


def _read(values: list[Tensor], *, apart: bool = False) -> list[float]:
    """Bring losses from the device, all at once, and empty the list; those of processes that are apart are averaged."""
    read = torch.stack(values).tolist() if values else []
    values.clear()
    return [value / processes.count() for value in processes.total(read)] if apart and read else read


def _compute(run: Run, rows: np.ndarray, batch: Batch, watch: Watch) -> tuple[Tensor, Tensor]:
    """Loss and estimates of this process's part of a batch; only the encoder runs in the reduced precision."""
    with run.accelerator.autocast():
        estimates = run.estimate(batch).float()
    watch.see("estimate", rows, estimates.detach().isfinite().flatten(1).all(1))
    try:
        with backend.tf32(False):
            value = run.loss(estimates, batch.target, row_ids=batch.stimulus_id, col_ids=batch.stimulus_id).loss
    except ValueError:
        if not processes.is_spread():
            watch.read()  # a loss that looks for itself knows rows, but not whose they are
        raise
    watch.see("loss", rows, value.detach().isfinite().expand(len(rows)))
    return value, estimates


def _backward(run: Run, value: Tensor, estimates: Tensor) -> None:
    """Give all gradients. What the loss multiplies has all bits on the way back, too: TF32 is for the encoder, which comes after it."""
    with ExitStack() as later:
        if run.tf32 and estimates.requires_grad:
            later.enter_context(backend.tf32(False))
            estimates.register_hook(lambda _: later.enter_context(backend.tf32(True)))
        run.accelerator.backward(value)


@torch.no_grad()
def _validate(run: Run, valid: SegmentDataset, pause: Callable[[], None]) -> tuple[float, float]:
    """Mean loss over the validation segments, and top-10 accuracy among their distinct stimuli; ``pause`` is called before each batch."""
    run.encoder.eval()
    run.loss.eval()
    device = run.accelerator.device
    first = valid.unique()
    candidates = valid.targets(first).to(device)
    column = {int(valid.stimulus_id[i]): j for j, i in enumerate(first)}
    scores = getattr(run.loss, "scores", similarity.candidate_normalised)
    watch = _watch(run, valid)
    steps, rank = steps_of(valid, run.config, epoch=None), processes.rank()
    mine = loading.stream(valid, [step[rank] for step in steps if len(step[rank])], device, run.side)
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
        own = host.upload(np.array([column[int(valid.stimulus_id[row])] for row in rows]), estimates.device)
        with backend.tf32(False):
            ranks.append(retrieval.ranks(estimates, candidates, own, scores=scores))
    watch.read()
    total = float(sum(value * n for value, n in zip(_read(values), weights, strict=True)))
    n_right = round(retrieval.topk_accuracy(torch.cat(ranks).cpu(), 10) * sum(map(len, ranks))) if ranks else 0
    all_total, all_right = processes.total([total, n_right])
    return (all_total if run.apart else total) / len(valid), all_right / len(valid)
