"""The gateway transport: this miner takes tasks from a gateway and delivers the results to it.

A task is taken only when its generation can start at once, since its life has begun with the
client's submission. It is saved before anything is done with it: a gateway hands a task to a hotkey
once, so one that is forgotten keeps its client waiting until it is timed out.
"""

import asyncio
import time
from collections.abc import Callable

from loguru import logger

from miner.life import State
from miner.request import Answer, Caller, Request
from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.transports.gateway.addresses import host_of
from miner.transports.gateway.book import GatewayBook
from miner.transports.gateway.calls import GatewayCalls, GatewayFault
from miner.transports.gateway.delivery import GatewayDelivery
from miner.transports.gateway.nodes import MinuteLimit, Nodes
from miner.transports.gateway.state import GatewayStateFile, TakenTask
from miner.transports.gateway.troubles import Troubles
from miner.transports.groups import Group, cancel, contained, spawn
from miner.transports.results import result_to_submit
from protocol.errors import TaskError
from protocol.gateway import GET_TASKS, GatewayTask, TasksAnswer
from protocol.tasks import log_safe

NAME = "gateway"
CALLER = Caller("gateway")
"""A gateway signs nothing, and does not say whose tasks it hands out."""

LOOK_S = 0.5
"""Seconds between two checks for a place that another transport has left."""

MAX_WAIT_S = 5.0
"""Seconds between two checks for anything else that is to be done."""

MAX_UNDELIVERED = 16
"""Results that wait for a gateway; beyond them no task is taken."""

CLOSE_LIMIT_S = 8.0
"""Seconds that calls may still take when the miner stops."""

_RESTARTED = "the worker was restarted before the result was delivered"
_SURPLUS = "the worker has no free place: it got more tasks than it asked for"


