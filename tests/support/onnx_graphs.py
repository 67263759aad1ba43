"""Small ONNX graphs, and what ONNX Runtime makes of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from generation.pictures.onnx_network import OnnxNetwork

Array = NDArray[Any]
Node = tuple[Any, ...]
"""Operator, operands, attributes: operands are names of values, or constants."""

RANDOM = np.random.default_rng(0)


def weights(*shape: int) -> Array:
    return RANDOM.standard_normal(shape, dtype=np.float32)


def integers(*values: int) -> Array:
    return np.array(values, dtype=np.int64)


def floats(*values: float) -> Array:
    return np.array(values, dtype=np.float32)


def write(
    file: Path,
    nodes: Sequence[Node],
    *,
    opset: int = 17,
    as_nodes: bool = False,
    channels: int = 4,
) -> Path:
    """Writes a graph from `x`, an image, to the last node's output.

    Node k makes value `k`, and a second one, `k'`, if it splits.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made, constants = [], []
    for place, (kind, *operands, attributes) in enumerate(nodes):
        names = []
        for number, operand in enumerate(operands):
            if isinstance(operand, str):
                names.append(operand)
                continue
            names.append(f"{place}.{number}")
            tensor = numpy_helper.from_array(np.asarray(operand), names[-1])
            if as_nodes:
                made.append(helper.make_node("Constant", [], [names[-1]], value=tensor))
            else:
                constants.append(tensor)
        results = [str(place), f"{place}'"] if kind == "Split" else [str(place)]
        made.append(helper.make_node(kind, names, results, **attributes))
    graph = helper.make_graph(
        made,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", channels, "h", "w"])],
        [helper.make_tensor_value_info(str(len(nodes) - 1), TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(model, file)
    return file


def _reference(file: Path, x: Array) -> Array:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {session.get_inputs()[0].name: x})[0]
    return found


def check(file: Path, x: Array, tolerance: float = 1e-5) -> None:
    network = OnnxNetwork(file)
    with torch.no_grad():
        found = network(torch.from_numpy(x))
        shape = network.fix(x.shape)
        again = network(torch.from_numpy(x))
    expected = _reference(file, x)
    assert found.shape == expected.shape == shape
    assert np.abs(found.numpy() - expected).max() <= tolerance
    assert torch.equal(again, found)
