"""What the chain says of this miner is a line in the score log, when it has changed."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from miner.chain.earnings import OLD_S, PAUSE_S, EarningsLog
from miner.chain.metagraph import Neuron, Snapshot
from miner.score.log import ScoreLog
from tests.miner.chain.test_subtensor import FakeSubtensor, chain, fails
from tests.support.fakes import Clock
from tests.support.waiting import until


class Watched:
    """A score log that listens to a chain of two, and what it holds."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.log = ScoreLog(folder)
        self.listener = EarningsLog(self.log, "5M", clock=self.clock)

    def hear(self, emission: float = 2.5, *, problem: str = "", age_s: float = 0.0) -> None:
        miner = Neuron(
            uid=7, hotkey="5M", incentive=0.25, consensus=0.5, emission=emission, stake=9
        )
        best = Neuron(uid=8, hotkey="5B", incentive=0.5)
        idle = Neuron(uid=9, hotkey="5C")
        snapshot = Snapshot.of([miner, best, idle], self.clock() - age_s, tempo=360)
        self.listener(snapshot, problem)

    def events(self) -> list[dict[str, Any]]:
        assert self.log.flush()
        lines = map(json.loads, self.log.path.read_text().splitlines())
        return [{k: v for k, v in line.items() if k not in ("ts", "unix")} for line in lines]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path)
    yield watched
    watched.log.close()


def test_the_first_reading_is_a_line_with_the_place_among_the_others(watched: Watched) -> None:
    watched.hear()
    assert watched.events() == [
        {
            **{"event": "earnings", "uid": 7, "incentive": 0.25, "consensus": 0.5},
            **{"emission": 2.5, "stake": 9.0, "place": 2, "earners": 2, "tempo": 360},
        }
    ]


def test_only_a_change_is_a_line_and_at_most_one_in_five_minutes(watched: Watched) -> None:
    watched.hear(2.5)
    for emission in (2.5, 3.0, 3.5):
        watched.clock.now += PAUSE_S / 4
        watched.hear(emission)
    assert len(watched.events()) == 1
    watched.clock.now += PAUSE_S / 4
    watched.hear(3.5)
    assert [event["emission"] for event in watched.events()] == [2.5, 3.5]
    watched.clock.now += 10 * PAUSE_S
    watched.hear(3.5)
    assert len(watched.events()) == 2


def test_a_chain_that_cannot_be_read_is_said_once_it_is_old_and_when_it_is_back(
    watched: Watched,
) -> None:
    watched.hear(problem="refused", age_s=OLD_S - 1.0)
    assert watched.events() == []
    watched.hear(problem="refused", age_s=OLD_S)
    watched.clock.now += OLD_S - 1.0
    watched.hear(problem="refused", age_s=2 * OLD_S - 1.0)
    watched.clock.now += 1.0
    watched.hear(problem="refused", age_s=2 * OLD_S)
    watched.hear()
    assert [event["event"] for event in watched.events()] == [
        *("chain_old", "chain_old", "chain_back", "earnings")
    ]
    assert watched.events()[1] == {"event": "chain_old", "age_s": 2 * OLD_S, "reason": "refused"}


async def test_a_chain_tells_every_reading_and_every_failure() -> None:
    subtensor, heard = FakeSubtensor(), list[tuple[Snapshot, str]]()
    contact = chain(subtensor)
    contact.listen(lambda snapshot, problem: heard.append((snapshot, problem)))
    await contact.start("5B")
    snapshot, problem = heard[0]
    assert problem == ""
    assert snapshot.tempo == 360
    neuron = snapshot.neurons["5B"]
    assert (neuron.incentive, neuron.consensus, neuron.emission) == pytest.approx((0.1, 0.05, 2.0))
    subtensor.answer = fails
    await until(lambda: bool(heard[-1][1]))
    assert heard[-1] == (contact.snapshot, "ConnectionError: refused")
    await contact.close()
    await asyncio.sleep(0)
