"""The pages of the datasets are those that docs/build_datasets.py makes now, and say what a user looks for."""

import importlib.util
from pathlib import Path

import pytest

from brainspeech import datasets, manifests

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build_datasets", ROOT / "docs" / "build_datasets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_current(build):
    made = build.pages()
    there = {path.name: path.read_text(encoding="utf-8") for path in build.FOLDER.glob("*.md")}
    assert sorted(there) == sorted(made)
    old = [name for name in made if made[name] != there[name]]
    assert old == [], "run: python docs/build_datasets.py"


@pytest.mark.parametrize("name", manifests.names())
def test_a_page_has_licence_commands_faults_and_citation(build, name):
    manifest = manifests.load(name)
    text = build.page(manifest)
    assert name in datasets.DATASETS
    assert text.startswith("<!-- Made by docs/build_datasets.py")
    for needed in (
        f"# {name}\n",
        manifest.licence,
        f"$ brainspeech verify {name} --root data/{name}",
        "## Biography",
        "```bibtex\n@article",
    ):
        assert needed in text, needed
    assert ("$ brainspeech download" in text) is bool(manifest.entries)
    assert "Faults, and what is done about them:\n\n- " in text
    assert "``" not in text.replace("```", ""), "reStructuredText is left"
    assert "----" not in text.replace("| --- |", "")
    # The biography is there whole: each of its words.
    words = build.docstring(name).replace("-" * 9, "").replace("``", "`").split()
    assert [w for w in words if w not in text and w.replace("*", r"\*") not in text] == []


def test_a_manifest_without_a_loader_and_stars_in_text(build):
    with pytest.raises(FileNotFoundError, match=r"nobody2019\.py"):
        build.docstring("nobody2019")
    assert build.escaped("a*b `c*d` e*") == r"a\*b `c*d` e\*"
    assert build.markdown("What\n----\nx ``y``") == "## What\n\nx `y`"
