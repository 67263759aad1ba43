"""The rules of the house that a reader can break without noticing."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("protocol", "generation", "miner", "neurons")
BITTENSOR_FILES = {
    "protocol/synapses.py",
    "miner/transports/push/axon.py",
    "miner/transports/pull/dendrite.py",
    "miner/chain/signatures.py",  # Of both mocks, which check what others have signed.
    "miner/chain/subtensor.py",
    "miner/chain/wallets.py",
    "miner/mock_validator/pull_axon.py",
}


def sources(*folders: str) -> Iterator[Path]:
    for folder in folders:
        yield from sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_run_downwards_only(floor: str) -> None:
    forbidden = set(FLOORS[FLOORS.index(floor) + 1 :]) | {"scripts", "tests"}
    files = list(sources(floor))
    assert files
    for path in files:
        assert not imported(path) & forbidden, path


def test_bittensor_stays_in_its_few_files() -> None:
    users = {
        path.relative_to(ROOT).as_posix()
        for path in sources(*FLOORS, "scripts")
        if {"bittensor", "bittensor_wallet"} & imported(path)
    }
    assert users
    assert users <= BITTENSOR_FILES


def test_generation_knows_nothing_of_networks() -> None:
    unknown = {"aiohttp", "fastapi", "starlette", "uvicorn", "socket", "http"}
    for path in sources("generation"):
        if path != ROOT / "generation/weights/download.py":
            assert not imported(path) & unknown, path


@pytest.mark.parametrize("path", list(sources(*FLOORS, "scripts")), ids=lambda path: path.name)
def test_a_file_is_one_thing(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    # Bittensor compares annotations as objects, and nothing else needs it on Python 3.11.
    assert "from __future__ import annotations" not in text


@pytest.mark.parametrize("path", list(sources("neurons")), ids=lambda path: path.name)
def test_a_door_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 200


def test_a_class_has_its_name_to_itself() -> None:
    named = Counter(
        node.name
        for path in sources(*FLOORS)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    twice = {name for name, count in named.items() if count > 1}
    assert twice <= {"Check", "Verdict"}, "the doctor's and the guard's words; no further ones"


def test_every_threat_that_is_resisted_has_its_test() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    resisted = page.partition("## Resisted")[2].partition("## Not resisted")[0]
    rows = [line for line in resisted.splitlines() if line.startswith("| ")]
    files = {path.relative_to(ROOT).as_posix() for path in sources("tests")}
    for row in rows:
        *_, tests, _ = row.split("|")
        if tests.strip() in ("tests", "---", "by construction"):
            continue
        names = re.findall(r"`([\w/]+\.py)`", tests)
        assert names, row
        for name in names:
            assert any(file.endswith(f"/{name}") for file in files), name


@pytest.mark.parametrize("path", list(sources("tests")), ids=lambda path: path.name)
def test_what_needs_a_gpu_is_found_by_its_mark(path: Path) -> None:
    # `pytest -m cuda` selects by the mark alone.
    if path != Path(__file__):
        assert "skipif(not torch.cuda" not in path.read_text(encoding="utf-8")
