"""The chain while the miner runs: a lost uid, a wrong address, a chain that fails."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bittensor as bt
import numpy as np
from bittensor.utils.mock import MockSubtensor

from miner.chain.file_chain import FileChain
from miner.chain.metagraph import Membership, Neuron, Snapshot
from miner.chain.subtensor import LOOK_UP_S, REPUBLISH_S, STALE_S, SubtensorChain
from miner.mock_validator.local_subnet import create_local_subnet
from tests.miner.chain.test_subtensor import FakeSubtensor, chain, fails, metagraph
from tests.support.fakes import Clock
from tests.support.waiting import PATIENCE_S, until


def test_one_reading_without_the_hotkey_is_no_proof() -> None:
    lost = asyncio.Event()
    membership = Membership("5A", lost)
    with_it, without = Snapshot.of([Neuron(uid=3, hotkey="5A")], 0.0), Snapshot({}, 0.0)
    assert membership.observe(without) is None
    neuron = membership.observe(with_it)
    assert neuron is not None
    assert neuron.uid == 3
    membership.observe(without)
    assert not lost.is_set()
    membership.observe(without)
    assert lost.is_set()


async def test_a_lost_uid_is_noticed(log_lines: list[str]) -> None:
    subtensor = FakeSubtensor()
    contact = chain(subtensor)
    await contact.start("5A")
    assert not contact.deregistered.is_set()
    subtensor.answer = lambda: metagraph("5B", "5C")
    await asyncio.wait_for(contact.deregistered.wait(), PATIENCE_S)
    await contact.close()
    assert "does not list this miner's hotkey" in log_lines[0]


async def test_a_chain_that_fails_takes_no_uid(log_lines: list[str]) -> None:
    subtensor, clock = FakeSubtensor(), Clock()
    contact = chain(subtensor, clock=clock)
    await contact.start("5A")
    subtensor.answer = fails
    await until(lambda: len(log_lines) >= 3)
    assert not contact.deregistered.is_set()
    assert "are refused" not in log_lines[-1]
    clock.now += STALE_S + 1.0
    await until(lambda: "callers that are not in it are refused" in log_lines[-1])
    await contact.close()


def axon(ip: str = "1.2.3.4", port: int = 8000) -> Any:
    return SimpleNamespace(external_ip=ip, external_port=port)


async def test_an_address_that_the_chain_shows_is_left_alone() -> None:
    subtensor, clock = FakeSubtensor(), Clock()
    contact = chain(subtensor, clock=clock)
    await contact.start("5A")
    await contact.publish(axon())
    clock.now += 10 * REPUBLISH_S
    taken_at = contact.snapshot.taken_at
    await until(lambda: contact.snapshot.taken_at > taken_at)
    await until(lambda: len(subtensor.connections) == 1)
    await contact.close()
    assert len(subtensor.calls) == 1


async def test_another_address_is_corrected_and_not_too_often(log_lines: list[str]) -> None:
    subtensor, clock = FakeSubtensor(), Clock()
    contact = chain(subtensor, clock=clock)
    await contact.start("5A")
    await contact.publish(axon(port=9999))
    subtensor.served = SimpleNamespace(success=False, message="rate limit")
    await asyncio.sleep(0.05)
    assert len(subtensor.calls) == 1
    clock.now += REPUBLISH_S
    await until(lambda: len(subtensor.calls) == 2)
    await until(lambda: bool(log_lines))
    assert "at 1.2.3.4:8000 instead of 1.2.3.4:9999; not corrected: rate limit" in log_lines[0]
    subtensor.served = SimpleNamespace(success=True, message=None)
    clock.now += REPUBLISH_S
    await until(lambda: len(log_lines) == 2)
    assert log_lines[1].strip().endswith("corrected")
    await contact.close()


async def test_a_public_address_that_changes_is_published_again(log_lines: list[str]) -> None:
    subtensor, clock, served = FakeSubtensor(), Clock(), axon()

    async def find_ip() -> str:
        return "5.6.7.8"

    contact = chain(subtensor, clock=clock, find_ip=find_ip)
    await contact.start("5A")
    await contact.publish(served)
    await asyncio.sleep(0.05)
    assert served.external_ip == "1.2.3.4"
    clock.now += max(LOOK_UP_S, REPUBLISH_S)
    await until(lambda: len(subtensor.calls) == 2)
    assert served.external_ip == "5.6.7.8"
    await contact.close()


class OfflineSubtensor(MockSubtensor):  # type: ignore[misc]
    """Bittensor's mock chain; what it leaves out of a metagraph is filled in."""

    def get_metagraph_info(self, *args: object, **arguments: object) -> None:
        return None

    def neuron_for_uid_lite(self, uid: int, netuid: int, block: int | None = None) -> Any:
        return self._neuron_subnet_exists(uid, netuid, block or self.get_current_block())

    def metagraph(self, netuid: int) -> Any:
        graph = super().metagraph(netuid=netuid)
        graph.stake = np.full(int(graph.n), 2000.0, np.float32)
        return graph


async def test_bittensor_s_own_mock_chain(tmp_path: Path) -> None:
    wallets = create_local_subnet(tmp_path, port=8091).wallets
    subtensor = OfflineSubtensor()
    subtensor.setup()
    subtensor.create_subnet(17)
    hotkeys = []
    for name in ("miner", "validator"):
        wallet = bt.Wallet(name=name, hotkey="default", path=str(wallets))
        hotkeys.append(wallet.hotkey.ss58_address)
        subtensor.force_register_neuron(
            netuid=17,
            hotkey_ss58=wallet.hotkey.ss58_address,
            coldkey_ss58=wallet.coldkeypub.ss58_address,
            stake=bt.Balance(2000),
            balance=bt.Balance(100),
        )
    contact = SubtensorChain("test", 17, connect=lambda network: subtensor)
    neuron = await contact.start(hotkeys[0])
    assert (neuron.uid, neuron.stake) == (0, 2000.0)
    assert (neuron.ip, neuron.port) == ("0.0.0.0", 0)
    assert set(contact.snapshot.neurons) == set(hotkeys)
    await contact.close()


async def test_a_file_never_takes_a_uid(tmp_path: Path) -> None:
    subnet = create_local_subnet(tmp_path, port=8091, validator_port=8092)
    contact = FileChain(subnet.neurons_file)
    await contact.start(subnet.miner_hotkey)
    assert contact.snapshot.neurons[subnet.validator_hotkey].port == 8092
    assert not contact.deregistered.is_set()
