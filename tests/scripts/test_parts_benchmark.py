"""`scripts.benchmark parts` times every network alone and keeps going when one fails."""

import json
from pathlib import Path

import pytest
import torch

from protocol.errors import SetupError
from scripts.benchmarks import drawing_parts, hand_over_parts, parts, timing
from scripts.benchmarks.bench import Action, Bench, Way
from tests.support.tiny_networks import SIZES, tiny_settings


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "REPEATS", 1)
    monkeypatch.setattr(timing, "WARM_UP", 0)


def test_every_part_is_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, (prepare, ways) in parts.PARTS.items():
        # One way will do here: the tracer warns of what it meets in diffusers.
        monkeypatch.setitem(parts.PARTS, name, (prepare, ways[:1]))
    prepare, ways = parts.PARTS["pictures"]
    monkeypatch.setitem(parts.PARTS, "pictures", (prepare, (f"{ways[0]}, eager",)))
    monkeypatch.setattr(drawing_parts, "COUNTS", (1,))
    out = tmp_path / "parts.json"
    rows = parts.run(device="cpu", out=out, sizes=SIZES, settings=tiny_settings())
    assert json.loads(out.read_text()) == rows
    assert list(dict.fromkeys(row["part"] for row in rows)) == list(parts.PARTS)
    assert [row.get("failed") for row in rows] == [None] * len(rows)
    assert all(row["median_ms"] > 0 and row["first_s"] > 0 for row in rows)
    assert capsys.readouterr().out.count("\n") == len(rows) + 1


def test_a_compiled_way_runs_and_says_how_long_the_first_call_took() -> None:
    rows = parts.run(
        device="cpu", only=["qwen"], sizes=SIZES, settings=tiny_settings(), backend="eager"
    )
    found = {row["way"]: row for row in rows}
    assert [row.get("failed") for row in rows] == [None] * len(rows)
    assert found["compiled, captured"]["first_s"] > found["captured"]["first_s"]


def test_a_picture_is_timed_in_steps_and_as_one_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare, ways = parts.PARTS["picture"]
    few = ("compiled, captured", "8 bits, whole loop, compiled, captured")
    assert set(few) < set(ways)
    monkeypatch.setitem(parts.PARTS, "picture", (prepare, few))
    rows = parts.run(
        device="cpu", only=["picture"], sizes=SIZES, settings=tiny_settings(), backend="eager"
    )
    assert [row.get("failed") for row in rows] == [None] * len(rows)
    assert tuple(row["way"] for row in rows) == few


def test_a_result_is_brought_to_the_host_in_every_way() -> None:
    rows = parts.run(device="cpu", only=["beside"], sizes=SIZES, settings=tiny_settings())
    assert [row.get("failed") for row in rows] == [None] * len(rows)
    assert [row["way"] for row in rows] == list(hand_over_parts.PARTS["beside"][1])


def test_pictures_of_one_prompt_are_timed_at_every_number_in_both_models(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, ways = parts.PARTS["pictures"]
    assert (ways, drawing_parts.COUNTS) == (
        ("klein", "klein, 8 bits", "schnell", "schnell, 8 bits"),
        (1, 2, 4, 8),
    )
    few = ("klein, eager", "schnell, 8 bits, eager")
    monkeypatch.setitem(parts.PARTS, "pictures", (prepare, few))
    monkeypatch.setattr(drawing_parts, "COUNTS", (1, 3))
    rows = parts.run(device="cpu", only=["pictures"], sizes=SIZES, settings=tiny_settings())
    assert [row.get("failed") for row in rows] == [None] * len(rows)
    expected = [(way, count) for way in few for count in (1, 3)]
    assert [(row["way"], row["pictures"]) for row in rows] == expected
    assert all(row["ms_a_picture"] == row["median_ms"] / row["pictures"] for row in rows)
    assert "klein, eager, 3 at once" in capsys.readouterr().out


def test_what_fails_is_kept_in_the_table_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tiny_settings()
    no_surface = settings.splats.model_copy(update={"threshold": 1e30})
    settings = settings.model_copy(update={"splats": no_surface})
    out = tmp_path / "parts.json"
    rows = parts.run(device="cpu", only=["splats", "clip"], out=out, sizes=SIZES, settings=settings)
    splats, *clip = rows
    assert splats["failed"].startswith("GenerationError: ")
    assert "median_ms" not in splats
    assert all("median_ms" in row for row in clip)
    assert json.loads(out.read_text())[0] == splats
    assert "failed: GenerationError: " in capsys.readouterr().out


def test_a_part_that_loses_the_device_ends_the_run_and_names_the_command_for_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors")

    def lose(bench: Bench, way: Way) -> Action:
        def fail(*arguments: object, **named: object) -> None:
            raise lost

        monkeypatch.setattr(torch, "randn", fail)
        raise lost

    monkeypatch.setitem(parts.PARTS, "splats", (lose, ("eager",)))
    out = tmp_path / "parts.json"
    with pytest.raises(SetupError, match="any more, after splats, eager: CUDA error") as error:
        parts.run(
            device="cpu",
            only=["splats", "clip", "vae"],
            out=out,
            sizes=SIZES,
            settings=tiny_settings(),
        )
    assert "--device cpu --only clip --only vae" in str(error.value)
    (row,) = json.loads(out.read_text())
    assert row["failed"].startswith("RuntimeError: CUDA error")


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(SetupError, match=r"'flux'(.|\n)*fix: --only t5, clip, flux-step"):
        parts.run(device="cpu", only=["flux"])
