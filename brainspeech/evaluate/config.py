"""How accuracies are tested: the constants."""

from __future__ import annotations

import math
from dataclasses import dataclass

from brainspeech import lexicon
from brainspeech.scorers import check_names


@dataclass(frozen=True)
class EvaluateConfig:
    """How accuracies are tested.

    Parameters
    ----------
    n_bootstrap, n_permutations : int
        Replicates of the intervals and of each test.
    confidence : float
        Nominal coverage of the intervals.
    seed : int
        Of the bootstrap, the permutations and the choice of examples.
    topk : tuple of int
        The k of the top-k accuracies.
    n_examples : int
        Test windows whose words are shown beside those of the five best candidates.
    scorers : tuple of str
        Names of ``scorers.SCORERS``: each adds a row ``encoder_X``, the encoder's scores put together in another way, and ``shuffled_X``.
    context_width : float
        Seconds before and after a window from which the scorer ``context`` may take evidence.
    n_layers : int
        Equal parts of the features that the scorer ``layers`` scores one by one, such as layers that are not averaged; 0 for none.
    regression : tuple of str
        Sets of ``lexicon.SETS`` that how well a stimulus is decoded is regressed on; none by default.
    language, spacy_model : str
        What was heard in, such as ``"nl"``, by which word frequencies are looked up; and the pipeline of that language, by name or folder,
        that knows parts of speech and word vectors (``"nl_core_news_md"``).
    phrase_model : str
        A transformers model for ``phrase_embedding``; empty: the mean of spaCy's word vectors.
    """

    n_bootstrap: int = 10_000
    n_permutations: int = 10_000
    confidence: float = 0.95
    seed: int = 0
    topk: tuple[int, ...] = (1, 5, 10)
    n_examples: int = 8
    scorers: tuple[str, ...] = ()
    context_width: float = 6.0
    n_layers: int = 0
    regression: tuple[str, ...] = ()
    language: str = "en"
    spacy_model: str = "en_core_web_md"
    phrase_model: str = ""

    def __post_init__(self) -> None:
        if not self.topk or min(self.topk) < 1:
            raise ValueError(f"topk needs numbers of 1 or more, got {self.topk}.")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is a fraction between 0 and 1, got {self.confidence}.")
        if self.n_bootstrap < 1 or self.n_permutations < 1:
            raise ValueError(f"At least one replicate is needed, got {self.n_bootstrap} and {self.n_permutations}.")
        check_names(self.scorers)
        lexicon.check(self.regression, language=self.language)
        if not (math.isfinite(self.context_width) and self.context_width > 0):
            raise ValueError(f"context_width is a positive number of seconds, got {self.context_width}.")
        if self.n_layers < 0:
            raise ValueError(f"n_layers is 0 or the number of layers that the feature stacks, got {self.n_layers}.")
