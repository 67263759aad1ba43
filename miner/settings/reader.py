"""Settings from the command line, the environment and a YAML file into one frozen value.

The command-line names are Bittensor's dotted ones (`--axon.port`). The same names, nested or flat,
are the keys of the file; the environment writes them in capitals (`MINER_AXON_PORT`). The command
line wins over the environment, the environment over the file, the file over the default.
"""

import argparse
import difflib
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from protocol.documents import DocumentError, Unquoted, read_yaml
from protocol.errors import SetupError
from protocol.text import printable

_OF_KUBERNETES = re.compile(
    r"(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
"""What Kubernetes and Docker add for a service whose name begins like the program's prefix."""


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
    _refuse_unknown(environ, env_prefix, [*variables, _variable(env_prefix, "config")])
    from_environ = {name: environ[key] for key, name in variables.items() if environ.get(key)}
    if "config" in given:
        _require_text("config", given["config"], "on the command line", secret=False)
    file = given.pop("config", None) or environ.get(_variable(env_prefix, "config"))
    from_file = _read_file(Path(file), model) if file else {}
    sources = {
        **dict.fromkeys(from_file, f"in {file}"),
        **{name: f"in {_variable(env_prefix, name)}" for name in from_environ},
        **dict.fromkeys(given, "on the command line"),
    }
    values = {**from_file, **from_environ, **given}
    for name, value in values.items():
        _require_text(name, value, sources[name], secret=_is_secret(model, name))
    values |= {
        name: _from_home(name, value)
        for name, value in values.items()
        if isinstance(value, str) and value.startswith("~") and Path in _types(model, name)
    }
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _unusable(error, model, sources, prog) from None


def _refuse_unknown(environ: Mapping[str, str], prefix: str, known: Sequence[str]) -> None:
    """Refuses a misspelt variable, which would be ignored in silence; never shows its value."""
    for name, value in environ.items():
        if not name.startswith(f"{prefix}_") or name in known:
            continue
        is_link = name.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))
        if is_link or _OF_KUBERNETES.fullmatch(name.removeprefix(f"{prefix}_")):
            continue
        raise SetupError(
            f"unknown setting {printable(name)} in the environment",
            fix=_nearest(name, known, "")
            or f"unset it: variables that begin with {prefix}_ are this program's settings",
        )


def _require_text(name: str, value: object, where: str, *, secret: bool) -> None:
    """Refuses text that is empty, or that no file name, no key and no log line can hold."""
    texts = value if isinstance(value, list) else [value]
    for text in texts:
        if not isinstance(text, str):
            continue
        if not text:
            raise SetupError(
                f"--{name} is empty ({printable(where)})", fix="leave it out, or give it a value"
            )
        shown = "what it is" if secret else f"'{printable(text, 80)}'"
        try:
            text.encode()
        except UnicodeEncodeError:
            raise SetupError(
                f"--{name} cannot be {shown} ({printable(where)}): it is not UTF-8",
                fix="rename it, or make a link with a plain name; if it looks right in your "
                "terminal, run with LC_ALL=C.UTF-8",
            ) from None
        if any(unicodedata.category(character) == "Cc" for character in text):
            raise SetupError(
                f"--{name} cannot be {shown} ({printable(where)}): it holds a control character",
                fix="write it without one, and without the end of a line",
            )


def _from_home(name: str, value: str) -> str:
    """Resolves the ~ that begins a path; the shell does not where a setting is not a word of it."""
    path = os.path.expanduser(value)
    if path.startswith("~"):
        raise SetupError(
            f"--{name} cannot be '{printable(value, 80)}': there is no such home folder",
            fix="write the whole path",
        )
    return path


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
        name, _, value = unknown[0].partition("=")
        nearest = _nearest_name(name.lstrip("-"), ["config", *names])
        shown = name if value and nearest and _is_secret(model, nearest) else unknown[0]
        raise SetupError(
            f"unknown argument '{printable(shown)}'",
            fix=f"did you mean --{nearest}?" if nearest else f"{prog} --help lists every setting",
        )
    return {str(name): str(value) for name, value in vars(known).items()}


