"""What a transport keeps over a restart: one file of one hotkey, written at every change."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from miner.problems import Problems
from miner.state_file import StateFile
from protocol.errors import SetupError

RETRY_S = 30.0
"""Seconds until a state that could not be written is written again, if nothing changes before."""


class HotkeyState(Protocol):
    """The content of such a file: a pydantic model with a version and a hotkey."""

    @property
    def hotkey(self) -> str:
        """The hotkey to which all of it belongs."""


S = TypeVar("S", bound=HotkeyState)


class HotkeyStateFile(Generic[S]):
    """Reads and writes the state of one transport.

    Args:
        path: The file; its folder is created.
        empty: The state of a first run, which names the hotkey.
        transport: Name of the transport.
        loses: What is lost without the file, for the log.
    """

    def __init__(self, path: Path, empty: S, *, transport: str, loses: str) -> None:
        self._path = path
        self._empty = empty
        self.transport = transport
        self.loses = loses
        self._file: StateFile[S] = StateFile(path, type(empty), loses=loses)  # type: ignore[type-var]

    def load(self) -> S:
        """Reads the state. A file that cannot be used is set aside, and an empty state returned.

        Raises:
            SetupError: The file cannot be read, or its folder cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            state = self._file.load()
            if state is not None and state.hotkey != self._empty.hotkey:
                self._file.set_aside(f"belongs to the hotkey {state.hotkey[:64]!r}")
                state = None
            state = state or self._empty
            # Writes it now, to find out whether the file can be written.
            self._file.save(state)
        except OSError as error:
            raise self._unusable(error) from error
        return state

    def save(self, state: S) -> None:
        """Replaces the file atomically: after a crash it holds the old state or the new one.

        Makes its folder again, should somebody have removed it.

        Raises:
            OSError: It cannot be written.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file.save(state)

    def _unusable(self, error: OSError) -> SetupError:
        return SetupError(
            f"the state of the {self.transport} transport cannot be kept in {self._path}: "
            f"{error.strerror or error}",
            fix=f"choose a writable file with --{self.transport}.state",
        )


class Keeper(Generic[S]):
    """Writes a state off the event loop. A failure is logged when it begins and ends.

    Args:
        file: Where to.
        state: Returns the state as it is now.
        clock: This miner's clock.
        problems: Notified when the file cannot be written, and when it can again.
    """

    def __init__(
        self,
        file: HotkeyStateFile[S],
        state: Callable[[], S],
        *,
        clock: Callable[[], float],
        problems: Problems | None = None,
    ) -> None:
        self._file = file
        self._state = state
        self._clock = clock
        self._problems = problems or Problems()
        self._saving = asyncio.Lock()
        self._failed_at: float | None = None

    async def save(self) -> None:
        """Writes the state; work goes on if that fails."""
        about = f"the {self._file.transport} state"
        what = f"the state of the {self._file.transport} transport"
        async with self._saving:
            try:
                await asyncio.to_thread(self._file.save, self._state())
            except Exception as error:  # A full disk, above all.
                self._problems.report(
                    about,
                    f"{what} is not written ({error!r}); until it is, a restart would lose "
                    f"{self._file.loses}",
                )
                self._failed_at = self._clock()
            else:
                self._problems.clear(about, f"{what} is written again")
                self._failed_at = None

    async def retry(self) -> None:
        """Writes the state again if it could not be written a while ago."""
        if self._failed_at is not None and self._clock() >= self._failed_at + RETRY_S:
            await self.save()
