"""The tasks of one node of a gateway: queue, assignments, results. Pure: a clock and values.

Queue: first in, first out per model, round-robin over the models asked for, one copy per hotkey. A
task lives from its submission; the node looks for those that have timed out every `sweep_s`, so
memory and deadline disagree for up to that long. A result that comes in between is taken with 200
and dropped.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import floor
from typing import Any, Literal

from miner.mock_gateway.rules import GatewayRules

TIMED_OUT = "Task timed out"

EventKind = Literal["task_assigned", "result_success", "result_failure", "timeout"]


@dataclass(frozen=True)
class WorkerEvent:
    """A line of the gateway's database about a worker.

    Attributes:
        at: Seconds by the gateway's clock.
        kind: What happened.
        task_id: Of the task.
        hotkey: Of the worker.
        worker_id: The worker's name.
        token: Of the assignment.
        reason: Of a failure.
    """

    at: float
    kind: EventKind
    task_id: str
    hotkey: str
    worker_id: str
    token: str
    reason: str = ""


@dataclass(frozen=True)
class TaskCopy:
    """A copy of a task that a worker has.

    Attributes:
        hotkey: The worker's.
        worker_id: The worker's name.
        token: Of the assignment.
        at: When it was taken.
    """

    hotkey: str
    worker_id: str
    token: str
    at: float


@dataclass(frozen=True)
class StoredResult:
    """What a worker has delivered.

    Attributes:
        copy: The copy.
        at: When it arrived.
        asset: Its bytes; None for a failure.
        reason: Of a failure.
    """

    copy: TaskCopy
    at: float
    asset: bytes | None = field(default=None, repr=False)
    reason: str = ""


@dataclass
class StoredTask:
    """A task and what has become of it.

    Attributes:
        id: A UUID.
        owner: Name of the key's owner.
        model: What is asked for.
        seed: Signed, 32 bits.
        prompt: The text.
        image: The picture's bytes.
        params: The client's parameters for the model.
        tags: Of its owner.
        submitted_at: When the client submitted it.
        expires_at: When it times out; None once it is done or timed out.
        copies_left: Copies in the queue.
        served: Hotkeys that have had a copy.
        taken: Copies that are out, by hotkey.
        staged: Hotkeys whose result is being stored.
        results: In the order of their arrival, until they expire.
        successes: Counted from the results.
        first_worker: Name of the worker of the first success.
        last_reason: Of the last failure.
        results_expire_at: When the results are removed, even if the task goes on.
        kept: The status that the database gives once the node knows no result any more.
        forgotten: Whether the node knows nothing of the task any more.
    """

    id: str
    owner: str
    model: str
    seed: int
    prompt: str | None = field(default=None, repr=False)
    image: bytes | None = field(default=None, repr=False)
    params: dict[str, Any] | None = field(default=None, repr=False)
    tags: tuple[str, ...] = ()
    submitted_at: float = 0.0
    expires_at: float | None = None
    copies_left: int = 0
    served: set[str] = field(default_factory=set)
    taken: dict[str, TaskCopy] = field(default_factory=dict)
    staged: set[str] = field(default_factory=set)
    results: list[StoredResult] = field(default_factory=list, repr=False)
    successes: int = 0
    first_worker: str | None = None
    last_reason: str | None = None
    results_expire_at: float | None = None
    kept: dict[str, str] | None = None
    forgotten: bool = False


class TaskStore:
    """What a node remembers.

    Args:
        rules: The numbers.
        clock: The gateway's clock, in seconds since the epoch.
        new_id: Makes UUIDs.
        on_end: Called with a task that is done or has timed out.
        on_result: Called with a task and each result that counts.

    Attributes:
        events: Everything about workers, in order.
        counts: Per hotkey and kind of event; "dropped" are results that came too late.
        answer_s: Per hotkey, seconds from submission to success.
    """

    def __init__(
        self,
        rules: GatewayRules,
        *,
        clock: Callable[[], float],
        new_id: Callable[[], str],
        on_end: Callable[[StoredTask], None] = lambda task: None,
        on_result: Callable[[StoredTask, StoredResult], None] = lambda task, result: None,
    ) -> None:
        self._rules = rules
        self._clock = clock
        self._new_id = new_id
        self._on_end = on_end
        self._on_result = on_result
        self._started = self._looked_at = clock()
        self._tasks: dict[str, StoredTask] = {}
        self._live: dict[str, StoredTask] = {}
        self._ended: dict[str, StoredTask] = {}
        self._queues: dict[str, dict[str, StoredTask]] = {}
        self._turn = itertools.count()
        self.events: list[WorkerEvent] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.answer_s: dict[str, list[float]] = {}

    @property
    def queued(self) -> int:
        """Tasks in the queue, of all models."""
        self.sweep()
        return sum(map(len, self._queues.values()))

    def unfinished(self, owner: str) -> int:
        """Tasks of an owner that are neither done nor timed out."""
        self.sweep()
        return sum(task.owner == owner for task in self._live.values())

    def add(self, task: StoredTask) -> bool:
        """Queues a task whose id, owner, model and content are set; False if the queue is full."""
        if self.queued >= self._rules.queue_limit:
            return False
        now = self._clock()
        task.submitted_at, task.expires_at = now, now + self._rules.task_life_s
        task.copies_left = self._rules.copies
        self._tasks[task.id] = self._live[task.id] = task
        self._queues.setdefault(task.model, {})[task.id] = task
        return True

    def take(
        self, hotkey: str, worker_id: str, models: Iterable[str], tags: Iterable[str], count: int
    ) -> list[tuple[StoredTask, TaskCopy]]:
        """Hands out copies of tasks that this hotkey has not had."""
        self.sweep()
        queues = [self._queues.get(model, {}) for model in models]
        wanted, taken = frozenset(tags), list[tuple[StoredTask, TaskCopy]]()
        while len(taken) < count:
            first, before = next(self._turn), len(taken)
            for offset in range(len(queues)):
                queue = queues[(first + offset) % len(queues)]
                task = next((t for t in queue.values() if self._fits(t, hotkey, wanted)), None)
                if task is not None and len(taken) < count:
                    taken.append((task, self._assign(task, hotkey, worker_id)))
            if len(taken) == before:
                break
        return taken

    def give_back(self, task_id: str, hotkey: str, *, to_the_same: bool) -> None:
        """Queues a copy again that is out, as after an assignment that was stored only in part.

        Args:
            task_id: Of the task.
            hotkey: Of the worker that has it, and keeps it until it takes the task again.
            to_the_same: Whether this hotkey may take the task again, with a new token.
        """
        task = self._tasks[task_id]
        task.copies_left += 1
        if to_the_same:
            task.served.discard(hotkey)
        self._queues[task.model][task_id] = task

    def context(self, task_id: str) -> StoredTask | None:
        """Returns a task that results are taken for; None leads to 410."""
        self.sweep()
        return self._live.get(task_id)

    def stage(self, task: StoredTask, hotkey: str) -> bool:
        """Begins to store a result; False if another of this hotkey is being stored."""
        if hotkey in task.staged:
            return False
        task.staged.add(hotkey)
        now = self._clock()
        if task.expires_at is not None and task.expires_at > now:
            task.expires_at = max(task.expires_at, now + self._rules.storing_grace_s)
        return True

    def unstage(self, task: StoredTask, hotkey: str) -> None:
        """Ends a storing that has failed."""
        task.staged.discard(hotkey)

    def commit(
        self, task: StoredTask, copy: TaskCopy, *, asset: bytes | None, reason: str = ""
    ) -> bool:
        """Stores a result.

        Returns:
            Whether it counts: after the task's deadline, it is dropped.
        """
        now = self._clock()
        task.staged.discard(copy.hotkey)
        if task.expires_at is None or task.expires_at <= now:
            self.counts[copy.hotkey, "dropped"] += 1
            return False
        del task.taken[copy.hotkey]
        result = StoredResult(copy, now, asset, reason)
        task.results.append(result)
        task.results_expire_at = now + self._rules.result_life_s
        if asset is not None:
            task.successes += 1
            task.first_worker = task.first_worker or copy.worker_id
            self.answer_s.setdefault(copy.hotkey, []).append(now - task.submitted_at)
        else:
            task.last_reason = reason
        self._note("result_failure" if asset is None else "result_success", task, copy, reason)
        self._on_result(task, result)
        if not task.taken and len(task.results) >= self._rules.copies:
            self._end(task)
        return True

    def status(self, task_id: str) -> dict[str, str]:
        """Returns the answer to /get_status."""
        self.sweep()
        task = self._tasks.get(task_id)
        if task is None:
            return {"status": "NoResult"}
        memory = self._status(task)
        return task.kept if task.kept and memory["status"] == "NoResult" else memory

    def results(self, task_id: str) -> tuple[StoredTask, list[StoredResult]] | None:
        """Returns a task and its results; None if it is unknown."""
        self.sweep()
        task = self._tasks.get(task_id)
        return None if task is None else (task, list(task.results))

    def sweep(self) -> None:
        """Times tasks out and removes results, as of the last check that was due."""
        now, every = self._clock(), self._rules.sweep_s
        for queue in self._queues.values():
            for task in list(queue.values()):
                if task.submitted_at + self._rules.queue_life_s < now:
                    del queue[task.id]
        looked_at = self._started + floor((now - self._started) / every) * every
        if looked_at <= self._looked_at:
            return
        self._looked_at = looked_at
        for task in list(self._live.values()):
            if task.expires_at is not None and task.expires_at <= looked_at:
                self._time_out(task)
        for task in [*self._live.values(), *self._ended.values()]:
            if task.results_expire_at is not None and task.results_expire_at <= looked_at:
                self._forget_results(task)

    def _fits(self, task: StoredTask, hotkey: str, tags: frozenset[str]) -> bool:
        expires = task.expires_at
        if expires is None or expires <= self._clock() or not task.copies_left:
            return False
        if hotkey in task.served:
            return False
        return bool(tags & set(task.tags)) if task.tags else not tags

    def _assign(self, task: StoredTask, hotkey: str, worker_id: str) -> TaskCopy:
        copy = TaskCopy(hotkey, worker_id, self._new_id(), self._clock())
        task.copies_left -= 1
        task.served.add(hotkey)
        task.taken[hotkey] = copy
        task.staged.discard(hotkey)
        if not task.copies_left:
            self._queues[task.model].pop(task.id, None)
        self._note("task_assigned", task, copy)
        return copy

    def _time_out(self, task: StoredTask) -> None:
        for copy in task.taken.values():
            self._note("timeout", task, copy)
        task.taken.clear()
        if not task.successes and task.last_reason is None:
            task.last_reason = TIMED_OUT
        if task.results_expire_at is None:
            task.results_expire_at = self._clock() + self._rules.result_life_s
        self._end(task)

    def _forget_results(self, task: StoredTask) -> None:
        task.kept = self._status(task)
        task.results, task.results_expire_at = [], None
        task.successes, task.first_worker, task.last_reason = 0, None, None
        task.forgotten = self._ended.pop(task.id, None) is not None

    def _end(self, task: StoredTask) -> None:
        task.expires_at, task.prompt, task.image = None, None, None
        self._ended[task.id] = self._live.pop(task.id)
        self._queues[task.model].pop(task.id, None)
        self._on_end(task)

    def _status(self, task: StoredTask) -> dict[str, str]:
        ended = task.expires_at is None
        if task.forgotten:
            return {"status": "NoResult"}
        if not task.results and not ended:
            return {"status": "InProgress" if task.taken else "NoResult"}
        if len(task.results) < self._rules.copies and not ended:
            return {"status": f"PartialResult({task.successes})"}
        if task.first_worker is not None:
            return {"status": "Success", "worker_id": task.first_worker}
        return {"status": "Failure", "reason": task.last_reason or "No successful result found"}

    def _note(self, kind: EventKind, task: StoredTask, copy: TaskCopy, reason: str = "") -> None:
        self.counts[copy.hotkey, kind] += 1
        self.events.append(
            WorkerEvent(
                self._clock(), kind, task.id, copy.hotkey, copy.worker_id, copy.token, reason
            )
        )
