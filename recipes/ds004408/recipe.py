"""The Old Man and the Sea, raw and open: the listeners of the paper's Broderick row at 512 Hz, with another aligner's words.

The paper's constants, except for the average reference (the recordings have none) and the blocks: every 10 s of the sound, so that
broderick2019 has the same split.
"""

from brainspeech.batches import BatchConfig
from brainspeech.preprocess import PreprocessConfig
from brainspeech.recipe import Choice, Recipe
from brainspeech.segments import SegmentConfig
from brainspeech.train import TrainConfig

recipe = Recipe(
    name="ds004408",
    title="Which 3 s of The Old Man and the Sea was this listener hearing? (EEG, OpenNeuro ds004408)",
    dataset=Choice("ds004408"),
    preprocess=PreprocessConfig(sfreq=120.0, reference="average"),
    segments=SegmentConfig(protocol="clean", tmin=-0.5, tmax=2.5, stride=0.5, min_block=10.0, blocks_at="grid"),
    feature=Choice("wav2vec2"),
    batches=BatchConfig(lag=0.150, baseline=0.5, clamp=20.0),
    model=Choice("conv", {"generic_subject": True}),
    train=TrainConfig(lr=3e-4, batch_size=256, max_epochs=200, max_steps_per_epoch=1200, patience=10),
    seeds=(2036, 2037, 2038),
    notes=(
        "Same listeners and sounds as broderick2019, from the raw recordings, with other word times: not the paper's Broderick row.",
        "Average reference: the recordings have no reference of their own.",
    ),
)
