"""The benchmarks' random background networks have the true sizes, and masks with something in."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generation.pictures.cutout import BackgroundRemover
from generation.settings import CutoutSettings
from scripts.benchmarks.u2net import write_random


def _noise() -> Image.Image:
    random = np.random.default_rng(0)
    return Image.fromarray(random.integers(0, 256, (320, 320, 3), dtype=np.uint8))


def _conv_weights(file: Path) -> tuple[int, int]:
    """Returns the numbers of convolutions, and of their weights and biases."""
    import onnx

    graph = onnx.load(file).graph
    nodes = [node for node in graph.node if node.op_type == "Conv"]
    names = {name for node in nodes for name in node.input[1:]}
    sizes = (int(np.prod(tensor.dims)) for tensor in graph.initializer if tensor.name in names)
    return len(nodes), sum(sizes)


def test_u2netp_has_as_many_weights_as_rembgs(tmp_path: Path) -> None:
    # Counted in rembg's u2netp.onnx, where the normalisations are folded too.
    write_random(tmp_path / "u2netp.onnx", "u2netp")
    assert _conv_weights(tmp_path / "u2netp.onnx") == (119, 1_125_485)


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_random(tmp_path / name, "u2netp", seed, side=64)
    first, same, other = ((tmp_path / name).read_bytes() for name in "abc")
    assert first == same != other


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_mask_of_u2netp_is_a_disc(tmp_path: Path, seed: int) -> None:
    file = tmp_path / "u2netp-320.onnx"  # No name of rembg's: its side is the file's.
    write_random(file, "u2netp", seed, side=320)
    _require_disc(file)


def test_isnet_has_44_million_weights_and_its_mask_is_a_disc(tmp_path: Path) -> None:
    file = tmp_path / "isnet-128.onnx"
    write_random(file, "isnet-general-use", side=128)
    convolutions, weights = _conv_weights(file)
    assert convolutions == 119
    assert 43.9e6 < weights < 44.1e6
    _require_disc(file)


def _require_disc(file: Path) -> None:
    cutout = BackgroundRemover(file, CutoutSettings(runtime="torch")).remove(_noise())
    alpha = np.asarray(cutout.getchannel("A"))
    assert 0.15 < (alpha > 127).mean() < 0.5
    assert alpha[160, 160] > 200
    assert not alpha[[0, -1]].any()
    assert not alpha[:, [0, -1]].any()
