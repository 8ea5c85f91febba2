"""iSogCLR (Qiu et al. 2023): a temperature for each item, learned with the loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from brainspeech import host

from . import masks
from .base import Similarity, one_of, positive
from .contrastive import Contrast, ContrastiveLoss
from .objectives import log_sum_exp, mean_of

FREE = torch.iinfo(torch.int64).max  # the key of a place in a table that no item has taken


class IsogclrLoss(ContrastiveLoss):
    """Contrast with a temperature for each item and a memory of its negatives, so that small batches do as large ones would.

    Per row i of n negatives: d_ij = s_ij - s_ii, z_ij = d_ij / tau_i, g = mean_j exp(z_ij), s' = (1 - gamma) s + gamma g;
    L_i = sum_j sg[exp(z_ij) / s'] d_ij / n. Then grad = log s' + rho - sum_j exp(z_ij) / s' z_ij / n, clamped to +-5, u' = (1 - beta) u +
    beta grad, tau' = clip(tau - eta u', tau_min, tau_max) ([1] algorithm 1). s, u and tau are kept per item: one table for rows
    (estimates to candidates) and one for columns. They change in training mode only, are saved with the module, and are the same in
    all processes.

    Its value is an estimator's: its gradient is right, the number itself is not comparable between losses.

    Departures: the first visit of an item sets s = g (the public code starts from s = 0, an under-estimate by gamma). The positive is not
    in the sum; ``denominator="code"`` leaves it in while dividing by n as the public code does. Both directions are averaged where the
    public code adds them. log s is kept, which makes its running maximum b and its 1e-10 unnecessary. eta is constant; the public code
    can also let it decay. Rows of one item in one batch share the mean of their g and grad. LibAUC's loss is n times this one.

    Without ids there is no item to remember anything of: every visit is a first.

    Paper: Qiu et al. 2023, arXiv:2305.11965.
    Changes: a learned temperature per item; moving averages instead of the batch's denominator.
    Evidence: A (one step equals the public code's, losses and temperatures).

    Parameters
    ----------
    n_rows, n_cols : int
        Room in the two tables: how many different row keys (``row_keys`` of the call, else ``row_ids``) and ``col_ids`` there are in the
        training set. An item costs 20 bytes.
    temperature : float
        Of every item at the start.
    gamma, beta, eta, rho : float
        Weight of the new g; of the new gradient; step of the temperatures; the larger rho, the lower they become.
    temperature_range : (float, float)
    denominator : {"formula", "code"}
        Whether the positive is left out of the sum over negatives.
    symmetric, similarity, duplicates, gather, chunk
        See ``ContrastiveLoss``.

    References
    ----------
    [1] Qiu et al. Not all semantics are created equal: contrastive self-supervised learning with automatic temperature
    individualization. ICML 2023.
    """

    def __init__(
        self,
        *,
        n_rows: int = 65536,
        n_cols: int = 65536,
        temperature: float = 0.07,
        gamma: float = 0.8,
        beta: float = 0.9,
        eta: float = 0.01,
        rho: float = 0.1,
        temperature_range: tuple[float, float] = (0.005, 1.0),
        denominator: str = "formula",
        symmetric: bool = True,
        similarity: str | Similarity = "cosine",
        duplicates: str = "ignore",
        gather: bool = False,
        chunk: int | None = None,
    ) -> None:
        def objective(size: int) -> Isogclr:
            return Isogclr(size, temperature, gamma, beta, eta, rho, temperature_range, denominator)

        super().__init__(
            objective(n_rows),
            back=objective(n_cols),
            similarity=similarity,
            symmetric=symmetric,
            duplicates=duplicates,
            gather=gather,
            chunk=chunk,
        )


class Isogclr(nn.Module):
    """The objective of iSogCLR in one direction, with its table; see ``IsogclrLoss``.

    Attributes
    ----------
    keys : Tensor, shape (size,), int64
        Sorted ids of the items seen, then free places.
    log_s, u, temperature : Tensor, shape (size,)
    """

    keys: Tensor
    log_s: Tensor
    u: Tensor
    temperature: Tensor

    def __init__(
        self,
        size: int,
        temperature: float,
        gamma: float,
        beta: float,
        eta: float,
        rho: float,
        temperature_range: tuple[float, float],
        denominator: str,
    ) -> None:
        super().__init__()
        low, high = temperature_range
        if not 0 < low <= positive("temperature", temperature) <= high:
            raise ValueError(f"temperature must be in temperature_range {(low, high)}, got {temperature!r}.")
        if size < 1 or not 0 < gamma <= 1 or not 0 < beta <= 1:
            raise ValueError(f"A table needs room, and gamma and beta must be in (0, 1], got {size!r}, {gamma!r} and {beta!r}.")
        self.start, self.gamma, self.beta, self.eta, self.rho = temperature, gamma, beta, eta, rho
        self.low, self.high = low, high
        self.log_old, self.log_new = _log(1 - gamma), _log(gamma)
        self.denominator = one_of("denominator", denominator, ("formula", "code"))
        self.register_buffer("keys", torch.full((size,), FREE))
        self.register_buffer("log_s", torch.zeros(size))
        self.register_buffer("u", torch.zeros(size))
        self.register_buffer("temperature", torch.full((size,), temperature))

    def forward(self, contrast: Contrast) -> Tensor:
        """Compute the loss of each row and, in training mode, bring the table up to date."""
        distance = contrast.logits - mean_of(contrast.logits, contrast.positive)[:, None]
        mask = contrast.negative if self.denominator == "formula" else contrast.negative | contrast.positive
        n = contrast.negative.sum(1).to(distance.dtype)
        with torch.no_grad():
            weight = self._weigh(distance, mask, n, contrast.rows, contrast.counted)
        return (weight * distance).sum(1)

    def _weigh(self, distance: Tensor, mask: Tensor, n: Tensor, rows: Tensor | None, counted: Tensor | None) -> Tensor:
        """Give sg[exp(z) / s'] / n, and learn from the batch."""
        if rows is None:
            return (distance / self.start).masked_fill(~mask, -torch.inf).softmax(1)
        items, item = _group(rows)
        place, known = self._find(items)
        temperature = torch.where(known, self.temperature[place].to(distance.dtype), self.start)
        z = distance / temperature[item][:, None]
        number = _count(item, len(items), counted)
        log_g = _log_mean_over(log_sum_exp(z, mask) - n.log(), item, number, counted)
        old = self.log_s[place].to(distance.dtype) + self.log_old
        log_s = torch.where(known, torch.logaddexp(old, log_g + self.log_new), log_g)
        weight = (z - (log_s[item] + n.log())[:, None]).masked_fill(~mask, -torch.inf).exp()
        if self.training:
            grad = (log_s[item] + self.rho - (weight * z).sum(1)).clamp(-5, 5)
            grad = grad if counted is None else grad.masked_fill(~counted, 0)
            mean = torch.zeros_like(log_s).index_add(0, item, grad) / number
            if host.at_hand(items):
                self._add(items[~known])
                self._learn(items, log_s, mean)
            else:
                weight = weight.masked_fill(self._merge(items, known), torch.nan)
                self._learn(items, log_s[item], mean[item])  # rows of one item write the same numbers to its place
        return weight

    def _find(self, items: Tensor) -> tuple[Tensor, Tensor]:
        place = torch.searchsorted(self.keys, items).clamp(max=len(self.keys) - 1)
        return place, self.keys[place] == items

    def _learn(self, items: Tensor, log_s: Tensor, grad: Tensor) -> None:
        place, _ = self._find(items)
        u = (1 - self.beta) * self.u[place] + self.beta * grad.to(self.u.dtype)
        self.u[place] = u
        self.log_s[place] = log_s.to(self.log_s.dtype)
        self.temperature[place] = (self.temperature[place] - self.eta * u).clamp(self.low, self.high)

    def _add(self, items: Tensor) -> None:
        used = int((self.keys != FREE).sum())
        total = used + len(items)
        if total > len(self.keys):
            raise ValueError(
                f"The table of items has room for {len(self.keys)}, got {total} different ids: set n_rows and n_cols to the numbers of "
                "different row keys and column ids of the training set."
            )
        # Keys stay sorted, for searchsorted; free places are equal and last.
        order = torch.cat([self.keys[:used], items]).argsort()
        values = {"keys": items, "log_s": 0.0, "u": 0.0, "temperature": self.start}
        for name, new in values.items():
            column = getattr(self, name)
            column[used:total] = new
            column[:total] = column[:total][order]

    def _merge(self, rows: Tensor, known: Tensor) -> Tensor:
        """Add the keys of rows (R,) that are not known, without counting them: what is free is sorted too. Say whether there is no room."""
        new = rows.masked_fill(known | (masks.same_id(rows, rows).tril(-1).any(1)), FREE)
        keys, order = torch.cat([self.keys, new]).sort(stable=True)
        size = len(self.keys)
        for name, start in {"log_s": 0.0, "u": 0.0, "temperature": self.start}.items():
            column = getattr(self, name)
            column.copy_(torch.cat([column, column.new_full((len(new),), start)])[order[:size]])
        self.keys.copy_(keys[:size])
        return (keys[size:] != FREE).any()


def _group(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Give the distinct ids and which of them each row (R,) has; on a GPU the R rows' own, of which each row has the first equal one."""
    if host.at_hand(rows):
        return rows.unique(return_inverse=True)
    return rows, masks.same_id(rows, rows).int().argmax(1)


def _count(group: Tensor, n_groups: int, counted: Tensor | None) -> Tensor:
    """Count the rows of each group, those that are counted."""
    ones = torch.ones_like(group) if counted is None else counted.to(group.dtype)
    return torch.zeros(n_groups, dtype=group.dtype, device=group.device).index_add(0, group, ones)


def _log(value: float) -> float:
    return torch.tensor(value, dtype=torch.float64, device="cpu").log().item()


def _log_mean_over(values: Tensor, group: Tensor, number: Tensor, counted: Tensor | None) -> Tensor:
    """Take the logarithm of the mean of exp(values) over each group, of so many rows (M,) that are counted."""
    values = values if counted is None else values.masked_fill(~counted, -torch.inf)
    top = values.new_full((len(number),), -torch.inf).scatter_reduce(0, group, values, "amax")
    total = torch.zeros_like(top).index_add(0, group, (values - top[group]).exp())
    return top + (total / number).log()
