"""What the service shows while it works: each request's progress, its queue, one line an answer."""

import asyncio
from collections.abc import Iterator, Mapping

import pytest
from loguru import logger

from generation.errors import EngineDead, GenerationError
from miner.request import ActiveRequest, Answer, Request
from protocol.tasks import TextTask
from tests.miner.conftest import MakeBench
from tests.support.fakes import STAGES, FakeEngine
from tests.support.service_bench import CALLER, Bench
from tests.support.virtual_time import clock, in_virtual_time


@pytest.fixture
def lines() -> Iterator[list[str]]:
    shown: list[str] = []
    sink = logger.add(lambda text: shown.append(str(text)), format="{message}", level="INFO")
    yield shown
    logger.remove(sink)


@in_virtual_time
async def test_a_watch_sees_every_stage_begin_and_end(bench: Bench) -> None:
    await bench.service.start()
    seen: list[tuple[int, bool]] = []

    def watch(active: ActiveRequest) -> None:
        seen.append((active.position, active.step_since is not None))

    await bench.service.handle(bench.request(), watch=watch)
    steps = len(bench.engine.ran)
    assert seen[0] == (0, False)
    assert [position for position, running in seen if running] == list(range(steps))
    assert seen[-1] == (steps, False)


@in_virtual_time
async def test_a_watch_that_fails_costs_the_caller_nothing(bench: Bench) -> None:
    def watch(active: ActiveRequest) -> None:
        raise ZeroDivisionError

    await bench.service.start()
    answer = await bench.service.handle(bench.request(), watch=watch)
    assert answer.outcome == "completed"


@in_virtual_time
async def test_an_earlier_deadline_goes_ahead_and_the_queue_says_so(bench: Bench) -> None:
    await bench.service.start()
    held = await bench.held("prompt", "one")
    bench.engine.held_task = None
    two = bench.request("two", allowed_s=29.0)
    three = bench.request("three", allowed_s=29.5)
    asking = [asyncio.create_task(bench.service.handle(each)) for each in (three, two)]
    await asyncio.sleep(0.01)
    assert bench.service.ahead(two.id) == 0
    assert bench.service.ahead(three.id) == 1
    assert bench.service.ahead("unknown") is None
    bench.engine.release.set()
    await asyncio.gather(held, *asking)
    assert bench.service.ahead(two.id) is None


@in_virtual_time
async def test_a_snapshot_tells_what_a_newcomer_would_wait_for(bench: Bench) -> None:
    assert bench.service.snapshot().predicted_wait_s is None
    assert not bench.service.snapshot().engines[0].up
    await bench.service.start()
    idle = bench.service.snapshot()
    assert (idle.state, idle.waiting, dict(idle.active)) == ("ready", 0, {})
    assert idle.predicted_wait_s == pytest.approx(0.0, abs=1e-9)
    held = await bench.held("prompt", "one")
    asking = [bench.ask(name, transport="http") for name in ("two", "three")]
    await asyncio.sleep(0.01)
    busy = bench.service.snapshot()
    assert busy.active == {"axon": 1, "http": 2}
    assert busy.predicted_wait_s is not None
    assert busy.predicted_wait_s > 5.0
    assert busy.engines[0].backlog_s > busy.predicted_wait_s
    assert busy.engines[0].active + busy.waiting == 3
    bench.engine.release.set()
    await asyncio.gather(held, *asking)
    assert bench.service.snapshot().engines[0].backlog_s == 0.0


@in_virtual_time
async def test_a_lost_engine_stays_in_the_snapshot(make_bench: MakeBench) -> None:
    first, second = FakeEngine(name="first"), FakeEngine(name="second")
    bench = make_bench(first, second)
    await bench.service.start()
    first.error_at, first.error = "lift", EngineDead("the device fell off")
    await bench.handle()
    up = {engine.name: engine.up for engine in bench.service.snapshot().engines}
    assert up == {"first": False, "second": True}


@pytest.mark.parametrize("transport", ["axon", "pull", "http"])
@in_virtual_time
async def test_each_answer_is_one_info_line_with_its_caller_stages_and_total_time(
    bench: Bench, lines: list[str], transport: str
) -> None:
    await bench.service.start()
    await bench.handle("ours", transport=transport)
    (line,) = [line for line in lines if line.startswith("ours:")]
    assert f"by {transport} from 5Validat (uid 3) completed at full" in line
    assert all(f"{stage} " in line for stage in STAGES)
    assert "8,000 Gaussians" in line
    assert "Total time: " in line


@in_virtual_time
async def test_an_answer_without_an_asset_is_one_info_line_with_the_reason(
    bench: Bench, lines: list[str]
) -> None:
    await bench.service.start()
    bench.engine.error_at, bench.engine.error = "splats", GenerationError("the cloud is empty")
    await bench.handle("failed")
    bench.service.reject(
        task_id="odd\n", caller=CALLER, transport="axon", received_at=clock(), reason="no prompt"
    )
    shown = [line for line in lines if "task" in line]
    assert len(shown) == 2
    assert "failed: text task by axon" in shown[0]
    assert "the cloud is empty" in shown[0]
    assert "odd?: task by axon from 5Validat (uid 3) rejected after 0.00 s: no prompt" in shown[1]


