"""Variants: every one of the paper's can be made of a shipped recipe, and a table of them runs, resumes and lists what failed."""

import dataclasses
import errno
import json
from pathlib import Path

import pytest
from tiny_runs import tiny

from brainspeech import claiming, models, recipe, variants
from brainspeech.cache import Cache


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_every_variant_of_the_paper_is_a_recipe_that_can_be_run(name):
    changed = variants.apply(recipe.load("brennan2019"), name)
    recipe.check(recipe.settle(changed))
    sizes = {"n_channels": 5} if changed.model.options.get("spatial_attention") is False else {}
    encoder = models.build(
        changed.model.name, n_subjects=2, n_features=3, hidden=8, n_virtual=6, n_harmonics=2, **sizes, **changed.model.options
    )
    reference = models.build("conv", n_subjects=2, n_features=3, hidden=8, n_virtual=6, n_harmonics=2, generic_subject=True)
    same = {k: v.shape for k, v in encoder.state_dict().items()} == {k: v.shape for k, v in reference.state_dict().items()}
    in_the_weights = any(s.startswith("model.") for s in variants.VARIANTS[name].settings) and name not in (
        "relu",
        "no_spatial_dropout",
        "no_skips",
    )
    assert same is not in_the_weights


def test_published_numbers_stand_beside_variants_that_exist():
    for what, datasets in variants.PUBLISHED.items():
        for values in datasets.values():
            names = list(variants.table(recipe.load("brennan2019"), what).variants)
            assert list(values) == ([variants.RANDOM, *names] if what == "table2" else names)
    assert variants.PUBLISHED["table2"]["brennan2019"]["random"] == (5.3, 0.1)  # 10 of 190 candidates


def test_a_curve_changes_one_constant_and_compares_with_the_value_that_the_recipe_has():
    base = recipe.load("brennan2019")
    lag = variants.table(base, "lag")
    assert lag.reference == "lag-150"
    assert [variants.apply(base, v).batches.lag for v in lag.variants.values()] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3])
    window = variants.table(base, "window")
    assert window.reference == "window-3"
    assert [window.variants["window-2"].meaning, lag.variants["lag-50"].meaning] == ["window: 2 s, where 5 s fit", "lag: 50 ms"]
    assert variants.apply(base, window.variants["window-5"]).segments.tmax == 4.5
    assert {variants.apply(base, variant).segments.room for variant in window.variants.values()} == {5.0}
    assert variants.table(base, "mels").reference == "mels-120"
    assert variants.table(recipe.change(base, ["feature.name=mel", "feature.n_mels=40"]), "mels").reference == "mels-40"
    assert variants.table(base, "temperature").reference == "temperature-1"  # the recipe has none: the middle
    assert list(variants.table(base, "subjects", n_subjects=11).values.values()) == [1, 2, 4, 8, 11]
    assert variants.apply(base, variants.table(base, "subjects", n_subjects=11).variants["subjects-4"]).subjects == "first:4"


def test_a_curve_takes_values_of_ones_own():
    base = recipe.load("brennan2019")
    window = variants.table(base, "window=3, 1,2.5")
    assert list(window.values.items()) == [("window-1", 1.0), ("window-2.5", 2.5), ("window-3", 3.0)]
    assert window.reference == "window-3"
    assert [variants.apply(base, variant).segments.room for variant in window.variants.values()] == [3.0] * 3
    wide = recipe.change(base, ["segments.room=4"])
    assert variants.apply(wide, variants.table(wide, "window=1,3").variants["window-1"]).segments.room == 4
    assert list(variants.table(base, "mels=20,120").variants) == ["mels-20", "mels-120"]
    who = [f"S{i:02d}" for i in range(1, 12)]
    subjects = variants.table(base, "subjects=3,6,9", n_subjects=11, names=who)
    assert (list(subjects.variants), subjects.reference) == (["subjects-3", "subjects-6", "subjects-9"], "subjects-9")
    assert variants.table(base, "subjects=3,6,9", n_subjects=2).reference == "subjects-9"  # asked before anybody knows how many there are
    for what, said in {
        "subjects=3,12": "asked for the first 12, but there are 11",
        "subjects=0,3": "subjects takes whole numbers from 1 on, got 'subjects=0,3'",
        "mels=20,40.5": "mels takes whole numbers from 1 on",
        "window=3,3": "two or more different numbers.*got 'window=3,3'",
        "window=": "two or more different numbers.*got 'window='",
        "lag=0,nan": "two or more different numbers",
        "relu=1,2": r"Values can follow lag, window, mels, temperature, subjects.*got 'relu=1,2'",
    }.items():
        with pytest.raises(ValueError, match=said):
            variants.table(base, what, n_subjects=11, names=who)


def test_a_recipe_has_variants_of_its_own():
    base = tiny("dataset.minutes=5")
    own = recipe.restore(base, base.to_dict() | {"variants": {"slow": ["train.lr=1e-5", "batches.lag=0.2"]}})
    changed = variants.apply(own, "slow")
    assert (changed.train.lr, changed.batches.lag) == (1e-5, 0.2)
    assert list(variants.table(own, "slow,no_clamp").variants) == ["reference", "slow", "no_clamp"]


