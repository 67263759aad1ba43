"""The report shows every answer, good or bad, and never trusts what a miner wrote."""

import io
from pathlib import Path

from PIL import Image
from rich.console import Console

from miner.mock_validator.records import TrialRecord
from miner.mock_validator.report import write_overview, write_report
from neurons.mock_validator import results_table

GOOD = TrialRecord(
    name="01-cube",
    kind="text",
    prompt="a blue cube",
    task_id="1",
    outcome="completed",
    timings={"splats": 0.25},
    gaussians=20_000,
    png="01-cube.png",
)
BAD = TrialRecord(
    name="02-car",
    kind="text",
    prompt="a red car",
    task_id="2",
    outcome="dropped",
    reason="<script>alert(1)</script>",
    problems=("dropped: too late",),
)


def test_the_page_shows_each_answer(tmp_path: Path) -> None:
    page = write_report(tmp_path, [GOOD, BAD], notes=["A note."]).read_text()
    assert "1 of 2 answers good" in page
    assert 'src="01-cube.png"' in page
    assert "20,000" in page
    assert "dropped: too late" in page
    assert "A note." in page


def test_page_and_terminal_name_the_words_that_were_understood(tmp_path: Path) -> None:
    words = {"understood": ("blue", "cube (cubes)"), "ignored": ("<b>", "\x1b[2J")}
    record = GOOD.model_copy(update=words)
    page = write_report(tmp_path, [record, BAD], notes=[]).read_text()
    assert "<td>words understood</td><td>blue, cube (cubes)</td>" in page
    assert "<td>words ignored</td><td>&lt;b&gt;, " in page
    assert page.count("words understood") == 1  # Not of an answer that tells none.
    console = Console(file=io.StringIO(), width=200)
    console.print(results_table([record, BAD]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("understood") == 1
    assert "blue, cube (cubes)" in shown
    assert "\x1b" not in shown


def test_what_a_miner_wrote_is_escaped(tmp_path: Path) -> None:
    page = write_report(tmp_path, [BAD], notes=[]).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_the_overview_has_a_tile_for_each_answer(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "01-cube.png")
    with Image.open(write_overview(tmp_path, [GOOD, BAD] * 3)) as sheet:
        assert sheet.width == 4 * 320
        assert sheet.getpixel((160, 160)) == (0, 0, 255)
        assert sheet.getpixel((320 + 160, 160)) == (255, 255, 255)


def test_a_terminal_shows_what_a_miner_wrote_as_text() -> None:
    """Neither markup, which could fail, nor what a terminal obeys."""
    hostile = "[/x] [red]\x1b[2J\u202e"
    record = BAD.model_copy(
        update={"prompt": hostile, "problems": (hostile,), "timings": {hostile: 1.0}}
    )
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    console.print(results_table([record, GOOD]))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("[/x] [red]") == 3
    assert "\x1b[2J" not in shown
    assert "\u202e" not in shown
