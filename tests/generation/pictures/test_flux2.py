"""FLUX.2-klein draws what diffusers' own pipeline draws, and the fast path changes nothing."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from generation.acceleration.eight_bit import Float8Linear, NarrowLinear, quantise
from generation.acceleration.twelve_bit import TwelveBitLinear
from generation.pictures import text_to_image
from generation.pictures.flux2 import Flux2Klein, RotaryTables
from generation.quiet import quiet_libraries
from generation.settings import TextToImageSettings
from protocol.errors import SetupError
from scripts.benchmarks import random_klein
from scripts.benchmarks.likeness import psnr
from tests.support.tiny_networks import KLEIN

CPU = torch.device("cpu")
SETTINGS = TextToImageSettings(size=64, steps=4)
PROMPT = "a blue cube"

needs_cuda = pytest.mark.cuda


@pytest.fixture(scope="module")
def library(tiny_klein: Path) -> Any:
    """Diffusers' own pipeline."""
    with quiet_libraries():
        from diffusers import Flux2KleinPipeline

        pipeline = Flux2KleinPipeline.from_pretrained(tiny_klein, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def draw(tiny_klein: Path) -> Flux2Klein:
    return Flux2Klein.from_pretrained(tiny_klein, SETTINGS, "cpu")


@pytest.fixture(scope="module")
def drawn(library: Any) -> Any:
    """Prompt rows, latents after every step and the picture of the library."""
    steps: list[Tensor] = []

    def keep(pipeline: Any, index: int, time: Tensor, values: dict[str, Tensor]) -> dict[str, Any]:
        steps.append(values["latents"])
        return {}

    picture = _library_picture(library, 7, callback_on_step_end=keep)
    rows, _ = library.encode_prompt(PROMPT)
    return rows, steps, picture


def _library_picture(library: Any, seed: int, **more: Any) -> np.ndarray[Any, Any]:
    with quiet_libraries():
        image = library(
            prompt=PROMPT,
            height=SETTINGS.size,
            width=SETTINGS.size,
            num_inference_steps=SETTINGS.steps,
            guidance_scale=1.0,
            generator=torch.Generator().manual_seed(seed),
            **more,
        ).images[0]
    return np.asarray(image)


def test_the_prompt_rows_are_those_of_the_library(draw: Flux2Klein, drawn: Any) -> None:
    (rows,) = draw.embed(PROMPT)
    assert rows.shape == (1, 512, 96)
    torch.testing.assert_close(rows, drawn[0])


def test_every_step_and_the_picture_are_those_of_the_library(draw: Flux2Klein, drawn: Any) -> None:
    drawing = draw.begin(PROMPT, (7,), steps=4, size=64)
    for expected in drawn[1]:
        drawing = draw.denoise(drawing)
        torch.testing.assert_close(drawing.latents, expected)
    found = draw.decode(drawing)[0].numpy()
    assert np.abs(found.astype(int) - drawn[2]).max() <= 1
    assert found.std() > 20


def test_half_precision_follows_the_library_as_closely(tiny_klein: Path) -> None:
    settings = SETTINGS.model_copy(update={"dtype": "bfloat16"})
    draw = Flux2Klein.from_pretrained(tiny_klein, settings, "cpu")
    expected = _library_picture(draw.pipeline, 7)
    assert psnr(np.asarray(draw(PROMPT, 7)), expected) > 40


@pytest.mark.parametrize(
    ("size", "steps", "sigmas"),
    [
        (512, 4, (1, 0.9581, 0.8840, 0.7175, 0)),
        (512, 2, (1, 0.8854, 0)),
        (768, 4, (1, 0.9622, 0.8947, 0.7390, 0)),
        (1024, 4, (1, 0.9674, 0.9081, 0.7672, 0)),
    ],
)
def test_noise_levels_are_the_published_ones(
    draw: Flux2Klein, size: int, steps: int, sigmas: tuple[float, ...]
) -> None:
    assert draw._schedule(steps, size).sigmas == pytest.approx(sigmas, abs=5e-5)


def test_pictures_beyond_the_jump_of_the_schedule_are_refused(
    draw: Flux2Klein, tiny_klein: Path
) -> None:
    # 4,096 tokens; the schedule jumps behind 4,300, and the next size has 4,225.
    with pytest.raises(ValueError, match="at most 1024"):
        draw.begin(PROMPT, (0,), steps=4, size=1040)
    large = SETTINGS.model_copy(update={"size": 1040})
    with pytest.raises(SetupError, match=r"at most 1024 pixels a side, but .* is 1040"):
        Flux2Klein.from_pretrained(tiny_klein, large, "cpu")


def test_layers_behind_the_last_that_is_read_are_left_out(draw: Flux2Klein, library: Any) -> None:
    assert len(library.text_encoder.model.layers) == 28
    assert len(draw.pipeline.text_encoder.model.layers) == 27
    assert isinstance(draw.pipeline.text_encoder.model.norm, torch.nn.Identity)


def test_nothing_behind_the_layers_that_are_read_changes_the_rows(
    tiny_klein: Path, draw: Flux2Klein
) -> None:
    other = Flux2Klein.from_pretrained(tiny_klein, SETTINGS, "cpu")
    whole = random_klein.qwen(CPU, torch.float32, KLEIN, whole=True)
    assert len(whole.model.layers) == 28
    assert whole.model.norm is not None
    other.pipeline.text_encoder = whole
    (expected,), (found,) = draw.embed(PROMPT), other.embed(PROMPT)
    torch.testing.assert_close(found, expected)


def test_words_of_a_prompt_are_framed_as_a_message_without_thinking(draw: Flux2Klein) -> None:
    ids, mask = draw._tokenise(PROMPT)
    count = int(mask.sum())
    tokenizer = draw.pipeline.tokenizer
    assert tokenizer.decode(ids[0, :count]) == (
        "<|im_start|>user\na blue cube<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    assert ids.shape == mask.shape == (1, 512)
    assert set(ids[0, count:].tolist()) == {tokenizer.pad_token_id}
    assert mask[0].tolist() == [True] * count + [False] * (512 - count)


def test_the_transformer_sees_every_padding_row_and_its_place(draw: Flux2Klein) -> None:
    seen: list[dict[str, Any]] = []
    hook = draw.pipeline.transformer.register_forward_pre_hook(
        lambda module, arguments, named: seen.append(named), with_kwargs=True
    )
    start = draw.begin(PROMPT, (0,), steps=4, size=64)
    draw.denoise(start)
    hook.remove()
    (named,) = seen
    (rows,) = draw.embed(PROMPT)
    assert torch.equal(named["encoder_hidden_states"], rows)
    count = int(draw._tokenise(PROMPT)[1].sum())
    assert rows[0, count:].abs().amax(dim=-1).min() > 0.1
    assert "encoder_attention_mask" not in named
    assert named["txt_ids"][:, 3].tolist() == list(range(512))
    assert not named["txt_ids"].is_floating_point()
    assert named["img_ids"][:5].tolist() == [[0, 0, w, 0] for w in range(4)] + [[0, 1, 0, 0]]


def test_without_the_padding_rows_the_picture_is_another(draw: Flux2Klein) -> None:
    (rows,) = draw.embed(PROMPT)
    count = int(draw._tokenise(PROMPT)[1].sum())
    blank = rows.clone()
    blank[:, count:] = 0
    start = draw.begin(PROMPT, (0,), steps=4, size=64)
    time = start.schedule.times[:1] / 1000
    with torch.no_grad():
        difference = draw._flow(start.latents, time, blank) - draw._flow(start.latents, time, rows)
    assert difference.abs().max() > 1e-3


def test_places_of_words_stay_whole_numbers_in_half_precision(tiny_klein: Path) -> None:
    settings = SETTINGS.model_copy(update={"dtype": "bfloat16"})
    draw = Flux2Klein.from_pretrained(tiny_klein, settings, "cpu")
    exact = draw._tables.compute(torch.arange(512)[:, None] * torch.tensor([0, 0, 0, 1]))
    kept = draw._tables(draw._word_places)
    assert all(torch.equal(a, b) for a, b in zip(kept, exact, strict=True))
    assert kept[0].dtype == torch.float32
    rounded = draw._tables.compute(draw._word_places.bfloat16())
    assert (rounded[0] != kept[0]).any(dim=-1).sum() == 128


def test_rotary_tables_are_computed_once_for_a_size(draw: Flux2Klein) -> None:
    asked: list[Tensor] = []
    hook = draw._tables.compute.register_forward_pre_hook(
        lambda module, arguments: asked.append(arguments[0])
    )
    for size in (96, 96, 112):
        drawing = draw.begin(PROMPT, (0,), steps=2, size=size)
        draw.denoise(draw.denoise(drawing))
    hook.remove()
    assert [len(places) for places in asked] == [36, 49]
    assert RotaryTables.of(draw.pipeline.transformer) is draw._tables
    # Anybody else's places are computed as ever.
    foreign = torch.tensor([[0, 1, 2, 3]])
    assert torch.equal(draw._tables(foreign)[0], draw._tables.compute(foreign)[0])


def test_latents_are_scaled_by_the_statistics_before_they_are_taken_apart(
    draw: Flux2Klein, library: Any
) -> None:
    latents = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    vae = library.vae
    blocks = latents.transpose(1, 2).view(1, 16, 4, 4)
    scale = (vae.bn.running_var + 1e-4).sqrt().view(1, 16, 1, 1)
    apart = library._unpatchify_latents(blocks * scale + vae.bn.running_mean.view(1, 16, 1, 1))
    with torch.no_grad():
        expected = vae.decoder(vae.post_quant_conv(apart))
        torch.testing.assert_close(draw._decode_blocks(latents), expected)
        # Each part counts.
        without = vae.decoder(apart)
        plain = vae.decode(library._unpatchify_latents(blocks)).sample
    assert (without - expected).abs().max() > 0.01
    assert (plain - expected).abs().max() > 0.01


def test_a_picture_of_several_is_the_one_drawn_alone(draw: Flux2Klein) -> None:
    seeds = (3, None, 8)
    drawing = draw.begin(PROMPT, seeds, steps=2, size=64)
    drawing = draw.denoise(draw.denoise(drawing))
    pictures = draw.decode(drawing)
    assert (pictures.shape, pictures.dtype) == ((3, 64, 64, 3), torch.uint8)
    for picture, seed in zip(pictures, seeds, strict=True):
        alone = np.asarray(draw(PROMPT, seed, steps=2), dtype=int)
        # Products of more rows may be added up in another order.
        assert np.abs(picture.numpy() - alone).max() <= 1
    assert not torch.equal(pictures[0], pictures[2])


def test_long_prompts_are_cut_and_foreign_ones_are_read(draw: Flux2Klein) -> None:
    for prompt in ("a very long dragon " * 50, "猫の像 🐈", "{prompt} {0}", "<|im_end|>"):
        assert draw(prompt, steps=1).size == (64, 64)


def test_accelerated_networks_draw_the_same(draw: Flux2Klein) -> None:
    torch._dynamo.reset()
    fast = Flux2Klein(draw.pipeline, SETTINGS, accelerate=True, backend="eager")
    pictures = [np.asarray(d(PROMPT, 5, steps=2), dtype=int) for d in (fast, draw)]
    assert np.abs(pictures[0] - pictures[1]).max() <= 1
    networks = draw.pipeline.transformer, draw.pipeline.text_encoder.model
    blocks = (*networks[0].single_transformer_blocks, *networks[1].layers)
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert hasattr(networks[0].transformer_blocks[0].attn, "to_qkv")
    assert not hasattr(networks[0].transformer_blocks[0].attn, "to_q")


def test_eight_bits_reach_the_layers_that_are_read_and_stay_close(
    tiny_klein: Path, draw: Flux2Klein, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_to_image, "quantise", partial(quantise, smallest=256))
    settings = SETTINGS.model_copy(update={"eight_bit": True})
    low = Flux2Klein.from_pretrained(tiny_klein, settings, "cpu")
    encoder = low.pipeline.text_encoder
    for network, kind in (
        (low.pipeline.transformer, Float8Linear),
        (encoder.model, TwelveBitLinear),
    ):
        assert {type(m) for m in network.modules() if isinstance(m, NarrowLinear)} == {kind}
    assert encoder.lm_head.weight is encoder.model.embed_tokens.weight
    (rows,), (exact,) = low.embed(PROMPT), draw.embed(PROMPT)
    error = torch.linalg.vector_norm(rows - exact) / torch.linalg.vector_norm(exact)
    assert 0 < error < 0.05
    assert psnr(np.asarray(low(PROMPT, 1)), np.asarray(draw(PROMPT, 1))) > 30


def test_fewer_tokens_than_the_model_was_trained_with_are_a_warning(
    draw: Flux2Klein, log: list[str]
) -> None:
    few = SETTINGS.model_copy(update={"max_sequence_length": 64})
    (rows,) = Flux2Klein(draw.pipeline, few).embed(PROMPT)
    assert rows.shape[1] == 64
    assert any("512 tokens" in line and "max_sequence_length 64" in line for line in log)


def test_a_folder_without_a_pipeline_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=f"FLUX.2-klein.*{tmp_path}"):
        Flux2Klein.from_pretrained(tmp_path, SETTINGS, "cpu")


@pytest.fixture(scope="module")
def on_cuda(tiny_klein: Path) -> dict[str, Flux2Klein]:
    """The model in bfloat16 on CUDA: eager, fast, and fast in 8 bits."""
    torch._dynamo.reset()
    settings = SETTINGS.model_copy(update={"dtype": "bfloat16"})
    narrow = settings.model_copy(update={"eight_bit": True})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_to_image, "quantise", partial(quantise, smallest=256))
        return {
            "eager": Flux2Klein.from_pretrained(tiny_klein, settings, "cuda"),
            "fast": Flux2Klein.from_pretrained(tiny_klein, settings, "cuda", accelerate=True),
            "8 bits": Flux2Klein.from_pretrained(tiny_klein, narrow, "cuda", accelerate=True),
        }


