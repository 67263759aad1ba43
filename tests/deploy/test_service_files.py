"""The files in `deploy` fit the program: its settings, exit statuses, limits and ports."""

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from neurons.miner import DEREGISTERED, NOT_STARTED

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNIT = DEPLOY / "systemd" / "splat-miner@.service"
OTHERS = {"HF_TOKEN"}
"""What stands beside the settings in .env: huggingface_hub reads it."""


def settings(environ: Mapping[str, str], *argv: str) -> MinerConfig:
    """The settings that the miner would run with; SetupError for an unknown or unusable one."""
    return read_settings(MinerConfig, prog="x", env_prefix="MINER", argv=argv, environ=environ)


DRAIN_LIMIT_S = settings({}, "--transports", "http").drain.limit


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return loaded


@pytest.fixture(scope="module")
def example() -> dict[str, str]:
    """Every variable of .env.example, those that are commented out included."""
    text = (DEPLOY / ".env.example").read_text()
    return dict(re.findall(r"^#?([A-Z][A-Z_]+)=(.*)$", text, re.MULTILINE))


@pytest.fixture(scope="module")
def image_environ() -> dict[str, str]:
    text = (DEPLOY / "Dockerfile").read_text()
    return dict(re.findall(r"\b(MINER_[A-Z_]+)=(\S+)", text))


def option(name: str) -> list[str]:
    """The values of an option of the unit, in order."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def seconds(text: str) -> float:
    (number,) = re.findall(r"^(\d+)s?$", text)
    return float(number)


def test_every_variable_of_the_example_is_a_setting_with_a_usable_value(
    example: dict[str, str],
) -> None:
    chosen = {name: value for name, value in example.items() if name not in OTHERS}
    assert set(example) > OTHERS
    assert len(chosen) > 8
    config = settings(chosen)
    assert config.preset == chosen["MINER_PRESET"]


def test_the_image_sets_only_variables_that_the_miner_knows(image_environ: dict[str, str]) -> None:
    assert {"MINER_LOG_DIR", "MINER_WALLET_PATH", "MINER_METRICS_PORT"} <= set(image_environ)
    settings(image_environ, "--transports", "http")


def test_the_gpu_image_scores_with_a_renderer_that_was_built_for_its_pytorch(
    image_environ: dict[str, str],
) -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert settings({**image_environ, "MINER_PRESET": "gpu80"}, "--transports=http").scoring
    assert not [name for name in image_environ if name.startswith("MINER_SCORING")]
    assert '".[gpu,score]"' in text
    runtime = re.search(
        r"^nvidia-cuda-runtime==(\d+\.\d+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
    assert runtime is not None
    assert re.findall(r"^ARG CUDA=(\d+\.\d+)\.", text, re.MULTILINE) == [runtime[1]]
    assert f"COPY --from=cuda /usr/local/cuda-{runtime[1]} " in text


def test_the_unit_sets_only_variables_that_the_miner_knows(example: dict[str, str]) -> None:
    given = dict(line.split("=", 1) for line in option("Environment"))
    settings({name: value for name, value in {**example, **given}.items() if name not in OTHERS})


def test_compose_starts_the_miner_with_settings_that_it_knows(
    compose: dict[str, Any], example: dict[str, str], image_environ: dict[str, str]
) -> None:
    services = compose["services"]
    own = {name: str(value) for name, value in services["miner"]["environment"].items()}
    chosen = {name: value for name, value in example.items() if name not in OTHERS}
    settings(image_environ | chosen | own)
    program, *flags = map(str, services["try"]["command"])
    assert program == "run"
    config = settings(image_environ, *flags)
    assert config.transports == "http"


def test_compose_publishes_only_the_axon_beyond_this_machine(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service["ports"]]
    assert len(published) == 5
    open_ports = [port for port in published if not port.startswith("127.0.0.1:")]
    assert open_ports == ["${MINER_AXON_PORT:-8091}:${MINER_AXON_PORT:-8091}"]


def test_compose_mounts_the_wallet_to_be_read_only(compose: dict[str, Any]) -> None:
    (wallet,) = [text for text in compose["services"]["miner"]["volumes"] if "WALLET" in text]
    assert wallet.endswith(":/wallets:ro")


def test_what_compose_mounts_and_builds_from_is_in_the_repository(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        for volume in service["volumes"]:
            if volume.startswith("."):
                assert (DEPLOY / volume.split(":")[0]).exists(), volume
        if "build" in service:
            context = DEPLOY / service["build"]["context"]
            assert context.resolve() == ROOT
            text = (context / service["build"]["dockerfile"]).read_text()
            assert f" AS {service['build']['target']}\n" in text


def test_one_metrics_port_in_the_image_compose_the_example_and_prometheus(
    compose: dict[str, Any], example: dict[str, str], image_environ: dict[str, str]
) -> None:
    port = image_environ["MINER_METRICS_PORT"]
    assert compose["services"]["miner"]["environment"]["MINER_METRICS_PORT"] == port
    assert example["MINER_METRICS_PORT"] == port
    assert f"miner:{port}" in (DEPLOY / "prometheus" / "prometheus.yml").read_text()


def test_every_supervisor_waits_longer_than_the_miner_drains(compose: dict[str, Any]) -> None:
    assert seconds(*option("TimeoutStopSec")) > DRAIN_LIMIT_S
    for name in ("miner", "try"):
        assert seconds(compose["services"][name]["stop_grace_period"]) > DRAIN_LIMIT_S


def test_the_unit_restarts_a_dead_engine_but_not_what_a_restart_cannot_help() -> None:
    assert option("Restart") == ["on-failure"]
    assert option("RestartPreventExitStatus") == [f"{NOT_STARTED} {DEREGISTERED}"]


def test_the_image_is_built_from_the_packages_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]["find"]["include"]
    assert "*" in lines
    assert let_in == {name.rstrip("*") for name in packages} | {
        *("pyproject.toml", "constraints.txt", "README.md", "LICENSE")
    }


def test_the_pm2_file_loads_and_restarts_only_what_a_restart_can_help(tmp_path: Path) -> None:
    if (node := shutil.which("node")) is None:
        pytest.skip("node is not installed, which reads pm2's file")
    file = json.dumps(str(DEPLOY / "pm2" / "ecosystem.config.js"))
    script = f"console.log(JSON.stringify(require({file})))"
    done = subprocess.run(
        [node, "-e", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    (app,) = json.loads(done.stdout)["apps"]
    # pm2 takes a killed process for one that ended with STOPPED, so that is not listed.
    assert app["stop_exit_codes"] == [NOT_STARTED, DEREGISTERED]
    assert app["kill_timeout"] / 1000 > DRAIN_LIMIT_S
    assert Path(app["cwd"]) == ROOT
    assert Path(app["script"]) == ROOT / ".venv" / "bin" / "splat-miner"
    assert app["interpreter"] == "none"  # A shell between them would keep the signal.
