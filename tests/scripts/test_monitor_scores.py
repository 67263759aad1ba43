"""The monitor reads the examples that the log's documentation gives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import monitor_scores

ROOT = Path(__file__).parents[2]


@pytest.fixture
def documented_log(tmp_path: Path) -> Path:
    document = (ROOT / "docs" / "score-log.md").read_text()
    path = tmp_path / "score.jsonl"
    path.write_text("\n".join(line for line in document.splitlines() if line.startswith("{")))
    return path


def test_documented_examples_are_understood(
    documented_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert monitor_scores.main(["--json", str(documented_log)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["state"] == "ready"
    assert report["overall"]["outcomes"] == {"completed/ok": 1, "dropped/predicted_late": 1}
    assert report["overall"]["seconds"]["total"] == {"p50": 4.0, "p95": 4.0}


def test_tables_name_outcomes_and_stages(
    documented_log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert monitor_scores.main([str(documented_log)]) == 0
    shown = capsys.readouterr().out
    assert "predicted_late" in shown
    assert "rungs: 1 full" in shown
    order = [
        shown.index(f" {stage} ") for stage in ("prompt", "denoise", "cutout", "lift", "total")
    ]
    assert order == sorted(order)


def test_stages_are_shown_in_the_order_in_which_they_run() -> None:
    last_first = ["total", "of_another_version", "encode", "lift", "cutout", "denoise", "prompt"]
    in_order = sorted(last_first, key=monitor_scores._stage_rank)
    assert in_order[:5] == ["prompt", "denoise", "cutout", "lift", "encode"]
    assert in_order[5:] == ["total", "of_another_version"]


def test_a_missing_log_names_the_flag_that_makes_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert monitor_scores.main([str(tmp_path / "none.jsonl")]) == 2
    assert "--log.dir" in capsys.readouterr().err


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, scripts.monitor_scores; "
        "print([m for m in ('torch', 'bittensor', 'numpy', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_followed_log_survives_rotation(tmp_path: Path) -> None:
    path = tmp_path / "score.jsonl"
    path.write_text("one\ntwo\n")
    lines = monitor_scores._growing_lines(path, 0, interval=0.0)
    assert [next(lines), next(lines)] == ["one", "two"]
    path.write_text("new\n")
    assert next(lines) == "new"
