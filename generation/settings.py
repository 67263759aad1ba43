"""The schema of generation settings: frozen, checked values; `presets.py` holds named ones."""

import math
from dataclasses import replace
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from generation.plan import Rung
from generation.weights.sources import (
    CUTOUT_NAMES,
    FLUX_NAMES,
    Frozen,
    HubModel,
    ModelSource,
    Names,
    ReleaseModel,
    separated,
)

DType = Literal["float32", "bfloat16"]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]
PictureSize = Annotated[int, Field(ge=64, le=2048, multiple_of=16)]
DenoisingSteps = Annotated[int, Field(ge=1, le=100)]
LiftSteps = Annotated[int, Field(ge=1, le=2000)]
Gaussians = Annotated[int, Field(ge=1, le=10_000_000)]
ViewSize = Annotated[int, Field(ge=16, le=1024)]

BackEndName = Literal["triposr", "triposplat", "dreamgaussian"]
"""The 3D back ends: names in `generation.lift.BACK_ENDS`."""

BEST = "full"
"""The name of the best level: the preset itself."""


def _has_placeholder(template: str) -> str:
    if template.count("{prompt}") != 1:
        raise ValueError(f"the template must contain {{prompt}} exactly once, got {template!r}")
    return template


class TextToImageSettings(Frozen):
    """Prompt to picture: FLUX through diffusers."""

    model: Annotated[HubModel | None, FLUX_NAMES] = None
    """Where the weights come from: klein (FLUX.2-klein-4B), schnell (FLUX.1-schnell), any other
    repository of FLUX.1 or FLUX.2-klein by its fields; null for those shipped in
    generation/embedded/."""
    dtype: DType = "float32"
    """Number format of the weights and the computation."""
    size: PictureSize = 512
    """Side of the square picture, in pixels; a multiple of 16, at most 1024 for klein."""
    steps: DenoisingSteps = 4
    """Denoising steps; klein is distilled for 4, schnell for 1 to 4."""
    guidance: Annotated[float, Field(ge=0.0, le=30.0)] = 0.0
    """Guidance scale; klein and schnell have none and ignore it."""
    max_sequence_length: Annotated[int, Field(ge=1, le=512)] | None = None
    """Tokens that are kept of a prompt; null for as many as the model was trained with: 256 for
    schnell, 512 for klein, which draws other pictures with fewer."""
    seed: Seed = 0
    """Seed of the noise when a task brings none."""
    template: Annotated[str, AfterValidator(_has_placeholder)] = "{prompt}"
    """What is drawn; {prompt} is replaced by the prompt."""
    batch: Annotated[int, Field(ge=1, le=8)] = 1
    """Pictures of further candidates that are drawn together. More take less time each, and more
    memory; a request that arrives waits for one denoising step of all of them."""
    eight_bit: bool = False
    """Hold the large linear layers of the transformer and of the text encoder in 8 bits instead of
    16, which takes klein from 14 to 9 GB and schnell from 34 to 19."""


class CutoutSettings(Frozen):
    """Picture to cut-out: rembg's models, and the framing that TripoSR was trained on."""

    model: Annotated[ReleaseModel | None, CUTOUT_NAMES] = None
    """Where the weights come from: isnet, birefnet, birefnet_lite, any other of rembg's models or
    one of U2-Net's layout by its fields; null for those shipped in generation/embedded/."""
    runtime: Literal["onnxruntime", "torch"] = "onnxruntime"
    """What runs the network: ONNX Runtime, through rembg, or torch, on the device. What torch
    cannot run is left to ONNX Runtime."""
    dtype: DType = "float32"
    """Number format in the torch runtime. bfloat16 is faster, but may leave a haze far off the
    object, which spoils its box."""
    providers: Names = ("CPUExecutionProvider",)
    """ONNX Runtime execution providers in order of preference, with commas; those that the
    installed runtime lacks are skipped."""
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads of the network on the CPU; 0 takes half of the cores."""
    skip_plain: bool = False
    """Cut the object out without the network when the picture's border is plain."""
    foreground_ratio: Annotated[float, Field(ge=0.1, le=1.0)] = 0.85
    """Side of the object's box as a share of the picture that TripoSR sees."""
    min_coverage: Annotated[float, Field(ge=0.0, le=1.0)] = 0.001
    """Least share of pixels with alpha over one half for a picture to have an object."""


class LiftSettings(Frozen):
    """Cut-out to 3D."""

    backend: BackEndName = "triposr"
    """What lifts the cut-out. triposr makes a field, from which splats or a mesh are extracted.
    triposplat and dreamgaussian make splats, no meshes; with public weights they need
    --triposplat.accept_dinov3_license and --dreamgaussian.accept_openrail_license."""


