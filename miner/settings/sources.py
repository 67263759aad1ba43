"""Where settings come from: each place as values by their dotted names."""

import argparse
import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn

from pydantic.fields import FieldInfo
from pydantic_settings import CliSettingsSource, PydanticBaseSettingsSource

from miner.settings.model import Setting, Settings, settings_of, short_forms
from protocol.documents import DocumentError, Unquoted, parse_yaml, read_yaml
from protocol.errors import SetupError
from protocol.text import printable

_OF_KUBERNETES = re.compile(
    r"(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
"""What Kubernetes and Docker add for a service whose name begins like the program's prefix."""

_WORDS_OF_FLAGS = ("true", "false", "yes", "no", "on", "off")


class Given(PydanticBaseSettingsSource):
    """A source of pydantic-settings: values by their dotted names.

    Args:
        model: The program's settings.
        values: Of the names of `settings_of(model)`.
    """

    def __init__(self, model: type[Settings], values: Mapping[str, Any]) -> None:
        super().__init__(model)
        self._values = values

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Is not used: the values come all at once."""
        return None, "", False

    def __call__(self) -> dict[str, Any]:
        """Returns the values, nested."""
        nested: dict[str, Any] = {}
        settings = settings_of(self.settings_cls)
        # Shorter paths first: a model's own value is below those of its fields.
        for name in sorted(self._values, key=lambda name: len(settings[name].path)):
            node = nested
            *groups, key = settings[name].path
            for group in groups:
                node[group] = node.get(group) or {}
                node = node[group]
                if not isinstance(node, dict):
                    break  # Validation reports what is wrong with the model itself.
            else:
                node[key] = self._values[name]
        return nested


class Base(PydanticBaseSettingsSource):
    """The source below all others: values that the model itself supplies, such as a preset's.

    Attributes:
        where: What they come from, once it was called.
    """

    where = ""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        """Is not used: the values come all at once."""
        return None, "", False

    def __call__(self) -> dict[str, Any]:
        """Returns the values, nested."""
        self.where, values = self.settings_cls.base_values(self.current_state)  # type: ignore[attr-defined]
        return dict(values)


class CommandLine:
    """The parser that pydantic-settings builds of a model.

    Args:
        model: The program's settings; its docstring introduces `--help`.
        prog: How the program is called.
        epilog: The end of `--help`.
    """

    def __init__(self, model: type[Settings], prog: str, epilog: str) -> None:
        self._settings = settings_of(model)
        self._short = short_forms(model)
        self._actions: dict[str, argparse.Action] = {}
        self._prog = prog
        self._parser = _Parser(
            prog=prog,
            description=model.__doc__,
            epilog=epilog,
            allow_abbrev=False,
            add_help=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for flag, text in {
            "--help": "show this message and exit",
            "--version": "show the version and exit",
            "--print-config": "show every setting in effect, and where it comes from, as a file "
            "for --config, and exit",
        }.items():
            short = ("-h",) if flag == "--help" else ()
            self._parser.add_argument(*short, flag, action="store_true", help=text)
        self._parser.add_argument(
            "--config", metavar="FILE", help="YAML file with any of these settings"
        )
        CliSettingsSource(
            model,
            root_parser=self._parser,
            add_argument_method=self._add_argument,
            add_argument_group_method=_add_group,
            cli_use_class_docs_for_groups=True,
        )
        positional = [
            f"[{s.flag}{' ...' * s.composed}]" for s in self._settings.values() if s.positional
        ]
        self._flags = {"--config", "--help", "--version", "--print-config"} | {
            setting.flag for setting in self._settings.values() if not setting.positional
        }
        self._flags |= {f"--{name}" for name in self._short}
        self._parser.usage = " ".join(["%(prog)s [settings]", *positional])

    def _add_argument(self, place: Any, *names: str, **options: Any) -> None:
        name = options.get("dest", names[0])
        if name in self._short:
            meant = self._settings[self._short[name]]
            text = f"short for {meant.flag}"
            place.add_argument(*names, dest=name, metavar=meant.takes, help=text)
            return
        setting = self._settings.get(name)
        if setting is None:
            return  # A whole group, which is set name by name.
        options["help"] = (setting.field.description or "").replace("%", "%%")
        if setting.positional:
            options["nargs"] = "*" if setting.composed else "?"  # A file may give it as well.
        else:
            options.pop("action", None)
            options["metavar"] = setting.takes
            options["nargs"] = "?" if bool in setting.kinds else None
        options.pop("const", None)
        self._actions[name] = place.add_argument(*names, **options)

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """Returns what is given, by name: text, or a list of texts for several arguments.

        Raises:
            SetupError: An unknown argument, or one without its value.
        """
        words = list(argv)
        end = words.index("--") if "--" in words else len(words)
        words, tail = words[:end], words[end + 1 :]
        # argparse takes an unknown flag with a space in its value for an argument.
        flags = (word for word in words if word[:2] == "--")
        unknown = [word for word in flags if word.partition("=")[0] not in self._flags][:1]
        values: dict[str, Any] = {}
        if not unknown:
            parsed, unknown = self._parser.parse_known_intermixed_args(self._with_words(words))
            given = vars(parsed).items()
            values = {name: value for name, value in given if isinstance(value, str | list | bool)}
        for word in tail:
            unknown += self._take(word, values)
        if unknown:
            raise self._unknown(unknown[0])
        for short, name in self._short.items():
            if short in values:
                values.setdefault(name, values.pop(short))
        return {name: value for name, value in values.items() if value not in ([], False)}

    def _take(self, word: str, values: dict[str, Any]) -> list[str]:
        """Gives a word behind `--` to the first argument without a name that has room for it."""
        for setting in self._settings.values():
            if setting.positional and setting.composed:
                values[setting.name] = [*values.get(setting.name, []), word]
                return []
            if setting.positional and setting.name not in values:
                values[setting.name] = word
                return []
        return [word]

    def _unknown(self, word: str) -> SetupError:
        name, _, value = word.partition("=")
        bare = name.lstrip("-")
        flags = [flag.removeprefix("--") for flag in self._flags if flag.startswith("--")]
        nearest = nearest_name(bare, sorted(flags))
        secret = any(
            setting.secret and (setting.name == nearest or setting.name.startswith(f"{bare}."))
            for setting in self._settings.values()
        )
        return SetupError(
            f"unknown argument '{printable(name if value and secret else word)}'",
            fix=f"did you mean --{nearest}?"
            if nearest
            else f"{self._prog} --help lists every setting",
        )

    def _with_words(self, argv: Sequence[str]) -> list[str]:
        """Writes `--flag` out as `--flag=true`, so that it does not swallow what follows."""
        words: list[str] = []
        for word, follows in zip_longest(argv, argv[1:]):
            setting = self._settings.get(word[2:]) if word[:2] == "--" else None
            is_flag = setting is not None and bool in setting.kinds
            alone = is_flag and (follows or "").lower() not in _WORDS_OF_FLAGS
            words.append(f"{word}=true" if alone else word)
        return words

    def help(self, defaults: Mapping[str, Any]) -> str:
        """Returns the text of `--help`.

        Args:
            defaults: By name.
        """
        for name, action in self._actions.items():
            default = in_words(defaults.get(name))
            text = self._settings[name].field.description or ""
            end = f" (default: {default})" if default else ""
            action.help = f"{text}{end}".replace("%", "%%")
        return self._parser.format_help()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        hint = "; --NAME=-VALUE gives a value that begins with -" * ("expected one" in message)
        raise SetupError(printable(message), fix=f"{self.prog} --help lists every setting{hint}")


def _add_group(parser: argparse.ArgumentParser, *, title: str, description: str | None) -> Any:
    lines = (description or "").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("default: "))
    return parser.add_argument_group(title.removesuffix(" options"), text)


def in_words(value: Any) -> str:
    """Returns a value as help and documents show it; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        names = (item.get("name") if isinstance(item, dict) else item for item in value)
        words = [str(getattr(name, "name", name)) for name in names]
        # Several back ends may have a level of one name.
        return ", ".join(words if {*map(type, value)} == {int} else dict.fromkeys(words))
    return str(value)


def from_environment(
    environ: Mapping[str, str], prefix: str, model: type[Settings]
) -> dict[str, str]:
    """Returns what the environment gives; a variable that is empty or Kubernetes' gives nothing.

    Raises:
        SetupError: A variable begins with the prefix and is none of the settings.
    """
    names = {**short_forms(model), **{name: name for name in settings_of(model)}}
    variables = {variable_name(prefix, given): name for given, name in names.items()}
    _refuse_unknown(environ, prefix, [*variables, variable_name(prefix, "config")])
    given = {name: (key, environ[key]) for key, name in variables.items() if environ.get(key)}
    return {name: value for name, (key, value) in given.items() if not _is_link(key, value)}


def variable_name(prefix: str, name: str) -> str:
    """Returns the environment's name of a setting."""
    return f"{prefix}_{name}".upper().replace(".", "_")


def _is_link(name: str, value: str) -> bool:
    """Tells whether a variable is the address of a service, e.g. of one called miner-http."""
    return name.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))


