import json
from pathlib import Path

import pytest

from miner.score.report import ScoreReport
from scripts.benchmarks import monitor

LEAST_LINES_A_SECOND = 25_000
"""A million in 40 s: four times what it takes, so that a busy machine does not fail."""


def test_the_lines_are_sound_and_the_figures_are_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ScoreReport()
    for line in monitor._lines(400):
        report.read(json.dumps(line))
    assert (report.odd, report.damaged, report.overall.answers) == (0, 0, 100)
    figures = monitor.run(lines=20_000, out=tmp_path / "monitor.json")
    assert json.loads((tmp_path / "monitor.json").read_text()) == figures
    assert "20,000 lines" in capsys.readouterr().out
    assert 20_000 / figures["plain_s"] > LEAST_LINES_A_SECOND
