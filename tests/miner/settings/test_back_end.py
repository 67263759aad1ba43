"""One setting chooses the 3D back end, wherever it is given, and nothing else has to change."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import pytest

from generation.lift import BACK_ENDS
from generation.presets import PRESETS, changes
from generation.settings import BackEndName, GenerationSettings
from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from protocol.errors import SetupError
from scripts.doctor import DoctorConfig
from scripts.text_to_3d import TextTo3DSettings

NAMES: Sequence[BackEndName] = get_args(BackEndName)


@dataclass(frozen=True)
class Given:
    """What is given beside the preset, and where."""

    argv: Sequence[str] = ()
    environ: dict[str, str] = field(default_factory=dict)

    def read(self, preset: str) -> GenerationSettings:
        argv = ("--transports", "http", "--preset", preset, *self.argv)
        environ, prefix = self.environ, "MINER"
        return read_settings(
            MinerConfig, prog="miner", env_prefix=prefix, argv=argv, environ=environ
        ).generation


def on_the_command_line(folder: Path, name: str) -> Given:
    return Given(("--lift.backend", name))


def in_the_environment(folder: Path, name: str) -> Given:
    return Given(environ={"MINER_LIFT_BACKEND": name})


def in_a_file(folder: Path, name: str) -> Given:
    file = folder / "miner.yaml"
    file.write_text(f"lift: {{backend: {name}}}\n")
    return Given(("--config", str(file)))


WAYS = (on_the_command_line, in_the_environment, in_a_file)
Way = Callable[[Path, str], Given]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("preset", PRESETS)
def test_one_setting_switches_every_preset_in_both_directions_and_changes_nothing_else(
    tmp_path: Path, way: Way, preset: str
) -> None:
    before = PRESETS[preset]
    for name in NAMES:
        settings = way(tmp_path, name).read(preset)
        same = name == before.lift.backend
        assert changes(settings) == ({} if same else {"lift.backend": name})
        assert {rung.back_end for rung in settings.ladder} == {name}
        assert (settings.ladder[0].lift_steps > 0) == (name != "triposr")
        public = {
            "triposr": settings.triposr.model,
            "triposplat": settings.triposplat.model,
            "dreamgaussian": settings.dreamgaussian.model,
        }
        weights = {model for model in public.values() if model in settings.models}
        assert weights == ({public[name]} if public[name] else set())


@pytest.mark.parametrize("way", WAYS)
def test_an_unknown_name_lists_the_known_ones_and_says_where_it_stands(
    tmp_path: Path, way: Way
) -> None:
    with pytest.raises(SetupError) as caught:
        way(tmp_path, "triposg").read("embedded")
    message = str(caught.value)
    assert "--lift.backend cannot be 'triposg'" in message
    for name in BACK_ENDS:
        assert repr(name) in message


def test_the_settings_know_the_back_ends_that_there_are() -> None:
    assert set(NAMES) == set(BACK_ENDS)


@pytest.mark.parametrize("model", [DoctorConfig, TextTo3DSettings])
def test_other_programs_take_the_same_flag(model: type[DoctorConfig | TextTo3DSettings]) -> None:
    argv = ["--preset", "gpu24", "--lift.backend", "triposplat"]
    argv += ["--transports", "http"] if model is DoctorConfig else ["a red car"]
    config = read_settings(model, prog="x", argv=argv)
    assert [rung.name for rung in config.generation.ladder] == ["full", "half", "quarter", "draft"]
