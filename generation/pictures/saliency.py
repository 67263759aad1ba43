"""The masks of rembg's U2-Net, IS-Net and BiRefNet models, computed in torch on the device."""

from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import torch
from loguru import logger
from torch import Tensor

from generation.acceleration.graphs import Captured
from generation.acceleration.streams import wait_for_stream
from generation.pictures.onnx_network import OnnxError, OnnxNetwork

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Layout:
    """What a model expects.

    Attributes:
        side: Pixels per side of its input, if its file does not say.
        mean: Subtracted from RGB in 0..1.
        std: What the difference is divided by.
        logits: Whether its output is the mask before the sigmoid.
    """

    side: int = 320
    mean: tuple[float, float, float] = _IMAGENET_MEAN
    std: tuple[float, float, float] = _IMAGENET_STD
    logits: bool = False


LAYOUTS = {
    "u2net": Layout(),
    "u2netp": Layout(),
    "u2net_human_seg": Layout(),
    "silueta": Layout(),
    "isnet-general-use": Layout(1024, (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)),
    "isnet-anime": Layout(1024, _IMAGENET_MEAN, (1.0, 1.0, 1.0)),
    **{
        f"birefnet-{kind}": Layout(1024, logits=True)
        for kind in ("general", "general-lite", "portrait", "dis", "hrsod", "cod", "massive")
    },
}
"""rembg's models that a U2-Net, an IS-Net or a BiRefNet is behind, as rembg feeds them."""


class SaliencyNetwork:
    """Finds the object of a picture: what `rembg.remove` does with these models, up to rounding.

    On CUDA it is one CUDA graph, on the stream of the caller. Only one thread at a time may call
    it, as the lane of the cut-outs has only one: a lock would make the second wait inside the time
    that is measured.

    Args:
        model_file: An ONNX file.
        layout: What its network expects.
        device: Where it runs.
        dtype: Number format of the weights and the computation. Networks that read at places which
            they compute (deformable convolutions) run in float32; a warning says so.

    Raises:
        OnnxError: torch cannot run this network, or it does not make masks.
    """

    def __init__(
        self,
        model_file: Path,
        layout: Layout,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        network = OnnxNetwork(model_file).eval()
        self._side = _side(network, layout)
        self._device = torch.device(device)
        self._logits = layout.logits
        if network.addresses and dtype != torch.float32:
            logger.warning(
                "background removal runs in float32: {} computes places in the picture, which {} "
                "would round",
                model_file.name,
                dtype,
            )
            dtype = torch.float32
        self._dtype = dtype
        self._mask = Captured("background removal", self._mask_of_square)
        self._network = network.to(self._device, self._dtype)
        self._network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._mean, self._std = (
            torch.tensor(values, device=self._device)[:, None, None]
            for values in (layout.mean, layout.std)
        )
        # Its weights are ready for the streams of other threads.
        wait_for_stream(self._device)
        # Drawn pictures have few sizes; those of photographs come and go.
        self._weights = lru_cache(maxsize=16)(partial(_lanczos, device=self._device))

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Finds the object.

        Args:
            pixels: (H, W, 3) uint8 RGB.

        Returns:
            (H, W) uint8 on the network's device, the object 255; computed when its stream is.
        """
        height, width, _ = pixels.shape
        picture = pixels.to(self._device).permute(2, 0, 1)[None].float().contiguous()
        square = self._resize(picture, self._side, self._side)
        return self._resize(self._mask(square), height, width)[0, 0].byte()

    def _mask_of_square(self, picture: Tensor) -> Tensor:
        """Maps (1, 3, S, S) to (1, 1, S, S), both float32 of whole numbers in 0..255."""
        bright = picture / picture.amax().clamp_min(1e-6)
        inputs = ((bright - self._mean) / self._std).to(
            self._dtype, memory_format=torch.channels_last
        )
        found = self._network(inputs)[:, :1].float()
        if self._logits:
            found = found.sigmoid()
        least, most = found.aminmax()
        # A mask with a single value divides zero by zero: nothing stands out.
        mask: Tensor = ((found - least) / (most - least)).nan_to_num(0.0)
        return mask.mul(255).floor()

    def _resize(self, picture: Tensor, height: int, width: int) -> Tensor:
        """Resamples whole numbers in 0..255 as Pillow does with LANCZOS, which rembg uses.

        Columns first; Pillow takes rows first for some sizes, which shows where both passes clip.

        Args:
            picture: (B, C, H, W) float32.
            height: Rows of the result.
            width: Columns of the result.
        """
        rows = self._weights(picture.shape[-2], height)
        columns = self._weights(picture.shape[-1], width)
        return _to_bytes(rows @ _to_bytes(picture @ columns.T))


def _to_bytes(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255)


def _lanczos(given: int, wanted: int, device: torch.device) -> Tensor:
    """Returns (wanted, given) float32: the weights of a line's samples in each new sample.

    Lanczos' kernel with three lobes (Duchon 1979), widened where there are fewer new samples.
    """
    step = given / wanted
    centres = (torch.arange(wanted, dtype=torch.float64, device=device)[:, None] + 0.5) * step
    places = torch.arange(given, dtype=torch.float64, device=device) + 0.5
    distance = (places - centres) / max(step, 1.0)
    weights = torch.where(distance.abs() < 3, distance.sinc() * (distance / 3).sinc(), 0.0)
    return (weights / weights.sum(1, keepdim=True)).float()


def _side(network: OnnxNetwork, layout: Layout) -> int:
    """Returns the side of the network's input once it is known that all of it can run."""
    if len(network.input_shape) != 4:
        raise OnnxError(f"the input has shape {network.input_shape}, expected (1, 3, side, side)")
    found = network.input_shape[-1] or layout.side
    if network.input_shape[-2] not in (None, found):
        raise OnnxError(f"the input has shape {network.input_shape}, expected a square")
    mask = network.fix((1, 3, found, found))
    if len(mask) != 4 or tuple(mask[2:]) != (found, found):
        raise OnnxError(f"the first output is {tuple(mask)}, expected a mask of {found} x {found}")
    return found
