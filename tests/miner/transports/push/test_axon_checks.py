import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.chain.metagraph import Neuron, OnReading, Snapshot
from miner.transports.push.checks import (
    MAX_AGE_S,
    MAX_AHEAD_S,
    MAX_TIMEOUT_S,
    NANOSECONDS,
    Admission,
    RateLimit,
    ReplayGuard,
    check_headers,
)
from tests.support.fakes import Clock

NOW = 1_800_000_000 * NANOSECONDS


class StaticChain:
    """A snapshot that may be stale."""

    def __init__(self, *neurons: Neuron, stale: bool = False) -> None:
        self.snapshot = Snapshot.of(neurons, 0.0)
        self.stale = stale
        self.deregistered = asyncio.Event()

    def is_stale(self) -> bool:
        return self.stale

    def listen(self, listener: OnReading) -> None: ...

    async def start(self, hotkey: str) -> Neuron:
        return self.snapshot.neurons[hotkey]

    async def publish(self, axon: object) -> None: ...

    async def close(self) -> None: ...


VALIDATOR = Neuron(uid=1, hotkey="5V", stake=500.0, validator_permit=True)
MINER = Neuron(uid=2, hotkey="5M", stake=500.0)


@pytest.mark.parametrize(
    ("admission", "hotkey", "code"),
    [
        (Admission(), "5V", None),
        (Admission(), "5M", "no_permit"),
        (Admission(), "5X", "unknown_hotkey"),
        (Admission(), "", "unknown_hotkey"),
        (Admission(min_stake=500.0), "5V", None),
        (Admission(min_stake=500.1), "5V", "low_stake"),
        (Admission(allow_no_permit=True), "5M", None),
        (Admission(allow_no_permit=True, min_stake=501.0), "5M", "low_stake"),
        (Admission(allow_non_registered=True), "5X", None),
        (Admission(allow_non_registered=True), "5M", "no_permit"),
    ],
)
def test_who_is_served(admission: Admission, hotkey: str, code: str | None) -> None:
    refusal = admission.refusal(StaticChain(VALIDATOR, MINER), hotkey)
    assert (refusal.code if refusal else None) == code
    if refusal:
        assert refusal.reason.isascii()
        assert refusal.reason.isprintable()


def test_a_stale_chain_serves_the_known_and_says_why_not_the_unknown() -> None:
    chain = StaticChain(VALIDATOR, stale=True)
    assert Admission().refusal(chain, "5V") is None
    refusal = Admission().refusal(chain, "5X")
    assert refusal is not None
    assert refusal.code == "chain_unavailable"


def checked(**headers: object) -> float:
    values = {
        "nonce": NOW,
        "version": 10_005_000,
        "timeout": 30.0,
        "now": NOW,
        "started": NOW - 100 * NANOSECONDS,
        **headers,
    }
    return check_headers(**values)  # type: ignore[arg-type]


def test_the_timeout_widens_the_window_by_little() -> None:
    assert checked(timeout=2.0) == 2.0
    assert checked(timeout=1e12) == MAX_TIMEOUT_S


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"version": None}, "version"),
        ({"version": 7_001_999}, "version"),
        ({"nonce": None}, "nonce is missing"),
        ({"nonce": NOW + int(4.1 * NANOSECONDS)}, "in the future"),
        ({"nonce": NOW - 101 * NANOSECONDS}, "before this miner started"),
        ({"timeout": None}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"timeout": -1e12}, "timeout"),
    ],
)
def test_headers_that_would_widen_the_window_are_refused(
    headers: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        checked(**headers)


def test_a_message_is_let_through_once_whatever_the_order() -> None:
    guard = ReplayGuard(Clock())
    for nonce in (3, 1, 2):
        guard.remember("5V", "u", nonce)
    for nonce in (1, 2, 3):
        with pytest.raises(ValueError, match="received before"):
            guard.remember("5V", "u", nonce)
    guard.remember("5V", "other", 1)
    guard.remember("5W", "u", 1)


@given(st.lists(st.floats(0.0, 20.0), max_size=40))
def test_a_message_is_remembered_for_as_long_as_its_age_would_pass(pauses: list[float]) -> None:
    clock = Clock()
    guard = ReplayGuard(clock)
    guard.remember("5V", "u", 0)
    end = clock.now + MAX_AGE_S + MAX_AHEAD_S
    for number, pause in enumerate(pauses, start=1):
        clock.now += pause
        if clock.now < end:
            with pytest.raises(ValueError, match="received before"):
                guard.remember("5V", "u", 0)
        guard.remember("5V", "u", number)


def test_memory_is_bounded_and_comes_back() -> None:
    clock = Clock()
    guard = ReplayGuard(clock, capacity=10)
    for nonce in range(10):
        guard.remember("5V", "u", nonce)
    with pytest.raises(ValueError, match="too many requests"):
        guard.remember("5V", "u", 10)
    clock.now += MAX_AGE_S + MAX_AHEAD_S
    for nonce in range(10, 20):
        guard.remember("5V", "u", nonce)


def test_a_caller_has_so_many_requests_in_any_minute() -> None:
    clock = Clock()
    limit = RateLimit(3, clock)
    assert [limit.allow("5V") for _ in range(4)] == [True, True, True, False]
    assert limit.allow("5W")
    clock.now += 59.0
    assert not limit.allow("5V")
    clock.now += 1.0
    assert limit.allow("5V")


@given(st.lists(st.floats(0.0, 30.0), max_size=60))
def test_no_minute_ever_holds_more_than_the_limit(pauses: list[float]) -> None:
    clock = Clock()
    limit = RateLimit(4, clock)
    allowed: list[float] = []
    for pause in pauses:
        clock.now += pause
        if limit.allow("5V"):
            allowed.append(clock.now)
    for start in allowed:
        assert sum(start <= time < start + 60.0 for time in allowed) <= 4
