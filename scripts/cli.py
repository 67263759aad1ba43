"""The console command: `splat-miner run` and its siblings.

Each subcommand is a program of its own, which `python -m` starts as well. Only the one that is
called is imported, so that the list of commands is shown at once.
"""

import difflib
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from miner.interpreter import COMMAND
from protocol.text import printable

WRONG = 2


@dataclass(frozen=True)
class Program:
    """A program that a subcommand starts.

    Attributes:
        module: The module that `python -m` takes.
        purpose: One line for the list of commands.
        entry: The function of the module that runs it, with the arguments of `sys.argv`; it returns
            the exit status or ends the process.
    """

    module: str
    purpose: str
    entry: str = "main"


PROGRAMS = {
    "run": Program("neurons.miner", "run the miner"),
    "doctor": Program("scripts.doctor", "report what is missing on this machine", "run"),
    "fetch": Program("scripts.fetch_models", "download, pin and verify a preset's weights"),
    "make": Program("scripts.text_to_3d", "make 3D objects from words"),
    "image": Program("scripts.image_to_3d", "make a 3D object from a picture"),
    "compare": Program("scripts.compare_models", "compare text-to-image models by their scores"),
    "inspect": Program("scripts.inspect_asset", "check a PLY or SPZ as a validator does"),
    "monitor": Program("scripts.monitor_scores", "report on the score log"),
    "demo": Program("scripts.demo", "run a miner and mocks of its counterparts on this machine"),
    "mock-validator": Program(
        "neurons.mock_validator", "try a miner as a validator or the owner's gateway would"
    ),
    "client": Program("scripts.gateway_client", "have a gateway, or its mock, make objects"),
    "benchmark": Program("scripts.benchmark", "measure this machine"),
    "configuration": Program("scripts.configuration", "renew the tables of docs/configuration.md"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns its exit status; 2 for a command that does not exist.

    Args:
        argv: The command line without the program; that of the process when None.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    match arguments:
        case ["-h" | "--help"]:
            print(_usage())
            return 0
        case ["--version"]:
            print(f"{COMMAND} {metadata.version(COMMAND)}")
            return 0
        case [name, *rest] if name in PROGRAMS:
            program = PROGRAMS[name]
            # `program_name` reads it, for the program's own --help.
            sys.argv = [f"{COMMAND} {name}", *rest]
            status: int = getattr(importlib.import_module(program.module), program.entry)()
            return status
        case [name, *_]:
            sys.stderr.write(_unknown(name))
        case _:
            sys.stderr.write(_usage() + "\n")
    return WRONG


def _usage() -> str:
    width = max(map(len, PROGRAMS)) + 2
    lines = [f"  {name:<{width}}{program.purpose}" for name, program in PROGRAMS.items()]
    return "\n".join(
        [
            f"usage: {COMMAND} COMMAND [arguments]",
            f"       {COMMAND} --version",
            "",
            *lines,
            "",
            f"{COMMAND} COMMAND --help shows what a command takes.",
        ]
    )


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name[:80], PROGRAMS, n=1)
    fix = f"did you mean {COMMAND} {near[0]}?" if near else f"{COMMAND} --help lists the commands"
    return f"error: unknown command '{printable(name, 80)}'\n  fix: {fix}\n"


if __name__ == "__main__":
    sys.exit(main())
