"""Valid HTTP requests, changed at one to three places each; the same ones for the same seed."""

import contextlib
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class RawRequest:
    """An HTTP/1.1 request as bytes.

    Attributes:
        method: Such as b"POST".
        target: Path and query as they are sent.
        headers: Names and values, in order. Where none frames the body, `encode` adds its length.
        body: The body.
        cut: Bytes of the message that are not sent, counted from its end.
    """

    method: bytes
    target: bytes
    headers: Headers
    body: bytes = b""
    cut: int = 0

    def encode(self) -> bytes:
        """The message, in which nothing is escaped."""
        framed = {b"content-length", b"transfer-encoding"} & {n.lower() for n, _ in self.headers}
        length = () if framed else ((b"content-length", str(len(self.body)).encode()),)
        lines = b"".join(b"%s: %s\r\n" % line for line in (*self.headers, *length))
        message = b"%s %s HTTP/1.1\r\n%s\r\n%s" % (self.method, self.target, lines, self.body)
        return message[: max(1, len(message) - self.cut)] if self.cut else message

    def with_header(self, name: bytes, value: bytes) -> "RawRequest":
        """The same request with another value of a header."""
        kept = tuple(line for line in self.headers if line[0].lower() != name.lower())
        return replace(self, headers=(*kept, (name, value)))


@dataclass(frozen=True)
class Mutation:
    """A changed request.

    Attributes:
        name: What was changed, in order.
        message: The bytes to send.
        complete: Whether the server can know where the request ends.
    """

    name: str
    message: bytes
    complete: bool


Mutator = Callable[[RawRequest, random.Random], RawRequest]

ODD_VALUES = (
    *(b"", b" ", b"0", b"-1", b"-0", b"1e400", b"nan", b"inf", b"-inf", b"1_000", b"0x10"),
    *(b"9" * 26, b"9" * 5000, b"1.5", b"+1", b"None", b"null", b"true", b"[]", b"{}", b'"'),
    *(b"\xff\xfe", "é".encode(), "١٢٣".encode(), b"\xed\xa0\x80", b"\x1b[2J", b"a\tb"),
    *(b"%00", b"%ff", b"../../etc/passwd", b"[/x]", b"<script>", b"x" * 10_000),
)
ODD_TARGETS = (
    *(b"/", b"//", b"*", b"x", b"/%ff", b"/%00", b"/%", b"/%1b[2J", b"/..%2f..%2fetc", b"/docs"),
    *(
        b"/openapi.json",
        b"/jobs/x",
        b"/jobs/%2e%2e/files/asset.ply",
        b"/jobs/x/events",
        b"/docs/..%2fserver.py",
        b"/web/..%2f__init__.py",
        b"/Synapse",
        b"/\xff\xfe",
        "/é".encode(),
        b"http://[::1/",
        b"/?" + b"a" * 9000,
    ),
)
ODD_METHODS = (
    *(b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE", b"CONNECT", b"PATCH", b"post"),
    *(b"P\xffST", b"", b"X" * 500, b"PRI"),
)
ODD_TYPES = (
    *(b"", b"text/plain", b"text/html; charset=utf-16", b"application/octet-stream", b";;;="),
    *(b"application/x-www-form-urlencoded", b"multipart/form-data", b"application/json; charset=x"),
    *(b"multipart/form-data; boundary=", b"multipart/form-data; boundary=" + b"b" * 300),
    *(b"multipart/form-data; boundary=\xff\xff", b"application/json\xff", b"image/png"),
)
ODD_JSON: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**64, -(2**70), 1e308, float("nan"), float("inf"), "", "x" * 5000),
    *([], [[]], {}, {"a": {"b": []}}, "\ud800", "\x00", "\u202e", "[/x]", ["x"] * 100, "-1", "é"),
)


def _pick(text: bytes, rng: random.Random) -> int:
    return rng.randrange(len(text)) if text else 0


def change_method(request: RawRequest, rng: random.Random) -> RawRequest:
    """Another method."""
    return replace(request, method=rng.choice(ODD_METHODS))


def change_target(request: RawRequest, rng: random.Random) -> RawRequest:
    """Another path, or the same with something odd in it."""
    if rng.random() < 0.5:
        return replace(request, target=rng.choice(ODD_TARGETS))
    at = _pick(request.target, rng)
    odd = rng.choice(ODD_VALUES)
    return replace(request, target=request.target[:at] + odd + request.target[at:])


def drop_header(request: RawRequest, rng: random.Random) -> RawRequest:
    """One header less."""
    at = rng.randrange(len(request.headers))
    return replace(request, headers=request.headers[:at] + request.headers[at + 1 :])


def repeat_header(request: RawRequest, rng: random.Random) -> RawRequest:
    """One header twice, with the same value or another."""
    name, value = rng.choice(request.headers)
    again = (name, rng.choice((value, rng.choice(ODD_VALUES))))
    return replace(request, headers=(*request.headers, again))


def change_header(request: RawRequest, rng: random.Random) -> RawRequest:
    """An odd value in one header."""
    at = rng.randrange(len(request.headers))
    changed = (request.headers[at][0], rng.choice(ODD_VALUES))
    return replace(request, headers=(*request.headers[:at], changed, *request.headers[at + 1 :]))


def flip_header(request: RawRequest, rng: random.Random) -> RawRequest:
    """One other byte in the value of a header."""
    at = rng.randrange(len(request.headers))
    name, value = request.headers[at]
    place = _pick(value, rng)
    changed = (name, value[:place] + bytes([rng.randrange(256)]) + value[place + 1 :])
    return replace(request, headers=(*request.headers[:at], changed, *request.headers[at + 1 :]))


