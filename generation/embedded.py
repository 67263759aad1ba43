"""Stand-in networks for the preset `embedded`: tiny, with random weights from a fixed seed.

They are written once to the cache folder in the layouts of the real models and then loaded by the
code that loads real weights, so every stage runs on a machine that has none.
"""

import hashlib
import json
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from loguru import logger

from generation.model_store import ModelPaths, cache_dir
from protocol.errors import SetupError

_MANIFEST = "files.json"
_LIBRARIES = ("torch", "diffusers", "transformers", "onnx")


def ensure(cache: Path | None = None) -> ModelPaths:
    """Returns the stand-ins' folders, writing them first where they are missing or incomplete.

    Args:
        cache: The cache folder; `cache_dir()` when None.

    Raises:
        SetupError: The folder cannot be written.
    """
    parent = (cache or cache_dir()) / "embedded"
    folder = parent / _key()
    if not _complete(folder):
        logger.info("writing the untrained networks of preset embedded to {}", folder)
        try:
            _write_atomically(folder)
        except OSError as error:
            raise SetupError(
                f"the networks of preset embedded cannot be written to {folder}: {error}",
                fix="make room, or set XDG_CACHE_HOME to a folder that can be written",
            ) from error
    return _paths(folder)


def _paths(folder: Path) -> ModelPaths:
    return ModelPaths(
        text_to_image=folder / "flux",
        background=folder / "background" / "background.onnx",
        triposr=folder / "triposr",
    )


def _key() -> str:
    """Names what the folder's content follows from: our recipes and the libraries that save it."""
    here = Path(__file__)
    digest = hashlib.sha256(",".join(f"{name} {version(name)}" for name in _LIBRARIES).encode())
    for source in (here.with_name("standins.py"), *sorted(here.parent.glob("triposr/*.py"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


def _sizes(folder: Path) -> dict[str, int]:
    return {
        file.relative_to(folder).as_posix(): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name != _MANIFEST
    }


def _complete(folder: Path) -> bool:
    try:
        expected = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(expected == _sizes(folder))


def _write_atomically(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=folder.parent) as draft:
        written = Path(draft) / folder.name
        _write(written)
        shutil.rmtree(folder, ignore_errors=True)
        try:
            os.rename(written, folder)
        except OSError:
            # Another process may have been faster; its folder is as good as ours.
            if not _complete(folder):
                raise


def _write(folder: Path) -> None:
    from generation import standins

    paths = _paths(folder)
    standins.write_flux(paths.text_to_image)
    standins.write_background(paths.background)
    standins.write_triposr(paths.triposr)
    (folder / _MANIFEST).write_text(json.dumps(_sizes(folder)), encoding="utf-8")
