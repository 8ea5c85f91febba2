"""Parameters in the manner of scikit-learn, without importing it: kept as given, read and set by name, a field as ``section__field``."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Self

import torch

from brainspeech import features, losses, models
from brainspeech import recipe as recipes
from brainspeech.losses.joint import Joint
from brainspeech.recipe import Choice

CHOICES = ("model", "loss", "feature", "target_encoder")
CONFIGS = ("preprocess", "segments", "batches", "train")
PARAMETERS = (*CHOICES, "context", *CONFIGS, "lag", "seed", "device")
# Where the names of a choice stand, and what builds one.
FAMILIES = {
    "model": (models.MODELS, "models.build"),
    "loss": (losses.LOSSES, "losses.build"),
    "feature": (features.FEATURES, "features.build"),
    "target_encoder": (models.TARGET_ENCODERS, "models.build_target"),
}


class Parameters:
    """What scikit-learn asks of an estimator besides its verbs; the constructor of a subclass stores its parameters as they are.

    They are ``PARAMETERS``, and those of a constructor of somebody's own, which hands on the others as ``**options`` or has none of them.
    """

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """List the parameters."""
        own = [p for name, p in inspect.signature(cls.__init__).parameters.items() if name != "self"]
        passes_on = any(p.kind is p.VAR_KEYWORD for p in own)
        named = [p.name for p in own if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        return tuple(dict.fromkeys([*(PARAMETERS if passes_on else ()), *named]))

    @classmethod
    def without_default(cls) -> list[str]:
        """List the parameters that have to be given."""
        return [name for name in cls.names() if name not in cls._defaults()]

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            if "__init__" in vars(base) and base is not object:
                parameters = inspect.signature(base.__init__).parameters.values()  # type: ignore[misc]
                found |= {p.name: p.default for p in parameters if p.default is not p.empty}
        return found

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Give the parameters; ``deep`` adds their fields as ``train__lr``."""
        values = {name: getattr(self, name) for name in self.names()}
        if deep:
            for name in [name for name in (*CHOICES, *CONFIGS) if name in values]:
                values |= {f"{name}__{key}": value for key, value in fields_of(values[name]).items()}
        return values

    def set_params(self, **values: Any) -> Self:
        """Set parameters, or fields of them: ``set_params(train__lr=1e-3)``.

        Raises
        ------
        ValueError
            If there is no such parameter.
        """
        for name in sorted(values, key=lambda name: "__" in name):  # wholes before their fields
            part, nested, key = name.partition("__")
            if part not in self.names() or (nested and part not in (*CHOICES, *CONFIGS)):
                raise ValueError(f"{type(self).__name__} has no parameter {name!r}; it has {', '.join(self.names())}.")
            setattr(self, part, with_field(getattr(self, part), key, values[name], where=name) if nested else values[name])
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "encoder_")

    def check_fitted(self) -> None:
        """Raise scikit-learn's NotFittedError, which is a ValueError, before a fit."""
        if not self.__sklearn_is_fitted__():
            from sklearn.exceptions import NotFittedError

            raise NotFittedError(f"This {type(self).__name__} is not fitted: call fit(), load() or from_pretrained().")

    def __repr__(self) -> str:
        usual, values = self._defaults(), self.get_params(deep=False)
        changed = [f"{name}={value!r}" for name, value in values.items() if name not in usual or value != usual[name]]
        return f"{type(self).__name__}({', '.join(changed)})"

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags

        inputs = InputTags(two_d_array=False, three_d_array=True)
        return Tags(estimator_type=None, target_tags=TargetTags(required=True), input_tags=inputs)


def as_choice(value: Any, family: str) -> Choice | None:
    """Give what stands for a parameter in a recipe; None for a target encoder that is not there."""
    if isinstance(value, Choice) or (value is None and family == "target_encoder"):
        return value
    if isinstance(value, str):
        return Choice(value)
    if isinstance(value, Joint):
        raise ValueError("A Joint is given as its two parts: loss= and target_encoder=.")
    known, builder = FAMILIES[family]
    if isinstance(value, type | features.Feature):
        found = value if isinstance(value, type) else type(value)
        place = f"{found.__module__}:{found.__qualname__}"
        return Choice(next((name for name, own in known.items() if own == place), place))
    name, config = getattr(value, "name", None), getattr(value, "config", None)
    if isinstance(value, torch.nn.Module) and name and isinstance(config, dict):
        return Choice(name, {key: v for key, v in config.items() if key not in recipes.GIVEN["model"]})
    raise ValueError(f"{family} must be a name, a Choice, or what {builder} made, got {value!r}.")


def fields_of(value: Any) -> dict[str, Any]:
    """Give the fields of a config, or the name and the options of a choice; nothing of any other object."""
    if isinstance(value, Choice):
        return {"name": value.name, **value.options}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return {}


def with_field(part: Any, key: str, value: Any, *, where: str) -> Any:
    """Give a parameter with one field changed."""
    if isinstance(part, str | Choice):
        choice = Choice(part) if isinstance(part, str) else part
        return Choice(str(value)) if key == "name" else Choice(choice.name, {**choice.options, key: value})
    if not dataclasses.is_dataclass(part) or isinstance(part, type) or key not in fields_of(part):
        raise ValueError(
            f"SpeechDecoder has no parameter {where!r}; {where.partition('__')[0]} has {', '.join(fields_of(part)) or 'no fields'}."
        )
    return dataclasses.replace(part, **{key: value})
