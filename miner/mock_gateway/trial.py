"""A trial of workers: tasks are submitted to a cluster, and what comes back is judged."""

import asyncio
import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from miner.mock_gateway.client_routes import check_content
from miner.mock_gateway.node import MockCluster
from miner.mock_gateway.replies import GatewayRefusal
from miner.mock_gateway.rules import KeyOwner
from miner.mock_gateway.store import StoredResult, StoredTask
from miner.mock_validator.records import TrialRecord, judge, record_name
from miner.mock_validator.tasks import TrialTask
from protocol.errors import SetupError
from protocol.gateway import SPLATS
from protocol.text import printable

OWNER = KeyOwner("trial")
"""Of the tasks that are not a client's."""

_SHOWN_CHARACTERS = 1024


@dataclass(frozen=True)
class GatewayTerms:
    """The conditions of a trial.

    Attributes:
        limit_s: Seconds from the assignment within which a result is good.
        folder: Folder of the files.
        seed: Of every task; random if None.
        open: Whether it goes on after its own tasks, for those of clients.
    """

    limit_s: float
    folder: Path
    seed: int | None = None
    open: bool = False


class GatewayTrial:
    """Submits tasks when the first worker asks, and judges the first result of each.

    A task is over with its first success, or with its last failure or time-out. All calls come from
    one event loop.

    Args:
        tasks: The tasks, in the order in which they are submitted, to the nodes in turn.
        terms: The conditions.
        on_record: Called with the record of every task that is over, a client's included.

    Raises:
        SetupError: A gateway does not take one of the tasks.
    """

    def __init__(
        self,
        tasks: Sequence[TrialTask],
        terms: GatewayTerms,
        *,
        on_record: Callable[[TrialRecord], None],
    ) -> None:
        self._tasks = {task.id: task for task in tasks}
        self._terms = terms
        self._on_record = on_record
        self._cluster: MockCluster | None = None
        self._unfinished = set(self._tasks)
        for task in tasks:
            _check(task)
        self._records: dict[str, TrialRecord] = {}
        self._succeeded: set[str] = set()
        self._judging: set[asyncio.Task[None]] = set()
        self._finished = asyncio.Event()

    def watch(self, cluster: MockCluster) -> None:
        """Follows a cluster, whose nodes are there and serve nothing yet."""
        self._cluster = cluster
        cluster.on_call, cluster.on_submit = self._submit, self._name
        cluster.on_result, cluster.on_end = self._arrived, self._over

    async def finished(self, limit_s: float) -> None:
        """Waits until every task is over; `limit_s` at most, and so long if it is open."""
        try:
            async with asyncio.timeout(limit_s):
                await self._finished.wait()
        except TimeoutError:
            pass
        while self._judging:
            await asyncio.wait(self._judging)

    def records(self) -> list[TrialRecord]:
        """Returns one record per task, in their order, also for tasks without a result."""
        return [
            self._records.get(task.id) or _record(task, "no worker has finished it in time")
            for task in self._tasks.values()
        ]

    def _submit(self) -> None:
        """Submits all tasks at once; their lives begin."""
        cluster = self._cluster
        if cluster is None:
            return
        cluster.on_call = lambda: None
        for number, task in enumerate(list(self._tasks.values())):
            node = cluster.nodes[number % len(cluster.nodes)]
            prompt, image = _content(task)
            node.submit(
                StoredTask(
                    id=task.id,
                    owner=OWNER.name,
                    model=SPLATS,
                    seed=node.clients.seed(self._terms.seed),
                    prompt=prompt,
                    image=image,
                )
            )

    def _name(self, task: StoredTask) -> None:
        """Names a task that a client has submitted."""
        if task.id not in self._tasks:
            shown = "picture" if task.prompt is None else printable(task.prompt, _SHOWN_CHARACTERS)
            self._tasks[task.id] = TrialTask(
                record_name(len(self._tasks) + 1, shown),
                "image" if task.prompt is None else "text",
                shown,
                "",
                id=task.id,
            )

    def _arrived(self, task: StoredTask, result: StoredResult) -> None:
        if result.asset is None or task.id in self._succeeded:
            return
        self._succeeded.add(task.id)
        judging = asyncio.create_task(self._judge(task, result, result.asset))
        self._judging.add(judging)
        judging.add_done_callback(self._judging.discard)

    async def _judge(self, task: StoredTask, result: StoredResult, asset: bytes) -> None:
        record = _record(self._tasks[task.id], "", seed=task.seed).model_copy(
            update={
                "outcome": "completed",
                "elapsed_s": result.at - result.copy.at,
                "miner_version": printable(result.copy.worker_id, 64),
                "problems": (),
            }
        )
        terms = self._terms
        judged = await asyncio.to_thread(judge, record, asset, terms.folder, limit_s=terms.limit_s)
        self._note(judged)

    def _over(self, task: StoredTask) -> None:
        if task.id in self._succeeded:
            return
        reason = printable(task.last_reason or "", 500)
        record = _record(self._tasks[task.id], reason, seed=task.seed)
        if task.results:
            last = task.results[-1]
            record = record.model_copy(
                update={
                    "outcome": "failed",
                    "elapsed_s": last.at - last.copy.at,
                    "problems": (f"failed: {reason}",),
                }
            )
        self._note(record)

    def _note(self, record: TrialRecord) -> None:
        self._records[record.task_id] = record
        self._unfinished.discard(record.task_id)
        self._on_record(record)
        if not self._unfinished and not self._terms.open:
            self._finished.set()


def _content(task: TrialTask) -> tuple[str | None, bytes | None]:
    if task.kind == "text":
        return task.wire, None
    return None, base64.b64decode(task.wire)


def _check(task: TrialTask) -> None:
    try:
        check_content(*_content(task))
    except GatewayRefusal as refusal:
        reason = refusal.reply.body.decode().removeprefix("Bad request: ")
        raise SetupError(
            f"a gateway does not take the task {task.shown[:60]!r}: {reason}",
            fix="give prompts of 3 to 384 letters, digits, spaces and .,'():;/?!+%- and pictures "
            "of at most 1024 x 1024 pixels and 2 MiB",
        ) from None


def _record(task: TrialTask, reason: str, *, seed: int | None = None) -> TrialRecord:
    return TrialRecord(
        name=task.name,
        kind=task.kind,
        prompt=task.shown,
        task_id=task.id,
        seed=seed,
        protocol="gateway",
        reason=reason,
        problems=(f"none: {reason}",),
    )
