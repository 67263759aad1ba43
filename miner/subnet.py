"""Who is on the subnet, as a value; and the subnet that is written down in a file."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from protocol.errors import SetupError


class Neuron(BaseModel):
    """One registered neuron; stake is in the chain's unit (TAO and alpha as it weighs them)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uid: int
    hotkey: str
    coldkey: str = ""
    ip: str = "0.0.0.0"
    port: int = 0
    stake: float = 0.0
    validator_permit: bool = False


@dataclass(frozen=True)
class Snapshot:
    """The neurons by hotkey, as read at `taken_at` (monotonic seconds)."""

    neurons: Mapping[str, Neuron]
    taken_at: float

    @classmethod
    def of(cls, neurons: Iterable[Neuron], taken_at: float) -> "Snapshot":
        """Indexes neurons by their hotkeys."""
        return cls(MappingProxyType({neuron.hotkey: neuron for neuron in neurons}), taken_at)


class Membership:
    """Whether a hotkey is still on the subnet, from one reading to the next.

    Args:
        hotkey: The miner's, registered at first.
        lost: Set once it is no longer there.
        readings: Readings in a row without it that count as proof: one may be garbled.
    """

    def __init__(self, hotkey: str, lost: asyncio.Event, *, readings: int = 2) -> None:
        self._hotkey = hotkey
        self._lost = lost
        self._readings = readings
        self._missing = 0

    def observe(self, snapshot: Snapshot) -> Neuron | None:
        """Takes a reading in and returns the neuron of the hotkey, if it is there."""
        own = snapshot.neurons.get(self._hotkey)
        self._missing = 0 if own is not None else self._missing + 1
        if self._missing >= self._readings:
            self._lost.set()
        return own


class Chain(Protocol):
    """What the miner needs to know of a chain and to tell it.

    `snapshot` may be read from any thread; everything else belongs to one event loop.

    Attributes:
        deregistered: Set once the miner's hotkey has lost its uid.
    """

    deregistered: asyncio.Event

    @property
    def snapshot(self) -> Snapshot:
        """The last reading; empty before `start`."""

    def is_stale(self) -> bool:
        """Tells whether the last reading is too old to prove that a hotkey is absent."""

    async def start(self, hotkey: str) -> Neuron:
        """Reads the subnet, keeps reading it from now on, and returns the neuron of `hotkey`.

        Raises:
            SetupError: The chain cannot be read, or the hotkey is not registered.
        """

    async def publish(self, axon: object) -> None:
        """Tells the subnet where the axon serves, now and whenever that changes.

        Raises:
            SetupError: The chain did not take it.
        """

    async def close(self) -> None:
        """Stops reading."""


class FileChain:
    """A subnet written down in a JSON file: `[{uid, hotkey, coldkey, ip, port, ...}]`.

    Args:
        path: The file.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self.snapshot = Snapshot({}, clock())
        self.deregistered = asyncio.Event()

    def is_stale(self) -> bool:
        """A file does not age."""
        return False

    async def start(self, hotkey: str) -> Neuron:
        """Reads the file; see `Chain.start`."""
        try:
            neurons = TypeAdapter(list[Neuron]).validate_json(self._path.read_bytes())
        except OSError as error:
            raise SetupError(
                f"the neurons file {self._path} cannot be read: {error.strerror}",
                fix="check --chain.file",
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole file"
            raise SetupError(
                f"the neurons file {self._path} is wrong at {where}: {first['msg']}",
                fix="write [{uid, hotkey, coldkey, ip, port, stake, validator_permit}, ...]",
            ) from None
        self.snapshot = Snapshot.of(neurons, self._clock())
        if hotkey not in self.snapshot.neurons:
            raise SetupError(
                f"the hotkey {hotkey} is not in {self._path}",
                fix="add it there, or give the wallet that is with --wallet.name, --wallet.hotkey",
            )
        return self.snapshot.neurons[hotkey]

    async def publish(self, axon: object) -> None:
        """A file is not told."""

    async def close(self) -> None:
        """Nothing is open."""


def register_command(network: str, netuid: int) -> str:
    """The commands that register a hotkey, for both generations of btcli."""
    return (
        f"btcli subnet register --netuid {netuid} --wallet.name W --wallet.hotkey H "
        f"--subtensor.network {network}\n"
        f"       (btcli of bittensor 11: btcli subnet register --netuid {netuid} -w W -H H "
        f"--network {network})"
    )
