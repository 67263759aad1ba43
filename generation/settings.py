"""The schema of generation settings: frozen, checked values; `presets.py` holds named ones."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from generation.plan import Rung
from generation.weights.sources import Frozen, HubModel, ModelSource, ReleaseModel

DType = Literal["float32", "bfloat16"]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


def _has_placeholder(template: str) -> str:
    if template.count("{prompt}") != 1:
        raise ValueError(f"the template must contain {{prompt}} exactly once, got {template!r}")
    return template


class TextToImageSettings(Frozen):
    """FLUX through diffusers.

    Attributes:
        model: Where the weights come from; None for those shipped in `generation/embedded/`.
        dtype: Number format of the weights and the computation.
        size: Side of the square image, in pixels; a multiple of 16.
        steps: Denoising steps; FLUX.1-schnell is distilled for 1 to 4.
        guidance: Guidance scale; FLUX.1-schnell has none and ignores it.
        max_sequence_length: T5 tokens that are kept of a prompt; FLUX.1-schnell takes up to 256.
        seed: Seed of the noise when a task brings none.
        template: What is made of a prompt; {prompt} stands for it.
        eight_bit: Hold the large linear layers of the transformer and of T5 in 8 bits instead of
            16, which takes FLUX.1-schnell from 34 to 18 GB.
    """

    model: HubModel | None = None
    dtype: DType = "float32"
    size: Annotated[int, Field(ge=64, le=2048, multiple_of=16)] = 512
    steps: Annotated[int, Field(ge=1, le=100)] = 4
    guidance: Annotated[float, Field(ge=0.0, le=30.0)] = 0.0
    max_sequence_length: Annotated[int, Field(ge=1, le=512)] = 256
    seed: Seed = 0
    template: Annotated[str, AfterValidator(_has_placeholder)] = "{prompt}"
    eight_bit: bool = False


class CutoutSettings(Frozen):
    """Background removal with rembg's models, and the framing that TripoSR was trained on.

    Attributes:
        model: Where the weights come from; None for those shipped in `generation/embedded/`.
        runtime: What runs the network: ONNX Runtime, through rembg, or torch, on the preset's
            device. What torch cannot run is left to ONNX Runtime.
        dtype: Number format in the torch runtime. bfloat16 is faster, but may leave a haze far off
            the object, which spoils its box.
        providers: ONNX Runtime execution providers in order of preference; those that the
            installed runtime lacks are skipped.
        threads: Threads of the network on the CPU; 0 takes half of the cores.
        foreground_ratio: Side of the object's box as a share of the image that TripoSR sees.
        skip_plain: Cut the object out without the network when the picture's border is plain.
        min_coverage: Least share of pixels with alpha over one half for an image to have an object.
    """

    model: ReleaseModel | None = None
    runtime: Literal["onnxruntime", "torch"] = "onnxruntime"
    dtype: DType = "float32"
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    skip_plain: bool = False
    foreground_ratio: Annotated[float, Field(ge=0.1, le=1.0)] = 0.85
    min_coverage: Annotated[float, Field(ge=0.0, le=1.0)] = 0.001


class TripoSRSettings(Frozen):
    """Image to scene code.

    Attributes:
        model: Where the weights come from; None for those shipped in `generation/embedded/`.
        dtype: Number format of the weights and the computation.
        chunk_size: Points decoded at a time; more is faster and takes more memory.
    """

    model: HubModel | None = None
    dtype: DType = "float32"
    chunk_size: Annotated[int, Field(ge=1)] = 262_144


class SplatSettings(Frozen):
    """Scene code to Gaussian cloud.

    Attributes:
        max_gaussians: Most Gaussians in a cloud; 120,000 make an SPZ of 1 to 2 MB.
        resolution: Density samples along each axis of the first search for the surface; cells that
            it passes through are subdivided as far as `max_gaussians` needs.
        threshold: Density at the surface, in TripoSR's activated units.
        min_component: Bodies smaller than this share of the largest one's volume are left out.
        disc_sigma: Standard deviation in the plane, in units of the spacing between neighbours.
        inset: How far centres are moved below the surface, in units of the finished cloud. The
            rasteriser blurs every Gaussian by half a pixel, and the many that lie behind each
            other along a silhouette add up: without the inset, outlines grow by over a pixel.
        thickness: Standard deviation along the normal as a share of that in the plane.
        opacity_logit: Opacity of every Gaussian before the sigmoid; 5.5 is 0.996.
        seed: Seed of the surface sampling.
    """

    max_gaussians: Annotated[int, Field(ge=1, le=10_000_000)] = 120_000
    resolution: Annotated[int, Field(ge=8, le=1024)] = 128
    threshold: Annotated[float, Field(gt=0.0)] = 25.0
    min_component: Annotated[float, Field(ge=0.0, le=1.0)] = 0.02
    disc_sigma: Annotated[float, Field(gt=0.0, le=4.0)] = 0.8
    inset: Annotated[float, Field(ge=0.0, le=0.1)] = 0.0055
    thickness: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    opacity_logit: Annotated[float, Field(gt=0.0, le=10.0)] = 5.5
    seed: Seed = 0


class MeshSettings(Frozen):
    """Scene code to triangle mesh; what finds the surface is in `SplatSettings`.

    Attributes:
        resolution: Samples along each axis where the surface passes, rounded to a multiple of the
            cells of `SplatSettings.resolution`. The grid takes 0.5 GB at 512.
        triangles: Most triangles; a finer surface is simplified.
    """

    resolution: Annotated[int, Field(ge=8, le=512)] = 256
    triangles: Annotated[int, Field(ge=100)] = 50_000


class LiftSettings(Frozen):
    """Cut-out to 3D.

    Attributes:
        back_end: A name in `generation.lift.BACK_ENDS`.
    """

    back_end: Literal["triposr"] = "triposr"


class RungSettings(Frozen):
    """A level below a preset's best. What it leaves out is as in the preset.

    Attributes:
        name: As logs and metrics call it.
        steps: Most denoising steps.
        size: Largest side of the picture, in pixels; a multiple of 16.
        gaussians: Most Gaussians.
        skip_plain: Cut the object out without a network when the picture's border is plain.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    steps: Annotated[int, Field(ge=1, le=100)] | None = None
    size: Annotated[int, Field(ge=64, le=2048, multiple_of=16)] | None = None
    gaussians: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    skip_plain: bool | None = None


