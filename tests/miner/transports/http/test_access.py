"""Who may use the port: the key, foreign web pages, foreign names."""

from pathlib import Path

import pytest
from starlette.datastructures import Headers

from miner.assembly import _http
from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from miner.transports.http.access import ApiKey, OwnPages, check_hosts
from miner.transports.http.server import HttpTransport
from protocol.errors import SetupError
from scripts.free_port import free_port
from tests.support.http_running import running

HERE = {"host": "localhost:8093"}


def refused(pages: OwnPages, method: str, headers: dict[str, str]) -> str | None:
    refusal = pages.refusal(method, Headers(headers))
    return None if refusal is None else refusal.code


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:8093", "LocalHost.", "127.0.0.1:1", "127.3.2.1", "[::1]:8093", ""],
)
def test_this_machine_has_these_names(host: str) -> None:
    assert refused(OwnPages("127.0.0.1"), "POST", {"host": host}) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8093",
        "localhost.evil.example",
        "2001:db8::1",
        "192.0.2.1:8093",
        "127.0.0.1.evil.example",
        "127.0.0.1@evil.example",
        "evil.example@127.0.0.1",
        "127.0.0.1:99999",
        "127.0.0.1/",
        "[::1",
        "\x1b[2J",
        "\u00e9.example",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "BREW"])
def test_a_name_that_is_made_to_point_here_is_refused(host: str, method: str) -> None:
    pages = OwnPages("127.0.0.1")
    assert refused(pages, method, {"host": host}) == "foreign_host"
    own = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    assert refused(pages, method, own) == "foreign_host"


def test_a_program_may_use_a_name_without_a_dot_such_as_a_containers() -> None:
    pages = OwnPages("127.0.0.1")
    assert refused(pages, "POST", {"host": "miner:8093"}) is None
    for mark in ({"origin": "http://miner:8093"}, {"sec-fetch-site": "same-origin"}):
        assert refused(pages, "POST", {"host": "miner:8093", **mark}) == "foreign_host"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, None),  # curl and other programs.
        ({"origin": "http://localhost:8093", "sec-fetch-site": "same-origin"}, None),
        ({"origin": "HTTP://LOCALHOST:8093"}, None),
        ({"sec-fetch-site": "none"}, None),
        ({"sec-fetch-site": "same-origin"}, None),
        ({"origin": "https://evil.example"}, "foreign_origin"),
        ({"origin": "http://localhost:3000"}, "foreign_origin"),
        ({"origin": "http://127.0.0.1:8093"}, "foreign_origin"),
        ({"origin": "http://localhost"}, "foreign_origin"),
        ({"origin": "null"}, "foreign_origin"),
        ({"origin": ""}, "foreign_origin"),
        ({"origin": "file://"}, "foreign_origin"),
        ({"origin": "chrome-extension://localhost:8093"}, "foreign_origin"),
        ({"origin": "http://localhost:8093/evil"}, "foreign_origin"),
        ({"origin": "http://localhost:8093@evil.example"}, "foreign_origin"),
        ({"origin": "http://[::1"}, "foreign_origin"),
        ({"sec-fetch-site": "cross-site"}, "foreign_origin"),
        ({"sec-fetch-site": "same-site"}, "foreign_origin"),
        ({"sec-fetch-site": "\x00"}, "foreign_origin"),
    ],
)
def test_only_programs_and_the_own_page_may_post(headers: dict[str, str], code: str | None) -> None:
    pages = OwnPages("127.0.0.1")
    assert refused(pages, "POST", {**HERE, **headers}) == code
    assert refused(pages, "DELETE", {**HERE, **headers}) == code
    assert refused(pages, "GET", {**HERE, **headers}) is None  # A link on any page is no harm.


def test_two_origins_must_both_be_own() -> None:
    raw = [(b"host", b"localhost"), (b"origin", b"http://localhost"), (b"origin", b"http://evil")]
    refusal = OwnPages("127.0.0.1").refusal("POST", Headers(raw=raw))
    assert refusal is not None


def test_the_port_of_a_scheme_needs_not_be_written() -> None:
    pages = OwnPages("127.0.0.1", ["miner.example"])
    for origin, host in (
        ("https://localhost", "localhost:443"),
        ("http://localhost:80", "localhost"),
        ("https://miner.example", "localhost:8093"),  # A proxy changed the Host.
    ):
        assert refused(pages, "POST", {"host": host, "origin": origin}) is None


def test_a_listed_name_is_own() -> None:
    pages = OwnPages("127.0.0.1", [" Miner.Example. "])
    assert refused(pages, "POST", {"host": "miner.example:8093"}) is None
    assert refused(pages, "POST", {"host": "other.example"}) == "foreign_host"


