"""The whole recipe as one value: what is drawn of the world, and how each network is trained."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from generation.lift.triposr import TripoSRConfig, ViTConfig
from scripts.train_embedded.loop import Plan

# Steps are what one H100 does in these minutes, the last three trainings side by side.
_VAE = Plan(steps=3400, batch=96, rate=1e-3, minutes=4.0, average=0.995)
_FLUX = Plan(steps=11_000, batch=384, rate=1e-3, minutes=15.0, average=0.999)
_SALIENCY = Plan(steps=3800, batch=32, rate=2e-3, minutes=4.5)
_TRIPOSR = Plan(steps=9500, batch=64, rate=6e-4, minutes=15.0, average=0.999)
_SCORER = Plan(steps=1600, batch=48, rate=2e-3, average=0.99)


@dataclass(frozen=True)
class FluxShape:
    """Sizes of the small FLUX.

    Attributes:
        heads, layers, single_layers: Of the transformer; a head is 32 wide.
        vae_channels: Of the autoencoder's four blocks.
    """

    heads: int = 5
    layers: int = 1
    single_layers: int = 5
    vae_channels: tuple[int, int, int, int] = (24, 48, 64, 64)


@dataclass(frozen=True)
class ScorerPlan:
    """How the scorer is trained, after the others and on what they make.

    Attributes:
        clouds: How many clouds are made for it, a multiple of `lifted.SHARD`; with 0 there is no
            scorer.
        training: How long and how fast.
    """

    clouds: int = 1280
    training: Plan = _SCORER


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result.

    Attributes:
        views: Views of every object in the bank.
        points: Points of every view for the 3D loss.
        batch_points: Points of a view that one step uses.
        latents: Pictures that the transformer learns from.
        wordings: Prompts for each colour and object.
        saliency_width: Channels of the saliency network's first level.
        mixed: Compute in bfloat16 where PyTorch holds that safe; weights stay float32.
        flux, triposr: Shapes of the networks.
        vae_plan, flux_plan, saliency_plan, triposr_plan, scorer_plan: How they are trained.
    """

    views: int = 768
    points: int = 8192
    batch_points: int = 2048
    latents: int = 196_608
    wordings: int = 128
    saliency_width: int = 16
    mixed: bool = True
    flux: FluxShape = field(default_factory=FluxShape)
    triposr: TripoSRConfig = field(
        default_factory=lambda: TripoSRConfig(
            image_size=128,
            plane_size=16,
            num_channels=128,
            num_attention_heads=4,
            attention_head_dim=32,
            num_layers=6,
            plane_channels=24,
            decoder_neurons=64,
            decoder_hidden_layers=3,
            vit=ViTConfig(
                hidden_size=128,
                num_hidden_layers=4,
                num_attention_heads=4,
                intermediate_size=512,
                image_size=128,
                patch_size=16,
            ),
        )
    )
    vae_plan: Plan = _VAE
    flux_plan: Plan = _FLUX
    saliency_plan: Plan = _SALIENCY
    triposr_plan: Plan = _TRIPOSR
    scorer_plan: ScorerPlan = field(default_factory=ScorerPlan)

    def autocast(self, device: torch.device) -> torch.autocast:
        """The arithmetic of a training step."""
        mixed = self.mixed and device.type == "cuda"
        return torch.autocast(device.type, torch.bfloat16, enabled=mixed)

    @property
    def image_size(self) -> int:
        """Side of FLUX's pictures and of TripoSR's input; the bank is twice as fine."""
        return self.triposr.image_size

    def within(self, minutes: float) -> "Recipe":
        """The same with all wall-clock limits scaled so that one GPU is done after `minutes`."""
        others = (self.flux_plan, self.saliency_plan, self.triposr_plan)
        share = minutes / (self.vae_plan.minutes + max(plan.minutes for plan in others))

        def shorter(plan: Plan) -> Plan:
            return replace(plan, minutes=plan.minutes * share)

        return replace(
            self,
            vae_plan=shorter(self.vae_plan),
            flux_plan=shorter(self.flux_plan),
            saliency_plan=shorter(self.saliency_plan),
            triposr_plan=shorter(self.triposr_plan),
        )


TINY = Recipe(
    views=2,
    points=64,
    batch_points=32,
    latents=32,
    wordings=2,
    saliency_width=4,
    flux=FluxShape(heads=1, layers=1, single_layers=1, vae_channels=(8, 8, 8, 8)),
    triposr=TripoSRConfig(
        image_size=32,
        plane_size=4,
        num_channels=32,
        num_attention_heads=1,
        attention_head_dim=32,
        num_layers=1,
        plane_channels=4,
        decoder_neurons=8,
        decoder_hidden_layers=1,
        vit=ViTConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=1,
            intermediate_size=32,
            image_size=32,
            patch_size=16,
        ),
    ),
    vae_plan=Plan(steps=3, batch=2, rate=1e-3),
    flux_plan=Plan(steps=3, batch=2, rate=1e-3),
    saliency_plan=Plan(steps=3, batch=2, rate=1e-3),
    triposr_plan=Plan(steps=3, batch=2, rate=1e-3),
    # No cloud has a surface.
    scorer_plan=ScorerPlan(clouds=0),
)
"""Runs through every line but the scorer's in seconds and learns nothing."""


@dataclass(frozen=True)
class Places:
    """Folders of one run.

    Attributes:
        state: Bank, checkpoints and losses; what a resumed run reads.
        out: Where the finished networks go.
    """

    state: Path
    out: Path

    @property
    def bank(self) -> Path:
        """The bank's file."""
        return self.state / "world.pt"

    @property
    def vae(self) -> Path:
        """The finished autoencoder's folder, until it goes out with the networks around it."""
        return self.state / "vae"
