"""Failures of the miner's own code: JSON with an id for the caller, one line for the operator."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from miner.score.log import ScoreLog
from miner.transports.body_limit import App, Message, Receive, Send
from miner.transports.failures import CutOff, ServerErrors
from miner.transports.refusals import RefusalLog
from tests.support.fakes import Clock

SECRET = "a prompt that nobody else may read"


class Miner:
    """An application behind the middleware, and what it has logged."""

    def __init__(self, folder: Path) -> None:
        self.score_log = ScoreLog(folder)
        self.refusals = RefusalLog(self.score_log, "http", Clock())
        self.errors: list[str] = []

    async def ask(self, app: App, *received: Message, path: str = "/") -> list[Message]:
        """Returns what a server is told to send."""
        sent: list[Message] = []
        messages = [*received, {"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Message:
            if not messages:
                await asyncio.Event().wait()
            return messages.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b""}
        await ServerErrors(app, refusals=self.refusals)(scope, receive, send)
        return sent

    def score_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.score_log.path.read_text().splitlines()]


@pytest.fixture
def miner(tmp_path: Path) -> Iterator[Miner]:
    made = Miner(tmp_path)
    sink = logger.add(lambda line: made.errors.append(str(line)), level="ERROR", format="{message}")
    yield made
    logger.remove(sink)
    made.score_log.close()


def handled_by(handler: Callable[[Request], Awaitable[Response]]) -> Router:
    return Router(routes=[Route("/", handler)])


async def raising(request: Request) -> Response:
    secret = SECRET
    raise RuntimeError(f"broken\n\x1b[31m by {len(secret)}")


def check_failed(miner: Miner, sent: list[Message]) -> str:
    """Checks that a caller got an id, and that the log has it once; returns the log's line."""
    start, body = sent
    assert start["status"] == 500
    assert (b"content-type", b"application/json") in start["headers"]
    answer = json.loads(body["body"])
    assert set(answer) == {"message", "error_id"}
    (line,) = miner.errors
    assert line.count(answer["error_id"]) == 1
    assert answer["error_id"] in answer["message"]
    assert miner.refusals.counts == {"server_error": 1}
    (score,) = miner.score_lines()
    assert (score["event"], score["reason_code"]) == ("refused", "server_error")
    assert answer["error_id"] in score["reason"]
    return line


async def bare(scope: Message, receive: Receive, send: Send) -> None:
    await raising(Request(scope))


@pytest.mark.parametrize("app", [handled_by(raising), bare], ids=["behind a framework", "bare"])
async def test_an_exception_is_told_with_an_id_and_logged_once_with_its_place(
    miner: Miner, app: App
) -> None:
    sent = await miner.ask(app)
    line = check_failed(miner, sent)
    assert "RuntimeError: broken \\x1b[31m by 34\n" in line
    assert "in raising" in line
    assert SECRET not in line
    assert "broken" not in str(sent)


async def test_the_causes_are_logged_and_inputs_that_pydantic_quotes_are_not(miner: Miner) -> None:
    class Form(BaseModel):
        seed: int

    async def failing(request: Request) -> Response:
        try:
            Form.model_validate({"seed": SECRET})
        except ValueError as error:
            raise LookupError("no form") from error
        raise AssertionError

    line = check_failed(miner, await miner.ask(handled_by(failing)))
    assert "LookupError: no form" in line
    assert "caused by ValidationError: 1 problems, in seed" in line
    assert SECRET not in line


async def test_a_chain_of_exceptions_without_end_is_one_bounded_line(miner: Miner) -> None:
    async def endless(request: Request) -> Response:
        error: Exception = RuntimeError("x" * 100_000)
        for _ in range(1000):
            following = RuntimeError("x" * 100_000)
            following.__cause__ = error
            error = following
        raise error

    assert len(check_failed(miner, await miner.ask(handled_by(endless)))) < 10_000


@pytest.mark.parametrize("status", [200, 404, 429, 503])
async def test_what_the_application_answers_is_not_touched(miner: Miner, status: int) -> None:
    async def answering(request: Request) -> Response:
        return PlainTextResponse("as it is", status)

    start, body = await miner.ask(handled_by(answering))
    assert (start["status"], body["body"]) == (status, b"as it is")
    assert miner.refusals.counts == {}


async def test_an_answer_that_breaks_off_does_not_look_complete(miner: Miner) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b"half"
        raise OSError("disk")

    async def streaming(request: Request) -> Response:
        return StreamingResponse(parts())

    with pytest.raises(CutOff):
        await miner.ask(handled_by(streaming))
    (line,) = miner.errors
    assert "OSError: disk" in line
    assert miner.refusals.counts == {"server_error": 1}


async def test_what_fails_after_an_answer_is_logged_and_the_answer_stands(miner: Miner) -> None:
    async def late(scope: Message, receive: Receive, send: Send) -> None:
        await PlainTextResponse("done")(scope, receive, send)
        raise OSError("disk")

    start, body = await miner.ask(late)
    assert (start["status"], body["body"]) == (200, b"done")
    assert miner.refusals.counts == {"server_error": 1}


async def test_each_of_several_exceptions_is_logged(miner: Miner) -> None:
    async def failing(request: Request) -> Response:
        raise ExceptionGroup("both", [OSError("disk"), LookupError("name")])

    line = check_failed(miner, await miner.ask(handled_by(failing)))
    assert "one of them: OSError: disk" in line
    assert "one of them: LookupError: name" in line


async def test_a_client_that_leaves_is_no_failure(miner: Miner) -> None:
    async def reading(request: Request) -> Response:
        return PlainTextResponse(await request.body())

    await miner.ask(handled_by(reading), {"type": "http.disconnect"})
    assert miner.refusals.counts == {}
    assert miner.errors == []


async def test_a_request_that_the_closing_server_cancels_is_told_so(miner: Miner) -> None:
    sent: list[Message] = []

    async def keep(message: Message) -> None:
        sent.append(message)

    async def hanging(scope: Message, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    scope = {"type": "http", "method": "GET", "path": "/"}
    app = ServerErrors(hanging, refusals=miner.refusals)
    task = asyncio.create_task(app(scope, keep, keep))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sent[0]["status"] == 503
    assert dict(sent[0]["headers"])[b"retry-after"].isdigit()
    assert "shutting down" in json.loads(sent[1]["body"])["message"]
    assert miner.refusals.counts == {}


async def test_the_path_in_the_log_is_harmless(miner: Miner) -> None:
    await miner.ask(bare, path="/\x1b[2J\n" + "x" * 10_000)
    (line,) = miner.errors
    assert "GET /\\x1b[2J xxx" in line
    assert len(line) < 2000
