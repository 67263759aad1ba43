"""The two calls of the pull protocol. Bittensor's synapses and Dendrite go no further."""

import asyncio
import base64
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from miner.chain.metagraph import Neuron
from miner.transports.clocks import SteadyClock, parse_date
from miner.transports.pull.clocks import ValidatorClock
from miner.transports.pull.state import AssignedTask
from protocol.consent import encode_signature, signing_payload
from protocol.synapses import Feedback, PullTask, SubmitResults, WireTask

PULL_TIMEOUT_S = 12.0
NONCE_WINDOW_S = 2.0
"""Seconds that a clock may be ahead without making a request too old. Axons allow 4 s, and the
timeout."""

UNVERIFIED = 401
"""Status of an axon that does not take a signature, or the time of the request."""

SUBMIT_TIMEOUT_S = 300.0
"""A validator answers a submission after its validation."""


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
        dendrite: An `offline_dendrite`, which signs and sends requests.
        keypair: The miner's hotkey, which signs results.
        clock: This miner's clock.

    Attributes:
        clock: The clock of all times in the answers.
    """

    def __init__(self, dendrite: Any, keypair: Any, *, clock: SteadyClock | None = None) -> None:
        self.clock = clock or SteadyClock()
        self._dendrite = dendrite
        self._keypair = keypair
        self._clocks = defaultdict[str, ValidatorClock](
            lambda: ValidatorClock(self.clock.behind_wall)
        )

    async def pull(self, validator: Neuron) -> PullAnswer:
        """Asks for a task.

        Raises:
            NoAnswer: The validator cannot be reached, or its answer cannot be read.
        """
        answered = await self._call(validator, PullTask(), PULL_TIMEOUT_S)
        reply, theirs = answered.reply, self._clocks[validator.hotkey]
        until, violations = _finite(reply.cooldown_until), int(_finite(reply.cooldown_violations))
        if reply.task is None:
            theirs.refused(
                until,
                violations,
                answered.date,
                sent_at=answered.sent_at,
                answered_at=answered.answered_at,
            )
        else:
            theirs.granted(violations)
        return PullAnswer(
            task=reply.task,
            threshold=_finite(reply.validation_threshold),
            cooldown_until=theirs.on_ours(until, answered.answered_at),
            violations=violations,
        )

    async def submit(self, validator: Neuron, task: AssignedTask, asset: bytes) -> SubmitAnswer:
        """Submits a result; an empty asset tells the validator that there is none.

        Raises:
            NoAnswer: As `pull`. Status 403: the validator has no such task any more.
        """
        # In a thread: an image task makes the signature cover megabytes.
        submit_time = int(self.clock.wall() * 1e9)
        request = await asyncio.to_thread(self._signed, validator, task, asset, submit_time)
        answered = await self._call(validator, request, SUBMIT_TIMEOUT_S)
        reply, theirs = answered.reply, self._clocks[validator.hotkey]
        until, feedback = _finite(reply.cooldown_until), reply.feedback
        theirs.submitted(until)
        if feedback is not None:
            finite = {name: _finite(value) for name, value in feedback}
            feedback = feedback.model_copy(update=finite)
        return SubmitAnswer(feedback, theirs.on_ours(until, answered.answered_at))

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

    async def _call(self, validator: Neuron, request: Any, timeout_s: float) -> "_Answered":
        theirs, retried = self._clocks[validator.hotkey], False
        while True:
            sent_at = self.clock()
            # By its clock, our request may be too old to be taken.
            ahead_s = max(0.0, theirs.offset(sent_at) - self.clock.behind_wall())
            exchange = await self._dendrite.exchange(validator, request, timeout_s, ahead_s=ahead_s)
            answered_at = self.clock()
            date = parse_date(exchange.headers.get("date"), self.clock.wall())
            theirs.dated(date, sent_at=sent_at, answered_at=answered_at)
            learned_s = theirs.offset(answered_at) - self.clock.behind_wall() - ahead_s
            if retried or exchange.status != UNVERIFIED or learned_s < NONCE_WINDOW_S:
                break
            retried = True
        if exchange.status != 200:
            raise NoAnswer(exchange.fault(), status=exchange.status, reached=exchange.reached)
        return _Answered(exchange.reply, date, sent_at, answered_at)


@dataclass(frozen=True)
class _Answered:
    """A reply, the date of its answer, and the moments between which that was taken."""

    reply: Any
    date: float | None
    sent_at: float
    answered_at: float


def _finite(value: float) -> float:
    """Returns the value, or 0 for infinities, NaN and integers beyond 2**53."""
    return value if -(2**53) <= value <= 2**53 else 0
