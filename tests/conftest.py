"""What tests of several rooms share: one warm engine with the shipped networks."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
import torch

from generation.engine import Engine
from generation.presets import preset

SHARE_ENGINE = (
    "tests/miner/web/test_page.py",
    "tests/generation/test_embedded_end_to_end.py",
    "tests/generation/test_engine_end_to_end.py",
    "tests/miner/transports/http/test_generate.py",
)
"""Files that use the warm engine. They run in one process, so that it starts once."""

LONG = (*SHARE_ENGINE, "tests/docs/", "tests/scripts/", "tests/neurons/")
"""Where the longest files are; they go first, so that several processes end together."""


def _declare_operators() -> Iterator[torch.library.Library]:
    """Lets torchvision's wheel of PyPI, which needs CUDA, be imported beside a torch without it.

    Its own library, which declares its operators, is then not loaded, and the import fails at the
    first operator that is missing. Nothing that is tested calls one.
    """
    try:
        needs_cuda = not version("torchvision").endswith("+cpu")
    except PackageNotFoundError:
        return
    if needs_cuda and not torch.version.cuda:
        operators = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            operators.define(schema)  # type: ignore[no-untyped-call]
        yield operators


_OPERATORS = tuple(_declare_operators())
"""Declared for as long as this is kept."""


def pytest_configure(config: pytest.Config) -> None:
    _time_no_examples()
    if _only_cuda(config) and not torch.cuda.is_available():
        raise pytest.UsageError(
            f"no test was run: torch {torch.__version__} finds no CUDA device (nvidia-smi shows "
            "the machine's; a build of torch without CUDA sees none)"
        )


def _time_no_examples() -> None:
    """Lets Hypothesis take its time: on a machine that many share, one example may be held up.

    What must be fast says so in CPU seconds, and pytest ends a test that hangs.
    """
    with contextlib.suppress(ImportError):  # The machine for `-m cuda` may not have it.
        from hypothesis import HealthCheck, settings

        settings.register_profile(
            "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow]
        )
        settings.load_profile("untimed")


def _only_cuda(config: pytest.Config) -> bool:
    return bool(config.getoption("markexpr") == "cuda")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m cuda`, leaves out what holds no such test, and may need libraries that are missing.

    A folder's `conftest.py` is imported with the folder.
    """
    if not _only_cuda(config):
        return None
    if collection_path.is_dir():
        files = list(collection_path.rglob("test_*.py"))
    else:
        files = [collection_path]
    return None if any("mark.cuda" in file.read_text() for file in files) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        places = (number for number, start in enumerate(LONG) if item.nodeid.startswith(start))
        return next(places, len(LONG))

    items.sort(key=place)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deals out the files of `SHARE_ENGINE` as one."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    scheduler = LoadFileScheduling(config, log)
    file_of = scheduler._split_scope
    scheduler._split_scope = lambda nodeid: (
        SHARE_ENGINE[0] if nodeid.startswith(SHARE_ENGINE) else file_of(nodeid)
    )
    return scheduler


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


@pytest.fixture
def no_pins(monkeypatch: pytest.MonkeyPatch) -> None:
    """This version pins no files: small ones may take the place of the published weights."""
    monkeypatch.setattr("generation.weights.store.shipped_pins", dict)
