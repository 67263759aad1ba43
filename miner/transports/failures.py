"""Failures of the miner's own code while it answers: logged once, counted, told with an id only."""

import asyncio
import traceback
import uuid
from collections.abc import Iterator

from loguru import logger
from pydantic import ValidationError
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from miner.transports.body_limit import App, Message, Receive, Send
from miner.transports.refusals import RETRY_AFTER_S, Refusal, RefusalLog
from protocol.text import printable

_SHUTTING_DOWN = "the miner is shutting down; try again later"
_CHAIN = 8
"""Exceptions that a log line shows, at most."""
_FRAMES = 40
"""Innermost frames of each."""


class ServerErrors:
    """ASGI middleware: an exception is logged once with an id and its traceback, and counted.

    The answer is 500 and `{"message": ..., "error_id": ...}`, without anything of the exception. It
    belongs outside every other middleware. With Starlette, add it last: Starlette's own, which
    answers in plain text, stays outside and has nothing to do.

    The log has the text of an exception on one line; it has no values of variables, and no inputs
    that pydantic quotes.

    Args:
        app: The application behind.
        refusals: Counts failures as `server_error`, and writes them to the score log.
    """

    def __init__(self, app: App, *, refusals: RefusalLog) -> None:
        self._app = app
        self._refusals = refusals

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serves one request as ASGI asks for it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = complete = False

        async def send_and_note(message: Message) -> None:
            nonlocal started, complete
            started = True
            await send(message)
            complete = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            await self._app(scope, receive, send_and_note)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:
            # The server is closing and waits no longer.
            if not started:
                headers = {"retry-after": str(RETRY_AFTER_S)}
                closing = JSONResponse({"message": _SHUTTING_DOWN}, 503, headers)
                await closing(scope, receive, send)
            raise
        except Exception as error:
            error_id = self._log(error, scope)
            if started and not complete:
                # Too late for an answer: the server cuts the connection off, so that what has been
                # sent does not look complete.
                raise CutOff from None
            if not started:
                message = f"the miner failed; its operator finds error {error_id} in the log"
                failed = JSONResponse({"message": message, "error_id": error_id}, 500)
                await failed(scope, receive, send)

    def _log(self, error: Exception, scope: Message) -> str:
        error_id = uuid.uuid4().hex[:16]
        logger.error(
            "{}: error {} while answering {} {}: {}",
            self._refusals.transport,
            error_id,
            printable(scope["method"], 20),
            printable(scope["path"], 100),
            "\n".join(_described(error)),
        )
        self._refusals.note(Refusal("server_error", f"error {error_id} ({type(error).__name__})"))
        return error_id


class CutOff(Exception):
    """Raised to the server after a failure in the middle of an answer, which has been logged."""


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


def _text(error: BaseException) -> str:
    if isinstance(error, ValidationError):  # Its own text quotes the input.
        places = ("/".join(map(str, problem["loc"])) for problem in error.errors())
        return printable(f"{error.error_count()} problems, in {', '.join(places)}")
    return printable(str(error))
