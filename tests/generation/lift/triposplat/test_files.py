"""A model's files are loaded strictly; errors name file, key and values."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from generation.lift.triposplat import PUBLIC, Sampler, TripoSplat, TripoSplatConfig
from generation.lift.triposplat import model as model_module
from generation.lift.triposplat.model import PUBLIC_DECODER_NAME, PUBLIC_FLOW_NAME
from generation.weights.checkpoint import CheckpointError


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    copied = tmp_path / "model"
    copied.mkdir()
    for name in ("config.json", "flow.safetensors", "decoder.safetensors"):
        shutil.copy(golden / "tiny" / name, copied / name)
    return copied


def refused(folder: Path | str, *said: str) -> None:
    started = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        TripoSplat.from_pretrained(folder)
    assert time.monotonic() - started < 2.0
    assert caught.value.fix
    for words in said:
        assert words in caught.value.problem


def change(folder: Path, path: str, value: object) -> None:
    file = folder / "config.json"
    config: dict[str, Any] = json.loads(file.read_text())
    *groups, key = path.split(".")
    place = config
    for group in groups:
        place = place.setdefault(group, {})
    if value is None:
        place.pop(key)
    else:
        place[key] = value
    file.write_text(json.dumps(config))


def change_state(folder: Path, name: str, edit: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / name)
    edit(state)
    save_file(state, folder / name)


def test_a_saved_model_is_the_same_model(tiny: TripoSplat, tmp_path: Path) -> None:
    tiny.save_pretrained(tmp_path / "saved")
    again = TripoSplat.from_pretrained(tmp_path / "saved")
    assert again.config == tiny.config
    for (key, value), (other, saved) in zip(
        tiny.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert key == other
        assert torch.equal(value, saved)
    assert not any(weight.requires_grad for weight in again.parameters())
    assert not again.training


def test_weights_take_the_number_format_that_is_asked_for(folder: Path) -> None:
    model = TripoSplat.from_pretrained(folder, dtype=torch.bfloat16)
    assert {value.dtype for value in model.state_dict().values()} == {torch.bfloat16}
    assert model.flow.positions.dtype == torch.bfloat16


def test_without_a_config_the_files_are_the_public_ones(folder: Path) -> None:
    (folder / "config.json").unlink()
    refused(folder, str(folder), f"holds no {PUBLIC_FLOW_NAME}")
    for name, public in (
        ("flow.safetensors", PUBLIC_FLOW_NAME),
        ("decoder.safetensors", PUBLIC_DECODER_NAME),
    ):
        (folder / public).parent.mkdir(exist_ok=True)
        (folder / name).rename(folder / public)
    refused(folder, PUBLIC_FLOW_NAME, "shift_table (found (1, 2, 40), expected (1, 2, 1024))")


@pytest.mark.parametrize("has_config", [True, False])
def test_files_of_the_hub_are_those_of_the_layout_that_it_has(
    folder: Path, monkeypatch: pytest.MonkeyPatch, has_config: bool
) -> None:
    asked: list[tuple[str, str | None]] = []

    def download(repo: str, name: str, revision: str | None, *, required: bool) -> Path | None:
        assert repo == "someone/splats"
        assert required == (name != "config.json")
        asked.append((name, revision))
        if name == "config.json":
            return folder / name if has_config else None
        return folder / ("flow.safetensors" if "decoder" not in name else "decoder.safetensors")

    monkeypatch.setattr(model_module, "download", download)
    if has_config:
        TripoSplat.from_pretrained("someone/splats", revision="abc")
        names = ["flow.safetensors", "decoder.safetensors"]
    else:
        refused("someone/splats", "expected (1, 2, 1024)")
        names = [PUBLIC_FLOW_NAME, PUBLIC_DECODER_NAME]
    assert [name for name, _ in asked] == ["config.json", *names]
    assert {revision for _, revision in asked} == {"abc" if has_config else None}


def test_what_is_neither_a_folder_nor_a_hub_id(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "is neither a folder nor a hub id")


@pytest.mark.parametrize("name", ["flow.safetensors", "decoder.safetensors"])
def test_a_file_that_is_missing_truncated_or_of_another_kind(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    for kept in (0, 7, 1000, len(data) - 1):
        (folder / name).write_bytes(data[:kept])
        refused(folder, str(folder / name), f"({kept} bytes)")
    torch.save({"weight": torch.zeros(2)}, folder / name)
    refused(folder, str(folder / name))
    (folder / name).unlink()
    refused(folder, str(folder), f"holds no {name}")


def test_tensors_that_are_missing_surplus_or_misshapen(folder: Path) -> None:
    def spoil(state: dict[str, Tensor]) -> None:
        state["bogus"] = torch.zeros(2, 3)
        state["blocks.1.attn.q_norm.gamma"] = torch.zeros(2, 21)
        del state["repo_layers.0.freqs_2"]

    change_state(folder, "flow.safetensors", spoil)
    refused(
        folder,
        str(folder / "flow.safetensors"),
        "1 missing: repo_layers.0.freqs_2 (expected (4,))",
        "1 surplus: bogus (found (2, 3))",
        "1 misshapen: blocks.1.attn.q_norm.gamma (found (2, 21), expected (2, 20))",
    )


def test_buffers_of_the_decoder_are_required(folder: Path) -> None:
    change_state(folder, "decoder.safetensors", lambda state: state.pop("gs.base_offset_scale"))
    refused(folder, "1 missing: gs.base_offset_scale (expected ())")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("flow", None, "flow is missing"),
        ("gaussian", 3, "gaussian is 3, expected"),
        ("flow.width", None, "flow.width is missing"),
        ("flow.width", "40", "flow.width is '40', expected a valid integer"),
        ("flow.width", 10**9, "flow.width is 1000000000, expected less than or equal to 16384"),
        ("flow.width", 7, "flow.width is 7, expected greater than or equal to 8"),
        ("flow.time_sinusoid.size", 3, "flow.time_sinusoid.size is 3, expected a multiple of 2"),
        ("flow.joint_blocks", 0, "flow.joint_blocks is 0, expected greater than or equal to 1"),
        ("flow.joint_blocks", True, "flow.joint_blocks is True, expected a valid integer"),
        ("flow.heads", 4, "flow.head_dim is 20, expected an even number, 40 / 4"),
        ("flow.dropout", 0.1, "flow.dropout is 0.1, expected no such key"),
        ("flow.rotary_hidden", 8, "flow.rotary_hidden is 8, expected 5"),
        ("flow.positions.engine", "random", "flow.positions.engine is 'random', expected 'torch"),
        ("flow.positions.unused_tail", 0, "flow.positions.unused_tail is 0, expected 4"),
        ("flow.time_sinusoid.turn", "2 pi", "flow.time_sinusoid.turn is '2 pi', expected no such"),
        ("octree.qk_norm", False, "octree.qk_norm is False, expected True"),
        ("octree.levels", 11, "octree.levels is 11, expected less than or equal to 10"),
        ("octree.context_channels", 4, "octree.context_channels is 4, expected 8"),
        ("gaussian.outputs", 64, "gaussian.outputs is 64, expected 60"),
        ("gaussian.layout._xyz", [0, 3], "gaussian.layout is {'_xyz': [0, 3]"),
        ("gaussian.factors", {"_size": 1}, "is '_size', expected '_xyz'"),
        ("gaussian.opacity_bias", 1, "gaussian.opacity_bias is 1, expected less than 1"),
        ("gaussian.scale_activation", "exp", "scale_activation is 'exp', expected 'softplus'"),
    ],
)
def test_a_config_of_another_model(folder: Path, path: str, value: object, said: str) -> None:
    change(folder, path, value)
    refused(folder, f"{folder / 'config.json'}: ", said)


@pytest.mark.parametrize("content", ["[", "[]", '{"flow": NaN}', "[" * 50_000])
def test_a_config_that_is_none(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    refused(folder, str(folder / "config.json"))


def test_a_config_that_was_written_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLIC.as_dict()))
    assert TripoSplatConfig.load(tmp_path / "config.json") == PUBLIC


@pytest.fixture(scope="module")
def numbers_of(golden: Path) -> Callable[[TripoSplat], list[Tensor]]:
    def numbers(model: TripoSplat) -> list[Tensor]:
        """One step, one octree pass and the Gaussians of a few points."""
        generator = torch.Generator().manual_seed(0)
        features = (
            torch.randn(1, 3, 24, generator=generator),
            torch.randn(1, 3, 12, generator=generator),
        )
        run = Sampler(model.flow, *features, steps=2)
        latent = run.step(run.step(run.start(generator))).latent
        points = torch.rand(1, 9, 3, generator=generator)
        logits = model.decoder.octree(points, torch.tensor([4]), latent)
        made = model.decoder.gs.gaussians(points[0], model.decoder.gs(points, latent)[0])
        return [latent, logits, *vars(made).values()]

    return numbers


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("flow.block_norm_eps", 0.1),
        ("flow.final_norm_eps", 0.1),
        ("flow.rotary_norm_eps", 0.1),
        ("flow.time_sinusoid.period", 100),
        ("flow.time_sinusoid.factor", 10),
        ("flow.positions.seed", 5),
        ("flow.positions.octaves", 3),
        ("octree.block_norm_eps", 0.1),
        ("octree.final_norm_eps", 0.1),
        ("octree.level_sinusoid.period", 100),
        ("octree.positions.octaves", 3),
        ("gaussian.block_norm_eps", 0.1),
        ("gaussian.final_norm_eps", 0.1),
        ("gaussian.positions.octaves", 3),
        ("gaussian.perturbation_size", 1),
        ("gaussian.scale_bias", 0.1),
        ("gaussian.scale_floor", 0.1),
        ("gaussian.opacity_bias", 0.5),
        ("gaussian.factors._features_dc", 2),
    ],
)
def test_every_constant_of_a_config_reaches_the_numbers(
    tiny: TripoSplat,
    folder: Path,
    numbers_of: Callable[[TripoSplat], list[Tensor]],
    path: str,
    value: float,
) -> None:
    change(folder, path, value)
    before, after = numbers_of(tiny), numbers_of(TripoSplat.from_pretrained(folder))
    assert max((one - other).abs().max() for one, other in zip(before, after, strict=True)) > 1e-3


def test_constants_that_weights_replace_are_where_training_starts(folder: Path) -> None:
    change(folder, "gaussian.offset_scale", 0.2)
    change(folder, "flow.rotary_max_frequency", 8)
    model = TripoSplat(TripoSplatConfig.load(folder / "config.json"))
    reach = torch.nn.functional.softplus(model.decoder.gs.base_offset_scale)
    assert reach.item() == pytest.approx(0.2)
    rotary = model.flow.repo_layers[0]
    torch.testing.assert_close(rotary.freqs_0, torch.linspace(1, 8, 3), check_device=False)
