"""What a trial shows while it runs."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

from miner.mock_validator.records import TrialRecord
from protocol.text import printable


class TrialProgress:
    """A bar on a terminal; elsewhere a line at the beginning, and one per task that is over.

    Args:
        console: Where it is shown.
        beginning: What is shown until the first task is over.
        total: How many tasks there are; None if nobody knows.
    """

    def __init__(self, console: Console, beginning: str, total: int | None) -> None:
        self._console = console
        self._beginning = beginning
        columns = (SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._ticket = self._bar.add_task(escape(beginning), total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._console.is_terminal:
            self._print(self._beginning)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def note(self, record: TrialRecord) -> None:
        """Shows what became of a task."""
        shown = f"{printable(record.name)}: {record.outcome}"
        self._bar.update(self._ticket, advance=1, description=escape(shown))
        if not self._console.is_terminal:
            verdict = "good" if record.good else "; ".join(record.problems)
            self._print(f"{shown} in {record.elapsed_s:.2f} s, {printable(verdict, 500)}")

    def _print(self, line: str) -> None:
        # Whole lines: a file has no width. The console flushes after each.
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)
