"""Several processes that do one thing: who is the first, what they tell each other, and a backward pass that adds up their gradients.

A launcher (torchrun, accelerate launch) starts the same command several times and says so in the environment. Everything here does nothing
where there is one process.

What processes agree on travels between CPUs (gloo), so that no GPU waits for it; tensors of a GPU travel between GPUs (NCCL).
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class Elsewhere(RuntimeError):
    """What went wrong in another process, which says more about it."""

    elsewhere = True


class Lost(Elsewhere):
    """Another process is gone, and with it the fit."""


# One process may filter recordings or evaluate for hours while the others wait; when one dies, the launcher ends the rest.
PATIENCE = timedelta(days=7)
# By how much processes differ in when they come to an error that all of them have.
APART = timedelta(minutes=5)
LONGEST = 2000  # bytes of an error's text that other processes are told

# Where processes leave word for each other outside of the order of their work: one, from ``start`` on.
_boards: list[dist.Store] = []


def start() -> None:
    """Meet the other processes that a launcher started; once per process.

    Raises
    ------
    RuntimeError
        If the machine has GPUs, but none for this process, or the others cannot be reached.
    """
    if not dist.is_available() or dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return
    from torch.distributed.rendezvous import rendezvous  # torch may be built without

    cuda = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("1", "true")
    if cuda:
        local, n = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= n:
            raise RuntimeError(
                f"Process {local} of this machine has no GPU: there are {n}. Start at most {n} per machine (torchrun --nproc-per-node {n})."
            )
        torch.cuda.set_device(local)
    try:
        store, rank, n = next(rendezvous("env://", timeout=PATIENCE))
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=dist.PrefixStore("group", store), rank=rank, world_size=n, timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise RuntimeError(
            f"The launcher says that there are {os.environ['WORLD_SIZE']} processes, but they cannot meet at {where}: {error}"
        ) from error
    _boards.append(dist.PrefixStore("word", store))


def end() -> None:
    """Part from the others, as far as ``start`` met them."""
    _boards.clear()
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def is_spread() -> bool:
    """Say whether there is more than one process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def count() -> int:
    """Give the number of processes."""
    return dist.get_world_size() if is_spread() else 1


def rank() -> int:
    """Give this process's number, from 0; also before ``start``."""
    return dist.get_rank() if is_spread() else int(os.environ.get("RANK", "0")) if _is_launched() else 0


def is_first() -> bool:
    """Say whether this is the process that writes files and talks to the user."""
    return rank() == 0


def _is_launched() -> bool:
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def alone(work: Callable[[], T]) -> T | None:
    """Let the first process do something while the others wait; None in these.

    Raises
    ------
    Elsewhere
        In the others, if it went wrong in the first one, with that one's message.
    """
    if not is_spread():
        return work()
    result, error = None, None
    if is_first():
        try:
            result = work()
        except Exception as e:
            error = e
    told = _tell("" if error is None else f"{error}" or type(error).__name__)
    if error is not None:
        raise error
    if told:
        raise Elsewhere(f"The first process ended with an error: {told}")
    return result


def first(work: Callable[[], T]) -> T:
    """Let the first process do something, then the others: they find in the cache what it put there.

    Raises
    ------
    Elsewhere
        As ``alone``.
    """
    result = alone(work)
    return work() if result is None and not is_first() else result  # type: ignore[return-value]


def wait() -> None:
    """Wait until all have come here."""
    if is_spread():
        total([0.0])


_parts = itertools.count()


def end_together(error: Exception | None) -> None:
    """Wait until all have come to the end of a part of the work that the next part does not need, by an error or without.

    Processes that met by other means than ``start`` have no place to leave word: one with an error ends, and the others with it.

    Raises
    ------
    RuntimeError
        If there was an error here, and others did not come: they wait for what this process did not do, and do not hear.
    """
    if not is_spread():
        return
    if not _boards and error is None:
        wait()
        return
    late: Exception | None = None
    if _boards:
        part = next(_parts)
        names = [f"end/{part}/{number}" for number in range(count())]
        _boards[0].set(names[rank()], "")
        try:
            _boards[0].wait(names, PATIENCE if error is None else APART)
            return
        except RuntimeError as gone:
            late = gone
    if error is None:
        raise Lost(f"Process {rank()} lost the others, at the end of a part: {late}") from late
    raise RuntimeError(
        f"{error} This went wrong in process {rank()} only, and the others wait for it. What was finished is kept: give the command "
        "again without this part, or to one process."
    ) from error


def _tell(text: str) -> str:
    """Tell all processes what the first one says."""
    data = torch.zeros(LONGEST, dtype=torch.uint8)
    encoded = text.encode()[:LONGEST]
    data[: len(encoded)] = torch.frombuffer(bytearray(encoded), dtype=torch.uint8) if encoded else data[:0]
    with together():
        data = data.to(desk())
        dist.broadcast(data, 0)
    return bytes(data.tolist()).rstrip(b"\0").decode(errors="replace")


def from_first(values: Sequence[float]) -> list[float]:
    """Give all processes the first one's numbers."""
    return _agree(values, lambda numbers: dist.broadcast(numbers, 0))


def largest(values: Sequence[float]) -> list[float]:
    """Give the largest of all processes, number by number."""
    return _agree(values, lambda numbers: dist.all_reduce(numbers, dist.ReduceOp.MAX))


def total(values: Sequence[float]) -> list[float]:
    """Sum over processes, number by number."""
    return _agree(values, dist.all_reduce)


