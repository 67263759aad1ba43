"""The bodies of requests, as browsers, curl and HTTP libraries send them, taken apart in memory.

A whole body is at hand, so nothing is written to a temporary folder. Every step is bounded: the
number of fields, of headers and of JSON values, whatever the size of the body.
"""

import logging
from dataclasses import dataclass, field

import numpy as np
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.exceptions import HTTPException

from protocol.documents import DocumentError, parse_json
from protocol.text import printable

NAMES = ("prompt", "prompt_image_file", "seed", "candidates", "task_id", "format")
"""The fields that are read; others are ignored."""

MAX_FIELDS = 64
MAX_JSON_PARTS = 4096
"""Commas, colons and brackets of a JSON body, at most; those in its texts count too."""

CONTENT_TYPE_CHARACTERS = 1024
HOW_TO_SEND = 'curl -F "prompt=a blue cube" or curl -F prompt_image_file=@chair.png'

# Its parser warns of every damaged form, and strangers could fill a disk.
logging.getLogger("python_multipart").setLevel(logging.ERROR)

_UNESCAPE_BLOCK = 2**16
_PERCENT = ord("%")
_PLUS_IS_SPACE = bytes.maketrans(b"+", b" ")
_HEX = np.full(256, 16, np.uint8)
_HEX[list(b"0123456789abcdef")] = range(16)
_HEX[list(b"ABCDEF")] = range(10, 16)


@dataclass(frozen=True)
class Field:
    """One field of a form.

    Attributes:
        name: Its name.
        value: Its content, as it was sent.
        filename: The name of the file; "" for a file input left empty, None if it is no file.
        charset: The encoding that its sender names, "" if none.
    """

    name: str
    value: bytes = field(repr=False)
    filename: str | None = None
    charset: str = ""


def read_fields(content_type: str, body: bytes) -> list[Field]:
    """Takes a multipart or urlencoded form, or a JSON object, apart.

    Takes tenths of a second for the largest bodies: call it off the event loop.

    Args:
        content_type: The header of the request.
        body: All of it.

    Raises:
        starlette.exceptions.HTTPException: Status 400, the body is damaged or has too many fields;
            415, it is of another type.
    """
    if len(content_type) > CONTENT_TYPE_CHARACTERS:
        raise HTTPException(
            415, f"the Content-Type has more than {CONTENT_TYPE_CHARACTERS} characters"
        )
    kind, options = parse_options_header(content_type)
    charset = options.get(b"charset", b"").decode("latin-1")
    if kind == b"multipart/form-data":
        return _multipart(body, options.get(b"boundary", b""), charset)
    if kind == b"application/x-www-form-urlencoded":
        return _urlencoded(body, charset)
    if kind == b"application/json":
        return _json(body)
    shown = printable(kind.decode("latin-1"), 60) or "missing"
    raise HTTPException(
        415,
        f"the Content-Type is {shown}; send multipart/form-data, "
        f"application/x-www-form-urlencoded or application/json: {HOW_TO_SEND}",
    )


def _urlencoded(body: bytes, charset: str) -> list[Field]:
    if body.count(b"&") >= MAX_FIELDS:
        raise _too_many_fields()
    fields = []
    for pair in body.split(b"&"):
        if pair:
            name, _, value = pair.partition(b"=")
            fields.append(Field(_name(_unescape(name)), _unescape(value), charset=charset))
    return fields


def _unescape(text: bytes) -> bytes:
    if b"%" not in text and b"+" not in text:
        return text
    blocks, start = [], 0
    while start < len(text):
        end = start + _UNESCAPE_BLOCK
        if end < len(text):  # Do not cut through an escape.
            end -= 2 if text[end - 2] == _PERCENT else text[end - 1] == _PERCENT
        blocks.append(_unescaped_block(text[start:end]))
        start = end
    return b"".join(blocks)


