"""What Ray reads from the environment."""

import os
import sys
from pathlib import Path

import pytest

from miner.engines.ray_cluster import prepare


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment with an empty home, before Ray is imported."""
    environ = {"HOME": str(tmp_path)}
    monkeypatch.setattr(os, "environ", environ)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    return environ


@pytest.mark.parametrize("known_from", ["file", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_that_is_there_is_used_for_a_cluster_that_is_joined(
    known_from: str, tmp_path: Path, environ: dict[str, str]
) -> None:
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    if known_from == "file":
        token.write_text("secret")
    else:
        environ[known_from] = "secret"
    prepare(own=False)
    assert environ["RAY_AUTH_MODE"] == "token"


def test_a_cluster_without_a_token_is_joined_without_one(environ: dict[str, str]) -> None:
    prepare(own=False)
    assert "RAY_AUTH_MODE" not in environ


def test_a_mode_that_is_given_stays(environ: dict[str, str]) -> None:
    environ |= {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "secret"}
    prepare(own=False)
    assert environ["RAY_AUTH_MODE"] == "disabled"


def test_ray_of_this_machine_takes_calls_with_a_token_of_its_own_only(
    environ: dict[str, str],
) -> None:
    prepare(own=True)
    assert environ["RAY_AUTH_MODE"] == "token"
    assert len(environ["RAY_AUTH_TOKEN"]) == 64
