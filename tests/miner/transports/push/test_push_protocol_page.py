"""docs/push-protocol.md is true: its client works, its tables are those of the code."""

import ast
import base64
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from protocol import spz
from protocol.synapses import GenerateAsset
from tests.support.fakes import ball
from tests.support.running import MINER, VALIDATOR, Running

# Bittensor 10 reads pydantic's fields through an instance.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute"),
    # A plain Dendrite that is collected closes its session a second time.
    pytest.mark.filterwarnings("ignore:You are calling this from an already-running event loop"),
]

ROOT = Path(__file__).parents[4]
PAGE = (ROOT / "docs/push-protocol.md").read_text(encoding="utf-8")


def table(first_column: str) -> list[list[str]]:
    """The cells of the table whose first column has this name."""
    lines = PAGE.split(f"\n| {first_column} |", 1)[1].splitlines()[2:]
    rows = lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def documented_codes() -> set[tuple[int, str]]:
    """Status and code of every refusal that the page lists."""
    return {
        (int(row[0]), code) for row in table("status") for code in re.findall(r"`(\w+)`", row[1])
    }


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The page's code as a module."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    # The only thing that a machine without the internet lacks.
    monkeypatch.setattr("bittensor.utils.networking.get_external_ip", lambda: "192.0.2.1")
    module = ModuleType("client")
    exec(compile(code, "docs/push-protocol.md", "exec"), module.__dict__)
    return module


async def test_the_client_of_the_page_gets_an_asset(miner: Running, client: Any) -> None:
    reply = await client.ask(
        VALIDATOR, "127.0.0.1", miner.target.port, MINER.ss58_address, "a blue cube"
    )
    assert (reply.dendrite.status_code, reply.outcome) == (200, "completed")
    assert len(spz.decode(base64.b64decode(reply.results))) == len(ball())


async def test_a_client_without_hash_fields_is_told_their_names(
    miner: Running, client: Any
) -> None:
    client.GenerateAsset.required_hash_fields = ()
    reply = await client.ask(
        VALIDATOR, "127.0.0.1", miner.target.port, MINER.ss58_address, "a blue cube"
    )
    assert reply.dendrite.status_code == 400
    words = reply.dendrite.status_message
    assert "required_hash_fields" in words
    assert all(name in words for name in GenerateAsset.required_hash_fields)
    assert "docs/push-protocol.md" in words


def test_the_page_lists_the_fields_and_defaults_of_the_class() -> None:
    shown = {row[0].strip("`"): row[2].strip("`") for row in table("field")}
    assert tuple(shown) == GenerateAsset.required_hash_fields
    for name, default in shown.items():
        value = None if default == "null" else ast.literal_eval(default)
        assert value == GenerateAsset.model_fields[name].default


def test_the_page_lists_the_outcomes() -> None:
    assert [row[0].strip("`") for row in table("`outcome`")] == [
        *("completed", "dropped", "rejected", "failed")
    ]


def test_the_page_lists_every_refusal_of_the_code() -> None:
    written = set()
    for path in (ROOT / "miner/transports/push").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refused"):
                continue
            status, code = node.args[:2]
            if isinstance(status, ast.Constant) and isinstance(code, ast.Constant):
                written.add((status.value, code.value))
    assert len(written) > 10
    assert written <= documented_codes()


def test_the_page_lists_no_refusal_that_the_code_does_not_know() -> None:
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("miner/transports", "miner/transports/push")
        for path in (ROOT / folder).glob("*.py")
    )
    for _, name in documented_codes():
        assert f'"{name}"' in code, name
