"""What each of the two processes of test_processes does; imported by name in a spawned process."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from datetime import timedelta

import test_train as t
import torch
from torch import nn

from brainspeech import flow, losses, models, processes, stopping, train
from brainspeech.cache import Cache
from brainspeech.losses.joint import Joint
from brainspeech.models.conv import ConvEncoder
from brainspeech.models.layers import BatchNorm1d, SpatialAttention
from brainspeech.models.synchronised import synchronised


class DoubleConv(ConvEncoder):
    """The encoder in float64, so that what only rounding makes of a gradient of zero stays too small for Adam to act on."""

    def __init__(self, *, n_subjects, n_features, **options):
        super().__init__(n_subjects=n_subjects, n_features=n_features, **options)
        self.double()

    def forward(self, signal, positions, subject, channel_mask=None, **known):
        return super().forward(signal.double(), positions.double(), subject, channel_mask=channel_mask, **known)


def start(rank, port):
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
    processes.start()


def stop():
    processes.end()


def agree(rank):
    """All that processes tell each other."""

    def fail():
        raise OSError("the disk is full")

    done = []
    answers = {
        "who": (processes.rank(), processes.count(), processes.is_first(), processes.is_spread()),
        "largest": processes.largest([rank, -rank]),
        "total": processes.total([1.5, rank]),
        "from_first": processes.from_first([rank + 0.25]),
        "first": processes.first(lambda: done.append(rank) or rank),
        "alone": processes.alone(lambda: done.append(10 + rank) or 7),
    }
    answers["done"] = done
    for what, call in (
        ("failed", lambda: processes.alone(fail)),
        ("equal", lambda: processes.check_equal("shoes", "brown")),
        ("differing", lambda: processes.check_equal("shoes", f"brown {rank}")),
        ("equal and long", lambda: processes.check_equal("shoes", "hübsch" * processes.LONGEST)),
        ("differing late", lambda: processes.check_equal("shoes", "brown" * processes.LONGEST + str(rank))),
    ):
        try:
            answers[what] = call()
        except (OSError, RuntimeError) as error:
            answers[what] = f"{type(error).__name__}: {error}"
    return answers


def hand_out():
    """Give all processes the first one's tensors, of dtypes and layouts that encoders keep in their buffers."""
    number = processes.rank() + 1
    tensors = [
        torch.tensor([number == 1, number == 2]),
        torch.full((2,), number, dtype=torch.int16),
        torch.arange(6.0).view(2, 3).T * number,
        torch.tensor(number),
        torch.zeros(0),
        torch.full((3,), number, dtype=torch.bfloat16),
    ]
    processes.hand_out(tensors)
    return [tensor.tolist() for tensor in tensors]


def average():
    """Average gradients of parameters that the two processes use in another order, or not at all, in three passes."""
    second = processes.rank() == 1
    shared, other, own, unused = (nn.Parameter(torch.full((2,), value)) for value in (1.0, 5.0, 1.0, 1.0))
    found = []
    with processes.averaged_gradients([shared, other, own, unused]) as finish:
        for step in range(3):
            for parameter in (shared, other, own, unused):
                parameter.grad = None
            # The gradient of what is used last comes first.
            value = shared * 2 if second else other * 3
            value = value * other * 3 if second else value * shared * 2
            if second == (step % 2 == 1):
                value = value + own * 4
            value.sum().backward()
            finish()
            found.append([None if p.grad is None else p.grad.tolist() for p in (shared, other, own, unused)])
    return found


def end_together(failing, *, other=0.0, board=True):
    """Come to the end of a part, the processes in `failing` by an error, the second one late or, where that is None, not at all."""
    boards, patience = list(processes._boards), processes.APART
    processes.APART = timedelta(seconds=0.5)
    error = ValueError("no such thing.") if processes.rank() in failing else None
    if not board:
        processes._boards.clear()
    try:
        if processes.rank() == 1:
            if other is None:
                return "still at it"
            time.sleep(other)
        return processes.end_together(error)
    except RuntimeError as late:
        return str(late)
    finally:
        processes._boards[:], processes.APART = boards, patience


