"""YAML and JSON documents from outside, read within bounds.

Size and depth are limited. Anchors, aliases, tags, repeated keys, numbers beyond 64 bits, NaN and
infinity are refused. A document is made of mappings with text keys, lists, text, numbers, booleans
and null, and nothing else.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from protocol.text import printable

MAX_DEPTH = 32
"""Mappings and lists within each other."""

MAX_YAML_BYTES = 64 * 1024
MAX_JSON_BYTES = 4 * 1024 * 1024

_INT64 = range(-(2**63), 2**63)
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_STR, _INT, _FLOAT, _BOOL, _NULL = (
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null")
)
_IN_WORDS = {
    _INT: "a number",
    _FLOAT: "a number",
    _BOOL: "true or false",
    "tag:yaml.org,2002:timestamp": "a date",
}
_TRUE = ("yes", "true", "on")


class DocumentError(ValueError):
    """A document that is not used; the message names the file, the reason and the place in it.

    Args:
        name: Of the document.
        reason: Why, with the place if it is known.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{printable(name)} cannot be read: {reason}")
        self.reason = reason


class Unquoted(str):
    """A scalar as it is written, without quotes, that YAML takes for something else than text.

    Attributes:
        reads_as: For what, in words.
    """

    reads_as: str


def read_yaml(path: Path, *, as_written: bool = False) -> Any:
    """Reads a YAML file of one document; None if it is empty.

    Args:
        path: The file, at most `MAX_YAML_BYTES`.
        as_written: Keep every scalar as the text that is written, except a plain null; one that
            YAML would not take for text (`007`, `no`) is an `Unquoted`. Without it, scalars are
            null, booleans, integers, floats or text by YAML's rules; dates stay text.

    Raises:
        DocumentError: It cannot be read, or is not within the bounds.
    """
    return parse_yaml(_text(path, MAX_YAML_BYTES), str(path), as_written=as_written)


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Args:
        path: The file, at most `MAX_JSON_BYTES`.

    Raises:
        DocumentError: It cannot be read, or is not within the bounds.
    """
    return parse_json(_text(path, MAX_JSON_BYTES), str(path))


def parse_yaml(text: str, name: str, *, as_written: bool = False) -> Any:
    """Reads a YAML document; see `read_yaml`.

    Args:
        text: The document.
        name: What messages call it.
        as_written: See `read_yaml`.

    Raises:
        DocumentError: It is not YAML, or not within the bounds.
    """

    def fail(reason: str, mark: Any) -> NoReturn:
        place = (mark.line + 1, mark.column + 1) if mark else None
        raise _error(name, printable(reason), place)

    try:
        return _compose(yaml.parse(text, _LOADER), fail, as_written=as_written)
    except yaml.MarkedYAMLError as error:
        fail(
            f"it is not YAML: {error.problem or error.context}",
            error.problem_mark or error.context_mark,
        )
    except yaml.YAMLError as error:
        fail(f"it is not YAML: {error}", None)


def parse_json(text: str, name: str) -> Any:
    """Reads a JSON document; see `read_json`.

    Args:
        text: The document.
        name: What messages call it.

    Raises:
        DocumentError: It is not JSON, or not within the bounds.
    """
    try:
        document = json.loads(
            text,
            object_pairs_hook=_without_repeats,
            parse_constant=_refused_constant,
            parse_int=_int64,
            parse_float=_finite,
        )
        _check(document)
    except json.JSONDecodeError as error:
        reason = f"it is not JSON: {error.msg}"
        raise _error(name, reason, (error.lineno, error.colno)) from None
    except RecursionError:
        raise _error(name, _TOO_DEEP) from None
    except ValueError as error:
        raise _error(name, str(error)) from None
    return document


_TOO_DEEP = f"more than {MAX_DEPTH} mappings and lists within each other"


def _error(name: str, reason: str, place: tuple[int, int] | None = None) -> DocumentError:
    where = f" (line {place[0]}, column {place[1]})" if place else ""
    return DocumentError(name, f"{reason}{where}")


def _text(path: Path, limit: int) -> str:
    name = str(path)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise _error(name, error.strerror or str(error)) from error
    except ValueError as error:  # A name with a NUL.
        raise _error(name, str(error)) from error
    if len(data) > limit:
        raise _error(name, f"it has more than {limit:,} bytes, the limit")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        place = (data.count(b"\n", 0, error.start) + 1, error.start - start + 1)
        reason = f"byte 0x{data[error.start]:02x} is not UTF-8"
        raise _error(name, reason, place) from None


def _compose(
    events: Iterator[Any], fail: Callable[[str, Any], NoReturn], *, as_written: bool
) -> Any:
    """Builds the document from the parser's events, without recursion."""
    roots: list[Any] = []
    open_nodes: list[tuple[Any, Any]] = []  # Containers, with the key that waits for its value.

    def put(value: Any, event: Any) -> None:
        if not open_nodes:
            roots.append(value)
            return
        node, key = open_nodes[-1]
        if isinstance(node, list):
            node.append(value)
        elif key is None:
            if not isinstance(value, str):
                fail("a key is text", event.start_mark)
            if value in node:
                fail(f"the key '{value}' stands twice", event.start_mark)
            open_nodes[-1] = (node, value)
        else:
            node[key] = value
            open_nodes[-1] = (node, None)

    resolver = yaml.resolver.Resolver()
    for event in events:
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            fail("anchors (&) and aliases (*) are not read; write the value out", event.start_mark)
        if isinstance(event, yaml.DocumentStartEvent) and roots:
            fail("a second document begins", event.start_mark)
        if isinstance(event, yaml.ScalarEvent):
            _no_tag(event, fail)
            is_key = open_nodes and open_nodes[-1][1] is None and type(open_nodes[-1][0]) is dict
            put(event.value if is_key else _scalar(event, resolver, fail, as_written), event)
        elif isinstance(event, yaml.CollectionStartEvent):
            _no_tag(event, fail)
            if len(open_nodes) == MAX_DEPTH:
                fail(_TOO_DEEP, event.start_mark)
            node: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
            put(node, event)
            open_nodes.append((node, None))
        elif isinstance(event, yaml.CollectionEndEvent):
            open_nodes.pop()
    return roots[0] if roots else None


