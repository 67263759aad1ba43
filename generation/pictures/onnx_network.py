"""A network from an ONNX file, run by torch: on any of its devices, in any of its number formats.

Knows the operators of rembg's U2-Net and IS-Net models, and those of transformers and deformable
convolutions as BiRefNet's export has them. What a graph computes about shapes stays on the host, in
NumPy, so that the device is never waited for and CUDA graphs can record a pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from generation.pictures.onnx_arrays import Array, joined
from generation.pictures.onnx_operators import HOST_OPERANDS, OPERATORS

OLDEST_OPSET = 11
"""Resize as torch does it is there from this version of ONNX's operators on."""


class OnnxError(ValueError):
    """A file that is no ONNX network, or one that uses what is not supported here."""


@dataclass(frozen=True)
class _Step:
    """One node of the graph.

    Attributes:
        operator: Name of the operator.
        attributes: Its settings; tensors as NumPy arrays, strings decoded.
        inputs: Names of the operands; empty for one that is left out.
        outputs: Names of the results.
        last_uses: Values that no later step needs.
    """

    operator: str
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    last_uses: tuple[str, ...] = ()


class OnnxNetwork(nn.Module):
    """The part of an ONNX graph that leads from its only input to its first output.

    Floating-point constants become float32 buffers, so `.to(device, dtype)` works as usual.

    Args:
        file: An ONNX file that holds its weights itself.

    Attributes:
        input_shape: Shape of the input; None where the file leaves a size open.

    Raises:
        OnnxError: The file is damaged, refers to other files, or uses an unsupported operator.
    """

    input_shape: tuple[int | None, ...]

    def __init__(self, file: Path) -> None:
        super().__init__()
        graph = _read(file)
        try:
            self._take(graph)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            if isinstance(error, OnnxError):
                raise
            raise OnnxError(f"{file.name} is damaged: {error}") from error

    def _take(self, graph: Any) -> None:
        constants = _constants(graph)
        (source,) = [value for value in graph.input if value.name not in constants]
        self.input_shape = tuple(
            size.dim_value or None for size in source.type.tensor_type.shape.dim
        )
        self._input, self._output = source.name, graph.output[0].name
        self._fixed: torch.Size | None = None
        self._steps = _steps(graph, {source.name, *constants}, self._output)
        self._host: dict[str, Array] = {}
        self._buffer_names: dict[str, str] = {}
        on_host = _needed_on_host(self._steps, source.name)
        for name in dict.fromkeys(name for step in self._steps for name in step.inputs):
            value = constants.get(name)
            if value is None:
                continue
            if name in on_host or value.ndim == 0 or not np.issubdtype(value.dtype, np.floating):
                self._host[name] = value
            else:
                self._add_buffer(name, value)

    def forward(self, image: Tensor) -> Tensor:
        """Maps the input to the first output.

        Args:
            image: Of `input_shape`, in the number format of the buffers.
        """
        if self._fixed not in (None, image.shape):
            raise ValueError(f"the input has shape {tuple(image.shape)}, expected {self._fixed}")
        buffers = {name: self.get_buffer(own) for name, own in self._buffer_names.items()}
        values = {**self._host, **buffers, self._input: image}
        for step in self._steps:
            self._take_step(step, values)
            for name in step.last_uses:
                del values[name]
        return self._found(values)

    @property
    def addresses(self) -> bool:
        """Whether it reads at places that it computes, which few bits would round to others."""
        return any(step.operator == "GatherND" for step in self._steps)

    def fix(self, input_shape: Sequence[int]) -> torch.Size:
        """Computes once, for one shape of the input, what depends on nothing else.

        Goes through the graph without computing anything else. Later inputs must have this shape.

        Returns:
            The shape of the output.

        Raises:
            OnnxError: Some operator is used in a way that is not supported, or shapes do not fit.
        """
        if any(size < 1 for size in input_shape):
            raise OnnxError(f"the input has shape {tuple(input_shape)}")
        values: dict[str, Any] = {
            **self._host,
            **{name: self.get_buffer(own).to("meta") for name, own in self._buffer_names.items()},
            self._input: torch.empty(tuple(input_shape), device="meta"),
        }
        left = []
        for step in self._steps:
            try:
                self._take_step(step, values)
            except Exception as error:
                raise OnnxError(
                    f"operator {step.operator}, which makes {step.outputs[0]!r}: {error}"
                ) from error
            if any(isinstance(values[name], Tensor) for name in step.outputs if name):
                left.append(step)
        found = self._found(values)
        self._host = {
            name: value for name, value in values.items() if isinstance(value, np.ndarray)
        }
        self._steps = _with_last_uses([self._on_device(step) for step in left], self._output)
        used = {name for step in self._steps for name in step.inputs}
        self._host = {name: value for name, value in self._host.items() if name in used}
        self._fixed = torch.Size(input_shape)
        return found.shape

    def _take_step(self, step: _Step, values: dict[str, Any]) -> None:
        operands = [values[name] if name else None for name in step.inputs]
        tensors = [operand for operand in operands if isinstance(operand, Tensor)]
        if tensors:
            like = next((t for t in tensors if t.is_floating_point()), tensors[0])
            for place, operand in enumerate(operands):
                if isinstance(operand, np.ndarray) and _is_data(step, place, operand):
                    operands[place] = joined(operand, like)
        results = OPERATORS[step.operator](step.attributes, *operands)
        if len(step.outputs) == 1:
            results = (results,)
        values.update(zip(step.outputs, results, strict=False))

    def _found(self, values: Mapping[str, Any]) -> Tensor:
        found = values.get(self._output)
        if not isinstance(found, Tensor):
            raise OnnxError("the network's output does not depend on its input")
        return found

    def _on_device(self, step: _Step) -> _Step:
        """Gives a step its operands as tensors, apart from settings and numbers."""
        names = list(step.inputs)
        for place, name in enumerate(names):
            value = self._host.get(name)
            if value is not None and _is_data(step, place, value):
                names[place] = f"{name} on the device"
                if names[place] not in self._buffer_names:
                    self._add_buffer(names[place], value)
        return replace(step, inputs=tuple(names))

    def _add_buffer(self, name: str, value: Array) -> None:
        self._buffer_names[name] = f"constant{len(self._buffer_names)}"
        tensor = torch.from_numpy(np.array(value))
        if tensor.is_floating_point():
            tensor = tensor.float()
        self.register_buffer(self._buffer_names[name], tensor)


