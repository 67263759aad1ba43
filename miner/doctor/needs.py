"""How much a preset takes: memory of the GPU, main memory, the download."""

from collections.abc import Collection

from generation.presets import variant
from generation.settings import GenerationSettings
from generation.weights.pins import shipped_pins
from generation.weights.sources import FLUX_KLEIN
from miner.doctor.scorer import scoring_models

GB = 1_000_000_000
TAKEN_GB = {
    "gpu16": 15.6,
    "gpu24": 20.8,
    "gpu80": 20.8,
    "gpu24-splat": 23.3,
    "gpu80-splat": 23.3,
}
"""GPU memory in use after serving, CUDA's own included, as docs/performance.md has it; gpu80 and
gpu80-splat hold the networks of gpu24 and gpu24-splat, with which it was measured."""

RESIDENT_BYTES = {
    ("klein", "16 bits"): 14 * GB,
    ("klein", "8 bits"): 9 * GB,
    ("schnell", "16 bits"): 34 * GB,
    ("schnell", "8 bits"): 19 * GB,
}
"""The weights of text to image on the GPU; those of schnell for a model that is not known."""

LOADING_BYTES = {
    ("klein", "16 bits"): 16 * GB,
    ("klein", "8 bits"): 8 * GB,
    ("schnell", "16 bits"): 34 * GB,
    ("schnell", "8 bits"): 24 * GB,
}
"""What passes through main memory at once before it reaches the GPU."""

UNKNOWN_BYTES = {"klein": 22 * GB, "schnell": 40 * GB}
"""Assumed of the download where it holds weights of the operator's own, by text-to-image model."""
SCORER_BYTES = 2 * GB
SPARE_BYTES = 1 * GB


def form_of(settings: GenerationSettings) -> tuple[str, str]:
    """The text-to-image model, klein or schnell, and how many bits its weights have."""
    drawing = settings.text_to_image
    is_klein = drawing.model is not None and drawing.model.repo == FLUX_KLEIN.repo
    return "klein" if is_klein else "schnell", "8 bits" if drawing.eight_bit else "16 bits"


def taken_gb(settings: GenerationSettings) -> float | None:
    """GPU memory that was in use with such settings; None where nobody has measured it."""
    return next(
        (
            taken
            for name, taken in TAKEN_GB.items()
            if variant(settings.model_copy(update={"name": name})) == name
        ),
        None,
    )


def download_bytes(settings: GenerationSettings, locked: Collection[str]) -> int:
    """What is still to be downloaded, with a little room; 0 if nothing is.

    Args:
        settings: The preset.
        locked: Names of the models that are there.
    """
    scoring = scoring_models(settings)
    missing = [model for model in settings.models if model.name not in locked]
    if not missing:
        return 0
    total = SPARE_BYTES + (SCORER_BYTES if any(model in scoring for model in missing) else 0)
    for model in missing:
        if model not in scoring:
            pin = shipped_pins().get(model.name)
            size = sum(file.size for file in pin.files.values()) if pin else 0
            if not size:
                return UNKNOWN_BYTES[form_of(settings)[0]]
            total += size
    return total
