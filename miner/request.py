"""The values that pass between the transports and the service."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from generation.plan import Output, Plan, Step, Turn
from generation.scoring.score import Score
from generation.scoring.validity import ValidityReport
from generation.stage import TriangleMesh
from miner.scheduling.candidates import Candidate, Candidates
from miner.scheduling.gate import GateVerdict
from protocol.gaussians import GaussianCloud
from protocol.tasks import Task

Outcome = Literal["completed", "dropped", "rejected", "failed"]
ReasonCode = Literal[
    "ok",
    "below_threshold",
    "predicted_late",
    "predicted_late_stage",
    "deadline_passed",
    "caller_share",
    "caller_left",
    "not_ready",
    "draining",
    "bad_task",
    "unknown_words",
    "generation_error",
    "engine_suspect",
    "engine_dead",
    "engine_lost",
    "internal_error",
]
"""Why a request ended as it did; docs/score-log.md explains each."""

LEAST_EVIDENCE = 0.03
"""Share of a request's steps in one lane that has to run before its pace counts in full."""


@dataclass(frozen=True)
class Caller:
    """Who asks, as proved by a signature.

    Attributes:
        hotkey: SS58 address of the key that signed the request.
        uid: Its uid on the subnet, if it is registered.
        stake: Its stake as the chain counts it, 0 if it is not registered.
    """

    hotkey: str
    uid: int | None = None
    stake: float = 0.0


@dataclass(frozen=True)
class Request:
    """A task with a caller and a time limit.

    Attributes:
        task: What to make.
        caller: Who asks.
        transport: The way it came: "axon", "pull", "http" or "gateway".
        received_at: Monotonic seconds at which its first byte was handled.
        allowed_s: Seconds from then on that the caller grants, None if it does not say.
        id: Ours, unique.
        output: What the task becomes.
        threshold: The score from which on its validator accepts a result; None if it does not say.
        candidates: Pictures drawn for it at most; None leaves it to the miner. With 1, the same
            seed gives the same result.
    """

    task: Task
    caller: Caller
    transport: str
    received_at: float
    allowed_s: float | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])
    output: Output = "splats"
    threshold: float | None = None
    candidates: int | None = None


@dataclass(frozen=True)
class Answer:
    """What became of a request; a drop or a failure is an answer, not an exception.

    Attributes:
        outcome: "completed", "dropped", "rejected" or "failed".
        reason_code: One short word, listed in docs/score-log.md.
        reason: One sentence with the numbers.
        task_id: The caller's id of the task.
        stage: The stage that was not started, that ran out of time, or that failed.
        rung: Name of the quality level, if it was admitted.
        engine: Name of the engine that had it, if one had.
        lost_engine: Name of the engine that was lost with it before, if one was.
        predicted_s: Seconds from its receipt to its answer without further candidates, as expected
            on arrival, if it came so far; comparable with `total_s` less `candidates_s`.
        budget_s: Seconds that it had, if it came so far.
        timings: Seconds per stage that ran, without those of further candidates.
        total_s: Seconds from receipt to this answer.
        gaussians: Size of the cloud, 0 unless one was completed.
        validity: What a validator's data checks will say of the cloud, if one was completed.
        asset: The SPZ file, empty unless a cloud was completed.
        cloud: What `asset` holds, before SPZ has rounded it; None unless completed.
        mesh: The mesh, if the request asked for one and was completed.
        picture: (H, W, 3) uint8 RGB, drawn or given; None unless completed.
        cutout: (S, S, 4) uint8 RGBA, the object alone, framed; None unless completed.
        seed: Of the picture that it was made from, where the request or a candidate chose one.
        score: What a validator is expected to say of the cloud; None without a scorer.
        first_score: The same of the first candidate.
        candidates: How many clouds were scored.
        pictures: How many pictures were drawn or given for them.
        candidates_s: Seconds from the first cloud to the answer.
        gate: Whether the cloud is worth submitting; None without a score.
        understood: Words of a prompt that the networks know, where these are few enough to list;
            "car (cars)" for another form of one.
        ignored: Its other words.
    """

    outcome: Outcome
    reason_code: ReasonCode
    reason: str
    task_id: str
    stage: str | None = None
    rung: str | None = None
    engine: str | None = None
    lost_engine: str | None = None
    predicted_s: float | None = None
    budget_s: float | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    total_s: float = 0.0
    gaussians: int = 0
    validity: ValidityReport | None = None
    asset: bytes = field(default=b"", repr=False)
    cloud: GaussianCloud | None = field(default=None, repr=False)
    mesh: TriangleMesh | None = field(default=None, repr=False)
    picture: NDArray[np.uint8] | None = field(default=None, repr=False)
    cutout: NDArray[np.uint8] | None = field(default=None, repr=False)
    seed: int | None = None
    score: Score | None = None
    first_score: float | None = None
    candidates: int = 0
    pictures: int = 0
    candidates_s: float = 0.0
    gate: GateVerdict | None = None
    understood: tuple[str, ...] = field(default=(), repr=False)
    ignored: tuple[str, ...] = field(default=(), repr=False)

    @property
    def gated(self) -> bool:
        """Whether the cloud will probably not be accepted, so that nothing should be submitted."""
        return self.gate is not None and not self.gate.passed

    @property
    def on_time(self) -> bool:
        """Whether it is completed and within its budget."""
        return self.outcome == "completed" and self.total_s <= (self.budget_s or 0.0)


