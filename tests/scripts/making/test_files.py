"""Files of objects get the names that the user asks for."""

import os
import shutil
from pathlib import Path

import pytest

from protocol.errors import SetupError
from scripts.making.files import VideoSettings, name_files, name_of, preview_of


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red car", "a-red-car"),
        ("  A RED, shiny car! ", "a-red-shiny-car"),
        ("Löwe 2", "löwe-2"),
        ("../../etc/passwd", "etc-passwd"),
        ("...", "object"),
        ("x" * 300, "x" * 60),
        ("x" * 59 + " y", "x" * 59),
    ],
)
def test_a_prompt_becomes_a_plain_name(prompt: str, name: str) -> None:
    assert name_of(prompt) == name


def test_every_format_lies_beside_the_first() -> None:
    (files,) = name_files(Path("car.v2.spz"), ("glb", ".MP4", "spz"), ["unused"])
    assert files == [Path("car.v2.spz"), Path("car.v2.glb"), Path("car.v2.mp4")]
    assert preview_of(files) == Path("car.v2.preview.png")
    assert preview_of([*files, Path("car.PNG")]) is None


def test_names_that_come_twice_are_numbered(tmp_path: Path) -> None:
    files = name_files(tmp_path / "my-{name}.ply", (), ["car", "car", "car-2", "car"])
    names = [file.name for (file,) in files]
    assert names == ["my-car.ply", "my-car-2.ply", "my-car-2-2.ply", "my-car-3.ply"]


def test_the_name_may_be_a_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "car").mkdir()
    out = tmp_path / "{name}" / "object.ply"
    assert name_files(out, (), ["car"]) == [[tmp_path / "car" / "object.ply"]]
    with pytest.raises(SetupError, match="there is no folder"):
        name_files(out, (), ["car", "mug"])


def test_a_full_disk_is_reported_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (tmp_path / "link.ply").symlink_to(full / "car.ply")
    usage = shutil.disk_usage

    def of(folder: Path) -> object:
        return usage(folder)._replace(free=0 if folder == full else 1_000_000)

    monkeypatch.setattr(shutil, "disk_usage", of)
    assert name_files(tmp_path / "car.ply", (), ["car"]) == [[tmp_path / "car.ply"]]
    for out in (full / "car.ply", tmp_path / "link.ply"):
        with pytest.raises(SetupError, match="full has 0 bytes free, at least 1,000,000 are"):
            name_files(out, (), ["car"])


def test_a_folder_that_cannot_be_written_is_reported_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda folder, mode: folder != tmp_path)
    with pytest.raises(SetupError, match="cannot be written by this user"):
        name_files(tmp_path / "car.ply", (), ["car"])


def test_a_video_has_a_picture_at_least() -> None:
    assert VideoSettings().frames == 96
    assert VideoSettings(seconds=0.01, fps=1).frames == 1
