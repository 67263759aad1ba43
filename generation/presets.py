"""The named presets: values of `GenerationSettings`."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from generation.settings import (
    BackEndName,
    CutoutSettings,
    DreamGaussianSettings,
    GenerationFields,
    GenerationSettings,
    LiftSettings,
    MeshSettings,
    RefineSettings,
    RungSettings,
    ScoringSettings,
    SplatSettings,
    TextToImageSettings,
    TripoSplatSettings,
    TripoSRSettings,
)
from generation.weights.sources import (
    ALEXNET,
    CLIP_CONVNEXT,
    FLUX_KLEIN,
    ISNET,
    LLM2CLIP,
    QUALITY_SCORER,
    TRIPOSPLAT,
    TRIPOSR,
    ZERO123,
)
from protocol.errors import SetupError

_DRAFT = RungSettings(name="draft", steps=2, size=384, gaussians=60_000, skip_plain=True)
_EMBEDDED_DRAFT = RungSettings(name="draft", steps=4, gaussians=10_000, skip_plain=True)
"""The lowest levels, but for the back end's steps."""


def _drafts(
    draft: RungSettings, steps: Mapping[BackEndName, int | None]
) -> tuple[RungSettings, ...]:
    """One level per back end, with its steps."""
    return tuple(
        draft.model_copy(update={"backend": name, "lift_steps": count})
        for name, count in steps.items()
    )


_GPU = GenerationSettings(
    name="gpu24",
    device="cuda",
    text_to_image=TextToImageSettings(
        model=FLUX_KLEIN,
        dtype="bfloat16",
        template="{prompt}, one single object, centred, whole object in view, plain background",
    ),
    cutout=CutoutSettings(
        model=ISNET,
        runtime="torch",
        # Should torch not be able to run the model.
        providers=("CUDAExecutionProvider", "CPUExecutionProvider"),
    ),
    triposr=TripoSRSettings(model=TRIPOSR, dtype="bfloat16", chunk_size=1_048_576),
    triposplat=TripoSplatSettings(model=TRIPOSPLAT, dtype="bfloat16"),
    dreamgaussian=DreamGaussianSettings(
        guidance="zero123",
        model=ZERO123,
        dtype="float16",
        steps=400,
        slice=2,
        sizes=(128, 256, 512),
        count=8_000,
        max_gaussians=120_000,
    ),
    splats=SplatSettings(),
    scoring=ScoringSettings(
        scorer="validator",
        quality_model=QUALITY_SCORER,
        text_model=CLIP_CONVNEXT,
        lpips_model=ALEXNET,
        image_model=LLM2CLIP,
        dtype="float16",
    ),
    rungs=(
        RungSettings(name="two_steps", backend="triposr", steps=2),
        RungSettings(name="small", backend="triposr", steps=2, size=384),
        RungSettings(name="half", backend="triposplat", lift_steps=10, gaussians=131_072),
        RungSettings(name="quarter", backend="triposplat", lift_steps=6, gaussians=65_536),
        RungSettings(name="half", backend="dreamgaussian", lift_steps=200),
        RungSettings(name="quarter", backend="dreamgaussian", lift_steps=100),
        *_drafts(_DRAFT, {"triposr": None, "triposplat": 6, "dreamgaussian": 50}),
    ),
    accelerate=True,
)

_EMBEDDED_WORDS = """
red crimson scarlet, orange, yellow golden, green emerald, cyan turquoise teal, blue navy,
purple violet, pink, brown, black, grey gray, white,
cube box block, sphere ball orb, cylinder drum, cone, torus donut doughnut, pyramid, capsule pill,
car automobile, house cottage hut, tree, table desk, chair seat, mug cup, mushroom toadstool,
rocket spaceship
"""
"""What the shipped networks were trained on, synonyms side by side; "ring stand" is two words."""

