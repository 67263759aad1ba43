"""A wrong clock, a closed whitelist, limits: one message with the fix, and one when it is over."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from miner.transports.gateway.troubles import Troubles, trouble_of
from tests.support.fake_gateway import (
    CLOSED,
    CUT_OFF,
    EU,
    GONE,
    STALE,
    UNASSIGNED,
    US,
    begin,
    fault,
    task,
    working,
)
from tests.support.virtual_time import in_virtual_time

LIMITED = fault(429)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.mark.parametrize(
    ("given", "trouble", "fix"),
    [
        (CLOSED, "whitelist", "add the hotkey 5Worker to http.worker_whitelist"),
        (STALE, "signature", "timedatectl set-ntp true"),
        (UNASSIGNED, "context", "--gateway.nodes"),
        (GONE, "context", "name each node with --gateway.nodes"),
        (LIMITED, "limits", "--gateway.results_per_minute"),
        (fault(400, "Bad request: x"), "request", "docs/gateway.md"),
        (fault(302), "request", "--gateway.nodes"),
        (CUT_OFF, "connection", "--gateway.nodes"),
        (fault(500), "connection", "--gateway.nodes"),
        (fault(200), "connection", "--gateway.nodes"),
    ],
)
def test_each_trouble_has_its_fix(given: Any, trouble: str, fix: str, said: list[str]) -> None:
    assert trouble_of(given) == trouble
    troubles = Troubles("5Worker", said.append)
    for _ in range(3):
        troubles.note(EU, given)
    (line,) = said
    assert "Fix" in line
    assert fix in line
    assert str(given) in line


def test_one_call_or_two_without_an_answer_are_not_worth_a_message(said: list[str]) -> None:
    troubles = Troubles("5Worker", said.append)
    for _ in range(20):
        troubles.note(EU, CUT_OFF)
        troubles.note(EU, fault(500))
        troubles.answered(EU)
    assert said == []
    for _ in range(5):
        troubles.note(EU, CUT_OFF)
    assert len(said) == 1


def test_a_trouble_is_logged_once_until_the_last_node_is_without_it(said: list[str]) -> None:
    troubles = Troubles("5Worker", said.append)
    for _ in range(5):
        troubles.note(f"{EU}/get_tasks", CLOSED)
        troubles.note(f"{US}/get_tasks", CLOSED)
    assert len(said) == 1
    troubles.answered(f"{EU}/get_tasks")
    troubles.answered(f"{EU}/add_result")
    assert len(said) == 1
    troubles.answered(f"{US}/get_tasks")
    assert said[1:] == ["gateway: resolved: the hotkey is served by us.example"]
    troubles.answered(f"{US}/get_tasks")
    troubles.note(f"{EU}/get_tasks", CLOSED)
    assert len(said) == 3


def test_refused_results_are_not_logged_again_after_each_poll(said: list[str]) -> None:
    troubles = Troubles("5Worker", said.append)
    for _ in range(5):
        troubles.note(f"{EU}/add_result", fault(400))
        troubles.answered(f"{EU}/get_tasks")
    assert len(said) == 1


@pytest.mark.parametrize(("off_s", "words"), [(42.0, "42 s behind"), (-42.0, "42 s ahead of")])
def test_a_wrong_clock_is_logged_once(off_s: float, words: str, said: list[str]) -> None:
    troubles = Troubles("5Worker", said.append)
    for _ in range(5):
        troubles.clock(EU, off_s)
        troubles.clock(EU, off_s + 1.0)
    (line,) = said
    assert f"this machine's clock is {words} that of eu.example" in line
    assert "timedatectl set-ntp true" in line
    troubles.clock(EU, 0.5)
    assert len(said) == 2


@pytest.mark.parametrize("given", [CLOSED, STALE, LIMITED, CUT_OFF, fault(400)])
@pytest.mark.usefixtures("inline")
@in_virtual_time
async def test_an_hour_of_one_trouble_is_one_warning(
    tmp_path: Path, warnings: list[str], given: Any
) -> None:
    async with working(tmp_path, addresses=(EU, US)) as worker:
        worker.calls.polls = [given] * 10_000
        await begin(worker)
        await asyncio.sleep(3600.0)
        assert len(worker.calls.asked) >= 16
        assert len(warnings) == 1, warnings
        worker.calls.polls = []
        await asyncio.sleep(600.0)
        assert len(warnings) == 2
        assert "resolved: " in warnings[1]


@pytest.mark.usefixtures("inline")
@in_virtual_time
async def test_results_for_another_node_are_one_warning(
    tmp_path: Path, warnings: list[str]
) -> None:
    async with working(tmp_path) as worker:
        worker.calls.polls = [task(f"t-{n}") for n in range(5)]
        worker.calls.answers = [GONE] * 5
        await begin(worker)
        await asyncio.sleep(120.0)
        assert worker.ended == [(f"t-{n}", "gone") for n in range(5)]
        assert len([line for line in warnings if "Fix" in line]) == 1


@pytest.mark.usefixtures("inline")
@in_virtual_time
async def test_a_wrong_clock_is_one_warning(tmp_path: Path, warnings: list[str]) -> None:
    async with working(tmp_path) as worker:
        worker.calls.off_s = 3600.0
        await begin(worker)
        await asyncio.sleep(600.0)
        assert len(warnings) == 1
        assert "3600 s behind" in warnings[0]
