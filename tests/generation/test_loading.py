"""Stage functions as a preset asks for them, with the shipped networks."""

import io
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from generation import lift
from generation.acceleration.streams import to_host
from generation.errors import GenerationError
from generation.lift import BACK_ENDS, BackEnd
from generation.lift.triposr.loading import functions_of, load_network
from generation.loading import (
    LoadedStages,
    PictureNetworks,
    assemble,
    device_name,
    load,
    load_pictures,
    require_device,
    scoring_stages,
)
from generation.pictures.flux1 import Flux1
from generation.plan import Rung
from generation.presets import preset
from generation.scoring.score import Score
from generation.stage import Asset, Cutout, StepContext
from protocol.errors import SetupError
from protocol.tasks import ImageTask, Task, TextTask

SETTINGS = preset("embedded")
CPU = torch.device("cpu")
RUNG = SETTINGS.ladder[0]


@pytest.mark.parametrize(("threads", "words"), [(1, "cpu, 1 thread"), (2, "cpu, 2 threads")])
def test_a_cpu_is_named_with_its_threads(
    threads: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert device_name("cpu") == words


@pytest.fixture(scope="module")
def pictures() -> PictureNetworks:
    return load_pictures(SETTINGS, None, CPU)


@pytest.fixture(scope="module")
def loaded(pictures: PictureNetworks) -> LoadedStages:
    network = load_network(SETTINGS, None, CPU)
    return assemble(SETTINGS, pictures, {"triposr": functions_of(SETTINGS, network)})


def _run(
    loaded: LoadedStages,
    stage: str,
    value: Any,
    task: Task,
    rung: Rung = RUNG,
    seeds: tuple[int | None, ...] = (),
) -> Any:
    return loaded.functions[stage](value, StepContext(task, rung, seeds=seeds))


def _drawn(loaded: LoadedStages, task: TextTask, seeds: tuple[int | None, ...] = ()) -> Any:
    drawing = _run(loaded, "prompt", task, task, seeds=seeds)
    for _ in range(RUNG.steps):
        drawing = _run(loaded, "denoise", drawing, task, seeds=seeds)
    return _run(loaded, "decode", drawing, task, seeds=seeds)


def _cut_out(colour: tuple[int, ...], size: tuple[int, int]) -> ImageTask:
    """An ellipse that touches all four sides of a clear picture."""
    image = Image.new("RGBA", size)
    ImageDraw.Draw(image).ellipse((0, 0, size[0] - 1, size[1] - 1), fill=colour)
    file = io.BytesIO()
    image.save(file, "PNG")
    return ImageTask(id="i", image=file.getvalue())


def test_accelerated_stages_make_the_same(pictures: PictureNetworks, loaded: LoadedStages) -> None:
    torch._dynamo.reset()
    task = TextTask(id="t", prompt="a red mug", seed=0)
    picture = _drawn(loaded, task)
    cutout = _run(loaded, "cutout", picture, task)
    code = _run(loaded, "lift", cutout, task)
    settings = SETTINGS.model_copy(update={"accelerate": True})
    flux = Flux1(pictures.flux.pipeline, settings.text_to_image, accelerate=True, backend="eager")
    network = load_network(settings, None, CPU)
    fast = assemble(
        settings,
        PictureNetworks(flux, pictures.background),
        {"triposr": functions_of(settings, network, backend="eager")},
    )
    assert (_drawn(fast, task).int() - picture).abs().max() <= 1
    torch.testing.assert_close(_run(fast, "lift", cutout, task), code)
    assert all(layer._compiled_call_impl is not None for layer in network.layers)


def test_pictures_that_are_drawn_together_are_those_that_are_drawn_alone(
    loaded: LoadedStages,
) -> None:
    task = TextTask(id="t", prompt="a red cube", seed=3)
    together = _drawn(loaded, task, seeds=(3, 4))
    assert isinstance(together, tuple)
    for seed, picture in zip((3, 4), together, strict=True):
        alone = _drawn(loaded, task.model_copy(update={"seed": seed}))
        assert (picture.int() - alone.int()).abs().max() <= 1


class _ScoresWhite:
    """Rates white cut-outs and fails with all others."""

    name = "white"

    def rate(self, cutout: Cutout, task: Task) -> float:
        if not cutout.rgba.all():
            raise GenerationError("it is not white")
        return 0.5

    def score(self, asset: Asset, task: Task) -> Score:
        raise AssertionError("nothing is scored")

    def drop_caches(self) -> None:
        raise AssertionError("nothing is dropped")


def test_a_picture_that_fails_costs_the_others_of_its_batch_nothing() -> None:
    rate = scoring_stages(_ScoresWhite())["rate"]
    context = StepContext(TextTask(id="t", prompt="p"), RUNG, seeds=(1, 2, 3))
    black, white = (np.full((2, 2, 4), value, np.uint8) for value in (0, 255))
    pictures = [Cutout(rgba[..., :3], rgba, rgba[..., :3]) for rgba in (black, white)]
    failed, rated, missing = rate((*pictures, None), context)
    assert (failed, rated.rating, missing) == (None, 0.5, None)
    with pytest.raises(GenerationError, match="it is not white"):
        rate((pictures[0], None), context)


def test_dropping_caches_forgets_prompts(loaded: LoadedStages) -> None:
    task = TextTask(id="t", prompt="a red mug")
    _run(loaded, "prompt", task, task)
    assert loaded.remembers("a red mug")
    loaded.drop_caches()
    assert not loaded.remembers("a red mug")


def test_a_transparent_picture_is_shown_on_grey(loaded: LoadedStages) -> None:
    given = _cut_out((10, 20, 30, 255), (90, 60))
    cutout: Cutout = _run(loaded, "cutout", given, given)
    assert cutout.picture.shape == (60, 90, 3)
    assert cutout.picture[0, 0].tolist() == [127, 127, 127]
    assert cutout.picture[30, 30].tolist() == [10, 20, 30]
    side = cutout.rgba.shape[0]
    assert cutout.rgba.shape == (side, side, 4)
    assert cutout.on_grey.shape == (side, side, 3)
    # The corner is padding: transparent, and grey for the network.
    assert cutout.rgba[0, 0, 3] == 0
    assert cutout.on_grey[0, 0].tolist() == [127, 127, 127]


def test_the_lift_reads_what_is_on_the_device_already(loaded: LoadedStages) -> None:
    given = _cut_out((10, 20, 30, 255), (90, 60))
    cutout: Cutout = _run(loaded, "cutout", given, given)
    assert cutout.on_device is not None
    assert (to_host(cutout.on_device) == cutout.on_grey).all()
    code = _run(loaded, "lift", cutout, given)
    spoilt = replace(cutout, on_grey=0 * cutout.on_grey)
    assert torch.equal(_run(loaded, "lift", spoilt, given), code)
    from_host = _run(loaded, "lift", replace(cutout, on_device=None), given)
    assert torch.equal(from_host, code)


def test_a_large_picture_is_scaled_down_before_anything_is_done_with_it(
    loaded: LoadedStages,
) -> None:
    wide = _cut_out((255, 0, 0, 255), (4000, 500))
    cutout: Cutout = _run(loaded, "cutout", wide, wide)
    assert cutout.picture.shape == (128, 1024, 3)
    assert cutout.rgba.shape[0] == int(1023 / SETTINGS.cutout.foreground_ratio)


def test_a_plain_border_is_only_skipped_where_the_rung_says_so(
    pictures: PictureNetworks, loaded: LoadedStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    framed = type(pictures.background).framed

    def ask(remover: Any, image: Image.Image, *, skip_plain: bool) -> torch.Tensor:
        asked.append(skip_plain)
        return framed(remover, image, skip_plain=skip_plain)

    monkeypatch.setattr(type(pictures.background), "framed", ask)
    given = _cut_out((10, 20, 30, 255), (90, 60))
    for rung in SETTINGS.ladder:
        _run(loaded, "cutout", given, given, rung)
    assert asked == [rung.skip_plain for rung in SETTINGS.ladder] == [False, False, True]


def test_every_rung_takes_its_own_back_end(pictures: PictureNetworks) -> None:
    def named(name: str) -> Mapping[str, Any]:
        return {"lift": lambda cutout, context: f"{name} of {cutout}"}

    loaded = assemble(SETTINGS, pictures, {name: named(name) for name in ("first", "second")})
    task = TextTask(id="t", prompt="x")
    for name in ("first", "second"):
        rung = Rung("x", 1, 64, 100, False, name)
        assert _run(loaded, "lift", "a mug", task, rung) == f"{name} of a mug"


def test_a_back_end_is_loaded_once_however_many_rungs_use_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    loaded = load(SETTINGS, None, said.append)
    assert said == ["models folder", "text to image", "background", "triposr", "scorer"]
    assert set(loaded.functions) == {
        stage.name for stage in lift.stages_of(SETTINGS, SETTINGS.lift.backend)
    }
    no_such = BackEnd(BACK_ENDS["triposr"].stages, "generation.lift.no_such_loader")
    monkeypatch.setitem(BACK_ENDS, "triposr", no_such)
    with pytest.raises(ModuleNotFoundError, match="no_such_loader"):
        load(SETTINGS, None, said.append)


def test_compiled_code_is_kept_beside_the_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    load_pictures(SETTINGS.model_copy(update={"accelerate": True}), None, CPU)
    folder = tmp_path / "splat-miner" / "compiled"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    assert folder.is_dir()


@pytest.mark.parametrize(
    ("name", "found", "message"),
    [
        ("abacus", 0, "'abacus' is no device of torch's"),
        ("mps", 0, "cannot run on mps"),
        ("cuda", 0, "runs on cuda, but torch .* finds no CUDA device"),
        ("cuda:2", 2, "runs on cuda:2, but torch finds CUDA devices only up to cuda:1"),
    ],
)
def test_a_device_that_is_not_there_is_a_setup_error(
    monkeypatch: pytest.MonkeyPatch, name: str, found: int, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(SetupError, match=message):
        require_device(SETTINGS.model_copy(update={"device": name}))


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1"])
def test_a_device_that_is_there_is_accepted(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    device = require_device(SETTINGS.model_copy(update={"device": name}))
    assert device == torch.device(name)