PRESETS: dict[str, GenerationSettings] = {
    "embedded": GenerationSettings(
        name="embedded",
        device="cpu",
        # The shipped transformer was trained with this many T5 tokens.
        text_to_image=TextToImageSettings(size=128, steps=8, max_sequence_length=48),
        cutout=CutoutSettings(),
        # So few points stay in a CPU core's cache from layer to layer: half the time of 262,144.
        triposr=TripoSRSettings(chunk_size=16_384),
        # More guidance makes colours too strong; fewer Gaussians leave gaps in large objects.
        triposplat=TripoSplatSettings(guidance=1.5, max_gaussians=40_000),
        # Few Gaussians, which a CPU can render, and the camera of our FLUX, with any guidance.
        dreamgaussian=DreamGaussianSettings(
            guidance="denoiser",
            count=2_000,
            max_gaussians=20_000,
            elevation=20.0,
            fov=31.4,
        ),
        splats=SplatSettings(max_gaussians=20_000, resolution=64),
        refine=RefineSettings(slice=1, size=64, fov=32.5, elevation=20.0, spread=3.0),
        mesh=MeshSettings(resolution=128, triangles=20_000),
        scoring=ScoringSettings(scorer="embedded"),
        rungs=(
            RungSettings(name="four_steps", steps=4),
            RungSettings(name="half", backend="dreamgaussian", steps=4, lift_steps=75),
            *_drafts(_EMBEDDED_DRAFT, {"triposr": None, "triposplat": 8, "dreamgaussian": 30}),
        ),
        knows="one object in one colour, such as 'a red car' (docs/embedded-models.md)",
        vocabulary=("ring stand", *_EMBEDDED_WORDS.replace(",", " ").split()),
    ),
    "gpu16": _GPU.model_copy(
        update={
            "name": "gpu16",
            "text_to_image": _GPU.text_to_image.model_copy(update={"eight_bit": True}),
        }
    ),
    "gpu24": _GPU,
    # The same networks: what a larger card has room for, such as FLUX.1-schnell in 16 bits, has not
    # been shown to be better.
    "gpu80": _GPU.model_copy(update={"name": "gpu80"}),
    "gpu24-splat": _GPU.model_copy(
        update={"name": "gpu24-splat", "lift": LiftSettings(backend="triposplat")}
    ),
    "gpu80-splat": _GPU.model_copy(
        update={"name": "gpu80-splat", "lift": LiftSettings(backend="triposplat")}
    ),
}


def preset(name: str) -> GenerationSettings:
    """Returns the preset of that name.

    Raises:
        SetupError: There is none; the message lists the names.
    """
    try:
        return PRESETS[name]
    except KeyError:
        names = ", ".join(PRESETS)
        raise SetupError(
            f"there is no preset {name!r}; the presets are {names}", fix=f"--preset {{{names}}}"
        ) from None


def changes(settings: GenerationSettings) -> dict[str, Any]:
    """Returns what differs from the preset of the same name, by dotted names.

    A preset of another name is its own measure: nothing differs.
    """
    original = PRESETS.get(settings.name, settings)
    exclude = set(GenerationSettings.model_fields) - set(GenerationFields.model_fields)
    return _differences(
        original.model_dump(mode="json", exclude=exclude),
        settings.model_dump(mode="json", exclude=exclude),
    )


_IRRELEVANT = {
    "device",
    "triposplat.accept_dinov3_license",
    "dreamgaussian.accept_openrail_license",
}
"""Changes that leave what is computed as it is."""


def variant(settings: GenerationSettings) -> str:
    """Returns the preset's name, with a digest of its changes; the device's do not count.

    Two settings of the same variant take the same time on the same device.
    """
    changed = {name: value for name, value in changes(settings).items() if name not in _IRRELEVANT}
    if not changed:
        return settings.name
    text = json.dumps(changed, sort_keys=True)
    return f"{settings.name} changed {hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _differences(original: dict[str, Any], changed: dict[str, Any]) -> dict[str, Any]:
    differences: dict[str, Any] = {}
    for name, value in changed.items():
        before = original.get(name)
        if isinstance(before, dict) and isinstance(value, dict):
            inner = _differences(before, value)
            differences |= {f"{name}.{key}": item for key, item in inner.items()}
        elif value != before:
            differences[name] = value
    return differences
