"""On a CPU, one thread of an engine computes with several cores, and the others with one."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from generation.acceleration import streams
from generation.engine import _prepare_thread
from generation.stage import CPU, CUTOUT, GPU, SCORE, SPLATS


@pytest.fixture(autouse=True)
def five_cores(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.setattr(streams, "_CORES", 5)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("lane", "cores"), [(GPU, 5), (CUTOUT, 1), (SPLATS, 1), (SCORE, 1), (CPU, 3)]
)
def test_the_lane_of_the_large_networks_alone_computes_with_several_cores(
    lane: str, cores: int
) -> None:
    torch.set_num_threads(3)
    with ThreadPoolExecutor(1, initializer=partial(_prepare_thread, lane, "cpu")) as thread:
        assert thread.submit(torch.get_num_threads).result() == cores


def test_a_lane_keeps_its_cores_when_another_takes_one() -> None:
    first, second, third = (
        ThreadPoolExecutor(1, initializer=partial(_prepare_thread, lane, "cpu"))
        for lane in (GPU, CUTOUT, GPU)
    )
    with first, second, third:
        found = [t.submit(torch.get_num_threads).result() for t in (first, second, first, third)]
    assert found == [5, 1, 5, 5]
