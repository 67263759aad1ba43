"""Trials of workers: `--protocol gateway` of the mock validator, with real keys over loopback."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from pydantic import SecretStr

from miner.mock_gateway.serving import serve_gateway
from miner.mock_gateway.trial import GatewayTerms, GatewayTrial
from miner.mock_validator.records import TrialRecord, read_records
from miner.mock_validator.settings import TrialSettings
from miner.mock_validator.tasks import TrialTask
from miner.settings.reader import read_settings
from neurons.mock_validator import NOTHING_CAME, main
from protocol.errors import SetupError
from protocol.gateway import ADD_RESULT, GET_TASKS
from scripts.free_port import free_port
from tests.miner.mock_gateway.test_server import multipart
from tests.support.fakes import Clock, ball, ball_spz
from tests.support.mock_gateway import BEGIN, KEY, GatewayWorker, cluster, picture
from tests.support.running import MINER, OTHER

TASKS = [
    TrialTask("01-a-blue-cube", "text", "a blue cube", "a blue cube"),
    TrialTask("02-green-png", "image", "green.png", base64.b64encode(picture()).decode()),
    TrialTask("03-a-red-car", "text", "a red car", "a red car"),
]


def settings(folder: Path, **fields: Any) -> TrialSettings:
    values = {"protocol": "gateway", "gateway.port": free_port(), "out": folder, **fields}
    argv = [f"--{name}={value}" for name, value in values.items()]
    return read_settings(TrialSettings, prog="trial", env_prefix="TRIAL", argv=argv)


class SigningWorker:
    """A worker with a real key."""

    def __init__(self, session: aiohttp.ClientSession, port: int, key: Any = MINER) -> None:
        self._session, self._key = session, key
        self.url = f"http://127.0.0.1:{port}"

    def _signed(self) -> dict[str, str]:
        timestamp = f"404_GATEWAY_{int(time.time()) - 1}"
        return {
            "worker_hotkey": self._key.ss58_address,
            "worker_id": "w",
            "timestamp": timestamp,
            "signature": base64.b64encode(self._key.sign(timestamp)).decode(),
        }

    async def get_tasks(self, count: int = 9) -> tuple[int, Any]:
        body = {**self._signed(), "requested_task_count": count, "model": "404-3dgs"}
        for _ in range(5000):
            try:
                async with self._session.post(self.url + GET_TASKS, json=body) as response:
                    return response.status, json.loads(await response.read())
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.01)
            except ValueError:
                return response.status, None
        raise AssertionError("the gateway does not listen")

    async def add_result(self, task: dict[str, Any], asset: bytes | None, reason: str = "") -> int:
        fields = {**self._signed(), "id": task["id"], "assignment_token": task["assignment_token"]}
        parts = [(name, value.encode()) for name, value in fields.items()]
        if asset is None:
            parts += [("status", b"failure"), ("reason", reason.encode())]
        else:
            parts += [("status", b"success"), ("asset", asset)]
        async with self._session.post(self.url + ADD_RESULT, data=multipart(parts)) as response:
            return response.status


@asynccontextmanager
async def worker(port: int, key: Any = MINER) -> AsyncIterator[SigningWorker]:
    async with aiohttp.ClientSession() as session:
        yield SigningWorker(session, port, key)


async def test_every_task_has_a_record_of_what_became_of_it(tmp_path: Path) -> None:
    done: list[TrialRecord] = []
    trial = settings(tmp_path, seed=7)
    serving = asyncio.create_task(serve_gateway(trial, TASKS, done.append))
    async with worker(trial.gateway.port) as miner:
        _, answer = await miner.get_tasks()
        cube, green, car = answer["tasks"]
        assert (cube["prompt"], car["prompt"]) == ("a blue cube", "a red car")
        assert base64.b64decode(green["image"]) == picture()
        assert {task["seed"] for task in answer["tasks"]} == {7}
        assert await miner.add_result(cube, ball_spz()) == 200
        assert await miner.add_result(green, None, "no object") == 200
        assert await miner.add_result(car, b"no asset") == 200
        first, second, third = await serving
    assert first.good, first.problems
    assert (first.outcome, first.gaussians, first.protocol) == ("completed", len(ball()), "gateway")
    assert (tmp_path / "01-a-blue-cube.spz").read_bytes() == ball_spz()
    assert (tmp_path / "01-a-blue-cube.png").is_file()
    assert (second.outcome, second.problems) == ("failed", ("failed: no object",))
    assert third.problems[0].startswith("the answer is not SPZ")
    assert sorted(record.name for record in done) == [task.name for task in TASKS]


async def test_a_good_result_stays_good_when_the_task_times_out_later(tmp_path: Path) -> None:
    clock = Clock(BEGIN)
    gateway = cluster(clock, copies=3)
    trial = GatewayTrial(TASKS[:1], GatewayTerms(30.0, tmp_path), on_record=lambda record: None)
    trial.watch(gateway)
    alice = GatewayWorker(gateway.nodes[0], clock)
    (task,) = alice.take()
    assert alice.add_result(task, asset=ball_spz()).status == 200
    await trial.finished(10.0)
    clock.now += 330.0
    gateway.nodes[0].store.sweep()
    clock.now += 300.0
    gateway.nodes[0].store.sweep()
    (record,) = trial.records()
    assert record.good, record.problems


async def test_tasks_are_spread_over_the_nodes_and_other_hotkeys_get_none(tmp_path: Path) -> None:
    fields = {"gateway.nodes": 2, "miner.hotkey": MINER.ss58_address}
    trial = settings(tmp_path, **fields)
    serving = asyncio.create_task(serve_gateway(trial, TASKS[::2], lambda record: None))
    async with worker(trial.gateway.port) as first, worker(trial.gateway.port + 1) as second:
        async with worker(trial.gateway.port, OTHER) as stranger:
            assert (await stranger.get_tasks())[0] == 401
        tasks = [(await each.get_tasks())[1]["tasks"] for each in (first, second)]
        assert [[task["prompt"] for task in some] for some in tasks] == [
            ["a blue cube"],
            ["a red car"],
        ]
        assert await second.add_result(tasks[0][0], ball_spz()) == 410
        assert await first.add_result(tasks[0][0], None, "x" * 255) == 200
        assert await second.add_result(tasks[1][0], None, "no object") == 200
        records = await serving
    assert [record.problems for record in records] == [
        ("failed: " + "x" * 255,),
        ("failed: no object",),
    ]


async def test_a_task_that_nobody_finishes_has_a_record_too(tmp_path: Path) -> None:
    clock, done = Clock(BEGIN), list[TrialRecord]()
    gateway = cluster(clock)
    trial = GatewayTrial(TASKS[:2], GatewayTerms(30.0, tmp_path), on_record=done.append)
    trial.watch(gateway)
    alice = GatewayWorker(gateway.nodes[0], clock)
    assert [task["prompt"] for task in alice.take()] == ["a blue cube"]
    await trial.finished(0.01)
    assert [record.problems for record in trial.records()] == [
        ("none: no worker has finished it in time",)
    ] * 2
    clock.now += 630.0
    gateway.nodes[0].store.sweep()
    await trial.finished(10.0)
    assert [record.problems for record in trial.records()] == [("none: Task timed out",)] * 2
    assert trial.records() == done


async def test_an_open_gateway_records_the_tasks_of_clients(tmp_path: Path) -> None:
    done: list[TrialRecord] = []
    trial = settings(tmp_path, **{"gateway.open": "true", "gateway.api_key": KEY})
    serving = asyncio.create_task(serve_gateway(trial, [], done.append))
    async with worker(trial.gateway.port) as miner, aiohttp.ClientSession() as client:
        assert (await miner.get_tasks())[1]["tasks"] == []
        url, body = miner.url + "/add_task", {"prompt": "a red car"}
        async with client.post(url, json=body, headers={"x-api-key": KEY}) as response:
            assert response.status == 200
        (task,) = (await miner.get_tasks())[1]["tasks"]
        await miner.add_result(task, None, "no object")
    assert not serving.done()
    serving.cancel()
    await asyncio.wait({serving})
    (record,) = done
    assert (record.name, record.prompt) == ("01-a-red-car", "a red car")
    assert record.problems == ("failed: no object",)


def test_the_command_reports_what_did_not_come_with_its_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--protocol=gateway", f"--gateway.port={free_port()}", f"--out={tmp_path}"]
    assert main([*argv, "--wait=0.05"]) == 1
    records = read_records(tmp_path)
    assert [record.protocol for record in records] == ["gateway"] * 3
    assert not any(record.good for record in records)
    assert "a golden dragon" in capsys.readouterr().out
    assert main([*argv, "--wait=0.05", "--gateway.open=true"]) == NOTHING_CAME == 3
    words = "nothing arrived: no client submitted a task within 0.05 s"
    assert words in capsys.readouterr().out
    assert read_records(tmp_path) == []
    assert main(["--protocol=gateway", "--gateway.api_key=x"]) == 2


async def test_a_task_that_a_gateway_does_not_take_is_a_start_up_message(tmp_path: Path) -> None:
    for task, why in (
        (TrialTask("01", "text", "für", "für"), "invalid characters"),
        (
            TrialTask("01", "image", "b.png", base64.b64encode(picture(1025, 8)).decode()),
            "Image too wide: 1025px",
        ),
    ):
        with pytest.raises(SetupError, match=why):
            await serve_gateway(settings(tmp_path), [task], lambda record: None)


def test_neither_hotkey_nor_wallet_is_needed_and_a_key_is_a_uuid(tmp_path: Path) -> None:
    assert settings(tmp_path).miner_hotkey == ""
    assert settings(tmp_path, **{"gateway.api_key": KEY}).gateway.api_key == SecretStr(KEY)
    with pytest.raises(SetupError, match=r"gateway\.api_key") as raised:
        settings(tmp_path, **{"gateway.api_key": "secret"})
    assert "secret" not in str(raised.value)
