"""What the pull transport remembers while it runs: validators and tasks, every change written."""

from miner.problems import Problems
from miner.transports.clocks import SteadyClock
from miner.transports.kept import Keeper
from miner.transports.pull.state import AssignedTask, PullState, PullStateFile
from miner.transports.pull.validators import Selection, Validators


class PullBook:
    """Keeps the state file up to date, off the event loop.

    The file holds times of the wall clock, since it is all that two processes share.

    Args:
        file: The state file, read now and written at every change.
        selection: Which validators to ask.
        clock: This miner's clock, of all times outside the file.
        problems: Notified when the file cannot be written, and when it can again.

    Attributes:
        validators: The policy, with the standings of an earlier run. Validators whose tasks are not
            settled are busy.

    Raises:
        SetupError: The file cannot be read or written.
    """

    def __init__(
        self,
        file: PullStateFile,
        selection: Selection,
        *,
        clock: SteadyClock,
        problems: Problems | None = None,
    ) -> None:
        state = file.load().moved(-clock.behind_wall()).until(clock())
        self._hotkey = state.hotkey
        self._tasks = {task.validator: task for task in state.tasks}
        self._clock = clock
        self._keeper = Keeper(file, self._state, clock=clock, problems=problems)
        self.validators = Validators(selection, clock=clock, standings=state.validators)
        for task in state.tasks:
            self.validators.occupy(task.validator)

    @property
    def tasks(self) -> tuple[AssignedTask, ...]:
        """The tasks that are not settled, as they are written."""
        return tuple(self._tasks.values())

    async def note(self, task: AssignedTask, **changes: object) -> AssignedTask:
        """Writes a task with these changes, and returns it."""
        noted = task.model_copy(update=changes)
        self._tasks[task.validator] = noted
        await self.save()
        return noted

    async def remove(self, task: AssignedTask) -> None:
        """Removes a settled task."""
        self._tasks.pop(task.validator, None)
        await self.save()

    async def save(self) -> None:
        """Writes the state; see `Keeper`."""
        await self._keeper.save()

    async def retry(self) -> None:
        """Writes the state again if it could not be written a while ago."""
        await self._keeper.retry()

    def _state(self) -> PullState:
        state = PullState(
            hotkey=self._hotkey, validators=self.validators.export(), tasks=self.tasks
        )
        return state.moved(self._clock.behind_wall())
