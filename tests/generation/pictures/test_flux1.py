"""FLUX through diffusers: the picture follows from prompt, seed and settings, and nothing else."""

import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from generation.acceleration.eight_bit import Float8Linear, NarrowLinear, quantise
from generation.acceleration.twelve_bit import TwelveBitLinear
from generation.pictures.flux1 import Flux1
from generation.pictures.prompt_memory import CAPACITY, Embedding
from generation.presets import preset
from generation.settings import TextToImageSettings
from generation.weights.store import ModelPaths
from protocol.errors import SetupError
from scripts.benchmarks.whole_loop import denoise_and_decode

SETTINGS = preset("embedded").text_to_image


@pytest.fixture(scope="module")
def draw(embedded_paths: ModelPaths) -> Flux1:
    return Flux1.from_pretrained(embedded_paths.text_to_image, SETTINGS, "cpu")


def _load(paths: ModelPaths, **changes: object) -> Flux1:
    settings = TextToImageSettings.model_validate(SETTINGS.model_dump() | changes)
    return Flux1.from_pretrained(paths.text_to_image, settings, "cpu")


def test_the_picture_has_the_size_and_mode_asked_for(draw: Flux1) -> None:
    image = draw("a blue cube")
    assert (image.size, image.mode) == ((SETTINGS.size, SETTINGS.size), "RGB")


def test_the_same_prompt_and_seed_give_the_same_picture(draw: Flux1) -> None:
    assert draw("a blue cube", 7).tobytes() == draw("a blue cube", 7).tobytes()


def test_no_seed_means_the_settings_seed(draw: Flux1) -> None:
    assert draw("a blue cube").tobytes() == draw("a blue cube", SETTINGS.seed).tobytes()


def test_another_seed_or_prompt_gives_another_picture(draw: Flux1) -> None:
    pictures = {draw(p, s).tobytes() for p in ("a blue cube", "a red car") for s in (1, 2)}
    assert len(pictures) == 4


def test_long_and_foreign_prompts_are_cut_without_a_word(
    draw: Flux1, capfd: pytest.CaptureFixture[str]
) -> None:
    long, foreign, syntax = "a very long dragon " * 50, "猫の像 🐈 ünïcödé", "{prompt} {0} {"
    for prompt in (long, foreign, syntax, "<|endoftext|></s>"):
        assert draw(prompt).size == (SETTINGS.size, SETTINGS.size)
    assert capfd.readouterr() == ("", "")


def test_both_text_encoders_reach_the_picture(draw: Flux1) -> None:
    # CLIP keeps 77 tokens and T5 48, one per letter here: the prompts differ beyond what either
    # keeps, beyond T5 alone, or within both.
    base = "x" * 100
    beyond_both, beyond_t5, within = (base[:at] + "y" + base[at + 1 :] for at in (90, 70, 10))
    assert draw(beyond_both).tobytes() == draw(base).tobytes()
    assert draw(beyond_t5).tobytes() != draw(base).tobytes()
    assert draw(within).tobytes() != draw(base).tobytes()


def test_the_template_is_part_of_the_prompt(draw: Flux1, embedded_paths: ModelPaths) -> None:
    templated = _load(embedded_paths, template="a {prompt} cube")
    assert templated("blue").tobytes() == draw("a blue cube").tobytes()


def test_steps_and_size_are_those_of_the_call_or_else_of_the_settings(
    draw: Flux1, embedded_paths: ModelPaths
) -> None:
    small = _load(embedded_paths, size=64, steps=1)
    assert small("a blue cube").tobytes() == draw("a blue cube", steps=1, size=64).tobytes()
    assert draw("a blue cube", size=64).size == (64, 64)
    assert draw("a", steps=1).tobytes() != draw("a").tobytes()


def test_bfloat16_runs_and_stays_close(draw: Flux1, embedded_paths: ModelPaths) -> None:
    low = np.asarray(_load(embedded_paths, dtype="bfloat16")("a blue cube"), dtype=np.float32)
    full = np.asarray(draw("a blue cube"), dtype=np.float32)
    assert np.abs(low - full).mean() < 0.25 * full.std()


def test_a_folder_without_a_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=f"{tmp_path}.*"):
        Flux1.from_pretrained(tmp_path, SETTINGS, "cpu")


