"""Where this user keeps what can be made or downloaded again."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Our folder for what can be made or downloaded again: $XDG_CACHE_HOME or ~/.cache.

    Raises:
        RuntimeError: This user has no home.
    """
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # A relative path is to be ignored, says the XDG Base Directory Specification.
    return (named if named.is_absolute() else Path.home() / ".cache") / "splat-miner"
