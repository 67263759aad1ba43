"""The second half of a gateway's task: its result, or why there is none, until that is settled.

Only what the gateway may not have stored is sent again, each time with a new signature.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from loguru import logger

from miner.request import Answer
from miner.score.log import ScoreLog
from miner.transports.gateway.addresses import host_of
from miner.transports.gateway.book import GatewayBook
from miner.transports.gateway.calls import GatewayCalls, GatewayFault
from miner.transports.gateway.endings import Ending
from miner.transports.gateway.nodes import MinuteLimit, Nodes
from miner.transports.gateway.state import TakenTask
from miner.transports.gateway.troubles import MINUTE_S, Troubles
from miner.transports.groups import contained
from protocol.gateway import ADD_RESULT, BEING_PROCESSED, NOT_ASSIGNED, TASK_LIFE_S
from protocol.tasks import log_safe

FIRST_PAUSE_S, MAX_PAUSE_S = 1.0, 30.0
"""Seconds until a result that was not stored is sent again, doubled each time up to the second."""

LEFTOVER_LIMIT_S = 60.0
"""Seconds in which a task of an earlier run is reported, even if its life is over."""

_NOT_STORED = frozenset({0, 200, 500, 502, 503, 504})
"""Statuses after which the result may not be stored; 0 is no answer, and 200 one that cannot be
read."""


_ASSET_REFUSED = frozenset({400, 413})
"""Statuses after which a gateway still waits for the task, and can be told that nothing comes."""


@dataclass(frozen=True)
class _Settled:
    ending: Ending
    words: str
    attempts: int
    status: int = 200


class GatewayDelivery:
    """Sends results and failures, settles the tasks and writes the `delivered` lines.

    Args:
        book: The tasks that are not settled.
        calls: Calls the gateway.
        nodes: Learn which of them fail.
        score_log: Receives one `delivered` line per task.
        troubles: Says what is wrong, once.
        limit: Of the calls in a minute.
        learn: Called with the bytes and seconds of a result that was taken at once.
    """

    def __init__(
        self,
        book: GatewayBook,
        calls: GatewayCalls,
        nodes: Nodes,
        score_log: ScoreLog,
        troubles: Troubles,
        limit: MinuteLimit,
        learn: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._book = book
        self._calls = calls
        self._nodes = nodes
        self._score_log = score_log
        self._troubles = troubles
        self._limit = limit
        self._learn = learn
        self._clock = calls.clock

    async def deliver(
        self, task: TakenTask, asset: bytes, reason: str, answer: Answer | None = None
    ) -> None:
        """Sends a result, or a failure where there is none worth sending.

        Settles the task in every case. Only if it is cancelled, the task stays in the book for
        the next start.

        Args:
            task: The task.
            asset: The SPZ file; empty for a failure.
            reason: Of a failure; the gateway shows it to the client.
            answer: The answer of the service, if there was one.
        """
        try:
            settled = await contained(self._send(task, asset, reason))
            if asset and settled.status in _ASSET_REFUSED:
                asset, reason = b"", f"the gateway refused the result: {settled.words}"
                settled = await contained(self._send(task, asset, reason))
        except Exception as error:
            logger.opt(exception=error).error("task {}: not delivered", log_safe(task.id))
            settled = _Settled("lost", f"given up: unexpected {type(error).__name__}", 0)
        try:
            self._report(task, settled, asset, reason, answer)
        finally:
            await self._book.remove(task)

    async def _send(self, task: TakenTask, asset: bytes, reason: str) -> _Settled:
        """Sends until it is settled, at most until the task's life must be over."""
        until = max(task.taken_at + TASK_LIFE_S, self._clock() + LEFTOVER_LIMIT_S)
        attempts = pauses = 0
        arrived = signed_again = False
        while True:
            await asyncio.sleep(self._limit.reserve())
            began, attempts = self._clock(), attempts + 1
            try:
                await self._calls.add_result(
                    task, self._book.token(task), asset=asset or None, reason=reason
                )
            except GatewayFault as fault:
                if fault.status == 401 and NOT_ASSIGNED in fault.answer and arrived:
                    ending: Ending = "delivered" if asset else "reported"
                    return _Settled(ending, "an earlier attempt had arrived", attempts)
                if fault.is_stale and not signed_again:
                    signed_again = True
                    continue
                self._note(task.node, fault)
                wait = _pause(pauses)
                match fault.status:
                    case 429:
                        wait = fault.retry_after_s or MINUTE_S
                    case status if status in _NOT_STORED:
                        pauses += 1
                        arrived = arrived or fault.arrived
                    case _:
                        return _Settled(_ending_of(fault), str(fault), attempts, fault.status)
                if self._clock() + wait > until:
                    return _Settled("lost", f"given up: {fault}", attempts)
                await asyncio.sleep(wait)
                continue
            finally:
                self._troubles.clock(task.node, self._calls.clock_off(task.node))
            self._troubles.answered(task.node + ADD_RESULT)
            if not asset:
                return _Settled("reported", f"reported as failed: {reason}", attempts)
            if attempts == 1:
                self._learn(len(asset), self._clock() - began)
            return _Settled("delivered", f"delivered, {len(asset):,} bytes", attempts)

    def _note(self, address: str, fault: GatewayFault) -> None:
        """Notes a fault; a node that fails is not asked for more tasks."""
        if BEING_PROCESSED in fault.answer:
            return
        least_s = self._troubles.note(address + ADD_RESULT, fault)
        if _ending_of(fault) != "gone":
            self._nodes.failed(address, least_s=least_s)

    def _report(
        self,
        task: TakenTask,
        settled: _Settled,
        asset: bytes,
        reason: str,
        answer: Answer | None,
    ) -> None:
        turnaround = self._clock() - task.taken_at
        report = logger.info if settled.ending in ("delivered", "reported") else logger.warning
        report(
            "task {}: {}; {:.1f} s after it was taken",
            log_safe(task.id),
            settled.words,
            turnaround,
        )
        score = None if answer is None else answer.score
        self._score_log.write(
            "delivered",
            task_id=log_safe(task.id),
            node=host_of(task.node),
            kind=task.kind,
            ending=settled.ending,
            reason=reason or (settled.words if settled.ending != "delivered" else None),
            attempts=settled.attempts,
            turnaround_s=turnaround,
            bytes=len(asset) or None,
            predicted=None if score is None else score.value,
        )


def _ending_of(fault: GatewayFault) -> Ending:
    unassigned = fault.status == 401 and NOT_ASSIGNED in fault.answer
    return "gone" if unassigned or fault.status == 410 else "refused"


def _pause(number: int) -> float:
    return min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(number, 10))
