"""A cloud is scored from the bytes that travel, and scores 0 where a validator would say so."""

import json
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from generation.presets import preset
from generation.recovery import attempt
from generation.scoring import validator
from generation.scoring.data_checks import problem_of
from generation.scoring.formula import final_score
from generation.scoring.image_alignment import Llm2Clip, prompt_picture
from generation.scoring.judge import ValidatorNetworks
from generation.scoring.quality import QualityNetwork
from generation.scoring.score import Score, Scorer
from generation.scoring.similarity import Lpips
from generation.scoring.text_alignment import ClipNetwork, cosines, empty_clip
from generation.scoring.validator import ValidatorScorer, load
from generation.scoring.validity import check
from generation.settings import GenerationSettings
from generation.stage import Asset, Cutout
from protocol import spz
from protocol.errors import SetupError
from protocol.gaussians import GaussianCloud
from protocol.tasks import ImageTask, TextTask
from scripts.benchmarks.rendering import sphere
from tests.generation.scoring.golden import GOLDEN, SEQUENCES, sequence
from tests.generation.scoring.recipes import write_alexnet
from tests.generation.scoring.test_image_alignment import Pooling
from tests.generation.scoring.tiny import (
    CLIP,
    CLIP_FILE,
    QUALITY,
    QUALITY_FILE,
    SHAPES,
    write_models,
)

CPU = torch.device("cpu")
TEXT = TextTask(id="text", prompt="a red chair", seed=0)
PROMPT_A = json.loads((GOLDEN / "text_alignment/config.json").read_text())["tokens"]
RUNS = json.loads((GOLDEN / "end_to_end.json").read_text())


def image_task(value: int = 120) -> ImageTask:
    file = BytesIO()
    Image.new("RGB", (40, 60), (value, 60, 20)).save(file, "PNG")
    return ImageTask(id="image", image=file.getvalue(), seed=0)


def asset(cloud: GaussianCloud) -> Asset:
    return Asset(cloud, spz.encode(cloud), check(cloud))


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> Lpips:
    return Lpips.load(write_alexnet(tmp_path_factory.mktemp("alexnet")))


def make_networks(lpips: Lpips, pixels: torch.dtype = torch.float16) -> ValidatorNetworks:
    """The reference data's. The tiny CLIP knows few tokens, so every prompt is `prompt_a`."""
    model = empty_clip(CLIP)
    model.load_state_dict(load_file(CLIP_FILE), strict=True, assign=True)
    clip = ClipNetwork(model.eval().requires_grad_(False), torch.float32, pixels=pixels)
    ids = torch.tensor([PROMPT_A + [0] * (77 - len(PROMPT_A))])
    clip.tokens = lambda prompt: ids  # type: ignore[method-assign]
    return ValidatorNetworks(QualityNetwork.load(QUALITY_FILE, QUALITY), clip, lpips)


@pytest.fixture(scope="module")
def scorer(lpips: Lpips) -> ValidatorScorer:
    return ValidatorScorer(make_networks(lpips), CPU, torch.float32, view_size=64)


@pytest.fixture(scope="module")
def scores(scorer: ValidatorScorer) -> dict[str, Score]:
    """Of one cloud, as a text and as an image task."""
    made: Scorer = scorer
    cloud = asset(sphere(8000))
    return {"text": made.score(cloud, TEXT), "image": made.score(cloud, image_task())}


@pytest.mark.parametrize("name", SEQUENCES)
def test_whole_runs_of_the_reference_data(lpips: Lpips, name: str) -> None:
    views = sequence(name)
    networks = make_networks(lpips)
    numbers = ValidatorScorer(networks, CPU, torch.float32).measure(views, TEXT)
    for variant in ("half_pixels_float32_model", "float32"):
        if variant == "float32":
            eye = make_networks(lpips, torch.float32).clip
            with torch.no_grad():
                text = eye.text_features(eye.tokens(""))
                numbers[16:32] = cosines(eye.encode(eye.prepare(views)), text)
        expected = {key: float(value) for key, value in RUNS[f"{variant}/{name}"].items()}
        found = validator._verdict(numbers.numpy().reshape(4, -1), "validator", is_image=False)
        assert found.value == pytest.approx(expected.pop("score"), abs=3e-5)
        known = {key: value for key, value in expected.items() if np.isfinite(value)}
        assert found.parts == pytest.approx(known, abs=3e-5)
        assert (found.problem == "") == (found.value > 0)


