import json
from pathlib import Path

import pytest

from scripts.benchmarks import codecs, timing


def test_the_table_and_the_json_agree(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(codecs, "SIZES", (50,))
    monkeypatch.setattr(timing, "REPEATS", 1)
    figures = codecs.run(out=tmp_path / "codecs.json")
    assert figures["ply"][50]["megabytes"] * 1e6 == pytest.approx(50 * 68, abs=500)
    assert 0.0 < figures["spz level 1"][50]["encode_ms"] < 1000.0
    saved = json.loads((tmp_path / "codecs.json").read_text())
    assert saved["ply"]["50"] == figures["ply"][50]
    assert len(capsys.readouterr().out.splitlines()) == 3
