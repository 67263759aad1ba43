"""The second half of a pulled task: submitting the result until its fate is known."""

import asyncio
import itertools
from collections.abc import Callable

from loguru import logger

from miner.chain.metagraph import Chain, Neuron
from miner.request import Answer
from miner.score.log import ScoreLog
from miner.transports.pull.book import PullBook
from miner.transports.pull.calls import NoAnswer, SubmitAnswer, ValidatorCalls
from miner.transports.pull.outcome import (
    Outcome,
    judge_answer,
    judge_silence,
    result_to_submit,
)
from miner.transports.pull.state import TaskInHand
from protocol.tasks import log_safe

SUBMIT_LIMIT_S = 300.0
"""From the first attempt to submit a result until no further one is made."""

RESUBMIT_S = 31.0
"""Validators ignore a submission within 30 s of the previous one."""

MAX_RETRY_S = 30.0
"""The longest pause between attempts that did not reach the validator."""

_FINAL = frozenset({401, 403, 404})
"""Refusals: the same submission would only be refused again."""


class Delivery:
    """Submits results, settles the turns and writes the `feedback` lines.

    Args:
        book: The memory.
        chain: Tells where the validators serve.
        score_log: Receives one `feedback` line per task.
        calls: The way to the validators.
        wall: Wall clock, in seconds since the epoch.
        monotonic: Monotonic clock, in seconds.
    """

    def __init__(
        self,
        book: PullBook,
        chain: Chain,
        score_log: ScoreLog,
        calls: ValidatorCalls,
        *,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._book = book
        self._chain = chain
        self._score_log = score_log
        self._calls = calls
        self._wall = wall
        self._monotonic = monotonic

    async def deliver(self, task: TaskInHand, answer: Answer | None) -> None:
        """Submits a result, or an empty one where there is none worth submitting."""
        asset, reason = result_to_submit(answer)
        if not asset:
            logger.warning("task {}: an empty result, {}", log_safe(task.id), reason)
        try:
            reply, repeated = await self._submit(task, asset)
            outcome = judge_answer(
                reply,
                threshold=task.threshold,
                empty=not asset,
                repeated=repeated,
                now=self._wall(),
            )
        except NoAnswer as error:
            outcome = judge_silence(error)
        self._book.validators.settled(
            task.validator,
            outcome.fate,
            assigned_at=task.assigned_at,
            cooldown_until=outcome.cooldown_until,
        )
        self._report(task, outcome)
        await self._book.strike(task)

    async def _submit(self, task: TaskInHand, asset: bytes) -> tuple[SubmitAnswer, bool]:
        """Submits until there is an answer; what may have arrived is not repeated within 30 s.

        Returns:
            The answer, and whether an earlier submission may have arrived as well.

        Raises:
            NoAnswer: There is none, or one that the same words would only get again.
        """
        until = self._monotonic() + SUBMIT_LIMIT_S
        repeated = task.submitted_at is not None
        if task.submitted_at is not None:
            # By an earlier run, which did not live to see the answer.
            await asyncio.sleep(max(0.0, task.submitted_at + RESUBMIT_S - self._wall()))
        for attempt in itertools.count(1):
            sent_at = self._monotonic()
            try:
                # Looked up each time: a reading of the chain may lack it, or bring a new address.
                validator = self._chain.snapshot.neurons.get(task.validator)
                if validator is None:
                    raise NoAnswer("the validator has left the subnet", status=0, reached=False)
                await self._book.note(task, submitted_at=self._wall())
                return await self._calls.submit(validator, task, asset), repeated
            except NoAnswer as error:
                repeated = repeated or error.reached
                now = self._monotonic()
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

    def _report(self, task: TaskInHand, outcome: Outcome) -> None:
        now = self._wall()
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
        self._score_log.write(
            "feedback",
            task_id=log_safe(task.id),
            caller=task.validator,
            fate=outcome.fate,
            turnaround_s=turnaround,
            ask_again_s=wait,
            **outcome.feedback,
        )


def in_words(validator: Neuron) -> str:
    """Names a validator in a log line."""
    return f"validator {validator.hotkey} (uid {validator.uid})"


def _pause(attempt: int) -> float:
    return min(MAX_RETRY_S, 2.0 ** min(attempt, 10))
