"""What tasks can become is the back end's to say: nothing plans a way without an end."""

from typing import get_args

import pytest

from generation.lift import BACK_ENDS
from generation.plan import Output
from generation.presets import preset
from generation.settings import BackEndName, LiftSettings
from protocol.errors import TaskError
from tests.support.fake_stages import UNSCORED, FakeStages, task


def test_a_mesh_of_a_back_end_without_a_surface_says_what_it_makes_and_what_to_do() -> None:
    engine = FakeStages().engine(preset("gpu24-splat"))
    assert engine.outputs == {"splats"}
    with pytest.raises(TaskError) as caught:
        engine.route(task("a"), engine.ladder[0], "mesh")
    assert str(caught.value) == (
        "the 3D back end triposplat makes Gaussian splats (ply, spz), but no mesh (glb, obj); "
        "ask for ply or spz, or choose another back end with --lift.backend triposr"
    )


@pytest.mark.parametrize("back_end", get_args(BackEndName))
def test_every_route_of_an_engine_ends_in_what_was_asked_for(back_end: BackEndName) -> None:
    """By the list of stages, so that the next back end is covered, too."""
    settings = UNSCORED.model_copy(update={"lift": LiftSettings(backend=back_end)})
    engine = FakeStages().engine(settings)
    last = {stage.output: stage.name for stage in BACK_ENDS[back_end].stages}
    for output in get_args(Output):
        if output not in engine.outputs:
            with pytest.raises(TaskError, match=f"{back_end} makes"):
                engine.route(task("a"), engine.ladder[0], output)
            continue
        names = [step.stage for step in engine.route(task("a"), engine.ladder[0], output)]
        assert last[output] in names
        assert names[-1] == ("encode" if output == "splats" else last[output])
