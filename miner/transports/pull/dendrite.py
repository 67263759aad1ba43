"""A Bittensor 10 Dendrite that calls strangers."""

import asyncio
import io
import json as json_format
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import bittensor as bt
from bittensor.utils import networking

from miner.transports.pull.bounded_answer import BoundedResponse


def offline_dendrite(key: Any) -> Any:
    """Builds a Dendrite that does not look up this machine's address.

    It does not keep every call, reads no endless answers, and does not block the event loop with
    large bodies. Use it with `async with`, or close it with `aclose_session`.

    Args:
        key: A wallet or a keypair to sign with.
    """

    class OfflineDendrite(bt.Dendrite):  # type: ignore[misc]
        _session: "_Session | None"

        @property
        async def session(self) -> "_Session":
            """The connections, opened at the first call."""
            if self._session is None:
                self._session = _Session()
            return self._session

        def __del__(self) -> None:
            """Does nothing: the session has been closed, and the loop may be gone."""

    bt.logging.off()  # It prints validators' bytes unescaped.
    ask_internet = networking.get_external_ip
    # An address that no miner has: a dendrite calls 0.0.0.0 for a target at its own address.
    networking.get_external_ip = lambda: "0.0.0.0"
    try:
        dendrite = OfflineDendrite(key)
    finally:
        networking.get_external_ip = ask_internet
    dendrite.synapse_history = deque(maxlen=0)  # It would grow with every call.
    return dendrite


class _Session:
    """What a Dendrite uses of an aiohttp session."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(response_class=BoundedResponse)

    @asynccontextmanager
    async def post(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        json: object,
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  # As aiohttp calls it.
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        body = await asyncio.to_thread(lambda: json_format.dumps(json).encode())
        typed = {**headers, "content-type": "application/json"}
        # As a file it is sent in pieces. Of large bytes, aiohttp warns that they block the loop.
        async with self._session.post(
            url, headers=typed, data=io.BytesIO(body), timeout=timeout
        ) as response:
            yield response

    async def close(self) -> None:
        await self._session.close()
