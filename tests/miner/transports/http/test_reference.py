"""The API's page: drawn in a browser from the package alone, under a strict policy."""

from pathlib import Path

import pytest

from miner.transports.http import reference
from miner.transports.http.operations import OPERATIONS
from tests.support.browsing import CHROMIUM, ServedMiner, WatchedPage, chromium
from tests.support.fakes import FakeEngine
from tests.support.http_running import running


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt install chromium")
def test_a_browser_shows_every_operation_and_asks_nobody_else(tmp_path: Path) -> None:
    miner = ServedMiner(tmp_path, FakeEngine(), api_key="k")
    try:
        with chromium() as browser:
            watched = WatchedPage(browser)
            watched.page.goto(f"{miner.url}/docs")
            for operation in OPERATIONS:
                watched.page.get_by_role("heading", name=operation.title).wait_for()
            watched.close()
    finally:
        miner.close()
    assert watched.errors == []
    assert all(url.startswith((f"{miner.url}/", "data:")) for url in watched.requests)
    assert f"{miner.url}/openapi.json" in watched.requests


async def test_the_page_runs_its_own_scripts_only_and_cannot_be_framed(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        page = await miner.ask("GET", "/docs")
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        policy = page.headers["content-security-policy"]
        for rule in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"):
            assert rule in policy
        assert b"<script>" not in page.body
        assert page.headers["x-content-type-options"] == "nosniff"


async def test_a_browser_that_has_the_script_is_not_sent_it_again(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        first = await miner.ask("GET", "/docs/redoc.js")
        assert first.status == 200
        known = {"If-None-Match": first.headers["etag"]}
        again = await miner.ask("GET", "/docs/redoc.js", headers=known)
        assert (again.status, again.body) == (304, b"")
        for name in ("__init__.py", "..%2fserver.py", "README.md", "x"):
            assert (await miner.ask("GET", f"/docs/{name}")).status == 404


def test_what_is_bundled_names_its_version_its_source_and_its_licences() -> None:
    folder = Path(reference.__file__).parent
    script = (folder / "redoc.js").read_text(encoding="utf-8")
    assert 'Version: "2.5.4"' in (folder / "redoc.LICENSE.txt").read_text(encoding="utf-8")
    assert "MIT License" in (folder / "redoc.LICENSE.txt").read_text(encoding="utf-8")
    assert "redoc@2.5.4" in (folder / "README.md").read_text(encoding="utf-8")
    assert "cdn.redoc" not in script
    assert len(script) < 1_500_000