def test_what_is_not_there_is_named():
    base = tiny()
    with pytest.raises(ValueError, match="Unknown variant 'no_skip'; there are reference, base"):
        variants.apply(base, "no_skip")
    with pytest.raises(ValueError, match=r"table2, ablations, lag.*got typo"):
        variants.table(base, "no_clamp,typo")
    with pytest.raises(ValueError, match="got nothing"):
        variants.table(base, ",")
    with pytest.raises(ValueError, match="changes the model 'conv', but demo has 'braindecode'"):
        variants.apply(recipe.change(base, ["model.name=braindecode"]), "relu")
    with pytest.raises(ValueError, match="at least 2 subjects, got 1"):
        variants.table(base, "subjects", n_subjects=1)


def test_a_table_runs_lists_what_failed_and_does_not_run_twice(tmp_path, capsys):
    # A clamp of -1 is refused when the variant is made.
    base = recipe.restore(tiny(), tiny().to_dict() | {"variants": {"broken": ["batches.clamp=-1"]}})
    given = {"root": None, "out": tmp_path / "table", "cache": Cache(tmp_path / "cache"), "progress": False}
    first = variants.run(base, "no_clamp,broken", **given)
    said = capsys.readouterr().err
    assert "variant 3 of 3: broken" in said
    assert "broken cannot be run: clamp must be a positive number or None, got -1" in said
    page = (tmp_path / "table" / "ladder.html").read_text()
    assert "clamp must be a positive number" in page
    rows = {name: json.loads((tmp_path / "table" / name / "report.json").read_text())["rows"] for name in ("reference", "no_clamp")}
    assert "shuffled" in rows["reference"]
    assert set(rows["no_clamp"]) == {"encoder", "block_oracle"}
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "table").glob("*/report.json")}
    assert variants.run(base, "no_clamp,broken", **given) == first
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    said = (Path(__file__).parents[1] / "docs" / "concepts.md").read_text().partition("## A run folder")[2]
    assert {
        path.name for path in (tmp_path / "table" / "reference").iterdir() if f"`{path.name}{'/' * path.is_dir()}`" not in said
    } == set()
    with pytest.raises(RuntimeError, match="reference of the table, reference, cannot be run"):
        variants.run(
            recipe.change(base, ["feature.name=mel", "segments.test_ratio=0"]), "no_clamp", **(given | {"out": tmp_path / "other"})
        )


def test_a_curve_runs_and_marks_its_points(tmp_path, monkeypatch):
    monkeypatch.setitem(variants.CURVES, "lag", dataclasses.replace(variants.CURVES["lag"], values=(0, 150)))
    given = {"root": None, "out": tmp_path / "curve", "cache": Cache(tmp_path / "cache"), "progress": False}
    made = variants.run(tiny("rows=encoder"), "lag", **given)
    assert [(row["name"], row["x"]) for row in made.rows] == [("lag-0", 0), ("lag-150", 150)]
    kept = [json.loads((tmp_path / "curve" / row["name"] / "recipe.json").read_text()) for row in made.rows]
    assert [constants["recipe"]["batches"]["lag"] for constants in kept] == [0, 0.15]


def test_windows_of_all_lengths_are_compared_among_as_many_candidates(tmp_path):
    given = {"root": None, "cache": Cache(tmp_path / "cache"), "progress": False}
    quick = ("rows=encoder", "segments.stride=0.5", "train.max_epochs=1", "train.max_steps_per_epoch=2")
    made = variants.run(tiny(*quick), "window=1,2.5,4", out=tmp_path / "window", **given)
    assert made.reference == "window-2.5"
    assert made.compared == 2
    assert len({(row["n_candidates"], row["n_windows"], row["validation"]["windows"]) for row in made.rows}) == 1
    assert not any(row["difference"]["partly"] for row in made.rows if row["name"] != made.reference)
    assert made.chosen is not None
    assert "Windows of other lengths are paired by where they begin" in (tmp_path / "window" / "ladder.md").read_text()
    kept = [json.loads((tmp_path / "window" / row["name"] / "report.json").read_text())["dropped"] for row in made.rows]
    assert ["windows: window without the room that is asked for" in dropped for dropped in kept] == [True, True, False]


def test_numbers_of_subjects_are_compared_on_the_subjects_that_both_have(tmp_path):
    given = {"root": None, "cache": Cache(tmp_path / "cache"), "progress": False}
    quick = ("rows=encoder", "dataset.n_subjects=3", "train.max_epochs=1", "train.max_steps_per_epoch=2")
    made = variants.run(tiny(*quick), "subjects=2,3", out=tmp_path / "subjects", **given)
    assert (made.compared, made.chosen, made.choice) == (1, None, variants.NO_CHOICE)
    two, three = made["subjects-2"], made["subjects-3"]
    assert two["subjects_test"]["n"] == 2
    assert two["difference"]["n_windows"] == two["n_windows"] < three["n_windows"]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_ends_a_table(tmp_path, monkeypatch, wrapped):
    def full(recipe, **options):
        if "clamping" not in recipe.title:
            return
        error = OSError(errno.ENOSPC, "No space left on device")
        if not wrapped:
            raise error
        raise RuntimeError(f"Could not write: {error}") from error

    monkeypatch.setattr(variants.flow, "run", full)
    with pytest.raises((OSError, RuntimeError), match="No space left"):
        variants.run(tiny(), "no_clamp,relu", root=None, out=tmp_path, cache=Cache(tmp_path / "cache"), progress=False)


