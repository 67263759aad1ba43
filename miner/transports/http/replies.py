"""Answers of the HTTP transport: JSON, and why there is no object."""

import json
import math
from collections.abc import Mapping
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from generation.words import for_log
from miner.request import Answer
from miner.transports.refusals import RETRY_AFTER_S
from protocol.tasks import log_safe

# A completed one is withheld: like a rejected one, it is another request that would get a file.
_STATUS = {"completed": 422, "dropped": 503, "rejected": 422, "failed": 500}

_WITHHELD = (
    "the same request gives the same object again: ask with another seed, with more candidates, "
    "or with another prompt or picture"
)


def json_reply(status: int, content: object, headers: Mapping[str, str] | None = None) -> Response:
    """Returns an answer in JSON."""
    return Response(json.dumps(content), status, headers, "application/json")


def without_object(answer: Answer) -> Response:
    """Returns the answer to a request that ended without an object to send.

    A dropped one says when to try again. One that is withheld says what to change instead, because
    its seeds are the same each time.
    """
    status, withheld = _STATUS[answer.outcome], answer.outcome == "completed"
    content = {
        "message": f"{answer.reason}; {_WITHHELD}" if withheld else answer.reason,
        "task_id": answer.task_id,
        "outcome": answer.outcome,
        "reason_code": answer.reason_code,
        "stage": answer.stage,
        "predicted_s": answer.predicted_s,
        "budget_s": answer.budget_s,
    }
    headers = {"X-Task-Id": log_safe(answer.task_id), **answer_headers(answer)}
    if status == 503:
        headers["Retry-After"] = str(_retry_after(answer))
    return json_reply(
        status, {name: value for name, value in content.items() if value is not None}, headers
    )


def answer_headers(answer: Answer) -> dict[str, str]:
    """Returns the headers that tell of an answer: its words, its score, candidates and the gate.

    A header is left out where it would be empty.
    """
    return _word_headers(answer) | _score_headers(answer)


def _score_headers(answer: Answer) -> dict[str, str]:
    headers = {} if answer.seed is None else {"X-Seed": str(answer.seed)}
    score = answer.score
    if score is None:
        return headers
    headers |= {
        "X-Score": f"{score.value:.4f}",
        "X-Score-Parts": ", ".join(f"{name}={value:.4f}" for name, value in score.parts.items()),
        "X-Scorer": score.scorer,
        "X-Candidates": str(answer.candidates),
    }
    if answer.first_score is not None:
        headers["X-First-Score"] = f"{answer.first_score:.4f}"
    if answer.gate is not None:
        headers["X-Gated"] = "yes" if answer.gated else "no"
    return {name: value for name, value in headers.items() if value}


def _word_headers(answer: Answer) -> dict[str, str]:
    """The words of a prompt that the networks know, and the others.

    Letters beyond ASCII are percent-encoded UTF-8.
    """
    both = {"X-Understood-Words": answer.understood, "X-Ignored-Words": answer.ignored}
    return {
        name: ", ".join(quote(word, safe=" ()") for word in for_log(words))
        for name, words in both.items()
        if words
    }


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answers an `HTTPException` in JSON, as Starlette's handler of exceptions."""
    assert isinstance(error, HTTPException)
    return json_reply(error.status_code, {"message": error.detail}, error.headers)


def _retry_after(answer: Answer) -> int:
    """Seconds, rounded up, after which the present queue would have left this request its time.

    That is known only for a request that was predicted late on arrival. Others (the miner loads or
    drains, a stage hangs, a step took longer than predicted) get a fixed time.
    """
    if answer.predicted_s is None or answer.budget_s is None:
        return RETRY_AFTER_S
    late_s = answer.predicted_s - answer.budget_s
    return math.ceil(late_s) if late_s > 0.0 else RETRY_AFTER_S