def _refuse_unknown(environ: Mapping[str, str], prefix: str, known: Sequence[str]) -> None:
    """Refuses a misspelt variable, which would be ignored in silence; never shows its value."""
    for name, value in environ.items():
        if not name.startswith(f"{prefix}_") or name in known:
            continue
        if _is_link(name, value) or _OF_KUBERNETES.fullmatch(name.removeprefix(f"{prefix}_")):
            continue
        nearest = nearest_name(name, known)
        raise SetupError(
            f"unknown setting {printable(name)} in the environment",
            fix=f"did you mean {nearest}?"
            if nearest
            else f"unset it: variables that begin with {prefix}_ are this program's settings",
        )


def from_file(path: Path, model: type[Settings]) -> dict[str, Any]:
    """Returns what a settings file gives; names may be nested or dotted.

    Raises:
        SetupError: It cannot be read, or holds an unknown name, or text that YAML takes for
            something else.
    """
    shown, settings = printable(str(path)), settings_of(model)
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
    flat: dict[str, Any] = {}
    for written, value in _by_dotted_name(document or {}, settings):
        name = short_forms(model).get(written, written)
        if name in flat:
            raise SetupError(
                f"the setting {name} stands twice in {shown}, nested and with its whole name",
                fix="remove one of them",
            )
        if name not in settings:
            nearest = nearest_name(name, settings)
            raise SetupError(
                f"unknown setting '{printable(name, 80)}' in {shown}",
                fix=f"did you mean {nearest}?"
                if nearest
                else "use the names of --help, without the dashes",
            )
        setting = settings[name]
        if isinstance(value, Unquoted) and setting.text:
            written = "what it is" if setting.secret else f"'{printable(value, 80)}'"
            raise SetupError(
                f"--{name} cannot be {written} (in {shown}): YAML takes it for {value.reads_as}",
                fix="put it into quotes" + ("" if setting.secret else f", as {name}: '{value}'"),
            )
        flat[name] = value
    return flat


