"""What of an answer is worth submitting, where the miner is the client. Pure."""

from miner.request import Answer


def result_to_submit(answer: Answer | None) -> tuple[bytes, str]:
    """Returns the asset to submit, and why it is empty where it is.

    Args:
        answer: The answer of the service; None for a task that must not be started again.
    """
    if answer is None:
        return b"", "its generation ended the process before"
    if answer.outcome != "completed":
        return b"", f"{answer.outcome} ({answer.reason})"
    if answer.gate is not None and not answer.gate.passed:
        return b"", f"gated, {answer.gate.reason}"
    if answer.validity is not None and not answer.validity.passed:
        # It would score 0, which costs three times as much as an empty result.
        return b"", f"it would not pass the validator's checks ({answer.validity.summary()})"
    return answer.asset, ""
