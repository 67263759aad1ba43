"""Where the figures of a benchmark go."""

import json
from pathlib import Path

from protocol.errors import SetupError
from protocol.files import replace_file


def write_figures(out: Path | None, figures: object) -> None:
    """Writes figures as JSON in one step, or nothing without a file.

    Raises:
        SetupError: The file cannot be written.
    """
    if out is None:
        return
    try:
        replace_file(out, (json.dumps(figures, indent=1) + "\n").encode())
    except OSError as error:
        raise SetupError(
            f"the figures cannot be written to {out}: {error.strerror or error}",
            fix="name a writable file with --json",
        ) from error
