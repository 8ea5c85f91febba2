"""The figures of a report: each is drawn once, as a PNG and as an SVG that follows the page's colours; its title says what is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from brainspeech.evaluate import RetrievalReport

from .style import STYLE, Picture, label, percent, widest


def draw(report: RetrievalReport, history: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> list[Picture]:
    """Draw every figure that the report has data for.

    Parameters
    ----------
    history : mapping of str to list of dict, optional
        Epochs of each fit: ``epoch``, ``train_loss``, ``valid_loss``, ``valid_top10``.
    """
    from matplotlib import rc_context  # a run needs the drawing only at its end

    from . import brain, decoded, retrieval

    with rc_context(STYLE):
        pictures = [retrieval.accuracy(report), retrieval.rank_curve(report), retrieval.per_subject(report)]
        if report.similarity is not None:
            pictures.append(retrieval.similarity(report, report.similarity))
        if any(history.values() if history else ()):
            pictures.append(retrieval.training(report, history or {}))
        if report.curves.get("lag"):
            pictures.append(retrieval.lag(report))
        if report.curves.get("attribution"):
            seen = (draw_part(report.curves["attribution"]) for draw_part in (brain.attention, brain.sensors, brain.bands, brain.lags))
            pictures += [picture for picture in seen if picture is not None]
        if report.curves.get("spectrum"):
            pictures.append(brain.spectrum(report.curves["spectrum"]))
        pictures += decoded.draw_decoded(report)
    return pictures


def draw_comparison(
    names: Sequence[str], entries: Sequence[Mapping[str, Any]], differences: Sequence[Mapping[str, Any]], chance: Sequence[float], *, k: int
) -> list[Picture]:
    """Draw runs side by side; see ``runs.forest``."""
    from matplotlib import rc_context

    from . import runs

    with rc_context(STYLE):
        return [runs.forest(names, entries, differences, chance, k=k)]


def draw_ladder(rows: Sequence[Mapping[str, Any]], *, reference: str, k: int, axis: str | None, chosen: str | None) -> list[Picture]:
    """Draw a ladder of variants: the differences first, then the curve where there is an axis, then the accuracies; see ``ladder``."""
    from matplotlib import rc_context

    from . import ladder

    with rc_context(STYLE):
        seen = [
            ladder.differences(rows, reference=reference, k=k),
            None if axis is None else ladder.curve(rows, axis=axis, k=k, chosen=chosen),
            ladder.accuracies(rows, k=k, chosen=chosen),
        ]
    return [picture for picture in seen if picture is not None]


__all__ = ["Picture", "draw", "draw_comparison", "draw_ladder", "label", "percent", "widest"]
