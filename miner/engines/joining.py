"""What both sides of a link have to have in common before an engine may join."""

import hashlib
import json
import platform
from dataclasses import dataclass, fields
from functools import cache
from importlib import metadata
from pathlib import Path

from pydantic import ValidationError

from generation.presets import variant
from generation.settings import GenerationSettings
from generation.weights.store import EMBEDDED, ModelStore, default_models_dir, fetch_command
from miner.logs import program_version
from protocol.errors import SetupError

UNREADABLE = "of another version"


@dataclass(frozen=True)
class Identity:
    """What one side runs, in words that are compared.

    Attributes:
        version: Of this package.
        python: Its first two numbers.
        torch: Version, without the build that its CUDA is for.
        preset: Name, and a digest of all its settings as this side understands them.
        weights: A digest of the SHA-256 that every file of the weights should have here.
    """

    version: str
    python: str
    torch: str
    preset: str
    weights: str


_NAMES = {
    "version": "splat-miner",
    "python": "Python",
    "torch": "torch",
    "preset": "preset",
    "weights": "weights",
}


def identity_of(settings: str, models_dir: Path | None) -> Identity:
    """Returns what this side runs.

    Args:
        settings: The preset, as JSON of the other side.
        models_dir: The models folder; the default one when None.

    Raises:
        SetupError: The lock file of the weights cannot be read, or lacks a model.
    """
    python = ".".join(platform.python_version_tuple()[:2])
    torch = metadata.version("torch").partition("+")[0]
    try:
        preset = GenerationSettings.model_validate_json(settings)
    except ValidationError:
        return Identity(program_version(), python, torch, UNREADABLE, UNREADABLE)
    digest = hashlib.sha256(preset.model_dump_json(exclude={"device"}).encode()).hexdigest()[:12]
    return Identity(
        program_version(),
        python,
        torch,
        f"{variant(preset)} {digest}",
        _weights(preset, models_dir),
    )


def require_same(engine: str, there: Identity, here: Identity, fetch: str) -> None:
    """Refuses an engine that would not generate what this side expects.

    Args:
        engine: Its name and place, for the message.
        there: What it runs.
        here: What the front runs.
        fetch: The command that downloads the weights.

    Raises:
        SetupError: They differ; names everything that does.
    """
    differing = [
        f"{_NAMES[field.name]} {getattr(there, field.name)} there, {getattr(here, field.name)} here"
        for field in fields(Identity)
        if getattr(there, field.name) != getattr(here, field.name)
    ]
    if not differing:
        return
    fix = "on that machine, check out this version and run `make install EXTRAS=...` as here; then"
    if there.version == here.version and there.weights != here.weights:
        fix = f"on that machine: {fetch}\nthen"
    raise SetupError(
        f"{engine} cannot join: {'; '.join(differing)}",
        fix=f"{fix} `ray stop` and `ray start` there (docs/many-gpus.md)",
    )


def _weights(settings: GenerationSettings, models_dir: Path | None) -> str:
    if not settings.models:
        return f"embedded {_shipped()}"
    store = ModelStore(models_dir or default_models_dir())
    wanted = {}
    for model in settings.models:
        locked = store.lock.get(model.name)
        if locked is None:
            raise SetupError(
                f"{model.name} has not been downloaded to {store.root}",
                fix=fetch_command(settings, models_dir),
            )
        pinned = store.pinned(model)
        wanted[model.name] = {
            name: pinned.get(name, file).sha256 for name, file in sorted(locked.files.items())
        }
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()[:12]


@cache
def _shipped() -> str:
    digest = hashlib.sha256()
    for file in sorted(path for path in EMBEDDED.rglob("*") if path.is_file()):
        digest.update(file.relative_to(EMBEDDED).as_posix().encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
