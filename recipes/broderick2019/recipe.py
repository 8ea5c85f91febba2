"""The Old Man and the Sea as the paper had it: 128 Hz from Dryad, with the private sounds and alignments.

The paper's constants; blocks every 10 s of the sound, so that ds004408, the same recordings in their open form, has the same split.
"""

from brainspeech.batches import BatchConfig
from brainspeech.preprocess import PreprocessConfig
from brainspeech.recipe import Choice, Recipe
from brainspeech.segments import SegmentConfig
from brainspeech.train import TrainConfig

recipe = Recipe(
    name="broderick2019",
    title="Which 3 s of The Old Man and the Sea was this listener hearing? (EEG, Broderick et al. 2018)",
    dataset=Choice("broderick2019"),
    preprocess=PreprocessConfig(sfreq=120.0),
    segments=SegmentConfig(protocol="clean", tmin=-0.5, tmax=2.5, stride=0.5, min_block=10.0, blocks_at="grid"),
    feature=Choice("wav2vec2"),
    batches=BatchConfig(lag=0.150, baseline=0.5, clamp=20.0),
    model=Choice("conv", {"generic_subject": True}),
    train=TrainConfig(lr=3e-4, batch_size=256, max_epochs=200, max_steps_per_epoch=1200, patience=10),
    seeds=(2036, 2037, 2038),
    notes=("Same listeners and sounds as ds004408: never count the two as two datasets.",),
)
