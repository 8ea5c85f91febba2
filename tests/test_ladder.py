"""A ladder says of variants what can be worked out by hand, corrects for their number, and drops none silently."""

from __future__ import annotations

import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from scipy.stats import wilcoxon
from test_report import parse
from tiny_runs import tiny

from brainspeech import evaluate, flow, report, segments, statistics, variants
from brainspeech.evaluate import EvaluateConfig
from brainspeech.figures import ladder as drawing
from brainspeech.prediction import TestSet
from brainspeech.protocols import Segmentation
from brainspeech.records import Segment, Span
from brainspeech.report.comparison import Pairs, pair
from brainspeech.report.ladder_choice import choose
from brainspeech.report.ladder_tests import over_subjects

CONFIG = EvaluateConfig(n_bootstrap=50, n_permutations=20, topk=(1, 2), n_examples=1)
QUICK = {"n_permutations": 499, "n_bootstrap": 200}
N_BLOCKS, PER_BLOCK = 3, 4
N = N_BLOCKS * PER_BLOCK


def windows(n_subjects, split="test", *, length=None, shift=0):
    """What the subjects heard: the same 12 stimuli in 3 blocks; with a length in ms, ids are the clean protocol's."""
    names = {(k, i): f"{k}-{i}" if length is None else f"a@{100_000 * k + 3000 * i + shift}+{length}" for k in range(9) for i in range(9)}
    return [
        Segment(
            f"d/{s}", f"d/{s}", 100.0 * k + 3 * i, 3.0, names[k, i], f"b{k}", "", "", split,
            (Span("a", 100.0 * k, 100.0 * k + 60, -3.0 * i),),
        )
        for s in range(n_subjects) for k in range(N_BLOCKS) for i in range(PER_BLOCK)
    ]  # fmt: skip


def scores_of(ranks):
    """Scores (W, N) of windows in order of subjects and stimuli, such that each own candidate has the rank."""
    out = np.empty((len(ranks), N), np.float32)
    for w, rank in enumerate(ranks):
        out[w] = np.insert(np.arange(N - 1, 0, -1), w % N, 0)  # the others, from best to worst
        out[w, w % N] = N - 1 - rank + 0.5
    return out


def hit(per_subject):
    """Ranks of a seed in which so many windows of each subject are right, the earliest of a subject first; all others are last."""
    return np.concatenate([np.where(np.arange(N) < n, 0, N - 1) for n in per_subject])


def leave(folder, seeds, *, valid=None, kept=True, recipe=None, n_subjects=None, valid_subjects=None, row="encoder", **names):
    """Leave a finished run in a folder: for each seed, how many of each subject's 12 windows are right."""
    test = TestSet.from_segments(windows(n_subjects or len(seeds[0]), **names))
    scores = {row: [scores_of(hit(per_subject)) for per_subject in seeds]}
    made = evaluate.evaluate(scores, test, config=CONFIG, controls=(), provenance={"recipe": recipe or {}})
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(made.to_dict()))
    epochs = [{"epoch": e, "valid_loss": loss, "valid_top10": top10} for e, (loss, top10) in enumerate([(2, 0.9), (1, valid), (3, 0.8)])]
    (folder / "history.json").write_text(json.dumps({} if valid is None else {row: epochs, "noise": [{**epochs[0], "valid_top10": 1.0}]}))
    if valid_subjects:
        segments.save(folder / "segments.json", [Segmentation(windows(valid_subjects, "valid", **names), [], {}, [])])
    if kept:
        report.save_ranks(folder, scores, test)
    return folder


def flat(text):
    """Undo the breaking of lines."""
    return " ".join(text.split())


def many(tmp_path):
    """Seven subjects, two seeds: a reference, one worse in all, one better in some, one without its ranks, two without a report."""
    runs = {
        "full": leave(tmp_path / "full", [[6, 6, 6, 6, 6, 6, 6], [8, 8, 8, 8, 8, 8, 8]], valid=0.5, recipe={"model": {"depth": 2}}),
        "no_depth": leave(tmp_path / "nd", [[1, 2, 3, 4, 5, 1, 2], [7, 6, 5, 4, 3, 7, 5]], valid=0.3, recipe={"model": {"depth": 0}}),
        "wide": leave(tmp_path / "w", [[9, 8, 7, 6, 6, 10, 4], [9, 8, 7, 6, 8, 12, 10]], valid=0.4, recipe={"model": {"depth": 2}}),
        "lost": leave(tmp_path / "l", [[6] * 7, [6] * 7], valid=0.6, kept=False),
        "broken": tmp_path / "broken",
    }
    return report.ladder(
        runs, reference="full", names={"wide": "twice the channels"}, chance="random", failed={"nan": "the loss is not finite"}, **QUICK
    )


