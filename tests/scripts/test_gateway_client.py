"""The client of the owner's gateway, against the mock over loopback, in virtual time."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from miner.mock_gateway.node import MockNode
from miner.mock_gateway.rules import KeyOwner
from miner.mock_gateway.server import GatewayServer
from miner.settings.reader import read_settings
from protocol import ply
from protocol.errors import SetupError
from scripts.free_port import free_port
from scripts.gateway_client import (
    Fetching,
    GatewayClientSettings,
    _params,
    _tasks,
    fetch_all,
    main,
)
from tests.support.fakes import Clock, ball, ball_spz
from tests.support.mock_gateway import BEGIN, KEY, OTHER_KEY, GatewayWorker, cluster, picture
from tests.support.virtual_time import clock, in_virtual_time, threads_take_no_time

Handle = Callable[[GatewayWorker, dict[str, Any]], None]


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    threads_take_no_time(monkeypatch)


def wall() -> float:
    return BEGIN + clock() - 1000.0


class TickingClock(Clock):
    """The virtual loop's time, for a worker."""

    now = property(lambda self: wall(), lambda self, value: None)


def deliver(worker: GatewayWorker, task: dict[str, Any]) -> None:
    assert worker.add_result(task, asset=ball_spz()).status == 200


def fail(worker: GatewayWorker, task: dict[str, Any]) -> None:
    assert worker.add_result(task, status="failure").status == 200


class Bench:
    """A served node, workers that do everything after 3 s, and the client's output."""

    def __init__(self, folder: Path, port: int, node: MockNode) -> None:
        self.folder, self.port, self.node = folder, port, node
        self.output = io.StringIO()

    def settings(self, *argv: str, key: str = KEY) -> GatewayClientSettings:
        return read_settings(
            GatewayClientSettings,
            prog="client",
            env_prefix="GATEWAY",
            argv=[f"--url=http://127.0.0.1:{self.port}", f"--out={self.folder}", *argv],
            environ={"GATEWAY_API_KEY": key},
        )

    async def fetch(self, *argv: str, key: str = KEY) -> list[Fetching]:
        settings = self.settings(*argv, key=key)
        console = Console(file=self.output, width=400)
        with Progress(console=console, auto_refresh=False) as progress:
            return await fetch_all(settings, _tasks(settings), _params(settings.params), progress)

    async def work(self, *handles: Handle, after_s: float = 3.0) -> None:
        workers = [
            GatewayWorker(self.node, TickingClock(), f"5{number}", f"worker-{number}")
            for number in range(len(handles))
        ]
        while True:
            await asyncio.sleep(after_s)
            for worker, handle in zip(workers, handles, strict=True):
                for task in worker.take(9):
                    handle(worker, task)


@asynccontextmanager
async def bench(folder: Path, *handles: Handle, **rules: Any) -> AsyncIterator[Bench]:
    node, port = cluster(wall, **rules).nodes[0], free_port()
    server = GatewayServer(node, ip="127.0.0.1", port=port)
    await server.start()
    made = Bench(folder, port, node)
    working = asyncio.create_task(made.work(*handles)) if handles else None
    try:
        yield made
    finally:
        if working is not None:
            working.cancel()
            await asyncio.wait({working})
        await server.stop()


@in_virtual_time
async def test_prompts_and_pictures_are_submitted_and_fetched_in_every_format(
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "green.png").write_bytes(picture())
    async with bench(tmp_path, deliver) as gateway:
        fetched = await gateway.fetch(
            "a red car", f"--images={tmp_path / 'in'}", "--formats=spz,ply,all", "--seed=-7"
        )
        seeds = {task.seed for task in gateway.node.store._tasks.values()}
        origins = dict(gateway.node.origins)
    assert [each.problem for each in fetched] == ["", ""]
    assert seeds == {-7}
    assert origins == {"api": 2}
    for name in ("01-a-red-car", "02-green-png"):
        assert (tmp_path / f"{name}.spz").read_bytes() == ball_spz()
        assert len(ply.decode((tmp_path / f"{name}.ply").read_bytes())) == len(ball())
        with zipfile.ZipFile(tmp_path / f"{name}.zip") as archive:
            assert archive.namelist() == ["1.spz"]
    said = gateway.output.getvalue()
    assert "8,000 Gaussians, valid" in said
    assert "by worker-0" in said
    assert KEY not in said


