"""FLUX through diffusers: the picture follows from prompt, seed and settings, and nothing else."""

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from generation.acceleration.eight_bit import EightBitLinear, Float8Linear, Int8Linear, quantise
from generation.pictures.flux1 import TextToImage
from generation.presets import preset
from generation.settings import TextToImageSettings
from generation.weights.store import ModelPaths
from protocol.errors import SetupError

SETTINGS = preset("embedded").text_to_image


@pytest.fixture(scope="module")
def draw(embedded_paths: ModelPaths) -> TextToImage:
    return TextToImage.from_pretrained(embedded_paths.text_to_image, SETTINGS, "cpu")


def _load(paths: ModelPaths, **changes: object) -> TextToImage:
    settings = TextToImageSettings.model_validate(SETTINGS.model_dump() | changes)
    return TextToImage.from_pretrained(paths.text_to_image, settings, "cpu")


def test_the_picture_has_the_size_and_mode_asked_for(draw: TextToImage) -> None:
    image = draw("a blue cube")
    assert (image.size, image.mode) == ((SETTINGS.size, SETTINGS.size), "RGB")


def test_the_same_prompt_and_seed_give_the_same_picture(draw: TextToImage) -> None:
    assert draw("a blue cube", 7).tobytes() == draw("a blue cube", 7).tobytes()


def test_no_seed_means_the_settings_seed(draw: TextToImage) -> None:
    assert draw("a blue cube").tobytes() == draw("a blue cube", SETTINGS.seed).tobytes()


def test_another_seed_or_prompt_gives_another_picture(draw: TextToImage) -> None:
    pictures = {draw(p, s).tobytes() for p in ("a blue cube", "a red car") for s in (1, 2)}
    assert len(pictures) == 4


def test_long_and_foreign_prompts_are_cut_without_a_word(
    draw: TextToImage, capfd: pytest.CaptureFixture[str]
) -> None:
    long, foreign, syntax = "a very long dragon " * 50, "猫の像 🐈 ünïcödé", "{prompt} {0} {"
    for prompt in (long, foreign, syntax, "<|endoftext|></s>"):
        assert draw(prompt).size == (SETTINGS.size, SETTINGS.size)
    assert capfd.readouterr() == ("", "")


def test_both_text_encoders_reach_the_picture(draw: TextToImage) -> None:
    # CLIP keeps 77 tokens and T5 48, one per letter here: the prompts differ beyond what either
    # keeps, beyond T5 alone, or within both.
    base = "x" * 100
    beyond_both, beyond_t5, within = (base[:at] + "y" + base[at + 1 :] for at in (90, 70, 10))
    assert draw(beyond_both).tobytes() == draw(base).tobytes()
    assert draw(beyond_t5).tobytes() != draw(base).tobytes()
    assert draw(within).tobytes() != draw(base).tobytes()


def test_the_template_is_part_of_the_prompt(draw: TextToImage, embedded_paths: ModelPaths) -> None:
    templated = _load(embedded_paths, template="a {prompt} cube")
    assert templated("blue").tobytes() == draw("a blue cube").tobytes()


def test_steps_and_size_are_followed(draw: TextToImage, embedded_paths: ModelPaths) -> None:
    assert _load(embedded_paths, size=64)("a blue cube").size == (64, 64)
    assert _load(embedded_paths, steps=1)("a").tobytes() != draw("a").tobytes()


def test_bfloat16_runs_and_stays_close(draw: TextToImage, embedded_paths: ModelPaths) -> None:
    low = np.asarray(_load(embedded_paths, dtype="bfloat16")("a blue cube"), dtype=np.float32)
    full = np.asarray(draw("a blue cube"), dtype=np.float32)
    assert np.abs(low - full).mean() < 0.25 * full.std()


def test_a_folder_without_a_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=f"{tmp_path}.*"):
        TextToImage.from_pretrained(tmp_path, SETTINGS, "cpu")