@dataclass(eq=False)
class ActiveRequest:
    """A request from its admission to its answer; the scheduler changes it.

    Attributes:
        request: What was asked.
        arrival: Counts requests; decides between equal deadlines.
        limit_at: Monotonic seconds by which the answer must have arrived.
        routes: Its steps at every rung of the ladder, best first.
        delivery_s: Seconds that its answer takes to the caller, by rung.
        rung: Index in the ladder.
        plan: The way it takes; without limits until it is dispatched.
        engine: Name of the engine that runs it; None while it waits.
        position: Index of the step in `plan` that runs or comes next.
        step_since: When that step started (monotonic seconds); None while it waits.
        predicted_s: Seconds from its receipt to its answer, as expected on arrival.
        lost_engine: Name of the engine that was lost while it had the request, which was then
            placed again.
        probe: Whether it was let in only to observe the machine.
        ran: Seconds of the steps that have run, by stage.
        block_ran: Seconds of the last steps that ran one after the other in one lane.
        block_predicted: What had been predicted for them.
        block_left: What is predicted for those that follow them in that lane.
        latest_start: Monotonic seconds at which it is given up if no engine has taken it.
        abandoned: Whether it has its answer already, and only its running step is still to end.
        head_start_s: By how much its place in every lane is ahead of its deadline's.
        candidates: Its candidates, once the first object is made.
        parent: The request whose candidates this makes; None if it is a request itself.
        group: Which of the parent's it makes: one that is lifted, or all that are drawn together.
    """

    request: Request
    arrival: int
    limit_at: float
    routes: tuple[tuple[Step, ...], ...]
    delivery_s: tuple[float, ...]
    rung: int
    plan: Plan
    engine: str | None = None
    position: int = 0
    step_since: float | None = None
    predicted_s: float = 0.0
    lost_engine: str | None = None
    probe: bool = False
    ran: dict[str, float] = field(default_factory=dict)
    block_ran: float = 0.0
    block_predicted: float = 0.0
    block_left: float = 0.0
    latest_start: float = inf
    abandoned: bool = False
    head_start_s: float = 0.0
    candidates: Candidates | None = None
    parent: "ActiveRequest | None" = None
    group: tuple[Candidate, ...] = ()

    def begin_again(self) -> None:
        """Forgets what it did on an engine that is lost."""
        self.lost_engine, self.engine = self.engine, None
        self.position, self.step_since = 0, None
        self.block_ran = self.block_predicted = self.block_left = 0.0
        self.ran.clear()

    @property
    def turn(self) -> Turn:
        """Its place in every lane."""
        return (self.limit_at - self.head_start_s, self.arrival)

    @property
    def pace(self) -> float:
        """How slow it has been in its present lane against the prediction, half believed.

        Until `LEAST_EVIDENCE` of its steps there has run, the rest of that share counts as run as
        predicted: a first step of 1 ms that a busy host delays by 80 ms says nothing about seconds
        of denoising.
        """
        least = LEAST_EVIDENCE * (self.block_predicted + self.block_left)
        assumed = max(0.0, least - self.block_predicted)
        predicted = self.block_predicted + assumed
        if predicted <= 0.0:
            return 1.0
        return 0.5 + 0.5 * (self.block_ran + assumed) / predicted

    @property
    def deadline(self) -> float:
        """Monotonic seconds by which generation must be done."""
        return self.limit_at - self.delivery_s[self.rung]

    @property
    def budget_s(self) -> float:
        """Seconds from the receipt to the deadline."""
        return self.deadline - self.request.received_at
