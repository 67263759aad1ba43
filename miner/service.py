"""Serves the requests of all transports: a thin async shell around the scheduler."""

import asyncio
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from loguru import logger

from generation.errors import EngineDead
from generation.plan import StepEvent
from miner.alarm import Alarm, Seldom
from miner.answering import AnswerDesk, OnAnswer
from miner.engines import EngineClient, EngineLost, RemoteEngine
from miner.engines.fleet import Fleet
from miner.engines.renewal import renew_engines
from miner.engines.warming_up import WarmUps
from miner.entry import (
    End,
    Entry,
    Watch,
    answer_of,
    end_of,
    refused_by,
    stage_of,
    unknown_words,
)
from miner.estimates_file import EstimatesFile
from miner.life import Life, State
from miner.request import ActiveRequest, Answer, Caller, Outcome, ReasonCode, Request
from miner.scheduling.candidates import CandidateLimits
from miner.scheduling.estimates import DeliveryTimes, Estimates
from miner.scheduling.gate import Gate
from miner.scheduling.scheduler import Dispatch, Scheduler
from miner.score.log import ScoreLog
from miner.snapshot import ServiceSnapshot, take_snapshot
from protocol.errors import TaskError

WARN_EVERY_S = 300.0
"""Least seconds between two warnings that the guard refuses everything."""


