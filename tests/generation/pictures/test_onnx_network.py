"""A network from an ONNX file gives in torch what it gives in ONNX Runtime, or says why not."""

from pathlib import Path

import pytest
import torch

from generation.pictures.onnx_network import OnnxError, OnnxNetwork
from generation.pictures.saliency import Layout, SaliencyNetwork
from generation.weights.store import ModelPaths
from scripts.benchmarks.u2net import write_random
from tests.support.onnx_graphs import Node, check, floats, weights, write

CONV: list[Node] = [("Conv", "x", weights(6, 4, 3, 3), weights(6), {})]


def test_the_shipped_network_equals_onnx_runtime(embedded_paths: ModelPaths) -> None:
    check(embedded_paths.cutout, weights(1, 3, 320, 320), 1e-4)


@pytest.mark.parametrize("side", [64, 128])
def test_u2net_equals_onnx_runtime(tmp_path: Path, side: int) -> None:
    write_random(tmp_path / "u2netp.onnx", "u2netp", side=side)
    network = OnnxNetwork(tmp_path / "u2netp.onnx")
    assert network.input_shape == (1, 3, side, side)
    check(tmp_path / "u2netp.onnx", weights(1, 3, side, side), 1e-4)


def test_isnet_equals_onnx_runtime(tmp_path: Path) -> None:
    write_random(tmp_path / "isnet.onnx", "isnet-general-use", side=64)
    check(tmp_path / "isnet.onnx", weights(1, 3, 64, 64), 1e-4)


def test_only_what_the_first_output_needs_is_kept(tmp_path: Path) -> None:
    import onnx

    write_random(tmp_path / "u2netp.onnx", "u2netp", side=64)
    network = OnnxNetwork(tmp_path / "u2netp.onnx")
    made = sum(node.op_type == "Sigmoid" for node in onnx.load(tmp_path / "u2netp.onnx").graph.node)
    kept = sum(step.operator == "Sigmoid" for step in network._steps)
    assert (made, kept) == (7, 1)


def test_weights_follow_the_module(tmp_path: Path) -> None:
    write_random(tmp_path / "u2netp.onnx", "u2netp", side=64)
    network = OnnxNetwork(tmp_path / "u2netp.onnx")
    x = torch.from_numpy(weights(1, 3, 64, 64))
    with torch.no_grad():
        exact = network(x)
        network.to(torch.bfloat16)
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        rough = network(x.to(torch.bfloat16, memory_format=torch.channels_last))
    assert rough.dtype == torch.bfloat16
    assert {buffer.dtype for buffer in network.buffers()} == {torch.bfloat16}
    assert 0 < (rough.float() - exact).abs().max() < 0.1


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([("Softplus", "x", {})], r"operators \['Softplus'\] are not supported"),
        (
            [("Resize", "x", "", floats(1, 1, 2, 2), {"mode": "cubic"})],
            "Resize.*cubic interpolation",
        ),
        ([("Resize", "x", "", floats(1, 2, 2, 2), {"mode": "linear"})], "only height and width"),
        (
            [("Conv", "x", weights(2, 4, 3, 3), {"auto_pad": "SAME_UPPER"})],
            "Conv.*SAME_UPPER",
        ),
        ([("Cast", "x", {"to": 3})], "Cast.*data type 3"),
        ([("Conv", "x", weights(2, 3, 3, 3), {})], "Conv"),
        ([("Shape", "x", {}), ("Identity", "0", {})], "does not depend on its input"),
    ],
)
def test_what_is_not_supported_is_said(tmp_path: Path, nodes: list[Node], message: str) -> None:
    file = write(tmp_path / "graph.onnx", nodes)
    with pytest.raises(OnnxError, match=message):
        OnnxNetwork(file).fix((1, 4, 9, 13))


def test_operators_of_old_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OnnxError, match=r"version \[10\].*at least 11"):
        OnnxNetwork(write(tmp_path / "graph.onnx", [("Relu", "x", {})], opset=10))


@pytest.mark.parametrize("content", [b"", b"no model", bytes(range(256)) * 8])
def test_what_is_no_network_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.onnx").write_bytes(content)
    with pytest.raises(OnnxError, match=r"broken\.onnx.*damaged"):
        OnnxNetwork(tmp_path / "broken.onnx")


def test_a_file_that_was_cut_off_is_said(tmp_path: Path) -> None:
    write_random(tmp_path / "u2netp.onnx", "u2netp", side=64)
    whole = (tmp_path / "u2netp.onnx").read_bytes()
    for share in (0.01, 0.5, 0.999):
        (tmp_path / "cut.onnx").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(OnnxError):
            OnnxNetwork(tmp_path / "cut.onnx")


def test_weights_of_the_wrong_size_are_said(tmp_path: Path) -> None:
    import onnx

    model = onnx.load(write(tmp_path / "graph.onnx", CONV))
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-8]
    onnx.save(model, tmp_path / "graph.onnx")
    with pytest.raises(OnnxError, match=r"values of '0\.1' are damaged"):
        OnnxNetwork(tmp_path / "graph.onnx")


def test_other_files_are_not_opened(tmp_path: Path) -> None:
    import onnx

    model = onnx.load(write(tmp_path / "graph.onnx", CONV))
    onnx.save(
        model,
        tmp_path / "graph.onnx",
        save_as_external_data=True,
        location="elsewhere.bin",
        size_threshold=0,
    )
    assert (tmp_path / "elsewhere.bin").is_file()
    with pytest.raises(OnnxError, match="another file, which is not opened"):
        OnnxNetwork(tmp_path / "graph.onnx")


def test_a_value_that_nothing_makes_is_said(tmp_path: Path) -> None:
    file = write(tmp_path / "graph.onnx", [("Add", "x", "nothing", {})])
    with pytest.raises(OnnxError, match=r"nothing in the file makes the values \['nothing'\]"):
        OnnxNetwork(file)


def test_an_input_without_a_shape_is_no_picture(tmp_path: Path) -> None:
    import onnx

    file = write(tmp_path / "a.onnx", [("Relu", "x", {})])
    model = onnx.load(file)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, file)
    with pytest.raises(OnnxError, match=r"shape \(\), expected \(1, 3, side, side\)"):
        SaliencyNetwork(file, Layout(), "cpu")


@pytest.mark.parametrize(("rows", "columns"), [(320, 512), (-5, -5)])
def test_an_input_that_is_no_square_is_no_picture(tmp_path: Path, rows: int, columns: int) -> None:
    import onnx

    file = write(tmp_path / "a.onnx", [("Relu", "x", {})])
    model = onnx.load(file)
    source = model.graph.input[0]
    shaped = onnx.helper.make_tensor_value_info(source.name, 1, [1, 3, rows, columns])
    source.CopyFrom(shaped)
    onnx.save(model, file)
    with pytest.raises(OnnxError, match="the input has shape"):
        SaliencyNetwork(file, Layout(), "cpu")


def test_a_constant_without_a_name_is_damage(tmp_path: Path) -> None:
    import onnx

    file = write(tmp_path / "a.onnx", [("Relu", "x", {})])
    model = onnx.load(file)
    model.graph.node.append(onnx.NodeProto(op_type="Constant"))
    onnx.save(model, file)
    with pytest.raises(OnnxError, match="is damaged"):
        OnnxNetwork(file)
