"""How far a fit has come: all that its next step depends on, how that is kept and put back, and where a signal ends it."""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brainspeech import augment, hub, processes, sampling, stopping
from brainspeech.batches import Batch, SegmentDataset
from brainspeech.checkpoint import Generators, State, Store
from brainspeech.settings import MAY_CHANGE, TrainConfig
from brainspeech.watching import listed, not_finite

ASKED_EVERY = 50  # steps after which processes with GPUs ask each other whether to stop


@dataclass(eq=False)
class Run:
    """Everything that changes while a fit runs, and what it is made of."""

    encoder: nn.Module
    estimate: Callable[[Batch], Tensor]  # by the encoder, or what it was compiled to
    loss: nn.Module
    optimiser: Any
    accelerator: Any
    config: TrainConfig
    data: str
    trained: dict[str, nn.Parameter]  # of encoder and loss, in the order in which the optimiser has them
    tf32: bool  # whether the encoder may multiply in TF32
    checkpoint: Path | None = None  # where they are kept
    side: Any = None  # the stream of a GPU on which batches are made
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

    @property
    def made_of(self) -> dict[str, list[Any]]:
        """Class, name and options of encoder and loss, as JSON has them: what their weights do not tell apart."""
        parts = {"encoder": self.encoder, "loss": self.loss}
        return {
            part: [type(module).__qualname__, _plain(getattr(module, "name", "")), _plain(getattr(module, "config", None))]
            for part, module in parts.items()
        }

    def weights(self) -> dict[str, Tensor]:
        """Present weights and buffers of encoder and loss."""
        parts = {"encoder": self.encoder, "loss": self.loss}
        return {f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()}


def steps_of(dataset: SegmentDataset, config: TrainConfig, *, epoch: int | None) -> list[list[np.ndarray]]:
    """Give the rows of each process in each step: an epoch's training steps, or, without an epoch, all segments, always the same."""
    order = sampling.Order(config.sampler, config.batch_size, seed=config.seed, views=config.views)
    apart = config.negatives == "per_device"
    steps = sampling.share(order, dataset.stimulus_id.numpy(), epoch, n_processes=processes.count(), apart=apart)
    return steps if epoch is None else steps[: config.max_steps_per_epoch]


def begin(run: Run, store: Store | None, *, resume: bool) -> None:
    """Put a run where its checkpoint stands, or at the start, in all processes alike."""
    restored = False
    if store is not None:
        restored = processes.first(lambda: resume and _restore(run, store))
        processes.check_equal(f"checkpoint in {store.folder}", str(restored))
        if not restored:
            processes.alone(store.clear)
    processes.hand_out(list(run.weights().values()))
    if bad := not_finite(run.trained):
        what, advice = "The fit begins with", "Initialise encoder and loss anew, or load other weights."
        if store is not None and restored:
            what, advice = (
                f"{store.folder} holds",
                "Delete it and give the same command again: the fit begins anew. A lower learning rate may help.",
            )
        raise RuntimeError(f"{what} weights that are not finite: got NaN or infinity in {listed(bad)}. {advice}")


class Keeper:
    """Writes the checkpoints of a fit, and ends it where a signal asked for that; in several processes all do so after the same step."""

    def __init__(self, run: Run, store: Store | None, request: stopping.Request):
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


def data_digest(train: SegmentDataset, valid: SegmentDataset) -> str:
    """Identify the segments, channels, statistics and batch constants of a fit, so that it is not resumed on others."""
    rows = [[s.recording, s.onset, s.duration, s.stimulus_id] for dataset in (train, valid) for s in dataset.segments]
    shapes = [[d.ch_names, d.n_features, d.n_times, d.subjects, asdict(d.config), asdict(d.statistics)] for d in (train, valid)]
    return hashlib.sha256(json.dumps([rows, shapes, len(train)]).encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Give a value as JSON has it, the same in every process: a function by its name, other objects by their class."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Set):
        return sorted(json.dumps(_plain(inner)) for inner in value)
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return _plain(value.tolist())
    if isinstance(value, Path | torch.dtype | torch.device):
        return str(value)
    named = value if hasattr(value, "__qualname__") else type(value)  # what str gives may hold an address in memory
    return f"{named.__module__}.{named.__qualname__}"


def part_of(state: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}


def _snapshot(run: Run, generators: Generators) -> State:
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
        made_of=run.made_of,
    )


def _restore(run: Run, store: Store) -> bool:
    """Put a run where its checkpoint stands; False where there is none."""
    state = store.load()
    if state is None:
        return False
    mine = json.loads(json.dumps(asdict(run.config)))
    # What an earlier version did not have yet is at its default, which is what that version did.
    stored = json.loads(json.dumps(asdict(TrainConfig()))) | state.config
    unknown = sorted(state.config.keys() - mine.keys())
    if unknown:
        raise ValueError(
            f"{store.folder}: the checkpoint was written with settings that this version does not have: {', '.join(unknown)}. "
            "Install the version that wrote it, or use another run folder."
        )
    fixed = [k for k in mine if k not in MAY_CHANGE or (k == "resident" and "half" in (mine[k], stored[k]))]
    differing = [f"{k} (was {stored[k]}, now {mine[k]})" for k in fixed if stored[k] != mine[k]]
    if differing:
        raise ValueError(f"{store.folder}: cannot resume with another configuration: {', '.join(differing)}. Use another run folder.")
    if state.data != run.data:
        raise ValueError(
            f"{store.folder}: cannot resume on other segments, channels or lag than it was trained on. Use another run folder."
        )
    _refuse_others(run, state.made_of, where=store.folder)
    hub.load_state(run.encoder, part_of(state.weights, "encoder"), where=str(store.folder))
    hub.load_state(run.loss, part_of(state.weights, "loss"), where=str(store.folder))
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


def _refuse_others(run: Run, stored: Mapping[str, Any], *, where: Path) -> None:
    """Raise ValueError where a checkpoint was written with another encoder or loss, which may fit its weights all the same."""
    differing: list[str] = []
    for part, module in (("encoder", run.encoder), ("loss", run.loss)):
        if part in stored:
            (old_class, old_name, old), (new_class, new_name, new) = stored[part], run.made_of[part]
            if isinstance(old, dict) and isinstance(new, dict) and old_class == new_class:
                old = {name: value for name, value in _defaults(module).items() if name in new} | old
            differing += _differing(part, {"class": old_class, "name": old_name}, {"class": new_class, "name": new_name})
            differing += _differing(part, old, new)
    if differing:
        raise ValueError(f"{where}: cannot resume with another encoder or loss: {', '.join(differing)}. Use another run folder.")


def _defaults(module: nn.Module) -> dict[str, Any]:
    """Give a module's options at their defaults, which is what a version did that did not have them yet."""
    return {p.name: _plain(p.default) for p in inspect.signature(type(module)).parameters.values() if p.default is not p.empty}


def _differing(name: str, old: Any, new: Any) -> list[str]:
    """Name the options that differ: ``loss.temperature (was 1.0, now 0.05)``."""
    if isinstance(old, dict) and isinstance(new, dict):
        absent = "no such option"
        return [text for key in sorted({*old, *new}) for text in _differing(f"{name}.{key}", old.get(key, absent), new.get(key, absent))]
    same = old == new or json.dumps(old) == json.dumps(new)  # 1 is 1.0 in the one, NaN is itself in the other
    return [] if same else [f"{name} (was {old}, now {new})"]