def test_a_score_is_made_of_the_validators_four_parts(scores: dict[str, Score]) -> None:
    found = scores["image"]
    assert set(found.parts) == {"iqa", "alignment", "ssim", "lpips"}
    assert found.problem == ""
    assert found.value == final_score(**found.parts) > 0


def test_an_alignment_that_is_too_low_is_the_reason_for_0(scores: dict[str, Score]) -> None:
    found = scores["text"]
    assert found.value == 0
    assert found.problem == "the alignment is 0.000, below 0.3"
    assert set(found.parts) == {"iqa", "alignment", "ssim", "lpips"}


def test_the_task_decides_nothing_but_the_alignment(scores: dict[str, Score]) -> None:
    by_text, by_image = scores["text"].parts, scores["image"].parts
    for part in ("iqa", "ssim", "lpips"):
        assert by_image[part] == by_text[part]
    assert by_image["alignment"] > by_text["alignment"] + 0.1


def test_the_stand_in_for_the_image_alignment_is_named(scores: dict[str, Score]) -> None:
    assert scores["text"].scorer == "validator"
    stand_in = "validator, image alignment by open_clip convnext_large_d"
    assert scores["image"].scorer == stand_in


def test_only_the_file_is_looked_at(scorer: ValidatorScorer, scores: dict[str, Score]) -> None:
    other = replace(asset(sphere(8000)), cloud=sphere(9000))
    assert scorer.score(other, image_task()) == scores["image"]


def test_the_validators_own_image_alignment_is_not_called_a_stand_in(lpips: Lpips) -> None:
    own = replace(make_networks(lpips), llm2clip=Llm2Clip(Pooling(), torch.float32))
    scorer = ValidatorScorer(own, CPU, torch.float32, view_size=64)
    assert scorer.score(asset(sphere(6999)), image_task()).scorer == "validator"
    white = torch.full((1, 64, 64, 3), 255, dtype=torch.uint8)
    prompt = torch.from_numpy(prompt_picture(image_task().image))[None]
    pooled = [own.llm2clip.encode(own.llm2clip.prepare(x)) for x in (white, prompt)]  # type: ignore[union-attr]
    expected = float(cosines(*pooled)[0])
    assert float(scorer.measure(white, image_task())[1]) == pytest.approx(expected, abs=1e-6)


def faulty(change: Callable[[GaussianCloud], None], count: int = 8000) -> GaussianCloud:
    cloud = sphere(count)
    change(cloud)
    return cloud


def _identity(cloud: GaussianCloud, first: int = 0) -> None:
    cloud.rotations[first:] = 1, 0, 0, 0


def _transparent(cloud: GaussianCloud) -> None:
    cloud.opacity_logits[: int(0.81 * len(cloud))] = -9


def _coinciding(cloud: GaussianCloud) -> None:
    cloud.positions[:] = 0.5


@pytest.mark.parametrize(
    ("cloud", "problem"),
    [
        (sphere(6999), "it has 6,999 Gaussians, fewer than 7,000"),
        (faulty(_transparent), "81% of its Gaussians are transparent, more than 80%"),
        (faulty(_identity), r"all of its rotations are (1, 0, 0, 0)"),
        (faulty(_coinciding), "all of its Gaussians are at one place"),
    ],
    ids=["few", "transparent", "identity", "coinciding"],
)
def test_a_cloud_that_fails_the_data_checks_scores_0_and_says_why(
    scorer: ValidatorScorer, cloud: GaussianCloud, problem: str
) -> None:
    found = scorer.score(Asset(cloud, spz.encode(cloud), check(sphere(8000))), TEXT)
    assert (found.value, found.parts, found.scorer) == (0.0, {}, "validator")
    assert found.problem.startswith(problem)


