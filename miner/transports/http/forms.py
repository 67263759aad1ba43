"""Reads tasks from forms and JSON."""

import asyncio
import codecs
import difflib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast, get_args

from starlette.exceptions import HTTPException
from starlette.requests import Request

from miner.transports.http.bodies import HOW_TO_SEND, NAMES, Field, read_fields
from miner.transports.http.models import MAX_CANDIDATES, FormatName
from miner.transports.refusals import RETRY_AFTER_S
from protocol.errors import TaskError
from protocol.images import read_header
from protocol.tasks import (
    MAX_ID_CHARACTERS,
    MAX_SEED,
    RANDOM_SEED,
    ImageTask,
    Task,
    TaskLimits,
    is_picture,
    log_safe,
    parse_task,
)
from protocol.text import printable

ENVELOPE_BYTES = 64 * 1024
"""Bytes of a form beside the prompt, at most."""

MAX_HELD_BYTES = 256 * 2**20
"""Bytes of all bodies that are being read or taken apart, at most."""

PARSERS = 2
"""Bodies that are taken apart at once."""

# The encodings that forms have been sent in; others, punycode among them, can take minutes.
_CHARSETS = frozenset(
    codecs.lookup(name).name
    for name in (
        *(f"iso8859-{part}" for part in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14, 15, 16)),
        *(f"cp125{page}" for page in range(9)),
        *("koi8-r", "koi8-u", "shift_jis", "euc-jp", "gbk", "gb18030", "big5", "euc-kr"),
    )
)


def max_body_bytes(limits: TaskLimits) -> int:
    """Returns the size of the largest body: a picture in base64, every character escaped."""
    return 3 * limits.base64_characters + ENVELOPE_BYTES


class FormReader:
    """Reads the bodies of requests into memory, within a bound on all of them together.

    Args:
        on_full: Called with the reason when a body finds no room.
        max_held_bytes: Bytes of all bodies, at most.
    """

    def __init__(
        self, on_full: Callable[[str], object], max_held_bytes: int = MAX_HELD_BYTES
    ) -> None:
        self._on_full = on_full
        self._max_held_bytes = max_held_bytes
        self._held = 0
        self._parsing = asyncio.Semaphore(PARSERS)

    async def read(self, request: Request) -> "Form":
        """Reads one body, whose size has been limited, and takes it apart.

        Raises:
            starlette.exceptions.HTTPException: Status 400, the body is damaged; 415, it is of
                another type or compressed; 503, other bodies take all memory.
            starlette.requests.ClientDisconnect: The client left before the body was complete.
        """
        encoding = request.headers.get("content-encoding", "identity")
        if encoding.strip().lower() not in ("", "identity"):
            raise HTTPException(
                415, f"the Content-Encoding is {printable(encoding, 60)}; send the body as it is"
            )
        chunks: list[bytes] = []
        size = 0
        try:
            async for chunk in request.stream():
                if self._held + len(chunk) > self._max_held_bytes:
                    reason = (
                        f"the bodies of all requests take more than {self._max_held_bytes} bytes, "
                        "which is the limit; try again later"
                    )
                    self._on_full(reason)
                    raise HTTPException(503, reason, {"Retry-After": str(RETRY_AFTER_S)})
                self._held += len(chunk)
                size += len(chunk)
                chunks.append(chunk)
            content_type = request.headers.get("content-type", "")
            async with self._parsing:
                return await asyncio.to_thread(_parsed, content_type, chunks)
        finally:
            self._held -= size


def _parsed(content_type: str, chunks: list[bytes]) -> "Form":
    body = b"".join(chunks)
    chunks.clear()
    return Form(tuple(read_fields(content_type, body)))


