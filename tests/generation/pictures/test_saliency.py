"""The torch runtime cuts out what rembg cuts out, on the CPU and on CUDA."""

import shutil
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from generation.acceleration.streams import go_beside, to_host, wait_for_stream
from generation.errors import GenerationError
from generation.pictures.cutout import BackgroundRemover
from generation.pictures.framing import (
    composite_on_grey,
    lay_on_grey,
    pixels_of,
    resize_foreground,
)
from generation.pictures.saliency import LAYOUTS, Layout, SaliencyNetwork
from generation.settings import CutoutSettings
from generation.weights.store import ModelPaths
from protocol.errors import SetupError
from scripts.benchmarks.u2net import write_random
from tests.support.onnx_graphs import Node, integers, write

REMBG = CutoutSettings()
TORCH = CutoutSettings(runtime="torch")
needs_cuda = pytest.mark.cuda
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


@pytest.fixture(scope="module")
def remover(embedded_paths: ModelPaths) -> BackgroundRemover:
    return BackgroundRemover(embedded_paths.cutout, TORCH)


def _photo(width: int = 200, height: int = 150, seed: int = 0) -> Image.Image:
    """A disc before a plain wall, with the noise of a camera."""
    random = np.random.default_rng(seed)
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    inside = np.hypot(x - random.uniform(-0.2, 0.2), y - random.uniform(-0.2, 0.2)) < 0.5
    pixels = np.where(inside[..., None], random.integers(0, 120, 3), random.integers(150, 250, 3))
    noise = random.normal(0, 4, (height, width, 3))
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


def _alpha(image: Image.Image) -> NDArray[np.int16]:
    return np.asarray(image.getchannel("A")).astype(np.int16)


def _flat(file: Path) -> Path:
    """Writes a network whose mask has the same value everywhere."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, 32, 32])]
        for name, channels in (("image", 3), ("mask", 1))
    ]
    weight = numpy_helper.from_array(np.zeros((1, 3, 1, 1), dtype=np.float32), "weight")
    bias = numpy_helper.from_array(np.ones(1, dtype=np.float32), "bias")
    nodes = [helper.make_node("Conv", ["image", "weight", "bias"], ["mask"])]
    graph = helper.make_graph(nodes, "flat", *ends, [weight, bias])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), file)
    return file


@pytest.mark.parametrize("size", [(200, 150), (320, 320), (97, 411), (700, 512)])
def test_alpha_is_rembgs(
    embedded_paths: ModelPaths, remover: BackgroundRemover, size: tuple[int, int]
) -> None:
    photo = _photo(*size)
    expected = BackgroundRemover(embedded_paths.cutout, REMBG).remove(photo)
    found = remover.remove(photo)
    assert (found.mode, found.size) == ("RGBA", size)
    assert found.convert("RGB").tobytes() == photo.tobytes()
    difference = np.abs(_alpha(found) - _alpha(expected))
    assert 0.05 < (_alpha(found) > 127).mean() < 0.5
    assert difference.max() <= 8
    assert difference.mean() < 0.05


@pytest.mark.parametrize("size", [(64, 48), (320, 320), (1024, 700)])
def test_noise_is_resampled_as_by_rembg(
    embedded_paths: ModelPaths, remover: BackgroundRemover, size: tuple[int, int]
) -> None:
    random = np.random.default_rng(1)
    noise = Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8))
    expected = BackgroundRemover(embedded_paths.cutout, REMBG).remove(noise)
    difference = np.abs(_alpha(remover.remove(noise)) - _alpha(expected))
    assert difference.max() <= 6
    assert difference.mean() < 0.1


def test_cut_outs_are_framed_alike(embedded_paths: ModelPaths, remover: BackgroundRemover) -> None:
    expected = BackgroundRemover(embedded_paths.cutout, REMBG)(_photo())
    assert remover(_photo()).size == expected.size


def _hand_on(file: Path, side: int) -> Path:
    """Writes a network that hands its input on, which shows how it was resampled and normalised.

    The channels have different weights, so a wrong mean or deviation moves them apart.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    ends = [
        [helper.make_tensor_value_info(end, TensorProto.FLOAT, [1, channels, side, side])]
        for end, channels in (("image", 3), ("mask", 1))
    ]
    values = np.array([1.0, -0.5, 0.25], dtype=np.float32).reshape(1, 3, 1, 1)
    weight = numpy_helper.from_array(values, "weight")
    nodes = [helper.make_node("Conv", ["image", "weight"], ["mask"])]
    graph = helper.make_graph(nodes, "hand on", *ends, [weight])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), file)
    return file