@pytest.mark.parametrize(
    "cloud",
    [
        sphere(6999),
        sphere(7000),
        faulty(_transparent),
        faulty(_identity),
        faulty(lambda cloud: cloud.opacity_logits[:6400].fill(-9)),
        faulty(lambda cloud: _identity(cloud, first=1)),
    ],
)
def test_the_checks_of_bytes_are_those_of_the_cloud(cloud: GaussianCloud) -> None:
    packed = spz.unpack(spz.encode(cloud))
    assert (problem_of(packed) == "") == check(cloud).passed


def test_a_file_that_cannot_be_read_scores_0_and_says_why(scorer: ValidatorScorer) -> None:
    damaged = replace(asset(sphere(8000)), spz=b"not a file")
    found = scorer.score(damaged, TEXT)
    assert found.value == 0
    assert "not a zstd frame" in found.problem


def test_numbers_that_are_none_make_the_score_0() -> None:
    numbers = np.full((4, 16), 0.5, dtype=np.float32)
    numbers[2] = np.linspace(-0.5, 0.4, 16)
    found = validator._verdict(numbers, "validator", is_image=False)
    assert (found.value, found.problem) == (0.0, "not a number: ssim")
    assert set(found.parts) == {"iqa", "alignment", "lpips"}


def cutout(colour: tuple[int, int, int], alpha: int) -> Cutout:
    rgba = np.zeros((50, 50, 4), np.uint8)
    rgba[10:40, 10:40] = *colour, alpha
    return Cutout(rgba[..., :3], rgba, rgba[..., :3])


def test_a_picture_is_rated_on_white_as_one_view(scorer: ValidatorScorer) -> None:
    first = scorer.rate(cutout((200, 30, 30), 255), TEXT)
    second = scorer.rate(cutout((20, 30, 230), 255), TEXT)
    assert first != second
    assert scorer.rate(cutout((200, 30, 30), 0), TEXT) == scorer.rate(cutout((0, 0, 0), 0), TEXT)
    white = torch.full((1, 64, 64, 3), 255, dtype=torch.uint8)
    iqa, cosine = scorer.measure(white, TEXT).tolist()
    expected = 0.75 * iqa + 0.2 * max(cosine, 0) / 0.35
    assert scorer.rate(cutout((9, 9, 9), 0), TEXT) == pytest.approx(expected, abs=1e-6)


def test_a_picture_is_rated_by_the_picture_of_an_image_task(scorer: ValidatorScorer) -> None:
    rating = scorer.rate(cutout((200, 30, 30), 255), image_task())
    assert np.isfinite(rating)


