import base64
from pathlib import Path

import pytest

from miner.mock_validator.records import record_name
from miner.mock_validator.tasks import DEFAULT_PROMPTS, collect_tasks
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