@pytest.mark.parametrize("name", ["u2netp", "isnet-general-use", "birefnet-general"])
def test_a_named_model_is_fed_as_rembg_feeds_it(tmp_path: Path, name: str) -> None:
    file = _hand_on(tmp_path / f"{name}.onnx", LAYOUTS[name].side)
    photo = _photo(300, 300)
    expected = BackgroundRemover(file, REMBG).remove(photo)
    found = BackgroundRemover(file, TORCH).remove(photo)
    assert np.ptp(_alpha(expected)) > 200
    assert np.abs(_alpha(found) - _alpha(expected)).max() <= 1


def test_birefnet_is_a_choice_under_any_name_of_its_file(tmp_path: Path, log: list[str]) -> None:
    by_name = {"model": "birefnet"}
    in_rembg = CutoutSettings.model_validate(by_name)
    in_torch = CutoutSettings.model_validate(by_name | {"runtime": "torch"})
    model = in_torch.model
    assert model is not None
    file = _hand_on(tmp_path / model.file, 1024)
    assert file.stem != model.name
    photo = _photo()
    by_rembg, by_torch = (
        BackgroundRemover(file, way).remove(photo) for way in (in_rembg, in_torch)
    )
    assert np.abs(_alpha(by_torch) - _alpha(by_rembg)).max() <= 1
    # Without the sigmoid and with the side of a U2-Net, it would be another mask.
    same_file = _hand_on(tmp_path / "isnet-general-use.onnx", 1024)
    other = BackgroundRemover(same_file, TORCH).remove(photo)
    assert np.abs(_alpha(by_torch) - _alpha(other)).max() > 8
    assert log == []


def test_places_are_computed_in_float32(tmp_path: Path, log: list[str]) -> None:
    nodes: list[Node] = [
        ("Slice", "x", integers(0), integers(1), integers(1), {}),
        ("Transpose", "x", {"perm": [0, 2, 3, 1]}),
        ("Slice", "1", integers(0), integers(2), integers(3), {}),
        ("Clip", "2", np.float32(0), np.float32(63), {}),
        ("Cast", "3", {"to": 7}),
        ("Squeeze", "0", integers(1), {}),
        ("GatherND", "5", "4", {"batch_dims": 1}),
        ("Unsqueeze", "6", integers(1), {}),
        ("Add", "7", "0", {}),
    ]
    file = write(tmp_path / "deformed.onnx", nodes, channels=3)
    photo, layout = pixels_of(_photo(64, 64)), Layout(64, (0, 0, 0), (1 / 64,) * 3)
    exact = SaliencyNetwork(file, layout)(photo)
    assert log == []
    found = SaliencyNetwork(file, layout, dtype=torch.bfloat16)(photo)
    assert torch.equal(found, exact)
    assert any("runs in float32: deformed.onnx computes places" in line for line in log)


def test_an_image_that_is_cut_out_already_is_only_framed(remover: BackgroundRemover) -> None:
    image = Image.new("RGBA", (100, 100))
    image.paste((10, 200, 30, 255), (0, 0, 41, 41))
    pixels = np.asarray(remover(image))
    assert pixels.shape == (47, 47, 4)
    assert (pixels[..., 3] == 255).sum() == 40 * 40


def test_a_mask_without_an_object_is_an_error(tmp_path: Path) -> None:
    remover = BackgroundRemover(_flat(tmp_path / "flat.onnx"), TORCH)
    with pytest.raises(GenerationError, match=r"no foreground was found.*0\.000%"):
        remover(_photo())


