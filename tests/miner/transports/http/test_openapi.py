"""The API's document is true: schemathesis sends what it allows, and much that it does not."""

import asyncio
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from miner.transports.http import files
from miner.transports.http.files import FILES
from miner.transports.http.models import FormatName, Job
from miner.transports.http.openapi import document
from miner.transports.http.operations import ALIASES, OPERATIONS
from tests.support.http_running import running

DOCUMENT = (Path(__file__).parents[4] / "docs" / "http.md").read_text(encoding="utf-8")

# A schema cannot say which bytes are a picture or which text is no prompt, so valid fields may be
# rejected. A JSON number counts as text, so some invalid ones are taken.
LENIENT = "positive_data_acceptance,negative_data_rejection"


async def test_every_status_and_every_type_of_content_is_documented_and_the_key_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PREVIEW_SIDE", 16)
    async with running(tmp_path / "log", api_key="k") as miner:
        arguments = ("run", f"{miner.transport.url}/openapi.json", "--header", "X-API-Key: k")
        run = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *(*arguments, "--exclude-checks", LENIENT, "--seed", "1", "--no-color"),
            *("--max-examples", "5", "--generation-database", "none"),
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "120"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await asyncio.wait_for(run.communicate(), 90.0))[0].decode()
        assert run.returncode == 0, output
        assert f"Tested: {len(OPERATIONS)}" in output
        assert int(re.findall(r"(\d+) generated", output)[0]) > 150
        refused = {line["reason_code"] for line in miner.events("refused")}
        assert "server_error" not in refused
        assert "bad_api_key" in refused  # It tried without.
        assert (await miner.ask("GET", "/health")).status == 200


def test_the_document_names_every_operation_once() -> None:
    api = document(version="1.2.3", with_key=False)
    named = {
        (method.upper(), path): described["operationId"]
        for path, methods in api["paths"].items()
        for method, described in methods.items()
    }
    assert named == {(each.method, each.path): each.name for each in OPERATIONS}
    assert len(set(named.values())) == len(OPERATIONS)
    assert api["info"]["version"] == "1.2.3"


@pytest.mark.parametrize("with_key", [True, False])
def test_the_document_asks_for_a_key_only_where_the_miner_does(with_key: bool) -> None:
    api = document(version="1", with_key=with_key)
    assert ("securitySchemes" in api["components"]) == with_key
    for operation in OPERATIONS:
        described = api["paths"][operation.path][operation.method.lower()]
        assert ("security" in described) == (with_key and operation.needs_key)


def test_every_reference_leads_to_a_schema() -> None:
    api = document(version="1", with_key=True)
    found = set(re.findall(r"'#/components/schemas/(\w+)'", repr(api)))
    assert found <= set(api["components"]["schemas"])
    assert {"Job", "StageProgress", "MinerStatus", "Problem", "TaskFields"} <= found


def test_forms_take_files_and_no_null() -> None:
    api: Any = document(version="1", with_key=False)
    content = api["paths"]["/generate"]["post"]["requestBody"]["content"]
    multipart = content["multipart/form-data"]["schema"]["properties"]
    assert multipart["prompt_image_file"]["format"] == "binary"
    assert "null" not in repr(content["application/x-www-form-urlencoded"])
    assert multipart["format"]["enum"] == list(files.FORMATS)


def test_the_page_for_people_names_every_address_field_file_and_format() -> None:
    for operation in OPERATIONS:
        assert f"`{operation.method} {operation.path}`" in DOCUMENT
    for path in (*ALIASES, "/docs", "/openapi.json", "/"):
        assert f"{path}`" in DOCUMENT
    for name in (*FILES.values(), *Job.model_fields):
        assert f"`{name}`" in DOCUMENT, name
    for name in FormatName.__args__:  # type: ignore[attr-defined]
        assert f"`{name}`" in DOCUMENT
