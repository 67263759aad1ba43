import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from miner.doctor.findings import Status, Verdict, carry_out
from miner.doctor.network import (
    clock_ahead,
    judge_clock,
    judge_connection,
    listeners,
    measure_clock,
    network_checks,
)
from miner.mock_validator.local_subnet import LocalSubnet, create_local_subnet
from miner.settings.miner import ChainSettings, MinerConfig
from miner.settings.reader import read_settings
from scripts.free_port import free_port

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")


@pytest.fixture(scope="module")
def subnet(tmp_path_factory: pytest.TempPathFactory) -> LocalSubnet:
    return create_local_subnet(tmp_path_factory.mktemp("subnet"), port=free_port())


@pytest.fixture
def config(subnet: LocalSubnet) -> Callable[..., MinerConfig]:
    def make(*arguments: str) -> MinerConfig:
        argv = [
            *("--chain.file", str(subnet.neurons_file), "--wallet.path", str(subnet.wallets)),
            *("--wallet.name", "miner", "--axon.ip", "127.0.0.1", "--axon.port", str(free_port())),
            *("--http.port", str(free_port()), *arguments),
        ]
        return read_settings(MinerConfig, prog="x", env_prefix="MINER", argv=argv, environ={})

    return make


@pytest.fixture
def web() -> Iterator[Any]:
    """A web server whose answers the test chooses."""

    class Handler(BaseHTTPRequestHandler):
        date: str | None = None
        body = b""

        def do_GET(self) -> None:  # The library's name.
            self.send_response_only(200)
            if self.date is not None:
                self.send_header("Date", self.date)
            self.end_headers()
            self.wfile.write(self.body)

        do_HEAD = do_GET  # noqa: N815

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


async def look(name: str, settings: MinerConfig, **arguments: Any) -> Verdict:
    (check,) = [check for check in network_checks(settings, **arguments) if check.name == name]
    return (await carry_out(check)).verdict


def test_what_listens_follows_the_transports(config: Callable[..., MinerConfig]) -> None:
    assert [listener.name for listener in listeners(config())] == ["axon"]
    assert [listener.name for listener in listeners(config("--transports", "http"))] == ["http"]
    both = listeners(config("--transports", "push,pull,http"))
    assert [listener.name for listener in both] == ["axon", "http"]
    measured = listeners(config("--transports", "http", "--metrics.port", "9111"))
    assert [(each.name, each.port) for each in measured][1:] == [("metrics", 9111)]
    assert listeners(config("--transports", "pull")) == []


@pytest.mark.parametrize(
    ("ahead", "uncertainty", "status"),
    [
        (0.3, 0.6, Status.OK),
        (-4.4, 0.6, Status.OK),
        (4.7, 0.6, Status.FAILED),
        (-3600.0, 0.6, Status.FAILED),
    ],
)
def test_the_clock(ahead: float, uncertainty: float, status: Status) -> None:
    verdict = judge_clock(ahead, uncertainty, "example.org")
    assert verdict.status is status
    assert ("ahead of" in verdict.found) is (ahead > 0)


def test_a_date_is_somewhere_in_its_second() -> None:
    date = datetime(2026, 1, 1, tzinfo=UTC)
    now = date.timestamp()
    assert clock_ahead(now + 0.4, now + 0.6, now) == pytest.approx((0.0, 0.6))
    assert clock_ahead(now + 9.0, now + 10.0, now) == pytest.approx((9.0, 1.0))


async def test_the_clock_is_compared_with_a_web_server(
    web: Any, config: Callable[..., MinerConfig]
) -> None:
    host = f"127.0.0.1:{web.server_port}"
    web.RequestHandlerClass.date = "Thu, 01 Jan 2026 00:00:00 GMT"
    ahead, uncertainty = measure_clock(host)
    assert ahead + datetime(2026, 1, 1, tzinfo=UTC).timestamp() == pytest.approx(
        datetime.now(UTC).timestamp(), abs=2.0
    )
    assert 0.5 <= uncertainty < 1.5
    assert (await look("clock", config(), time_host=host)).status is Status.FAILED


