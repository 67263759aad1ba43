import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from generation.errors import EngineDead, GenerationError
from generation.pipeline import STAGES
from miner.request import Caller, Request
from miner.score.log import ScoreLog
from miner.service import DRAIN_GRACE_S, MinerService, State
from protocol.errors import SetupError, TaskError
from protocol.tasks import ImageTask, TextTask
from tests.support.fakes import PRIOR, Clock, FakeGenerator, ball_spz, stopped

CALLER = Caller("5Validator", 3, 5000.0)


class Bench:
    """A service on a fake generator, with its log."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.clock = Clock()
        self.generator = FakeGenerator()
        self.log = ScoreLog(folder)
        values = {"budget_s": 30.0, "margin_s": 1.0, **settings}
        self.service = MinerService(self.generator, self.log, clock=self.clock, **values)

    def request(self, name: str = "t", **fields: Any) -> Request:
        values = {
            "task": TextTask(id=name, prompt="a blue cube"),
            "caller": CALLER,
            "transport": "axon",
            "received_at": self.clock.now,
            **fields,
        }
        return Request(**values)

    def events(self, *names: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.log.path.read_text().splitlines()]
        return [line for line in lines if not names or line["event"] in names]


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Any]:
    benches: list[Bench] = []

    def make(**settings: Any) -> Bench:
        benches.append(Bench(tmp_path / str(len(benches)), **settings))
        return benches[-1]

    yield make
    for bench in benches:
        bench.log.close()


@pytest.fixture
async def bench(make_bench: Any) -> Bench:
    made: Bench = make_bench()
    await made.service.start()
    return made


async def test_a_request_is_answered_with_the_asset_and_logged_once(bench: Bench) -> None:
    answer = await bench.service.handle(bench.request())
    assert (answer.outcome, answer.reason_code, answer.task_id) == ("completed", "ok", "t")
    assert answer.asset == ball_spz()
    assert answer.gaussians == 8000
    assert answer.timings == PRIOR
    assert answer.validity is not None
    assert answer.validity.passed
    (line,) = bench.events("answered")
    assert line["outcome"] == "completed"
    assert line["caller"] == "5Validator"
    assert line["bytes"] == len(ball_spz())
    assert line["on_time"] is True
    assert [stage for _, stage in bench.generator.ran] == list(STAGES)


async def test_an_image_task_skips_the_first_stage(bench: Bench) -> None:
    answer = await bench.service.handle(bench.request(task=ImageTask(id="i", image=b"png")))
    assert answer.outcome == "completed"
    assert "text_to_image" not in answer.timings


async def test_the_states_are_walked_in_order_and_logged(make_bench: Any) -> None:
    bench = make_bench()
    assert bench.service.state.value == "starting"
    early = await bench.service.handle(bench.request())
    assert (early.outcome, early.reason_code) == ("dropped", "not_ready")
    await bench.service.start()
    assert bench.service.state.value == "ready"
    await bench.service.drain()
    late = await bench.service.handle(bench.request())
    assert (late.outcome, late.reason_code) == ("dropped", "draining")
    moves = [(e["previous"], e["state"]) for e in bench.events("state_changed")]
    assert moves == [
        ("starting", "warming_up"),
        ("warming_up", "ready"),
        ("ready", "draining"),
    ]
    assert bench.generator.ran == []


async def test_with_no_budget_everything_is_dropped_with_the_prediction(make_bench: Any) -> None:
    bench = make_bench(budget_s=0.01)
    await bench.service.start()
    answer = await bench.service.handle(bench.request())
    assert (answer.outcome, answer.reason_code) == ("dropped", "predicted_late")
    assert "predicted 4.80 s" in answer.reason
    assert answer.budget_s == 0.0
    assert bench.generator.ran == []
    assert bench.events("admitted") == []


async def test_the_caller_may_shorten_the_budget_but_not_lengthen_it(bench: Bench) -> None:
    short = await bench.service.handle(bench.request(allowed_s=5.0))
    assert (short.outcome, short.budget_s) == ("dropped", 4.0)
    long = await bench.service.handle(bench.request(allowed_s=500.0))
    assert (long.outcome, long.budget_s) == ("completed", 29.0)


async def test_time_lost_before_the_service_counts(bench: Bench) -> None:
    answer = await bench.service.handle(bench.request(received_at=bench.clock.now - 25.0))
    assert (answer.outcome, answer.reason_code) == ("dropped", "predicted_late")
    assert answer.total_s == pytest.approx(25.0)


async def test_a_request_that_falls_behind_is_dropped_before_its_next_stage(bench: Bench) -> None:
    bench.generator.hold_at = "background"
    asking = asyncio.create_task(bench.service.handle(bench.request()))
    await bench.generator.holding.wait()
    bench.clock.now += 28.0
    bench.generator.release.set()
    answer = await asking
    assert (answer.outcome, answer.reason_code) == ("dropped", "predicted_late_stage")
    assert answer.stage == "scene_code"
    assert "1.00 s left" in answer.reason
    assert ("t", "scene_code") not in bench.generator.ran


async def test_the_second_request_waits_for_the_first_in_the_prediction(bench: Bench) -> None:
    bench.generator.hold_at = "text_to_image"
    asking = asyncio.create_task(bench.service.handle(bench.request("first")))
    await bench.generator.holding.wait()
    dropped = await bench.service.handle(bench.request("second", allowed_s=9.0))
    assert dropped.reason_code == "predicted_late"
    assert "4.08 s waiting for the GPU" in dropped.reason
    bench.generator.release.set()
    assert (await asking).outcome == "completed"
    after = await bench.service.handle(bench.request("third", allowed_s=9.0))
    assert after.outcome == "completed"


@pytest.mark.parametrize(
    ("error", "outcome", "code", "words"),
    [
        (GenerationError("the cloud is empty"), "failed", "generation_error", "cloud is empty"),
        (TaskError("image ends inside its header"), "rejected", "bad_task", "inside its header"),
        (stopped("splats"), "dropped", "deadline_passed", "stopped before splats"),
        (ZeroDivisionError("oops"), "failed", "internal_error", "unexpected ZeroDivisionError"),
    ],
)
async def test_a_failed_request_is_an_answer_and_the_next_one_is_served(
    bench: Bench, error: Exception, outcome: str, code: str, words: str
) -> None:
    bench.generator.error_at, bench.generator.error = "splats", error
    answer = await bench.service.handle(bench.request())
    assert (answer.outcome, answer.reason_code) == (outcome, code)
    assert words in answer.reason
    bench.generator.error = None
    assert (await bench.service.handle(bench.request())).outcome == "completed"
    assert [e["outcome"] for e in bench.events("answered")] == [outcome, "completed"]


async def test_a_dead_engine_ends_every_request_and_is_announced(bench: Bench) -> None:
    bench.generator.hold_at = "text_to_image"
    held = asyncio.create_task(bench.service.handle(bench.request("held")))
    await bench.generator.holding.wait()
    bench.generator.hold_at = None
    bench.generator.error_at, bench.generator.error = "splats", EngineDead("CUDA error 700")
    fatal = await bench.service.handle(bench.request("fatal"))
    assert (fatal.outcome, fatal.reason_code) == ("failed", "engine_dead")
    assert (await held).reason_code == "engine_dead"
    assert bench.service.died.is_set()
    assert bench.service.state is State.DEAD
    after = await bench.service.handle(bench.request("after"))
    assert (after.outcome, after.reason_code) == ("dropped", "not_ready")
    await bench.service.drain()
    assert bench.service.state.value == "dead"


async def test_too_many_requests_in_hand_are_dropped(make_bench: Any) -> None:
    bench = make_bench(max_pending=3, max_pending_per_caller=2)
    await bench.service.start()
    bench.generator.hold_at = "text_to_image"
    greedy = [asyncio.create_task(bench.service.handle(bench.request(str(i)))) for i in range(2)]
    await bench.generator.holding.wait()
    assert (await bench.service.handle(bench.request())).reason_code == "caller_limit"
    other = Caller("5Other")
    third = asyncio.create_task(bench.service.handle(bench.request("c", caller=other)))
    await asyncio.sleep(0)
    full = await bench.service.handle(bench.request("d", caller=Caller("5Third")))
    assert full.reason_code == "queue_full"
    bench.generator.release.set()
    answers = await asyncio.gather(*greedy, third)
    assert {answer.outcome for answer in answers} == {"completed"}
    assert (await bench.service.handle(bench.request())).outcome == "completed"


async def test_draining_finishes_what_is_in_hand(bench: Bench) -> None:
    bench.generator.hold_at = "splats"
    asking = asyncio.create_task(bench.service.handle(bench.request()))
    await bench.generator.holding.wait()
    draining = asyncio.create_task(bench.service.drain())
    await asyncio.sleep(0)
    refused = await bench.service.handle(bench.request("new"))
    assert refused.reason_code == "draining"
    assert not draining.done()
    bench.generator.release.set()
    await draining
    assert (await asking).outcome == "completed"


async def test_draining_gives_up_what_does_not_end(bench: Bench) -> None:
    bench.generator.hold_at = "splats"
    asking = asyncio.create_task(bench.service.handle(bench.request()))
    await bench.generator.holding.wait()
    bench.clock.now += 29.0 + DRAIN_GRACE_S
    await bench.service.drain()
    answer = await asking
    assert (answer.outcome, answer.reason_code) == ("dropped", "draining")


async def test_a_handler_that_is_cancelled_leaves_nothing_behind(bench: Bench) -> None:
    bench.generator.hold_at = "splats"
    asking = asyncio.create_task(bench.service.handle(bench.request()))
    await bench.generator.holding.wait()
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await asyncio.wait_for(bench.service.drain(), 1.0)


async def test_a_generator_that_cannot_start_is_reported(make_bench: Any) -> None:
    bench = make_bench()

    async def start() -> dict[str, float]:
        raise SetupError("no weights", fix="python -m scripts.fetch_models")

    bench.generator.start = start
    with pytest.raises(SetupError, match="fetch_models"):
        await bench.service.start()
    assert bench.service.state is State.WARMING_UP


async def test_an_unusable_task_is_logged_as_rejected(bench: Bench) -> None:
    answer = bench.service.reject(
        task_id="\x1b[2J",
        caller=CALLER,
        transport="axon",
        received_at=bench.clock.now - 0.5,
        reason="prompt is empty",
    )
    assert (answer.outcome, answer.total_s) == ("rejected", 0.5)
    (line,) = bench.events("answered")
    assert (line["task_id"], line["reason"]) == ("??2J", "prompt is empty")
    assert "kind" not in line


async def test_stage_times_of_a_stopped_generation_teach_the_guard(bench: Bench) -> None:
    error = stopped("background")
    error.timings = {"text_to_image": 60.0}
    bench.generator.error_at, bench.generator.error = "text_to_image", error
    await bench.service.handle(bench.request())
    bench.generator.error = None
    answer = await bench.service.handle(bench.request(allowed_s=7.0))
    assert answer.reason_code == "predicted_late"
