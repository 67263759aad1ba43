"""Which requests reach the axon: cheap checks of path and headers, before anything is built."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

from loguru import logger

from miner.chain.metagraph import Chain
from miner.request import Caller
from miner.transports.body_limit import Message
from miner.transports.push.checks import (
    CLOCK_AHEAD,
    CLOCK_BEHIND,
    NANOSECONDS,
    AddressLimit,
    Admission,
    RateLimit,
    ReplayGuard,
    check_headers,
)
from miner.transports.push.clock import CallersClocks, WallClock
from miner.transports.push.headers import HOTKEY, Claim, check_content, read_claim, read_headers
from miner.transports.push.nonce_file import NonceFile
from miner.transports.push.refused import Refused

PATH = "/GenerateAsset"

WRITE_LIMIT_S = 1.0
"""Seconds that a caller whose clock is ahead waits for the disk."""

_CLOCKS = (CLOCK_AHEAD, CLOCK_BEHIND)


@dataclass(frozen=True)
class Verified:
    """A request whose headers are signed, recent and not seen before.

    Attributes:
        claim: The headers.
        caller: Whose signature it is.
        received_at: Monotonic seconds.
        address: IP address and port of the client.
    """

    claim: Claim
    caller: Caller
    received_at: float
    address: tuple[str, int]


class Entrance:
    """Checks requests by what stands before their bodies.

    In this order: path, method, content type, hotkey, the headers' form, signature, time, replay,
    rate. Nothing is counted for a hotkey before its signature is verified. An address beyond its
    limit of refused requests is told only that, except where it names a hotkey that is admitted:
    its requests are checked as always, so that a stranger does not shut out a validator that
    shares its address.

    Args:
        chain: Lists the registered hotkeys.
        admission: Rules for callers.
        per_minute: Requests of one caller in any minute.
        verify: Raises an exception unless the signature of a claim is right.
        wall: This machine's clock.
        nonces: Remembers over a kill which nonces were accepted ahead of it.
    """

    def __init__(
        self,
        chain: Chain,
        admission: Admission,
        *,
        per_minute: int,
        verify: Callable[[Claim], Awaitable[None]],
        wall: WallClock,
        nonces: NonceFile,
    ) -> None:
        self._chain = chain
        self._admission = admission
        self._verify = verify
        self._wall = wall
        self._nonces = nonces
        self._writing: asyncio.Future[None] | None = None
        self._addresses = AddressLimit(time.monotonic)
        self._replays = ReplayGuard(time.monotonic)
        self._rate = RateLimit(per_minute, time.monotonic)
        self._callers_clocks = CallersClocks(time.monotonic)

    async def check(self, scope: Message) -> Verified:
        """Returns what is proven of a request; reads nothing of its body.

        Args:
            scope: The request, as ASGI describes it.

        Raises:
            Refused: It is not served.
        """
        address = tuple(scope.get("client") or ("", 0))
        try:
            return await self._check(scope, address)
        except Refused as refused:
            # A limit on verified callers is not one of their address.
            if refused.refusal.code != "rate_limited":
                self._addresses.count(address[0])
            raise

    async def _check(self, scope: Message, address: Any) -> Verified:
        received_at = time.monotonic()
        headers = read_headers(scope["headers"])
        hotkey = headers.get(HOTKEY, "")
        stranger = self._admission.refusal(self._chain, hotkey)
        if stranger is not None and self._addresses.is_over(address[0]):
            raise Refused(
                429,
                "address_limited",
                "too many refused requests from this address; ask again later",
                headers={"retry-after": "10"},
            )
        _check_route(scope)
        check_content(headers)
        if stranger is not None:
            raise Refused(403, stranger.code, stranger.reason)
        claim = read_claim(headers)
        try:
            await self._verify(claim)
        except Exception as error:
            raise Refused(401, "bad_signature", _in_words(error)) from None
        await self._check_time(claim)
        self._replays.remember(hotkey, claim.uuid, claim.nonce)
        if not self._rate.allow(hotkey):
            raise Refused(
                429,
                "rate_limited",
                "too many requests of this hotkey in the last minute",
                headers={"retry-after": str(max(1, ceil(self._rate.retry_after_s(hotkey))))},
            )
        neuron = self._chain.snapshot.neurons.get(hotkey)
        caller = Caller(hotkey, neuron.uid if neuron else None, neuron.stake if neuron else 0.0)
        return Verified(claim, caller, received_at, address)

    async def _check_time(self, claim: Claim) -> None:
        """Checks the nonce of a verified caller, and compares its clock with ours."""
        step = self._wall.step_s()
        if step:
            logger.warning(
                "this machine's clock was set {} by {:.1f} s; requests are judged by the new time",
                "forward" if step > 0 else "back",
                abs(step),
            )
        now = self._wall.now_ns()
        ahead_s = (claim.nonce - now) / NANOSECONDS
        try:
            check_headers(
                nonce=claim.nonce,
                version=claim.version,
                timeout=claim.timeout,
                now=now,
                started=self._nonces.used_until(self._wall.started_ns()),
            )
        except Refused as refused:
            if refused.refusal.code in _CLOCKS:
                self._callers_clocks.observe(claim.hotkey, ahead_s, agrees=False)
                if (warning := self._callers_clocks.warning()) is not None:
                    logger.warning("{}", warning)
            raise
        self._callers_clocks.observe(claim.hotkey, ahead_s, agrees=True)
        await self._cover(claim.nonce, now)

    async def _cover(self, nonce: int, now: int) -> None:
        """Has it written that this nonce is used; a disk that hangs delays its caller, no more."""
        end = time.monotonic() + WRITE_LIMIT_S
        while not self._nonces.covers(nonce, now) and (left := end - time.monotonic()) > 0.0:
            if self._writing is None or self._writing.done():
                self._writing = asyncio.ensure_future(asyncio.to_thread(self._nonces.cover, now))
            if (await asyncio.wait({self._writing}, timeout=left))[0]:
                self._writing.result()


def _check_route(scope: Message) -> None:
    if scope["path"] != PATH:
        raise Refused(404, "not_found", f"there is nothing here; this axon serves POST {PATH}")
    if scope["method"] != "POST":
        raise Refused(405, "bad_method", f"this axon serves POST {PATH}", headers={"allow": "POST"})


def _in_words(error: Exception) -> str:
    # Bittensor's own text repeats the signed message, which is long and says nothing more.
    if str(error).startswith("Signature mismatch"):
        return (
            "the signature is not that of the hotkey over nonce, hotkeys, uuid and body hash; "
            "check that the request is addressed to this miner's hotkey"
        )
    return f"the signature cannot be checked: {error}"
