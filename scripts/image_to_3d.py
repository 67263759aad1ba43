"""Makes a 3D object from a picture: `python -m scripts.image_to_3d PHOTO.png --out toy.glb`.

The end of the output's name decides what is made: `.spz` or `.ply` a Gaussian cloud, `.glb` or
`.obj` a mesh with vertex colours. All have y up, the pictured side towards +z and the same size.
Exit status: 0 made, 1 not made, 2 a wrong argument, or a file that cannot be read or written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from generation.errors import GenerationError
from generation.presets import PRESETS, preset
from generation.settings import GenerationSettings, MeshSettings
from miner.interpreter import program_name
from miner.surroundings import settle, settle_terminal
from protocol.errors import SetupError, TaskError
from protocol.files import replace_file
from protocol.images import ImageLimits, decode_image
from protocol.text import printable

if TYPE_CHECKING:
    from PIL import Image

CLOUDS = (".spz", ".ply")
MESHES = (".glb", ".obj")
LIMITS = ImageLimits(bytes=64 * 2**20, pixels=2**27, side=2**15)
"""A user's own camera may take larger pictures than a validator sends."""

_MADE, _NOT_MADE, _WRONG = 0, 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes one object and returns the exit status."""
    settle_terminal()
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        _check_out(options.out)
        settings = _settings(options)
        mesh_size = _mesh_size(options)
    except ValueError as error:
        parser.error(str(error))
    out = printable(str(options.out))
    try:
        image = _read(options.image)
    except (OSError, TaskError) as error:
        return _failed(f"cannot read {printable(str(options.image))}: {_reason(error)}", _WRONG)
    try:
        settle()
        data = make(image, settings, options.out.suffix, options.models_dir, mesh_size)
    except (SetupError, GenerationError, OSError) as error:
        return _failed(str(error), _NOT_MADE)
    try:
        replace_file(options.out, data)
    except OSError as error:
        return _failed(f"cannot write {out}: {_reason(error)}", _WRONG)
    print(f"{out}: {len(data):,} bytes")
    return _MADE


def make(
    image: "Image.Image",
    settings: GenerationSettings,
    suffix: str,
    models_dir: Path | None,
    mesh_size: MeshSettings,
) -> bytes:
    """Turns a picture into the bytes of a file.

    Args:
        image: RGB, or RGBA that is cut out already.
        settings: Background, TripoSR and splat settings are used; those that find the surface
            hold for meshes too.
        suffix: One of `CLOUDS` or `MESHES`.
        models_dir: The models folder; the default one when None.
        mesh_size: How fine a mesh is made.

    Raises:
        SetupError: A model is missing or not as it should be.
        GenerationError: No object was found in the picture, or the network sees none.
    """
    import torch

    from generation.lift.triposr import TripoSR
    from generation.lift.triposr.mesh_files import to_glb, to_obj
    from generation.lift.triposr.splats import extract_cloud
    from generation.lift.triposr.triangles import extract_triangles
    from generation.loading import require_device
    from generation.pictures.cutout import BackgroundRemover
    from generation.pictures.framing import composite_on_grey
    from generation.weights.store import locate_models
    from protocol import ply, spz

    paths = locate_models(settings, models_dir, image_only=True)
    device = require_device(settings)
    cutout = BackgroundRemover(paths.cutout, settings.cutout, device)(image)
    model = TripoSR.from_pretrained(
        paths.triposr,
        device=device,
        dtype=getattr(torch, settings.triposr.dtype),
        query_chunk=settings.triposr.chunk_size,
    )
    code = model.scene_codes(composite_on_grey(cutout))
    if suffix.lower() in MESHES:
        mesh = extract_triangles(
            model, code, settings.splats, mesh_size, progress=sys.stderr.isatty()
        )
        return to_glb(mesh) if suffix.lower() == ".glb" else to_obj(mesh)
    cloud = extract_cloud(model, code, settings.splats)
    if suffix.lower() == ".ply":
        return ply.encode(cloud)
    return spz.encode(cloud, level=settings.spz_level)


def _check_out(out: Path) -> None:
    shown = printable(str(out))
    if out.suffix.lower() not in CLOUDS + MESHES:
        raise ValueError(f"--out must end in {', '.join(CLOUDS + MESHES)}, got {shown}")
    try:
        if not out.parent.is_dir():
            raise ValueError(f"--out: there is no folder {printable(str(out.parent))}")
        if out.exists() and not out.is_file():
            raise ValueError(f"--out: {shown} is no plain file; name another")
    except OSError as error:
        raise ValueError(f"--out: {shown}: {_reason(error)}") from None


def _read(file: Path) -> "Image.Image":
    from generation.pictures.framing import MAX_SIDE

    with file.open("rb") as opened:
        data = opened.read(LIMITS.bytes + 1)
    return decode_image(data, LIMITS, side=MAX_SIDE)


def _reason(error: Exception) -> str:
    """What happened, without the name of the file, which the caller shows in its harmless form."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _failed(sentence: str, status: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return status


def _settings(options: argparse.Namespace) -> GenerationSettings:
    chosen = preset(options.preset)
    changes = chosen.model_dump()
    changes["device"] = options.device or chosen.device
    if options.resolution is not None and not _is_mesh(options):
        changes["splats"]["resolution"] = options.resolution
    if options.threshold is not None:
        changes["splats"]["threshold"] = options.threshold
    if options.foreground_ratio is not None:
        changes["cutout"]["foreground_ratio"] = options.foreground_ratio
    return GenerationSettings.model_validate(changes)


def _mesh_size(options: argparse.Namespace) -> MeshSettings:
    given = {"resolution": options.resolution if _is_mesh(options) else None}
    given["triangles"] = options.triangles
    return MeshSettings.model_validate({name: n for name, n in given.items() if n is not None})


def _is_mesh(options: argparse.Namespace) -> bool:
    return options.out.suffix.lower() in MESHES


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program_name("scripts.image_to_3d"),
        description="Make a Gaussian cloud (.spz, .ply) or a mesh (.glb, .obj) from a picture.",
        epilog="exit status: 0 made, 1 not made, 2 a wrong argument or an unusable file",
        allow_abbrev=False,
    )
    parser.add_argument("image", type=Path, metavar="IMAGE", help="a picture of one object")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--preset", choices=PRESETS, default="gpu80", help="default: gpu80")
    parser.add_argument("--device", help="where the network runs (default: the preset's)")
    parser.add_argument(
        "--resolution",
        type=int,
        help="density samples along each axis (default: 256 for meshes, else the preset's)",
    )
    parser.add_argument("--triangles", type=int, help="most triangles of a mesh (default: 50000)")
    parser.add_argument("--threshold", type=float, help="density of the surface (default: 25)")
    parser.add_argument(
        "--foreground-ratio", type=float, help="object's share of the frame (default: 0.85)"
    )
    parser.add_argument("--models.dir", dest="models_dir", type=Path, metavar="DIR")
    return parser


if __name__ == "__main__":
    sys.exit(main())
