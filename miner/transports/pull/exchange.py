"""One HTTP request to an axon: what a Dendrite does not tell of it, and its fault in words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from miner.transports.faults import connection_fault, never_sent
from protocol.text import printable

UNREADABLE = 422
"""Status of an answer that cannot be read; a Dendrite uses the same."""

_TIMEOUT, _UNAVAILABLE = 408, 503
_AXON_HEADERS = "bt_header_axon"
_TLS_RECORDS = (r"\\x15\\x03", r"\x15\x03")
"""How a line that begins with a TLS alert is quoted in an error."""


@dataclass
class Exchange:
    """A request and its answer.

    Attributes:
        host: Where it was sent, with the port.
        limit_s: Seconds that it could take.
        ahead_s: Seconds that the axon's clock is ahead, added to the time that the request states.
        reply: The synapse as the Dendrite has filled it; None if it failed at the answer.
        http_status: HTTP status of the answer; None without one.
        headers: Headers of the answer.
        error: What kept the Dendrite from reading an answer; None if nothing did.
    """

    host: str
    limit_s: float
    ahead_s: float = 0.0
    reply: Any = None
    http_status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    error: BaseException | None = None

    @property
    def reached(self) -> bool:
        """Whether the axon may have received the request."""
        return not never_sent(self.error)

    @property
    def status(self) -> int:
        """HTTP status; 408 for a timeout, 503 without an answer, 422 if it cannot be read.

        An axon repeats the status in its headers, which count.
        """
        if isinstance(self.error, TimeoutError):
            return _TIMEOUT
        if isinstance(self.error, aiohttp.ClientConnectionError):
            return _UNAVAILABLE
        if self.error is not None or self.reply is None:
            return UNREADABLE
        try:
            return int(self.reply.dendrite.status_code)
        except (AttributeError, TypeError, ValueError):
            return UNREADABLE

    @property
    def is_axon(self) -> bool:
        """Whether an axon has answered, whatever it answered."""
        return any(name.lower().startswith(_AXON_HEADERS) for name in self.headers)

    def fault(self) -> str:
        """Returns why there is no usable answer, on one line."""
        return printable(self._fault(), 300)

    def _fault(self) -> str:
        error = self.error
        if (fault := connection_fault(error, self.host, self.limit_s)) is not None:
            return fault
        if isinstance(error, aiohttp.ContentTypeError):
            kind = self.headers.get("content-type", "no content type")
            return (
                f"{self.host} is not an axon: it answered status {self.http_status} with {kind} "
                "instead of JSON"
            )
        if isinstance(error, aiohttp.ClientResponseError) and self.http_status is None:
            if any(record in error.message for record in _TLS_RECORDS):
                return f"{self.host} is not an axon: it speaks TLS"
            return f"{self.host} is not an axon: it does not speak HTTP"
        if error is not None or self.reply is None:
            name = type(error).__name__ if error is not None else "no synapse"
            detail = f" ({error})" if isinstance(error, aiohttp.ClientPayloadError) else ""
            return f"the answer cannot be read: {name}{detail}"
        return f"status {self.status}: {getattr(self.reply.dendrite, 'status_message', None)}"
