"""What happens to every answer before its caller has it: judged, logged, put into words."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from loguru import logger

from generation.words import in_one_line, understand
from miner.request import Answer, Caller, Request
from miner.scheduling.gate import Gate
from miner.score.log import ScoreLog
from protocol.tasks import Task, TextTask, log_safe

OnAnswer = Callable[[Request, Answer], None]
"""Is called in the event loop after the `answered` line of a request."""


class AnswerDesk:
    """Judges answers, writes their `answered` lines, and tells those who listen.

    Args:
        score_log: Receives the lines.
        gate: Decides whether results are worth submitting.
        on_answer: Are told of every answer; what they raise is logged and ignored.
        vocabulary: The words that the networks know, if they are few.
        clock: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        score_log: ScoreLog,
        gate: Gate,
        on_answer: Sequence[OnAnswer],
        *,
        vocabulary: Collection[str],
        clock: Callable[[], float],
    ) -> None:
        self._score_log = score_log
        self._gate = gate
        self._on_answer = tuple(on_answer)
        self._vocabulary = vocabulary
        self._clock = clock

    def judge(self, request: Request, answer: Answer) -> Answer:
        """Adds to a scored answer whether it is worth submitting."""
        score = answer.score
        if score is None:
            return answer
        # A validator that states its threshold also says what it gave.
        feedback = request.threshold is not None
        verdict = self._gate.judge(score.value, score.scorer, request.threshold, feedback=feedback)
        answer = replace(answer, gate=verdict)
        if verdict.passed:
            return answer
        return replace(answer, reason_code="below_threshold", reason=verdict.reason)

    def hand_over(self, request: Request, answer: Answer) -> Answer:
        """Completes the answer of a request, logs it, and tells the listeners."""
        answer = replace(answer, total_s=self._clock() - request.received_at)
        answer = with_words(answer, request.task, self._vocabulary)
        self.log(answer, request.id, request.caller, request.transport, request.task.kind)
        for tell in self._on_answer:
            try:
                tell(request, answer)
            except Exception as error:
                logger.opt(exception=error).error("a listener failed on request {}", request.id)
        return answer

    def log(
        self, answer: Answer, request_id: str, caller: Caller, transport: str, kind: str | None
    ) -> Answer:
        """Writes the one `answered` line, and its words to the program's own log."""
        self._score_log.answered(
            answer, request_id=request_id, caller=caller, transport=transport, kind=kind
        )
        logger.info("{}", in_words(answer, caller=caller, transport=transport, kind=kind))
        return answer


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
        f"Total time: {answer.total_s:.2f} s{late}{_score_in_words(answer)}{words}"
    )


def _score_in_words(answer: Answer) -> str:
    score = answer.score
    if score is None:
        return ""
    line = f"; own {score.in_words}"
    if answer.candidates > 1:
        line += (
            f", at first {answer.first_score or 0.0:.3f}; {answer.candidates} objects of "
            f"{answer.pictures} pictures in {answer.candidates_s:.2f} s"
        )
    return f"{line}; gated: {answer.reason}" if answer.gated else line
