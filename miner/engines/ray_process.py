"""Ray's library in a process of its own, started by `miner.engines.ray_engine`.

The library ends its process when Ray's control process or this machine's raylet dies: that must not
be the miner's.
"""

import asyncio
import importlib
import signal
import socket
import sys
from typing import Any

from miner.engines.calls import CallServer
from miner.engines.ray_cluster import (
    LOGS,
    Resources,
    answers,
    close_cluster,
    control_addresses,
    open_cluster,
)
from miner.engines.wire import Placed, SetupFault
from miner.logs import configure_logs
from miner.settings.engines import EnginesSettings
from protocol.errors import SetupError

AT_ONCE = 1000
"""Calls that an actor answers at once: more than are made."""


class Placer:
    """Places the processes of engines on the cluster."""

    def __init__(self) -> None:
        self._actors: dict[int, Any] = {}
        self._cores: dict[int, tuple[str, int]] = {}
        self._control: tuple[str, ...] = ()

    async def open(self, engines: EnginesSettings, cores: int | None) -> Resources | SetupFault:
        """See `open_cluster`."""
        try:
            found = open_cluster(engines, cores=cores)
            self._control = control_addresses()
            return found
        except SetupError as error:
            return SetupFault.of(error)

    async def is_sound(self) -> bool:
        """Whether Ray's control process and this machine's raylet take connections."""
        return await asyncio.to_thread(all, map(answers, self._control))

    async def place(
        self, number: int, actor: str, gpu: bool, secret: bytes, limit_s: float
    ) -> Placed | SetupFault:
        """Starts the process of an engine.

        Args:
            number: Of the process, never given before.
            actor: What runs there: module:class.
            gpu: Whether it takes a GPU; a core if not.
            secret: What front and engine recognise each other by.
            limit_s: Within how many seconds there has to be room for it.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        module, _, name = actor.partition(":")
        actor_class: Any = ray.remote(getattr(importlib.import_module(module), name))
        made = self._actors[number] = actor_class.options(
            num_cpus=0 if gpu else 1,
            num_gpus=1 if gpu else 0,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=AT_ONCE,
        ).remote()
        try:
            async with asyncio.timeout(limit_s):
                placed: Placed = await made.place.remote(secret, gpu)
                if not gpu:
                    await made.take_core.remote(self._free_core(number, placed.node))
        except TimeoutError:
            await self.end(number)
            what = "GPU" if gpu else "core"
            return SetupFault(
                f"no {what} of the Ray cluster was free within {limit_s:.0f} s",
                f"`ray status` shows what is taken; add a machine with `ray start`, or lower "
                f"--engines.count to the number of {what}s",
            )
        except RayError as error:
            await self.end(number)
            cause = f": {error.cause!r}" if isinstance(error, RayTaskError) else ""
            return SetupFault(
                f"its process ended at once{cause}",
                f"the newest logs of Ray are in {LOGS} on its machine",
            )
        return placed

    async def end(self, number: int) -> None:
        """Ends the process of an engine by SIGKILL."""
        self._cores.pop(number, None)
        actor = self._actors.pop(number, None)
        if actor is not None:
            import ray

            ray.kill(actor, no_restart=True)

    def _free_core(self, number: int, node: str) -> int:
        """Returns a core that no other engine of a machine has, and keeps it for this one."""
        taken = {core for machine, core in self._cores.values() if machine == node}
        free = next(core for core in range(len(taken) + 1) if core not in taken)
        self._cores[number] = (node, free)
        return free


async def _serve(connection: socket.socket) -> None:
    over = asyncio.Event()
    CallServer(connection, Placer(), over.set)
    await over.wait()
    if "ray" in sys.modules:
        close_cluster()


def main() -> None:
    """Serves a `Placer` on the connection whose number is the argument, until it is closed."""
    configure_logs("WARNING")  # Without the values of variables: secrets are among them.
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # The front decides when this ends. A handler, because programs inherit what is ignored.
        signal.signal(number, lambda *signal_and_frame: None)
    asyncio.run(_serve(connection))


if __name__ == "__main__":
    main()
