"""What a validator's answer to a submission means. Pure: values in, values out.

The protocol does not say most of it: a score of 0.0 stands for everything but an accepted result,
and only the cooldown shows whether the submission was judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from miner.request import Answer
from miner.scheduling.gate import Pair
from miner.transports.pull.calls import NoAnswer, SubmitAnswer
from miner.transports.pull.validators import Fate
from protocol.synapses import Feedback

FORBIDDEN = 403
"""Status of a validator's answer to a submission for which it has no task assigned."""


@dataclass(frozen=True)
class Outcome:
    """The end of a task.

    Attributes:
        fate: What became of it, in one word.
        words: The same as a phrase, for the log.
        cooldown_until: When the validator may be asked again, on this miner's clock; None if it did
            not say.
        feedback: The fields of the validator's feedback that go into the score log.
    """

    fate: Fate
    words: str
    cooldown_until: float | None = None
    feedback: Mapping[str, object] = field(default_factory=dict)


def pair_of(answer: Answer | None, outcome: Outcome, threshold: float) -> Pair | None:
    """Returns what the gate can learn from the end of a task; None where that is nothing.

    An empty result and an unknown fate say nothing of the score.

    Args:
        answer: The answer of the service.
        outcome: What became of it.
        threshold: The least score that the validator accepts.
    """
    if answer is None or answer.score is None or outcome.fate not in ("accepted", "refused"):
        return None
    score = outcome.feedback.get("task_fidelity_score")
    accepted = outcome.fate == "accepted"
    return Pair(
        predicted=answer.score.value,
        accepted=accepted,
        given=score if accepted and isinstance(score, float) else None,
        threshold=threshold,
        scorer=answer.score.scorer,
        probe=answer.gate is not None and answer.gate.probe,
    )


def judge_answer(
    reply: SubmitAnswer, *, threshold: float, empty: bool, repeated: bool, now: float
) -> Outcome:
    """Judges an answer.

    Args:
        reply: The validator's answer.
        threshold: The least score that it accepts.
        empty: Whether the result was empty.
        repeated: Whether the validator may have received and judged this result before.
        now: This miner's clock, in seconds since the epoch.
    """
    until, feedback = reply.cooldown_until, reply.feedback
    if feedback is None:
        words = "no feedback: the validator does not know this hotkey"
        return Outcome("unknown", words, until if until > now else None)
    score = feedback.task_fidelity_score
    if score > 0.0:
        words = f"accepted with a score of {score:.3f}"
        return Outcome("accepted", words, until, _fields(feedback, scored=True))
    if until <= now:
        words = "ignored by the validator: not the task that it waits for, or sent twice"
        return Outcome("unknown", words, None, _fields(feedback, scored=False))
    if empty:
        words = "skipped with an empty result"
        return Outcome("skipped", words, until, _fields(feedback, scored=False))
    if feedback.validation_failed:
        words = "not judged: the validation failed on the validator's side"
        return Outcome("failed", words, until, _fields(feedback, scored=False))
    if repeated:
        words = f"sent twice: the first may have counted, or the score is below {threshold:g}"
        return Outcome("unknown", words, until, _fields(feedback, scored=False))
    words = f"refused: the score is below {threshold:g}, or the signature was not accepted"
    return Outcome("refused", words, until, _fields(feedback, scored=True))


def judge_silence(error: NoAnswer) -> Outcome:
    """Judges a submission that was given up without an answer."""
    if error.status == FORBIDDEN:
        return Outcome(
            "unknown",
            "not taken: the validator has no such task any more; an earlier submission may have "
            f"counted, or it was restarted ({error})",
        )
    return Outcome("unknown", f"given up: {error}")


def _fields(feedback: Feedback, *, scored: bool) -> Mapping[str, object]:
    """Returns the fields for the score log, without a score that judges nothing."""
    values: dict[str, object] = dict(feedback)
    if not scored:
        values["task_fidelity_score"] = None
    return values
