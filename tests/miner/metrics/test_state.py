"""Gauges: what the miner is at the moment of the scrape, in every state."""

import asyncio
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest

from generation.errors import EngineDead
from miner.chain.metagraph import Neuron
from miner.life import State
from miner.metrics.gpu import GpuMemory
from miner.metrics.state import Place, StateCollector
from tests.miner.conftest import MakeBench
from tests.miner.transports.push.test_axon_checks import StaticChain
from tests.support.fakes import FakeEngine
from tests.support.measured_miner import Exposition
from tests.support.service_bench import Bench
from tests.support.virtual_time import clock, in_virtual_time


def exposed(bench: Bench, **settings: Any) -> Exposition:
    """What is exposed now."""
    registry = CollectorRegistry()
    values = {
        "problems": bench.log.problems,
        "last_completed": lambda: None,
        "gpu_memory": GpuMemory(lambda: False),
        "transports": ("axon", "http"),
        "clock": clock,
        **settings,
    }
    registry.register(StateCollector(bench.service.snapshot, **values))
    return Exposition(generate_latest(registry).decode())


def state(shown: Exposition) -> str:
    """The one state that is 1."""
    states = {s.labels["state"]: s.value for s in shown.samples if s.name == "splat_miner_state"}
    assert set(states) == {each.value for each in State}
    (now,) = (name for name, value in states.items() if value == 1)
    assert sorted(states.values()) == [0] * 5 + [1]
    return now


@in_virtual_time
async def test_every_state_from_the_first_to_the_last_is_shown(bench: Bench) -> None:
    assert state(exposed(bench)) == "starting"
    assert exposed(bench).value("engine_up", engine="fake") == 0
    starting = asyncio.create_task(bench.service.start())
    await asyncio.sleep(0)
    assert state(exposed(bench)) == "warming_up"
    await starting
    assert state(exposed(bench)) == "ready"
    assert exposed(bench).value("engine_up", engine="fake") == 1
    asking = await bench.held("lift")
    draining = asyncio.create_task(bench.service.drain())
    await asyncio.sleep(0.01)
    shown = exposed(bench)
    assert state(shown) == "draining"
    assert shown.value("active_requests", transport="axon") == 1
    assert shown.value("engine_requests", engine="fake") == 1
    bench.engine.release.set()
    await asyncio.gather(asking, draining)
    assert exposed(bench).value("active_requests", transport="axon") == 0


@in_virtual_time
async def test_a_step_past_its_limit_takes_the_engine_down_until_it_ends(bench: Bench) -> None:
    await bench.service.start()
    asking = await bench.held("lift")
    await asyncio.sleep(20.0)
    shown = exposed(bench)
    assert state(shown) == "suspect"
    assert shown.value("engine_up", engine="fake") == 0
    bench.engine.release.set()
    await asking
    assert exposed(bench).value("engine_up", engine="fake") == 1


@in_virtual_time
async def test_a_lost_engine_stays_among_the_series_and_the_last_one_is_death(
    make_bench: MakeBench,
) -> None:
    engines = FakeEngine(name="one"), FakeEngine(name="two")
    bench = make_bench(*engines)
    await bench.service.start()
    for engine in engines:
        engine.error_at, engine.error = "lift", EngineDead("gone")
    await bench.handle("a")
    shown = exposed(bench)
    assert state(shown) == "ready"
    assert sorted(shown.values("engine_up")) == [0, 1]
    await bench.handle("b")
    shown = exposed(bench)
    assert state(shown) == "dead"
    assert shown.value("engine_up", engine="one") == shown.value("engine_up", engine="two") == 0


@in_virtual_time
async def test_the_backlog_counts_what_runs_and_what_waits(bench: Bench) -> None:
    await bench.service.start()
    assert exposed(bench).value("backlog_seconds", engine="fake") == 0
    one = await bench.held("prompt", "one")
    alone = exposed(bench).value("backlog_seconds", engine="fake")
    two = bench.ask("two")
    await asyncio.sleep(0.01)
    shown = exposed(bench)
    assert 1.0 < alone < shown.value("backlog_seconds", engine="fake")
    held = shown.value("engine_requests", engine="fake")
    assert held + shown.value("waiting_requests") == 2
    bench.engine.release.set()
    await asyncio.gather(one, two)


@in_virtual_time
async def test_the_chain_is_as_old_as_its_last_reading(bench: Bench) -> None:
    chain = StaticChain(Neuron(uid=3, hotkey="5M"))
    chain.snapshot = chain.snapshot.of(chain.snapshot.neurons.values(), clock() - 90.0)
    shown = exposed(bench, place=Place(chain, "5M"))
    assert shown.value("chain_age_seconds") == 90.0
    assert shown.value("registered") == 1
    assert exposed(bench, place=Place(chain, "5Other")).value("registered") == 0
    without = exposed(bench)
    assert without.values("chain_age_seconds") == without.values("registered") == []


@in_virtual_time
async def test_problems_waits_and_completions_are_shown_as_they_are_now(bench: Bench) -> None:
    bench.log.problems.report("disk", "the disk is full")
    shown = exposed(bench, last_completed=lambda: 123.0, validator_waits=lambda: {5: 2.5, 9: 0.0})
    assert shown.value("problems") == 1
    assert shown.value("last_completed_timestamp_seconds") == 123.0
    assert shown.value("validator_wait_seconds", uid="5") == 2.5
    assert shown.value("validator_wait_seconds", uid="9") == 0.0
    bench.log.problems.clear("disk", "there is room again")
    shown = exposed(bench)
    assert shown.value("problems") == 0
    assert shown.values("last_completed_timestamp_seconds") == []