def _agree(values: Sequence[float], exchange: Callable[[Tensor], object]) -> list[float]:
    if not is_spread():
        return list(values)
    with together():
        numbers = torch.tensor(values, dtype=torch.float64, device=desk())
        exchange(numbers)
    return numbers.tolist()


@contextmanager
def together() -> Iterator[None]:
    """Say in our words, inside the block, that another process is gone.

    Raises
    ------
    Lost
        Instead of what gloo or NCCL say.
    """
    try:
        yield
    except RuntimeError as error:
        lost = is_spread() and ("gloo" in str(error) or isinstance(error, dist.DistError))
        if not lost:
            raise
        raise Lost(
            f"Process {rank()} lost the others: one of them ended, and its own message says why. What was finished is kept."
        ) from error


def desk() -> str:
    """Say where numbers to be agreed on lie: on the CPU if processes can talk there."""
    return "cpu" if "cpu" in str(dist.get_backend_config()) or dist.get_backend() == "gloo" else "cuda"


def check_equal(what: str, text: str) -> None:
    """Refuse processes of which each sees something else.

    Raises
    ------
    RuntimeError
        In all of them, if one has another text than the first.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    differs = is_spread() and _tell(digest) != digest
    if largest([differs])[0]:
        raise RuntimeError(
            f"Processes do not see the same {what}{f' (process {rank()} for one)' * differs}. They need the same files in the same places "
            "(a file system that all machines share), the same command and the same version of brainspeech."
        )


@torch.no_grad()
def hand_out(tensors: Sequence[Tensor]) -> None:
    """Give all processes the first one's tensors, in place; of any dtype and layout."""
    if not is_spread():
        return
    for tensor in tensors:
        # As bytes: neither gloo nor NCCL knows bool and the rarer integers.
        whole = tensor.detach().contiguous()
        data = whole.flatten().view(torch.uint8)
        if data.numel():
            dist.broadcast(data, 0)
        if whole.data_ptr() != tensor.data_ptr():
            tensor.copy_(whole)


def gather(local: Tensor) -> Tensor:
    """Stack the tensors (...) of all processes, all of one shape, to (P, ...); in the backward pass each gets the sum of its gradients."""
    return _Gather.apply(local.contiguous())


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local: Tensor) -> Tensor:
        every = [torch.empty_like(local) for _ in range(count())]
        dist.all_gather(every, local)
        return torch.stack(every)

    @staticmethod
    def backward(ctx, grad: Tensor):
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad[rank()]


@contextmanager
def averaged_gradients(parameters: Sequence[nn.Parameter], *, meanwhile: bool = True) -> Iterator[Callable[[], None]]:
    """Average gradients over processes inside the block, from the second backward pass on while it goes on.

    A parameter that only some processes used in a step counts as 0 in the others; one that none used keeps no gradient.

    Parameters
    ----------
    parameters : sequence of Parameter
    meanwhile : bool
        False: nothing is sent before the backward pass is over. For one in which processes exchange other things.

    Yields
    ------
    function
        To be called after the backward pass: it waits until all are averaged.
    """
    if not is_spread():
        yield lambda: None
        return
    average = _Average(parameters, meanwhile=meanwhile)
    hooks = [parameter.register_post_accumulate_grad_hook(average.take) for parameter in parameters]
    try:
        yield average.finish
    finally:
        for hook in hooks:
            hook.remove()


class _Average:
    """Gradients on their way: sent in one order by all processes, whatever the order is in which each has them.

    Which operation of one process meets which of another is a matter of their order alone, and two encoders that look alike may go
    different ways through their data. The order is that in which the first process had its gradients in the first backward pass.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, meanwhile: bool):
        self.order, self.meanwhile = list(parameters), meanwhile
        self.n_passes = 0
        self.had: dict[int, int] = {}  # by parameter: the turn in which its gradient came
        self.under_way: dict[int, dist.Work] = {}  # by parameter, in their order

    def take(self, parameter: Tensor) -> None:
        """Note that a gradient is there, and send all whose turn it is."""
        if id(parameter) in self.under_way:
            raise RuntimeError(
                "A gradient was added to after it was sent to the other processes: the encoder goes backwards through a part of itself "
                "twice (reentrant checkpointing, for one). Use use_reentrant=False there."
            )
        self.had.setdefault(id(parameter), len(self.had))
        if self.meanwhile and self.n_passes:
            self._send(while_had=True)

    def _send(self, *, while_had: bool) -> None:
        for parameter in self.order[len(self.under_way) :]:
            if while_had and id(parameter) not in self.had:
                return
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = gradient.contiguous()
            parameter.grad.div_(count())
            self.under_way[id(parameter)] = dist.all_reduce(parameter.grad, async_op=True)

    def finish(self) -> None:
        """Send the rest, and wait until all are averaged."""
        self._send(while_had=False)
        used = largest([id(parameter) in self.had for parameter in self.order])
        for work in self.under_way.values():
            work.wait()
        for parameter, by_any in zip(self.order, used, strict=True):
            if not by_any:
                parameter.grad = None
        if not self.n_passes:
            came = [self.had.get(id(parameter), len(self.order)) for parameter in self.order]
            turns = from_first(came)
            self.order = [self.order[i] for i in sorted(range(len(turns)), key=turns.__getitem__)]
        self.n_passes += 1
        self.had.clear()
        self.under_way.clear()
