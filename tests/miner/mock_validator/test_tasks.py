import base64
import codecs
import os
from pathlib import Path

import pytest

from miner.mock_validator import tasks as tasks_module
from miner.mock_validator.records import record_name
from miner.mock_validator.tasks import DEFAULT_PROMPTS, collect_tasks, read_prompts
from protocol.errors import SetupError


def test_without_anything_our_own_prompts_are_sent() -> None:
    tasks = collect_tasks(None, None)
    assert [task.shown for task in tasks] == list(DEFAULT_PROMPTS)
    assert tasks[0].name == "01-a-blue-cube"
    assert len({task.id for task in tasks}) == len(tasks)


def test_prompts_come_before_images_in_the_order_of_names(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cube\n\n# a comment\n  a sphere \n")
    images = tmp_path / "images"
    images.mkdir()
    (images / "b.PNG").write_bytes(b"two")
    (images / "a.webp").write_bytes(b"one")
    (images / "notes.txt").write_bytes(b"no")
    tasks = collect_tasks(prompts, images)
    assert [(task.kind, task.shown) for task in tasks] == [
        ("text", "a cube"),
        ("text", "a sphere"),
        ("image", "a.webp"),
        ("image", "b.PNG"),
    ]
    assert base64.b64decode(tasks[2].wire) == b"one"
    assert tasks[2].wire not in repr(tasks[2])


@pytest.mark.parametrize(("count", "names"), [(1, ["a"]), (5, ["a", "b", "a", "b", "a"])])
def test_the_count_cuts_or_repeats(tmp_path: Path, count: int, names: list[str]) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\nb\n")
    tasks = collect_tasks(prompts, None, count)
    assert [task.shown for task in tasks] == names
    assert len({task.name for task in tasks}) == count


def test_nothing_to_send_is_a_start_up_message(tmp_path: Path) -> None:
    empty = tmp_path / "prompts.txt"
    empty.write_text("\n# only a comment\n")
    with pytest.raises(SetupError, match="nothing to send"):
        collect_tasks(empty, None)
    with pytest.raises(SetupError, match="--prompts and --images"):
        collect_tasks(tmp_path / "absent.txt", None)
    with pytest.raises(SetupError, match="--prompts and --images"):
        collect_tasks(None, tmp_path / "absent")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a blue cube", "07-a-blue-cube"),
        ("../../etc/passwd", "07-etc-passwd"),
        ("Ünï çödé!", "07-n-d"),
        ("???", "07-task"),
        ("x" * 200, "07-" + "x" * 48),
    ],
)
def test_a_prompt_becomes_a_harmless_file_name(prompt: str, name: str) -> None:
    assert record_name(7, prompt) == name


TEXT = "a red car\nein grünes Haus\n"
WANTED = ["a red car", "ein grünes Haus"]


@pytest.mark.parametrize(
    "content",
    [
        TEXT.encode(),
        TEXT.rstrip().encode(),
        codecs.BOM_UTF8 + TEXT.encode(),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + TEXT.encode("utf-32-le"),
        codecs.BOM_UTF32_BE + TEXT.encode("utf-32-be"),
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        codecs.BOM_UTF8 + b"a red car\n" + codecs.BOM_UTF8 + "ein grünes Haus".encode(),
        codecs.BOM_UTF8 + b"# a comment\r\n\r\n \t\r\n" + TEXT.encode() + b"  # another\n",
    ],
)
def test_prompts_are_read_as_they_were_meant(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    assert read_prompts(path) == WANTED


def test_only_ends_of_lines_part_prompts(tmp_path: Path) -> None:
    """Python would part lines at a form feed or a line separator too."""
    path = tmp_path / "prompts.txt"
    path.write_bytes("a red\x0bcar\x0c\x1c\x85\u2028or two\n".encode())
    assert len(read_prompts(path)) == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a red car\n\na caf\xe9\n", "line 3 of .* is not UTF-8"),
        (b"a red car\r\na caf\xe9\r\n", "line 2 of .* is not UTF-8"),
        (codecs.BOM_UTF8 + b"\xff", "line 1 of .* is not UTF-8"),
        (
            codecs.BOM_UTF16_LE + "a\nb".encode("utf-16-le") + b"\x00",
            "line 2 of .* is not UTF-16-LE",
        ),
        (TEXT.encode("utf-16-le"), "line 1 of .* holds a NUL character"),
        ("a red car\n".encode("utf-16-be"), "line 1 of .* holds a NUL character"),
        (b"a red car\nb\0c", "line 2 of .* holds a NUL character"),
    ],
)
def test_a_file_that_is_no_text_is_refused_and_its_line_named(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(SetupError, match=words) as caught:
        collect_tasks(path, None)
    assert "UTF-8" in caught.value.fix


def test_a_file_without_an_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_module, "MOST_PROMPT_BYTES", 1000)
    with pytest.raises(SetupError, match="more than 1,000 bytes"):
        read_prompts(Path("/dev/zero"))


def test_names_of_images_are_shown_harmlessly_and_folders_left_out(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / os.fsdecode(b"bad\xff.png")).write_bytes(b"one")
    (tmp_path / "\x1b[2J.png").write_bytes(b"two")
    tasks = collect_tasks(None, tmp_path)
    assert sorted(task.shown for task in tasks) == ["\\x1b[2J.png", "bad\\udcff.png"]


def test_a_file_of_a_windows_editor() -> None:
    golden = Path(__file__).parents[2] / "golden" / "cases" / "prompts_bom.txt"
    assert read_prompts(golden)[0] == "a red car"
    assert len(read_prompts(golden)) == 2
