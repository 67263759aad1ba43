"""Writing files that are whole or absent."""

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(file: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a draft beside `file`, then moves it into place."""
    draft = file.with_name(f".{file.name}.draft")
    file.parent.mkdir(parents=True, exist_ok=True)
    write(draft)
    os.replace(draft, file)
