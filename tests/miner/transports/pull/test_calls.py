"""The pull protocol over loopback: a real Dendrite, a real Axon, real sr25519 signatures."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from miner.chain.metagraph import Neuron
from miner.mock_validator.pull_rules import Rules
from miner.mock_validator.tasks import TrialTask
from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.transports.pull.calls import NoAnswer, ValidatorCalls
from miner.transports.pull.dendrite import offline_dendrite
from miner.transports.pull.puller import PullTransport
from miner.transports.pull.state import AssignedTask, PullStateFile
from miner.transports.pull.validators import Selection
from protocol import spz
from protocol.synapses import Feedback, GetVersion, PullTask, SubmitResults
from scripts.free_port import free_port
from tests.miner.transports.push.test_axon_checks import StaticChain
from tests.support.fakes import FakeEngine, ball, ball_spz
from tests.support.pull_running import SHORT, Validator, tasks
from tests.support.running import MINER, OTHER, VALIDATOR
from tests.support.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def serving(
        tasks: list[TrialTask], *, rules: Rules | None = None, **fields: Any
    ) -> AsyncIterator[Validator]:
        validator = Validator(tmp_path, tasks, rules or Rules(), **fields)
        await validator.server.start()
        try:
            yield validator
        finally:
            await validator.server.stop()

    return serving


@asynccontextmanager
async def calling(keypair: Any = MINER, *, signer: Any = None) -> AsyncIterator[ValidatorCalls]:
    calls = ValidatorCalls(offline_dendrite(keypair), signer or Signer(keypair, keypair))
    try:
        yield calls
    finally:
        await calls.close()


class Signer:
    """Says that it is one key and signs with another."""

    def __init__(self, pretended: Any, used: Any) -> None:
        self.ss58_address = pretended.ss58_address
        self.sign = used.sign


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="INFO")
    yield lines
    logger.remove(sink)


@asynccontextmanager
async def pulling(
    folder: Path, validator: Validator, calls: ValidatorCalls
) -> AsyncIterator[ScoreLog]:
    log = ScoreLog(folder)
    service = MinerService([FakeEngine()], log, budget_s=30.0, margin_s=1.0)
    transport = PullTransport(
        service,
        StaticChain(validator.neuron),
        log,
        calls=calls,
        selection=Selection(MINER.ss58_address),
        state_file=PullStateFile(folder / "state.json", MINER.ss58_address),
    )
    await service.start()
    await transport.serve()
    try:
        yield log
    finally:
        await service.drain()
        await transport.close()
        log.close()


def feedback(log: ScoreLog) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    return [line for line in lines if line["event"] == "feedback"]


async def test_text_and_image_tasks_are_done_and_accepted(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    async with (
        serve(tasks(), rules=SHORT) as validator,
        calling() as calls,
        pulling(tmp_path, validator, calls) as log,
    ):
        assert await asyncio.to_thread(validator.trial.finished, 20.0)
        await until(lambda: len(feedback(log)) == 2)
        lines = feedback(log)
    assert [each["fate"] for each in lines] == ["accepted", "accepted"]
    assert [each["generations_within_the_window"] for each in lines] == [1, 2]
    records = validator.trial.records()
    assert [record.kind for record in records] == ["text", "image"]
    for record in records:
        assert record.good, record.problems
        assert (tmp_path / f"{record.name}.spz").read_bytes() == ball_spz()
        assert (record.gaussians, record.protocol) == (len(ball()), "pull")
    assert [record.early_pulls for record in records] == [0, 0]
    assert validator.trial.pull(MINER.ss58_address).violations in (0, 1)


async def test_a_result_that_another_key_has_signed_is_refused_and_the_log_says_so(
    serve: Callable[..., Any], tmp_path: Path, log_lines: list[str]
) -> None:
    async with (
        serve(tasks()[:1], rules=SHORT) as validator,
        calling(signer=Signer(MINER, OTHER)) as calls,
        pulling(tmp_path, validator, calls) as log,
    ):
        assert await asyncio.to_thread(validator.trial.finished, 20.0)
        await until(lambda: feedback(log))
        (line,) = feedback(log)
    (record,) = validator.trial.records()
    assert record.outcome == "refused"
    assert "the signature is not the miner's" in record.problems[0]
    assert (line["fate"], line["task_fidelity_score"]) == ("refused", 0.0)
    assert line["ask_again_s"] > 500.0
    assert any("or the signature was not accepted" in logged for logged in log_lines)
    assert not (tmp_path / f"{record.name}.spz").exists()


def assigned(task: TrialTask, **fields: Any) -> AssignedTask:
    values = {"id": task.id, "kind": task.kind, "prompt": task.wire, **fields}
    return AssignedTask(validator=VALIDATOR.ss58_address, assigned_at=0.0, **values)


async def test_what_a_validator_says_at_each_step(serve: Callable[..., Any]) -> None:
    (task, *_) = tasks()
    async with serve([task]) as validator, calling() as calls:
        with pytest.raises(NoAnswer) as caught:
            await calls.submit(validator.neuron, assigned(task), b"")
        assert (caught.value.status, caught.value.reached) == (403, True)
        assert "no task is assigned" in str(caught.value)
        first = await calls.pull(validator.neuron)
        again = await calls.pull(validator.neuron)
        assert first == again
        assert first.task is not None
        assert (first.task.prompt, first.threshold, first.cooldown_until) == ("a blue cube", 0.6, 0)
        stale = await calls.submit(validator.neuron, assigned(task, id="stale"), ball_spz())
        assert (stale.feedback, stale.cooldown_until) == (Feedback(average_fidelity_score=1.0), 0)
        done = await calls.submit(validator.neuron, assigned(task), ball_spz())
        assert done.feedback is not None
        assert done.feedback.task_fidelity_score == 1.0
        early = await calls.pull(validator.neuron)
        assert (early.task, early.violations) == (None, 1)
        # The same moment; the date in an answer, by which it is converted, has whole seconds.
    assert early.cooldown_until == pytest.approx(done.cooldown_until, abs=1.5)


async def test_a_stranger_is_put_off_for_an_hour(serve: Callable[..., Any]) -> None:
    async with serve(tasks()) as validator, calling(OTHER) as calls:
        answer = await calls.pull(validator.neuron)
        assert answer.task is None
        assert answer.cooldown_until - calls.clock() == pytest.approx(3600.0, abs=5.0)


async def test_a_validator_that_is_not_there_was_not_reached() -> None:
    gone = Neuron(uid=1, hotkey=VALIDATOR.ss58_address, ip="127.0.0.1", port=free_port())
    async with calling() as calls:
        with pytest.raises(NoAnswer) as caught:
            await calls.pull(gone)
    assert (caught.value.status, caught.value.reached) == (503, False)


async def test_the_version_route_and_the_empty_history(serve: Callable[..., Any]) -> None:
    async with serve(tasks()) as validator, offline_dendrite(MINER) as dendrite:
        reply = await dendrite.call(validator.neuron, GetVersion(), deserialize=False)
        assert reply.validation_version.startswith("mock ")
        assert len(dendrite.synapse_history) == 0


def test_a_submission_announces_its_required_fields(tmp_path: Path) -> None:
    """The published axon builds the synapse from headers, where these three must be."""
    request = SubmitResults(task_id="t", results="AAAA", submit_time=7, signature="c2ln")
    names = {name for name in request.to_headers() if name.startswith("bt_header_input_obj_")}
    assert names == {f"bt_header_input_obj_{n}" for n in ("results", "submit_time", "signature")}
    assert PullTask().to_headers().keys().isdisjoint(names)
    assert spz.decode(ball_spz()) is not None
