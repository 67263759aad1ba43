"""The small TripoSplat: trained on exact latents, surfaces and Gaussians, without rendering.

The latent is not learned. Each of its tokens belongs to a point in space and says where the nearest
place on the surface is and what it looks like, see `surfaces.Surfaces.latents`.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from generation.lift.triposplat import FlowTransformer, SplatDecoder, TripoSplat
from generation.lift.triposplat.config import TripoSplatConfig
from generation.lift.triposplat.features import PictureEncoders, build_dino, build_vae
from generation.lift.triposplat.flow import LearnedRotary
from generation.lift.triposplat.tables import sobol_table
from scripts.train_embedded import export
from scripts.train_embedded.bank import Bank
from scripts.train_embedded.drawing import draw_world
from scripts.train_embedded.evaluate import spare_cores
from scripts.train_embedded.files import write_atomically
from scripts.train_embedded.loop import Training
from scripts.train_embedded.objects import SHAPES
from scripts.train_embedded.pictures import draw_colours
from scripts.train_embedded.recipe import Places, Recipe, SplatPlan
from scripts.train_embedded.shading import jitter_colours, part_colours
from scripts.train_embedded.splat_decoder import build_decoder, decoder_losses
from scripts.train_embedded.splat_pictures import (
    Pictures,
    draw_pictures,
    look_at,
    pixels_of,
)
from scripts.train_embedded.surfaces import Surfaces
from scripts.train_embedded.world import YAW_SPREAD, paint_table

SHIFT = 3.0
"""Of the times, in training as in sampling."""

_UNCONDITIONAL = 0.1
"""Share of the pictures that the flow does not see, for guidance."""

_CAMERA_WEIGHT = 0.05
_TUTOR_WEIGHT = 0.1
"""Of the questions that DINOv3's class token answers in training: which object, how it stands."""
_NO_VARIANCE = -12.0
_LATENT_NOISE = 0.35
"""Deviation of the noise that the decoder's latents have at most, for the flow's errors."""


def build_encoders(recipe: Recipe, device: torch.device) -> PictureEncoders:
    """DINOv3 with random weights; a VAE that is never trained and whose latents have no noise."""
    config = recipe.splat_plan.encoders
    dino, vae = build_dino(config.dinov3), build_vae(config.vae)
    for module in dino.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    channels = config.vae.latent_channels
    with torch.no_grad():
        vae.quant_conv.weight[channels:] = 0
        vae.quant_conv.bias[channels:] = _NO_VARIANCE
    vae = vae.requires_grad_(False).eval()
    return PictureEncoders(dino.to(device), vae.to(device), config.picture_size)


def build_flow(config: TripoSplatConfig) -> FlowTransformer:
    """The flow with gates that are open, and tokens whose learned places start near the origin."""
    flow = FlowTransformer(config.flow)
    modulation = flow.adaLN_modulation[-1]
    assert isinstance(modulation, nn.Linear)
    nn.init.normal_(modulation.weight, std=0.02)
    nn.init.zeros_(modulation.bias)
    with torch.no_grad():
        for block in (*flow.noise_refiner, *flow.blocks):
            gates = block.shift_table.view(6, -1)
            gates[2], gates[5] = 1.0, 1.0
        for module in flow.modules():
            if isinstance(module, LearnedRotary):
                module.final_map.weight *= 0.1
    return flow


def latent_points(config: TripoSplatConfig) -> Tensor:
    """The points (L, 3) in 0..1 that the latent's tokens belong to."""
    flow = config.flow
    return sobol_table(flow.latent_tokens, flow.width, flow.positions.seed, flow.positions.octaves)[
        0
    ]


