"""Reads the text header of a PLY file strictly: every refusal names the line and what is wrong."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

from protocol.errors import CodecError
from protocol.foreign_formats import describe

MAX_HEADER_BYTES: Final = 64 * 1024
"""A 3DGS header takes about 1.5 KB; what is still header after this many bytes is not a PLY."""

FORMATS: Final = {
    "format ascii 1.0": "",
    "format binary_little_endian 1.0": "<",
    "format binary_big_endian 1.0": ">",
}
"""Format line to NumPy byte order; empty for ASCII."""

_TYPES: Final = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_ELEMENT = re.compile(r"element vertex ([0-9]{1,10})")
_PROPERTY = re.compile(r"property ([a-z0-9]+) ([!-~]+)")
_SHOWN_CHARACTERS = 60
_SHOWN_BYTES = 20


@dataclass(frozen=True)
class Header:
    """What the header says about the body.

    Attributes:
        byte_order: "<" or ">" for a binary body, "" for ASCII.
        count: Number of vertices as written, not yet checked against the body.
        properties: Property name to NumPy type code ("f4", "u1", ...), in file order.
        lines: Number of header lines, `end_header` included.
        size: Number of header bytes; the body starts here.
    """

    byte_order: str
    count: int
    properties: dict[str, str]
    lines: int
    size: int


def parse(data: bytes) -> Header:
    """Parses `ply`, the format, one vertex element with scalar properties, and `end_header`.

    Comment and obj_info lines may stand anywhere after the first line.

    Raises:
        CodecError: Anything else is found.
    """
    if not data.startswith(b"ply"):
        shown = data[:_SHOWN_BYTES].partition(b"\n")[0].decode("latin-1")
        reason = "expected 'ply'" if data else "no 'end_header'"
        _refuse(1, shown, f"{reason}; the file is {describe(data)}")
    lines = _lines(data)
    number, line, _ = next(lines)
    if line != "ply":
        _refuse(number, line, "expected 'ply'")
    number, line, _ = next(lines)
    if line not in FORMATS:
        _refuse(number, line, f"expected one of {', '.join(map(repr, FORMATS))}")
    byte_order = FORMATS[line]
    number, line, _ = next(lines)
    element = _ELEMENT.fullmatch(line)
    if element is None:
        _refuse(number, line, "expected 'element vertex N'")
    properties: dict[str, str] = {}
    for number, line, size in lines:
        if line == "end_header":
            return Header(byte_order, int(element[1]), properties, number, size)
        found = _PROPERTY.fullmatch(line)
        if found is None:
            _refuse(
                number,
                line,
                "expected 'property TYPE NAME' or 'end_header' (the vertex element is the only "
                "one read, and list properties are not)",
            )
        kind, name = found.groups()
        if kind not in _TYPES:
            _refuse(number, line, f"unknown type; one of {', '.join(_TYPES)} expected")
        if name in properties:
            _refuse(number, line, "this property is named twice")
        properties[name] = _TYPES[kind]
    raise AssertionError("the line iterator ends only by raising")


def _lines(data: bytes) -> Iterator[tuple[int, str, int]]:
    """Yields (line number from 1, line without its LF, offset after it), comments left out."""
    offset = number = 0
    while True:
        number += 1
        end = data.find(b"\n", offset, MAX_HEADER_BYTES)
        if end < 0:
            shown = data[offset : offset + _SHOWN_CHARACTERS].decode("latin-1")
            _refuse(number, shown, f"no 'end_header' within the first {MAX_HEADER_BYTES} bytes")
        line = data[offset:end].decode("latin-1")
        offset = end + 1
        if line.endswith("\r"):
            _refuse(number, line, "lines must end with LF alone, not CR LF")
        if number > 1 and line.split(" ", 1)[0] in ("comment", "obj_info"):
            continue
        yield number, line, offset


def _refuse(number: int, line: str, reason: str) -> NoReturn:
    raise CodecError(f"PLY line {number}, {line[:_SHOWN_CHARACTERS]!r}: {reason}")
