"""The parts of `scripts.benchmark parts` that draw: both text-to-image models."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from generation.acceleration.streams import to_host
from generation.pictures.drawing import places
from generation.pictures.flux1 import Flux1, compilable
from generation.pictures.flux2 import (
    Flux2Klein,
    RotaryTables,
    image_places,
    read_words,
    word_places,
)
from generation.pictures.text_to_image import TextToImage
from scripts.benchmarks import full_size, random_klein
from scripts.benchmarks.bench import BOTH, CAPTURED, COMPILED, EAGER, Action, Bench, Prepare, Way
from scripts.benchmarks.whole_loop import denoise_and_decode

_PROMPT = "a picture"
COUNTS = (1, 2, 4, 8)
"""Pictures of one prompt that are drawn at once."""


def _t5(bench: Bench, way: Way) -> Action:
    network = full_size.t5(bench.device, bench.dtype, bench.sizes, eight_bit="8 bits" in way)
    ids = bench.tokens(_words(bench, Flux1))
    return bench.action(
        lambda ids: network(ids)[0], way, compilable(network), rounds_as_eager=True, ids=ids
    )


def _clip(bench: Bench, way: Way) -> Action:
    network = full_size.clip(bench.device, bench.dtype, bench.sizes)
    ids = bench.tokens(bench.sizes.clip["max_position_embeddings"])
    return bench.action(lambda ids: network(ids).pooler_output, way, (), ids=ids)


def _qwen(bench: Bench, way: Way) -> Action:
    sizes = bench.sizes.klein
    network = random_klein.qwen(bench.device, bench.dtype, sizes, eight_bit="8 bits" in way)
    ids = bench.tokens(_words(bench, Flux2Klein))
    mask = torch.arange(ids.shape[1], device=bench.device)[None] < 40
    return bench.action(
        partial(read_words, network),
        way,
        network.model.layers,
        rounds_as_eager=True,
        ids=ids,
        mask=mask,
    )


def _flux_step(bench: Bench, way: Way) -> Action:
    network = full_size.transformer(
        bench.device, bench.dtype, bench.sizes, eight_bit="8 bits" in way
    )
    if "fused" in way:
        network.fuse_qkv_projections()
    side, words = bench.size // 16, _words(bench, Flux1)
    config = network.config
    return bench.action(
        lambda **inputs: network(**inputs, return_dict=False)[0],
        way,
        (*network.transformer_blocks, *network.single_transformer_blocks),
        hidden_states=bench.random(1, side**2, config.in_channels),
        encoder_hidden_states=bench.random(1, words, config.joint_attention_dim),
        pooled_projections=bench.random(1, config.pooled_projection_dim),
        timestep=torch.ones(1, device=bench.device, dtype=bench.dtype),
        txt_ids=torch.zeros(words, 3, device=bench.device, dtype=bench.dtype),
        img_ids=places(side, bench.device).to(bench.dtype),
    )


def _klein_step(bench: Bench, way: Way) -> Action:
    sizes = bench.sizes.klein
    network = random_klein.transformer(bench.device, bench.dtype, sizes, eight_bit="8 bits" in way)
    if "fused" in way:
        network.fuse_qkv_projections()
    side, words = bench.size // 16, _words(bench, Flux2Klein)
    ids = {"txt_ids": word_places(words, bench.device), "img_ids": image_places(side, bench.device)}
    tables = RotaryTables.of(network)
    for tensor in ids.values():
        tables.keep(tensor)
    config = network.config
    return bench.action(
        # The places are constants, not inputs: a graph would copy them.
        lambda **inputs: network(**inputs, **ids, return_dict=False)[0],
        way,
        (*network.transformer_blocks, *network.single_transformer_blocks),
        hidden_states=bench.random(1, side**2, config.in_channels),
        encoder_hidden_states=bench.random(1, words, config.joint_attention_dim),
        timestep=torch.ones(1, device=bench.device, dtype=bench.dtype),
    )


def _vae(bench: Bench, way: Way) -> Action:
    return _decoder(bench, way, full_size.vae(bench.device, bench.dtype, bench.sizes))


def _klein_vae(bench: Bench, way: Way) -> Action:
    return _decoder(bench, way, random_klein.vae(bench.device, bench.dtype, bench.sizes.klein))


def _decoder(bench: Bench, way: Way, network: Any) -> Action:
    if "channels last" in way:
        network.to(memory_format=torch.channels_last)
    config = network.config
    side = bench.size // 2 ** (len(config.block_out_channels) - 1)
    latents = bench.random(1, config.latent_channels, side, side)

    def decode(latents: Tensor) -> Any:
        return network.decode(latents, return_dict=False)[0]

    return bench.action(decode, way, (network.decoder,), latents=latents)


def _drawn_picture(bench: Bench, way: Way) -> Action:
    """From a remembered prompt to pixels on the host, by FLUX.1."""
    in_one = "whole loop" in way
    flux = _model(bench, "schnell", way, accelerate="captured" in way and not in_one)
    if not in_one:
        return partial(flux, _PROMPT)
    pipeline, settings = flux.pipeline, flux.settings
    noise = flux.begin(_PROMPT, (None,), steps=settings.steps, size=settings.size)
    network = pipeline.transformer
    draw = bench.action(
        partial(denoise_and_decode, pipeline, noise.schedule.sigmas),
        way,
        (*network.transformer_blocks, *network.single_transformer_blocks, pipeline.vae.decoder),
    )

    def draw_picture() -> Image.Image:
        # With the same work on the host as a picture in steps.
        start = flux.begin(_PROMPT, (None,), steps=settings.steps, size=settings.size)
        return Image.fromarray(to_host(draw(start.latents, *start.embedding)))

    return draw_picture


def _klein_picture(bench: Bench, way: Way) -> Action:
    """From a remembered prompt to pixels on the host, by FLUX.2-klein."""
    return partial(_model(bench, "klein", way, accelerate="captured" in way), _PROMPT)


def _pictures(bench: Bench, way: Way) -> Mapping[int, Action]:
    """From a remembered prompt to the pixels of several pictures on the device."""
    (model,) = way & {"klein", "schnell"}
    draw = _model(bench, model, way, accelerate="eager" not in way)
    settings = draw.settings

    def pictures(count: int) -> Tensor:
        seeds = range(count)
        drawing = draw.begin(_PROMPT, seeds, steps=settings.steps, size=settings.size)
        while drawing.index < drawing.steps:
            drawing = draw.denoise(drawing)
        return draw.decode(drawing)

    return {count: partial(pictures, count) for count in COUNTS}


def _model(bench: Bench, model: str, way: Way, *, accelerate: bool) -> TextToImage:
    return full_size.text_to_image(
        bench.drawing(model, way),
        bench.device,
        bench.sizes,
        accelerate=accelerate,
        backend=bench.backend,
    )


def _words(bench: Bench, model: type[TextToImage]) -> int:
    """Tokens of a prompt."""
    return bench.settings.text_to_image.max_sequence_length or model.SEQUENCE_LENGTH


PARTS: dict[str, tuple[Prepare, tuple[str, ...]]] = {
    "t5": (_t5, (EAGER, CAPTURED, f"8 bits, {CAPTURED}", f"8 bits, {BOTH}")),
    "clip": (_clip, (EAGER, CAPTURED)),
    "flux-step": (
        _flux_step,
        (EAGER, CAPTURED, COMPILED, BOTH, f"fused, {BOTH}", f"8 bits, {BOTH}"),
    ),
    "vae": (_vae, (EAGER, CAPTURED, BOTH, f"channels last, {BOTH}")),
    "picture": (
        _drawn_picture,
        (
            EAGER,
            BOTH,
            f"whole loop, {BOTH}",
            f"8 bits, {BOTH}",
            f"8 bits, whole loop, {BOTH}",
        ),
    ),
    "qwen": (_qwen, (EAGER, CAPTURED, BOTH, f"8 bits, {CAPTURED}", f"8 bits, {BOTH}")),
    "klein-step": (
        _klein_step,
        (EAGER, CAPTURED, COMPILED, BOTH, f"fused, {BOTH}", f"8 bits, {BOTH}"),
    ),
    "klein-vae": (_klein_vae, (EAGER, CAPTURED, BOTH)),
    "klein-picture": (_klein_picture, (EAGER, BOTH, f"8 bits, {BOTH}")),
    "pictures": (_pictures, ("klein", "klein, 8 bits", "schnell", "schnell, 8 bits")),
}
"""Parts by name: how to prepare one, and in which ways it is run."""
