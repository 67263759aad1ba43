"""The whole recipe as one value: what is drawn of the world, and how each network is trained."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from generation.lift.triposplat.config import (
    FlowConfig,
    GaussianConfig,
    OctreeConfig,
    Positions,
    TokenPositions,
    TripoSplatConfig,
)
from generation.lift.triposplat.encoder_config import DinoConfig, EncoderConfig, VaeConfig
from generation.lift.triposr import TripoSRConfig, ViTConfig
from scripts.train_embedded.loop import Plan
from scripts.train_embedded.surfaces import LATENT_CHANNELS, SurfacePlan

# Steps are what one H100 does in these minutes, the last three trainings side by side.
_VAE = Plan(steps=3400, batch=96, rate=1e-3, minutes=4.0, average=0.995)
_FLUX = Plan(steps=11_000, batch=384, rate=1e-3, minutes=15.0, average=0.999)
_SALIENCY = Plan(steps=3800, batch=32, rate=2e-3, minutes=4.5)
_TRIPOSR = Plan(steps=9500, batch=64, rate=6e-4, minutes=15.0, average=0.999)
_SPLAT_DECODER = Plan(steps=4000, batch=64, rate=2e-3, minutes=3.0)
_SPLAT_FLOW = Plan(steps=9500, batch=64, rate=1e-3, minutes=12.0, average=0.999)
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


def _splat_config() -> TripoSplatConfig:
    return TripoSplatConfig(
        flow=FlowConfig(
            latent_tokens=192,
            latent_channels=LATENT_CHANNELS,
            camera_channels=1,
            width=96,
            heads=4,
            head_dim=24,
            mlp_ratio=3,
            refiner_blocks=1,
            joint_blocks=4,
            condition_channels_dino=96,
            condition_channels_vae=32,
            camera_mlp_layers=2,
            positions=TokenPositions(octaves=4),
        ),
        octree=OctreeConfig(
            width=64,
            heads=4,
            head_dim=16,
            mlp_ratio=4,
            blocks=2,
            context_channels=LATENT_CHANNELS,
            levels=5,
            positions=Positions(octaves=5),
        ),
        gaussian=GaussianConfig(
            width=96,
            heads=4,
            head_dim=24,
            mlp_ratio=3,
            blocks=2,
            context_channels=LATENT_CHANNELS,
            gaussians_per_point=16,
            factors={},
            perturbation_size=3.0,
            offset_scale=0.06,
            scale_bias=0.008,
            scale_floor=0.0005,
            opacity_bias=0.95,
            positions=Positions(octaves=5),
        ),
    )


def _splat_encoders() -> EncoderConfig:
    return EncoderConfig(
        picture_size=128,
        dinov3=DinoConfig(
            hidden_size=96,
            num_attention_heads=4,
            num_hidden_layers=3,
            num_register_tokens=1,
            intermediate_size=288,
            hidden_act="gelu",
            use_gated_mlp=False,
        ),
        vae=VaeConfig(
            block_out_channels=(8, 8, 16, 16),
            layers_per_block=1,
            latent_channels=8,
            norm_num_groups=4,
        ),
    )


@dataclass(frozen=True)
class SplatPlan:
    """The small TripoSplat and how it is trained.

    Attributes:
        config, encoders: Shapes of its networks.
        pictures: Prepared pictures that the flow learns from.
        surface: How finely surfaces are measured.
        decoder, flow: How the decoder, and the flow with DINOv3, are trained.
    """

    config: TripoSplatConfig = field(default_factory=_splat_config)
    encoders: EncoderConfig = field(default_factory=_splat_encoders)
    pictures: int = 49_152
    surface: SurfacePlan = field(default_factory=SurfacePlan)
    decoder: Plan = _SPLAT_DECODER
    flow: Plan = _SPLAT_FLOW

    @property
    def minutes(self) -> float:
        """Wall-clock limit of both trainings."""
        return self.decoder.minutes + self.flow.minutes

    def within(self, share: float) -> "SplatPlan":
        """The same with wall-clock limits times a share."""
        decoder, flow = (
            replace(plan, minutes=plan.minutes * share) for plan in (self.decoder, self.flow)
        )
        return replace(self, decoder=decoder, flow=flow)


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
        vae_plan, flux_plan, saliency_plan, triposr_plan, splat_plan, scorer_plan: How they are
            trained.
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
    splat_plan: SplatPlan = field(default_factory=SplatPlan)
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
        longest = max(self.splat_plan.minutes, *(plan.minutes for plan in others))
        share = minutes / (self.vae_plan.minutes + longest)

        def shorter(plan: Plan) -> Plan:
            return replace(plan, minutes=plan.minutes * share)

        return replace(
            self,
            vae_plan=shorter(self.vae_plan),
            flux_plan=shorter(self.flux_plan),
            saliency_plan=shorter(self.saliency_plan),
            triposr_plan=shorter(self.triposr_plan),
            splat_plan=self.splat_plan.within(share),
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
    splat_plan=SplatPlan(
        config=TripoSplatConfig(
            flow=FlowConfig(
                latent_tokens=8,
                latent_channels=LATENT_CHANNELS,
                camera_channels=1,
                width=12,
                heads=1,
                head_dim=12,
                mlp_ratio=1,
                refiner_blocks=1,
                joint_blocks=1,
                condition_channels_dino=8,
                condition_channels_vae=16,
                camera_mlp_layers=2,
            ),
            octree=OctreeConfig(
                width=8,
                heads=1,
                head_dim=8,
                mlp_ratio=1,
                blocks=1,
                context_channels=LATENT_CHANNELS,
                levels=2,
            ),
            gaussian=GaussianConfig(
                width=8,
                heads=1,
                head_dim=8,
                mlp_ratio=1,
                blocks=1,
                context_channels=LATENT_CHANNELS,
                gaussians_per_point=2,
                factors={},
            ),
        ),
        encoders=EncoderConfig(
            picture_size=32,
            dinov3=DinoConfig(
                hidden_size=8,
                num_attention_heads=1,
                num_hidden_layers=1,
                num_register_tokens=1,
                intermediate_size=8,
                hidden_act="gelu",
                use_gated_mlp=False,
            ),
            vae=VaeConfig(
                block_out_channels=(4, 4, 4, 4),
                layers_per_block=1,
                latent_channels=4,
                norm_num_groups=4,
            ),
        ),
        pictures=8,
        surface=SurfacePlan(surface=64, anchors=8, cells=4),
        decoder=Plan(steps=3, batch=2, rate=1e-3),
        flow=Plan(steps=3, batch=2, rate=1e-3),
    ),
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
    def surfaces(self) -> Path:
        """The file of the bank's surfaces."""
        return self.state / "surfaces.pt"

    @property
    def vae(self) -> Path:
        """The finished autoencoder's folder, until it goes out with the networks around it."""
        return self.state / "vae"
