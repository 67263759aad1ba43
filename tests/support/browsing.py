"""A headless Chromium, and a miner that serves it from another thread."""

import asyncio
import shutil
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, Page, sync_playwright

from generation.presets import preset
from miner.scheduling.candidates import CandidateLimits
from miner.score.log import ScoreLog
from miner.service import MinerService
from miner.transports.http.server import HttpTransport
from miner.transports.http.status import About
from scripts.free_port import free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
PATIENCE_MS = 45_000
"""How long a page may take for a step on a machine whose cores are all busy."""
_SOFTWARE_WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The browser of the system, with WebGL in software."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*_SOFTWARE_WEBGL])
        yield browser
        browser.close()


class WatchedPage:
    """A page of a browser context of its own.

    Args:
        browser: Gets the context.
        expected: Parts of console errors that are meant to appear.
        turning: Whether objects turn, which software WebGL pays with a core.
        options: Of the context, such as `viewport`.
    """

    def __init__(
        self, browser: Browser, *expected: str, turning: bool = False, **options: Any
    ) -> None:
        self._expected = expected
        motion: Literal["no-preference", "reduce"] = "no-preference" if turning else "reduce"
        self._context = browser.new_context(reduced_motion=motion, **options)
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", self._note)
        self._context.on("request", lambda request: self.requests.append(request.url))

    def _note(self, message: Any) -> None:
        text = f"{message.text} {message.location.get('url', '')}"
        if message.type in ("error", "warning") and not any(e in text for e in self._expected):
            self.errors.append(text)

    def close(self) -> None:
        self._context.close()


class ServedMiner:
    """A service on one engine and its HTTP transport, in an event loop of another thread.

    Args:
        folder: Of the score log.
        engine: Generates.
        ready: Whether it is warmed up at once.
        candidates: Pictures drawn for one request at most.
        settings: Of the transport.
    """

    def __init__(
        self,
        folder: Path,
        engine: Any,
        *,
        ready: bool = True,
        candidates: int = 1,
        **settings: Any,
    ) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.log = ScoreLog(folder)
        known = preset("embedded")
        self.service = MinerService(
            [engine],
            self.log,
            budget_s=60.0,
            margin_s=0.2,
            vocabulary=known.vocabulary,
            candidates=CandidateLimits(max=candidates),
        )
        about = About("embedded", known.knows, 60.0, candidates)
        self.transport = self.call(self._serve, settings, about)
        self.url = self.transport.url
        if ready:
            self.call(self.service.start)

    async def _serve(self, settings: dict[str, Any], about: About) -> HttpTransport:
        transport = HttpTransport(
            self.service, self.log, ip="127.0.0.1", port=free_port(), about=about, **settings
        )
        await transport.serve()
        return transport

    def call(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Any:
        """Runs a coroutine in the miner's loop and returns its result."""
        return asyncio.run_coroutine_threadsafe(function(*arguments), self._loop).result(60.0)

    def release(self, engine: Any) -> None:
        """Lets a fake engine go on, in its own loop."""
        self._loop.call_soon_threadsafe(engine.release.set)

    def close(self) -> None:
        for close in (self.service.drain, self.transport.close, self.service.close):
            self.call(close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.log.close()
