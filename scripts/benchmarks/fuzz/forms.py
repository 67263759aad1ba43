"""Mutated forms: bodies of requests for the HTTP transport that are nearly right, or not at all.

A seed always gives the same body.
"""

import base64
import json
import random
import string
from collections.abc import Callable
from io import BytesIO
from urllib.parse import quote_plus

from PIL import Image

from protocol.tasks import MAX_SEED
from scripts.benchmarks.fuzz.requests import RawRequest

Mutation = Callable[[random.Random, bytes], bytes]

_HEADER_WORDS = (
    "charset=utf-8",
    "charset=latin-1",
    "charset=klingon",
    "charset=punycode",
    "charset=rot13",
    "charset=",
    'charset="',
    "boundary=",
    "boundary=B",
    f"boundary={'b' * 300}",
    'boundary="a b"',
    "boundary*=UTF-8''x",
    ";" * 50,
    "\x00",
    "\xff",
)
_TYPES = (
    "",
    "multipart/form-data",
    "multipart/mixed; boundary=B",
    "application/x-www-form-urlencoded",
    "application/json",
    "application/ld+json",
    "text/plain",
    "*/*",
    "x" * 2000,
)
_PIECES = (
    b"",
    b"\x00",
    b"\xff\xfe",
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b"--",
    b"%",
    b"%%4",
    b"%00",
    b"%FF",
    b"&",
    b"=",
    b"+",
    b";",
    b'"',
    b"\\ud800",
    b"{}",
    b"[[[[",
    b"-1",
    b"9" * 400,
    b"\xf0\x9f\x9a\x97",
    b"prompt",
    b"seed",
    b"candidates",
    b"task_id",
    b"prompt_image_file",
    b"data:image/png;base64,",
    b"iVBORw0KGgo",
    b"Content-Disposition: form-data\r\n",
    b"Content-Type: text/plain; charset=klingon\r\n",
    b"Content-Transfer-Encoding: base64\r\n",
)


def good_form(seed: int) -> tuple[str, bytes]:
    """Returns the Content-Type and the body of a form that the transport takes.

    Args:
        seed: Chooses the encoding, the fields and their content.
    """
    return _good(random.Random(seed))


def mutated_form(seed: int) -> tuple[str, bytes]:
    """Returns the Content-Type and the body of a form after some mutations.

    The Content-Type is of characters up to U+00FF, without line ends, as a header can hold them.

    Args:
        seed: Chooses the form and what happens to it.
    """
    chance = random.Random(seed)
    content_type, body = _good(chance)
    for _ in range(chance.randrange(4)):
        body = chance.choice(_MUTATIONS)(chance, body)
    if chance.random() < 0.3:
        content_type = _mutated_type(chance, content_type)
    return content_type, body


def form_request(chance: random.Random) -> RawRequest:
    """Returns a request with a form, mutated or not, for `requests.mutations` to change further.

    Args:
        chance: Chooses the form.
    """
    seed = chance.getrandbits(63)
    content_type, body = good_form(seed) if chance.random() < 0.3 else mutated_form(seed)
    headers = (
        (b"host", b"localhost"),
        (b"content-type", content_type.encode("latin-1")),
        (b"connection", b"close"),
    )
    return RawRequest(
        b"POST", chance.choice((b"/generate", b"/generate/", b"/jobs")), headers, body
    )


def _good(chance: random.Random) -> tuple[str, bytes]:
    fields: dict[str, str | bytes] = {}
    if chance.random() < 0.5:
        fields["prompt"] = chance.choice(
            ("a red car", "grüner Baum", "a\r\nb", "🚗 100 % & more = fun", "x" * 1024)
        )
    else:
        fields["prompt_image_file"] = _picture(chance)
    if chance.random() < 0.5:
        fields["seed"] = str(chance.choice((-1, 0, 7, MAX_SEED)))
    if chance.random() < 0.3:
        fields["candidates"] = str(chance.choice((1, 4, 1000)))
    if chance.random() < 0.3:
        fields["task_id"] = chance.choice(("t-1", "größer", "x" * 128))
    if chance.random() < 0.3:
        fields["other"] = chance.choice(("", "y" * 1000))
    encoding = chance.choice((_multipart, _urlencoded, _json))
    return encoding(chance, fields)


