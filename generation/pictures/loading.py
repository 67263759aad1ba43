"""Which text-to-image model a folder holds."""

from collections.abc import Mapping
from pathlib import Path

from generation.pictures.flux1 import Flux1
from generation.pictures.flux2 import Flux2Klein
from generation.pictures.text_to_image import TextToImage
from generation.settings import TextToImageSettings
from generation.weights.store import FETCH_AGAIN
from protocol.documents import DocumentError, read_json
from protocol.errors import SetupError
from protocol.text import printable

PIPELINES: Mapping[str, type[TextToImage]] = {
    "FluxPipeline": Flux1,
    "Flux2KleinPipeline": Flux2Klein,
}
"""Models by the pipeline of diffusers' that their folder is written for."""

_INDEX = "model_index.json"


def load_text_to_image(
    folder: Path, settings: TextToImageSettings, device: str, *, accelerate: bool = False
) -> TextToImage:
    """Loads the model of a local folder; never asks the hub.

    Args:
        folder: Holds `model_index.json` and one folder per network.
        settings: See `TextToImage`.
        device: Where the networks run, in torch's words.
        accelerate: See `TextToImage`.

    Raises:
        SetupError: The folder holds no model that is known, or it cannot be loaded.
    """
    try:
        index = read_json(folder / _INDEX)
    except DocumentError as error:
        raise SetupError(
            f"no text-to-image model could be loaded: {error}",
            fix=FETCH_AGAIN,
        ) from error
    name = index.get("_class_name") if isinstance(index, dict) else None
    known = PIPELINES.get(name) if isinstance(name, str) else None
    if known is None:
        raise SetupError(
            f"{folder / _INDEX} names the pipeline {printable(str(name))!r}, which this miner "
            f"cannot run; it runs {' and '.join(PIPELINES)}",
            fix="--text_to_image.model schnell or --text_to_image.model klein",
        )
    return known.from_pretrained(folder, settings, device, accelerate=accelerate)
