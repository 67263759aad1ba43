import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from miner.transports.pull.state import AssignedTask, PullState, PullStateFile
from miner.transports.pull.validators import Standing
from protocol.errors import SetupError

TASK = AssignedTask(
    validator="5V", id="t-1", kind="text", prompt="a blue cube", assigned_at=1.8e9, starts=1
)
STATE = PullState(
    hotkey="5M",
    validators={"5V": Standing(ask_after=1.8e9, accepted=3, pulled=4, failures=1)},
    tasks=(TASK,),
)


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    yield lines
    logger.remove(sink)


def test_what_is_saved_is_loaded(tmp_path: Path, warnings: list[str]) -> None:
    file = PullStateFile(tmp_path / "deep" / "state.json", "5M")
    assert file.load() == PullState(hotkey="5M")
    file.save(STATE)
    assert PullStateFile(tmp_path / "deep" / "state.json", "5M").load() == STATE
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["state.json"]
    assert warnings == []


def good() -> dict[str, object]:
    plain: dict[str, object] = json.loads(STATE.model_dump_json())
    return plain


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "damaged"),
        (b"\x00\xff", "damaged"),
        (STATE.model_dump_json().encode()[:-20], "damaged"),
        (json.dumps(good() | {"version": 2}).encode(), "another version"),
        (json.dumps(good() | {"surprise": 1}).encode(), "surprise"),
        (json.dumps(good() | {"validators": {"5V": {"ask_after": "soon"}}}).encode(), "ask_after"),
        (json.dumps(good() | {"hotkey": "5Other"}).encode(), "belongs to the hotkey '5Other'"),
    ],
)
def test_a_file_that_cannot_be_used_is_set_aside(
    tmp_path: Path, warnings: list[str], content: bytes, words: str
) -> None:
    path = tmp_path / "state.json"
    for number in (1, 2):
        path.write_bytes(content)
        assert PullStateFile(path, "5M").load() == PullState(hotkey="5M")
        aside = tmp_path / f"state.json.damaged-{number}"
        assert aside.read_bytes() == content
        assert words in warnings[-1]
        assert aside.name in warnings[-1]


def test_a_crash_while_writing_leaves_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = PullStateFile(tmp_path / "state.json", "5M")
    file.save(STATE)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        file.save(PullState(hotkey="5M"))
    monkeypatch.undo()
    assert file.load() == STATE
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_a_folder_that_cannot_be_written_is_a_reason_not_to_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(SetupError, match=r"cannot be kept in .*state.json") as caught:
        PullStateFile(tmp_path / "file" / "state.json", "5M").load()
    assert "--pull.state" in caught.value.fix


def test_the_prompt_is_not_shown() -> None:
    assert "blue" not in repr(TASK)
    assert "blue" not in repr(STATE)
