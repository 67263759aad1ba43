"""The stages of TripoSplat as a back end, with the embedded networks and short runs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from generation.errors import NoObject
from generation.lift import stages_of
from generation.lift.triposplat import loading
from generation.lift.triposplat.features import PictureEncoders
from generation.lift.triposplat.loading import functions_of, load_networks
from generation.lift.triposplat.model import TripoSplat
from generation.presets import preset
from generation.settings import GenerationSettings, LiftSettings, RungSettings
from generation.stage import Cutout, StageFunction, StepContext
from protocol.errors import SetupError, TaskError
from protocol.tasks import ImageTask, Task, TextTask
from tests.support.pictures import grey_bomb

Networks = tuple[TripoSplat, PictureEncoders]
SPLAT = preset("embedded").model_copy(
    update={"lift": LiftSettings(backend="triposplat"), "rungs": ()}
)


def settings_of(*rungs: RungSettings, **own: float) -> GenerationSettings:
    chosen = SPLAT.triposplat.model_copy(update={"steps": 2, "max_gaussians": 1600, **own})
    return SPLAT.model_copy(update={"triposplat": chosen, "rungs": rungs})


def text(seed: int | None) -> TextTask:
    return TextTask(id="a", prompt="a red cube", seed=seed)


def block(width: int, colour: tuple[int, int, int], height: int = 100) -> Cutout:
    """A cut-out with a rectangle in the middle."""
    rgba = np.zeros((256, 256, 4), np.uint8)
    rgba[..., :3] = colour
    top, left = 128 - height // 2, 128 - width // 2
    rgba[top : top + height, left : left + width, 3] = 255
    return Cutout(rgba[..., :3], rgba, rgba[..., :3])


RED, GREEN = block(160, (200, 30, 30)), block(80, (20, 180, 30))


@pytest.fixture(scope="module")
def networks() -> Networks:
    return load_networks(SPLAT, None, torch.device("cpu"))


class Run:
    """One request, stage by stage."""

    def __init__(
        self, settings: GenerationSettings, networks: Networks, cutout: Cutout, task: Task
    ) -> None:
        self._functions: Mapping[str, StageFunction] = functions_of(settings, *networks)
        self._context = StepContext(task, settings.ladder[0])
        self.value: Any = cutout

    def take(self, *stages: str) -> "Run":
        for stage in stages:
            self.value = self._functions[stage](self.value, self._context)
        return self


def latent_of(
    networks: Networks, settings: GenerationSettings, cutout: Cutout, task: Task
) -> torch.Tensor:
    run = Run(settings, networks, cutout, task).take("prepare", "features")
    run.take(*["flow"] * settings.ladder[0].lift_steps)
    latent: torch.Tensor = run.value.state.latent
    return latent


def positions_of(networks: Networks, settings: GenerationSettings, task: Task) -> torch.Tensor:
    run = Run(settings, networks, RED, task).take("prepare", "features", "flow", "flow")
    positions: torch.Tensor = run.take("gaussians").value.positions
    return positions


def test_a_task_has_its_own_seed_or_the_setting_s(networks: Networks) -> None:
    settings = settings_of(seed=3)
    third = positions_of(networks, settings, text(3))
    assert torch.equal(positions_of(networks, settings, text(None)), third)
    zeroth = positions_of(networks, settings, text(0))
    assert not torch.equal(zeroth, third)
    last = positions_of(networks, settings, text(2**32 - 1))
    assert not torch.equal(last, zeroth)


def test_the_seed_reaches_the_points_and_not_the_global_generator(networks: Networks) -> None:
    settings = settings_of()
    run = Run(settings, networks, RED, text(1)).take("prepare", "features", "flow", "flow")
    sampling = run.value
    torch.manual_seed(5)
    first = run.take("gaussians").value.positions
    after = torch.rand(1)
    again = Run(settings, networks, RED, text(1))
    again.value = sampling
    assert torch.equal(again.take("gaussians").value.positions, first)
    other = Run(settings, networks, RED, text(2))
    other.value = sampling
    assert not torch.equal(other.take("gaussians").value.positions, first)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)


def test_noise_and_points_share_a_seed_and_no_random_numbers(
    networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    decoder = networks[0].decoder
    monkeypatch.setattr(decoder, "decode_drawn", lambda _, n, uniform: drawn.append(uniform(n)))
    decoder.decode(torch.zeros(1, 1, 1), 64, 1)
    assert not torch.equal(drawn[0], torch.rand(64, generator=torch.Generator().manual_seed(1)))


def test_two_requests_step_by_step_do_not_disturb_each_other(networks: Networks) -> None:
    settings = settings_of()
    alone = [
        latent_of(networks, settings, cutout, text(seed)) for cutout, seed in ((RED, 1), (GREEN, 2))
    ]
    red = Run(settings, networks, RED, text(1)).take("prepare")
    green = Run(settings, networks, GREEN, text(2)).take("prepare", "features", "flow")
    red.take("features", "flow")
    green.take("flow")
    red.take("flow")
    assert torch.equal(red.value.state.latent, alone[0])
    assert torch.equal(green.value.state.latent, alone[1])


@pytest.mark.parametrize(
    "changed", [{"guidance": 1.0}, {"shift": 1.0}, {"steps": 3}], ids=lambda c: next(iter(c))
)
def test_settings_of_sampling_reach_the_latent(
    networks: Networks, changed: Mapping[str, float]
) -> None:
    usual = latent_of(networks, settings_of(guidance=3.0, shift=3.0), RED, text(1))
    own = latent_of(
        networks, settings_of(**{"guidance": 3.0, "shift": 3.0, **changed}), RED, text(1)
    )
    assert not torch.allclose(own, usual, atol=1e-3)


def test_a_lower_level_takes_its_own_steps_and_gaussians(networks: Networks) -> None:
    settings = settings_of(RungSettings(name="draft", lift_steps=1, gaussians=160))
    context = StepContext(text(1), settings.ladder[1])
    functions = functions_of(settings, *networks)
    sampling = functions["features"](functions["prepare"](RED, context), context)
    assert sampling.sampler.steps == 1
    made = functions["gaussians"](functions["flow"](sampling, context), context)
    assert len(made.positions) == 160


@pytest.mark.parametrize(("steps", "late"), [(1, 0), (6, 2), (10, 4), (20, 8)])
def test_the_last_four_tenths_of_the_steps_are_optional(steps: int, late: int) -> None:
    (stage,) = (stage for stage in stages_of(SPLAT, "triposplat") if stage.name == "flow")
    rung = replace(SPLAT.ladder[0], lift_steps=steps)
    optional = [stage.step(text(1), rung, index, 1, False).optional for index in range(steps)]
    assert optional == [False] * (steps - late) + [True] * late


def test_without_its_late_steps_a_request_goes_on_to_the_end_of_the_flow(
    networks: Networks,
) -> None:
    settings = settings_of(steps=5)
    run = Run(settings, networks, RED, text(1)).take("prepare", "features", "flow", "flow", "flow")
    sampling = run.value
    assert sampling.state.index == 3
    expected = networks[0].decoder.decode(sampling.sampler.finish(sampling.state), 1600, seed=1)
    short = run.take("gaussians").value.positions
    assert torch.equal(short, expected.positions)
    run.value = sampling
    whole = run.take("flow", "flow", "gaussians").value.positions
    assert not torch.allclose(whole, short)


@pytest.mark.parametrize(("most", "made"), [(16, 16), (31, 16), (1600, 1600)])
def test_a_cloud_has_whole_points(networks: Networks, most: int, made: int) -> None:
    positions = positions_of(networks, settings_of(max_gaussians=most), text(1))
    assert len(positions) == made


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (settings_of(max_gaussians=15), "level full has 15 Gaussians"),
        (settings_of(RungSettings(name="draft", gaussians=1)), "level draft has 1 Gaussians"),
    ],
    ids=["setting", "rung"],
)
def test_fewer_gaussians_than_a_point_has_are_refused_at_the_start(
    networks: Networks, settings: GenerationSettings, named: str
) -> None:
    with pytest.raises(SetupError, match=f"{named} at most, TripoSplat makes 16") as refused:
        functions_of(settings, *networks)
    assert refused.value.fix.endswith("--rungs, 16 or more")


@pytest.mark.parametrize(
    "cutout", [block(1, (9, 9, 9)), block(256, (9, 9, 9), 256)], ids=["thin", "opaque"]
)
def test_a_picture_without_an_object_is_the_caller_s_error_only_if_the_caller_sent_it(
    networks: Networks, cutout: Cutout
) -> None:
    def prepared(task: Task) -> Run:
        return Run(settings_of(), networks, cutout, task).take("prepare")

    with pytest.raises(TaskError, match="send a picture of one object"):
        prepared(ImageTask(id="a", image=grey_bomb(64)))
    with pytest.raises(NoObject):
        prepared(text(1))


@pytest.mark.parametrize("eight_bit", [True, False])
def test_layers_are_held_in_eight_bits_only_if_asked(
    networks: Networks, monkeypatch: pytest.MonkeyPatch, eight_bit: bool
) -> None:
    held: list[TripoSplat] = []
    monkeypatch.setattr(loading, "hold_in_eight_bits", held.append)
    functions_of(settings_of(eight_bit=eight_bit), *networks)
    assert held == ([networks[0]] if eight_bit else [])
