"""What the tests of the gateway's worker share."""

import pytest

from tests.support.virtual_time import threads_take_no_time


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads take no time."""
    threads_take_no_time(monkeypatch)
