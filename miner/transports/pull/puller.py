"""The pull transport: this miner asks validators for tasks and submits the results to them.

A task is pulled only when its generation can start at once, because its clock runs from the
assignment. An assigned task is saved before anything is done with it, so that it survives a crash.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal

from loguru import logger

from miner.chain.metagraph import Chain, Neuron
from miner.life import State
from miner.request import Answer, Caller, Request
from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.transports.groups import Group, cancel, contained, spawn
from miner.transports.pull.book import PullBook
from miner.transports.pull.calls import NoAnswer, ValidatorCalls
from miner.transports.pull.delivery import Delivery, Learn, in_words
from miner.transports.pull.state import AssignedTask, PullStateFile
from miner.transports.pull.validators import Selection
from protocol.errors import TaskError
from protocol.synapses import WireTask
from protocol.tasks import TaskLimits, log_safe, parse_task

NAME = "pull"
POLL_S = 0.25
"""Seconds between two looks for a free place and a validator that may be asked."""

MAX_STARTS = 2
"""A task whose generation has ended the process so often is not started again."""

CLOSE_LIMIT_S = 8.0
"""Seconds that pulls and submissions may still take when the miner stops."""

_ENDED = "engine_dead"
_PUT_OFF = frozenset({"draining", "not_ready", "engine_suspect", _ENDED})
"""Reason codes of a service that cannot generate now. The task is done once it can again, in this
run or the next."""


class PullTransport:
    """Pulls tasks, has the service answer them, and has the results delivered.

    Args:
        service: Answers requests, in the event loop of this transport.
        chain: Lists the validators with their addresses.
        score_log: Receives one `pulled` line per pull, and one `feedback` line per task.
        calls: Calls the validators; closed with this transport.
        selection: Which validators to ask.
        state_file: Keeps tasks and cooldowns over a restart.
        workers: Tasks in generation at once.
        limits: Limits on tasks.
        learn: Is told what validators make of results with an own score.
        monotonic: The clock of the service.

    Raises:
        SetupError: The state cannot be read or written.
    """

    name = NAME

    def __init__(
        self,
        service: MinerService,
        chain: Chain,
        score_log: ScoreLog,
        *,
        calls: ValidatorCalls,
        selection: Selection,
        state_file: PullStateFile,
        workers: int = 1,
        limits: TaskLimits | None = None,
        learn: Learn | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._chain = chain
        self._calls = calls
        self._selection = selection
        self._count = workers
        self._limits = limits or TaskLimits()
        self._clock = calls.clock
        self._monotonic = monotonic
        problems = score_log.problems
        self._book = PullBook(state_file, selection, clock=self._clock, problems=problems)
        self._resumable = deque(self._book.tasks)
        self._score_log = score_log
        self._delivery = Delivery(self._book, chain, score_log, calls, learn)
        self._active = 0
        self._workers: Group = set()
        self._pulls: Group = set()
        self._deliveries: Group = set()

    async def serve(self) -> None:
        """Starts to pull, as soon as the service is ready."""
        validators = sum(map(self._selection.eligible, self._chain.snapshot.neurons.values()))
        report = logger.info if validators else logger.warning
        report("pulling tasks; validators that serve them: {}", validators)
        for _ in range(self._count):
            spawn(self._work(), self._workers)

    def validator_waits(self) -> Mapping[int, float]:
        """Returns the seconds until each validator may be asked for a task, by uid.

        A validator whose task is being generated is left out.
        """
        return self._book.validators.waits(self._chain.snapshot.neurons.values())

    async def close(self) -> None:
        """Pulls no more, delivers the results that are ready, and keeps the rest."""
        await cancel(self._workers)
        # A pull that is under way may bring a task, which the book keeps for the next start.
        if ending := self._pulls | self._deliveries:
            await asyncio.wait(ending, timeout=CLOSE_LIMIT_S)
        await cancel(self._pulls)
        await cancel(self._deliveries)
        await self._book.save()
        await self._calls.close()

    async def _work(self) -> None:
        while True:
            worked = False
            if self._service.state is State.READY and self._has_room():
                self._active += 1
                try:
                    worked = await self._turn()
                except Exception as error:
                    logger.opt(exception=error).error("a turn of the pull transport failed")
                finally:
                    self._active -= 1
            if not worked:
                await asyncio.sleep(POLL_S)
                await self._book.retry()

    def _has_room(self) -> bool:
        return self._active + self._service.active(except_transport=NAME) < self._count

    async def _turn(self) -> bool:
        """Takes a task from its assignment, or from an earlier attempt, to its delivery.

        Returns:
            Whether there may be more to do at once.
        """
        if self._resumable:
            # Its result is late but still worth a turn, so its budget begins again.
            task, received_at = self._resumable.popleft(), self._monotonic()
            age = self._clock() - task.assigned_at
            logger.info("task {} is resumed, {:.0f} s old", log_safe(task.id), age)
        else:
            validator = self._book.validators.choose(self._chain.snapshot.neurons.values())
            if validator is None:
                return False
            received_at = self._monotonic()
            pulled = await asyncio.shield(spawn(self._pull(validator), self._pulls))
            if pulled is None:
                return True
            task = pulled
        answer = None
        if task.starts < MAX_STARTS:
            task = await self._book.note(task, starts=task.starts + 1)
            answer = await self._answer(task, received_at)
        if answer is None or not self._is_put_off(answer):
            spawn(self._delivery.deliver(task, answer), self._deliveries)
            return True
        logger.info("task {} is kept: {}", log_safe(task.id), answer.reason)
        # It counts as started only if it may be what ended the engine.
        starts = task.starts - (answer.reason_code != _ENDED)
        self._resumable.append(await self._book.note(task, starts=starts))
        return False

    def _is_put_off(self, answer: Answer) -> bool:
        """Whether a task may still be done later, because its service cannot generate now."""
        stopping = self._service.state is State.DRAINING and answer.outcome == "dropped"
        return stopping or answer.reason_code in _PUT_OFF

    async def _pull(self, validator: Neuron) -> AssignedTask | None:
        """Asks a validator for a task. Whatever happens, a validator without one is free again."""
        hotkey, name = validator.hotkey, in_words(validator)
        try:
            return await contained(self._ask(validator, name))
        except NoAnswer as error:
            reason = str(error)
        except Exception as error:
            logger.opt(exception=error).error("a pull failed")
            reason = f"unexpected {type(error).__name__}"
        backoff = self._book.validators.unanswered(hotkey)
        logger.warning("{} gave no answer ({}); next pull in {:.0f} s", name, reason, backoff)
        self._note(validator, "no_answer", reason=reason, ask_again_s=backoff)
        await self._book.save()
        return None

    async def _ask(self, validator: Neuron, name: str) -> AssignedTask | None:
        hotkey, asked_at = validator.hotkey, self._clock()
        validators = self._book.validators
        answer = await self._calls.pull(validator)
        if answer.task is None:
            validators.without_task(hotkey, answer.cooldown_until)
            wait = validators.standing(hotkey).ask_after - self._clock()
            violations = answer.violations
            logger.info(
                "{} gave no task ({} violations); next pull in {:.0f} s", name, violations, wait
            )
            self._note(validator, "no_task", violations=violations, ask_again_s=wait)
            await self._book.save()
            return None
        task = answer.task
        assigned = AssignedTask(
            validator=hotkey,
            id=task.id,
            kind=task.type,
            prompt=task.prompt,
            threshold=answer.threshold,
            assigned_at=asked_at,
        )
        validators.assigned(hotkey)
        logger.info("{} assigned the {} task {}", name, log_safe(task.type), log_safe(task.id))
        self._note(validator, "task", task=task, violations=answer.violations)
        return await self._book.note(assigned)

    def _note(
        self,
        validator: Neuron,
        result: Literal["task", "no_task", "no_answer"],
        *,
        task: WireTask | None = None,
        violations: int | None = None,
        ask_again_s: float | None = None,
        reason: str | None = None,
    ) -> None:
        """Writes what came of a pull."""
        self._score_log.write(
            "pulled",
            caller=validator.hotkey,
            uid=validator.uid,
            result=result,
            task_id=None if task is None else log_safe(task.id),
            kind=None if task is None else log_safe(task.type),
            violations=violations,
            ask_again_s=ask_again_s,
            reason=reason,
        )

    async def _answer(self, task: AssignedTask, received_at: float) -> Answer:
        """Has a task generated; an unexpected error is an answer too, which ends the turn."""
        try:
            return await contained(self._generate(task, received_at))
        except Exception as error:
            logger.opt(exception=error).error("task {}: no answer", log_safe(task.id))
            return Answer("failed", "internal_error", f"unexpected {type(error).__name__}", task.id)

    async def _generate(self, task: AssignedTask, received_at: float) -> Answer:
        validator = self._chain.snapshot.neurons.get(task.validator)
        caller = Caller(task.validator)
        if validator is not None:
            caller = Caller(task.validator, validator.uid, validator.stake)
        try:
            parsed = await asyncio.to_thread(
                parse_task,
                kind=task.kind,
                task_id=task.id,
                prompt=task.prompt,
                limits=self._limits,
            )
        except TaskError as error:
            return self._service.reject(
                task_id=task.id,
                caller=caller,
                transport=NAME,
                received_at=received_at,
                reason=str(error),
            )
        request = Request(parsed, caller, NAME, received_at, threshold=task.threshold)
        return await self._service.handle(request)
