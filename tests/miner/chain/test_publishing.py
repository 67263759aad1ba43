"""Publishing the axon's address on a chain that fails for a while. No time passes."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from miner.chain import subtensor as module
from miner.chain.subtensor import PUBLISH_LIMIT_S, SubtensorChain
from protocol.errors import SetupError
from tests.miner.chain.test_subtensor import FakeSubtensor, metagraph
from tests.support.fakes import Clock
from tests.support.waiting import PATIENCE_S

AXON = SimpleNamespace(external_ip="9.8.7.6", external_port=8091)
TAKEN = SimpleNamespace(success=True, message=None)
RATE_LIMITED = SimpleNamespace(success=False, message="ServingRateLimitExceeded")


class Publishing:
    """A chain whose clock is moved by the pauses between two attempts."""

    def __init__(self, *answers: Any) -> None:
        self.subtensor = FakeSubtensor()
        self.answers = list(answers)
        self.clock = Clock()
        self.pauses: list[float] = []
        self.on_pause: Callable[[], None] = lambda: None
        self.subtensor.serve_axon = self._serve  # type: ignore[method-assign]
        self.chain = SubtensorChain(
            "test",
            17,
            connect=self.subtensor.connect,
            refresh_s=3600.0,
            clock=self.clock,
            sleep=self._sleep,
        )

    def _serve(self, **arguments: Any) -> Any:
        self.subtensor.calls.append(arguments)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.clock.now += seconds
        self.on_pause()
        await asyncio.sleep(0)

    async def publish(self) -> None:
        await self.chain.start("5A")
        try:
            await self.chain.publish(AXON)
        finally:
            await self.chain.close()


async def test_an_address_that_is_taken_at_once_is_published_once(log_lines: list[str]) -> None:
    publishing = Publishing(TAKEN)
    await publishing.publish()
    assert publishing.subtensor.calls == [{"netuid": 17, "axon": AXON}]
    assert publishing.pauses == []
    assert log_lines == []


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (RATE_LIMITED, "ServingRateLimitExceeded"),
        (SimpleNamespace(success=False, message=None), "no reason given"),
        (ConnectionError("gone"), "ConnectionError: gone"),
        (None, "AttributeError"),
    ],
)
async def test_a_passing_failure_is_repeated_and_warned_of(
    failure: Any, words: str, log_lines: list[str]
) -> None:
    publishing = Publishing(failure, failure, failure, TAKEN)
    await publishing.publish()
    assert len(publishing.subtensor.calls) == 4
    assert publishing.pauses == [2.0, 4.0, 8.0]
    assert len(log_lines) == 3
    assert words in log_lines[0]
    assert "next try in 4 s" in log_lines[1]


async def test_a_failure_of_eleven_minutes_is_a_start_up_message(log_lines: list[str]) -> None:
    publishing = Publishing(RATE_LIMITED)
    with pytest.raises(SetupError, match="within 11 minutes: ServingRateLimitExceeded") as caught:
        await publishing.publish()
    assert publishing.pauses[:6] == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert set(publishing.pauses[6:]) == {60.0}
    # The chain's own limit is ten minutes, which the last attempt must lie beyond.
    assert 600.0 < sum(publishing.pauses) <= PUBLISH_LIMIT_S
    assert len(log_lines) == len(publishing.pauses)
    assert "--axon.external_ip" in caught.value.fix


async def test_every_attempt_has_a_connection_of_its_own() -> None:
    """The library reports a broken connection as it reports a refusal."""
    publishing = Publishing(RATE_LIMITED, RATE_LIMITED, TAKEN)
    await publishing.publish()
    assert len(publishing.subtensor.connections) == 3


async def test_an_address_that_the_chain_shows_after_all_is_published() -> None:
    publishing = Publishing(RATE_LIMITED)

    def read_again() -> None:
        shown = metagraph("5A", "5B")
        shown.axons[0] = SimpleNamespace(ip=AXON.external_ip, port=AXON.external_port)
        publishing.chain.snapshot = publishing.chain._read(
            SimpleNamespace(metagraph=lambda netuid: shown)
        )

    publishing.on_pause = read_again
    await publishing.publish()
    assert publishing.pauses == [2.0]


async def test_the_chain_is_read_between_two_attempts() -> None:
    publishing = Publishing(RATE_LIMITED, TAKEN)
    read: list[object] = []

    async def sleep(seconds: float) -> None:
        await publishing.chain._refresh()
        read.append(publishing.chain.snapshot)

    publishing.chain._sleep = sleep
    await publishing.publish()
    assert len(read) == 1


async def test_publishing_can_be_cancelled_between_two_attempts() -> None:
    publishing = Publishing(RATE_LIMITED)
    waiting = asyncio.Event()

    async def sleep(seconds: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    publishing.chain._sleep = sleep
    task = asyncio.create_task(publishing.publish())
    await asyncio.wait_for(waiting.wait(), PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert publishing.subtensor.closed


def test_the_pauses_double_up_to_a_minute() -> None:
    pauses = module._pauses()
    assert [next(pauses) for _ in range(8)] == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
