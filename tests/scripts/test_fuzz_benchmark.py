"""Damaged files and requests: every decoder keeps to its errors and bounds; faults are found."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import CodecError, SetupError
from scripts.benchmark import main
from scripts.benchmarks.fuzz import SERVERS, decoding, examine, is_sound
from scripts.benchmarks.fuzz.targets import TARGETS, Target

COUNT = 500


@pytest.fixture(scope="module")
def findings() -> dict[str, dict[str, Any]]:
    return examine(list(TARGETS), COUNT, seed=1)


@pytest.mark.parametrize("name", TARGETS)
def test_500_damaged_files_end_as_documented_within_a_second_and_300_mb(
    name: str, findings: dict[str, dict[str, Any]]
) -> None:
    found = findings[name]
    assert found["faults"] == []
    assert is_sound(found), found
    assert sum(found["outcomes"].values()) == COUNT
    # Some damage reaches past the header, and most of it is noticed; what is only remembered to
    # save time is read whatever it holds.
    assert len(found["outcomes"]) > 1 or name == "verified weights"


def test_a_seed_always_damages_alike() -> None:
    target = TARGETS["WEBP"]
    first, again, other = (list(decoding.files(target, 50, seed)) for seed in (1, 1, 7))
    assert first == again
    assert first != other
    assert len(first) == 50


def _wrong_error(data: bytes, folder: Path) -> str:
    if data != b"sound":
        raise KeyError("header")
    return "read"


def _unsafe_message(data: bytes, folder: Path) -> str:
    if data != b"sound":
        raise CodecError("\x1b[2J")
    return "read"


def _large(data: bytes, folder: Path) -> str:
    return "read" if bytearray(b"x" * 400_000_000)[len(data)] else "empty"


@pytest.mark.parametrize(
    ("read", "what"),
    [(_wrong_error, "KeyError"), (_unsafe_message, "says"), (_large, None)],
)
def test_a_fault_of_a_decoder_is_found(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[bytes, Path], str], what: str | None
) -> None:
    broken = Target(lambda: (b"sound",), read, (CodecError,))
    monkeypatch.setattr(decoding, "TARGETS", {"broken": broken})
    found = decoding.examine("broken", 2, seed=1)
    if what is None:
        assert found.grew_mb > 350.0
    else:
        assert what in found.faults[0]
    assert not is_sound(vars(found))


def test_a_decoder_that_ends_its_process_is_named() -> None:
    with pytest.raises(SetupError, match="the decoder of no such"):
        examine(["settings", "no such"], 1, seed=1)


def test_the_command_writes_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "fuzz.json"
    assert main(["fuzz", "--count", "20", "--only", "settings", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert sum(figures["decoders"]["settings"]["outcomes"].values()) == 20
    assert "settings" in capsys.readouterr().out
    assert main(["fuzz", "--only", "sittings"]) == 1
    assert "settings" in capsys.readouterr().err


# Bittensor 10 reads pydantic's fields through an instance.
@pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")
def test_a_real_miner_survives_changed_requests(tmp_path: Path) -> None:
    out = tmp_path / "fuzz.json"
    assert main(["fuzz", "--count", "100", "--only", SERVERS, "--json", str(out)]) == 0
    servers = json.loads(out.read_text())["servers"]
    assert servers.keys() == {"axon", "HTTP"}
    for found in servers.values():
        assert sum(found["statuses"].values()) == 100
        assert found["serves"]
        assert found["faults"] == []
