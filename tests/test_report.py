"""What is written can be read back, needs nothing else, and says what the numbers say."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from brainspeech import evaluate, report
from brainspeech.evaluate import EvaluateConfig, TestSet
from brainspeech.records import Segment, Span

CONFIG = EvaluateConfig(n_bootstrap=200, n_permutations=1999)
HISTORY = {
    "encoder": [{"epoch": e, "train_loss": 4 - 0.2 * e, "valid_loss": 4 - 0.2 * e + 0.03 * e**2, "valid_top10": 0.1 * e} for e in range(6)],
    "noise": [{"epoch": 0, "train_loss": 4.1, "valid_loss": 4.2, "valid_top10": 0.1}],
}
FIGURES = {"accuracy", "rank_curve", "per_subject", "similarity", "training", "lag"}


def make(*, n_subjects=3, n_blocks=6, per_block=5, leak=0.0, text="a $5 <b>bold</b> | word", names="encoder noise shuffled", **options):
    segments = [
        Segment(
            f"d/sub-{s:02d}", f"d/sub-{s:02d}", 100.0 * k + 3 * i, 3.0, f"{k}-{i}", f"b{k}", text and f"{text} {k} {i}", "", "test",
            (Span("story", 100.0 * k, 100.0 * k + 60, -3.0 * i),),
        )
        for s in range(n_subjects) for k in range(n_blocks) for i in range(per_block)
    ]  # fmt: skip
    test = TestSet.from_segments(segments)
    rng = np.random.default_rng(0)
    rows = {}
    for name in names.split():
        rows[name] = [rng.normal(size=(len(test.truth), len(test.candidates))).astype(np.float32)]
        rows[name][0][np.arange(len(test.truth)), test.truth] += {"encoder": 2, "noise": leak}.get(name, 0)
    return evaluate.evaluate(rows, test, config=CONFIG, **options)


LAG = {0.0: 0.1, 0.1: 0.3, 0.2: 0.2}


class Page(HTMLParser):
    """Collects what a page refers to and its words; complains about tags that do not close."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self):
        super().__init__()
        self.references, self.ids, self.words, self.open, self.labels = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.references += [v for k, v in attributes if k in ("href", "xlink:href", "src", "srcset", "data", "action")]
        self.ids += [values["id"]] if "id" in values else []
        self.labels += [values["aria-label"]] if "aria-label" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def parse(text):
    page = Page()
    page.feed(text)
    assert page.open == []
    return page, " ".join("".join(page.words).split())


def test_written_files_are_read_back(tmp_path):
    made = make(provenance={"commit": "abc"}, dropped={"too short": 3}, lag_curve=LAG, title="A title")
    paths = report.write(made, tmp_path / "run", history=HISTORY)
    names = {str(p.relative_to(tmp_path / "run")) for p in paths}
    assert names == {"report.json", "report.md", "report.html", "history.json", "figures/similarity.npy"} | {
        f"figures/{f}.png" for f in FIGURES
    }
    assert {p for p in (tmp_path / "run").rglob("*") if p.is_file()} == set(paths)  # no temporary file is left
    assert all((tmp_path / "run" / f"figures/{f}.png").read_bytes().startswith(b"\x89PNG") for f in FIGURES)
    back = report.load(tmp_path / "run")
    assert back.to_dict() == made.to_dict()
    np.testing.assert_array_equal(back.similarity, made.similarity)
    assert report.load_history(tmp_path / "run") == HISTORY
    assert json.loads((tmp_path / "run" / "report.json").read_text())["rows"]["encoder"]["top10"]["value"] > 0.5


def test_the_same_report_gives_the_same_files(tmp_path):
    made = make(lag_curve=LAG)
    first, second = (report.write(made, tmp_path / name, history=HISTORY) for name in "ab")
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


def test_a_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    made = make()
    report.write(made, tmp_path)
    old = (tmp_path / "report.json").read_bytes()
    monkeypatch.setattr(report.figures, "draw", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report.write(make(leak=1.0), tmp_path)
    assert (tmp_path / "report.json").read_bytes() == old


def test_the_page_needs_nothing_else(tmp_path):
    report.write(make(lag_curve=LAG), tmp_path, history=HISTORY)
    text = (tmp_path / "report.html").read_text()
    page, words = parse(text)
    assert all(r.startswith(("#", "data:image/png;base64,")) for r in page.references)
    assert {r[1:] for r in page.references if r.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"https?:|<script|@import|<link", text)
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    assert len(page.labels) == len(FIGURES)
    assert all(label.endswith(".") for label in page.labels)
    assert "width=device-width" in text
    assert "a $5 <b>bold</b> | word 0 0" in words  # words from data stay words


def test_page_markdown_and_table_state_the_numbers(tmp_path):
    made = make(dropped={"windows too short": 1234}, warnings=["Sensors are assumed."], provenance={"commit": "abc123"}, title="A <title>")
    report.write(made, tmp_path)
    _, words = parse((tmp_path / "report.html").read_text())
    value = f"{100 * made.rows['encoder']['top10']['value']:.1f}"
    for text in (words, (tmp_path / "report.md").read_text(), report.table(made)):
        assert value in text
        assert "33.3" in text  # chance of top-10 among 30
        assert "90 test windows, 30 candidates, 3 subjects, 6 blocks" in text
        assert "Sensors are assumed." in text
    for text in (words, (tmp_path / "report.md").read_text()):
        assert "1,234 windows too short" in text
        assert "abc123" in text
        assert "belongs at chance" in text
        assert "A <title>" in text
    header = next(line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| rank"))
    assert header.count("|") == 4
    assert "\\| word" in (tmp_path / "report.md").read_text()


def test_warnings_stand_on_top(tmp_path):
    made = make(leak=4.0, lag_curve={0.0: 0.4, 0.1: 0.3})
    report.write(made, tmp_path)
    _, words = parse((tmp_path / "report.html").read_text())
    markdown = (tmp_path / "report.md").read_text()
    for text in (words, markdown, report.table(made)):
        assert text.index("The control `noise` is above chance") < text.index("an artefact") < text.index("encoder")
    assert "Decoding peaks at 0 ms: an artefact, not a brain response" in words
    assert "suspect sound that leaks" in words


@pytest.mark.parametrize(
    "options",
    [
        {"n_subjects": 1, "n_blocks": 1, "per_block": 1},
        {"n_subjects": 1, "n_blocks": 5, "text": ""},
        {"n_subjects": 30, "n_blocks": 2, "per_block": 2},
        {"names": "ridge ridge_ignored", "lag_curve": {-0.2: 0.3, 0.1: 0.3, 0.2: 0.1}},
    ],
)
def test_awkward_sizes_are_drawn(tmp_path, options):
    made = make(**options)
    report.write(made, tmp_path, history={})
    parse((tmp_path / "report.html").read_text())
    assert not (tmp_path / "figures" / "training.png").exists()


def test_a_run_without_a_report_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="brainspeech evaluate"):
        report.load(tmp_path)
    assert report.load_history(tmp_path) == {}
