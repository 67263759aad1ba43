"""Ray itself: two engines on the CPU of this machine, their processes, and what ends them.

The tests share one Ray and one event loop; the last one ends Ray's own processes.
"""

import asyncio
import ipaddress
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import pytest_asyncio

from miner.engines.ray_engine import RayLink, RayProcess
from miner.request import Answer, Caller, Request
from miner.score.log import ScoreLog
from miner.service import MinerService
from protocol.errors import SetupError
from protocol.tasks import TextTask
from tests.support.fakes import ball
from tests.support.toy_actor import process_of, toy_engine, toy_ray
from tests.support.waiting import PATIENCE_S, until

if find_spec("ray") is None:
    pytest.skip("Ray is not installed: make install EXTRAS=dev", allow_module_level=True)

one_loop = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def doomed_front() -> Iterator["subprocess.Popen[str]"]:
    """A front of its own, started early: it takes seconds."""
    front = subprocess.Popen(
        [sys.executable, "-m", "tests.support.toy_actor"], stdout=subprocess.PIPE, text=True
    )
    yield front
    front.kill()
    front.communicate()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ray(doomed_front: object) -> AsyncIterator[RayProcess]:
    ray = toy_ray(2)
    await ray.open()
    yield ray
    own = processes_of(ray)
    ray.close()
    await until(lambda: not any(map(is_running, own)))


class Served:
    """A service on two engines."""

    def __init__(self, ray: RayProcess, folder: Path) -> None:
        self.engines = [toy_engine(ray, number) for number in range(2)]
        self.log = ScoreLog(folder)
        self.service = MinerService(
            self.engines, self.log, budget_s=30.0, margin_s=0.2, sole_caller=True
        )

    async def ask(self, number: int) -> Answer:
        task = TextTask(id=str(number), prompt=f"thing {number}")
        return await self.service.handle(Request(task, Caller("5"), "http", time.monotonic()))

    def processes(self) -> set[int]:
        links = [engine.link for engine in self.engines]
        return {link.process for link in links if isinstance(link, RayLink)}

    def are_up(self) -> bool:
        return all(engine.up for engine in self.service.snapshot().engines)

    async def up(self) -> None:
        await until(self.are_up)

    def lines(self, event: str) -> list[str]:
        assert self.log.flush()
        return [line for line in self.log.path.read_text().splitlines() if f'"{event}"' in line]


@asynccontextmanager
async def served(ray: RayProcess, folder: Path) -> AsyncIterator[Served]:
    made = Served(ray, folder)
    await made.service.start()
    await made.up()
    try:
        yield made
    finally:
        await made.service.drain()
        await made.service.close()
        made.log.close()


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def name_of(process: int) -> str:
    """The program of a process, as a file name."""
    try:
        command = Path(f"/proc/{process}/cmdline").read_bytes()
    except FileNotFoundError:
        return ""
    return Path(command.split(b"\0")[0].decode()).name


def children(process: int) -> set[int]:
    """All processes below one."""
    below: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        below.setdefault(parent, []).append(int(folder.name))
    found, new = set[int](), [process]
    while new:
        found |= set(new)
        new = [child for parent in new for child in below.get(parent, [])]
    return found - {process}


def processes_of(ray: RayProcess) -> set[int]:
    """Ray's own process and all below it."""
    assert ray._process is not None
    return {ray._process.pid} | children(ray._process.pid)


def listening(processes: set[int]) -> set[str]:
    """The addresses on which processes take TCP connections."""
    sockets = set()
    for process in processes:
        for handle in Path(f"/proc/{process}/fd").glob("*"):
            try:
                sockets.add(os.readlink(handle))
            except OSError:
                continue
    addresses = set()
    for table in ("tcp", "tcp6"):
        for row in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = row.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                raw = bytes.fromhex(fields[1].partition(":")[0])
                words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
                family = socket.AF_INET if table == "tcp" else socket.AF_INET6
                addresses.add(socket.inet_ntop(family, words))
    return addresses


async def load(made: Served, first: int, count: int) -> "list[asyncio.Task[Answer]]":
    asking = []
    for number in range(first, first + count):
        asking.append(asyncio.create_task(made.ask(number)))
        await asyncio.sleep(0.02)
    return asking


