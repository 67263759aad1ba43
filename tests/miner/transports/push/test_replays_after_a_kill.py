"""A message that was accepted before a kill is not accepted by the miner that starts next."""

import asyncio
import threading
import time
from pathlib import Path

import pytest
from loguru import logger

from miner.transports.pull.dendrite import offline_dendrite
from miner.transports.push import entrance
from miner.transports.push.checks import MAX_AHEAD_S, NANOSECONDS
from miner.transports.push.nonce_file import FILE_NAME, NonceFile
from tests.support.running import OTHER, VALIDATOR, Running, Start
from tests.support.waiting import until

# Bittensor 10 reads pydantic's fields through an instance.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")

NOW = 1_800_000_000 * NANOSECONDS
SECOND = NANOSECONDS
AHEAD = int(MAX_AHEAD_S * NANOSECONDS)


def ahead(seconds: float) -> int:
    return time.time_ns() + int(seconds * NANOSECONDS)


async def test_a_message_of_a_caller_ahead_is_not_taken_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bittensor.utils.networking.get_external_ip", lambda: "")
    async with offline_dendrite(VALIDATOR) as dendrite:
        killed = Running(tmp_path, dendrite)
        await killed.service.start()
        await killed.transport.serve()
        message = killed.signed(nonce=ahead(3.5))
        assert (await killed.post(*message))[0] == 200
        # Killed here: nothing of `killed` runs again before the next one has answered.
        started = Running(tmp_path, dendrite)
        await started.service.start()
        await started.transport.serve()
        status, reply = await started.post(*message)
        assert (status, reply["reason_code"]) == (401, "before_start")
        for miner in (killed, started):
            await miner.service.drain()
            await miner.transport.close()
            miner.log.close()


async def test_a_restart_costs_callers_with_right_clocks_nothing(
    start: Start, tmp_path: Path
) -> None:
    for _ in range(2):
        async with start() as miner:
            assert (await miner.ask()).outcome == "completed"
    assert not (tmp_path / FILE_NAME).exists()


async def test_many_callers_ahead_cost_one_write(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes: list[int] = []
    cover = NonceFile.cover

    def counted(file: NonceFile, now_ns: int) -> None:
        writes.append(now_ns)
        cover(file, now_ns)

    monkeypatch.setattr(NonceFile, "cover", counted)
    async with start() as miner:
        for number in range(10):
            key = (VALIDATOR, OTHER)[number % 2]
            assert (await miner.post(*miner.signed(key, nonce=ahead(1.0))))[0] == 200
    assert len(writes) == 1


async def test_a_disk_that_hangs_delays_callers_ahead_and_nobody_else(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, writes = threading.Event(), []

    def hang(file: NonceFile, now_ns: int) -> None:
        writes.append(now_ns)
        disk.wait(20.0)

    monkeypatch.setattr(NonceFile, "cover", hang)
    monkeypatch.setattr(entrance, "WRITE_LIMIT_S", 0.2)
    async with start() as miner:
        waiting = [asyncio.create_task(miner.post(*miner.signed(nonce=ahead(3.0))))]
        await until(lambda: writes)
        assert (await miner.post(*miner.signed(OTHER)))[0] == 200
        waiting += [
            asyncio.create_task(miner.post(*miner.signed(OTHER, nonce=ahead(3.0))))
            for _ in range(10)
        ]
        assert {status for status, _ in await asyncio.gather(*waiting)} == {200}
        disk.set()
    assert len(writes) == 1  # No thread more is lost to the disk.


def test_the_file_says_up_to_when_nonces_may_have_been_used(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    first = NonceFile(path)
    assert first.used_until(NOW) == NOW
    assert first.covers(NOW, NOW)
    assert not first.covers(NOW + 1, NOW)
    first.cover(NOW)
    assert first.covers(NOW + AHEAD, NOW)
    assert not first.covers(NOW + AHEAD + 1, NOW + SECOND)
    second = NonceFile(path)
    assert second.used_until(NOW + SECOND) == NOW + AHEAD
    assert second.used_until(NOW + AHEAD + SECOND) == NOW + AHEAD + SECOND
    # The clock was set back since: nobody is shut out for an hour.
    assert second.used_until(NOW - 3600 * SECOND) == NOW - 3600 * SECOND + AHEAD


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b'{"version": 2}', b"[" * 100_000])
def test_a_damaged_file_counts_as_the_most_it_could_say(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(content)
    assert NonceFile(path).used_until(NOW) == NOW + AHEAD
    assert NonceFile(path).used_until(NOW) == NOW  # It was set aside, and is over.


def test_a_file_that_cannot_be_written_costs_no_caller_an_answer(tmp_path: Path) -> None:
    lines: list[str] = []
    sink = logger.add(lambda text: lines.append(str(text)), level="WARNING")
    nonces = NonceFile(tmp_path / "missing" / FILE_NAME)
    for second in range(3):
        now = NOW + 5 * second * SECOND
        nonces.cover(now)
        assert nonces.covers(now + AHEAD, now)
    logger.remove(sink)
    assert sum("cannot be written" in line for line in lines) == 1
