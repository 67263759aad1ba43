"""What the pull transport remembers while it runs: validators and tasks, every change written."""

import asyncio
from collections.abc import Callable

from loguru import logger

from miner.transports.pull.state import AssignedTask, PullState, PullStateFile
from miner.transports.pull.validators import Selection, Validators


class PullBook:
    """Keeps the state file up to date, off the event loop.

    Args:
        file: The state file, read now and written at every change.
        selection: Which validators to ask.
        wall: Wall clock, in seconds since the epoch.

    Attributes:
        validators: The policy, with the standings of an earlier run. Validators whose tasks are not
            settled are busy.

    Raises:
        SetupError: The file cannot be read or written.
    """

    def __init__(
        self, file: PullStateFile, selection: Selection, *, wall: Callable[[], float]
    ) -> None:
        state = file.load()
        self._file = file
        self._hotkey = state.hotkey
        self._tasks = {task.validator: task for task in state.tasks}
        self._saving = asyncio.Lock()
        self.validators = Validators(selection, clock=wall, standings=state.validators)
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
        """Writes the state. A failure is logged, and work goes on."""
        async with self._saving:
            try:
                state = PullState(
                    hotkey=self._hotkey, validators=self.validators.export(), tasks=self.tasks
                )
                await asyncio.to_thread(self._file.save, state)
            except Exception as error:  # A full disk, above all.
                logger.error("the state is not written, a restart would lose it: {!r}", error)
