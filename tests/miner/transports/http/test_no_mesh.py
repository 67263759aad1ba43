"""A miner whose 3D back end makes no mesh says so wherever one can be asked for."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from miner.transports.http import files
from tests.miner.transports.http.test_jobs import ended, started
from tests.support.fakes import FakeEngine
from tests.support.http_running import Reply, Running, form, running

WHY = (
    "the 3D back end triposplat makes Gaussian splats (ply, spz), but no mesh (glb, obj); "
    "ask for ply or spz, or choose another back end with --lift.backend triposr"
)
PROMPT = {"prompt": "a blue cube", "seed": "7"}


@pytest.fixture
async def miner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    monkeypatch.setattr(files, "PREVIEW_SIDE", 16)
    async with running(tmp_path, engine=FakeEngine(back_end="triposplat")) as miner:
        yield miner


@pytest.mark.parametrize("name", ["glb", "obj"])
async def test_a_mesh_is_refused_at_submission_with_the_back_end_and_the_remedy(
    miner: Running, name: str
) -> None:
    ways: list[tuple[str, Any]] = [
        ("/generate", {"data": form(**PROMPT, format=name)}),
        ("/generate", {"json": {**PROMPT, "format": name}}),
        ("/jobs", {"data": {**PROMPT, "format": name}}),
    ]
    for path, body in ways:
        reply = await miner.post(path, **body)
        assert reply.status == 422
        assert reply.message == f"format {name} cannot be made: {WHY}"
        assert (reply.json["outcome"], reply.json["reason_code"]) == ("rejected", "bad_task")
    assert miner.engine.ran == []
    answered = miner.events("answered")
    assert [line["reason_code"] for line in answered] == ["bad_task"] * len(ways)


async def test_a_mesh_is_refused_while_the_miner_still_loads(tmp_path: Path) -> None:
    """It will not be possible later, so the answer is not to try again."""
    engine = FakeEngine(back_end="triposplat")
    async with running(tmp_path, engine=engine, ready=False) as miner:
        assert (await miner.post(data={**PROMPT, "format": "glb"})).status == 422
        assert (await miner.post(data=PROMPT)).status == 503


async def test_a_job_has_no_mesh_among_its_files_and_says_why_at_the_download(
    miner: Running,
) -> None:
    job = await ended(miner, (await started(miner))["id"])
    assert job["state"] == "done"
    assert list(job["files"]) == ["ply", "spz", "picture", "cutout", "preview"]
    for kind, address in job["files"].items():
        assert (await miner.ask("GET", address)).status == 200, kind
    for name in ("asset.glb", "asset.obj"):
        reply = await miner.ask("GET", f"/jobs/{job['id']}/files/{name}")
        assert (reply.status, reply.message) == (404, f"there is no such file: {WHY}")
    unknown = await miner.ask("GET", f"/jobs/{job['id']}/files/asset.stl")
    assert "glb" not in unknown.message


async def test_a_job_that_still_runs_says_at_once_that_it_will_have_no_mesh(
    miner: Running,
) -> None:
    miner.engine.hold_at = "flow"
    job = await started(miner)
    reply = await miner.ask("GET", f"/jobs/{job['id']}/files/asset.glb")
    assert (reply.status, reply.message) == (404, f"there is no such file: {WHY}")
    miner.engine.release.set()


async def test_status_and_document_offer_only_what_can_be_made(miner: Running) -> None:
    status = (await miner.ask("GET", "/status")).json
    assert status["formats"] == ["ply", "spz", "png"]
    assert status["back_end"] == "triposplat"
    assert status["rungs"][0] == {
        "name": "full",
        "steps": 8,
        "size": 128,
        "lift_steps": 20,
        "gaussians": miner.engine.ladder[0].gaussians,
    }
    api = (await miner.ask("GET", "/openapi.json")).json
    assert f"{WHY[0].upper()}{WHY[1:]}." in api["info"]["description"]
    fields = api["components"]["schemas"]["GenerateFields"]["properties"]
    assert fields["format"]["enum"] == ["ply", "spz", "png"]
    file = api["paths"]["/jobs/{id}/files/{name}"]["get"]
    assert file["parameters"][1]["schema"]["enum"] == [
        *("asset.ply", "asset.spz", "picture.png", "cutout.png", "preview.png")
    ]
    for reply in (file, api["paths"]["/generate"]["post"]):
        assert set(reply["responses"]["200"]["content"]) == {
            *("application/octet-stream", "image/png")
        }


async def test_an_unknown_format_is_told_of_what_can_be_made(miner: Running) -> None:
    reply: Reply = await miner.post(data={**PROMPT, "format": "stl"})
    assert reply.message == "format must be one of ply, spz, png; got stl"


async def test_every_other_format_is_made(miner: Running) -> None:
    for name in ("ply", "spz", "png"):
        assert (await miner.post(data={**PROMPT, "format": name})).status == 200, name
