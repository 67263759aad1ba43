import json
from pathlib import Path

import pytest

from generation.lift.triposr import TripoSRConfig
from scripts.benchmarks import timing, triposr

GOLDEN = Path(__file__).parents[1] / "golden" / "triposr" / "tiny"


def test_every_recipe_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "REPEATS", 1)
    monkeypatch.setattr(timing, "WARM_UP", 0)
    config = TripoSRConfig.load(GOLDEN / "config.yaml", GOLDEN / "dino_config.json")
    out = tmp_path / "figures.json"
    figures = triposr.run(device="cpu", out=out, config=config, resolution=16, backend="eager")
    assert json.loads(out.read_text()) == figures
    recipes = figures["recipes"]
    assert set(recipes) == {
        "plain",
        "bfloat16 eager, float32 grid",
        "bfloat16 eager, bfloat16 grid",
        "bfloat16 compiled, float32 grid",
        "bfloat16 compiled, bfloat16 grid",
    }
    for row in recipes.values():
        assert row["total"] == row["forward"] + row["density"] + row["surface"]
        assert row["speedup"] == recipes["plain"]["total"] / row["total"]
    assert "bfloat16 compiled, bfloat16 grid" in capsys.readouterr().out
