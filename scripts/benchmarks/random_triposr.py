"""Untrained weights whose density field is one solid object: for tests, demos and timing."""

import math

import torch
from torch import Tensor, nn

from generation.lift.triposr.config import TripoSRConfig
from generation.lift.triposr.model import DENSITY_THRESHOLD, TripoSR
from generation.lift.triposr.triplane import PLANE_AXES

_SPREAD = 3.0  # standard deviation of the log-density over the cube
_NARROWNESS = (1.5, 2.0, 3.0)  # of the blob along x, y, z: unequal, to tell the axes apart
_CALIBRATION = 32  # grid points per side
_INSIDE = 0.08  # share of the cube above the threshold


@torch.no_grad()
def untrained(
    config: TripoSRConfig,
    seed: int = 0,
    *,
    device: torch.device | str = "cpu",
    threshold: float = DENSITY_THRESHOLD,
) -> TripoSR:
    """Builds a model with random float32 weights, in eval mode and without gradients.

    Channel 0 of the triplane carries a bump through network and decoder to the density, so that
    the field is a closed blob in the middle of the cube; everything else is noise that depends on
    the image and shapes and colours it.

    Args:
        config: Shapes and constants.
        seed: The same seed, device and config give the same weights.
        device: Where the weights are drawn and stay.
        threshold: A density that the field crosses, whatever the image.
    """
    with torch.device("meta"):
        model = TripoSR(config)
    model.to_empty(device=device).requires_grad_(False).eval()
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        _draw(name, parameter, generator)
    _carry_bump(model)
    _calibrate(model, generator, threshold)
    return model


def _draw(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    if parameter.ndim == 1:
        # Only norms have one-dimensional weights.
        parameter.normal_(std=0.05, generator=generator)
        if name.endswith("weight"):
            parameter += 1
    elif name == "tokenizer.embeddings":
        coarse = torch.empty(*parameter.shape[:2], 4, 4, device=parameter.device)
        coarse.normal_(generator=generator)
        parameter.copy_(
            nn.functional.interpolate(
                coarse, size=parameter.shape[-2:], mode="bicubic", align_corners=False
            )
        )
    else:
        # A layer keeps the scale of what passes through it.
        transposed = name == "post_processor.upsample.weight"
        fan_in = parameter.shape[0] if transposed else parameter[0].numel()
        parameter.normal_(std=fan_in**-0.5, generator=generator)


def _carry_bump(model: TripoSR) -> None:
    planes = model.tokenizer.embeddings
    axis = torch.linspace(-1, 1, planes.shape[-1], device=planes.device)
    for plane, (across, down) in enumerate(PLANE_AXES):
        slopes = _NARROWNESS[down] * axis[:, None] ** 2 + _NARROWNESS[across] * axis**2
        planes[plane, 0] = 4 * torch.exp(-slopes)
    # The backbone adds to the tokens: in channel 0 only a little.
    model.backbone.proj_out.weight[0] *= 0.03
    model.backbone.proj_out.bias[0] *= 0.03
    upsample = model.post_processor.upsample
    upsample.weight[:, 0] = 0
    upsample.weight[0, 0] = 1
    # Neuron 0 of each layer sums the planes and passes the sum on; SiLU keeps its order.
    first, *hidden, _ = (layer for layer in model.decoder.layers if isinstance(layer, nn.Linear))
    first.weight[0] *= 0.03
    first.weight[0, :: model.config.plane_channels] = 1
    for layer in hidden:
        layer.weight[0] *= 0.02
        layer.weight[0, 0] = 1


def _calibrate(model: TripoSR, generator: torch.Generator, threshold: float) -> None:
    last = model.decoder.layers[-1]
    assert isinstance(last, nn.Linear)
    last.weight[0] *= 0.1
    last.weight[0, 0] = 1
    size = model.config.image_size
    image = torch.rand(1, 3, size, size, generator=generator, device=model.device)
    code = model(image)[0]
    log_density = model.density_grid(code, _CALIBRATION).log()
    gain = _SPREAD / log_density.std()
    last.weight[0] *= gain
    last.bias[0] *= gain
    level = model.density_grid(code, _CALIBRATION).log().quantile(1 - _INSIDE)
    last.bias[0] += math.log(threshold) - level
    # Colours around grey that neither saturate the sigmoid nor look all the same.
    line = torch.linspace(-0.5, 0.5, 16, device=model.device) * model.radius
    points = torch.cartesian_prod(line, line, line)
    _, rgb = model.query(points, code)
    raw = torch.logit(rgb, eps=1e-6)
    gains = 1.5 / raw.std(0).clamp(min=1e-6)
    last.weight[1:] *= gains[:, None]
    last.bias[1:] = (last.bias[1:] - raw.mean(0)) * gains
