"""A class by its name: one of a family's literal dict, or ``module:Class`` of the user's own.

A name that comes from a file (a saved folder, a download) imports nothing: a class of the user's own is found only where its module was
imported already.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from collections.abc import Mapping
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

# How the module of a recipe's file begins; see ``recipe_module``.
RECIPE = "brainspeech_recipe_"


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
    module = of_class(*bound.args, **bound.kwargs)
    module.name = name
    # What a class takes by **options stands among the others, so that the same call makes it again.
    taken = dict(bound.arguments)
    further = [taken.pop(p.name) for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD and p.name in taken]
    module.config = taken | (further[0] if further else {})
    return module


# ------------------------------------------------------------------------------------------------- classes that a saved file speaks of


def is_own(name: Any) -> bool:
    """Whether a name is ``module:Class``."""
    return isinstance(name, str) and ":" in name


def at_hand(name: Any, known: Mapping[str, str]) -> bool:
    """Whether a name is the package's own, or a class of a module that was imported already, or of the script that runs."""
    if not is_own(name):
        return isinstance(name, str) and name in known
    module, attribute = name.split(":", 1)
    return module in sys.modules and (module != "__main__" or hasattr(sys.modules[module], attribute))  # every process has a __main__


def check_at_hand(what: str, name: str, known: Mapping[str, str], *, where: str) -> None:
    """Raise RuntimeError where a saved file names a class of somebody's own whose module was not imported, with what to do."""
    if is_own(name) and not at_hand(name, known):
        raise RuntimeError(
            f"{where}: the {what} {name!r} is somebody's own; import its module first, if you trust it: {how_to_import(name)}. A saved "
            "folder holds no code, and nothing is imported because a file names it."
        )


def recipe_module(path: Path) -> str:
    """Name the module of a recipe's file after its folder, and after the file unless that is recipe.py: a name as Python's own are."""
    named = "" if path.stem == "recipe" else f"__{path.stem}"
    return RECIPE + re.sub(r"\W", "_", path.resolve().parent.name + named)


def _recipe_file(module: str) -> str:
    """Give the folder and file of a recipe's module, as far as its name says where it was not imported."""
    place = getattr(sys.modules.get(module), "__file__", None)
    if place:
        return "/".join(Path(place).parts[-2:])
    folder, _, stem = module.removeprefix(RECIPE).partition("__")
    return f"{folder}/{stem or 'recipe'}.py"


def how_to_import(name: str) -> str:
    """Give the line of Python that makes a class ``module:Class`` known."""
    module = name.split(":")[0]
    if module == "__main__":
        return f"class {name.split(':')[1]}: ...  # as it stood in the script or notebook"
    if module.startswith(RECIPE):
        return f'brainspeech.recipe.load("{_recipe_file(module)}")'
    return f"import {module}"


def origin(name: str) -> str:
    """Say where a class ``module:Class`` comes from: an installed package and its version, or a file and its SHA-256; no folder is named.

    Empty where its module was not imported.
    """
    module = name.split(":")[0]
    file = _file(module)
    if file is None:
        return ""
    path = Path(str(sys.modules[module].__file__))
    found = metadata.packages_distributions().get(module.split(".")[0], [])
    if found and "site-packages" in path.parts:
        return f"the package {found[0]} {metadata.version(found[0])}"
    within = _recipe_file(module) if module.startswith(RECIPE) else "/".join([*module.split(".")[:-1], file])
    return f"the file {within}, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}"


def _file(module: str) -> str | None:
    """Give the name of the file that an imported module stands in; None where there is none."""
    place = getattr(sys.modules.get(module), "__file__", None)
    return Path(place).name if place and Path(place).is_file() else None
