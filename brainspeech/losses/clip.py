"""CLIP-style losses: that of Défossez et al. 2023, and the symmetric one of Radford et al. 2021."""

from __future__ import annotations

from .base import Similarity
from .contrastive import ContrastiveLoss
from .objectives import InfoNCE


class ClipLoss(ContrastiveLoss):
    """Cross-entropy of picking each estimate's own candidate among all, by their scores.

    The CLIP loss of [1] (Défossez et al. 2023, Methods, "Contrastive loss"): s_ij = <z_i, y_j> / (1e-8 + ||y_j||), only candidates
    normalised, no temperature, brain to speech only. loss = mean_i [lse_j s_ij - s_i,own(i)]. The free norm of an estimate acts as its
    own inverse temperature.

    It departs from [1] in one thing, unless ``duplicates="negative"``: [1] pushes an estimate away from the same segment when that
    stands in the batch a second time (another subject heard it); here such entries are ignored.

    Paper: Défossez et al. 2023, arXiv:2208.12266.
    Changes: the reference: only candidates normalised, no temperature.
    Evidence: A (public code read and run).

    Parameters
    ----------
    temperature : float
        Scores are divided by it; 1 in [1], which has none.
    symmetric : bool
        Average with the direction speech to brain.
    similarity : str or callable
        See ``ContrastiveLoss``.
    duplicates : {"ignore", "negative", "positive", "error"}
        What other candidates with the row's own id are: left out, or negatives like all others, as in [1], or positives too (their mean,
        SupCon), or an error.
    queue, queue_dtype, gather, chunk
        See ``ContrastiveLoss``.

    References
    ----------
    [1] Défossez, Caucheteux, Rapin, Kabeli, King. Decoding speech perception from non-invasive brain recordings. Nature Machine
    Intelligence 5, 2023. arXiv:2208.12266.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        symmetric: bool = False,
        similarity: str | Similarity = "candidate_normalised",
        duplicates: str = "ignore",
        queue: tuple[int, ...] | None = None,
        queue_dtype: str = "float32",
        gather: bool = False,
        chunk: int | None = None,
    ) -> None:
        objective = InfoNCE(temperature)
        super().__init__(
            objective,
            similarity=similarity,
            symmetric=symmetric,
            duplicates=duplicates,
            queue=queue,
            queue_dtype=queue_dtype,
            gather=gather,
            chunk=chunk,
        )


class ClipSymmetricLoss(ContrastiveLoss):
    """CLIP between brain and speech in both directions, with cosine scores and a learned temperature.

    s_ij = cos(z_i, y_j) exp(t); loss = 1/2 mean_i [lse_j s_ij - s_ii] + 1/2 mean_j [lse_i s_ij - s_jj]. exp(t) starts at
    1 / `temperature` and is kept in [1, 100] as in open_clip.

    Departures: label smoothing is off, as in [1]; [2] found 0.1 useful, for its augmented pairs only. Duplicates are ignored.

    Paper: Radford et al. 2021, arXiv:2103.00020; label smoothing of CLIP-rocket, Fini et al. 2023, arXiv:2305.08675.
    Changes: both directions, estimates normalised, temperature learned; optional label smoothing.
    Evidence: A- (public code read; equals torch's cross_entropy).

    Parameters
    ----------
    temperature : float
        At the start.
    learnable : bool
        Learn it.
    label_smoothing : float
        Share of the target spread evenly over all entries that are not ignored.
    symmetric, similarity, duplicates, queue, queue_dtype, gather, chunk
        See ``ContrastiveLoss``.

    References
    ----------
    [1] Radford et al. Learning transferable visual models from natural language supervision. ICML 2021.
    [2] Fini et al. Improved baselines for vision-language pre-training. TMLR 2023.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.07,
        learnable: bool = True,
        label_smoothing: float = 0.0,
        symmetric: bool = True,
        similarity: str | Similarity = "cosine",
        duplicates: str = "ignore",
        queue: tuple[int, ...] | None = None,
        queue_dtype: str = "float32",
        gather: bool = False,
        chunk: int | None = None,
    ) -> None:
        objective = InfoNCE(temperature, learnable=learnable, label_smoothing=label_smoothing)
        super().__init__(
            objective,
            similarity=similarity,
            symmetric=symmetric,
            duplicates=duplicates,
            queue=queue,
            queue_dtype=queue_dtype,
            gather=gather,
            chunk=chunk,
        )
