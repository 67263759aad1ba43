"""The machine's clock may be wrong, and be set while the miner runs; so may those of callers."""

import time
from collections.abc import Callable, Iterator

import pytest
from loguru import logger

from miner.transports.push.checks import MAX_AGE_S, NANOSECONDS
from miner.transports.push.clock import OPINION_S, CallersClocks, WallClock
from tests.support.fakes import Clock
from tests.support.running import OTHER, VALIDATOR, Running, Start

# Bittensor 10 reads pydantic's fields through an instance.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")

HOUR = 3600.0


class Machine:
    """A wall clock that can be set, beside a monotonic one."""

    def __init__(self) -> None:
        self.monotonic = Clock()
        self.set_by = 1.8e9

    def wall_ns(self) -> int:
        return int((self.set_by + self.monotonic.now) * NANOSECONDS)


@pytest.mark.parametrize("step", [-HOUR, -2.0, 0.0, 2.0, HOUR])
def test_the_start_moves_with_the_clock(step: float) -> None:
    machine = Machine()
    wall = WallClock(machine.wall_ns, machine.monotonic)
    machine.monotonic.now += 10.0
    machine.set_by += step
    uptime_s = (wall.now_ns() - wall.started_ns()) / NANOSECONDS
    assert uptime_s == pytest.approx(10.0, abs=1e-3)
    assert wall.step_s() == pytest.approx(step, abs=1e-3)
    assert wall.step_s() == 0.0


def test_a_clock_that_is_slewed_has_no_steps() -> None:
    machine = Machine()
    wall = WallClock(machine.wall_ns, machine.monotonic)
    for _ in range(1000):
        machine.monotonic.now += 60.0
        machine.set_by += 0.03  # 500 ppm, the most that the kernel slews.
        assert wall.step_s() == 0.0


def test_most_callers_that_disagree_are_told_once_in_ten_minutes_with_the_offset() -> None:
    clock = Clock()
    callers = CallersClocks(clock)
    for number, ahead_s in enumerate((-3599.0, -3600.0, -3604.0)):
        callers.observe(str(number), ahead_s, agrees=False)
    callers.observe("right", 0.1, agrees=True)
    warning = callers.warning()
    assert warning is not None
    assert "3 of 4 callers are 3600.0 s (median) behind this machine's" in warning
    assert callers.warning() is None
    clock.now += OPINION_S
    assert callers.warning() is None  # Nobody was heard since.
    callers.observe("0", 3600.0, agrees=False)
    assert "ahead of" in (callers.warning() or "")


def test_one_of_two_callers_is_no_majority() -> None:
    callers = CallersClocks(Clock())
    callers.observe("a", -HOUR, agrees=False)
    callers.observe("b", 0.0, agrees=True)
    assert callers.warning() is None


def test_replays_of_an_agreeing_caller_are_no_opinion() -> None:
    clock = Clock()
    callers = CallersClocks(clock)
    callers.observe("a", 0.0, agrees=True)
    clock.now += 60.0
    callers.observe("a", -60.0, agrees=False)
    assert callers.warning() is None
    clock.now += OPINION_S
    callers.observe("a", -60.0, agrees=False)
    assert callers.warning() is not None


class Shifted:
    """The wall clock of this process, set by an offset for everybody in it but the signer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.offset_s = 0.0
        real = time.time_ns
        self.real: Callable[[], int] = real
        monkeypatch.setattr(time, "time_ns", lambda: real() + int(self.offset_s * NANOSECONDS))


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> Shifted:
    return Shifted(monkeypatch)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda text: lines.append(str(text)), level="WARNING")
    yield lines
    logger.remove(sink)


async def asked(miner: Running, shifted: Shifted) -> tuple[int, str]:
    """Asks with the right time, whatever the miner's clock says."""
    status, reply = await miner.post(*miner.signed(nonce=shifted.real()))
    return status, reply.get("reason_code", "") if status != 200 else ""


@pytest.mark.parametrize("wrong", [-HOUR, HOUR])
async def test_a_clock_that_is_corrected_after_the_start_shuts_nobody_out(
    start: Start, shifted: Shifted, warnings: list[str], wrong: float
) -> None:
    shifted.offset_s = wrong
    async with start() as miner:
        code = "clock_behind" if wrong > 0 else "clock_ahead"
        assert await asked(miner, shifted) == (401, code)
        assert any("clocks of 1 of 1 callers are 3600" in line for line in warnings)
        assert any(code in line for line in warnings)
        shifted.offset_s = 0.0
        assert await asked(miner, shifted) == (200, "")
        assert sum("clock was set" in line for line in warnings) == 1
        way = "back" if wrong > 0 else "forward"
        assert any(f"was set {way} by 3600" in line for line in warnings)
        assert miner.events("refused")[0]["reason_code"] == code


async def test_what_was_taken_before_the_clock_was_set_back_is_not_taken_again(
    start: Start,
) -> None:
    async with start() as miner:
        message = miner.signed()
        assert (await miner.post(*message))[0] == 200
        # Its age would no longer pass, until the clock is set back.
        guard = miner.transport._entrance._replays
        for seen in guard._seen:
            guard._seen[seen] -= 2 * MAX_AGE_S
        assert (await miner.post(*miner.signed(OTHER)))[0] == 200
        status, reply = await miner.post(*message)
        assert (status, reply["reason_code"]) == (401, "replayed")


async def test_a_nonce_from_before_the_start_is_refused_at_any_time_of_day(
    start: Start, shifted: Shifted
) -> None:
    async with start() as miner:
        for offset in (0.0, HOUR, -HOUR):
            shifted.offset_s = offset
            nonce = time.time_ns() - 8 * NANOSECONDS
            status, reply = await miner.post(*miner.signed(VALIDATOR, nonce=nonce))
            assert (status, reply["reason_code"]) == (401, "before_start")
