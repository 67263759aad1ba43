"""What the tests of the service share."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn.server

from tests.support.service_bench import Bench

MakeBench = Callable[..., Bench]


@pytest.fixture(scope="session", autouse=True)
def servers_close_at_once() -> Iterator[None]:
    """uvicorn asks 10 times a second whether it should end, and waits twice; here 200 times."""

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds / 20)

    with pytest.MonkeyPatch.context() as patch:
        brisk = SimpleNamespace(**vars(asyncio))
        brisk.sleep = sleep
        patch.setattr(uvicorn.server, "asyncio", brisk)
        yield


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[MakeBench]:
    """Makes benches; those after the first continue with its files, as after a restart."""
    benches: list[Bench] = []

    def make(*engines: Any, **settings: Any) -> Bench:
        for bench in benches:
            bench.close()
        benches[:] = [Bench(tmp_path, engines or None, **settings)]
        return benches[0]

    yield make
    for bench in benches:
        bench.close()


@pytest.fixture
def bench(make_bench: MakeBench) -> Bench:
    """A service that is not started yet."""
    return make_bench()
