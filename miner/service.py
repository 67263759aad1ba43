"""The one door to the generator, for every transport."""

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum

from loguru import logger

from generation.errors import EngineDead, GenerationError, GenerationStopped
from generation.pipeline import Generator, stages_for
from miner.in_hand import InHand
from miner.request import Answer, Caller, Outcome, Request
from miner.scheduling.estimator import StageEstimator
from miner.scheduling.timing_guard import TimingGuard
from miner.score.log import ScoreLog
from protocol.errors import TaskError

DRAIN_GRACE_S = 2.0
"""How long past its deadline a request may still run while the service drains."""


class State(StrEnum):
    """Where the service is in its life; it only ever moves down this list."""

    STARTING = "starting"
    WARMING_UP = "warming_up"
    READY = "ready"
    DRAINING = "draining"
    DEAD = "dead"


class MinerService:
    """Takes requests, lets the guard decide, runs the generator, logs and answers.

    Everything is called from one event loop.

    Args:
        generator: Makes the clouds.
        score_log: Receives one line per event.
        budget_s: Seconds from the receipt of a request to the arrival of its answer.
        margin_s: Part of that kept for delivering the answer.
        max_pending: Requests in hand at once; more are dropped.
        max_pending_per_caller: The same for one caller.
        clock: Monotonic clock, in seconds; the generator's deadlines are on it.
    """

    def __init__(
        self,
        generator: Generator,
        score_log: ScoreLog,
        *,
        budget_s: float,
        margin_s: float,
        max_pending: int = 32,
        max_pending_per_caller: int = 8,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generator = generator
        self._score_log = score_log
        self._budget_s = budget_s
        self._margin_s = margin_s
        self._max_pending = max_pending
        self._max_pending_per_caller = max_pending_per_caller
        self._clock = clock
        self._guard: TimingGuard | None = None
        self._in_hand: dict[str, InHand] = {}
        self._state = State.STARTING
        self.died = asyncio.Event()
        """Set once the engine can serve no more; the process should then end non-zero."""

    @property
    def state(self) -> State:
        """Where the service is in its life."""
        return self._state

    def pending(self, *, but: str) -> int:
        """How many requests are in hand that came another way than by the transport `but`."""
        return sum(in_hand.request.transport != but for in_hand in self._in_hand.values())

    async def start(self) -> None:
        """Loads the models and warms up; the service is ready afterwards.

        Raises:
            SetupError: The generator cannot start.
        """
        self._move(State.WARMING_UP)
        prior = await self._generator.start()
        self._score_log.write("warmed_up", timings=dict(prior))
        guard = TimingGuard(
            StageEstimator(prior, clock=self._clock),
            budget_s=self._budget_s,
            margin_s=self._margin_s,
            clock=self._clock,
        )
        predicted, budget = guard.predict("text", tuple(prior)), guard.budget()
        if predicted > budget:
            logger.warning(
                "every text task will be dropped: predicted to take {:.2f} s, it has {:.2f} s",
                predicted,
                budget,
            )
        self._guard = guard
        self._move(State.READY)

    async def handle(self, request: Request) -> Answer:
        """Answers a request, whatever becomes of it; logs exactly one `answered` line."""
        refusal = self._refusal(request)
        guard = self._guard
        if guard is None or refusal is not None:
            code, reason = refusal or ("not_ready", "the miner is still loading")
            return self._finish(request, Answer("dropped", code, reason, request.task.id))
        budget = guard.budget(request.allowed_s)
        deadline = request.received_at + budget
        stages = stages_for(request.task)
        decision = guard.admit(request.id, request.task.kind, stages, request.received_at, budget)
        if not decision.go:
            dropped = Answer(
                "dropped",
                decision.reason_code,
                decision.reason,
                request.task.id,
                predicted_s=decision.predicted_s,
                budget_s=budget,
            )
            return self._finish(request, dropped)
        in_hand = self._begin(request, guard, deadline, budget, decision.predicted_s)
        try:
            await asyncio.wait({in_hand.work})
        finally:
            in_hand.work.cancel()
            del self._in_hand[request.id]
            guard.forget(request.id, in_hand.timings)
        return self._finish(request, self._result(in_hand))

    def reject(
        self, *, task_id: str, caller: Caller, transport: str, received_at: float, reason: str
    ) -> Answer:
        """Answers a request whose task cannot be used; logs one `answered` line."""
        total = self._clock() - received_at
        answer = Answer("rejected", "bad_task", reason, task_id, total_s=total)
        self._score_log.answered(
            answer, request_id=uuid.uuid4().hex[:16], caller=caller, transport=transport, kind=None
        )
        return answer

    async def drain(self) -> None:
        """Accepts nothing more and returns once every request in hand has its answer.

        What is not finished by its deadline is given up between two stages and answered as
        dropped.
        """
        self._move(State.DRAINING)
        while self._in_hand:
            last = max(in_hand.deadline for in_hand in self._in_hand.values())
            left = last + DRAIN_GRACE_S - self._clock()
            works = {in_hand.work for in_hand in self._in_hand.values()}
            _, late = await asyncio.wait(works, timeout=max(0.0, left))
            for work in late:
                work.cancel()
            await asyncio.sleep(0)  # Lets the handlers take their results and leave.

    async def close(self) -> None:
        """Frees the generator."""
        await self._generator.close()

    def _begin(
        self,
        request: Request,
        guard: TimingGuard,
        deadline: float,
        budget_s: float,
        predicted_s: float,
    ) -> InHand:
        def gate(stage: str) -> None:
            decision = guard.start_stage(request.id, stage)
            in_hand.gate_code = decision.reason_code
            if not decision.go:
                raise GenerationStopped(stage, decision.reason)

        work = asyncio.create_task(
            self._generator.generate(request.task, deadline=deadline, gate=gate)
        )
        in_hand = InHand(request, deadline, budget_s, predicted_s, work)
        self._in_hand[request.id] = in_hand
        self._score_log.write(
            "admitted",
            request_id=request.id,
            task_id=request.task.log_id,
            transport=request.transport,
            kind=request.task.kind,
            caller=request.caller.hotkey,
            uid=request.caller.uid,
            predicted_s=predicted_s,
            budget_s=budget_s,
            pending=len(self._in_hand),
        )
        return in_hand

    def _refusal(self, request: Request) -> tuple[str, str] | None:
        if self._state is State.DRAINING:
            return "draining", "the miner is shutting down"
        if self._state is not State.READY:
            return "not_ready", f"the miner is not ready ({self._state})"
        if len(self._in_hand) >= self._max_pending:
            return "queue_full", f"{len(self._in_hand)} requests are in hand, which is the limit"
        hotkey = request.caller.hotkey
        own = sum(other.request.caller.hotkey == hotkey for other in self._in_hand.values())
        if own >= self._max_pending_per_caller:
            return "caller_limit", f"{own} requests of this caller are in hand, which is the limit"
        return None

    def _result(self, in_hand: InHand) -> Answer:
        outcome, code, reason = self._verdict(in_hand)
        work = in_hand.work
        error = None if work.cancelled() else work.exception()
        answer = Answer(
            outcome,
            code,
            reason,
            in_hand.request.task.id,
            stage=error.stage if isinstance(error, GenerationStopped) else None,
            predicted_s=in_hand.predicted_s,
            budget_s=in_hand.budget_s,
            timings=in_hand.timings,
        )
        if outcome != "completed":
            return answer
        made = work.result()
        cloud = made.cloud
        return replace(
            answer, gaussians=len(cloud), validity=made.validity, asset=made.spz, cloud=cloud
        )

    def _verdict(self, in_hand: InHand) -> tuple[Outcome, str, str]:
        if in_hand.work.cancelled():
            if self._state is State.DEAD:
                return "failed", "engine_dead", "the engine died during this request"
            return "dropped", "draining", "given up half way: the miner is shutting down"
        match in_hand.work.exception():
            case None:
                total = self._clock() - in_hand.request.received_at
                return "completed", "ok", f"done in {total:.2f} s of {in_hand.budget_s:.2f} s"
            case GenerationStopped() as stop:
                code = "deadline_passed" if in_hand.gate_code == "ok" else in_hand.gate_code
                return "dropped", code, str(stop)
            case TaskError() as error:
                return "rejected", "bad_task", str(error)
            case GenerationError() as error:
                return "failed", "generation_error", str(error)
            case EngineDead() as error:
                self._die(str(error))
                return "failed", "engine_dead", str(error)
            case error:
                logger.opt(exception=error).error("request {} failed", in_hand.request.id)
                return "failed", "internal_error", f"unexpected {type(error).__name__}"

    def _finish(self, request: Request, answer: Answer) -> Answer:
        answer = replace(answer, total_s=self._clock() - request.received_at)
        self._score_log.answered(
            answer,
            request_id=request.id,
            caller=request.caller,
            transport=request.transport,
            kind=request.task.kind,
        )
        return answer

    def _die(self, reason: str) -> None:
        self._move(State.DEAD, reason)
        self.died.set()
        for other in self._in_hand.values():
            other.work.cancel()

    def _move(self, state: State, reason: str | None = None) -> None:
        order = list(State)
        if order.index(state) <= order.index(self._state):
            return
        previous, self._state = self._state, state
        logger.info("state: {}", state)
        self._score_log.write("state_changed", state=state, previous=previous, reason=reason)
