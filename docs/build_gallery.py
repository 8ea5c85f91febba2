"""Build the gallery (docs/gallery.md and docs/figures/gallery) from finished runs: python docs/build_gallery.py RUN [OTHER ...]

The first run gives the figures of a report; with more than one, the figure that puts runs side by side is among them. Figures are made
smaller and get a palette, so that the page stays light.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from PIL import Image

from brainspeech import report

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "figures" / "gallery"
SIZES = ((720, 128), (720, 32), (560, 32), (560, 16))  # width in pixels and colours, tried in turn
LARGEST = 150_000  # bytes of a figure

INTRODUCTION = """# Gallery

What a report shows, drawn from the embedded demo: simulated EEG, so these figures say what to look for, not how well speech is decoded
from a brain. Every run writes them into `report.html` and `figures/`; their titles say what was found.

Made by `brainspeech run demo`, then `python docs/build_gallery.py runs/demo`. {runs}
"""

SECTIONS = {
    "What was found": ("accuracy", "rank_curve", "per_subject", "similarity"),
    "What is decoded": ("decoded_words", "decoded_repeats", "decoded_regression"),
    "Whether to believe it": ("training", "lag"),
    "What the encoder reads in the signal": ("attention", "sensors", "bands", "lags"),
    "The recordings": ("spectrum",),
    "Runs side by side": ("forest",),
}


def shrink(png: bytes) -> bytes:
    """Give a figure the width of a page and a palette, the largest that fits."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    for width, colours in SIZES:
        out = io.BytesIO()
        small = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
        small.quantize(colours, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
        if out.tell() <= LARGEST:
            return out.getvalue()
    raise RuntimeError(f"A figure of {out.tell()} bytes, expected {LARGEST} at the most. Add a smaller size to SIZES.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the gallery from finished runs.")
    parser.add_argument("run", nargs="+", help="run folders; the first one is shown")
    runs = parser.parse_args().run
    first = report.load(runs[0])
    pictures = report.figures.draw(first, report.load_history(runs[0]))
    said = ""
    if len(runs) > 1:
        comparison = report.compare(runs)
        pictures += report.draw_comparison(comparison)
        changed = "; ".join(
            f"`{run['name']}` with " + ", ".join(f"`{constant}={values[k]}`" for constant, values in comparison.constants.items())
            for k, run in enumerate(comparison.runs)
            if k
        )
        said = f"The last figure is that of `brainspeech report`, given {len(runs)} runs: {changed}."
    by_name = {picture.name: picture for picture in pictures}
    unplaced = set(by_name) - {name for names in SECTIONS.values() for name in names}
    if unplaced:
        raise RuntimeError(f"The gallery has no section for {', '.join(sorted(unplaced))}: write them into SECTIONS.")

    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in FOLDER.glob("*.png"):
        old.unlink()
    lines = [INTRODUCTION.format(runs=said), report.headline(first), ""]
    for title, names in SECTIONS.items():
        shown = [by_name[name] for name in names if name in by_name]
        lines += [f"## {title}", ""] if shown else []
        for picture in shown:
            (FOLDER / f"{picture.name}.png").write_bytes(shrink(picture.png))
            lines += [f"### {picture.title}", "", f"![{picture.alt}](figures/gallery/{picture.name}.png)", "", picture.caption, ""]
    (DOCS / "gallery.md").write_text("\n".join(lines))
    print(f"{len(by_name)} figures, {sum(f.stat().st_size for f in FOLDER.glob('*.png')):,} bytes: {DOCS / 'gallery.md'}")


if __name__ == "__main__":
    main()
