"""The real program working for a gateway, killed in the middle, and started again."""

import json
import signal
import time
from pathlib import Path

import pytest

from miner.chain.signatures import is_hotkey, verify
from miner.mock_gateway.node import MockCluster
from miner.mock_gateway.rules import GatewayRules
from miner.mock_gateway.server import GatewayServer
from miner.mock_gateway.store import StoredTask
from miner.mock_validator.local_subnet import LocalSubnet, create_local_subnet
from protocol.gateway import SPLATS
from scripts.free_port import free_port
from tests.support.miner_process import FAKED, MinerProcess

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")


def working_miner(folder: Path, subnet: LocalSubnet, port: int, *, seconds: float) -> MinerProcess:
    return MinerProcess(
        folder,
        *("--transports", "gateway", "--gateway.nodes", f"http://127.0.0.1:{port}"),
        subnet=subnet,
        module=FAKED,
        environ={"FAKED_MINER_S": str(seconds)},
    )


async def test_a_kill_between_taking_and_delivering_is_reported_after_the_restart(
    tmp_path: Path,
) -> None:
    port = free_port()
    subnet = create_local_subnet(tmp_path, port=free_port())
    cluster = MockCluster(GatewayRules(), verify=verify, is_hotkey=is_hotkey, clock=time.time)
    store = cluster.add_node("127.0.0.1", port).store
    server = GatewayServer(cluster.nodes[0], ip="127.0.0.1", port=port)
    await server.start()
    state = tmp_path / "logs" / "gateway-state.json"

    def submit() -> str:
        task = StoredTask(cluster.new_id(), "client", SPLATS, -5, prompt="a blue cube")
        assert store.add(task)
        return task.id

    def kept() -> list[str]:
        text = state.read_text() if state.exists() else '{"tasks": []}'
        return [task["id"] for task in json.loads(text)["tasks"]]

    killed = submit()
    first = working_miner(tmp_path, subnet, port, seconds=60.0)
    try:
        await first.until(lambda: kept() == [killed], 120.0)
        assert store.status(killed) == {"status": "InProgress"}
        first.process.send_signal(signal.SIGKILL)
        assert await first.exit_status(10.0) == -signal.SIGKILL
    finally:
        first.end()
    assert kept() == [killed]

    done = submit()
    second = working_miner(tmp_path, subnet, port, seconds=0.1)
    try:
        await second.until(lambda: len(second.events("delivered")) == 2, 120.0)
        second.process.send_signal(signal.SIGTERM)
        assert await second.exit_status() == 0
    finally:
        second.end()
        await server.stop()
    endings = {line["task_id"]: line["ending"] for line in second.events("delivered")}
    assert endings == {killed: "reported", done: "delivered"}
    assert [(e.kind, e.task_id) for e in store.events] == [
        ("task_assigned", killed),
        ("result_failure", killed),
        ("task_assigned", done),
        ("result_success", done),
    ]
    failed = store.status(killed)
    assert failed["status"] == "Failure"
    assert "restarted" in failed["reason"]
    assert store.status(done) == {"status": "Success", "worker_id": "splat-miner"}
    assert kept() == []
    assert "Traceback" not in second.text()
    (started, _) = second.events("miner_started")
    assert started["transports"] == ["gateway"]
    assert started["hotkey"] == subnet.miner_hotkey
    assert "uid" not in started
    for secret in ("blue cube", '"signature"'):
        assert secret not in second.text()
        assert secret not in (tmp_path / "logs" / "score.jsonl").read_text()
