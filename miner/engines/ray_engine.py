"""Engines as Ray actors: one process for each GPU, on this machine or on others.

Ray places the processes, carries calls and values, and notices when one ends. Everything else is
ours: the queue, the choice of the engine, when a lost one is started again.
"""

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError, RayTaskError

from generation.settings import GenerationSettings
from miner.engines.host import EngineHost
from miner.engines.joining import Identity
from miner.engines.link import Link, LinkLost
from miner.engines.wire import Message, Order, SetupFault
from protocol.errors import SetupError

T = TypeVar("T")

PLACED_S = 30.0
"""Within how many seconds Ray has to find a place for an engine, and to start its process."""

LOG_LEVEL = "INFO"

AT_ONCE = 1000
"""Calls that an actor answers at once: more than the front makes."""


class EngineActor(EngineHost):
    """An `EngineHost` as an actor.

    Args:
        core: See `EngineHost`; None on a GPU, where it takes its share of the cores.
    """

    def __init__(self, core: int | None) -> None:
        os.environ["OMP_NUM_THREADS"] = str(_share_of_cores()) if core is None else "1"
        super().__init__(core)

    async def place(self) -> tuple[str, int]:
        """Returns the name of its machine, and the number of its process there."""
        self.send_log(LOG_LEVEL)
        return socket.gethostname(), os.getpid()


class RayLink:
    """The way to one actor; see `Link`.

    Args:
        actor: The handle.
        machine: Its name.
        process: Its number on that machine.
    """

    def __init__(self, actor: Any, machine: str, process: int) -> None:
        self._actor = actor
        self.process = process
        self.place = f"{machine}, process {process}"

    async def identify(self, settings: str, models_dir: str | None) -> Identity | SetupFault:
        """See `Link`."""
        answer: Identity | SetupFault
        answer = await _answer(self._actor.identify.remote(settings, models_dir))
        return answer

    async def load(self, settings: str, models_dir: str | None) -> str | SetupFault:
        """See `Link`."""
        answer: str | SetupFault = await _answer(self._actor.load.remote(settings, models_dir))
        return answer

    async def warm_up(self) -> Mapping[str, float] | SetupFault:
        """See `Link`."""
        answer: Mapping[str, float] | SetupFault = await _answer(self._actor.warm_up.remote())
        return answer

    async def echo(self, size: int) -> NDArray[np.uint8]:
        """See `Link`."""
        answer: NDArray[np.uint8] = await _answer(self._actor.echo.remote(size))
        return answer

    async def poll(self) -> list[Message]:
        """See `Link`."""
        answer: list[Message] = await _answer(self._actor.poll.remote())
        return answer

    def run(self, order: Order) -> None:
        """See `Link`; `poll` raises if the actor is gone."""
        self._actor.run.remote(order)

    def cancel(self, run: int) -> None:
        """See `Link`."""
        self._actor.cancel.remote(run)

    def kill(self) -> None:
        """See `Link`."""
        ray.kill(self._actor, no_restart=True)


def opener(
    settings: GenerationSettings, number: int, actor_type: type[EngineActor] = EngineActor
) -> Callable[[], Awaitable[Link]]:
    """Returns what starts the process of an engine.

    Args:
        settings: The preset; on a CPU, the engine takes one core.
        number: Of the engine, from 0.
        actor_type: What runs in the process.
    """
    gpu = settings.device.startswith("cuda")
    options = {"num_cpus": 0, "num_gpus": 1} if gpu else {"num_cpus": 1, "num_gpus": 0}

    async def open_link() -> Link:
        actor_class: Any = ray.remote(actor_type)
        actor = actor_class.options(
            **options, max_restarts=0, max_task_retries=0, max_concurrency=AT_ONCE
        ).remote(None if gpu else number)
        try:
            async with asyncio.timeout(PLACED_S):
                machine, process = await _answer(actor.place.remote())
        except TimeoutError:
            ray.kill(actor, no_restart=True)
            what = "GPU" if gpu else "core"
            raise SetupError(
                f"no {what} of the Ray cluster is free for engine {number} within {PLACED_S:.0f} s",
                fix=f"`ray status` shows what is taken; add a machine with `ray start`, or lower "
                f"--engines.count to the number of {what}s",
            ) from None
        except BaseException as error:
            ray.kill(actor, no_restart=True)
            if isinstance(error, LinkLost):
                raise SetupError(
                    f"the process of engine {number} ended at once: {error}",
                    fix="the newest logs of Ray are in /tmp/ray/session_latest/logs there",
                ) from error
            raise
        return RayLink(actor, machine, process)

    return open_link


async def _answer(reference: Any) -> Any:
    try:
        return await reference
    except RayError as error:
        raise LinkLost(_in_words(error)) from None


def _in_words(error: RayError) -> str:
    if isinstance(error, RayTaskError):
        cause = error.cause
        return f"{type(cause).__name__}: {cause}".splitlines()[0]
    lines = str(error).splitlines() or [type(error).__name__]
    detail = next((line for line in lines if "exit detail" in line), "").partition("detail: ")[2]
    return " ".join((lines[0], detail.partition(" Some common")[0])).strip()


def _share_of_cores() -> int:
    here = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == here:
            resources = node["Resources"]
            return max(1, int(resources.get("CPU", 1) / max(1.0, resources.get("GPU", 1.0))))
    return 1
