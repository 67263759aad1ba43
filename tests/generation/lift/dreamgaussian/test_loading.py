"""DreamGaussian as a back end: its stages in slices, on the preset embedded, with short runs."""

import asyncio
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from generation.engine import Engine
from generation.errors import OutOfMemory
from generation.lift import stages_of
from generation.lift.dreamgaussian import loading
from generation.lift.dreamgaussian.dream import Dream
from generation.lift.dreamgaussian.guidance import Guidance
from generation.lift.dreamgaussian.loading import functions_of, load_guidance
from generation.loading import LoadedStages, assemble_image_only, load
from generation.packing import LARGEST_SIDE, Splats
from generation.plan import Part, Plan, StepEvent
from generation.presets import preset
from generation.rendering import gsplat_backend
from generation.scoring.validity import MIN_GAUSSIANS, report_on
from generation.settings import GenerationSettings, LiftSettings, RungSettings, ScoringSettings
from generation.stage import Asset, Cutout, StepContext
from protocol import spz
from protocol.errors import SetupError, TaskError
from protocol.tasks import ImageTask, TextTask
from tests.generation.lift.dreamgaussian.test_dream import CPU, Painter
from tests.support.pictures import encoded, noise
from tests.support.waiting import until

BASE = preset("embedded").model_copy(
    update={"lift": LiftSettings(backend="dreamgaussian"), "scoring": ScoringSettings()}
)


def short(*rungs: RungSettings, **own: Any) -> GenerationSettings:
    small = {"guidance": "none", "steps": 5, "sizes": (16, 16, 20), "count": 7_050}
    chosen = BASE.dreamgaussian.model_copy(update={**small, **own})
    return BASE.model_copy(update={"dreamgaussian": chosen, "rungs": rungs})


def block(width: int, height: int, colour: tuple[int, int, int] = (200, 30, 30)) -> Cutout:
    """A cut-out with a rectangle in the middle."""
    rgba = np.zeros((64, 64, 4), np.uint8)
    rgba[..., :3] = colour
    top, left = 32 - height // 2, 32 - width // 2
    rgba[top : top + height, left : left + width, 3] = 255
    return Cutout(rgba[..., :3], rgba, rgba[..., :3])


def text(seed: int | None = 1) -> TextTask:
    return TextTask(id="a", prompt="a red cube", seed=seed)


def made(
    wanted: GenerationSettings,
    cutout: Cutout,
    slices: int,
    seed: int | None = 1,
    guidance: Guidance | None = None,
) -> Splats:
    """What the stages make when the object is cut off after that number of slices."""
    functions = functions_of(wanted, guidance, CPU)
    context = StepContext(text(seed), wanted.ladder[0])
    value = functions["prepare"](cutout, context)
    for _ in range(slices):
        value = functions["dream"](value, context)
    splats: Splats = functions["splats"](value, context)
    return splats


SHAPES = (block(54, 54), block(2, 54), block(54, 1), block(1, 1), block(64, 64, (255, 255, 255)))
ANY_SLICE = st.integers(min_value=1, max_value=4)


@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    slices=ANY_SLICE,
    shape=st.sampled_from(range(len(SHAPES))),
    guided=st.booleans(),
    count=st.sampled_from([2_000, 7_050]),
)
def test_a_cloud_that_is_cut_off_after_any_slice_passes_the_validators_data_checks(
    slices: int, shape: int, guided: bool, count: int
) -> None:
    wanted = short(steps=7, slice=2, count=count)
    painter = _SmallPainter() if guided else None
    splats = made(wanted, SHAPES[shape], slices, guidance=painter)
    file = spz.compress(splats.payload, level=1)
    report = report_on(splats.measures, wire_bytes=len(file))
    assert report.passed, report.summary()
    assert MIN_GAUSSIANS <= len(splats.cloud) <= wanted.dreamgaussian.max_gaussians
    assert np.ptp(splats.cloud.positions, axis=0).max() == pytest.approx(LARGEST_SIDE, rel=1e-4)
    assert len(spz.decode(file)) == len(splats.cloud)


def test_a_thin_object_is_valid_after_any_slice_and_stays_long(denoiser: Guidance) -> None:
    """As the preset makes it at a lower level, to save time: nearly all Gaussians fade."""
    functions, rung = functions_of(BASE, denoiser, CPU), BASE.ladder[-2]
    assert (BASE.dreamgaussian.count, rung.lift_steps) == (2_000, 75)
    context = StepContext(text(), rung)
    value = functions["prepare"](block(1, 54), context)
    for done in range(1, rung.lift_steps + 1):
        value = functions["dream"](value, context)
        if done % 15 == 0:
            splats = functions["splats"](value, context)
            report = report_on(splats.measures)
            assert report.passed, f"{done} steps: {report.summary()}"
    sides = np.ptp(splats.cloud.positions, axis=0)
    assert sides[1] == pytest.approx(LARGEST_SIDE, rel=1e-4)
    assert sides[0] < 0.4 * sides[1]


