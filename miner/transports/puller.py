"""The pull way: this miner asks validators for tasks and submits the results to them.

A task is pulled only when its generation can start at once, because its clock runs from the
assignment. What is in hand is written down before anything is done with it, so that it survives
whatever ends the process.
"""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import bittensor as bt
from bittensor.utils import networking
from loguru import logger

from miner.messages import Answer, Caller, Request
from miner.pull_state import PullState, PullStateFile, TaskInHand
from miner.score_log import ScoreLog
from miner.service import MinerService, State
from miner.subnet import Chain, Neuron
from miner.transports.pull_calls import NoAnswer, SubmitAnswer, ValidatorCalls
from miner.transports.pull_outcome import Outcome, judge_answer, judge_silence
from miner.validators import Selection, Validators
from protocol.errors import TaskError
from protocol.tasks import TaskLimits, log_safe, parse_task

NAME = "pull"
POLL_S = 0.25
"""How often it is looked whether there is room for a task and a validator to ask."""

SUBMIT_LIMIT_S = 300.0
"""From the first attempt to submit a result until no further one is made."""

RESUBMIT_S = 31.0
"""A submission within 30 s of the previous one is ignored by validators."""

MAX_STARTS = 2
"""A task whose generation ended the process so often is not started again."""

CLOSE_LIMIT_S = 8.0
"""How long submissions that are under way may take when the miner stops."""

_KEPT = frozenset({"draining", "not_ready"})


def offline_dendrite(key: Any) -> Any:
    """Builds a Dendrite that neither asks the internet for our address nor remembers every call.

    It is to be used with `async with`, or closed with `aclose_session`.

    Args:
        key: A wallet or a keypair to sign with.
    """

    class OfflineDendrite(bt.Dendrite):  # type: ignore[misc]
        def __del__(self) -> None:
            """Does nothing: the session has been closed, the loop may be gone."""

    bt.logging.off()
    ask_internet = networking.get_external_ip
    # An address that no miner has: for a target at its own address a dendrite calls 0.0.0.0.
    networking.get_external_ip = lambda: "0.0.0.0"
    try:
        dendrite = OfflineDendrite(key)
    finally:
        networking.get_external_ip = ask_internet
    dendrite.synapse_history = deque(maxlen=0)  # It would grow by every call.
    return dendrite


