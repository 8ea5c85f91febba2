"""The embedded default: simulated EEG, made in memory, small enough for two cores and four minutes.

The encoder is the paper's, narrower: the paper's own (320 channels wide, 270 virtual channels, 10 convolutions) costs about 0.1 s per
segment and training step on such a machine.
"""

from brainspeech.batches import BatchConfig
from brainspeech.recipe import Choice, Recipe
from brainspeech.segments import SegmentConfig
from brainspeech.train import TrainConfig

recipe = Recipe(
    name="demo",
    title="Which words was this (simulated) brain hearing?",
    dataset=Choice("simulated", {"n_subjects": 4, "minutes": 10.0, "n_channels": 32, "seed": 0}),
    segments=SegmentConfig(protocol="clean"),
    feature=Choice("mel", {"n_mels": 40}),
    batches=BatchConfig(lag=0.150, baseline=0.5, clamp=20.0),
    model=Choice("conv", {"n_virtual": 32, "hidden": 48, "depth": 4, "n_harmonics": 8, "generic_subject": True}),
    linear_clip=Choice("linear_clip", {"rank": 16}),
    train=TrainConfig(lr=1e-3, batch_size=64, max_epochs=6, max_steps_per_epoch=40, patience=3),
)
