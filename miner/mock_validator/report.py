"""Reports of a trial: an HTML page beside the files that it shows, and one picture of all."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image, ImageDraw, ImageFont

from miner.mock_validator.records import TrialRecord
from miner.web import static_file
from protocol.files import replace_file

REPORT_FILE = "report.html"
OVERVIEW_FILE = "overview.png"
VIEWER_FOLDER = "viewer"

_TILE = 320
_CAPTION = 28
_COLUMNS = 4
_VIEWER_FILES = ("viewer.js", "report.js", "LICENSES.txt")


def write_report(
    folder: Path, records: Sequence[TrialRecord], *, notes: Sequence[str], images: str | None = None
) -> Path:
    """Writes `report.html` and its folder `viewer` into the trial's folder.

    A browser that opens the page as a file may load scripts, but neither modules nor data. So every
    asset is written as a script too, which the page loads when it shows that asset.

    Args:
        folder: The folder of the files; the page refers to them by name.
        records: The records, in the order of the page.
        notes: Sentences for the top of the page: what was run, with which preset.
        images: Name of the folder, in the trial's, with the pictures of the image tasks.

    Returns:
        The path of the page.
    """
    scripts = _write_viewer(folder, records)
    pictures = [_picture(folder, images, record) for record in records]
    environment = Environment(
        loader=PackageLoader("miner.mock_validator", ""), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        entries=list(zip(records, scripts, pictures, strict=True)),
        notes=notes,
        good=sum(record.good for record in records),
        viewer=VIEWER_FOLDER,
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


def _write_viewer(folder: Path, records: Sequence[TrialRecord]) -> list[str | None]:
    """Writes the viewer and the assets as scripts; returns the script's name for each record."""
    (folder / VIEWER_FOLDER).mkdir(exist_ok=True)
    for name in _VIEWER_FILES:
        replace_file(folder / VIEWER_FOLDER / name, static_file(name))
    scripts: list[str | None] = []
    for number, record in enumerate(records, start=1):
        script = None
        if record.gaussians and record.spz is not None and (folder / record.spz).is_file():
            script = f"{VIEWER_FOLDER}/asset-{number}.js"
            asset = base64.b64encode((folder / record.spz).read_bytes()).decode()
            call = f"showAsset({json.dumps(script)}, {json.dumps(asset)});\n"
            replace_file(folder / script, call.encode())
        scripts.append(script)
    return scripts


def _picture(folder: Path, images: str | None, record: TrialRecord) -> str | None:
    """Returns the name of the file that an image task was made from, if it is there."""
    if images is None or record.kind != "image" or Path(record.prompt).name != record.prompt:
        return None
    return f"{images}/{record.prompt}" if (folder / images / record.prompt).is_file() else None