def test_a_truncated_weight_file_is_a_setup_error(
    embedded_paths: ModelPaths, tmp_path: Path
) -> None:
    folder = tmp_path / "flux"
    shutil.copytree(embedded_paths.text_to_image, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SetupError, match="fetch"):
        TextToImage.from_pretrained(folder, SETTINGS, "cpu")


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


def test_eight_bits_stay_close(draw: TextToImage, embedded_paths: ModelPaths) -> None:
    # The shipped networks have no layer that is large enough by itself.
    pipeline = _load(embedded_paths).pipeline
    assert quantise(pipeline.transformer, Float8Linear, device="cpu", smallest=1024) > 40
    assert quantise(pipeline.text_encoder_2, Int8Linear, device="cpu", smallest=1024) > 5
    low = _pixels(TextToImage(pipeline, SETTINGS)("a blue cube"))
    full = _pixels(draw("a blue cube"))
    assert 0 < np.abs(low - full).mean() < 0.25 * full.std()


def test_the_setting_for_eight_bits_reaches_both_networks(
    embedded_paths: ModelPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("generation.pictures.flux1.quantise", partial(quantise, smallest=1024))
    pipeline = _load(embedded_paths, eight_bit=True).pipeline
    for network, kind in (
        (pipeline.transformer, Float8Linear),
        (pipeline.text_encoder_2, Int8Linear),
    ):
        assert {type(m) for m in network.modules() if isinstance(m, EightBitLinear)} == {kind}


def test_accelerated_networks_draw_the_same(draw: TextToImage, embedded_paths: ModelPaths) -> None:
    torch._dynamo.reset()
    fast = TextToImage(_load(embedded_paths).pipeline, SETTINGS, accelerate=True, backend="eager")
    for prompt in ("a blue cube", "a red car"):
        assert np.abs(_pixels(fast(prompt)) - _pixels(draw(prompt))).max() <= 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_and_compiled_networks_draw_the_same(embedded_paths: ModelPaths) -> None:
    eager = TextToImage.from_pretrained(embedded_paths.text_to_image, SETTINGS, "cuda")
    fast = TextToImage.from_pretrained(
        embedded_paths.text_to_image, SETTINGS, "cuda", accelerate=True
    )
    for prompt in ("a blue cube", "a red car"):
        assert np.abs(_pixels(fast(prompt, 3)) - _pixels(eager(prompt, 3))).max() <= 4


def test_recent_prompts_are_embedded_once(embedded_paths: ModelPaths) -> None:
    draw = _load(embedded_paths)
    first = draw.embed("a blue cube")
    assert draw.embed("a blue cube") is first
    for index in range(31):
        draw.embed(f"prompt {index}")
    assert draw.embed("a blue cube") is first
    for index in range(32):
        draw.embed(f"another {index}")
    assert draw.embed("a blue cube") is not first
    again = draw.embed("a blue cube")
    draw.drop_caches()
    assert draw.embed("a blue cube") is not again


class _DroppedAtOnce(dict[str, tuple[torch.Tensor, torch.Tensor]]):
    """As if another thread dropped everything after each step."""

    def __setitem__(self, key: str, value: tuple[torch.Tensor, torch.Tensor]) -> None:
        super().__setitem__(key, value)
        self.clear()

    def __iter__(self) -> Iterator[str]:
        keys = list(super().__iter__())
        self.clear()
        return iter(keys)


def test_embeddings_may_be_dropped_at_any_time(embedded_paths: ModelPaths) -> None:
    draw = _load(embedded_paths)
    expected = draw.embed("a blue cube")
    draw._embeddings = _DroppedAtOnce({f"prompt {index}": expected for index in range(40)})
    for found, wanted in zip(draw.embed("a blue cube"), expected, strict=True):
        assert torch.equal(found, wanted)


def _pixels(image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(image, dtype=np.int64)
