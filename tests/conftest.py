"""What tests of several rooms share: one warm engine with the shipped networks.

torchvision's wheel declares its operators in a library that needs CUDA. Beside a torch for the CPU
alone, its import fails at the first operator that is missing, so these are declared here. Nothing
that is tested calls them.
"""

import asyncio
from collections.abc import Iterator, Mapping

import pytest
import torch

if not torch.version.cuda:
    _operators = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from generation.engine import Engine
from generation.presets import preset

LONG = ("tests/scripts/", "tests/neurons/")
"""Folders with the longest files, which go first, so that several processes end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


@pytest.fixture(scope="session")
def warm_up_seconds() -> dict[str, float]:
    """Seconds by cost key of the warm-up of `warm_engine`, once that has been asked for."""
    return {}


@pytest.fixture(scope="session")
def warm_engine(warm_up_seconds: dict[str, float]) -> Iterator[Engine]:
    """An engine of the preset `embedded`, started once for the whole run.

    It may be used from the event loop of any test, as long as no step runs beyond that test's end.
    """
    engine = Engine(preset("embedded"), progress=False)

    async def warm() -> Mapping[str, float]:
        await engine.start()
        return await engine.warm_up()

    warm_up_seconds |= asyncio.run(warm())
    yield engine
    asyncio.run(engine.close())