def test_a_black_picture_is_no_error_of_arithmetic(remover: BackgroundRemover) -> None:
    alpha = _alpha(remover.remove(Image.new("RGB", (50, 40))))
    assert alpha.min() >= 0


def test_rembg_is_not_loaded(embedded_paths: ModelPaths, tmp_path: Path) -> None:
    file = shutil.copy(embedded_paths.cutout, tmp_path / "u2netp.onnx")
    program = (
        "import sys; from pathlib import Path; from generation.pictures.cutout import *; "
        f"BackgroundRemover(Path({str(file)!r}), "
        "CutoutSettings(runtime='torch')); "
        "sys.exit('rembg' in sys.modules or 'onnxruntime' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_what_torch_cannot_run_is_left_to_onnx_runtime(tmp_path: Path, log: list[str]) -> None:
    import onnx

    model = onnx.load(_flat(tmp_path / "clever.onnx"))
    # 320 is what rembg feeds; the smooth operator is one that torch is not taught here.
    for end in (model.graph.input[0], model.graph.output[0]):
        for size in end.type.tensor_type.shape.dim[2:]:
            size.dim_value = 320
    model.graph.node[0].output[0] = "hidden"
    model.graph.node.append(onnx.helper.make_node("Softplus", ["hidden"], ["mask"]))
    model.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(-np.ones((1, 3, 1, 1), dtype=np.float32), "weight")
    )
    onnx.save(model, tmp_path / "clever.onnx")
    found = BackgroundRemover(tmp_path / "clever.onnx", TORCH).remove(_photo())
    expected = BackgroundRemover(tmp_path / "clever.onnx", REMBG).remove(_photo())
    assert found.tobytes() == expected.tobytes()
    assert (_alpha(found) > 127).any()
    (line,) = log
    assert "WARNING background removal runs in ONNX Runtime" in line
    assert "Softplus" in line


def test_a_model_that_rembg_reads_otherwise_is_left_to_it(
    embedded_paths: ModelPaths, tmp_path: Path, log: list[str]
) -> None:
    shutil.copy(embedded_paths.cutout, tmp_path / "bria-rmbg.onnx")
    BackgroundRemover(tmp_path / "bria-rmbg.onnx", TORCH)
    assert any("rembg reads bria-rmbg in a way of its own" in line for line in log)


def test_a_missing_and_a_broken_file_are_setup_errors(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"absent\.onnx does not exist"):
        BackgroundRemover(tmp_path / "absent.onnx", TORCH)
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(SetupError, match=r"broken\.onnx could not be loaded"):
        BackgroundRemover(tmp_path / "broken.onnx", TORCH)


def test_bfloat16_cuts_out_the_same_object(
    embedded_paths: ModelPaths, remover: BackgroundRemover
) -> None:
    rough = BackgroundRemover(
        embedded_paths.cutout, CutoutSettings(runtime="torch", dtype="bfloat16")
    )
    difference = np.abs(_alpha(rough.remove(_photo())) - _alpha(remover.remove(_photo())))
    assert 0 < difference.mean() < 2


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("skip_plain", [False, True])
def test_a_drawn_picture_is_framed_where_it_is_as_a_photo_is(
    remover: BackgroundRemover, embedded_paths: ModelPaths, device: str, skip_plain: bool
) -> None:
    if device != "cpu":
        remover = BackgroundRemover(embedded_paths.cutout, TORCH, device)
    photo = _photo()
    found = remover.framed(pixels_of(photo).to(device), skip_plain=skip_plain)
    assert found.device.type == device
    cutout = remover.remove(photo, skip_plain=skip_plain)
    assert found.cpu().numpy().tobytes() == resize_foreground(cutout).tobytes()
    assert (
        lay_on_grey(found).cpu().numpy().tobytes()
        == composite_on_grey(remover(photo, skip_plain=skip_plain)).tobytes()
    )