def odd_header_name(request: RawRequest, rng: random.Random) -> RawRequest:
    """A header more, whose name may not be one."""
    name = rng.choice((b"x", b"x y", b"", b"\xff", b"bt_header_axon_nonce", b":", b"x" * 70_000))
    return replace(request, headers=(*request.headers, (name, rng.choice(ODD_VALUES))))


def change_type(request: RawRequest, rng: random.Random) -> RawRequest:
    """Another content type, or a coding that is not there."""
    if rng.random() < 0.2:
        coding = rng.choice((b"gzip", b"br", b"identity", b"\xff"))
        return request.with_header(b"content-encoding", coding)
    return request.with_header(b"content-type", rng.choice(ODD_TYPES))


def change_framing(request: RawRequest, rng: random.Random) -> RawRequest:
    """A wrong length, or a transfer coding that the body does not have."""
    length = len(request.body)
    lengths = (b"-1", b"x", b"1e3", b"9" * 30, b"0", str(length + 7).encode(), b"4,4", b"\xb2")
    if rng.random() < 0.6:
        return request.with_header(b"content-length", rng.choice(lengths))
    if rng.random() < 0.5:
        whole = b"%x\r\n%s\r\n0\r\n\r\n" % (length, request.body)
        return replace(request, body=whole).with_header(b"transfer-encoding", b"chunked")
    return request.with_header(b"transfer-encoding", rng.choice((b"chunked", b"gzip", b"\xff")))


def change_body(request: RawRequest, rng: random.Random) -> RawRequest:
    """Another body: cut, flipped, of another encoding, or none."""
    body, at = request.body, _pick(request.body, rng)
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: b"",
        lambda: body[:at],
        lambda: body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :],
        lambda: body[:at] + rng.choice(ODD_VALUES) + body[at:],
        lambda: body + body,
        lambda: b"\xef\xbb\xbf" + body,
        lambda: body.decode("latin-1").encode(rng.choice(("utf-16", "utf-32", "utf-7"))),
        lambda: rng.randbytes(rng.randrange(200)),
        lambda: rng.choice((b"[]", b"null", b"7", b'"x"', b"NaN", b"{", b"{}", b"\x00")),
        lambda: b'{"a":' * 50_000,
        lambda: b"[" * 100_000 + b"]" * 100_000,
    )
    return replace(request, body=rng.choice(kinds)())


def change_json(request: RawRequest, rng: random.Random) -> RawRequest:
    """An odd value somewhere in a JSON body; another change where the body is not JSON."""
    try:
        document = json.loads(request.body)
    except (ValueError, RecursionError):
        return change_body(request, rng)
    node: Any = document
    parents: list[tuple[Any, Any]] = []
    while isinstance(node, dict | list) and node and (not parents or rng.random() < 0.6):
        key: Any = rng.choice(sorted(node)) if isinstance(node, dict) else rng.randrange(len(node))
        parents.append((node, key))
        node = node[key]
    if not parents:
        return change_body(request, rng)
    holder, key = parents[-1]
    if rng.random() < 0.15:
        del holder[key]
    elif isinstance(holder, dict) and rng.random() < 0.15:
        holder[rng.choice(("", "\x00", "é", "__proto__", "self", "x" * 1000))] = rng.choice(
            ODD_JSON
        )
    else:
        holder[key] = rng.choice(ODD_JSON)
    return replace(request, body=json.dumps(document).encode())


def cut_message(request: RawRequest, rng: random.Random) -> RawRequest:
    """The end of the message is missing."""
    return replace(request, cut=1 + rng.randrange(len(request.encode())))


MUTATORS: tuple[Mutator, ...] = (
    *(change_method, change_target, drop_header, repeat_header, change_header, flip_header),
    *(odd_header_name, change_type, change_framing, change_body, change_json, cut_message),
)
"""Each is picked as often as any other."""


def mutations(
    valid: Callable[[random.Random], RawRequest], count: int, seed: int
) -> Iterator[Mutation]:
    """Yields changed requests.

    Args:
        valid: Returns a request to change; called for each, since some can be sent only once. The
            generator that it receives is that of the seed.
        count: Requests.
        seed: The same one gives the same changes.
    """
    rng = random.Random(seed)
    for _ in range(count):
        if rng.random() < 0.03:
            yield Mutation("raw bytes", rng.randbytes(1 + rng.randrange(500)), complete=False)
            continue
        request, names = valid(rng), []
        for mutator in rng.sample(MUTATORS, rng.choice((1, 1, 1, 2, 3))):
            request = mutator(request, rng)
            names.append(mutator.__name__)
        framed = {"change_framing", "cut_message", "repeat_header"} & set(names)
        yield Mutation(" + ".join(names), request.encode(), complete=not framed)


def send(host: str, port: int, message: bytes, *, limit_s: float) -> int | None:
    """Sends a message over a connection of its own; returns the status of the answer.

    Args:
        host: The server's address.
        port: The server's port.
        message: The bytes.
        limit_s: Seconds to wait for the answer.

    Returns:
        The status; None where no answer came.

    Raises:
        ConnectionRefusedError: Nothing listens there.
    """
    answer, end = b"", time.monotonic() + limit_s
    with (
        socket.create_connection((host, port), timeout=limit_s) as connection,
        contextlib.suppress(OSError),  # Closed by the server, or nothing came in time.
    ):
        connection.sendall(message)
        while b"\r\n" not in answer and (left := end - time.monotonic()) > 0.0:
            connection.settimeout(left)
            if not (piece := connection.recv(65536)):
                break
            answer += piece
    parts = answer.split(b" ", 2)
    return int(parts[1]) if len(parts) == 3 and parts[1].isdigit() else None
