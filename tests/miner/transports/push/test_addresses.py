"""One address may have only so many requests refused; who else is there is served all the same."""

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import bittensor as bt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miner.transports.push.checks import AddressLimit
from tests.support.fakes import Clock
from tests.support.running import MINER, OTHER, STRANGER, VALIDATOR, Running, Start

# Bittensor 10 reads pydantic's fields through an instance.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")


def test_so_many_refusals_at_once_and_so_many_a_second() -> None:
    clock = Clock()
    limit = AddressLimit(clock, burst=3, per_s=2.0)
    for _ in range(3):
        assert not limit.is_over("192.0.2.1")
        limit.count("192.0.2.1")
    assert limit.is_over("192.0.2.1")
    assert not limit.is_over("192.0.2.2")
    clock.now += 0.49
    assert limit.is_over("192.0.2.1")
    clock.now += 0.02
    assert not limit.is_over("192.0.2.1")


@given(st.lists(st.floats(0.0, 5.0), max_size=100))
def test_no_pauses_let_more_through(pauses: list[float]) -> None:
    clock = Clock()
    limit = AddressLimit(clock, burst=4, per_s=1.0)
    let = 0
    for pause in pauses:
        clock.now += pause
        let += not limit.is_over("a")
        limit.count("a")
    assert let <= 4 + sum(pauses) + 1e-6


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("192.0.2.1", "192.0.2.2", False),
        ("", "192.0.2.1", False),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    limit = AddressLimit(Clock(), burst=1)
    limit.count(one)
    assert limit.is_over(one)
    assert limit.is_over(other) is same


def test_its_memory_is_bounded() -> None:
    limit = AddressLimit(Clock(), burst=1, capacity=100)
    limit.count("first")
    for number in range(200):
        limit.count(f"192.0.2.{number}")
    assert len(limit._left) == 100
    assert not limit.is_over("first")
    assert limit.is_over("192.0.2.199")


async def refused(miner: Running, count: int) -> "Counter[tuple[int, str]]":
    headers, body = miner.signed(STRANGER)
    answers = [await miner.post(headers, body) for _ in range(count)]
    return Counter((status, reply["reason_code"]) for status, reply in answers)


async def test_an_address_beyond_its_limit_gets_429_and_validators_behind_it_are_served(
    start: Start,
) -> None:
    async with start() as miner:
        miner.transport._entrance._addresses = AddressLimit(Clock(), burst=10)
        counts = await refused(miner, 15)
        assert counts == {(403, "unknown_hotkey"): 10, (429, "address_limited"): 5}
        for key in (VALIDATOR, OTHER):
            assert (await miner.post(*miner.signed(key)))[0] == 200
        # Whoever names a validator's hotkey is checked as always.
        headers, body = miner.signed(STRANGER)
        headers["bt_header_dendrite_hotkey"] = VALIDATOR.ss58_address
        status, reply = await miner.post(headers, body)
        assert (status, reply["reason_code"]) == (401, "bad_signature")
        assert {line["reason_code"] for line in miner.events("refused")} == {
            *("unknown_hotkey", "address_limited", "bad_signature")
        }


async def test_a_flood_from_one_address_is_told_so_by_default(miner: Running) -> None:
    counts = await refused(miner, 200)
    assert counts[(403, "unknown_hotkey")] >= 120
    assert counts[(429, "address_limited")] >= 20
    assert (await miner.ask()).outcome == "completed"


async def test_a_header_does_not_change_whose_requests_are_counted(start: Start) -> None:
    async with start() as miner:
        miner.transport._entrance._addresses = AddressLimit(Clock(), burst=10)
        headers, body = miner.signed(STRANGER)
        statuses = []
        for number in range(12):
            forged = {"x-forwarded-for": f"192.0.2.{number}"}
            statuses.append((await miner.post({**headers, **forged}, body))[0])
        assert statuses == [403] * 10 + [429] * 2


async def test_many_validators_behind_one_address_use_up_no_common_limit(start: Start) -> None:
    async with start(per_minute=1000) as miner:
        asked: list[Any] = [
            miner.post(*miner.signed((VALIDATOR, OTHER)[number % 2])) for number in range(300)
        ]
        for begin in range(0, 300, 20):
            answers = await asyncio.gather(*asked[begin : begin + 20])
            assert {status for status, _ in answers} == {200}


async def test_a_validator_beyond_its_own_rate_does_not_use_up_its_neighbours_limit(
    start: Start,
) -> None:
    async with start(per_minute=1) as miner:
        miner.transport._entrance._addresses = AddressLimit(Clock(), burst=2)
        codes = [(await miner.post(*miner.signed()))[0] for _ in range(6)]
        assert codes == [200, 429, 429, 429, 429, 429]
        assert await refused(miner, 1) == {(403, "unknown_hotkey"): 1}


async def test_nothing_is_built_or_signed_for_a_request_that_is_refused(
    miner: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    init = bt.Synapse.__init__

    def built(self: Any, **fields: Any) -> None:
        done.append("built")
        init(self, **fields)

    class Hotkey:
        ss58_address = MINER.ss58_address

        def sign(self, message: str) -> bytes:
            done.append("signed")
            return bytes(MINER.sign(message))

    messages = [miner.signed(STRANGER), miner.signed(), miner.signed()]
    messages[1][0]["bt_header_dendrite_uuid"] = "another"
    messages[2][0]["bt_header_dendrite_nonce"] = "x"
    good = miner.signed()
    monkeypatch.setattr(miner.transport.axon, "wallet", SimpleNamespace(hotkey=Hotkey()))
    monkeypatch.setattr(bt.Synapse, "__init__", built)
    assert [(await miner.post(*message))[0] for message in messages] == [403, 401, 400]
    assert done == []
    assert (await miner.post(*good))[0] == 200
    assert "built" in done
