"""What a program's settings are made of, and the names that follow from the nesting."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    CliPositionalArg,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from generation.weights.sources import ShortNames

_POSITIONAL = get_args(CliPositionalArg[str])[1]

ANY_NAME = "any name"
"""Marks a field, by `Annotated`, that names a user's own files, which may be called anything."""


class Part(BaseModel):
    """Base of a group of settings: `port` in the part `axon` is `--axon.port`.

    The text below a field is its help.

    Attributes:
        SHORT: Which of its settings a value of the group itself is, as `--engines ray`.
    """

    SHORT: ClassVar[str | None] = None

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class Settings(BaseSettings):
    """Base of a program's settings; `miner.settings.reader` says how it is filled.

    A validator may raise SetupError, which reaches the operator as it is.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        validate_by_name=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @classmethod
    def base_values(cls, given: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Returns values that take the place of the fields' defaults, and what they come from.

        Args:
            given: What the command line, the environment and the file say, nested, not validated.
        """
        return "", {}

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leaves the environment to the reader: a value made in code holds what it is given."""
        return (init_settings,)


@dataclass(frozen=True)
class Setting:
    """One name that an operator may set.

    Attributes:
        path: Keys from the outermost model to the value.
        field: What pydantic knows of it.
    """

    path: tuple[str, ...]
    field: FieldInfo

    @cached_property
    def name(self) -> str:
        """The dotted name, as in the file."""
        return ".".join(self.path)

    @cached_property
    def flag(self) -> str:
        """What messages call it."""
        return self.name.upper() if self.positional else f"--{self.name}"

    @property
    def positional(self) -> bool:
        """Whether it stands on the command line without a name."""
        return _POSITIONAL in self.field.metadata

    @property
    def any_name(self) -> bool:
        """Whether its text need not be UTF-8; whoever shows it calls `printable`."""
        return ANY_NAME in self.field.metadata

    @cached_property
    def kinds(self) -> frozenset[Any]:
        """The types and literal values that its annotation is made of."""
        return frozenset(_kinds(self.field.annotation))

    @property
    def secret(self) -> bool:
        """Whether its value is never shown."""
        return SecretStr in self.kinds

    @property
    def text(self) -> bool:
        """Whether it holds text, so that `007` in a file is a mistake."""
        return bool({str, SecretStr, Path} & self.kinds)

    @property
    def composed(self) -> bool:
        """Whether it holds a list, or a whole model."""
        return any(
            isinstance(kind, type) and issubclass(kind, list | tuple | BaseModel)
            for kind in self.kinds
        )

    @property
    def short_names(self) -> ShortNames | None:
        """The short names of the models that it may hold, if there are any."""
        return next((mark for mark in self.field.metadata if isinstance(mark, ShortNames)), None)

    @cached_property
    def takes(self) -> str:
        """What it takes, in a word: N, X, PATH, TEXT, true|false or its choices."""
        choices = [kind for kind in _kinds(self.field.annotation) if isinstance(kind, str)]
        if self.short_names:
            choices = [*self.short_names.models, "{...}"]
        if choices:
            return "|".join([*choices, "N"] if int in self.kinds else choices)
        words = {bool: "true|false", int: "N", float: "X", Path: "PATH", SecretStr: "TEXT"}
        if self.composed:
            return "LIST" if {list, tuple} & self.kinds else "{...}"
        return next((word for kind, word in words.items() if kind in self.kinds), "TEXT")


@cache
def settings_of(model: type[BaseModel]) -> Mapping[str, Setting]:
    """Returns every setting of a program by its dotted name, in the order of the fields."""
    return {setting.name: setting for setting in _walk(model, ())}


@cache
def short_forms(model: type[BaseModel]) -> Mapping[str, str]:
    """Returns the groups whose name is short for one of their settings, with that one's name."""
    parts = {name: part_of(field) for name, field in model.model_fields.items()}
    return {
        name: f"{name}.{part.SHORT}"
        for name, part in parts.items()
        if part is not None and issubclass(part, Part) and part.SHORT is not None
    }


def defaults_of(model: type[BaseModel]) -> dict[str, Any]:
    """Returns the defaults of the settings that have one, by their dotted names."""
    return {
        name: setting.field.get_default(call_default_factory=True)
        for name, setting in settings_of(model).items()
        if not setting.field.is_required()
    }


def part_of(field: FieldInfo) -> type[BaseModel] | None:
    """Returns the model that a field holds, or may hold, whole."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return None if _is_list(field.annotation) else kind
    return None


def flatten(values: BaseModel | Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Returns values by their dotted names; what is neither model nor mapping is a value."""
    flat: dict[str, Any] = {}
    pairs = _fields(values) if isinstance(values, BaseModel) else values.items()
    for key, value in pairs:
        if isinstance(value, BaseModel | dict):
            flat |= flatten(value, (*path, key))
        else:
            flat[".".join((*path, key))] = value
    return flat


def _fields(model: BaseModel) -> Iterator[tuple[str, Any]]:
    for name, field in type(model).model_fields.items():
        yield key_of(name, field), getattr(model, name)


def key_of(name: str, field: FieldInfo) -> str:
    """Returns the name of a field as the operator writes it."""
    return field.validation_alias if isinstance(field.validation_alias, str) else name


def _walk(model: type[BaseModel], path: tuple[str, ...]) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        own = (*path, key_of(name, field))
        part = part_of(field)
        if part is None or field.annotation is not part:
            yield Setting(own, field)
        if part is not None:
            yield from _walk(part, own)


def _is_list(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) in (list, tuple)


def _kinds(annotation: Any) -> Iterator[Any]:
    if _is_list(annotation):
        yield annotation.__origin__
    arguments = get_args(annotation)
    if not arguments:
        yield NoneType if annotation is None else annotation
    for argument in arguments:
        if argument is not ...:
            yield from _kinds(argument) if get_args(argument) else (argument,)
