"""A uvicorn server whose silent, slow and surplus connections shut nobody out."""

import asyncio
import contextlib
import logging
import re
import socket
import sys
import time
from collections.abc import Hashable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any, cast
from urllib.parse import unquote

import h11
import uvicorn
from loguru import logger
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol

from miner.transports.body_limit import Message, Receive, Send
from miner.transports.connection_book import (
    ConnectionBook,
    ConnectionLimits,
    Phase,
    network_of,
)
from miner.transports.descriptors import DescriptorReserve, allow_open_files
from miner.transports.failures import CutOff
from miner.transports.refusals import Refusal, RefusalLog

ACCEPT_BATCH = 16
"""Connections accepted before those in surplus are closed; each holds a file descriptor."""
KERNEL_QUEUE = 4096
"""Connections that the kernel keeps ready meanwhile."""
WANTED_OPEN_FILES = 16 * 1024
SHORT_OF_FILES = 8
"""Connections that are kept when the process has run out of file descriptors."""
RESERVED_FILES = SHORT_OF_FILES + 4 * ACCEPT_BATCH
"""asyncio accepts four times until the surplus of the first time is closed."""
HEAD_BYTES = 64 * 1024
"""Bytes of a request's headers, about."""
READ_BYTES = 8 * 1024
"""Bytes read at once, so that a body in tiny chunks (6 bytes, 20 us) blocks no loop."""
SHORT_S = 30.0
"""Seconds without a failure to accept, after which the reserve is taken again."""
_OUT_OF_FILES = "socket.accept() out of system resource"  # asyncio's words.

_OVERDUE = {
    Phase.NEW: Refusal("idle_connection", "connections sent no request in time"),
    Phase.HEAD: Refusal("slow_headers", "the headers did not arrive in time"),
    Phase.BODY: Refusal("slow_body", "the body did not arrive in time"),
    Phase.DRAIN: Refusal("slow_body", "the body did not arrive in time"),
    Phase.WRITE: Refusal("slow_reader", "an answer was not read in time"),
    Phase.CLOSING: Refusal("slow_reader", "an answer was not read in time"),
    Phase.IDLE: None,  # As any client of a kept-alive connection may be.
}
_CROWDED = Refusal(
    "too_many_connections", "too many connections wait for their clients; the oldest were closed"
)
_OVERLOADED = Refusal("overloaded", "too many requests are being answered; try again later")
_OUT_OF_DESCRIPTORS = Refusal(
    "out_of_files", "no file descriptor was left for a connection; raise the limit: ulimit -n"
)

_AUTHORITY = re.compile(rb"https?://([^/]+)", re.IGNORECASE)
_NOT_HTTP = "this is not a valid HTTP/1.1 request"

_quiet = logging.getLogger("uvicorn.error.limited")
"""Logs uvicorn's errors only: it warns once per malformed request, which would fill a disk."""
_quiet.setLevel(logging.ERROR)


