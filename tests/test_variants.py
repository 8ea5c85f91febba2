"""Variants: every one of the paper's can be made of a shipped recipe, and a table of them runs, resumes and lists what failed."""

import dataclasses
import json
from pathlib import Path

import pytest
from tiny_runs import tiny

from brainspeech import models, recipe, variants
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
            assert list(values) == list(variants.table(recipe.load("brennan2019"), what).variants)


def test_a_curve_changes_one_constant_and_compares_with_the_value_that_the_recipe_has():
    base = recipe.load("brennan2019")
    lag = variants.table(base, "lag")
    assert lag.reference == "lag-150"
    assert [variants.apply(base, v).batches.lag for v in lag.variants.values()] == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3])
    window = variants.table(base, "window")
    assert window.reference == "window-3"
    assert [window.variants["window-5"].meaning, lag.variants["lag-50"].meaning] == ["window: 5 s", "lag: 50 ms"]
    assert variants.apply(base, window.variants["window-5"]).segments.tmax == 4.5
    assert list(variants.table(base, "subjects", n_subjects=11).values.values()) == [1, 2, 4, 8, 11]
    assert variants.apply(base, variants.table(base, "subjects", n_subjects=11).variants["subjects-4"]).subjects == "first:4"


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