def test_beyond_this_machine_programs_use_any_name_and_pages_an_address_or_a_listed_name() -> None:
    pages = OwnPages("0.0.0.0", ["miner.example"])
    for host in ("pod-10006.proxy.example", "192.0.2.1:8093", "[2001:db8::1]", "miner.example"):
        assert refused(pages, "POST", {"host": host}) is None
        origin = {"host": host, "origin": f"http://{host}"}
        expected = "foreign_host" if "proxy" in host else None
        assert refused(pages, "POST", origin) == expected
        assert refused(pages, "POST", {"host": host, "origin": "http://evil"}) is not None


@pytest.mark.parametrize("host", ["http://miner.example", "miner.example:80", "a/b", "a b:c", ""])
def test_an_entry_that_is_no_host_name_is_refused_at_start(host: str) -> None:
    with pytest.raises(SetupError, match="not the name of a host") as error:
        check_hosts([host])
    assert "--http.hosts" in error.value.fix
    check_hosts(["miner.example", "192.0.2.1", "::1", "[::1]"])


@pytest.mark.parametrize(
    ("headers", "opens"),
    [
        ([("x-api-key", "k\u00e9y")], True),
        ([("authorization", "Bearer k\u00e9y")], True),
        ([("authorization", "bEARER   k\u00e9y ")], True),
        # A proxy's own token beside the key, on either side.
        ([("authorization", "Bearer proxy"), ("x-api-key", "k\u00e9y")], True),
        ([("authorization", "Bearer k\u00e9y"), ("x-api-key", "proxy")], True),
        ([("authorization", "Basic cHJveHk="), ("x-api-key", "k\u00e9y")], True),
        ([("authorization", "Bearer proxy"), ("authorization", "Bearer k\u00e9y")], True),
        ([("x-api-key", "proxy"), ("x-api-key", "k\u00e9y")], True),
        ([("authorization", "Bearer proxy")], False),
        ([("authorization", "Basic k\u00e9y")], False),
        ([("authorization", "k\u00e9y")], False),
        ([("x-api-key", "k\u00e9y2")], False),
        ([("x-api-key", "ky")], False),
        ([("x-api-key", "")], False),
        ([("cookie", "k\u00e9y")], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_the_key_opens_in_either_header_and_either_encoding(
    headers: list[tuple[str, str]], opens: bool, encoding: str
) -> None:
    raw = [(name.encode(), value.encode(encoding)) for name, value in headers]
    assert ApiKey(" k\u00e9y\n").is_in(Headers(raw=raw)) == opens


def test_a_key_outside_latin_1_opens_too() -> None:
    key = "ключ"
    assert ApiKey(key).is_in(Headers(raw=[(b"x-api-key", key.encode())]))
    assert not ApiKey(key).is_in(Headers(raw=[(b"x-api-key", b"")]))
    assert not ApiKey(key).is_in(Headers(raw=[(b"x-api-key", b"????")]))


async def test_a_foreign_page_is_told_why_and_logged_and_makes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        data = {"prompt": "a blue cube"}
        page = await miner.post(data=data, headers={"Origin": "https://evil.example"})
        assert page.status == 403
        assert "comes from the web page https://evil.example" in page.message
        name = await miner.post(data=data, headers={"Host": "evil.example"})
        assert name.status == 403
        assert "--http.hosts" in name.message
        codes = [line["reason_code"] for line in miner.events("refused")]
        assert codes == ["foreign_origin", "foreign_host"]
        assert miner.engine.ran == []
        own = await miner.post(data=data, headers={"Origin": miner.transport.url})
        assert own.status == 200


async def test_the_names_of_the_settings_are_own(tmp_path: Path) -> None:
    file = tmp_path / "miner.yaml"
    file.write_text("http:\n  hosts: [a.example, B.example]\n")
    for argv in (["--http.hosts", "a.example, B.example"], ["--config", str(file)]):
        config = read_settings(
            MinerConfig,
            prog="miner",
            env_prefix="MINER",
            argv=["--chain.file", "n.json", "--http.port", str(free_port()), *argv],
            environ={},
        )
        async with running(tmp_path) as miner:
            await miner.transport.close()
            transport = _http(config, miner.service, miner.log)
            assert isinstance(transport, HttpTransport)
            miner.transport = transport
            await miner.transport.serve()
            for host, status in (("b.example", 200), ("c.example", 403)):
                reply = await miner.post(data={"prompt": "a cube"}, headers={"Host": host})
                assert reply.status == status


async def test_with_a_key_the_key_decides(tmp_path: Path) -> None:
    async with running(tmp_path, api_key="k") as miner:
        headers = {"Origin": "https://app.example", "Host": "miner.example"}
        data = {"prompt": "a blue cube"}
        assert (await miner.post(data=data, headers=headers)).status == 401
        assert (await miner.post(data=data, headers={**headers, "X-API-Key": "k"})).status == 200
        preflight = await miner.ask("OPTIONS", "/generate", headers=headers)
        assert preflight.status == 405
        assert not any("access-control" in name.lower() for name in preflight.headers)
