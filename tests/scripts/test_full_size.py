"""The benchmark's random networks have the public models' sizes, and the same weights each time."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from generation.acceleration import eight_bit
from generation.lift.triposplat.loading import functions_of
from generation.pictures import text_to_image
from generation.pictures.flux1 import Flux1
from generation.pictures.flux2 import Flux2Klein
from generation.quiet import quiet_libraries
from generation.scoring.validity import report_on
from generation.settings import LiftSettings
from generation.stage import StepContext
from protocol.tasks import TextTask
from scripts.benchmarks import full_size, random_klein
from tests.support.tiny_networks import KLEIN, SIZES, tiny_settings

CPU = torch.device("cpu")


def test_the_public_models_have_as_many_parameters() -> None:
    with quiet_libraries(), torch.device("meta"):
        from diffusers import FluxTransformer2DModel
        from transformers import T5Config, T5EncoderModel

        transformer = FluxTransformer2DModel(**full_size.FULL.transformer)
        t5 = T5EncoderModel(T5Config(**full_size.FULL.t5, feed_forward_proj="gated-gelu"))
    assert not transformer.config.guidance_embeds
    clip = full_size.clip(CPU, torch.bfloat16)
    vae = full_size.vae(CPU, torch.bfloat16)
    counts = [
        sum(parameter.numel() for parameter in network.parameters())
        for network in (transformer, t5, clip, vae)
    ]
    # FLUX.1-schnell's shards hold this many: transformer, text_encoder_2, text_encoder, vae.
    assert counts == [11_891_178_560, 4_762_310_656, 123_060_480, 83_819_683]


def test_the_public_klein_has_as_many_parameters() -> None:
    sizes = random_klein.FULL_KLEIN
    with quiet_libraries(), torch.device("meta"):
        from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
        from transformers import Qwen3Config, Qwen3ForCausalLM

        networks = (
            Flux2Transformer2DModel(**sizes.transformer, guidance_embeds=False),
            Qwen3ForCausalLM(Qwen3Config(**sizes.qwen, tie_word_embeddings=True)),
            AutoencoderKLFlux2(**sizes.vae),
        )
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    # The checkpoint of FLUX.2-klein-4B holds this many: transformer, text_encoder, vae.
    assert counts == [3_875_544_576, 4_022_468_096, 84_046_115]


def test_random_klein_draws_finite_pictures_that_follow_from_the_prompt() -> None:
    settings = tiny_settings(model="klein").text_to_image
    draw = full_size.text_to_image(settings, CPU, SIZES)
    assert type(draw) is Flux2Klein
    pictures = [np.asarray(draw(prompt, 0)) for prompt in ("a red cube", "a wooden chair")]
    assert all(picture.std() > 20 for picture in pictures)
    assert not np.array_equal(pictures[0], pictures[1])
    highest = len(draw.pipeline.tokenizer)
    assert highest <= KLEIN.qwen["vocab_size"] < random_klein.FULL_KLEIN.qwen["vocab_size"]


def test_weights_follow_from_their_names_however_they_are_held() -> None:
    wide = full_size.transformer(CPU, torch.float32, SIZES)
    narrow = full_size.transformer(CPU, torch.float32, SIZES, eight_bit=True)
    first, second = (network.transformer_blocks[0].attn for network in (wide, narrow))
    assert torch.equal(first.to_q.weight, second.to_q.weight)
    assert torch.equal(wide.proj_out.weight, narrow.proj_out.weight)
    assert not torch.equal(first.to_q.weight, first.to_k.weight)


@pytest.mark.parametrize("make", [full_size.transformer, full_size.t5])
def test_a_network_held_in_8_bits_answers_alike(
    make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_to_image, "quantise", partial(eight_bit.quantise, smallest=1))
    outputs = []
    for held in (False, True):
        network = make(CPU, torch.float32, SIZES, eight_bit=held)  # type: ignore[operator]
        layers = sum(isinstance(m, eight_bit.NarrowLinear) for m in network.modules())
        assert (layers > 0) == held
        assert not any(parameter.is_meta for parameter in network.parameters())
        outputs.append(_answer(network, make is full_size.t5))
    difference = torch.linalg.vector_norm(outputs[1] - outputs[0])
    assert 0 < difference < 0.1 * torch.linalg.vector_norm(outputs[0])


@torch.no_grad()
def _answer(network: object, is_t5: bool) -> torch.Tensor:
    if is_t5:
        answer: torch.Tensor = network(torch.arange(10)[None])[0]  # type: ignore[operator]
        return answer
    generator = torch.Generator().manual_seed(0)
    answer = network(  # type: ignore[operator]
        hidden_states=torch.randn(1, 16, 64, generator=generator),
        encoder_hidden_states=torch.randn(1, 8, 32, generator=generator),
        pooled_projections=torch.randn(1, 24, generator=generator),
        timestep=torch.tensor([0.5]),
        txt_ids=torch.zeros(8, 3),
        img_ids=torch.zeros(16, 3),
        return_dict=False,
    )[0]
    return answer


def test_buffers_and_tied_weights_are_those_of_the_library() -> None:
    clip = full_size.clip(CPU, torch.bfloat16, SIZES)
    assert clip.embeddings.position_ids.tolist() == [list(range(77))]
    t5 = full_size.t5(CPU, torch.bfloat16, SIZES)
    assert t5.encoder.embed_tokens.weight is t5.shared.weight
    assert dict(t5.named_buffers()) == {}
    assert dict(full_size.transformer(CPU, torch.bfloat16, SIZES).named_buffers()) == {}


def test_pictures_are_finite_and_follow_from_the_prompt() -> None:
    settings = tiny_settings().text_to_image
    pipeline = full_size.flux_pipeline(settings, CPU, SIZES)
    draw = Flux1(pipeline, settings)
    pictures = [np.asarray(draw(prompt, 0)) for prompt in ("a red cube", "a wooden chair")]
    assert all(picture.std() > 20 for picture in pictures)
    assert not np.array_equal(pictures[0], pictures[1])
    highest = max(len(pipeline.tokenizer), len(pipeline.tokenizer_2))
    assert highest < min(full_size.FULL.t5["vocab_size"], full_size.FULL.clip["vocab_size"])


def test_random_triposplat_makes_valid_clouds_that_follow_from_the_picture() -> None:
    settings = tiny_settings()
    settings = settings.model_copy(update={"lift": LiftSettings(backend="triposplat")})
    networks = full_size.lifting(settings, CPU, SIZES)
    assert isinstance(networks, tuple)
    stages = functions_of(settings, *networks)
    rung = replace(settings.ladder[0], lift_steps=2, gaussians=9_000)
    context = StepContext(TextTask(id="one", prompt="a cube", seed=3), rung)
    rng = np.random.default_rng(0)
    clouds = []
    for picture in rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8):
        value = stages["features"](picture, context)
        for _ in range(rung.lift_steps):
            value = stages["flow"](value, context)
        splats = stages["splats"](stages["gaussians"](value, context), context)
        assert report_on(splats.measures, wire_bytes=1).passed
        # What floats is a small share.
        assert 0.9 * 9_000 < len(splats.cloud) <= 9_000
        # One body around the middle: its side is 1.6, over which even points would spread by 0.46.
        assert splats.cloud.positions.std(axis=0).max() < 0.35
        clouds.append(splats.cloud.positions)
    assert clouds[0].shape != clouds[1].shape or not np.allclose(*clouds)
