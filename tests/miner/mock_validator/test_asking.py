"""The mock validator's push side against a real axon over loopback."""

from pathlib import Path
from typing import Any

import pytest

from miner.mock_validator.asking import ask_all
from miner.mock_validator.records import TrialRecord
from miner.mock_validator.settings import TrialSettings
from miner.mock_validator.tasks import TrialTask
from miner.settings.reader import read_settings
from protocol import spz
from scripts.free_port import free_port
from tests.support.fakes import ball
from tests.support.running import MINER, STRANGER, VALIDATOR, Running

# Bittensor 10 reads pydantic's fields through an instance.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")

TASKS = [
    TrialTask("01-a-blue-cube", "text", "a blue cube", "a blue cube"),
    TrialTask("02-nothing", "text", "nothing", ""),
    TrialTask("03-a-red-car", "text", "a red car", "a red car"),
]


def settings(folder: Path, port: int, **fields: Any) -> TrialSettings:
    values = {
        "miner": f"127.0.0.1:{port}",
        "miner.hotkey": MINER.ss58_address,
        "out": folder,
        "seed": 7,
        **fields,
    }
    argv = [part for name, value in values.items() for part in (f"--{name}", str(value))]
    return read_settings(TrialSettings, prog="trial", env_prefix="TRIAL", argv=argv)


async def test_every_task_is_asked_and_judged_once(miner: Running, tmp_path: Path) -> None:
    done: list[TrialRecord] = []
    trial = settings(tmp_path, miner.target.port, concurrency=2)
    records = await ask_all(trial, VALIDATOR, TASKS, done.append)
    assert [record.name for record in records] == [task.name for task in TASKS]
    assert sorted(record.name for record in done) == [task.name for task in TASKS]
    good, rejected, _ = records
    assert good.good, good.problems
    assert (good.outcome, good.status, good.seed, good.gaussians) == (
        "completed",
        200,
        7,
        len(ball()),
    )
    assert spz.decode((tmp_path / "01-a-blue-cube.spz").read_bytes()) is not None
    assert (rejected.outcome, rejected.reason_code) == ("rejected", "bad_task")
    assert "prompt is empty" in rejected.problems[0]


async def test_a_record_has_the_words_that_the_miner_understood(
    miner: Running, tmp_path: Path
) -> None:
    tasks = [TrialTask(name, "text", name, name) for name in ("shiny blue cubes", "a dragon")]
    trial = settings(tmp_path, miner.target.port)
    good, unknown = await ask_all(trial, VALIDATOR, tasks, lambda record: None)
    assert good.good, good.problems
    assert (good.understood, good.ignored) == (("blue", "cube (cubes)"), ("shiny",))
    assert (unknown.outcome, unknown.reason_code) == ("rejected", "unknown_words")
    assert (unknown.understood, unknown.ignored) == ((), ("dragon",))
    assert "use some of blue, car, cube, red" in unknown.problems[0]


async def test_a_refusal_is_a_record_with_its_status(miner: Running, tmp_path: Path) -> None:
    trial = settings(tmp_path, miner.target.port)
    (record,) = await ask_all(trial, STRANGER, TASKS[:1], lambda record: None)
    assert (record.outcome, record.status, record.miner_version) == ("none", 403, "")
    assert "not registered" in record.problems[0]


async def test_a_miner_that_is_not_there_is_a_record_too(tmp_path: Path) -> None:
    trial = settings(tmp_path, free_port())
    (record,) = await ask_all(trial, VALIDATOR, TASKS[:1], lambda record: None)
    assert (record.outcome, record.status) == ("none", 503)
    assert not record.good