def _metavar(annotation: object) -> str:
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType] or [annotation]
    if all(isinstance(kind, str) for kind in kinds):
        return "|".join(kinds)
    kind = getattr(kinds[0], "__origin__", kinds[0])
    return {bool: "true|false", int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _read_file(path: Path, model: type[Settings]) -> dict[str, object]:
    names = [field.alias or name for name, field in model.model_fields.items()]
    shown = printable(str(path))
    try:
        document = read_yaml(path, as_written=True)
    except DocumentError as error:
        absent = isinstance(error.__cause__, OSError)
        raise SetupError(
            f"the settings file {error}", fix="check --config" if absent else "correct it"
        ) from error
    if document is not None and not isinstance(document, dict):
        kind = "text" if isinstance(document, str) else "a list"
        raise SetupError(
            f"the settings file {shown} holds {kind}, not names and values",
            fix="write one 'name: value' a line, e.g. 'axon.port: 8091'",
        )
    flat: dict[str, object] = {}
    for name, value in _flatten(document or {}, names):
        if name in flat:
            raise SetupError(
                f"the setting {name} stands twice in {shown}, nested and with its whole name",
                fix="remove one of them",
            )
        if name not in names:
            raise SetupError(
                f"unknown setting '{printable(name, 80)}' in {shown}",
                fix=_nearest(name, names, "") or "use the names of --help, without the dashes",
            )
        if isinstance(value, Unquoted) and _is_text(model, name):
            written = "what it is" if _is_secret(model, name) else f"'{printable(value, 80)}'"
            raise SetupError(
                f"--{name} cannot be {written} (in {shown}): YAML takes it for {value.reads_as}",
                fix="put it into quotes"
                + ("" if _is_secret(model, name) else f", as {name}: '{value}'"),
            )
        flat[name] = value
    return flat


def _flatten(document: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, object]]:
    for key, value in document.items():
        is_section = key not in names and any(name.startswith(f"{key}.") for name in names)
        if is_section and value is None:
            continue  # Every line of the section is commented out.
        if key not in names and isinstance(value, dict):
            yield from _flatten({f"{key}.{inner}": item for inner, item in value.items()}, names)
        else:
            yield key, value


def _variable(prefix: str, name: str) -> str:
    return f"{prefix}_{name}".upper().replace(".", "_")


def _nearest(name: str, names: Sequence[str], dashes: str) -> str | None:
    near = _nearest_name(name, names)
    return f"did you mean {dashes}{near}?" if near else None


def _nearest_name(name: str, names: Sequence[str]) -> str | None:
    near = difflib.get_close_matches(name[:200], names, n=1, cutoff=0.5)
    return near[0] if near else None


def _unusable(
    error: ValidationError, model: type[Settings], sources: Mapping[str, str], prog: str
) -> SetupError:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    where = printable(sources.get(name, ""))
    message = printable(first["msg"].removeprefix("Value error, "))
    given = "what it is" if _is_secret(model, name) else f"'{_in_words(first['input'])}'"
    return SetupError(
        f"--{name} cannot be {given} ({where}): {message}" if name else message,
        fix=f"{prog} --help tells what --{name} takes" if name else f"see {prog} --help",
    )


def _in_words(value: object) -> str:
    if isinstance(value, list):
        return printable(f"[{', '.join(map(str, value))}]", 80)
    return "null" if value is None else printable(str(value), 80)


def _is_secret(model: type[Settings], name: str) -> bool:
    return SecretStr in _types(model, name)


def _is_text(model: type[Settings], name: str) -> bool:
    return bool({str, SecretStr, Path} & _types(model, name))


def _types(model: type[Settings], name: str) -> set[object]:
    """The types that a setting's annotation is made of."""
    return {
        kind
        for own_name, field in model.model_fields.items()
        if (field.alias or own_name) == name
        for kind in (field.annotation, *get_args(field.annotation))
        if isinstance(kind, type)
    }
