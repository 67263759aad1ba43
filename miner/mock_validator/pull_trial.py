"""A trial of a miner that pulls: tasks are assigned by the published rules, and results judged."""

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from miner.mock_validator.pull_rules import Pulled, PullRules, Rules, Submission, Verdict
from miner.mock_validator.records import TrialRecord, judge
from miner.mock_validator.tasks import TrialTask

STAND_IN_SCORE = 1.0
"""Score of a result that passes the data checks. Nothing here judges how it looks."""


@dataclass(frozen=True)
class Terms:
    """The conditions of a trial.

    Attributes:
        hotkey: The validator's hotkey.
        miner: The only hotkey that counts as registered.
        rules: The numbers of the validator's rules.
        limit_s: Seconds from an assignment within which a result is good.
        folder: Folder of the files.
    """

    hotkey: str
    miner: str
    rules: Rules
    limit_s: float
    folder: Path


class PullTrial:
    """Assigns tasks by the published rules and judges every result.

    Call everything but `finished` and `records` from one event loop.

    Args:
        tasks: The tasks, in the order in which they are assigned.
        terms: The conditions of the trial.
        verify: Returns whether a signature is a hotkey's: (hotkey, payload, signature).
        on_record: Called with the record of every task that has its end.
        clock: Wall clock, in seconds since the epoch.
    """

    def __init__(
        self,
        tasks: Sequence[TrialTask],
        terms: Terms,
        *,
        verify: Callable[[str, bytes, bytes], bool],
        on_record: Callable[[TrialRecord], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        waiting = iter(tasks)
        self._tasks = {task.id: task for task in tasks}
        self._terms = terms
        self._clock = clock
        self._on_record = on_record
        self._records: dict[str, TrialRecord] = {}
        self._finished = threading.Event()
        self._early_pulls = 0
        self.rules = PullRules(
            terms.hotkey,
            registered=lambda hotkey: hotkey == terms.miner,
            verify=verify,
            next_task=lambda: next(waiting, None),
            clock=clock,
            rules=terms.rules,
        )

    def pull(self, hotkey: str) -> Pulled:
        """Answers a pull."""
        return self.rules.pull(hotkey)

    async def submit(self, hotkey: str, submission: Submission) -> Verdict:
        """Answers a submission, after its validation."""
        assigned = self.rules.assigned(hotkey)
        elapsed = self._clock() - assigned[1] if assigned else 0.0
        verdict = self.rules.submit(hotkey, submission)
        if assigned is None:
            return verdict or Verdict("wrong_task")
        task = assigned[0]
        if verdict is not None:
            if self.rules.assigned(hotkey) is None:
                self._note(_without_asset(task, elapsed, verdict))
            return verdict
        record = await asyncio.to_thread(self._judge, task, submission.results, elapsed)
        failed = any(not check.passed and not check.advice for check in record.checks)
        sound = record.checks and not failed
        verdict = self.rules.judged(hotkey, STAND_IN_SCORE if sound else 0.0)
        self._note(record.model_copy(update={"reason": f"score {verdict.score:g}: {verdict.code}"}))
        return verdict

    def finished(self, limit_s: float) -> bool:
        """Waits until every task has its end, `limit_s` at most. Call it from any thread."""
        return self._finished.wait(limit_s)

    def records(self) -> list[TrialRecord]:
        """Returns one record per task, in their order, also for tasks without a result."""
        records = [self._records.get(task.id) or _missing(task) for task in self._tasks.values()]
        since = self.rules.early_pulls(self._terms.miner) - self._early_pulls
        early = records[-1].early_pulls + since
        return [*records[:-1], records[-1].model_copy(update={"early_pulls": early})]

    def _judge(self, task: TrialTask, results: str, elapsed: float) -> TrialRecord:
        record = _record(task, outcome="completed", elapsed_s=elapsed)
        try:
            asset = base64.b64decode(results, validate=True)
        except ValueError as error:
            return record.model_copy(update={"problems": (f"results are not base64: {error}",)})
        return judge(record, asset, self._terms.folder, limit_s=self._terms.limit_s)

    def _note(self, record: TrialRecord) -> None:
        before, self._early_pulls = self._early_pulls, self.rules.early_pulls(self._terms.miner)
        record = record.model_copy(update={"early_pulls": self._early_pulls - before})
        self._records[record.task_id] = record
        self._on_record(record)
        if len(self._records) == len(self._tasks):
            self._finished.set()


def _record(task: TrialTask, **fields: object) -> TrialRecord:
    return TrialRecord(
        name=task.name,
        kind=task.kind,
        prompt=task.shown,
        task_id=task.id,
        protocol="pull",
    ).model_copy(update=fields)


def _without_asset(task: TrialTask, elapsed: float, verdict: Verdict) -> TrialRecord:
    if verdict.code == "empty":
        outcome, reason = "skipped", "the miner sent an empty result"
    else:
        outcome, reason = "refused", "the signature is not the miner's, or not over this task"
    problem = f"{outcome}: {reason}"
    return _record(task, outcome=outcome, reason=reason, elapsed_s=elapsed, problems=(problem,))


def _missing(task: TrialTask) -> TrialRecord:
    reason = "the miner did not submit a result in time"
    return _record(task, reason=reason, problems=(f"none: {reason}",))
