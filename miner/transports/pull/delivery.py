"""The second half of a pulled task: its result is submitted until its fate is known."""

import asyncio
import itertools
from collections.abc import Awaitable, Callable

from loguru import logger

from miner.chain.metagraph import Chain, Neuron
from miner.request import Answer
from miner.scheduling.gate import Pair
from miner.score.log import ScoreLog
from miner.transports.groups import contained
from miner.transports.pull.book import PullBook
from miner.transports.pull.calls import NoAnswer, SubmitAnswer, ValidatorCalls
from miner.transports.pull.outcome import (
    Outcome,
    judge_answer,
    judge_silence,
    pair_of,
)
from miner.transports.pull.state import AssignedTask
from miner.transports.results import result_to_submit
from protocol.tasks import log_safe

SUBMIT_LIMIT_S = 300.0
"""Seconds from the first attempt to submit a result within which others may follow."""

RESUBMIT_S = 31.0
"""Seconds between two submissions. Validators ignore one within 30 s of the previous one."""

MAX_RETRY_S = 30.0
"""Longest pause between two attempts that did not reach the validator."""

Learn = Callable[[Pair], Awaitable[None]]

_FINAL = frozenset({401, 403, 404})
"""Statuses of refusals, which would only be repeated."""


class Delivery:
    """Submits results, settles the turns and writes the `feedback` lines.

    Args:
        book: What the transport remembers.
        chain: Lists the validators with their addresses.
        score_log: Receives one `feedback` line per task.
        calls: Calls the validators.
        learn: Is told what a validator made of a result with an own score.
    """

    def __init__(
        self,
        book: PullBook,
        chain: Chain,
        score_log: ScoreLog,
        calls: ValidatorCalls,
        learn: Learn | None = None,
    ) -> None:
        self._book = book
        self._chain = chain
        self._score_log = score_log
        self._calls = calls
        self._learn = learn
        self._clock = calls.clock

    async def deliver(self, task: AssignedTask, answer: Answer | None) -> None:
        """Submits a result, or an empty one where there is none worth submitting.

        Settles the task whatever happens, because its validator is busy until then. Only if it is
        cancelled, the task stays in the book for the next start.
        """
        try:
            outcome = await contained(self._outcome(task, answer))
        except NoAnswer as error:
            outcome = judge_silence(error)
        except Exception as error:
            logger.opt(exception=error).error("task {}: not delivered", log_safe(task.id))
            outcome = Outcome("unknown", f"given up: unexpected {type(error).__name__}")
        self._book.validators.settled(
            task.validator,
            outcome.fate,
            assigned_at=task.assigned_at,
            cooldown_until=outcome.cooldown_until,
        )
        try:
            self._report(task, outcome, answer)
            pair = pair_of(answer, outcome, task.threshold)
            if pair is not None and self._learn is not None:
                await self._learn(pair)
        finally:
            await self._book.remove(task)

    async def _outcome(self, task: AssignedTask, answer: Answer | None) -> Outcome:
        asset, reason = result_to_submit(answer)
        if not asset:
            logger.warning("task {}: an empty result, {}", log_safe(task.id), reason)
        reply, repeated = await self._submit(task, asset)
        return judge_answer(
            reply, threshold=task.threshold, empty=not asset, repeated=repeated, now=self._clock()
        )

    async def _submit(self, task: AssignedTask, asset: bytes) -> tuple[SubmitAnswer, bool]:
        """Submits until there is an answer. Waits 30 s if the last submission may have arrived.

        Returns:
            The answer, and whether an earlier submission may have arrived as well.

        Raises:
            NoAnswer: There is none, or a refusal that would only be repeated.
        """
        until = self._clock() + SUBMIT_LIMIT_S
        repeated = task.submitted_at is not None
        if task.submitted_at is not None:
            # By an earlier run, which ended before the answer came.
            await asyncio.sleep(max(0.0, task.submitted_at + RESUBMIT_S - self._clock()))
        for attempt in itertools.count(1):
            sent_at = self._clock()
            try:
                # Looked up each time: a reading of the chain may lack it, or have a new address.
                validator = self._chain.snapshot.neurons.get(task.validator)
                if validator is None:
                    raise NoAnswer("the validator has left the subnet", status=0, reached=False)
                await self._book.note(task, submitted_at=self._clock())
                return await self._calls.submit(validator, task, asset), repeated
            except NoAnswer as error:
                repeated = repeated or error.reached
                now = self._clock()
                again = sent_at + RESUBMIT_S if error.reached else now + _pause(attempt)
                wait = max(0.0, again - now)
                if error.status in _FINAL or now + wait > until:
                    raise
                logger.warning(
                    "validator {} did not answer to a result ({}); sent again in {:.0f} s",
                    task.validator,
                    error,
                    wait,
                )
            await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    def _report(self, task: AssignedTask, outcome: Outcome, answer: Answer | None) -> None:
        now = self._clock()
        turnaround = now - task.assigned_at
        wait = self._book.validators.standing(task.validator).ask_after - now
        report = logger.info if outcome.fate in ("accepted", "skipped") else logger.warning
        report(
            "task {}: {}; {:.1f} s after its assignment, next pull in {:.0f} s",
            log_safe(task.id),
            outcome.words,
            turnaround,
            wait,
        )
        validator = self._chain.snapshot.neurons.get(task.validator)
        score = None if answer is None else answer.score
        gate = None if answer is None else answer.gate
        self._score_log.write(
            "feedback",
            task_id=log_safe(task.id),
            caller=task.validator,
            uid=None if validator is None else validator.uid,
            fate=outcome.fate,
            threshold=task.threshold,
            predicted=None if score is None else score.value,
            scorer=None if score is None else score.scorer,
            gated=None if gate is None else not gate.passed,
            gate_probe=True if gate is not None and gate.probe else None,
            turnaround_s=turnaround,
            ask_again_s=wait,
            **outcome.feedback,
        )


def in_words(validator: Neuron) -> str:
    """Returns the name of a validator for log lines."""
    return f"validator {validator.hotkey} (uid {validator.uid})"


def _pause(attempt: int) -> float:
    return min(MAX_RETRY_S, 2.0 ** min(attempt, 10))