@pytest.mark.parametrize("date", [None, "yesterday"])
async def test_a_clock_that_nobody_tells_is_not_checked(
    web: Any, config: Callable[..., MinerConfig], date: str | None
) -> None:
    web.RequestHandlerClass.date = date
    verdict = await look("clock", config(), time_host=f"127.0.0.1:{web.server_port}")
    assert verdict.status is Status.UNCHECKED
    verdict = await look("clock", config(), time_host=f"127.0.0.1:{free_port()}")
    assert (verdict.status, "ConnectionRefusedError" in verdict.found) == (Status.UNCHECKED, True)


async def test_wallet_and_registration(
    subnet: LocalSubnet, config: Callable[..., MinerConfig]
) -> None:
    checks = {check.name: check for check in network_checks(config())}
    wallet = (await carry_out(checks["wallet"])).verdict
    assert (wallet.status, subnet.miner_hotkey in wallet.found) == (Status.OK, True)
    registration = (await carry_out(checks["registration"])).verdict
    assert (registration.status, "uid 0" in registration.found) == (Status.OK, True)


async def test_a_wallet_that_is_not_there_names_the_command(
    config: Callable[..., MinerConfig],
) -> None:
    checks = {check.name: check for check in network_checks(config("--wallet.name", "nobody"))}
    wallet = (await carry_out(checks["wallet"])).verdict
    assert wallet.status is Status.FAILED
    assert "btcli wallet create" in wallet.fix
    registration = (await carry_out(checks["registration"])).verdict
    assert registration == Verdict(Status.UNCHECKED, "there is no hotkey to look for", "")


async def test_a_hotkey_that_is_not_registered(
    subnet: LocalSubnet, config: Callable[..., MinerConfig], tmp_path: Path
) -> None:
    (tmp_path / "neurons.json").write_text("[]")
    settings = config("--chain.file", str(tmp_path / "neurons.json"))
    checks = {check.name: check for check in network_checks(settings)}
    await carry_out(checks["wallet"])
    registration = (await carry_out(checks["registration"])).verdict
    assert registration.status is Status.FAILED
    assert f"the hotkey {subnet.miner_hotkey} is not in" in registration.found


@pytest.mark.parametrize(
    ("port", "status", "words"),
    [
        (0, Status.WARNING, "none of 2 neurons is a validator"),
        (8092, Status.OK, "1 of 2 neurons can be asked"),
    ],
)
async def test_whom_the_pull_way_could_ask(
    config: Callable[..., MinerConfig], tmp_path: Path, port: int, status: Status, words: str
) -> None:
    subnet = create_local_subnet(tmp_path, port=1, validator_port=port)
    settings = config(
        *("--chain.file", str(subnet.neurons_file), "--wallet.path", str(subnet.wallets)),
        *("--transports", "pull"),
    )
    checks = {check.name: check for check in network_checks(settings)}
    validators = (await carry_out(checks["validators"])).verdict
    assert validators == Verdict(Status.UNCHECKED, "the subnet was not read", "")
    for name in ("wallet", "registration"):
        await carry_out(checks[name])
    validators = (await carry_out(checks["validators"])).verdict
    assert (validators.status, words in validators.found) == (status, True)


async def test_where_the_pull_way_keeps_its_state(
    config: Callable[..., MinerConfig], tmp_path: Path
) -> None:
    def state(path: Path) -> list[str]:
        return ["--transports", "pull", "--pull.state", str(path)]

    verdict = await look("pull state", config(*state(tmp_path / "new" / "state.json")))
    assert (verdict.status, "not there yet" in verdict.found) == (Status.OK, True)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    verdict = await look("pull state", config(*state(tmp_path / "file" / "state.json")))
    assert verdict.status is Status.FAILED
    assert "takes no files" in verdict.found
    verdict = await look("pull state", config(*state(tmp_path)))
    assert (verdict.status, "--pull.state" in verdict.fix) == (Status.FAILED, True)