def test_the_numbers_are_those_worked_out_by_hand(tmp_path):
    made = many(tmp_path)
    assert (made.k, made.ks) == (2, (2, 1))
    assert [row["name"] for row in made.rows] == ["random", "full", "no_depth", "wide", "lost", "broken", "nan"]
    full = made["full"]["accuracy"]["top2"]
    assert full["value"] == pytest.approx(7 / 12)
    assert full["seeds"] == pytest.approx([6 / 12, 8 / 12])
    assert full["sd"] == pytest.approx(2 / 12 / math.sqrt(2))
    d = made["no_depth"]["difference"]
    assert d["value"] == pytest.approx((18 + 37) / 2 / 84 - 7 / 12)
    assert d["low"] < d["value"] < d["high"]
    # the seeds of the two: 6 and 8, and 18/7 and 37/7, of 12; the variance of two is half the square of their distance
    assert d["fit_error"] == pytest.approx(math.sqrt((2**2 + (19 / 7) ** 2) / 4) / 12)
    assert made["random"]["accuracy"]["top2"]["value"] == made["random"]["chance"]["top2"] == 2 / 12
    assert made["random"]["n_candidates"] == 12
    assert made["full"]["difference"] is None
    assert made["no_depth"]["changes"] == {"model.depth": ["2", "0"]}


def test_signed_ranks_are_scipys_on_the_means_of_subjects(tmp_path):
    made = many(tmp_path)
    full = np.full(7, 7.0)
    worse, better = np.array([4, 4, 4, 4, 4, 4, 3.5]), np.array([9, 8, 7, 6, 7, 11, 7])
    for name, per_subject in (("no_depth", worse), ("wide", better)):
        moved = per_subject[per_subject != full] / 12 - 7 / 12
        assert made[name]["subjects_test"]["p"] == pytest.approx(wilcoxon(np.round(moved, 9)).pvalue)
    assert made["no_depth"]["subjects_test"]["p"] == pytest.approx(2 / 2**7)
    assert made["no_depth"]["subjects_test"]["holm"] == pytest.approx(2 * 2 / 2**7)  # of two rows that were tested
    tally = {key: made["wide"]["subjects_test"][key] for key in ("n", "better", "worse", "equal")}
    assert tally == {"n": 7, "better": 3, "worse": 1, "equal": 3}
    assert made.compared == 2
    assert made["no_depth"]["blocks_test"]["n"] == 3
    assert made["no_depth"]["blocks_test"]["smallest"] == 0.25


def test_the_blocks_are_swapped_as_in_a_comparison(tmp_path):
    made = many(tmp_path)
    compared = report.compare([tmp_path / "full", tmp_path / "nd"], **QUICK).differences[0]
    assert made["no_depth"]["blocks_test"]["p"] == compared["p"]
    assert [made["no_depth"]["difference"][key] for key in ("value", "low", "high")] == [compared[key] for key in ("value", "low", "high")]


def test_rows_with_identical_ranks_are_said_to_be_one_result(tmp_path):
    seeds = {
        "full": [[5, 6], [7, 3]],
        "same": [[5, 6], [7, 3]],
        "near": [[5, 6], [7, 2]],
        "swapped": [[7, 3], [5, 6]],
        "near_too": [[5, 6], [7, 2]],
    }
    runs = {name: leave(tmp_path / name, values) for name, values in seeds.items()}
    runs["unknown"] = leave(tmp_path / "unknown", seeds["full"], kept=False)
    kept = report.load_ranks(runs["same"])
    order = np.random.default_rng(0).permutation(len(kept.windows))  # the order of windows says nothing
    rows = {f"row {name}": ranks[:, order] for name, ranks in kept.rows.items()}
    others = {"windows": kept.windows[order], "subjects": kept.subjects[order], "blocks": kept.blocks[order], "candidates": kept.candidates}
    np.savez(runs["same"] / "ranks.npz", **rows, **others)
    made = report.ladder(runs, reference="full", **QUICK)
    assert made.identical == (("full", "same"), ("near", "near_too"))
    assert (made["same"]["difference"]["value"], made["same"]["subjects_test"]["p"], made["same"]["blocks_test"]["p"]) == (0, 1, 1)
    report.write_ladder(made, tmp_path / "out")
    _, words = parse((tmp_path / "out" / "ladder.html").read_text())
    for said in (words, flat((tmp_path / "out" / "ladder.md").read_text()), flat(report.ladder_table(made))):
        assert "Identical ranks in every window: full, same; what sets these rows apart changes nothing here" in said
        assert "Identical ranks in every window: near, near too;" in said
    alone = report.ladder({name: runs[name] for name in ("full", "near")}, reference="full", **QUICK)
    assert alone.identical == ()
    assert "Identical ranks" not in report.ladder_table(alone)


