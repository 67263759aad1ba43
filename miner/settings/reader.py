"""Settings from the command line, the environment and a YAML file into one frozen value.

The command-line names are Bittensor's dotted ones (`--axon.port`). The same names, nested or flat,
are the keys of the file; the environment writes them in capitals (`MINER_AXON_PORT`). The command
line wins over the environment, the environment over the file, the file over the default.
"""

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from protocol.errors import SetupError


class Settings(BaseModel):
    """Base of a program's settings: every field's alias is its dotted name.

    A field whose default is False is a flag and may stand without a value. The description is the
    help text. A validator may raise SetupError, which reaches the operator as it is.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )


S = TypeVar("S", bound=Settings)


def read_settings(
    model: type[S],
    *,
    prog: str,
    env_prefix: str,
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> S:
    """Builds the settings of a program.

    Args:
        model: What to build; its docstring introduces `--help`.
        prog: How the program is called, for `--help`.
        env_prefix: What precedes the names in the environment, e.g. "MINER".
        argv: Command line, without the program; that of the process if not given.
        environ: Environment; that of the process if not given.

    Raises:
        SetupError: An unknown name (with the nearest known one) or an unusable value (with where
            it came from).
        SystemExit: After `--help`.
    """
    environ = os.environ if environ is None else environ
    names = [field.alias or name for name, field in model.model_fields.items()]
    given = _command_line(model, prog, env_prefix, argv)
    variables = {_variable(env_prefix, name): name for name in names}
    from_environ = {name: environ[key] for key, name in variables.items() if environ.get(key)}
    file = given.pop("config", None) or environ.get(_variable(env_prefix, "config"))
    from_file = _read_file(Path(file), names) if file else {}
    sources = {
        **dict.fromkeys(from_file, f"in {file}"),
        **{name: f"in {_variable(env_prefix, name)}" for name in from_environ},
        **dict.fromkeys(given, "on the command line"),
    }
    try:
        return model.model_validate({**from_file, **from_environ, **given})
    except ValidationError as error:
        raise _unusable(error, model, sources, prog) from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SetupError(message, fix=f"{self.prog} --help lists every setting")


def _command_line(
    model: type[Settings], prog: str, env_prefix: str, argv: Sequence[str] | None
) -> dict[str, str]:
    names = [field.alias or name for name, field in model.model_fields.items()]
    parser = _Parser(
        prog=prog,
        usage="%(prog)s [settings]",
        description=model.__doc__,
        epilog=f"Every setting may also stand in the environment ({env_prefix}_ and its name in "
        f"capitals, dots as underscores) or in the file of --config.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these settings")
    groups: dict[str, argparse._ArgumentGroup] = {}
    for name, field in model.model_fields.items():
        alias = field.alias or name
        title = alias.partition(".")[0]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        default = "" if field.default is None else f" (default: {field.default})"
        description = f"{field.description}{default}".replace("%", "%%")
        flag: dict[str, Any] = {"nargs": "?", "const": "true"} if field.default is False else {}
        groups[title].add_argument(
            f"--{alias}", help=description, metavar=_metavar(field.annotation), dest=alias, **flag
        )
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].lstrip("-").partition("=")[0]
        near = _nearest(name, ["config", *names], "--")
        raise SetupError(
            f"unknown argument {unknown[0]!r}", fix=near or f"{prog} --help lists every setting"
        )
    return {str(name): str(value) for name, value in vars(known).items()}


def _metavar(annotation: object) -> str:
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType] or [annotation]
    if all(isinstance(kind, str) for kind in kinds):
        return "|".join(kinds)
    kind = getattr(kinds[0], "__origin__", kinds[0])
    return {bool: "true|false", int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _read_file(path: Path, names: Sequence[str]) -> dict[str, object]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SetupError(
            f"the settings file {path} cannot be read: {error.strerror}", fix="check --config"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        first = " ".join(str(error).split())
        raise SetupError(
            f"the settings file {path} is not YAML: {first}", fix="correct it"
        ) from error
    if document is not None and not isinstance(document, dict):
        raise SetupError(
            f"the settings file {path} holds a {type(document).__name__}, not names and values",
            fix="write one 'name: value' a line, e.g. 'axon.port: 8091'",
        )
    flat = _flatten(document or {}, names)
    for name in flat:
        if name not in names:
            raise SetupError(
                f"unknown setting {name!r} in {path}",
                fix=_nearest(name, names, "") or "use the names of --help, without the dashes",
            )
    return flat


def _flatten(document: Mapping[Any, Any], names: Sequence[str]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in document.items():
        if isinstance(value, dict) and str(key) not in names:
            nested = {f"{key}.{inner}": item for inner, item in value.items()}
            flat.update(_flatten(nested, names))
        else:
            flat[str(key)] = value
    return flat


def _variable(prefix: str, name: str) -> str:
    return f"{prefix}_{name}".upper().replace(".", "_")


def _nearest(name: str, names: Sequence[str], dashes: str) -> str | None:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean {dashes}{near[0]}?" if near else None


def _unusable(
    error: ValidationError, model: type[Settings], sources: Mapping[str, str], prog: str
) -> SetupError:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    where = sources.get(name, "")
    message = first["msg"].removeprefix("Value error, ")
    given = "what it is" if _is_secret(model, name) else repr(str(first["input"])[:80])
    return SetupError(
        f"--{name} cannot be {given} ({where}): {message}" if name else message,
        fix=f"{prog} --help tells what --{name} takes" if name else f"see {prog} --help",
    )


def _is_secret(model: type[Settings], name: str) -> bool:
    return any(
        SecretStr in (field.annotation, *get_args(field.annotation))
        for own_name, field in model.model_fields.items()
        if (field.alias or own_name) == name
    )
