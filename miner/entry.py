"""An admitted request as the service holds it, and the answer that becomes of it."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from math import isfinite

from loguru import logger

from generation.errors import GenerationError, GenerationStopped
from generation.result import Generation
from generation.stage import Cutout, TriangleMesh
from generation.words import refusal
from miner.request import ActiveRequest, Answer, Outcome, ReasonCode
from miner.scheduling.guard import Verdict
from protocol.errors import TaskError
from protocol.tasks import Task, TextTask

Watch = Callable[[ActiveRequest], None]
"""Is called in the event loop once a request is admitted, and after each event of its steps."""


@dataclass(frozen=True)
class End:
    """What became of an admitted request."""

    outcome: Outcome
    code: ReasonCode
    reason: str
    stage: str | None = None


@dataclass(eq=False)
class Entry:
    """An admitted request with what the event loop needs for it.

    Attributes:
        active: The request as the scheduler has it.
        end: Is set to what became of it.
        watch: Follows it.
        runs: What engines run for it, by the id of the request or the candidate.
        failed_stage: The last stage that failed.
        unscored: The first object while its optional steps run.
        best: What the best candidate became; None until the first one is made.
        made_at: When the first one was made (monotonic seconds).
        drawn: The cut-outs of candidates that may still be lifted, by number.
    """

    active: ActiveRequest
    end: "asyncio.Future[End]"
    watch: Watch | None = None
    runs: "dict[str, asyncio.Task[None]]" = field(default_factory=dict)
    failed_stage: str | None = None
    unscored: Generation | None = None
    best: Generation | None = None
    made_at: float = 0.0
    drawn: dict[int, Cutout] = field(default_factory=dict)

    @property
    def answerable(self) -> Generation | None:
        """The object that the request can be answered with now; None if there is none."""
        return self.best or self.unscored

    async def outcome(self, clock: Callable[[], float]) -> End:
        """Waits for the end, at most until the answer would come too late.

        Args:
            clock: Monotonic clock, in seconds.
        """
        active = self.active
        for until in (active.deadline, active.limit_at):
            await asyncio.wait({self.end}, timeout=max(0.0, until - clock()))
            if self.end.done():
                return self.end.result()
            if self.answerable is not None:
                break
        budget = active.limit_at - active.request.received_at
        reason = f"not done after {budget:.2f} s"
        late = End("dropped", "deadline_passed", reason, stage_of(active))
        if active.lost_engine is not None:
            reason = f"engine {active.lost_engine} was lost, and then it was {reason}"
            late = End("failed", "engine_lost", reason, stage_of(active))
        return self.with_object(late, clock())

    def with_object(self, end: End, now: float) -> End:
        """Returns how the request ends: if it has an object, then with that, else as given."""
        if self.answerable is None:
            return end
        total = now - self.active.request.received_at
        done = f"done in {total:.2f} s of {self.active.budget_s:.2f} s"
        if self.best is None:
            done += f", without a score: {end.reason}"
        return End("completed", "ok", done)

    def keep(self, made: Generation) -> None:
        """Takes the first object before its optional steps."""
        self.unscored = made

    def tell(self) -> None:
        """Calls the watch, if there is one."""
        if self.watch is None:
            return
        try:
            self.watch(self.active)
        except Exception as error:
            logger.opt(exception=error).error(
                "the watch of request {} failed", self.active.request.id
            )

    def start_of(self, active: ActiveRequest) -> Cutout | None:
        """Returns what a plan of the request or of a candidate starts from, beside the task."""
        candidates = self.active.candidates
        if candidates is None or not active.group or active.group[0].state != "lifting":
            return None
        # What is lifted or left out now would otherwise take megabytes each until the answer.
        needed = {each.number for each in candidates.all if each.state in ("drawn", "lifting")}
        self.drawn = {number: cut for number, cut in self.drawn.items() if number in needed}
        return self.drawn[active.group[0].number]

    def take(self, active: ActiveRequest, made: Generation, now: float) -> list[float | None]:
        """Keeps what a plan made; returns its score, or the rating of each picture."""
        if isinstance(made.made, tuple):
            drawn = zip(active.group, made.made, strict=True)
            self.drawn |= {each.number: cut for each, cut in drawn if cut is not None}
            return [None if cut is None else cut.rating for cut in made.made]
        score = made.score.value if made.score is not None else None
        if self.best is None:
            self.best, self.made_at, self.unscored = made, now, None
        elif (score or 0.0) > (self.best.score.value if self.best.score is not None else 0.0):
            self.best = made
        return [score]

    def cancel(self) -> None:
        """Cancels everything that engines run for it."""
        for run in self.runs.values():
            run.cancel()


def end_of(error: Exception, stage: str | None) -> End | None:
    """Returns what an engine's error means for a request; None for one that nobody expects.

    Args:
        error: What a run of its plan raised.
        stage: The stage that failed.
    """
    match error:
        case GenerationStopped():
            return End("dropped", "predicted_late_stage", str(error), error.stage)
        case TaskError():
            return End("rejected", "bad_task", str(error), stage)
        case GenerationError():
            return End("failed", "generation_error", str(error), stage)
        case _:
            return None


def refused_by(verdict: Verdict, active: ActiveRequest) -> Answer:
    """Returns the answer of a request that the guard does not admit."""
    return Answer(
        "dropped",
        verdict.reason_code,
        verdict.reason,
        active.request.task.id,
        predicted_s=verdict.predicted_s if isfinite(verdict.predicted_s) else None,
        budget_s=active.budget_s,
    )


def answer_of(entry: Entry, end: End, now: float) -> Answer:
    """Returns the answer of a request that has ended, without its total time."""
    active, made = entry.active, entry.answerable
    answer = Answer(
        end.outcome,
        end.code,
        end.reason,
        active.request.task.id,
        stage=end.stage,
        rung=active.plan.rung.name,
        engine=active.engine,
        lost_engine=active.lost_engine,
        predicted_s=active.predicted_s,
        budget_s=active.budget_s,
        timings=dict(active.ran),
        seed=active.request.task.seed,
    )
    if end.outcome != "completed" or made is None:
        return answer
    answer = replace(answer, picture=made.image, cutout=made.cutout)
    if isinstance(made.made, TriangleMesh):
        return replace(answer, mesh=made.made)
    answer = replace(
        answer,
        gaussians=len(made.cloud),
        validity=made.validity,
        asset=made.spz,
        cloud=made.cloud,
        score=made.score,
    )
    candidates = active.candidates
    if made.score is None or candidates is None:
        return answer
    return replace(
        answer,
        seed=candidates.best.seed,
        first_score=candidates.first_score,
        candidates=candidates.made,
        pictures=candidates.drawn,
        candidates_s=now - entry.made_at,
    )


def unknown_words(task: Task, vocabulary: Collection[str]) -> Answer | None:
    """Returns the refusal of a prompt without a word that the networks know; None for other tasks.

    Args:
        task: What is asked.
        vocabulary: The words that the networks know; empty if they are too many to list.
    """
    reason = refusal(task.prompt, vocabulary) if isinstance(task, TextTask) else None
    return None if reason is None else Answer("rejected", "unknown_words", reason, task.id)


def stage_of(active: ActiveRequest) -> str | None:
    """Returns the stage that runs or comes next, None after the last one."""
    steps = active.plan.steps
    return steps[active.position].stage if active.position < len(steps) else None
