"""The pull way without a network: a validator that keeps the published rules, and no waiting."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from generation.errors import EngineDead, GenerationError
from generation.validity import Check, ValidityReport
from miner.messages import Caller, Request
from miner.pull_state import PullStateFile, TaskInHand
from miner.score_log import ScoreLog
from miner.service import MinerService
from miner.subnet import Neuron, Snapshot
from miner.transports import pull_delivery, puller
from miner.transports.pull_calls import NoAnswer, PullAnswer, SubmitAnswer
from miner.transports.puller import PullTransport
from miner.validators import Selection, Standing
from protocol.synapses import Feedback, WireTask
from protocol.tasks import TextTask
from tests.miner.fakes import FakeGenerator, ball_spz
from tests.miner.transports.test_axon_checks import StaticChain

START = 1_800_000_000.0
VALIDATOR = Neuron(uid=1, hotkey="5V", ip="1.1.1.1", port=8091, stake=900.0, validator_permit=True)
ACCEPTED = SubmitAnswer(Feedback(task_fidelity_score=0.8), START + 1e6)


class Time:
    """A clock that sleeping moves, so that nothing is waited for."""

    def __init__(self) -> None:
        self.now = START
        self.sleeps: list[float] = []
        self.on_sleep: Callable[[], None] = lambda: None
        self._sleep = asyncio.sleep

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        if seconds > puller.POLL_S:
            self.sleeps.append(seconds)
            self.now += seconds
            self.on_sleep()
        await self._sleep(0)


class Calls:
    """Answers what it is told to and remembers what it was sent."""

    def __init__(self) -> None:
        self.pulls: list[Any] = []
        self.answers: list[Any] = []
        self.pulled = 0
        self.submitted: list[tuple[str, str, bytes]] = []
        self.before_submit: Callable[[], None] = lambda: None
        self.closed = False

    async def pull(self, validator: Neuron) -> PullAnswer:
        self.pulled += 1
        answer = self.pulls.pop(0) if self.pulls else PullAnswer(None, 0.6, START + 1e6, 0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, WireTask):
            answer = PullAnswer(answer, 0.6, 0.0, 0)
        assert isinstance(answer, PullAnswer)
        return answer

    async def submit(self, validator: Neuron, task: TaskInHand, asset: bytes) -> SubmitAnswer:
        self.before_submit()
        self.submitted.append((validator.hotkey, task.id, asset))
        answer = self.answers.pop(0) if self.answers else ACCEPTED
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, SubmitAnswer)
        return answer

    async def close(self) -> None:
        self.closed = True


class Pulling:
    def __init__(self, folder: Path, time: Time, **settings: Any) -> None:
        self.time = time
        self.generator = FakeGenerator()
        self.log = ScoreLog(folder)
        self.service = MinerService(
            self.generator, self.log, budget_s=30.0, margin_s=1.0, clock=time
        )
        self.calls = Calls()
        self.file = PullStateFile(folder / "state.json", "5M")
        self.chain = StaticChain(VALIDATOR)
        self.settings = settings
        self.transport = self.make()

    def make(self) -> PullTransport:
        return PullTransport(
            self.service,
            self.chain,
            self.log,
            calls=self.calls,  # type: ignore[arg-type]
            selection=Selection("5M"),
            state_file=self.file,
            wall=self.time,
            monotonic=self.time,
            **self.settings,
        )

    def events(self, *names: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.path.read_text().splitlines()]
        return [line for line in lines if line["event"] in names]

    async def settled(self, count: int = 1) -> list[dict[str, Any]]:
        for _ in range(2000):
            if len(feedback := self.events("feedback")) >= count:
                return feedback
            await asyncio.sleep(0.001)
        raise AssertionError("the task was not settled")


Start = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    time = Time()
    patched = SimpleNamespace(**vars(asyncio))
    patched.sleep = time.sleep
    monkeypatch.setattr(puller, "asyncio", patched)
    monkeypatch.setattr(pull_delivery, "asyncio", patched)

    @asynccontextmanager
    async def running(
        prepare: Callable[[Pulling], None] = lambda pulling: None, **settings: Any
    ) -> AsyncIterator[Pulling]:
        pulling = Pulling(tmp_path, time, **settings)
        prepare(pulling)
        pulling.transport = pulling.make()
        await pulling.service.start()
        await pulling.transport.serve()
        try:
            yield pulling
        finally:
            await pulling.transport.close()
            pulling.log.close()

    return running


async def a_while() -> None:
    """Lets everything happen that can happen while the clock stands still."""
    await asyncio.sleep(0.05)


def text(task_id: str = "t-1", prompt: str = "a blue cube") -> WireTask:
    return WireTask(type="text", id=task_id, prompt=prompt)


async def test_a_task_is_pulled_made_submitted_and_settled(start: Start) -> None:
    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [text()]
        feedback = Feedback(
            task_fidelity_score=0.8,
            average_fidelity_score=0.9,
            generations_within_the_window=12,
            current_duel_rating=1500.0,
            current_miner_reward=18000.0,
        )
        pulling.calls.answers = [SubmitAnswer(feedback, START + 300.0)]

    async with start(prepare) as pulling:
        (feedback,) = await pulling.settled()
        assert pulling.calls.submitted == [("5V", "t-1", ball_spz())]
        assert feedback["fate"] == "accepted"
        assert feedback["caller"] == "5V"
        assert feedback["task_fidelity_score"] == 0.8
        assert feedback["generations_within_the_window"] == 12
        assert feedback["current_duel_rating"] == 1500.0
        assert feedback["ask_again_s"] == 301.0
        (answered,) = pulling.events("answered")
        assert (answered["transport"], answered["outcome"]) == ("pull", "completed")
        assert (answered["caller"], answered["uid"]) == ("5V", 1)
    state = pulling.file.load()
    assert state.tasks == ()
    assert (state.validators["5V"].accepted, state.validators["5V"].pulled) == (1, 1)
    assert pulling.calls.closed


async def test_what_is_in_hand_is_on_disk_before_anything_is_done_with_it(start: Start) -> None:
    noted: list[tuple[int, bool]] = []

    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [text()]
        generate = pulling.generator.generate

        async def watched(task: Any, **arguments: Any) -> Any:
            noted.extend((t.starts, t.submitted_at is None) for t in pulling.file.load().tasks)
            return await generate(task, **arguments)

        pulling.generator.generate = watched  # type: ignore[method-assign]
        pulling.calls.before_submit = lambda: noted.extend(
            (t.starts, t.submitted_at is None) for t in pulling.file.load().tasks
        )

    async with start(prepare) as pulling:
        await pulling.settled()
    assert noted == [(1, True), (1, False)]


async def test_an_image_task(start: Start) -> None:
    file = BytesIO()
    Image.new("RGB", (64, 48)).save(file, "PNG")
    prompt = base64.b64encode(file.getvalue()).decode()

    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [WireTask(type="image", id="i-1", prompt=prompt)]

    async with start(prepare) as pulling:
        await pulling.settled()
        assert pulling.generator.ran[0] == ("i-1", "background")
        assert pulling.events("answered")[0]["kind"] == "image"
        assert prompt[:40] not in pulling.log.path.read_text()


INVALID = ValidityReport((Check("gaussians", False, 10.0, 7000.0, "too few"),), ())


@pytest.mark.parametrize("how", ["dropped", "failed", "rejected", "invalid"])
async def test_an_empty_result_where_there_is_none_worth_submitting(
    start: Start, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [text(prompt="" if how == "rejected" else "a cube")]
        pulling.calls.answers = [SubmitAnswer(Feedback(), START + 300.0)]
        if how == "failed":
            pulling.generator.error_at = "splats"
            pulling.generator.error = GenerationError("no surface")
        if how == "dropped":
            pulling.generator.prior["splats"] = 60.0
        if how == "invalid":
            monkeypatch.setattr("tests.miner.fakes.check", lambda cloud: INVALID)

    async with start(prepare) as pulling:
        (feedback,) = await pulling.settled()
        assert pulling.calls.submitted == [("5V", "t-1", b"")]
        assert feedback["fate"] == "skipped"
        assert "task_fidelity_score" not in feedback
        outcome = "completed" if how == "invalid" else how
        assert pulling.events("answered")[0]["outcome"] == outcome


NOT_CONNECTED = NoAnswer("status 503: no connection", status=503, reached=False)
CUT_OFF = NoAnswer("status 408: timeout", status=408, reached=True)
FORBIDDEN = NoAnswer("status 403: no task assigned", status=403, reached=True)
IGNORED = SubmitAnswer(Feedback(), START - 1000.0)
REFUSED = SubmitAnswer(Feedback(), START + 900.0)
FAILED = SubmitAnswer(Feedback(validation_failed=True), START + 300.0)
STRANGER = SubmitAnswer(None, START + 3600.0)


@pytest.mark.parametrize(
    ("answers", "sleeps", "fate"),
    [
        ([NOT_CONNECTED, ACCEPTED], [2.0], "accepted"),
        ([NOT_CONNECTED] * 3 + [ACCEPTED], [2.0, 4.0, 8.0], "accepted"),
        ([CUT_OFF, ACCEPTED], [31.0], "accepted"),
        ([CUT_OFF, FORBIDDEN], [31.0], "unknown"),
        ([NOT_CONNECTED] * 30, [2.0, 4.0, 8.0, 16.0] + [30.0] * 9, "unknown"),
        ([CUT_OFF] * 30, [31.0] * 9, "unknown"),
        ([FORBIDDEN], [], "unknown"),
        ([IGNORED], [], "unknown"),
        ([REFUSED], [], "refused"),
        ([FAILED], [], "failed"),
        ([STRANGER], [], "unknown"),
    ],
)
async def test_a_submission_is_repeated_only_where_that_is_no_double_submission(
    start: Start, answers: list[Any], sleeps: list[float], fate: str
) -> None:
    sent: list[float] = []

    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [text()]
        pulling.calls.answers = list(answers)
        pulling.calls.before_submit = lambda: sent.append(pulling.time.now)

    async with start(prepare) as pulling:
        (feedback,) = await pulling.settled()
        assert feedback["fate"] == fate
        assert len(sent) == len(sleeps) + 1
        assert pulling.time.sleeps == sleeps
        assert {asset for _, _, asset in pulling.calls.submitted} == {ball_spz()}
        for earlier, answer, later in zip(sent, answers, sent[1:], strict=False):
            assert not answer.reached or later - earlier > 30.0
    assert pulling.file.load().tasks == ()


async def test_a_validator_without_a_task_or_an_answer_is_left_alone(start: Start) -> None:
    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [PullAnswer(None, 0.6, START + 50.0, 3)]

    async with start(prepare) as pulling:
        await a_while()
        assert pulling.calls.pulled == 1
        pulling.time.now += 51.0
        pulling.calls.pulls = [CUT_OFF]
        await a_while()
        assert pulling.calls.pulled == 2
    assert pulling.file.load().validators["5V"] == Standing(
        ask_after=START + 51.0 + 60.0, asked_at=START + 51.0, failures=1
    )


async def test_nothing_is_pulled_while_the_generator_is_busy(start: Start) -> None:
    def prepare(pulling: Pulling) -> None:
        pulling.generator.hold_at = "splats"
        pulling.chain.snapshot = type(pulling.chain.snapshot)({}, 0.0)

    async with start(prepare) as pulling:
        pushed = Request(TextTask(id="p", prompt="a cube"), Caller("5X"), "axon", START)
        asking = asyncio.create_task(pulling.service.handle(pushed))
        await pulling.generator.holding.wait()
        pulling.chain.snapshot = StaticChain(VALIDATOR).snapshot
        await a_while()
        assert pulling.calls.pulled == 0
        pulling.generator.release.set()
        await asking
        await a_while()
        assert pulling.calls.pulled == 1


@pytest.mark.parametrize("workers", [1, 2])
async def test_as_many_tasks_at_once_as_there_are_workers(start: Start, workers: int) -> None:
    def prepare(pulling: Pulling) -> None:
        pulling.generator.hold_at = "splats"
        pulling.calls.pulls = [text(f"t-{number}") for number in range(3)]
        neurons = [VALIDATOR.model_copy(update={"uid": u, "hotkey": f"5V{u}"}) for u in range(3)]
        pulling.chain.snapshot = StaticChain(*neurons).snapshot

    async with start(prepare, workers=workers) as pulling:
        await pulling.generator.holding.wait()
        await a_while()
        assert pulling.calls.pulled == workers
        pulling.generator.release.set()
        await pulling.settled(3)
        validators = {hotkey for hotkey, _, _ in pulling.calls.submitted}
        assert validators == {"5V0", "5V1", "5V2"}


def in_hand(**fields: Any) -> Callable[[Pulling], None]:
    values = {
        "validator": "5V",
        "id": "t-0",
        "kind": "text",
        "prompt": "a cube",
        "assigned_at": START - 100.0,
        "starts": 1,
        **fields,
    }

    def prepare(pulling: Pulling) -> None:
        empty = pulling.file.load()
        pulling.file.save(empty.model_copy(update={"tasks": (TaskInHand(**values),)}))

    return prepare


@pytest.mark.parametrize(
    ("fields", "asset", "sleeps"),
    [
        ({}, True, []),
        ({"starts": 2}, False, []),
        ({"submitted_at": START - 10.0}, True, [21.0]),
        ({"submitted_at": START - 50.0}, True, []),
    ],
)
async def test_a_task_of_an_earlier_run_is_resumed_without_a_second_pull(
    start: Start, fields: dict[str, Any], asset: bool, sleeps: list[float]
) -> None:
    async with start(in_hand(**fields)) as pulling:
        await pulling.settled()
        assert pulling.calls.submitted == [("5V", "t-0", ball_spz() if asset else b"")]
        assert pulling.time.sleeps == sleeps
        assert pulling.calls.pulled == 0
    assert pulling.file.load().tasks == ()


async def test_a_task_whose_validator_has_left_is_reported(start: Start) -> None:
    async with start(in_hand(validator="5Gone")) as pulling:
        (feedback,) = await pulling.settled()
        assert (feedback["caller"], feedback["fate"]) == ("5Gone", "unknown")
        assert pulling.calls.submitted == []


async def test_a_reading_that_lacks_the_validator_for_once_loses_no_result(start: Start) -> None:
    def prepare(pulling: Pulling) -> None:
        in_hand()(pulling)
        whole, pulling.chain.snapshot = pulling.chain.snapshot, Snapshot({}, START)

        def read_again() -> None:
            pulling.chain.snapshot = whole

        pulling.time.on_sleep = read_again

    async with start(prepare) as pulling:
        (feedback,) = await pulling.settled()
        assert feedback["fate"] == "accepted"
        assert pulling.calls.submitted == [("5V", "t-0", ball_spz())]


async def test_a_task_in_hand_when_the_miner_stops_is_kept_for_the_next_start(
    start: Start,
) -> None:
    def prepare(pulling: Pulling) -> None:
        pulling.generator.hold_at = "splats"
        pulling.calls.pulls = [text()]

    async with start(prepare) as pulling:
        await pulling.generator.holding.wait()
        draining = asyncio.create_task(pulling.service.drain())
        await asyncio.sleep(0)
        for in_hand in pulling.service._in_hand.values():
            in_hand.work.cancel()
        await draining
    (kept,) = pulling.file.load().tasks
    assert (kept.id, kept.starts, kept.submitted_at) == ("t-1", 0, None)
    assert pulling.calls.submitted == []


async def test_a_task_whose_generation_ends_the_process_is_tried_once_more(start: Start) -> None:
    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [text()]
        pulling.generator.error_at = "splats"
        pulling.generator.error = EngineDead("splats lost the device")

    async with start(prepare) as pulling:
        await pulling.service.died.wait()
        await pulling.service.drain()
    (kept,) = pulling.file.load().tasks
    assert (kept.id, kept.starts, kept.submitted_at) == ("t-1", 1, None)
    assert pulling.calls.submitted == []


async def test_a_result_that_is_ready_when_the_miner_stops_is_delivered(start: Start) -> None:
    def prepare(pulling: Pulling) -> None:
        pulling.generator.hold_at = "splats"
        pulling.calls.pulls = [text()]

    async with start(prepare) as pulling:
        await pulling.generator.holding.wait()
        draining = asyncio.create_task(pulling.service.drain())
        pulling.generator.release.set()
        await draining
    assert pulling.calls.submitted == [("5V", "t-1", ball_spz())]
    assert pulling.file.load().tasks == ()
