"""A validator or a gateway to try a miner with: `python -m neurons.mock_validator --help`.

It is a real Bittensor 10 client and needs no internet. `miner.mock_validator.records` describes the
files that it leaves in its folder.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from generation.words import in_one_line
from miner.interpreter import program_name
from miner.mock_validator.progress import TrialProgress
from miner.mock_validator.records import (
    LINES_FILE,
    TrialRecord,
    append_record,
    write_records,
)
from miner.mock_validator.settings import TrialSettings
from miner.mock_validator.tasks import TrialTask, collect_tasks
from miner.settings.reader import read_settings
from miner.surroundings import settle, settle_terminal, starting_up, tell
from protocol.errors import SetupError
from protocol.text import printable

GOOD, BAD, NOT_STARTED, NOTHING_CAME, INTERRUPTED = 0, 1, 2, 3, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the trial.

    Returns:
        0 if every answer is good, 1 if not, 2 if it did not start, 3 if it waited for the tasks of
        clients and none came, 130 after Ctrl-C.
    """
    settle_terminal()
    console = Console()
    try:
        with starting_up():
            settings = read_settings(
                TrialSettings,
                prog=program_name("neurons.mock_validator"),
                env_prefix="TRIAL",
                argv=argv,
            )
            settle()
            tasks = _tasks(settings)
            _make_folder(settings)
            wallet = _wallet(settings)
    except SetupError as error:
        tell(error)
        return NOT_STARTED
    with TrialProgress(console, _beginning(settings), len(tasks) or None) as progress:
        unwritten: list[OSError] = []

        def on_record(record: TrialRecord) -> None:
            progress.note(record)
            try:
                append_record(settings.out, record)
            except OSError as error:
                unwritten.append(error)

        try:
            records = asyncio.run(_trial(settings, wallet, tasks, on_record))
        except SetupError as error:
            tell(error)
            return NOT_STARTED
        except KeyboardInterrupt:
            print(f"\ninterrupted; {settings.out / LINES_FILE} has what came", file=sys.stderr)
            return INTERRUPTED
    if records:
        console.print(results_table(records))
    else:
        print(f"nothing arrived: no client submitted a task within {settings.wait:g} s")
    if settings.protocol == "pull":
        early = sum(record.early_pulls for record in records)
        console.print(f"The miner pulled {early} times during a cooldown.")
    try:
        write_records(settings.out, records)
    except OSError as error:
        unwritten.append(error)
    if unwritten:
        # The folder is ours, so the miner's answers are judged all the same.
        print(
            f"error: results are missing in {settings.out}: "
            f"{unwritten[-1].strerror or unwritten[-1]}",
            file=sys.stderr,
        )
        return BAD
    if not records:
        return NOTHING_CAME
    return GOOD if all(record.good for record in records) else BAD


def results_table(records: Sequence[TrialRecord]) -> Table:
    """Lays the records out for a terminal."""
    table = Table()
    table.add_column("task", overflow="fold")
    table.add_column("stages, s", no_wrap=True)
    for heading in ("total", "Gaussians", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("outcome and checks", overflow="fold")
    for record in records:
        stages = "\n".join(
            f"{printable(stage, 32)} {seconds:.2f}" for stage, seconds in record.timings.items()
        )
        verdict = (
            Text(f"{record.outcome}, good", "green")
            if record.good
            else Text("; ".join(printable(problem, 500) for problem in record.problems), "red")
        )
        table.add_row(
            _asked(record),
            Text(stages),
            f"{record.elapsed_s:.2f}",
            f"{record.gaussians:,}" if record.gaussians else "",
            f"{record.size_bytes / 1e6:.2f}" if record.size_bytes else "",
            verdict,
        )
    return table


def _beginning(settings: TrialSettings) -> str:
    if settings.protocol == "push":
        return f"asking {settings.miner}"
    if settings.protocol == "pull":
        return "waiting for the miner to pull"
    gateway = settings.gateway
    callers = "clients and workers" if gateway.open else "workers"
    return f"waiting for {callers} on {gateway.ip}:{gateway.port}"


def _tasks(settings: TrialSettings) -> list[TrialTask]:
    if settings.protocol == "gateway" and settings.gateway.open:
        return []
    return collect_tasks(settings.prompts, settings.images, settings.count)


def _asked(record: TrialRecord) -> Text:
    asked = Text(printable(record.prompt, 1024))
    if record.understood or record.ignored:
        asked.append(f"\n{in_one_line(record.understood, record.ignored)}", "dim")
    return asked


def _trial(
    settings: TrialSettings,
    wallet: Any,
    tasks: Sequence[TrialTask],
    on_record: Callable[[TrialRecord], None],
) -> Coroutine[Any, Any, list[TrialRecord]]:
    # What they import takes seconds; --help and a mistyped flag are answered at once.
    if settings.protocol == "pull":
        from miner.mock_validator.serving import serve_all

        return serve_all(settings, wallet, tasks, on_record)
    if settings.protocol == "gateway":
        from miner.mock_gateway.serving import serve_gateway

        return serve_gateway(settings, tasks, on_record)
    from miner.mock_validator.asking import ask_all

    return ask_all(settings, wallet, tasks, on_record)


def _wallet(settings: TrialSettings) -> Any:
    from miner.chain.wallets import fresh_keypair, open_wallet

    if settings.protocol == "gateway":
        return None  # A gateway signs nothing.
    if settings.wallet.ephemeral:
        return fresh_keypair()
    return open_wallet(settings.wallet.name, settings.wallet.hotkey, settings.wallet.path)


def _make_folder(settings: TrialSettings) -> None:
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
        (settings.out / LINES_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise SetupError(
            f"the folder {settings.out} cannot be written: {error.strerror}",
            fix="choose another one with --out",
        ) from error


if __name__ == "__main__":
    sys.exit(main())