def test_the_names_lead_to_the_reports_wherever_the_folder_is(tmp_path):
    place = tmp_path / "table"
    runs = {name: leave(place / name, [[5, 6], [7, 3]]) for name in ("full", "lag:1 <b>", "unread")}
    for name in ("full", "lag:1 <b>"):
        (runs[name] / "report.html").write_text(name)
    report.write_ladder(report.ladder(runs | {"broken": place / "broken"}, reference="full", chance="random", **QUICK), place)
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    place.rename(moved)
    page, words = parse((moved / "ladder.html").read_text())
    links = [unquote(link) for link in page.references if not link.startswith(("#", "data:"))]
    assert {(moved / link).read_text() for link in links} == {"full", "lag:1 <b>"}
    assert all(not re.match(r"[a-z]+:|/", link) for link in page.references if "report" in link)
    assert "The name of a variant leads to its report" in words
    assert "[full](full/report.html): Top-2:" in (moved / "ladder.md").read_text()


def test_the_paper_s_names_fit_a_terminal_and_nothing_is_dropped(tmp_path):
    made = many(tmp_path)
    full, other = made["full"], made["no_depth"]
    wide = {"value": 0.663, "low": 0.611, "high": 0.712, "sd": 0.114, "seeds": [0.6, 0.7]}
    accuracy = {"accuracy": {"top2": wide, "top1": wide}, "published": {"value": 0.661, "sd": 0.021}, "validation": {"value": 0.5}}
    tested = {
        "difference": other["difference"] | {"value": -0.244, "low": -0.301, "high": -0.187, "fit_error": 0.003, "beyond_fits": True},
        "subjects_test": other["subjects_test"] | {"p": 0.00012, "holm": 0.0013, "better": 12, "worse": 10, "equal": 5, "n": 27},
    }
    rows = [full | accuracy, *(other | accuracy | tested | {"name": name} for name in variants.ABLATIONS)]
    made = replace(made, reference="full", rows=tuple(rows), chosen="no_spatial_attention")
    text = report.ladder_table(made)
    assert max(map(len, text.splitlines())) <= 100
    assert "-24.4 [-30.1, -18.7]" in text
    assert "12/10/5" in text
    assert "Tests over 27 subjects and 3 blocks." in text
    assert "All rows: 12 candidates, so chance is 16.7 % (top-2) and 8.3 % (top-1)." in text
    rows[1] = rows[1] | {"n_candidates": 24, "chance": {"top2": 2 / 24, "top1": 1 / 24}}
    text = report.ladder_table(replace(made, rows=tuple(rows)))
    assert "All rows" not in text
    assert "8.3 (24)" in text
    assert "chance: k / N" in text


def test_what_else_was_fitted_makes_no_variant(tmp_path):
    constants = {"rows": ["encoder", "ridge"], "target_encoder": None, "model": {"options": {}}}
    changed = constants | {"rows": ["encoder"], "target_encoder": {"name": "deep_mel", "options": {}}}
    runs = {
        "full": leave(tmp_path / "full", [[5, 5]], recipe=constants),
        "alike": leave(tmp_path / "alike", [[5, 5]], recipe=constants | {"rows": ["encoder"]}),
        "joint": leave(tmp_path / "joint", [[5, 5]], recipe=changed),
    }
    made = report.ladder(runs, reference="full", **QUICK)
    assert made["joint"]["changes"] == {"target_encoder.name": ["-", "deep_mel"]}
    assert any(text.startswith("No constant of alike differs") for text in made.warnings)