class GenerationSettings(Frozen):
    """Everything that decides how a task becomes an asset.

    Attributes:
        name: Name of the preset.
        device: Where the networks run, in torch's words.
        text_to_image: Prompt to image.
        cutout: Image to cut-out.
        lift: What lifts the cut-out to 3D.
        triposr: Cut-out to scene code.
        splats: Scene code to Gaussian cloud.
        rungs: Levels below the preset's best, best first; the guard falls back on them before it
            drops a request.
        spz_level: zstandard level of the SPZ file.
        accelerate: Compile FLUX and TripoSR and record CUDA graphs of them in the warm-up. Needs a
            CUDA device, a C compiler and Triton; what cannot be compiled or recorded runs eagerly.
        knows: What the networks know, where that is little; empty if they know what FLUX knows.
    """

    name: str
    device: str
    text_to_image: TextToImageSettings
    cutout: CutoutSettings
    lift: LiftSettings = LiftSettings()
    triposr: TripoSRSettings
    splats: SplatSettings
    rungs: tuple[RungSettings, ...] = ()
    spz_level: Annotated[int, Field(ge=1, le=22)] = 1
    accelerate: bool = False
    knows: str = ""

    @property
    def models(self) -> tuple[ModelSource, ...]:
        """The weights that have to be downloaded, gated ones first."""
        sources = (self.text_to_image.model, self.cutout.model, self.triposr.model)
        found = [source for source in sources if source is not None]
        return tuple(sorted(found, key=lambda m: not (isinstance(m, HubModel) and m.gated)))

    @property
    def ladder(self) -> tuple[Rung, ...]:
        """The quality levels, best first: the preset itself, then `rungs`.

        No rung asks for more than the preset, and one that is like the level above it is left out.
        """
        best = Rung(
            name="full",
            steps=self.text_to_image.steps,
            size=self.text_to_image.size,
            gaussians=self.splats.max_gaussians,
            skip_plain=self.cutout.skip_plain,
            back_end=self.lift.back_end,
        )
        ladder = [best]
        for lower in self.rungs:
            rung = Rung(
                name=lower.name,
                steps=min(lower.steps or best.steps, best.steps),
                size=min(lower.size or best.size, best.size),
                gaussians=min(lower.gaussians or best.gaussians, best.gaussians),
                skip_plain=bool(lower.skip_plain) or best.skip_plain,
                back_end=best.back_end,
            )
            if replace(rung, name="") != replace(ladder[-1], name=""):
                ladder.append(rung)
        return tuple(ladder)