def _by_dotted_name(
    document: Mapping[str, Any], settings: Mapping[str, Setting]
) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        is_group = any(name.startswith(f"{key}.") for name in settings)
        if is_group and value is None and key not in settings:
            continue  # Every line of the section is commented out.
        if isinstance(value, dict) and (key not in settings or is_group):
            inner = {f"{key}.{name}": item for name, item in value.items()}
            yield from _by_dotted_name(inner, settings)
        else:
            yield key, value


def as_value(setting: Setting, given: Any, *, quoted: bool) -> Any:
    """Returns what a text means.

    A short name is its model; `null` is None where the setting allows it; `[...]` and `{...}` are a
    list and a model; the ~ that begins a path is the home folder, because the shell leaves it alone
    in the middle of a word.

    Args:
        setting: Which one.
        given: Text, or what a file holds.
        quoted: Whether it comes from a file, which has its own way to write these but the ~.

    Raises:
        SetupError: There is no such home folder.
    """
    if not isinstance(given, str):
        return given
    names = setting.short_names
    if names and given in names.models:
        # Written out, so that fields of the model may be given as well.
        return names.models[given].model_dump()
    if not quoted and given == "null" and NoneType in setting.kinds:
        return None
    if not quoted and setting.composed and given[:1] in ("[", "{"):
        try:
            return parse_yaml(given, setting.flag, as_written=True)
        except DocumentError:
            return given
    if given.startswith("~") and Path in setting.kinds:
        path = os.path.expanduser(given)
        if path.startswith("~"):
            raise SetupError(
                f"{setting.flag} cannot be '{printable(given, 80)}': there is no such home folder",
                fix="write the whole path",
            )
        return path
    return given


def nearest_name(name: str, names: Collection[str]) -> str | None:
    """Returns the known name that was probably meant."""
    near = difflib.get_close_matches(name[:200], names, n=1, cutoff=0.5)
    return near[0] if near else None