def test_no_variant_is_dropped(tmp_path):
    made = many(tmp_path)
    assert "does not exist" in made["broken"]["missing"]
    assert made["nan"]["missing"] == "the loss is not finite"
    assert made["nan"]["difference"] == {"why": "no result"}
    assert "the ranks of l were not kept" in made["lost"]["difference"]["why"]
    assert made["lost"]["accuracy"]["top2"]["value"] == 0.5
    text = report.ladder_table(made)
    assert "nan has no result: the loss is not finite" in flat(text)
    assert "not compared: lost: the ranks of l were not kept" in flat(text)
    assert any(line.split()[:3] == ["broken", "no", "result"] for line in text.splitlines())


def test_validation_chooses_by_the_epoch_that_was_kept(tmp_path):
    runs = {name: leave(tmp_path / name, [[5, 5]], valid=v, valid_subjects=2) for name, v in {"a": 0.2, "b": 0.4, "c": 0.3}.items()}
    made = report.ladder(runs, reference="a", **QUICK)
    assert made["b"]["validation"] | {"windows": ""} == {
        "value": 0.4, "sd": None, "fits": 1, "epochs": [1], "n_candidates": 12.0, "windows": "",
    }  # fmt: skip
    assert made.chosen == "b"
    assert made.choice == "Validation chooses b: top-10 40.0 % on the validation split."
    assert "40.0 (chosen)" in report.ladder_table(made)
    runs["d"] = leave(tmp_path / "d", [[5, 5]], valid=0.9, valid_subjects=3)
    other = report.ladder(runs, reference="a", **QUICK)
    assert other.chosen == "b"  # d is right more often, but about other windows
    assert other.choice.endswith("Not asked, since their validation windows are others than those of a: d.")
    runs["d"] = leave(tmp_path / "e", [[5, 5]], valid_subjects=2)
    silent = report.ladder(runs, reference="a", **QUICK)
    assert silent.choice.endswith("Not asked, since their fits kept no validation accuracy: d.")
    assert silent.chosen == "b"
    alone = report.ladder({name: runs[name] for name in "ad"}, reference="a", **QUICK)
    assert alone.chosen is None
    assert alone.choice.startswith("Validation cannot choose")


@pytest.mark.parametrize(("n", "chosen"), [(10, None), (11, "b")])
def test_validation_among_ten_candidates_chooses_nothing(n, chosen):
    rows = [
        {"name": name, "missing": None, "validation": {"value": value, "windows": "same", "n_candidates": float(n)}}
        for name, value in (("a", 0.9), ("b", 1.0))
    ]
    found, said = choose(rows, "a")
    assert found == chosen
    assert ("it has 10 candidates, among which every one is in the top 10." in said) is (chosen is None)


def test_the_fits_of_all_seeds_and_folds_are_validated_together(tmp_path):
    run = leave(tmp_path / "a", [[5, 5]])
    epochs = [{"epoch": 0, "valid_loss": 1.0, "valid_top10": 0.2}, {"epoch": 1, "valid_loss": None, "valid_top10": 0.9}]
    history = {"encoder (fold 1, seed 3)": epochs, "encoder (fold 1, seed 4)": [{**epochs[0], "valid_top10": 0.4}], "encoder_x": epochs}
    (run / "history.json").write_text(json.dumps(history))
    found = report.ladder({"a": run, "b": leave(tmp_path / "b", [[5, 5]])}, reference="b", **QUICK)["a"]["validation"]
    assert (found["value"], found["fits"]) == (pytest.approx(0.3), 2)
    assert found["sd"] == pytest.approx(0.2 / math.sqrt(2))


