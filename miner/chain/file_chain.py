"""A subnet described in a JSON file, for trials without a chain."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from miner.chain.metagraph import Neuron, OnReading, Snapshot
from protocol.documents import DocumentError, read_json
from protocol.errors import SetupError
from protocol.text import printable


class FileChain:
    """A subnet described in a JSON file: `[{uid, hotkey, coldkey, ip, port, ...}]`.

    Args:
        path: The file.
        clock: Monotonic clock, in seconds.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._listeners: list[OnReading] = []
        self.snapshot = Snapshot({}, clock())
        self.deregistered = asyncio.Event()

    def is_stale(self) -> bool:
        """Returns False: a file does not age."""
        return False

    def listen(self, listener: OnReading) -> None:
        """Tells a listener of the reading at the start."""
        self._listeners.append(listener)

    async def start(self, hotkey: str) -> Neuron:
        """Reads the file; see `Chain.start`."""
        try:
            neurons = TypeAdapter(list[Neuron]).validate_python(read_json(self._path))
        except DocumentError as error:
            absent = isinstance(error.__cause__, OSError)
            where = "cannot be read" if absent else "is wrong at the whole file"
            raise SetupError(
                f"the neurons file {printable(str(self._path))} {where}: {error.reason}",
                fix="check --chain.file" if absent else "correct the file",
            ) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole file"
            raise SetupError(
                f"the neurons file {self._path} is wrong at {printable(where, 80)}: {first['msg']}",
                fix="write [{uid, hotkey, coldkey, ip, port, stake, validator_permit}, ...]",
            ) from None
        self.snapshot = Snapshot.of(neurons, self._clock())
        if hotkey not in self.snapshot.neurons:
            raise SetupError(
                f"the hotkey {hotkey} is not in {self._path}",
                fix="add it there, or give the wallet that is with --wallet.name, --wallet.hotkey",
            )
        for listener in self._listeners:
            listener(self.snapshot, "")
        return self.snapshot.neurons[hotkey]

    async def publish(self, axon: object) -> None:
        """Does nothing: the file states the address."""

    async def close(self) -> None:
        """Does nothing."""
