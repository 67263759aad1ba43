"""`scripts.benchmark pipeline` measures recipes, compares them, and holds them against targets."""

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from generation.acceleration.eight_bit import quantise
from generation.pictures import text_to_image
from generation.presets import preset
from generation.weights.sources import FLUX_SCHNELL
from protocol.errors import SetupError
from scripts.benchmark import main
from scripts.benchmarks import likeness, pipeline, plain, recipe, report
from scripts.benchmarks.changed_preset import changed, model_name
from scripts.benchmarks.concurrent import slowest_step
from scripts.benchmarks.timing import quantiles
from tests.support.tiny_networks import SIZES, tiny_settings

STAGES = (
    "text_to_image",
    "prompt",
    "denoise",
    "decode",
    "cutout",
    "lift",
    "splats",
    "encode",
)


def _measured(**options: Any) -> dict[str, Any]:
    """Figures of random tiny networks, FLUX in 8 bits where the recipe allows it."""
    settings = tiny_settings("bfloat16")
    narrow = settings.text_to_image.model_copy(update={"eight_bit": True})
    settings = settings.model_copy(update={"text_to_image": narrow})
    request = recipe.Request(preset="gpu80", weights="random", runs=2, **options)
    found: list[str] = []
    recipe.measure(request, settings, lambda figures: found.append(json.dumps(figures)), SIZES)
    figures: dict[str, Any] = json.loads(found[-1])
    return figures


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Figures of a command that names both recipes, measured in this process."""
    folder = tmp_path_factory.mktemp("likeness")
    reference = str(folder / "plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_to_image, "quantise", partial(quantise, smallest=1))
        rows = {
            "plain": _measured(recipe="plain", likeness=reference),
            "fast": _measured(
                recipe="fast", requests=2, likeness=str(folder / "fast"), reference=reference
            ),
        }
    figures = {
        "preset": "gpu80",
        "model": "schnell, 8 bits",
        "runs": 2,
        "weights": "random",
        "recipes": rows,
    }
    pipeline.combine(figures)
    return figures


def test_every_recipe_is_measured_by_stage(both: dict[str, Any]) -> None:
    for row in both["recipes"].values():
        assert list(row["seconds"]) == [*STAGES, "total"]
        assert all(0 < entry["median"] <= entry["p95"] for entry in row["seconds"].values())
        assert row["start_s"] == pytest.approx(row["weights_s"] + row["ready_s"])
        assert 0 < row["imports_s"] < row["ready_s"]
        assert row["peak_memory_mb"]["host"] > 50
        assert row["gaussians"] >= 7_000
        assert row["warnings"] == []
    sizes = [both["recipes"][name]["spz_bytes"] for name in ("plain", "fast")]
    assert sizes[0] > 2 * sizes[1]  # PLY against SPZ


def test_drawing_is_reported_as_a_whole_and_in_parts(both: dict[str, Any]) -> None:
    for row in both["recipes"].values():
        drawing = [r["prompt"] + r["denoise"] + r["decode"] for r in row["rows"]]
        assert row["seconds"]["text_to_image"] == quantiles(drawing)


def test_every_rung_is_measured_alone(both: dict[str, Any]) -> None:
    assert "rungs" not in both["recipes"]["plain"]
    rungs = both["recipes"]["fast"]["rungs"]
    assert list(rungs) == [rung.name for rung in tiny_settings().ladder] == ["full", "draft"]
    assert all(0 < entry["median"] <= entry["p95"] for entry in rungs.values())


def test_throughput_is_measured_at_every_concurrency(both: dict[str, Any]) -> None:
    assert "throughput" not in both["recipes"]["plain"]
    found = both["recipes"]["fast"]["throughput"]
    assert list(found) == ["1", "4", "8"]
    for name, row in found.items():
        assert row["requests"] == 2
        assert 0 < row["latency_s"]["median"] <= row["latency_s"]["max"]
        at_once = (
            row["objects_per_s"] * sum(task["total"] for task in row["rows"]) / row["requests"]
        )
        if row is found["1"]:  # One after the other: almost no time passes between two.
            assert at_once == pytest.approx(1, rel=0.1)
        else:
            assert row["objects_per_s"] >= 1 / row["latency_s"]["max"]
        assert at_once <= min(int(name), row["requests"])
        assert row["own_time_ratio"] > 0
        assert len(row["rows"]) == 2
        for task in row["rows"]:
            assert {step["stage"] for step in task["steps"]} == set(row["seconds"]) - {
                "text_to_image"
            }
            own = sum(step["ran_s"] + step["waited_s"] for step in task["steps"])
            assert own == pytest.approx(task["total"], rel=0.3, abs=0.05)
        slowest = row["slowest"]
        assert any(
            step["ran_s"] == slowest["ran_s"] and step["stage"] == slowest["stage"]
            for step in row["rows"][slowest["task"]]["steps"]
        )
        assert (slowest["beside"] == {}) == (row is found["1"])


def _step(stage: str, began: float, ran: float) -> dict[str, Any]:
    return {"stage": stage, "began_s": began, "ran_s": ran, "waited_s": 0.0}


def test_the_slowest_step_is_named_with_what_ran_beside_it() -> None:
    rows = [
        {"total": 0.5, "steps": [_step("denoise", 0, 0.1), _step("denoise", 0.1, 0.1)]},
        {"total": 0.5, "steps": [_step("splats", 0.05, 0.2), _step("encode", 0.25, 0.01)]},
        {"total": 0.5, "steps": [_step("denoise", 0.2, 0.2), _step("encode", 0.4, 0.02)]},
    ]
    found = slowest_step(rows, {"denoise": 0.2, "splats": 0.02, "encode": 0.01})
    assert (found["task"], found["stage"], found["ran_s"]) == (1, "splats", 0.2)
    assert found["alone_s"] == pytest.approx(0.02)
    assert found["beside"] == {"denoise": pytest.approx(0.05 + 0.1 + 0.05)}


def test_the_ratio_is_plain_over_fast(both: dict[str, Any]) -> None:
    plain_s, fast_s = (both["recipes"][name]["seconds"] for name in ("plain", "fast"))
    assert both["ratio"] == {
        name: plain_s[name]["median"] / fast_s[name]["median"] for name in fast_s
    }
    assert both["ratio"]["splats"] > 1
    assert both["seconds"] == fast_s


def test_the_recipes_are_compared_network_by_network(both: dict[str, Any]) -> None:
    found = both["likeness"]
    # Plain is bfloat16 with TripoSR in float32, fast 8 bits with TripoSR in bfloat16.
    assert len(found["step_errors"]) == tiny_settings().text_to_image.steps
    assert all(0 < error < 0.2 for error in found["step_errors"])
    words, pooled = found["embedding_errors"]
    # Twelve bits hold these weights exactly; CLIP stays as it is.
    assert words < 0.01
    assert pooled == 0
    # bfloat16 keeps eight bits of a number.
    assert all(0 < max(rounding) < 0.02 for rounding in found["rounding"].values())
    assert 0 < found["scene_code_error"] < 0.05
    assert len(found["image_psnr_db"]) == len(likeness.PROMPTS)
    assert len(found["view_psnr_db"]) == len(likeness.VIEWS)
    for value in found["image_psnr_db"] + found["view_psnr_db"]:
        assert 15 < value < likeness.LARGEST_PSNR


def test_tables_name_stages_targets_and_verdicts(
    both: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    report.show(both)
    out = capsys.readouterr().out
    for word in (
        *STAGES,
        "plain / fast",
        "fast, draft",
        "objects / s",
        "scene code, relative error",
        "ok",
    ):
        assert word in out


def test_targets_are_met_or_missed() -> None:
    fast = {
        "seconds": {"total": {"median": 0.2, "p95": 0.24}},
        "peak_memory_mb": {"host": 1.0, "device_in_use": 22.5 * 2**30 / 1e6},
        "throughput": {
            "1": {"objects_per_s": 5.0, "own_time_ratio": 1.0},
            "8": {"objects_per_s": 6.0, "own_time_ratio": 1.3},
        },
        "cold": {"ready_s": 100.0},
        "ready_s": 61.0,
    }
    figures = {
        "preset": "gpu80",
        "recipes": {"fast": fast},
        "ratio": {"total": 12.0},
        "likeness": {"image_psnr_db": [40.0, 29.0], "embedding_errors": [0.001, 0.011]},
    }
    verdicts = [row["ok"] for row in report.targets(figures | {"model": "schnell"})]
    # median, p95, plain / fast, throughput, slowest, cold, warm, picture, embedding
    assert verdicts == [False, False, True, True, False, False, False, False, False]
    rows = report.targets(figures | {"model": "schnell, 8 bits"})
    small = {row["name"]: row for row in rows}
    assert small["text to SPZ, median ms"]["limit"] == 165
    assert not small["device memory in use by all processes, GiB"]["ok"]
    assert small["device memory in use by all processes, GiB"]["measured"] == pytest.approx(22.5)
    klein = {row["name"]: row for row in report.targets(figures | {"model": "klein"})}
    assert klein["objects a second, 8 at a time"]["limit"] == 9
    assert klein["text to SPZ, median ms"]["limit"] == 125
    assert report.targets(figures | {"model": "embedded"}) == []


def test_triposplat_has_targets_of_its_own() -> None:
    fast = {
        "seconds": {"total": {"median": 2.0, "p95": 2.1}},
        "rungs": {"full": {"median": 2.0}, "half": {"median": 1.4}},
        "peak_memory_mb": {"host": 1.0, "device_in_use": 21.0 * 2**30 / 1e6},
        "throughput": {
            "1": {"objects_per_s": 0.5, "own_time_ratio": 1.0},
            "8": {"objects_per_s": 0.55, "own_time_ratio": 1.1},
        },
        "candidates": {"1": {"objects": 13}},
    }
    figures = {"preset": "gpu24-splat", "recipes": {"fast": fast}, "model": "klein, triposplat"}
    assert figures["model"] == model_name(preset("gpu24-splat"))
    rows = {row["name"]: (row["limit"], row["ok"]) for row in report.targets(figures)}
    assert rows == {
        "text to SPZ, median ms": (2400, True),
        "text to SPZ at rung half, median ms": (1300, False),
        "p95 / median": (1.1, True),
        "device memory in use by all processes, GiB": (22, True),
        "slowest request without waiting / solo": (1.3, True),
    }


def test_a_preset_is_measured_with_another_model_where_one_is_named() -> None:
    settings = preset("gpu24")
    assert model_name(settings) == "klein"
    assert changed(settings, None, None) == settings
    schnell = changed(settings, "schnell", True)
    assert model_name(schnell) == "schnell, 8 bits"
    assert schnell.text_to_image.model == FLUX_SCHNELL
    assert model_name(preset("embedded")) == "embedded"


def test_no_prompt_comes_twice() -> None:
    prompts = list(itertools.islice(recipe.distinct_prompts(), 500))
    assert len(set(prompts)) == 500


def test_plain_changes_the_way_and_not_the_networks() -> None:
    settings = tiny_settings()
    plainer = plain.plain_settings(settings)
    assert plainer.triposr.chunk_size == 8192
    assert plainer.triposr.dtype == "float32"
    without_scorer = settings.model_copy(update={"scoring": plainer.scoring})
    assert plainer.models == without_scorer.models
    assert plainer.text_to_image == settings.text_to_image


def test_the_plain_recipe_is_triposrs() -> None:
    with pytest.raises(SetupError, match=r"gpu24-splat with triposplat(.|\n)*fix: --recipe fast"):
        plain.plain_settings(preset("gpu24-splat"))


def test_random_weights_need_a_gpu() -> None:
    with pytest.raises(SetupError, match=r"CPU(.|\n)*fix: --preset gpu80"):
        pipeline.run(weights="random")


def test_real_weights_of_triposplat_need_their_licence_accepted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["pipeline", "--preset", "gpu24-splat", "--models.dir", str(tmp_path)]
    flag = "--triposplat.accept_dinov3_license"
    assert main(command) == main([*command, flag, "false"]) == 1
    assert f"{flag} true" in capsys.readouterr().err
    assert main([*command, flag, "true"]) == 1
    assert "has not been downloaded" in capsys.readouterr().err


@pytest.mark.timeout(300)
def test_the_command_measures_each_recipe_in_a_process_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "figures.json"
    command = ["pipeline", "--recipe", "fast", "--recipe", "plain", "--runs", "2"]
    assert main([*command, "--plain.runs", "1", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert [len(row["rows"]) for row in figures["recipes"].values()] == [1, 2]
    assert list(figures["recipes"]) == ["plain", "fast"]
    seconds = figures["seconds"]
    assert list(seconds) == [*STAGES, "total"]
    assert seconds["total"]["median"] >= max(seconds[stage]["median"] for stage in STAGES)
    assert figures["peak_memory_mb"]["host"] > 50
    assert figures["likeness"]["image_psnr_db"] == [likeness.LARGEST_PSNR] * 4
    machine_wide = {row["machine"] for row in figures["recipes"].values()}
    assert machine_wide == {figures["machine"]}
    assert figures["recipes"]["plain"]["spz_bytes"] > 2 * figures["spz_bytes"]
    assert "plain / fast" in capsys.readouterr().out
