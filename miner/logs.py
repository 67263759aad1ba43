"""Where the program's own log goes: the terminal, and a file beside the score log."""

import sys
from importlib import metadata
from pathlib import Path

from loguru import logger

from miner.score.log import is_score_line
from protocol.errors import SetupError


def configure_logs(level: str, folder: Path | None = None) -> None:
    """Sends the log to stderr, and to `folder`/miner.log where one is given.

    Removes every other sink, so a `ScoreLog` is opened afterwards. Values of variables are kept
    out of tracebacks: they may be prompts or images.

    Raises:
        SetupError: The folder cannot be written.
    """
    logger.remove()
    logger.add(
        sys.stderr,
        level=level,
        filter=lambda record: not is_score_line(record),
        format="<dim>{time:HH:mm:ss}</dim> <level>{level: <7}</level> {message}",
        diagnose=False,
        backtrace=False,
    )
    if folder is None:
        return
    try:
        logger.add(
            folder / "miner.log",
            level=level,
            filter=lambda record: not is_score_line(record),
            rotation="20 MB",
            retention=5,
            encoding="utf-8",
            diagnose=False,
            backtrace=False,
        )
    except OSError as error:
        raise SetupError(
            f"the log folder {folder} cannot be written: {error.strerror or error}",
            fix="give a writable folder with --log.dir",
        ) from error


def program_version() -> str:
    """Returns the version of the installed package, or "unknown" when it runs uninstalled."""
    try:
        return metadata.version("splat-miner")
    except metadata.PackageNotFoundError:
        return "unknown"
