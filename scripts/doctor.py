"""Tells whether a miner can run here: `python -m scripts.doctor` with the miner's own settings."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pydantic import Field
from rich.console import Console
from rich.text import Text

from miner.doctor.engines import engine_checks
from miner.doctor.findings import Check, Finding, Status, carry_out
from miner.doctor.machine import machine_checks
from miner.doctor.network import network_checks
from miner.doctor.summary import preset_check
from miner.interpreter import program_name
from miner.logs import configure_logs
from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from miner.surroundings import settle, settle_terminal, starting_up, tell
from protocol.errors import SetupError
from protocol.text import printable

HEALTHY, UNWELL = 0, 1

_STYLES = {
    Status.OK: "green",
    Status.WARNING: "yellow",
    Status.FAILED: "bold red",
    Status.UNCHECKED: "dim",
}
_STATUS_WIDTH, _NAME_WIDTH = 12, 14


class DoctorConfig(MinerConfig):
    """Checks whether a miner with these settings can start, serve and be reached.

    One line for each check, with the fix below where one is needed. Exit status: 0 nothing failed,
    1 something did.
    """

    as_json: bool = Field(False, validation_alias="json")
    """Print the findings as one JSON object."""


def main(argv: Sequence[str] | None = None) -> int:
    """Carries out every check and returns the exit status."""
    settle_terminal()
    try:
        with starting_up():
            config = read_settings(
                DoctorConfig, prog=program_name("scripts.doctor"), env_prefix="MINER", argv=argv
            )
            settings = config.generation
    except SetupError as error:
        tell(error)
        return UNWELL
    configure_logs("ERROR")
    checks = [
        preset_check(settings),
        *machine_checks(
            settings,
            config.models.dir,
            config.log.dir,
            stands_in=_settle(),
            engines=config.engines,
        ),
        *engine_checks(config.engines, settings),
        *network_checks(config),
    ]
    findings = asyncio.run(_carry_out(checks, silent=config.as_json))
    well = all(finding.verdict.status is not Status.FAILED for finding in findings)
    if config.as_json:
        print(json.dumps({"ok": well, "findings": [_plain(finding) for finding in findings]}))
    return HEALTHY if well else UNWELL


def _settle() -> Path | SetupError | None:
    try:
        return settle()  # Nothing is made in the folder of the logs: it may be another user's.
    except SetupError as error:
        return error


async def _carry_out(checks: Sequence[Check], *, silent: bool) -> list[Finding]:
    # One after the other: later checks build on earlier ones, and every line comes when it is due.
    console, findings = Console(highlight=False, soft_wrap=True, quiet=silent), []
    for check in checks:
        finding = await carry_out(check)
        console.print(_line(finding))
        findings.append(finding)
    return findings


def _line(finding: Finding) -> Text:
    verdict = finding.verdict
    line = Text.assemble(
        (f"{verdict.status:<{_STATUS_WIDTH}}", _STYLES[verdict.status]),
        f"{finding.check:<{_NAME_WIDTH}}{printable(verdict.found, 1000)}",
    )
    indent = " " * (_STATUS_WIDTH + _NAME_WIDTH)
    for number, part in enumerate(verdict.fix.splitlines()):
        line.append(f"\n{indent}{'fix: ' if number == 0 else '     '}{printable(part, 1000)}")
    return line


def _plain(finding: Finding) -> dict[str, str]:
    verdict = finding.verdict
    return {
        "check": finding.check,
        "status": str(verdict.status),
        "found": verdict.found,
        "fix": verdict.fix,
    }


def run() -> NoReturn:
    """Ends the process as `main` says, whatever threads a hanging library has left behind."""
    status = main()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    run()
