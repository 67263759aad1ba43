"""Validators without a network for tests of the pull transport, and a clock that sleep moves."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from miner.chain.metagraph import Neuron
from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.transports.clocks import SteadyClock
from miner.transports.pull import puller
from miner.transports.pull.calls import PullAnswer, SubmitAnswer
from miner.transports.pull.puller import PullTransport
from miner.transports.pull.state import AssignedTask, PullState, PullStateFile
from miner.transports.pull.validators import Selection
from protocol.synapses import Feedback, WireTask
from tests.miner.transports.push.test_axon_checks import StaticChain
from tests.support.fakes import FakeEngine
from tests.support.waiting import until

START = 1_800_000_000.0
VALIDATOR = Neuron(uid=1, hotkey="5V", ip="1.1.1.1", port=8091, stake=900.0, validator_permit=True)
ACCEPTED = SubmitAnswer(Feedback(task_fidelity_score=0.8), START + 1e6)


class Time:
    """A clock that sleeping moves, so that no time passes."""

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
    """Returns the answers that a test sets, and remembers what it was sent."""

    def __init__(self, clock: SteadyClock) -> None:
        self.clock = clock
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

    async def submit(self, validator: Neuron, task: AssignedTask, asset: bytes) -> SubmitAnswer:
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
    def __init__(
        self, folder: Path, time: Time, *, wall: Callable[[], float] | None = None, **settings: Any
    ) -> None:
        self.time = time
        self.engine = FakeEngine()
        self.log = ScoreLog(folder)
        self.service = MinerService(
            [self.engine], self.log, budget_s=30.0, margin_s=1.0, clock=time
        )
        self.calls = Calls(SteadyClock(wall or time, time))
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
            monotonic=self.time,
            **self.settings,
        )

    def events(self, *names: str) -> list[dict[str, Any]]:
        assert self.log.flush()
        lines = [json.loads(line) for line in self.log.path.read_text().splitlines()]
        return [line for line in lines if line["event"] in names]

    def saved(self) -> PullState:
        """What the state file holds now. `file.load` would write it too, while the miner does."""
        return PullState.model_validate_json(self.file._path.read_bytes())

    async def forgotten(self) -> None:
        """Waits until a result has been submitted and no task is left in the file."""
        await until(lambda: bool(self.calls.submitted) and not self.saved().tasks)

    async def settled(self, count: int = 1) -> list[dict[str, Any]]:
        await until(lambda: len(self.events("feedback")) >= count)
        return self.events("feedback")


StartPulling = Callable[..., Any]


async def a_while() -> None:
    """Lets everything happen that can happen while the clock stands still."""
    for _ in range(50):  # Not one sleep: on a busy machine, little may happen in its time.
        await asyncio.sleep(0.001)


def text(task_id: str = "t-1", prompt: str = "a blue cube") -> WireTask:
    return WireTask(type="text", id=task_id, prompt=prompt)
