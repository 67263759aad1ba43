"""Errors of a checkpoint name file, key, found and expected; nothing in it runs."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from generation.lift.triposr import CheckpointError, TripoSR
from protocol.errors import SetupError


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden / "tiny", tmp_path / "model"))


def refused(folder: Path | str, *said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        TripoSR.from_pretrained(folder)
    assert isinstance(caught.value, SetupError)
    assert caught.value.fix
    for words in said:
        assert words in caught.value.problem


def change_state(folder: Path, change: Callable[[dict[str, Any]], None]) -> str:
    file = folder / "model.ckpt"
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)
    return str(file)


def test_a_missing_key(folder: Path) -> None:
    file = change_state(folder, lambda state: state.pop("decoder.layers.2.bias"))
    refused(folder, file, "1 missing: decoder.layers.2.bias (expected (16,))")


def test_a_surplus_key(folder: Path) -> None:
    file = change_state(folder, lambda state: state.update(extra=torch.zeros(2, 3)))
    refused(folder, file, "1 surplus: extra (found (2, 3))")


def test_a_misshapen_key(folder: Path) -> None:
    file = change_state(folder, lambda state: state.update({"backbone.norm.bias": torch.zeros(63)}))
    refused(folder, file, "1 misshapen: backbone.norm.bias (found (63,), expected (64,))")


def test_a_key_of_another_kind(folder: Path) -> None:
    whole = torch.zeros(64, dtype=torch.int64)
    file = change_state(folder, lambda state: state.update({"backbone.norm.bias": whole}))
    refused(
        folder,
        file,
        "1 not floating-point: backbone.norm.bias (found torch.int64, expected a float)",
    )
    file = change_state(folder, lambda state: state.update({"backbone.norm.bias": "text"}))
    refused(folder, file, "key 'backbone.norm.bias' is str, expected a tensor")


def test_many_differences_are_counted(folder: Path) -> None:
    def nest(state: dict[str, Any]) -> None:
        renamed = {f"module.{key}": value for key, value in state.items()}
        state.clear()
        state.update(renamed)

    change_state(folder, nest)
    refused(folder, "97 missing", "97 surplus", "module.image_tokenizer.model.embeddings.cls_token")


def test_differences_in_safetensors(folder: Path) -> None:
    state: dict[str, Tensor] = torch.load(folder / "model.ckpt", weights_only=True)
    state.pop("tokenizer.embeddings")
    save_file(state, folder / "model.safetensors")
    refused(folder, "model.safetensors", "1 missing: tokenizer.embeddings (expected (3, 64, 8, 8))")


@pytest.mark.parametrize("kept", [0, 1, 1000, 500_000, -1])
@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_a_truncated_file(folder: Path, name: str, kept: int) -> None:
    if name == "model.safetensors":
        save_file(torch.load(folder / "model.ckpt", weights_only=True), folder / name)
    data = (folder / name).read_bytes()[:kept]
    (folder / name).write_bytes(data)
    refused(folder, str(folder / name))


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_a_file_of_another_kind(folder: Path, name: str) -> None:
    (folder / name).write_text("<!doctype html><title>404</title>")
    refused(folder, str(folder / name))


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)]])
def test_tensors_without_keys(folder: Path, content: object) -> None:
    torch.save(content, folder / "model.ckpt")
    refused(folder, f"holds {type(content).__name__}, expected a dict")


class Intruder:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize(
    "save", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value, protocol=2))]
)
def test_a_pickle_that_runs_code_is_not_run(
    folder: Path, tmp_path: Path, save: Callable[[object, Path], None]
) -> None:
    save({"decoder.layers.0.weight": Intruder(tmp_path / "ran")}, folder / "model.ckpt")
    refused(folder, str(folder / "model.ckpt"), "was not run")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_not_there(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "is neither a folder nor a hub id")
    (folder / "model.ckpt").unlink()
    refused(folder, str(folder), "holds neither model.safetensors nor model.ckpt")
    (folder / "config.yaml").unlink()
    refused(folder, str(folder), "holds no config.yaml")


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("decoder_cls", "os.system", "decoder_cls is 'os.system', expected 'tsr.models"),
        ("tokenizer.num_channels", 96, "backbone.in_channels is 64, expected 96"),
        ("backbone.cross_attention_dim", 48, "cross_attention_dim is 48, expected 32"),
        ("decoder.in_channels", 25, "decoder.in_channels is 25, expected 24"),
        ("decoder.activation", "relu", "decoder.activation is 'relu', expected 'silu'"),
        ("renderer.feature_reduction", "mean", "expected 'concat'"),
        ("backbone.num_layers", "two", "backbone.num_layers is 'two', expected a positive integer"),
        ("backbone.num_layers", 0, "backbone.num_layers is 0, expected a positive integer"),
        ("renderer.radius", None, "renderer.radius is None, expected a number"),
        ("decoder.dropout", 0.1, "decoder.dropout is 0.1, expected no such key"),
        ("image_tokenizer.pretrained_model_name_or_path", "x/y", "expected 'facebook/dino-vitb16'"),
    ],
)
def test_a_config_of_another_model(folder: Path, path: str, value: object, said: str) -> None:
    file = folder / "config.yaml"
    config = yaml.safe_load(file.read_text())
    *sections, key = path.split(".")
    section = config
    for name in sections:
        section = section[name]
    section[key] = value
    file.write_text(yaml.safe_dump(config))
    refused(folder, str(file), said)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: [", "cannot be read"),
        ("- 1\n- 2", "holds list, expected a mapping"),
        ("!!python/object/apply:os.getcwd []", "cannot be read"),
        ("", "holds NoneType, expected a mapping"),
    ],
)
def test_a_config_that_is_none(folder: Path, content: str, said: str) -> None:
    (folder / "config.yaml").write_text(content)
    refused(folder, str(folder / "config.yaml"), said)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hidden_act", "relu", "hidden_act is 'relu', expected 'gelu'"),
        ("qkv_bias", False, "qkv_bias is False, expected True"),
        (
            "num_attention_heads",
            3,
            "num_attention_heads is 3, expected a divisor of hidden_size 32",
        ),
        ("patch_size", None, "patch_size is None, expected a positive integer"),
    ],
)
def test_an_image_tokenizer_of_another_kind(
    folder: Path, key: str, value: object, said: str
) -> None:
    file = folder / "dino_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    refused(folder, str(file), said)


def test_without_dino_config_the_image_tokenizer_is_vit_b(folder: Path) -> None:
    (folder / "dino_config.json").unlink()
    refused(folder, "backbone.cross_attention_dim is 32, expected 768")
