"""Losses by name: (estimates, candidates) -> LossOutput."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from brainspeech import naming

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


def find(name: str) -> type[Loss]:
    """Find the class behind a name of ``LOSSES``, or behind ``module:Class`` of the user's own.

    Raises
    ------
    ValueError
        If there is none, or if it is no ``Loss``.
    """
    from .base import Loss

    return naming.find("loss", name, LOSSES, Loss)


def build(name: str, **config) -> Loss:
    """Build a loss by name.

    Parameters
    ----------
    name : str
        One of ``LOSSES``, or ``module:Class`` of the user's own.
    **config
        The options of that loss's class; the returned module keeps them, defaults included, as ``.config``.

    Raises
    ------
    ValueError
        If no loss has that name, or if it has no such option.
    """
    loss_class = find(name)
    if "queue" in config and "queue" not in inspect.signature(loss_class).parameters:
        others = [other for other in LOSSES if "queue" in inspect.signature(find(other)).parameters]
        raise ValueError(f"Loss {name!r} has no queue, got queue={config['queue']!r}. Losses with one are {', '.join(others)}.")
    return naming.build("loss", name, loss_class, config)


__all__ = ["LOSSES", "build", "find"]
