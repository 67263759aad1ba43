"""Settings from the command line, the environment and a YAML file into one frozen value.

A program declares what it takes as a model::

    class AlbumSettings(Settings):
        '''Makes an album.'''                         # introduces --help

        files: CliPositionalArg[list[Path]]           # ALBUM FILE FILE
        '''Assets to show.'''                         # the help of FILES
        log: LogSettings = LogSettings()              # a Part: --log.dir, --log.level

    settings = read_settings(AlbumSettings, prog="python -m scripts.album", argv=argv)

The names follow from the nesting: `dir` in the part `log` is `--log.dir` on the command line,
`log.dir` or `log: {dir: ...}` in the file of `--config`, and MINER_LOG_DIR in the environment of
a program with the prefix MINER. The command line wins over the environment, the environment over
the file, the file over `Settings.base_values` (such as a preset), and these over the defaults. A
program that generates takes `miner.settings.generation.GeneratingSettings` as its base, and so has
every generation setting.

pydantic-settings builds the parser, merges the sources and validates; `sources.py` reads them.
"""

import os
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from pydantic import ValidationError

from miner.settings.model import Part, Setting, Settings, defaults_of, flatten, settings_of
from miner.settings.shown import as_yaml
from miner.settings.sources import (
    Base,
    CommandLine,
    Given,
    as_value,
    from_environment,
    from_file,
    variable_name,
)
from protocol.errors import SetupError
from protocol.text import printable

__all__ = ["Part", "Settings", "read_settings"]

S = TypeVar("S", bound=Settings)


class _Place(NamedTuple):
    """Where values come from."""

    values: dict[str, Any]
    where: Callable[[str], str]


def read_settings(
    model: type[S],
    *,
    prog: str,
    env_prefix: str | None = None,
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> S:
    """Builds the settings of a program.

    Args:
        model: What to build; its docstring introduces `--help`.
        prog: How the program is called, for `--help`.
        env_prefix: What precedes the names in the environment, e.g. "MINER"; the environment is not
            read if not given.
        argv: Command line, without the program; that of the process if not given.
        environ: Environment; that of the process if not given.

    Raises:
        SetupError: An unknown name (with the nearest known one) or an unusable value (with where
            it came from).
        SystemExit: After `--help`, `--version` and `--print-config`.
    """
    environ = os.environ if environ is None else environ
    settings = settings_of(model)
    command_line = _command_line(model, prog, env_prefix)
    given = command_line.parse(sys.argv[1:] if argv is None else argv)
    asked = [name for name in ("help", "version", "print_config") if given.pop(name, False)]
    file = given.pop("config", None)
    if "version" in asked:
        _show(_version())
    if "help" in asked:
        _show(command_line.help(defaults_of(model) | flatten(model.base_values(given)[1])))
    _require_text("--config", file, "on the command line")
    from_environ: dict[str, Any] = {}
    if env_prefix is not None:
        from_environ |= from_environment(environ, env_prefix, model)
        file = file or environ.get(variable_name(env_prefix, "config"))
    places = [
        _Place(given, lambda name: "on the command line"),
        _Place(from_environ, lambda name: f"in {variable_name(env_prefix or '', name)}"),
        _Place(from_file(Path(file), model) if file else {}, lambda name: f"in {file}"),
    ]
    for values, where in places:
        for name, value in values.items():
            setting = settings[name]
            _require_text(setting.flag, value, where(name), setting)
            values[name] = as_value(setting, value, quoted=values is places[-1].values)
    base = Base(model)
    sources = (*(Given(model, values) for values, _ in places), base)
    try:
        config = model(_build_sources=(sources, {}))
    except ValidationError as error:
        raise _unusable(error, settings, _origins(places, base), prog) from None
    if "print_config" in asked:
        _show(as_yaml(config, _origins(places, base)))
    return config


@cache
def _command_line(model: type[Settings], prog: str, env_prefix: str | None) -> CommandLine:
    environment = (
        f" in the environment ({env_prefix}_ and its name in capitals, dots as underscores) or"
    )
    return CommandLine(
        model,
        prog,
        f"Every setting may also stand{environment if env_prefix else ''} in the file of --config.",
    )


def _version() -> str:
    from miner.logs import program_version

    return f"splat-miner {program_version()}\n"


def _show(text: str) -> NoReturn:
    sys.stdout.write(text)
    raise SystemExit(0)


def _origins(places: Sequence[_Place], base: Base) -> dict[str, str]:
    """Returns where the value of each name comes from that is not a default."""
    origins = dict.fromkeys(flatten(base()), base.where)
    for values, where in reversed(places):
        for name, value in values.items():
            origins |= dict.fromkeys([name, *flatten({name: value})], where(name))
    return origins


def _require_text(flag: str, value: object, where: str, setting: Setting | None = None) -> None:
    """Refuses text that is empty, or that no file name, no key and no log line can hold."""
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            continue
        if not text:
            raise SetupError(
                f"{flag} is empty ({printable(where)})", fix="leave it out, or give it a value"
            )
        if setting is not None and setting.any_name:
            continue
        hidden = setting is not None and setting.secret
        shown = "what it is" if hidden else f"'{printable(text, 80)}'"
        try:
            text.encode()
        except UnicodeEncodeError:
            raise SetupError(
                f"{flag} cannot be {shown} ({printable(where)}): it is not UTF-8",
                fix="rename it, or make a link with a plain name; if it looks right in your "
                "terminal, run with LC_ALL=C.UTF-8",
            ) from None
        if any(unicodedata.category(character) == "Cc" for character in text):
            raise SetupError(
                f"{flag} cannot be {shown} ({printable(where)}): it holds a control character",
                fix="write it without one, and without the end of a line",
            )


def _unusable(
    error: ValidationError, settings: Mapping[str, Setting], origins: Mapping[str, str], prog: str
) -> SetupError:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    lengths = range(len(place), 0, -1)
    name = next((known for n in lengths if (known := ".".join(place[:n])) in settings), "")
    message = printable(first["msg"].removeprefix("Value error, "))
    if not name:
        return SetupError(message, fix=f"see {prog} --help")
    setting, fix = settings[name], f"{prog} --help shows what {settings[name].flag} takes"
    inner = ".".join(place)[len(name) + 1 :]
    if first["type"] == "missing" and not inner:
        return SetupError(f"{setting.flag} is missing", fix=fix)
    where = origins.get(name) or next(
        (origins[known] for known in origins if known.startswith(f"{name}.")), "the default"
    )
    given = "what it is" if setting.secret else f"'{_in_words(first['input'])}'"
    return SetupError(
        f"{setting.flag} cannot be {given} ({printable(where)}): "
        f"{printable(inner) + ': ' if inner else ''}{message}",
        fix=fix,
    )


def _in_words(value: object) -> str:
    if isinstance(value, list):
        return printable(f"[{', '.join(map(str, value))}]", 80)
    return "null" if value is None else printable(str(value), 80)
