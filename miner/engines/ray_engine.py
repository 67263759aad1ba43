"""Engines as Ray actors: one process for each GPU, on this machine or on others.

Ray places the processes and ends them. Everything else is ours: the queue, the choice of the
engine, when a lost one is started again, and the connection between front and engine, over which
an object takes less time than through Ray's object store. It outlives Ray's own processes.
"""

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from generation.settings import GenerationSettings
from miner.engines.calls import Calls, CallServer
from miner.engines.handshake import accept, connect, family_of, new_secret
from miner.engines.host import ORPHANED_S, EngineHost
from miner.engines.joining import Identity
from miner.engines.link import Link, LinkLost
from miner.engines.ray_cluster import LOGS, Resources, start_fix
from miner.engines.wire import Message, Order, Placed, SetupFault
from miner.settings.engines import EnginesSettings
from protocol.errors import SetupError

START_LIMIT_S = 90.0
"""For Ray's process to start Ray, or to join the cluster."""

PLACED_S = 60.0
"""Within how many seconds Ray has to find a place for an engine, and to start its process."""

ANSWER_LIMIT_S = 30.0
END_LIMIT_S = 5.0
LOG_LEVEL = "INFO"


class EngineActor(EngineHost):
    """An `EngineHost` as an actor. One connection of the front is served."""

    async def place(self, secret: bytes, gpu: bool) -> Placed:
        """Listens for the front; returns where.

        Args:
            secret: What front and engine recognise each other by.
            gpu: Whether the engine runs on one; it takes its share of the cores then.
        """
        import ray

        os.environ["OMP_NUM_THREADS"] = str(_share_of_cores()) if gpu else "1"
        self.send_log(LOG_LEVEL)
        address = ray.util.get_node_ip_address()
        listener = socket.create_server((address, 0), family=family_of(address))
        self._serving = asyncio.create_task(self._serve(listener, secret))
        return Placed(
            socket.gethostname(),
            ray.get_runtime_context().get_node_id(),
            os.getpid(),
            (address, listener.getsockname()[1]),
        )

    async def _serve(self, listener: socket.socket, secret: bytes) -> None:
        connection = await accept(listener, secret, ORPHANED_S)
        if connection is None:
            self._leave()
        else:
            CallServer(connection, self, self._leave)


class RayLink:
    """The way to one actor; see `Link`.

    Args:
        calls: To the actor.
        placed: Where it is.
        end: Has Ray end its process.
    """

    def __init__(self, calls: Calls, placed: Placed, end: Callable[[], None]) -> None:
        self._calls = calls
        self._end = end
        self.process = placed.process
        self.place = f"{placed.machine}, process {placed.process}"

    async def identify(self, settings: str, models_dir: str | None) -> Identity | SetupFault:
        """See `Link`."""
        answer: Identity | SetupFault = await self._calls.call("identify", settings, models_dir)
        return answer

    async def load(self, settings: str, models_dir: str | None) -> str | SetupFault:
        """See `Link`."""
        answer: str | SetupFault = await self._calls.call("load", settings, models_dir)
        return answer

    async def warm_up(self) -> Mapping[str, float] | SetupFault:
        """See `Link`."""
        answer: Mapping[str, float] | SetupFault = await self._calls.call("warm_up")
        return answer

    async def echo(self, size: int) -> NDArray[np.uint8]:
        """See `Link`."""
        answer: NDArray[np.uint8] = await self._calls.call("echo", size)
        return answer

    async def poll(self) -> list[Message]:
        """See `Link`."""
        answer: list[Message] = await self._calls.call("poll")
        return answer

    def run(self, order: Order) -> None:
        """See `Link`; `poll` raises if the actor is gone."""
        self._calls.post("run", order)

    def cancel(self, run: int) -> None:
        """See `Link`."""
        self._calls.post("cancel", run)

    def kill(self) -> None:
        """See `Link`: an engine without a front ends itself, and Ray ends one that hangs."""
        self._calls.hang_up()
        self._end()