class TripoSRSettings(Frozen):
    """Cut-out to scene code: TripoSR."""

    model: HubModel | None = None
    """Where the weights come from; null for those shipped in generation/embedded/."""
    dtype: DType = "float32"
    """Number format of the weights and the computation."""
    chunk_size: Annotated[int, Field(ge=1)] = 262_144
    """Points decoded at a time: more takes more memory, and is faster on a GPU. On a CPU, few are
    faster: they stay in its cache."""


class TripoSplatSettings(Frozen):
    """Cut-out to Gaussian cloud: TripoSplat."""

    model: HubModel | None = None
    """Where the weights come from; null for those shipped in generation/embedded/."""
    accept_dinov3_license: bool = False
    """Say true once you have read the DINOv3 License and accept it (docs/weights.md): TripoSplat
    looks at pictures with DINOv3."""
    dtype: DType = "float32"
    """Number format of the weights and the computation."""
    steps: DenoisingSteps = 20
    """Denoising steps of the latent; two passes of the network each, with guidance."""
    guidance: Annotated[float, Field(ge=0.0, le=30.0)] = 3.0
    """Guidance scale; 1 or less has none, and saves the pass without the picture."""
    shift: Annotated[float, Field(ge=0.1, le=20.0)] = 3.0
    """More than 1 spends more of the steps near the noise."""
    max_gaussians: Annotated[int, Field(ge=7_500, le=262_144)] = 262_144
    """Most Gaussians in a cloud; the public model was made for 32,768 to 262,144. A few hundredths
    are left out, and fewer than 7,000 score 0."""
    eight_bit: bool = False
    """Hold the large linear layers in 8 bits instead of 16."""
    seed: Seed = 0
    """Seed of the noise and of the points when a task brings none."""


class DreamGaussianSettings(Frozen):
    """Cut-out to Gaussian cloud: DreamGaussian, which optimises Gaussians against pictures."""

    guidance: Literal["zero123", "denoiser", "none"] = "none"
    """What says how the sides look that the picture does not show: zero123; denoiser, a small
    network that is shipped and knows the objects of the preset embedded; or none, with which the
    back stays shapeless."""
    model: HubModel | None = None
    """Where the weights of zero123 come from; the other two need none."""
    accept_openrail_license: bool = False
    """Say true once you have read the CreativeML Open RAIL-M License and accept it
    (docs/weights.md): zero123 was trained from weights under it."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Number format of the guidance; Gaussians are always float32."""
    scale: Annotated[float, Field(ge=0.0, le=100.0)] | None = None
    """Guidance scale: how strongly the picture rules what the guidance wants; 5 for zero123 and 1
    for the denoiser if not given."""
    steps: LiftSteps = 150
    """Optimisation steps at the best level. The last two fifths add detail; they are left out where
    time runs short."""
    slice: Annotated[int, Field(ge=1, le=50)] = 1
    """Steps at a time; other requests wait for one slice at most. Choose it so that a slice of the
    largest size takes at most 200 ms."""
    sizes: Annotated[tuple[ViewSize, ViewSize, ViewSize], BeforeValidator(separated)] = (24, 32, 48)
    """Pixels per side of rendered views, with commas: early, in the middle and late."""
    count: Annotated[int, Field(ge=100, le=1_000_000)] = 8_000
    """Gaussians at the start. On CUDA, gsplat adds and removes some; a CPU keeps them."""
    max_gaussians: Annotated[int, Field(ge=7_000, le=1_000_000)] = 8_000
    """Most Gaussians in a cloud; fewer than 7,000 score 0."""
    elevation: Annotated[float, Field(ge=-60.0, le=60.0)] = 0.0
    """How far above the horizon the picture is assumed to be taken from, in degrees."""
    fov: Annotated[float, Field(ge=10.0, le=90.0)] | None = None
    """Field of view of pictures and views in degrees; what the guidance was trained with if not
    given: 31.4 for the denoiser, and 49.1."""
    seed: Seed = 0
    """Seed of all random numbers when a task brings none."""


