"""Makes 3D objects from pictures: `python -m scripts.image_to_3d PHOTO.png --out toy.glb`.

See `ImageTo3DSettings` for what it writes, and docs/tools.md for examples.
"""

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic_settings import CliPositionalArg

from miner.settings.model import ANY_NAME
from protocol.errors import SetupError, TaskError
from protocol.images import ImageLimits, decode_image
from protocol.tasks import ImageTask
from protocol.text import printable
from scripts.making.command import MakingSettings, Source, run
from scripts.making.files import reason

LIMITS = ImageLimits(bytes=64 * 2**20, pixels=2**27, side=2**15)
"""A user's own camera may take larger pictures than a validator sends."""


class ImageTo3DSettings(MakingSettings):
    """Make 3D objects from pictures.

    Exit status: 0 all were made, 1 one was not, 2 a wrong argument or an unusable file.
    """

    image: Annotated[CliPositionalArg[tuple[Path, ...]], ANY_NAME] = ()
    """Pictures of one object each: PNG, JPEG or WebP."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the objects and returns the exit status."""
    return run(ImageTo3DSettings, _sources, "scripts.image_to_3d", arguments, image_only=True)


def _sources(config: ImageTo3DSettings) -> list[Source]:
    if not config.image:
        raise SetupError("there is no picture", fix="name one, such as photo.jpg")
    return [
        Source(
            printable(str(file)),
            file.stem,
            ImageTask(id=f"picture-{number}", image=_read(file), seed=config.seed),
        )
        for number, file in enumerate(config.image, 1)
    ]


def _read(file: Path) -> bytes:
    """Returns a picture as a PNG that an image task may hold: scaled down, upright, in sRGB."""
    from generation.pictures.framing import MAX_SIDE

    try:
        with file.open("rb") as opened:
            data = opened.read(LIMITS.bytes + 1)
        picture = decode_image(data, LIMITS, side=MAX_SIDE)
    except (OSError, TaskError) as error:
        raise TaskError(f"cannot read {printable(str(file))}: {reason(error)}") from None
    png = io.BytesIO()
    picture.save(png, format="PNG", compress_level=1)
    return png.getvalue()


if __name__ == "__main__":
    sys.exit(main())
