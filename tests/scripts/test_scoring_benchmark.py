"""`scripts.benchmark scoring` times every part, and says what rendered."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.benchmarks import scoring
from tests.generation.scoring.tiny import SHAPES


def test_every_part_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "figures.json"
    shapes = replace(SHAPES, view_size=24)
    figures = scoring.run(device="cpu", gaussians=7000, runs=1, out=out, shapes=shapes)
    assert json.loads(out.read_text()) == figures
    assert (figures["machine"], figures["renderer"], figures["dtype"]) == ("cpu", "cpu", "float32")
    assert all(row["p95_ms"] >= row["median_ms"] > 0 for row in figures["rows"].values())
    printed = capsys.readouterr().out
    for name in ("score, text task", "score, image task", "rate a picture", "SSIM", "LPIPS"):
        assert name in printed
    assert "views rendered by cpu, 7,000 Gaussians" in printed
