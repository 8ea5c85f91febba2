"""A recipe: the constants of one experiment, where to find them, and how to change one of them from the command line."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brainspeech import datasets, features, lexicon, losses, models, naming
from brainspeech.batches import BatchConfig
from brainspeech.evaluate import EvaluateConfig
from brainspeech.preprocess import PreprocessConfig
from brainspeech.segments import SegmentConfig
from brainspeech.train import TrainConfig

# What a constructor is given by the flow, not by a recipe.
GIVEN = {"dataset": {"self", "root", "recordings", "stimuli"}, "model": {"self", "n_subjects", "n_features", "n_channels", "n_times"}}
CHOICES = ("dataset", "feature", "model", "loss", "linear_clip", "target_encoder")
FOLDS = (None, "leave_one_out", "leave_subject_out")
CONTEXTS = ("block", "window")
ROWS = ("encoder", "linear_clip", "ridge", "noise", "shuffled", "constant", "ideal")


class NoRecipe(ValueError):
    """There is no recipe of that name, and no such file."""


@dataclass(frozen=True)
class Choice:
    """One of a family by name, with what its constructor takes: a dataset, a feature, a model or a loss.

    Parameters
    ----------
    name : str
        Key of ``DATASETS``, ``FEATURES``, ``MODELS`` or ``LOSSES``. A feature or model of the user's own is ``module:Class``; one that
        stands in the recipe's file is ``f"{__name__}:Class"``.
    options : mapping
        Keyword arguments of the constructor.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RidgeConfig:
    """The ridge reference.

    Parameters
    ----------
    max_lag : float
        Seconds of signal after the sound that an estimate is made from.
    lag_step : float
        Seconds between lags.
    n_components : int
        Principal components of the target that are estimated.
    """

    max_lag: float = 0.5
    lag_step: float = 0.025
    n_components: int = 64

    def __post_init__(self) -> None:
        if not self.max_lag >= 0 or not self.lag_step > 0 or self.n_components < 1:
            raise ValueError(
                "The ridge needs max_lag >= 0 s, lag_step > 0 s and n_components >= 1, "
                f"got {self.max_lag}, {self.lag_step} and {self.n_components}."
            )


