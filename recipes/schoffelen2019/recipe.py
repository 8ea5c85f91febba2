"""MOUS, the listeners, with the paper's constants: isolated sentences and word lists, every sound a block of its own, never merged.

Blocks, identities and windows are the clean protocol's; ``--set segments.protocol=paper`` gives the reference's. In the clean protocol a
window lies inside its sound, so that of each sound of a few seconds little more than one window is left; the reference's windows reach
into the silence between sounds.
"""

from brainspeech.batches import BatchConfig
from brainspeech.evaluate import EvaluateConfig
from brainspeech.preprocess import PreprocessConfig
from brainspeech.recipe import Choice, Recipe
from brainspeech.segments import SegmentConfig
from brainspeech.train import TrainConfig

recipe = Recipe(
    name="schoffelen2019",
    title="Which sentence was this brain hearing? (MOUS)",
    dataset=Choice("schoffelen2019", {"onsets": "corrected"}),
    preprocess=PreprocessConfig(sfreq=120.0, channels="meg"),
    # A sentence and the word list scrambled from it stay on one side; under the paper's protocol they may part.
    segments=SegmentConfig(protocol="clean", blocks_at="sounds", group_scrambled=True, sfreq=120.0),
    feature=Choice("wav2vec2"),
    batches=BatchConfig(lag=0.150, baseline=0.5, clamp=20.0),
    model=Choice("conv", {"generic_subject": True}),
    train=TrainConfig(lr=3e-4, batch_size=256, max_epochs=200, max_steps_per_epoch=1200, patience=10),
    evaluate=EvaluateConfig(language="nl", spacy_model="nl_core_news_md"),  # Dutch was heard
    seeds=(2036, 2037, 2038),
    notes=(
        "Word lists are kept beside the sentences, as in the paper.",
        "The loader was written from descriptions of the files; compare its notes and counts with the paper before you believe a figure.",
    ),
)