class GatewayTransport:
    """Takes tasks, has the service answer them, and has results and failures delivered.

    Args:
        service: Answers requests, in the event loop of this transport.
        score_log: Receives one `taken` and one `delivered` line per task.
        calls: Calls the gateway; closed with this transport.
        nodes: Which node to ask, and when.
        state_file: Keeps the tasks that are not settled over a restart.
        workers: Tasks in generation at once.
        budget_s: Seconds from the answer that brought a task to the delivery of its result.
        candidates: Pictures drawn for a text at most.
        results_per_minute: Most results and failures in any 60 s.
        monotonic: The clock of the service.

    Raises:
        SetupError: The state cannot be read or written.
    """

    name = NAME

    def __init__(
        self,
        service: MinerService,
        score_log: ScoreLog,
        *,
        calls: GatewayCalls,
        nodes: Nodes,
        state_file: GatewayStateFile,
        workers: int = 1,
        budget_s: float = 30.0,
        candidates: int = 1,
        results_per_minute: int = 100,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._service = service
        self._score_log = score_log
        self._calls = calls
        self._nodes = nodes
        self._places = workers
        self._budget_s = budget_s
        self._candidates = candidates
        self._clock = calls.clock
        self._monotonic = monotonic
        self._book = GatewayBook(state_file, clock=self._clock, problems=score_log.problems)
        self._troubles = Troubles(calls.hotkey)
        self._delivery = GatewayDelivery(
            self._book,
            calls,
            nodes,
            score_log,
            self._troubles,
            MinuteLimit(results_per_minute, self._clock),
            lambda size, seconds: service.delivered(NAME, size, seconds),
        )
        self._making = 0
        self._freed = asyncio.Event()
        self._loops: Group = set()
        self._turns: Group = set()
        self._deliveries: Group = set()

    async def serve(self) -> None:
        """Reports the tasks of an earlier run, and asks for others once the service is ready."""
        hosts = ", ".join(map(host_of, self._nodes.addresses))
        logger.info("taking tasks from {}, as worker {!r}", hosts, self._calls.worker_id)
        for task in self._book.leftovers:
            self._deliver(task, b"", _RESTARTED)
        spawn(self._ask_on(), self._loops)

    async def close(self) -> None:
        """Asks no more, delivers what is ready, and keeps the rest to be reported."""
        await cancel(self._loops)
        end = asyncio.get_running_loop().time() + CLOSE_LIMIT_S
        # A call that is under way may bring tasks, which a draining service refuses at once.
        for group in (self._turns, self._deliveries):
            while group and (left := end - asyncio.get_running_loop().time()) > 0.0:
                await asyncio.wait(group, timeout=left)
        await cancel(self._turns)
        await cancel(self._deliveries)
        await self._calls.close()

    async def _ask_on(self) -> None:
        while True:
            try:
                await self._book.retry()
                await self._ask_once()
            except Exception as error:
                logger.opt(exception=error).error("a turn of the gateway transport failed")
                await asyncio.sleep(self._nodes.wait() or LOOK_S)

    async def _ask_once(self) -> None:
        """Asks a node if there is a free place and one may be asked; else waits a little."""
        free = self._free()
        address = self._nodes.choose() if free > 0 else None
        if address is not None:
            # Cancelling a call could lose the tasks that its answer brings.
            await asyncio.shield(spawn(self._take(address, free), self._turns))
            return
        self._freed.clear()
        wait = LOOK_S if free <= 0 else min(MAX_WAIT_S, max(0.001, self._nodes.wait()))
        try:
            async with asyncio.timeout(wait):
                await self._freed.wait()
        except TimeoutError:
            pass

    def _free(self) -> int:
        """How many tasks could be started now."""
        if self._service.state is not State.READY or len(self._deliveries) >= MAX_UNDELIVERED:
            return 0
        return self._places - self._making - self._service.active(except_transport=NAME)

    async def _take(self, address: str, count: int) -> None:
        """Asks a node for tasks and starts them."""
        try:
            answer = await contained(self._call(address, count))
        except GatewayFault as fault:
            least_s = self._troubles.note(address + GET_TASKS, fault)
            backoff = self._nodes.failed(address, least_s=least_s)
            logger.debug("{}; asked again in {:.0f} s", fault, backoff)
            return
        finally:
            self._troubles.clock(address, self._calls.clock_off(address))
        received_at = self._monotonic()
        self._troubles.answered(address + GET_TASKS)
        self._nodes.gave(address, len(answer.tasks))
        self._nodes.listed(address, answer.gateways)
        if not answer.tasks:
            return
        taken = [(self._entry(address, task), task) for task in answer.tasks]
        # A task that is here already keeps running, with its new token.
        new = {entry.key: (entry, task) for entry, task in taken if entry not in self._book}
        await self._book.add(entry for entry, _ in taken)
        for number, (entry, task) in enumerate(new.values()):
            self._start(entry, task, received_at, surplus=number >= count)

    def _entry(self, address: str, task: GatewayTask) -> TakenTask:
        return TakenTask(
            node=address,
            id=task.id,
            token=task.assignment_token,
            worker_id=self._calls.worker_id,
            kind=task.kind,
            taken_at=self._clock(),
        )

    async def _call(self, address: str, count: int) -> TasksAnswer:
        try:
            return await self._calls.get_tasks(address, count)
        except GatewayFault as fault:
            if not fault.is_stale:
                raise
        return await self._calls.get_tasks(address, count)  # By the clock that the answer shows.

    def _start(
        self, entry: TakenTask, task: GatewayTask, received_at: float, *, surplus: bool
    ) -> None:
        name, host = log_safe(entry.id), host_of(entry.node)
        logger.info("{} handed out the {} task {}", host, entry.kind, name)
        self._score_log.write("taken", task_id=name, node=host, kind=entry.kind)
        if surplus:
            self._deliver(entry, b"", _SURPLUS)
            return
        self._making += 1
        spawn(self._make(entry, task, received_at), self._turns)

    async def _make(self, entry: TakenTask, task: GatewayTask, received_at: float) -> None:
        """Has a task generated and delivered."""
        try:
            answer = await self._answer(entry, task, received_at)
        finally:
            self._making -= 1
            self._freed.set()
        asset, reason = result_to_submit(answer)
        self._deliver(entry, asset, reason, answer)

    async def _answer(self, entry: TakenTask, task: GatewayTask, received_at: float) -> Answer:
        """Has a task generated; an unexpected error is an answer too."""
        try:
            return await contained(self._generate(task, received_at))
        except Exception as error:
            logger.opt(exception=error).error("task {}: no answer", log_safe(entry.id))
            return Answer(
                "failed", "internal_error", f"unexpected {type(error).__name__}", entry.id
            )

    async def _generate(self, task: GatewayTask, received_at: float) -> Answer:
        try:
            parsed = await asyncio.to_thread(task.task)
        except TaskError as error:
            return self._service.reject(
                task_id=task.id,
                caller=CALLER,
                transport=NAME,
                received_at=received_at,
                reason=str(error),
            )
        request = Request(
            parsed,
            CALLER,
            NAME,
            received_at,
            allowed_s=self._budget_s,
            candidates=self._candidates,
        )
        return await self._service.handle(request)

    def _deliver(
        self, entry: TakenTask, asset: bytes, reason: str, answer: Answer | None = None
    ) -> None:
        spawn(self._delivery.deliver(entry, asset, reason, answer), self._deliveries)
