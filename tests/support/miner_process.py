"""`python -m neurons.miner` in a process of its own, on a make-believe subnet."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import bittensor as bt

from miner.mock_validator.local_subnet import LocalSubnet, create_local_subnet
from miner.transports.pull.dendrite import offline_dendrite
from protocol.synapses import GenerateAsset
from scripts.free_port import free_port
from tests.support.waiting import PATIENCE_S

FAKED = "tests.support.faked_miner"
START_LIMIT_S = 100.0


class MinerProcess:
    """The program, its log and its doors.

    Args:
        folder: Receives the subnet, the logs and what the process prints.
        more: Flags beside those for the subnet and the folder; without any, a task has one object.
        subnet: The subnet; a new one in `folder` if not given.
        module: What to run: the real program, or `FAKED`.
        environ: What the process finds in its environment beside ours.
    """

    def __init__(
        self,
        folder: Path,
        *more: str,
        subnet: LocalSubnet | None = None,
        module: str = "neurons.miner",
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.port = free_port()
        self.http_port = free_port()
        self.subnet = subnet or create_local_subnet(folder, port=self.port)
        self.output = (folder / "output.txt").open("a+")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", module),
                *("--chain.file", str(self.subnet.neurons_file)),
                *("--wallet.path", str(self.subnet.wallets), "--wallet.name", "miner"),
                *("--axon.ip", "127.0.0.1", "--axon.port", str(self.port)),
                *("--http.port", str(self.http_port), "--candidates.max", "1"),
                *("--log.dir", str(folder / "logs"), *more),
            ],
            stdout=self.output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "2", **(environ or {})},
        )

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of its score log with this event."""
        log = self.folder / "logs" / "score.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return [event for line in lines if (event := json.loads(line))["event"] == name]

    def states(self) -> list[str]:
        """The states, in the order in which they were reached."""
        return [event["state"] for event in self.events("state_changed")]

    async def until(self, condition: Callable[[], bool], limit_s: float = PATIENCE_S) -> None:
        """Waits for something that it does while it lives."""
        end = time.monotonic() + limit_s
        while not condition():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, self.text()
            await asyncio.sleep(0.01)

    async def ready(self) -> None:
        """Waits until it takes requests."""
        await self.until(lambda: "ready" in self.states(), START_LIMIT_S)

    async def exit_status(self, limit_s: float = PATIENCE_S) -> int:
        """Waits until it has ended."""
        return await asyncio.to_thread(self.process.wait, limit_s)

    async def ask(self, key: Any, **fields: Any) -> GenerateAsset:
        """Asks its axon."""
        target = bt.AxonInfo(0, "127.0.0.1", self.port, 4, self.subnet.miner_hotkey, "")
        async with offline_dendrite(key) as dendrite:
            request = GenerateAsset(**{"prompt": "a blue cube", **fields})
            reply: GenerateAsset = await dendrite.call(
                target, request, timeout=PATIENCE_S, deserialize=False
            )
            return reply

    async def post(self, prompt: str) -> tuple[int, bytes]:
        """Asks over HTTP; returns the status and the body."""
        url = f"http://127.0.0.1:{self.http_port}/generate/"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data={"prompt": prompt}) as response,
        ):
            return response.status, await response.read()

    async def health(self) -> tuple[int, str]:
        """What it says of itself over HTTP."""
        url = f"http://127.0.0.1:{self.http_port}/health"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status, (await response.json())["status"]

    def text(self) -> str:
        """What it has printed."""
        return Path(self.output.name).read_text()

    def end(self) -> None:
        """Ends it by force if it lives, and closes its output."""
        self.process.kill()
        self.process.wait()
        self.output.close()


@contextmanager
def running(folder: Path, *more: str, **settings: Any) -> Iterator[MinerProcess]:
    """Runs a miner until the block ends."""
    process = MinerProcess(folder, *more, **settings)
    try:
        yield process
    finally:
        process.end()