def test_prompts_are_encoded_once_until_memory_is_needed(
    lpips: Lpips, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = make_networks(lpips)
    encoded: list[int] = []
    inner = own.clip.text_features

    def counted(ids: torch.Tensor) -> torch.Tensor:
        encoded.append(len(ids))
        return inner(ids)

    monkeypatch.setattr(own.clip, "text_features", counted)
    scorer = ValidatorScorer(own, CPU, torch.float32, view_size=64)
    for _ in range(3):
        scorer.rate(cutout((200, 30, 30), 255), TEXT)
    assert len(encoded) == 1
    scorer.drop_caches()
    scorer.rate(cutout((200, 30, 30), 255), TEXT)
    assert len(encoded) == 2


def test_compiled_networks_say_the_same(lpips: Lpips) -> None:
    plain, fast = (
        ValidatorScorer(
            make_networks(lpips), CPU, torch.float32, accelerate=accelerate, backend="eager"
        )
        for accelerate in (False, True)
    )
    for views in (sequence("orbit")[:4], sequence("orbit")[:1]):
        found, expected = (s.measure(views, TEXT).numpy() for s in (fast, plain))
        assert found == pytest.approx(expected, abs=1e-6)


# From a models folder on.


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[GenerationSettings, Path]:
    folder = tmp_path_factory.mktemp("models")
    return write_models(folder), folder


def _changed(settings: GenerationSettings, **models: Any) -> GenerationSettings:
    return settings.model_copy(update={"scoring": settings.scoring.model_copy(update=models)})


def test_a_models_folder_is_loaded(stored: tuple[GenerationSettings, Path]) -> None:
    settings, folder = stored
    # On a CPU everything is float32, whatever a preset for GPUs says.
    loaded: Scorer = load(_changed(settings, dtype="float16"), folder, CPU, shapes=SHAPES)
    rating = loaded.rate(cutout((200, 30, 30), 255), TEXT)
    assert rating == load(settings, folder, CPU, shapes=SHAPES).rate(
        cutout((200, 30, 30), 255), TEXT
    )


def test_a_model_without_a_source_is_named(stored: tuple[GenerationSettings, Path]) -> None:
    settings, folder = stored
    with pytest.raises(SetupError, match="no weights for LPIPS") as caught:
        load(_changed(settings, lpips_model=None), folder, CPU, shapes=SHAPES)
    assert "--scoring.scorer none" in caught.value.fix


def test_a_file_of_another_revision_is_refused(stored: tuple[GenerationSettings, Path]) -> None:
    settings, folder = stored
    model = settings.scoring.quality_model
    assert model is not None
    pinned = model.model_copy(update={"revision": "abad1dea"})
    with pytest.raises(SetupError, match="at revision c0ffee, abad1dea is wanted") as caught:
        load(_changed(settings, quality_model=pinned), folder, CPU, shapes=SHAPES)
    assert f"--preset {settings.name} --scoring.scorer validator" in caught.value.fix
    assert "abad1dea" in caught.value.fix
    assert caught.value.fix.endswith(f" --models.dir {folder}")


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Future[bool]:
    """gsplat's trial, which ends when the test ends it."""
    outcome: Future[bool] = Future()
    monkeypatch.setattr("generation.rendering.gsplat_backend.start_trial", lambda: outcome)
    return outcome


def test_a_gpu_without_its_renderer_is_refused_with_what_it_needs(compiling: Future[bool]) -> None:
    compiling.set_result(False)
    with pytest.raises(SetupError, match="renders with gsplat") as caught:
        load(preset("gpu80"), None, torch.device("cuda"))
    assert "nvcc" in caught.value.fix
    assert "--scoring.scorer none" in caught.value.fix


def test_networks_are_loaded_while_the_renderer_compiles_itself(
    compiling: Future[bool], stored: tuple[GenerationSettings, Path]
) -> None:
    settings, folder = stored
    other = _changed(settings, quality_model=None)
    with pytest.raises(SetupError, match="no weights for"):
        load(other, folder, torch.device("cuda"), shapes=SHAPES)
    assert not compiling.done()


def test_a_renderer_that_fails_later_is_told_by_the_first_score(
    scorer: ValidatorScorer, compiling: Future[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiling.set_result(False)
    monkeypatch.setattr(scorer, "_device", torch.device("cuda"))
    made = asset(sphere(8000))

    def score() -> object:
        return scorer.score(made, TEXT)

    with pytest.raises(SetupError, match="renders with gsplat"):
        attempt("score", score, scorer.drop_caches)


@pytest.mark.parametrize("missing", ["open_clip", "torchmetrics"])
def test_a_missing_package_is_named_with_its_extra(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "generation.scoring.validator.find_spec",
        lambda name: None if name == missing else find_spec(name),
    )
    with pytest.raises(SetupError, match=missing) as caught:
        load(preset("embedded"), None, CPU)
    assert caught.value.fix == "make install EXTRAS=score, or --scoring.scorer none"
    with pytest.raises(SetupError, match=missing) as caught:
        load(preset("gpu80"), None, torch.device("cuda"))
    assert caught.value.fix == "make install EXTRAS=gpu,score, or --scoring.scorer none"


def test_a_torchvision_of_another_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validator, "torchvision_problem", lambda: "they do not match")
    with pytest.raises(SetupError, match="they do not match") as caught:
        load(preset("embedded"), None, CPU)
    assert "--scoring.scorer none" in caught.value.fix
