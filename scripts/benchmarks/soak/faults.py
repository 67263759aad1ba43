"""What happens to the machine under the miner meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable

import aiohttp

from scripts.benchmarks.soak.faulty_miner import HUNG, NOT_A_NUMBER, OUT_OF_MEMORY
from scripts.benchmarks.soak.process import FaultyMiner

FULL_DISK_SHARE = 0.02
"""Of the whole time, for which the disk takes nothing, twice."""

WRONG_CLOCK_S = 5.0


class Faults:
    """Injects every fault, evenly over the time.

    Args:
        miner: The process.
        clock: Seconds since the traffic began.

    Attributes:
        injected: Seconds and name of every fault.
        clock_is_wrong: Whether the miner's clock is hours off now.
    """

    def __init__(self, miner: FaultyMiner, clock: Callable[[], float]) -> None:
        self._miner = miner
        self._url = f"http://127.0.0.1:{miner.http_port}/generate/"
        self._clock = clock
        self._removed = 0
        self.injected: list[tuple[float, str]] = []
        self.clock_is_wrong = False

    async def run(self, seconds: float) -> None:
        """Spreads the faults over `seconds`; the first and the last tenth are quiet."""
        faults: tuple[tuple[str, Callable[[], Awaitable[None]]], ...] = (
            ("out of memory", lambda: self._fail(OUT_OF_MEMORY)),
            ("not a number", lambda: self._fail(NOT_A_NUMBER)),
            ("full disk", lambda: self._full_disk(FULL_DISK_SHARE * seconds)),
            ("clock 2 s ahead", lambda: self._step_clock(2.0)),
            ("log file removed", lambda: self._remove_logs("score.jsonl")),
            ("hung stage", lambda: self._fail(HUNG)),
            ("clock 1 h ahead", lambda: self._wrong_clock(min(WRONG_CLOCK_S, seconds / 50))),
            ("log folder removed", lambda: self._remove_logs(".")),
            ("out of memory", lambda: self._fail(OUT_OF_MEMORY)),
            ("full disk", lambda: self._full_disk(FULL_DISK_SHARE * seconds)),
            ("clock 2 s behind", lambda: self._step_clock(-2.0)),
            ("clock right", lambda: self._step_clock(0.0)),
        )
        for number, (name, inject) in enumerate(faults):
            at_s = seconds * (0.1 + 0.8 * number / len(faults))
            await asyncio.sleep(max(0.0, at_s - self._clock()))
            self.injected.append((round(self._clock(), 1), name))
            await inject()

    async def _fail(self, prompt: str) -> None:
        async with (
            aiohttp.ClientSession() as session,
            session.post(self._url, data={"prompt": prompt}) as response,
        ):
            await response.read()

    async def _full_disk(self, seconds: float) -> None:
        self._miner.fill_disk(True)
        try:
            await asyncio.sleep(seconds)
        finally:
            self._miner.fill_disk(False)

    async def _step_clock(self, ahead_s: float) -> None:
        self._miner.set_clock(ahead_s)

    async def _wrong_clock(self, seconds: float) -> None:
        self.clock_is_wrong = True
        self._miner.set_clock(3600.0)
        await asyncio.sleep(seconds)
        self._miner.set_clock(0.0)
        self.clock_is_wrong = False

    async def _remove_logs(self, pattern: str) -> None:
        self._removed += 1
        self._miner.remove_logs(self._removed, pattern)
