"""The neurons of a subnet as a value, and what the miner asks of a chain."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from pydantic import BaseModel, ConfigDict


class Neuron(BaseModel):
    """One registered neuron.

    Attributes:
        uid: Its number on the subnet.
        hotkey: SS58 address of the key that it works with.
        coldkey: SS58 address of its owner.
        ip: Where its axon serves; 0.0.0.0 if it does not.
        port: See `ip`; 0 if it does not.
        stake: In the chain's unit (TAO and alpha as it weighs them).
        validator_permit: Whether it may set weights.
        incentive: Its share of what the subnet's miners got in the last epoch, 0..1.
        consensus: How far the validators agree on it, 0..1.
        emission: Alpha that it got for the last epoch.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uid: int
    hotkey: str
    coldkey: str = ""
    ip: str = "0.0.0.0"
    port: int = 0
    stake: float = 0.0
    validator_permit: bool = False
    incentive: float = 0.0
    consensus: float = 0.0
    emission: float = 0.0


@dataclass(frozen=True)
class Snapshot:
    """The neurons of a subnet at one time.

    Attributes:
        neurons: By hotkey.
        taken_at: When they were read (monotonic seconds).
        tempo: Blocks of an epoch, where the chain said so.
    """

    neurons: Mapping[str, Neuron]
    taken_at: float
    tempo: int | None = None

    @classmethod
    def of(cls, neurons: Iterable[Neuron], taken_at: float, tempo: int | None = None) -> "Snapshot":
        """Indexes neurons by their hotkeys."""
        by_hotkey = {neuron.hotkey: neuron for neuron in neurons}
        return cls(MappingProxyType(by_hotkey), taken_at, tempo)


OnReading = Callable[[Snapshot, str], None]
"""Takes the last reading, and why there is no newer one: empty if it is new."""


class Membership:
    """Watches whether a hotkey keeps its place on the subnet.

    Args:
        hotkey: The miner's, registered at first.
        lost: Set once it has lost its place.
        readings: Readings in a row without it that count as proof, since one may be garbled.
    """

    def __init__(self, hotkey: str, lost: asyncio.Event, *, readings: int = 2) -> None:
        self._hotkey = hotkey
        self._lost = lost
        self._readings = readings
        self._missing = 0

    def observe(self, snapshot: Snapshot) -> Neuron | None:
        """Counts a reading and returns the neuron of the hotkey, if it is there."""
        neuron = snapshot.neurons.get(self._hotkey)
        self._missing = 0 if neuron is not None else self._missing + 1
        if self._missing >= self._readings:
            self._lost.set()
        return neuron


class Chain(Protocol):
    """What the miner reads from a chain and publishes on it.

    `snapshot` may be read from any thread; everything else belongs to one event loop.

    Attributes:
        deregistered: Set once the miner's hotkey has lost its uid.
    """

    deregistered: asyncio.Event

    @property
    def snapshot(self) -> Snapshot:
        """The last reading; empty before `start`."""

    def is_stale(self) -> bool:
        """Whether the last reading is too old to prove that a hotkey is absent."""

    def listen(self, listener: OnReading) -> None:
        """Tells a listener of every attempt to read from now on; it must not raise."""

    async def start(self, hotkey: str) -> Neuron:
        """Reads the subnet, keeps reading it from now on, and returns the neuron of `hotkey`.

        Raises:
            SetupError: The chain cannot be read, or the hotkey is not registered.
        """

    async def publish(self, axon: object) -> None:
        """Publishes the address at which the axon serves, now and whenever it changes.

        Returns once the chain has taken it, which may take minutes while the chain fails; the
        miner serves meanwhile.

        Raises:
            SetupError: The chain did not take it in the end.
        """

    async def close(self) -> None:
        """Stops reading and closes the connection."""


def register_command(network: str, netuid: int) -> str:
    """The commands that register a hotkey, for both generations of btcli."""
    return (
        f"btcli subnet register --netuid {netuid} --wallet.name W --wallet.hotkey H "
        f"--subtensor.network {network}\n"
        f"       (btcli of bittensor 11: btcli subnet register --netuid {netuid} -w W -H H "
        f"--network {network})"
    )