def test_fewer_subjects_are_compared_on_the_windows_that_both_have(tmp_path):
    all_of_them, some = [[6, 5, 7, 6, 8, 5, 6, 9], [4, 5, 7, 6, 6, 7, 6, 9]], [[3, 2, 4, 6, 1, 2], [3, 1, 4, 4, 2, 2]]
    runs = {"eight": leave(tmp_path / "eight", all_of_them), "six": leave(tmp_path / "six", some), "two": leave(tmp_path / "two", [[9, 9]])}
    places = {"eight": 8, "six": 6, "two": 2}
    made = report.ladder(runs, reference="eight", axis="subjects", values=places, unchosen="Nothing is chosen.", **QUICK)
    assert (made.compared, made.chosen, made.choice) == (2, None, "Nothing is chosen.")
    expected = np.array(some).mean(0) / 12 - np.array(all_of_them).mean(0)[:6] / 12
    six = made["six"]
    assert six["difference"]["value"] == pytest.approx(expected.mean())
    assert six["difference"]["reference"] == pytest.approx(np.array(all_of_them)[:, :6].mean() / 12)
    assert (six["difference"]["n_windows"], six["difference"]["partly"]) == (72, True)
    assert six["subjects_test"]["p"] == pytest.approx(wilcoxon(np.round(expected, 9)).pvalue) == pytest.approx(2 / 2**6)
    assert six["subjects_test"]["holm"] == pytest.approx(2 * 2 / 2**6)
    report.write_ladder(made, tmp_path / "out")
    _, words = parse((tmp_path / "out" / "ladder.html").read_text())
    text = report.ladder_table(made)
    for said in (flat(words), flat((tmp_path / "out" / "ladder.md").read_text()), flat(text)):
        assert "Of 2 variants compared with it, each on the windows that both have" in said
        assert re.search(r"six[ |]*72 of 96[ |]*6 of 8[ |]*50.0", said)
        assert "6 subjects and 3 blocks (six)" in said
        # "two" cannot come first of the two tests: its p is at best 0.5, whatever "six" has
        assert "over 2, 6 subjects cannot give p below 0.5, 0.031, nor, after Holm's correction for 2 rows, below 0.5, 0.062" in said
    assert max(map(len, text.splitlines())) <= 100
    assert "of its own  " not in text
    turned = report.ladder(runs, reference="six", **QUICK)
    assert turned["eight"]["difference"]["value"] == pytest.approx(-expected.mean())
    assert "of its own  " in report.ladder_table(turned)
    assert re.search(r"eight +72 of 72 +72 of 96 +6 of 6", report.ladder_table(turned))


def test_windows_of_other_lengths_are_paired_by_where_they_begin(tmp_path):
    hits = {3000: [[5, 2, 9]], 1000: [[4, 6, 6]]}
    runs = {f"ms{length}": leave(tmp_path / str(length), seeds, length=length, valid=0.5) for length, seeds in hits.items()}
    made = report.ladder(runs, reference="ms3000", **QUICK)
    assert made["ms1000"]["difference"]["value"] == pytest.approx(0)
    assert {key: made["ms1000"]["subjects_test"][key] for key in ("n", "better", "worse")} == {"n": 3, "better": 1, "worse": 2}
    assert (made["ms1000"]["difference"]["by_beginning"], made["ms1000"]["difference"]["partly"]) == (True, False)
    assert "Windows of other lengths are paired by where they begin" in flat(report.ladder_table(made))
    other = leave(tmp_path / "other", [[5, 2, 9]], length=1000, shift=1)
    apart = report.ladder(runs | {"apart": other}, reference="ms3000", **QUICK)
    assert apart["apart"]["difference"] == {"why": "other candidates: 12 and 12, 0 in common"}


def test_a_hearing_that_one_run_lost_is_not_taken_for_another():
    """Of a stimulus heard twice, the one run has the second hearing only, under the number of the first."""
    ranks = {"rows": {"encoder": np.array([[0, 1]])}, "subjects": np.array(["s", "s"]), "blocks": np.array(["b", "b"])}
    candidates = np.array(["a@0+3000", "a@500+3000"])
    both = report.Ranks(**ranks, windows=np.array(["r a@0+3000 0", "r a@0+3000 1"]), candidates=candidates)
    one = report.Ranks(**ranks, windows=np.array(["r a@0+3000 0", "r a@500+3000 0"]), candidates=candidates)
    assert pair((both, "encoder"), (one, "encoder"), 1, folders=(Path("both"), Path("one"))) == "other windows: 2 and 2, none in common"