class LimitedServer(uvicorn.Server):
    """A server with limits on its connections, that leaves signals to the program.

    Args:
        config: Is changed: the server speaks HTTP/1.1 only, without WebSockets, and a client's
            address is that of its connection, whatever `X-Forwarded-For` says.
        limits: Numbers and seconds; lowered where the process may not open enough files.
        refusals: Receives refused connections and requests.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        limits: ConnectionLimits | None = None,
        refusals: RefusalLog | None = None,
    ) -> None:
        super().__init__(config)
        self._refusals = refusals
        open_files = allow_open_files(WANTED_OPEN_FILES)
        wanted = limits or ConnectionLimits()
        self._limits = wanted.within(open_files)
        self.book = ConnectionBook(self._limits, time.monotonic)
        if self._limits != wanted:
            logger.warning(
                "this process may open {} files, so a server keeps {} waiting connections instead "
                "of {}; raise the limit: ulimit -Hn {}",
                open_files,
                self._limits.waiting,
                wanted.waiting,
                WANTED_OPEN_FILES,
            )
        config.http = cast(Any, partial(_Connection, limiter=self))
        config.ws = "none"
        # By default, callers on this machine say in X-Forwarded-For who they are.
        config.proxy_headers = False
        config.h11_max_incomplete_event_size = HEAD_BYTES
        config.backlog = ACCEPT_BATCH
        self._listening: list[socket.socket] = []
        self._sweeping: asyncio.TimerHandle | None = None
        self._previous_handler: Any = None
        self._reserve = DescriptorReserve(min(RESERVED_FILES, open_files // 8))
        self._short_at = float("-inf")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the program."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens on bound sockets."""
        loop = asyncio.get_running_loop()
        self._previous_handler = previous = loop.get_exception_handler()

        def on_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if context.get("message") == _OUT_OF_FILES:
                self._use_reserve()
            elif previous is not None:
                previous(loop, context)
            else:
                loop.default_exception_handler(context)

        loop.set_exception_handler(on_exception)
        self._reserve.take()
        await super().startup(sockets)
        self._listening = list(sockets or [])
        self._sweep()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Sends the answers that are ready, and closes every connection."""
        await super().shutdown(sockets)
        asyncio.get_running_loop().set_exception_handler(self._previous_handler)
        if self._sweeping is not None:
            self._sweeping.cancel()
        self._reserve.release()
        for connection in list(self.server_state.connections):
            cast(_Connection, connection).transport.abort()

    def refuse(self, refusal: Refusal) -> None:
        """Counts a refusal, with a warning in the log once a minute."""
        if self._refusals is not None:
            self._refusals.note(refusal, warn=True)

    def make_room(self, address: str) -> None:
        """Closes what is too much now that a connection of `address` has come."""
        while (crowded := self.book.crowded_out(address)) is not None:
            self._close(crowded, 503, _CROWDED)

    def _close(self, key: Hashable, status: int, refusal: Refusal | None) -> None:
        connection = cast(_Connection, key)
        if refusal is not None:
            self.refuse(refusal)
        self.book.remove(connection)
        connection.turn_away(status, refusal)

    def _use_reserve(self) -> None:
        """Keeps so few connections that the reserve suffices; asyncio accepts again in a second."""
        self._short_at = time.monotonic()
        self.refuse(_OUT_OF_DESCRIPTORS)
        if self._reserve.release():
            self.book.limits = replace(
                self._limits, waiting=SHORT_OF_FILES, waiting_per_address=SHORT_OF_FILES
            )
            self.make_room("")

    def _sweep(self) -> None:
        seconds = [each for phase in Phase if (each := self._limits.seconds(phase)) is not None]
        self._sweeping = asyncio.get_running_loop().call_later(
            min(1.0, min(seconds) / 4), self._sweep
        )
        for key, phase in self.book.overdue():
            counted = cast(_Connection, key).turned_away
            self._close(key, 408, None if counted else _OVERDUE[phase])
        if self._refusals is not None:
            self._refusals.write_due()
        if time.monotonic() - self._short_at >= SHORT_S and self._reserve.take():
            self.book.limits = self._limits
        for listening in self._listening:
            # asyncio has one number for the kernel's queue and for what it accepts at once, and
            # sets the queue again after it has run out of descriptors.
            with contextlib.suppress(OSError):  # Closed meanwhile.
                listening.listen(KERNEL_QUEUE)


class _Connection(H11Protocol):
    """One connection; tells the server what it waits for.

    Attributes:
        turned_away: Whether it has been refused; then what still comes is read and discarded.
    """

    def __init__(self, *arguments: Any, limiter: LimitedServer, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.logger = _quiet
        self._limiter = limiter
        self._inner = self.app
        self.app = cast(Any, self._answer)
        self._address = ""
        self._lost = False
        self.turned_away = False
        self._running = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        cast(Any, transport).max_size = READ_BYTES  # asyncio's name.
        self._address = network_of(self.client[0] if self.client else "")
        self._note()

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.app = self._inner  # No cycle of references: a flood would leave it to the collector.
        self._note()

    def data_received(self, data: bytes) -> None:
        if self.turned_away:  # Read, so that the answer is not lost in a reset.
            return
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # The book knows more phases than this timer.
        self._note()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._note()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._note()

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except h11.LocalProtocolError:  # After a malformed request.
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answers a malformed request; uvicorn calls it where it has caught h11's error."""
        error = sys.exception()
        too_large = isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431
        limit = self.conn._max_incomplete_event_size
        reason = (
            f"the headers have more than {limit} bytes, which is the limit"
            if too_large
            else _NOT_HTTP
        )
        refusal = Refusal("bad_http", reason)
        self._limiter.refuse(refusal)
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._write_answer(431 if too_large else 400, refusal)
            self.turned_away = True
            self._disconnect()
            self.transport.write_eof()
        else:
            self.turn_away(400, refusal)

    def turn_away(self, status: int, refusal: Refusal | None) -> None:
        """Closes the connection; answers first if a request has begun and has no answer."""
        unanswered = self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE)
        if refusal and unanswered and self._phase() in (Phase.HEAD, Phase.BODY):
            self._write_answer(status, refusal)
        self.turned_away = True
        self._disconnect()
        self.transport.close()
        if self.transport.get_write_buffer_size():  # Its client does not read.
            self.transport.abort()

    def _disconnect(self) -> None:
        """Tells the application that its client is gone."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _write_answer(self, status: int, refusal: Refusal) -> None:
        answer = refusal.answer(status, {"connection": "close"})
        headers = [*answer.raw_headers, *self.server_state.default_headers]
        with contextlib.suppress(h11.LocalProtocolError):  # HEAD has no body.
            for event in (
                h11.Response(status_code=status, headers=headers),
                h11.Data(data=bytes(answer.body)),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        cycle = self.cycle
        self._running += 1
        try:
            app: Any = self._inner
            if not _is_sound(scope):
                app = self._refuse(400, Refusal("bad_http", _NOT_HTTP))
            elif not self._limiter.book.has_place(self, self._address):
                app = self._refuse(503, _OVERLOADED)
            await app(_in_origin_form(scope), receive, send)
        except asyncio.CancelledError:
            if not cycle.response_complete:
                raise
        except CutOff:
            self._disconnect()  # Otherwise uvicorn complains of the missing end.
            self.transport.abort()
        finally:
            self._running -= 1
            self._note()

    def _refuse(self, status: int, refusal: Refusal) -> JSONResponse:
        self._limiter.refuse(refusal)
        # After 400, what follows is not HTTP/1.1 either.
        return refusal.answer(status, {"connection": "close"} if status == 400 else None)

    def _note(self) -> None:
        """Tells the server's book the phase of this connection."""
        sent_away = self.turned_away and self.transport.is_closing()
        if not self._works() if self._lost else sent_away:
            self._limiter.book.remove(self)
            return
        self._limiter.book.move(self, self._address, self._phase())
        self._limiter.make_room(self._address)

    def _works(self) -> bool:
        """Whether the miner still works for a request whose client has left."""
        cycle = self.cycle
        return bool(self._running) and not cycle.more_body and not cycle.response_started

    def _phase(self) -> Phase:
        cycle = self.cycle
        if self._lost:
            return Phase.WORK  # The client has left, and its work has not ended.
        if self.turned_away or self.transport.is_closing():
            return Phase.CLOSING
        if self.flow.write_paused:
            return Phase.WRITE
        if cycle is not None and not cycle.response_complete:
            return Phase.BODY if cycle.more_body else Phase.WORK
        if self.conn.their_state is h11.SEND_BODY:
            return Phase.DRAIN
        if self.conn.trailing_data[0]:
            return Phase.HEAD
        return Phase.NEW if cycle is None else Phase.IDLE


def _in_origin_form(scope: Message) -> Message:
    """Takes `http://HOST/PATH` as PATH asked of HOST, which overrules the header (RFC 9112, 3.2.2).

    Clients of a proxy send it, and every server has to accept it.
    """
    authority = _AUTHORITY.match(scope["raw_path"])
    if authority is None:
        return scope
    path = scope["raw_path"][authority.end() :] or b"/"
    others = [header for header in scope["headers"] if header[0] != b"host"]
    headers = [(b"host", authority[1]), *others]
    return {**scope, "raw_path": path, "path": unquote(path.decode("ascii")), "headers": headers}


def _is_sound(scope: Message) -> bool:
    """Whether every server reads the same request: of two lengths, a proxy may take the other."""
    framing = {name for name, _ in scope["headers"]} & {b"transfer-encoding", b"content-length"}
    if scope["http_version"] == "1.0":
        return b"transfer-encoding" not in framing
    return scope["http_version"] == "1.1" and len(framing) < 2
