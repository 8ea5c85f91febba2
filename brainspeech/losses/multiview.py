"""Losses over several views of each segment: listeners who heard it, and its speech (Koromilas et al. 2025).

Shapes: B estimates, N candidates, F features, T times; V views of M instances, an instance being a segment; P items, an item being one view
of one instance. A view that is missing is an item that is not there.

Items that are not there, and copies, are left out on a CPU. How many they are a GPU would have to be asked: there they stay, in no mask and
in an instance of their own that counts for nothing, and there is room for as many instances as items.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from brainspeech import host, processes

from . import masks, pairing
from .base import Checks, Loss, LossOutput, Similarity, check_finite, check_pairs, one_of
from .objectives import LogitScale

SPEECH = torch.iinfo(torch.int64).max  # the view that candidates are


class Items(NamedTuple):
    """Scores among all items, and how they relate.

    Attributes
    ----------
    logits : Tensor, shape (P, P)
        Scores over temperature.
    instance : Tensor, shape (P,)
        0..M-1.
    n_instances : int
        M.
    there : Tensor, shape (P,), bool
        False for what stands in for nothing.
    positive, other, cross : Tensor, shape (P, P), bool
        Another view of the same instance; another instance, unless ignored; another view.
    """

    logits: Tensor
    instance: Tensor
    n_instances: int
    there: Tensor
    positive: Tensor
    other: Tensor
    cross: Tensor

    def log_sum_exp(self, mask: Tensor) -> Tensor:
        """Take the log-sum-exp over a mask of the rows of each instance (M,); -inf where it is empty."""
        masked = self.logits.masked_fill(~mask, -torch.inf)
        top = masked.detach().new_full((self.n_instances,), -torch.inf).scatter_reduce(0, self.instance, masked.detach().amax(1), "amax")
        top = top.masked_fill(top == -torch.inf, 0)
        return top + self.add((masked - top[self.instance][:, None]).exp().sum(1)).log()

    def mean(self, mask: Tensor) -> Tensor:
        """Average over a mask of the rows of each instance (M,)."""
        return self.add(torch.where(mask, self.logits, 0).sum(1)) / self.add(mask.sum(1))

    def add(self, values: Tensor) -> Tensor:
        """Add what belongs to one instance: (P,) -> (M,)."""
        return values.new_zeros(self.n_instances).index_add(0, self.instance, values)

    def any(self, flags: Tensor) -> Tensor:
        """Say which instances have an item with a flag: (P,) -> (M,)."""
        return self.add((flags & self.there).long()) > 0


class MultiViewLoss(Loss, ABC):
    """What the losses over views share: items, their scores, the mean over instances.

    Called as other losses are, ``loss(estimates, candidates, row_ids=, col_ids=)``: estimates with one id are views of one instance, and
    the first candidate with that id is one more view, the speech. Candidates that are no estimate's are negatives only.
    """

    def __init__(self, *, temperature: float, positives: str, similarity: str | Similarity, gather: bool, chunk: int | None) -> None:
        super().__init__(similarity=similarity, chunk=chunk)
        self.scale = LogitScale(temperature)
        self.positives = one_of("positives", positives, ("lse", "mean"))
        self.gather = gather

    @abstractmethod
    def compare(self, items: Items) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the loss of each instance (M,); say which has a negative (M,), and how many items, or instances, lack one.

        Only what is there counts (``Items.there``).
        """

    def forward(
        self,
        estimates: Tensor,
        candidates: Tensor | None = None,
        *,
        row_ids: Tensor | None = None,
        col_ids: Tensor | None = None,
        views: Tensor | None = None,
        mask: Tensor | None = None,
        ignore: masks.MaskRule | None = None,
    ) -> LossOutput:
        """Compute the loss.

        Parameters
        ----------
        estimates : Tensor, shape (B, F, T) or (V, B, F, T)
            With a view axis, estimates[v, i] is view v of instance i, and `row_ids` are per instance.
        candidates : Tensor, shape (N, F, T), optional
            The speech, a view of its own. Without it the estimates must have a view axis.
        row_ids, col_ids : Tensor, shape (B,) and (N,), int64, optional
            As in ``ContrastiveLoss.forward``.
        views : Tensor, shape (B,), int64, optional
            Which view each estimate is, for instance its subject; only without a view axis. If not given, the k-th estimate of an id is
            view k.
        mask : Tensor, shape (V, B), bool, optional
            False where a view is missing; only with a view axis.
        ignore : callable, optional
            (ids, ids) -> bool: instances that are not each other's negatives.

        Returns
        -------
        LossOutput
            Logs: ``n_views``, the mean number of views per instance, speech included; ``n_without_negative``, what was left out for want
            of a negative.

        Raises
        ------
        ValueError
            If shapes or ids do not fit, an instance has one view only, nothing has a negative, or a value is not finite. What would have
            to be looked up in a GPU's memory makes the loss NaN instead (``base.Checks``).
        """
        checks, there = Checks(), None
        spread = self.gather and processes.is_spread()
        if estimates.ndim == 4:
            if views is not None:
                raise ValueError("views are for estimates (B, F, T): estimates (V, B, F, T) have a view axis.")
            if spread and row_ids is None:
                raise ValueError("Across processes estimates (V, B, F, T) need row_ids, to tell one process's instances from another's.")
            if candidates is not None:
                check_pairs(estimates[0], candidates, row_ids, col_ids)
                col_ids = torch.arange(len(candidates), device=estimates.device) if row_ids is None else col_ids
                col_ids = row_ids if col_ids is None else col_ids
            estimates, row_ids, views, there = _flatten(estimates, row_ids, mask)
        elif mask is not None or candidates is None:
            raise ValueError(f"A mask, or no candidates, needs estimates (V, B, F, T), got {tuple(estimates.shape)}.")
        if candidates is None:
            candidates = estimates[:0]
        if col_ids is None and row_ids is not None:
            col_ids = row_ids[: len(candidates)] if len(candidates) in (0, len(row_ids)) else None
        check_pairs(estimates, candidates, row_ids, col_ids)
        if views is not None and len(views) != len(estimates):
            raise ValueError(f"views must be ({len(estimates)},), got {tuple(views.shape)}.")
        pool = pairing.collect(estimates, candidates, row_ids, col_ids, spread=spread)
        everyone = pool.all_rows(estimates)
        upper = torch.cat([self.scores(estimates, everyone), self.scores(estimates, pool.candidates)], 1)
        check_finite(upper, everyone, pool.candidates, checks)
        lower = torch.cat([self.scores(candidates, everyone), self.scores(candidates, pool.candidates)], 1)
        scores = torch.cat([pool.rows(upper), pool.cols(lower.to(upper.device))])
        view = pairing.occurrence(pool.row_ids) if views is None else pool.row_values(views.to(upper.device))
        there = torch.ones_like(pool.row_ids) if there is None else pool.row_values(there.to(pool.row_ids))
        items, counted = _relate(self.scale(scores), pool, view, there > 0, ignore, checks)
        loss, has_negative, n_without = self.compare(items)
        chosen = counted & has_negative
        checks.refuse(
            ~chosen.any(),
            lambda: ValueError(
                f"No view has a negative among {int(counted.sum())} segments: a contrastive batch needs at least two different segments."
            ),
        )
        n_views = (counted[items.instance] & items.there).sum() / counted.sum()
        loss = loss[chosen].mean() if host.at_hand(chosen) else torch.where(chosen, loss, 0).sum() / chosen.sum()
        return LossOutput(checks.settle(loss), {"n_views": n_views, "n_without_negative": n_without})


