"""The seam of all contrastive losses: scores and masks here, the formula of a paper in an objective.

Shapes: B estimates (rows), N candidates (columns), F features, T times. ``ContrastiveLoss`` scores estimates against candidates, decides
for every entry whether it is a positive, a negative or neither (ignored), and hands that to an objective, which knows nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from brainspeech import host, processes

from . import masks, pairing
from .base import Checks, Loss, LossOutput, Similarity, check_finite, check_pairs, one_of
from .queue import CandidateQueue


class Contrast(NamedTuple):
    """What an objective sees: one row per thing to be told from others, at least one positive and one negative in each.

    Attributes
    ----------
    logits : Tensor, shape (R, C)
        Raw scores; the objective divides by its temperature.
    positive, negative : Tensor, shape (R, C), bool
        An entry in neither is ignored.
    rows, cols : Tensor, shape (R,) and (C,), int64, or None
        What each row is, for an objective with a memory, and each column (-1 for a synthetic one); None where the caller gave no ids.
    counted : Tensor, shape (R,), bool, or None
        On a GPU, where nobody knows how many rows there are to be: False for a row that stands in for one without a negative. It is a copy
        of another, and its loss is not averaged. Of interest only to an objective that looks at all rows together. None: all are counted.
    """

    logits: Tensor
    positive: Tensor
    negative: Tensor
    rows: Tensor | None
    cols: Tensor | None
    counted: Tensor | None = None


Objective = Callable[[Contrast], Tensor]  # -> (R,), one loss per row
# scores (B, N), negative (B, N), function giving the candidates' scores among themselves (N, N) -> (B, s)
ExtraNegatives = Callable[[Tensor, Tensor, Callable[[], Tensor]], Tensor]


class ContrastiveLoss(Loss):
    """Tell each estimate's own candidate from the others, by any objective.

    Parameters
    ----------
    objective : callable
        Contrast -> Tensor (R,). An nn.Module may have parameters and buffers.
    back : callable, optional
        The objective of the direction candidates -> estimates, with ``symmetric=True``; `objective` itself if not given.
    similarity : str or callable
        "candidate_normalised", "cosine", "dot", "correlation", or a function (b, F, T), (n, F, T) -> (b, n).
    symmetric : bool
        Average the direction estimates -> candidates and its reverse. In the reverse, candidates that are no estimate's own take no part as
        rows.
    duplicates : {"ignore", "negative", "positive", "error"}
        What other candidates with a row's own id are.
    intra : bool
        Other estimates (and, in the reverse direction, other candidates) are negatives too. Those with the row's own id are ignored,
        unless ``duplicates="negative"``.
    extra_negatives : callable, optional
        (scores, negative, gram) -> (B, s): scores of synthetic negatives, of the direction estimates -> candidates only.
    queue : (int, int, int), optional
        (K, F, T): keep the last K candidates of earlier batches, of F features and T times, as further columns (``losses.queue``). Calls
        need ids then: an entry with a row's own id is what ``duplicates`` says, and never stands in for its own candidate. ``same`` and
        ``ignore`` must be functions of ids. Only in training mode: validation neither uses the queue nor adds to it. It is part of the
        module's state. Not with ``symmetric=True``, since no estimates are kept.
    queue_dtype : {"float32", "bfloat16"}
        How the queue is stored.
    gather : bool
        Compare with the candidates of all processes (``losses.gather``), all of which enter every process's queue. Nothing changes where
        there is one process.
    chunk : int, optional
        Compare with so many candidates at a time; see ``Loss``.

    Attributes
    ----------
    near_duplicates : callable or None
        (row_ids, col_ids) -> (B, N) bool; ignored entries of every call that gives no ``ignore``. None at first.
    """

    near_duplicates: masks.MaskRule | None = None

    def __init__(
        self,
        objective: Objective,
        *,
        back: Objective | None = None,
        similarity: str | Similarity = "candidate_normalised",
        symmetric: bool = False,
        duplicates: str = "ignore",
        intra: bool = False,
        extra_negatives: ExtraNegatives | None = None,
        queue: Sequence[int] | None = None,
        queue_dtype: str = "float32",
        gather: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__(similarity=similarity, chunk=chunk)
        if queue is not None and symmetric:
            raise ValueError(f"queue={queue!r} goes with symmetric=False: it keeps candidates, and no estimates that could be told apart.")
        self.objective = objective
        self.back = back
        self.symmetric = symmetric
        self.duplicates = one_of("duplicates", duplicates, pairing.DUPLICATES)
        self.intra = intra
        self.extra_negatives = extra_negatives
        self.queue = None if queue is None else CandidateQueue(queue, dtype=queue_dtype)
        self.gather = gather

    def forward(
        self,
        estimates: Tensor,
        candidates: Tensor,
        *,
        row_ids: Tensor | None = None,
        col_ids: Tensor | None = None,
        row_keys: Tensor | None = None,
        same: Tensor | masks.MaskRule | None = None,
        ignore: Tensor | masks.MaskRule | None = None,
    ) -> LossOutput:
        """Compute the loss.

        Parameters
        ----------
        estimates : Tensor, shape (B, F, T)
        candidates : Tensor, shape (N, F, T)
        row_ids : Tensor, shape (B,), int64, optional
            What each estimate is of (``stimulus_id``). Without it the first B candidates are the targets and all others negatives.
        col_ids : Tensor, shape (N,), int64, optional
            What each candidate is; `row_ids` if not given. A row's own column is the one in its place if that has its id, else the
            first that has.
        row_keys : Tensor, shape (B,), int64, optional
            What an objective with a memory keeps a row's state under, for instance subject and segment in one number; `row_ids` if not
            given.
        same : Tensor, shape (B, N), bool, or callable, optional
            Which entries are of one thing, instead of those with equal ids; see ``losses.masks``.
        ignore : Tensor, shape (B, N), bool, or callable, optional
            Which entries are neither positives nor negatives; a row's positives stay.

        Returns
        -------
        LossOutput
            Logs: ``n_ignored``, the entries in neither mask, and ``n_without_negative``, the rows left out of the mean for want of one;
            with a queue ``n_queued``, the entries of it that were compared with.

        Raises
        ------
        ValueError
            If shapes or ids do not fit, a row has no positive, no row has a negative, an id is repeated under ``duplicates="error"``, an
            estimate or a candidate is not finite, or there is a queue and no ids. What would have to be looked up in a GPU's memory makes
            the loss NaN instead (``base.Checks``).
        """
        checks = Checks()
        check_pairs(estimates, candidates, row_ids, col_ids)
        if row_keys is not None and tuple(row_keys.shape) != (len(estimates),):
            raise ValueError(f"row_keys must be {(len(estimates),)}, got {tuple(row_keys.shape)}.")
        pool = pairing.collect(estimates, candidates, row_ids, col_ids, spread=self.gather and processes.is_spread())
        queue = self.queue if self.training else None
        parts, cols = [pool.candidates], pool.col_ids
        if queue is not None:
            parts, cols = self._with_queue(queue, pool, checks)
        scores = self._score_parts(estimates, parts)
        check_finite(scores, estimates, pool.candidates, checks)
        scores = pool.rows(scores)
        same_rule, ignore_rule = (masks.same_id if same is None else same), (self.near_duplicates if ignore is None else ignore)
        positive, negative = pairing.split(self._mask("same", same_rule, pool, cols, checks), pool, self.duplicates, checks)
        if ignore_rule is not None:
            negative = negative & ~self._mask("ignore", ignore_rule, pool, cols, checks)
        row_memory = None if row_keys is None else pool.row_values(row_keys.to(scores.device))
        row_names, col_names = (pool.row_ids, cols) if pool.has_ids else (None, None)
        forth = Contrast(scores, positive, negative, row_names if row_memory is None else row_memory, col_names)
        logs = {"n_ignored": (~(positive | negative)).sum()}
        if queue is not None:
            logs["n_queued"] = queue.n_filled.clone()
            queue.add(pool.candidates, pool.col_ids)
        if self.intra:
            inner = pool.rows(self.scores(estimates, pool.all_rows(estimates)))
            forth = _append(forth, inner, self._others(pool.row_ids, same_rule, ignore_rule), row_names)
        if self.extra_negatives is not None:
            extra = self._synthesise(scores, negative, estimates, parts, pool)
            forth = _append(forth, extra, extra.detach().isfinite(), None)
        loss, logs["n_without_negative"] = _mean(self.objective, forth, checks)
        if self.symmetric:
            back = Contrast(scores.T, positive.T, negative.T, col_names, row_names)
            if self.intra:
                inner = pool.cols(self.scores(candidates, pool.candidates))
                back = _append(back, inner, self._others(pool.col_ids, same_rule, ignore_rule), col_names)
            reverse, _ = _mean(self.objective if self.back is None else self.back, back, checks, among=positive.any(0))
            loss = (loss + reverse) / 2
        return LossOutput(checks.settle(loss), logs)

    def _others(self, ids: Tensor, same: Tensor | masks.MaskRule, ignore: Tensor | masks.MaskRule | None) -> Tensor:
        """Mark the negatives among estimates, or among candidates."""
        itself = torch.eye(len(ids), dtype=torch.bool, device=ids.device)
        if self.duplicates == "negative":
            alike = itself
        else:
            alike = itself | (masks.same_id(ids, ids) if isinstance(same, Tensor) else same(ids, ids))
        return ~alike if ignore is None or isinstance(ignore, Tensor) else ~(alike | ignore(ids, ids))

    def _with_queue(self, queue: CandidateQueue, pool: pairing.Pool, checks: Checks) -> tuple[list[Tensor], Tensor]:
        """Give the candidates, those of the queue in a second part, and the ids of both."""
        if not pool.has_ids:
            raise ValueError(
                "A queue needs row_ids (and col_ids): without them nobody knows which of its entries are a row's own. Got none."
            )
        queue.check(pool.candidates)
        features, ids = queue.content()
        if self.duplicates == "error":
            pairing.refuse_queued(pool.row_ids, ids, checks)
        return [pool.candidates, *([features] if len(ids) else [])], torch.cat([pool.col_ids, ids.to(pool.col_ids.device)])

    def _score_parts(self, estimates: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Score estimates against candidates that lie in several tensors, without putting these into one."""
        return self.scores(estimates, parts[0]) if len(parts) == 1 else torch.cat([self.scores(estimates, part) for part in parts], 1)

    def _mask(self, what: str, rule: Tensor | masks.MaskRule, pool: pairing.Pool, cols: Tensor, checks: Checks) -> Tensor:
        """Give a mask of the whole batch, queue included."""
        if isinstance(rule, Tensor) and (pool.spread or self.queue is not None):
            place = "Across processes" if pool.spread else "With a queue"
            raise ValueError(f"{place} {what} must be a function of ids, got a Tensor. See losses.masks.by_id.")
        mask = rule if isinstance(rule, Tensor) else rule(pool.row_ids, cols)
        if isinstance(rule, masks.ById):
            rule.check(pool.row_ids, checks)
            rule.check(cols, checks)
        shape = len(pool.row_ids), len(cols)
        if mask.dtype != torch.bool or tuple(mask.shape) != shape:
            raise ValueError(f"{what} must be a bool mask {shape}, got {mask.dtype} {tuple(mask.shape)}.")
        return mask.to(pool.row_ids.device)

    def _synthesise(self, scores: Tensor, negative: Tensor, estimates: Tensor, parts: Sequence[Tensor], pool: pairing.Pool) -> Tensor:
        """Score synthetic negatives; -inf where a row has none."""
        assert self.extra_negatives is not None  # for mypy
        # They are mixtures of constants: no gradient reaches candidates through them, even where these are trained.
        frozen = [part.detach() for part in parts]
        if pool.candidates.requires_grad:
            scores = pool.rows(self._score_parts(estimates, frozen))

        def gram() -> Tensor:
            with torch.no_grad():
                pieces = [piece for part in frozen for piece in part.split(self.chunk or len(part))]
                return torch.cat([self._score_parts(piece, frozen) for piece in pieces]).to(scores.device)

        return self.extra_negatives(scores, negative, gram)


