"""One HTML page about a trial, to be opened beside the files that it shows."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from miner.trial.records import TrialRecord

REPORT_FILE = "report.html"


def write_report(folder: Path, records: Sequence[TrialRecord], *, notes: Sequence[str]) -> Path:
    """Writes `report.html` into the trial's folder and returns its path.

    Args:
        folder: Where the records' files lie; the page refers to them by name.
        records: In the order they are to be shown.
        notes: Sentences for the top of the page: what was run, with which preset.
    """
    environment = Environment(
        loader=PackageLoader("miner.trial", ""), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(
        records=records, notes=notes, good=sum(record.good for record in records)
    )
    path = folder / REPORT_FILE
    path.write_text(page, encoding="utf-8")
    return path
