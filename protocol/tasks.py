"""Tasks: what a validator asks for, whichever way it comes."""

import base64
import binascii
import re
import unicodedata
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from protocol.errors import TaskError
from protocol.images import ImageLimits, read_header

MAX_SEED = 2**32 - 1
RANDOM_SEED = -1
"""What the subnet's base miners send, and take, as "no seed"."""

MAX_PROMPT_CHARACTERS = 1024
MAX_ID_CHARACTERS = 128

Seed = Annotated[int | None, Field(ge=0, le=MAX_SEED)]
TaskId = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARACTERS)]

_UNSAFE_IN_A_LOG = re.compile(r"[^A-Za-z0-9._:-]")

_DATA_URI = re.compile(r"\s*data:[^,]{0,100};base64,", re.IGNORECASE)
# URL-safe letters become the usual ones, line breaks go. A form turns a + that its sender did not
# escape into a space.
_USUAL_ALPHABET = bytes.maketrans(b"-_ ", b"+/+")
_PICTURE = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff[\xc0-\xcf\xda-\xef\xfe]|RIFF.{4}WEBP|GIF8[79]a|.{4}ftyp",
    re.DOTALL,
)
"""How pictures begin: the formats that are read, and two that deserve to be refused as pictures."""

_PICTURE_BASE64_CHARACTERS = 24


@dataclass(frozen=True)
class TaskLimits:
    """What a task may be on the wire.

    Attributes:
        prompt_characters: Longest text prompt, after white space has been folded.
        image: Limits of an image prompt, applied to the decoded file and its header.
    """

    prompt_characters: int = MAX_PROMPT_CHARACTERS
    image: ImageLimits = field(default_factory=ImageLimits)

    @property
    def base64_characters(self) -> int:
        """Longest image prompt in its base64 form."""
        return 4 * ((self.image.bytes + 2) // 3)


class _Task(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: TaskId
    seed: Seed = None

    @property
    def log_id(self) -> str:
        """The id as a log may hold it: at most 64 characters, letters, digits and `._:-` only."""
        return log_safe(self.id)


class TextTask(_Task):
    """A cloud of what the prompt describes.

    Attributes:
        id: The caller's name for the task, 1..128 characters.
        prompt: 1..1024 characters on one line, free of control characters.
        seed: 0..2**32-1, or None to leave the choice to the generator.
    """

    kind: Literal["text"] = "text"
    prompt: str = Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)

    @field_validator("prompt")
    @classmethod
    def _no_control_characters(cls, prompt: str) -> str:
        for position, character in enumerate(prompt):
            if unicodedata.category(character) in ("Cc", "Cs"):
                raise ValueError(f"control character U+{ord(character):04X} at position {position}")
        return prompt


class ImageTask(_Task):
    """A cloud of the object that the image shows.

    Attributes:
        id: The caller's name for the task, 1..128 characters.
        image: An encoded PNG, JPEG or WebP file; its header has been checked, its pixels have not.
        seed: 0..2**32-1, or None to leave the choice to the generator.
    """

    kind: Literal["image"] = "image"
    image: bytes = Field(min_length=1, repr=False)


Task = TextTask | ImageTask


def log_safe(text: str) -> str:
    """Returns the first 64 characters, with all but letters, digits and `._:-` made `?`."""
    return _UNSAFE_IN_A_LOG.sub("?", text[:64])


def is_picture(prompt: str) -> bool:
    """Returns whether a text is the base64 of a picture, and not words.

    Looks at its beginning only, so that a damaged or unknown picture is reported as one.

    Args:
        prompt: Any text; white space at its beginning is ignored.
    """
    start = prompt.lstrip()[:200]
    if _DATA_URI.match(start):
        return True
    head = _compact(start)[:_PICTURE_BASE64_CHARACTERS]
    try:
        return _PICTURE.match(base64.b64decode(_padded(head), validate=True)) is not None
    except binascii.Error:
        return False


def parse_task(
    *,
    kind: str,
    task_id: str,
    prompt: str,
    seed: int | None = None,
    limits: TaskLimits | None = None,
) -> Task:
    """Turns the wire form of a task into a checked value.

    Decoding megabytes of base64 takes tens of milliseconds: call it off the event loop.

    Args:
        kind: "text" or "image".
        task_id: The caller's id; an empty one is replaced by a fresh UUID.
        prompt: The text, or the base64 of a PNG, JPEG or WebP file. A picture's base64 may be
            URL-safe, broken into lines, without its padding, or a `data:` URI.
        seed: 0..2**32-1, or None or -1 to leave the choice to the generator.
        limits: What is acceptable; the defaults of `TaskLimits` if not given.

    Raises:
        TaskError: A value of the wrong type or beyond its limit; the message says which, and never
            repeats the prompt.
    """
    limits = limits or TaskLimits()
    if not isinstance(prompt, str):
        raise TaskError(f"prompt must be a string, got {type(prompt).__name__}")
    identity = task_id or str(uuid.uuid4())
    if seed == RANDOM_SEED:
        seed = None
    try:
        if kind == "text":
            return TextTask(id=identity, prompt=_text(prompt, limits), seed=seed)
        if kind == "image":
            return ImageTask(id=identity, image=_image(prompt, limits), seed=seed)
    except ValidationError as error:
        first = error.errors()[0]
        raise TaskError(f"{first['loc'][0]}: {first['msg']}") from None
    raise TaskError(f"task type must be 'text' or 'image', got {log_safe(str(kind))!r}")


def _text(prompt: str, limits: TaskLimits) -> str:
    # The length is checked first so that ten megabytes are not folded only to be refused.
    if len(prompt) > limits.prompt_characters:
        raise TaskError(
            f"prompt has {len(prompt)} characters, "
            f"the limit is {limits.prompt_characters}; shorten it"
        )
    folded = re.sub(r"[ \t\r\n]+", " ", prompt).strip()
    if not folded:
        raise TaskError("prompt is empty; describe one object")
    return folded


def _image(prompt: str, limits: TaskLimits) -> bytes:
    if not prompt:
        raise TaskError("image prompt is empty; send the base64 of a PNG, JPEG or WebP file")
    data = _from_base64(prompt, limits)
    read_header(data, limits.image)
    return data


def _from_base64(prompt: str, limits: TaskLimits) -> bytes:
    strict_error: ValueError | None = None
    if len(prompt) <= limits.base64_characters:
        try:
            return base64.b64decode(prompt, validate=True)
        except ValueError as error:
            strict_error = error
    compact = _compact(prompt)
    if len(compact) > limits.base64_characters:
        raise TaskError(
            f"image prompt has {len(compact)} base64 characters, the limit is "
            f"{limits.base64_characters}; send a smaller image"
        )
    try:
        data = base64.b64decode(_padded(compact), validate=True)
    except ValueError as error:
        strict_error = strict_error or error
    else:
        if strict_error is None or _PICTURE.match(data):
            return data
    raise TaskError(f"image prompt is not base64 ({strict_error}); encode the file's bytes")


def _compact(prompt: str) -> bytes:
    """Brings base64 into one line of the usual alphabet, without its padding."""
    start = uri.end() if (uri := _DATA_URI.match(prompt)) else 0
    ascii_only = prompt[start:].encode("ascii", "replace").strip().rstrip(b"=")
    return ascii_only.translate(_USUAL_ALPHABET, b"\r\n\t")


def _padded(compact: bytes) -> bytes:
    return compact + b"=" * (-len(compact) % 4)
