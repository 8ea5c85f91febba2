"""MoCHi, mixing of hard negatives (Kalantidis et al. 2020), without making a single synthetic vector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from brainspeech.host import Count, upload

from .base import Similarity, one_of
from .contrastive import ContrastiveLoss
from .objectives import InfoNCE


class MochiLoss(ContrastiveLoss):
    """InfoNCE with synthetic negatives for each estimate, mixed from its hardest ones.

    Of a row's `n_hardest` negatives by score, `n_mixed` pairs give h = norm(a n_i + (1 - a) n_j), a ~ U(0, 1), and `n_mixed_with_query`
    give h' = norm(b q + (1 - b) n_j), b ~ U(0, 0.5), without gradient. With s_i = cos(q, n_i) and the Gram matrix g of the candidates,

        q.h  = (a s_i + (1 - a) s_j) / sqrt(a^2 + (1 - a)^2 + 2 a (1 - a) g_ij)
        q.h' = (b + (1 - b) s_j) / sg sqrt(b^2 + (1 - b)^2 + 2 b (1 - b) s_j)

    which have the value and the gradient of the vectors' own, and no vector of F x T numbers is made.

    Departures: ignored entries (duplicates, ``ignore=``) are left out before the hardest are chosen, without which the method would
    amplify false negatives. Pairs are of two different negatives where there are two. The queue that [1] takes its negatives from is off
    unless ``queue=`` is given; the Gram matrix is then that of batch and queue together, K x K numbers in each step. A row with fewer
    negatives than `n_hardest` uses all it has. Validation (eval mode) has no synthetic negatives, and neither has the direction candidates
    to estimates.

    Paper: Kalantidis et al. 2020, arXiv:2010.01028.
    Changes: extra negatives, mixed from the hardest.
    Evidence: B (an unofficial implementation; the paper's numbers from memory).

    Parameters
    ----------
    temperature : float
    n_hardest, n_mixed, n_mixed_with_query : int
        N, s and s' of [1].
    warmup : int
        Training steps before synthetic negatives begin; 1024 in the unofficial code.
    seed : int
        Of the mixtures, which are the same in all processes.
    similarity : {"cosine"}
        The Gram form needs unit vectors.
    symmetric, duplicates, queue, queue_dtype, gather, chunk
        See ``ContrastiveLoss``.

    References
    ----------
    [1] Kalantidis et al. Hard negative mixing for contrastive learning. NeurIPS 2020.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.2,
        n_hardest: int = 1024,
        n_mixed: int = 1024,
        n_mixed_with_query: int = 128,
        warmup: int = 1024,
        seed: int = 0,
        symmetric: bool = False,
        similarity: str | Similarity = "cosine",
        duplicates: str = "ignore",
        queue: tuple[int, ...] | None = None,
        queue_dtype: str = "float32",
        gather: bool = False,
        chunk: int | None = None,
    ) -> None:
        if not callable(similarity):
            one_of("similarity", similarity, ("cosine",))
        super().__init__(
            InfoNCE(temperature),
            similarity=similarity,
            symmetric=symmetric,
            duplicates=duplicates,
            extra_negatives=HardMixtures(n_hardest, n_mixed, n_mixed_with_query, warmup=warmup, seed=seed),
            queue=queue,
            queue_dtype=queue_dtype,
            gather=gather,
            chunk=chunk,
        )


class HardMixtures(nn.Module):
    """Scores of synthetic negatives; see ``MochiLoss``.

    Attributes
    ----------
    step : Tensor, int64
        Training steps so far.
    """

    step: Tensor

    def __init__(self, n_hardest: int, n_mixed: int, n_mixed_with_query: int, *, warmup: int = 0, seed: int = 0) -> None:
        super().__init__()
        if n_hardest < 1 or min(n_mixed, n_mixed_with_query, warmup) < 0:
            raise ValueError(
                "n_hardest must be positive, n_mixed, n_mixed_with_query and warmup 0 or more, "
                f"got {n_hardest!r}, {n_mixed!r}, {n_mixed_with_query!r} and {warmup!r}."
            )
        self.n_hardest, self.n_mixed, self.n_mixed_with_query = n_hardest, n_mixed, n_mixed_with_query
        self.warmup, self.seed = warmup, seed
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self._count = Count()
        self._count.note(self.step, 0)

    @property
    def active(self) -> bool:
        """Whether the next call gives synthetic negatives."""
        return self.training and self._count.read(self.step) >= self.warmup

    def forward(self, scores: Tensor, negative: Tensor, gram: Callable[[], Tensor]) -> Tensor:
        """Score mixtures.

        Parameters
        ----------
        scores : Tensor, shape (B, N)
            Cosines of estimates and candidates.
        negative : Tensor, shape (B, N), bool
        gram : callable
            () -> Tensor (N, N), cosines of candidates; not called while there are no mixtures of two.

        Returns
        -------
        Tensor, shape (B, n_mixed + n_mixed_with_query) or (B, 0)
            -inf in a row that has no negative.
        """
        active, n_rows, step = self.active, len(scores), self._count.read(self.step)
        generator = torch.Generator().manual_seed(self.seed + step)
        if self.training:
            self.step += 1
            self._count.note(self.step, step + 1)
        if not active:
            return scores.new_zeros(n_rows, 0)

        def draw(n: int) -> Tensor:
            return upload(torch.rand(n_rows, n, generator=generator, dtype=torch.float64).to(scores.dtype), scores.device)

        n_available = negative.sum(1, keepdim=True)
        hardest = scores.detach().masked_fill(~negative, -torch.inf).topk(min(self.n_hardest, scores.shape[1]), 1).indices
        n = n_available.clamp(1, hardest.shape[1])

        def choose(share: Tensor, n: Tensor) -> Tensor:
            return torch.minimum((share * n).long(), n - 1)

        first = choose(draw(self.n_mixed), n)
        second = (first + 1 + choose(draw(self.n_mixed), (n - 1).clamp(min=1))) % n
        i, j = hardest.gather(1, first), hardest.gather(1, second)
        alike = gram()[i, j] if self.n_mixed else scores.new_zeros(n_rows, 0)
        pairs = mix(scores.gather(1, i), scores.gather(1, j), alike, draw(self.n_mixed))
        j = hardest.gather(1, choose(draw(self.n_mixed_with_query), n))
        with_query = mix_with_query(scores.gather(1, j), draw(self.n_mixed_with_query) / 2)
        return torch.cat([pairs, with_query], 1).masked_fill(n_available == 0, -torch.inf)


def mix(first: Tensor, second: Tensor, gram: Tensor, a: Tensor) -> Tensor:
    """Give q.norm(a n_i + (1 - a) n_j) from q.n_i, q.n_j and n_i.n_j of unit candidates."""
    return (a * first + (1 - a) * second) / (a**2 + (1 - a) ** 2 + 2 * a * (1 - a) * gram).clamp_min(1e-12).sqrt()


def mix_with_query(score: Tensor, b: Tensor) -> Tensor:
    """Give q.norm(b q + (1 - b) n_j) from q.n_j of unit vectors, with the gradient of a mixture that is held still."""
    norm = (b**2 + (1 - b) ** 2 + 2 * b * (1 - b) * score.detach()).clamp_min(1e-12).sqrt()
    return (b + (1 - b) * score) / norm