@in_virtual_time
async def test_the_status_is_asked_every_second(tmp_path: Path) -> None:
    async with bench(tmp_path, deliver) as gateway:
        statuses = gateway.node.statuses
        allowed, asked = statuses.allow, list[float]()

        def counted(address: str) -> bool:
            asked.append(clock())
            return allowed(address)

        statuses.allow = counted  # type: ignore[method-assign]
        await gateway.fetch("a red car")
    pauses = [later - earlier for earlier, later in pairwise(asked)]
    assert len(asked) == 4
    assert pauses == pytest.approx([1.0] * 3, abs=0.01)


@in_virtual_time
async def test_the_first_success_is_fetched_while_other_workers_are_busy(tmp_path: Path) -> None:
    async with bench(tmp_path, fail, deliver, lambda worker, task: None, copies=3) as gateway:
        began = clock()
        (fetched,) = await gateway.fetch("a red car")
        assert fetched.problem == ""
        assert clock() - began < 10.0


@in_virtual_time
async def test_all_results_are_waited_for_and_fetched_before_the_gateway_removes_them(
    tmp_path: Path,
) -> None:
    def late(worker: GatewayWorker, task: dict[str, Any]) -> None:
        asyncio.get_running_loop().call_later(100.0, deliver, worker, task)

    async with bench(tmp_path, deliver, late, lambda worker, task: None, copies=3) as gateway:
        began = clock()
        (fetched,) = await gateway.fetch("a red car", "--formats=all")
        assert fetched.problem == ""
        assert 340.0 < clock() - began < 350.0
        with zipfile.ZipFile(tmp_path / "01-a-red-car.zip") as archive:
            assert archive.namelist() == ["1.spz", "2.spz"]


@in_virtual_time
async def test_all_results_are_fetched_at_once_when_every_worker_is_done(tmp_path: Path) -> None:
    async with bench(tmp_path, deliver, fail, deliver, copies=3) as gateway:
        began = clock()
        (fetched,) = await gateway.fetch("a red car", "--formats=all")
        assert fetched.problem == ""
        assert clock() - began < 10.0


@in_virtual_time
async def test_a_failed_task_says_why_and_the_others_are_fetched(tmp_path: Path) -> None:
    def choose(worker: GatewayWorker, task: dict[str, Any]) -> None:
        (fail if task["prompt"] == "fail me" else deliver)(worker, task)

    async with bench(tmp_path, choose) as gateway:
        first, second = await gateway.fetch("fail me", "a red car")
    assert (
        first.problem
        == "it failed: no object; change it if the reason says why, else submit it again"
    )
    assert second.problem == ""


@in_virtual_time
async def test_a_task_without_a_worker_ends_with_the_wait(tmp_path: Path) -> None:
    async with bench(tmp_path) as gateway:
        (fetched,) = await gateway.fetch("a red car", "--wait=20")
    assert fetched.problem.startswith("it has no result in time; its last status is NoResult")


@pytest.mark.parametrize(
    ("code", "status", "fix"),
    [
        ("concurrent_limit", 429, "smaller --concurrency"),
        ("daily_limit", 429, "wait until the day's limit is over"),
        ("insufficient_balance", 402, "top up the account"),
        ("login_required", 401, "use the key of an account"),
        ("pricing_unavailable", 503, "try again in a few minutes"),
    ],
)
@in_virtual_time
async def test_what_billing_refuses_is_shown_with_its_fix(
    tmp_path: Path, code: str, status: int, fix: str
) -> None:
    async with bench(tmp_path, keys={KEY: KeyOwner("poor", refusal=code)}) as gateway:
        (fetched,) = await gateway.fetch("a red car")
    assert f"answered {status}" in fetched.problem
    assert fix in fetched.problem


@in_virtual_time
async def test_an_unknown_key_and_a_full_queue_are_shown_with_their_fixes(
    tmp_path: Path,
) -> None:
    keys = {KEY: KeyOwner("owner")}
    async with bench(tmp_path, keys=keys, queue_limit=1) as gateway:
        (unknown,) = await gateway.fetch("a red car", key=OTHER_KEY)
        waiting, full = await gateway.fetch("a red car", "a blue mug", "--wait=5")
    assert "answered 401: Unauthorized request: Invalid API key; check GATEWAY_API_KEY" in (
        unknown.problem
    )
    assert OTHER_KEY not in unknown.problem
    assert "no result in time" in waiting.problem
    assert "answered 503: Service unavailable: Task queue is full; try again" in full.problem