@one_loop
async def test_both_engines_serve_and_a_killed_one_costs_no_answer(
    ray: RayProcess, tmp_path: Path
) -> None:
    async with served(ray, tmp_path) as made:
        answers = await asyncio.gather(*await load(made, 0, 12))
        assert {answer.reason_code for answer in answers} == {"ok"}
        assert {answer.engine for answer in answers} == {"ray0", "ray1"}
        for answer in answers:
            assert answer.cloud is not None
            assert len(answer.cloud) == len(ball())
            assert 0.0 < answer.timings["hand_over"] < 2.0
        assert answers[0].cloud is not None
        assert answers[0].cloud.positions.flags.writeable

        victim = process_of(made.engines[0])
        assert victim in children(os.getpid())
        asking = await load(made, 100, 12)
        os.kill(victim, signal.SIGKILL)
        asking += await load(made, 112, 6)
        answers = list(await asyncio.gather(*asking))
        assert {answer.reason_code for answer in answers} == {"ok"}
        assert len(made.lines("answered")) == 30
        placed_again = [answer for answer in answers if answer.lost_engine == "ray0"]
        assert placed_again
        assert all(answer.engine for answer in placed_again)
        assert len(made.lines("engine_lost")) == 1

        await made.up()
        assert process_of(made.engines[0]) != victim
        assert (await made.ask(200)).outcome == "completed"

        before = [process_of(engine) for engine in made.engines]
        renewing = asyncio.create_task(made.service.renew_engines())
        answers = list(await asyncio.gather(*await load(made, 300, 20)))
        assert {answer.reason_code for answer in answers} == {"ok"}
        await renewing
        after = [process_of(engine) for engine in made.engines]
        assert not set(before) & set(after)

        reached = listening(children(os.getpid()))
        assert reached
        assert all(ipaddress.ip_address(a.removeprefix("::ffff:")).is_loopback for a in reached)
    await until(lambda: not any(map(is_running, after)))


@one_loop
async def test_an_engine_that_finds_no_room_is_a_reason_with_a_fix(
    ray: RayProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = max(2, os.cpu_count() or 1)
    *fitting, one_more = (toy_engine(ray, number) for number in range(count + 1))
    links = await asyncio.gather(*(engine._open_link() for engine in fitting))
    try:
        cores = [os.sched_getaffinity(link.process) for link in links if isinstance(link, RayLink)]
        assert [len(taken) for taken in cores] == [1] * count
        assert len(set.union(*cores)) == count, "no two engines run on one core"
        monkeypatch.setattr("miner.engines.ray_engine.PLACED_S", 1.0)
        with pytest.raises(SetupError, match="no core of the Ray cluster was free within") as full:
            await one_more._open_link()
        assert "--engines.count" in full.value.fix
    finally:
        for link in links:
            link.kill()


def test_engines_of_a_killed_front_end_by_themselves(
    doomed_front: "subprocess.Popen[str]",
) -> None:
    assert doomed_front.stdout is not None
    front, engine = map(int, doomed_front.stdout.readline().split())
    assert is_running(engine)
    os.kill(front, signal.SIGKILL)
    end = time.monotonic() + PATIENCE_S
    while is_running(engine):
        assert time.monotonic() < end
        time.sleep(0.05)


@one_loop
async def test_requests_are_answered_though_rays_own_processes_die(
    ray: RayProcess, tmp_path: Path
) -> None:
    async with served(ray, tmp_path) as made:
        asked: list[asyncio.Task[Answer]] = []
        for name in ("raylet", "gcs_server"):
            (own,) = [process for process in processes_of(ray) if name_of(process) == name]
            os.kill(own, signal.SIGKILL)
            # The engines do without it, but none could be started.
            asked += await load(made, len(asked), 8)
            assert {answer.reason_code for answer in await asyncio.gather(*asked[-8:])} == {"ok"}
        before = made.processes()
        os.kill(min(before), signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):  # Ray starts again, and two engines.
            while made.processes() & before or not made.are_up():
                asked += await load(made, len(asked), 2)

        answers = await asyncio.gather(*asked)
        assert len(made.lines("answered")) == len(asked)
        # One that was lost with both engines in turn, and what came while none was left.
        assert {a.reason_code for a in answers} <= {"ok", "engine_lost", "engine_suspect"}
        assert sum(answer.reason_code == "engine_lost" for answer in answers) <= 4
        assert (await made.ask(9000)).reason_code == "ok"
