"""RetrievalReport -> report.json, report.md, report.html and figures/, and back; runs and variants side by side."""

from __future__ import annotations

from brainspeech import figures

from .comparison import Comparison, compare, comparison_table, draw_comparison, write_comparison
from .files import Ranks, load, load_history, load_ranks, save_ranks, write
from .ladder import Ladder, ladder
from .ladder_page import draw_ladder, ladder_table, write_ladder
from .page import page
from .words import counts, headline, markdown, table

__all__ = [
    "Comparison",
    "Ladder",
    "Ranks",
    "compare",
    "comparison_table",
    "counts",
    "draw_comparison",
    "draw_ladder",
    "figures",
    "headline",
    "ladder",
    "ladder_table",
    "load",
    "load_history",
    "load_ranks",
    "markdown",
    "page",
    "save_ranks",
    "table",
    "write",
    "write_comparison",
    "write_ladder",
]
