"""What the doctor finds out about a gateway without taking a task, at nodes of the mock."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from miner.chain.signatures import is_hotkey, verify
from miner.doctor.findings import Status, Verdict, carry_out
from miner.doctor.gateway import gateway_check
from miner.doctor.network import network_checks
from miner.mock_gateway.node import MockCluster
from miner.mock_gateway.rules import GatewayRules
from miner.mock_gateway.server import GatewayServer
from miner.mock_gateway.store import StoredTask
from miner.settings.gateway import GatewaySettings
from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from protocol.gateway import SPLATS
from scripts.free_port import free_port
from tests.support.running import MINER, OTHER
from tests.support.strange_servers import http, serving


@asynccontextmanager
async def cluster(
    *, nodes: int = 1, clock: Callable[[], float] = time.time, **rules: Any
) -> AsyncIterator[MockCluster]:
    made = MockCluster(GatewayRules(**rules), verify=verify, is_hotkey=is_hotkey, clock=clock)
    servers = []
    for _ in range(nodes):
        port = free_port()
        servers.append(GatewayServer(made.add_node("127.0.0.1", port), ip="127.0.0.1", port=port))
        await servers[-1].start()
    try:
        yield made
    finally:
        for server in servers:
            await server.stop()


async def look(*ports: int, key: Any = MINER) -> Verdict:
    addresses = ",".join(f"http://127.0.0.1:{port}" for port in ports)
    check = gateway_check(GatewaySettings(nodes=addresses), [key])
    return (await carry_out(check)).verdict


async def test_a_gateway_that_takes_the_hotkey_is_fine_and_no_task_is_taken() -> None:
    async with cluster() as made:
        (node,) = made.nodes
        task = StoredTask(made.new_id(), "client", SPLATS, 1, prompt="a red car")
        node.store.add(task)
        verdict = await look(node.port)
        assert node.store.status(task.id) == {"status": "NoResult"}
    assert verdict.status is Status.OK
    assert f"127.0.0.1:{node.port} is node 1 and takes the signature" in verdict.found
    assert "seen only by taking some" in verdict.found


async def test_a_closed_whitelist_is_a_failure_with_what_to_ask_for() -> None:
    async with cluster(whitelist=frozenset({OTHER.ss58_address})) as made:
        verdict = await look(made.nodes[0].port)
    assert verdict.status is Status.FAILED
    assert "Worker hotkey is not whitelisted" in verdict.found
    assert f"add {MINER.ss58_address} to http.worker_whitelist" in verdict.fix


@pytest.mark.parametrize(("offset_s", "way"), [(600.0, "behind"), (-600.0, "ahead of")])
async def test_a_wrong_clock_is_a_warning_because_the_date_is_followed(
    offset_s: float, way: str
) -> None:
    async with cluster(clock=lambda: time.time() + offset_s) as made:
        verdict = await look(made.nodes[0].port)
    assert verdict.status is Status.WARNING
    assert f"s {way} it" in verdict.found
    assert "takes the signature" in verdict.found
    assert "timedatectl set-ntp true" in verdict.fix


async def test_one_node_of_several_is_enough() -> None:
    async with cluster(nodes=2) as made:
        one, two = (node.port for node in made.nodes)
        gone = free_port()
        verdict = await look(one, gone, two)
    assert verdict.status is Status.WARNING
    assert f"no connection to 127.0.0.1:{gone}" in verdict.found
    assert "is node 2 and takes the signature" in verdict.found
    assert "firewall" in verdict.fix


async def test_what_is_no_gateway_is_told() -> None:
    async with serving(http(b"<html>hello", kind="text/html")) as port:
        verdict = await look(port)
    assert verdict.status is Status.FAILED
    assert "answers without a node number" in verdict.found
    assert "no gateway" in verdict.fix


async def test_without_a_wallet_nothing_is_asked() -> None:
    verdict = (await carry_out(gateway_check(GatewaySettings(), []))).verdict
    assert verdict.status is Status.UNCHECKED


def test_the_checks_are_those_of_a_worker_without_a_chain() -> None:
    argv = ["--transports", "gateway", "--gateway.nodes", "http://127.0.0.1:4443"]
    config = read_settings(MinerConfig, prog="x", env_prefix="MINER", argv=argv, environ={})
    names = [check.name for check in network_checks(config)]
    assert names == ["wallet", "registration", "gateway", "gateway state"]
