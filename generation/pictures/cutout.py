"""Image to cut-out: background removal by rembg's models, through rembg or in torch."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loguru import logger
from PIL import Image
from torch import Tensor

from generation.acceleration.streams import to_host
from generation.errors import NoObject
from generation.pictures.framing import frame, pixels_of
from generation.pictures.matte import FAINT, Levels, opacity, outlines_object
from generation.pictures.onnx_network import OnnxError
from generation.pictures.plain_border import plain_border_mask
from generation.pictures.saliency import LAYOUTS, Layout, SaliencyNetwork
from generation.settings import CutoutSettings
from generation.weights.store import FETCH_AGAIN
from protocol.errors import SetupError

Mask = Callable[[Tensor], Tensor]
"""From a picture (H, W, 3) uint8 RGB to its mask (H, W) uint8, the object 255, on any device."""


class BackgroundRemover:
    """One of rembg's models, loaded from its file, run by ONNX Runtime or by torch.

    Only one thread at a time may call it.

    Args:
        model_file: An ONNX file. If its name is that of one of rembg's own models
            (`isnet-general-use.onnx`), or it is the file of `settings.model` and that has such a
            name, it is read as rembg reads that model. Any other file has U2-Net's layout: 320 x
            320 normalised RGB in, the mask as first output.
        settings: Runtime, execution providers, threads, framing. ONNX Runtime runs what the torch
            runtime cannot load; a warning says so.
        device: Where the torch runtime computes, and where cut-outs are framed.

    Attributes:
        device: The same.

    Raises:
        SetupError: The file cannot be loaded.
    """

    def __init__(
        self,
        model_file: Path,
        settings: CutoutSettings,
        device: torch.device | str = "cpu",
    ) -> None:
        self.settings = settings
        self.device = torch.device(device)
        if not model_file.is_file():
            raise SetupError(
                f"the background model {model_file} does not exist",
                fix=FETCH_AGAIN,
            )
        name = model_file.stem
        if settings.model is not None and settings.model.file == model_file.name:
            name = settings.model.name
        in_torch = None
        if settings.runtime == "torch":
            in_torch = _load_in_torch(model_file, name, settings, device)
        self._mask: Mask = in_torch or _load_in_rembg(model_file, name, settings)

    def __call__(self, image: Image.Image, *, skip_plain: bool = False) -> Image.Image:
        """Cuts the object out and frames it: `framed` from picture to picture, RGBA."""
        return Image.fromarray(to_host(self.framed(image, skip_plain=skip_plain)))

    def framed(self, picture: Image.Image | Tensor, *, skip_plain: bool = False) -> Tensor:
        """Cuts the object out and frames it.

        An RGBA image counts as cut out already if its transparency outlines an object (see
        `outlines_object`). Any other loses its transparency and what is outside of it first.

        The pixels stay on the device. Only the mask is copied to the host, which looks for the
        object's box.

        Args:
            picture: RGB or RGBA, any size; or (H, W, 3) uint8 RGB.
            skip_plain: Do without the network where `plain_border_mask` finds the object.

        Returns:
            (S, S, 4) uint8 RGBA on `device`, the object's box centred and `foreground_ratio` of the
            side; computed when the caller's stream is.

        Raises:
            NoObject: No object was found.
        """
        given = self._given(picture) if isinstance(picture, Image.Image) else None
        if given is not None:
            rgba = pixels_of(given).to(self.device)
            return self._frame(rgba[..., :3], rgba[..., 3].contiguous())
        if isinstance(picture, Image.Image):
            picture = pixels_of(_opaque(picture))
        picture = picture.to(self.device)
        return self._frame(picture, self._find(picture, skip_plain=skip_plain))

    def remove(self, image: Image.Image, *, skip_plain: bool = False) -> Image.Image:
        """Cuts the object out of a picture, without framing it.

        Args:
            image: RGB.
            skip_plain: See `framed`.

        Returns:
            RGBA of the same size.
        """
        mask = self._find(pixels_of(image).to(self.device), skip_plain=skip_plain)
        # The colours under a soft edge stay as they are: darkened, they would make a rim.
        cutout = image.copy()
        cutout.putalpha(Image.fromarray(to_host(mask)))
        return cutout

    def _find(self, picture: Tensor, *, skip_plain: bool) -> Tensor:
        """Returns the mask (H, W) uint8 of a picture (H, W, 3), the object 255, on some device."""
        if skip_plain:
            image = Image.fromarray(to_host(picture))
            plain = plain_border_mask(image, min_coverage=self.settings.min_coverage)
            if plain is not None:
                return pixels_of(plain)
        return self._mask(picture)

    def _frame(self, colours: Tensor, alpha: Tensor) -> Tensor:
        levels = to_host(alpha)
        self._require_object(levels)
        alpha = alpha.to(self.device)
        return frame(colours, alpha, levels, self.settings.foreground_ratio)

    def _given(self, image: Image.Image) -> Image.Image | None:
        """The picture, opaque where it is most opaque, if it is cut out already; else None."""
        if image.mode != "RGBA":
            return None
        alpha = np.asarray(image.getchannel("A"))
        level = opacity(alpha, self.settings.min_coverage)
        if level <= FAINT:
            self._require_object(alpha)
        if not outlines_object(alpha, level):
            return None
        if level < 255:
            image = image.copy()
            image.putalpha(image.getchannel("A").point(lambda value: value * 255 / level))
        return image

    def _require_object(self, alpha: Levels) -> None:
        coverage = np.count_nonzero(alpha > 127) / alpha.size
        if coverage < self.settings.min_coverage:
            raise NoObject(
                f"no foreground was found in the image: {coverage:.3%} of its pixels are opaque, "
                f"at least {self.settings.min_coverage:.3%} are needed"
            )


def _opaque(image: Image.Image) -> Image.Image:
    """The colours of a picture, as RGB, without margins that are not seen."""
    if image.mode == "RGBA":
        seen = image.getchannel("A").point(lambda value: 255 * (value > FAINT))
        image = image.crop(seen.getbbox())
    return image.convert("RGB")


def _load_in_torch(
    model_file: Path, name: str, settings: CutoutSettings, device: torch.device | str
) -> SaliencyNetwork | None:
    """Returns None, with a warning, if torch cannot run the model."""
    try:
        return SaliencyNetwork(model_file, _layout(name), device, getattr(torch, settings.dtype))
    except (OnnxError, ImportError) as error:
        logger.warning(
            "background removal runs in ONNX Runtime: torch cannot run {}: {}",
            model_file.name,
            error,
        )
        return None


def _layout(name: str) -> Layout:
    if name in LAYOUTS:
        return LAYOUTS[name]
    from rembg.sessions import sessions_names

    if name in sessions_names:
        raise OnnxError(f"rembg reads {name} in a way of its own")
    return Layout()


def _load_in_rembg(model_file: Path, name: str, settings: CutoutSettings) -> Mask:
    import onnxruntime
    import rembg
    from rembg.sessions import sessions_class

    onnxruntime.disable_telemetry_events()  # A miner reports to its operator alone.
    available = onnxruntime.get_available_providers()
    providers = [name for name in settings.providers if name in available]
    if providers != list(settings.providers):
        logger.warning("ONNX Runtime has {}; background removal runs on {}", available, providers)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = settings.threads or max(1, len(os.sched_getaffinity(0)) // 2)
    options.inter_op_num_threads = 1
    # Idle threads would spin on the cores that the other stages need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    classes = {kind.name(): kind for kind in sessions_class}
    kind = classes.get(name, classes["u2net"])

    class Session(kind):  # type: ignore[valid-type, misc]
        """The model of that name, from our file: rembg would look for its own or download it."""

        @classmethod
        def download_models(cls, *_: Any, **__: Any) -> str:
            """Returns the file."""
            return str(model_file)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            session = Session(kind.name(), options, providers=providers)
        except Exception as error:  # ONNX Runtime's exceptions share no base class.
            raise SetupError(
                f"the background model {model_file} could not be loaded: {error}",
                fix=FETCH_AGAIN,
            ) from error
    for warning in caught:
        logger.warning("background removal: {}", warning.message)

    def mask(picture: Tensor) -> Tensor:
        image = Image.fromarray(to_host(picture))
        # A mask with a single value divides zero by zero inside rembg and comes back empty.
        with np.errstate(divide="ignore", invalid="ignore"):
            found: Image.Image = rembg.remove(image, session=session, only_mask=True)
        return pixels_of(found)

    return mask
