"""Where weights lie on disk, and the lock file that says what they must be."""

import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loguru import logger
from pydantic import TypeAdapter, ValidationError

from generation.presets import changes
from generation.settings import GenerationSettings
from generation.weights.acceptance import require_acceptance
from generation.weights.cache_dir import cache_dir
from generation.weights.pins import (
    LockedFile,
    LockedModel,
    read_models,
    shipped_pins,
    write_models,
)
from generation.weights.sources import (
    CUTOUT_NAMES,
    FILE_LICENCES,
    FLUX_NAMES,
    ModelSource,
    ReleaseModel,
)
from protocol.documents import DocumentError, read_json
from protocol.errors import SetupError
from protocol.files import replace_file

EMBEDDED = Path(__file__).parents[1] / "embedded"
"""The small trained networks that are part of the package (docs/embedded-models.md)."""

LOCK_NAME = "models.lock.json"
_VERIFIED_NAME = ".verified.json"


@dataclass(frozen=True)
class ModelPaths:
    """What the stages load.

    Attributes:
        text_to_image: Folder in the layout of one of `generation.pictures.loading.PIPELINES`.
        cutout: ONNX file.
        lift: Folder with the weights of the 3D back end.
    """

    text_to_image: Path
    cutout: Path
    lift: Path


FETCH_AGAIN = "fetch again: python -m scripts.fetch_models with the same settings"
"""The fix where only a file is known, and not the settings that it belongs to."""

_DECIDES_ON_WEIGHTS = re.compile(
    r"(\.|_)model(\.|$)|^lift\.backend$|^dreamgaussian\.guidance$|^scoring\.(scorer|image_alignment)$|\.accept_"
)
"""Among the names of settings."""

_Verified = TypeAdapter(dict[str, tuple[int, int, str]])


def default_models_dir() -> Path:
    """Where weights lie if no folder is given."""
    return cache_dir() / "models"


def models_option(models_dir: Path | None) -> str:
    """What a printed command needs to use the same models folder; empty for the default one."""
    return "" if models_dir is None else f" --models.dir {shlex.quote(str(models_dir))}"


def fetch_command(settings: GenerationSettings, models_dir: Path | None) -> str:
    """Returns the command that downloads the weights of these settings to the same folder.

    Args:
        settings: A preset, perhaps changed: the command repeats what decides on weights, such as
            the back end, and an acceptance that was given.
        models_dir: The models folder; the default one when None.
    """
    short = {
        "text_to_image.model": FLUX_NAMES.name_of(settings.text_to_image.model),
        "cutout.model": CUTOUT_NAMES.name_of(settings.cutout.model),
    }
    chosen: dict[str, str] = {}
    for name, value in changes(settings).items():
        known = next((model for model in short if short[model] and name.startswith(model)), None)
        if known is not None:
            chosen[known] = str(short[known])
        elif _DECIDES_ON_WEIGHTS.search(name):
            chosen[name] = _as_argument(value)
    options = "".join(f" --{name} {shlex.quote(value)}" for name, value in chosen.items())
    command = f"python -m scripts.fetch_models --preset {settings.name}"
    return f"{command}{options}{models_option(models_dir)}"


def _as_argument(value: Any) -> str:
    """Writes a value as it is given on the command line."""
    if isinstance(value, list):
        return ",".join(value)
    return value if isinstance(value, str) else json.dumps(value)


def locate_models(
    settings: GenerationSettings, models_dir: Path | None = None, *, image_only: bool = False
) -> ModelPaths:
    """Finds and verifies everything that a preset loads; downloads nothing.

    Args:
        settings: The preset. One without model sources gets the networks that are shipped.
        models_dir: The models folder; `default_models_dir()` when None.
        image_only: Do not verify text to image, which a start from a picture does not use.

    Raises:
        SetupError: A licence has not been accepted, or a file is missing or not the one in the
            lock file.
    """
    if settings.lift.backend == "dreamgaussian" and settings.lift_downloads and not settings.models:
        raise SetupError(
            f"the guidance zero123 has no weights in the preset {settings.name}",
            fix="use a preset for GPUs (--preset gpu24) or another --dreamgaussian.guidance",
        )
    shipped = EMBEDDED / settings.lift.backend
    if not settings.models:
        return ModelPaths(EMBEDDED / "flux", EMBEDDED / "background.onnx", shipped)
    require_acceptance(settings)
    store = ModelStore(models_dir or default_models_dir())
    fetch = fetch_command(settings, models_dir)

    def path(setting: str, model: ModelSource | None) -> Path:
        if model is None:
            raise SetupError(
                f"--{setting} is null, but other models of preset {settings.name} have sources",
                fix=f"use a preset for GPUs (--preset gpu24) and leave --{setting} out, which "
                "takes the preset's own source",
            )
        folder = store.folder(model)
        return folder / model.file if isinstance(model, ReleaseModel) else folder

    # First: nothing is to be downloaded for settings that cannot be loaded.
    paths = ModelPaths(
        text_to_image=path("text_to_image.model", settings.text_to_image.model),
        cutout=path("cutout.model", settings.cutout.model),
        lift=path(f"{settings.lift.backend}.model", settings.lift_model)
        if settings.lift_downloads
        else shipped,
    )
    for model in settings.models:
        if not (image_only and model == settings.text_to_image.model):
            store.verify(model, fix=fetch)
    return paths


