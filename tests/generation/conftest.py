"""What several tests need: the shipped networks, stages that obey, the lines of the log."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from generation.presets import preset
from generation.weights.store import ModelPaths, locate_models
from tests.support.fake_stages import FakeStages
from tests.support.tiny_networks import save_tiny_klein


@pytest.fixture(scope="session")
def embedded_paths() -> ModelPaths:
    return locate_models(preset("embedded"))


@pytest.fixture(scope="session")
def tiny_klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A FLUX.2-klein of 360,000 random weights as its download looks."""
    return save_tiny_klein(tmp_path_factory.mktemp("klein"))


@pytest.fixture
def fakes() -> FakeStages:
    return FakeStages()


@pytest.fixture
def log() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{level} {message}")
    yield lines
    logger.remove(sink)
