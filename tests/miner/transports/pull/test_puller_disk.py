"""Full disks, removed folders, corrected clocks and crashes: what the pull transport keeps."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from miner.mock_validator.pull_rules import PullRules
from miner.transports.clocks import SteadyClock
from miner.transports.kept import RETRY_S
from miner.transports.pull import puller
from miner.transports.pull.book import PullBook
from miner.transports.pull.calls import NoAnswer, PullAnswer, SubmitAnswer
from miner.transports.pull.state import AssignedTask, PullState, PullStateFile
from miner.transports.pull.validators import Selection, Standing
from protocol.synapses import Feedback, WireTask
from tests.miner.mock_validator.pull_fakes import MINER, make_rules, submission
from tests.support.fake_validators import START, VALIDATOR, Pulling, StartPulling, Time, text
from tests.support.fake_validators import a_while as until_nothing_happens
from tests.support.fakes import Clock


@pytest.fixture
def lines() -> Iterator[list[str]]:
    noted: list[str] = []
    sink = logger.add(
        lambda message: noted.append(message.record["message"]), level="WARNING", format="{message}"
    )
    yield noted
    logger.remove(sink)


class Disk:
    """A state file whose disk can be full."""

    def __init__(self, path: Path) -> None:
        self.full = False
        self.writes = 0
        self.file = PullStateFile(path, "5M")
        self._save = self.file.save
        self.file.save = self.save  # type: ignore[method-assign]

    def save(self, state: PullState) -> None:
        self.writes += 1
        if self.full:
            raise OSError(28, "No space left on device")
        self._save(state)


async def test_a_full_disk_is_told_once_retried_and_told_when_it_is_over(
    tmp_path: Path, lines: list[str]
) -> None:
    time, disk = Time(), Disk(tmp_path / "state.json")
    book = PullBook(disk.file, Selection("5M"), clock=SteadyClock(time, time))
    disk.full = True
    task = AssignedTask(validator="5V", id="t-1", kind="text", prompt="a cube", assigned_at=START)
    for starts in range(5):
        await book.note(task, starts=starts)
    assert len(lines) == 1
    assert "No space left" in lines[0]
    written = disk.writes
    for _ in range(10):
        await book.retry()
    assert disk.writes == written
    time.now += RETRY_S
    await book.retry()
    assert (disk.writes, len(lines)) == (written + 1, 1)
    disk.full = False
    time.now += RETRY_S
    await book.retry()
    assert lines[1:] == ["the state of the pull transport is written again"]
    (kept,) = PullState.model_validate_json((tmp_path / "state.json").read_bytes()).tasks
    assert (kept.id, kept.starts) == ("t-1", 4)
    await book.retry()
    disk.full = True
    await book.save()
    assert len(lines) == 3


async def test_a_full_disk_that_is_cleared_while_nothing_happens_is_written_all_the_same(
    start_pulling: StartPulling, lines: list[str]
) -> None:
    async with start_pulling() as pulling:
        await until_nothing_happens()
        save = pulling.file.save

        def full(state: PullState) -> None:
            raise OSError(28, "No space left on device")

        pulling.file.save = full
        pulling.calls.pulls = [text()]
        pulling.time.now += 2e6
        accepted = Feedback(task_fidelity_score=0.8)
        pulling.calls.answers = [SubmitAnswer(accepted, pulling.time.now + 1000.0)]
        await pulling.settled()
        pulling.file.save = save
        before = pulling.saved().validators["5V"].accepted
        pulling.time.now += RETRY_S
        await until_nothing_happens()
        assert (before, pulling.saved().validators["5V"].accepted) == (0, 1)
    assert sum("is not written" in line for line in lines) == 1
    assert sum("is written again" in line for line in lines) == 1


async def test_a_removed_folder_is_made_again(tmp_path: Path, lines: list[str]) -> None:
    file = PullStateFile(tmp_path / "deep" / "folder" / "state.json", "5M")
    book = PullBook(file, Selection("5M"), clock=SteadyClock())
    shutil.rmtree(tmp_path / "deep")
    await book.save()
    assert (tmp_path / "deep" / "folder" / "state.json").exists()
    assert lines == []


@pytest.mark.parametrize("step", [-7200.0, -30.0, 30.0, 7200.0])
async def test_a_step_of_the_wall_clock_costs_no_violation_and_no_wait(
    start_pulling: StartPulling, step: float
) -> None:
    """The clock is corrected during a cooldown of 300 s."""
    steps = {"by": 0.0}

    def prepare(pulling: Pulling) -> None:
        pulling.calls.clock = SteadyClock(lambda: pulling.time.now + steps["by"], pulling.time)
        pulling.calls.pulls = [text()]
        pulling.calls.answers = [SubmitAnswer(Feedback(task_fidelity_score=0.8), START + 300.0)]

    async with start_pulling(prepare) as pulling:
        (feedback,) = await pulling.settled()
        steps["by"] = step
        pulling.time.now = START + 300.5
        await until_nothing_happens()
        assert pulling.calls.pulled == 1
        pulling.time.now = START + 301.0
        await until_nothing_happens()
        assert pulling.calls.pulled == 2
    # The file holds times of the wall clock, for the next process.
    assert pulling.file.load().validators["5V"].asked_at == START + 301.0 + step
    assert feedback["turnaround_s"] < 60.0


@pytest.mark.parametrize("step", [-7200.0, -30.0, 0.0])
def test_after_a_restart_no_more_is_waited_for_than_was_left(tmp_path: Path, step: float) -> None:
    file = PullStateFile(tmp_path / "state.json", "5M")
    standing = Standing(asked_at=START, ask_after=START + 301.0)
    task = AssignedTask(
        validator="5W", id="t", kind="text", prompt="a", assigned_at=START, submitted_at=START
    )
    file.save(PullState(hotkey="5M", validators={"5V": standing}, tasks=(task,)))
    now = START + 1.0 + step
    clock = SteadyClock(Clock(now), Clock(5.0))
    book = PullBook(file, Selection("5M"), clock=clock)
    wait = book.validators.wait([VALIDATOR])
    assert wait is not None
    assert wait == pytest.approx(300.0 if step == 0.0 else 301.0)
    assert book.tasks[0].assigned_at <= clock() + 1e-6
    assert (book.tasks[0].submitted_at or 0.0) <= clock() + 1e-6


class Judge:
    """Calls that end at a validator's rules, until a moment at which the process is killed."""

    def __init__(
        self, pulling: Pulling, rules: PullRules, submitted: list[str], dies_at: int | None
    ) -> None:
        self.clock = pulling.calls.clock
        self.dead = asyncio.Event()
        self.on_disk = b""
        self.submitted = submitted
        self._pulling = pulling
        self._rules = rules
        self._left = dies_at

    async def moment(self) -> None:
        if self._left == 0:
            self.on_disk = self._pulling.file._path.read_bytes()
            self.dead.set()
            await asyncio.Event().wait()
        self._left = None if self._left is None else self._left - 1

    async def pull(self, validator: Any) -> PullAnswer:
        await self.moment()
        pulled = self._rules.pull(MINER)
        await self.moment()
        task = None
        if pulled.task is not None:
            task = WireTask(type="text", id=pulled.task.id, prompt=pulled.task.wire)
        return PullAnswer(task, 0.6, float(pulled.cooldown_until), pulled.violations)

    async def submit(self, validator: Any, task: AssignedTask, asset: bytes) -> SubmitAnswer:
        await self.moment()
        assigned = self._rules.assigned(MINER)
        if assigned is None:
            raise NoAnswer("no task is assigned", status=403, reached=True)
        self._rules.submit(MINER, submission(assigned[0], validator="5V", task_id=task.id))
        verdict = self._rules.judged(MINER, 0.9)
        self.submitted.append(task.id)
        await self.moment()
        return SubmitAnswer(
            Feedback(task_fidelity_score=verdict.score), float(verdict.cooldown_until)
        )

    async def close(self) -> None:
        pass


