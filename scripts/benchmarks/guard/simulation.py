"""A discrete-event simulation of one engine: real scheduler, real lane order, virtual clock."""

import heapq
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from generation.lanes import LaneQueue
from generation.plan import Plan, Step, StepEvent, Turn
from miner.request import ActiveRequest, Request
from miner.scheduling.scheduler import SPZ_BYTES_PER_GAUSSIAN, Dispatch, Scheduler
from scripts.benchmarks.guard.scenarios import BYTES_PER_S, Truth

ENGINE = "local"


@dataclass
class Record:
    """What became of one request.

    Attributes:
        request: The request.
        accepted: Whether it was admitted.
        finished_at: When its asset was made, if ever.
        delivered_at: When that had reached the caller.
        ran_s: Seconds of the `gpu` lane that it used.
        stopped: Whether it was given up after its admission.
        rung: The rung that it was made at.
        reason_code: Why it was dropped.
        candidates: How many objects were made of it.
        first_at: When the first of them was made, if ever.
    """

    request: Request
    accepted: bool = False
    finished_at: float | None = None
    delivered_at: float | None = None
    ran_s: float = 0.0
    stopped: bool = False
    rung: int | None = None
    reason_code: str = ""
    candidates: int = 0
    first_at: float | None = None

    @property
    def limit_at(self) -> float:
        """When the answer must have arrived."""
        allowed = 30.0 if self.request.allowed_s is None else min(30.0, self.request.allowed_s)
        return self.request.received_at + allowed

    @property
    def on_time(self) -> bool:
        """Whether the asset reached the caller in time."""
        return self.delivered_at is not None and self.delivered_at <= self.limit_at

    @property
    def late(self) -> bool:
        """Whether its asset reached the caller after the limit, which the caller waited out."""
        return self.delivered_at is not None and self.delivered_at > self.limit_at

    @property
    def cut_off(self) -> bool:
        """Whether its time ran out while a step ran: it is answered as dropped at its limit."""
        return self.accepted and not self.stopped and self.delivered_at is None


@dataclass
class Run:
    """A request inside the simulated engine.

    Attributes:
        record: What becomes of it.
        plan: Its steps.
        turn: Its place in every lane.
        deadline: When it has no seconds left.
        on_event: Receives its events.
        on_end: Called once, with whether it was completed.
        may_start: Asked with the stage before each step.
        active: The request, or a candidate of it, where the scheduler has one.
        position: Index of the step that runs or comes next.
        cancelled: Whether it was given up; a step that runs goes on unobserved.
    """

    record: Record
    plan: Plan
    turn: Turn
    deadline: float
    on_event: Callable[[StepEvent], None]
    on_end: Callable[[bool], None]
    may_start: Callable[[str], bool] = lambda stage: True
    active: ActiveRequest | None = None
    position: int = 0
    cancelled: bool = False

    @property
    def key(self) -> str:
        """What tells its noise from that of others: a candidate has noise of its own."""
        return self.record.request.id if self.active is None else self.active.request.id


class Clock:
    """Virtual seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Returns the virtual seconds that have passed."""
        return self.now


class Machine:
    """The lanes of one engine on a virtual clock, with everything else that happens at a moment.

    Args:
        lanes: How many steps each lane runs at once.
        truth: How long they take.
        clock: Moved by this.
        hang_at: The first step that starts in `gpu` after this moment never ends.
    """

    def __init__(
        self, lanes: Mapping[str, int], truth: Truth, clock: Clock, hang_at: float | None
    ) -> None:
        self._free = dict(lanes)
        self._lanes = dict(lanes)
        self._queues: dict[str, LaneQueue[Run]] = {name: LaneQueue() for name in lanes}
        self._truth = truth
        self._clock = clock
        self._hang_at = hang_at
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = itertools.count()
        self.busy_s = 0.0

    def at(self, moment: float, action: Callable[[], None]) -> None:
        """Calls `action` at a moment."""
        heapq.heappush(self._events, (moment, next(self._sequence), action))

    def go(self) -> None:
        """Lets everything happen until nothing is left."""
        while self._events:
            moment, _, action = heapq.heappop(self._events)
            self._clock.now = max(self._clock.now, moment)
            action()

    def start(self, run: Run) -> None:
        """Queues the next step of a run."""
        step = run.plan.steps[run.position]
        self._queues[step.lane].push(run.turn, run)
        if run.plan.latest_start:
            # Work that waits leaves its lane at its latest start.
            expiry = run.deadline - run.plan.latest_start[run.position]
            position = run.position
            self.at(expiry, lambda: self._expire(run, position, step.lane))
        self._fill(step.lane)

    def restart(self) -> None:
        """Empties the lanes: the process was replaced."""
        self._free = dict(self._lanes)
        self._queues = {name: LaneQueue() for name in self._lanes}

    def _expire(self, run: Run, position: int, lane: str) -> None:
        if run.position == position and self._queues[lane].remove(run):
            self._end_early(run, position)

    def _end_early(self, run: Run, position: int) -> None:
        """Gives a run up, or leaves a step out that it can do without."""
        step = run.plan.steps[position]
        run.on_event(StepEvent("skipped", position, step))
        if step.optional and not run.cancelled:
            self._go_on(run)
            return
        run.cancelled = True
        run.record.stopped = True
        run.on_end(False)

    def _go_on(self, run: Run) -> None:
        run.position += 1
        if run.position == len(run.plan.steps):
            run.on_end(True)
        else:
            self.start(run)

    def _fill(self, lane: str) -> None:
        queue = self._queues[lane]
        while self._free[lane] > 0 and len(queue):
            run = queue.pop()
            if run is None or run.cancelled:
                continue
            now = self._clock.now
            if run.plan.latest_start and run.deadline - now < run.plan.latest_start[run.position]:
                self._end_early(run, run.position)
                continue
            if not run.may_start(run.plan.steps[run.position].stage):
                self._end_early(run, run.position)
                continue
            step = run.plan.steps[run.position]
            self._free[lane] -= 1
            run.on_event(StepEvent("started", run.position, step))
            if self._hang_at is not None and now >= self._hang_at and lane == "gpu":
                self._hang_at = None
                continue
            seconds = self._truth.seconds(run.key, step, now)
            self.at(now + seconds, partial(self._finish, run, step, seconds))

    def _finish(self, run: Run, step: Step, seconds: float) -> None:
        self._free[step.lane] = min(self._lanes[step.lane], self._free[step.lane] + 1)
        if step.lane == "gpu":
            self.busy_s += seconds
            run.record.ran_s += seconds
        run.on_event(StepEvent("finished", run.position, step, ran_s=seconds))
        if not run.cancelled:
            self._go_on(run)
        self._fill(step.lane)


