"""A Bittensor 10 Dendrite that calls strangers."""

import asyncio
import io
import ipaddress
import json as json_format
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import aiohttp
import bittensor as bt
from bittensor.utils import networking

from miner.chain.metagraph import Neuron
from miner.transports.pull.bounded_answer import BoundedResponse
from miner.transports.pull.exchange import Exchange

CONNECT_LIMIT_S = 10.0
"""Seconds until a connection counts as refused. The time for an answer can be minutes."""

_exchange: ContextVar[Exchange | None] = ContextVar("exchange", default=None)
"""The exchange of this task, which the session fills in."""


def offline_dendrite(key: Any) -> Any:
    """Builds a Dendrite that does not look up this machine's address.

    It does not keep every call, reads no endless answers, does not block the event loop with large
    bodies, and reaches IPv6 addresses. Use it with `async with`, or close it with `aclose_session`.

    Args:
        key: A wallet or a keypair to sign with.
    """

    class OfflineDendrite(bt.Dendrite):  # type: ignore[misc]
        _session: "_Session | None"
        _nonces: dict[str, int]

        @property
        async def session(self) -> "_Session":
            """The connections, opened at the first call."""
            if self._session is None:
                self._session = _Session()
            return self._session

        async def exchange(
            self, neuron: Neuron, synapse: Any, timeout_s: float, *, ahead_s: float = 0.0
        ) -> Exchange:
            """Sends a request to a neuron's axon. Whatever becomes of it is in the exchange.

            Args:
                neuron: Where to, and for which hotkey.
                synapse: The request.
                timeout_s: Seconds that it may take.
                ahead_s: Seconds that the axon's clock is ahead; it refuses what seems old to it.
            """
            target = neuron.model_copy(update={"ip": host_of(neuron.ip)})
            exchange = Exchange(f"{target.ip}:{target.port}", timeout_s, ahead_s)
            _exchange.set(exchange)
            try:
                # Of its target, a Dendrite reads only ip, port and hotkey.
                exchange.reply = await self.call(
                    target, synapse, timeout=timeout_s, deserialize=False
                )
            except Exception as error:
                # It fails at bodies that remove its own fields, such as {"dendrite": null}.
                exchange.error = exchange.error or error
            finally:
                _exchange.set(None)
            return exchange

        def preprocess_synapse_for_request(
            self, target_axon_info: Any, synapse: Any, timeout: float = 12.0
        ) -> Any:
            """Signs a request, with a nonce that the target takes.

            An axon takes no nonce below the one before, as when this machine's clock was set back,
            and no first nonce that is many seconds old by its own clock.
            """
            synapse = super().preprocess_synapse_for_request(target_axon_info, synapse, timeout)
            exchange, sender, hotkey = _exchange.get(), synapse.dendrite, target_axon_info.hotkey
            nonce = sender.nonce + int(1e9 * exchange.ahead_s if exchange is not None else 0)
            nonce = max(nonce, self._nonces.get(hotkey, 0) + 1)
            self._nonces[hotkey] = nonce
            if nonce != sender.nonce:
                sender.nonce = nonce
                parts = (nonce, sender.hotkey, hotkey, sender.uuid, synapse.body_hash)
                sender.signature = "0x" + self.keypair.sign(".".join(map(str, parts))).hex()
            return synapse

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
    dendrite._nonces = {}
    dendrite.synapse_history = deque(maxlen=0)  # It would grow with every call.
    return dendrite


def host_of(ip: str) -> str:
    """Returns an address as a URL needs it: IPv6 in brackets, IPv4 in IPv6 as IPv4.

    A Dendrite puts the address of its target into the URL as it is. Host names stay as they are.
    """
    try:
        address = ipaddress.ip_address(ip.strip("[]"))
    except ValueError:
        return ip
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or f"[{address}]")
    return str(address)


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
        exchange = _exchange.get()
        body = await asyncio.to_thread(lambda: json_format.dumps(json).encode())
        typed = {**headers, "content-type": "application/json"}
        limits = aiohttp.ClientTimeout(total=timeout.total, sock_connect=CONNECT_LIMIT_S)
        try:
            # As a file it is sent in pieces: aiohttp warns that large bytes block the loop.
            async with self._session.post(
                url, headers=typed, data=io.BytesIO(body), timeout=limits
            ) as response:
                if exchange is not None:
                    exchange.http_status, exchange.headers = response.status, response.headers
                yield response
        except Exception as error:
            if exchange is not None:
                exchange.error = error
            raise

    async def close(self) -> None:
        await self._session.close()
