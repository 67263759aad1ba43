"""`scripts.benchmark triposplat` times every part and adds them up, with TripoSR for comparison."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.benchmarks import timing, triposplat
from scripts.benchmarks.bench import BOTH, EAGER, Bench
from tests.support.tiny_networks import SIZES, tiny_settings


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "REPEATS", 1)
    monkeypatch.setattr(timing, "WARM_UP", 0)
    monkeypatch.setattr(triposplat, "COUNTS", (1024, 512))
    monkeypatch.setattr(triposplat, "RUNGS", ((2, 1024), (1, 512)))


def test_every_part_is_timed_and_added_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Only CUDA has the other kernels, and one compiled way of each part is enough.
    ways = {"attention": ("torch",), "flow": (EAGER,), "triposr": (EAGER,)}
    chosen = {
        name: (prepare, ways.get(name, tuple(way for way in all_ways if way in (BOTH, EAGER))))
        for name, (prepare, all_ways) in triposplat.PARTS.items()
    }
    monkeypatch.setattr(triposplat, "PARTS", chosen)
    out = tmp_path / "figures.json"
    # What compiling does is tested where it is done; here it would take most of the time.
    with torch._dynamo.config.patch(disable=True):
        rows = triposplat.run(
            device="cpu", out=out, sizes=SIZES, settings=tiny_settings(), backend="eager"
        )
    assert json.loads(out.read_text()) == rows
    assert [row.get("failed") for row in rows] == [None] * len(rows)
    assert list(dict.fromkeys(row["part"] for row in rows)) == list(triposplat.PARTS)
    cases = {(row["part"], row["way"], row["case"]): row["median_ms"] for row in rows}
    parts = [
        ("features", EAGER, "prepare"),
        *(("features", BOTH, "DINOv3"), ("features", BOTH, "VAE"), ("latent", BOTH, "2 steps")),
        *(("decode", BOTH, "1,024"), ("cloud", EAGER, "1,024 finished")),
        ("cloud", EAGER, "1,024 packed"),
    ]
    total = sum(cases[part] for part in parts)
    assert f"1,024 Gaussians, {BOTH}: {total:.0f} ms" in capsys.readouterr().out


def test_a_part_that_failed_is_left_out_of_the_sums() -> None:
    rows: list[dict[str, Any]] = [
        {"part": "triposr", "way": BOTH, "case": "lift", "median_ms": 10.0},
        {"part": "triposr", "way": BOTH, "case": "splats", "median_ms": 5.0},
        {"part": "latent", "way": BOTH, "case": "2 steps", "median_ms": 90.0},
        {"part": "decode", "way": BOTH, "case": "1,024", "failed": "RuntimeError: no"},
    ]
    assert triposplat.totals(rows) == ["TripoSR for comparison: 15 ms"]


def test_the_two_forms_of_guidance_that_are_compared_give_the_same_velocity(tmp_path: Path) -> None:
    bench = Bench(tiny_settings(), SIZES, tmp_path, "eager")
    actions: Any = triposplat.PARTS["flow"][0](bench, frozenset({EAGER}))
    with torch.no_grad():
        found, expected = actions[triposplat.GUIDED]()[0], actions[triposplat.ONE_BATCH]()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
