"""Clocks that are off, on either side, against a real Axon over loopback."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bittensor.core.dendrite as library
import pytest
from bittensor.utils.networking import int_to_ip, ip_to_int
from yarl import URL

from miner.mock_validator.pull_rules import Rules
from miner.transports.clocks import DATE_STEP_S, SteadyClock
from miner.transports.pull.calls import NoAnswer, ValidatorCalls
from miner.transports.pull.dendrite import host_of, offline_dendrite
from miner.transports.pull.validators import MARGIN_S
from protocol.synapses import GetVersion, PullTask
from tests.miner.transports.pull.test_calls import assigned, calling
from tests.support.pull_running import SHORT, Validator, tasks
from tests.support.running import MINER

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")


@asynccontextmanager
async def validating(folder: Path, **fields: Any) -> AsyncIterator[Validator]:
    validator = Validator(folder, tasks(), fields.pop("rules", Rules()), **fields)
    await validator.server.start()
    try:
        yield validator
    finally:
        await validator.server.stop()


def ahead(seconds: float) -> Callable[[], float]:
    return lambda: time.time() + seconds


async def test_an_axon_dates_its_answers_and_sends_no_nonce(tmp_path: Path) -> None:
    """So it is with the subnet's: nothing else tells their clock."""
    async with validating(tmp_path) as validator, offline_dendrite(MINER) as dendrite:
        exchange = await dendrite.exchange(validator.neuron, PullTask(), 12.0)
    assert exchange.status == 200
    assert exchange.reply.axon.nonce is None
    date = parsedate_to_datetime(exchange.headers["date"]).timestamp()
    assert -0.1 <= time.time() - date <= 2.5


@pytest.mark.parametrize("offset", [-60.0, -5.0, 0.0, 5.0, 60.0])
async def test_the_offset_of_a_validator_is_learned_from_its_first_answer(
    tmp_path: Path, offset: float
) -> None:
    async with validating(tmp_path, clock=ahead(offset)) as validator, calling() as calls:
        pulled = await calls.pull(validator.neuron)
        assert pulled.task is not None
        done = await calls.submit(validator.neuron, assigned(tasks()[0], id="stale"), b"")
        assert done.cooldown_until == 0.0
        done = await calls.submit(validator.neuron, assigned(tasks()[0], id=pulled.task.id), b"")
        left = done.cooldown_until - calls.clock()
        assert 268.0 <= left <= 300.0 + 2.5


@pytest.mark.parametrize("offset", [-60.0, -5.0, 5.0, 60.0])
async def test_a_validator_whose_clock_is_off_counts_no_pull_during_a_cooldown(
    tmp_path: Path, offset: float
) -> None:
    passed = 0.0
    ours = SteadyClock(lambda: time.time() + passed, lambda: time.monotonic() + passed)
    theirs = lambda: time.time() + passed + offset  # noqa: E731
    calls = ValidatorCalls(offline_dendrite(MINER), MINER, clock=ours)
    async with validating(tmp_path, clock=theirs) as validator:
        for task in tasks():
            pulled = await calls.pull(validator.neuron)
            assert pulled.task is not None
            done = await calls.submit(validator.neuron, assigned(task, id=pulled.task.id), b"")
            passed += done.cooldown_until + MARGIN_S - ours()
        assert 2 * 300.0 <= passed <= 2 * (300.0 + MARGIN_S + DATE_STEP_S)
        await calls.pull(validator.neuron)
        await calls.close()
    assert [record.early_pulls for record in validator.trial.records()] == [0, 0]


def our_clock(monkeypatch: pytest.MonkeyPatch, offset: float) -> SteadyClock:
    """Sets this miner's clock, and not the axon's in the same process."""
    set_clock = SimpleNamespace(
        time=ahead(offset), time_ns=lambda: time.time_ns() + int(offset * 1e9)
    )
    monkeypatch.setattr(library, "time", set_clock)
    return SteadyClock(ahead(offset))


@pytest.mark.parametrize("offset", [-3600.0, -60.0, -20.0, 60.0])
async def test_a_validator_whose_clock_is_far_ahead_of_ours_takes_our_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: float
) -> None:
    """An axon refuses a first request that seems old to it."""
    calls = ValidatorCalls(offline_dendrite(MINER), MINER, clock=our_clock(monkeypatch, offset))
    async with validating(tmp_path) as validator:
        answer = await calls.pull(validator.neuron)
        assert answer.task is not None
        await calls.close()


async def test_a_step_back_of_our_clock_does_not_shut_us_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An axon refuses a request that seems older than the one before."""
    async with validating(tmp_path) as validator, offline_dendrite(MINER) as dendrite:
        first = await dendrite.exchange(validator.neuron, GetVersion(), 12.0)
        our_clock(monkeypatch, -3600.0)
        second = await dendrite.exchange(validator.neuron, GetVersion(), 12.0)
    assert (first.status, second.status) == (200, 200), second.fault()


async def test_another_signature_is_not_tried_twice(tmp_path: Path) -> None:
    async with validating(tmp_path, rules=SHORT) as validator, calling() as calls:
        stranger = validator.neuron.model_copy(update={"hotkey": MINER.ss58_address})
        with pytest.raises(NoAnswer) as caught:
            await calls.pull(stranger)
        assert (caught.value.status, validator.pulls) == (401, 0)


@pytest.mark.parametrize("ip", ["::1", "[::1]", "0:0:0:0:0:0:0:1", "::ffff:127.0.0.1"])
async def test_validators_on_ipv6_are_pulled_from(tmp_path: Path, ip: str) -> None:
    listens = "127.0.0.1" if "ffff" in ip else "::1"
    async with validating(tmp_path, ip=listens) as validator, calling() as calls:
        neuron = validator.neuron.model_copy(update={"ip": ip})
        answer = await calls.pull(neuron)
        assert answer.task is not None
        done = await calls.submit(neuron, assigned(tasks()[0], id=answer.task.id), b"")
        assert done.feedback is not None
        assert done.cooldown_until > calls.clock()


@pytest.mark.parametrize(
    ("ip", "host"),
    [
        ("1.2.3.4", "1.2.3.4"),
        ("2001:db8::1", "[2001:db8::1]"),
        ("[2001:DB8:0:0::1]", "[2001:db8::1]"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("fe80::1%eth0", "[fe80::1%eth0]"),
        ("validator.example", "validator.example"),
    ],
)
def test_an_address_is_written_as_a_url_needs_it(ip: str, host: str) -> None:
    assert host_of(ip) == host
    assert URL(f"http://{host}:8091/PullTask").port == 8091


def test_the_chain_s_integers_become_addresses_that_can_be_pulled_from() -> None:
    """As the metagraph of Bittensor makes them."""
    for text in ("2001:db8::1", "::ffff:1.2.3.4", "1.2.3.4"):
        assert host_of(int_to_ip(ip_to_int(text))) in ("[2001:db8::1]", "1.2.3.4")
