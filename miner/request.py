"""The values that pass between the transports and the service."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from generation.plan import Plan, Turn
from generation.scoring.validity import ValidityReport
from protocol.gaussians import GaussianCloud
from protocol.tasks import Task

Outcome = Literal["completed", "dropped", "rejected", "failed"]


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
        caller: For whom.
        transport: The way it came: "axon", "pull" or "http".
        received_at: Monotonic seconds at which its first byte was handled.
        allowed_s: Seconds from then on that the caller grants, None if it does not say.
        id: Ours, unique.
    """

    task: Task
    caller: Caller
    transport: str
    received_at: float
    allowed_s: float | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:16])


@dataclass(frozen=True)
class Answer:
    """What became of a request; a drop or a failure is an answer, not an exception.

    Attributes:
        outcome: "completed", "dropped", "rejected" or "failed".
        reason_code: One short word, listed in docs/score-log.md.
        reason: One sentence with the numbers.
        task_id: The caller's id of the task.
        stage: The stage that was not started, if it was dropped half way.
        predicted_s: Seconds predicted on arrival, if it came so far.
        budget_s: Seconds that it had, if it came so far.
        timings: Seconds per stage that ran.
        total_s: Seconds from receipt to this answer.
        gaussians: Size of the cloud, 0 unless completed.
        validity: What a validator's data checks will say of the cloud, if completed.
        asset: The SPZ file, empty unless completed.
        cloud: What `asset` holds, before SPZ has rounded it; None unless completed.
    """

    outcome: Outcome
    reason_code: str
    reason: str
    task_id: str
    stage: str | None = None
    predicted_s: float | None = None
    budget_s: float | None = None
    timings: Mapping[str, float] = field(default_factory=dict)
    total_s: float = 0.0
    gaussians: int = 0
    validity: ValidityReport | None = None
    asset: bytes = field(default=b"", repr=False)
    cloud: GaussianCloud | None = field(default=None, repr=False)

    @property
    def on_time(self) -> bool:
        """Whether it is completed and within its budget."""
        return self.outcome == "completed" and self.total_s <= (self.budget_s or 0.0)


@dataclass(eq=False)
class ActiveRequest:
    """A request from its admission to its answer. The scheduler owns it and changes it.

    Attributes:
        request: What was asked.
        arrival: Counts requests; decides between equal deadlines.
        deadline: Monotonic seconds by which generation must be done: the caller's limit or ours,
            less the time to deliver.
        budget_s: Seconds from the receipt to `deadline`.
        rung: Index in the ladder of the preset.
        plan: The way it takes at that rung.
        engine: Name of the engine that runs it; None while it waits.
        position: Index of the step in `plan` that runs or comes next.
        step_since: When that step started (monotonic seconds); None while it waits.
        predicted_s: Seconds predicted on arrival, to its answer.
        ran: Seconds of the steps that have run, by stage.
        stopping: Whether it has been given up and only waits for its running step to end.
    """

    request: Request
    arrival: int
    deadline: float
    budget_s: float
    rung: int
    plan: Plan
    engine: str | None = None
    position: int = 0
    step_since: float | None = None
    predicted_s: float = 0.0
    ran: dict[str, float] = field(default_factory=dict)
    stopping: bool = False

    @property
    def turn(self) -> Turn:
        """Its place in every lane."""
        return (self.deadline, self.arrival)
