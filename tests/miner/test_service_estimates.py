"""What the service knows of its machine: from the warm-up, from requests, and from earlier runs."""

import asyncio
import json
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from miner.engines.warming_up import SAVE_EVERY_S, SLICE_LIMIT_S
from miner.service import WARN_EVERY_S
from tests.miner.conftest import MakeBench
from tests.support.fakes import SECONDS, STAGES, FakeEngine, ball_spz
from tests.support.service_bench import Bench
from tests.support.virtual_time import in_virtual_time

TEXT_S = sum(SECONDS[stage] for stage in STAGES) + 7 * SECONDS["denoise"]
"""What the steps of a text task take at the best rung."""


async def usual(factor: float = 1.0) -> Mapping[str, float]:
    """Seconds by cost key of a warm-up."""
    return {key: factor * value for key, value in (await FakeEngine().warm_up()).items()}


async def predicted(bench: Bench, name: str) -> float:
    answer = await bench.handle(name)
    assert answer.predicted_s is not None
    return answer.predicted_s


@in_virtual_time
async def test_the_warm_up_is_the_first_prediction(bench: Bench) -> None:
    bench.engine.warm_ups = [await usual(2.0)]
    await bench.service.start()
    assert await predicted(bench, "t") == pytest.approx(2.0 * TEXT_S)
    (event,) = bench.events("warmed_up")
    assert event["engine"] == "fake"
    assert event["seconds"]["lift:triposr"] == 2.0
    assert "denoise:128" in event["seconds"]


@in_virtual_time
async def test_requests_correct_the_warm_up(bench: Bench) -> None:
    bench.engine.warm_ups = [await usual(3.0)]
    await bench.service.start()
    before = await predicted(bench, "first")
    for number in range(20):
        await bench.handle(str(number))
    after = await predicted(bench, "last")
    assert before == pytest.approx(3.0 * TEXT_S)
    assert after == pytest.approx(TEXT_S, rel=0.1)


@in_virtual_time
async def test_estimates_outlive_a_restart(make_bench: MakeBench) -> None:
    first = make_bench()
    first.engine.warm_ups = [await usual(3.0)]
    await first.service.start()
    for number in range(20):
        await first.handle(str(number))
    learned = await predicted(first, "learned")
    await first.service.close()

    second = make_bench()
    # The warm-up is odd as before, and repeated; what requests took counts as much as it.
    second.engine.warm_ups = [await usual(3.0), await usual(1.0)]
    await second.service.start()
    assert await predicted(second, "after") == pytest.approx(learned, rel=0.1)
    assert any("repeated" in warning for warning in second.warnings)
    assert second.engine.warm_ups == []


@in_virtual_time
async def test_an_odd_warm_up_is_repeated_and_the_faster_one_counts(
    make_bench: MakeBench,
) -> None:
    first = make_bench()
    await first.service.start()
    await first.handle()
    await first.service.close()
    second = make_bench()
    odd = dict(await usual())
    odd["lift:triposr"] = 20.0
    second.engine.warm_ups = [odd, await usual()]
    await second.service.start()
    (warning,) = (text for text in second.warnings if "repeated" in text)
    assert "lift:triposr took 20.00 s, 20.0 x what it took before" in warning
    (event,) = second.events("warmed_up")[1:]
    assert event["seconds"]["lift:triposr"] == SECONDS["lift"]
    assert (await second.handle()).outcome == "completed"


@in_virtual_time
async def test_estimates_of_another_machine_are_not_used(make_bench: MakeBench) -> None:
    first = make_bench()
    await first.service.start()
    await first.handle()
    await first.service.close()
    second = make_bench()
    second.engine.machine = "another"
    second.engine.warm_ups = [await usual(4.0)]
    await second.service.start()
    assert not second.warnings
    assert await predicted(second, "t") == pytest.approx(4.0 * TEXT_S)


