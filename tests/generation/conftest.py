"""The shipped networks of preset embedded."""

import pytest

from generation.model_store import ModelPaths, locate_models
from generation.presets import preset


@pytest.fixture(scope="session")
def embedded_paths() -> ModelPaths:
    return locate_models(preset("embedded"))