def test_uneven_numbers_are_said(tmp_path):
    runs = {
        "two": leave(tmp_path / "two", [[5, 5]], recipe={"subjects": "first:2"}),
        "three": leave(tmp_path / "three", [[5, 5, 5], [6, 6, 6]], recipe={"subjects": "first:3"}),
        "alike": leave(tmp_path / "alike", [[5, 5]], recipe={"subjects": "first:2"}),
    }
    made = report.ladder(runs, reference="two", published={"two": (0.2, 0.01), "four": 0.4}, **QUICK)
    assert made["three"]["difference"]["n_windows"] == 24
    said = " ".join(made.warnings)
    assert "Numbers of seeds differ, 1 (two, alike), 2 (three)" in said
    assert "Numbers of subjects differ, 2 (two, alike), 3 (three)" in said
    assert "No constant of alike differs from those of two" in said
    assert "The signed-rank test over 2 subjects cannot give p below 0.5, nor, after Holm's correction for 2 rows, below 1" in said
    assert "here top-2 is the widest" in said
    assert "None can: with so few subjects no p here comes below 1 after the correction" in flat(report.ladder_table(made))
    assert (made["alike"]["difference"]["value"], made["alike"]["subjects_test"]["p"]) == (0, 1)
    assert made["alike"]["subjects_test"]["equal"] == 2


def test_a_difference_within_the_luck_of_the_fits_is_named(tmp_path):
    runs = {
        "full": leave(tmp_path / "full", [[2] * 7, [10] * 7]),
        "wide": leave(tmp_path / "wide", [[7] * 7, [8] * 7]),  # better in all subjects, by 1.5 of 12; the fits alone differ by 8
        "none": leave(tmp_path / "none", [[0] * 7, [0] * 7]),
    }
    runs["full_again"] = leave(tmp_path / "again", [[7] * 7, [7] * 7])
    made = report.ladder(runs, reference="full_again", **QUICK)
    assert made["none"]["difference"]["beyond_fits"]
    made = report.ladder(runs, reference="full", **QUICK)
    assert made["wide"]["subjects_test"]["holm"] == pytest.approx(3 * 2 / 2**7)
    assert not made["wide"]["difference"]["beyond_fits"]
    text = flat(report.ladder_table(made))
    assert "3 differ (p < 0.05 over subjects, after Holm's correction); below: none; above: wide, full again." in text
    assert "Within twice the standard error over seeds, so perhaps the luck of the fits: wide, none, full again." in text
    assert report.draw_ladder(made)[0].title == "No variant differs clearly from full"


def test_a_reference_without_a_result_is_said(tmp_path):
    runs = {"a": tmp_path / "a", "b": leave(tmp_path / "b", [[5, 5]]), "c": leave(tmp_path / "c", [[5, 5]], row="ridge")}
    made = report.ladder(runs, reference="a", chance="random", row="encoder", **QUICK)
    assert made["c"]["missing"] == "its report has no row 'encoder', only ridge, block_oracle"
    assert made["b"]["difference"] == {"why": "the reference has no result"}
    assert made["random"]["missing"]
    assert made.compared == 0
    assert "has no result" in report.ladder_table(made)
    report.write_ladder(made, tmp_path / "out")
    with pytest.raises(RuntimeError, match="No variant has a result"):
        report.ladder({"a": tmp_path / "a", "d": tmp_path / "d"}, reference="a")


