"""A limit on request bodies, for any ASGI application."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from miner.transports.refusals import Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class BodyLimit:
    """Answers 413 to a body that is too large, declared or streamed, and 408 to one that stalls.

    Args:
        app: The application behind.
        max_bytes: Largest body.
        time_limit_s: Seconds in which the whole body must have arrived.
        on_refusal: Called with what was refused.
    """

    def __init__(
        self,
        app: App,
        *,
        max_bytes: int,
        time_limit_s: float,
        on_refusal: Callable[[Refusal], object],
    ) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._time_limit_s = time_limit_s
        self._on_refusal = on_refusal

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serves one connection as ASGI asks for it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            await self._refuse(413)(scope, receive, send)
            return
        body = _Body(receive, self._max_bytes, self._time_limit_s)
        refused = False

        async def send_unless_refused(message: Message) -> None:
            nonlocal refused
            if body.problem is None:
                await send(message)
            elif not refused:
                # The application saw a disconnect; its own answer would not say why.
                refused = True
                await self._refuse(body.problem)(scope, receive, send)

        try:
            await self._app(scope, body.receive, send_unless_refused)
        except ClientDisconnect:  # What the application makes of a body that has been cut off.
            if body.problem is None:
                raise
        if body.problem is not None and not refused:
            await self._refuse(body.problem)(scope, receive, send)

    def _refuse(self, status: int) -> JSONResponse:
        refusal = (
            Refusal(
                "body_too_large",
                f"the body has more than {self._max_bytes} bytes, which is the limit",
            )
            if status == 413
            else Refusal("slow_body", f"the body did not arrive within {self._time_limit_s:.0f} s")
        )
        self._on_refusal(refusal)
        return refusal.answer(status)


class _Body:
    """Counts a request's body as it arrives, and ends one beyond the limits with a disconnect."""

    def __init__(self, receive: Receive, max_bytes: int, time_limit_s: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._deadline = asyncio.get_running_loop().time() + time_limit_s
        self._count = 0
        self._complete = False
        self.problem: int | None = None  # The status to answer.

    async def receive(self) -> Message:
        if self._complete:  # Only the end of the connection can follow.
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            return self._give_up(408)
        if message["type"] == "http.request":
            self._count += len(message.get("body", b""))
            self._complete = not message.get("more_body", False)
            if self._count > self._max_bytes:
                return self._give_up(413)
        return message

    def _give_up(self, status: int) -> Message:
        self.problem = status
        self._complete = True
        return {"type": "http.disconnect"}
