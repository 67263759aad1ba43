"""The small FLUX: transformer and both text encoders, trained together from nothing."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from scripts.train_embedded import text, train_vae
from scripts.train_embedded.bank import Bank
from scripts.train_embedded.loop import Training
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.palette import COLOURS
from scripts.train_embedded.pictures import Batch
from scripts.train_embedded.prompts import training_pairs, write_prompt
from scripts.train_embedded.recipe import Places, Recipe
from scripts.train_embedded.world import paint_table

HEAD_WIDTH = 32


def build(recipe: Recipe) -> nn.ModuleDict:
    """The transformer and the text encoders, in the layouts of FLUX.1."""
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=4 * train_vae.LATENT_CHANNELS,
        num_layers=recipe.flux.layers,
        num_single_layers=recipe.flux.single_layers,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=recipe.flux.heads,
        joint_attention_dim=text.TEXT_WIDTH,
        pooled_projection_dim=text.TEXT_WIDTH,
        axes_dims_rope=(8, 12, 12),
        guidance_embeds=False,
    )
    clip = text.clip_encoder(text.clip_tokenizer())
    t5 = text.t5_encoder(text.t5_tokenizer())
    for encoder in (clip, t5):
        # With fused attention and bfloat16 here, the first steps on an H100 ended in NaN.
        encoder.set_attn_implementation("eager")
    return nn.ModuleDict({"transformer": transformer, "clip": clip, "t5": t5})


@dataclass(frozen=True)
class Wordings:
    """Token ids of W prompts for every colour and object; zeros where a pair is held out.

    Attributes:
        clip: (colours, objects, W, 77) int64.
        t5: (colours, objects, W, 48) int64.
    """

    clip: Tensor
    t5: Tensor

    @classmethod
    def write(cls, count: int, seed: int, device: torch.device) -> "Wordings":
        """Writes `count` prompts for every pair that is not held out."""
        rng = random.Random(seed)
        clip, t5 = (
            torch.zeros(len(COLOURS), len(SHAPES), count, length, dtype=torch.long)
            for length in (text.CLIP_LENGTH, text.T5_LENGTH)
        )
        for colour, shape in training_pairs():
            prompts = [write_prompt(colour, shape, rng).text for _ in range(count)]
            clip[colour, shape], t5[colour, shape] = token_ids(prompts)
        return cls(clip.to(device), t5.to(device))


def token_ids(prompts: list[str]) -> tuple[Tensor, Tensor]:
    """CLIP (P, 77) and T5 (P, 48) ids, padded and cut as FluxPipeline does."""
    lengths = (text.CLIP_LENGTH, text.T5_LENGTH)
    tokenizers = (text.clip_tokenizer(), text.t5_tokenizer())
    clip, t5 = (
        tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        for tokenizer, length in zip(tokenizers, lengths, strict=True)
    )
    return clip, t5


@dataclass(frozen=True)
class Latents:
    """Encoded pictures with what they show.

    Attributes:
        tokens: (L, 64, 64) float16, packed and normalised as FluxPipeline has them.
        names, objects: (L,) int64.
    """

    tokens: Tensor
    names: Tensor
    objects: Tensor

    @classmethod
    @torch.no_grad()
    def encode(cls, vae: Any, bank: Bank, count: int, seed: int) -> "Latents":
        """Paints and encodes `count` pictures."""
        device = bank.objects.device
        generator = torch.Generator(device).manual_seed(seed)
        paints, at_once = paint_table(device), min(256, count)
        tokens, names, objects = [], [], []
        for _ in tqdm(range(count // at_once), desc="latents", leave=False):
            batch = Batch.draw(bank, at_once, paints, generator)
            mean = vae.encode(batch.images() * 2 - 1).latent_dist.mean
            scaled = (mean.float() - vae.config.shift_factor) * vae.config.scaling_factor
            tokens.append(pack(scaled).half())
            names.append(batch.names)
            objects.append(batch.bank.objects.long())
        return cls(torch.cat(tokens), torch.cat(names), torch.cat(objects))


def pack(latents: Tensor) -> Tensor:
    """(V, C, H, W) to (V, H/2 * W/2, 4 C), as FluxPipeline packs latents."""
    count, channels, height, width = latents.shape
    blocks = latents.reshape(count, channels, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def train(recipe: Recipe, places: Places, bank: Bank, vae: Any, row: int = 0) -> nn.ModuleDict:
    """Trains with rectified flow (Liu et al. 2022; Esser et al. 2024) on FLUX's parametrisation.

    The network sees x_t = (1 - t) x_0 + t noise and predicts noise - x_0.
    """
    plan, device = recipe.flux_plan, bank.objects.device
    torch.manual_seed(plan.seed)
    training = Training("flux", build(recipe).to(device), plan, places.state, row)
    latents = Latents.encode(vae, bank, recipe.latents, plan.seed)
    wordings = Wordings.write(recipe.wordings, plan.seed, device)

    def step(generator: torch.Generator) -> Mapping[str, Tensor]:
        draw = torch.randint(1 << 30, (2, plan.batch), generator=generator, device=device)
        pick, wording = draw[0] % len(latents.tokens), draw[1] % recipe.wordings
        clean, name, shape = (
            tensor[pick] for tensor in (latents.tokens, latents.names, latents.objects)
        )
        time = torch.rand(plan.batch, generator=generator, device=device)
        noise = torch.randn(clean.shape, generator=generator, device=device)
        at = time[:, None, None]
        with recipe.autocast(device):
            flow = predict_flow(
                training.module,
                (1 - at) * clean.float() + at * noise,
                time,
                wordings.clip[name, shape, wording],
                wordings.t5[name, shape, wording],
            )
        return {"loss": functional.mse_loss(flow.float(), noise - clean.float())}

    networks = training.run(step)
    assert isinstance(networks, nn.ModuleDict)
    return networks


def predict_flow(
    networks: nn.Module, noisy: Tensor, time: Tensor, clip: Tensor, t5: Tensor
) -> Tensor:
    """One call of the networks as FluxPipeline makes it.

    Args:
        networks: See `build`.
        noisy: (B, N, 64) packed latents; N is a square.
        time: (B,) 0 (clean) .. 1 (noise).
        clip: (B, 77) ids.
        t5: (B, 48) ids.

    Returns:
        (B, N, 64) flow.
    """
    parts: Any = networks
    side = torch.arange(math.isqrt(noisy.shape[1]))
    rows, columns = torch.meshgrid(side, side, indexing="ij")
    image_ids = torch.stack((torch.zeros_like(rows), rows, columns), -1).flatten(0, 1)
    # The text encoders are too small to gain from bfloat16.
    with torch.autocast(noisy.device.type, enabled=False):
        pooled = parts["clip"](input_ids=clip).pooler_output
        words = parts["t5"](input_ids=t5)[0]
    flow: Tensor = parts["transformer"](
        hidden_states=noisy,
        timestep=time,
        pooled_projections=pooled,
        encoder_hidden_states=words,
        img_ids=image_ids.to(noisy),
        txt_ids=torch.zeros(t5.shape[1], 3).to(noisy),
        return_dict=False,
    )[0]
    return flow
