"""Making the engines that the settings ask for."""

import asyncio
import sys
from types import ModuleType

import pytest

from generation.presets import preset
from miner.engines.making import make_engines
from miner.settings.engines import EnginesSettings


async def test_sigterm_while_ray_starts_gives_the_start_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's handler of SIGTERM raises SystemExit, which would end the event loop at once."""

    def init(**settings: object) -> None:
        sys.exit(15)

    ray = ModuleType("ray")
    monkeypatch.setattr(ray, "init", init, raising=False)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setattr("miner.engines.ray_cluster.prepare", lambda *, own: None)
    monkeypatch.setattr("miner.engines.ray_cluster.require_ray", lambda: "2")

    async def make() -> None:
        make_engines(EnginesSettings(kind="ray", count=1), preset("embedded"), None)

    making = asyncio.create_task(make())
    await asyncio.wait({making})
    assert making.cancelled()
