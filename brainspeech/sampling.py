"""Which segments stand in which batch: numbers in, rows out, and nothing remembered.

An order follows from the seed and the epoch alone, so that a resumed fit sees what it would have seen.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SAMPLERS = ("segments", "grouped")


@dataclass(frozen=True)
class Order:
    """How segments are put into batches.

    Parameters
    ----------
    sampler : {"segments", "grouped"}
    batch_size, seed, views : int
        As ``segment_batches`` and ``group_batches`` have them.
    """

    sampler: str
    batch_size: int
    seed: int
    views: int | None = None

    def batches(self, ids: np.ndarray, epoch: int | None, batch_size: int, *, fewest: int = 2) -> list[np.ndarray]:
        """Put an epoch's training segments into batches; or, without an epoch, all segments, always the same, `fewest` or more to each."""
        if self.sampler == "segments":
            if epoch is None:
                return segment_parts(len(ids), batch_size, seed=self.seed, fewest=fewest)
            return segment_batches(len(ids), batch_size, seed=self.seed, epoch=epoch)
        if epoch is None:
            return group_parts(ids, batch_size, seed=self.seed, views=self.views)
        return group_batches(ids, batch_size, seed=self.seed, epoch=epoch, views=self.views)


def share(order: Order, ids: np.ndarray, epoch: int | None, *, n_processes: int, apart: bool) -> list[list[np.ndarray]]:
    """Share out batches among processes.

    Batches of whole groups are not equally many nor equally large in every epoch. One with too little for the processes has the batches of
    the first epoch, so that what can be shared out in the first can be in all.

    Parameters
    ----------
    order : Order
        Its batch size is that of all processes together.
    ids : array of int, shape (n,)
        Segments with one id are a group.
    epoch : int or None
        See ``Order.batches``.
    apart : bool
        Whether each process compares its segments with each other only. Then a group stays in one process.

    Returns
    -------
    list of list of array
        For each step, each process's rows. Only without an epoch, and apart, some of the last may be empty.

    Raises
    ------
    ValueError
        If there is too little for so many processes in the first epoch too, or in validation.
    """
    try:
        return _share(order, ids, epoch, n_processes, apart)
    except ValueError:
        if not epoch:
            raise
        return _share(order, ids, 0, n_processes, apart)


def _share(order: Order, ids: np.ndarray, epoch: int | None, n_processes: int, apart: bool) -> list[list[np.ndarray]]:
    """Share out the batches of this very epoch."""
    if apart and n_processes > 1 and order.sampler == "grouped":
        size = order.batch_size // n_processes
        batches = order.batches(ids, epoch, size)
        n_full = len(batches) // n_processes * n_processes
        steps = [batches[i : i + n_processes] for i in range(0, n_full, n_processes)]
        if epoch is None and n_full < len(batches):
            steps.append([*batches[n_full:], *[np.array([], dtype=int)] * (n_processes - len(batches) + n_full)])
        if not steps:
            raise ValueError(
                f"{n_processes} processes that compare within themselves need {n_processes} batches of {size} segments in whole groups, "
                f'got {len(batches)}. Start fewer processes, or set negatives="gathered".'
            )
        return steps
    needed = 2 if apart else 1
    batches = order.batches(ids, epoch, order.batch_size, fewest=max(2, needed * n_processes))
    steps = [np.array_split(batch, n_processes) for batch in batches]
    fewest = min(len(rows) for step in steps for rows in step)
    if n_processes > 1 and fewest < needed:
        raise ValueError(
            f"Each of {n_processes} processes needs at least {needed} segments of a batch of {order.batch_size}, got {fewest} in one: "
            "start fewer processes, or set a larger batch_size."
        )
    return steps


