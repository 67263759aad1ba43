"""The two calls of a worker to a gateway, over aiohttp. Everything that is read has a limit."""

import asyncio
import io
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp.client_reqrep import ClientResponse

from miner.transports.clocks import DATE_STEP_S, RemoteClock, SteadyClock, parse_date
from miner.transports.faults import connection_fault, never_sent
from miner.transports.gateway.addresses import host_of
from miner.transports.gateway.state import TakenTask
from protocol.consent import encode_signature
from protocol.gateway import (
    ADD_RESULT,
    ASSET_CONTENT_TYPE,
    ASSET_FILE_NAME,
    GET_ID,
    GET_TASKS,
    INVALID_AUTHENTICATION,
    SPLATS,
    AddResult,
    GetTasks,
    TasksAnswer,
    read_tasks,
    timestamp_at,
)
from protocol.text import printable

CONNECT_LIMIT_S = 10.0
GET_TASKS_LIMIT_S = 30.0
"""An answer that is given up is lost with its tasks: a gateway never hands them out again."""
ADD_RESULT_LIMIT_S = 120.0
SILENCE_LIMIT_S = 20.0
"""Seconds that a gateway may send nothing while its answer is read."""

SIGNED_EARLIER_S = 2.0
"""Seconds by which a timestamp is behind the gateway's clock, as far as that is known: a gateway
takes 30 s of the past and none of the future."""

CLOCK_IS_OFF_S = 5.0
"""A difference of the clocks that is worth a message."""

MAX_LIST_BYTES = 2**18
"""Of an answer with tasks: what is not tasks."""
MAX_TASK_BYTES = 3 * 2**20
"""Of one task: 2 MiB in base64, and the rest."""
MAX_TEXT_BYTES = 4096
"""Of an answer without tasks."""

_CHUNK_BYTES = 2**16
_ACCEPT = {"Accept": "application/json", "Accept-Encoding": "identity"}
"""Limiters and routes answer in JSON; nothing is to be unpacked."""


