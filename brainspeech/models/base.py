"""What every encoder has in common.

Shapes: B segments, C channels, F features, T times, S subjects. signal (B, C, T), positions (B, C, 2) in [0, 1] or NaN,
subject (B,) in 0..S-1 or -1 for a subject that was not in the training set, channel_mask (B, C), True = there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from brainspeech.host import Known, at_hand


class Encoder(nn.Module):
    """Map signal (B, C, T), positions (B, C, 2), subject (B,) and channel_mask (B, C) to an estimate (B, F, T).

    One whose forward has the keyword ``known`` is given what the host knows of a batch (``host.Known``), and gives it on to layers that
    would otherwise look at the numbers of positions and subjects, for which a GPU has to be waited for.

    Attributes
    ----------
    name, config : str, dict
        What ``models.build`` made it from.
    """

    name: str = ""
    config: dict[str, Any]


class TargetEncoder(nn.Module):
    """Map features of the sound (N, F, T) to what an encoder estimates (N, n_outputs, T); trained jointly with it.

    Attributes
    ----------
    n_outputs : int
        The ``n_features`` of the encoder.
    name, config : str, dict
        What ``models.build_target`` made it from.
    """

    n_outputs: int
    name: str = ""
    config: dict[str, Any]


def check_inputs(signal: Tensor, positions: Tensor, subject: Tensor, channel_mask: Tensor | None) -> None:
    """Raise ValueError where the shapes of an encoder's inputs do not belong together."""
    if signal.ndim != 3:
        raise ValueError(f"Signal must be (B, C, T), got {tuple(signal.shape)}.")
    n_segments, n_channels, _ = signal.shape
    if tuple(positions.shape) != (n_segments, n_channels, 2):
        raise ValueError(
            f"Positions of a signal {tuple(signal.shape)} must be {(n_segments, n_channels, 2)}, got {tuple(positions.shape)}."
        )
    if tuple(subject.shape) != (n_segments,):
        raise ValueError(f"Subject must have one index per segment, {(n_segments,)}, got {tuple(subject.shape)}.")
    if channel_mask is not None and tuple(channel_mask.shape) != (n_segments, n_channels):
        raise ValueError(f"Channel mask must be {(n_segments, n_channels)}, got {tuple(channel_mask.shape)}.")


def silence_absent(signal: Tensor, channel_mask: Tensor | None) -> Tensor:
    """Set masked channels to 0; for encoders that have a weight for each channel."""
    return signal if channel_mask is None else signal.masked_fill(~channel_mask.bool()[:, :, None], 0.0)


def check_subjects(subject: Tensor, n_subjects: int, known: Known | None = None) -> bool:
    """Raise ValueError where an index is neither -1 nor in the table; True if a subject of the batch may be unseen (-1).

    Of indices on a GPU of which nothing is known beforehand, it says True without a look.
    """
    if subject.numel() == 0:
        return False
    if known is None and not at_hand(subject):
        return True
    low, high = (int(bound) for bound in subject.aminmax()) if known is None else known.subjects
    if low < -1 or high >= n_subjects:
        raise ValueError(
            f"Subject indices must lie in 0..{n_subjects - 1}, or be -1 for a subject that was not in the training set, got {low}..{high}."
        )
    return low < 0


def takes_known(encoder: Callable[..., Tensor]) -> bool:
    """Whether an encoder's forward has the keyword ``known``; one that is compiled or wrapped says what the encoder inside says."""
    parameters = inspect.signature(getattr(encoder, "forward", encoder)).parameters
    if "known" in parameters:
        return True
    passes_on = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    inner = getattr(encoder, "_orig_mod", None) or getattr(encoder, "module", None)
    return passes_on and isinstance(inner, nn.Module) and takes_known(inner)


def estimator(encoder: Callable[..., Tensor]) -> Callable[[Any], Tensor]:
    """Give the function that calls an encoder with a ``Batch``; whether it takes ``known`` is found out here, once."""
    takes = takes_known(encoder)

    def estimate(batch: Any) -> Tensor:
        keywords = {"known": getattr(batch, "known", None)} if takes else {}
        return encoder(batch.signal, batch.positions, batch.subject, channel_mask=batch.channel_mask, **keywords)

    return estimate
