"""ONNX operators that take torch tensors and, for what concerns shapes, NumPy arrays on the host.

Each takes the node's attributes and its operands (None for one that is left out), in the meaning of
the ONNX operator specification from version 11 on. Of arrays alone, the result is an array; beside
a tensor, an array becomes one.
"""

import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Attributes = Mapping[str, Any]
Array = NDArray[Any]

_DTYPES = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64}
_FLOATS = (1, 10, 11)
"""Numbers of ONNX's data types, as Cast gives them."""

_TENSOR_TYPES = {6: torch.int32, 7: torch.int64, 9: torch.bool}


class UnsupportedError(ValueError):
    """An operator is used in a way that is not supported."""


def joined(array: Array, tensor: Tensor) -> Tensor:
    """Returns an array as a tensor that can meet another one, on its device."""
    found = torch.from_numpy(np.array(array)).to(tensor.device)
    return found.to(tensor.dtype) if found.is_floating_point() else found


def _numbers(*operands: Any) -> tuple[Any, ...]:
    """A number on the host joins a tensor as a number: nothing is copied to the device."""
    if not any(isinstance(operand, Tensor) for operand in operands):
        return operands
    return tuple(o if isinstance(o, Tensor) else o.item() for o in operands)


def _arithmetic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes an operator of any number of operands from a function of two."""
    return lambda _, *operands: _as_operand(reduce(function, _numbers(*operands)))


def _as_operand(value: Any) -> Any:
    return value if isinstance(value, Tensor) else np.asarray(value)


def _divide(left: Any, right: Any) -> Any:
    if isinstance(left, Tensor) and not (left.is_floating_point() or isinstance(right, float)):
        return left.div(right, rounding_mode="trunc")
    whole = isinstance(left, np.ndarray) and np.issubdtype(left.dtype, np.integer)
    return left // right if whole else left / right


def _modulo(attributes: Attributes, left: Any, right: Any) -> Any:
    if attributes.get("fmod"):
        raise UnsupportedError("fmod is not supported")
    left, right = _numbers(left, right)
    return _as_operand(left % right)


def _not(_: Attributes, x: Tensor | Array) -> Any:
    return x.logical_not() if isinstance(x, Tensor) else np.logical_not(x)


def _where(_: Attributes, condition: Any, left: Any, right: Any) -> Any:
    if isinstance(condition, Tensor):
        return torch.where(condition, *_numbers(left, right))
    return np.where(condition, left, right)


def _concat(attributes: Attributes, *parts: Any) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts, dim=attributes["axis"])
    return np.concatenate(parts, axis=attributes["axis"])


def _split(attributes: Attributes, x: Tensor | Array, sizes: Array | None = None) -> Any:
    axis = attributes.get("axis", 0)
    lengths = attributes.get("split") if sizes is None else sizes.tolist()
    if lengths is None:
        raise UnsupportedError("a split without sizes is not supported")
    if isinstance(x, Tensor):
        return torch.split(x, [int(length) for length in lengths], dim=axis)
    return tuple(np.split(x, np.cumsum(lengths)[:-1], axis=axis))


def _shape(attributes: Attributes, x: Tensor | Array) -> Array:
    shape = tuple(x.shape)[attributes.get("start", 0) : attributes.get("end")]
    return np.array(shape, dtype=np.int64)


def _gather(attributes: Attributes, x: Tensor | Array, index: Tensor | Array) -> Any:
    axis = attributes.get("axis", 0) % x.ndim
    if isinstance(x, np.ndarray):
        return np.asarray(np.take(x, index, axis=axis))
    if index.ndim == 0:
        return x.select(axis, int(index.item()))
    shape = (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])
    return x.index_select(axis, index.flatten() % x.shape[axis]).reshape(shape)


def _gather_nd(attributes: Attributes, x: Tensor | Array, index: Any) -> Any:
    batches = attributes.get("batch_dims", 0)
    # What a batch dimension selects is its own place.
    own: list[Any] = []
    for axis, size in enumerate(x.shape[:batches]):
        shape = [size if place == axis else 1 for place in range(index.ndim - 1)]
        if isinstance(x, Tensor):
            own.append(torch.arange(size, device=x.device).view(shape))
        else:
            own.append(np.arange(size).reshape(shape))
    return x[(*own, *_places(index))]


def _scatter_nd(attributes: Attributes, x: Tensor | Array, index: Any, updates: Any) -> Any:
    if attributes.get("reduction", "none") != "none":
        raise UnsupportedError("only plain updates are supported")
    changed = x.clone() if isinstance(x, Tensor) else x.copy()
    changed[_places(index)] = updates
    return changed


def _places(index: Tensor | Array) -> tuple[Any, ...]:
    """Takes coordinates (..., n) apart, as an index of n dimensions."""
    if isinstance(index, Tensor):
        return index.unbind(-1)
    return tuple(np.moveaxis(index, -1, 0))


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
    if isinstance(x, Tensor) and steps.min() < 1:
        raise UnsupportedError("backward slices of tensors are not supported")
    index = [slice(None)] * x.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        index[axis] = slice(int(start), int(end), int(step))
    return x[tuple(index)]


def _cast(attributes: Attributes, x: Tensor | Array) -> Any:
    to = attributes["to"]
    if to not in _DTYPES:
        raise UnsupportedError(f"data type {to} is not supported")
    if not isinstance(x, Tensor):
        return x.astype(_DTYPES[to])
    if to in _FLOATS:
        # All floating-point tensors have the network's own number format.
        return x if x.is_floating_point() else x.float()
    return x.to(_TENSOR_TYPES[to])


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


def _expand(_: Attributes, x: Tensor | Array, shape: Array) -> Any:
    size = np.broadcast_shapes(tuple(x.shape), tuple(int(length) for length in shape))
    return x.expand(size) if isinstance(x, Tensor) else np.broadcast_to(x, size)


def _constant_of_shape(attributes: Attributes, shape: Array) -> Array:
    value = np.asarray(attributes.get("value", np.zeros(1, dtype=np.float32)))
    return np.full([int(length) for length in shape], value.item(), dtype=value.dtype)


def _range(_: Attributes, start: Array, limit: Array, step: Array) -> Array:
    return np.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


def _pad(
    attributes: Attributes,
    x: Tensor | Array,
    pads: Array,
    value: Array | None = None,
    axes: Array | None = None,
) -> Any:
    if attributes.get("mode", "constant") != "constant" or axes is not None:
        raise UnsupportedError("only constant padding of all axes is supported")
    filler = 0.0 if value is None else value.item()
    sides = pads.astype(int).reshape(2, -1).T.tolist()
    if isinstance(x, Tensor):
        return functional.pad(x, [side for pair in reversed(sides) for side in pair], value=filler)
    return np.pad(x, sides, constant_values=filler)


def _tile(_: Attributes, x: Tensor | Array, repeats: Array) -> Any:
    times = [int(count) for count in repeats]
    return x.repeat(times) if isinstance(x, Tensor) else np.tile(x, times)


def _transpose(attributes: Attributes, x: Tensor | Array) -> Any:
    axes = attributes.get("perm", range(x.ndim)[::-1])
    return x.permute(*axes) if isinstance(x, Tensor) else x.transpose(axes)


ARRAY_OPERATORS: Mapping[str, Callable[..., Any]] = {
    "Add": _arithmetic(operator.add),
    "Cast": _cast,
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "Div": _arithmetic(_divide),
    "Equal": _arithmetic(operator.eq),
    "Expand": _expand,
    "Floor": lambda _, x: x.floor() if isinstance(x, Tensor) else np.floor(x),
    "Gather": _gather,
    "GatherND": _gather_nd,
    "Greater": _arithmetic(operator.gt),
    "Identity": lambda _, x: x,
    "Less": _arithmetic(operator.lt),
    "Mod": _modulo,
    "Mul": _arithmetic(operator.mul),
    "Neg": lambda _, x: -x,
    "Not": _not,
    "Pad": _pad,
    "Pow": _arithmetic(operator.pow),
    "Range": _range,
    "Reshape": _reshape,
    "ScatterND": _scatter_nd,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Sqrt": lambda _, x: x.sqrt() if isinstance(x, Tensor) else np.sqrt(x),
    "Squeeze": _squeeze,
    "Sub": _arithmetic(operator.sub),
    "Sum": _arithmetic(operator.add),
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
"""Function by name of the operator."""