def test_a_truncated_weight_file_is_a_setup_error(
    embedded_paths: ModelPaths, tmp_path: Path
) -> None:
    folder = tmp_path / "flux"
    shutil.copytree(embedded_paths.text_to_image, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SetupError, match="fetch"):
        Flux1.from_pretrained(folder, SETTINGS, "cpu")


@pytest.mark.parametrize(("size", "steps", "seed"), [(128, 8, 0), (64, 3, 7)])
def test_the_picture_is_that_of_the_library(
    embedded_paths: ModelPaths, size: int, steps: int, seed: int
) -> None:
    draw = _load(embedded_paths, size=size, steps=steps)
    for prompt in ("a blue cube", "a detailed red sports car, " * 10):
        expected = draw.pipeline(
            prompt=prompt,
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=SETTINGS.guidance,
            max_sequence_length=SETTINGS.max_sequence_length,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]
        assert np.abs(_pixels(draw(prompt, seed)) - _pixels(expected)).max() <= 1


def test_eight_bits_stay_close(draw: Flux1, embedded_paths: ModelPaths) -> None:
    # The shipped networks have no layer that is large enough by itself.
    pipeline = _load(embedded_paths).pipeline
    assert quantise(pipeline.transformer, Float8Linear, device="cpu", smallest=1024) > 40
    assert quantise(pipeline.text_encoder_2, TwelveBitLinear, device="cpu", smallest=1024) > 5
    low = _pixels(Flux1(pipeline, SETTINGS)("a blue cube"))
    full = _pixels(draw("a blue cube"))
    assert 0 < np.abs(low - full).mean() < 0.25 * full.std()


def test_the_setting_for_eight_bits_reaches_both_networks(
    embedded_paths: ModelPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "generation.pictures.text_to_image.quantise", partial(quantise, smallest=1024)
    )
    pipeline = _load(embedded_paths, eight_bit=True).pipeline
    for network, kind in (
        (pipeline.transformer, Float8Linear),
        (pipeline.text_encoder_2, TwelveBitLinear),
    ):
        assert {type(m) for m in network.modules() if isinstance(m, NarrowLinear)} == {kind}


def test_accelerated_networks_draw_the_same(draw: Flux1, embedded_paths: ModelPaths) -> None:
    torch._dynamo.reset()
    fast = Flux1(_load(embedded_paths).pipeline, SETTINGS, accelerate=True, backend="eager")
    for prompt, steps, size in (("a blue cube", 8, 128), ("a red car", 2, 64)):
        found, expected = (d(prompt, steps=steps, size=size) for d in (fast, draw))
        assert np.abs(_pixels(found) - _pixels(expected)).max() <= 1


def test_recent_prompts_are_embedded_once(embedded_paths: ModelPaths) -> None:
    draw = _load(embedded_paths)
    first = draw.embed("a blue cube")
    assert draw.embed("a blue cube") is first
    for index in range(CAPACITY - 1):
        draw.embed(f"prompt {index}")
    assert draw.embed("a blue cube") is first
    for index in range(CAPACITY):
        draw.embed(f"another {index}")
    assert draw.embed("a blue cube") is not first


def test_a_prompt_is_remembered_from_its_beginning_until_caches_are_dropped(
    embedded_paths: ModelPaths,
) -> None:
    draw = _load(embedded_paths)
    assert not draw.remembers("a blue cube")
    first = draw.begin("a blue cube", (0,), steps=1, size=64)
    assert draw.remembers("a blue cube")
    assert not draw.remembers("a red car")
    assert draw.begin("a blue cube", (0,), steps=1, size=64).embedding is first.embedding
    draw.drop_caches()
    assert not draw.remembers("a blue cube")


def test_using_an_embedding_never_hides_it_from_another_thread(
    embedded_paths: ModelPaths,
) -> None:
    draw = _load(embedded_paths)
    draw.embed("a blue cube")
    ended = threading.Event()

    def look() -> bool:
        seen = True
        while not ended.is_set():
            seen &= draw.remembers("a blue cube")
        return seen

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as other:
            always = other.submit(look)
            for _ in range(5000):
                draw.embed("a blue cube")
            ended.set()
            assert always.result()
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_steps_together_are_the_loop_in_one_piece(
    embedded_paths: ModelPaths, dtype: str
) -> None:
    draw = _load(embedded_paths, dtype=dtype)
    for steps, size in ((1, 64), (3, 64), (4, 128)):
        start = draw.begin("a blue cube", (5,), steps=steps, size=size)
        with torch.no_grad():
            expected = denoise_and_decode(
                draw.pipeline, start.schedule.sigmas, start.latents, *start.embedding
            )
        found = draw("a blue cube", 5, steps=steps, size=size)
        assert np.array_equal(np.asarray(found), expected.numpy())


