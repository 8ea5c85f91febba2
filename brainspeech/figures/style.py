"""What all figures share: colours, sizes, words for numbers, and how a figure becomes a PNG and an SVG that follows the page's colours.

No global matplotlib state is used or changed.
"""

from __future__ import annotations

import io
import re
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brainspeech.evaluate import RetrievalReport

if TYPE_CHECKING:  # what is drawn with is loaded when something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER = "#1f2832", "#68737f", "#e2e6ea", "#fdfdfd"  # in the SVG these become the page's variables
COLOURS = {
    "encoder": "#2f6fde",
    "linear_clip": "#0f9d8a",
    "ridge": "#8b5fd0",
    "ideal": "#3d9a4a",
    "block_oracle": "#c58a12",
    "constant": "#c2609a",
    "noise": "#a1755a",
    "shuffled": "#8d99a6",
}
OTHERS = ("#d9662b", "#4aa3c7", "#b04a4a", "#6d8b2f")
WIDTH = 4.4  # inches; at 390 px of screen one point is about one pixel, so 9 pt stays readable
STYLE: dict[Any, Any] = {
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 9,
    "axes.axisbelow": True,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "brainspeech",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 8.5,
    "ytick.major.size": 0,
}


@dataclass(frozen=True, eq=False)
class Picture:
    """One figure: ``title`` says the finding, ``caption`` how to read it, ``alt`` what a reader who cannot see it should know."""

    name: str
    title: str
    caption: str
    alt: str
    png: bytes
    svg: str


def colour(row: str) -> str:
    """Give the colour of a row, the same in every figure; rows that a recipe adds take the next free one."""
    return COLOURS.get(row) or OTHERS[sum(map(ord, row)) % len(OTHERS)]


def percent(value: float | None, digits: int = 1) -> str:
    """Write a fraction as a percentage."""
    return "-" if value is None else f"{100 * value:.{digits}f} %"


def label(row: str) -> str:
    """Write a row's name for people."""
    return row.replace("_", " ")


def widest(report: RetrievalReport) -> int:
    """Give the largest k of the report's top-k accuracies that can be missed: below the number of candidates."""
    ks = sorted(int(key[3:]) for key in report.chance if key.startswith("top"))
    return max([k for k in ks if k < report.n_candidates], default=ks[0])


def make_figure(height: float, **options: Any) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained", **options)
    return figure, figure.subplots()


def percent_axis(axis: Any, top: float) -> None:
    """Label an axis from 0 to top in percent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %" if top > 0.05 else f"{100 * value:.1f} %")


def finish(figure: Figure, name: str, *, title: str, caption: str, alt: str) -> Picture:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    lines = textwrap.wrap(title, 46)
    figure.set_size_inches(WIDTH, figure.get_size_inches()[1] + 0.2 * len(lines) + 0.1)
    figure.suptitle("\n".join(lines), x=0.02, ha="left", fontsize=10.5, fontweight="bold", color=INK)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    return Picture(name, title, caption, alt, png.getvalue(), _inline(buffer.getvalue(), name, alt))


def _inline(svg: str, name: str, alt: str) -> str:
    """Make matplotlib's SVG a part of a page: no prolog, no links, ids of its own, the page's font and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    viewbox = re.search(r'viewBox="[^"]+"', svg)
    label = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    svg = re.sub(r"^<svg[^>]*>", f'<svg role="img" aria-label="{label}" {viewbox.group() if viewbox else ""}>', svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    svg = svg.replace('xlink:href="data:', 'href="data:')
    svg = re.sub(r"font: ([^;\"]*?px) [^;\"]+", r"font: \1 system-ui, sans-serif", svg)
    for colour_, variable in ((INK, "--ink"), (MUTED, "--muted"), (GRID, "--line"), (PAPER, "--paper")):
        svg = svg.replace(colour_, f"var({variable})")
    return svg