def _append(contrast: Contrast, logits: Tensor, negative: Tensor, ids: Tensor | None) -> Contrast:
    """Add columns that are negatives or nothing."""
    cols = contrast.cols
    if cols is not None:
        cols = torch.cat([cols, cols.new_full((logits.shape[1],), -1) if ids is None else ids])
    return Contrast(
        torch.cat([contrast.logits, logits], 1),
        torch.cat([contrast.positive, torch.zeros_like(negative)], 1),
        torch.cat([contrast.negative, negative], 1),
        contrast.rows,
        cols,
    )


def _pick(contrast: Contrast, keep: Tensor) -> Contrast:
    """Keep some rows (R,), bool; on a GPU, which would have to be asked how many these are, copies of the first stand in for the others."""
    index: Tensor | None = None
    if host.at_hand(keep):
        if bool(keep.all()):
            return contrast
        index = keep.nonzero()[:, 0]
    else:
        index = torch.where(keep, torch.arange(len(keep), device=keep.device), keep.int().argmax())
    rows = None if contrast.rows is None else contrast.rows[index]
    counted = None if host.at_hand(keep) else keep
    return Contrast(contrast.logits[index], contrast.positive[index], contrast.negative[index], rows, contrast.cols, counted)


def _mean(objective: Objective, contrast: Contrast, checks: Checks, *, among: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Average an objective over the rows, `among` some (R,) if given, that have a negative; count the others."""
    has_negative = contrast.negative.any(1)
    keep = has_negative if among is None else has_negative & among
    checks.refuse(
        ~keep.any(),
        lambda: ValueError(
            f"No estimate has a negative among {contrast.logits.shape[1]} candidates: "
            "a contrastive batch needs at least two different segments."
        ),
    )
    picked = _pick(contrast, keep)
    losses = objective(picked)
    if picked.counted is None:
        return losses.mean(), (~has_negative).sum()
    return torch.where(picked.counted, losses, 0).sum() / picked.counted.sum(), (~has_negative).sum()