def test_drawings_do_not_disturb_each_other(draw: Flux1) -> None:
    sizes = {"a blue cube": 64, "a red car": 128}
    alone = {prompt: draw(prompt, 1, steps=2, size=size) for prompt, size in sizes.items()}
    drawings = {
        prompt: draw.begin(prompt, (1,), steps=2, size=size) for prompt, size in sizes.items()
    }
    for _ in range(2):
        drawings = {prompt: draw.denoise(drawing) for prompt, drawing in drawings.items()}
    for prompt, drawing in drawings.items():
        assert np.array_equal(draw.decode(drawing)[0], np.asarray(alone[prompt]))


def test_a_step_leaves_the_drawing_that_it_starts_from(draw: Flux1) -> None:
    start = draw.begin("a blue cube", (0,), steps=2, size=64)
    before = start.latents.clone()
    first, again = draw.denoise(start), draw.denoise(start)
    assert (start.index, first.index) == (0, 1)
    assert torch.equal(start.latents, before)
    assert torch.equal(first.latents, again.latents)
    assert not torch.equal(first.latents, before)


def test_pixels_come_after_the_last_step_and_no_step_after_them(draw: Flux1) -> None:
    drawing = draw.begin("a blue cube", (0,), steps=2, size=64)
    drawing = draw.denoise(drawing)
    with pytest.raises(ValueError, match="1 of 2"):
        draw.decode(drawing)
    drawing = draw.denoise(drawing)
    pixels = draw.decode(drawing)
    assert pixels.shape == (1, 64, 64, 3)
    assert pixels.dtype == torch.uint8
    with pytest.raises(ValueError, match="all 2"):
        draw.denoise(drawing)


@pytest.mark.parametrize(("steps", "size"), [(0, 64), (1, 72), (1, 0)])
def test_a_size_or_number_of_steps_that_no_picture_has_is_refused(
    draw: Flux1, steps: int, size: int
) -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        draw.begin("a blue cube", (0,), steps=steps, size=size)


def test_noise_levels_are_computed_once_and_leave_the_scheduler_alone(
    embedded_paths: ModelPaths,
) -> None:
    draw = _load(embedded_paths)
    before = draw.pipeline.scheduler.sigmas.tolist()
    four, two = (draw.begin("a", (0,), steps=steps, size=64).schedule for steps in (4, 2))
    assert (len(four.sigmas), four.sigmas[0], four.sigmas[-1]) == (5, 1.0, 0.0)
    assert len(two.sigmas) == 3
    assert draw.begin("b", (1,), steps=4, size=64).schedule is four
    assert draw.pipeline.scheduler.sigmas.tolist() == before


def test_a_picture_of_several_is_the_one_drawn_alone(draw: Flux1) -> None:
    seeds, size = (3, None, 8), 64
    drawing = draw.begin("a blue cube", seeds, steps=2, size=size)
    assert len(drawing.latents) == 3
    for _ in range(2):
        drawing = draw.denoise(drawing)
    pictures = draw.decode(drawing)
    assert (pictures.shape, pictures.dtype) == ((3, size, size, 3), torch.uint8)
    for picture, seed in zip(pictures, seeds, strict=True):
        alone = torch.from_numpy(_pixels(draw("a blue cube", seed, steps=2, size=size)))
        # Products of more rows may be added up in another order.
        assert (picture.long() - alone).abs().max() <= 1
    assert not torch.equal(pictures[0], pictures[2])


def test_several_pictures_take_one_run_of_the_encoders(
    embedded_paths: ModelPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = _load(embedded_paths)
    runs: list[int] = []
    encode = draw._encode_tokens

    def count(*tokens: torch.Tensor) -> Embedding:
        runs.append(len(tokens[0]))
        return encode(*tokens)

    monkeypatch.setattr(draw, "_encode", count)
    draw.begin("a blue cube", range(4), steps=1, size=64)
    assert runs == [1]


def test_no_seeds_are_refused(draw: Flux1) -> None:
    with pytest.raises(ValueError, match="at least 1 seed"):
        draw.begin("a blue cube", (), steps=1, size=64)


def _pixels(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(image, dtype=np.int64)
