"""What callers see of scores, candidates and the gate."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miner.scheduling.candidates import CandidateLimits
from miner.transports.http.bodies import Field
from miner.transports.http.forms import Form
from protocol.errors import TaskError
from protocol.tasks import Task
from tests.miner.transports.http.test_jobs import ended, events, file, started
from tests.support.fakes import FakeEngine
from tests.support.http_running import form, running

SCORE_HEADERS = {
    "X-Seed", "X-Score", "X-Score-Parts", "X-Scorer", "X-First-Score", "X-Candidates", "X-Gated",
}  # fmt: skip


def better_each_time(low: float = 0.5, step: float = 0.125) -> Callable[[Task], float]:
    """Returns scores that rise with each new seed."""
    seen: dict[int | None, float] = {}
    return lambda task: seen.setdefault(task.seed, low + step * len(seen))


def scoring(worth: Callable[[Task], float], **settings: Any) -> dict[str, Any]:
    return {
        "engine": FakeEngine(worth=worth),
        "candidates": CandidateLimits(max=8, target=2.0),
        **settings,
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (b"1", 1),
        (b" 1000\r\n", 1000),
        (b"", None),
        (b"0", "from 1 to 1000; got 0"),
        (b"1001", "from 1 to 1000; got 1001"),
        (b"-1", "got -1"),
        (b"4.5", "got 4.5"),
        (b"many", "got many"),
        (b"9" * 5000, "got 99"),
    ],
)
def test_candidates_are_a_number_from_1_to_1000(given: bytes, expected: int | str | None) -> None:
    fields = Form((Field("prompt", b"a cube"), Field("candidates", given)))
    if not isinstance(expected, str):
        assert fields.candidates() == expected
        return
    with pytest.raises(TaskError, match="candidates must be a whole number") as caught:
        fields.candidates()
    assert expected in str(caught.value)


async def test_headers_tell_the_score_of_the_best_candidate_and_its_seed(tmp_path: Path) -> None:
    async with running(tmp_path, **scoring(better_each_time())) as miner:
        data = {"prompt": "a blue cube", "seed": 7, "candidates": 3}
        reply = await miner.post(json=data)
        assert reply.status == 200
        headers = {name: reply.headers[name] for name in SCORE_HEADERS}
        (line,) = miner.events("answered")
    assert headers == {
        "X-Seed": str(line["seed"]),
        "X-Score": "0.7500",
        "X-Score-Parts": "object=0.7500",
        "X-Scorer": "fake",
        "X-First-Score": "0.5000",
        "X-Candidates": "3",
        "X-Gated": "no",
    }
    assert line["seed"] != 7
    assert "candidates;dur=" in reply.headers["Server-Timing"]


async def test_with_one_candidate_the_given_seed_is_that_of_the_object(tmp_path: Path) -> None:
    async with running(tmp_path, **scoring(better_each_time())) as miner:
        reply = await miner.post(data=form(prompt="a blue cube", seed="7", candidates="1"))
        assert (reply.headers["X-Seed"], reply.headers["X-Candidates"]) == ("7", "1")
        assert len(miner.engine.plans) == 1
        assert "candidates;dur=" not in reply.headers["Server-Timing"]


async def test_an_answer_without_a_score_has_no_headers_of_one(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        reply = await miner.post(data={"prompt": "a blue cube"})
        assert reply.status == 200
        assert not SCORE_HEADERS & set(reply.headers)
        job = await ended(miner, (await started(miner))["id"])
        names = ("score", "first_score", "scorer", "score_parts", "candidates", "gated")
        assert {job[name] for name in names} == {None}


@pytest.mark.parametrize("name", ["ply", "png"])
async def test_what_the_gate_is_against_is_sent_unless_a_setting_forbids_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("miner.transports.http.files.PREVIEW_SIDE", 16)
    data = {"prompt": "a blue cube", "format": name}
    async with running(tmp_path / "a", **scoring(lambda task: 0.4)) as miner:
        reply = await miner.post(data=data)
        assert (reply.status, reply.headers["X-Gated"]) == (200, "yes")
    async with running(tmp_path / "b", **scoring(lambda task: 0.4, send_gated=False)) as miner:
        reply = await miner.post(data=data)
        assert reply.status == 422
        assert (reply.headers["X-Gated"], reply.headers["X-Score"]) == ("yes", "0.4000")
        refusal = reply.json
        mesh = await miner.post(data={**data, "format": "glb"})
        assert mesh.status == 200  # Nothing scores a mesh.
    assert (refusal["outcome"], refusal["reason_code"]) == ("completed", "below_threshold")
    assert refusal["message"].startswith("its score 0.400 is below 0.600: threshold 0.6")


@pytest.mark.parametrize("given", [{}, {"seed": "7"}], ids=["no seed", "a seed"])
async def test_a_withheld_object_is_not_asked_for_again_but_with_something_else(
    tmp_path: Path, given: dict[str, str]
) -> None:
    async with running(tmp_path, **scoring(lambda task: 0.4, send_gated=False)) as miner:
        reply = await miner.post(data={"prompt": "a blue cube", **given})
    # Of 4xx, `curl --retry` repeats 408 and 429 alone.
    assert reply.status == 422
    assert "Retry-After" not in reply.headers
    assert "ask with another seed, with more candidates" in reply.json["message"]


async def test_a_job_shows_its_candidates_while_it_improves_and_the_best_at_its_end(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, **scoring(better_each_time())) as miner:
        data = {"prompt": "a blue cube", "seed": 7, "candidates": 4}
        first = await started(miner, json=data)
        seen = [first, *[job async for job in events(miner, first["id"])]]
        line = miner.events("answered")[0]
    improving = [job for job in seen if job["state"] == "improving"]
    assert {job["candidates"]["most"] for job in improving} == {4}
    assert [job["candidates"]["made"] for job in improving] == sorted(
        job["candidates"]["made"] for job in improving
    )
    for job in improving:
        assert job["score"] == 0.5 + 0.125 * (job["candidates"]["made"] - 1)
        assert (job["first_score"], job["gated"], job["files"]) == (0.5, None, {})
        assert {stage["state"] for stage in job["stages"]} == {"done"}
    last = seen[-1]
    assert (last["state"], last["reason_code"]) == ("done", "ok")
    assert (last["score"], last["first_score"], last["scorer"]) == (0.875, 0.5, "fake")
    assert last["score_parts"] == {"object": 0.875}
    assert last["candidates"] == {"made": 4, "drawn": 4, "most": 4}
    assert last["gated"] is False
    assert "0.875 is at least 0.600" in last["gate_reason"]
    assert last["seed"] == line["seed"] != 7


async def test_the_mesh_of_a_job_is_that_of_the_best_candidate(tmp_path: Path) -> None:
    async with running(tmp_path, **scoring(better_each_time())) as miner:
        tasks: list[Task] = []
        run = miner.engine.run

        async def keep(task: Task, *arguments: Any, **named: Any) -> Any:
            tasks.append(task)
            return await run(task, *arguments, **named)

        miner.engine.run = keep
        job = await ended(miner, (await started(miner))["id"])
        assert (await file(miner, job, "glb")).status == 200
    assert (tasks[-1].kind, tasks[-1].seed) == ("image", job["seed"])
    assert job["seed"] not in (None, 7)


async def test_a_job_with_a_withheld_object_has_a_reason_and_no_files(tmp_path: Path) -> None:
    async with running(tmp_path, **scoring(lambda task: 0.4, send_gated=False)) as miner:
        job = await ended(miner, (await started(miner))["id"])
        assert (job["state"], job["reason_code"]) == ("withheld", "below_threshold")
        assert (job["gated"], job["files"], job["gaussians"]) == (True, {}, None)
        assert job["message"] == job["gate_reason"]
        assert job["message"].startswith("its score 0.400 is below")
        for name in ("asset.ply", "asset.glb", "preview.png", "picture.png"):
            reply = await miner.ask("GET", f"/jobs/{job['id']}/files/{name}")
            assert (reply.status, reply.json["reason_code"]) == (422, "below_threshold")


async def test_a_gated_job_has_its_files_if_it_may_be_sent(tmp_path: Path) -> None:
    async with running(tmp_path, **scoring(lambda task: 0.4)) as miner:
        job = await ended(miner, (await started(miner))["id"])
        assert (job["state"], job["reason_code"]) == ("done", "below_threshold")
        assert (job["gated"], job["message"]) == (True, None)
        assert (await file(miner, job, "spz")).status == 200