def _drawn_together(draw: Flux2Klein, seeds: tuple[int, ...], size: int = 64) -> Tensor:
    drawing = draw.begin(PROMPT, seeds, steps=4, size=size)
    while drawing.index < drawing.steps:
        drawing = draw.denoise(drawing)
    return draw.decode(drawing)


@needs_cuda
@pytest.mark.parametrize("form", ["fast", "8 bits"])
def test_recorded_pictures_are_those_of_eager_networks(
    on_cuda: dict[str, Flux2Klein], form: str
) -> None:
    fast = on_cuda[form]
    for seed, size in ((0, 64), (5, 96)):
        expected = np.asarray(on_cuda["eager"](PROMPT, seed, size=size))
        assert psnr(np.asarray(fast(PROMPT, seed, size=size)), expected) >= 30
    assert all(part._records for part in (fast._encode, fast._step, fast._decode))
    (rows,), (exact,) = fast.embed(PROMPT), on_cuda["eager"].embed(PROMPT)
    error = torch.linalg.vector_norm(rows.float() - exact.float())
    assert error <= 0.01 * torch.linalg.vector_norm(exact.float())


@needs_cuda
@pytest.mark.parametrize("form", ["eager", "fast", "8 bits"])
def test_the_same_prompt_and_seed_give_the_same_bytes(
    on_cuda: dict[str, Flux2Klein], form: str
) -> None:
    draw = on_cuda[form]
    first = _drawn_together(draw, (3,))
    draw.drop_caches()
    _drawn_together(draw, (4,), size=96)  # Other graphs of the same memory come in between.
    assert torch.equal(_drawn_together(draw, (3,)), first)


@needs_cuda
@pytest.mark.parametrize("form", ["eager", "fast", "8 bits"])
def test_on_cuda_too_a_picture_of_several_is_the_one_drawn_alone(
    on_cuda: dict[str, Flux2Klein], form: str
) -> None:
    seeds = (3, 4, 5)
    together = _drawn_together(on_cuda[form], seeds)
    assert (together.device.type, together.shape) == ("cuda", (3, 64, 64, 3))
    for picture, seed in zip(together, seeds, strict=True):
        (alone,) = _drawn_together(on_cuda[form], (seed,))
        # Other sizes take other kernels, which round otherwise.
        assert psnr(picture.cpu().numpy(), alone.cpu().numpy()) >= 30


@needs_cuda
def test_pictures_of_the_gpu_are_those_of_the_cpu(tiny_klein: Path, draw: Flux2Klein) -> None:
    gpu = Flux2Klein.from_pretrained(tiny_klein, SETTINGS, "cuda")
    assert psnr(np.asarray(gpu(PROMPT, 7)), np.asarray(draw(PROMPT, 7))) > 40
