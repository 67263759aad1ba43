"""The three calls of a client to the subnet owner's gateway, over aiohttp.

Redirects are not followed, since the key would go with them, and everything that is read has a
limit.
"""

import base64
import io
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import aiohttp
from pydantic import SecretStr

from miner.mock_validator.tasks import TrialTask
from miner.transports.faults import connection_fault
from protocol.gateway import ADD_TASK, GET_RESULT, GET_STATUS, MAX_ADD_RESULT_BYTES
from protocol.text import printable

CALL_LIMIT_S = 30.0
RESULT_LIMIT_S = 300.0
SILENCE_LIMIT_S = 20.0
CONNECT_LIMIT_S = 10.0

MAX_ANSWER_BYTES = 4096
MAX_RESULT_BYTES = {"spz": MAX_ADD_RESULT_BYTES, "ply": 2**29, "all": 3 * MAX_ADD_RESULT_BYTES}
"""Of one answer, by format."""

Format = Literal["spz", "ply", "all"]

_QUERIES: Mapping[Format, Mapping[str, str]] = {
    "spz": {},
    "ply": {"compress": "0"},
    "all": {"all": "1"},
}
_CHUNK_BYTES = 2**16
_PARTIAL = re.compile(r"PartialResult\((\d{1,6})\)", re.ASCII)

_FIXES = {
    "concurrent_limit": "give a smaller --concurrency, or wait until earlier tasks are done",
    "daily_limit": "wait until the day's limit is over",
    "unauthorized_daily_limit": "put a key into GATEWAY_API_KEY, or wait until the day is over",
    "insufficient_balance": "top up the account of the key",
    "login_required": "use the key of an account; a guest's is not enough",
    "pricing_unavailable": "try again in a few minutes",
    "invalid_api_key_rate_limit": "check GATEWAY_API_KEY, and wait 5 minutes",
    "invalid_field": "change what the message names",
}
_FIXES_BY_STATUS = {
    400: "change what the message names",
    401: "check GATEWAY_API_KEY",
    402: "top up the account of the key",
    404: "ask the node that the task was submitted to, with the same key",
    405: "is --url the address of a gateway?",
    413: "send a smaller picture: at most 2 MiB",
    429: "wait a minute; a gateway takes 30 tasks a minute from one address",
    500: "try again later",
    503: "try again later",
}


class ClientFault(Exception):
    """A call without a usable answer; its text fits on one line.

    Attributes:
        status: HTTP status; 0 without an answer.
        code: The gateway's code of the error, if it gave one.
        fix: What to do.
    """

    def __init__(self, reason: str, *, status: int = 0, code: str = "", fix: str = "") -> None:
        super().__init__(printable(reason, 300))
        self.status = status
        self.code = code
        self.fix = fix

    @property
    def passes(self) -> bool:
        """Whether the same call may succeed in a minute."""
        limited = self.status == 429 and not self.code
        return limited or self.status in (0, 500, 502, 503, 504)


