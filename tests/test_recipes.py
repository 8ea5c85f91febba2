"""The recipes that come with the package: they load, they are documented, and they run, made small."""

import json

import pytest
from tiny_runs import tiny

from brainspeech import flow, lexicon, rows
from brainspeech import recipe as recipes
from brainspeech.cache import Cache

SHIPPED = sorted(path.parent for path in recipes.shipped_folder().glob("*/recipe.py"))
NAMES = [folder.name for folder in SHIPPED]

# What makes the real recipe quick: the ridge stays as it is.
SHRUNKEN = (
    "train.max_epochs=1",
    "train.max_steps_per_epoch=2",
    "evaluate.n_permutations=2000",
    "evaluate.n_bootstrap=500",
)


def test_the_first_two_recipes_are_shipped():
    assert {"demo", "cocktail_eeg"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_loads_and_its_constants_are_json(name):
    recipe = recipes.load(name)
    assert recipe.name == name
    assert "?" in recipe.title, "a report opens with the question it answers"
    assert recipes.restore(recipe, json.loads(json.dumps(recipe.to_dict()))).to_dict() == recipe.to_dict()
    recipes.check(recipes.settle(recipe))


@pytest.mark.parametrize("name", NAMES)
def test_words_are_looked_up_in_the_language_that_was_heard(name):
    config = recipes.load(name).evaluate
    assert config.language == ("nl" if name == "schoffelen2019" else "en")
    lexicon.check(lexicon.SETS, language=config.language, spacy_model=config.spacy_model)


@pytest.mark.parametrize("folder", SHIPPED, ids=NAMES)
def test_a_recipe_has_a_readme_that_says_data_how_long_and_numbers(folder):
    text = (folder / "README.md").read_text()
    assert text.startswith(f"# {folder.name}")
    assert f"brainspeech run {folder.name}" in text
    missing = [word for word in ("licence", "how to run", "how long", "numbers") if word not in text.lower()]
    assert missing == []


def test_the_demo_is_as_large_as_promised():
    found = flow.describe(recipes.load("demo"), None)
    assert found["subjects"] >= 4
    assert found["splits"]["test"]["segments"] >= 100


def test_the_demo_runs_made_small(tmp_path):
    found = flow.run(tiny(), out=tmp_path / "run", cache=Cache(tmp_path / "cache"), progress=False)
    assert set(found.rows) == {*recipes.load("demo").rows, "block_oracle"}
    assert any("narrower than the paper's" in note for note in found.warnings)


# ---------------------------------------------------------------------------------------------------------------------- cocktail_eeg


def test_cocktail_eeg_without_a_root_says_what_is_missing():
    with pytest.raises(ValueError, match=r"^cocktail_eeg: say where the files are: --root DIR \(the recipe's README says"):
        flow.describe(recipes.load("cocktail_eeg"), None)


def test_cocktail_eeg_names_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cocktail_eeg: .*competing_speaker_order\.mat is missing"):
        flow.describe(recipes.load("cocktail_eeg"), tmp_path)


@pytest.mark.data
@pytest.mark.parametrize("name", ["F_env.mat", "M_env.mat", "1_3.mat"])
def test_cocktail_eeg_names_any_missing_file(shared, tmp_path, name):
    for path in (shared / "data" / "cocktail_eeg").glob("*.mat"):
        if path.name != name:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(FileNotFoundError, match=name):
        flow.describe(recipes.load("cocktail_eeg"), tmp_path)


@pytest.mark.slow
@pytest.mark.data
def test_cocktail_eeg_reaches_what_a_plain_ridge_reaches(shared, tmp_path, monkeypatch):
    """The reference: top-10 27 %, rank within the trial 6.5 of 9.5, p about 3e-7 (a ridge with lambda fixed beforehand)."""
    monkeypatch.setattr(rows, "LAGS", (-0.2, 0.0, 0.1))  # the curve is not looked at
    recipe = recipes.change(recipes.load("cocktail_eeg"), SHRUNKEN)
    found = flow.run(recipe, root=shared / "data" / "cocktail_eeg", out=tmp_path / "run", cache=Cache(tmp_path / "cache"), progress=False)
    assert (found.n_candidates, found.blocks, found.folds, found.subjects) == (100, 5, 5, 1)
    assert found.chance["top10"] == pytest.approx(0.1)
    ridge = found.rows["ridge"]
    assert ridge["top10"]["low"] <= 0.27 <= ridge["top10"]["high"]
    assert ridge["within_block_rank"] < 8.5
    assert ridge["p_within_block"] < 0.001
    # The attended talker is followed, the ignored one hardly.
    ignored = found.rows["ridge_ignored"]
    assert ignored["within_block_rank"] > ridge["within_block_rank"]
    assert {"encoder", "encoder_ignored", "linear_clip", "ridge", "ridge_ignored", "noise", "shuffled", "constant"} <= set(found.rows)
    assert found.rows["block_oracle"]["within_block_rank"] == pytest.approx(9.5)
    assert any("biosemi128" in note and "assumed" in note for note in found.warnings)
    assert any("Splits assigned by name: each of the 5 stimuli is the test split once" in note for note in found.warnings)
