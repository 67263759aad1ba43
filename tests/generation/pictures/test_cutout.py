"""Background removal through rembg: from any model file, and only where it is needed."""

import copy
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from generation.errors import GenerationError
from generation.pictures.cutout import BackgroundRemover
from generation.settings import CutoutSettings
from generation.weights.store import ModelPaths
from protocol.errors import SetupError

SETTINGS = CutoutSettings()
BALL, WALL = (210, 30, 60), (220, 220, 215)


@pytest.fixture(scope="module")
def remover(embedded_paths: ModelPaths) -> BackgroundRemover:
    return BackgroundRemover(embedded_paths.cutout, SETTINGS)


def _photo() -> Image.Image:
    """A ball without shades in front of a plain wall."""
    photo = Image.new("RGB", (200, 150), WALL)
    ImageDraw.Draw(photo).ellipse((60, 35, 140, 115), fill=BALL)
    return photo


def _constant_mask(file: Path, value: float) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    mask = numpy_helper.from_array(np.full((1, 1, 320, 320), value, dtype=np.float32), "constant")
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["largest"], keepdims=1),
        helper.make_node("Sub", ["largest", "largest"], ["zero"]),
        helper.make_node("Add", ["zero", "constant"], ["mask"]),
    ]
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 320, 320])]
        for name, channels in (("image", 3), ("mask", 1))
    ]
    graph = helper.make_graph(nodes, "constant", *ends, [mask])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), file)


def test_a_photo_becomes_a_framed_cut_out(remover: BackgroundRemover) -> None:
    cutout = remover(_photo())
    alpha = np.asarray(cutout)[..., 3]
    assert cutout.mode == "RGBA"
    assert cutout.width == cutout.height
    assert 0.1 < (alpha > 127).mean() < SETTINGS.foreground_ratio**2
    assert not alpha[[0, -1]].any()
    assert not alpha[:, [0, -1]].any()


def test_colours_under_a_soft_edge_are_those_of_the_photo(remover: BackgroundRemover) -> None:
    pixels = np.asarray(remover(_photo()))
    soft = (pixels[..., 3] > 0) & (pixels[..., 3] < 255)
    assert {tuple(colour) for colour in pixels[soft][:, :3].tolist()} == {BALL, WALL}


def test_an_image_that_is_cut_out_already_is_only_framed(remover: BackgroundRemover) -> None:
    image = Image.new("RGBA", (100, 100))
    image.paste((10, 200, 30, 255), (0, 0, 41, 41))
    pixels = np.asarray(remover(image))
    assert pixels.shape == (47, 47, 4)
    assert (pixels[..., 3] == 255).sum() == 40 * 40


def test_an_opaque_rgba_image_still_loses_its_background(remover: BackgroundRemover) -> None:
    opaque, plain = remover(_photo().convert("RGBA")), remover(_photo())
    assert opaque.tobytes() == plain.tobytes()


def test_the_given_image_is_left_as_it_was(remover: BackgroundRemover) -> None:
    photo = _photo()
    remover(photo)
    assert photo.mode == "RGB"
    assert photo.tobytes() == _photo().tobytes()


def _without_network(remover: BackgroundRemover) -> BackgroundRemover:
    def refuse(_picture: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the network was run")

    twin = copy.copy(remover)
    twin._mask = refuse
    return twin


def test_a_plain_border_needs_no_network_if_it_may_be_skipped(remover: BackgroundRemover) -> None:
    alpha = np.asarray(_without_network(remover)(_photo(), skip_plain=True))[..., 3]
    # The ball is 81 pixels wide; its box, without the last row, takes 85 % of the side.
    assert alpha.shape == (94, 94)
    assert abs((alpha > 127).sum() / (np.pi * 40.5**2) - 1) < 0.03
    with pytest.raises(AssertionError, match="the network was run"):
        _without_network(remover)(_photo())


def test_the_network_decides_where_the_border_is_not_plain(remover: BackgroundRemover) -> None:
    photo = _photo()
    photo.paste((90, 60, 40), (0, 120, 200, 150))  # a table in front of the wall
    assert remover(photo, skip_plain=True).tobytes() == remover(photo).tobytes()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_mask_without_an_object_is_an_error(tmp_path: Path, value: float) -> None:
    _constant_mask(tmp_path / "flat.onnx", value)
    remover = BackgroundRemover(tmp_path / "flat.onnx", SETTINGS)
    with pytest.raises(GenerationError, match=r"no foreground was found.*0\.000%"):
        remover(_photo())


def test_a_speck_is_no_object(remover: BackgroundRemover) -> None:
    image = Image.new("RGBA", (200, 200))
    image.paste((255, 255, 255, 255), (100, 100, 105, 105))
    with pytest.raises(GenerationError, match=r"0\.062%.*0\.100%"):
        remover(image)


def test_a_file_named_as_one_of_rembgs_models_is_read_as_that_model(
    embedded_paths: ModelPaths, tmp_path: Path, remover: BackgroundRemover
) -> None:
    # u2netp has the shipped network's layout; a wrong folder would start a download.
    shutil.copy(embedded_paths.cutout, tmp_path / "u2netp.onnx")
    named = BackgroundRemover(tmp_path / "u2netp.onnx", SETTINGS)
    assert named(_photo()).tobytes() == remover(_photo()).tobytes()


def test_the_environment_is_left_as_it_was(
    embedded_paths: ModelPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("U2NET_HOME", "/elsewhere")
    BackgroundRemover(embedded_paths.cutout, SETTINGS)
    assert os.environ["U2NET_HOME"] == "/elsewhere"
    monkeypatch.delenv("U2NET_HOME")
    BackgroundRemover(embedded_paths.cutout, SETTINGS)
    assert "U2NET_HOME" not in os.environ


def test_a_provider_that_is_not_installed_is_skipped_and_said(
    embedded_paths: ModelPaths, log: list[str]
) -> None:
    providers = ("NoSuchExecutionProvider", "CPUExecutionProvider")
    remover = BackgroundRemover(
        embedded_paths.cutout, CutoutSettings(providers=providers, threads=1)
    )
    assert remover(_photo()).mode == "RGBA"
    assert any("WARNING" in line and "CPUExecutionProvider" in line for line in log)


def test_a_missing_and_a_broken_file_are_setup_errors(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"absent\.onnx does not exist"):
        BackgroundRemover(tmp_path / "absent.onnx", SETTINGS)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(SetupError, match=r"broken\.onnx could not be loaded"):
        BackgroundRemover(tmp_path / "broken.onnx", SETTINGS)
