"""The pull way's memory while it runs: validators and tasks in hand, every change written down."""

import asyncio
from collections.abc import Callable

from loguru import logger

from miner.transports.pull.state import PullState, PullStateFile, TaskInHand
from miner.transports.pull.validators import Selection, Validators


class PullBook:
    """Keeps the state file up to date, off the event loop.

    Args:
        file: Read now; written at every change.
        selection: Whom to ask.
        wall: Wall clock, in seconds since the epoch.

    Attributes:
        validators: The policy, with what an earlier run remembered; those that have a task with us
            are busy.

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
    def tasks(self) -> tuple[TaskInHand, ...]:
        """The tasks in hand, as they are noted."""
        return tuple(self._tasks.values())

    async def note(self, task: TaskInHand, **changes: object) -> TaskInHand:
        """Writes down a task in hand with these changes, and returns it."""
        noted = task.model_copy(update=changes)
        self._tasks[task.validator] = noted
        await self.save()
        return noted

    async def strike(self, task: TaskInHand) -> None:
        """Strikes out a task that is settled."""
        self._tasks.pop(task.validator, None)
        await self.save()

    async def save(self) -> None:
        """Writes the state; a disk that does not take it is reported and work goes on."""
        async with self._saving:
            state = PullState(
                hotkey=self._hotkey, validators=self.validators.export(), tasks=self.tasks
            )
            try:
                await asyncio.to_thread(self._file.save, state)
            except OSError as error:
                logger.error("the state is not written, a restart would lose it: {}", error)