def test_slices_make_no_difference_with_the_shipped_denoiser(denoiser: Guidance) -> None:
    def bytes_of(slice: int, slices: int) -> bytes:
        wanted = short(steps=6, slice=slice, count=400)
        return made(wanted, SHAPES[0], slices, guidance=denoiser).payload.tobytes()

    assert bytes_of(6, 1) == bytes_of(1, 6) == bytes_of(4, 2)


@pytest.fixture(scope="module")
def denoiser() -> Guidance:
    """The one that is shipped."""
    guidance = load_guidance(BASE, None, CPU)
    assert guidance is not None
    return guidance


class _SmallPainter(Painter):
    def begin(self, rgba: Any) -> Any:
        return (64, 64, 4)


def test_a_seed_makes_the_same_bytes_if_the_process_draws_other_numbers_too() -> None:
    wanted = short(seed=7)
    bytes_of = [made(wanted, SHAPES[0], 2, seed).payload.tobytes() for seed in (7, None, 8)]
    torch.manual_seed(99)
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    again = made(wanted, SHAPES[0], 2, 7, _SmallPainter()).payload.tobytes()
    torch.set_num_threads(threads)
    guided = made(wanted, SHAPES[0], 2, 7, _SmallPainter()).payload.tobytes()
    assert bytes_of[0] == bytes_of[1] != bytes_of[2]
    assert again == guided != bytes_of[0]


def test_the_steps_come_in_slices_and_those_of_the_late_phase_are_optional() -> None:
    wanted = short(RungSettings(name="fewer", lift_steps=6), steps=21, slice=2)
    for rung, phases in zip(wanted.ladder, ("EEEEMMMLLLL", "EML"), strict=True):
        stages = stages_of(wanted, "dreamgaussian")
        (stage,) = (stage for stage in stages if stage.name == "dream")
        steps = [stage.step(text(), rung, i, 1, False) for i in range(stage.repeats(rung))]
        assert "".join(step.cost_key.removeprefix("dream:")[0].upper() for step in steps) == phases
        assert [step.optional for step in steps] == [letter == "L" for letter in phases]
        assert [step.index for step in steps] == list(range(len(phases)))
    # Each slice takes as many steps as it says, the last one the rest.
    functions = functions_of(wanted, None, CPU)
    context = StepContext(text(), wanted.ladder[1])
    dream = functions["prepare"](SHAPES[0], context)
    done = []
    for _ in range(4):
        dream = functions["dream"](dream, context)
        done.append(dream.done)
    assert done == [2, 4, 6, 6]


def test_a_level_has_no_more_gaussians_than_it_says() -> None:
    wanted = short(RungSettings(name="fewer", gaussians=7_000), count=9_000, max_gaussians=8_000)
    functions = functions_of(wanted, None, CPU)
    for rung in wanted.ladder:
        context = StepContext(text(), rung)
        dream = functions["dream"](functions["prepare"](SHAPES[0], context), context)
        assert len(dream.gaussians.parameters["means"]) == rung.gaussians
        assert 7_000 <= len(functions["splats"](dream, context).cloud) <= rung.gaussians
    with pytest.raises(SetupError, match=r"level rough has 5,000 Gaussians(.|\n)*level rough in"):
        functions_of(short(RungSettings(name="rough", gaussians=5_000)), None, CPU)


def test_a_step_that_failed_half_way_leaves_nothing_in_the_next() -> None:
    """Such as for lack of memory: the engine then takes the slice again."""

    class Once(_SmallPainter):
        fails = False

        def loss(self, *args: Any, **more: Any) -> Any:
            loss = super().loss(*args, **more)
            if self.fails:
                torch.autograd.backward([loss])
                self.fails = False
                raise OutOfMemory("out of memory")
            return loss

    def gradient(fails: bool) -> torch.Tensor:
        guidance = Once()
        functions = functions_of(short(), guidance, CPU)
        context = StepContext(text(), short().ladder[0])
        dream = functions["dream"](functions["prepare"](SHAPES[0], context), context)
        guidance.fails = fails
        if fails:
            with pytest.raises(OutOfMemory):
                dream.run(1)
        dream.run(1)
        found: torch.Tensor = dream.gaussians.parameters["colors"].grad
        return found

    assert torch.equal(gradient(fails=True), gradient(fails=False))


def test_cuda_without_gsplat_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gsplat_backend, "is_usable", lambda: False)
    with pytest.raises(SetupError, match=r"renders with gsplat(.|\n)*--lift.backend triposr"):
        functions_of(short(), None, torch.device("cuda"))


def test_no_guidance_loads_nothing() -> None:
    assert load_guidance(short(), None, CPU) is None