@dataclass
class Outcome:
    """A finished simulation."""

    records: list[Record] = field(default_factory=list)
    busy_s: float = 0.0


def run_scheduler(
    make: Callable[[Clock], Scheduler],
    requests: Iterable[Request],
    lanes: Mapping[str, int],
    truth: Truth,
    *,
    hang_at: float | None = None,
    observe_delivery: Callable[[str, int, float], None] = lambda transport, size, seconds: None,
    watch: Callable[[Scheduler, Request, float], None] = lambda scheduler, request, now: None,
    worth: Callable[[ActiveRequest], float] | None = None,
    traffic: Callable[[Machine, Callable[[Request], None]], None] | None = None,
) -> Outcome:
    """Drives a scheduler through requests.

    Args:
        make: Builds the scheduler on the virtual clock; its engine is called `ENGINE`.
        requests: In the order of their arrival.
        lanes: Of the engine.
        truth: How long steps take.
        hang_at: When one step hangs; the engine comes back once the watchdog calls it lost.
        observe_delivery: Takes transport, bytes and seconds of each delivered answer.
        watch: Called after each request whose asset was made.
        worth: Scores the object, or rates the picture, that a request or a candidate has become;
            nothing is scored without it.
        traffic: Sends requests as it goes: is called before anything happens, with the machine and
            what takes a request now.
    """
    clock = Clock()
    machine = Machine(lanes, truth, clock, hang_at)
    scheduler = make(clock)
    records: dict[str, Record] = {}
    runs: dict[str, Run] = {}
    woken: set[float] = set()

    def proceed() -> None:
        for overrun in scheduler.overruns():
            if overrun.lost:
                for active in scheduler.remove_engine(ENGINE):
                    records[active.request.id].stopped = True
                machine.restart()
                scheduler.add_engine(ENGINE, lanes)
                break
        due = scheduler.next()
        for extra in due.taken_back:
            runs.pop(extra.request.id).cancelled = True
        for active in due.done:
            answer(active)
        for given_up in due.given_up:
            record = records[given_up.active.request.id]
            record.stopped, record.reason_code = True, given_up.reason_code
            run = runs.pop(given_up.active.request.id, None)
            if run is not None:
                run.cancelled = True
        for dispatch in due.dispatches:
            begin(dispatch)
        wake = scheduler.wake_up_at()
        if wake is not None and wake not in woken:
            woken.add(wake)
            machine.at(wake + 1e-6, proceed)

    def begin(dispatch: Dispatch) -> None:
        active = dispatch.active
        parent = active.parent or active
        record = records[parent.request.id]
        record.rung = parent.rung

        def on_event(event: StepEvent) -> None:
            scheduler.on_event(active, event)
            if event.kind == "finished":
                proceed()

        def on_end(completed: bool) -> None:
            runs.pop(active.request.id, None)
            if completed and active.parent is None:
                record.first_at = clock.now
            if completed or active.parent is not None:
                worths = [worth(active) if completed and worth is not None else None]
                scheduler.made(active, worths * max(1, len(active.group)))
            else:
                scheduler.leave(active)
            proceed()

        run = Run(
            record, dispatch.plan, active.turn, active.deadline, on_event, on_end, active=active
        )
        runs[active.request.id] = run
        machine.start(run)

        def at_limit() -> None:
            # The service answers at the limit; a step that runs then goes on unobserved.
            if active.request.id in runs:
                run.cancelled = True
                scheduler.leave(active)
                runs.pop(active.request.id, None)
                proceed()

        if active.parent is None:
            machine.at(active.limit_at, at_limit)

    def answer(active: ActiveRequest) -> None:
        record = records[active.request.id]
        record.candidates = active.candidates.made if active.candidates is not None else 1
        for run in [run for run in runs.values() if run.record is record]:
            run.cancelled = True
            del runs[run.key]
        complete(active, record)
        scheduler.leave(active)
        watch(scheduler, active.request, clock.now)

    def complete(active: ActiveRequest, record: Record) -> None:
        size = SPZ_BYTES_PER_GAUSSIAN * active.plan.rung.gaussians
        seconds = 0.05 + size / BYTES_PER_S
        record.finished_at = clock.now
        record.delivered_at = clock.now + seconds
        observe_delivery("axon", size, seconds)

    def arrive(request: Request) -> None:
        record = records[request.id] = Record(request)
        _, verdict = scheduler.arrive(request)
        record.accepted = verdict.rung is not None
        record.reason_code = verdict.reason_code
        proceed()

    for request in requests:
        machine.at(request.received_at, partial(arrive, request))
    if traffic is not None:
        traffic(machine, arrive)
    machine.go()
    return Outcome(list(records.values()), machine.busy_s)
