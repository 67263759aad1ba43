"""What a command makes is what its user and the machine say."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from generation.settings import GenerationSettings
from scripts import image_to_3d, text_to_3d
from scripts.making import command
from scripts.making.choice import Machine
from scripts.making.maker import Subject
from tests.scripts.test_image_to_3d import PICTURE

GPU = Machine(80_000_000_000, ("gpu24", "gpu80"), Path("/models"))
NO_GPU = Machine(None, ("gpu24", "gpu80"), Path("/models"))


class Called:
    """Stands in for the machine, and for what takes minutes on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
        self.machine = machine
        self.asked: list[tuple[str | None, bool]] = []
        self.settings: list[GenerationSettings] = []
        self.subjects: Sequence[Subject] = ()
        monkeypatch.setattr(command, "look", self.look)
        monkeypatch.setattr(command, "make_all", self.make_all)

    def look(
        self,
        device: str | None,
        models_dir: object,
        *,
        image_only: bool,
        settings_of: Callable[[str], GenerationSettings],
    ) -> Machine:
        self.asked.append((device, image_only))
        self.looked_at = {name: settings_of(name) for name in self.machine.settings}
        return replace(self.machine, settings=self.looked_at)

    def make_all(
        self, settings: GenerationSettings, subjects: Sequence[Subject], **options: Any
    ) -> int:
        self.settings.append(settings)
        self.subjects = subjects
        return 0


def test_words_take_the_machines_preset_with_the_users_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = Called(monkeypatch, GPU)
    own = ["--text_to_image.steps", "2", "--seed", "7"]
    assert text_to_3d.main(["a red car", *own]) == 0
    assert text_to_3d.main(["a red car", "--device", "cuda:1", "--accelerate"]) == 0
    assert called.asked == [(None, False), ("cuda:1", False)]
    first, second = called.settings
    assert (first.name, first.device, first.text_to_image.steps) == ("gpu24", "cuda", 2)
    assert called.looked_at["gpu24"] == second.model_copy(update={"device": "cuda:1"})
    assert (second.device, second.text_to_image.steps) == ("cuda:1", 4)
    # Compiling does not pay for a few objects, unless the user thinks so.
    assert (first.accelerate, second.accelerate) == (False, True)
    assert capsys.readouterr().err == "preset gpu24\n" * 2


@pytest.mark.parametrize(
    "files",
    [("--out", "{name}.glb"), ("--out", "{name}.ply", "--also", "spz,obj,png")],
    ids=["alone", "one of several formats"],
)
@pytest.mark.parametrize(
    "chosen", [("--lift.backend", "triposplat"), ("--preset", "gpu24-splat")], ids=" ".join
)
def test_one_mesh_that_the_back_end_cannot_make_stops_everything_before_it_begins(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    chosen: tuple[str, ...],
    files: tuple[str, ...],
) -> None:
    called = Called(monkeypatch, GPU)
    assert text_to_3d.main(["a", "b", *files, *chosen]) == 2
    assert image_to_3d.main([str(PICTURE), *files, *chosen]) == 2
    assert (called.asked, called.settings) == ([], [])
    error = capsys.readouterr().err
    assert error.count("triposplat makes Gaussian splats (ply, spz), but no mesh (glb, obj)") == 2
    fix = "fix: ask for ply or spz, or choose another back end with --lift.backend triposr"
    assert error.count(fix) == 2
    # The remedy that it names is one.
    assert text_to_3d.main(["a", "b", *files, *chosen, "--lift.backend", "triposr"]) == 0


def test_the_seed_reaches_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    called = Called(monkeypatch, GPU)
    assert text_to_3d.main(["a", "b", "--out", "{name}.ply", "--seed", "7"]) == 0
    assert [subject.task.seed for subject in called.subjects] == [7, 7]
    assert image_to_3d.main([str(PICTURE), "--seed", "9"]) == 0
    assert [subject.task.seed for subject in called.subjects] == [9]


def test_a_picture_takes_the_cpu_where_there_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = Called(monkeypatch, NO_GPU)
    assert image_to_3d.main([str(PICTURE)]) == 0
    (settings,) = called.settings
    assert (settings.name, settings.device) == ("gpu24", "cpu")
    assert (
        capsys.readouterr().err
        == "preset gpu24: there is no CUDA GPU here, so it runs on the CPU\n"
    )
    # The user's device is tried all the same.
    assert image_to_3d.main([str(PICTURE), "--device", "cuda:3"]) == 0
    assert called.settings[1].device == "cuda:3"
    assert called.asked == [(None, True), ("cuda:3", True)]


def test_a_preset_that_is_named_is_taken_without_a_look(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called = Called(monkeypatch, GPU)
    assert text_to_3d.main(["a red car", "--preset", "embedded"]) == 0
    assert called.asked == []
    assert (called.settings[0].name, called.settings[0].device) == ("embedded", "cpu")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("named", [[], ["--preset", "gpu80"]])
def test_the_settings_that_are_printed_are_those_in_effect(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    named: list[str],
) -> None:
    called = Called(monkeypatch, GPU)
    own = [*named, "--splats.resolution", "96"]
    with pytest.raises(SystemExit) as stopped:
        text_to_3d.main(["--print-config", *own])
    assert stopped.value.code == 0
    file = tmp_path / "own.yaml"
    file.write_text(capsys.readouterr().out)
    assert text_to_3d.main(["a red car", "--config", str(file)]) == 0
    assert text_to_3d.main(["a red car", *own]) == 0
    assert called.settings[0] == called.settings[1]
    assert called.settings[0].name == (named or ["", "gpu24"])[1]
    assert called.settings[0].splats.resolution == 96


def test_an_interrupt_is_an_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    Called(monkeypatch, GPU)
    monkeypatch.setattr(command, "make_all", interrupted)
    assert text_to_3d.main(["a red car", "--preset", "embedded"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"
