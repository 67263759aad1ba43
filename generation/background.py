"""Image to cut-out: background removal through rembg, and the framing that TripoSR expects."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger
from PIL import Image

from generation.errors import GenerationError
from generation.presets import BackgroundSettings
from protocol.errors import SetupError

MAX_SIDE = 1024
"""Pixels per side that are of use: rembg's networks see at most 1024, TripoSR 512."""


class BackgroundRemover:
    """A rembg session, loaded from a model file.

    Args:
        model_file: An ONNX file. If its name is that of one of rembg's own models
            (`isnet-general-use.onnx`), it is read as rembg reads that model; any other file has
            U2-Net's layout: 320 x 320 normalised RGB in, the mask as first output.
        settings: Execution providers, threads, framing.

    Raises:
        SetupError: The file cannot be loaded.
    """

    def __init__(self, model_file: Path, settings: BackgroundSettings) -> None:
        self.settings = settings
        self._session = _load(model_file, settings)

    def __call__(self, image: Image.Image) -> Image.Image:
        """Cuts the object out and frames it.

        An RGBA image in which some pixel is not opaque is taken as cut out already.

        Args:
            image: RGB or RGBA, any size.

        Returns:
            RGBA, square, the object's box centred and `foreground_ratio` of the side.

        Raises:
            GenerationError: No object was found.
        """
        if not _is_cut_out(image):
            image = self.remove(image.convert("RGB"))
        coverage = float((np.asarray(image.getchannel("A")) > 127).mean())
        if coverage < self.settings.min_coverage:
            raise GenerationError(
                f"no foreground was found in the image: {coverage:.3%} of its pixels are opaque, "
                f"at least {self.settings.min_coverage:.3%} are needed"
            )
        return resize_foreground(image, self.settings.foreground_ratio)

    def remove(self, image: Image.Image) -> Image.Image:
        """Cuts the object out of an RGB picture: RGBA of the same size, not yet framed."""
        import rembg

        # A mask with a single value divides zero by zero inside rembg and comes back empty.
        with np.errstate(divide="ignore", invalid="ignore"):
            # putalpha keeps the colours under a soft edge; the default darkens them.
            cutout: Image.Image = rembg.remove(image, session=self._session, putalpha=True)
        return cutout


def shrink(image: Image.Image) -> Image.Image:
    """Scales a picture down until neither side exceeds `MAX_SIDE`; a smaller one is only copied.

    Framing pads to a square, so without this a wide cut-out of 16 megapixels would take gigabytes
    and many seconds on its way to the network, which sees a quarter of a megapixel of it.
    """
    small = image.copy()
    small.thumbnail((MAX_SIDE, MAX_SIDE))
    return small


def resize_foreground(image: Image.Image, ratio: float = 0.85) -> Image.Image:
    """Crops to the object and pads to a square, as TripoSR's inputs were made; nothing is scaled.

    The box covers the pixels with alpha > 0 without its last row and column, which TripoSR's own
    preparation loses too.

    Args:
        image: RGBA.
        ratio: Longer side of the box as a share of the returned side, 0..1.

    Returns:
        RGBA, square; padding is transparent black.

    Raises:
        GenerationError: Fewer than 2 x 2 pixels are not fully transparent.
    """
    pixels = np.asarray(image.convert("RGBA"))
    rows, columns = np.nonzero(pixels[..., 3])
    if rows.size == 0 or np.ptp(rows) == 0 or np.ptp(columns) == 0:
        raise GenerationError("no foreground was found in the image: it is transparent throughout")
    box = pixels[rows.min() : rows.max(), columns.min() : columns.max()]
    side = max(box.shape[:2])
    return Image.fromarray(_pad(_pad(box, side), int(side / ratio)))


def composite_on_grey(image: Image.Image) -> Image.Image:
    """Blends with mid-grey, the background that TripoSR was trained on.

    Args:
        image: RGBA.

    Returns:
        RGB of the same size; values are truncated, so that the background is 127.
    """
    pixels = np.asarray(image.convert("RGBA")).astype(np.float32) / 255
    alpha = pixels[..., 3:]
    blended = pixels[..., :3] * alpha + 0.5 * (1 - alpha)
    return Image.fromarray((blended * 255).astype(np.uint8))


def _is_cut_out(image: Image.Image) -> bool:
    return image.mode == "RGBA" and np.asarray(image.getchannel("A")).min() < 255


def _pad(pixels: np.ndarray[Any, np.dtype[np.uint8]], side: int) -> Any:
    height, width = pixels.shape[:2]
    top, left = (side - height) // 2, (side - width) // 2
    return np.pad(pixels, ((top, side - height - top), (left, side - width - left), (0, 0)))


def _load(model_file: Path, settings: BackgroundSettings) -> Any:
    import onnxruntime
    import rembg
    from rembg.sessions import sessions_names

    if not model_file.is_file():
        raise SetupError(
            f"the background model {model_file} does not exist",
            fix="python -m scripts.fetch_models --preset NAME",
        )
    available = onnxruntime.get_available_providers()
    providers = [name for name in settings.providers if name in available]
    if providers != list(settings.providers):
        logger.warning("ONNX Runtime has {}; background removal runs on {}", available, providers)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // 2)
    options.inter_op_num_threads = 1
    # Idle threads would spin on the cores that the other stages need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    known = model_file.stem in sessions_names
    arguments: dict[str, Any] = {} if known else {"model_path": str(model_file)}
    with _rembg_home(model_file.parent), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            session = rembg.new_session(
                model_file.stem if known else "u2net_custom",
                sess_opts=options,
                providers=providers,
                **arguments,
            )
        except Exception as error:  # ONNX Runtime's exceptions share no base class.
            raise SetupError(
                f"the background model {model_file} could not be loaded: {error}",
                fix="fetch the model again: python -m scripts.fetch_models --preset NAME",
            ) from error
    for warning in caught:
        logger.warning("background removal: {}", warning.message)
    return session


@contextmanager
def _rembg_home(folder: Path) -> Iterator[None]:
    """Makes rembg look for model files in a folder of ours, and accept paths in it."""
    before = os.environ.get("U2NET_HOME")
    os.environ["U2NET_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["U2NET_HOME"]
        else:
            os.environ["U2NET_HOME"] = before
