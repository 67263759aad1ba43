"""Writes what documents every setting, from the models that the programs read.

Usage: python -m scripts.configuration [--write]

These are the tables of docs/configuration.md, between its markers, and miner.example.yaml. Without
`--write`, it only tells whether they are current. Exit status: 0 they are, 1 they are not.
"""

import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from generation.presets import PRESETS
from generation.settings import GenerationFields
from miner.interpreter import program_name
from miner.mock_validator.settings import TrialSettings
from miner.settings.miner import MinerConfig
from miner.settings.model import Setting, defaults_of, flatten, part_of, settings_of
from miner.settings.reader import Settings, read_settings
from miner.settings.shown import scalar
from miner.settings.sources import in_words, variable_name
from miner.surroundings import settle_terminal, tell
from protocol.errors import SetupError
from protocol.files import replace_file

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = Path("docs/configuration.md")
EXAMPLE = Path("miner.example.yaml")
BEGIN, END = "<!-- {}: written by scripts.configuration -->", "<!-- end -->"

_WIDTH = 96
_CHOSEN = {"preset": "gpu80", "wallet.name": "default", "wallet.hotkey": "default"}
_EXAMPLE_HEAD = """\
# Settings of a miner: cp miner.example.yaml miner.yaml, remove the # before what you change, and
# python -m neurons.miner --config miner.yaml
#
# What stays commented out is as shown here if the preset is gpu80. docs/configuration.md has the
# ranges and the values of the other presets; --print-config shows what is in effect.
"""


class ConfigurationSettings(Settings):
    """Tells whether docs/configuration.md and miner.example.yaml are current."""

    write: bool = False
    """Write them."""


def main(argv: Sequence[str] | None = None) -> int:
    """Compares or writes; returns the exit status."""
    settle_terminal()
    try:
        asked = read_settings(
            ConfigurationSettings, prog=program_name("scripts.configuration"), argv=argv
        )
    except SetupError as error:
        tell(error)
        return 2
    texts = {DOCUMENT: document((ROOT / DOCUMENT).read_text("utf-8")), EXAMPLE: example()}
    stale = [name for name, text in texts.items() if _on_disk(ROOT / name) != text]
    for name in stale:
        if asked.write:
            replace_file(ROOT / name, texts[name].encode())
        print(f"{name} {'is written' if asked.write else 'is not current: add --write'}")
    return 1 if stale and not asked.write else 0


def _on_disk(path: Path) -> str | None:
    return path.read_text("utf-8") if path.exists() else None


def document(text: str) -> str:
    """Returns the document with its tables as they should be.

    Args:
        text: As it is; what stands outside the markers stays.
    """
    generation = set(GenerationFields.model_fields)
    tables: dict[str, Callable[[], Iterator[str]]] = {
        "generation": lambda: _tables(MinerConfig, "MINER", lambda group: group in generation),
        "miner": lambda: _tables(MinerConfig, "MINER", lambda group: group not in generation),
        "mock validator": lambda: _tables(TrialSettings, "TRIAL", lambda group: True),
    }
    for name, lines in tables.items():
        begin = BEGIN.format(name)
        head, marker, rest = text.partition(f"{begin}\n")
        if not marker or END not in rest:
            raise ValueError(f"{DOCUMENT} has no place for the table of {name}: {begin} ... {END}")
        tail = rest[rest.index(END) :]
        text = head + marker + "\n".join(lines()) + "\n" + tail
    return text


def _tables(model: type[Settings], prefix: str, wanted: Callable[[str], bool]) -> Iterator[str]:
    groups: dict[str, list[Setting]] = {}
    for setting in settings_of(model).values():
        if wanted(setting.path[0]):
            groups.setdefault(setting.path[0] if len(setting.path) > 1 else "", []).append(setting)
    for group, settings in groups.items():
        part = part_of(model.model_fields[group]) if group else None
        yield f"\n### {group or 'General'}\n"
        if part is not None:
            yield f"{(part.__doc__ or '').strip()}\n"
        by_preset = settings[0].path[0] in GenerationFields.model_fields
        columns = list(PRESETS) if by_preset else ["default"]
        yield f"| setting | takes | {' | '.join(columns)} | what it does |"
        yield f"| --- | --- |{' --- |' * len(columns)} --- |"
        for setting in settings:
            values = [_default(setting, column) for column in columns]
            name = f"`--{setting.name}`<br>`{variable_name(prefix, setting.name)}`"
            cells = [name, _takes(setting), *values, _in_line(setting)]
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _default(setting: Setting, preset: str) -> str:
    if preset in PRESETS:
        value = flatten(PRESETS[preset]).get(setting.name)
    else:
        value = setting.field.get_default(call_default_factory=True)
    words = in_words(value)
    return f"`{words}`" if words else ""


def _takes(setting: Setting) -> str:
    """The word of `--help`, with the range."""
    limits = {
        name: f"{getattr(rule, name):,}".removesuffix(".0")
        for rule in _rules(setting)
        for name in ("ge", "gt", "le", "lt", "multiple_of")
        if getattr(rule, name, None) is not None
    }
    least, most, divisor = limits.get("ge"), limits.get("le"), limits.get("multiple_of")
    both = least is not None and most is not None
    words = [
        f"`{setting.takes}`",
        f"over {limits['gt']}" if "gt" in limits else "",
        f"{least} to {most}"
        if both
        else f"from {least}"
        if least
        else f"up to {most}" * bool(most),
        f"a multiple of {divisor}" if divisor else "",
    ]
    return ", ".join(word for word in words if word)


def _rules(setting: Setting) -> Iterator[object]:
    yield from setting.field.metadata
    for argument in getattr(setting.field.annotation, "__args__", ()):
        for rule in getattr(argument, "__metadata__", ()):
            yield from getattr(rule, "metadata", (rule,))


def _in_line(setting: Setting) -> str:
    return " ".join((setting.field.description or "").split())


def example() -> str:
    """Returns a settings file with every setting of the miner, all but a few commented out."""
    settings = settings_of(MinerConfig)
    values = defaults_of(MinerConfig) | flatten(PRESETS["gpu80"])
    lines, group = [_EXAMPLE_HEAD], ""
    for setting in sorted(settings.values(), key=lambda setting: len(setting.path) > 1):
        *outer, name = setting.path
        if outer and outer[0] != group:
            group = outer[0]
            part = part_of(MinerConfig.model_fields[group])
            lines += ["", *_comment((part and part.__doc__) or "", ""), f"{group}:"]
        indent = "  " * len(outer)
        if part_of(setting.field) is not None:  # Its own settings follow.
            lines += [*_comment(_in_line(setting), indent), f"{indent}# {name}:"]
            continue
        chosen = _CHOSEN.get(setting.name)
        value = scalar(values[setting.name] if chosen is None else chosen)
        lines += _comment(_in_line(setting), indent)
        lines.append(f"{indent}{'# ' if chosen is None else ''}{name}: {value}")
    return "\n".join(lines) + "\n"


def _comment(text: str, indent: str) -> list[str]:
    start = f"{indent}## "
    return textwrap.wrap(text, _WIDTH, initial_indent=start, subsequent_indent=start)


if __name__ == "__main__":
    sys.exit(main())
