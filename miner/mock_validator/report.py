"""Reports of a trial: an HTML page beside the files that it shows, and one picture of all."""

import io
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image, ImageDraw, ImageFont

from miner.mock_validator.records import TrialRecord
from protocol.files import replace_file

REPORT_FILE = "report.html"
OVERVIEW_FILE = "overview.png"

_TILE = 320
_CAPTION = 28
_COLUMNS = 4


def write_report(folder: Path, records: Sequence[TrialRecord], *, notes: Sequence[str]) -> Path:
    """Writes `report.html` into the trial's folder and returns its path.

    Args:
        folder: The folder of the files; the page refers to them by name.
        records: The records, in the order of the page.
        notes: Sentences for the top of the page: what was run, with which preset.
    """
    environment = Environment(
        loader=PackageLoader("miner.mock_validator", ""), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        records=records, notes=notes, good=sum(record.good for record in records)
    )
    path = folder / REPORT_FILE
    replace_file(path, page.encode())
    return path


def write_overview(folder: Path, records: Sequence[TrialRecord]) -> Path:
    """Writes `overview.png`, with every preview above its prompt, and returns its path."""
    rows = -(-len(records) // _COLUMNS)
    width = _TILE * min(_COLUMNS, len(records))
    sheet = Image.new("RGB", (width, rows * (_TILE + _CAPTION)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    for number, record in enumerate(records):
        left, top = number % _COLUMNS * _TILE, number // _COLUMNS * (_TILE + _CAPTION)
        if record.png is not None:
            with Image.open(folder / record.png) as preview:
                sheet.paste(preview.resize((_TILE - 8, _TILE - 8)), (left + 4, top + 4))
        caption = record.prompt if record.good else f"{record.prompt}: {record.outcome}"
        draw.text((left + 6, top + _TILE + 2), caption[:40], fill="black", font=font)
    path = folder / OVERVIEW_FILE
    file = io.BytesIO()
    sheet.save(file, "PNG")
    replace_file(path, file.getvalue())
    return path
