"""ONNX operators as functions of torch tensors, and of NumPy arrays for what concerns shapes.

Each takes the node's attributes and its operands (None for one that is left out), in the meaning of
the ONNX operator specification from version 11 on.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from generation.pictures.onnx_arrays import ARRAY_OPERATORS, Array, Attributes, UnsupportedError

HOST_OPERANDS = {
    "Clip": (1, 2),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1, 2, 3),
    "ReduceMean": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Unsqueeze": (1,),
}
"""Places of operands that are settings rather than data."""


def _pair(attributes: Attributes, name: str, default: int = 1) -> tuple[int, int]:
    height, width = attributes.get(name, (default, default))
    return height, width


def _padded(attributes: Attributes, x: Tensor, value: float) -> tuple[Tensor, tuple[int, int]]:
    """Returns the tensor and the padding that is left to do, even on opposite sides."""
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise UnsupportedError(f"auto_pad {attributes['auto_pad']} is not supported")
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        return x, (top, left)
    return functional.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _even_padding(attributes: Attributes) -> tuple[int, int]:
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or (top, left) != (bottom, right):
        raise UnsupportedError("auto_pad, and pads that differ between sides, are not supported")
    return top, left


def _conv(attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    x, padding = _padded(attributes, x, 0.0)
    return functional.conv2d(
        x,
        weight,
        bias,
        stride=_pair(attributes, "strides"),
        padding=padding,
        dilation=_pair(attributes, "dilations"),
        groups=attributes.get("group", 1),
    )


def _conv_transpose(
    attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    if "output_shape" in attributes:
        raise UnsupportedError("output_shape is not supported")
    return functional.conv_transpose2d(
        x,
        weight,
        bias,
        stride=_pair(attributes, "strides"),
        padding=_even_padding(attributes),
        output_padding=_pair(attributes, "output_padding", 0),
        groups=attributes.get("group", 1),
        dilation=_pair(attributes, "dilations"),
    )


def _max_pool(attributes: Attributes, x: Tensor) -> Tensor:
    x, padding = _padded(attributes, x, float("-inf"))
    return functional.max_pool2d(
        x,
        _pair(attributes, "kernel_shape"),
        stride=_pair(attributes, "strides"),
        padding=padding,
        dilation=_pair(attributes, "dilations"),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )


def _average_pool(attributes: Attributes, x: Tensor) -> Tensor:
    if _pair(attributes, "dilations") != (1, 1):
        raise UnsupportedError("dilations are not supported")
    return functional.avg_pool2d(
        x,
        _pair(attributes, "kernel_shape"),
        stride=_pair(attributes, "strides"),
        padding=_even_padding(attributes),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
        count_include_pad=bool(attributes.get("count_include_pad", 0)),
    )


def _batch_normalization(
    attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor
) -> Tensor:
    epsilon = attributes.get("epsilon", 1e-5)
    return functional.batch_norm(x, mean, var, weight, bias, training=False, eps=epsilon)


def _resize(
    attributes: Attributes,
    x: Tensor,
    region: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
) -> Tensor:
    way = attributes.get("coordinate_transformation_mode", "half_pixel")
    mode = attributes.get("mode", "nearest")
    nearest = (mode, way, attributes.get("nearest_mode")) == ("nearest", "asymmetric", "floor")
    linear = mode == "linear" and way in ("half_pixel", "pytorch_half_pixel", "align_corners")
    if not (nearest or linear) or "axes" in attributes or attributes.get("antialias"):
        raise UnsupportedError(f"{mode} interpolation with {dict(attributes)} is not supported")
    size = [] if sizes is None else sizes.astype(int).tolist()
    factor = [] if size or scales is None else scales.tolist()
    if (size or factor)[:2] != (list(x.shape[:2]) if size else [1, 1]):
        raise UnsupportedError("only height and width can be resized")
    return functional.interpolate(
        x,
        size=size[2:] or None,
        scale_factor=factor[2:] or None,
        mode="nearest" if nearest else "bilinear",
        align_corners=None if nearest else way == "align_corners",
    )


def _clip(
    _: Attributes, x: Tensor, least: Array | None = None, most: Array | None = None
) -> Tensor:
    least, most = (None if limit is None else limit.item() for limit in (least, most))
    return x.clamp(least, most)


def _layer_normalization(
    attributes: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    shape = x.shape[attributes.get("axis", -1) :]
    return functional.layer_norm(x, shape, weight, bias, eps=attributes.get("epsilon", 1e-5))


def _reduce_mean(attributes: Attributes, x: Tensor, axes: Array | None = None) -> Tensor:
    places = attributes.get("axes", ()) if axes is None else axes
    return x.mean([int(axis) for axis in places], keepdim=bool(attributes.get("keepdims", 1)))


OPERATORS: Mapping[str, Callable[..., Any]] = {
    **ARRAY_OPERATORS,
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Clip": _clip,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Erf": lambda _, x: x.erf(),
    "GlobalAveragePool": lambda _, x: x.mean((2, 3), keepdim=True),
    "LayerNormalization": _layer_normalization,
    "MatMul": lambda _, left, right: left @ right,
    "MaxPool": _max_pool,
    "PRelu": lambda _, x, slope: torch.where(x < 0, x * slope, x),
    "ReduceMean": _reduce_mean,
    "Relu": lambda _, x: x.relu(),
    "Resize": _resize,
    "Sigmoid": lambda _, x: x.sigmoid(),
    "Softmax": lambda attributes, x: x.softmax(attributes.get("axis", -1)),
}
"""Function by name of the operator."""
