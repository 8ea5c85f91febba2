"""The table of presets in docs/losses.md, read from the classes: `python -m brainspeech.losses.catalogue docs/losses.md` rewrites it."""

from __future__ import annotations

import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

from . import LOSSES

BEGIN, END = "<!-- presets: begin -->", "<!-- presets: end -->"
FIELDS = ("Paper", "Changes", "Evidence")


def describe(loss_class: type) -> dict[str, str]:
    """Read what a class's docstring says after "Paper:", "Changes:" and "Evidence:".

    Raises
    ------
    ValueError
        If one of them is missing.
    """
    text = inspect.getdoc(loss_class) or ""
    found = {}
    for field in FIELDS:
        match = re.search(rf"^{field}: (.+?)(?=\n(?:\n|[A-Z]\w+: )|\Z)", text, re.MULTILINE | re.DOTALL)
        if match is None:
            raise ValueError(f'The docstring of {loss_class.__name__} has no line that begins with "{field}:".')
        found[field] = " ".join(match[1].split()).rstrip(".")
    return found


def table() -> str:
    """Give the table of all presets in markdown: defaults from their signatures, the rest from their docstrings."""
    lines = [
        "| preset | paper | what it changes | temperature | scores | direction | same id | negatives of its own side | evidence |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, where in LOSSES.items():
        module, attribute = where.split(":")
        loss_class = getattr(import_module(module), attribute)
        text = describe(loss_class)
        options = {key: parameter.default for key, parameter in inspect.signature(loss_class).parameters.items()}
        learned = ", learned" if options.get("learnable") else ""
        learned = ", per item, learned" if "temperature_range" in options else learned
        temperature = f"{options['temperature']:g}{learned}" if "temperature" in options else "-"
        direction = {True: "both", False: "brain → speech"}[options["symmetric"]] if "symmetric" in options else "-"
        intra = {True: "yes", False: "by argument"}[options["intra"]] if "intra" in options else "no"
        if "views" in inspect.signature(loss_class.forward).parameters:
            direction, options["duplicates"], intra = "all", "views", {"MvDhelLoss": "only those"}.get(loss_class.__name__, "by argument")
        cells = [f"`{name}`", text["Paper"], text["Changes"], temperature, options["similarity"], direction, options.get("duplicates", "-")]
        lines.append("| " + " | ".join([*cells, intra, text["Evidence"]]) + " |")
    return "\n".join(lines)


def update(text: str) -> str:
    """Put the present table between the marks of a page.

    Raises
    ------
    ValueError
        If the page lacks the marks.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The page must have the lines {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(update(page.read_text()))
