"""The doctor says what the settings come to."""

from importlib.machinery import ModuleSpec

import pytest

from generation.presets import PRESETS, preset
from generation.settings import LiftSettings, RefineSettings
from miner.doctor import summary
from miner.doctor.findings import Status, carry_out
from miner.doctor.summary import in_words, preset_check


async def test_the_back_end_its_outputs_and_the_steps_of_each_level_are_said() -> None:
    finding = await carry_out(preset_check(preset("gpu24-splat")))
    assert (finding.check, finding.verdict.status) == ("preset", Status.OK)
    assert finding.verdict.found == (
        "gpu24-splat on cuda; 3D back end triposplat (splats, no meshes); levels: "
        "full (4 steps of a 512 px picture, 20 steps in 3D, at most 262,144 Gaussians), "
        "half (4 steps of a 512 px picture, 10 steps in 3D, at most 131,072 Gaussians), "
        "quarter (4 steps of a 512 px picture, 6 steps in 3D, at most 65,536 Gaussians), "
        "draft (2 steps of a 384 px picture, 6 steps in 3D, at most 60,000 Gaussians)"
    )


def test_a_changed_preset_is_told_with_its_changes() -> None:
    changed = preset("embedded").model_copy(update={"lift": LiftSettings(backend="triposplat")})
    assert in_words(changed).startswith("embedded with lift.backend triposplat on cpu; 3D back end")


@pytest.mark.parametrize("installed", [True, False])
async def test_dreamgaussian_on_cuda_needs_gsplat(
    monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    spec = ModuleSpec("gsplat", None) if installed else None
    monkeypatch.setattr(summary, "find_spec", lambda name: spec)
    lift = {"lift": LiftSettings(backend="dreamgaussian")}
    verdict = (await carry_out(preset_check(preset("gpu24").model_copy(update=lift)))).verdict
    assert "3D back end dreamgaussian (splats, no meshes)" in verdict.found
    assert "400 steps in 3D" in verdict.found
    assert verdict.status == (Status.OK if installed else Status.FAILED)
    assert ("gsplat" in verdict.found) != installed
    on_cpu = preset("embedded").model_copy(update=lift)
    assert (await carry_out(preset_check(on_cpu))).verdict.status == Status.OK


async def test_refinement_on_cuda_needs_gsplat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "find_spec", lambda name: None)
    refine = {"refine": RefineSettings(steps=50)}
    settings = preset("gpu24").model_copy(update=refine)
    verdict = (await carry_out(preset_check(settings))).verdict
    assert verdict.status == Status.FAILED
    assert "refinement cannot render" in verdict.found
    assert verdict.fix == "make install EXTRAS=gpu\nor no refinement: --refine.steps 0"
    both = settings.model_copy(update={"lift": LiftSettings(backend="dreamgaussian")})
    assert "dreamgaussian and refinement" in (await carry_out(preset_check(both))).verdict.found
    on_cpu = preset("embedded").model_copy(update=refine)
    assert (await carry_out(preset_check(on_cpu))).verdict.status == Status.OK


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_fits_on_a_line_of_the_doctor(name: str) -> None:
    assert len(in_words(PRESETS[name])) < 1000