def test_the_reference_is_fitted_first_so_that_nothing_is_fitted_for_nothing(tmp_path, monkeypatch):
    tried = []

    def refuse(recipe, **options):
        tried.append(recipe.feature.name)
        raise OSError("no weights")

    monkeypatch.setattr(variants.flow, "run", refuse)
    with pytest.raises(RuntimeError, match="wav2vec2, cannot be run: no weights"):
        variants.run(tiny(), "table2", root=None, out=tmp_path, cache=Cache(tmp_path / "cache"), progress=False)
    assert tried == ["wav2vec2"]


def test_a_variant_keeps_the_options_of_what_is_there_already():
    start = recipe.change(recipe.load("gwilliams2022"), ["feature.model=/a/folder", "loss.duplicates=negative"])
    same = variants.apply(start, "wav2vec2")
    assert same.feature.options["model"] == "/a/folder"
    assert same.loss.options["duplicates"] == "negative"
    assert variants.apply(start, "contrastive").feature.options == {"n_mels": 120}
    joint = recipe.change(start, ["target_encoder=deep_mel"])
    assert [variants.apply(joint, name).target_encoder for name in ("base", "contrastive", "wav2vec2")] == [None] * 3
    assert variants.apply(joint, "deep_mel").target_encoder.name == "deep_mel"


def test_an_embedding_takes_the_place_of_the_layer_and_of_nothing_else():
    start = recipe.change(recipe.load("gwilliams2022"), ["model.generic_subject=True"])
    changed = variants.apply(start, "subject_embedding").model.options
    assert changed == {**start.model.options, "subject_layer": False, "subject_embedding": 64}


def test_the_curve_over_subjects_takes_those_that_were_chosen():
    start = recipe.change(recipe.load("gwilliams2022"), ["subjects=3-5"])
    plan = variants.table(start, "subjects", n_subjects=3, names=["03", "04", "05"])
    chosen = {name: variants.apply(start, variant).subjects for name, variant in plan.variants.items()}
    assert chosen == {"subjects-1": "3", "subjects-2": "3,4", "subjects-3": "3,4,5"}


def test_the_page_lists_every_ablation_with_its_settings():
    page = (Path(__file__).parents[1] / "docs" / "howto" / "variants.md").read_text()
    for name in variants.ABLATIONS:
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.split("`")[-2].split() == list(variants.VARIANTS[name].settings)


@pytest.mark.parametrize("name", ["recipe.json", "report.json"])
def test_a_table_is_not_mixed_with_a_run(tmp_path, name):
    (tmp_path / name).write_text("{}")
    given = {"root": None, "cache": Cache(tmp_path / "cache"), "progress": False}
    with pytest.raises(ValueError, match=rf"{tmp_path} holds a run \({name}\), not a table of variants\. Give another folder"):
        variants.run(tiny(), "no_clamp", out=tmp_path, **given)
    assert not (tmp_path / "reference").exists()
    with pytest.raises(ValueError, match=rf"{tmp_path / name} is a file, so there can be no folder"):
        variants.run(tiny(), "no_clamp", out=tmp_path / name / "x", **given)


def test_a_finished_variant_is_not_claimed_while_another_run_has_it(tmp_path):
    out = tmp_path / "one"
    with claiming.hold(out, recipe.settle(tiny()), root=None, source="first") as _:
        (out / "report.json").write_text("{}")
        with pytest.raises(RuntimeError, match="Another run is writing into"):
            variants._finished(tiny("evaluate.confidence=0.5"), out, None, "second")
        assert json.loads((out / "recipe.json").read_text())["source"] == "first"


def test_a_table_is_begun_where_one_of_its_own_runs_is(tmp_path):
    for name in ("no_clamp", "subjects-9", "else"):
        (tmp_path / name / name).mkdir(parents=True)
        (tmp_path / name / name / "recipe.json").write_text("{}")
    base = tiny()
    assert variants.is_begun(base, "no_clamp,relu", tmp_path / "no_clamp")
    assert variants.is_begun(base, "ablations", tmp_path / "no_clamp")
    assert variants.is_begun(base, "subjects", tmp_path / "subjects-9")
    for what in ("relu", "lag=0,50", "subjects"):
        assert not variants.is_begun(base, what, tmp_path / "else")
        assert not variants.is_begun(base, what, tmp_path / "no_clamp")
    (tmp_path / "else" / "ladder.json").write_text("{}")
    assert variants.is_begun(base, "relu", tmp_path / "else")
