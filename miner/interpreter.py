"""The Python that runs a program: any other than that of the environment has no libraries."""

import sys
from importlib.util import find_spec

COMMAND = "splat-miner"
"""The console command."""

_OLDEST = (3, 11)
_NEEDED = ("loguru", "pydantic", "pydantic_settings", "yaml", "rich")


def require_environment() -> None:
    """Ends a program with 2 and one sentence if its libraries are not there, before it imports any.

    Plain enough for a Python that is too old for the rest.
    """
    if sys.version_info < _OLDEST:
        problem = f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old, 3.11 is needed"
    else:
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if not missing:
            return
        problem = f"{sys.executable} has no {', '.join(missing)}"
    sys.stderr.write(f"error: {problem}\n  fix: make install, then . .venv/bin/activate\n")
    raise SystemExit(2)


def program_name(module: str) -> str:
    """Returns how a program was called, for its help: `splat-miner doctor` or `python -m ...`.

    Args:
        module: The module that `python -m` takes.
    """
    called = sys.argv[0]  # `scripts.cli` puts the subcommand there.
    return called if called.startswith(f"{COMMAND} ") else f"python -m {module}"