def segment_batches(n: int, batch_size: int, *, seed: int, epoch: int) -> list[np.ndarray]:
    """Cut an epoch's permutation into full batches; the rest waits for another epoch. A set smaller than a batch is one batch."""
    order = np.random.default_rng([seed, epoch]).permutation(n)
    if n <= batch_size:
        return [order]
    return np.split(order[: n // batch_size * batch_size], n // batch_size)


def segment_parts(n: int, batch_size: int, *, seed: int, fewest: int = 2) -> list[np.ndarray]:
    """Cut all segments into batches of nearly equal size: the same in every epoch, mixed like those of training.

    None has less than `fewest` segments, where there are so many; for that a batch may be larger than ``batch_size``.
    """
    order = np.random.default_rng([seed, 0]).permutation(n)
    return np.array_split(order, max(1, min(math.ceil(n / batch_size), n // fewest)))


def group_batches(ids: Sequence[int] | np.ndarray, batch_size: int, *, seed: int, epoch: int, views: int | None = None) -> list[np.ndarray]:
    """Put whole groups into batches, in an order of the epoch's own; the last, incomplete batch waits for another epoch.

    Parameters
    ----------
    ids : array of int, shape (n,)
        Segments with one id are a group.
    batch_size : int
        A batch is full when the next group does not go in any more.
    seed, epoch : int
    views : int, optional
        A larger group is cut at random into parts of nearly equal size, of at most so many segments. The parts of one group stand in
        different batches.

    Returns
    -------
    list of array
        Rows of each batch, of two groups or more.

    Raises
    ------
    ValueError
        If the two largest parts do not fit into a batch, or all segments are one group.
    """
    rng = np.random.default_rng([seed, epoch])
    parts = _parts(np.asarray(ids), views, rng)
    _check_room(parts, batch_size)
    waiting = deque(parts)
    batches: list[np.ndarray] = []
    while waiting:
        chosen: dict[int, np.ndarray] = {}
        n, put_off = 0, []
        while waiting:
            group, rows = waiting[0]
            if group not in chosen and n + len(rows) > batch_size:
                break
            waiting.popleft()
            if group in chosen:
                put_off.append((group, rows))
            else:
                chosen[group], n = rows, n + len(rows)
        full = n == batch_size or waiting or put_off
        waiting.extendleft(reversed(put_off))
        if len(chosen) > 1 and (full or not batches):
            batches.append(np.concatenate(list(chosen.values())))
    return batches


def group_parts(ids: Sequence[int] | np.ndarray, batch_size: int, *, seed: int, views: int | None = None) -> list[np.ndarray]:
    """Put all segments into batches of whole groups and nearly equal size: the same in every epoch.

    A batch may be larger than ``batch_size`` by a part of the group at its end, so that none is left out. ``views`` as in
    ``group_batches``; parts of one group may meet.
    """
    parts = [rows for _, rows in _parts(np.asarray(ids), views, np.random.default_rng([seed, 0]))]
    sizes = np.array([len(rows) for rows in parts])
    middles = np.cumsum(sizes) - sizes / 2
    for n in range(min(math.ceil(sizes.sum() / batch_size), max(1, len(parts) // 2)), 0, -1):
        place = (middles * n / sizes.sum()).astype(int)
        groups = [np.flatnonzero(place == k) for k in range(n)]
        # A batch without a second group has no negative.
        if n == 1 or all(len({int(ids[parts[j][0]]) for j in members}) > 1 for members in groups):
            break
    return [np.concatenate([parts[j] for j in members]) for members in groups]


def _parts(ids: np.ndarray, views: int | None, rng: np.random.Generator) -> list[tuple[int, np.ndarray]]:
    """Cut groups into (id, rows), permuted: the first part of every group, then the second of those that have one, and so on."""
    by_id = np.argsort(ids, kind="stable")
    groups = np.split(by_id, np.flatnonzero(np.diff(ids[by_id])) + 1)
    cut = [[rows] if views is None else np.array_split(rng.permutation(rows), math.ceil(len(rows) / views)) for rows in groups]
    parts = []
    for turn in range(max(map(len, cut))):
        now = [part[turn] for part in cut if len(part) > turn]
        parts += [(int(ids[now[j][0]]), now[j]) for j in rng.permutation(len(now))]
    return parts


def _check_room(parts: Sequence[tuple[int, np.ndarray]], batch_size: int) -> None:
    largest: dict[int, int] = {}
    for group, rows in parts:
        largest[group] = max(largest.get(group, 0), len(rows))
    if len(largest) < 2:
        raise ValueError(
            'sampler="grouped" needs segments of at least two stimuli, got one: a segment needs a negative. Use sampler="segments".'
        )
    second, first = sorted(largest.values())[-2:]
    if first + second > batch_size:
        raise ValueError(
            f'sampler="grouped" puts at least two groups into a batch; the two largest have {first} and {second} segments, the batch holds '
            f"{batch_size}. Set views to at most {batch_size // 2}, or take a larger batch_size."
        )
