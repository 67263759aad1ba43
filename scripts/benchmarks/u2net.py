"""U2-Net (Qin et al. 2020) and IS-Net (Qin et al. 2022) with random weights, as ONNX files.

Same layers, sizes and operators as rembg's files of these names: for measuring speed, not pictures.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

Model = Literal["isnet-general-use", "u2netp"]
_Block = tuple[int, int, int]
"""Channels in, between and out of a residual U-block."""


@dataclass(frozen=True)
class _Shape:
    """Blocks from the finest level to the coarsest; the last two of the encoder are dilated."""

    side: int
    stem: int | None
    encoder: tuple[_Block, ...]
    decoder: tuple[_Block, ...]


_SHAPES: dict[Model, _Shape] = {
    "isnet-general-use": _Shape(
        side=1024,
        stem=64,
        encoder=(
            (64, 32, 64),
            (64, 32, 128),
            (128, 64, 256),
            (256, 128, 512),
            (512, 256, 512),
            (512, 256, 512),
        ),
        decoder=((128, 16, 64), (256, 32, 64), (512, 64, 128), (1024, 128, 256), (1024, 256, 512)),
    ),
    "u2netp": _Shape(
        side=320,
        stem=None,
        encoder=((3, 16, 64), *[(64, 16, 64)] * 5),
        decoder=((128, 16, 64),) * 5,
    ),
}
_HEIGHTS = (7, 6, 5, 4)
"""Layers of the blocks of the finest four levels; below, blocks are dilated instead of deep."""

_NOISE, _SLOPE, _RADIUS = 0.3, 40.0, 0.6
"""The masks show a disc of this radius (1: half a side), its edge this steep, with such noise."""


def write_random(path: Path, model: Model, seed: int = 0, *, side: int | None = None) -> None:
    """Writes a network whose masks are a noisy disc, whatever it sees.

    Args:
        path: The file to write.
        model: Which network.
        seed: Seed of the weights.
        side: Pixels per side of the input, a multiple of 64; those of rembg's file if None.
    """
    import onnx
    from onnx import TensorProto, helper

    shape = _SHAPES[model]
    side = side or shape.side
    graph = _Graph(np.random.default_rng(seed))
    masks = _network(graph, shape, side)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, side, side])
        for name, channels in [("image", 3), *((mask, 1) for mask in masks)]
    ]
    made = helper.make_graph(graph.nodes, model, ends[:1], ends[1:], graph.weights)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(made, opset_imports=opset, ir_version=9), path)


@dataclass
class _Graph:
    """Nodes and weights so far; every method adds a node and returns its output's name."""

    random: np.random.Generator
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, values: Any) -> str:
        from onnx import numpy_helper

        name = f"constant{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def conv(
        self,
        x: str,
        inputs: int,
        outputs: int,
        *,
        size: int = 3,
        step: int = 1,
        reach: int = 1,
        gain: float = 2.0,
    ) -> str:
        """A convolution into which its normalisation is folded: weights as He et al. 2015."""
        scale = np.float32((gain / (inputs * size * size)) ** 0.5)
        shape = (outputs, inputs, size, size)
        weight = self.constant(self.random.standard_normal(shape, dtype=np.float32) * scale)
        bias = self.constant(np.zeros(outputs, dtype=np.float32))
        margin = [reach * (size // 2)] * 4
        return self.node(
            "Conv",
            *(x, weight, bias),
            kernel_shape=[size, size],
            strides=[step, step],
            dilations=[reach, reach],
            pads=margin,
        )

    def rebnconv(
        self, x: str, inputs: int, outputs: int, *, reach: int = 1, gain: float = 2.0
    ) -> str:
        """Convolution, normalisation, ReLU: the layer that everything is made of."""
        return self.node("Relu", self.conv(x, inputs, outputs, reach=reach, gain=gain))

    def halve(self, x: str) -> str:
        return self.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)

    def resize_like(self, x: str, other: str) -> str:
        """Bilinear, to the height and width of another tensor."""
        first, middle, end = (self.constant(np.array([n], dtype=np.int64)) for n in (0, 2, 4))
        channels = self.node("Slice", self.node("Shape", x), first, middle)
        size = self.node("Slice", self.node("Shape", other), middle, end)
        sizes = self.node("Concat", channels, size, axis=0)
        return self.node(
            *("Resize", x, "", "", sizes),
            mode="linear",
            coordinate_transformation_mode="pytorch_half_pixel",
        )

    def concat(self, *parts: str) -> str:
        return self.node("Concat", *parts, axis=1)


def _network(graph: _Graph, shape: _Shape, side: int) -> list[str]:
    """Adds the whole network; returns its masks: IS-Net's six, U2-Net's after their joint one."""
    x = "image"
    if shape.stem is not None:
        x = graph.conv(x, 3, shape.stem, step=2)
    levels = []
    for level, block in enumerate(shape.encoder):
        x = _block(graph, graph.halve(x) if level else x, level, block)
        levels.append(x)
    features = [levels.pop()]
    for level, block in reversed(list(enumerate(shape.decoder))):
        skipped = levels.pop()
        x = graph.concat(graph.resize_like(features[0], skipped), skipped)
        features.insert(0, _block(graph, x, level, block))
    widths = [block[2] for block in (*shape.decoder, shape.encoder[-1])]
    sides = [graph.conv(x, width, 1) for x, width in zip(features, widths, strict=True)]
    if shape.stem is None:
        sides = [sides[0], *(graph.resize_like(x, sides[0]) for x in sides[1:])]
        sides.insert(0, graph.conv(graph.concat(*sides), 6, 1, size=1))
    else:
        sides = [graph.resize_like(x, "image") for x in sides]
    return [graph.node("Sigmoid", _disc(graph, x, side)) for x in sides]


def _block(graph: _Graph, x: str, level: int, channels: _Block) -> str:
    """Adds a residual U-block: a small U-Net around which its first layer's result is led."""
    inputs, width, outputs = channels
    # Both ends halve the power, so that their sum does not grow from block to block.
    entry = graph.rebnconv(x, inputs, outputs, gain=1.0)
    dilated = level >= len(_HEIGHTS)
    reaches = (1, 2, 4, 8) if dilated else (1,) * (_HEIGHTS[level] - 1) + (2,)
    down, before = [], outputs
    x = entry
    for place, reach in enumerate(reaches):
        # The last two layers are at the same scale.
        if not dilated and 0 < place < len(reaches) - 1:
            x = graph.halve(x)
        x = graph.rebnconv(x, before, width, reach=reach)
        down.append(x)
        before = width
    x = down.pop()
    for place, (skipped, reach) in reversed(list(enumerate(zip(down, reaches, strict=False)))):
        if place < len(down) - 1 and not dilated:
            x = graph.resize_like(x, skipped)
        x = graph.rebnconv(
            graph.concat(x, skipped),
            2 * width,
            width if place else outputs,
            reach=reach,
            gain=2.0 if place else 1.0,
        )
    return graph.node("Add", x, entry)


def _disc(graph: _Graph, logits: str, side: int) -> str:
    """Adds a paraboloid to logits, as a row and a column."""
    line = _SLOPE * (_RADIUS**2 / 2 - np.linspace(-1, 1, side, dtype=np.float32) ** 2)
    logits = graph.node("Mul", logits, graph.constant(np.float32(_NOISE)))
    logits = graph.node("Add", logits, graph.constant(line[None, None, :, None]))
    return graph.node("Add", logits, graph.constant(line[None, None, None, :]))
