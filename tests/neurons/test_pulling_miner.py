"""The real program pulling from a validator, killed in the middle, and started again."""

import json
import signal
from pathlib import Path
from typing import Any

import bittensor as bt
import pytest

from miner.mock_validator.local_subnet import LocalSubnet, create_local_subnet
from miner.mock_validator.pull_rules import Rules
from miner.mock_validator.records import read_records
from neurons import mock_validator
from protocol import ply
from scripts.free_port import free_port
from tests.support.fakes import ball
from tests.support.miner_process import FAKED, MinerProcess
from tests.support.pull_running import Validator, tasks

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")


def pulling_miner(folder: Path, subnet: LocalSubnet, *, seconds: float) -> MinerProcess:
    return MinerProcess(
        folder,
        *("--transports", "pull"),
        subnet=subnet,
        module=FAKED,
        environ={"FAKED_MINER_S": str(seconds)},
    )


async def test_a_kill_between_pull_and_submission_loses_nothing(tmp_path: Path) -> None:
    port = free_port()
    subnet = create_local_subnet(tmp_path, port=free_port(), validator_port=port)
    key = bt.Wallet(name="validator", hotkey="default", path=str(subnet.wallets)).hotkey
    validator = Validator(
        tmp_path, tasks()[:1], Rules(), key=key, miner=subnet.miner_hotkey, port=port
    )
    await validator.server.start()
    state = tmp_path / "logs" / "pull-state.json"

    def tasks_kept() -> list[dict[str, Any]]:
        text = state.read_text() if state.exists() else '{"tasks": []}'
        held: list[dict[str, Any]] = json.loads(text)["tasks"]
        return held

    first = pulling_miner(tmp_path, subnet, seconds=60.0)
    try:
        await first.until(lambda: bool(tasks_kept()), 120.0)
        first.process.send_signal(signal.SIGKILL)
        assert await first.exit_status(10.0) == -signal.SIGKILL
    finally:
        first.end()
    (task,) = tasks_kept()
    assert (task["id"], task["submitted_at"]) == (validator.trial.records()[0].task_id, None)
    assert validator.pulls == 1

    second = pulling_miner(tmp_path, subnet, seconds=0.1)
    try:
        await second.until(lambda: bool(second.events("feedback")), 120.0)
        second.process.send_signal(signal.SIGTERM)
        assert await second.exit_status() == 0
    finally:
        second.end()
        await validator.server.stop()
    (record,) = validator.trial.records()
    assert record.good, record.problems
    assert validator.pulls == 1
    (told,) = second.events("feedback")
    assert (told["fate"], told["task_id"]) == ("accepted", record.task_id)
    # Both runs wrote into one log, and the picture of the answer lies beside it.
    pulled = [line for line in second.events("pulled") if line["result"] == "task"]
    assert [line["task_id"] for line in pulled] == [record.task_id]
    assert [line["place"] for line in second.events("earnings")] == [1, 1]
    (done,) = (line for line in second.events("answered") if line["outcome"] == "completed")
    assert (tmp_path / "logs" / "thumbnails" / f"{done['request_id']}.webp").is_file()
    assert tasks_kept() == []
    assert "is resumed" in second.text()
    assert "Traceback" not in second.text()


def test_the_mock_validator_is_pulled_from_and_judges(tmp_path: Path) -> None:
    port = free_port()
    subnet = create_local_subnet(tmp_path, port=free_port(), validator_port=port)
    (tmp_path / "prompts.txt").write_text("a blue cube\n")
    running = pulling_miner(tmp_path, subnet, seconds=0.1)
    argv = [
        *("--protocol", "pull", "--axon.port", str(port), "--wait", "60"),
        *("--miner.hotkey", subnet.miner_hotkey, "--prompts", str(tmp_path / "prompts.txt")),
        *("--wallet.path", str(subnet.wallets), "--wallet.name", "validator"),
        *("--out", str(tmp_path / "out")),
    ]
    try:
        assert mock_validator.main(argv) == mock_validator.GOOD, running.text()
    finally:
        running.end()
    (record,) = read_records(tmp_path / "out")
    assert (record.protocol, record.outcome, record.gaussians) == ("pull", "completed", len(ball()))
    assert 0.0 < record.elapsed_s < 30.0


async def test_three_ways_to_one_miner(tmp_path: Path) -> None:
    running = MinerProcess(
        tmp_path,
        *("--transports", "push,pull,http"),
        module=FAKED,
        environ={"FAKED_MINER_S": "0.1"},
    )
    key = bt.Wallet(name="validator", hotkey="default", path=str(running.subnet.wallets))
    try:
        await running.ready()
        assert running.events("miner_started")[0]["transports"] == ["axon", "pull", "http"]
        reply = await running.ask(key)
        assert (reply.dendrite.status_code, reply.outcome) == (200, "completed")
        status, body = await running.post("a blue cube")
        assert (status, len(ply.decode(body))) == (200, len(ball()))
        assert [event["transport"] for event in running.events("answered")] == ["axon", "http"]
        running.process.send_signal(signal.SIGTERM)
        assert await running.exit_status() == 0
    finally:
        running.end()
    assert (tmp_path / "logs" / "pull-state.json").exists()


def test_a_miner_that_does_not_come_is_said(tmp_path: Path) -> None:
    subnet = create_local_subnet(tmp_path, port=free_port())
    argv = [
        *("--protocol", "pull", "--axon.port", str(free_port()), "--wait", "0.1", "--count", "1"),
        *("--miner.hotkey", subnet.miner_hotkey, "--wallet.path", str(subnet.wallets)),
        *("--wallet.name", "validator", "--out", str(tmp_path / "out")),
    ]
    assert mock_validator.main(argv) == mock_validator.BAD
    (record,) = read_records(tmp_path / "out")
    assert record.problems == ("none: the miner did not submit a result in time",)


def test_pulling_needs_a_wallet_that_the_miner_s_chain_lists(
    capsys: pytest.CaptureFixture[str],
) -> None:
    argv = ["--protocol", "pull", "--miner.hotkey", "5F", "--wallet.ephemeral"]
    assert mock_validator.main(argv) == mock_validator.NOT_STARTED
    assert "chain must list the validator" in capsys.readouterr().err
