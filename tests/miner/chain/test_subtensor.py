import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from miner.chain.file_chain import FileChain
from miner.chain.subtensor import SubtensorChain
from miner.chain.wallets import open_wallet
from miner.mock_validator.local_subnet import create_local_subnet
from protocol.errors import SetupError
from tests.support.fakes import Clock
from tests.support.waiting import until


def metagraph(*hotkeys: str) -> Any:
    count = len(hotkeys)
    return SimpleNamespace(
        uids=np.arange(count),
        hotkeys=list(hotkeys),
        coldkeys=[f"cold-{hotkey}" for hotkey in hotkeys],
        axons=[SimpleNamespace(ip="1.2.3.4", port=8000 + uid) for uid in range(count)],
        S=np.arange(count, dtype=np.float32) * 100,
        validator_permit=np.arange(count) > 0,
        incentive=np.arange(count, dtype=np.float32) / 10,
        consensus=np.arange(count, dtype=np.float32) / 20,
        emission=np.arange(count, dtype=np.float32) * 2,
        tempo=360,
    )


class FakeSubtensor:
    """Returns what a test sets; counts its connections."""

    def __init__(self) -> None:
        self.answer: Callable[[], Any] = lambda: metagraph("5A", "5B")
        self.served: Any = SimpleNamespace(success=True, message=None)
        self.connections: list[str] = []
        self.calls: list[dict[str, Any]] = []
        self.closed = False

    def connect(self, network: str) -> "FakeSubtensor":
        self.connections.append(network)
        return self

    def metagraph(self, netuid: int) -> Any:
        return self.answer()

    def serve_axon(self, **arguments: Any) -> Any:
        self.calls.append(arguments)
        if isinstance(self.served, Exception):
            raise self.served
        return self.served

    def close(self) -> None:
        self.closed = True


def chain(subtensor: FakeSubtensor, **settings: Any) -> SubtensorChain:
    values = {"connect": subtensor.connect, "refresh_s": 0.01, "time_limit_s": 0.2, **settings}
    return SubtensorChain("test", 17, **values)


async def test_the_metagraph_becomes_neurons_and_is_kept_fresh() -> None:
    subtensor = FakeSubtensor()
    contact = chain(subtensor)
    neuron = await contact.start("5B")
    assert (neuron.uid, neuron.coldkey) == (1, "cold-5B")
    assert (neuron.ip, neuron.port) == ("1.2.3.4", 8001)
    assert (neuron.stake, neuron.validator_permit) == (100.0, True)
    subtensor.answer = lambda: metagraph("5A", "5B", "5C")
    await until(lambda: "5C" in contact.snapshot.neurons)
    await contact.close()
    assert subtensor.connections == ["test"]
    assert subtensor.closed


async def test_an_unregistered_hotkey_names_the_commands_of_both_generations() -> None:
    with pytest.raises(SetupError, match="5Z is not registered on subnet 17 of test") as caught:
        await chain(FakeSubtensor()).start("5Z")
    fix = caught.value.fix
    assert "btcli subnet register --netuid 17 --wallet.name W --wallet.hotkey H" in fix
    assert "btcli subnet register --netuid 17 -w W -H H" in fix


def fails() -> Any:
    raise ConnectionError("refused")


def hangs() -> Any:
    threading.Event().wait(30.0)


def garbage() -> Any:
    broken = metagraph("5A", "5B")
    broken.hotkeys = ["5A"]
    return broken


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (fails, "ConnectionError: refused"),
        (hangs, "no answer in time"),
        (garbage, "ValueError"),
        (lambda: metagraph(), "the metagraph is empty"),
        (lambda: None, "AttributeError"),
    ],
)
async def test_a_chain_that_does_not_work_is_a_start_up_message(
    answer: Callable[[], Any], words: str
) -> None:
    subtensor = FakeSubtensor()
    subtensor.answer = answer
    with pytest.raises(SetupError, match="cannot be read from test") as caught:
        await chain(subtensor).start("5A")
    assert words in caught.value.problem


@pytest.mark.parametrize("answer", [fails, hangs, garbage])
async def test_a_chain_that_stops_working_leaves_the_last_reading_in_use(
    answer: Callable[[], Any],
) -> None:
    subtensor, clock = FakeSubtensor(), Clock()
    contact = chain(subtensor, clock=clock, time_limit_s=0.05)
    await contact.start("5A")
    subtensor.answer = answer
    await until(lambda: len(subtensor.connections) > 1)
    assert set(contact.snapshot.neurons) == {"5A", "5B"}
    assert not contact.is_stale()
    clock.now += 3601.0
    assert contact.is_stale()
    subtensor.answer = lambda: metagraph("5A", "5B", "5C")
    await until(lambda: "5C" in contact.snapshot.neurons)
    assert not contact.is_stale()
    await contact.close()


async def test_publishing_survives_a_reading_that_failed_and_never_meets_one() -> None:
    subtensor, contact_lost, together = FakeSubtensor(), threading.Event(), []
    reading = threading.Lock()

    def fails_slowly() -> Any:
        with reading:
            contact_lost.wait(0.02)
            raise ConnectionError("gone")

    contact = chain(subtensor)
    await contact.start("5A")
    subtensor.answer = fails_slowly
    serve_axon = subtensor.serve_axon

    def watched(**arguments: Any) -> Any:
        together.append(reading.locked())
        return serve_axon(**arguments)

    subtensor.serve_axon = watched  # type: ignore[method-assign]
    for _ in range(20):
        await contact.publish(SimpleNamespace(external_ip="9.9.9.9", external_port=1))
        await asyncio.sleep(0.005)
    assert len(subtensor.connections) > 1
    assert together == [False] * 20
    await contact.close()


def test_a_missing_wallet_names_the_commands_of_both_generations(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="has no hotkey") as caught:
        open_wallet("alice", "miner1", tmp_path)
    fix = caught.value.fix
    assert f"--wallet.name alice --wallet.hotkey miner1 --wallet.path {tmp_path}" in fix
    assert "-w alice -H miner1" in fix


def test_a_damaged_wallet_is_named(tmp_path: Path) -> None:
    create_local_subnet(tmp_path, port=8091)
    file = tmp_path / "wallets" / "miner" / "hotkeys" / "default"
    file.write_text("not a key")
    with pytest.raises(SetupError, match="cannot be read"):
        open_wallet("miner", "default", tmp_path / "wallets")


async def test_a_local_subnet_has_wallets_that_open_and_a_file_that_reads(tmp_path: Path) -> None:
    subnet = create_local_subnet(tmp_path, port=8095)
    for name, hotkey in (
        ("miner", subnet.miner_hotkey),
        ("validator", subnet.validator_hotkey),
    ):
        wallet = open_wallet(name, "default", subnet.wallets)
        assert wallet.hotkey.ss58_address == hotkey
    contact = FileChain(subnet.neurons_file)
    neuron = await contact.start(subnet.miner_hotkey)
    assert (neuron.port, neuron.validator_permit) == (8095, False)
    assert contact.snapshot.neurons[subnet.validator_hotkey].validator_permit