def measure_surfaces(recipe: Recipe, places: Places, bank: Bank) -> Surfaces:
    """Measures the surfaces of the bank's solids, unless an earlier run did."""
    plan, device = recipe.splat_plan, bank.objects.device
    if not places.surfaces.is_file():
        network = SplatDecoder(plan.config).gs.to(device)
        middle = torch.full((1, 3), 0.5, device=device)
        nothing = torch.zeros(1, plan.config.gaussian.outputs, device=device)
        with torch.no_grad():
            offsets = network.gaussians(middle, nothing).positions
        points = latent_points(plan.config)
        surfaces = Surfaces.measure(bank, points, offsets, plan.surface, seed=plan.decoder.seed)
        tensors = {name: x.cpu() for name, x in surfaces.tensors().items()}
        write_atomically(places.surfaces, lambda draft: torch.save(tensors, draft))
    tensors = torch.load(places.surfaces, map_location="cpu", mmap=True, weights_only=True)
    return Surfaces.from_tensors(tensors).to(device)


def train_decoder(
    recipe: Recipe, places: Places, bank: Bank, surfaces: Surfaces, row: int = 0
) -> SplatDecoder:
    """Trains the octree and the Gaussian network on exact latents with noise."""
    plan, device = recipe.splat_plan.decoder, bank.objects.device
    torch.manual_seed(plan.seed)
    paints, points = paint_table(device), latent_points(recipe.splat_plan.config).to(device)
    decoder = build_decoder(recipe.splat_plan.config).to(device)
    training = Training("triposplat-decoder", decoder, plan, places.state, row)

    def step(generator: torch.Generator) -> Mapping[str, Tensor]:
        index = torch.randint(len(bank), (plan.batch,), generator=generator, device=device)
        solids, objects = surfaces.select(index), bank.objects[index]
        main = jitter_colours(draw_colours(objects, generator), generator)
        colours = part_colours(paints, objects.long(), main)
        latents = solids.latents(points, colours)
        amount = torch.rand(plan.batch, 1, 1, generator=generator, device=device)
        noise = torch.randn(latents.shape, generator=generator, device=device)
        latents = latents + _LATENT_NOISE * amount.square() * noise
        return decoder_losses(decoder, solids, colours, latents, generator)

    trained = training.run(step)
    assert isinstance(trained, SplatDecoder)
    return trained