class MinerService:
    """Takes requests, lets the scheduler decide, has engines run plans, logs and answers.

    Everything is called from one event loop.

    Args:
        engines: What generates; all of one preset.
        score_log: Receives one line per event.
        budget_s: Seconds from the receipt of a request to the arrival of its answer.
        margin_s: Part of that kept for what cannot be measured here: the way over the network.
        estimates_file: Where what steps take is kept over restarts, if anywhere.
        sole_caller: Whether all requests come from one caller, who then may book everything.
        vocabulary: The words that the networks know, if they are few.
        candidates: How much of a request's time is spent on further candidates; None: nothing.
        gate: Decides whether results are worth submitting.
        on_answer: Are told of every answer; what they raise is logged and ignored.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        engines: Sequence[EngineClient],
        score_log: ScoreLog,
        *,
        budget_s: float,
        margin_s: float,
        estimates_file: EstimatesFile | None = None,
        sole_caller: bool = False,
        vocabulary: Collection[str] = (),
        candidates: CandidateLimits | None = None,
        gate: Gate | None = None,
        on_answer: Sequence[OnAnswer] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._score_log = score_log
        self._vocabulary = vocabulary
        self._clock = clock
        self.ladder, self.outputs = engines[0].ladder, engines[0].outputs
        """Quality levels, best first, and what tasks can become."""
        estimates = Estimates(clock)
        warm_ups = WarmUps(estimates, score_log, budget_s=budget_s, file=estimates_file)
        self._engines = Fleet(engines, warm_ups, score_log, clock)
        self._engines.on_ready = self._take_in
        self._engines.on_lost = lambda name, reason: self._lose(name, reason, None)
        self._engines.on_given_up = self._settle
        self._delivery = DeliveryTimes()
        self._scheduler = Scheduler(
            self.ladder,
            self._engines.route,
            estimates=estimates,
            delivery=self._delivery,
            budget_s=budget_s,
            margin_s=margin_s,
            clock=clock,
            sole_caller=sole_caller,
            candidates=candidates,
        )
        self._desk = AnswerDesk(
            score_log, gate or Gate(), on_answer, vocabulary=vocabulary, clock=clock
        )
        self._entries: dict[str, Entry] = {}
        self._life = Life(self._score_log)
        self._alarm = Alarm(self._proceed, clock)
        self._door = asyncio.Lock()
        self._warn = Seldom(WARN_EVERY_S, logger.warning, clock)
        self._cause = ""
        self.died = asyncio.Event()
        """Set once no engine can serve any more; the process should then end non-zero."""

    @property
    def state(self) -> State:
        """The state of the service."""
        return self._life.state

    @property
    def hung(self) -> bool:
        """Whether a thread is left that will not end: the process must end by `os._exit`."""
        return self._engines.hung

    def active(self, *, except_transport: str) -> int:
        """Returns how many requests without an object came by another transport than this one."""
        first = (entry.active.request for entry in self._entries.values() if entry.best is None)
        return sum(request.transport != except_transport for request in first)

    def ahead(self, request_id: str) -> int | None:
        """Returns how many requests get an object before this one; None if it is not admitted."""
        entry = self._entries.get(request_id)
        if entry is None:
            return None
        others = (other for other in self._entries.values() if other.best is None)
        return sum(other.active.turn < entry.active.turn for other in others)

    def snapshot(self) -> ServiceSnapshot:
        """Returns what the service looks like now; takes a forecast, so about a millisecond."""
        return take_snapshot(
            str(self.state),
            [entry.active for entry in self._entries.values()],
            self._engines.names,
            suspect=self._engines.suspect,
            backlog=self._scheduler.backlog(),
            predicted_wait_s=self._scheduler.predicted_wait(),
        )

    async def start(self) -> None:
        """Loads the engines and warms them up; returns once one of them can be used.

        Raises:
            SetupError: None of them can start.
        """
        self._life.move(State.WARMING_UP)
        await self._engines.start()
        self._life.move(State.READY)

    async def renew_engines(self) -> None:
        """Starts the engines that have processes of their own again, one after the other."""
        await renew_engines(
            self._engines,
            self._scheduler,
            ready=lambda: self._life.state is State.READY,
            proceed=self._proceed,
        )

    async def handle(self, request: Request, *, watch: Watch | None = None) -> Answer:
        """Returns the answer of a request, also if it fails; logs exactly one `answered` line.

        Cancelling it means that the caller has left: the request is given up, and its place is
        free at once.

        Args:
            request: What is asked.
            watch: Follows the request; what it raises is logged and ignored.
        """
        admitted: list[Entry] = []
        try:
            answer = await self._handle(request, admitted, watch)
        except asyncio.CancelledError:
            left = End("dropped", "caller_left", "the caller closed the connection")
            answer = Answer(left.outcome, left.code, left.reason, request.task.id)
            if admitted:
                answer = answer_of(admitted[0], left, self._clock())
            self._desk.hand_over(request, answer)
            raise
        except Exception as error:
            answer = Answer("failed", *self._unexpected(request, error), request.task.id)
        return self._desk.hand_over(request, answer)

    def reject(
        self, *, task_id: str, caller: Caller, transport: str, received_at: float, reason: str
    ) -> Answer:
        """Answers a request whose task cannot be used; logs one `answered` line."""
        total = self._clock() - received_at
        answer = Answer("rejected", "bad_task", reason, task_id, total_s=total)
        return self._desk.log(answer, uuid.uuid4().hex[:16], caller, transport, None)

    def delivered(self, transport: str, size: int, seconds: float) -> None:
        """Learns how long an answer of `size` bytes took from `handle` to its caller."""
        self._delivery.observe(transport, size, seconds)

    async def drain(self) -> None:
        """Accepts nothing more and returns once every admitted request has its answer.

        That is at the last of their deadlines, at the latest.
        """
        self._life.move(State.DRAINING)
        self._scheduler.stop_improving()
        self._proceed()
        while self._entries:
            await asyncio.wait({entry.end for entry in self._entries.values()})
            await asyncio.sleep(0)  # Lets the handlers take their results and leave.

    async def close(self) -> None:
        """Ends the engines' threads; waits only seconds for a step that hangs."""
        self._alarm.set(None)
        await self._engines.close()

    async def _handle(self, request: Request, admitted: list[Entry], watch: Watch | None) -> Answer:
        async with self._door:
            # One decision per loop iteration, so that a burst does not hold the event loop.
            await asyncio.sleep(0)
            entry = self._admit(request, watch)
        if isinstance(entry, Answer):
            return entry
        admitted.append(entry)
        try:
            self._proceed()
            entry.tell()
            end = await entry.outcome(self._clock)
        finally:
            del self._entries[request.id]
            entry.end.cancel()  # Draining waits for it.
            entry.cancel()
            self._scheduler.leave(entry.active)
            self._proceed()
        return self._desk.judge(request, answer_of(entry, end, self._clock()))

    def _admit(self, request: Request, watch: Watch | None) -> Answer | Entry:
        """Returns the answer of a request that is not admitted, or the entry of one that is."""
        task_id = request.task.id
        refusal = self._life.refusal()
        if refusal is not None:
            return Answer("dropped", *refusal, task_id)
        unknown = unknown_words(request.task, self._vocabulary)
        if unknown is not None:
            return unknown
        try:
            active, verdict = self._scheduler.arrive(request)
        except TaskError as error:
            return Answer("rejected", "bad_task", str(error), task_id)
        if verdict.rung is None:
            if not self._entries:  # No other request is the cause.
                self._warn("a request was dropped although the machine is idle", verdict.reason)
            return refused_by(verdict, active)
        if verdict.probe:
            self._warn("a request is let in to see what the machine takes now", verdict.reason)
        entry = Entry(active, asyncio.get_running_loop().create_future(), watch)
        self._entries[request.id] = entry
        self._score_log.admitted(active, pending=len(self._entries))
        return entry

    def _proceed(self) -> None:
        """Does what the scheduler says is due now, and sets the alarm for the next time."""
        if self._life.state is State.DEAD:
            return
        self._watch()
        due = self._scheduler.next()
        for given_up in due.given_up:
            active, code = given_up.active, given_up.reason_code
            outcome: Outcome = "failed" if code == "engine_lost" else "dropped"
            self._end(active, End(outcome, code, given_up.reason, stage_of(active)))
            entry = self._entries.get(active.request.id)
            if entry is not None:
                # Now: by the time that its handler leaves, its next step would have started.
                entry.cancel()
        for extra in due.taken_back:
            self._entry_of(extra).runs.pop(extra.request.id).cancel()
        for active in due.done:
            self._end(active, End("completed", "ok", ""))
        for dispatch in due.dispatches:
            active = dispatch.active
            entry = self._entry_of(active)
            run = self._run(entry, dispatch, self._engines[dispatch.engine])
            entry.runs[active.request.id] = asyncio.create_task(run)
        self._alarm.set(self._scheduler.wake_up_at())

    async def _run(self, entry: Entry, dispatch: Dispatch, engine: EngineClient) -> None:
        active = dispatch.active
        worths: list[float | None] = [None] * max(1, len(active.group))
        try:
            made = await engine.run(
                active.request.task,
                dispatch.plan,
                start=entry.start_of(active),
                seconds_left=active.deadline - self._clock(),
                turn=active.turn,
                on_event=partial(self._on_event, entry, active, dispatch.engine),
                on_made=entry.keep if active.parent is None else lambda made: None,
            )
        except EngineDead as error:
            blamed = None if isinstance(error, EngineLost) else entry
            self._lose(dispatch.engine, str(error), blamed)
            return
        except Exception as error:
            end = end_of(error, entry.failed_stage) or End(
                "failed", *self._unexpected(active.request, error), entry.failed_stage
            )
            if active.parent is None:
                self._end(active, end)
                return
            logger.debug("candidate {} is given up: {}", active.request.id, end.reason)
        else:
            if self._scheduler.counts(active):
                worths = entry.take(active, made, self._clock())
        entry.runs.pop(active.request.id, None)
        self._scheduler.made(active, worths)
        entry.tell()
        self._proceed()

    def _on_event(self, entry: Entry, active: ActiveRequest, engine: str, event: StepEvent) -> None:
        if active.engine != engine:
            return  # It was placed again: what its first engine still does counts no more.
        self._scheduler.on_event(active, event)
        if event.kind == "failed":
            entry.failed_stage = event.step.stage
        stage, task = event.step.stage, active.request.task.log_id
        logger.debug("{} {} for {} in {:.3f} s", stage, event.kind, task, event.ran_s)
        if event.kind == "started":
            self._alarm.set(self._scheduler.wake_up_at())  # The step has a limit from now on.
            entry.tell()
            return
        if event.fatal:
            # Also if the caller has left, and nobody awaits the run.
            self._lose(active.engine or "", event.error, entry)
        entry.tell()
        self._proceed()

    def _watch(self) -> None:
        """Notices steps past their limits, engines that come back, and those that do not."""
        overruns = self._scheduler.overruns()
        for name, reason in self._engines.watch(overruns).items():
            self._lose(name, reason, None, hangs=True)
        self._settle("; ".join(map(str, overruns)))

    def _take_in(self, engine: EngineClient) -> None:
        self._scheduler.add_engine(engine.name, engine.lanes, far=isinstance(engine, RemoteEngine))
        self._settle()
        self._proceed()

    def _settle(self, reason: str = "") -> None:
        """Moves to the state that follows from the engines that are left."""
        if self._life.state in (State.STARTING, State.WARMING_UP):
            return
        if self._engines.ended and self._life.state is not State.DEAD:
            self._life.move(State.DEAD, self._cause)
            self.died.set()
            for other in list(self._entries.values()):
                self._end(other.active, End("failed", "engine_dead", self._cause))
        elif self._life.state is State.READY and not self._engines.usable:
            self._life.move(State.SUSPECT, reason or "the engines are being started again")
        elif self._life.state is State.SUSPECT and self._engines.usable:
            self._life.move(State.READY)

    def _lose(self, name: str, reason: str, entry: Entry | None, *, hangs: bool = False) -> None:
        """Goes on without an engine, or dies with the last one.

        What it had waits for another engine once. A request whose step ended the engine does not,
        and none does if a step hangs: its time is over.
        """
        if not self._engines.lose(name, reason, hangs=hangs):
            return
        self._cause = f"the engine died: {reason}"
        end = End("failed", "engine_dead", self._cause)
        if entry is not None:
            self._end(entry.active, replace(end, stage=entry.failed_stage))
        for active in self._scheduler.remove_engine(name):
            held = self._entries.get(active.request.id)
            if held is None or held is entry or hangs or self._engines.ended or held.answerable:
                self._end(active, end)
            elif self._scheduler.place_again(active):
                held.cancel()
            else:
                lost = f"engine {name} was lost with it: {reason}"
                self._end(active, End("failed", "engine_lost", lost, held.failed_stage))
        self._settle()
        self._proceed()

    def _entry_of(self, active: ActiveRequest) -> Entry:
        return self._entries[(active.parent or active).request.id]

    def _end(self, active: ActiveRequest, end: End) -> None:
        entry = self._entries.get(active.request.id)
        if entry is not None and not entry.end.done():
            entry.end.set_result(entry.with_object(end, self._clock()))

    def _unexpected(self, request: Request, error: Exception) -> tuple[ReasonCode, str]:
        logger.opt(exception=error).error("request {} failed", request.id)
        return "internal_error", f"unexpected {type(error).__name__}"
