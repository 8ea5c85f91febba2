"""Scores of a test set -> a RetrievalReport: accuracies with intervals, controls, references, and what each row can be doubted for.

Shapes: W test windows, N candidates (distinct stimuli), F features, T times; scores (W, N), higher is nearer. A *row* is a line of the
report's table: an encoder, a reference or a control, with one score matrix per seed.
"""

from __future__ import annotations

from brainspeech.prediction import TestSet

from .accuracies import thin
from .config import EvaluateConfig
from .evaluating import CONTROLS, evaluate
from .findings import LEAK, MEANINGS, RetrievalReport, plain
from .significance import FEW_BLOCKS, SCORED

__all__ = [
    "CONTROLS",
    "FEW_BLOCKS",
    "LEAK",
    "MEANINGS",
    "SCORED",
    "EvaluateConfig",
    "RetrievalReport",
    "TestSet",
    "evaluate",
    "plain",
    "thin",
]
