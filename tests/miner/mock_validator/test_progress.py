"""A trial shows what it does on a terminal and in a file."""

import io
from pathlib import Path

from rich.console import Console

from miner.mock_validator.progress import TrialProgress
from miner.mock_validator.records import TrialRecord

GOOD = TrialRecord(name="01-a-red-[b]car", kind="text", prompt="a red car", task_id="t").model_copy(
    update={"outcome": "completed", "elapsed_s": 1.234, "problems": ()}
)
BAD = GOOD.model_copy(
    update={"name": "02", "outcome": "failed", "problems": ("failed: no \x1b[2J object",)}
)


def shown(*, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=60)
    with TrialProgress(console, "asking [127.0.0.1]:1", 2) as progress:
        progress.note(GOOD)
        progress.note(BAD)
    return out.getvalue()


def test_a_file_gets_a_whole_line_for_the_beginning_and_for_each_task_as_it_ends() -> None:
    assert shown(terminal=False).splitlines() == [
        "asking [127.0.0.1]:1",
        "01-a-red-[b]car: completed in 1.23 s, good",
        r"02: failed in 1.23 s, failed: no \x1b[2J object",
    ]


def test_a_terminal_gets_a_bar() -> None:
    text = shown(terminal=True)
    assert "02: failed" in text
    assert "100%" in text
    assert "in 1.23 s" not in text


def test_a_line_is_in_the_file_at_once_not_only_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    with path.open("w") as file, TrialProgress(Console(file=file), "waiting", None) as progress:
        assert path.read_text() == "waiting\n"
        progress.note(GOOD)
        assert path.read_text().endswith(" good\n")
