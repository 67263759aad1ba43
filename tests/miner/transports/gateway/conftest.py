"""What the tests of the gateway's worker share."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import pytest

P = ParamSpec("P")
T = TypeVar("T")


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads take no time: the virtual clock would jump while they work."""

    async def to_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return function(*args, **kwargs)

    monkeypatch.setattr(asyncio, "to_thread", to_thread)