@in_virtual_time
async def test_a_damaged_file_costs_no_more_than_what_it_held(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    (tmp_path / "estimates.json").write_text('{"version": 1, "mach')
    bench = make_bench()
    await bench.service.start()
    assert bench.state == "ready"
    assert (tmp_path / "estimates.json.damaged-1").exists()
    assert any("is damaged" in warning for warning in bench.warnings)


@in_virtual_time
async def test_a_file_with_impossible_seconds_is_set_aside(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    row = {"engine": "fake", "key": "lift:triposr", "mean": 1e300, "variance": 0.0, "level": 1e300}
    kept = {"version": 1, "machines": {"fake": "a fake"}, "estimates": [row]}
    (tmp_path / "estimates.json").write_text(json.dumps(kept))
    bench = make_bench()
    await bench.service.start()
    assert await predicted(bench, "t") == pytest.approx(TEXT_S)
    assert (tmp_path / "estimates.json.damaged-1").exists()


@in_virtual_time
async def test_a_file_of_another_version_is_set_aside(
    make_bench: MakeBench, tmp_path: Path
) -> None:
    text = '{"version": 2, "machines": {}, "estimates": []}'
    (tmp_path / "estimates.json").write_text(text)
    bench = make_bench()
    await bench.service.start()
    assert (tmp_path / "estimates.json.damaged-1").read_text() == text
    (warning,) = bench.warnings
    assert "another version (version" in warning


@in_virtual_time
async def test_a_warm_up_that_saw_no_time_pass_is_corrected(bench: Bench) -> None:
    bench.engine.warm_ups = [dict(await usual()) | {"lift:triposr": 0.0}]
    await bench.service.start()
    for number in range(40):
        await bench.handle(str(number))
    assert await predicted(bench, "last") == pytest.approx(TEXT_S, rel=0.1)


@in_virtual_time
async def test_a_first_step_of_milliseconds_that_stalls_says_nothing_about_the_rest(
    bench: Bench,
) -> None:
    bench.engine.seconds["prompt"] = 0.001
    await bench.service.start()
    bench.engine.seconds["prompt"] = 0.2
    assert (await bench.handle()).outcome == "completed"


@in_virtual_time
async def test_estimates_are_saved_now_and_then(bench: Bench, tmp_path: Path) -> None:
    await bench.service.start()
    await bench.handle()
    assert not (tmp_path / "estimates.json").exists()
    await asyncio.sleep(SAVE_EVERY_S + 1.0)
    while not (tmp_path / "estimates.json").exists():
        await asyncio.to_thread(time.sleep, 0.001)  # Another thread writes it.
    kept = json.loads((tmp_path / "estimates.json").read_text())
    assert kept["machines"] == {"fake": "a fake"}
    assert {row["key"] for row in kept["estimates"]} >= {"lift:triposr", "denoise:128"}
    await bench.service.close()


@in_virtual_time
async def test_a_machine_that_is_too_slow_is_measured_again_and_the_operator_is_warned(
    make_bench: MakeBench,
) -> None:
    bench = make_bench(budget_s=3.0)
    slow = await usual(2.0)
    bench.engine.warm_ups = [slow, slow]
    await bench.service.start()
    assert bench.engine.warm_ups == []
    (warning,) = (text for text in bench.warnings if "text tasks will be dropped" in text)
    assert "the lowest rung, draft, took 8.0 s of a budget of 3.0 s" in warning


@in_virtual_time
@pytest.mark.parametrize("slice_s", [0.19, 0.25])
async def test_slices_that_others_wait_for_too_long_name_their_setting(
    make_bench: MakeBench, slice_s: float
) -> None:
    seconds = {**SECONDS, "prepare": 0.1, "dream": slice_s}
    bench = make_bench(FakeEngine(seconds, back_end="dreamgaussian"), budget_s=300.0)
    await bench.service.start()
    warnings = [text for text in bench.warnings if "a slice of the stage dream" in text]
    if slice_s < SLICE_LIMIT_S:
        assert warnings == []
    else:
        (warning,) = warnings
        assert "takes 0.25 s" in warning
        assert "lower --dreamgaussian.slice" in warning


@in_virtual_time
async def test_the_operator_is_warned_of_drops_on_an_idle_machine_once_in_five_minutes(
    make_bench: MakeBench,
) -> None:
    engine = FakeEngine()
    engine.ladder = engine.ladder[:1]
    bench = make_bench(engine)
    await bench.service.start()

    async def warnings_after_a_drop() -> int:
        assert (await bench.handle()).outcome == "completed"
        assert (await bench.handle(allowed_s=2.0)).outcome == "dropped"
        return sum("although the machine is idle" in text for text in bench.warnings)

    assert await warnings_after_a_drop() == 1
    assert await warnings_after_a_drop() == 1
    await asyncio.sleep(WARN_EVERY_S)
    assert await warnings_after_a_drop() == 2


@in_virtual_time
async def test_a_drop_on_a_busy_machine_is_nothing_to_warn_of(bench: Bench) -> None:
    await bench.service.start()
    asking = await bench.held("lift", "first")
    assert (await bench.handle(allowed_s=2.0)).outcome == "dropped"
    assert not bench.warnings
    bench.engine.release.set()
    await asking


@in_virtual_time
async def test_a_machine_that_refuses_everything_heals_by_a_probe(make_bench: MakeBench) -> None:
    bench = make_bench()
    slow = await usual(8.0)
    bench.engine.warm_ups = [slow, slow]
    await bench.service.start()
    await asyncio.sleep(60.0)
    assert (await bench.handle("probe")).outcome == "completed"
    (admitted,) = bench.events("admitted")
    assert (admitted["task_id"], admitted["probe"]) == ("probe", True)
    assert any("let in to see what the machine takes now" in text for text in bench.warnings)
    for number in range(5):
        assert (await bench.handle(str(number))).outcome == "completed"
    last = bench.events("admitted")[-1]
    assert "probe" not in last
    assert last["rung"] == "full"


@in_virtual_time
async def test_a_request_without_any_time_is_no_probe(bench: Bench) -> None:
    await bench.service.start()
    await asyncio.sleep(61.0)
    for allowed_s in (0.01, 0.0, -5.0):
        answer = await bench.handle(str(allowed_s), allowed_s=allowed_s)
        assert (answer.outcome, answer.reason_code) == ("dropped", "predicted_late")
    assert bench.events("admitted") == []


@in_virtual_time
async def test_what_answers_take_to_their_callers_is_taken_from_the_budget(bench: Bench) -> None:
    await bench.service.start()
    first = await bench.handle("first")
    for _ in range(30):
        bench.service.delivered("axon", len(ball_spz()), 4.0)
    slow = await bench.handle("slow")
    assert first.budget_s is not None
    assert first.budget_s > 28.5
    assert slow.budget_s is not None
    assert slow.budget_s < 29.0 - 3.0
    other = await bench.handle("other", transport="http")
    assert other.budget_s == pytest.approx(29.0, abs=0.3)
