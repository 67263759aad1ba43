"""Settings as a YAML file that can be read again: what `--print-config` prints."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, SecretStr

from miner.settings.model import key_of
from protocol.text import printable

HIDDEN = "********"


def as_yaml(config: BaseModel, origins: Mapping[str, str]) -> str:
    """Returns every value by its nested names, one a line.

    A secret is shown as a comment, so that the file leaves it to the environment.

    Args:
        config: The settings.
        origins: Where a value comes from, by its dotted name; the rest are defaults.
    """
    return "".join(f"{line}\n" for line in _lines(config, origins, ()))


def _lines(model: BaseModel, origins: Mapping[str, str], path: tuple[str, ...]) -> Iterator[str]:
    indent = "  " * len(path)
    for name, field in type(model).model_fields.items():
        key = key_of(name, field)
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield f"{indent}{key}:"
            yield from _lines(value, origins, (*path, key))
            continue
        origin = origins.get(".".join((*path, key)), "")
        comment = f"  # {printable(origin)}" if origin else ""
        if isinstance(value, SecretStr):
            yield f"{indent}# {key}: {HIDDEN}{comment}"
        else:
            yield f"{indent}{key}: {scalar(value)}{comment}"


def scalar(value: Any) -> str:
    """Returns a value in YAML's flow style, on one line."""
    text = yaml.safe_dump(
        _plain(value),
        default_flow_style=True,
        width=float("inf"),
        allow_unicode=True,
        sort_keys=False,
    )
    return text.removesuffix("\n").removesuffix("...").rstrip("\n")


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, BaseModel):
        return {key: _plain(item) for key, item in value if item is not None}
    return str(value) if isinstance(value, Path) else value