def test_a_damaged_run_is_listed_with_its_cure(tmp_path):
    runs = {name: leave(tmp_path / name, [[5, 5]]) for name in "abc"}
    (runs["b"] / "report.json").write_text("{")
    (runs["c"] / "ranks.npz").write_bytes(b"PK")
    made = report.ladder(runs, reference="a", **QUICK)
    assert "damaged" in made["b"]["missing"]
    assert "damaged" in made["c"]["difference"]["why"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reference": "x"}, "'x' is none of the variants: a, b"),
        ({"axis": "lag, s"}, "needs both axis"),
        ({"axis": "lag, s", "values": {"a": 1.0}}, "values has none for b"),
        ({"axis": "lag, s", "values": {"a": 1.0, "b": math.nan}}, "values has none for b"),
        ({"published": {"a": 25.7}}, "fractions between 0 and 1, got 25.7 for 'a'"),
        ({"chance": "b"}, "cannot be named as a variant is"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        report.ladder({"a": tmp_path / "a", "b": tmp_path / "b"}, **{"reference": "a", **options})


def test_one_variant_or_one_folder_twice_is_no_ladder(tmp_path):
    with pytest.raises(ValueError, match="besides the reference"):
        report.ladder({"a": tmp_path}, reference="a")
    with pytest.raises(ValueError, match="can stand in a ladder once"):
        report.ladder({"a": tmp_path, "b": tmp_path / "x" / ".."}, reference="a")


def curve(tmp_path):
    places = {"late": 0.3, "early": -0.15, "middle": 0.15, "gone": 0.45}
    runs = {
        name: leave(tmp_path / name, [[n, n + 1], [n, n]], valid=n / 12, valid_subjects=2)
        for name, n in (("late", 4), ("early", 1), ("middle", 8))
    }
    return report.ladder(runs | {"gone": tmp_path / "gone"}, reference="middle", axis="lag, s", values=places, title="Lag", **QUICK)


def test_a_curve_follows_its_axis(tmp_path):
    made = curve(tmp_path)
    assert [row["name"] for row in made.rows] == ["early", "middle", "late", "gone"]
    assert [row["x"] for row in made.rows] == [-0.15, 0.15, 0.3, 0.45]
    assert made.chosen == "middle"
    header, *lines = report.ladder_table(made).split("\n\n")[1].splitlines()
    assert header.split("  ")[0] == "variant"
    assert "lag, s" in header
    assert [line.split()[1] for line in lines[1:]] == ["-0.15", "0.15", "0.3", "0.45"]
    pictures = {picture.name: picture for picture in report.draw_ladder(made)}
    assert set(pictures) == {"differences", "curve", "accuracies"}
    assert pictures["curve"].title == "Validation chooses lag 0.15 s"
    assert "No result at 0.45" in pictures["curve"].caption
    assert "chance 16.7 %" in pictures["curve"].alt


def test_chance_is_drawn_where_it_changes(tmp_path):
    made = curve(tmp_path)
    rows = [row if row["missing"] else row | {"chance": {"top1": 0.1, "top2": 0.05 * i + 0.1}} for i, row in enumerate(made.rows)]
    (picture,) = (p for p in report.draw_ladder(replace(made, rows=tuple(rows), chosen=None)) if p.name == "curve")
    assert "chance, which changes with the number of candidates" in picture.caption
    assert picture.title == "Top-2 accuracy by lag"
    for value in ("10.0 %", "15.0 %", "20.0 %"):
        assert f"chance {value}" in picture.alt


def test_a_wide_axis_is_logarithmic_and_numbered_plainly(tmp_path):
    row = curve(tmp_path)["early"]
    rows = [row | {"x": 2.0**i} for i in range(12)]  # too many for a number each
    assert "mathdefault" not in drawing.curve(rows, axis="mel bands", k=2, chosen=None).svg


def test_validation_is_drawn_where_it_is_top_10(tmp_path):
    rows = [
        {**row, "accuracy": {"top10": row["accuracy"]["top2"]}, "chance": {"top10": 0.2}}
        for row in curve(tmp_path).rows
        if not row["missing"]
    ]
    picture = drawing.curve(rows, axis="temperature", k=10, chosen="early")
    assert "Dashed: validation accuracy" in picture.caption
    assert picture.title == "Validation chooses temperature -0.15"
    assert "validation" in picture.svg
    assert drawing.differences([rows[0] | {"difference": None}], reference="early", k=10) is None


def test_the_ladder_is_written_whole(tmp_path):
    made = replace(many(tmp_path), title="A <title>")
    paths = report.write_ladder(made, tmp_path / "out")
    assert {p for p in (tmp_path / "out").rglob("*") if p.is_file()} == set(paths)
    assert {p.name for p in paths} == {"ladder.json", "ladder.md", "ladder.html", "differences.png", "accuracies.png"}
    text = (tmp_path / "out" / "ladder.html").read_text()
    page, words = parse(text)
    assert not re.search(r"https?:|<script|@import|<link", text)
    assert all(r.startswith(("#", "data:image/png;base64,")) for r in page.references)
    assert len(page.ids) == len(set(page.ids))
    assert all(label.endswith(".") for label in page.labels)
    markdown = (tmp_path / "out" / "ladder.md").read_text()
    for said in (words, markdown, report.ladder_table(made)):
        assert f"{100 * made['no_depth']['difference']['value']:+.1f}" in said
        assert "the loss is not finite" in said
        assert "Of 2 variants compared with it, 1 differs" in flat(said)
        assert f"{made['no_depth']['subjects_test']['holm']:.3f}" in said
    for said in (words, markdown):
        assert "Twice the channels." in said
        assert f"{100 * made['full']['accuracy']['top2']['seeds'][1]:.1f} % (seed" in said
        assert "A <title>" in said
        assert re.search(r"no depth[ |]*model\.depth[ |]*2[ |]*0", said)
    assert json.loads((tmp_path / "out" / "ladder.json").read_text()) == evaluate.plain(asdict(made))
    before = [path.read_bytes() for path in paths]
    report.write_ladder(made, tmp_path / "out")
    assert [path.read_bytes() for path in paths] == before


def test_each_column_has_a_name_of_its_own_and_is_explained(tmp_path):
    report.write_ladder(many(tmp_path), tmp_path / "several")
    one = {name: leave(tmp_path / name, [[n] * 3]) for name, n in (("a", 6), ("b", 8))}
    report.write_ladder(report.ladder(one, reference="a", **QUICK), tmp_path / "one")
    several, single = (parse((tmp_path / name / "ladder.html").read_text())[1] for name in ("several", "one"))
    for said in (several, single):
        assert "Holm, subjects" in said
        assert "Holm, blocks" in said
        assert "in brackets the" not in said
        assert "below it the two-way bootstrap" in said
    assert "minus fullDifference from the row" in several
    assert "seStandard error" in several
    assert "sd over seeds" in several
    assert "sd over seeds" not in single  # one seed each
    assert "twice se" not in single


def test_the_accuracy_axis_has_a_tick_at_100_percent(tmp_path):
    runs = {name: leave(tmp_path / name, [[n] * 3]) for name, n in (("a", 12), ("b", 8))}
    drawn = {picture.name: picture for picture in report.draw_ladder(report.ladder(runs, reference="a", **QUICK))}
    assert re.search(r">100 %<", drawn["accuracies"].svg)


def test_the_published_stand_beside_and_name_their_source(tmp_path):
    made = many(tmp_path)
    rows = [row | {"published": {"value": 0.257, "sd": 0.029}} if row["name"] == "full" else row for row in made.rows]
    rows = [row if row["missing"] else row | {"accuracy": {"top10": row["accuracy"]["top2"]}, "chance": {"top10": 0.2}} for row in rows]
    text = flat(report.ladder_table(replace(made, k=10, ks=(10,), rows=tuple(rows), source="Table 2, Brennan")))
    assert "25.7 ± 2.9" in text
    assert "Published: Table 2, Brennan." in text


def test_few_false_findings_among_all_rows_without_a_difference():
    """Five variants as good as the reference: one is found in about 5 % of tables at most after Holm's correction, in more without."""
    rng = np.random.default_rng(0)
    n_subjects, n_windows, n_variants, n_tables = 20, 40, 5, 400  # above 13 subjects scipy does not try all patterns
    subjects = np.repeat(np.arange(n_subjects), n_windows)
    found = corrected = 0
    for _ in range(n_tables):
        chance = np.repeat(rng.uniform(0.2, 0.6, n_subjects), n_windows)  # listeners differ, variants do not
        rows = rng.random((n_variants + 1, 2, len(subjects))) < chance
        p = [over_subjects(Pairs(rows[0], row, subjects, blocks=subjects))["p"] for row in rows[1:]]
        found += min(p) < 0.05
        corrected += statistics.holm(p).min() < 0.05
    assert 0 < corrected / n_tables <= 0.085  # 5 % nominal; one standard deviation is 1.1 %
    assert found / n_tables > 0.10


def test_a_ladder_of_real_runs(tmp_path, tmp_cache):
    quick = ("rows=encoder", "seeds=(1,2)", "train.max_epochs=1", "train.max_steps_per_epoch=2")
    settings = {"wide": (), "narrow": ("model.hidden=4",)}
    for name, more in settings.items():
        flow.run(tiny(*quick, *more), out=tmp_path / name, cache=tmp_cache, progress=False)
    made = report.ladder({name: tmp_path / name for name in settings}, reference="wide", **QUICK)
    kept = {name: report.load(tmp_path / name) for name in settings}
    value = {name: r.rows["encoder"]["top10"]["value"] for name, r in kept.items()}
    assert made["narrow"]["difference"]["value"] == pytest.approx(value["narrow"] - value["wide"])
    assert made["narrow"]["changes"] == {"model.options.hidden": ["8", "4"]}
    assert made["narrow"]["validation"]["fits"] == 2
    assert made["narrow"]["validation"]["windows"] == made["wide"]["validation"]["windows"]
    assert made.chosen == max(settings, key=lambda name: made[name]["validation"]["value"])
    assert np.mean(made["wide"]["accuracy"]["top10"]["seeds"]) == pytest.approx(value["wide"])