def _is_data(step: _Step, place: int, operand: Array) -> bool:
    """Whether an array has to meet tensors on their device: neither a setting nor a number."""
    return operand.ndim > 0 and place not in HOST_OPERANDS.get(step.operator, ())


def _read(file: Path) -> Any:
    """Returns the file's graph once it is known to be whole and on its own."""
    import onnx

    try:
        model = onnx.load(file, load_external_data=False)
    except OSError:
        raise
    except Exception as error:  # Protocol Buffers' own, for which there are no type stubs.
        raise OnnxError(f"{file.name} is no ONNX file, or is damaged: {error}") from error
    versions = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions or min(versions) < OLDEST_OPSET:
        raise OnnxError(
            f"{file.name} uses version {versions} of ONNX's operators, expected at least "
            f"{OLDEST_OPSET}; or it is damaged"
        )
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or not graph.output:
        raise OnnxError(
            f"{file.name} has {len(inputs)} inputs and {len(graph.output)} outputs, expected one "
            "input and at least one output; it may be damaged"
        )
    return graph


def _constants(graph: Any) -> dict[str, Array]:
    """Returns what initialisers and Constant nodes hold, by name."""
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = {name: _array(tensor) for name, tensor in tensors.items()}
    for node in graph.node:
        if node.op_type == "Constant":
            value = np.asarray(next(iter(_attributes(node).values()), None))
            if value.dtype == np.object_:
                raise OnnxError(f"the values of {node.output[0]!r} are of an unknown kind")
            found[node.output[0]] = value
    return found


def _steps(graph: Any, known: set[str], output: str) -> tuple[_Step, ...]:
    """Returns the nodes that the output needs, in order.

    Args:
        graph: An ONNX graph.
        known: Names of the values that there are before the first step.
        output: Name of the value that is wanted.
    """
    needed, nodes = {output}, []
    for node in reversed(graph.node):
        if node.op_type != "Constant" and needed.intersection(node.output):
            nodes.append(node)
            needed.update(name for name in node.input if name)
    missing = needed - known - {name for node in nodes for name in node.output}
    if missing:
        raise OnnxError(f"nothing in the file makes the values {sorted(missing)}; it is damaged")
    kinds = {_operator(node) for node in nodes}
    if kinds - OPERATORS.keys():
        raise OnnxError(
            f"operators {sorted(kinds - OPERATORS.keys())} are not supported by the torch runtime"
        )
    steps = [
        _Step(_operator(node), _attributes(node), tuple(node.input), tuple(node.output))
        for node in reversed(nodes)
    ]
    return _with_last_uses(steps, output)


def _with_last_uses(steps: Sequence[_Step], output: str) -> tuple[_Step, ...]:
    """Notes after which step a value is needed no more."""
    later = {output}
    found = []
    for step in reversed(steps):
        last_uses = tuple({name for name in step.inputs if name} - later)
        later.update(step.inputs)
        found.append(replace(step, last_uses=last_uses))
    return tuple(reversed(found))


def _needed_on_host(steps: Sequence[_Step], source: str) -> set[str]:
    """Returns the values that are settings of operators, or from which shapes are computed."""
    on_device, needed = {source}, set[str]()
    for step in steps:
        if step.operator != "Shape" and on_device.intersection(step.inputs):
            on_device.update(step.outputs)
            places = HOST_OPERANDS.get(step.operator, ())
            needed.update(name for place, name in enumerate(step.inputs) if place in places)
        else:
            needed.update(step.inputs)
    return needed


def _operator(node: Any) -> str:
    standard = node.domain in ("", "ai.onnx")
    return str(node.op_type if standard else f"{node.domain}.{node.op_type}")


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import AttributeProto, helper

    found: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if attribute.type == AttributeProto.TENSOR:
            value = _array(value)
        found[attribute.name] = value.decode() if isinstance(value, bytes) else value
    return found


def _array(tensor: Any) -> Array:
    from onnx import TensorProto, numpy_helper

    if tensor.data_location == TensorProto.EXTERNAL:
        raise OnnxError(f"the values of {tensor.name!r} lie in another file, which is not opened")
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError) as error:
        raise OnnxError(f"the values of {tensor.name!r} are damaged: {error}") from error