class PullTransport:
    """Pulls tasks, hands them to the service and submits what becomes of them.

    Args:
        service: Answers; everything here runs in its event loop.
        chain: Tells who the validators are and where they serve.
        score_log: Receives one `feedback` line per task.
        calls: The way to the validators.
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
        self._score_log = score_log
        self._calls = calls
        self._selection = selection
        self._file = state_file
        self._count = workers
        self._limits = limits or TaskLimits()
        self._wall = wall
        self._monotonic = monotonic
        state = state_file.load()
        self._hotkey = state.hotkey
        self._validators = Validators(selection, clock=wall, standings=state.validators)
        self._tasks = {task.validator: task for task in state.tasks}
        self._resumable = deque(state.tasks)
        for task in state.tasks:
            self._validators.occupy(task.validator)
        self._active = 0
        self._saving = asyncio.Lock()
        self._workers: set[asyncio.Task[None]] = set()
        self._deliveries: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Starts to pull, as soon as the service is ready."""
        validators = sum(map(self._selection.eligible, self._chain.snapshot.neurons.values()))
        report = logger.info if validators else logger.warning
        report("pulling tasks from {} validators that serve them", validators)
        for _ in range(self._count):
            self._spawn(self._work(), self._workers)

    async def close(self) -> None:
        """Pulls no more, delivers what is made, and keeps the rest for the next start."""
        await _cancel(self._workers)
        if self._deliveries:
            await asyncio.wait(self._deliveries, timeout=CLOSE_LIMIT_S)
        await _cancel(self._deliveries)
        await self._save()
        await self._calls.close()

    async def _work(self) -> None:
        while True:
            if self._service.state is State.READY and self._has_room():
                self._active += 1
                try:
                    await self._turn()
                except Exception as error:
                    logger.opt(exception=error).error("a turn of the pull way failed")
                finally:
                    self._active -= 1
            await asyncio.sleep(POLL_S)

    def _has_room(self) -> bool:
        return self._active + self._service.pending(but=NAME) < self._count

    async def _turn(self) -> None:
        """Brings one task from its assignment, or from an earlier run, to its delivery."""
        if self._resumable:
            task = self._resumable.popleft()
            answer = await self._resume(task)
        else:
            validator = self._validators.choose(self._chain.snapshot.neurons.values())
            pulled = await self._pull(validator) if validator is not None else None
            if pulled is None:
                return
            task, started = pulled
            answer = await self._generate(task, received_at=started)
        if answer is not None and answer.reason_code in _KEPT:
            logger.info("task {} is kept for the next start", log_safe(task.id))
            await self._remember(task.model_copy(update={"starts": task.starts - 1}))
            return
        self._spawn(self._deliver(task, answer), self._deliveries)

    async def _pull(self, validator: Neuron) -> tuple[TaskInHand, float] | None:
        """Returns a task and the monotonic time from which its clock runs."""
        started, asked_at = self._monotonic(), self._wall()
        hotkey, name = validator.hotkey, _name(validator)
        try:
            answer = await self._calls.pull(validator)
        except NoAnswer as error:
            backoff = self._validators.unanswered(hotkey)
            logger.warning("{} gave no answer ({}); asked again in {:.0f} s", name, error, backoff)
            await self._save()
            return None
        if answer.task is None:
            self._validators.without_task(hotkey, answer.cooldown_until)
            wait = self._validators.standing(hotkey).ask_after - self._wall()
            logger.info(
                "{} gave no task ({} violations); asked again in {:.0f} s",
                name,
                answer.violations,
                wait,
            )
            await self._save()
            return None
        self._validators.assigned(hotkey)
        task = TaskInHand(
            validator=hotkey,
            id=answer.task.id,
            kind=answer.task.type,
            prompt=answer.task.prompt,
            threshold=answer.threshold,
            assigned_at=asked_at,
            starts=1,
        )
        await self._remember(task)
        logger.info("{} assigned the {} task {}", name, log_safe(task.kind), log_safe(task.id))
        return task, started

    async def _resume(self, task: TaskInHand) -> Answer | None:
        age = self._wall() - task.assigned_at
        logger.info("task {} of an earlier run, {:.0f} s old", log_safe(task.id), age)
        if task.starts >= MAX_STARTS:
            return None
        await self._remember(task.model_copy(update={"starts": task.starts + 1}))
        # A late result is still worth a turn, so the budget begins anew.
        return await self._generate(task, received_at=self._monotonic())

    async def _generate(self, task: TaskInHand, *, received_at: float) -> Answer:
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

    async def _deliver(self, task: TaskInHand, answer: Answer | None) -> None:
        """Submits a result, or an empty one, and settles the turn."""
        asset, reason = _result(answer)
        if not asset:
            logger.warning("task {}: an empty result, {}", log_safe(task.id), reason)
        reply = await self._submit(task, asset)
        now = self._wall()
        if isinstance(reply, SubmitAnswer):
            outcome = judge_answer(reply, threshold=task.threshold, empty=not asset, now=now)
        else:
            outcome = judge_silence(reply)
        self._validators.settled(
            task.validator,
            outcome.fate,
            assigned_at=task.assigned_at,
            cooldown_until=outcome.cooldown_until,
        )
        self._tasks.pop(task.validator, None)
        self._report(task, outcome, now)
        await self._save()

    async def _submit(self, task: TaskInHand, asset: bytes) -> SubmitAnswer | NoAnswer:
        """Submits until there is an answer; what may have arrived is not repeated within 30 s."""
        until = self._monotonic() + SUBMIT_LIMIT_S
        if task.submitted_at is not None:
            since = max(0.0, self._wall() - task.submitted_at)
            await asyncio.sleep(max(0.0, RESUBMIT_S - since))
        for attempt in itertools.count(1):
            validator = self._chain.snapshot.neurons.get(task.validator)
            if validator is None:
                return NoAnswer("it has left the subnet", status=0, reached=False)
            sent_at = self._monotonic()
            await self._remember(task.model_copy(update={"submitted_at": self._wall()}))
            try:
                return await self._calls.submit(validator, task, asset)
            except NoAnswer as error:
                elapsed = self._monotonic() - sent_at
                wait = max(0.0, RESUBMIT_S - elapsed) if error.reached else min(30.0, 2.0**attempt)
                # 403 and other refusals are answers: the same words would get the same.
                final = 400 <= error.status < 500 and error.status not in (408, 422, 429)
                if final or self._monotonic() + wait > until:
                    return error
                logger.warning(
                    "{} did not answer to a result ({}); sent again in {:.0f} s",
                    _name(validator),
                    error,
                    wait,
                )
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    def _report(self, task: TaskInHand, outcome: Outcome, now: float) -> None:
        turnaround = now - task.assigned_at
        wait = self._validators.standing(task.validator).ask_after - now
        report = logger.info if outcome.fate in ("accepted", "skipped") else logger.warning
        report(
            "task {}: {} after {:.1f} s; its validator is asked again in {:.0f} s",
            log_safe(task.id),
            outcome.words,
            turnaround,
            wait,
        )
        self._score_log.write(
            "feedback",
            task_id=log_safe(task.id),
            caller=task.validator,
            fate=outcome.fate,
            turnaround_s=turnaround,
            ask_again_s=wait,
            **outcome.feedback,
        )

    async def _remember(self, task: TaskInHand) -> None:
        self._tasks[task.validator] = task
        await self._save()

    async def _save(self) -> None:
        async with self._saving:
            state = PullState(
                hotkey=self._hotkey,
                validators=self._validators.export(),
                tasks=tuple(self._tasks.values()),
            )
            try:
                await asyncio.to_thread(self._file.save, state)
            except OSError as error:
                logger.error("the state is not written, a restart would lose it: {}", error)

    def _spawn(self, work: Coroutine[Any, Any, None], group: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        group.add(task)
        task.add_done_callback(group.discard)
