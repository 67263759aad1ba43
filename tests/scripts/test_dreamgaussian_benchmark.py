"""`scripts.benchmark dreamgaussian` times steps of dreams and of refinement."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.benchmarks import dreamgaussian, timing
from scripts.benchmarks.bench import EAGER
from scripts.benchmarks.random_zero123 import FULL_ZERO123, empty_networks
from tests.support.tiny_networks import SIZES, tiny_settings


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        *(("VIEW_SIZES", (8, 12, 16)), ("COUNTS", (300, 400)), ("DREAM_S", 0.3)),
        *(("REFINED", 500), ("REFINED_SIZE", 32), ("REFINE_STEPS", 20)),
    ):
        monkeypatch.setattr(dreamgaussian, name, value)
    monkeypatch.setattr(timing, "REPEATS", 1)
    monkeypatch.setattr(timing, "WARM_UP", 0)


def test_every_step_is_timed_and_what_fits_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    rows = dreamgaussian.run(device="cpu", out=out, sizes=SIZES, settings=tiny_settings())
    assert json.loads(out.read_text()) == rows
    assert [row.get("failed") for row in rows] == [None] * len(rows)
    *rows, whole = rows
    assert 0 < whole["steps"] <= whole["planned"]
    assert (whole["gaussians"], whole["finite"]) == (300, True)
    assert list(dict.fromkeys(row["part"] for row in rows)) == list(dreamgaussian.PARTS)
    cases = [row["case"] for row in rows if row["part"] == "dream"]
    assert cases == [
        f"{size} px, {count} Gaussians" for count in (300, 400) for size in (8, 12, 16)
    ]
    printed = capsys.readouterr().out
    assert "dream, 400 Gaussians: " in printed
    assert "refinement, 500 Gaussians at 32: slices of " in printed


def test_steps_that_fit_are_weighted_by_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, Any]] = [
        {"part": "dream", "way": EAGER, "case": f"{size} px, 300 Gaussians", "median_ms": ms}
        for size, ms in ((8, 10.0), (12, 20.0), (16, 40.0))
    ]
    monkeypatch.setattr(dreamgaussian, "DREAM_S", 25.0)
    rows.append({"part": "refine", "way": EAGER, "case": "camera", "failed": "RuntimeError: no"})
    assert dreamgaussian.totals(rows) == [
        "dream, 300 Gaussians: 25.0 ms a step in the mean, 1000 steps in 25 s, "
        "slices of 5 stay within 200 ms"
    ]


def test_the_public_zero123_has_as_many_parameters() -> None:
    networks = empty_networks(FULL_ZERO123, torch.device("meta"))
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    # Stable Diffusion 1's UNet holds 859,520,964: four more input channels of 320 kernels of 9.
    assert counts == [859_520_964 + 4 * 320 * 9, 83_653_863, 303_966_208]