class ModelStore:
    """A folder of models with its lock file, which the pins of this version overrule.

    Files are hashed once: `.verified.json` remembers size, modification time and SHA-256, and a
    file that still has that size and time is taken as unchanged.

    Args:
        root: The models folder; need not exist.

    Raises:
        SetupError: The lock file is not one.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pins = shipped_pins()
        self.lock = self._read_lock()
        self._verified = self._read_verified()

    def folder(self, model: ModelSource) -> Path:
        """Where the model's files lie."""
        return self.root / model.folder

    def verify(self, model: ModelSource, *, fix: str) -> None:
        """Checks that every locked file of the model is there and unchanged.

        Raises:
            SetupError: The first file that is not, with what was expected and found.
        """
        locked = self.lock.get(model.name)
        if locked is None:
            raise SetupError(f"{model.name} has not been downloaded to {self.root}", fix=fix)
        if self.is_superseded(model):
            raise SetupError(
                f"{model.name} was downloaded at revision {locked.revision}, "
                f"{self.revision(model)} is wanted",
                fix=fix,
            )
        for name in locked.files:
            problem = self.problem(model, name)
            if problem is not None:
                raise SetupError(problem, fix=fix)

    def revision(self, model: ModelSource) -> str | None:
        """Commit that the source names, else the pinned one, or None; the address of a file."""
        if isinstance(model, ReleaseModel):
            return model.url
        if model.revision is not None:
            return model.revision
        pin = self.pins.get(model.name)
        return None if pin is None else pin.revision

    def pinned(self, model: ModelSource) -> Mapping[str, LockedFile]:
        """Files that this version pins, by path; none where the source names another revision."""
        pin = self.pins.get(model.name)
        return pin.files if pin is not None and pin.revision == self.revision(model) else {}

    def is_superseded(self, model: ModelSource) -> bool:
        """Whether another revision is wanted than the one that was downloaded."""
        return self.revision(model) not in {None, self.lock[model.name].revision}

    def problem(self, model: ModelSource, name: str) -> str | None:
        """Compares one file with its pin, else the lock; returns what is wrong with it, or None.

        Raises:
            SetupError: It lies outside the models folder, or may not be read.
        """
        pin = self.pinned(model).get(name)
        expected = pin or self.lock[model.name].files[name]
        by = "pinned by this version" if pin else f"by {LOCK_NAME}"
        file = self.folder(model) / name
        self._require_inside(file, self.folder(model))
        try:
            if not file.is_file():
                return f"{file} is missing"
            size = file.stat().st_size
            if size != expected.size:
                return f"{file} has {size} bytes, {expected.size} were expected ({by})"
            found = self.sha256(file)
        except OSError as error:
            raise SetupError(
                f"{file} cannot be read: {error.strerror or error}",
                fix="let this user read the models folder, or give another with --models.dir",
            ) from error
        if found != expected.sha256:
            return f"{file} has SHA-256 {found}, {expected.sha256} was expected ({by})"
        return None

    def _require_inside(self, file: Path, folder: Path) -> None:
        """The models folder and a model's own folder may be links; nothing in them leads out."""
        try:
            target = file.resolve()
            if any(target.is_relative_to(home.resolve()) for home in (self.root, folder)):
                return
        except (OSError, RuntimeError) as error:  # Links that lead to each other.
            raise SetupError(f"{file} cannot be followed: {error}", fix="remove the link") from None
        raise SetupError(
            f"{file} leads out of the models folder, to {target}",
            fix="put the file in the place of the link, or name its folder with --models.dir",
        )

    def sha256(self, file: Path) -> str:
        """SHA-256 of a file below the root, remembered for as long as the file is unchanged."""
        key = file.relative_to(self.root).as_posix()
        state = file.stat()
        known = self._verified.get(key)
        if known is not None and known[:2] == (state.st_size, state.st_mtime_ns):
            return known[2]
        if state.st_size > 100_000_000:
            logger.info("verifying {} ({:.1f} GB)", file, state.st_size / 1e9)
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        self._verified[key] = (state.st_size, state.st_mtime_ns, digest)
        try:
            content = json.dumps(self._verified, indent=1)
            replace_file(self.root / _VERIFIED_NAME, f"{content}\n".encode())
        except OSError as error:
            # A folder that may only be read serves as well; it is hashed at every start.
            logger.debug("{} cannot be written: {}", self.root / _VERIFIED_NAME, error)
        return digest

    def record(self, model: ModelSource, revision: str, names: list[str]) -> None:
        """Enters the model's files, as they are now, into the lock file."""
        folder = self.folder(model)
        files = {
            name: LockedFile(
                size=(folder / name).stat().st_size,
                sha256=self.sha256(folder / name),
                licence=FILE_LICENCES.get(name),
            )
            for name in names
        }
        self.lock[model.name] = LockedModel(revision=revision, licence=model.licence, files=files)
        write_models(self.root / LOCK_NAME, self.lock)

    def _read_lock(self) -> dict[str, LockedModel]:
        file = self.root / LOCK_NAME
        try:
            return read_models(file)
        except OSError as error:
            raise SetupError(
                f"{file} cannot be read: {error.strerror or error}",
                fix="make it readable, or give another folder with --models.dir",
            ) from error
        except ValueError as error:
            problem = str(error)
        raise SetupError(
            f"{file} cannot be read as a lock file: {problem}",
            fix=f"restore it, or remove it and fetch the models again: rm {shlex.quote(str(file))}",
        )

    def _read_verified(self) -> dict[str, tuple[int, int, str]]:
        try:
            return _Verified.validate_python(read_json(self.root / _VERIFIED_NAME))
        except (DocumentError, ValidationError):
            return {}
