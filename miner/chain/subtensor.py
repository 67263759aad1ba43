"""The subnet on a chain, and the wallets on this machine."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from loguru import logger

from miner.chain.metagraph import Membership, Neuron, Snapshot, register_command
from miner.daemon_call import in_daemon_thread, in_words
from protocol.errors import SetupError

REFRESH_S = 120.0
"""Seconds between two readings of the metagraph."""

TIME_LIMIT_S = 60.0
"""Seconds that one call to the chain may take."""

CLOSE_LIMIT_S = 15.0
"""Seconds that closing a connection may take; the other side is given 10 to say goodbye."""

STALE_S = 3600.0
"""Age at which a reading no longer proves that a hotkey is absent."""

REPUBLISH_S = 900.0
"""Between two attempts to correct the address on the chain, which limits their rate."""

LOOK_UP_S = 600.0
"""Between two look-ups of this machine's own address."""

T = TypeVar("T")


class SubtensorChain:
    """A subnet on a chain, read in the background so that a slow chain never delays an answer.

    Args:
        network: finney, test, local, or the address of a node.
        netuid: The subnet.
        connect: Opens the connection; bittensor's `Subtensor(network)` if not given.
        refresh_s: Seconds between two readings.
        time_limit_s: Seconds that one call may take, with connecting where that comes first.
        clock: Monotonic clock, in seconds.
        find_ip: Looks up this machine's public address; None if that is given once and for all.
    """

    def __init__(
        self,
        network: str,
        netuid: int,
        *,
        connect: Callable[[str], Any] | None = None,
        refresh_s: float = REFRESH_S,
        time_limit_s: float = TIME_LIMIT_S,
        clock: Callable[[], float] = time.monotonic,
        find_ip: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        self._network = network
        self._netuid = netuid
        self._connect = connect or _subtensor
        self._refresh_s = refresh_s
        self._time_limit_s = time_limit_s
        self._clock = clock
        self._find_ip = find_ip
        self._subtensor: Any = None
        self._calling = asyncio.Lock()  # A connection bears one call at a time.
        self._refreshing: asyncio.Task[None] | None = None
        self._axon: Any = None
        self._published_at = self._looked_up_at = clock()
        self.snapshot = Snapshot({}, clock())
        self.deregistered = asyncio.Event()

    def is_stale(self) -> bool:
        """Tells whether the last reading is older than an hour."""
        return self._clock() - self.snapshot.taken_at > STALE_S

    async def start(self, hotkey: str) -> Neuron:
        """Connects and reads the metagraph; see `Chain.start`."""
        try:
            await self._refresh()
        except Exception as error:
            raise SetupError(
                f"the metagraph of subnet {self._netuid} cannot be read from {self._network}: "
                f"{in_words(error)}",
                fix="check --subtensor.network, --netuid and the connection to the internet",
            ) from error
        if hotkey not in self.snapshot.neurons:
            raise SetupError(
                f"the hotkey {hotkey} is not registered on subnet {self._netuid} of "
                f"{self._network}",
                fix=register_command(self._network, self._netuid),
            )
        membership = Membership(hotkey, self.deregistered)
        self._refreshing = asyncio.create_task(self._keep_reading(membership))
        return self.snapshot.neurons[hotkey]

    async def publish(self, axon: object) -> None:
        """Publishes the axon's external address; see `Chain.publish`.

        From then on the chain is corrected whenever it shows another address than the axon's.
        """
        self._axon = axon
        if problem := await self._serve_axon():
            raise SetupError(
                f"the chain did not take the axon's address: {problem}",
                fix="check --axon.external_ip and --axon.external_port; after a recent change wait "
                "for the serving rate limit (about ten minutes) and start again",
            )

    async def close(self) -> None:
        """Stops reading and closes the connection."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait({self._refreshing})
        async with self._calling:
            await self._close_connection()

    async def _keep_reading(self, membership: Membership) -> None:
        while True:
            await asyncio.sleep(self._refresh_s)
            try:
                await self._refresh()
            except Exception as error:
                logger.warning(
                    "metagraph not refreshed ({}); the one in use is {:.0f} s old{}",
                    in_words(error),
                    self._clock() - self.snapshot.taken_at,
                    ", callers that are not in it are refused" if self.is_stale() else "",
                )
                continue
            own = membership.observe(self.snapshot)
            if own is None:
                logger.error("the metagraph does not list this miner's hotkey")
            elif self._axon is not None:
                await self._correct_address(own)

    async def _correct_address(self, own: Neuron) -> None:
        now = self._clock()
        if self._find_ip is not None and now - self._looked_up_at >= LOOK_UP_S:
            self._looked_up_at = now
            with contextlib.suppress(SetupError):  # The address in use is as good as before.
                self._axon.external_ip = await self._find_ip()
        wanted = (self._axon.external_ip, self._axon.external_port)
        if (own.ip, own.port) == wanted or now - self._published_at < REPUBLISH_S:
            return
        problem = await self._serve_axon()
        logger.warning(
            "the chain shows this miner at {}:{} instead of {}:{}; {}",
            own.ip,
            own.port,
            *wanted,
            f"not corrected: {problem}" if problem else "corrected",
        )

    async def _serve_axon(self) -> str:
        """Publishes the address and returns what went wrong, or an empty string."""

        def serve(subtensor: Any) -> Any:
            return subtensor.serve_axon(netuid=self._netuid, axon=self._axon)

        self._published_at = self._clock()
        try:
            response = await self._call(serve)
            return "" if response.success else str(response.message)
        except Exception as error:
            return in_words(error)

    async def _refresh(self) -> None:
        self.snapshot = await self._call(self._read)

    def _read(self, subtensor: Any) -> Snapshot:
        metagraph = subtensor.metagraph(netuid=self._netuid)
        columns = (
            metagraph.uids,
            metagraph.hotkeys,
            metagraph.coldkeys,
            metagraph.axons,
            metagraph.S,
            metagraph.validator_permit,
        )
        neurons = [
            Neuron(
                uid=int(uid),
                hotkey=hotkey,
                coldkey=coldkey,
                ip=axon.ip,
                port=axon.port,
                stake=float(stake),
                validator_permit=bool(permit),
            )
            for uid, hotkey, coldkey, axon, stake, permit in zip(*columns, strict=True)
        ]
        if not neurons:
            raise ValueError("the metagraph is empty")
        return Snapshot.of(neurons, self._clock())

    async def _call(self, function: Callable[[Any], T]) -> T:
        """Makes one call to the chain; a connection in which one fails is not used again."""
        limit = self._time_limit_s
        async with self._calling:
            try:
                async with asyncio.timeout(limit):
                    if self._subtensor is None:
                        connect = partial(self._connect, self._network)
                        self._subtensor = await in_daemon_thread(connect, limit)
                    return await in_daemon_thread(partial(function, self._subtensor), limit)
            except Exception:
                await self._close_connection()
                raise

    async def _close_connection(self) -> None:
        """Ends a call that still hangs in it, too."""
        closing, self._subtensor = self._subtensor, None
        if closing is not None:
            with contextlib.suppress(Exception):
                await in_daemon_thread(closing.close, CLOSE_LIMIT_S)


async def external_ip() -> str:
    """Asks the internet for this machine's public address.

    Raises:
        SetupError: Nobody answered.
    """
    from bittensor.utils import networking

    try:
        return str(await in_daemon_thread(networking.get_external_ip, TIME_LIMIT_S))
    except Exception as error:
        raise SetupError(
            f"the public address of this machine cannot be found out: {in_words(error)}",
            fix="give it with --axon.external_ip",
        ) from error


def _subtensor(network: str) -> Any:
    import bittensor

    subtensor = bittensor.Subtensor(network=network)
    # Or a call that hangs would, once its connection is closed, open the next and hang in that.
    subtensor.substrate.max_retries = 1
    return subtensor
