"""Downloads the weights of a preset: `python -m scripts.fetch_models --preset gpu80`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from pydantic import model_validator

from generation.presets import PRESETS
from generation.weights.acceptance import require_acceptance
from generation.weights.download import fetch_models
from generation.weights.pins import add_pins
from generation.weights.store import LOCK_NAME, ModelStore, default_models_dir
from miner.interpreter import program_name
from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from miner.surroundings import settle, settle_terminal, starting_up, tell
from protocol.errors import SetupError


class FetchConfig(MinerConfig):
    """Downloads the weights of a preset, pins them and verifies them.

    Takes the miner's own settings. Running it again completes an interrupted download and repairs
    damaged files.
    """

    pin: Path | None = None
    """For maintainers: enter commit, sizes and SHA-256 of the models that are here afterwards into
    this file, such as generation/weights/pins.json; what it says of other models is kept."""

    @model_validator(mode="after")
    def _preset_is_chosen(self) -> Self:
        if self.preset is None:
            raise SetupError("no preset is given", fix=f"--preset {{{','.join(PRESETS)}}}")
        return self


def main(arguments: Sequence[str] | None = None, *, endpoint: str | None = None) -> int:
    """Fetches what is missing and verifies the rest; returns the exit status.

    Args:
        arguments: The command line; that of the process when None.
        endpoint: Address of the hub; huggingface_hub's own when None.
    """
    settle_terminal()
    try:
        settle()
        config = read_settings(
            FetchConfig,
            prog=program_name("scripts.fetch_models"),
            env_prefix="MINER",
            argv=arguments,
        )
        settings = config.generation
        if not settings.models:
            print(f"preset {settings.name} needs no download")
            return 0
        require_acceptance(settings)
        root = config.models.dir or default_models_dir()
        print(f"models folder: {root}")
        store = ModelStore(root)
        with starting_up():
            fetch_models(settings.models, store, endpoint=endpoint, report=print)
        print(f"locked in {root / LOCK_NAME}")
        if config.pin is not None:
            _pin(config.pin, store, [model.name for model in settings.models])
    except SetupError as error:
        tell(error)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _pin(file: Path, store: ModelStore, names: Sequence[str]) -> None:
    try:
        add_pins(file, store.lock, names)
    except OSError as error:
        raise SetupError(
            f"{file} cannot be written: {error.strerror or error}", fix="give another to --pin"
        ) from error
    except ValueError as error:
        raise SetupError(
            f"{file} cannot be read as pins: {error}", fix="restore it, or give another to --pin"
        ) from error
    print(f"pinned in {file}")


if __name__ == "__main__":
    sys.exit(main())