def train_flow(
    recipe: Recipe,
    places: Places,
    bank: Bank,
    pictures: Pictures,
    surfaces: Surfaces,
    encoders: PictureEncoders,
    row: int = 0,
) -> FlowTransformer:
    """Trains the flow and DINOv3, whose trained weights `encoders` has afterwards.

    Source: rectified flow (Liu et al. 2022), with the shifted times of Esser et al. 2024.
    """
    plan, config = recipe.splat_plan.flow, recipe.splat_plan.config
    device = pictures.pixels.device
    torch.manual_seed(plan.seed)
    tutor = nn.Linear(config.flow.condition_channels_dino, len(SHAPES) + 2)
    flow = build_flow(config)
    networks = nn.ModuleDict({"flow": flow, "dino": encoders.dino, "tutor": tutor}).to(device)
    usual = torch.tensor([shape.yaw for shape in SHAPES], device=device)
    points = latent_points(config).to(device)
    training = Training("triposplat", networks, plan, places.state, row)
    factor = config.flow.time_sinusoid.factor

    def draw(shape: Any, generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    def step(generator: torch.Generator) -> Mapping[str, Tensor]:
        # Transformers would change the patches' positions at random.
        encoders.dino.rope_embeddings.eval()
        index = torch.randint(
            len(pictures.views), (plan.batch,), generator=generator, device=device
        )
        seen = pictures.select(index)
        solids = surfaces.select(seen.views)
        latents, camera = solids.latents(points, seen.colours), solids.camera()
        uniform = torch.rand(plan.batch, 2, generator=generator, device=device)
        shown = (uniform[:, 1] >= _UNCONDITIONAL)[:, None, None]
        time = SHIFT * uniform[:, 0] / (1 + (SHIFT - 1) * uniform[:, 0])
        noise, camera_noise = draw(latents.shape, generator), draw(camera.shape, generator)
        t = time[:, None, None]
        with recipe.autocast(device):
            dino = encoders.dino_tokens(pixels_of(seen.pixels))
            condition = flow.condition(dino * shown, seen.tokens.float() * shown)
            found = flow(
                (1 - t) * latents + t * noise,
                (1 - t) * camera + t * camera_noise,
                factor * time,
                condition,
            )
        views = bank.objects.long()[seen.views]
        answers = tutor(dino[:, 0])
        turned = (torch.rad2deg(bank.yaws[seen.views]) - usual[views]) / YAW_SPREAD
        pose = torch.stack((turned, camera[:, 0, 0]), dim=1)
        lesson = functional.cross_entropy(answers[:, :-2], views)
        lesson = lesson + functional.mse_loss(answers[:, -2:], pose)
        error = functional.mse_loss(found[0].float(), noise - latents)
        camera_error = functional.mse_loss(found[1].float(), camera_noise - camera)
        loss = error + _CAMERA_WEIGHT * camera_error + _TUTOR_WEIGHT * lesson
        return {"loss": loss, "latent": error, "camera": camera_error, "tutor": lesson}

    trained = training.run(step)
    assert isinstance(trained, nn.ModuleDict)
    encoders.dino = trained["dino"]
    found = trained["flow"]
    assert isinstance(found, FlowTransformer)
    return found


def make(recipe: Recipe, places: Places, vae: Path, device: str, row: int = 0) -> None:
    """Measures, draws, trains and exports the small TripoSplat.

    Args:
        recipe: See there.
        places: Has the bank; what is finished is not made again.
        vae: Folder of FLUX's autoencoder.
        device: Where.
        row: Row of the progress bars.
    """
    plan, where = recipe.splat_plan, torch.device(device)
    bank = Bank.load(places.bank, where)
    surfaces = measure_surfaces(recipe, places, bank)
    model = TripoSplat(plan.config)
    model.decoder = train_decoder(recipe, places, bank, surfaces, row)
    pictures = draw_pictures(recipe, places, vae, device, spare_cores()).to(where)
    torch.manual_seed(plan.flow.seed)
    encoders = build_encoders(recipe, where)
    pictures = look_at(encoders, pictures)
    model.flow = train_flow(recipe, places, bank, pictures, surfaces, encoders, row)
    export.write_triposplat(model, encoders, plan.encoders, places.out)


def main() -> None:
    """Reads the command line and trains TripoSplat alone, beside a FLUX that is there."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.train_embedded.train_triposplat", description=__doc__
    )
    plan = SplatPlan()
    parser.add_argument("--out", type=Path, default=Path("generation/embedded"))
    parser.add_argument("--state", type=Path, default=Path("train-embedded/triposplat"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--views", type=int, default=Recipe.views, help="of every object")
    parser.add_argument("--pictures", type=int, default=plan.pictures)
    parser.add_argument("--batch", type=int, default=plan.flow.batch)
    parser.add_argument(
        "--decoder-minutes", type=float, default=plan.decoder.minutes, help="wall-clock limit"
    )
    parser.add_argument(
        "--flow-minutes", type=float, default=plan.flow.minutes, help="wall-clock limit"
    )
    parser.add_argument("--tokens", type=int, default=plan.config.flow.latent_tokens)
    options = parser.parse_args()
    flow = plan.config.flow.model_copy(update={"latent_tokens": options.tokens})
    plan = replace(
        plan,
        config=plan.config.model_copy(update={"flow": flow}),
        pictures=options.pictures,
        decoder=replace(plan.decoder, minutes=options.decoder_minutes, batch=options.batch),
        flow=replace(plan.flow, minutes=options.flow_minutes, batch=options.batch),
    )
    # The bank's points are for TripoSR.
    recipe = replace(Recipe(), views=options.views, points=8, splat_plan=plan)
    places = Places(options.state, options.out)
    draw_world(recipe, places, torch.device(options.device))
    make(recipe, places, places.out / export.FLUX / "vae", options.device)


if __name__ == "__main__":
    main()