class RayProcess:
    """Ray's own process, as the front sees it: started when needed, and again if it has ended.

    Args:
        engines: Whether Ray is started on this machine, or which cluster is joined.
        cores: How many engines without a GPU have to find room; for its own cluster.
    """

    def __init__(self, engines: EnginesSettings, *, cores: int | None = None) -> None:
        self._engines = engines
        self._cores = cores
        self._numbers = itertools.count()
        self._starting = asyncio.Lock()
        self._calls: Calls | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._found: Resources | None = None
        self._engine_calls: dict[int, Calls] = {}

    async def open(self) -> Resources:
        """Starts it, unless it runs; returns what the cluster had then.

        Raises:
            SetupError: Ray is not installed, does not start, or the cluster cannot be joined.
        """
        async with self._starting:
            if self._found is None or not await self._is_sound():
                self._kill()
                try:
                    self._found = await self._start()
                except BaseException:
                    self._kill()
                    raise
            return self._found

    def opener(
        self,
        settings: GenerationSettings,
        number: int,
        actor_type: type[EngineActor] = EngineActor,
    ) -> Callable[[], Awaitable[Link]]:
        """Returns what starts the process of an engine.

        Args:
            settings: The preset; on a CPU, the engine takes one core.
            number: Of the engine, for messages.
            actor_type: What runs in the process; it is imported there.
        """
        actor = f"{actor_type.__module__}:{actor_type.__qualname__}"
        gpu = settings.device.startswith("cuda")

        async def open_link() -> Link:
            await self.open()
            calls = self._calls
            assert calls is not None
            process, secret = next(self._numbers), new_secret()
            try:
                async with asyncio.timeout(PLACED_S + ANSWER_LIMIT_S):
                    placed = await calls.call("place", process, actor, gpu, secret, PLACED_S)
                if isinstance(placed, SetupFault):
                    raise SetupError(f"engine {number}: {placed.problem}", fix=placed.fix)
                connection = await _connected(number, placed, secret)
            except LinkLost as error:
                raise SetupError(f"engine {number} was not placed: {error}", fix=_LOGS) from error
            except TimeoutError:
                calls.post("end", process)
                raise SetupError(
                    f"engine {number} was not placed: Ray's process does not answer", fix=_LOGS
                ) from None
            except BaseException:
                calls.post("end", process)
                raise
            there = self._engine_calls[process] = Calls(connection, "its process")

            def end() -> None:
                self._engine_calls.pop(process, None)
                calls.post("end", process)

            return RayLink(there, placed, end)

        return open_link

    def _kill(self) -> None:
        """Ends it at once: Ray's library would try for long to end a Ray that does not answer."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)  # With what Ray started, its agents too.
        self.close()

    def close(self) -> None:
        """Ends it, all engines, and Ray if it was started here; waits seconds at most."""
        self._found = None
        # Another Ray would not know that they still have their GPUs.
        for calls in self._engine_calls.values():
            calls.hang_up()
        self._engine_calls.clear()
        if self._calls is not None:
            self._calls.hang_up()
            self._calls = None
        if self._process is not None:
            try:
                self._process.wait(END_LIMIT_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._process = None

    async def _is_sound(self) -> bool:
        if self._calls is None:
            return False
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                return bool(await self._calls.call("is_sound"))
        except (LinkLost, TimeoutError):
            return False

    async def _start(self) -> Resources:
        address = self._engines.address
        fix = start_fix(address)
        self._process, here = _start_process()
        self._calls = Calls(here, "Ray's process")
        try:
            async with asyncio.timeout(START_LIMIT_S):
                found = await self._calls.call("open", self._engines, self._cores)
        except LinkLost as error:
            raise SetupError(f"Ray does not start: {error}", fix=fix) from error
        except TimeoutError:
            what = "Ray does not start"
            if address is not None:
                what = f"--engines.address {address}: no Ray cluster answers"
            raise SetupError(f"{what} within {START_LIMIT_S:.0f} s", fix=fix) from None
        if isinstance(found, SetupFault):
            raise found.error()
        answer: Resources = found
        return answer


def _start_process() -> tuple["subprocess.Popen[bytes]", socket.socket]:
    here, there = socket.socketpair()
    with there:
        process = subprocess.Popen(
            [sys.executable, "-m", "miner.engines.ray_process", str(there.fileno())],
            pass_fds=(there.fileno(),),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl+C is for the front, which ends it in order.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
    return process, here


async def _connected(number: int, placed: Placed, secret: bytes) -> socket.socket:
    try:
        return await connect(placed.address, secret)
    except OSError as error:
        host, port = placed.address
        raise SetupError(
            f"engine {number} cannot be reached at {host}:{port}: {error.strerror or error}",
            fix="let the firewall of that machine take connections from this one, on all ports "
            "(docs/many-gpus.md)",
        ) from error


_LOGS = f"see the newest logs in {LOGS}"


def _share_of_cores() -> int:
    import ray

    here = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == here:
            resources = node["Resources"]
            return max(1, int(resources.get("CPU", 1) / max(1.0, resources.get("GPU", 1.0))))
    return 1
