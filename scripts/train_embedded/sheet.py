"""A picture grid: prompt, image, cut-out and four views of the splat, one row each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from generation.pictures.framing import composite_on_grey
from generation.rendering import render_views
from protocol.gaussians import GaussianCloud

_CELL, _TEXT = 128, 26


@dataclass
class Row:
    """What became of one prompt; later stages are absent if an earlier one failed."""

    prompt: str
    image: Image.Image
    cutout: Image.Image | None = None
    cloud: GaussianCloud | None = None


def draw_sheet(rows: Sequence[Row], file: Path, columns: int = 2) -> None:
    """Writes the rows as a PNG, `columns` of them side by side."""
    lines = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * (6 * _CELL + 8), lines * (_CELL + _TEXT)), "white")
    draw = ImageDraw.Draw(sheet)
    for index, row in enumerate(rows):
        left = index % columns * (6 * _CELL + 8)
        top = index // columns * (_CELL + _TEXT)
        draw.text((left + 4, top + 6), row.prompt, fill="black", font_size=14)
        for cell, picture in enumerate(_pictures(row)):
            sheet.paste(picture.resize((_CELL, _CELL)), (left + cell * _CELL, top + _TEXT))
    sheet.save(file, optimize=True)


def _pictures(row: Row) -> list[Image.Image]:
    pictures = [row.image]
    if row.cutout is not None:
        pictures.append(composite_on_grey(row.cutout))
    if row.cloud is not None:
        views = render_views(row.cloud, size=2 * _CELL, backend="cpu")
        pictures += [Image.fromarray(view) for view in views]
    return pictures