def test_zero123_without_weights_names_the_setting() -> None:
    with pytest.raises(SetupError, match=r"zero123 has no weights(.|\n)*--preset gpu24"):
        load_guidance(short(guidance="zero123"), None, CPU)


async def run(
    wanted: GenerationSettings, engine: Engine, task: Any, start: Cutout | None = None, **more: Any
) -> Any:
    rung = wanted.ladder[0]
    part: Part = "whole" if start is None else "object"
    steps = engine.route(task, rung, part=part)
    late = more.pop("late", False)
    latest = tuple(1e6 if late and step.optional else 0.0 for step in steps)
    return await engine.run(
        task, Plan(rung, steps, latest), start=start, seconds_left=1000.0, **more
    )


def engine_of(wanted: GenerationSettings) -> Engine:
    """With the stages of the back end and the last one."""
    background: Any = None
    back_end = {"dreamgaussian": functions_of(wanted, None, CPU)}
    functions = assemble_image_only(wanted, background, back_end).functions
    return Engine(wanted, functions=functions, progress=False)


async def test_where_time_runs_short_the_object_goes_on_as_far_as_it_has_come() -> None:
    wanted, events = short(), list[StepEvent]()
    engine = engine_of(wanted)
    assert engine.outputs == {"splats"}
    cut = await run(wanted, engine, text(), SHAPES[0], on_event=events.append, late=True)
    whole = await run(wanted, engine, text(), SHAPES[0])
    assert await engine.close()
    kinds = [event.kind for event in events if event.step.stage == "dream"]
    assert kinds == ["started", "finished"] * 3 + ["skipped"] * 2
    assert isinstance(cut.asset, Asset)
    assert cut.asset.validity.passed
    assert whole.asset.validity.passed
    assert cut.spz != whole.spz


@pytest.mark.usefixtures("no_collector")
async def test_a_request_that_is_cancelled_in_the_middle_frees_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[weakref.ref[Any]] = []

    class Watched(Dream):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            held.append(weakref.ref(self))
            held.extend(weakref.ref(tensor) for tensor in self.gaussians.parameters.values())

    monkeypatch.setattr(loading, "Dream", Watched)
    wanted = short(steps=8)
    engine, running = engine_of(wanted), asyncio.Event()

    def note(event: StepEvent) -> None:
        if event.kind == "started" and event.step.index == 2 and event.step.stage == "dream":
            running.set()

    request = asyncio.create_task(run(wanted, engine, text(), SHAPES[0], on_event=note))
    await running.wait()
    assert all(ref() is not None for ref in held)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    del request
    # The step that ran ends unobserved; the next one waits for its thread.
    after = await run(wanted, engine, text(), SHAPES[0], late=True)
    assert after.asset.validity.passed
    del after
    assert len(held) == 12
    # A thread may be in the last line of its work.
    await until(lambda: [ref() for ref in held] == [None] * 12)
    assert await engine.close()


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What waits for the garbage collector waits too long."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def loaded() -> LoadedStages:
    return load(short(steps=2), None, lambda what: None, image_only=True)


@pytest.mark.parametrize("side", [(1, 1), (700, 3), (90, 90)])
async def test_any_picture_becomes_a_valid_object_or_a_clear_answer(
    side: tuple[int, int], loaded: LoadedStages
) -> None:
    """Noise, of which nobody knows what the cut-out finds in it, with the largest seed."""
    engine = Engine(short(steps=2), functions=loaded.functions, progress=False)
    for mode in ("RGB", "RGBA", "L"):
        task = ImageTask(id="i", image=encoded(noise(*side, mode), "PNG"), seed=2**32 - 1)
        try:
            found = await run(engine.settings, engine, task)
        except TaskError as error:
            assert "send a picture of one object" in str(error)  # noqa: PT017
        else:
            assert found.asset.validity.passed
    assert await engine.close()


@pytest.mark.cuda
def test_on_cuda_gsplat_makes_valid_clouds_after_any_slice_and_memory_comes_back() -> None:
    device = torch.device("cuda")
    wanted = short(
        guidance="denoiser",
        steps=40,
        slice=5,
        sizes=(64, 96, 128),
        count=8_000,
        max_gaussians=9_000,
    ).model_copy(update={"device": "cuda"})
    functions = functions_of(wanted, load_guidance(wanted, None, device), device)
    context = StepContext(text(), wanted.ladder[0])
    before = torch.cuda.memory_allocated()
    value = functions["prepare"](SHAPES[0], context)
    for done in range(5, 41, 5):
        value = functions["dream"](value, context)
        assert value.done == done
        splats = functions["splats"](value, context)
        file = spz.compress(splats.payload, level=1)
        assert report_on(splats.measures, wire_bytes=len(file)).passed
        assert MIN_GAUSSIANS <= len(splats.cloud) <= 9_000
    assert torch.cuda.memory_allocated() > before
    del value
    assert torch.cuda.memory_allocated() <= before + 2**20
