"""The page's files are served safely, and the bundled viewer is what the tree says."""

import hashlib
import json
import re
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

import pytest

from miner.web import CONTENT_SECURITY_POLICY, static_file
from tests.support.http_running import Running, running

WEB = Path(str(files("miner.web")))
BUNDLE_LIMIT = 2_500_000


@pytest.fixture
async def miner(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path, api_key="a key") as miner:
        yield miner


async def test_the_page_and_its_files_need_no_key(miner: Running) -> None:
    reply = await miner.ask("GET", "/")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    named = set(re.findall(rb'(?:src|href)="(/web/[^"]+)"', reply.body))
    assert named
    for name in (*named, *(f"/web/{path.name}".encode() for path in (WEB / "static").iterdir())):
        assert (await miner.ask("GET", name.decode())).status == 200, name


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("page.css", "text/css; charset=utf-8"),
        ("page.js", "text/javascript; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
        ("LICENSES.txt", "text/plain; charset=utf-8"),
    ],
)
async def test_each_file_has_its_type_and_strict_headers(
    miner: Running, name: str, media_type: str
) -> None:
    reply = await miner.ask("GET", f"/web/{name}")
    assert reply.body == static_file(name)
    assert reply.headers["content-type"] == media_type
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
    assert "unsafe-inline" not in CONTENT_SECURITY_POLICY
    assert "unsafe-eval'" not in CONTENT_SECURITY_POLICY.replace("'wasm-unsafe-eval'", "")


async def test_a_browser_that_has_a_file_gets_it_once(miner: Running) -> None:
    first = await miner.ask("GET", "/web/viewer.js")
    etag = first.headers["etag"]
    for known in (etag, f'"other", W/{etag}', "*"):
        reply = await miner.ask("GET", "/web/viewer.js", headers={"If-None-Match": known})
        assert (reply.status, reply.body) == (304, b""), known
        assert reply.headers["etag"] == etag
    changed = await miner.ask("GET", "/web/viewer.js", headers={"If-None-Match": '"other"'})
    assert changed.body == first.body
    head = await miner.ask("HEAD", "/web/viewer.js")
    assert (head.status, head.body) == (200, b"")


@pytest.mark.parametrize(
    "path",
    [
        "/web/nothing.js",
        "/web/",
        "/web/../__init__.py",
        "/web/..%2F__init__.py",
        "/web/%2e%2e/__init__.py",
        "/web/static/page.js",
        "/web//etc/passwd",
        "/web/page.js%00",
    ],
)
async def test_nothing_but_the_pages_files_can_be_read(miner: Running, path: str) -> None:
    reply = await miner.exchange(
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    )
    assert reply.status == 404


def test_the_bundle_was_built_from_the_source_beside_it() -> None:
    """Rebuild it with `npm ci && npm run build` in miner/web/viewer when this fails."""
    banner = static_file("viewer.js").partition(b"\n")[0].decode()
    source = hashlib.sha256((WEB / "viewer" / "viewer.js").read_bytes()).hexdigest()
    assert f"Built from viewer.js {source}" in banner
    wanted = json.loads((WEB / "viewer" / "package.json").read_text())["dependencies"]
    locked = json.loads((WEB / "viewer" / "package-lock.json").read_text())["packages"]
    licences = static_file("LICENSES.txt").decode()
    for name, version in wanted.items():
        assert locked[f"node_modules/{name}"]["version"] == version
        assert f"{name} {version}" in banner
        assert f"{name} {version} (MIT)" in licences


def test_the_page_is_small_and_names_no_other_host() -> None:
    contents = {path.name: path.read_bytes() for path in (WEB / "static").iterdir()}
    assert sum(map(len, contents.values())) < BUNDLE_LIMIT
    for name, content in contents.items():
        if name not in ("viewer.js", "LICENSES.txt"):
            assert set(re.findall(rb"https?://[^\s\"'<]+", content)) <= {
                b"http://www.w3.org/2000/svg"
            }, name
    assert b"registry." not in (WEB / "viewer" / "package-lock.json").read_bytes()