class SplatSettings(Frozen):
    """Scene code to Gaussian cloud."""

    max_gaussians: Gaussians = 120_000
    """Most Gaussians in a cloud; 120,000 make an SPZ of 1 to 2 MB, fewer than 7,000 score 0."""
    resolution: Annotated[int, Field(ge=8, le=1024)] = 128
    """Density samples along each axis of the first search for the surface; cells that it passes
    through are subdivided as far as max_gaussians needs."""
    threshold: Annotated[float, Field(gt=0.0)] = 25.0
    """Density at the surface, in TripoSR's activated units."""
    min_component: Annotated[float, Field(ge=0.0, le=1.0)] = 0.02
    """Bodies smaller than this share of the largest one's volume are left out."""
    disc_sigma: Annotated[float, Field(gt=0.0, le=4.0)] = 0.8
    """Standard deviation in the plane, in units of the spacing between neighbours."""
    inset: Annotated[float, Field(ge=0.0, le=0.1)] = 0.0055
    """How far centres are moved below the surface, in units of the finished cloud. The rasteriser
    blurs every Gaussian by half a pixel, and the many that lie behind each other along a silhouette
    add up: without the inset, outlines grow by over a pixel."""
    thickness: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Standard deviation along the normal as a share of that in the plane."""
    opacity_logit: Annotated[float, Field(gt=0.0, le=10.0)] = 5.5
    """Opacity of every Gaussian before the sigmoid; 5.5 is 0.996."""
    seed: Seed = 0
    """Seed of the surface sampling."""


class RefineSettings(Frozen):
    """Gaussian cloud to one that matches its picture better."""

    steps: Annotated[int, Field(ge=0, le=300)] = 0
    """Optimisation steps at the best level, where there is time for them; 0 leaves refinement out.
    On CUDA it needs gsplat."""
    slice: Annotated[int, Field(ge=1, le=50)] = 10
    """Steps at a time; other requests wait for one slice at most. The first one guesses the camera
    too, which takes the longer, the larger the spread is."""
    size: Annotated[int, Field(ge=32, le=1024)] = 256
    """Pixels per side at which the cloud is compared with its picture."""
    fov: Annotated[float, Field(ge=10.0, le=90.0)] = 40.0
    """Field of view of pictures in degrees, as far as it is known; 40 is that of the pictures that
    TripoSR was trained with."""
    elevation: Annotated[float, Field(ge=-60.0, le=60.0)] = 0.0
    """How far above the horizon pictures are usually taken from, in degrees of the back end's
    frame; TripoSR's own views are level."""
    spread: Annotated[float, Field(ge=0.5, le=60.0)] = 10.0
    """Standard deviation of that elevation, in degrees."""


class MeshSettings(Frozen):
    """Scene code to triangle mesh; what finds the surface is among splats."""

    resolution: Annotated[int, Field(ge=8, le=512)] = 256
    """Samples along each axis where the surface passes, rounded to a multiple of the cells of
    splats.resolution. The grid takes 0.5 GB at 512."""
    triangles: Annotated[int, Field(ge=100)] = 50_000
    """Most triangles; a finer surface is simplified."""


class ScoringSettings(Frozen):
    """Object to the score that a validator is expected to give."""

    scorer: Literal["none", "embedded", "validator"] = "none"
    """What scores: the validator's networks, which need the extra score and weights of 1.8 GB; a
    small network for the words of the preset embedded; or none, which leaves out gate and
    candidates."""
    quality_model: HubModel | None = None
    """Weights of the image quality network."""
    text_model: HubModel | None = None
    """Weights of the network that compares a view with the prompt."""
    lpips_model: ReleaseModel | None = None
    """Weights of the network that compares neighbouring views."""
    image_alignment: Literal["convnext", "llm2clip"] = "convnext"
    """What compares a view with the picture of an image task: a stand-in, the network of the text
    alignment, or the validator's own, whose repository brings code that runs in the miner."""
    image_model: HubModel | None = None
    """Weights and code of llm2clip."""
    dtype: Literal["float32", "float16"] = "float32"
    """Number format of the large networks; validators use float16."""


class RungSettings(Frozen):
    """A level below a preset's best. What it leaves out is as in the preset."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """As logs and metrics call it."""
    steps: DenoisingSteps | None = None
    """Most denoising steps."""
    size: PictureSize | None = None
    """Largest side of the picture, in pixels; a multiple of 16."""
    gaussians: Gaussians | None = None
    """Most Gaussians."""
    skip_plain: bool | None = None
    """Cut the object out without a network when the picture's border is plain."""
    lift_steps: LiftSteps | None = None
    """Most steps of the back end: of denoising for triposplat, of optimisation for dreamgaussian;
    triposr takes none."""
    backend: BackEndName | None = None
    """The only back end that has this level; null if all have."""


def _have_distinct_names(rungs: tuple[RungSettings, ...]) -> tuple[RungSettings, ...]:
    for back_end in get_args(BackEndName):
        names = [BEST, *(rung.name for rung in rungs if rung.backend in (None, back_end))]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two levels are called {name!r}, which logs could not tell apart")
    return rungs


