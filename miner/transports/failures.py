"""Failures of the miner's own code while it answers: logged once, counted, told with an id only."""

import asyncio
import json
import traceback
import uuid
from collections.abc import Iterator
from contextvars import ContextVar

from loguru import logger
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from miner.transports.body_limit import App, Message, Receive, Send
from miner.transports.refusals import Refusal, RefusalLog
from protocol.text import printable

SERVER_ERROR = "server_error"
RETRY_AFTER_S = 30
_SHUTTING_DOWN = "the miner is shutting down; try again later"
_CHAIN = 8
"""Exceptions that a log line shows, at most."""
_FRAMES = 40
"""Innermost frames of each."""


class _Exchange:
    """What is known of a request's failure while it is answered."""

    def __init__(self, method: str, path: str) -> None:
        self.what = f"{printable(method, 20)} {printable(path, 100)}"
        self.documented = False
        self.error_id: str | None = None


_exchange: ContextVar[_Exchange | None] = ContextVar("exchange", default=None)


def documented_status() -> None:
    """Says, in a handler, that the 5xx status that it answers is one that the docs list.

    Other 5xx answers behind `ServerErrors` are logged and counted as failures.
    """
    if (exchange := _exchange.get()) is not None:
        exchange.documented = True


class FailureLog:
    """Logs a failure once with an id and its traceback, and counts it as `server_error`.

    Args:
        refusals: Counts it, and writes it to the score log.
    """

    def __init__(self, refusals: RefusalLog) -> None:
        self._refusals = refusals

    def note(self, error: BaseException | str) -> str:
        """Logs and counts a failure.

        One request's failure is noted once: behind `ServerErrors`, a second call returns the first
        id and does nothing else.

        Args:
            error: An exception, or a sentence where there is none. Its text goes to the log as
                one line; values of variables, and inputs that pydantic quotes, do not.

        Returns:
            The id in the log, for the answer to the caller.
        """
        exchange = _exchange.get()
        if exchange is not None and exchange.error_id is not None:
            return exchange.error_id
        error_id = uuid.uuid4().hex[:16]
        if exchange is not None:
            exchange.error_id = error_id
        logger.error(
            "{}: error {} while answering {}: {}",
            self._refusals.transport,
            error_id,
            exchange.what if exchange is not None else "a request",
            error if isinstance(error, str) else "\n".join(_described(error)),
        )
        name = type(error).__name__ if isinstance(error, BaseException) else "no exception"
        self._refusals.note(Refusal(SERVER_ERROR, f"error {error_id} ({name})"))
        return error_id


class ServerErrors:
    """ASGI middleware: an exception, or a 5xx that no document lists, becomes JSON with an id.

    The answer is 500 and `{"message": ..., "error_id": ...}`, without anything of the exception or
    of the application's own 5xx answer. It belongs outside every other middleware.

    Args:
        app: The application behind.
        failures: Logs and counts.
    """

    def __init__(self, app: App, *, failures: FailureLog) -> None:
        self._app = app
        self._failures = failures

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serves one request as ASGI asks for it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope["method"], scope["path"])
        _exchange.set(exchange)
        started = complete = gone = False
        own_status: int | None = None

        async def receive_and_note() -> Message:
            nonlocal gone
            message = await receive()
            gone = gone or message["type"] == "http.disconnect"
            return message

        async def send_unless_failed(message: Message) -> None:
            nonlocal started, complete, own_status
            # What a library answers to a client that has left tells nobody anything.
            if message["type"] == "http.response.start" and not exchange.documented and not gone:
                own_status = message["status"] if message["status"] >= 500 else None
            if own_status is None:
                started = True
                await send(message)
                complete = message["type"] == "http.response.body" and not message.get("more_body")

        failure: BaseException | str | None = None
        try:
            await self._app(scope, receive_and_note, send_unless_failed)
        except asyncio.CancelledError:
            # The server is closing and waits no longer.
            if not started:
                await _send_json(send, 503, {"message": _SHUTTING_DOWN}, retry_after=True)
            raise
        except Exception as error:
            if _is_disconnect(error):
                return
            failure = error
        if failure is None and own_status is not None:
            failure = f"the application answered {own_status}, which no document lists"
        if failure is None:
            return
        error_id = self._failures.note(failure)
        if complete:
            return
        if started:
            # Too late for an answer: the server cuts the connection off, so that what has been sent
            # does not look complete.
            raise CutOff
        message = f"the miner failed; its operator finds error {error_id} in the log"
        await _send_json(send, 500, {"message": message, "error_id": error_id})


class CutOff(Exception):
    """Raised to the server after a failure in the middle of an answer, which has been logged."""


async def _send_json(
    send: Send, status: int, content: object, *, retry_after: bool = False
) -> None:
    body = json.dumps(content).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if retry_after:
        headers.append((b"retry-after", str(RETRY_AFTER_S).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _described(error: BaseException) -> Iterator[str]:
    """Lines for a log: each exception behind another with its text on one line, and its frames."""
    waiting = [("", error)]
    for _ in range(_CHAIN):
        if not waiting:
            return
        prefix, shown = waiting.pop(0)
        yield f"{prefix}{type(shown).__name__}: {_text(shown)}"
        yield "".join(traceback.format_tb(shown.__traceback__, -_FRAMES)).rstrip()
        if isinstance(shown, BaseExceptionGroup):
            waiting += [("one of them: ", each) for each in shown.exceptions]
        cause = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)
        if cause is not None:
            waiting.append(("caused by ", cause))


def _is_disconnect(error: Exception) -> bool:
    if isinstance(error, ExceptionGroup):
        return all(map(_is_disconnect, error.exceptions))
    return isinstance(error, ClientDisconnect)


def _text(error: BaseException) -> str:
    if isinstance(error, ValidationError):  # Its own text quotes the input.
        places = ("/".join(map(str, problem["loc"])) for problem in error.errors())
        return printable(f"{error.error_count()} problems, in {', '.join(places)}")
    return printable(str(error))