@dataclass(frozen=True)
class TaskStatus:
    """What a gateway says of a task.

    Attributes:
        name: "NoResult", "InProgress", "PartialResult", "Success" or "Failure".
        successes: Results that can be fetched, at least.
        detail: The reason of a failure, or the name of the worker.
    """

    name: str
    successes: int = 0
    detail: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing further is to come."""
        return self.name in ("Success", "Failure")


class GatewayClient:
    """Calls one gateway.

    Args:
        url: Its base address.
        key: The API key, which goes into a header and nowhere else.
        origin: Who asks, as the gateway counts it.
    """

    def __init__(self, url: str, key: SecretStr, *, origin: str = "api") -> None:
        self._url = url
        self._host = url.partition("://")[2]
        self._headers = {
            "x-api-key": key.get_secret_value(),
            "x-client-origin": origin,
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        }
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Opens the session."""
        self._session = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        """Closes the connections."""
        if self._session is not None:
            await self._session.close()

    async def add(
        self,
        task: TrialTask,
        *,
        seed: int | None = None,
        model: str,
        params: Mapping[str, Any] | None = None,
    ) -> str:
        """Submits a task and returns the gateway's id.

        Raises:
            ClientFault: It was not taken, or there is no answer.
        """
        fields: dict[str, Any] = {"model": model}
        if seed is not None:
            fields["seed"] = seed
        if params is not None:
            fields["model_params"] = dict(params)
        if task.kind == "text":
            body = await self._call("POST", ADD_TASK, json={"prompt": task.wire, **fields})
        else:
            form = aiohttp.FormData(default_to_multipart=True)
            for name, value in fields.items():
                form.add_field(name, value if isinstance(value, str) else json.dumps(value))
            # As a file it is sent in pieces: aiohttp warns that large bytes block the loop.
            picture = io.BytesIO(base64.b64decode(task.wire))
            form.add_field("image", picture, filename="picture")
            body = await self._call("POST", ADD_TASK, data=form)
        task_id = _object(body).get("id")
        if not isinstance(task_id, str) or not 0 < len(task_id) <= 64:
            raise ClientFault(f"the answer of {self._host} has no id of a task", status=200)
        return task_id

    async def status(self, task_id: str) -> TaskStatus:
        """Returns how far a task is.

        Raises:
            ClientFault: There is no usable answer.
        """
        value = _object(await self._call("GET", GET_STATUS, params={"id": task_id}))
        name = str(value.get("status", ""))
        if match := _PARTIAL.fullmatch(name):
            return TaskStatus("PartialResult", int(match[1]))
        detail = printable(str(value.get("reason") or value.get("worker_id") or ""), 255)
        if name not in ("NoResult", "InProgress", "Success", "Failure"):
            raise ClientFault(f"{self._host} answers with an unknown status: {name}", status=200)
        return TaskStatus(name, int(name == "Success"), detail)

    async def result(self, task_id: str, form: Format) -> bytes:
        """Fetches the first result as it is or as PLY, or a zip of all.

        Raises:
            ClientFault: There is none, or no usable answer.
        """
        return await self._call(
            "GET",
            GET_RESULT,
            params={"id": task_id, **_QUERIES[form]},
            limit_s=RESULT_LIMIT_S,
            limit_bytes=MAX_RESULT_BYTES[form],
        )

    async def _call(
        self,
        method: str,
        route: str,
        *,
        limit_s: float = CALL_LIMIT_S,
        limit_bytes: int = MAX_ANSWER_BYTES,
        **arguments: Any,
    ) -> bytes:
        if self._session is None:
            raise RuntimeError("use it in `async with`")
        limits = aiohttp.ClientTimeout(
            total=limit_s, sock_connect=CONNECT_LIMIT_S, sock_read=SILENCE_LIMIT_S
        )
        try:
            async with self._session.request(
                method,
                self._url + route,
                headers=self._headers,
                timeout=limits,
                allow_redirects=False,
                **arguments,
            ) as response:
                if response.status == 200:
                    return await self._read(response, limit_bytes)
                raise self._fault(response.status, await _beginning(response))
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            words = connection_fault(error, self._host, limit_s)
            raise ClientFault(
                words or f"the answer of {self._host} cannot be read: {type(error).__name__}",
                fix="is --url right, and the gateway running?",
            ) from None

    async def _read(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ClientFault(
                f"{self._host} packs its answer, although it was asked not to", status=200
            )
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > limit:
                raise ClientFault(
                    f"the answer of {self._host} is larger than {limit:,} bytes", status=200
                )
        return bytes(body)

    def _fault(self, status: int, text: str) -> ClientFault:
        code, message = "", text
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            error = value.get("error")
            code = printable(error, 64) if isinstance(error, str) else ""
            inner = error.get("brief") if isinstance(error, dict) else value.get("message")
            message = str(inner or "")
        elif message.lstrip().startswith("<"):
            message = "a web page"
        words = f"{self._host} answered {status}"
        fix = _FIXES.get(code) or _FIXES_BY_STATUS.get(status, "is --url a gateway?")
        return ClientFault(
            f"{words}: {message}" if message else words, status=status, code=code, fix=fix
        )


async def _beginning(response: aiohttp.ClientResponse) -> str:
    body = bytearray()
    async for chunk in response.content.iter_chunked(MAX_ANSWER_BYTES):
        body += chunk
        if len(body) >= MAX_ANSWER_BYTES:
            response.close()
            break
    return bytes(body[:MAX_ANSWER_BYTES]).decode("utf-8", "replace")


def _object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ClientFault("the answer is no JSON object", status=200, fix="is it a gateway?")
    return value
