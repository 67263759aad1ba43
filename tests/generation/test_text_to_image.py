"""FLUX through diffusers: the picture follows from prompt, seed and settings, and nothing else."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from generation.model_store import ModelPaths
from generation.presets import TextToImageSettings, preset
from generation.text_to_image import TextToImage
from protocol.errors import SetupError

SETTINGS = preset("embedded").text_to_image


@pytest.fixture(scope="module")
def draw(embedded_paths: ModelPaths) -> TextToImage:
    return TextToImage(embedded_paths.text_to_image, SETTINGS, "cpu")


def _load(paths: ModelPaths, **changes: object) -> TextToImage:
    settings = TextToImageSettings.model_validate(SETTINGS.model_dump() | changes)
    return TextToImage(paths.text_to_image, settings, "cpu")


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
    # CLIP keeps 77 tokens and T5 64, one per letter here: the prompts differ beyond what either
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
        TextToImage(tmp_path, SETTINGS, "cpu")


def test_a_truncated_weight_file_is_a_setup_error(
    embedded_paths: ModelPaths, tmp_path: Path
) -> None:
    folder = tmp_path / "flux"
    shutil.copytree(embedded_paths.text_to_image, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(SetupError, match="fetch"):
        TextToImage(folder, SETTINGS, "cpu")


def test_offloading_without_a_cuda_device_says_so(embedded_paths: ModelPaths) -> None:
    with pytest.raises(SetupError, match=r"needs a CUDA device, the preset runs on cpu"):
        _load(embedded_paths, offload=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_offloading_changes_where_the_weights_lie_and_nothing_else(
    embedded_paths: ModelPaths,
) -> None:
    offloaded = SETTINGS.model_copy(update={"offload": True})
    resident = TextToImage(embedded_paths.text_to_image, SETTINGS, "cuda")("a blue cube")
    drawn = TextToImage(embedded_paths.text_to_image, offloaded, "cuda")("a blue cube")
    assert drawn.tobytes() == resident.tobytes()
