"""The mock's server: real HTTP over loopback."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import zstandard

from miner.mock_gateway.faults import Fault, FaultPlan
from miner.mock_gateway.node import MockCluster
from miner.mock_gateway.server import GatewayServer
from miner.transports.clocks import http_date
from protocol.errors import SetupError
from protocol.gateway import ADD_RESULT, GET_TASKS
from scripts.free_port import free_port
from tests.support.fakes import Clock, ball_spz
from tests.support.mock_gateway import (
    ALICE,
    BEGIN,
    KEY,
    GatewayWorker,
    cluster,
    picture,
    status,
    submit,
)

JSON = {"Accept": "application/json"}


@dataclass
class Served:
    """A node on a port, and a worker."""

    gateway: MockCluster
    alice: GatewayWorker
    session: aiohttp.ClientSession
    url: str

    async def ask(self, method: str, path: str, **arguments: Any) -> tuple[int, bytes, Any]:
        async with self.session.request(method, self.url + path, **arguments) as response:
            return response.status, await response.read(), response.headers

    async def get_tasks(self, **changes: Any) -> tuple[int, bytes]:
        answer = await self.ask("POST", GET_TASKS, json=self.alice.request(**changes), headers=JSON)
        return answer[:2]

    async def add_result(self, task: dict[str, Any], **changes: Any) -> tuple[int, bytes]:
        form = multipart(self.alice.form(task, **changes))
        return (await self.ask("POST", ADD_RESULT, data=form, headers=JSON))[:2]


def multipart(parts: list[tuple[str, bytes]]) -> aiohttp.FormData:
    form = aiohttp.FormData(default_to_multipart=True)
    for name, value in parts:
        if name in ("asset", "image"):
            form.add_field(name, io.BytesIO(value), filename="result.spz")
        else:
            form.add_field(name, value.decode())
    return form


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve() -> Serve:
    @asynccontextmanager
    async def served(
        plan: FaultPlan | None = None, *, storing_s: float = 0.0, slow_s: float = 0.0, **rules: Any
    ) -> AsyncIterator[Served]:
        clock = Clock(BEGIN)
        gateway = cluster(clock, **rules)
        gateway.faults = plan or FaultPlan()
        node, port = gateway.nodes[0], free_port()
        server = GatewayServer(node, ip="127.0.0.1", port=port, storing_s=storing_s, slow_s=slow_s)
        await server.start()
        try:
            async with aiohttp.ClientSession() as session:
                yield Served(
                    gateway, GatewayWorker(node, clock), session, f"http://127.0.0.1:{port}"
                )
        finally:
            await server.stop()

    return served


async def test_a_task_goes_from_a_client_to_a_worker_and_back(serve: Serve) -> None:
    async with serve() as served:
        headers = {"x-api-key": KEY, "x-client-origin": "blender"}
        code, body, _ = await served.ask(
            "POST", "/add_task", json={"prompt": "a red car"}, headers=headers
        )
        assert code == 200
        task_id = json.loads(body)["id"]
        code, body = await served.get_tasks()
        (task,) = json.loads(body)["tasks"]
        assert (code, task["id"]) == (200, task_id)
        assert await served.add_result(task, asset=ball_spz()) == (200, b"Ok")
        code, body, _ = await served.ask("GET", "/get_status", params={"id": task_id})
        assert json.loads(body) == {"status": "Success", "worker_id": "alice-1"}
        code, body, shown = await served.ask(
            "GET", "/get_result", params={"id": task_id}, headers=headers
        )
        assert (code, body) == (200, ball_spz())
        assert shown["Content-Disposition"] == 'attachment; filename="result.spz"'
        assert served.gateway.nodes[0].origins == {"blender": 1}


async def test_a_picture_is_submitted_as_a_form(serve: Serve) -> None:
    async with serve() as served:
        form = multipart([("image", picture()), ("seed", b"-7")])
        answer = await served.ask("POST", "/add_task", data=form, headers={"x-api-key": KEY})
        assert answer[0] == 200
        (task,) = json.loads((await served.get_tasks())[1])["tasks"]
        assert task["seed"] == -7


async def test_a_part_beyond_its_limit_ends_the_form(serve: Serve) -> None:
    async with serve() as served:
        form = multipart([("prompt", b"x" * 385), ("seed", b"7")])
        code, body, _ = await served.ask("POST", "/add_task", data=form, headers={"x-api-key": KEY})
        assert (code, b"field 'prompt' exceeded the size limit: 384 bytes" in body) == (400, True)


async def test_the_key_is_needed_for_tasks_and_results_and_not_for_a_status(serve: Serve) -> None:
    async with serve() as served:
        query = {"id": KEY}
        assert (await served.ask("POST", "/add_task", json={}))[0] == 401
        assert (await served.ask("GET", "/get_result", params=query))[0] == 401
        bad = {"x-api-key": "7"}
        assert (await served.ask("GET", "/get_result", params=query, headers=bad))[0] == 400
        assert (await served.ask("GET", "/get_status", params=query))[0] == 200


async def test_id_load_and_metrics_are_open(serve: Serve) -> None:
    async with serve() as served:
        assert (await served.ask("GET", "/id"))[:2] == (200, b"1")
        (node,) = json.loads((await served.ask("GET", "/get_load"))[1])["gateways"]
        assert (node["domain"], node["http_port"]) == ("127.0.0.1", 8094)
        served.alice.clock.now += 1.0
        (later,) = json.loads((await served.ask("GET", "/get_load"))[1])["gateways"]
        assert later["last_update"] == node["last_update"] + 1
        code, body, headers = await served.ask("GET", "/metrics")
        assert (code, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert b"task_queue_length 0.0" in body


async def test_errors_of_the_router_follow_the_header_accept(serve: Serve) -> None:
    async with serve() as served:
        for path, method, code in (("/add_task", "GET", 405), ("/nothing", "GET", 404)):
            status, body, _ = await served.ask(method, path, headers=JSON)
            assert (status, json.loads(body)["error"]["code"]) == (code, code)
            status, body, headers = await served.ask(method, path)
            assert (status, headers["Content-Type"]) == (code, "text/html; charset=utf-8")


async def test_bodies_beyond_the_limits_are_refused(serve: Serve) -> None:
    async with serve(max_result_bytes=4000) as served:
        submit(served.alice.node)
        (task,) = json.loads((await served.get_tasks())[1])["tasks"]
        assert (await served.get_tasks(padding="x" * 4096))[0] == 413
        assert (await served.add_result(task, asset=bytes(5000)))[0] in (400, 413)
        long = io.BytesIO(b'{"prompt": "%b"}' % (b"a" * 2_097_152))
        headers = {"x-api-key": KEY, "Content-Type": "application/json"}
        assert (await served.ask("POST", "/add_task", data=long, headers=headers))[0] == 413
        assert (await served.add_result(task, asset=bytes(1000)))[0] == 200


async def test_a_streamed_asset_beyond_the_limit_is_400(serve: Serve) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(5):
            yield bytes(1000)

    async with serve(max_result_bytes=4000) as served:
        submit(served.alice.node)
        (task,) = json.loads((await served.get_tasks())[1])["tasks"]
        writer = aiohttp.MultipartWriter("form-data")
        for name, value in served.alice.form(task)[:-1]:
            writer.append(value.decode()).set_content_disposition("form-data", name=name)
        writer.append(pieces()).set_content_disposition("form-data", name="asset")
        code, body, _ = await served.ask("POST", ADD_RESULT, data=writer)
        assert code == 400
        assert body == b"Bad request: Asset exceeds maximum allowed size (4000 bytes)"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b""),
        ("multipart/form-data; boundary=x", b"no boundary here"),
        ("multipart/form-data; boundary=x", b"--x\r\n\r\nwithout a name\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nno header\r\n\r\nx\r\n--x--\r\n"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\n" + b"A: b\r\n" * 5000 + b"\r\nx\r\n--x--\r\n",
        ),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\nContent-Disposition: form-data; name="\xff"\r\n\r\nx\r\n--x--\r\n',
        ),
    ],
)
async def test_what_is_no_form_is_400(serve: Serve, content_type: str, body: bytes) -> None:
    async with serve() as served:
        answer = await served.ask(
            "POST", ADD_RESULT, data=body, headers={"Content-Type": content_type}
        )
        assert answer[0] == 400
        assert answer[1].startswith(b"Bad request: ")


async def test_a_body_that_cannot_be_unpacked_is_400(serve: Serve) -> None:
    async with serve() as served:
        answer = await served.ask(
            "POST", GET_TASKS, data=b"not packed", headers={"Content-Encoding": "deflate"}
        )
        assert answer[0] == 400
        assert answer[1].startswith(b"Bad request: ")


async def test_results_and_load_share_one_limit_and_get_tasks_has_none(serve: Serve) -> None:
    async with serve(results_per_minute=3) as served:
        nobody = {"id": KEY, "assignment_token": KEY}
        assert (await served.add_result(nobody))[0] == 410
        assert (await served.ask("GET", "/get_load"))[0] == 200
        assert (await served.add_result(nobody))[0] == 410
        code, body = await served.add_result(nobody)
        assert (code, json.loads(body)["error"]["code"]) == (429, 429)
        assert (await served.ask("GET", "/get_load"))[0] == 429
        for _ in range(5):
            assert (await served.get_tasks())[0] == 200
        served.alice.clock.now += 60.0
        assert (await served.ask("GET", "/get_load"))[0] == 200


async def test_submissions_and_statuses_have_limits_of_their_own(serve: Serve) -> None:
    async with serve(tasks_per_minute=1, statuses_per_minute=2) as served:
        key = {"x-api-key": KEY}
        body = {"prompt": "a red car"}
        codes = [
            (await served.ask("POST", "/add_task", json=body, headers=key))[0] for _ in range(2)
        ]
        codes += [(await served.ask("GET", "/get_status", params={"id": KEY}))[0] for _ in range(3)]
        assert codes == [200, 429, 200, 200, 429]


async def test_the_date_is_that_of_the_gateways_clock(serve: Serve) -> None:
    async with serve() as served:
        for path in ("/id", "/nothing", "/get_status"):
            headers = (await served.ask("GET", path))[2]
            assert http_date(headers["Date"]) == BEGIN


async def test_answers_are_packed_where_zstd_is_accepted(serve: Serve) -> None:
    async with serve() as served:
        url, headers = served.url + "/get_load", {"Accept-Encoding": "gzip, zstd"}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.get(url, headers=headers) as response,
        ):
            assert response.headers["Content-Encoding"] == "zstd"
            unpacked = zstandard.decompress(await response.read())
        assert list(json.loads(unpacked)) == ["gateways"]


@pytest.mark.parametrize(
    ("fault", "code"),
    [("unauthorized", 401), ("gone", 410), ("limited", 429), ("failed", 500), ("busy", 503)],
)
async def test_an_injected_error_stores_nothing(serve: Serve, fault: Fault, code: int) -> None:
    plan = FaultPlan()
    async with serve(plan) as served:
        task_id = submit(served.alice.node)
        (task,) = json.loads((await served.get_tasks())[1])["tasks"]
        plan.then(ADD_RESULT, fault, None)
        assert (await served.add_result(task))[0] == code
        assert status(served.alice.node, task_id) == {"status": "InProgress"}
        assert (await served.add_result(task))[0] == 200
        assert plan.injected == {(ADD_RESULT, fault): 1}


@pytest.mark.parametrize(("fault", "code"), [("unauthorized", 401), ("failed", 500)])
async def test_an_injected_error_hands_nothing_out(serve: Serve, fault: Fault, code: int) -> None:
    plan = FaultPlan()
    plan.then(GET_TASKS, fault, "unstored", None)
    async with serve(plan) as served:
        submit(served.alice.node)
        assert (await served.get_tasks())[0] == code
        assert json.loads((await served.get_tasks())[1])["tasks"] == []
        assert len(json.loads((await served.get_tasks())[1])["tasks"]) == 1


async def test_a_lost_answer_was_stored(serve: Serve) -> None:
    plan = FaultPlan()
    plan.then(GET_TASKS, "lost")
    plan.then(ADD_RESULT, "lost")
    async with serve(plan) as served:
        first, second = submit(served.alice.node), submit(served.alice.node)
        with pytest.raises(aiohttp.ClientError):
            await served.get_tasks()
        assert status(served.alice.node, first) == {"status": "InProgress"}
        (task,) = json.loads((await served.get_tasks(requested_task_count=5))[1])["tasks"]
        assert task["id"] == second
        with pytest.raises(aiohttp.ClientError):
            await served.add_result(task)
        assert status(served.alice.node, second)["status"] == "Success"
        assert (await served.add_result(task))[0] == 410


async def test_a_slow_read_delays_an_answer_and_changes_nothing(serve: Serve) -> None:
    plan = FaultPlan()
    plan.then(GET_TASKS, "slow")
    async with serve(plan, slow_s=0.05) as served:
        submit(served.alice.node)
        began = asyncio.get_running_loop().time()
        assert len(json.loads((await served.get_tasks())[1])["tasks"]) == 1
        assert asyncio.get_running_loop().time() - began >= 0.05


async def test_a_duplicate_of_a_result_that_is_being_stored_is_503(serve: Serve) -> None:
    async with serve(storing_s=0.1) as served:
        submit(served.alice.node)
        (task,) = json.loads((await served.get_tasks())[1])["tasks"]
        answers = await asyncio.gather(served.add_result(task), served.add_result(task))
        assert sorted(answers) == [
            (200, b"Ok"),
            (503, b"Service unavailable: Result is already being processed; please retry"),
        ]
        assert served.alice.node.store.counts[ALICE, "result_success"] == 1


def test_faults_come_by_their_shares_and_a_route_takes_only_its_own() -> None:
    draws = iter([0.5, 0.04] + [0.9] * 100)
    plan = FaultPlan({"unauthorized": 0.1, "limited": 0.05}, chance=lambda: next(draws))
    assert plan.draw(GET_TASKS) == "limited"
    assert plan.draw(GET_TASKS) is None
    with pytest.raises(ValueError, match="knows no fault 'gone'"):
        plan.then(GET_TASKS, "gone")


async def test_a_taken_port_is_a_start_up_message(serve: Serve) -> None:
    async with serve() as served:
        port = int(served.url.rpartition(":")[2])
        with pytest.raises(SetupError, match=f"port {port} on 127.0.0.1 cannot be used") as raised:
            GatewayServer(served.alice.node, ip="127.0.0.1", port=port)
        assert "--gateway.port" in str(raised.value.fix)