@in_virtual_time
async def test_listeners_get_every_answer_and_cannot_harm_it(
    make_bench: MakeBench,
) -> None:
    heard: list[tuple[str, str]] = []

    def fail(request: Request, answer: Answer) -> None:
        raise ZeroDivisionError

    def hear(request: Request, answer: Answer) -> None:
        assert (answer.picture is not None) == (answer.outcome == "completed")
        heard.append((request.task.id, answer.outcome))

    bench = make_bench(on_answer=[fail, hear])
    await bench.handle("early")
    await bench.service.start()
    await bench.handle("good")
    assert heard == [("early", "dropped"), ("good", "completed")]


def test_listeners_of_the_score_log_get_the_fields_as_written(bench: Bench) -> None:
    heard: list[tuple[str, dict[str, object]]] = []

    def fail(event: str, fields: Mapping[str, object]) -> None:
        raise ZeroDivisionError

    bench.log.listen(fail)
    bench.log.listen(lambda event, fields: heard.append((event, dict(fields))))
    bench.log.write("refused", count=3, reason=None, share=float("nan"))
    assert heard == [("refused", {"count": 3})]
    (line,) = bench.events("refused")
    assert line["count"] == 3


@in_virtual_time
async def test_an_answer_tells_the_words_that_the_networks_know(make_bench: MakeBench) -> None:
    bench = make_bench(vocabulary={"blue", "cube"})
    await bench.service.start()
    answer = await bench.handle(task=TextTask(id="t", prompt="a blue dragon of cubes"))
    assert (answer.understood, answer.ignored) == (("blue", "cube (cubes)"), ("dragon",))


@in_virtual_time
async def test_logs_name_a_few_words_of_a_prompt_and_never_hold_it(
    make_bench: MakeBench, lines: list[str]
) -> None:
    bench = make_bench(vocabulary={"blue", "cube"})
    await bench.service.start()
    prompt = " ".join(["a blue dragon", "\u202e", "x" * 200, *map(str, range(100)), "secret"])
    await bench.handle(task=TextTask(id="t", prompt=prompt))
    line = bench.answered()
    assert line["understood"] == ["blue"]
    assert line["ignored"][:3] == ["dragon", "x" * 29 + "...", "0"]
    assert (len(line["ignored"]), line["ignored"][-1]) == (17, "...")
    (said,) = (line for line in lines if "t: text task" in line)
    assert "; understood: blue; ignored: dragon, xxx" in said
    assert len(said) < 600
    for text in (bench.log.path.read_text(), *lines):
        assert not any(part in text for part in ("a blue dragon", "secret", "x" * 33, "\u202e"))


@pytest.mark.parametrize("prompt", ["a dragon", "of the", "🚗"])
@in_virtual_time
async def test_a_prompt_without_a_known_word_is_rejected_and_nothing_runs(
    make_bench: MakeBench, lines: list[str], prompt: str
) -> None:
    bench = make_bench(vocabulary=("blue", "cube"))
    await bench.service.start()
    answer = await bench.handle(task=TextTask(id="t", prompt=prompt))
    assert (answer.outcome, answer.reason_code) == ("rejected", "unknown_words")
    assert answer.reason.endswith("use some of blue, cube")
    assert answer.understood == ()
    assert bench.engine.ran == []
    assert bench.events("admitted") == []
    line = bench.answered()
    assert (line["outcome"], line["reason_code"]) == ("rejected", "unknown_words")
    assert "understood" not in line
    assert line.get("ignored", []) == (["dragon"] if "dragon" in prompt else [])
    assert any("t: text task" in line and "rejected" in line for line in lines)


@in_virtual_time
async def test_any_words_are_taken_where_the_networks_know_too_many_to_list(bench: Bench) -> None:
    await bench.service.start()
    answer = await bench.handle(task=TextTask(id="t", prompt="a dragon"))
    assert (answer.outcome, answer.understood, answer.ignored) == ("completed", (), ())
    assert not {"understood", "ignored"} & set(bench.answered())


@pytest.mark.parametrize(("sole_caller", "admitted"), [(False, 4), (True, 7)])
@in_virtual_time
async def test_a_sole_caller_is_let_in_as_long_as_it_is_in_time(
    make_bench: MakeBench, sole_caller: bool, admitted: int
) -> None:
    bench = make_bench(sole_caller=sole_caller)
    await bench.service.start()
    held = await bench.held("prompt", "one", transport="http")
    asking = [bench.ask(f"more {number}", transport="http") for number in range(20)]
    await asyncio.sleep(0.01)
    refused = {event["reason_code"] for event in bench.events("answered")}
    assert refused == {"predicted_late" if sole_caller else "caller_share"}
    assert bench.service.snapshot().active == {"http": admitted}
    bench.engine.release.set()
    await asyncio.gather(held, *asking)
