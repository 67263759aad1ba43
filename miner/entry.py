"""An admitted request as the service holds it, and the answer that becomes of it."""

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from loguru import logger

from generation.result import Generation
from generation.stage import TriangleMesh
from generation.words import in_one_line, refusal, understand
from miner.request import ActiveRequest, Answer, Caller, Outcome, ReasonCode
from protocol.tasks import Task, TextTask, log_safe

Watch = Callable[[ActiveRequest], None]
"""Is called in the event loop once a request is admitted, and after each event of its steps."""


@dataclass(frozen=True)
class End:
    """What became of an admitted request."""

    outcome: Outcome
    code: ReasonCode
    reason: str
    stage: str | None = None
    generation: Generation | None = None


@dataclass(eq=False)
class Entry:
    """An admitted request with what the event loop needs for it."""

    active: ActiveRequest
    end: "asyncio.Future[End]"
    watch: Watch | None = None
    run: "asyncio.Task[None] | None" = None
    failed_stage: str | None = None

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


def answer_of(active: ActiveRequest, end: End) -> Answer:
    """Returns the answer of a request that has ended, without its total time."""
    answer = Answer(
        end.outcome,
        end.code,
        end.reason,
        active.request.task.id,
        stage=end.stage,
        rung=active.plan.rung.name,
        engine=active.engine,
        predicted_s=active.predicted_s,
        budget_s=active.budget_s,
        timings=dict(active.ran),
    )
    made = end.generation
    if made is None:
        return answer
    answer = replace(answer, timings=made.timings, picture=made.image, cutout=made.cutout)
    if isinstance(made.made, TriangleMesh):
        return replace(answer, mesh=made.made)
    return replace(
        answer,
        gaussians=len(made.cloud),
        validity=made.validity,
        asset=made.spz,
        cloud=made.cloud,
    )


def unknown_words(task: Task, vocabulary: Collection[str]) -> Answer | None:
    """Returns the refusal of a prompt without a word that the networks know; None for other tasks.

    Args:
        task: What is asked.
        vocabulary: The words that the networks know; empty if they are too many to list.
    """
    reason = refusal(task.prompt, vocabulary) if isinstance(task, TextTask) else None
    return None if reason is None else Answer("rejected", "unknown_words", reason, task.id)


def with_words(answer: Answer, task: Task, vocabulary: Collection[str]) -> Answer:
    """Adds to the answer of a text task which words the networks know, and the others.

    Args:
        answer: Of the task.
        task: What was asked.
        vocabulary: The words that the networks know; empty if they are too many to list.
    """
    if not vocabulary or not isinstance(task, TextTask):
        return answer
    words = understand(task.prompt, vocabulary)
    return replace(answer, understood=words.understood, ignored=words.ignored)


def stage_of(active: ActiveRequest) -> str | None:
    """Returns the stage that runs or comes next, None after the last one."""
    steps = active.plan.steps
    return steps[active.position].stage if active.position < len(steps) else None


def in_words(answer: Answer, *, caller: Caller, transport: str, kind: str | None) -> str:
    """Returns the line that tells an operator of an answer: who, what, how long, or why not."""
    who = log_safe(caller.hotkey)[:8] + ("" if caller.uid is None else f" (uid {caller.uid})")
    task = f"{kind} task" if kind is not None else "task"
    line = f"{log_safe(answer.task_id)}: {task} by {transport} from {who}"
    words = ""
    if answer.understood or answer.ignored:
        words = f"; {in_one_line(answer.understood, answer.ignored)}"
    if answer.outcome != "completed":
        return f"{line} {answer.outcome} after {answer.total_s:.2f} s: {answer.reason}{words}"
    stages = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in answer.timings.items())
    late = "" if answer.on_time else f", late: its budget was {answer.budget_s or 0.0:.2f} s"
    made = f"{answer.gaussians:,} Gaussians, {len(answer.asset):,} bytes SPZ"
    if answer.mesh is not None:
        made = f"a mesh of {len(answer.mesh.faces):,} triangles"
    return (
        f"{line} completed at {answer.rung}: {made}; {stages}; "
        f"Total time: {answer.total_s:.2f} s{late}{words}"
    )