@dataclass(frozen=True)
class Form:
    """The fields of a request: `prompt` or `prompt_image_file`; perhaps others of `bodies.NAMES`.

    Other fields are ignored. So are empty ones, which browsers send for inputs left empty.

    Attributes:
        fields: As they were sent.
    """

    fields: tuple[Field, ...]

    def task_id(self) -> str:
        """Returns the caller's id of the task, or a fresh one if it gives none that can be used."""
        try:
            return self._id() or str(uuid.uuid4())
        except TaskError:
            return str(uuid.uuid4())

    def format(self, offered: Sequence[FormatName]) -> FormatName:
        """Returns the file format that is asked for, "ply" if none is.

        Args:
            offered: What the message about a wrong one names.

        Raises:
            TaskError: There is no such format.
        """
        given = self._one("format")
        if given is None:
            return "ply"
        text = given.value[:100].decode("utf-8", "replace").strip().lower().removeprefix(".")
        for name in get_args(FormatName):
            if name == text and not given.filename:
                return cast(FormatName, name)
        names = ", ".join(offered)
        shown = "a file" if given.filename else log_safe(text)
        raise TaskError(f"format must be one of {names}; got {shown}")

    def candidates(self) -> int | None:
        """Returns how many pictures may be drawn for the task, None if the miner decides.

        Raises:
            TaskError: It is no number from 1 to `MAX_CANDIDATES`.
        """
        given = self._one("candidates")
        if given is None:
            return None
        number, shown = _whole(given)
        if number is not None and 1 <= number <= MAX_CANDIDATES:
            return number
        raise TaskError(
            f"candidates must be a whole number from 1 to {MAX_CANDIDATES}; got {shown}"
        )

    def task(self, task_id: str, limits: TaskLimits) -> Task:
        """Returns the task.

        Takes tens of milliseconds for a large picture: call it off the event loop.

        Args:
            task_id: What `task_id` returned.
            limits: Limits on tasks.

        Raises:
            TaskError: A field is missing, of the wrong kind or beyond its limit.
        """
        self._id()
        prompt, image = self._one("prompt"), self._one("prompt_image_file")
        if prompt is None and image is None:
            raise TaskError(self._what_is_missing())
        if prompt is not None and image is not None:
            raise TaskError(
                "the form has both the field prompt (text) and the file prompt_image_file; "
                "send one of them"
            )
        seed = self._seed()
        if image is not None:
            return _image_task(image, task_id, seed, limits)
        assert prompt is not None
        if prompt.filename:
            raise TaskError("prompt is a file; send text, or an image as prompt_image_file")
        text = _text(prompt)
        kind = "image" if is_picture(text) else "text"
        return parse_task(kind=kind, task_id=task_id, prompt=text, seed=seed, limits=limits)

    def _one(self, name: str) -> Field | None:
        """The field of a name that is not empty, if any."""
        given = [field for field in self.fields if field.name == name and not _is_empty(field)]
        if len({field.value for field in given}) > 1:
            raise TaskError(f"the form has the field {name} {len(given)} times; send one")
        return given[0] if given else None

    def _id(self) -> str:
        given = self._one("task_id")
        if given is None:
            return ""
        if given.filename:
            raise TaskError("task_id is a file; send text")
        task_id = _text(given).strip()
        if len(task_id) > MAX_ID_CHARACTERS:
            raise TaskError(
                f"task_id has {len(task_id)} characters, the limit is {MAX_ID_CHARACTERS}"
            )
        return task_id

    def _seed(self) -> int | None:
        given = self._one("seed")
        if given is None:
            return None
        seed, shown = _whole(given)
        if seed is not None and (seed == RANDOM_SEED or 0 <= seed <= MAX_SEED):
            return seed
        raise TaskError(
            f"seed must be a whole number from 0 to {MAX_SEED}, or {RANDOM_SEED} for any; "
            f"got {shown}"
        )

    def _what_is_missing(self) -> str:
        if any(field.name == "prompt" for field in self.fields):
            return "prompt is empty; describe one object"
        message = "the form has neither the field prompt (text) nor the file prompt_image_file"
        others = [field for field in self.fields if field.name not in NAMES]
        if any(field.name.lstrip().startswith("{") for field in others):
            return f"{message}: it is JSON; send it with -H 'Content-Type: application/json'"
        for field in others:
            if (meant := _meant(field)) is not None:
                return f"{message}; it has {printable(field.name, 40)}: did you mean {meant}?"
        names = ", ".join(printable(field.name, 40) for field in others[:4])
        return f"{message}{f'; it has {names}' if names else ''}; send {HOW_TO_SEND}"


def _meant(field: Field) -> str | None:
    """The name that a field of an unknown name was probably meant to have."""
    name = field.name[:40].strip().lower()
    if field.filename or any(word in name for word in ("image", "file", "picture")):
        return "prompt_image_file"
    close = difflib.get_close_matches(name, NAMES[:2], n=1)
    return close[0] if close else None


def _is_empty(field: Field) -> bool:
    return not field.filename and not field.value.strip()


def _whole(field: Field) -> tuple[int | None, str]:
    """The whole number of a field, None if it is none; and the field as messages show it."""
    if field.filename:
        return None, "a file"
    text = field.value[:100].decode("utf-8", "replace").strip()
    digits = text.removeprefix("-")
    is_whole = digits.isascii() and digits.isdecimal() and len(digits) <= 10
    return int(text) if is_whole else None, log_safe(text)


def _image_task(field: Field, task_id: str, seed: int | None, limits: TaskLimits) -> Task:
    try:
        text = _text(field)
    except TaskError:
        text = ""  # The bytes of a picture.
    if is_picture(text):
        return parse_task(kind="image", task_id=task_id, prompt=text, seed=seed, limits=limits)
    if text and not field.filename:
        raise TaskError(
            "prompt_image_file is text; send a file: -F prompt_image_file=@chair.png, or "
            'in HTML enctype="multipart/form-data"'
        )
    read_header(field.value, limits.image)
    return ImageTask(id=task_id, image=field.value, seed=None if seed == RANDOM_SEED else seed)


def _text(field: Field) -> str:
    """The text of a field: UTF-8, whatever is declared; else as declared."""
    try:
        return field.value.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    try:
        charset = codecs.lookup(field.charset).name
        if charset in _CHARSETS:
            return field.value.decode(charset)
    except (LookupError, ValueError):
        pass
    raise TaskError(f"{field.name} is not text in UTF-8; send it in that encoding")
