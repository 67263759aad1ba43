"""ONNX operators as functions of torch tensors, and of NumPy arrays for what concerns shapes.

Each takes the node's attributes and its operands (None for one that is left out), in the meaning of
the ONNX operator specification from version 11 on.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Attributes = Mapping[str, Any]
Array = NDArray[Any]

HOST_OPERANDS = {"Resize": (1, 2, 3), "Clip": (1, 2)}
"""Places of floating-point operands that are settings rather than data."""

_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}
_FLOATS = (1, 10, 11)
"""Numbers of ONNX's data types, as Cast gives them."""


class UnsupportedError(ValueError):
    """An operator is used in a way that is not supported."""


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


def _arithmetic(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def run(_: Attributes, left: Tensor | Array, right: Tensor | Array) -> Any:
        if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
            return np.asarray(function(left, right))
        # A number on the host joins a tensor as a number: nothing is copied to the device.
        return function(
            *(side if isinstance(side, Tensor) else side.item() for side in (left, right))
        )

    return run


def _divide(left: Any, right: Any) -> Any:
    whole = isinstance(left, np.ndarray) and np.issubdtype(left.dtype, np.integer)
    return left // right if whole else left / right


def _concat(attributes: Attributes, *parts: Any) -> Any:
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts, axis=attributes["axis"])
    return torch.cat(parts, dim=attributes["axis"])


def _shape(attributes: Attributes, x: Tensor | Array) -> Array:
    shape = tuple(x.shape)[attributes.get("start", 0) : attributes.get("end")]
    return np.array(shape, dtype=np.int64)


def _gather(attributes: Attributes, x: Tensor | Array, index: Array) -> Any:
    axis = attributes.get("axis", 0)
    if isinstance(x, Tensor):
        return x.select(axis, index.item())
    return np.asarray(np.take(x, index, axis=axis))


def _slice(
    _: Attributes,
    x: Tensor | Array,
    starts: Array,
    ends: Array,
    axes: Array | None = None,
    steps: Array | None = None,
) -> Any:
    axes = np.arange(len(starts)) if axes is None else axes
    steps = np.ones_like(starts) if steps is None else steps
    if steps.min() < 1:
        raise UnsupportedError("backward slices are not supported")
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(int(start), int(end), int(step))
    return x[tuple(index)]


def _cast(attributes: Attributes, x: Tensor | Array) -> Any:
    to = attributes["to"]
    if isinstance(x, Tensor) and to in _FLOATS:
        return x  # All floating-point tensors have the network's own number format.
    if isinstance(x, Tensor) or to not in _DTYPES:
        raise UnsupportedError(f"data type {to} is not supported")
    return x.astype(_DTYPES[to])


def _axes(attributes: Attributes, given: Array | None) -> tuple[int, ...]:
    """Up to version 12 axes are an attribute, from then on an operand."""
    return tuple(int(a) for a in (attributes.get("axes", ()) if given is None else given))


def _unsqueeze(attributes: Attributes, x: Tensor | Array, axes: Array | None = None) -> Any:
    places = _axes(attributes, axes)
    rank = x.ndim + len(places)
    places = tuple(sorted(place % rank for place in places))
    sizes = iter(x.shape)
    return x.reshape([1 if place in places else next(sizes) for place in range(rank)])


def _squeeze(attributes: Attributes, x: Tensor | Array, axes: Array | None = None) -> Any:
    places = {place % x.ndim for place in _axes(attributes, axes)}
    if not places:
        places = {place for place, size in enumerate(x.shape) if size == 1}
    return x.reshape([size for place, size in enumerate(x.shape) if place not in places])


def _reshape(attributes: Attributes, x: Tensor | Array, shape: Array) -> Any:
    if attributes.get("allowzero"):
        raise UnsupportedError("allowzero is not supported")
    return x.reshape([int(size) or x.shape[place] for place, size in enumerate(shape)])


OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Add": _arithmetic(operator.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _arithmetic(_divide),
    "Floor": lambda _, x: x.floor() if isinstance(x, Tensor) else np.floor(x),
    "Gather": _gather,
    "GlobalAveragePool": lambda _, x: x.mean((2, 3), keepdim=True),
    "Identity": lambda _, x: x,
    "MaxPool": _max_pool,
    "Mul": _arithmetic(operator.mul),
    "Relu": lambda _, x: x.relu(),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": lambda _, x: x.sigmoid(),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _arithmetic(operator.sub),
    "Transpose": lambda attributes, x: x.permute(attributes["perm"]),
    "Unsqueeze": _unsqueeze,
}
"""Function by name of the operator."""