def _unescaped_block(text: bytes) -> bytes:
    """Replaces %XX by its byte, and + by a space; a % without two digits stays, as in browsers.

    The standard library needs seconds and gigabytes where every character is escaped.
    """
    letters = np.frombuffer(text.translate(_PLUS_IS_SPACE), np.uint8)
    if len(letters) < 3:
        return letters.tobytes()
    high, low = _HEX[letters[1:-1]], _HEX[letters[2:]]
    escapes = (letters[:-2] == _PERCENT) & (high < 16) & (low < 16)
    result = letters.copy()
    result[:-2][escapes] = (high[escapes] << 4) | low[escapes]
    keep = np.ones(len(letters), bool)
    keep[1:-1][escapes] = False
    keep[2:][escapes] = False
    return result[keep].tobytes()


def _multipart(body: bytes, boundary: bytes, charset: str) -> list[Field]:
    if not boundary:
        raise HTTPException(
            400,
            "Missing boundary in the Content-Type of a multipart form; let the HTTP library "
            "set that header",
        )
    # The parser is slow where a boundary is nearly complete, again and again.
    if body.count(b"\r\n--" + boundary) > MAX_FIELDS + 1:
        raise _too_many_fields()
    parts = _Parts(charset)
    try:
        MultipartParser(boundary, parts.callbacks()).write(body)  # type: ignore[arg-type]
    except FormParserError as error:
        raise HTTPException(
            400, f"Invalid multipart form: {printable(str(error))}; send it with {HOW_TO_SEND}"
        ) from None
    if not parts.complete:
        raise HTTPException(
            400, "Invalid multipart form: it ends before its closing boundary; send all of it"
        )
    return parts.fields


class _Parts:
    """Collects the parts of a multipart form."""

    def __init__(self, charset: str) -> None:
        self.fields: list[Field] = []
        self.complete = False
        self._charset = charset
        self._headers: dict[bytes, bytes] = {}
        self._header = self._value = b""
        self._data: list[bytes] = []

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": lambda data, start, end: self._data.append(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        if len(self.fields) == MAX_FIELDS:
            raise _too_many_fields()
        self._headers, self._data = {}, []

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header = self._value = b""

    def _end(self) -> None:
        _, options = parse_options_header(
            self._headers.get(b"content-disposition", b"").decode("latin-1")
        )
        _, type_options = parse_options_header(
            self._headers.get(b"content-type", b"").decode("latin-1")
        )
        filename = options.get(b"filename")
        self.fields.append(
            Field(
                _name(options.get(b"name", b"")),
                b"".join(self._data),
                None if filename is None else _name(filename),
                type_options.get(b"charset", b"").decode("latin-1") or self._charset,
            )
        )

    def _finish(self) -> None:
        self.complete = True


def _json(body: bytes) -> list[Field]:
    if sum(body.count(letter) for letter in (b",", b":", b"[", b"{")) > MAX_JSON_PARTS:
        raise HTTPException(400, f"the JSON has more than {MAX_JSON_PARTS} parts; send the fields")
    try:
        document = parse_json(body.decode("utf-8-sig"), "the body")
    except UnicodeDecodeError:
        raise HTTPException(400, "the body cannot be read: JSON is written in UTF-8") from None
    except DocumentError as error:
        raise HTTPException(400, str(error)) from None
    if not isinstance(document, dict):
        raise HTTPException(
            400, 'the JSON is no object; send {"prompt": "a blue cube"}, with a seed if you like'
        )
    if len(document) > MAX_FIELDS:
        raise _too_many_fields()
    for name in NAMES:
        if isinstance(document.get(name), bool | list | dict):
            raise HTTPException(400, f"{name} is neither text nor a number in the JSON")
    return [
        Field(name, (value if isinstance(value, str) else str(value)).encode())
        for name, value in document.items()
        if value is not None
    ]


def _name(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _too_many_fields() -> HTTPException:
    return HTTPException(400, f"Too many fields in the form; the limit is {MAX_FIELDS}")
