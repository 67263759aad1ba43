"""`--engines ray` and what goes with it."""

from pathlib import Path

import pytest

from generation.presets import preset
from miner.engines import ray_cluster
from miner.engines.local import LocalEngine
from miner.engines.making import make_engines
from miner.settings.engines import MOST_ENGINES, EnginesSettings
from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from protocol.errors import SetupError
from scripts.free_port import free_port

COUNT = "it is neither auto nor a whole number from 1 to 16"
BASE = ("--transports", "http")


def read(*argv: str, **environ: str) -> EnginesSettings:
    config = read_settings(
        MinerConfig, prog="miner", env_prefix="MINER", argv=[*BASE, *argv], environ=environ
    )
    return config.engines


def test_the_name_of_the_group_is_short_for_its_kind(tmp_path: Path) -> None:
    file = tmp_path / "miner.yaml"
    file.write_text("engines: ray\n")
    nested = tmp_path / "nested.yaml"
    nested.write_text("engines: {kind: ray, count: 3}\n")
    assert read().kind == "local"
    for given in (
        read("--engines", "ray"),
        read("--engines=ray"),
        read("--engines.kind", "ray"),
        read(MINER_ENGINES="ray"),
        read("--config", str(file)),
        read("--config", str(nested)),
    ):
        assert given.kind == "ray"
    assert read("--config", str(nested)).count == 3
    assert read("--engines", "ray", "--engines.count", "2").count == 2
    assert read("--engines", "local", MINER_ENGINES="ray").kind == "local"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--engines", "rya"), "--engines.kind cannot be 'rya'"),
        *(
            (("--engines.count", given), f"--engines.count cannot be '{given}' .*: {COUNT}")
            for given in ("0", "2.5", "two", str(MOST_ENGINES + 1))
        ),
        (("--engines.address", "auto"), "the engine runs in this process"),
        (("--engines", "ray", "--engines.address", "10.0.0.1"), "neither auto nor HOST:PORT"),
        (("--engines", "ray", "--engines.address", "ray://a:10001"), "neither auto nor HOST:PORT"),
        (("--engine", "ray"), "unknown argument '--engine'"),
    ],
)
def test_what_cannot_be_is_named(argv: tuple[str, ...], words: str) -> None:
    with pytest.raises(SetupError, match=words):
        read(*argv)


@pytest.mark.parametrize(
    ("engines", "device", "words"),
    [
        (EnginesSettings(count=2), "cpu", "would share its cores"),
        (EnginesSettings(count=2), "cuda:1", "takes cuda:0 and the following"),
        (EnginesSettings(kind="ray"), "cuda:1", "names one GPU"),
    ],
)
def test_engines_do_not_share_a_device(engines: EnginesSettings, device: str, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        engines.require_room(device)


async def test_one_engine_in_the_process_is_on_the_device_of_the_settings() -> None:
    settings = preset("gpu24").model_copy(update={"device": "cuda:1"})
    (engine,) = await make_engines(EnginesSettings(), settings, None)
    assert isinstance(engine, LocalEngine)
    assert (engine.name, engine.settings.device) == ("local", "cuda:1")


async def test_several_in_the_process_take_the_first_gpus() -> None:
    engines = await make_engines(EnginesSettings(count=3), preset("gpu24"), None)
    assert [engine.name for engine in engines] == ["local0", "local1", "local2"]
    devices = [engine.settings.device for engine in engines if isinstance(engine, LocalEngine)]
    assert devices == ["cuda:0", "cuda:1", "cuda:2"]


async def test_an_address_where_nothing_listens_is_refused_at_once() -> None:
    settings = EnginesSettings(kind="ray", address=f"127.0.0.1:{free_port()}")
    with pytest.raises(SetupError, match=r"no Ray cluster answers at 127\.0\.0\.1:"):
        await make_engines(settings, preset("embedded"), None)


@pytest.mark.parametrize("known_from", ["file", "environment"])
def test_a_cluster_that_has_ended_is_refused_at_once(
    known_from: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = f"127.0.0.1:{free_port()}"
    joined = tmp_path / "joined"
    monkeypatch.setattr(ray_cluster, "JOINED", joined)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray_cluster.require_answer("auto")
    if known_from == "file":
        joined.write_text(f"{ended}\n")
    else:
        monkeypatch.setenv("RAY_ADDRESS", ended)
    with pytest.raises(SetupError, match=rf"no Ray cluster answers at {ended}"):
        ray_cluster.require_answer("auto")
