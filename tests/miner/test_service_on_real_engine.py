"""Predictions against reality: the service on a real engine, with stages of known length."""

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from generation.engine import Engine
from generation.plan import Rung
from generation.presets import preset
from generation.settings import GenerationSettings, RungSettings, ScoringSettings
from generation.stage import StepContext, route
from miner.request import Answer, Caller, Request
from miner.scheduling.estimates import DELIVERY_FLOOR_S
from miner.score.log import ScoreLog
from miner.service import MinerService
from protocol.tasks import ImageTask, Task, TextTask
from tests.support.fake_stages import FakeStages
from tests.support.fakes import picture
from tests.support.virtual_time import (
    VirtualLoop,
    in_virtual_time,
    lanes_take_virtual_time,
    threads_take_no_time,
)

SECONDS = {
    "prompt": 0.04,
    "denoise": 0.03,
    "decode": 0.03,
    "cutout": 0.05,
    "lift": 0.06,
    "splats": 0.04,
    "encode": 0.03,
    "mesh": 0.05,
}
MARGIN_S = 0.1


def settings() -> GenerationSettings:
    """The preset `embedded` with two denoising steps, a rung with a single one, and no scorer."""
    base = preset("embedded")
    drawing = base.text_to_image.model_copy(update={"steps": 2})
    return base.model_copy(
        update={
            "text_to_image": drawing,
            "rungs": (RungSettings(name="one_step", steps=1),),
            "scoring": ScoringSettings(),
        }
    )


def task(number: int) -> Task:
    """Every third task brings a picture."""
    if number % 3 == 2:
        return ImageTask(id=str(number), image=picture())
    return TextTask(id=str(number), prompt=f"thing {number}")


class TimedEngine(Engine):
    """An engine for the service."""

    name = "timed"
    machine = "this one"


class Machine:
    """A service on an engine whose stages take as long as `SECONDS` says, give or take 5 %.

    The engine's threads are real, the seconds virtual: no other process disturbs them.
    """

    def __init__(self, folder: Path, loop: VirtualLoop) -> None:
        self.random = random.Random(1)
        self.loop = loop
        stages = FakeStages()
        stages.on_call = self._take_time
        self.engine = TimedEngine(
            settings(),
            functions=stages.functions(),
            remembers=stages.remembers,
            progress=False,
            clock=loop.time,
        )
        self.log = ScoreLog(folder)
        self.service = MinerService(
            [self.engine], self.log, budget_s=4.0, margin_s=MARGIN_S, clock=loop.time
        )

    async def start(self) -> None:
        """Warms up, and lets the estimates settle."""
        await self.service.start()
        for number in range(6):
            # Answers reach their callers in no time.
            for _ in range(9):
                self.service.delivered("axon", 10**6, DELIVERY_FLOOR_S)
            await self.ask(-number, allowed_s=4.0)

    async def ask(self, number: int, *, allowed_s: float) -> Answer:
        caller = Caller(f"5{number % 8}")
        return await self.service.handle(
            Request(task(abs(number)), caller, "axon", self.loop.time(), allowed_s)
        )

    def gpu_seconds(self, rung: Rung) -> float:
        """Mean seconds of a task in the lane that limits the machine."""
        routes = [route(self.engine._stages["triposr"], task(number), rung) for number in range(3)]
        seconds = [SECONDS[step.stage] for steps in routes for step in steps if step.lane == "gpu"]
        return sum(seconds) / len(routes)

    def _take_time(self, stage: str, context: StepContext) -> None:
        self.loop.hold_thread(SECONDS[stage] * self.random.uniform(0.95, 1.05))


@pytest.fixture
def virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes_take_virtual_time(monkeypatch)
    threads_take_no_time(monkeypatch)


@asynccontextmanager
async def started(folder: Path) -> AsyncIterator[Machine]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    machine = Machine(folder, loop)
    await machine.start()
    yield machine
    await machine.service.drain()
    await machine.service.close()
    machine.log.close()


async def waves(machine: Machine) -> list[Answer]:
    """Four times eight requests at once, texts and pictures."""
    answers: list[Answer] = []
    for wave in range(4):
        asking: list[asyncio.Task[Answer]] = []
        for place in range(8):
            # Later ones have later deadlines: nobody can know who will overtake.
            asked = machine.ask(8 * wave + place, allowed_s=2.8 + 0.1 * place)
            asking.append(asyncio.create_task(asked))
            await asyncio.sleep(machine.random.uniform(0.0, 0.04))
        answers += await asyncio.gather(*asking)
    return answers


@pytest.mark.usefixtures("virtual")
@in_virtual_time
async def test_predictions_are_within_3_percent_of_what_requests_take(tmp_path: Path) -> None:
    async with started(tmp_path) as machine:
        answers = await waves(machine)
    assert {answer.outcome for answer in answers} == {"completed"}
    waited = [answer.total_s - sum(answer.timings.values()) for answer in answers]
    assert statistics.median(waited) > 0.2  # Most of it was waiting, in one of three lanes.
    errors = []
    for answer in answers:
        assert answer.predicted_s is not None
        errors.append(abs(answer.predicted_s - answer.total_s) / answer.total_s)
    assert statistics.median(errors) < 0.03


@pytest.mark.usefixtures("virtual")
@in_virtual_time
async def test_an_overloaded_machine_keeps_its_promises(tmp_path: Path) -> None:
    asking: list[tuple[float, asyncio.Task[Any]]] = []
    async with started(tmp_path) as machine:
        pause = machine.gpu_seconds(machine.engine.ladder[0]) / 2.0
        for number in range(40):
            await asyncio.sleep(machine.random.expovariate(1.0 / pause))
            allowed = machine.random.choice([1.0, 1.5, 2.0, 4.0])
            asking.append((allowed, asyncio.create_task(machine.ask(number, allowed_s=allowed))))
        answers = [(allowed, await asked) for allowed, asked in asking]
    completed = [(allowed, answer) for allowed, answer in answers if answer.outcome == "completed"]
    assert len(completed) > len(answers) / 2
    for allowed, answer in completed:
        assert answer.total_s <= allowed - MARGIN_S
    codes = [answer.reason_code for _, answer in answers]
    assert "deadline_passed" not in codes
    assert set(codes) > {"ok"}  # It was overloaded.


async def test_a_device_that_is_lost_with_a_score_leaves_the_finished_object(
    tmp_path: Path,
) -> None:
    stages, log = FakeStages(), ScoreLog(tmp_path)
    engine = TimedEngine(
        preset("embedded"),
        functions=stages.functions(),
        remembers=stages.remembers,
        progress=False,
    )
    service = MinerService([engine], log, budget_s=10.0, margin_s=MARGIN_S)
    await service.start()
    stages.faults["score"] = RuntimeError("CUDA error: device-side assert triggered")

    async def ask(number: int) -> Answer:
        return await service.handle(Request(task(number), Caller("5"), "axon", time.monotonic()))

    answer = await ask(0)
    assert (answer.outcome, answer.asset, answer.score) == ("completed", b"spz", None)
    assert answer.reason.endswith(
        "the engine died: score lost the device: RuntimeError: CUDA error: "
        "device-side assert triggered"
    )
    assert service.died.is_set()
    assert (await ask(1)).reason_code == "engine_dead"
    await service.close()
    log.close()