async def test_a_free_port(config: Callable[..., MinerConfig]) -> None:
    verdict = await look("axon port", config())
    assert (verdict.status, "is free" in verdict.found) == (Status.OK, True)


@pytest.mark.parametrize(("ip", "clash"), [("127.0.0.1", True), ("0.0.0.0", True), ("::1", False)])
async def test_two_settings_with_one_port(
    config: Callable[..., MinerConfig], ip: str, clash: bool
) -> None:
    settings = config("--axon.port", "18091", "--metrics.port", "18091", "--metrics.ip", ip)
    assert (await look("axon port", settings)).status is Status.OK
    verdict = await look("metrics port", settings)
    told = "--metrics.port and --axon.port are both 18091" in verdict.found
    assert (verdict.status is Status.FAILED, told) == (clash, clash)


async def test_a_port_that_somebody_else_has(config: Callable[..., MinerConfig], web: Any) -> None:
    port = str(web.server_port)
    web.RequestHandlerClass.body = b"welcome to nginx"
    verdict = await look("axon port", config("--axon.port", port))
    assert verdict.status is Status.FAILED
    assert f"port {port} on 127.0.0.1 cannot be used" in verdict.found
    assert "--axon.port" in verdict.fix
    verdict = await look("http port", config("--transports", "http", "--http.port", port))
    assert (verdict.status, "--http.port" in verdict.fix) == (Status.FAILED, True)


async def test_a_port_that_does_not_speak_http(config: Callable[..., MinerConfig]) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        port = str(silent.getsockname()[1])
        verdict = await look("axon port", config("--axon.port", port))
    assert verdict.status is Status.FAILED


async def test_an_address_that_is_not_ours(config: Callable[..., MinerConfig]) -> None:
    verdict = await look("axon port", config("--axon.ip", "192.0.2.1"))
    assert verdict.status is Status.FAILED
    assert "--axon.ip" in verdict.fix


async def test_a_port_that_a_miner_has(config: Callable[..., MinerConfig], web: Any) -> None:
    web.RequestHandlerClass.body = b'{"status": "warming_up"}'
    settings = config("--transports", "http", "--http.port", str(web.server_port))
    verdict = await look("http port", settings)
    assert (verdict.status, "running miner" in verdict.found) == (Status.OK, True)


async def test_an_http_server_without_a_key(config: Callable[..., MinerConfig]) -> None:
    arguments = ("--transports", "http", "--http.ip", "0.0.0.0")
    assert (await look("http key", config(*arguments))).status is Status.FAILED
    verdict = await look("http key", config(*arguments, "--http.api_key", "s3cret"))
    assert verdict.status is Status.OK
    assert "s3cret" not in verdict.found
    assert "s3cret" not in repr(config("--http.api_key", "s3cret"))


async def test_a_connection_is_tried() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as open_port:
        port = open_port.getsockname()[1]
        assert (await judge_connection("127.0.0.1", port)).status is Status.OK
    verdict = await judge_connection("127.0.0.1", port)
    assert (verdict.status, f"nc -vz 127.0.0.1 {port}" in verdict.fix) == (Status.WARNING, True)


async def test_the_published_address_is_tried_where_there_is_a_chain(
    config: Callable[..., MinerConfig],
) -> None:
    settings = config()
    assert "reachable" not in [check.name for check in network_checks(settings)]
    public = settings.model_copy(
        update={
            "chain": ChainSettings(),
            "axon": settings.axon.model_copy(update={"external_ip": "127.0.0.1"}),
        }
    )
    assert (await look("reachable", public)).status is Status.OK  # It listens itself meanwhile.
    axon = public.axon.model_copy(update={"external_port": free_port()})
    elsewhere = public.model_copy(update={"axon": axon})
    assert (await look("reachable", elsewhere)).status is Status.WARNING
