"""The settings of the transport gateway: off by default, and nothing that gives a secret away."""

import socket
from pathlib import Path

import pytest

from miner.settings.gateway import REGIONS, WORKER_ID
from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from protocol.errors import SetupError

LOCAL = ("--gateway.nodes", "http://127.0.0.1:4443")
PRESET = ("--preset", "gpu24")


def read(*argv: str, **environ: str) -> MinerConfig:
    return read_settings(MinerConfig, prog="x", env_prefix="MINER", argv=argv, environ=environ)


def test_the_gateway_is_off_unless_named() -> None:
    assert not read("--preset", "gpu24").serves("gateway")
    assert read("--transports", "gateway,push", *PRESET).transports == "push,gateway"


def test_the_defaults_are_the_regional_nodes_30_s_and_no_tags() -> None:
    config = read("--transports", "gateway", *PRESET)
    assert config.gateway.addresses == tuple(REGIONS.split(","))
    assert all(address.startswith("https://api-") for address in config.gateway.addresses)
    assert (config.gateway.budget, config.gateway.workers, config.gateway.tags) == (30.0, 1, None)
    assert not config.gateway.discover


def test_the_name_of_all_regions_is_refused_with_the_regions() -> None:
    with pytest.raises(SetupError, match=r"api-eu\.404\.xyz"):
        read("--transports", "gateway", "--gateway.nodes", "https://api.dns.404.xyz", *PRESET)


def test_more_tags_than_a_request_has_room_for_are_refused() -> None:
    tags = [f"{n:032}" for n in range(65)]
    with pytest.raises(SetupError, match=r"65 tags are too many.*64"):
        read("--gateway.tags", ",".join(tags), *PRESET)
    assert read("--gateway.tags", ",".join(tags[:64]), *PRESET).gateway.tags


@pytest.mark.parametrize(
    ("transports", "chain", "wallet"),
    [
        ("gateway", False, True),
        ("http,gateway", False, True),
        ("push,gateway", True, True),
        ("http", False, False),
    ],
)
def test_a_gateway_needs_a_wallet_and_no_chain(transports: str, chain: bool, wallet: bool) -> None:
    config = read("--transports", transports, *PRESET)
    assert (config.needs_chain, config.needs_wallet) == (chain, wallet)


def test_embedded_serves_no_remote_gateway_unless_the_operator_allows_it() -> None:
    with pytest.raises(SetupError, match="no default on a gateway"):
        read("--transports", "gateway")
    with pytest.raises(SetupError, match="toy objects"):
        read("--transports", "gateway", "--preset", "embedded")
    assert read("--transports", "gateway", "--preset", "embedded", "--allow_embedded")
    assert read("--transports", "gateway", *LOCAL).preset_name == "embedded"
    with pytest.raises(SetupError, match="no default on a gateway"):
        read("--transports", "gateway", "--chain.file", "x", *LOCAL[:1], f"{LOCAL[1]},https://x.y")


def test_addresses_come_in_one_form_and_as_a_list_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "miner.yaml"
    file.write_text("gateway: {nodes: ['https://A.example:443/', 'https://a.example']}\n")
    assert read("--config", str(file), *PRESET).gateway.addresses == ("https://a.example",)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--gateway.nodes", "http://gateway.example"), "not encrypted"),
        (("--gateway.nodes", "api-eu.404.xyz"), "no address of a gateway"),
        (("--gateway.nodes", ","), "names no address"),
        (("--gateway.worker_id", "two words"), "it is not 1 to 64"),
        (("--gateway.worker_id", "x" * 65), "it is not 1 to 64"),
        (("--gateway.tags", "a,bad tag"), "1-32 characters"),
        (("--gateway.poll", "0.5"), "1.5"),
        (("--gateway.results_per_minute", "121"), "120"),
        (("--gateway.state", ".."), "it is a folder"),
        (("--gateway.budget", "601"), "600"),
    ],
)
def test_what_cannot_be_is_refused(argv: tuple[str, str], words: str) -> None:
    with pytest.raises(SetupError, match=words) as caught:
        read("--transports", "gateway", *PRESET, *argv)
    assert argv[0] in str(caught.value)


def test_http_beyond_this_machine_has_to_be_wanted() -> None:
    argv = ("--gateway.nodes", "http://gateway.example:4443", "--gateway.allow_http")
    config = read("--transports", "gateway", *PRESET, *argv)
    assert config.gateway.addresses == ("http://gateway.example:4443",)


def test_a_worker_id_holds_no_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway shows it to clients."""
    monkeypatch.setattr(socket, "gethostname", lambda: "Rack7-GPU.example.org")
    assert read("--gateway.worker_id", "blue", *PRESET).gateway.worker_id == "blue"
    with pytest.raises(SetupError, match="name of this machine"):
        read("--gateway.worker_id", "w-rack7-gpu-1", *PRESET)
    monkeypatch.setattr(socket, "gethostname", lambda: "splat")
    assert read(*PRESET).gateway.worker_id == WORKER_ID


def test_tags_are_lower_case_and_come_once() -> None:
    assert read("--gateway.tags", "Big, big,fast", *PRESET).gateway.tags == "big,fast"


def test_candidates_of_a_gateway_are_within_those_of_the_miner() -> None:
    argv = ("--transports", "gateway", *PRESET, "--candidates.max", "4")
    with pytest.raises(SetupError, match=r"--gateway\.candidates 5 is more than the 4"):
        read(*argv, "--gateway.candidates", "5", "--scoring.scorer", "embedded")
