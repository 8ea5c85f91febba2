"""Losses by name: (estimates, candidates) -> LossOutput."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes seconds to import: only what builds a loss pays for it
    from .base import Loss

LOSSES = {
    "clip": "brainspeech.losses.clip:ClipLoss",
    "clip_symmetric": "brainspeech.losses.clip:ClipSymmetricLoss",
    "dcl": "brainspeech.losses.dcl:DclLoss",
    "dclw": "brainspeech.losses.dcl:DclwLoss",
    "cmim": "brainspeech.losses.cmim:CmimLoss",
    "siglip": "brainspeech.losses.siglip:SiglipLoss",
    "isogclr": "brainspeech.losses.isogclr:IsogclrLoss",
    "simclr": "brainspeech.losses.simclr:SimclrLoss",
    "mv_infonce": "brainspeech.losses.mv_infonce:MvInfonceLoss",
    "mv_dhel": "brainspeech.losses.mv_dhel:MvDhelLoss",
    "sdcon": "brainspeech.losses.sdcon:SdconLoss",
    "mochi": "brainspeech.losses.mochi:MochiLoss",
    "mse": "brainspeech.losses.mse:MseLoss",
}


def build(name: str, **config) -> Loss:
    """Build a loss by name.

    Parameters
    ----------
    name : str
        One of ``LOSSES``.
    **config
        The options of that loss's class; the returned module keeps them, defaults included, as ``.config``.

    Raises
    ------
    ValueError
        If no loss has that name, or if it has no such option.
    """
    if name not in LOSSES:
        raise ValueError(f"Loss must be one of {', '.join(sorted(LOSSES))}, got {name!r}.")
    module, attribute = LOSSES[name].split(":")
    loss_class = getattr(import_module(module), attribute)
    signature = inspect.signature(loss_class)
    try:
        bound = signature.bind(**config)
    except TypeError as error:
        raise ValueError(f"Loss {name!r}: {error}. Its options are {', '.join(signature.parameters)}.") from error
    bound.apply_defaults()
    loss = loss_class(**bound.arguments)
    loss.name = name
    loss.config = dict(bound.arguments)
    return loss


__all__ = ["LOSSES", "build"]
