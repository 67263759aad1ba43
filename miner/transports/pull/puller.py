"""The pull way: this miner asks validators for tasks and submits the results to them.

A task is pulled only when its generation can start at once, because its clock runs from the
assignment. What is in hand is written down before anything is done with it, so that it survives
whatever ends the process.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import bittensor as bt
from bittensor.utils import networking
from loguru import logger

from miner.chain.metagraph import Chain, Neuron
from miner.request import Answer, Caller, Request
from miner.score.log import ScoreLog
from miner.service import MinerService, State
from miner.transports.pull.book import PullBook
from miner.transports.pull.bounded_answer import BoundedResponse
from miner.transports.pull.calls import NoAnswer, ValidatorCalls
from miner.transports.pull.delivery import Delivery, in_words
from miner.transports.pull.state import PullStateFile, TaskInHand
from miner.transports.pull.validators import Selection
from protocol.errors import TaskError
from protocol.tasks import TaskLimits, log_safe, parse_task

NAME = "pull"
POLL_S = 0.25
"""How often it is looked whether there is room for a task and a validator to ask."""

MAX_STARTS = 2
"""A task whose generation ended the process so often is not started again."""

CLOSE_LIMIT_S = 8.0
"""How long submissions that are under way may take when the miner stops."""

_ENDED = "engine_dead"
_KEPT = frozenset({"draining", "not_ready", _ENDED})
"""Answers of a miner that stops: the task is better done after the next start."""


def offline_dendrite(key: Any) -> Any:
    """Builds a Dendrite for talking to strangers.

    It neither asks the internet for our address nor remembers every call, and reads no endless
    answers.

    It is to be used with `async with`, or closed with `aclose_session`.

    Args:
        key: A wallet or a keypair to sign with.
    """

    class OfflineDendrite(bt.Dendrite):  # type: ignore[misc]
        _session: aiohttp.ClientSession | None

        @property
        async def session(self) -> aiohttp.ClientSession:
            """The connections, made at the first call."""
            if self._session is None:
                self._session = aiohttp.ClientSession(response_class=BoundedResponse)
            return self._session

        def __del__(self) -> None:
            """Does nothing: the session has been closed, the loop may be gone."""

    bt.logging.off()  # It would print validators' bytes unescaped.
    ask_internet = networking.get_external_ip
    # An address that no miner has: for a target at its own address a dendrite calls 0.0.0.0.
    networking.get_external_ip = lambda: "0.0.0.0"
    try:
        dendrite = OfflineDendrite(key)
    finally:
        networking.get_external_ip = ask_internet
    dendrite.synapse_history = deque(maxlen=0)  # It would grow with every call.
    return dendrite


class PullTransport:
    """Pulls tasks, hands them to the service and has the results delivered.

    Args:
        service: Answers; everything here runs in its event loop.
        chain: Tells who the validators are and where they serve.
        score_log: Receives one `feedback` line per task.
        calls: The way to the validators; closed with this.
        selection: Whom to ask.
        state_file: Where the state is kept.
        workers: Tasks in generation at once.
        limits: What a task may be.
        wall: Wall clock, in seconds since the epoch.
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
        wall: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._chain = chain
        self._calls = calls
        self._selection = selection
        self._count = workers
        self._limits = limits or TaskLimits()
        self._wall = wall
        self._monotonic = monotonic
        self._book = PullBook(state_file, selection, wall=wall)
        self._resumable = deque(self._book.tasks)
        self._delivery = Delivery(
            self._book, chain, score_log, calls, wall=wall, monotonic=monotonic
        )
        self._active = 0
        self._workers: set[asyncio.Task[None]] = set()
        self._deliveries: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Starts to pull, as soon as the service is ready."""
        validators = sum(map(self._selection.eligible, self._chain.snapshot.neurons.values()))
        report = logger.info if validators else logger.warning
        report("pulling tasks; validators that serve them: {}", validators)
        for _ in range(self._count):
            _spawn(self._work(), self._workers)

    async def close(self) -> None:
        """Pulls no more, delivers what is made, and keeps the rest for the next start."""
        await _cancel(self._workers)
        if self._deliveries:
            await asyncio.wait(self._deliveries, timeout=CLOSE_LIMIT_S)
        await _cancel(self._deliveries)
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
                    logger.opt(exception=error).error("a turn of the pull way failed")
                finally:
                    self._active -= 1
            if not worked:
                await asyncio.sleep(POLL_S)

    def _has_room(self) -> bool:
        return self._active + self._service.pending(but=NAME) < self._count

    async def _turn(self) -> bool:
        """Brings a task from its assignment, or from an earlier run, to its delivery.

        Returns:
            Whether there was anything to do.
        """
        if self._resumable:
            # Its result is late but still worth a turn, so its budget begins anew.
            task, received_at = self._resumable.popleft(), self._monotonic()
            age = self._wall() - task.assigned_at
            logger.info("task {} of an earlier run, {:.0f} s old", log_safe(task.id), age)
        else:
            validator = self._book.validators.choose(self._chain.snapshot.neurons.values())
            if validator is None:
                return False
            received_at = self._monotonic()
            pulled = await self._pull(validator)
            if pulled is None:
                return True
            task = pulled
        answer = None
        if task.starts < MAX_STARTS:
            task = await self._book.note(task, starts=task.starts + 1)
            answer = await self._generate(task, received_at)
        if answer is not None and answer.reason_code in _KEPT:
            logger.info("task {} is kept for the next start", log_safe(task.id))
            # It counts as started only if it may be what ended the process.
            await self._book.note(task, starts=task.starts - (answer.reason_code != _ENDED))
        else:
            _spawn(self._delivery.deliver(task, answer), self._deliveries)
        return True

    async def _pull(self, validator: Neuron) -> TaskInHand | None:
        hotkey, name, asked_at = validator.hotkey, in_words(validator), self._wall()
        validators = self._book.validators
        try:
            answer = await self._calls.pull(validator)
        except NoAnswer as error:
            backoff = validators.unanswered(hotkey)
            logger.warning("{} gave no answer ({}); next pull in {:.0f} s", name, error, backoff)
            await self._book.save()
            return None
        if answer.task is None:
            validators.without_task(hotkey, answer.cooldown_until)
            logger.info(
                "{} gave no task ({} violations); next pull in {:.0f} s",
                name,
                answer.violations,
                validators.standing(hotkey).ask_after - self._wall(),
            )
            await self._book.save()
            return None
        validators.assigned(hotkey)
        task = answer.task
        logger.info("{} assigned the {} task {}", name, log_safe(task.type), log_safe(task.id))
        return TaskInHand(
            validator=hotkey,
            id=task.id,
            kind=task.type,
            prompt=task.prompt,
            threshold=answer.threshold,
            assigned_at=asked_at,
        )

    async def _generate(self, task: TaskInHand, received_at: float) -> Answer:
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
        return await self._service.handle(Request(parsed, caller, NAME, received_at))


def _spawn(work: Coroutine[Any, Any, None], group: set[asyncio.Task[None]]) -> None:
    task = asyncio.create_task(_logged(work))
    group.add(task)
    task.add_done_callback(group.discard)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception as error:
        logger.opt(exception=error).error("the delivery of a result failed")


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
