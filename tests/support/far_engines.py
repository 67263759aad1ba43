"""Engines beyond a link in one process: the real host and front, and a fake that can die."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from generation.engine import Engine
from generation.presets import preset
from generation.result import Generation
from generation.settings import GenerationSettings, ScoringSettings
from miner.engines import EngineLost, RemoteEngine
from miner.engines.host import EngineHost
from miner.engines.joining import Identity
from miner.engines.link import Link, LinkLost
from miner.engines.remote import LinkedEngine
from miner.engines.wire import Message, Order, SetupFault
from protocol.errors import SetupError
from tests.support.fake_stages import FakeStages
from tests.support.fakes import FakeEngine


def far_settings(scorer: Literal["none", "embedded"] = "none") -> GenerationSettings:
    """The preset `embedded`, with two denoising steps at the best rung."""
    base = preset("embedded")
    drawing = base.text_to_image.model_copy(update={"steps": 2})
    scoring = ScoringSettings(scorer=scorer)
    return base.model_copy(update={"text_to_image": drawing, "scoring": scoring, "rungs": ()})


class HostLink:
    """A link to a host in this process.

    Attributes:
        stages: What its engine does.
        identity: What the host says that it is, if not the truth.
        silent: Whether polls stay without an answer.
        delay_s: Seconds that orders and messages take.
        killed: Whether the front has ended it.
    """

    place = "here"

    def __init__(
        self, stages: FakeStages, clock: Callable[[], float], delay_s: float = 0.0
    ) -> None:
        self.stages = stages
        self.identity: Identity | SetupFault | None = None
        self.silent = False
        self.delay_s = delay_s
        self.killed = False
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.orders: list[Order] = []
        self.host = EngineHost(make_engine=self._engine, clock=clock, leave=self.die)
        self._clock = clock

    def _engine(self, settings: GenerationSettings, models_dir: Path | None) -> Engine:
        return Engine(
            settings,
            functions=self.stages.functions(),
            remembers=self.stages.remembers,
            progress=False,
            clock=self._clock,
        )

    async def identify(self, settings: str, models_dir: str | None) -> Identity | SetupFault:
        return self.identity or await self.host.identify(settings, models_dir)

    async def load(self, settings: str, models_dir: str | None) -> str | SetupFault:
        return await self.host.load(settings, models_dir)

    async def warm_up(self) -> Mapping[str, float] | SetupFault:
        return await self.host.warm_up()

    async def echo(self, size: int) -> NDArray[np.uint8]:
        await asyncio.sleep(self.delay_s)
        return await self.host.echo(size)

    async def poll(self) -> list[Message]:
        if self.silent:
            await self.lost
        polling = asyncio.ensure_future(self.host.poll())
        ends: set[asyncio.Future[Any]] = {polling, self.lost}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if self.lost.done():
            polling.cancel()
            raise LinkLost("the process was killed")
        await asyncio.sleep(self.delay_s)
        return await polling

    def run(self, order: Order) -> None:
        self.orders.append(order)
        asyncio.get_running_loop().call_later(
            self.delay_s, lambda: asyncio.ensure_future(self.host.run(order))
        )

    def cancel(self, run: int) -> None:
        asyncio.get_running_loop().call_later(
            self.delay_s, lambda: asyncio.ensure_future(self.host.cancel(run))
        )

    def kill(self) -> None:
        self.killed = True
        self.die()

    def die(self) -> None:
        """Ends the process, as SIGKILL would."""
        if not self.lost.done():
            self.lost.set_result(None)


class FarEngine(LinkedEngine):
    """A linked engine whose links the test can reach.

    Attributes:
        links: Of every start, the last one the present.
        refusal: What the next starts raise.
    """

    def __init__(
        self,
        name: str = "far",
        *,
        clock: Callable[[], float],
        stages: FakeStages | None = None,
        settings: GenerationSettings | None = None,
        delay_s: float = 0.0,
    ) -> None:
        self.links: list[HostLink] = []
        self.refusal: SetupError | None = None
        self._make: Callable[[], HostLink] = lambda: HostLink(
            stages or FakeStages(), clock, delay_s
        )
        super().__init__(settings or far_settings(), self._open, name=name, clock=clock)

    @property
    def link(self) -> HostLink:
        """The last one, also if it is lost."""
        return self.links[-1]

    def _open(self) -> Awaitable[Link]:
        async def opened() -> Link:
            if self.refusal is not None:
                raise self.refusal
            self.links.append(self._make())
            return self.link

        return opened()


class MortalEngine(FakeEngine, RemoteEngine):
    """A fake engine in a process of its own, which the test ends.

    Attributes:
        starts: How often it was started.
        refusal: What the next starts raise.
        start_s: What a start takes.
    """

    def __init__(self, name: str = "mortal", **settings: object) -> None:
        FakeEngine.__init__(self, name=name, **settings)  # type: ignore[arg-type]
        RemoteEngine.__init__(self)
        self.takes_time = True
        self.starts = 0
        self.refusal: SetupError | None = None
        self.start_s = 1.0
        self._dead = asyncio.Event()

    async def start(self) -> None:
        await asyncio.sleep(self.start_s)
        if self.refusal is not None:
            raise self.refusal
        self.starts += 1
        self._dead = asyncio.Event()

    async def run(self, *args: Any, **values: Any) -> Generation:
        dead = asyncio.ensure_future(self._dead.wait())
        running = asyncio.ensure_future(super().run(*args, **values))
        ends: set[asyncio.Future[Any]] = {running, dead}
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not running.done():
                raise EngineLost("killed")
            return await running
        finally:
            running.cancel()
            dead.cancel()

    def die(self) -> None:
        """Ends its process."""
        self._dead.set()
        self.on_lost("killed")
