"""Downloads the weights of a preset: `python -m scripts.fetch_models --preset gpu80`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from generation.presets import PRESETS, preset
from generation.weights.download import fetch_models
from generation.weights.store import LOCK_NAME, ModelStore, default_models_dir
from miner.interpreter import program_name
from miner.surroundings import settle, settle_terminal, starting_up, tell
from protocol.errors import SetupError


def main(arguments: Sequence[str] | None = None, *, endpoint: str | None = None) -> int:
    """Fetches what is missing and verifies the rest; returns the exit status.

    Args:
        arguments: The command line; that of the process when None.
        endpoint: Address of the hub; huggingface_hub's own when None.
    """
    settle_terminal()
    try:
        settle()
        options = _parser().parse_args(arguments)
        settings = preset(options.preset)
        if not settings.models:
            print(f"preset {settings.name} needs no download")
            return 0
        root = options.models_dir or default_models_dir()
        print(f"models folder: {root}")
        with starting_up():
            fetch_models(settings.models, ModelStore(root), endpoint=endpoint, report=print)
    except SetupError as error:
        tell(error)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    print(f"locked in {root / LOCK_NAME}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program_name("scripts.fetch_models"),
        description="Downloads the weights of a preset, pins them and verifies them. Running it "
        "again completes an interrupted download and repairs damaged files.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--preset", required=True, choices=PRESETS, help="whose weights to download"
    )
    parser.add_argument(
        "--models.dir",
        dest="models_dir",
        type=Path,
        metavar="DIR",
        help=f"where to put them (default: {default_models_dir()})",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
