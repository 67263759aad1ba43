"""One line of a score log as an event, and an event's fields as their types.

Imports nothing heavy, so that a monitor starts at once. Whatever a line holds, it is counted: a
damaged line is no JSON object with an event, an odd line has a field of another type than
`docs/score-log.md` says.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from protocol.text import printable

Event = Mapping[str, Any]

UNKNOWN = "unknown"

LASTING = ("miner_started", "state_changed", "miner_stopped", "earnings", "chain_old", "chain_back")
"""Events that say what is so until another says otherwise; the first begins a run."""

_LARGEST = 1e10
_LONGEST_NAME = 200

_decode = msgspec.json.Decoder().decode


def parse(line: str) -> Event | None:
    """Returns the event of a line; None if the line is damaged."""
    try:
        event = _decode(line)
    except Exception:
        # Slower, and takes what the other refuses: NaN and lone surrogates.
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return None
    if "\ufffd" in line or type(event) is not dict or type(event.get("event")) is not str:
        return None
    return event


def moment_of(event: Event | None) -> float | None:
    """Returns when an event was written, in seconds since the epoch, where it says so."""
    return None if event is None else Fields(event).number("unix")


class Fields:
    """The fields of one event, each as its type.

    Attributes:
        event: What was read.
        odd: Whether one of the fields that were asked for has another type.
    """

    __slots__ = ("event", "odd")

    def __init__(self, event: Event) -> None:
        self.event = event
        self.odd = False

    def name(self, field: str, default: str = UNKNOWN) -> str:
        """A text that comes again and again, on one line, harmless to a terminal."""
        value = self.event.get(field)
        if type(value) is str:
            return _shown(value) if len(value) <= _LONGEST_NAME else printable(value)
        self.odd |= field in self.event
        return default

    def text(self, field: str, default: str = UNKNOWN) -> str:
        """A text on one line, harmless to a terminal."""
        value = self.event.get(field)
        if type(value) is str:
            return printable(value)
        self.odd |= field in self.event
        return default

    def check_texts(self, *fields: str) -> None:
        """Notes whether a field that is read later is no text."""
        for field in fields:
            if type(self.event.get(field, "")) is not str:
                self.odd = True

    def number(self, field: str) -> float | None:
        """A finite number of a sane size, at least 0."""
        value = self.event.get(field)
        kind = type(value)
        if (kind is float or kind is int) and 0 <= value <= _LARGEST:  # type: ignore[operator]
            return value
        self.odd |= field in self.event
        return None

    def flag(self, field: str) -> bool:
        """True or false; a field that is missing is false."""
        value = self.event.get(field, False)
        if type(value) is bool:
            return value
        self.odd = True
        return False

    def seconds(self, field: str) -> dict[str, float]:
        """Numbers by name."""
        value = self.event.get(field, {})
        if type(value) is not dict:
            self.odd = True
            return {}
        numbers = {}
        for name, item in value.items():
            if type(item) is not float or not 0.0 <= item <= _LARGEST:
                item = _number(item)
                if item is None:
                    self.odd = True
                    continue
            shown = _shown(name) if len(name) <= _LONGEST_NAME else name
            numbers[shown if len(shown) <= 40 else printable(name, 40)] = item
        return numbers

    def names(self, field: str, most: int = 20) -> tuple[str, ...]:
        """A list of texts."""
        value = self.event.get(field, [])
        if type(value) is not list or not all(type(item) is str for item in value):
            self.odd = True
            return ()
        return tuple(printable(item, 40) for item in value[:most])


def _number(value: object) -> float | None:
    if type(value) is bool or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _LARGEST else None  # NaN is not.


@lru_cache(maxsize=4096)
def _shown(text: str) -> str:
    return printable(text)
