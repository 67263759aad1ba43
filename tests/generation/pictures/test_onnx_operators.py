"""Every operator gives in torch what it gives in ONNX Runtime."""

from pathlib import Path

import numpy as np
import pytest

from tests.support.onnx_graphs import Node, check, floats, integers, weights, write

HALVES = {"kernel_shape": [2, 2], "strides": [2, 2]}

SHAPES: list[Node] = [("Shape", "x", {}), ("Gather", "0", np.array(2), {"axis": 0})]

GRAPHS: dict[str, list[Node]] = {
    "Conv": [("Conv", "x", weights(6, 4, 3, 3), weights(6), {"pads": [1, 1, 1, 1]})],
    "Conv dilated": [("Conv", "x", weights(6, 4, 3, 3), {"pads": [2] * 4, "dilations": [2, 2]})],
    "Conv strided, grouped": [
        ("Conv", "x", weights(6, 2, 3, 3), weights(6), {"strides": [2, 1], "group": 2})
    ],
    "Conv unevenly padded": [("Conv", "x", weights(2, 4, 3, 3), {"pads": [0, 1, 2, 0]})],
    "ConvTranspose": [
        (
            *("ConvTranspose", "x", weights(4, 3, 3, 3), weights(3)),
            {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]},
        )
    ],
    "MaxPool": [("MaxPool", "x", HALVES)],
    "MaxPool rounded up": [("MaxPool", "x", {**HALVES, "ceil_mode": 1})],
    "MaxPool unevenly padded": [("MaxPool", "x", {**HALVES, "pads": [0, 0, 1, 1]})],
    "AveragePool": [("AveragePool", "x", {"kernel_shape": [3, 3], "pads": [1] * 4})],
    "AveragePool with padding": [
        ("AveragePool", "x", {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1})
    ],
    "GlobalAveragePool": [("GlobalAveragePool", "x", {})],
    "BatchNormalization": [
        (
            *("BatchNormalization", "x", weights(4), weights(4), weights(4)),
            *(weights(4) ** 2 + 0.1, {"epsilon": 1e-3}),
        )
    ],
    "activations": [
        ("Relu", "x", {}),
        ("Sigmoid", "0", {}),
        ("Floor", "0", {}),
        ("Add", "1", "2", {}),
    ],
    "Clip": [("Clip", "x", np.float32(-0.5), np.float32(0.25), {})],
    "Clip below": [("Clip", "x", np.float32(-0.5), {})],
    "Clip above": [("Clip", "x", "", np.float32(0.5), {})],
    "arithmetic": [
        ("Sub", "x", np.float32(2), {}),
        ("Mul", "0", weights(4, 1, 1), {}),
        ("Div", floats(3), "1", {}),
        ("Add", "2", "x", {}),
    ],
    "Concat": [("Relu", "x", {}), ("Concat", "x", "0", "x", {"axis": 1}), ("Identity", "1", {})],
    "Slice": [("Slice", "x", integers(1, -5), integers(3, 2**62), integers(1, 3), {})],
    "Slice by steps": [("Slice", "x", integers(0), integers(9), integers(2), integers(2), {})],
    "Gather": [("Gather", "x", np.array(2), {"axis": 1})],
    "Transpose": [("Transpose", "x", {"perm": [0, 2, 3, 1]})],
    "Reshape": [("Reshape", "x", integers(0, 2, -1), {})],
    "Unsqueeze": [("Unsqueeze", "x", integers(0, -1), {})],
    "Squeeze": [
        ("Slice", "x", integers(1), integers(2), integers(1), {}),
        ("Squeeze", "0", integers(1), {}),
    ],
    "Squeeze all": [("GlobalAveragePool", "x", {}), ("Squeeze", "0", {})],
    "Resize by half_pixel sizes": [
        ("Resize", "x", "", "", integers(2, 4, 20, 7), {"mode": "linear"})
    ],
    "Resize by pytorch_half_pixel scales": [
        (
            *("Resize", "x", "", floats(1, 1, 2, 1.5)),
            {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        )
    ],
    "Resize by align_corners": [
        (
            *("Resize", "x", "", "", integers(2, 4, 18, 26)),
            {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
        )
    ],
    "Resize to the nearest": [
        (
            *("Resize", "x", "", floats(1, 1, 2, 2)),
            {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        )
    ],
    "attention": [
        ("Transpose", "x", {"perm": [0, 2, 3, 1]}),
        ("Reshape", "0", integers(2, -1, 4), {}),
        ("LayerNormalization", "1", weights(4), weights(4), {"epsilon": 1e-5}),
        ("MatMul", "2", weights(4, 8), {}),
        ("Split", "3", integers(4, 4), {"axis": -1}),
        ("Transpose", "4'", {"perm": [0, 2, 1]}),
        ("MatMul", "4", "5", {}),
        ("Softmax", "6", {"axis": -1}),
        ("MatMul", "7", "2", {}),
        ("Erf", "8", {}),
        ("Sqrt", floats(2), {}),
        ("Div", "9", "10", {}),
        ("ReduceMean", "11", {"axes": [-1], "keepdims": 1}),
        ("Sub", "11", "12", {}),
        ("Pow", "13", np.float32(2), {}),
        ("Neg", "14", {}),
        ("Sum", "15", "1", "2", {}),
    ],
    "windows, shifted and masked": [
        ("Pad", "x", integers(0, 0, 0, 0, 0, 0, 1, 1), np.float32(0), {}),
        ("Slice", "0", integers(3), integers(2**62), integers(2), {}),
        ("Slice", "0", integers(0), integers(3), integers(2), {}),
        ("Concat", "1", "2", {"axis": 2}),
        ("ConstantOfShape", integers(10, 14), {}),
        (
            *("ScatterND", "4", np.array([[0, 0], [3, 5], [9, 13]])),
            *(floats(1, 2, 3), {}),
        ),
        ("Equal", "5", np.float32(0), {}),
        ("Not", "6", {}),
        ("Where", "7", np.float32(-100), "5", {}),
        ("Add", "3", "8", {}),
        ("Shape", "9", {}),
        ("Expand", floats(0.5), "10", {}),
        ("Less", "9", "11", {}),
        ("Where", "12", "9", "11", {}),
        ("Greater", "13", "11", {}),
        ("Where", "14", "8", "13", {}),
    ],
    "places computed from values": [
        ("Clip", "x", np.float32(0), np.float32(3.5), {}),
        ("Floor", "0", {}),
        ("Cast", "1", {"to": 7}),
        ("Slice", "2", integers(0), integers(2), integers(1), {}),
        ("Transpose", "3", {"perm": [0, 2, 3, 1]}),
        ("Mod", "4", np.array(4), {}),
        ("GatherND", "x", "5", {"batch_dims": 1}),
        ("Range", np.array(0), np.array(13), np.array(1), {}),
        ("Tile", "7", integers(2), {}),
        ("Slice", "8", integers(-1), integers(-(2**62)), integers(0), integers(-1), {}),
        ("Gather", "6", "9", {"axis": 2}),
        ("Cast", "5", {"to": 1}),
        ("ReduceMean", "11", {"axes": [1, 2, 3], "keepdims": 1}),
        ("Add", "10", "12", {}),
        ("PRelu", "13", floats(0.25), {}),
        ("Slice", "5", integers(0), integers(1), integers(3), {}),
        ("Gather", weights(4, 3), "15", {"axis": 0}),
        ("ReduceMean", "16", {"axes": [1, 2, 3, 4], "keepdims": 0}),
        ("Reshape", "17", integers(2, 1, 1, 1), {}),
        ("Mul", "14", "18", {}),
    ],
    "sizes computed from shapes": [
        ("MaxPool", "x", HALVES),
        ("Shape", "x", {}),
        ("Slice", "1", integers(2), integers(4), integers(0), {}),
        ("Shape", "0", {}),
        ("Slice", "3", integers(0), integers(2), integers(0), {}),
        ("Cast", "2", {"to": 7}),
        ("Concat", "4", "5", {"axis": 0}),
        ("Resize", "0", "", "", "6", {"mode": "linear"}),
    ],
    "sizes computed from numbers": [
        *SHAPES,
        ("Div", "1", np.array(2), {}),
        ("Cast", "2", {"to": 1}),
        ("Mul", "3", floats(1.6), {}),
        ("Floor", "4", {}),
        ("Cast", "5", {"to": 7}),
        ("Concat", integers(2, 4), "6", "6", {"axis": 0}),
        ("Resize", "x", "", "", "7", {"mode": "linear"}),
    ],
    "a number from a shape": [
        *SHAPES,
        ("Cast", "1", {"to": 1}),
        ("Unsqueeze", "2", integers(0), {}),
        ("Div", "x", "3", {}),
    ],
    "a tensor's kind": [("Cast", "x", {"to": 1})],
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("as_nodes", [False, True], ids=["initialisers", "constants"])
def test_operators_equal_onnx_runtime(tmp_path: Path, name: str, as_nodes: bool) -> None:
    file = write(tmp_path / "graph.onnx", GRAPHS[name], as_nodes=as_nodes)
    check(file, weights(2, 4, 9, 13))


def test_axes_as_attributes_equal_onnx_runtime(tmp_path: Path) -> None:
    nodes: list[Node] = [
        ("Unsqueeze", "x", {"axes": [0, 3]}),
        ("Squeeze", "0", {"axes": [0]}),
    ]
    check(write(tmp_path / "graph.onnx", nodes, opset=11), weights(2, 4, 3, 5))
