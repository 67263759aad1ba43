"""The subnet on a chain, through Bittensor 10."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from loguru import logger

from miner.chain.connection import Connection
from miner.chain.metagraph import Membership, Neuron, OnReading, Snapshot, register_command
from miner.daemon_call import LoneCall, in_words
from protocol.errors import SetupError

REFRESH_S = 120.0
"""Seconds between two readings of the metagraph."""

TIME_LIMIT_S = 60.0
"""Seconds that one call to the chain may take."""

STALE_S = 3600.0
"""Age at which a reading no longer proves that a hotkey is absent."""

PUBLISH_LIMIT_S = 660.0
"""Seconds within which the chain must take the axon's address after a start. The chain's limit on
the rate of such changes is ten minutes on most subnets."""

PUBLISH_PAUSE_S = 2.0
MAX_PUBLISH_PAUSE_S = 60.0
"""The first pause between two attempts, doubled each time, and the longest."""

REPUBLISH_S = 900.0
"""Seconds between two attempts to correct the address on the chain, which limits their rate."""

LOOK_UP_S = 600.0
"""Seconds between two look-ups of this machine's public address."""


class SubtensorChain:
    """A subnet on a chain, read in the background so that a slow chain never delays an answer.

    Args:
        network: finney, test, local, or the address of a node.
        netuid: The subnet.
        connect: Opens the connection; bittensor's `Subtensor(network)` by default.
        refresh_s: Seconds between two readings.
        time_limit_s: Seconds that one call may take, connecting included.
        clock: Monotonic clock, in seconds.
        sleep: Waits between two attempts to publish.
        find_ip: Looks up this machine's public address; None if the operator has set it.
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
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        find_ip: Callable[[], Awaitable[str]] | None = None,
    ) -> None:
        self._network = network
        self._netuid = netuid
        self._refresh_s = refresh_s
        self._clock = clock
        self._sleep = sleep
        self._find_ip = find_ip
        self._connection = Connection(
            partial(connect or _subtensor, network), time_limit_s=time_limit_s, clock=clock
        )
        self._refreshing: asyncio.Task[None] | None = None
        self._listeners: list[OnReading] = []
        self._hotkey = ""
        self._axon: Any = None
        self._published_at = self._looked_up_at = clock()
        self.snapshot = Snapshot({}, clock())
        self.deregistered = asyncio.Event()

    def is_stale(self) -> bool:
        """Whether the last reading is older than an hour."""
        return self._clock() - self.snapshot.taken_at > STALE_S

    def listen(self, listener: OnReading) -> None:
        """Tells a listener of every attempt to read; see `Chain.listen`."""
        self._listeners.append(listener)

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
        self._hotkey = hotkey
        self._tell("")
        membership = Membership(hotkey, self.deregistered)
        self._refreshing = asyncio.create_task(self._keep_reading(membership))
        return self.snapshot.neurons[hotkey]

    async def publish(self, axon: object) -> None:
        """Publishes the axon's external address; see `Chain.publish`.

        Repeats what fails, refusals for the chain's rate limit among it, for 11 minutes. From the
        first attempt on, the chain is corrected whenever it shows another address than the axon's.
        """
        self._axon = axon
        until = self._clock() + PUBLISH_LIMIT_S
        for pause in _pauses():
            problem = await self._serve_axon()
            if not problem:
                return
            neuron = self.snapshot.neurons.get(self._hotkey)
            if neuron is not None and self._is_current(neuron):
                logger.info("the chain shows the axon's address already ({})", problem)
                return
            if self._clock() + pause > until:
                break
            logger.warning(
                "the chain did not take the axon's address ({}); next try in {:.0f} s",
                problem,
                pause,
            )
            await self._sleep(pause)
        raise SetupError(
            f"the chain did not take the axon's address within {PUBLISH_LIMIT_S / 60:.0f} minutes: "
            f"{problem}",
            fix="check --axon.external_ip, --axon.external_port and --subtensor.network, and start "
            "again",
        )

    async def close(self) -> None:
        """Stops reading and closes the connection. Cancel `publish` before."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait({self._refreshing})
        await self._connection.close()

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
                self._tell(in_words(error))
                continue
            self._tell("")
            neuron = membership.observe(self.snapshot)
            if neuron is None:
                logger.error("the metagraph does not list this miner's hotkey")
            elif self._axon is not None:
                await self._correct_address(neuron)

    async def _correct_address(self, shown: Neuron) -> None:
        now = self._clock()
        if self._find_ip is not None and now - self._looked_up_at >= LOOK_UP_S:
            self._looked_up_at = now
            with contextlib.suppress(SetupError):  # The address in use is the best guess.
                self._axon.external_ip = await self._find_ip()
        if self._is_current(shown) or now - self._published_at < REPUBLISH_S:
            return
        problem = await self._serve_axon()
        logger.warning(
            "the chain shows this miner at {}:{} instead of {}:{}; {}",
            shown.ip,
            shown.port,
            self._axon.external_ip,
            self._axon.external_port,
            f"not corrected: {problem}" if problem else "corrected",
        )

    def _is_current(self, neuron: Neuron) -> bool:
        return (neuron.ip, neuron.port) == (self._axon.external_ip, self._axon.external_port)

    async def _serve_axon(self) -> str:
        """Publishes the address and returns what went wrong, or an empty string."""

        def serve(subtensor: Any) -> None:
            response = subtensor.serve_axon(netuid=self._netuid, axon=self._axon)
            if not response.success:
                # Raised, because the library also reports a broken connection in this way.
                raise _NotTaken(str(response.message or "no reason given"))

        self._published_at = self._clock()
        try:
            await self._connection.call(serve)
        except _NotTaken as error:
            return str(error)
        except Exception as error:
            return in_words(error)
        return ""

    def _tell(self, problem: str) -> None:
        for listener in self._listeners:
            listener(self.snapshot, problem)

    async def _refresh(self) -> None:
        self.snapshot = await self._connection.call(self._read)

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
        earned = (metagraph.incentive, metagraph.consensus, metagraph.emission)
        neurons = [
            Neuron(
                uid=int(uid),
                hotkey=hotkey,
                coldkey=coldkey,
                ip=axon.ip,
                port=axon.port,
                stake=float(stake),
                validator_permit=bool(permit),
                incentive=float(incentive),
                consensus=float(consensus),
                emission=float(emission),
            )
            for uid, hotkey, coldkey, axon, stake, permit, (incentive, consensus, emission) in zip(
                *columns, zip(*earned, strict=True), strict=True
            )
        ]
        if not neurons:
            raise ValueError("the metagraph is empty")
        # Only set if the chain answered the second of the library's calls.
        tempo = getattr(metagraph, "tempo", None)
        return Snapshot.of(neurons, self._clock(), None if tempo is None else int(tempo))


class _NotTaken(Exception):
    """The chain, or the library, did not take the address; says why."""


async def external_ip() -> str:
    """Asks services on the internet for this machine's public address.

    Raises:
        SetupError: None of them answered.
    """
    try:
        return await _external_ip()
    except Exception as error:
        raise SetupError(
            f"the public address of this machine cannot be found: {in_words(error)}",
            fix="set it with --axon.external_ip",
        ) from error


def _ask_for_external_ip() -> str:
    from bittensor.utils import networking

    return str(networking.get_external_ip())


# It has no time limits of its own.
_external_ip = LoneCall(_ask_for_external_ip, "the look-up of the public address", TIME_LIMIT_S)


def _pauses() -> Iterator[float]:
    pause = PUBLISH_PAUSE_S
    while True:
        yield pause
        pause = min(2.0 * pause, MAX_PUBLISH_PAUSE_S)


def _subtensor(network: str) -> Any:
    import bittensor

    subtensor = bittensor.Subtensor(network=network)
    # Otherwise a call that hangs opens the next connection once its own is closed, and hangs again.
    subtensor.substrate.max_retries = 1
    return subtensor