class GenerationFields(Frozen):
    """What decides how a task becomes an asset, in a program's settings as in a preset."""

    device: str
    """Where the networks run, in torch's words: cpu, cuda, cuda:1."""
    text_to_image: TextToImageSettings
    cutout: CutoutSettings
    lift: LiftSettings = LiftSettings()
    triposr: TripoSRSettings
    triposplat: TripoSplatSettings = TripoSplatSettings()
    dreamgaussian: DreamGaussianSettings = DreamGaussianSettings()
    splats: SplatSettings
    refine: RefineSettings = RefineSettings()
    mesh: MeshSettings = MeshSettings()
    scoring: ScoringSettings = ScoringSettings()
    rungs: Annotated[tuple[RungSettings, ...], AfterValidator(_have_distinct_names)] = ()
    """Levels below the preset's best, best first; the guard falls back on them before it drops a
    request. A list of {name, steps, size, gaussians, skip_plain, lift_steps, backend}."""
    spz_level: Annotated[int, Field(ge=1, le=22)] = 1
    """zstandard level of the SPZ file."""
    accelerate: bool = False
    """Compile the large networks and record CUDA graphs of them in the warm-up. Needs a CUDA
    device, a C compiler and Triton; what cannot be compiled or recorded runs eagerly."""


class GenerationSettings(GenerationFields):
    """Everything that decides how a task becomes an asset: a preset, or one with changes."""

    name: str
    """Name of the preset."""
    knows: str = ""
    """What the networks know, where that is little; empty if they know what FLUX knows."""
    vocabulary: tuple[str, ...] = ()
    """The words and phrases that the networks know, where these are few (generation/words.py)."""

    @property
    def models(self) -> tuple[ModelSource, ...]:
        """The weights that have to be downloaded, gated ones first."""
        scoring = self.scoring
        sources = (
            self.text_to_image.model,
            self.cutout.model,
            self.lift_model,
            *(
                (scoring.quality_model, scoring.text_model, scoring.lpips_model)
                if scoring.scorer == "validator"
                else ()
            ),
            scoring.image_model if scoring.image_alignment == "llm2clip" else None,
        )
        found = [source for source in sources if source is not None]
        return tuple(sorted(found, key=lambda m: not (isinstance(m, HubModel) and m.gated)))

    @property
    def lift_downloads(self) -> bool:
        """Whether the chosen back end has weights that are not shipped, in presets for GPUs."""
        return self.lift.backend != "dreamgaussian" or self.dreamgaussian.guidance == "zero123"

    @property
    def lift_model(self) -> HubModel | None:
        """The weights of the chosen back end; None for those that are shipped, and for none."""
        if not self.lift_downloads:
            return None
        own: TripoSRSettings | TripoSplatSettings | DreamGaussianSettings
        own = getattr(self, self.lift.backend)
        return own.model

    @property
    def ladder(self) -> tuple[Rung, ...]:
        """The quality levels, best first: the preset itself, then `rungs`.

        No rung asks for more than the preset, and one that is like the level above it, or belongs
        to another back end, is left out.
        """
        best = Rung(
            name=BEST,
            steps=self.text_to_image.steps,
            size=self.text_to_image.size,
            gaussians=self.splats.max_gaussians,
            skip_plain=self.cutout.skip_plain,
            back_end=self.lift.backend,
            refine_slices=math.ceil(self.refine.steps / self.refine.slice),
        )
        if self.lift.backend == "triposplat":
            most = self.triposplat
            best = replace(best, gaussians=most.max_gaussians, lift_steps=most.steps)
        elif self.lift.backend == "dreamgaussian":
            own = self.dreamgaussian
            best = replace(
                best,
                gaussians=own.max_gaussians,
                lift_steps=own.steps,
                lift_slice=own.slice,
            )
        ladder = [best]
        for lower in self.rungs:
            if lower.backend not in (None, best.back_end):
                continue
            rung = Rung(
                name=lower.name,
                steps=min(lower.steps or best.steps, best.steps),
                size=min(lower.size or best.size, best.size),
                gaussians=min(lower.gaussians or best.gaussians, best.gaussians),
                skip_plain=bool(lower.skip_plain) or best.skip_plain,
                back_end=best.back_end,
                lift_steps=min(lower.lift_steps or best.lift_steps, best.lift_steps),
                lift_slice=best.lift_slice,
            )
            if replace(rung, name="") != replace(ladder[-1], name=""):
                ladder.append(rung)
        return tuple(ladder)
