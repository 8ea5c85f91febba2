"""README and docs: their code runs, their commands are real, their links lead somewhere."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from tiny_runs import tiny

from brainspeech import cli
from brainspeech import recipe as recipes

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md")]
)
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]

BLOCK = re.compile(r"^```([^\n]*)\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """Yield (line, info words after the language, code) of a page's fenced blocks in a language."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        words = match[1].split()
        if words[:1] == [language]:
            yield text[: match.start()].count("\n") + 2, words[1:], match[2]


def program(page):
    """Put a page's Python blocks in a row, each line where it is on the page, so that errors name the line."""
    lines = []
    for line, words, code in blocks(page, "python"):
        if "no-run" not in words:
            lines += [""] * (line - 1 - len(lines)) + code.splitlines()
    return "\n".join(lines)


RUNNABLE = [page for page in PAGES if program(page).strip()]


@pytest.mark.parametrize("page", RUNNABLE, ids=[page.relative_to(ROOT).as_posix() for page in RUNNABLE])
def test_the_python_blocks_of_a_page_run_in_their_order(page, tmp_path, monkeypatch):
    """Every line runs as it stands; the demo, where a page loads it, is a small one, and what the page changes about it holds."""
    load, small = recipes.load, tiny()
    monkeypatch.setattr(recipes, "load", lambda recipe: small if recipe == "demo" else load(recipe))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BRAINSPEECH_CACHE", str(tmp_path / "cache"))
    exec(compile(program(page), str(page), "exec"), {"__name__": "__main__"})


def commands(page):
    """List (line, argument list) of the brainspeech commands in a page's console blocks."""
    found = []
    for start, _, code in blocks(page, "console"):
        text = code.replace("\\\n", "")
        for number, line in enumerate(text.splitlines()):
            # "$ command   # remark" or "$ command      what it does"
            command = re.split(r"\s#\s|\s{3,}", line.removeprefix("$ ").strip())[0]
            words = shlex.split(command)
            if words and words[0].split("/")[-1] == "brainspeech":
                found.append((start + number, words[1:]))
    return found


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_the_commands_of_a_page_parse(page, capsys):
    for line, arguments in commands(page):
        try:
            cli._parser().parse_args(arguments)
        except SystemExit as ended:
            if ended.code:
                pytest.fail(f"{page}:{line}: brainspeech {' '.join(arguments)}: {capsys.readouterr().err}")


def targets(page):
    """List the relative links of a page, code blocks left out: (target, anchor)."""
    text = re.sub(r"`[^`\n]*`", "", BLOCK.sub("", page.read_text()))
    links = re.findall(r"\]\(([^()\s]+(?:\([^()]*\))?)(?:\s+\"[^\"]*\")?\)", text)
    return [link.partition("#")[::2] for link in links if not re.match(r"[a-z]+:", link)]


def anchors(page):
    """List the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ +(.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_the_relative_links_of_a_page_lead_somewhere(page):
    broken = []
    for target, anchor in targets(page):
        file = (page.parent / target) if target else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(f"{target}#{anchor}" if anchor else target)
    assert broken == []


# ----------------------------------------------------------------------------------------------------------- the checks themselves


def test_a_broken_page_is_found(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(
        "# One thing\n\n[a](there.md) [b](#one-thing) [c](#another) [d](https://example.org) `[e](code.md)`\n\n"
        "```console\n$ brainspeech run demo   # remark\n$ .venv/bin/brainspeech run demo --colour\n$ make demo\n```\n\n"
        "```python\nx = 1\n```\n\n```python no-run\nraise ValueError\n```\n\n```python\nassert x == 1\n```\n"
    )
    assert targets(page) == [("there.md", ""), ("", "one-thing"), ("", "another")]
    assert anchors(page) == {"one-thing"}
    assert commands(page) == [(6, ["run", "demo"]), (7, ["run", "demo", "--colour"])]
    with pytest.raises(pytest.fail.Exception, match=r"page\.md:7: brainspeech run demo --colour"):
        test_the_commands_of_a_page_parse(page, capsys)
    assert [n for n, line in enumerate(program(page).splitlines(), 1) if line] == [12, 20]
    exec(program(page), {})


def test_the_pages_that_a_newcomer_reads_are_among_those_checked():
    assert {"README.md", "docs/quickstart.md", "docs/concepts.md", "docs/howto/bring_your_own_data.md"} <= set(IDS)
    assert "docs/howto/bring_your_own_data.md" in [page.relative_to(ROOT).as_posix() for page in RUNNABLE]


def test_make_knows_the_readmes_two_commands():
    done = subprocess.run(["make", "--dry-run", "demo", "test"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "brainspeech run demo" in done.stdout