def run(recipe, out, cache):
    """Run a recipe, or try to."""
    try:
        return flow.run(recipe, out=out, cache=Cache(cache), progress=False)
    except (ValueError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"


def normalise(parts, weights, *, innermost):
    """Batch norm of this process's part of a batch, in training and then in evaluation, with gradients and statistics."""
    part = parts[processes.rank()]
    signal = part.transpose(1, 2).contiguous().transpose(1, 2) if innermost else part
    signal.requires_grad_()
    layer = nn.Sequential(BatchNorm1d(part.shape[1])).to(part.dtype)
    with torch.no_grad():
        layer[0].weight += weights
    names = list(layer.state_dict())
    with synchronised(layer):
        assert list(layer.state_dict()) == names
        out = layer(signal)
        (out * torch.arange(out.shape[2])).square().sum().backward()
        layer.eval()
        later = layer(part)
    assert isinstance(layer[0], BatchNorm1d)
    return {
        "out": out.detach().numpy(),
        "later": later.detach().numpy(),
        "signal": signal.grad.numpy(),
        "weight": processes.total(layer[0].weight.grad.tolist()),
        "state": {key: value.numpy() for key, value in layer.state_dict().items()},
    }


def centres(seeds, *, shared):
    """Draw the place that spatial attention leaves out."""
    torch.manual_seed(seeds[processes.rank()])
    attention = nn.Sequential(SpatialAttention(2, n_harmonics=2))
    if not shared:
        return attention[0]._draw_centre(torch.device("cpu")).tolist()
    with synchronised(attention):
        return attention[0]._draw_centre(torch.device("cpu")).tolist()


def make_encoder(*, double, hidden=8):
    torch.manual_seed(0)
    options = {"n_subjects": 2, "n_features": 3, "n_virtual": 6, "hidden": hidden, "depth": 2, "n_harmonics": 3}
    return DoubleConv(**options) if double else ConvEncoder(**options)


class DoubleTarget(nn.Module):
    """A target encoder in float64, as DoubleConv is."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.inner = models.build_target("deep_mel", n_features=3, hidden=6, n_outputs=3).double()

    def forward(self, candidates):
        return self.inner(candidates.double())


def make_joint():
    return Joint(losses.build("clip"), DoubleTarget())


def alike(history):
    """Leave out of each epoch how long it took, and how many processes it took."""
    return [{key: value for key, value in entry.items() if key != "n_processes"} for entry in t.without_time(history)]


def fit(changes, *, double=False, out=None, resume=False, stop_at=None, loss="clip", spoilt=(), plain=False, wider=0):
    """Fit, or try to; `stop_at` sends the second process a SIGTERM at a step, `spoilt` are training segments with NaN.

    The second process's encoder is `wider`; the loss "deep_mel" trains a target encoder with the encoder.
    """
    config = replace(t.CONFIG, **changes)
    data = t.make_data(n_subjects=2) if spoilt else t.DATA
    if spoilt:
        inner = data["train"].batch

        def batch(rows):
            made = inner(rows)
            for i, row in enumerate(rows):
                if row in spoilt:
                    made.signal[i] = torch.nan
            return made

        data["train"].batch = batch
    calls = 0
    compute = train._compute

    def counted(*arguments):
        nonlocal calls
        calls += torch.is_grad_enabled()
        if calls == stop_at and torch.is_grad_enabled() and processes.rank() == processes.count() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(*arguments)

    train._compute = counted
    try:
        made = t.Dying(-1, None) if plain else make_joint() if loss == "deep_mel" else losses.build(loss)
        if plain:
            del made.inner.gather
        done = t.run(
            config, data=data, encoder=make_encoder(double=double, hidden=8 + wider * processes.rank()), loss=made, out=out, resume=resume
        )
    except (ValueError, RuntimeError, stopping.Stopped) as error:
        return {"error": f"{type(error).__name__}: {error}", "calls": calls}
    finally:
        train._compute = compute
    return {
        "history": alike(done.history),
        "weights": {key: value.numpy() for key, value in done.encoder.state_dict().items()},
        "n_processes": {entry.get("n_processes", 1) for entry in done.history},
        "resumed_at": done.resumed_at,
        "gather": getattr(made, "gather", None),
        "loss": {key: value.numpy() for key, value in made.state_dict().items()},
    }
