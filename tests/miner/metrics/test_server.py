"""The port for probes and scrapers, over loopback: statuses, formats, and what it costs."""

import asyncio
import gzip
import itertools
import socket
import time
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest
from loguru import logger
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open

from miner.metrics import server
from miner.metrics.events import EventMetrics
from miner.metrics.labels import METRICS
from miner.metrics.opening import open_metrics
from protocol.errors import SetupError
from tests.support.loop_lag import measured
from tests.support.measured_miner import OPENMETRICS, Exposition, MeasuredMiner
from tests.support.waiting import PATIENCE_S

PATHS = ("/health", "/ready", "/status", "/metrics")


@pytest.fixture
async def miner(tmp_path: Path) -> AsyncIterator[MeasuredMiner]:
    """A miner whose port of the metrics is open, and nothing else yet."""
    made = MeasuredMiner(tmp_path)
    await made.metrics.serve()
    yield made
    await made.close()


async def test_it_is_alive_and_not_ready_before_anything_is_loaded(miner: MeasuredMiner) -> None:
    assert (await miner.get("/health")).status == 200
    reply = await miner.get("/ready")
    assert (reply.status, reply.json) == (503, {"state": "starting"})
    assert reply.headers["retry-after"] == "5"
    assert (await miner.get("/metrics")).status == 200
    assert (await miner.get("/status")).json["state"] == "starting"


async def test_it_is_ready_once_requests_are_taken_and_no_longer_when_it_drains(
    miner: MeasuredMiner,
) -> None:
    release = miner.stages.hold("prompt")
    starting = asyncio.create_task(miner.service.start())
    await asyncio.to_thread(miner.stages.entered["prompt"].wait, PATIENCE_S)
    assert (await miner.get("/ready")).json == {"state": "warming_up"}
    assert (await miner.get("/health")).status == 200
    release()
    await starting
    reply = await miner.get("/ready")
    assert (reply.status, reply.json) == (200, {"state": "ready"})
    await miner.service.drain()
    reply = await miner.get("/ready")
    assert (reply.status, reply.json) == (503, {"state": "draining"})
    assert (await miner.get("/health")).status == 200


async def test_a_miner_whose_last_engine_is_lost_is_not_ready(miner: MeasuredMiner) -> None:
    await miner.service.start()
    miner.service._lose("local", "CUDA error 700", None)
    reply = await miner.get("/ready")
    assert (reply.status, reply.json) == (503, {"state": "dead"})


async def test_while_the_event_loop_hangs_nothing_says_that_the_miner_lives(
    miner: MeasuredMiner,
) -> None:
    def answers(within_s: float) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", miner.port), within_s) as client:
                client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return client.recv(100).startswith(b"HTTP/1.1 200")
        except TimeoutError:
            return False

    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(answers, 0.3).result()  # The loop hangs until there is a result.
    assert await asyncio.to_thread(answers, PATIENCE_S)


async def test_the_status_says_what_an_operator_asks_first(miner: MeasuredMiner) -> None:
    await miner.service.start()
    miner.log.problems.report("disk", "the disk is full")
    status = (await miner.get("/status")).json
    assert set(status) == {
        "state", "since", "uptime_s", "preset", "budget_s", "predicted_wait_s", "active", "waiting",
        "engines", "problems", "versions",
    }  # fmt: skip
    assert status["state"] == "ready"
    assert status["preset"] == "embedded"
    assert status["problems"] == ["the disk is full"]
    assert status["predicted_wait_s"] == 0.0
    (engine,) = status["engines"]
    assert engine["name"] == "local"
    assert engine["up"]
    assert set(status["versions"]) >= {"splat-miner", "python"}
    miner.log.problems.clear("disk", "there is room")


async def test_head_answers_as_get_without_a_body(miner: MeasuredMiner) -> None:
    for path in PATHS:
        reply = await miner.get(path, method="HEAD")
        assert reply.status == (await miner.get(path)).status
        assert reply.body == b""
        assert int(reply.headers["content-length"]) > 0


async def test_other_methods_get_405_in_json(miner: MeasuredMiner) -> None:
    for path, method in itertools.product(PATHS, ("POST", "PUT", "DELETE", "PATCH", "OPTIONS")):
        reply = await miner.get(path, method=method)
        assert (reply.status, reply.message) == (405, "Method Not Allowed")
        assert {"GET", "HEAD"} <= set(reply.headers["allow"].split(", "))


async def test_other_paths_get_404_in_json(miner: MeasuredMiner) -> None:
    for path in ("/", "/metrics/", "/health/live", "/favicon.ico", "/%2e%2e/"):
        reply = await miner.get(path)
        assert (reply.status, reply.message) == (404, "Not Found")


async def test_a_scraper_gets_the_format_and_the_compression_that_it_asks_for(
    miner: MeasuredMiner,
) -> None:
    plain = await miner.get("/metrics")
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert Exposition(plain.body.decode()).value("state", state="starting") == 1
    modern = await miner.get("/metrics", Accept=OPENMETRICS)
    assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert list(parse_open(modern.body.decode()))  # type: ignore[no-untyped-call]
    small = await miner.get("/metrics", Accept_Encoding="gzip, deflate")
    assert small.headers["content-encoding"] == "gzip"
    assert gzip.decompress(small.body) == plain.body
    for never in ("gzip;q=0", "deflate, GZIP; q=0.000", "x-gzip"):
        refused = await miner.get("/metrics", Accept_Encoding=never)
        assert "content-encoding" not in refused.headers
    rarely = await miner.get("/metrics", Accept_Encoding="gzip;q=0.1")
    assert rarely.headers["content-encoding"] == "gzip"
    assert len(small.body) < len(plain.body) / 4
    assert plain.headers["vary"] == "Accept, Accept-Encoding"


PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;"
    "escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


async def test_no_accept_header_is_an_error(miner: MeasuredMiner) -> None:
    for accept in (
        "*/*", "text/html", "text/plain;version=1.x", "application/openmetrics-text;version=1.x",
        "application/openmetrics-text;version=9;escaping=dots", ",,;=;", "ä" * 50, PROMETHEUS_3,
    ):  # fmt: skip
        reply = await miner.get("/metrics?name[]=x", Accept=accept)
        assert reply.status == 200
        assert b"splat_miner_state" in reply.body


async def test_a_hundred_scrapes_cost_one_exposition_and_hold_up_nothing(
    miner: MeasuredMiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    await miner.http.serve()
    await miner.service.start()
    await miner.traffic()
    asked: list[float] = []
    collect = miner.metrics._registry.collect

    def counted() -> Iterable[Metric]:
        asked.append(time.monotonic())
        return collect()

    async def scrape(times: int) -> None:
        for _ in range(times):
            assert (await miner.get("/metrics")).status == 200

    monkeypatch.setattr(miner.metrics._registry, "collect", counted)
    started = time.monotonic()
    async with measured(asyncio.get_running_loop()) as lag:
        await asyncio.gather(*(scrape(25) for _ in range(4)))
    assert len(asked) <= 1 + (time.monotonic() - started) / server.KEEP_S
    assert lag.largest_s < 0.5


async def test_a_scrape_sees_what_happened_more_than_a_second_before(
    miner: MeasuredMiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    monkeypatch.setattr(miner.metrics, "_clock", lambda: now)
    state = Exposition((await miner.get("/metrics")).body.decode()).value("state", state="ready")
    assert state == 0
    await miner.service.start()
    now += server.KEEP_S
    for accept in ("*/*", OPENMETRICS):
        body = (await miner.get("/metrics", Accept=accept)).body
        assert b'splat_miner_state{state="ready"} 1.0' in body


async def test_an_exposition_after_much_traffic_takes_a_few_milliseconds(
    miner: MeasuredMiner,
) -> None:
    await miner.http.serve()
    await miner.service.start()
    await miner.traffic()
    encode, _ = server._FORMATS[True]
    taken = []
    for _ in range(10):
        started = time.thread_time()  # It waits for nothing, and other processes count for nothing.
        encode(miner.metrics._registry)
        taken.append(time.thread_time() - started)
    assert min(taken) < 0.02


async def test_connections_are_limited_and_what_is_refused_is_counted(
    miner: MeasuredMiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", miner.port)
    writer.write(b"not http\r\n\r\n")
    assert b"HTTP/1.1 400 " in await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    await writer.wait_closed()
    text = (await miner.get("/metrics")).body.decode()
    assert Exposition(text).value("refused_total", transport=METRICS, reason_code="bad_http") == 1


async def test_a_web_page_that_makes_its_name_point_here_reads_nothing(
    miner: MeasuredMiner,
) -> None:
    for path in ("/status", "/metrics", "/ready"):
        reply = await miner.get(path, Host="evil.example")
        assert (reply.status, reply.json["reason_code"]) == (403, "foreign_host")
        assert reply.message == "this miner is not known as evil.example; use its address"
        for host in ("localhost", f"127.0.0.1:{miner.port}", "miner:9108"):
            assert (await miner.get(path, Host=host)).status != 403


async def test_a_failure_of_a_reading_is_told_with_an_id_only(
    miner: MeasuredMiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(miner.metrics, "_status", fail)
    reply = await miner.get("/status")
    assert reply.status == 500
    assert b"secret" not in reply.body
    assert (await miner.get("/health")).status == 200


async def test_neither_prompts_nor_keys_are_shown(miner: MeasuredMiner) -> None:
    await miner.http.serve()
    await miner.service.start()
    await miner.traffic()
    for path in PATHS:
        body = (await miner.get(path)).body.lower()
        for secret in (b"secret key", b"another key", b"cube"):
            assert secret not in body


async def test_a_port_in_use_is_told_with_its_flag(miner: MeasuredMiner) -> None:
    with pytest.raises(SetupError) as problem:
        open_metrics(
            EventMetrics(CollectorRegistry()), miner.service, miner.log, ip="127.0.0.1",
            port=miner.port, preset="embedded", budget_s=30.0, transports=(),
        )  # fmt: skip
    assert "--metrics.port" in str(problem.value.fix)


async def test_beyond_this_machine_it_says_what_everybody_sees(tmp_path: Path) -> None:
    lines: list[str] = []
    sink = logger.add(lambda text: lines.append(str(text)), level="WARNING", format="{message}")
    miner = MeasuredMiner(tmp_path, ip="0.0.0.0")
    try:
        await miner.metrics.serve()
        assert (await miner.get("/health")).status == 200
    finally:
        await miner.close()
        logger.remove(sink)
    (line,) = (line for line in lines if "firewall" in line)
    assert f"http://0.0.0.0:{miner.port}" in line
    assert "hotkey" in line


async def test_keep_alive_serves_scrape_after_scrape(miner: MeasuredMiner) -> None:
    url = f"http://127.0.0.1:{miner.port}/metrics"
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            async with session.get(url) as reply:
                assert reply.status == 200
                await reply.read()
        assert len(session.connector._conns) == 1  # type: ignore[union-attr]
