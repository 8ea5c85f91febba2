"""Real EEG of one listener between two talkers: which 3 s of the attended talker's envelope was heard?

Five trials of 60 s. Every trial is left out once: it is the test split, the next trial is the valid split (early stopping, ridge alpha),
the other three are the train split. The five folds are pooled: 100 segments of 3 s without overlap.
"""

import os

import numpy as np
import scipy.io
import scipy.signal

from brainspeech.batches import BatchConfig
from brainspeech.datasets.arrays import ArraysDataset
from brainspeech.preprocess import PreprocessConfig
from brainspeech.recipe import Choice, Recipe, RidgeConfig
from brainspeech.segments import SegmentConfig
from brainspeech.train import TrainConfig

TRIALS = range(1, 6)
SFREQ = 128.0  # Hz, EEG and envelopes
SECONDS = 60.0
BAND = (1.0, 8.0)  # Hz: where the cortex follows the envelope


def load(root: str | os.PathLike, *, montage: str = "biosemi128") -> ArraysDataset:
    """Open the folder of ``1_1.mat`` ... ``1_5.mat``, ``F_env.mat``, ``M_env.mat`` and ``competing_speaker_order.mat``."""
    order_file = os.path.join(root, "competing_speaker_order.mat")
    if not os.path.isfile(order_file):
        raise FileNotFoundError(f"cocktail_eeg: {order_file} is missing; the recipe's README says where the files come from.")
    order = scipy.io.loadmat(order_file)["blk1_M_Order"].ravel()
    attended = scipy.io.loadmat(os.path.join(root, "F_env.mat"))["stim1"].ravel()
    ignored = scipy.io.loadmat(os.path.join(root, "M_env.mat"))["stim1"].ravel()
    stimuli = {f"attended-{t}": (_band_pass(attended[t - 1]), SFREQ) for t in TRIALS}
    stimuli |= {f"ignored-{t}": (_band_pass(ignored[order[t - 1] - 1]), SFREQ) for t in TRIALS}
    recordings = [
        {
            "subject": "1",
            "run": str(t),
            "signal": f"1_{t}.mat",
            "key": "eeg",
            "extra": {"mast": ("M1", "M2")},
            "time_axis": 0,
            "sfreq": SFREQ,
            "unit": "uV",
            "montage": montage,
            "events": [{"kind": "sound", "onset": 0.0, "duration": SECONDS, "audio": f"attended-{t}", "audio_onset": 0.0}],
        }
        for t in TRIALS
    ]
    return ArraysDataset(root, name="cocktail_eeg", recordings=recordings, stimuli=stimuli)


def _band_pass(envelope: np.ndarray) -> np.ndarray:
    """Give the envelope's part in the band of the EEG, zero phase, as one row."""
    sos = scipy.signal.butter(2, BAND, "bandpass", fs=SFREQ, output="sos")
    return scipy.signal.sosfiltfilt(sos, envelope.ravel())[None].astype(np.float32)


recipe = Recipe(
    name="cocktail_eeg",
    title="Which 3 s of the attended talker was this listener following?",
    dataset=Choice("cocktail_eeg"),
    load=load,
    preprocess=PreprocessConfig(sfreq=64.0, highpass=BAND[0], lowpass=BAND[1], reference=("M1", "M2")),
    segments=SegmentConfig(tmin=0.0, tmax=3.0, stride=0.5, test_anchors="grid", test_stride=3.0, sfreq=64.0),
    folds="leave_one_out",
    feature=Choice("precomputed"),
    # A window of band-passed EEG has no baseline to take off.
    batches=BatchConfig(lag=0.0, baseline=None, clamp=20.0),
    model=Choice("conv", {"n_virtual": 16, "hidden": 16, "depth": 2, "n_harmonics": 4}),
    linear_clip=Choice("linear_clip", {"rank": 4, "lags": tuple(range(0, 17))}),
    ridge=RidgeConfig(max_lag=0.25, lag_step=1 / 64),
    train=TrainConfig(lr=1e-3, batch_size=32, max_epochs=60, max_steps_per_epoch=50, patience=10, weight_decay=1e-2),
    rescore={"ignored": {f"attended-{t}": f"ignored-{t}" for t in TRIALS}},
    notes=(
        "The files do not say where the 128 electrodes were: MNE's biosemi128 cap is assumed.",
        "One listener, five trials: intervals rest on five blocks and say nothing about other listeners.",
    ),
)
