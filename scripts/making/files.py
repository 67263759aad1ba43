"""The files that a finished object becomes: their names, and their bytes."""

import io
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from generation.lift import no_output, outputs_of
from generation.stage import Asset, TriangleMesh
from generation.weights.sources import Frozen
from protocol import ply
from protocol.errors import SetupError
from protocol.gaussians import GaussianCloud
from protocol.text import printable

CLOUDS, MESHES, PICTURE, VIDEO = (".spz", ".ply"), (".glb", ".obj"), ".png", ".mp4"
FORMATS = (*CLOUDS, *MESHES, PICTURE, VIDEO)

NAME = "{name}"
"""What stands for the object in a file's name."""

LEAST_FREE_BYTES = 1_000_000
"""A disk with less is as good as full: an object of 20,000 Gaussians takes 0.3 MB as SPZ."""

_LONGEST_NAME = 60


class VideoSettings(Frozen):
    """The turntable of an .mp4."""

    seconds: Annotated[float, Field(gt=0.0, le=60.0)] = 4.0
    """How long once round takes."""
    size: Annotated[int, Field(ge=64, le=2048, multiple_of=2)] = 512
    """Width and height in pixels; even."""
    fps: Annotated[int, Field(ge=1, le=120)] = 24
    """Pictures per second."""

    @property
    def frames(self) -> int:
        """How many pictures that makes."""
        return max(1, round(self.seconds * self.fps))


@dataclass(frozen=True, eq=False)
class Made:
    """A finished object.

    Attributes:
        asset: The Gaussian cloud, if a file needs it.
        mesh: The mesh, if a file needs it.
    """

    asset: Asset | None
    mesh: TriangleMesh | None


def name_of(text: str) -> str:
    """Returns a text as a part of a file's name: letters and digits in lower case, and hyphens."""
    name = "-".join(re.findall(r"[^\W_]+", text.casefold()))[:_LONGEST_NAME].strip("-")
    return name or "object"


def name_files(out: Path, also: Sequence[str], names: Sequence[str]) -> list[list[Path]]:
    """Returns the files of every object.

    Args:
        out: As the user gives it, with `{name}` for the object's name.
        also: Further formats, with or without the dot; one that is there already is left out.
        names: Of the objects; one that comes twice gets a number.

    Raises:
        SetupError: An end that is no format, no `{name}` for several objects, a folder that is not
            there, that cannot be written or whose disk is full, or something in a file's place that
            is none.
    """
    ends = dict.fromkeys([out.suffix.lower(), *(f".{end.lower().lstrip('.')}" for end in also)])
    for end in ends:
        if end not in FORMATS:
            given = f"--out must end in {', '.join(FORMATS)}, got {_shown(out)}"
            if end != out.suffix.lower():
                given = f"--also takes {', '.join(FORMATS)}, got {printable(end)}"
            raise SetupError(given, fix="name another format")
    if NAME not in str(out) and len(names) > 1:
        better = out.with_name(f"{NAME}{out.suffix}")
        raise SetupError(
            f"--out {_shown(out)} is one file for {len(names)} objects",
            fix=f"write {NAME} in it, such as --out '{_shown(better)}'",
        )
    files = []
    for name in _numbered(names):
        first = Path(str(out).replace(NAME, name))
        files.append([first, *(first.with_suffix(end) for end in list(ends)[1:])])
        for file in files[-1]:
            _check_place(file)
    return files


def require_outputs(files: Iterable[Path], back_end: str) -> None:
    """Checks that a 3D back end makes what every file needs.

    Raises:
        SetupError: The back end makes no mesh, and a file is one.
    """
    meshes = [file for file in files if file.suffix.lower() in MESHES]
    if meshes and "mesh" not in outputs_of(back_end):
        problem, fix = no_output(back_end, "mesh")
        raise SetupError(f"{_shown(meshes[0])} cannot be made: {problem}", fix=fix)


def preview_of(files: Sequence[Path]) -> Path | None:
    """Returns where an object's preview goes; None if one of its files is a picture anyway."""
    if any(file.suffix.lower() == PICTURE for file in files):
        return None
    return files[0].with_name(f"{files[0].stem}.preview{PICTURE}")


def encode(made: Made, suffix: str, video: VideoSettings) -> bytes:
    """Returns the bytes of a file; for a video, a progress bar shows the pictures being drawn.

    Args:
        made: The object; with its mesh, if the format is one of `MESHES`.
        suffix: One of `FORMATS`.
        video: The turntable of an .mp4.

    Raises:
        SetupError: No video can be written here.
    """
    if made.mesh is not None and suffix in MESHES:
        from generation.lift.triposr.mesh_files import to_glb, to_obj

        return to_glb(made.mesh) if suffix == ".glb" else to_obj(made.mesh)
    if made.asset is not None:
        match suffix:
            case ".spz":
                return made.asset.spz
            case ".ply":
                return ply.encode(made.asset.cloud)
            case ".png":
                return _picture(made.asset.cloud)
            case ".mp4":
                return _video(made.asset.cloud, video)
    raise ValueError(f"nothing was made for a {suffix} file")


def _picture(cloud: GaussianCloud) -> bytes:
    from generation.rendering import preview_grid

    data = io.BytesIO()
    preview_grid(cloud).save(data, format="PNG", optimize=True)
    return data.getvalue()


def _video(cloud: GaussianCloud, settings: VideoSettings) -> bytes:
    from tqdm import tqdm

    from generation.rendering.turntable import encode_mp4, turntable

    pictures = turntable(cloud, settings.frames, settings.size)
    with tqdm(
        pictures, "drawing", settings.frames, leave=False, disable=None, unit="picture"
    ) as bar:
        return encode_mp4(bar, settings.size, fps=settings.fps)


def _numbered(names: Sequence[str]) -> Iterator[str]:
    taken: set[str] = set()
    for name in names:
        number, unique = 1, name
        while unique in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique)
        yield unique


def _check_place(file: Path) -> None:
    try:
        if not file.parent.is_dir():
            raise SetupError(
                f"--out: there is no folder {_shown(file.parent)}", fix="make it, or name another"
            )
        if file.exists() and not file.is_file():
            raise SetupError(f"--out: {_shown(file)} is no plain file", fix="name another")
        # Files are replaced, so it is the folder that has to be written: that of a link's target.
        folder = Path(os.path.realpath(file)).parent
        if not os.access(folder, os.W_OK | os.X_OK):
            raise SetupError(
                f"--out: {_shown(folder)} cannot be written by this user", fix="name another"
            )
        if (free := shutil.disk_usage(folder).free) < LEAST_FREE_BYTES:
            raise SetupError(
                f"--out: the disk of {_shown(folder)} has {free:,} bytes free, at least "
                f"{LEAST_FREE_BYTES:,} are needed",
                fix="free some, or name a folder on another disk",
            )
    except OSError as error:
        raise SetupError(
            f"--out: {_shown(file)}: {reason(error)}", fix="name another file"
        ) from None


def reason(error: Exception) -> str:
    """What happened, without the name of the file, which the caller shows in its harmless form."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _shown(path: Path) -> str:
    return printable(str(path))
