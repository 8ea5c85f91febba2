"""A decoder's parameters are kept, set, cloned and searched as scikit-learn does it."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_val_score
from test_fitting import SFREQ, linear, planted, small_conv

from brainspeech import SpeechDecoder, features, losses, models
from brainspeech.losses.joint import Joint
from brainspeech.recipe import Choice
from brainspeech.segments import SegmentConfig
from brainspeech.train import TrainConfig


def test_parameters_are_kept_as_they_are_and_cloned():
    decoder = linear(loss="siglip", seed=3)
    copy = clone(decoder)
    assert copy.get_params() == decoder.get_params()
    assert decoder.get_params()["train__lr"] == 0.03
    assert decoder.get_params()["model__rank"] == 3
    assert SpeechDecoder(**decoder.get_params(deep=False)).train is decoder.train
    copy.set_params(train__lr=0.5, model__rank=2, loss__name="clip", lag=0.2)
    assert (copy.train.lr, copy.model.options["rank"], copy.loss, copy.lag) == (0.5, 2, Choice("clip"), 0.2)
    assert (decoder.train.lr, decoder.model.options["rank"], decoder.loss, decoder.lag) == (0.03, 3, "siglip", 0.1)
    assert not hasattr(clone(decoder), "encoder_")
    assert "seed=3" in repr(decoder)
    for wrong in ("colour", "train__colour", "lag__x"):
        with pytest.raises(ValueError, match=f"has no parameter '{wrong}'"):
            decoder.set_params(**{wrong: 1})


def test_modules_and_features_stand_for_their_names_and_options():
    encoder = models.build("conv", n_subjects=3, n_features=2, n_virtual=4, hidden=6, depth=1, n_harmonics=2)
    decoder = SpeechDecoder(model=encoder, loss=losses.build("siglip"), feature=features.build("mel", n_mels=9))
    recipe = decoder._recipe()
    assert (recipe.model.name, recipe.model.options["hidden"], recipe.loss.name) == ("conv", 6, "siglip")
    assert not {"n_subjects", "n_features"} & set(recipe.model.options)
    ear = models.build_target("deep_mel", n_features=3, n_outputs=4, hidden=4, depth=2)
    decoder = SpeechDecoder(model=models.find("conv"), loss=losses.find("siglip"), target_encoder=ear)
    assert (decoder._recipe().model, decoder._recipe().loss) == (Choice("conv"), Choice("siglip"))
    assert decoder._recipe().target_encoder.options["n_outputs"] == 4
    assert decoder.set_params(target_encoder=None)._recipe().target_encoder is None
    with pytest.raises(ValueError, match=r"model must be a name, a Choice, or what models\.build made"):
        SpeechDecoder(model=torch.nn.Linear(2, 2))._recipe()
    with pytest.raises(ValueError, match="its two parts: loss= and target_encoder="):
        SpeechDecoder(loss=Joint(losses.build("clip"), ear))._recipe()


def test_it_is_cross_validated():
    signals, targets, _, what = planted(n_stimuli=40)
    mine = slice(0, 40)
    decoder = small_conv(
        train=TrainConfig(batch_size=16, max_epochs=1),
        segments=SegmentConfig(sfreq=SFREQ, valid_ratio=0.3, test_ratio=0.0),
    )
    given = {"ch_names": list("vwxyz"), "positions": np.random.default_rng(0).random((5, 2))}
    found = cross_val_score(decoder, signals[mine], targets[mine], cv=GroupKFold(2), groups=what[mine], params=given, error_score="raise")
    assert found.shape == (2,)
    assert ((found >= 0) & (found <= 1)).all()