class GatewayFault(Exception):
    """A call without a usable answer; its text fits on one line of a log.

    Attributes:
        status: HTTP status; 0 without an answer.
        answer: The gateway's text, on one line; empty without one.
        arrived: Whether the gateway may have received the request.
        retry_after_s: Seconds that the gateway asks to wait, 0 if it does not say.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int = 0,
        answer: str = "",
        arrived: bool = True,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(printable(reason, 300))
        self.status = status
        self.answer = answer
        self.arrived = arrived
        self.retry_after_s = retry_after_s

    @property
    def is_stale(self) -> bool:
        """Whether a new signature may be taken, by the clock that the answer has shown."""
        return self.status == 401 and INVALID_AUTHENTICATION in self.answer


class GatewayCalls:
    """Calls gateways, each request with its own signature.

    Redirects are not followed: a signature is valid for any call, so it is sent to its host alone.

    Args:
        keypair: The worker's hotkey.
        worker_id: The worker's name, which clients see.
        tags: Of the worker; none for ordinary work.
        clock: This miner's clock.
        session: Makes the HTTP session; verifies certificates.
    """

    def __init__(
        self,
        keypair: Any,
        *,
        worker_id: str,
        tags: tuple[str, ...] = (),
        clock: SteadyClock | None = None,
        session: Callable[[], aiohttp.ClientSession] | None = None,
    ) -> None:
        self.clock = clock or SteadyClock()
        self.worker_id = worker_id
        self.hotkey = str(keypair.ss58_address)
        self._keypair = keypair
        self._tags = list(tags) or None
        self._make_session = session or _new_session
        self._session: aiohttp.ClientSession | None = None
        self._clocks: dict[str, RemoteClock] = {}
        self._off: dict[str, float] = {}

    def clock_off(self, address: str) -> float:
        """Returns the seconds by which the gateway's clock is surely ahead of the wall clock.

        Negative if it is behind; 0 as long as the two may be the same.
        """
        return self._off.get(address, 0.0)

    async def get_tasks(self, address: str, count: int) -> TasksAnswer:
        """Asks a node for tasks.

        Args:
            address: Base address of the node.
            count: Most tasks that are wanted.

        Raises:
            GatewayFault: There is no usable answer.
        """
        timestamp, signature = self._signed(address)
        request = GetTasks(
            worker_hotkey=self.hotkey,
            signature=signature,
            timestamp=timestamp,
            worker_id=self.worker_id,
            requested_task_count=count,
            model=SPLATS,
            worker_tags=self._tags,
        )
        body = await self._call(
            "POST",
            address,
            GET_TASKS,
            data=request.body(),
            headers={"Content-Type": "application/json"},
            limit_s=GET_TASKS_LIMIT_S,
            limit_bytes=MAX_LIST_BYTES + count * MAX_TASK_BYTES,
        )
        try:
            return await asyncio.to_thread(read_tasks, body)
        except ValueError as error:
            raise GatewayFault(f"{host_of(address)}: {error}", status=200) from None

    async def add_result(
        self, task: TakenTask, token: str | None, *, asset: bytes | None, reason: str = ""
    ) -> None:
        """Delivers an asset to the node of a task, or reports why there is none.

        Args:
            task: The task.
            token: Of its assignment.
            asset: The SPZ file; None for a failure.
            reason: Of a failure.

        Raises:
            GatewayFault: It was not taken, or there is no answer.
        """
        timestamp, signature = self._signed(task.node)
        form = AddResult(
            id=task.id,
            signature=signature,
            timestamp=timestamp,
            worker_hotkey=self.hotkey,
            worker_id=task.worker_id,
            assignment_token=token,
            asset=asset,
            reason=reason,
        )
        await self._call(
            "POST",
            task.node,
            ADD_RESULT,
            data=multipart(form),
            limit_s=ADD_RESULT_LIMIT_S,
            limit_bytes=0,
        )

    async def node_id(self, address: str) -> str:
        """Asks a node for its number, which shows that it is a gateway; nothing is signed.

        Raises:
            GatewayFault: There is no usable answer.
        """
        body = await self._call(
            "GET", address, GET_ID, limit_s=CONNECT_LIMIT_S, limit_bytes=MAX_TEXT_BYTES
        )
        number = body.decode("ascii", "replace").strip()
        if not (number.isascii() and number.isdigit() and len(number) <= 20):
            raise GatewayFault(f"{host_of(address)} answers without a node number", status=404)
        return number

    async def close(self) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    def _signed(self, address: str) -> tuple[str, str]:
        now = self.clock()
        timestamp = timestamp_at(now + self._clock_of(address).offset(now) - SIGNED_EARLIER_S)
        return timestamp, encode_signature(self._keypair.sign(timestamp))

    def _clock_of(self, address: str) -> RemoteClock:
        # Without a date, the gateway's clock is taken to be the wall clock.
        return self._clocks.setdefault(address, RemoteClock(self.clock.behind_wall))

    async def _call(
        self,
        method: str,
        address: str,
        route: str,
        *,
        data: Any = None,
        headers: dict[str, str] | None = None,
        limit_s: float,
        limit_bytes: int,
    ) -> bytes:
        """Returns the body of an answer with status 200; nothing of it with a limit of 0."""
        if self._session is None:
            self._session = self._make_session()
        host, sent_at = host_of(address), self.clock()
        limits = aiohttp.ClientTimeout(
            total=limit_s, sock_connect=CONNECT_LIMIT_S, sock_read=SILENCE_LIMIT_S
        )
        try:
            async with self._session.request(
                method,
                address + route,
                data=data,
                headers={**_ACCEPT, **(headers or {})},
                timeout=limits,
                allow_redirects=False,
            ) as response:
                self._dated(address, response, sent_at)
                if response.status == 200:
                    return await _read(response, limit_bytes, cut=limit_bytes == 0)
                text = (await _read(response, MAX_TEXT_BYTES, cut=True)).decode("utf-8", "replace")
                raise _refusal(host, response, printable(text, 200))
        except GatewayFault:
            raise
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            words = _in_words(error, host, limit_s)
            raise GatewayFault(words, arrived=not never_sent(error)) from None

    def _dated(self, address: str, response: ClientResponse, sent_at: float) -> None:
        """Learns from the date of an answer."""
        now = self.clock()
        date = parse_date(response.headers.get("Date"), self.clock.wall())
        self._clock_of(address).dated(date, sent_at=sent_at, answered_at=now)
        if date is not None:
            behind_wall = self.clock.behind_wall()
            least, most = date - now - behind_wall, date + DATE_STEP_S - sent_at - behind_wall
            self._off[address] = max(0.0, least) + min(0.0, most)


def multipart(form: AddResult, *, boundary: str | None = None) -> aiohttp.MultipartWriter:
    """Returns the body of `POST /add_result`: the text parts in their order, the asset last.

    Args:
        form: The values.
        boundary: Between the parts; a random one if not given.
    """
    writer = aiohttp.MultipartWriter("form-data", boundary=boundary)
    for name, value in form.fields():
        part: aiohttp.Payload = aiohttp.payload.StringPayload(value)
        part.set_content_disposition("form-data", name=name)
        writer.append_payload(part)
    if form.asset is not None:
        # As a file it is sent in pieces: aiohttp warns that large bytes block the loop.
        part = aiohttp.payload.BytesIOPayload(
            io.BytesIO(form.asset), content_type=ASSET_CONTENT_TYPE
        )
        part.set_content_disposition("form-data", name="asset", filename=ASSET_FILE_NAME)
        writer.append_payload(part)
    return writer


def _new_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)


async def _read(response: ClientResponse, limit: int, *, cut: bool = False) -> bytes:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        if cut:
            return b""
        raise GatewayFault(
            f"{response.host} packs its answer, although it was asked not to", status=200
        )
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        body += chunk
        if len(body) > limit:
            if cut:
                response.close()
                break
            raise GatewayFault(
                f"the answer of {response.host} is larger than {limit} bytes", status=200
            )
    return bytes(body[:limit])


def _refusal(host: str, response: ClientResponse, text: str) -> GatewayFault:
    words = f"{host} answered {response.status}"
    if 300 <= response.status < 400:
        words = f"{host} answered {response.status}, a redirect, which is not followed"
    after = response.headers.get("Retry-After", "")
    return GatewayFault(
        f"{words}: {text}" if text else words,
        status=response.status,
        answer=text,
        retry_after_s=min(float(after), 600.0) if after.isascii() and after.isdigit() else 0.0,
    )


def _in_words(error: Exception, host: str, limit_s: float) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = getattr(error.certificate_error, "verify_message", "") or "it is not trusted"
        return (
            f"the certificate of {host} is refused: {why} (SSL_CERT_FILE names the file of an own "
            "authority)"
        )
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return f"{host} does not speak TLS as this machine does"
    fault = connection_fault(error, host, limit_s)
    return fault or f"the answer of {host} cannot be read: {type(error).__name__}"
