"""The Python that runs a program: any other than that of the environment has no libraries."""

import sys
from importlib.util import find_spec

_OLDEST = (3, 11)
_NEEDED = ("loguru", "pydantic", "yaml", "rich")


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
