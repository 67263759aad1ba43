"""What engines were seen to take, over a restart."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from loguru import logger

from miner.estimates_file import FILE_NAME, EstimatesFile
from miner.problems import Problems
from miner.scheduling.estimates import Estimates
from tests.support.fakes import Clock

MACHINE = "gpu80 on a card"
MACHINES = {"gpu-0": MACHINE, "gpu-1": "gpu80 on another card"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message)), level="WARNING")
    yield lines
    logger.remove(sink)


def observed() -> Estimates:
    """Two engines that have served requests, and a stage that only the warm-up has run."""
    clock = Clock()
    estimates = Estimates(clock)
    estimates.set_prior("gpu-0", {"lift:triposr": 9.0, "decode:512": 0.4})
    for index in range(60):
        clock.now += 1.0
        estimates.observe("gpu-0", "lift:triposr", 1.0 if index % 2 else 1.2)
        estimates.observe("gpu-1", "lift:triposr", 3.0)
    return estimates


def restored(path: Path, engine: str = "gpu-0", machine: str = MACHINE) -> Estimates:
    """What a new process knows after it has read the file."""
    estimates = Estimates(Clock(5.0))
    EstimatesFile(path).restore(estimates, engine, machine)
    return estimates


def test_what_was_learned_is_known_after_a_restart(path: Path, warnings: list[str]) -> None:
    before = observed()
    EstimatesFile(path).save(before, MACHINES)
    after = restored(path)
    for cost in (before.cost("gpu-0", "lift:triposr"), after.cost("gpu-0", "lift:triposr")):
        assert cost.mean == pytest.approx(1.1, rel=0.05)
    old, new = before.export()["gpu-0", "lift:triposr"], after.export()["gpu-0", "lift:triposr"]
    assert (new.mean, new.variance, new.level) == (old.mean, old.variance, old.level)
    assert new.at == 5.0
    assert warnings == []


def test_an_engine_gets_back_only_what_it_took_itself(path: Path) -> None:
    EstimatesFile(path).save(observed(), MACHINES)
    assert set(restored(path).export()) == {("gpu-0", "lift:triposr")}
    other = restored(path, "gpu-1", MACHINES["gpu-1"])
    assert other.cost("gpu-1", "lift:triposr").mean == pytest.approx(3.0)


def test_a_warm_up_is_not_kept(path: Path) -> None:
    EstimatesFile(path).save(observed(), MACHINES)
    assert "decode:512" not in path.read_text()


def test_what_nobody_asked_for_in_this_run_is_kept_for_the_next(path: Path) -> None:
    EstimatesFile(path).save(observed(), MACHINES)
    second = restored(path)
    second.set_prior("gpu-0", {"decode:512": 0.4})
    EstimatesFile(path).save(second, MACHINES)
    assert restored(path).cost("gpu-0", "lift:triposr").mean == pytest.approx(1.1, rel=0.05)


@pytest.mark.parametrize(
    ("engine", "machine"), [("gpu-0", "gpu80 on a slower card"), ("gpu-2", MACHINE)]
)
def test_another_machine_takes_nothing_over(
    path: Path, warnings: list[str], engine: str, machine: str
) -> None:
    EstimatesFile(path).save(observed(), MACHINES)
    assert restored(path, engine, machine).export() == {}
    assert warnings == []
    assert path.exists()


def test_without_a_file_nothing_is_known(path: Path, warnings: list[str]) -> None:
    assert restored(path).export() == {}
    assert warnings == []


@pytest.mark.parametrize(
    "change",
    [
        {"version": 99},
        {"surprise": 1},
        {"estimates": [{"engine": "gpu-0", "key": "lift:triposr", "mean": -1.0}]},
        {
            "estimates": [
                {"engine": "gpu-0", "key": "k", "mean": 1e9, "variance": 0.0, "level": 1.0}
            ]
        },
    ],
)
def test_a_file_that_cannot_be_used_is_set_aside(
    path: Path, warnings: list[str], change: dict[str, object]
) -> None:
    EstimatesFile(path).save(observed(), MACHINES)
    damaged = json.loads(path.read_text()) | change
    path.write_text(json.dumps(damaged))
    assert restored(path).export() == {}
    assert json.loads(path.with_name(f"{FILE_NAME}.damaged-1").read_text()) == damaged
    assert "starting without what stages were seen to take" in warnings[0]
    EstimatesFile(path).save(observed(), MACHINES)
    assert restored(path).export() != {}


def test_a_disk_that_takes_nothing_only_warns(
    path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    EstimatesFile(path).save(observed(), MACHINES)
    before = path.read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    problems = Problems()
    file = EstimatesFile(path, problems)
    for _ in range(3):
        file.save(Estimates(Clock()), {})
    assert "is not written: No space left on device" in warnings[0]
    assert path.read_bytes() == before
    assert len(warnings) == 1, "every minute would be too often"
    assert "No space left on device" in problems.sentences[0]
    monkeypatch.undo()
    file.save(observed(), MACHINES)
    assert problems.sentences == []
    assert restored(path).export() != {}


def test_a_folder_that_is_missing_only_warns(tmp_path: Path, warnings: list[str]) -> None:
    EstimatesFile(tmp_path / "missing" / FILE_NAME).save(observed(), MACHINES)
    assert "is not written: No such file or directory" in warnings[0]


def test_a_file_that_cannot_be_read_only_warns(path: Path, warnings: list[str]) -> None:
    path.mkdir()
    assert restored(path).export() == {}
    assert "cannot be read: Is a directory" in warnings[0]


def test_an_implausible_estimate_does_not_spoil_the_file(path: Path) -> None:
    estimates = observed()
    estimates.observe("gpu-0", "encode:60000", 1e9)
    EstimatesFile(path).save(estimates, MACHINES)
    assert set(restored(path).export()) == {("gpu-0", "lift:triposr")}
