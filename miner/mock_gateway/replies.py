"""Answers of the mock gateway, in the words of the real one."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from protocol.gateway import CONTEXT_UNAVAILABLE

_NAMES = {
    405: "Method Not Allowed",
    413: "Payload Too Large",
    429: "Too Many Requests",
    404: "Not Found",
}


@dataclass(frozen=True)
class GatewayReply:
    """An HTTP answer.

    Attributes:
        status: HTTP status.
        body: Its bytes.
        content_type: Of the body.
        headers: Further headers.
    """

    status: int
    body: bytes = field(repr=False)
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


class GatewayRefusal(Exception):
    """A request that is answered with an error.

    Attributes:
        reply: The answer.
    """

    def __init__(self, reply: GatewayReply) -> None:
        super().__init__(f"{reply.status} {reply.body[:200]!r}")
        self.reply = reply


def text(status: int, words: str) -> GatewayReply:
    """An answer in plain text."""
    return GatewayReply(status, words.encode("utf-8", "replace"))


def as_json(status: int, value: object) -> GatewayReply:
    """An answer in JSON."""
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return GatewayReply(status, body, "application/json; charset=utf-8")


def bad_request(words: str) -> GatewayRefusal:
    """Status 400."""
    return GatewayRefusal(text(400, f"Bad request: {words}"))


def invalid_field(name: str, message: str) -> GatewayRefusal:
    """Status 400 that names a field."""
    return GatewayRefusal(
        as_json(400, {"error": "invalid_field", "field": name, "message": message})
    )


def unauthorized(words: str) -> GatewayRefusal:
    """Status 401."""
    return GatewayRefusal(text(401, f"Unauthorized request: {words}"))


def gone() -> GatewayRefusal:
    """Status 410: the task is unknown here, finished, timed out, or another node's."""
    return GatewayRefusal(as_json(410, CONTEXT_UNAVAILABLE))


def not_found(words: str) -> GatewayRefusal:
    """Status 404."""
    return GatewayRefusal(text(404, words))


def unavailable(words: str) -> GatewayRefusal:
    """Status 503."""
    return GatewayRefusal(text(503, f"Service unavailable: {words}"))


def internal_error() -> GatewayRefusal:
    """Status 500, which never says why."""
    return GatewayRefusal(text(500, "Internal Server Error"))


def coded(status: int, code: str, message: str) -> GatewayRefusal:
    """An error with a code, in JSON."""
    return GatewayRefusal(as_json(status, {"error": code, "message": message}))


def by_accept(status: int, accept: str) -> GatewayReply:
    """An error of the router or a limiter, which follows the header `Accept`."""
    name = _NAMES[status]
    if "application/json" in accept.lower():
        error = {"code": status, "name": name, "brief": f"{name}."}
        return as_json(status, {"error": error})
    page = f"<!DOCTYPE html><html><body><h1>{status}: {name}</h1></body></html>"
    return GatewayReply(status, page.encode(), "text/html; charset=utf-8")
