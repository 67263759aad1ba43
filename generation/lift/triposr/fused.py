"""The decoder in one kernel, for networks of 16-bit weights on a CUDA device.

Layer by layer, a decoder of width 64 is bound by memory and by launches: each of its 20 operations
writes what the next one reads. In one kernel the hidden values of a point stay in registers.
"""

from importlib.util import find_spec

import torch
from loguru import logger
from torch import Tensor

from generation.lift.triposr.triplane import Decoder, SceneCode, linear_layers

_BLOCK, _WARPS = 64, 4
"""Points of a block: with more, its hidden values no longer fit into the registers."""

_WIDTHS = (16, 32, 64, 128)
"""What the kernel can hold: a tensor core's tile at least, the registers of a block at most."""


class FusedDecoder:
    """A copy of a decoder's weights, laid out for `decoder_kernel`.

    Results are those of the same weights in float32 up to 1e-4 of their spread: sums are float32,
    and an activation is multiplied as the sum of two numbers of 16 bits. The layers one by one
    round after every operation, and their noise roughens the surface.

    Args:
        decoder: bfloat16 or float16, its width one of 16, 32, 64 and 128. Changes to it later are
            not seen.
    """

    def __init__(self, decoder: Decoder) -> None:
        first, *inner, last = linear_layers(decoder)
        self._decoder = decoder
        self._first_bias = first.bias.float()
        self._width = len(first.bias)
        empty = first.weight.new_empty(0, self._width, self._width)
        weights = [layer.weight.t() for layer in inner]
        self._weights = torch.stack(weights).contiguous() if inner else empty
        biases = [layer.bias.float() for layer in inner]
        self._biases = torch.stack(biases) if inner else empty[:, 0].float()
        self._last_weight, self._last_bias = last.weight.float(), last.bias.float()

    @torch.no_grad()
    def terms(self, scene_code: SceneCode) -> Tensor:
        """(3, H, W, width) float32: the planes, taken through the first linear layer.

        Interpolating between the results is the same as taking interpolated features through.
        """
        planes = scene_code.float().flatten(2).transpose(1, 2)
        terms = self._decoder.plane_terms(planes, torch.float32)
        return torch.unflatten(terms, 1, scene_code.shape[2:]).contiguous()

    def __call__(self, terms: Tensor, points: Tensor, radius: float, *, outputs: int) -> Tensor:
        """Decodes points.

        Args:
            terms: From `terms`; the planes are square.
            points: (N, 3) world x y z on the same device.
            radius: Half the side of the cube.
            outputs: 1 for raw density alone, 4 for raw red, green and blue as well.

        Returns:
            (N, outputs) float32.
        """
        from generation.lift.triposr import decoder_kernel

        points = points.float().contiguous()
        out = points.new_empty(len(points), outputs)
        if len(points) == 0:
            return out
        # Triton launches on the current device.
        with torch.cuda.device_of(points):  # type: ignore[no-untyped-call]
            decoder_kernel.decode[(-(-len(points) // _BLOCK),)](
                points,
                terms,
                self._first_bias,
                self._weights,
                self._biases,
                self._last_weight,
                self._last_bias,
                out,
                len(points),
                1.0 / radius,
                SIZE=terms.shape[1],
                WIDTH=self._width,
                LAYERS=len(self._weights),
                OUTPUTS=outputs,
                BLOCK=_BLOCK,
                num_warps=_WARPS,
            )
        return out


def fused_decoder(decoder: Decoder) -> FusedDecoder | None:
    """Returns the decoder in one kernel, or None, with a warning, where that cannot be had."""
    weight = linear_layers(decoder)[0].weight
    problem = ""
    if find_spec("triton") is None:
        problem = "Triton is not installed"
    elif weight.dtype not in (torch.bfloat16, torch.float16):
        problem = f"its weights are {weight.dtype}, not of 16 bits"
    elif len(weight) not in _WIDTHS:
        problem = f"its width is {len(weight)}, not one of {_WIDTHS}"
    if problem:
        logger.warning("TripoSR's decoder runs layer by layer, more slowly: {}", problem)
        return None
    return FusedDecoder(decoder)
