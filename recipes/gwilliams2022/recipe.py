"""MEG-MASC with the paper's constants: 27 listeners, four stories, which 3 s did this brain hear?

Blocks, identities and windows are the clean protocol's; ``--set segments.protocol=paper`` gives the reference's.
"""

from brainspeech.batches import BatchConfig
from brainspeech.preprocess import PreprocessConfig
from brainspeech.recipe import Choice, Recipe
from brainspeech.segments import SegmentConfig
from brainspeech.train import TrainConfig

recipe = Recipe(
    name="gwilliams2022",
    title="Which 3 s of four stories was this brain hearing? (MEG-MASC)",
    dataset=Choice("gwilliams2022"),
    preprocess=PreprocessConfig(sfreq=120.0, channels="meg"),
    segments=SegmentConfig(protocol="clean", min_block=6.0, sfreq=120.0),
    feature=Choice("wav2vec2"),
    batches=BatchConfig(lag=0.150, baseline=0.5, clamp=20.0),
    model=Choice("conv", {"generic_subject": True}),
    train=TrainConfig(lr=3e-4, batch_size=256, max_epochs=200, max_steps_per_epoch=1200, patience=10),
    seeds=(2036, 2037, 2038),
    notes=(
        "Word lists and sentences with a pseudo-word are kept, as in the paper; the authors of the data leave them out.",
        "The voices are synthetic.",
    ),
)
