"""Write docs/datasets: a page per dataset, from its loader's module docstring and its manifest, and an index.

::

    python docs/build_datasets.py

A test fails where the pages are not what this would write.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from brainspeech import manifests
from brainspeech.download import human
from brainspeech.manifests import Manifest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "datasets"
MADE = "<!-- Made by docs/build_datasets.py from {}: change those, not this. -->"


def pages() -> dict[str, str]:
    """Make every page: {file name: text}."""
    every = [manifests.load(name) for name in manifests.names()]
    return {"README.md": index(every)} | {f"{manifest.name}.md": page(manifest) for manifest in every}


def page(manifest: Manifest) -> str:
    """Make the page of a dataset."""
    name = manifest.name
    title, _, biography = docstring(name).partition("\n")
    facts = {
        "licence": manifest.licence,
        "access": manifest.access,
        "version": manifest.version,
        "doi": f"[{manifest.doi}](https://doi.org/{manifest.doi})" if manifest.doi else "",
        "homepage": f"<{manifest.homepage}>",
        "size": size(manifest),
        "files": files(manifest),
        "code": f"[loader](../../brainspeech/datasets/{name}.py), [recipe](../../recipes/{name}/README.md), "
        f"[manifest](../../data_manifests/{name}.toml)",
    }
    parts = [
        MADE.format(f"brainspeech/datasets/{name}.py and data_manifests/{name}.toml"),
        f"# {name}",
        escaped(title),
        table(("", ""), [(key, value) for key, value in facts.items() if value]),
        "## How to get it",
        *how_to_get(manifest),
        markdown(biography),
        *original(manifest),
        "## Cite",
        fenced(manifest.citation, "bibtex"),
    ]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def index(every: list[Manifest]) -> str:
    """Make the table of all datasets."""
    rows = [(f"[{m.name}]({m.name}.md)", escaped(m.title), m.licence, m.access, size(m), files(m)) for m in every]
    return "\n\n".join(
        [
            MADE.format("brainspeech/datasets and data_manifests"),
            "# Datasets",
            "What is known of each: who was recorded, what they heard, how to get it, every known fault and what was done about it. "
            "Another one: [add a dataset](../howto/add_dataset.md).",
            table(("dataset", "title", "licence", "access", "size", "files"), rows) + "\n",
        ]
    )


def docstring(name: str) -> str:
    """Read the module docstring of a loader without importing it."""
    found = ast.get_docstring(ast.parse((ROOT / "brainspeech" / "datasets" / f"{name}.py").read_text(encoding="utf-8")))
    if not found:
        raise ValueError(f"brainspeech/datasets/{name}.py has no module docstring; a dataset's is its biography.")
    return found


def markdown(text: str) -> str:
    """Turn the docstring's headings and code into Markdown."""
    text = re.sub(r"^(\S.*)\n-{3,}$", r"## \1\n", text, flags=re.MULTILINE)
    return escaped(text.replace("``", "`"))


def escaped(text: str) -> str:
    """Keep stars outside of code from becoming emphasis."""
    return "".join(part if part.startswith("`") else part.replace("*", r"\*") for part in re.split(r"(`[^`]*`)", text))


def size(manifest: Manifest) -> str:
    """Say what the dataset declares of itself."""
    declared = manifest.declared
    said = [(declared.subjects, "subjects"), (declared.recordings, "recordings"), (declared.hours, "h")]
    said += [(declared.n_channels, "channels"), (declared.sfreq, "Hz")]
    return ", ".join(f"{value:g} {unit}" for value, unit in said if value is not None)


def files(manifest: Manifest) -> str:
    """Say what the listing holds."""
    if not manifest.entries:
        return "not listed: by hand"
    n_bytes, n_unknown = sum(entry.size or 0 for entry in manifest.entries), sum(entry.size is None for entry in manifest.entries)
    unknown = f" and {n_unknown} of unknown size" if n_unknown else ""
    return f"{len(manifest.entries):,}, {human(n_bytes)}{unknown}, each with a digest"


def how_to_get(manifest: Manifest) -> list[str]:
    """Say which commands to type, or what to do by hand."""
    name, notes = manifest.name, escaped(manifest.notes)
    folder = f"--root data/{name}"
    commands = [f"brainspeech {verb} {name} {folder}" for verb in ("download", "verify", "describe", "run")]
    if manifest.entries:
        few = f"Three subjects are a start: `brainspeech download {name} {folder} --subjects first:3`."
        return [fenced("\n".join(f"$ {command}" for command in commands), "console"), few, notes]
    filled = "\n".join(f"{item.glob}   {item.what}" for item in manifest.layout)
    return [
        notes,
        fenced(manifest.by_hand, "text"),
        f"Then `data/{name}` holds",
        fenced(filled, "text"),
        "and these commands take it:",
        fenced("\n".join(f"$ {command}" for command in commands[1:]), "console"),
    ]


def original(manifest: Manifest) -> list[str]:
    """Describe the form that a mirror was made from."""
    if not manifest.original:
        return []
    found = manifest.original
    doi = f", doi [{found['doi']}](https://doi.org/{found['doi']})" if "doi" in found else ""
    head = f"{escaped(found['title'])} ({found['access']}, <{found['homepage']}>{doi}). Its files are not listed here: by hand."
    return ["## The original form", head, fenced(found["layout"], "text"), fenced(found["by_hand"], "text")]


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Make a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def fenced(text: str, language: str) -> str:
    """Put text into a fenced block."""
    return f"```{language}\n{text.strip()}\n```"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for path in FOLDER.glob("*.md"):
        if path.name not in made:
            path.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
