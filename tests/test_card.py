"""A card says what is known, and of what nobody stated that nobody did."""

import huggingface_hub
from tiny_runs import tiny

from brainspeech import card


def test_the_terms_of_the_data_come_from_the_manifest():
    assert "Licence of the data: CC0-1.0; access: open" in card.data_terms("gwilliams2022")
    assert "is not stated here" in card.data_terms("my_study")
    config = {
        "model": "conv",
        "model_config": {"n_features": 2},
        "recipe": tiny().to_dict() | {"dataset": {"name": "gwilliams2022", "options": {}}},
        "subjects": ["gwilliams2022/sub-01"],
        "ch_names": ["a"],
        "ch_types": ["mag"],
    }
    text = card.model_card(config)
    assert huggingface_hub.ModelCard(text).data.tags == ["brain-decoding", "speech", "meg"]
    assert "under CC0-1.0, whose terms hold" in text
    assert "@article{gwilliams2023" in text
    assert "It has not been tested" in text
    assert "Licence of the weights: not stated." in text
