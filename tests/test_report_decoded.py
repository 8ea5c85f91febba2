"""The section on what is decoded says what the numbers say, and reports without it are as before."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from brainspeech import decoded, evaluate, figures, report
from brainspeech.prediction import TestSet
from brainspeech.records import Segment, Span

CONFIG = evaluate.EvaluateConfig(n_bootstrap=99, n_permutations=99)
NAMES = {"decoded_words", "decoded_repeats", "decoded_regression"}
WORDS = ["the", "cat", "saw", "<b>", "dog", "the"]


@cache
def made(*, gain=1.0, words=True, n_blocks=6):
    """A report on two subjects who heard six blocks twice; training had the first three words."""
    segments = [
        Segment(f"d/{s}-{r}", f"d/{s}", 100.0 * k + i, 3.0, f"{k}-{i}", f"b{k}", f"{WORDS[i]} {k}", WORDS[i] if words else "", "test",
                (Span("story", 100.0 * k, 100.0 * k + 60, -1.0 * i),))
        for s in "ab" for r in "12" for k in range(n_blocks) for i in range(6)
    ]  # fmt: skip
    trained = replace(segments[0], split="train", text="the cat saw", word="")
    test = TestSet.from_segments(segments)
    scores = np.random.default_rng(0).normal(size=(len(test.truth), len(test.candidates))).astype(np.float32)
    scores[np.arange(len(test.truth)), test.truth] += gain
    whole = evaluate.evaluate({"encoder": [scores]}, test, config=CONFIG)
    found = decoded.describe(
        [scores], test, [[trained, *segments]], config=CONFIG, sets=("phonemes", "bag_of_words", "part_of_speech"), spacy_model="no_such"
    )
    return whole, replace(whole, curves=whole.curves | {"decoded": found})


@cache
def drawn(which, **options):
    """The figures of a report without (0) or with (1) the section, by name."""
    return {picture.name: picture for picture in figures.draw(made(**options)[which])}


def test_the_section_is_in_the_page_and_in_markdown(tmp_path):
    _, seen = made()
    report.write(seen, tmp_path)
    page, text = (tmp_path / "report.html").read_text(), (tmp_path / "report.md").read_text()
    entry = seen.curves["decoded"]["words"]["groups"]["all"]["sum"]["top1"]
    for said in ("What is decoded", "Repeated presentations", "word not in training", "no temperature is fitted", "no_such"):
        assert said in page
        assert said in text
    assert f"{100 * entry['value']:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]" in text
    assert "<b> " not in page.split("What is decoded")[1].split("<h2>")[0]
    assert {path.stem for path in (tmp_path / "figures").glob("decoded_*.png")} == NAMES
    assert page.index("What is decoded") < page.index('id="decoded_words') < page.index("Candidates that do not overlap")
    again = report.load(tmp_path)
    assert report.markdown(again) == report.markdown(seen)


def test_a_report_without_it_is_as_before():
    before, _ = made()
    assert "What is decoded" not in report.page(before) + report.markdown(before)
    assert not NAMES & set(drawn(0))
    assert set(drawn(1)) - set(drawn(0)) == NAMES


@pytest.mark.parametrize(("gain", "said"), [(-3.0, True), (6.0, False)])
def test_a_row_below_the_constant_answer_is_called_so(gain, said):
    _, seen = made(gain=gain)
    assert ("So nothing about the word needs to have been decoded" in report.markdown(seen)) == said


def test_the_figures_say_the_numbers():
    _, seen = made()
    found = seen.curves["decoded"]
    pictures = drawn(1)
    # 5 words: top-1 alone can be missed
    value = found["words"]["groups"]["all"]["sum"]["top1"]["value"]
    assert f"{100 * value:.1f} % of the windows" in pictures["decoded_words"].title
    first, last = (entry["top10"]["value"] for entry in found["repeats"]["averaged"])
    assert f"from {100 * first:.1f} % to {100 * last:.1f} %" in pictures["decoded_repeats"].title
    assert f"phonemes {found['regression']['sets']['phonemes']['r']:.2f}" in pictures["decoded_regression"].alt
    assert "part of speech" not in pictures["decoded_regression"].alt


def test_that_nothing_was_heard_twice_is_said_once_and_only_where_it_was_looked_at():
    before, seen = made()
    found = seen.curves["decoded"] | {"repeats": {}}
    once = replace(seen, curves=seen.curves | {"decoded": found})
    said = "No segment of the test split was heard twice by a subject"
    assert report.markdown(once).count(said) == report.page(once).count(said) == 1
    assert said not in report.markdown(seen) + report.markdown(before)
    assert "decoded_repeats" not in {picture.name for picture in figures.draw(once)}


def test_what_cannot_be_said_is_said():
    _, seen = made(words=False, n_blocks=4)
    text = report.markdown(seen)
    assert "No test window is anchored on a word" in text
    assert "4 blocks with words are too few" in text
    assert set(drawn(1, words=False, n_blocks=4)) & NAMES == {"decoded_repeats"}
    json.dumps(seen.to_dict(), allow_nan=False)


def test_a_flat_softmax_is_called_flat():
    _, seen = made()
    words = seen.curves["decoded"]["words"]
    for spread, said in ((0.9, True), (0.1, False), (None, False)):
        changed = replace(seen, curves=seen.curves | {"decoded": {"words": words | {"spread": spread}}})
        assert ("these scores are flat" in report.markdown(changed)) == said
