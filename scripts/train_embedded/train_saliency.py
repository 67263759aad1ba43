"""The saliency network: a small U-Net (Ronneberger et al. 2015) with U2-Net's input and output."""

import warnings
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from generation.lift.triposr.vit import IMAGE_MEAN, IMAGE_STD
from scripts.train_embedded.bank import Bank
from scripts.train_embedded.loop import Training
from scripts.train_embedded.pictures import Batch, wear
from scripts.train_embedded.recipe import Places, Recipe
from scripts.train_embedded.shading import halve
from scripts.train_embedded.train_vae import redraw
from scripts.train_embedded.world import paint_table

SIZE = 320
_SATURATION = 5.0
"""Logits beyond half of this are fully opaque or transparent: rembg leaves no haze behind, which
would spoil the object's box."""


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class SaliencyNet(nn.Module):
    """Works at half the input's size and finer levels below; `width` channels at the first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, width * 3 // 2, width * 2, width * 3, width * 4]
        self.stem = nn.Sequential(_block(3, width, stride=2), _block(width, width))
        self.down = nn.ModuleList(
            nn.Sequential(_block(a, b, stride=2), _block(b, b)) for a, b in pairwise(widths)
        )
        self.up = nn.ModuleList(_block(a + b, a) for a, b in pairwise(widths))
        self.head = nn.Conv2d(width, 1, 1)

    def logits(self, images: Tensor) -> Tensor:
        """Maps normalised images (B, 3, 320, 320) to logits (B, 1, 320, 320)."""
        levels = [self.stem(images)]
        for down in self.down:
            levels.append(down(levels[-1]))
        hidden = levels.pop()
        for up, level in zip(reversed(self.up), reversed(levels), strict=True):
            hidden = functional.interpolate(hidden, scale_factor=2.0, mode="bilinear")
            hidden = up(torch.cat([hidden, level], dim=1))
        return functional.interpolate(self.head(hidden), scale_factor=2.0, mode="bilinear")

    def forward(self, images: Tensor) -> Tensor:
        """Maps normalised images to masks (B, 1, 320, 320) in 0..1, exactly 0 off the object."""
        return (self.logits(images) / _SATURATION + 0.5).clamp(0, 1)


def normalise(images: Tensor) -> Tensor:
    """What rembg does to RGB (B, 3, H, W) in 0..1 for U2-Net: maximum to 1, mean and deviation."""
    brightest = images.flatten(1).amax(1).clamp_min(1e-6)[:, None, None, None]
    mean, deviation = (images.new_tensor(v)[:, None, None] for v in (IMAGE_MEAN, IMAGE_STD))
    return (images / brightest - mean) / deviation


def train(recipe: Recipe, places: Places, bank: Bank, vae: Any, row: int = 0) -> SaliencyNet:
    """Trains it on worn pictures over plain and slightly textured backgrounds.

    A quarter of the batches have been through FLUX's autoencoder.
    """
    plan, device = recipe.saliency_plan, bank.objects.device
    torch.manual_seed(plan.seed)
    paints = paint_table(device)
    model = SaliencyNet(recipe.saliency_width).to(device)
    training = Training("saliency", model, plan, places.state, row)

    def step(generator: torch.Generator) -> Mapping[str, Tensor]:
        batch = Batch.draw(bank, plan.batch, paints, generator)
        # Most pictures are as small as FLUX's, some are larger.
        size = recipe.image_size * (2, 2, 3, 4)[training.step % 4] // 2
        images, masks = photograph(batch, size, generator)
        with recipe.autocast(device):
            if training.step % 4 == 0:
                images = redraw(vae, images, generator)
            logits = model.logits(normalise(as_input(wear(images, generator))))
        logits, masks = logits.float(), as_input(masks)
        entropy = functional.binary_cross_entropy_with_logits(logits, masks)
        soft = torch.sigmoid(logits)
        both, either = (soft * masks).sum((1, 2, 3)), (soft + masks - soft * masks).sum((1, 2, 3))
        overlap = (both / either.clamp_min(1)).mean()
        return {"loss": entropy + 0.5 * (1 - overlap), "entropy": entropy, "iou": overlap}

    trained = training.run(step)
    assert isinstance(trained, SaliencyNet)
    return trained


def photograph(batch: Batch, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Moves and scales the objects and lays them over backgrounds.

    Returns:
        Images (B, 3, size, size) RGB in 0..1 and soft masks (B, 1, size, size).
    """
    count, device = len(batch.bank), generator.device
    draw = torch.rand(count, 8, generator=generator, device=device)
    zoom = 0.95 + 0.8 * draw[:, 0] ** 2
    theta = torch.zeros(count, 2, 3, device=device)
    # Some are mirrored.
    theta[:, 0, 0] = zoom * torch.where(draw[:, 1] < 0.3, -1.0, 1.0)
    theta[:, 1, 1] = zoom
    theta[:, :, 2] = (draw[:, 2:4] * 2 - 1) * (0.04 + (zoom - 0.95).clamp_min(0))[:, None]
    source = halve(batch.rgba) if 2 * size <= batch.rgba.shape[-1] else batch.rgba
    grid = functional.affine_grid(theta, [count, 4, size, size], align_corners=False)
    rgba = functional.grid_sample(source, grid, align_corners=False)

    other = draw[:, 4:7]
    far = (other - batch.colours[:, 0]).norm(dim=-1) > 0.45
    plain = torch.where((far & (draw[:, 7] < 0.5))[:, None], other, batch.backgrounds)
    images = rgba[:, :3] + (1 - rgba[:, 3:]) * (
        plain[:, :, None, None] + _texture(count, size, generator)
    )
    return images.clamp(0, 1), rgba[:, 3:]


def as_input(pictures: Tensor) -> Tensor:
    """Brings pictures or masks in 0..1 to the network's size, as rembg does."""
    large = functional.interpolate(
        pictures.clamp(0, 1), size=(SIZE, SIZE), mode="bicubic", align_corners=False
    )
    return large.clamp(0, 1)


def _texture(count: int, size: int, generator: torch.Generator) -> Tensor:
    total = torch.zeros(count, 3, size, size, device=generator.device)
    for cells, strength in ((2, 0.04), (12, 0.02)):
        noise = torch.randn(count, 3, cells, cells, generator=generator, device=generator.device)
        share = torch.rand(count, 1, 1, 1, generator=generator, device=generator.device)
        total += functional.interpolate(
            strength * share * noise, size=(size, size), mode="bilinear", align_corners=False
        )
    return total


def export(model: SaliencyNet, file: Path) -> None:
    """Writes the network as ONNX: input (1, 3, 320, 320), first output the mask."""
    import onnx

    model = model.cpu().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, SIZE, SIZE),),
            str(file),
            input_names=["image"],
            output_names=["mask"],
            opset_version=17,
            dynamo=False,
        )
    onnx.checker.check_model(onnx.load(file))
