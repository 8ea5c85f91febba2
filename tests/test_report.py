"""What is written can be read back, needs nothing else, and says what the numbers say."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser

import numpy as np
import pytest

from brainspeech import evaluate, report
from brainspeech.evaluate import EvaluateConfig
from brainspeech.prediction import TestSet
from brainspeech.records import Segment, Span

CONFIG = EvaluateConfig(n_bootstrap=200, n_permutations=1999)
HISTORY = {
    "encoder": [{"epoch": e, "train_loss": 4 - 0.2 * e, "valid_loss": 4 - 0.2 * e + 0.03 * e**2, "valid_top10": 0.1 * e} for e in range(6)],
    "noise": [{"epoch": 0, "train_loss": 4.1, "valid_loss": 4.2, "valid_top10": 0.1}],
}
FIGURES = {"accuracy", "rank_curve", "per_subject", "similarity", "training", "lag"}


def make_scores(
    *, n_subjects=3, n_blocks=6, per_block=5, leak=0.0, text="a $5 <b>bold</b> | word", names="encoder noise shuffled", gain=2.0, seed=0
):
    segments = [
        Segment(
            f"d/sub-{s:02d}", f"d/sub-{s:02d}", 100.0 * k + 3 * i, 3.0, f"{k}-{i}", f"b{k}", text and f"{text} {k} {i}", "", "test",
            (Span("story", 100.0 * k, 100.0 * k + 60, -3.0 * i),),
        )
        for s in range(n_subjects) for k in range(n_blocks) for i in range(per_block)
    ]  # fmt: skip
    test = TestSet.from_segments(segments)
    rng = np.random.default_rng(seed)
    rows = {}
    for name in names.split():
        rows[name] = [rng.normal(size=(len(test.truth), len(test.candidates))).astype(np.float32)]
        rows[name][0][np.arange(len(test.truth)), test.truth] += {"encoder": gain, "noise": leak}.get(name, 0)
    return rows, test


def make(*, curves=None, **options):
    known = {name: options.pop(name) for name in ("n_subjects", "n_blocks", "per_block", "leak", "text", "names") if name in options}
    made = evaluate.evaluate(*make_scores(**known), config=CONFIG, **options)
    return replace(made, curves=made.curves | (curves or {}))


def see(*, n_channels=9, placed=True, margin=True, regions=None):
    """What attribution, spectra and leaks look like in a report."""
    rng = np.random.default_rng(0)
    names = [f"E{c}" for c in range(n_channels)]
    positions = [[float(x), float(y)] for x, y in rng.random((n_channels, 2))] if placed else [[None, None]] * n_channels

    def part(n):
        return {"value": [0.1 * (k - 1) if margin else None for k in range(n)], "limit": [0.05] * n, "p": [0.9] * (n - 1) + [0.01]}

    return {
        "attribution": {
            "windows": 90, "stimuli": 30, "permutations": 999, "margin": 1.0 if margin else -1.0, "chance": 0.1,
            "sensors": {"names": names, "positions": positions, "regions": regions or n_channels, **part(n_channels)},
            "bands": {"hertz": [[0.0, 1.0], [1.0, 4.0], [4.0, 8.0]], **part(3)},
            "lags": {"lag": [-0.05, 0.0, 0.05, 0.1], **part(4)},
            "attention": {"n_heads": 4, "mean": [1.0] * n_channels, "heads": [{"head": 2, "weight": list(range(n_channels))}]},
        },
        "spectrum": {
            "hertz": [0.5, 1.0, 10.0, 50.0, 100.0], "unit": "V²/Hz", "recordings": 2,
            "before": {"d/sub-00": [-10, -11, -12, -11, -13], "d/sub-01": [-7, -8, -9, -8, -10]},
            "after": {"d/sub-00": [-14, -11, -12, -15, None], "d/sub-01": [-11, -8, -9, -12, None]},
        },
        "leaks": {
            "flagged": [{"recording": "d/sub-01", "channel": "E7", "of": "waveform, in the recording", "z": 31.5}],
            "hertz": 8.0, "limit": 5.9, "channels": 18, "recordings": 2, "unchecked": 1,
        },
    }  # fmt: skip


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


def test_examples_say_where_they_begin():
    """Neighbouring windows may have the same words."""
    made = make(text="twice the same")
    assert all(re.search(r" \(\d+\.\d s\)$", example["heard"]) for example in made.examples)
    assert "Seconds: where a window begins in its audio" in parse(report.page(made))[1]
    assert made.examples[0]["heard"] in report.markdown(made)


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


def test_a_run_is_finished_when_all_else_is_written(tmp_path, monkeypatch):
    """A table of variants takes a folder with a report.json as finished: a kill before the last file must leave none."""
    made, n_files = make(), len(report.write(make(), tmp_path / "whole", history=HISTORY))
    written, inner = [], os.replace

    def killed(source, target):
        if len(written) == n_files - 1:
            raise KeyboardInterrupt
        written.append(target)
        inner(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        report.write(made, tmp_path / "cut", history=HISTORY)
    assert report.load_history(tmp_path / "cut") == HISTORY
    assert not (tmp_path / "cut" / "report.json").exists()


def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RuntimeError, match=r"Could not write .*report\.md .*No space left on device.* Free some space"):
        report.write(make(), tmp_path)
    assert not list(tmp_path.rglob("*"))


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
        assert re.search(r"1,234[ |]*windows too short", text)
        assert "abc123" in text
        assert "belongs at chance" in text
        assert "A <title>" in text
    header = next(line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| rank"))
    assert header.count("|") == 4
    assert "\\| word" in (tmp_path / "report.md").read_text()


def test_a_simpler_model_that_finds_more_is_said():
    scores, test = make_scores(names="encoder ridge")
    worse = evaluate.evaluate(scores, test, config=CONFIG)
    assert "finds more" not in report.headline(worse)
    better = evaluate.evaluate({"encoder": scores["ridge"], "ridge": scores["encoder"]}, test, config=CONFIG)
    assert f"The ridge, a simpler model, finds more: {100 * better.rows['ridge']['top10']['value']:.1f} %." in report.headline(better)


def test_warnings_stand_on_top(tmp_path):
    made = make(leak=4.0, lag_curve={0.0: 0.4, 0.1: 0.3})
    report.write(made, tmp_path)
    _, words = parse((tmp_path / "report.html").read_text())
    markdown = (tmp_path / "report.md").read_text()
    assert "<code>noise</code>" in (tmp_path / "report.html").read_text()
    assert "`" not in words  # a page has no markdown
    for text in (words, markdown.replace("`", ""), report.table(made).replace("`", "")):
        assert text.index("The control noise is above chance") < text.index("an artefact") < text.index("encoder")
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
    with pytest.raises(FileNotFoundError, match="Go on with it: brainspeech run"):
        report.load(tmp_path)
    assert report.load_history(tmp_path) == {}


# ------------------------------------------------------------------------------------------------- the signal and the recordings


def test_the_signal_and_the_recordings_have_their_place(tmp_path):
    made = make(
        curves=see(), dropped={"channels: flat": 3, "windows: window leaves the block": 1234, "recordings: not a native speaker": 1}
    )
    names = {p.stem for p in report.write(made, tmp_path) if p.suffix == ".png"}
    assert {"attention", "sensors", "bands", "lags", "spectrum"} <= names
    text = (tmp_path / "report.html").read_text()
    page, words = parse(text)
    assert len(page.ids) == len(set(page.ids))
    assert all(r.startswith(("#", "data:image/png;base64,")) for r in page.references)
    assert not re.search(r"https?:|<script|@import|<link", text)
    assert all(label.endswith(".") for label in page.labels)
    for said in (
        "What the encoder reads in the signal",
        "1 of 9 sensors carry evidence, the largest share at E8",
        "The largest share of evidence is at 4-8 Hz: without it 10 % of the margin is lost",
        "The encoder reads the brain 100 ms after the sound",
        "Preprocessing keeps 1 to 10 Hz",
        "More than ten times stronger or weaker than the median: d/sub-00, d/sub-01",
        "1 of 18 channels in 2 recordings follows the waveform or the envelope of the sound at lag 0",
        "1 recording could not be compared",
        "What was left out, and why",
    ):
        assert said in words
    assert re.search(r"E7\s?d/sub-01\s?waveform, in the recording\s?31.5", words)
    markdown = (tmp_path / "report.md").read_text()
    assert "| E7 | d/sub-01 | waveform, in the recording | 31.5 |" in markdown
    for text in (markdown, words):
        assert re.search(r"1,234[ |]*windows[ |]*window leaves the block", text)
        assert re.search(r"3[ |]*channels[ |]*flat", text)
    assert report.load(tmp_path).to_dict() == made.to_dict()


def test_a_report_from_before_is_still_a_report(tmp_path):
    report.write(make(), tmp_path)
    report.write(report.load(tmp_path), tmp_path)
    _, words = parse((tmp_path / "report.html").read_text())
    assert "What the encoder reads" not in words
    assert "The recordings" not in words
    assert "Nothing was left out." in words


@pytest.mark.parametrize(
    ("options", "there", "absent"),
    [
        ({"placed": False}, {"sensors", "bands", "lags"}, {"attention"}),
        ({"margin": False}, {"attention"}, {"sensors", "bands", "lags"}),
        ({"n_channels": 1}, {"attention", "sensors"}, set()),
        ({"n_channels": 40, "placed": False}, {"sensors"}, set()),
        ({"n_channels": 40, "regions": 20}, {"sensors", "attention"}, set()),
    ],
)
def test_awkward_sensors_are_drawn(options, there, absent):
    drawn = {picture.name for picture in report.figures.draw(make(curves=see(**options)))}
    assert there <= drawn
    assert not absent & drawn


# ----------------------------------------------------------------------------------------------------------------- runs side by side


def finish(folder, *, seed=0, gain=2.0, keep=True, drawn=True, config=CONFIG, change=None, n_seeds=1, provenance=None, **options):
    """Leave a finished run in a folder."""
    rows, test = make_scores(gain=gain, seed=seed, **options)
    for name, per_seed in rows.items():
        for more in range(1, n_seeds):
            per_seed.append(make_scores(gain=gain, seed=seed + 100 * more, **options)[0][name][0])
    if change:
        rows, test = change(rows, test)
    made = evaluate.evaluate(rows, test, config=config, provenance=provenance)
    if drawn:
        report.write(made, folder)
    else:
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(made.to_dict()))
    if keep:
        report.save_ranks(folder, rows, test)
    return folder


def backwards(rows, test):
    """The same windows in another order."""
    order = np.arange(len(test.truth))[::-1]
    turned = TestSet([test.subjects[i] for i in order], [test.recordings[i] for i in order], test.truth[order], test.candidates, test.first)
    return {name: [s[order] for s in per_seed] for name, per_seed in rows.items()}, turned


def elsewhere(rows, test):
    """The same stimuli in other recordings."""
    return rows, TestSet(test.subjects, [f"{uid}/run-2" for uid in test.recordings], test.truth, test.candidates, test.first)


def test_ranks_are_read_back(tmp_path):
    finish(tmp_path, n_seeds=2)
    ranks = report.load_ranks(tmp_path)
    assert {name: r.shape for name, r in ranks.rows.items()} == dict.fromkeys(("encoder", "noise", "shuffled"), (2, 90))
    values = report.load(tmp_path)
    assert (ranks.rows["encoder"] < 10).mean() == values.rows["encoder"]["top10"]["value"]
    assert len(set(ranks.windows)) == 90
    assert len(ranks.candidates) == values.n_candidates
    before = (tmp_path / "ranks.npz").read_bytes()
    finish(tmp_path, n_seeds=2)
    assert (tmp_path / "ranks.npz").read_bytes() == before
    (tmp_path / "ranks.npz").write_bytes(before[:100])
    with pytest.raises(RuntimeError, match="damaged"):
        report.load_ranks(tmp_path)
    assert report.load_ranks(tmp_path / "nothing") is None


def test_a_better_run_is_better_and_the_same_run_is_the_same(tmp_path):
    runs = [
        finish(tmp_path / "plain", gain=1.0, n_blocks=14, provenance={"recipe": {"model": {"hidden": 8}, "name": "x"}}),
        finish(tmp_path / "good", gain=3.0, n_blocks=14, seed=1, provenance={"recipe": {"model": {"hidden": 16}, "name": "x"}}),
        finish(tmp_path / "again", gain=1.0, n_blocks=14, change=backwards),
    ]
    made = report.compare(runs)
    good, again = made.differences
    values = [report.load(run).rows["encoder"]["top10"]["value"] for run in runs]
    assert good["value"] == pytest.approx(values[1] - values[0])
    assert 0 < good["low"] < good["value"] < good["high"]
    assert good["p"] < 0.001
    assert good["units"] == "14 blocks, all subjects together"
    assert (again["value"], again["low"], again["high"], again["p"]) == (0, 0, 0, 1)
    assert made.rows["encoder"][1]["value"] == values[1]
    assert made.constants["model.hidden"] == ["8", "16", "-"]
    assert "name" in made.constants  # the third run does not say
    assert report.compare([runs[1], runs[0]]).differences[0]["value"] == pytest.approx(-good["value"])


def test_a_difference_by_luck_has_no_small_p(tmp_path):
    """Two runs that are equally good differ with p below 5 % in about 5 % of cases."""
    small = 0
    for i in range(20):
        options = {
            "gain": 1.5,
            "n_blocks": 12,
            "names": "encoder",
            "drawn": False,
            "config": EvaluateConfig(n_bootstrap=1, n_permutations=1),
        }
        runs = [finish(tmp_path / f"{i}-{j}", seed=1000 + 2 * i + j, **options) for j in range(2)]
        small += report.compare(runs, n_permutations=499, n_bootstrap=50).differences[0]["p"] < 0.05
    assert small <= 4  # 5 or more of 20 have a probability of 0.3 %


def test_few_blocks_say_how_small_p_can_be(tmp_path):
    made = report.compare([finish(tmp_path / "a"), finish(tmp_path / "b", seed=1, gain=4.0)])
    assert made.differences[0]["units"] == "6 blocks, all subjects together (p cannot fall below 0.031)"


def test_what_cannot_be_compared_says_why(tmp_path):
    first = finish(tmp_path / "a")
    others = [
        finish(tmp_path / "b", n_blocks=7),
        finish(tmp_path / "c", n_subjects=2),
        finish(tmp_path / "d", keep=False),
        finish(tmp_path / "e", change=elsewhere),
    ]
    made = report.compare([first, *others])
    why = [d.get("why") for d in made.differences]
    assert why[0] == "other candidates: 30 and 35, 30 in common"
    assert made.differences[1]["units"].endswith("; on 60 windows of 2 subjects, out of 90 and 60")
    assert why[2].startswith("the ranks of d were not kept; write them: brainspeech evaluate")
    assert why[3] == "other windows: 90 and 90, none in common"
    assert made.seeds[3] == []
    assert "not comparable" in report.comparison_table(made)
    report.write_comparison(made, tmp_path / "out")
    with pytest.raises(ValueError, match="at least two runs"):
        report.compare([first])
    with pytest.raises(ValueError, match="once"):
        report.compare([first, tmp_path / "b" / ".." / "a"])
    with pytest.raises(FileNotFoundError, match="Go on with it: brainspeech run"):
        report.compare([first, tmp_path / "f"])


def test_the_comparison_is_written_whole(tmp_path):
    runs = [
        finish(tmp_path / "x" / "run", n_seeds=2),
        finish(tmp_path / "y <b>" / "run", seed=1, gain=4.0, leak=4.0, names="encoder noise shuffled ridge"),
    ]
    made = report.compare(runs)
    paths = report.write_comparison(made, tmp_path / "out")
    assert {p for p in (tmp_path / "out").rglob("*") if p.is_file()} == set(paths)
    text = (tmp_path / "out" / "comparison.html").read_text()
    page, words = parse(text)
    assert not re.search(r"https?:|<script|@import|<link", text)
    assert all(r.startswith(("#", "data:image/png;base64,")) for r in page.references)
    assert len(page.ids) == len(set(page.ids))
    markdown, table = (tmp_path / "out" / "comparison.md").read_text(), report.comparison_table(made)
    value = f"{100 * made.rows['encoder'][1]['value']:.1f}"
    for text in (words, markdown, table):
        assert value in text
        assert "y <b>/run" in text  # the last part of the folder does not tell the runs apart
        assert f"{100 * made.differences[0]['value']:+.1f}" in text
        assert "The control `noise` is above chance" in text
        assert all(f"{100 * v:.1f} %" in text for v in made.seeds[0])
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == evaluate.plain(asdict(made))
    assert made.rows["ridge"][0] is None


def test_a_damaged_report_is_named_with_its_cure(tmp_path):
    (tmp_path / "report.json").write_text('{"title": "cut')
    with pytest.raises(ValueError, match=r"report\.json is damaged .*brainspeech evaluate"):
        report.load(tmp_path)
