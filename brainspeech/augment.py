"""Transforms of a training batch's signal, most of them braindecode's; off unless ``TrainConfig.augment`` names some.

    TrainConfig(augment=(("ChannelsDropout", {"probability": 0.5, "p_drop": 0.2}), ("TimeShift", {"max_shift": 0.05})))

Each transform takes every segment with its ``probability`` (0.5 if it is not given), one after the other in the order of the list, on the
signal that the encoder would see: in IQRs of its channel, at the batches' rate. What is drawn follows from the fit's seed, the epoch and
the step alone, so a resumed fit draws what it would have drawn.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from brainspeech.host import upload

# Those of braindecode.augmentation that change the signal and nothing else.
FROM_BRAINDECODE = (
    "AmplitudeScale",
    "ChannelsDropout",
    "FrequencyShift",
    "GaussianNoise",
    "MaskEncoding",
    "SignFlip",
    "SmoothTimeMask",
)
TRANSFORMS = (*FROM_BRAINDECODE, "TimeShift")
# Others take the signal away from what it is paired with, or distort it.
REFUSED = {
    "BandstopFilter": "its filter of 3.3 s is longer than a window",
    "ChannelsShuffle": "its channels would no longer be where their positions say",
    "ChannelsSymmetry": "its channels would no longer be where their positions say",
    "FTSurrogate": "a signal of other phases does not follow the sound any more",
    "Mixup": "it mixes segments, and with them their targets",
    "SegmentationReconstruction": "it puts segments together from pieces of others",
    "TimeReverse": "the sound does not run backwards with it",
}
PROBABILITY = 0.5

Steps = tuple[tuple[str, dict[str, Any]], ...]


def check(steps: Iterable[Any]) -> Steps:
    """Bring a list of names, or of (name, options), to its one form, without importing braindecode.

    Raises
    ------
    ValueError
        If a transform is unknown, or is none of the signal alone (with the reason).
    """
    checked = []
    for step in steps:
        name, options = (step, {}) if isinstance(step, str) else step if len(step) == 2 else (None, None)
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise ValueError(f"augment takes names or (name, options), such as ('GaussianNoise', {{'std': 0.1}}), got {step!r}.")
        if name in REFUSED:
            raise ValueError(f"{name} cannot be used as an augmentation here: {REFUSED[name]}.")
        if name not in TRANSFORMS:
            raise ValueError(f"Augmentations must be among {', '.join(TRANSFORMS)}, got {name!r}.")
        checked.append((name, dict(options)))
    return tuple(checked)


class Augmentation:
    """The transforms of a fit.

    Parameters
    ----------
    steps : iterable
        What ``check`` takes.
    sfreq : float
        Rate of the signal in Hz.

    Raises
    ------
    ValueError
        If a transform is unknown or does not take its options, before anything is trained.
    """

    def __init__(self, steps: Iterable[Any], *, sfreq: float):
        self.steps, self.sfreq = check(steps), float(sfreq)
        for name, options in self.steps:
            _make(name, options, self.sfreq, seed=0)

    def __call__(self, signal: Tensor, channel_mask: Tensor, *, seed: Sequence[int]) -> Tensor:
        """Transform a batch's signal.

        Parameters
        ----------
        signal : Tensor, shape (B, C, T)
            It is not changed.
        channel_mask : Tensor, shape (B, C)
            Channels that are not there stay 0.
        seed : sequence of int
            Not negative; the same numbers draw the same.

        Returns
        -------
        Tensor, shape (B, C, T)
        """
        for (name, options), child in zip(self.steps, np.random.SeedSequence(list(seed)).spawn(len(self.steps)), strict=True):
            signal = _make(name, options, self.sfreq, seed=int(child.generate_state(1)[0]))(signal)
        return signal.masked_fill(~channel_mask[:, :, None], 0.0)


def _make(name: str, options: Mapping[str, Any], sfreq: float, *, seed: int) -> Callable[[Tensor], Tensor]:
    transform = TimeShift if name == "TimeShift" else getattr(_import_transforms(), name)
    parameters = inspect.signature(transform).parameters
    given = {"probability": PROBABILITY, **options, "random_state": seed}
    if "sfreq" in parameters:
        given["sfreq"] = sfreq
    takes = [p for p in parameters if p not in ("random_state", "sfreq")]
    if set(options) - set(takes):
        raise ValueError(f"The augmentation {name} takes {', '.join(takes)}, got {', '.join(sorted(set(options) - set(takes)))}.")
    try:
        return transform(**given)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"The augmentation {name} cannot be made with {dict(options)}: {error}") from error


def _import_transforms() -> Any:
    """Import braindecode's transforms, without what its import says about other libraries' futures."""
    with warnings.catch_warnings():
        # wfdb, which braindecode imports, under pandas 3; and the montage that one of its networks makes, under MNE 1.13.
        warnings.filterwarnings("ignore", message="The inplace keyword in DataFrame.set_index is deprecated")
        warnings.filterwarnings("ignore", message="Montage name 'standard_1020' is deprecated", category=FutureWarning)
        import braindecode.augmentation
    return braindecode.augmentation


class TimeShift:
    """Move segments in time against their targets; braindecode has no such transform.

    The brain's latency differs between listeners and from moment to moment, so a segment that answers a little earlier or later is as
    good an example. What comes in at an edge repeats the edge's sample.

    Parameters
    ----------
    probability : float
        Share of the segments that are moved.
    max_shift : float
        Largest shift in seconds to either side; all channels of a segment move by the same number of whole samples.
    sfreq : float
        Rate of the signal in Hz.
    random_state : int
        Seed.
    """

    def __init__(self, probability: float, max_shift: float = 0.05, *, sfreq: float, random_state: int):
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must lie between 0 and 1, got {probability}.")
        if not (math.isfinite(max_shift) and max_shift * sfreq >= 1):
            raise ValueError(f"max_shift must be at least a sample ({1 / sfreq:g} s), got {max_shift}.")
        self.probability, self.reach, self.random_state = probability, int(max_shift * sfreq + 1e-6), random_state

    def __call__(self, signal: Tensor) -> Tensor:
        """Move a batch (B, C, T)."""
        n_segments, n_channels, n_times = signal.shape
        rng = np.random.default_rng(self.random_state)
        shift = rng.integers(-self.reach, self.reach + 1, n_segments) * (rng.random(n_segments) < self.probability)
        source = np.clip(np.arange(n_times) - shift[:, None], 0, n_times - 1)
        index = upload(source, signal.device)[:, None].expand(-1, n_channels, -1)
        return signal.gather(2, index)
