"""What a real process does when its files are taken away, and when it is not alone with them."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from miner.file_lock import FOLDER_LOCK, FileLock
from miner.score.report import ScoreReport
from neurons.miner import NOT_STARTED, main
from scripts.monitor_terminal import life
from tests.support.miner_process import FAKED, MinerProcess, running

HTTP = ("--transports", "http")


@pytest.fixture(scope="module")
def miner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinerProcess]:
    """One process for all tests; the last one kills it."""
    with running(tmp_path_factory.mktemp("files"), *HTTP, module=FAKED) as process:
        asyncio.run(process.ready())
        yield process


def logs(miner: MinerProcess) -> Path:
    return miner.folder / "logs"


async def health(miner: MinerProcess) -> tuple[int, dict[str, Any]]:
    url = f"http://127.0.0.1:{miner.http_port}/health"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.json()


async def serves(miner: MinerProcess) -> bool:
    return (await miner.post("a blue cube"))[0] == 200


def test_a_second_miner_in_the_same_folder_does_not_start_and_names_the_first(
    miner: MinerProcess,
) -> None:
    before = {path: path.read_bytes() for path in logs(miner).iterdir()}
    command = [sys.executable, "-m", "neurons.miner", "--log.dir", str(logs(miner))]
    command += ["--chain.file", str(miner.subnet.neurons_file), *HTTP]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == NOT_STARTED
    assert f"is in use by process {miner.process.pid}" in second.stderr
    assert "--log.dir" in second.stderr
    assert f"kill {miner.process.pid}" in second.stderr
    assert "Traceback" not in second.stderr
    assert set(logs(miner).iterdir()) == set(before)
    # The first miner may have written more meanwhile.
    assert all(path.read_bytes().startswith(content) for path, content in before.items())
    assert second.stderr.strip() not in (logs(miner) / "miner.log").read_text()


def test_two_miners_do_not_share_a_pull_state(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state.json"
    lock = FileLock(tmp_path / "state.json.lock", what="x", flag="--pull.state")
    argv = ["--chain.file", "none.json", "--transports", "pull", "--pull.state", str(state)]
    assert main([*argv, "--log.dir", str(tmp_path / "logs")]) == NOT_STARTED
    lock.release()
    shown = capsys.readouterr().err
    assert f"the file {state} is in use by process {os.getpid()}" in shown
    assert "--pull.state" in shown
    # Nor is the folder locked any more.
    FileLock(tmp_path / "logs" / FOLDER_LOCK, what="x", flag="--log.dir").release()


def test_a_start_removes_the_drafts_of_a_killed_process(tmp_path: Path) -> None:
    draft = tmp_path / ".0123456789abcdef.part"
    draft.write_bytes(b"half")
    argv = ["--chain.file", "none.json", "--transports", "pull", "--log.dir", str(tmp_path)]
    lock = FileLock(tmp_path / FOLDER_LOCK, what="x", flag="--log.dir")
    assert main(argv) == NOT_STARTED
    assert draft.exists()  # the holder of the lock may be writing it
    lock.release()
    assert main(argv) == NOT_STARTED
    assert not draft.exists()


async def test_logs_that_are_deleted_come_back(miner: MinerProcess) -> None:
    for name in ("score.jsonl", "miner.log"):
        (logs(miner) / name).unlink()
    assert await serves(miner)
    await miner.until(lambda: len(miner.events("answered")) == 1)
    await miner.until((logs(miner) / "miner.log").exists)
    shutil.rmtree(logs(miner))
    assert await serves(miner)
    await miner.until(lambda: len(miner.events("answered")) == 1)
    await miner.until((logs(miner) / FOLDER_LOCK).exists)


async def test_a_full_disk_costs_no_answer_and_no_line_and_health_says_why(
    miner: MinerProcess,
) -> None:
    log = logs(miner) / "score.jsonl"
    before = len(miner.text())
    log.unlink()
    log.symlink_to("/dev/full")
    for _ in range(3):
        assert await serves(miner)
    status, body = await health(miner)
    assert (status, body["status"]) == (200, "healthy")
    (problem,) = body["problems"]
    assert "score.jsonl cannot be written: No space left on device" in problem
    log.unlink()
    await miner.until(lambda: len(miner.events("answered")) == 3)
    assert await health(miner) == (200, {"status": "healthy"})
    said = miner.text()[before:]
    assert said.count("No space left on device") == 1
    assert said.count("score.jsonl is written again") == 1
    assert "Traceback" not in said


async def test_a_killed_miner_is_gone_in_the_monitor_and_the_next_one_may_start(
    miner: MinerProcess,
) -> None:
    log = logs(miner) / "score.jsonl"
    before = len(miner.events("answered"))
    assert await serves(miner)
    miner.process.send_signal(signal.SIGKILL)
    await miner.exit_status()
    assert len(miner.events("answered")) == before + 1, "an answer that was sent is in the log"
    report = ScoreReport()
    report.add({"event": "state_changed", "state": "ready"})
    state, words = life(report, log)
    assert state == "gone"
    assert f"process {miner.process.pid} died (was" in words
    FileLock(logs(miner) / FOLDER_LOCK, what="x", flag="--log.dir").release()
