"""Reads the body of a PLY file in pieces of some thousand rows, as columns of numbers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from protocol._ply_header import Header
from protocol.errors import CodecError

Columns = Mapping[str, NDArray[Any]]

_ROWS: Final = 1 << 14
_TEXT_BYTES: Final = 1 << 19
"""Text is read in pieces of this size; a line must fit into one."""

# float() takes more than a PLY may hold: 1_000, "infinity", digits of other scripts. What is
# written in these characters, and is a number to float(), is one to every reader.
_NUMBER_CHARACTERS: Final = b"0123456789+-.eE naifNAIF\t\n"
_NUMBER: Final = re.compile(
    rb"[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:inf|nan))"
)
_TOKEN: Final = re.compile(rb"[^ \t]+")
_SHOWN_CHARACTERS: Final = 40


def binary_rows(data: bytes, header: Header) -> Iterator[tuple[int, Columns]]:
    """Yields (first row, columns of the type in the file) of a binary body.

    Raises:
        CodecError: The body is shorter or longer than the header says.
    """
    row = np.dtype([(name, header.byte_order + code) for name, code in header.properties.items()])
    found, expected = len(data) - header.size, header.count * row.itemsize
    if found != expected:
        raise CodecError(
            f"the PLY body has {found} bytes, {header.count} rows of {row.itemsize} bytes take "
            f"{expected}: it ends in row {found // row.itemsize}"
        )
    table = np.frombuffer(data, row, offset=header.size)
    for start in range(0, header.count, _ROWS):
        piece = table[start : start + _ROWS]
        yield start, {name: piece[name] for name in header.properties}


def text_rows(data: bytes, header: Header, max_bytes: int) -> Iterator[tuple[int, Columns]]:
    """Yields (first row, float64 columns) of an ASCII body.

    A number is written in decimal, such as -1.5 or 2e-3, or is inf or nan; values of a line are
    parted by spaces or tabs.

    Raises:
        CodecError: The body has more than `max_bytes`, more or fewer lines than the header says, a
            line of the wrong length, or something that is no number.
    """
    if len(data) - header.size > max_bytes:
        raise CodecError(
            f"the ASCII PLY body has {len(data) - header.size} bytes, the limit is {max_bytes}; "
            "write the file as binary"
        )
    body = data[header.size :].rstrip(b"\n")
    found = body.count(b"\n") + 1
    if found != header.count:
        raise CodecError(f"the PLY body has {found} lines, the header says {header.count}")
    names = list(header.properties)
    start = offset = 0
    while start < header.count:
        piece = _some_lines(body, offset, header.lines + 1 + start)
        offset += len(piece) + 1
        values = _numbers(piece, len(names))
        if values is None:
            _refuse(piece, names, header, start)
        yield start, dict(zip(names, values.T, strict=True))
        start += len(values)


def _some_lines(body: bytes, offset: int, number: int) -> bytes:
    piece = body[offset : offset + _TEXT_BYTES]
    if offset + _TEXT_BYTES >= len(body):
        return piece
    end = piece.rfind(b"\n")
    if end < 0:
        raise CodecError(f"PLY line {number} is longer than {_TEXT_BYTES} bytes")
    return piece[:end]


def _numbers(piece: bytes, columns: int) -> NDArray[np.float64] | None:
    """Returns the values (lines, columns), or None if a line does not hold them."""
    if piece.translate(None, _NUMBER_CHARACTERS):
        return None
    characters = np.frombuffer(piece + b"\n", np.uint8)
    is_space = characters <= ord(" ")
    ends_token = np.zeros(len(characters), np.uint8)
    ends_token[1:] = is_space[1:] & ~is_space[:-1]
    line_ends = np.flatnonzero(characters == ord("\n"))
    line_starts = np.concatenate([[0], line_ends[:-1] + 1])
    if (np.add.reduceat(ends_token, line_starts, dtype=np.int32) != columns).any():
        return None
    try:
        values = np.fromiter(map(float, piece.split()), np.float64, len(line_ends) * columns)
    except ValueError:
        return None
    return values.reshape(-1, columns)


def _refuse(piece: bytes, names: Sequence[str], header: Header, start: int) -> NoReturn:
    """Raises an error about the first line that is wrong."""
    for row, line in enumerate(piece.split(b"\n"), start):
        where = f"PLY line {header.lines + 1 + row} (row {row})"
        tokens = list(_TOKEN.finditer(line))
        for token, name in zip(tokens, names, strict=False):
            if not _NUMBER.fullmatch(token[0]):
                shown = token[0][:_SHOWN_CHARACTERS].decode("latin-1")
                raise CodecError(
                    f"{where}, property {name[:_SHOWN_CHARACTERS]}: {shown!r} is not a number "
                    f"such as -1.5 or 2e-3 (column {token.start() + 1})"
                )
        if len(tokens) != len(names):
            raise CodecError(f"{where} has {len(tokens)} values, expected {len(names)}")
    raise AssertionError("every line is sound")
