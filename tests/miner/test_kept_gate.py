"""What validators said of earlier results, over a restart."""

import asyncio
import json
import os
from pathlib import Path

import pytest
from loguru import logger

from miner.kept_gate import FILE_NAME, KeptGate
from miner.problems import Problems
from miner.scheduling.gate import MOST_SCORERS, WINDOW, GateLimits, Pair

LIMITS = GateLimits()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


def pairs(count: int, scorer: str = "embedded") -> list[Pair]:
    """Results just above the limit that a validator refused, every second one as a probe."""
    return [Pair(0.61 + n / 1000, False, None, 0.6, scorer, bool(n % 2)) for n in range(count)]


def observe(kept: KeptGate, pair: Pair) -> None:
    asyncio.run(kept.observe(pair))


def test_what_was_learned_is_known_after_a_restart(path: Path) -> None:
    kept = KeptGate(LIMITS, path)
    for pair in [*pairs(30), Pair(0.7, True, 0.72, 0.6, "validator")]:
        observe(kept, pair)
    again = KeptGate(LIMITS, path)
    assert again.gate.pairs == kept.gate.pairs
    assert again.gate.calibration("embedded") == kept.gate.calibration("embedded")
    assert again.gate.judge(0.62, "embedded").margin > 0.02
    assert json.loads(path.read_text())["version"] == 1


def test_every_verdict_is_on_disk_before_the_next_task(path: Path) -> None:
    kept = KeptGate(LIMITS, path)
    for count, pair in enumerate(pairs(3), start=1):
        observe(kept, pair)
        assert KeptGate(LIMITS, path).gate.pairs == tuple(pairs(count))


def test_the_fullest_file_can_be_read(path: Path) -> None:
    kept = KeptGate(LIMITS, path)
    for number in range(MOST_SCORERS):
        for pair in pairs(WINDOW, scorer=f"{number}" * 200):
            kept.gate.observe(pair)
    observe(kept, Pair(0.123456789012345678, False, None, 0.6, "7" * 200, False))
    assert KeptGate(LIMITS, path).gate.pairs == kept.gate.pairs
    assert len(kept.gate.pairs) == MOST_SCORERS * WINDOW


@pytest.mark.parametrize(
    "content",
    ["", "{", '{"version": 2, "pairs": []}', '{"version": 1, "pairs": [{"predicted": NaN}]}'],
)
def test_a_file_that_cannot_be_used_is_set_aside(path: Path, content: str) -> None:
    path.write_text(content)
    kept = KeptGate(LIMITS, path)
    assert kept.gate.pairs == ()
    assert path.with_name(f"{FILE_NAME}.damaged-1").read_text() == content
    observe(kept, pairs(1)[0])
    assert KeptGate(LIMITS, path).gate.pairs == tuple(pairs(1))


def test_a_file_that_cannot_be_read_costs_only_what_was_learned(path: Path) -> None:
    os.mkfifo(path)
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    assert KeptGate(LIMITS, path).gate.judge(0.7, "embedded").passed
    logger.remove(sink)
    assert len(lines) == 1
    assert "cannot be read: not a plain file" in lines[0]


def test_a_disk_that_takes_nothing_is_reported_once_and_the_gate_goes_on(path: Path) -> None:
    problems = Problems()
    kept = KeptGate(LIMITS, path, problems)
    path.mkdir()
    for pair in pairs(2):
        observe(kept, pair)
    assert len(problems.sentences) == 1
    assert f"{path} is not written" in problems.sentences[0]
    assert len(kept.gate.pairs) == 2
    path.rmdir()
    observe(kept, pairs(3)[2])
    assert problems.sentences == []
    assert KeptGate(LIMITS, path).gate.pairs == kept.gate.pairs