@dataclass(frozen=True)
class Recipe:
    """The constants of one experiment.

    Parameters
    ----------
    name, title : str
        Short name, and a sentence that the report opens with.
    dataset : Choice
        Which recordings; ``load`` replaces the lookup by name.
    load : callable, optional
        ``load(root, **dataset.options) -> Dataset`` for data that only this recipe knows.
    subjects : str
        ``all``, ``published``, ``first:3`` or ``1-5,7`` (the dataset's own subject numbers).
    context : {"block", "window"}
        What a feature may hear: its block (the paper's way) or its own window only.
    rows : tuple of str
        Which rows are fitted; ``noise`` and ``shuffled`` are the controls. ``ideal`` is there for simulated data alone.
    target_encoder : Choice, optional
        A network that is trained jointly with the encoder and turns the feature into what is estimated, such as ``deep_mel``.
    folds : {None, "leave_one_out", "leave_subject_out"}
        ``leave_one_out``: every stimulus is once the test split, the next one the valid split. ``leave_subject_out``: every subject is once
        left out of training and tested on the test split. The folds are pooled.
    rescore : mapping of str to (mapping of str to str)
        Additional rows ``encoder_X`` and ``ridge_X``: the same estimates scored with other stimuli in place of those that were heard.
    seeds : tuple of int
        One fit of every row per seed.
    notes : tuple of str
        Sentences about the data or the protocol that belong in the report.
    variants : mapping of str to tuple of str
        Variants of this recipe by name, each a list of settings as ``--set`` takes them; beside those of ``brainspeech.variants``.
    paper : mapping of str to value
        Constants that are otherwise under the paper's protocol, ``{"segments.valid_ratio": 0.1}``; ``settle`` puts them in force. One that
        is set by hand is as it was set.
    """

    name: str
    title: str
    dataset: Choice
    load: Callable[..., datasets.Dataset] | None = None
    subjects: str = "all"
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    feature: Choice = field(default_factory=lambda: Choice("wav2vec2"))
    context: str = "block"
    batches: BatchConfig = field(default_factory=BatchConfig)
    model: Choice = field(default_factory=lambda: Choice("conv", {"generic_subject": True}))
    loss: Choice = field(default_factory=lambda: Choice("clip"))
    target_encoder: Choice | None = None
    linear_clip: Choice = field(default_factory=lambda: Choice("linear_clip"))
    ridge: RidgeConfig = field(default_factory=RidgeConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    rows: tuple[str, ...] = ROWS
    folds: str | None = None
    rescore: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (2036,)
    notes: tuple[str, ...] = ()
    variants: Mapping[str, Sequence[str]] = field(default_factory=dict)
    paper: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [row for row in self.rows if row not in ROWS]
        if unknown or "encoder" not in self.rows:
            raise ValueError(f"{self.name}: rows must contain 'encoder' and be among {', '.join(ROWS)}, got {self.rows}.")
        if self.folds not in FOLDS:
            raise ValueError(f"{self.name}: folds must be None, 'leave_one_out' or 'leave_subject_out', got {self.folds!r}.")
        if self.context not in CONTEXTS:
            raise ValueError(f"{self.name}: context must be one of {', '.join(CONTEXTS)}, got {self.context!r}.")
        if not self.seeds:
            raise ValueError(f"{self.name}: at least one seed is needed.")

    def to_dict(self) -> dict[str, Any]:
        """Give the constants as JSON-able values; ``load`` is left out, it is found again through the recipe's file."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "load"}
        return json.loads(json.dumps(values, default=_plain))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"A recipe holds plain constants, got {type(value).__name__}: {value!r}.")


# ---------------------------------------------------------------------------------------------------------------- finding and changing


def shipped_folder() -> Path:
    """Give the folder of the recipes that come with the package, from a checkout or from an installed wheel."""
    for folder in (Path(__file__).parent / "_shipped" / "recipes", Path(__file__).parent.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError("The shipped recipes are missing; install brainspeech again.")


def find(recipe: str) -> Path:
    """Find the recipe.py of a folder, of a file or of a shipped recipe's name.

    Raises
    ------
    ValueError
        If there is none, with the names that are shipped.
    """
    path = Path(recipe)
    candidates = [path, path / "recipe.py"] if path.exists() else [shipped_folder() / recipe / "recipe.py"]
    for candidate in candidates:
        if candidate.is_file() and candidate.suffix == ".py":
            return candidate.resolve()
    shipped = sorted(p.parent.name for p in shipped_folder().glob("*/recipe.py"))
    raise NoRecipe(f"No recipe {recipe!r}: expected a folder with a recipe.py, a recipe.py, or one of the shipped {', '.join(shipped)}.")


def load(recipe: str) -> Recipe:
    """Load the ``recipe`` that a recipe.py defines.

    Raises
    ------
    ValueError
        If there is no such file, if it cannot be run (with the line), or if it defines no recipe.
    """
    path = find(recipe)
    spec = importlib.util.spec_from_file_location(naming.recipe_module(path), path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a dataclass in the file looks its module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        place = f"{path}, line {line}" if line else str(path)
        raise ValueError(f"{place}: {error}" if isinstance(error, ValueError) else f"{place}: {type(error).__name__}: {error}") from error
    found = getattr(module, "recipe", None)
    if not isinstance(found, Recipe):
        raise ValueError(f"{path} must define `recipe = Recipe(...)`, got {type(found).__name__}.")
    return found


def restore(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Put the constants that a run folder kept (``Recipe.to_dict``) back into the recipe that they were made from."""
    changes: dict[str, Any] = {}
    for name, value in values.items():
        old = getattr(recipe, name, None)
        if name in CHOICES:
            changes[name] = value and Choice(value["name"], value["options"])
        elif dataclasses.is_dataclass(old) and not isinstance(old, type):
            changes[name] = dataclasses.replace(old, **{k: _tuple(v) for k, v in value.items()})
        else:
            changes[name] = _tuple(value)
    return dataclasses.replace(recipe, **changes)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def check(recipe: Recipe, choices: Iterable[str] = CHOICES) -> None:
    """Find what is wrong between the sections of a recipe before anything is computed.

    Parameters
    ----------
    recipe : Recipe
    choices : iterable of str
        Choices by name that are looked at; each loads what is chosen.

    Raises
    ------
    ValueError
        If a choice by name is unknown or has an option that its constructor does not take, if windows are cut at another rate than
        signals have, or if words would be looked up in another language.
    """
    for section in choices:
        choice = getattr(recipe, section)
        if choice is None:
            continue
        known = _options(section, choice.name, recipe.load)
        unknown = [] if known is None else sorted(set(choice.options) - set(known))
        if unknown:
            raise ValueError(
                f"{recipe.name}: {section} {choice.name!r} has no option {', '.join(unknown)}; "
                f"it takes {', '.join(sorted(known or ())) or 'none'}."
            )
    if recipe.segments.sfreq != recipe.preprocess.sfreq:
        raise ValueError(
            f"{recipe.name}: segments.sfreq is {recipe.segments.sfreq:g} Hz and preprocess.sfreq is {recipe.preprocess.sfreq:g} Hz; "
            "windows are cut from the preprocessed signal, so set both to the same."
        )
    told = recipe.evaluate
    try:
        lexicon.check(told.regression, language=told.language, spacy_model=told.spacy_model, phrase_model=told.phrase_model)
    except ValueError as error:
        raise ValueError(f"{recipe.name}: {error}") from error


def settle(recipe: Recipe) -> Recipe:
    """Give the recipe as it is run: what the paper's protocol decides outside of the segments too is put in force, and noted.

    Under ``protocol="paper"`` copies of a segment in a batch are negatives of each other unless the recipe says otherwise, and there is no
    generic subject; and the constants of ``recipe.paper`` hold.
    """
    if recipe.segments.protocol != "paper":
        return recipe
    for path, value in recipe.paper.items():
        recipe = change(recipe, [f"{path}={value}"])  # which also takes it off the list
        recipe = dataclasses.replace(recipe, notes=(*recipe.notes, f"The paper's protocol: {path} is {value}."))
    notes = recipe.notes
    model, loss = recipe.model, recipe.loss
    if loss.name == "clip" and "duplicates" not in loss.options:
        loss = Choice(loss.name, {**loss.options, "duplicates": "negative"})
        notes += ("The paper's protocol: copies of a segment in a batch are negatives of each other.",)
    if model.options.get("generic_subject"):
        model = Choice(model.name, {**model.options, "generic_subject": False})
        notes += ("The paper's protocol: the encoder has no generic subject.",)
    return dataclasses.replace(recipe, model=model, loss=loss, notes=notes)


def change(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """Change constants by ``section.field=value`` (or ``field=value``), as ``--set`` does.

    A value is read as a Python literal, and as text where it is none. In a section that is a choice by name (dataset, feature, model,
    loss, linear_clip) a field is ``name`` or what the constructor takes.

    Raises
    ------
    ValueError
        If a field is unknown (with the names there are) or the value has the wrong type.
    """
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set takes section.field=value, got {setting!r}.")
        path = path.strip()
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if path in ("subjects", "dataset.subjects"):
            value = text.strip()  # 1,2 is no pair of numbers here
        if path in recipe.paper:
            recipe = dataclasses.replace(recipe, paper={key: kept for key, kept in recipe.paper.items() if key != path})
        section, dot, name = path.partition(".")
        if not dot:
            section, name = "", section
        recipe = _change_one(recipe, section, name, value)
    return recipe


def _change_one(recipe: Recipe, section: str, name: str, value: Any) -> Recipe:
    if section == "dataset" and name == "subjects":
        section = ""  # architecture: dataset.subjects; kept beside the choice since the recipe, not the dataset, selects
    if not section:
        return _replace(recipe, name, value, where="the recipe")
    sections = {f.name for f in dataclasses.fields(recipe) if dataclasses.is_dataclass(getattr(recipe, f.name))}
    if section not in sections:
        raise ValueError(f"Unknown section {section!r} in --set {section}.{name}; sections are {', '.join(sorted(sections))}.")
    part = getattr(recipe, section)
    if not isinstance(part, Choice):
        return _put(recipe, section, _replace(part, name, value, where=f"section {section!r}"))
    if name == "name":  # to name what is there already leaves its options: a variant's loss.name=clip keeps the recipe's temperature
        return recipe if part.name == str(value) else _put(recipe, section, Choice(str(value), {}))
    known = _options(section, part.name, recipe.load)
    if known is None:
        return _put(recipe, section, Choice(part.name, {**part.options, name: value}))
    if name not in known:
        raise ValueError(f"Unknown field {name!r} in section {section!r} ({part.name}); fields are {', '.join(['name', *sorted(known)])}.")
    hint, default = known[name]
    value = _fit(value, hint, part.options.get(name, default), name=name, where=f"section {section!r} ({part.name})")
    return _put(recipe, section, Choice(part.name, {**part.options, name: value}))


def _put(recipe: Recipe, section: str, part: Any) -> Recipe:
    changes: dict[str, Any] = {section: part}
    return dataclasses.replace(recipe, **changes)


def _options(section: str, name: str, loader: Callable | None) -> dict[str, tuple[Any, Any]] | None:
    """What the constructor behind a choice takes, {name: (type, default)}; None if it takes anything."""
    families = {"dataset": datasets.DATASETS, "feature": features.FEATURES, "loss": losses.LOSSES}
    family = models.TARGET_ENCODERS if section == "target_encoder" else families.get(section, models.MODELS)
    target: Callable | None = loader if section == "dataset" else None
    if ":" in name and section != "dataset":  # module:Class of the user's own
        finders = {"feature": features.find, "loss": losses.find, "target_encoder": models.find_target}
        target = finders.get(section, models.find)(name)
    if target is None:
        if name not in family:
            raise ValueError(f"Unknown {section} {name!r}; expected one of {', '.join(sorted(family))}.")
        module, attribute = family[name].split(":")
        target = getattr(importlib.import_module(module), attribute)
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    try:
        hints = typing.get_type_hints(target.__dict__.get("__init__", target) if isinstance(target, type) else target)
    except NameError:  # a user's annotation that only a type checker understands
        hints = {}
    given = GIVEN["dataset" if section == "dataset" else "model"]
    return {p.name: (hints.get(p.name, Any), None if p.default is p.empty else p.default) for p in parameters if p.name not in given}


def _replace(part: Any, name: str, value: Any, *, where: str) -> Any:
    names = [f.name for f in dataclasses.fields(part)]
    if name not in names:
        raise ValueError(f"Unknown field {name!r} in {where}; fields are {', '.join(names)}.")
    if isinstance(part, Recipe) and name in CHOICES and not (name == "target_encoder" and value is None):
        there = getattr(part, name)
        return part if there is not None and there.name == str(value) else _put(part, name, Choice(str(value), {}))
    value = _fit(value, typing.get_type_hints(type(part))[name], getattr(part, name), name=name, where=where)
    return dataclasses.replace(part, **{name: value})


def _fit(value: Any, hint: Any, old: Any, *, name: str, where: str) -> Any:
    """Give a value the type that a field takes: 5 is a float where one is wanted, and one of several where several are."""
    alternatives = [value]
    if isinstance(value, list):
        alternatives.append(tuple(value))
    if type(value) is int:
        alternatives.append(float(value))
    if isinstance(value, int | float):
        alternatives.append(str(value))
    if isinstance(value, str) and "," in value:
        alternatives.insert(0, tuple(part.strip() for part in value.split(",")))
    for candidate in [*alternatives, *((a,) for a in alternatives if not isinstance(a, list | tuple))]:
        if _accepts(hint, candidate):
            return candidate
    raise ValueError(f"{name} in {where} takes {_words(hint)}, such as {old!r}; got {type(value).__name__}: {value!r}.")


def _accepts(hint: Any, value: Any) -> bool:
    """Whether a type annotation allows a plain value."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_accepts(h, value) for h in inside)
    if origin is not None and isinstance(origin, type) and isinstance(value, origin) and not isinstance(value, str):
        return isinstance(value, Mapping) or all(_accepts(inside[0], v) for v in typing.cast(Iterable, value))
    if origin is not None or isinstance(value, bool) is not (hint is bool):
        return False
    return isinstance(value, hint)


def _words(hint: Any) -> str:
    inside = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_words(h) for h in inside)
    return "None" if hint is type(None) else str(hint) if inside else getattr(hint, "__name__", str(hint))
