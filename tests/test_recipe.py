"""Recipes: found, loaded, changed, kept and restored."""

import dataclasses
import json

import pytest
from tiny_runs import tiny

from brainspeech import recipe as recipes
from brainspeech.evaluate import EvaluateConfig
from brainspeech.preprocess import PreprocessConfig
from brainspeech.recipe import Choice, Recipe
from brainspeech.segments import SegmentConfig

SMALL = Recipe(name="small", title="A small one", dataset=Choice("simulated"), feature=Choice("mel"))

RECIPE_PY = """
from __future__ import annotations

import dataclasses

from brainspeech.recipe import Choice, Recipe


@dataclasses.dataclass
class Own:
    seconds: float = 3.0


recipe = Recipe(name="mine", title="Mine", dataset=Choice("simulated", {"minutes": Own().seconds}), feature=Choice("mel"))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "recipe.py").write_text(RECIPE_PY)
    return tmp_path / "mine"


# ---------------------------------------------------------------------------------------------------------------------------- find, load


def test_a_recipe_is_a_folder_a_file_or_a_shipped_name(folder):
    assert recipes.load(str(folder)) == recipes.load(str(folder / "recipe.py"))
    assert recipes.load(str(folder)).name == "mine"
    assert recipes.load("demo").name == "demo"
    assert recipes.find("demo").parent.name == "demo"


def test_a_folder_of_the_user_goes_before_a_shipped_name(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    folder.rename("demo")
    assert recipes.load("demo").name == "mine"


def test_an_unknown_recipe_is_answered_with_those_that_are_shipped(tmp_path):
    with pytest.raises(ValueError, match=r"No recipe 'dmeo': expected .*cocktail_eeg, demo"):
        recipes.find("dmeo")
    with pytest.raises(ValueError, match=r"expected a folder with a recipe\.py"):
        recipes.find(str(tmp_path))
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="No recipe"):
        recipes.find(str(tmp_path / "notes.txt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", r"recipe\.py must define `recipe = Recipe\(\.\.\.\)`, got NoneType"),
        ("recipe = {'name': 'x'}", r"must define .* got dict"),
        ("x = 1\nrecipe = Recipe()", r"recipe\.py, line 2: NameError: name 'Recipe' is not defined"),
        ("x = 1\n\nrecipe = (", r"recipe\.py, line 3: SyntaxError: .*never closed"),
        (
            "from brainspeech.recipe import Recipe, Choice\nrecipe = Recipe(name='x', title='', dataset=Choice('simulated'), featur=1)",
            r"recipe\.py, line 2: TypeError: .*unexpected keyword argument 'featur'",
        ),
        (
            "from brainspeech.recipe import Recipe, Choice\nrecipe = Recipe(name='x', title='', dataset=Choice('simulated'), rows=())",
            r"recipe\.py, line \d+: x: rows must contain 'encoder'",
        ),
    ],
)
def test_a_file_that_is_no_recipe_is_an_error_with_its_line(tmp_path, text, message):
    (tmp_path / "recipe.py").write_text(text)
    with pytest.raises(ValueError, match=message):
        recipes.load(str(tmp_path))


# ------------------------------------------------------------------------------------------------------------------------------ change


def test_constants_are_changed_by_section_and_field():
    changed = recipes.change(
        SMALL,
        [
            "train.max_epochs=3",
            "train.lr=1",
            "segments.protocol=clean",
            "segments.assign={'a*': 'test'}",
            "preprocess.highpass=0.5",
            "preprocess.notch=50",
            "preprocess.reference=M1,M2",
            "batches.baseline=None",
            "batches.scale=False",
            "evaluate.topk=[1, 10]",
            "seeds=1,2,3",
            "rows=encoder,ridge",
            "title=What was heard = what was said?",
            "context=window",
        ],
    )
    assert (changed.train.max_epochs, changed.train.lr, type(changed.train.lr)) == (3, 1.0, float)
    assert changed.segments.assign == {"a*": "test"}
    assert changed.preprocess == PreprocessConfig(highpass=0.5, notch=(50.0,), reference=("M1", "M2"))
    assert (changed.batches.baseline, changed.batches.scale) == (None, False)
    assert changed.evaluate == EvaluateConfig(topk=(1, 10))
    assert (changed.seeds, changed.rows, changed.context) == ((1, 2, 3), ("encoder", "ridge"), "window")
    assert changed.title == "What was heard = what was said?"
    assert dataclasses.replace(SMALL) == SMALL
    assert SMALL.train.max_epochs == 200


def test_a_choice_is_changed_by_name_and_by_what_its_constructor_takes():
    changed = recipes.change(
        SMALL,
        [
            "dataset.n_subjects=3",
            "dataset.snr_db=-5",
            "dataset.subjects=first:2",
            "feature.n_mels=12",
            "model.name=linear_clip",
            "model.rank=4",
            "loss.duplicates=negative",
            "linear_clip.lags=0,1,2",
        ],
    )
    assert changed.dataset == Choice("simulated", {"n_subjects": 3, "snr_db": -5.0})
    assert changed.subjects == "first:2"
    assert changed.feature == Choice("mel", {"n_mels": 12})
    assert changed.model == Choice("linear_clip", {"rank": 4})
    assert changed.loss.options == {"duplicates": "negative"}
    assert changed.linear_clip.options == {"lags": (0, 1, 2)}
    assert recipes.change(SMALL, ["feature=precomputed"]).feature == Choice("precomputed")
    recipes.check(changed)


def test_a_number_may_be_a_name():
    assert recipes.change(SMALL, ["subjects=3"]).subjects == "3"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.max_epochs", r"--set takes section\.field=value, got 'train\.max_epochs'"),
        ("trian.lr=1", r"Unknown section 'trian' .*batches.*train"),
        ("train.learning_rate=1", r"Unknown field 'learning_rate' in section 'train'; fields are lr, batch_size"),
        ("lr=1", r"Unknown field 'lr' in the recipe; fields are name, title"),
        ("train.max_epochs=many", r"max_epochs in section 'train' takes int, such as 200; got str: 'many'"),
        ("train.max_epochs=2.5", r"takes int, such as 200; got float: 2\.5"),
        ("train.max_epochs=True", "takes int, such as 200; got bool: True"),
        ("train.lr=None", "takes float, such as .*; got NoneType"),
        ("train.max_epochs=0", "max_epochs must be at least 1, got 0"),
        ("batches.scale=1", r"scale in section 'batches' takes bool, such as True; got int: 1"),
        ("batches.clamp=much", r"clamp in section 'batches' takes float or None, such as 20\.0; got str"),
        ("preprocess.highpass=low", "highpass in section 'preprocess' takes float or None"),
        ("seeds=a,b", r"seeds in the recipe takes tuple\[int, \.\.\.\], such as"),
        ("seeds=()", "at least one seed is needed"),
        ("rows=encoder,ridges", "rows must contain 'encoder' and be among"),
        ("context=word", "context must be one of block, window, got 'word'"),
        ("folds=five", "folds must be None, 'leave_one_out' or 'leave_subject_out', got 'five'"),
        ("dataset.minuts=3", r"Unknown field 'minuts' in section 'dataset' \(simulated\); fields are name, .*minutes"),
        ("dataset.minutes=long", r"minutes in section 'dataset' \(simulated\) takes float"),
        ("dataset.root=x", "Unknown field 'root'"),
        ("model.hiden=3", r"Unknown field 'hiden' in section 'model' \(conv\); fields are name, .*hidden"),
        ("model.n_subjects=3", "Unknown field 'n_subjects'"),
        ("loss.temprature=3", r"Unknown field 'temprature' in section 'loss' \(clip\)"),
        ("train=5", "train in the recipe takes TrainConfig"),
    ],
)
def test_what_cannot_be_changed_is_answered_with_what_can(setting, message):
    with pytest.raises(ValueError, match=message):
        recipes.change(SMALL, [setting])


def test_an_unknown_name_is_answered_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"Unknown feature 'mell'; expected one of .*mel, precomputed"):
        recipes.change(SMALL, ["feature.name=mell", "feature.n_mels=3"])
    with pytest.raises(ValueError, match="Unknown dataset 'x'; expected one of"):
        recipes.check(dataclasses.replace(SMALL, dataset=Choice("x")))


def test_a_loader_of_ones_own_says_what_it_takes():
    def load(root, *, session: int = 1):
        raise AssertionError

    def load_anything(root, **options):
        raise AssertionError

    own = dataclasses.replace(SMALL, dataset=Choice("own"), load=load)
    assert recipes.change(own, ["dataset.session=2"]).dataset.options == {"session": 2}
    with pytest.raises(ValueError, match=r"Unknown field 'sesion' in section 'dataset' \(own\); fields are name, session"):
        recipes.change(own, ["dataset.sesion=2"])
    anything = dataclasses.replace(own, load=load_anything)
    assert recipes.change(anything, ["dataset.x=y"]).dataset.options == {"x": "y"}


# --------------------------------------------------------------------------------------------------------------- check, settle, restore


def test_check_finds_two_rates():
    recipe = dataclasses.replace(SMALL, preprocess=PreprocessConfig(sfreq=60.0))
    with pytest.raises(ValueError, match=r"small: segments\.sfreq is 120 Hz and preprocess\.sfreq is 60 Hz"):
        recipes.check(recipe)
    recipes.check(recipes.change(recipe, ["segments.sfreq=60"]))


def test_the_papers_protocol_decides_negatives_and_the_generic_subject():
    paper = dataclasses.replace(SMALL, segments=SegmentConfig(protocol="paper"))
    settled = recipes.settle(paper)
    assert settled.loss.options == {"duplicates": "negative"}
    assert settled.model.options["generic_subject"] is False
    assert len(settled.notes) == len(paper.notes) + 2
    assert recipes.settle(settled) == settled
    asked = recipes.change(paper, ["loss.duplicates=ignore"])
    assert recipes.settle(asked).loss == asked.loss
    assert recipes.settle(SMALL) is SMALL


def test_constants_that_the_papers_protocol_has_otherwise_are_put_in_force_unless_set_by_hand():
    own = dataclasses.replace(SMALL, segments=SegmentConfig(valid_ratio=0.3, test_ratio=0.3), paper={"segments.valid_ratio": 0.1})
    assert recipes.settle(own) is own
    paper = recipes.change(own, ["segments.protocol=paper"])
    assert paper.segments.valid_ratio == 0.3  # until it is run
    settled = recipes.settle(paper)
    assert (settled.segments.valid_ratio, settled.segments.test_ratio) == (0.1, 0.3)
    assert "The paper's protocol: segments.valid_ratio is 0.1." in settled.notes
    assert recipes.settle(settled) == settled
    for order in (["segments.valid_ratio=0.25", "segments.protocol=paper"], ["segments.protocol=paper", "segments.valid_ratio=0.25"]):
        assert recipes.settle(recipes.change(own, order)).segments.valid_ratio == 0.25
    restored = recipes.restore(own, json.loads(json.dumps(settled.to_dict())))
    assert recipes.settle(restored).to_dict() == settled.to_dict()
    with pytest.raises(ValueError, match="Unknown field 'valid' in section 'segments'"):
        recipes.settle(dataclasses.replace(paper, paper={"segments.valid": 0.1}))


@pytest.mark.parametrize("spec", ["published", "first:3", "1-5,7", "1,2", "3", "all"])
def test_subjects_are_taken_as_they_are_written(spec):
    assert recipes.change(SMALL, [f"dataset.subjects={spec}"]).subjects == spec
    assert recipes.change(SMALL, [f"subjects={spec}"]).subjects == spec


@pytest.mark.parametrize("recipe", [SMALL, tiny("segments.assign={'story-01.wav': 'test'}", "seeds=1,2"), recipes.load("cocktail_eeg")])
def test_constants_come_back_from_json(recipe):
    kept = json.loads(json.dumps(recipe.to_dict()))
    assert "load" not in kept
    restored = recipes.restore(dataclasses.replace(recipe, title="", seeds=(9,), notes=()), kept)
    assert restored.to_dict() == kept
    assert restored.load is recipe.load
    assert isinstance(restored.seeds, tuple)


def test_a_recipe_holds_plain_constants():
    with pytest.raises(TypeError, match="A recipe holds plain constants, got object"):
        dataclasses.replace(SMALL, dataset=Choice("simulated", {"seed": object()})).to_dict()


def test_words_of_another_language_are_an_error_before_anything_is_computed():
    recipe = recipes.change(recipes.load("demo"), ["evaluate.regression=part_of_speech,word_embedding", "evaluate.language=nl"])
    with pytest.raises(ValueError, match=r"^demo: .*en_core_web_md"):
        recipes.check(recipe)
    recipes.check(recipes.change(recipe, ["evaluate.spacy_model=nl_core_news_md"]))
