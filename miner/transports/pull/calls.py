"""The two calls of the pull protocol. Bittensor's synapses and Dendrite go no further."""

import asyncio
import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from miner.chain.metagraph import Neuron
from miner.transports.pull.state import AssignedTask
from protocol.consent import encode_signature, signing_payload
from protocol.synapses import Feedback, PullTask, SubmitResults, WireTask

PULL_TIMEOUT_S = 12.0
SUBMIT_TIMEOUT_S = 300.0
"""A validator answers a submission after its validation."""

MAX_CLOCK_OFFSET_S = 12 * 3600.0
"""A clock of a validator that is further off is ignored."""

UNREADABLE = 422
"""Status of an answer that cannot be read; a Dendrite uses the same."""

_NOT_CONNECTED = "Service unavailable at "
"""The beginning of a Dendrite's message if there was no connection. Other failures come later."""


class NoAnswer(Exception):
    """A call without a usable answer.

    Attributes:
        status: HTTP status; 408 for a timeout, 503 without a connection.
        reached: Whether the validator may have received the request.
    """

    def __init__(self, reason: str, *, status: int, reached: bool) -> None:
        super().__init__(reason)
        self.status = status
        self.reached = reached


@dataclass(frozen=True)
class PullAnswer:
    """A validator's answer to a pull.

    Attributes:
        task: The task in its wire form, or None.
        threshold: Least score that the validator accepts.
        cooldown_until: When it may be asked again, on this miner's clock; 0 if it does not say.
        violations: This miner's pulls during a cooldown, as the validator counts them.
    """

    task: WireTask | None
    threshold: float
    cooldown_until: float
    violations: int


@dataclass(frozen=True)
class SubmitAnswer:
    """A validator's answer to a submission; see `PullAnswer`."""

    feedback: Feedback | None
    cooldown_until: float


class ValidatorCalls:
    """Calls validators with one Dendrite.

    Args:
        dendrite: Signs and sends requests; `close` closes its session.
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

    async def submit(self, validator: Neuron, task: AssignedTask, asset: bytes) -> SubmitAnswer:
        """Submits a result; an empty asset tells the validator that there is none.

        Raises:
            NoAnswer: As `pull`. Status 403: the validator has no such task any more.
        """
        sent_at = self._wall()
        # In a thread: an image task makes the signature cover megabytes.
        request = await asyncio.to_thread(self._signed, validator, task, asset, int(sent_at * 1e9))
        reply = await self._call(validator, request, SUBMIT_TIMEOUT_S)
        feedback = reply.feedback
        if feedback is not None:
            finite = {name: _finite(value) for name, value in feedback}
            feedback = feedback.model_copy(update=finite)
        return SubmitAnswer(feedback, _on_our_clock(reply, sent_at))

    async def close(self) -> None:
        """Closes the connections."""
        await self._dendrite.aclose_session()

    def _signed(
        self, validator: Neuron, task: AssignedTask, asset: bytes, submit_time: int
    ) -> SubmitResults:
        payload = signing_payload(
            submit_time=submit_time,
            prompt=task.prompt,
            validator_hotkey=validator.hotkey,
            miner_hotkey=self._keypair.ss58_address,
        )
        # As a string: the library takes bytes one by one, and holds the interpreter meanwhile.
        signature = self._keypair.sign(payload.decode())
        return SubmitResults(
            task_id=task.id,
            results=base64.b64encode(asset).decode("ascii"),
            submit_time=submit_time,
            signature=encode_signature(signature),
        )

    async def _call(self, validator: Neuron, request: Any, timeout_s: float) -> Any:
        try:
            # A Dendrite reads only ip, port and hotkey of its target.
            reply = await self._dendrite.call(
                validator, request, timeout=timeout_s, deserialize=False
            )
            status = int(reply.dendrite.status_code or 0)
        except Exception as error:
            # A Dendrite fails at bodies that remove its own fields, such as {"dendrite": null}.
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
    """Converts `cooldown_until` to this miner's clock.

    Every axon puts the time at which it received a request into its answer, as the nonce; the
    difference to `sent_at` is the offset of the clocks. Without the conversion, a validator whose
    clock is a minute late would count a violation at every pull.
    """
    until = _finite(reply.cooldown_until)
    nonce = getattr(reply.axon, "nonce", None)
    if not nonce or abs(nonce) >= 2**63:  # A number of hundreds of digits fits no float.
        return max(0.0, until)
    offset = nonce / 1e9 - sent_at
    if abs(offset) > MAX_CLOCK_OFFSET_S:
        offset = 0.0
    return max(0.0, until - offset) if until > 0 else 0.0


def _on_one_line(text: str) -> str:
    """Returns the beginning of a foreign text, without control characters."""
    printable = "".join(c if c.isprintable() else " " for c in text[:1000])
    return " ".join(printable.split())[:200]


def _finite(value: float) -> float:
    """Returns the value, or 0 for infinities, NaN and integers beyond 2**53."""
    return value if -(2**53) <= value <= 2**53 else 0
