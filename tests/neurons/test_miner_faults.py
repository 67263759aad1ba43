"""What a real process does when a stage fails, hangs or dies: asked over HTTP, on a real engine."""

import asyncio
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from neurons.miner import DIED, STOPPED
from protocol import ply
from tests.support.fakes import ball
from tests.support.miner_process import FAKED, MinerProcess, running

HTTP = ("--transports", "http")


@pytest.fixture(scope="module")
def miner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinerProcess]:
    """One process for all faults that a miner survives, and for the one that it does not."""
    folder = tmp_path_factory.mktemp("faults")
    with running(folder, *HTTP, module=FAKED, environ={"FAKED_LIMIT_S": "1.5"}) as process:
        asyncio.run(process.ready())
        yield process


async def refused(miner: MinerProcess, prompt: str) -> tuple[int, str, str | None]:
    """Status, reason code and stage of an answer without an asset, and of its one line."""
    before = len(miner.events("answered"))
    status, body = await miner.post(prompt)
    (line,) = miner.events("answered")[before:]
    answer: dict[str, Any] = json.loads(body)
    assert answer["reason_code"] == line["reason_code"]
    assert answer["message"] == line["reason"]
    return status, line["reason_code"], line.get("stage")


async def serves(miner: MinerProcess) -> bool:
    """Whether it is healthy and makes the next object."""
    assert await miner.health() == (200, "healthy")
    status, body = await miner.post("a blue cube")
    return status == 200 and len(ply.decode(body)) == len(ball())


async def test_a_stage_that_runs_out_of_memory_fails_its_request_alone(miner: MinerProcess) -> None:
    assert await refused(miner, "out of memory in lift") == (500, "generation_error", "lift")
    assert await serves(miner)


async def test_a_cloud_of_nan_fails_its_request_alone(miner: MinerProcess) -> None:
    assert await refused(miner, "nan in splats") == (500, "generation_error", "splats")
    assert "non-finite values" in miner.events("answered")[-1]["reason"]
    assert await serves(miner)


async def test_a_client_that_disconnects_frees_its_place(miner: MinerProcess) -> None:
    body = b"--b\r\nContent-Disposition: form-data; name=prompt\r\n\r\n0.5 s in lift\r\n--b--\r\n"
    head = (
        f"POST /generate/ HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
    _, writer = await asyncio.open_connection("127.0.0.1", miner.http_port)
    before = len(miner.events("answered"))
    admitted = len(miner.events("admitted"))
    writer.write(head.encode() + body)
    await miner.until(lambda: len(miner.events("admitted")) > admitted)
    writer.close()
    await miner.until(lambda: len(miner.events("answered")) > before)
    (line,) = miner.events("answered")[before:]
    assert (line["outcome"], line["reason_code"]) == ("dropped", "caller_left")
    assert await serves(miner)


async def test_a_stage_that_comes_back_makes_the_miner_healthy_again(miner: MinerProcess) -> None:
    # A slow machine may have made an earlier step seem to hang.
    before = len(miner.states())
    asking = asyncio.create_task(miner.post("4 s in lift"))
    await miner.until(lambda: miner.states()[before:] == ["suspect"])
    assert await miner.health() == (503, "suspect")
    status, body = await asking
    assert status == 200, body
    assert miner.states()[before:] == ["suspect", "ready"]
    assert await serves(miner)


async def test_a_worker_thread_that_dies_ends_the_process_with_1(miner: MinerProcess) -> None:
    assert await refused(miner, "kill the thread in lift") == (500, "engine_dead", "lift")
    assert await miner.exit_status() == DIED
    (stopped,) = miner.events("miner_stopped")
    assert (stopped["exit_code"], stopped["reason"]) == (DIED, "the engine died")
    assert [event["engine"] for event in miner.events("engine_lost")] == ["local"]


async def test_a_stage_that_hangs_is_answered_and_ends_the_process_with_1(tmp_path: Path) -> None:
    environ = {"FAKED_LIMIT_S": "0.8", "FAKED_RECOVERY_S": "4"}
    with running(tmp_path, *HTTP, "--budget", "3", module=FAKED, environ=environ) as miner:
        await miner.ready()
        started = time.monotonic()
        hung = asyncio.create_task(miner.post("hang in lift"))
        await miner.until(lambda: "suspect" in miner.states())
        assert await miner.health() == (503, "suspect")
        status, body = await miner.post("a blue cube")
        assert (status, json.loads(body)["reason_code"]) == (503, "engine_suspect")
        status, body = await hung
        assert (status, json.loads(body)["reason_code"]) == (503, "deadline_passed")
        assert time.monotonic() - started > 2.5
        assert await miner.exit_status() == DIED
        assert [line["stage"] for line in miner.events("answered")[1:]] == ["lift"]
        assert miner.states()[-2:] == ["suspect", "dead"]
        assert miner.events("miner_stopped")[0]["exit_code"] == DIED
        assert "did not come back" in miner.text()


async def test_sigterm_ends_a_miner_with_a_hung_stage_with_0(tmp_path: Path) -> None:
    environ = {"FAKED_LIMIT_S": "0.8", "FAKED_RECOVERY_S": "60"}
    flags = (*HTTP, "--budget", "3", "--drain.limit", "20")
    with running(tmp_path, *flags, module=FAKED, environ=environ) as miner:
        await miner.ready()
        hung = asyncio.create_task(miner.post("hang in lift"))
        await miner.until(lambda: "suspect" in miner.states())
        started = time.monotonic()
        miner.process.send_signal(signal.SIGTERM)
        status, body = await hung
        assert (status, json.loads(body)["reason_code"]) == (503, "deadline_passed")
        assert await miner.exit_status() == STOPPED
        assert time.monotonic() - started < 10.0
        assert miner.states()[-2:] == ["suspect", "draining"]
        assert "a thread hangs; the process ends without it" in miner.text()


@pytest.mark.parametrize("hangs", ["loading", "warm-up"])
async def test_sigterm_ends_a_miner_that_hangs_before_it_is_ready_with_0(
    tmp_path: Path, hangs: str
) -> None:
    with running(tmp_path, *HTTP, module=FAKED, environ={"FAKED_HANGS": hangs}) as miner:
        await miner.until(lambda: miner.states() == ["warming_up"])
        assert await miner.health() == (503, "warming_up")
        started = time.monotonic()
        miner.process.send_signal(signal.SIGTERM)
        assert await miner.exit_status() == STOPPED
        assert time.monotonic() - started < 10.0
        assert miner.events("miner_stopped")[0]["reason"] == "asked to by a signal"


async def test_sigterm_ends_a_miner_whose_interpreter_is_held(tmp_path: Path) -> None:
    flags = (*HTTP, "--drain.limit", "3")
    with running(tmp_path, *flags, module=FAKED) as miner:
        await miner.ready()
        asking = asyncio.create_task(miner.post("hold the interpreter in lift"))
        await miner.until(lambda: bool(miner.events("admitted")))
        await asyncio.sleep(0.5)
        started = time.monotonic()
        miner.process.send_signal(signal.SIGTERM)
        assert await miner.exit_status() == DIED
        assert time.monotonic() - started < 8.0
        assert "hold the interpreter" not in miner.text()  # No prompt in any log.
        assert "in fault" in miner.text()  # Where it was held.
        await asyncio.wait({asking})
        assert asking.exception() is not None