@needs_cuda
def test_cuda_frames_what_the_cpu_frames(
    remover: BackgroundRemover, embedded_paths: ModelPaths
) -> None:
    on_cuda = BackgroundRemover(embedded_paths.cutout, TORCH, "cuda")
    for seed in range(4):
        photo = _photo(seed=seed)
        found, expected = (_alpha(way.remove(photo)) for way in (on_cuda, remover))
        assert np.abs(found - expected).max() <= 8
        both, either = (found > 127) & (expected > 127), (found > 127) | (expected > 127)
        assert both.sum() / either.sum() > 0.995
        assert on_cuda(photo).size == remover(photo).size


@needs_cuda
def test_pictures_of_another_thread_are_cut_out_whole(tmp_path: Path) -> None:
    write_random(tmp_path / "u2netp.onnx", "u2netp", side=128)
    remover = BackgroundRemover(tmp_path / "u2netp.onnx", TORCH, "cuda")
    photos = [pixels_of(_photo(seed=seed)) for seed in range(8)]
    expected = [remover(Image.fromarray(photo.numpy())).tobytes() for photo in photos]

    def draw(photo: torch.Tensor) -> torch.Tensor:
        picture = photo.to("cuda")
        torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]
        picture = picture.clone()
        wait_for_stream(picture.device)
        return picture

    def cut_out(drawn: Future[torch.Tensor]) -> bytes:
        framed = remover.framed(drawn.result())
        return to_host(framed).tobytes()

    with (
        ThreadPoolExecutor(1, initializer=go_beside, initargs=("cuda",)) as drawing,
        ThreadPoolExecutor(1, initializer=go_beside, initargs=("cuda",)) as cutting,
    ):
        found = [cutting.submit(cut_out, drawing.submit(draw, photo)) for photo in photos]
        assert [future.result() for future in found] == expected


@needs_cuda
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 0.5), (torch.bfloat16, 2.0)])
def test_cuda_finds_what_the_cpu_finds(
    tmp_path: Path, dtype: torch.dtype, tolerance: float, log: list[str]
) -> None:
    write_random(tmp_path / "u2netp.onnx", "u2netp", side=128)
    photo = pixels_of(_photo())
    expected = SaliencyNetwork(tmp_path / "u2netp.onnx", Layout())(photo)
    network = SaliencyNetwork(tmp_path / "u2netp.onnx", Layout(), "cuda", dtype)
    for _ in range(3):
        difference = network(photo).cpu().double() - expected.double()
        assert difference.abs().mean() < tolerance
    assert log == []


@needs_cuda
def test_the_recording_gives_what_eager_gives(tmp_path: Path) -> None:
    write_random(tmp_path / "u2netp.onnx", "u2netp", side=128)
    network = SaliencyNetwork(tmp_path / "u2netp.onnx", Layout(), "cuda", torch.bfloat16)
    random = torch.Generator().manual_seed(0)
    for _ in range(3):
        picture = torch.randint(0, 256, (1, 3, 128, 128), generator=random).float().cuda()
        with torch.no_grad():
            eager = network._mask_of_square(picture)
        recorded = network._mask(picture)
        torch.cuda.synchronize()
        assert (recorded - eager).abs().mean() < 1


@needs_cuda
def test_other_work_on_the_device_changes_nothing(tmp_path: Path) -> None:
    write_random(tmp_path / "u2netp.onnx", "u2netp", side=128)
    remover = BackgroundRemover(tmp_path / "u2netp.onnx", TORCH, "cuda")
    photos = [_photo(seed=seed) for seed in range(6)]
    alone = [_alpha(remover.remove(photo)) for photo in photos]
    busy = torch.randn(4096, 4096, device="cuda")
    ended = threading.Event()

    def keep_busy() -> None:
        while not ended.is_set():
            (busy @ busy).sum().item()

    other = threading.Thread(target=keep_busy)
    other.start()
    try:
        together = [_alpha(remover.remove(photo)) for photo in photos]
    finally:
        ended.set()
        other.join()
    for found, expected in zip(together, alone, strict=True):
        assert np.abs(found - expected).max() <= 1
