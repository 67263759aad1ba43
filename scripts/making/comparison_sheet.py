"""A contact sheet: one row per prompt, one column per model."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Cell = tuple[str, NDArray[np.uint8], float, str]
"""Prompt, picture (S, S, 3), score, and why there is no object."""

_SIDE, _LINE, _GAP = 160, 22, 12
_LETTERS = 90


def draw_sheet(drawn: Mapping[str, Sequence[Cell]]) -> bytes:
    """Returns the sheet as a PNG.

    Args:
        drawn: By model, the cells of all prompts; those of a prompt follow each other, and every
            model has as many.
    """
    prompts = list(dict.fromkeys(prompt for prompt, *_ in next(iter(drawn.values()))))
    each = len(next(iter(drawn.values()))) // len(prompts)
    block = each * _SIDE + _GAP
    height = _LINE + len(prompts) * (_SIDE + 2 * _LINE)
    sheet = Image.new("RGB", (len(drawn) * block, height), "white")
    draw = ImageDraw.Draw(sheet)

    def write(left: int, top: int, text: str) -> None:
        draw.text((left + 4, top + 4), text, fill="black", font_size=13)

    for column, (model, cells) in enumerate(drawn.items()):
        left = column * block
        write(left, 0, model)
        for index, (_, picture, score, problem) in enumerate(cells):
            row, place = divmod(index, each)
            x, y = left + place * _SIDE, 2 * _LINE + row * (_SIDE + 2 * _LINE)
            sheet.paste(_thumbnail(picture), (x, y))
            write(x, y + _SIDE, "no object" if problem else f"{score:.3f}")
    for row, prompt in enumerate(prompts):
        write(0, _LINE + row * (_SIDE + 2 * _LINE), prompt[:_LETTERS])
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _thumbnail(picture: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.BOX)
