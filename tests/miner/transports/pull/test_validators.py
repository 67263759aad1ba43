"""Whom to ask next: pure policy on a fake clock."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.chain.metagraph import Neuron
from miner.transports.pull.validators import (
    BACKOFF_S,
    MARGIN_S,
    MAX_BACKOFF_S,
    MAX_WAIT_S,
    Fate,
    Selection,
    Standing,
    Validators,
)
from tests.miner.mock_validator.pull_fakes import MINER
from tests.support.fakes import Clock

START = 1_800_000_000.0


def validator(uid: int, **fields: object) -> Neuron:
    return Neuron.model_validate(
        {
            "uid": uid,
            "hotkey": f"5V{uid}",
            "ip": "1.2.3.4",
            "port": 8091,
            "stake": 5000.0,
            "validator_permit": True,
            **fields,
        }
    )


def make(clock: Clock, **selection: object) -> Validators:
    return Validators(Selection(own_hotkey=MINER, **selection), clock=clock)  # type: ignore[arg-type]


@pytest.fixture
def clock() -> Clock:
    return Clock(START)


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({}, True),
        ({"stake": 0.0}, True),
        ({"validator_permit": False, "stake": 1000.0}, True),
        ({"validator_permit": False, "stake": 999.9}, False),
        ({"port": 0}, False),
        ({"port": 65536}, False),
        ({"ip": "0.0.0.0"}, False),
        ({"ip": ""}, False),
        ({"ip": "::"}, False),
        ({"ip": "[::]"}, False),
        ({"ip": "0:0:0:0:0:0:0:0"}, False),
        ({"ip": "::ffff:0.0.0.0"}, False),
        ({"ip": "2001:db8::1"}, True),
        ({"ip": "::ffff:1.2.3.4"}, True),
        ({"ip": "fe80::1%eth0"}, True),
        ({"ip": "validator.example"}, True),
        ({"hotkey": MINER}, False),
    ],
)
def test_who_is_eligible(clock: Clock, fields: dict[str, object], asked: bool) -> None:
    neuron = validator(1, **fields)
    assert make(clock).choose([neuron]) == (neuron if asked else None)
    assert make(clock).wait([neuron]) == (0.0 if asked else None)


def test_one_task_at_a_time_per_validator(clock: Clock) -> None:
    policy, neuron = make(clock), validator(1)
    assert policy.choose([neuron]) == neuron
    assert policy.choose([neuron]) is None
    assert policy.wait([neuron]) is None
    policy.settled("5V1", "accepted", assigned_at=START, cooldown_until=START + 300.0)
    assert policy.choose([neuron]) is None
    assert policy.wait([neuron]) == 300.0 + MARGIN_S
    clock.now += 300.0 + MARGIN_S
    assert policy.choose([neuron]) == neuron


@pytest.mark.parametrize("stated", [None, START - 5.0, START + 900.0, 1e18])
def test_a_cooldown_is_kept_and_a_garbled_one_does_not_last_for_ever(
    clock: Clock, stated: float | None
) -> None:
    policy, neuron = make(clock), validator(1)
    policy.choose([neuron])
    policy.settled("5V1", "refused", assigned_at=START - 40.0, cooldown_until=stated)
    expected = START + 260.0 if stated is None else max(stated, START)
    wait = policy.wait([neuron])
    assert wait == min(expected - START + MARGIN_S, MAX_WAIT_S)


def test_back_off_grows_to_a_cap_and_is_forgiven(clock: Clock) -> None:
    policy, neuron = make(clock), validator(1)
    waits = []
    for _ in range(7):
        assert policy.choose([neuron]) == neuron
        policy.unanswered("5V1")
        waits.append(policy.wait([neuron]))
        clock.now += waits[-1] or 0.0
    assert waits == [BACKOFF_S, 120.0, 240.0, 480.0, MAX_BACKOFF_S, MAX_BACKOFF_S, MAX_BACKOFF_S]
    policy.choose([neuron])
    policy.assigned("5V1")
    policy.settled("5V1", "accepted", assigned_at=clock.now, cooldown_until=clock.now)
    clock.now += MARGIN_S
    policy.choose([neuron])
    assert policy.unanswered("5V1") == BACKOFF_S


def test_a_validator_without_a_task_is_asked_again_a_minute_later_each_time(clock: Clock) -> None:
    policy, neuron = make(clock), validator(1)
    policy.choose([neuron])
    policy.unanswered("5V1")
    for _ in range(3):
        clock.now += BACKOFF_S
        assert policy.choose([neuron]) == neuron
        policy.without_task("5V1", 0)
        assert policy.wait([neuron]) == BACKOFF_S
    clock.now += BACKOFF_S
    policy.choose([neuron])
    assert policy.unanswered("5V1") == BACKOFF_S


def test_the_preferred_validator_is_asked_every_third_turn(clock: Clock) -> None:
    policy = make(clock, preferred="5V9", every=3)
    neurons = [validator(uid) for uid in range(10)]
    asked = []
    for _ in range(12):
        chosen = policy.choose(neurons)
        assert chosen is not None
        asked.append(chosen.hotkey)
        policy.settled(chosen.hotkey, "accepted", assigned_at=clock.now, cooldown_until=clock.now)
        clock.now += 10.0
    assert [index for index, hotkey in enumerate(asked) if hotkey == "5V9"] == [2, 5, 8, 11]


def test_a_preferred_validator_that_cools_down_is_not_asked(clock: Clock) -> None:
    policy = make(clock, preferred="5V9", every=1)
    neurons = [validator(1), validator(9)]
    first = policy.choose(neurons)
    assert first is not None
    assert first.hotkey == "5V9"
    policy.settled("5V9", "accepted", assigned_at=START, cooldown_until=START + 300.0)
    second = policy.choose(neurons)
    assert second is not None
    assert second.hotkey == "5V1"


def saturated(clock: Clock, fates: dict[str, Fate], turns: int) -> Counter[str]:
    """Turns per validator when all of them always have work and we can do one at a time."""
    policy, neurons = make(clock), [validator(uid) for uid in range(len(fates))]
    count: Counter[str] = Counter()
    for _ in range(turns):
        chosen = policy.choose(neurons)
        assert chosen is not None
        count[chosen.hotkey] += 1
        clock.now += 10.0
        policy.settled(
            chosen.hotkey, fates[chosen.hotkey], assigned_at=clock.now, cooldown_until=clock.now
        )
        clock.now += MARGIN_S
    return count


def test_equal_validators_have_equal_turns(clock: Clock) -> None:
    count = saturated(clock, {f"5V{uid}": "accepted" for uid in range(6)}, 600)
    assert set(count.values()) == {100}


def test_one_that_refuses_has_fewer_turns_but_is_never_forgotten(clock: Clock) -> None:
    fates: dict[str, Fate] = {f"5V{uid}": "accepted" for uid in range(6)}
    count = saturated(clock, {**fates, "5V0": "refused"}, 600)
    assert 2 <= count["5V0"] <= 30
    assert min(count[hotkey] for hotkey in fates if hotkey != "5V0") >= 110


def test_the_memory_goes_from_run_to_run_and_forgets_who_left(clock: Clock) -> None:
    policy, neurons = make(clock), [validator(1), validator(2)]
    policy.choose(neurons)
    policy.settled("5V1", "accepted", assigned_at=START, cooldown_until=START + 300.0)
    memory = policy.export()
    assert memory["5V1"].accepted == 1
    again = Validators(Selection(MINER), clock=clock, standings=memory)
    chosen = again.choose(neurons)
    assert chosen is not None
    assert chosen.hotkey == "5V2"
    clock.now += 15 * 24 * 3600.0
    assert Validators(Selection(MINER), clock=clock, standings=memory).export() == {}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["unanswered", "without_task", "accepted", "refused", "skipped"]),
            st.floats(-1e3, 1e6),
            st.floats(0.0, 500.0),
        ),
        max_size=60,
    )
)
def test_nobody_is_ever_asked_during_a_cooldown(turns: list[tuple[str, float, float]]) -> None:
    clock = Clock(START)
    policy, neurons = make(clock), [validator(uid) for uid in range(3)]
    not_before: dict[str, float] = {}
    for end, cooldown, pause in turns:
        clock.now += pause
        chosen = policy.choose(neurons)
        if chosen is None:
            continue
        assert clock.now > not_before.get(chosen.hotkey, 0.0)
        until = clock.now + cooldown
        not_before[chosen.hotkey] = min(until, clock.now + MAX_WAIT_S)
        if end == "unanswered":
            not_before[chosen.hotkey] = clock.now + BACKOFF_S - 0.001
            policy.unanswered(chosen.hotkey)
        elif end == "without_task":
            policy.without_task(chosen.hotkey, until)
        else:
            policy.assigned(chosen.hotkey)
            policy.settled(
                chosen.hotkey,
                end,  # type: ignore[arg-type]
                assigned_at=clock.now,
                cooldown_until=until,
            )


def test_worth_is_a_share() -> None:
    assert Standing().worth == 1.0
    assert Standing(accepted=9, refused=10).worth == 0.5
