"""The stand-in networks of preset embedded, written once for all tests."""

from collections.abc import Iterator

import pytest

from generation import embedded
from generation.model_store import ModelPaths


@pytest.fixture(scope="session")
def embedded_paths(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelPaths]:
    """Where the stand-ins lie; the cache folder points there while any test needs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield embedded.ensure()
