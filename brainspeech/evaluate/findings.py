"""RetrievalReport: what a run found, and what each row of its table can be doubted for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from brainspeech.scorers import SCORERS

LEAK = 0.001  # a control whose p is below this is above chance
MEANINGS = {
    "encoder": "the trained encoder",
    "linear_clip": "a linear filter per subject, trained with the encoder's loss: what is above it is owed to depth",
    "ridge": "ridge regression per subject: the classical backward model",
    "noise": "control: everything refitted on noise with the spectrum and channel covariance of the signal; belongs at chance",
    "shuffled": "control: everything refitted with the sound shifted against the signal; belongs at chance",
    "block_oracle": "reference, not fitted: knows the right block and guesses inside it",
    "constant": "reference: the best estimate that never looks at the signal",
    "ideal": "simulation only: the response that was planted, decoded by those who know it",
    "encoder_augment": "the same encoder, its scores averaged with those of slightly shifted, scaled and thinned copies of the signal",
    "encoder_layers": "the same encoder, parts of the feature (layers) scored one by one and weighed on the validation split",
    "encoder_other_subject": "the same encoder, minus what the layers of other subjects would say",
    "encoder_hubness": "the same encoder, the popularity of each candidate among all test windows taken off; transductive: the ranks of a "
    "window depend on the others, so this is no measure of a decoder that gets one window at a time",
    "encoder_context": "the same encoder, the evidence of a window pooled with that of windows before and after it in its block: it "
    "decides from more signal than one window",
    **{f"shuffled_{scorer}": "control: `shuffled` under the same scorer; belongs at chance" for scorer in SCORERS},
}


@dataclass(frozen=True, eq=False)
class RetrievalReport:
    """What a run found, as plain values; accuracies are fractions, rank 0 is best, what cannot be said is None.

    ``to_dict`` gives the content of report.json. ``similarity`` (n, n), mean scores by true segment (rows) and candidate (columns) of at
    most 200 candidates, z-scored by row, is kept beside it as an array.
    """

    n_candidates: int
    n_windows: int
    chance: dict[str, float]
    rows: dict[str, dict[str, Any]]
    disjoint: dict[str, Any]
    per_subject: dict[str, Any]
    subjects: int
    blocks: int
    folds: int
    seeds: list[int]
    dropped: dict[str, int]
    warnings: list[str]
    provenance: dict[str, Any]
    methods: dict[str, str] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    title: str = ""
    similarity: np.ndarray | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give the report as JSON-able values: finite numbers or None."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self) if f.name != "similarity"}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], similarity: np.ndarray | None = None) -> RetrievalReport:
        """Make the report of ``to_dict`` again.

        Raises
        ------
        ValueError
            If an entry is missing or unknown.
        """
        names = {f.name for f in dataclasses.fields(cls)} - {"similarity"}
        needed = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
        if not needed <= set(values) <= names:
            raise ValueError(
                f"Not a report: missing {sorted(needed - set(values))}, unknown {sorted(set(values) - names)}. Run the evaluation again."
            )
        return cls(**values, similarity=similarity)

    @property
    def leaks(self) -> list[str]:
        """Names of the controls that are above chance, which none may be."""
        return [name for name, row in self.rows.items() if row.get("control") and row["p_above_chance"] < LEAK]

    @property
    def alarms(self) -> list[str]:
        """What makes the whole table doubtful, in sentences: a control above chance, a peak at lag 0. ``--strict`` fails on it."""
        out = [
            f"The control `{name}` is above chance: p = {self.rows[name]['p_above_chance']:.2g}; something other than the brain's answer "
            "to this sound is decoded, and no row of this table can be trusted until it is found."
            for name in self.leaks
        ]
        lag = self.curves.get("lag")
        if lag and lag["artefact"]:
            out.append(
                f"Decoding peaks at a lag of {1000 * lag['peak']:.0f} ms: an artefact. The brain answers a sound tens of milliseconds "
                "later, so look for sound that leaks into the recording, or for a wrong alignment."
            )
        return out


def plain(value: Any) -> Any:
    """Turn numpy values, tuples and mappings into what JSON knows; a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int | bool):
        return value
    return str(value)