@in_virtual_time
async def test_the_limit_of_tasks_per_minute_is_waited_for(tmp_path: Path) -> None:
    async with bench(tmp_path, deliver, tasks_per_minute=1) as gateway:
        began = clock()
        fetched = await gateway.fetch("a red car", "a blue mug")
        assert [each.problem for each in fetched] == ["", ""]
        assert 60.0 < clock() - began < 70.0


@in_virtual_time
async def test_a_limit_on_statuses_is_waited_for(tmp_path: Path) -> None:
    async with bench(tmp_path, deliver, statuses_per_minute=2) as gateway:
        (fetched,) = await gateway.fetch("a red car")
    assert fetched.problem == ""


@in_virtual_time
async def test_no_more_tasks_than_concurrency_are_at_the_gateway(tmp_path: Path) -> None:
    keys = {KEY: KeyOwner("guest", most_at_once=2)}
    async with bench(tmp_path, deliver, keys=keys) as gateway:
        fetched = await gateway.fetch(*(f"a red car {number}" for number in range(5)))
    assert [each.problem for each in fetched] == [""] * 5


@in_virtual_time
async def test_an_asset_that_is_no_spz_is_kept_and_reported(tmp_path: Path) -> None:
    def garbage(worker: GatewayWorker, task: dict[str, Any]) -> None:
        assert worker.add_result(task, asset=b"no asset").status == 200

    async with bench(tmp_path, garbage) as gateway:
        (fetched,) = await gateway.fetch("a red car")
    assert (tmp_path / "01-a-red-car.spz").read_bytes() == b"no asset"
    assert "not the subnet's SPZ" in fetched.files[0]


@in_virtual_time
async def test_a_gateway_that_is_not_there_is_a_problem_of_the_task(tmp_path: Path) -> None:
    gateway = Bench(tmp_path, free_port(), None)  # type: ignore[arg-type]
    (fetched,) = await gateway.fetch("a red car")
    assert "Connection refused; is --url right" in fetched.problem


@pytest.mark.parametrize(
    ("argv", "key", "words"),
    [
        (["a red car"], "", "there is no API key"),
        (["a red car"], f"{KEY}\n", "it holds a control character"),
        ([], KEY, "there is nothing to submit"),
        (["a red car", "--url=ftp://x"], KEY, "--url: 'ftp://x' is no address"),
        (["a red car", "--url=http://example.com"], KEY, "is not encrypted"),
        (["a red car", "--formats=obj"], KEY, "it has 'obj'; there are spz, ply, all"),
        (["a red car", "--params=[]"], KEY, "--params is no JSON object"),
        (["a red car", "--params={"], KEY, "--params cannot be read"),
        (["a red car", "--seed=4294967296"], KEY, "seed"),
    ],
)
def test_a_start_that_cannot_work_says_what_to_do(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    key: str,
    words: str,
) -> None:
    monkeypatch.delenv("GATEWAY_API_KEY", raising=False)
    if key:
        monkeypatch.setenv("GATEWAY_API_KEY", key)
    assert main([*argv, f"--out={tmp_path}"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert words in error
    assert "fix:" in error
    assert KEY not in error


def test_without_encryption_a_far_gateway_must_be_insisted_on(tmp_path: Path) -> None:
    gateway = Bench(tmp_path, 1, None)  # type: ignore[arg-type]
    with pytest.raises(SetupError):
        gateway.settings("a", "--url=http://example.com")
    kept = gateway.settings("a", "--url=http://example.com", "--allow_http=true")
    assert kept.url == "http://example.com"
    assert KEY not in repr(kept)


def test_a_result_that_is_missing_shows_in_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATEWAY_API_KEY", KEY)
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["a red car", f"--url={url}", f"--out={tmp_path / 'new'}"]) == 1
    shown = capsys.readouterr()
    assert "Connection refused" in shown.out
    assert KEY not in shown.out + shown.err
