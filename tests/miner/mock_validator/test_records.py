import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from miner.mock_validator.records import (
    TrialRecord,
    append_record,
    judge,
    read_records,
    write_records,
)
from protocol import ply, spz
from tests.support.fakes import ball, ball_spz


def record(**fields: Any) -> TrialRecord:
    values = {
        "name": "01-a-ball",
        "kind": "text",
        "prompt": "a ball",
        "task_id": "t",
        "status": 200,
        "outcome": "completed",
        "elapsed_s": 2.0,
        "gaussians": 8000,
        **fields,
    }
    return TrialRecord(**values)


def test_a_good_answer_leaves_its_three_files_and_no_problems(tmp_path: Path) -> None:
    judged = judge(record(), ball_spz(), tmp_path, limit_s=30.0)
    assert judged.good
    assert (judged.gaussians, judged.size_bytes) == (8000, len(ball_spz()))
    assert (judged.spz, judged.ply, judged.png) == (
        "01-a-ball.spz",
        "01-a-ball.ply",
        "01-a-ball.png",
    )
    assert (tmp_path / "01-a-ball.spz").read_bytes() == ball_spz()
    cloud = ply.decode((tmp_path / "01-a-ball.ply").read_bytes())
    np.testing.assert_array_equal(cloud.positions, spz.decode(ball_spz()).positions)
    with Image.open(tmp_path / "01-a-ball.png") as preview:
        assert np.asarray(preview).std() > 5.0
    assert all(item.passed for item in judged.checks if not item.advice)
    assert {item.advice for item in judged.checks} == {True, False}


@pytest.mark.parametrize(
    ("fields", "asset", "problem"),
    [
        ({"outcome": "dropped", "reason": "would be late"}, b"", "dropped: would be late"),
        ({"outcome": "none", "reason": "status 403: no"}, b"", "none: status 403: no"),
        (
            {"reason_code": "below_threshold", "reason": "0.4 is below 0.6"},
            b"",
            "withheld by the miner's gate: 0.4 is below 0.6",
        ),
        ({}, b"", "not SPZ"),
        ({}, b"hello", "not SPZ"),
        ({"elapsed_s": 31.0}, ball_spz(), "took 31.00 s, the limit is 30.00 s"),
        ({"gaussians": 7}, ball_spz(), "says 7 Gaussians, the file has 8000"),
        ({"gaussians": 2000}, spz.encode(ball(2000)), "gaussians"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path, fields: dict[str, Any], asset: bytes, problem: str
) -> None:
    judged = judge(record(**fields), asset, tmp_path, limit_s=30.0)
    assert not judged.good
    assert any(problem in text for text in judged.problems), judged.problems


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    records = [
        judge(record(), ball_spz(), tmp_path, limit_s=30.0),
        record(name="02-x", outcome="none", problems=("none: no answer",)),
    ]
    for item in records:
        append_record(tmp_path, item)
    write_records(tmp_path, records)
    assert read_records(tmp_path) == records
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["01-a-ball", "02-x"]


def test_a_full_disk_is_not_the_miner_s_fault_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    judged = judge(record(), ball_spz(), tmp_path, limit_s=30.0)
    monkeypatch.undo()
    names = ("01-a-ball.spz", "01-a-ball.ply", "01-a-ball.png")
    words = "is not written: No space left on device"
    assert judged.problems == tuple(f"{name} {words}" for name in names)
    assert (judged.outcome, judged.gaussians) == ("completed", 8000)
    assert (judged.spz, judged.ply, judged.png) == (None, None, None)
    assert list(tmp_path.iterdir()) == []