MOMENTS = ["before the pull", "pulled", "generating", "before the submission", "submitted"]


@pytest.mark.parametrize("dies_at", range(len(MOMENTS)), ids=MOMENTS)
async def test_a_kill_at_any_moment_loses_no_task_and_costs_no_violation(
    start_pulling: StartPulling, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    monkeypatch.setattr(puller, "CLOSE_LIMIT_S", 0.01)
    judges: list[Judge] = []
    rules: list[PullRules] = []
    submitted: list[str] = []

    def first(pulling: Pulling) -> None:
        rules.append(make_rules(pulling.time, hotkey="5V"))
        judge = Judge(pulling, rules[0], submitted, dies_at)
        pulling.calls = judge  # type: ignore[assignment]
        run = pulling.engine.run

        async def watched(*args: Any, **arguments: Any) -> Any:
            await judge.moment()
            return await run(*args, **arguments)

        pulling.engine.run = watched  # type: ignore[method-assign]
        judges.append(judge)

    def second(pulling: Pulling) -> None:
        pulling.file._path.write_bytes(judges[0].on_disk)
        judges.append(Judge(pulling, rules[0], submitted, None))
        pulling.calls = judges[1]  # type: ignore[assignment]

    async with start_pulling(first):
        await judges[0].dead.wait()
    async with start_pulling(second) as pulling:
        for count in range(1, 4):
            await pulling.settled(count)
            await pulling.forgotten()
            pulling.time.now += 301.0
    assert submitted[:3] == ["5V-1", "5V-2", "5V-3"]
    assert rules[0].window(MINER) >= 3
    assert rules[0].early_pulls(MINER) == 0


def test_a_kill_while_the_file_is_replaced_leaves_the_old_or_the_new_one(tmp_path: Path) -> None:
    file = PullStateFile(tmp_path / "state.json", "5M")
    file.save(PullState(hotkey="5M"))
    child = os.fork()
    if child == 0:
        for number in range(100_000):
            standing = Standing(pulled=number)
            file.save(PullState(hotkey="5M", validators={"5V" * 500: standing}))
        os._exit(0)
    try:
        while file.load() == PullState(hotkey="5M"):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert list(PullStateFile(tmp_path / "state.json", "5M").load().validators) == ["5V" * 500]
    assert not list(tmp_path.glob("*damaged*"))
