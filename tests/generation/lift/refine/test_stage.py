"""The stage `refine`: behind any back end, in slices, left out where there is no time."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from generation.lift import stages_of
from generation.lift.refine.pose import ELEVATION
from generation.lift.refine.stage import Refining, refining
from generation.lift.triposr.loading import functions_of as triposr_functions
from generation.lift.triposr.loading import load_network
from generation.loading import assemble_image_only, load_background
from generation.packing import Splats
from generation.presets import preset
from generation.settings import GenerationSettings, RefineSettings
from generation.stage import Asset, Cutout, StageFunction, StepContext, route
from protocol.tasks import ImageTask
from scripts.demo import shaded_ball
from tests.generation.lift.refine.test_refinement import POSE, TRUTH, ellipsoid, photograph
from tests.support.pictures import encoded

CPU = torch.device("cpu")
TASK = ImageTask(id="picture", image=encoded(shaded_ball(96), "PNG"))


def with_refinement(steps: int = 12, slice: int = 4) -> GenerationSettings:
    refine = RefineSettings(steps=steps, slice=slice, size=32, elevation=20)
    return preset("embedded").model_copy(update={"refine": refine})


def functions_of(settings: GenerationSettings, start: Splats) -> dict[str, StageFunction]:
    """Of a back end with two stages, the second of which returns `start`."""

    def lift(cutout: Cutout, context: StepContext) -> str:
        return "scene code"

    def splats(code: str, context: StepContext) -> Splats:
        assert code == "scene code"
        return start

    return dict(refining({"lift": lift, "splats": splats}, settings, CPU))


@pytest.fixture(scope="module")
def start() -> Splats:
    return ellipsoid().to_splats()


@pytest.fixture(scope="module")
def cutout() -> Cutout:
    rgba = photograph(TRUTH, POSE)
    return Cutout(rgba[..., :3], rgba, rgba[..., :3])


def test_only_the_best_level_refines_and_only_if_asked_to() -> None:
    settings = with_refinement()
    best, *lower = settings.ladder
    stages = stages_of(settings, "triposr")

    def slices(rung: Any) -> list[str]:
        return [step.stage for step in route(stages, TASK, rung) if step.stage == "refine"]

    assert len(slices(best)) == 3
    assert lower
    assert not any(slices(rung) for rung in lower)
    assert "refine" not in [stage.name for stage in stages_of(preset("embedded"), "triposr")]


def test_the_cloud_is_usable_after_every_slice(start: Splats, cutout: Cutout) -> None:
    settings = with_refinement()
    functions, context = functions_of(settings, start), StepContext(TASK, settings.ladder[0])
    value = functions["splats"](functions["lift"](cutout, context), context)
    assert value.splats() is start
    for _ in range(settings.ladder[0].refine_slices):
        value = functions["refine"](value, context)
        assert isinstance(value, Refining)
        assert len(value.splats().cloud) == len(start.cloud)
        assert np.isfinite(value.splats().cloud.positions).all()
    assert value.refinement is not None
    assert value.refinement.done == 12
    assert value.splats() is not start


def test_the_usual_elevation_of_pictures_is_a_setting(start: Splats, cutout: Cutout) -> None:
    own = RefineSettings(steps=4, slice=1, size=32, elevation=40, spread=0.5)
    settings = preset("embedded").model_copy(update={"refine": own})
    functions, context = functions_of(settings, start), StepContext(TASK, settings.ladder[0])
    value = functions["refine"](Refining(cutout, start), context)
    found = math.degrees(float(value.refinement.pose.detach()[ELEVATION]))
    assert found == pytest.approx(40, abs=1)


def test_a_level_without_refinement_carries_nothing(start: Splats, cutout: Cutout) -> None:
    settings = with_refinement()
    functions, context = functions_of(settings, start), StepContext(TASK, settings.ladder[-1])
    assert functions["lift"](cutout, context) == "scene code"
    assert functions["splats"]("scene code", context) is start


@pytest.mark.parametrize("refined", [True, False], ids=["after one slice", "without any"])
def test_what_has_been_refined_so_far_becomes_an_asset(refined: bool) -> None:
    """A step that is left out for lack of time leaves what the one before it made."""
    settings = with_refinement(steps=3, slice=2)
    back_end = triposr_functions(settings, load_network(settings, None, CPU))
    background = load_background(settings, None, CPU)
    functions = assemble_image_only(settings, background, {"triposr": back_end}).functions
    context = StepContext(TASK, settings.ladder[0])
    value: Any = TASK
    for stage in ("cutout", "lift", "splats", *(["refine"] if refined else []), "encode"):
        value = functions[stage](value, context)
    assert isinstance(value, Asset)
    assert value.validity.passed
    mesh = functions["mesh"](
        functions["lift"](functions["cutout"](TASK, context), context), context
    )
    assert len(mesh.faces) > 1000
