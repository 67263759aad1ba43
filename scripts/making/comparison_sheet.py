"""A contact sheet: one row per prompt, one column per model; of many, the first ones."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

Cell = tuple[str, Path, str]
"""Prompt, the file of its picture, and what stands below it."""

MAX_PROMPTS, MAX_SEEDS = 100, 8
"""The most that a sheet shows: of three models, it then takes 240 MB while it is drawn."""

_SIDE, _LINE, _GAP = 160, 22, 12
_LETTERS = 90


def draw_sheet(drawn: Mapping[str, Sequence[Cell]]) -> bytes:
    """Returns the sheet as a PNG.

    Args:
        drawn: By model, the cells of all prompts; those of a prompt follow each other, and every
            model has as many. `MAX_PROMPTS` prompts and `MAX_SEEDS` cells of each are shown.
    """
    every = list(dict.fromkeys(prompt for prompt, *_ in next(iter(drawn.values()))))
    given = len(next(iter(drawn.values()))) // len(every)
    prompts, each = every[:MAX_PROMPTS], min(given, MAX_SEEDS)
    block = each * _SIDE + _GAP
    height = _LINE + len(prompts) * (_SIDE + 2 * _LINE)
    sheet = Image.new("RGB", (len(drawn) * block, height), "white")
    draw = ImageDraw.Draw(sheet)

    def write(left: int, top: int, text: str) -> None:
        draw.text((left + 4, top + 4), text, fill="black", font_size=13)

    for column, (model, cells) in enumerate(drawn.items()):
        left = column * block
        write(left, 0, model)
        for index, (_, picture, verdict) in enumerate(cells[: given * len(prompts)]):
            row, place = divmod(index, given)
            if place >= each:
                continue
            x, y = left + place * _SIDE, 2 * _LINE + row * (_SIDE + 2 * _LINE)
            sheet.paste(_thumbnail(picture), (x, y))
            write(x, y + _SIDE, verdict)
    for row, prompt in enumerate(prompts):
        write(0, _LINE + row * (_SIDE + 2 * _LINE), prompt[:_LETTERS])
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    return file.getvalue()


def _thumbnail(picture: Path) -> Image.Image:
    with Image.open(picture) as file:
        return file.resize((_SIDE, _SIDE), Image.Resampling.BOX)
