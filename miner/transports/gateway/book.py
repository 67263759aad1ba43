"""The tasks that a gateway has handed out, every change written before anything is done."""

from collections.abc import Iterable

from miner.problems import Problems
from miner.transports.clocks import SteadyClock
from miner.transports.gateway.state import GatewayState, GatewayStateFile, TakenTask
from miner.transports.kept import Keeper


class GatewayBook:
    """Keeps the state file up to date, off the event loop.

    Args:
        file: The state file, read now and written at every change.
        clock: This miner's clock.
        problems: Notified when the file cannot be written, and when it can again.

    Attributes:
        leftovers: Tasks of an earlier run, which are not settled.

    Raises:
        SetupError: The file cannot be read or written.
    """

    def __init__(
        self, file: GatewayStateFile, *, clock: SteadyClock, problems: Problems | None = None
    ) -> None:
        state, now = file.load(), clock()
        self._hotkey = state.hotkey
        self._tasks = {
            task.key: task.model_copy(update={"taken_at": min(task.taken_at, now)})
            for task in state.tasks
        }
        self.leftovers = tuple(self._tasks.values())
        self._keeper = Keeper(file, self._state, clock=clock, problems=problems)

    def __len__(self) -> int:
        """Tasks that are not settled."""
        return len(self._tasks)

    def __contains__(self, task: TakenTask) -> bool:
        """Whether there is a task of this node and id."""
        return task.key in self._tasks

    def token(self, task: TakenTask) -> str | None:
        """Returns the newest token of a task."""
        return self._tasks.get(task.key, task).token

    async def add(self, tasks: Iterable[TakenTask]) -> None:
        """Writes tasks; one that is there already gets its new token."""
        self._tasks |= {task.key: task for task in tasks}
        await self._keeper.save()

    async def remove(self, task: TakenTask) -> None:
        """Removes a settled task."""
        self._tasks.pop(task.key, None)
        await self._keeper.save()

    async def retry(self) -> None:
        """Writes the state again if it could not be written a while ago."""
        await self._keeper.retry()

    def _state(self) -> GatewayState:
        return GatewayState(hotkey=self._hotkey, tasks=tuple(self._tasks.values()))