def _no_tag(event: Any, fail: Callable[[str, Any], NoReturn]) -> None:
    if event.tag is not None:
        fail(f"tags are not read: {event.tag}", event.start_mark)


def _scalar(
    event: Any, resolver: Any, fail: Callable[[str, Any], NoReturn], as_written: bool
) -> Any:
    text = event.value
    tag = resolver.resolve(yaml.ScalarNode, text, event.implicit)
    if tag == _NULL:
        return None
    if as_written:
        if tag not in _IN_WORDS:
            return text
        scalar = Unquoted(text)
        scalar.reads_as = _IN_WORDS[tag]
        return scalar
    if tag not in (_BOOL, _INT, _FLOAT):
        return text
    if tag == _BOOL:
        return text.lower() in _TRUE
    try:
        return _int64(text.replace("_", "")) if tag == _INT else _finite(text.replace("_", ""))
    except ValueError as error:
        fail(str(error), event.start_mark)


def _int64(text: str) -> int:
    digits = text.lstrip("+-")
    if re.fullmatch(r"0|[1-9][0-9]{0,18}", digits) and int(text) in _INT64:
        return int(text)
    if digits.isdigit() and digits.isascii() and not digits.startswith("0"):
        raise ValueError(f"{printable(text, 40)} does not fit into 64 bits")
    raise ValueError(
        f"{printable(text, 40)} is not a plain decimal integer; quote it if it is text"
    )


def _finite(text: str) -> float:
    try:
        number = float(text)
    except ValueError:  # YAML's own spellings: .inf, .nan, 190:20:30.15
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{printable(text, 40)} is not a finite decimal number")
    return number


def _refused_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key, value in pairs:
        if key in mapping:
            raise ValueError(f"the key '{printable(key, 80)}' stands twice")
        mapping[key] = value
    return mapping


def _check(document: Any) -> None:
    """Refuses what is too deep, and text that is not Unicode, level by level."""
    level, depth = [document], 0
    while level:
        deeper: list[Any] = []
        for node in level:
            if isinstance(node, str):
                _require_unicode(node)
            elif isinstance(node, dict | list):
                if depth == MAX_DEPTH:
                    raise ValueError(_TOO_DEEP)
                deeper += [*node, *node.values()] if isinstance(node, dict) else node
        level, depth = deeper, depth + 1


def _require_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"'{printable(text, 80)}' holds half of a character") from None
