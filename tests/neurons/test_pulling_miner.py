"""The real program pulling from a validator, killed in the middle, and started again."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import bittensor as bt
import pytest

from miner.chain import create_local_subnet
from miner.trial.pull_rules import Rules
from tests.miner.transports.pull_running import Validator, tasks
from tests.neurons.test_miner_process import MinerProcess, free_port

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")


async def test_a_kill_between_pull_and_submission_loses_nothing(tmp_path: Path) -> None:
    port = free_port()
    subnet = create_local_subnet(tmp_path, port=free_port(), validator_port=port)
    key = bt.Wallet(name="validator", hotkey="default", path=str(subnet.wallets)).hotkey
    validator = Validator(
        tmp_path, tasks()[:1], Rules(), key=key, miner=subnet.miner_hotkey, port=port
    )
    await validator.server.start()
    state = tmp_path / "logs" / "pull-state.json"

    def in_hand() -> list[dict[str, Any]]:
        text = state.read_text() if state.exists() else '{"tasks": []}'
        held: list[dict[str, Any]] = json.loads(text)["tasks"]
        return held

    def start(seconds: float) -> MinerProcess:
        return MinerProcess(
            tmp_path,
            *("--transports", "pull"),
            subnet=subnet,
            module="tests.neurons.faked_miner",
            environ={"FAKED_MINER_S": str(seconds)},
        )

    first = start(seconds=60.0)
    try:
        await first.until(lambda: bool(in_hand()), 120.0)
        first.process.send_signal(signal.SIGKILL)
        assert await asyncio.to_thread(first.process.wait, 10.0) == -signal.SIGKILL
    finally:
        first.process.kill()
        first.output.close()
    (task,) = in_hand()
    assert (task["id"], task["submitted_at"]) == (validator.trial.records()[0].task_id, None)
    assert validator.pulls == 1

    second = start(seconds=0.1)
    try:
        await second.until(lambda: bool(second.events("feedback")), 120.0)
        second.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(second.process.wait, 30.0) == 0
    finally:
        second.process.kill()
        second.output.close()
        await validator.server.stop()
    (record,) = validator.trial.records()
    assert record.good, record.problems
    assert validator.pulls == 1
    (told,) = second.events("feedback")
    assert (told["fate"], told["task_id"]) == ("accepted", record.task_id)
    assert in_hand() == []
    assert "of an earlier run" in second.text()
    assert "Traceback" not in second.text()
