"""The two calls of the pull protocol, as plain values: everything Bittensor ends here."""

import asyncio
import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from miner.chain.metagraph import Neuron
from miner.transports.pull.state import TaskInHand
from protocol.consent import encode_signature, signing_payload
from protocol.synapses import Feedback, PullTask, SubmitResults, WireTask

PULL_TIMEOUT_S = 12.0
SUBMIT_TIMEOUT_S = 300.0
"""Validation is part of a submission's answer."""

MAX_CLOCK_OFFSET_S = 12 * 3600.0
"""A validator's clock that is further off is not a clock."""

UNREADABLE = 422
"""The status that a Dendrite, too, gives an answer that it cannot read."""

_NOT_CONNECTED = "Service unavailable at "
"""How a Dendrite begins its message when there was no connection; other failures come later."""


class NoAnswer(Exception):
    """A call that brought nothing usable.

    Attributes:
        status: HTTP status, 408 for a timeout, 503 without a connection.
        reached: Whether the validator may have received the request.
    """

    def __init__(self, reason: str, *, status: int, reached: bool) -> None:
        super().__init__(reason)
        self.status = status
        self.reached = reached


@dataclass(frozen=True)
class PullAnswer:
    """What a validator said to a pull.

    Attributes:
        task: The task in its wire form, or None.
        threshold: Least score that the validator accepts.
        cooldown_until: When it may be asked again, on our clock; 0 if it does not say.
        violations: Pulls of ours during a cooldown, as it counts them.
    """

    task: WireTask | None
    threshold: float
    cooldown_until: float
    violations: int


@dataclass(frozen=True)
class SubmitAnswer:
    """What a validator said to a submission; see `PullAnswer`."""

    feedback: Feedback | None
    cooldown_until: float


class ValidatorCalls:
    """Calls validators with one Dendrite.

    Args:
        dendrite: Signs and sends; `close` closes its session.
        keypair: The miner's hotkey, which signs results.
        wall: Wall clock, in seconds since the epoch.
    """

    def __init__(
        self, dendrite: Any, keypair: Any, *, wall: Callable[[], float] = time.time
    ) -> None:
        self._dendrite = dendrite
        self._keypair = keypair
        self._wall = wall

    async def pull(self, validator: Neuron) -> PullAnswer:
        """Asks for a task.

        Raises:
            NoAnswer: The validator cannot be reached, or its answer cannot be read.
        """
        sent_at = self._wall()
        reply = await self._call(validator, PullTask(), PULL_TIMEOUT_S)
        return PullAnswer(
            task=reply.task,
            threshold=_finite(reply.validation_threshold),
            cooldown_until=_on_our_clock(reply, sent_at),
            violations=reply.cooldown_violations,
        )

    async def submit(self, validator: Neuron, task: TaskInHand, asset: bytes) -> SubmitAnswer:
        """Submits a result, or with an empty asset says that there is none.

        Raises:
            NoAnswer: As `pull`; with status 403 the validator does not know of the task any more.
        """
        results = await asyncio.to_thread(lambda: base64.b64encode(asset).decode("ascii"))
        sent_at = self._wall()
        submit_time = int(sent_at * 1e9)
        payload = signing_payload(
            submit_time=submit_time,
            prompt=task.prompt,
            validator_hotkey=validator.hotkey,
            miner_hotkey=self._keypair.ss58_address,
        )
        request = SubmitResults(
            task_id=task.id,
            results=results,
            submit_time=submit_time,
            signature=encode_signature(self._keypair.sign(payload)),
        )
        reply = await self._call(validator, request, SUBMIT_TIMEOUT_S)
        feedback = reply.feedback
        if feedback is not None:
            finite = {name: _finite(value) for name, value in feedback}
            feedback = feedback.model_copy(update=finite)
        return SubmitAnswer(feedback, _on_our_clock(reply, sent_at))

    async def close(self) -> None:
        """Closes the connections."""
        await self._dendrite.aclose_session()

    async def _call(self, validator: Neuron, request: Any, timeout_s: float) -> Any:
        try:
            # A Dendrite reads nothing but ip, port and hotkey of its target.
            reply = await self._dendrite.call(
                validator, request, timeout=timeout_s, deserialize=False
            )
            status = int(reply.dendrite.status_code or 0)
        except Exception as error:
            # It stumbles over bodies that take away its own fields, e.g. {"dendrite": null}.
            reason = f"the answer cannot be read: {type(error).__name__}"
            raise NoAnswer(reason, status=UNREADABLE, reached=True) from error
        if status != 200:
            message = _on_one_line(str(reply.dendrite.status_message))
            raise NoAnswer(
                f"status {status}: {message}",
                status=status,
                reached=not message.startswith(_NOT_CONNECTED),
            )
        return reply


def _on_our_clock(reply: Any, sent_at: float) -> float:
    """Brings `cooldown_until` onto our clock, by the time at which the validator got the request.

    Every axon notes that time as the nonce of its answer. Without this, a validator whose clock is
    a minute late would count a violation every time.
    """
    until = _finite(reply.cooldown_until)
    nonce = getattr(reply.axon, "nonce", None)
    if not nonce or abs(nonce) >= 2**63:  # One of hundreds of digits fits no float.
        return max(0.0, until)
    offset = nonce / 1e9 - sent_at
    if abs(offset) > MAX_CLOCK_OFFSET_S:
        offset = 0.0
    return max(0.0, until - offset) if until > 0 else 0.0


def _on_one_line(text: str) -> str:
    """The beginning of a stranger's words, without what a terminal would obey."""
    printable = "".join(c if c.isprintable() else " " for c in text[:1000])
    return " ".join(printable.split())[:200]


def _finite(value: float) -> float:
    """Returns 0 for what no sensible validator sends: infinities, NaN, integers beyond 2**53."""
    return value if -(2**53) <= value <= 2**53 else 0
