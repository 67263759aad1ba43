"""The small TripoSR: trained on exact occupancy and colour instead of rendered views."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from generation.lift.triposr import DENSITY_THRESHOLD, TripoSR
from generation.lift.triposr.triplane import PLANE_AXES, sample_planes
from scripts.train_embedded.bank import SHADE_UNIT, Bank
from scripts.train_embedded.loop import Training
from scripts.train_embedded.pictures import Batch, frame_for_triposr, wear
from scripts.train_embedded.recipe import Places, Recipe
from scripts.train_embedded.shading import halve
from scripts.train_embedded.train_vae import redraw
from scripts.train_embedded.world import paint_table

_SHARPNESS = 60.0
"""Log-density per unit of depth that the network is asked for."""

FOREGROUND_RATIO = 0.85
"""Side of the object's box as a share of the picture, as the pipeline frames it."""

_COLOUR_REACH = 0.05
"""Colour is learnt this near to the surface."""


def build(recipe: Recipe) -> TripoSR:
    """The network with its tables drawn at random; the rest has PyTorch's usual start."""
    model = TripoSR(recipe.triposr)
    embeddings = model.image_tokenizer.model.embeddings
    for table, deviation in (
        (model.tokenizer.embeddings, 0.1),
        (embeddings.cls_token, 0.02),
        (embeddings.position_embeddings, 0.02),
    ):
        nn.init.normal_(table, std=deviation)
    return model


def train(recipe: Recipe, places: Places, bank: Bank, vae: Any, row: int = 0) -> TripoSR:
    """Trains it to say where the solid is and how it is painted in the canonical light.

    Half of the pictures it sees have been through FLUX's autoencoder.
    """
    plan, device = recipe.triposr_plan, bank.objects.device
    torch.manual_seed(plan.seed)
    paints = paint_table(device)
    model = build(recipe).to(device)
    training = Training("triposr", model, plan, places.state, row)

    def step(generator: torch.Generator) -> Mapping[str, Tensor]:
        batch = Batch.draw(bank, plan.batch, paints, generator)
        start = (plan.seed + training.step) * recipe.batch_points % bank.points.shape[1]
        window = slice(start, start + recipe.batch_points)
        points = batch.bank.points[:, window].float()
        distances = batch.bank.distances[:, window].float()
        images = batch.images()
        with recipe.autocast(device):
            images[::2] = redraw(vae, images[::2], generator)
        inputs = worn_inputs(batch, images, generator)
        with recipe.autocast(device):
            codes = model(inputs)
            raw = decode(model, codes.float(), points).float()
        inside = raw[..., 0] + model.config.density_bias - math.log(DENSITY_THRESHOLD)
        occupancy = functional.binary_cross_entropy_with_logits(
            inside, torch.sigmoid(-_SHARPNESS * distances)
        )
        target = point_colours(batch, window)
        near = (distances.abs() < _COLOUR_REACH)[..., None]
        error = (torch.sigmoid(raw[..., 1:]) - target).abs() * near
        colour = error.sum() / (3 * near.sum()).clamp_min(1)
        return {"loss": occupancy + colour, "occupancy": occupancy, "colour": colour}

    trained = training.run(step)
    assert isinstance(trained, TripoSR)
    return trained


def decode(model: TripoSR, codes: Tensor, points: Tensor) -> Tensor:
    """Raw density and colour (B, N, 4) of scene codes (B, 3, C, H, W) at points (B, N, 3)."""
    pairs = torch.stack([points[..., list(axes)] for axes in PLANE_AXES], dim=1)
    features = sample_planes(codes.flatten(0, 1), pairs.flatten(0, 1) / model.radius)
    by_plane = features.view(len(points), 3, *features.shape[1:])
    joined = by_plane.transpose(1, 2).flatten(2)
    raw: Tensor = model.decoder(joined)
    return raw


def point_colours(batch: Batch, window: slice) -> Tensor:
    """Exact RGB (B, N, 3) of the nearest part in the canonical light."""
    parts = batch.bank.point_parts[:, window].long()
    albedo = batch.colours.gather(1, parts[..., None].expand(-1, -1, 3))
    shade = batch.bank.shades[:, window].float() * SHADE_UNIT
    return (albedo * shade[..., None]).clamp(0, 1)


def worn_inputs(batch: Batch, images: Tensor, generator: torch.Generator) -> Tensor:
    """The network's input as the pipeline makes it from imperfect pictures and cut-outs.

    Args:
        batch: Knows the exact masks.
        images: (B, 3, S, S) RGB in 0..1, its pictures.
        generator: Draws what is wrong with them.

    Returns:
        (B, 3, S, S) RGB in 0..1 on grey.
    """
    rgba, boxes = worn_cutouts(batch, images, generator)
    return frame_for_triposr(rgba, boxes, images.shape[-1], FOREGROUND_RATIO)


def worn_cutouts(batch: Batch, images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Imperfect cut-outs, not framed yet; see `worn_inputs`.

    Returns:
        (B, 4, S, S) RGBA in 0..1 and boxes (B, 4): left, top, right, bottom in shares of the side.
    """
    count, size, device = len(batch.bank), images.shape[-1], generator.device
    worn = wear(torch.cat([images, halve(batch.rgba)[:, 3:]], dim=1), generator)
    draw = torch.rand(count, 6, generator=generator, device=device)
    # A mask that is a little too wide, too narrow, too soft or too hard.
    hardness, offset = 1 + 2 * draw[:, 0], 0.4 * (draw[:, 1] - 0.5)
    alpha = (worn[:, 3] - 0.5) * hardness[:, None, None] + 0.5 + offset[:, None, None]
    rgba = torch.cat([worn[:, :3], alpha[:, None]], dim=1).clamp(0, 1)
    # The box of all that is not fully transparent reaches beyond the object by a few pixels.
    margin = (draw[:, 2:] * 4.5 - 1) / size
    return rgba, batch.bank.boxes + torch.cat([-margin[:, :2], margin[:, 2:]], dim=1)
