"""What the tests of the service share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.service_bench import Bench

MakeBench = Callable[..., Bench]


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
