"""A preset with the changes that the pipeline's benchmark takes."""

from generation.settings import GenerationSettings, TextToImageSettings
from generation.weights.sources import FLUX_NAMES


def changed(
    settings: GenerationSettings,
    model: str | None,
    eight_bit: bool | None,
    *,
    accept_dinov3_license: bool = False,
) -> GenerationSettings:
    """Returns a preset with another text-to-image model, or the same in another form.

    Args:
        settings: The preset.
        model: Short name of the model; None leaves it.
        eight_bit: Whether it is held in 8 bits; None leaves it.
        accept_dinov3_license: Whether the operator accepts the licence of TripoSplat's DINOv3.
    """
    drawing = settings.text_to_image.model_dump()
    drawing |= {} if model is None else {"model": model}
    drawing |= {} if eight_bit is None else {"eight_bit": eight_bit}
    splat = {"accept_dinov3_license": accept_dinov3_license}
    return settings.model_copy(
        update={
            "text_to_image": TextToImageSettings.model_validate(drawing),
            "triposplat": settings.triposplat.model_copy(update=splat),
        }
    )


def model_name(settings: GenerationSettings) -> str:
    """Returns the text-to-image model and in what form it is held, as tables call it.

    A back end other than triposr is named as well.
    """
    drawing = settings.text_to_image
    name = "embedded"
    if drawing.model is not None:
        name = FLUX_NAMES.name_of(drawing.model) or drawing.model.name
        name += ", 8 bits" if drawing.eight_bit else ""
    return name if settings.lift.backend == "triposr" else f"{name}, {settings.lift.backend}"