def _picture(chance: random.Random) -> bytes:
    file = BytesIO()
    picture = Image.new("RGB", (chance.randrange(1, 40), chance.randrange(1, 40)), (200, 30, 30))
    picture.save(file, chance.choice(("PNG", "JPEG", "WEBP")))
    return file.getvalue()


def _multipart(chance: random.Random, fields: dict[str, str | bytes]) -> tuple[str, bytes]:
    boundary = "".join(chance.choices(string.ascii_letters, k=chance.choice((1, 16, 60))))
    body = b""
    for name, value in fields.items():
        file = '; filename="a.png"\r\nContent-Type: image/png' if isinstance(value, bytes) else ""
        content = value if isinstance(value, bytes) else value.encode()
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'
        body += head.encode() + content + b"\r\n"
    return f"multipart/form-data; boundary={boundary}", body + f"--{boundary}--\r\n".encode()


def _urlencoded(chance: random.Random, fields: dict[str, str | bytes]) -> tuple[str, bytes]:
    texts = _texts(fields)
    pairs = (f"{name}={quote_plus(value)}" for name, value in texts.items())
    return "application/x-www-form-urlencoded", "&".join(pairs).encode()


def _json(chance: random.Random, fields: dict[str, str | bytes]) -> tuple[str, bytes]:
    return "application/json", json.dumps(
        _texts(fields), ensure_ascii=chance.random() < 0.5
    ).encode()


def _texts(fields: dict[str, str | bytes]) -> dict[str, str]:
    """The fields of a form without files: a picture is the base64 in the field prompt."""
    return {
        "prompt" if isinstance(value, bytes) else name: base64.b64encode(value).decode()
        if isinstance(value, bytes)
        else value
        for name, value in fields.items()
    }


def _mutated_type(chance: random.Random, content_type: str) -> str:
    match chance.randrange(4):
        case 0:
            return chance.choice(_TYPES)
        case 1:
            return f"{content_type}; {chance.choice(_HEADER_WORDS)}"
        case 2:
            at = chance.randrange(len(content_type) + 1)
            return content_type[:at] + chance.choice(_HEADER_WORDS) + content_type[at:]
        case _:
            return content_type.swapcase()


def _insert(chance: random.Random, body: bytes) -> bytes:
    at = chance.randrange(len(body) + 1)
    return body[:at] + chance.choice(_PIECES) + body[at:]


def _replace(chance: random.Random, body: bytes) -> bytes:
    start = chance.randrange(len(body) + 1)
    end = min(len(body), start + chance.choice((1, 2, 16, 200)))
    return body[:start] + chance.choice(_PIECES) + body[end:]


def _flip_bits(chance: random.Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(min(len(body), chance.choice((1, 4, 32)))):
        changed[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _cut(chance: random.Random, body: bytes) -> bytes:
    return body[: chance.randrange(len(body) + 1)]


def _repeat(chance: random.Random, body: bytes) -> bytes:
    start = chance.randrange(len(body) + 1)
    end = min(len(body), start + chance.choice((1, 8, 64, len(body))))
    return body[:start] + body[start:end] * chance.choice((2, 3, 100)) + body[end:]


def _swap_names(chance: random.Random, body: bytes) -> bytes:
    names = [b"prompt_image_file", b"prompt", b"seed", b"task_id", b"promt", b"filename", b"name"]
    old, new = chance.sample(names, 2)
    return body.replace(old, new)


def _other_line_ends(chance: random.Random, body: bytes) -> bytes:
    return body.replace(b"\r\n", chance.choice((b"\n", b"\r", b"\r\r\n")))


_MUTATIONS: tuple[Mutation, ...] = (
    _insert,
    _replace,
    _flip_bits,
    _cut,
    _repeat,
    _swap_names,
    _other_line_ends,
)
