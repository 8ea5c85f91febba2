"""A class by its name: one of a family's literal dict, or ``module:Class`` of the user's own."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any


def find(what: str, name: str, known: Mapping[str, str], base: type) -> Any:
    """Find the class behind a name.

    Parameters
    ----------
    what : str
        What such a class is called in errors, such as "model".
    known : mapping of str to str
        {name: "module:Class"}.
    base : type
        What the class has to be a subclass of.

    Raises
    ------
    ValueError
        If there is none, or if it is no subclass of ``base``.
    """
    if name not in known and ":" not in name:
        raise ValueError(f"{what.capitalize()} must be one of {', '.join(sorted(known))}, or 'module:Class' of your own, got {name!r}.")
    module, attribute = known.get(name, name).split(":", 1)
    try:
        found = getattr(import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(
            f"The {what} {name!r} was not found ({error}). Is its module where Python looks (PYTHONPATH), or installed?"
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"The {what} {name!r} must be a subclass of {base.__module__}.{base.__name__}, got {found!r}.")
    return found


def build(what: str, name: str, of_class: type, config: Mapping[str, Any]) -> Any:
    """Make a module of a class; it keeps its ``name`` and, defaults included, its ``config``.

    Raises
    ------
    ValueError
        If the class does not take an option, or needs one that is not there.
    """
    signature = inspect.signature(of_class)
    try:
        bound = signature.bind(**config)
    except TypeError as error:
        raise ValueError(f"{what.capitalize()} {name!r}: {error}. Its options are {', '.join(signature.parameters)}.") from error
    bound.apply_defaults()
    module = of_class(**bound.arguments)
    module.name = name
    module.config = dict(bound.arguments)
    return module
