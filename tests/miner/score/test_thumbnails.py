"""The last answers leave a small picture each, whatever the disk does, and delay nobody."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from miner.problems import Problems
from miner.request import Answer, Caller, Request
from miner.score.thumbnails import FOLDER, MOST_WAITING, SIDE, Thumbnails
from protocol import files
from protocol.tasks import TextTask
from tests.support.waiting import PATIENCE_S


def completed(size: int = 300) -> Answer:
    cutout = np.zeros((size, size, 4), np.uint8)
    cutout[50:-50, 50:-50] = (200, 30, 30, 255)
    return Answer("completed", "ok", "done", "../../t", cutout=cutout)


def tell(listener: Thumbnails, answer: Answer) -> str:
    request = Request(TextTask(id="../../t", prompt="p"), Caller("5F"), "http", 0.0)
    listener(request, answer)
    return request.id


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / FOLDER).iterdir()}


def test_a_completed_answer_leaves_a_small_webp_named_by_our_own_id(tmp_path: Path) -> None:
    listener = Thumbnails(tmp_path, keep=5, problems=Problems())
    name = tell(listener, completed())
    tell(listener, Answer("dropped", "not_ready", "no", "t"))
    listener.close()
    assert names(tmp_path) == {f"{name}.webp"}
    path = tmp_path / FOLDER / f"{name}.webp"
    assert path.stat().st_size < 8000
    with Image.open(path) as picture:
        assert (picture.format, picture.size, picture.mode) == ("WEBP", (SIDE, SIDE), "RGBA")
        assert picture.getpixel((2, 2))[3] == 0  # type: ignore[index]
        red, green, blue, alpha = picture.getpixel((64, 64))  # type: ignore[misc]
        assert (red > 180, green < 60, blue < 60, alpha) == (True, True, True, 255)


def test_only_the_last_are_kept_over_a_restart_too_and_nothing_else_is_touched(
    tmp_path: Path,
) -> None:
    folder = tmp_path / FOLDER
    folder.mkdir()
    for age in range(6):
        (folder / f"{age:016x}.webp").write_bytes(b"old")
        os.utime(folder / f"{age:016x}.webp", (1000.0 - age, 1000.0 - age))
    (folder / "mine.webp").write_bytes(b"an operator's")
    (folder / f".{'a' * 16}.part").write_bytes(b"of a killed process")
    listener = Thumbnails(tmp_path, keep=4, problems=Problems())
    ids = [tell(listener, completed()) for _ in range(2)]
    listener.close()
    kept = {f"{age:016x}.webp" for age in (0, 1)}
    assert names(tmp_path) == {"mine.webp", *kept, *(f"{name}.webp" for name in ids)}


def test_a_full_disk_costs_the_picture_alone_and_is_a_problem_until_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems, written = Problems(), threading.Event()
    full = [True, False]

    def replace_file(path: Path, data: bytes) -> None:
        written.set()
        if full.pop(0):
            raise OSError(28, "No space left on device")
        files.replace_file(path, data)

    monkeypatch.setattr("miner.score.thumbnails.replace_file", replace_file)
    listener = Thumbnails(tmp_path, keep=4, problems=problems)
    tell(listener, completed())
    assert written.wait(PATIENCE_S)
    end = time.monotonic() + PATIENCE_S
    while not problems.sentences and time.monotonic() < end:
        time.sleep(0.005)
    assert problems.sentences == [f"{tmp_path / FOLDER} cannot be written: No space left on device"]
    name = tell(listener, completed())
    listener.close()
    assert problems.sentences == []
    assert names(tmp_path) == {f"{name}.webp"}


def test_a_disk_that_hangs_delays_no_answer_and_fills_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on, writes = threading.Event(), list[Any]()

    def hangs(path: Path, data: bytes) -> None:
        writes.append(path)
        goes_on.wait(PATIENCE_S)

    monkeypatch.setattr("miner.score.thumbnails.replace_file", hangs)
    listener = Thumbnails(tmp_path, keep=100, problems=Problems())
    started = time.thread_time()  # Other processes count for nothing.
    for _ in range(10 * MOST_WAITING):
        tell(listener, completed(110))
    assert time.thread_time() - started < 1.0
    assert len(writes) <= 1  # Nothing has waited for the disk.
    goes_on.set()
    listener.close()
    assert len(writes) <= MOST_WAITING + 1
