"""A file is replaced as a whole."""

import os
from pathlib import Path

import pytest

from protocol.files import remove_drafts, replace_file


def test_a_file_is_replaced_by_the_new_content(tmp_path: Path) -> None:
    path = tmp_path / "a.ply"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.ply"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_permissions_are_those_of_the_old_file_or_of_the_umask(tmp_path: Path) -> None:
    kept, fresh = tmp_path / "kept", tmp_path / "fresh"
    kept.write_bytes(b"")
    kept.chmod(0o600)
    replace_file(kept, b"x")
    before = os.umask(0o027)
    try:
        replace_file(fresh, b"x")
    finally:
        os.umask(before)
    assert kept.stat().st_mode & 0o777 == 0o600
    assert fresh.stat().st_mode & 0o777 == 0o640


def test_the_target_of_a_link_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    replace_file(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 255)
    replace_file(path, b"x")
    assert path.read_bytes() == b"x"


def test_what_is_no_plain_file_is_left_as_it_is(tmp_path: Path) -> None:
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    device = tmp_path / "device"
    device.symlink_to("/dev/null")
    for path in (pipe, folder, device):
        before = path.stat()
        with pytest.raises(OSError, match="not a plain file"):
            replace_file(path, b"x")
        assert path.stat().st_ino == before.st_ino
    assert len(list(tmp_path.iterdir())) == 3


def test_a_link_to_itself_is_an_os_error(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(OSError, match="symbolic links"):
        replace_file(loop, b"x")


def test_a_draft_is_never_more_readable_than_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"old")
    path.chmod(0o600)
    modes = []

    def watching(descriptor: int) -> None:
        modes.append(os.fstat(descriptor).st_mode & 0o777)

    monkeypatch.setattr(os, "fsync", watching)
    replace_file(path, b"new")
    assert modes == [0o600]


def test_drafts_of_killed_processes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    other = [tmp_path / name for name in ("a.part", ".ab.part", ".miner.log", "state.json")]
    for path in (*other, tmp_path / ".0123456789abcdef.part"):
        path.write_bytes(b"x")
    remove_drafts(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(other)
