"""Any BIDS folder of M/EEG with events that name their sounds.

The paper's constants with mel targets, which need no download. The encoder sees any number of channels.
"""

from brainspeech.batches import BatchConfig
from brainspeech.preprocess import PreprocessConfig
from brainspeech.recipe import Choice, Recipe
from brainspeech.segments import SegmentConfig
from brainspeech.train import TrainConfig

recipe = Recipe(
    name="bids",
    title="Which 3 s of speech was this listener hearing?",
    dataset=Choice("bids"),
    preprocess=PreprocessConfig(sfreq=120.0),
    segments=SegmentConfig(protocol="clean", tmin=-0.5, tmax=2.5),
    feature=Choice("mel", {"n_mels": 120}),
    batches=BatchConfig(lag=0.150, baseline=0.5, clamp=20.0),
    model=Choice("conv", {"generic_subject": True}),
    train=TrainConfig(lr=3e-4, batch_size=256, max_epochs=200, max_steps_per_epoch=1200, patience=10),
)
