"""One browser for the tests of the page."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.support.browsing import CHROMIUM, PATIENCE_MS, WatchedPage, chromium

expect.set_options(timeout=PATIENCE_MS)

OpenPage = Callable[..., WatchedPage]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt install chromium")
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Opens pages whose errors and requests are looked at in the end."""
    opened: list[WatchedPage] = []

    def new(url: str, *expected: str, **options: Any) -> WatchedPage:
        opened.append(WatchedPage(browser, *expected, **options))
        opened[-1].page.goto(url)
        return opened[-1]

    yield new
    for page in opened:
        page.close()
