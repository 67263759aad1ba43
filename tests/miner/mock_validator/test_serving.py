"""The mock validator's pull side on a real axon over loopback."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from miner.chain.metagraph import Neuron
from miner.mock_validator.records import TrialRecord
from miner.mock_validator.serving import serve_all
from miner.mock_validator.tasks import TrialTask
from miner.transports.pull.calls import NoAnswer, PullAnswer, ValidatorCalls
from miner.transports.pull.dendrite import offline_dendrite
from miner.transports.pull.state import AssignedTask
from protocol.errors import SetupError
from scripts.free_port import free_port
from tests.miner.mock_validator.test_asking import settings
from tests.support.fakes import ball_spz
from tests.support.running import MINER, VALIDATOR

# Bittensor 10 reads pydantic's fields through an instance.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")

WALLET = SimpleNamespace(hotkey=VALIDATOR, coldkeypub=VALIDATOR)
TASKS = [
    TrialTask("01-a-blue-cube", "text", "a blue cube", "a blue cube"),
    TrialTask("02-a-red-car", "text", "a red car", "a red car"),
]


async def pull(calls: ValidatorCalls, validator: Neuron) -> PullAnswer:
    """Pulls as soon as the validator listens."""
    for _ in range(5000):
        try:
            return await calls.pull(validator)
        except NoAnswer:
            await asyncio.sleep(0.01)
    raise AssertionError("the validator does not listen")


async def test_results_become_records_and_the_end_of_time_is_one_too(tmp_path: Path) -> None:
    port, done = free_port(), list[TrialRecord]()
    fields = {"protocol": "pull", "axon.port": port, "wait": 3.0, "rules.cooldown": 600}
    trial = settings(tmp_path, 1, **fields, **{"clock.offset": -60.0})
    validator = Neuron(uid=1, hotkey=VALIDATOR.ss58_address, ip="127.0.0.1", port=port)
    serving = asyncio.create_task(serve_all(trial, WALLET, TASKS, done.append))
    calls = ValidatorCalls(offline_dendrite(MINER), MINER)
    answer = await pull(calls, validator)
    assert answer.task is not None
    assigned = AssignedTask(
        validator=validator.hotkey,
        id=answer.task.id,
        kind=answer.task.type,
        prompt=answer.task.prompt,
        assigned_at=0.0,
    )
    reply = await calls.submit(validator, assigned, ball_spz())
    assert reply.feedback is not None
    assert reply.feedback.task_fidelity_score == 1.0
    # 600 s from the assignment, by a clock that reads 60 s less.
    assert 568.0 < reply.cooldown_until - calls.clock() < 603.0
    for _ in range(2):
        assert (await calls.pull(validator)).task is None  # The cooldown is longer than the wait.
    await calls.close()
    first, second = await serving
    assert first.good, first.problems
    assert done == [first]
    assert (first.early_pulls, second.early_pulls) == (0, 2)
    assert second.problems == ("none: the miner did not submit a result in time",)


async def test_a_taken_port_is_a_start_up_message(tmp_path: Path) -> None:
    port = free_port()
    trial = settings(tmp_path, 1, **{"protocol": "pull", "axon.port": port, "wait": 5.0})
    serving = asyncio.create_task(serve_all(trial, WALLET, TASKS, lambda record: None))
    validator = Neuron(uid=1, hotkey=VALIDATOR.ss58_address, ip="127.0.0.1", port=port)
    calls = ValidatorCalls(offline_dendrite(MINER), MINER)
    await pull(calls, validator)
    await calls.close()
    with pytest.raises(SetupError, match=f"port {port}"):
        await serve_all(trial, WALLET, TASKS, lambda record: None)
    serving.cancel()
    await asyncio.wait({serving})