def _flatten(estimates: Tensor, ids: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Turn (V, B, F, T) into views (P, F, T), their ids and views, and which are there; on a CPU those alone that are, and None."""
    n_views, n_instances = estimates.shape[:2]
    ids = torch.arange(n_instances, device=estimates.device) if ids is None else ids.to(estimates.device)
    if tuple(ids.shape) != (n_instances,):
        raise ValueError(f"Ids of estimates (V, B, F, T) are per instance, {(n_instances,)}, got {tuple(ids.shape)}.")
    ids = ids.repeat(n_views)
    view = torch.arange(n_views, device=estimates.device).repeat_interleave(n_instances)
    flat = estimates.flatten(0, 1)
    if mask is None:
        return flat, ids, view, None
    if mask.dtype != torch.bool or tuple(mask.shape) != (n_views, n_instances):
        raise ValueError(f"mask must be a bool Tensor {(n_views, n_instances)}, got {mask.dtype} {tuple(mask.shape)}.")
    there = mask.flatten().to(estimates.device)
    if not host.at_hand(there):
        return flat.masked_fill(~there[:, None, None], 0), ids, view, there  # what is not there may be anything, NaN too
    return (flat, ids, view, None) if bool(there.all()) else (flat[there], ids[there], view[there], None)


def _relate(
    logits: Tensor, pool: pairing.Pool, view: Tensor, there: Tensor, ignore: masks.MaskRule | None, checks: Checks
) -> tuple[Items, Tensor]:
    """Say how items relate, and which instances have an estimate (M,)."""
    # Copies of one candidate are one item.
    there = torch.cat([there, pairing.occurrence(pool.col_ids) == 0])
    ids = torch.cat([pool.row_ids, pool.col_ids])
    view = torch.cat([view, torch.full_like(pool.col_ids, SPEECH)])
    is_row = torch.arange(len(ids), device=ids.device) < len(pool.row_ids)
    if host.at_hand(ids):
        logits, ids, view, is_row, there = logits[there][:, there], ids[there], view[there], is_row[there], there[there]
    same, cross = masks.same_id(ids, ids), view[:, None] != view
    if isinstance(ignore, masks.ById):
        ignore.check(ids, checks)
    other = ~same if ignore is None else ~same & ~ignore(ids, ids)
    if host.at_hand(ids):
        known, instance = ids.unique(return_inverse=True)
        n_instances = len(known)
    else:
        both = there[:, None] & there
        same, other = same & both, other & both
        # The first item of an instance gives it its number; the last number is that of all that is not there.
        instance, n_instances = torch.where(there, same.int().argmax(1), len(ids)), len(ids) + 1
    items = Items(logits, instance, n_instances, there, same & cross, other, cross)
    counted = items.any(is_row)
    lonely = counted & ~items.any(items.positive.any(1))
    checks.refuse(
        lonely,
        lambda: ValueError(f"{int(lonely.sum())} segments have one view only, among them {known[lonely][:5].tolist()}: leave them out."),
    )
    return items, counted
