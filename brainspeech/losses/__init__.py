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


def find(name: str) -> type[Loss]:
    """Find the class behind a name of ``LOSSES``, or behind ``module:Class`` of the user's own.

    Raises
    ------
    ValueError
        If there is none, or if it is no ``Loss``.
    """
    from .base import Loss

    if name not in LOSSES and ":" not in name:
        raise ValueError(f"Loss must be one of {', '.join(sorted(LOSSES))}, or 'module:Class' of your own, got {name!r}.")
    module, attribute = LOSSES.get(name, name).split(":", 1)
    try:
        loss = getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(
            f"The loss {name!r} was not found ({error}). Is its module where Python looks (PYTHONPATH), or installed?"
        ) from error
    if not (isinstance(loss, type) and issubclass(loss, Loss)):
        raise ValueError(f"The loss {name!r} must be a subclass of brainspeech.losses.base.Loss, got {loss!r}.")
    return loss


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
    signature = inspect.signature(loss_class)
    if "queue" in config and "queue" not in signature.parameters:
        others = [other for other in LOSSES if "queue" in inspect.signature(find(other)).parameters]
        raise ValueError(f"Loss {name!r} has no queue, got queue={config['queue']!r}. Losses with one are {', '.join(others)}.")
    try:
        bound = signature.bind(**config)
    except TypeError as error:
        raise ValueError(f"Loss {name!r}: {error}. Its options are {', '.join(signature.parameters)}.") from error
    bound.apply_defaults()
    loss = loss_class(**bound.arguments)
    loss.name = name
    loss.config = dict(bound.arguments)
    return loss


__all__ = ["LOSSES", "build", "find"]
