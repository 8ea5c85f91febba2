"""A card says what is known, and of what nobody stated that nobody did."""

import re

import huggingface_hub
import pytest
from tiny_runs import tiny

from brainspeech import card


def config_of(**recipe):
    return {
        "model": "conv",
        "model_config": {"n_features": 2},
        "recipe": tiny().to_dict() | recipe,
        "subjects": ["gwilliams2022/sub-01"],
        "ch_names": ["a"],
        "ch_types": ["mag"],
    }


def test_the_terms_of_the_data_come_from_the_manifest():
    assert "Licence of the data: CC0-1.0; access: open" in card.data_terms("gwilliams2022")
    assert "is not stated here" in card.data_terms("my_study")
    config = config_of(dataset={"name": "gwilliams2022", "options": {}})
    text = card.model_card(config)
    assert "fold" not in text.split("## How well")[0]
    assert "The weights are those of the only fold and the only seed, 2036.\n" in text
    assert huggingface_hub.ModelCard(text).data.tags == ["brain-decoding", "speech", "meg"]
    assert "under CC0-1.0, whose terms hold" in text
    assert "@article{gwilliams2023" in text
    assert "It has not been tested" in text
    assert "Licence of the weights: not stated." in text


@pytest.mark.parametrize(
    ("folds", "n_folds", "seeds", "said"),
    [
        (None, 1, [7], "The weights are those of the only fold and the only seed, 7: the figures are theirs."),
        (None, 1, [7, 8, 9], "those of the only fold and of seed 7, the first of 3. The figures above are over all 3 seeds, not of these"),
        (
            "leave_one_out",
            5,
            [7],
            "those of fold 1 of 5 and of seed 7. The figures above are over all 5 folds, not of these weights",
        ),
        ("leave_one_out", 5, [7, 8], "seed 7, the first of 2. The figures above are over all 5 folds and all 2 seeds, not of these"),
        ("leave_one_out", 5, [7], "these weights have seen speech of other folds' tests."),
        ("leave_subject_out", 3, [7], "these weights have seen listeners of other folds' tests."),
    ],
)
def test_the_fold_and_the_seed_of_the_weights_are_named(folds, n_folds, seeds, said):
    row = {f"top{k}": {"value": 0.5, "low": None, "high": None} for k in (1, 5, 10)} | {"median_rank": 3.0}
    report = {"rows": {"encoder": row}, "chance": {f"top{k}": k / 50 for k in (1, 5, 10)}, "provenance": {}, "warnings": [], "alarms": []}
    report |= {"n_candidates": 50, "n_windows": 100, "subjects": 2, "blocks": 4, "folds": n_folds, "seeds": seeds}
    assert said in card.model_card(config_of(folds=folds, seeds=seeds), report)


def test_classes_that_are_not_in_the_files_are_named():
    classes = [
        {"what": "model", "name": "my_things:Mine", "origin": "the file my_things.py, SHA-256 abc"},
        {"what": "feature", "name": "brainspeech_recipe_mine:Low", "origin": ""},
    ]
    text = card.model_card(config_of() | {"classes": classes})
    assert "- model `my_things:Mine`: the file my_things.py, SHA-256 abc.\n" in text
    assert "`brainspeech_recipe_mine:Low`: where it comes from was not known when this was written. Only new candidates need it." in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert code.splitlines()[:5] == [
        "import brainspeech.recipe",
        "import my_things",
        "from brainspeech import SpeechDecoder",
        "",
        'brainspeech.recipe.load("mine/recipe.py")',
    ]
    assert "Classes" not in card.model_card(config_of())
