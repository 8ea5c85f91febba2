"""RetrievalReport -> report.json, report.md, report.html and figures/, and back; and several runs side by side."""

from __future__ import annotations

from brainspeech import figures

from .comparison import Comparison, compare, comparison_table, draw_comparison, write_comparison
from .files import Ranks, load, load_history, load_ranks, save_ranks, write
from .page import page
from .words import counts, headline, markdown, table

__all__ = [
    "Comparison",
    "Ranks",
    "compare",
    "comparison_table",
    "counts",
    "draw_comparison",
    "figures",
    "headline",
    "load",
    "load_history",
    "load_ranks",
    "markdown",
    "page",
    "save_ranks",
    "table",
    "write",
    "write_comparison",
]
