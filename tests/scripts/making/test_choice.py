"""The preset of a machine: the best one whose weights are there and that fits its GPU."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from generation.presets import PRESETS, preset
from generation.settings import GenerationSettings, LiftSettings
from generation.weights.store import ModelStore
from miner.doctor.needs import GB, TAKEN_GB
from protocol.errors import SetupError
from scripts.making.choice import BEST_FIRST, SMALL, Choice, Machine, choose_preset, look

BOTH = ("gpu24", "gpu16")
LARGE, SMALLER = TAKEN_GB["gpu24"], TAKEN_GB["gpu16"]


def machine(gigabytes: float | None, weights: tuple[str, ...] = BOTH) -> Machine:
    return Machine(None if gigabytes is None else int(gigabytes * GB), weights, Path("/models"))


def test_every_preset_can_be_chosen_but_those_whose_licence_has_to_be_accepted() -> None:
    assert set(PRESETS) - {SMALL, *BEST_FIRST} == {"gpu24-splat", "gpu80-splat"}


@pytest.mark.parametrize(
    ("gigabytes", "weights", "name", "reason"),
    [
        (79.0, BOTH, "gpu24", ""),
        (LARGE, BOTH, "gpu24", ""),
        (LARGE - 0.1, BOTH, "gpu16", ""),
        (SMALLER, BOTH, "gpu16", ""),
        (79.0, ("gpu16",), "gpu16", ""),
        (79.0, ("gpu80",), "gpu80", ""),
        (
            SMALLER - 1,
            BOTH,
            "embedded",
            f"{SMALLER - 1:.1f} GB of the GPU's memory are free, gpu16 takes {SMALLER:.0f} GB",
        ),
        (
            SMALLER,
            (),
            "embedded",
            "the weights of gpu16 are not in /models "
            "(python -m scripts.fetch_models --preset gpu16 --models.dir /models downloads them)",
        ),
        (
            80.0,
            (),
            "embedded",
            "the weights of gpu24 are not in /models "
            "(python -m scripts.fetch_models --preset gpu24 --models.dir /models downloads them)",
        ),
        (None, BOTH, "embedded", "there is no CUDA GPU here"),
        (None, (), "embedded", "there is no CUDA GPU here"),
    ],
)
def test_words_take_a_gpu(
    gigabytes: float | None, weights: tuple[str, ...], name: str, reason: str
) -> None:
    assert choose_preset(machine(gigabytes, weights)) == Choice(name, reason=reason)


@pytest.mark.parametrize(
    ("gigabytes", "weights", "name", "device", "reason"),
    [
        (79.0, BOTH, "gpu24", None, ""),
        (8.0, BOTH, "gpu24", None, ""),
        (2.0, BOTH, "gpu24", "cpu", "2.0 GB of the GPU's memory are free"),
        (None, BOTH, "gpu24", "cpu", "there is no CUDA GPU here, so it runs on the CPU"),
        (8.0, (), "embedded", None, "the weights of gpu24 are not in /models"),
        (None, (), "embedded", None, "the weights of gpu24 are not in /models"),
    ],
)
def test_pictures_take_less(
    gigabytes: float | None,
    weights: tuple[str, ...],
    name: str,
    device: str | None,
    reason: str,
) -> None:
    choice = choose_preset(machine(gigabytes, weights), image_only=True)
    assert (choice.preset, choice.device) == (name, device)
    assert choice.reason.startswith(reason)
    assert bool(choice.reason) == bool(reason)


def test_weights_count_if_every_file_is_there(tmp_path: Path) -> None:
    settings = preset("gpu24")
    store = ModelStore(tmp_path)
    flux, *others = settings.models
    for model in others:
        store.folder(model).mkdir(parents=True)
        (store.folder(model) / "model.bin").write_bytes(b"weights")
        store.record(model, "revision", ["model.bin"])
    assert look("cpu", tmp_path).weights == []
    assert look("cpu", tmp_path, image_only=True).weights == ["gpu24", "gpu80", "gpu16"]
    store.folder(flux).mkdir()
    (store.folder(flux) / "model.bin").write_bytes(b"weights")
    store.record(flux, "revision", ["model.bin"])
    assert look("cpu", tmp_path).weights == ["gpu24", "gpu80", "gpu16"]
    (store.folder(others[0]) / "model.bin").unlink()
    assert look("cpu", tmp_path, image_only=True).weights == []


def test_free_memory_is_that_of_the_device_that_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def free(device: str) -> tuple[int, int]:
        sizes = {"cuda": 10, "cuda:1": 20}
        if device not in sizes:
            raise RuntimeError("invalid device ordinal")
        return sizes[device], 100

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    devices = (None, "cuda", "cuda:1", "cuda:7", "cpu")
    assert [look(device, tmp_path).gpu_bytes for device in devices] == [10, 10, 20, None, None]


def test_a_damaged_lock_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "models.lock.json").write_text("no lock")
    with pytest.raises(SetupError, match="cannot be read as a lock file"):
        look(None, tmp_path)


def test_the_back_end_that_the_user_wants_decides_on_weights_and_memory(tmp_path: Path) -> None:
    def with_triposplat(name: str) -> GenerationSettings:
        return preset(name).model_copy(update={"lift": LiftSettings(backend="triposplat")})

    store = ModelStore(tmp_path)
    for model in preset("gpu24-splat").models:
        store.folder(model).mkdir(parents=True)
        (store.folder(model) / "model.bin").write_bytes(b"weights")
        store.record(model, "revision", ["model.bin"])
    assert look("cpu", tmp_path).weights == []
    found = look("cpu", tmp_path, settings_of=with_triposplat)
    assert found.weights == ["gpu24", "gpu80", "gpu16"]
    taken = TAKEN_GB["gpu24-splat"]
    assert choose_preset(replace(found, gpu_bytes=int(taken * GB))) == Choice("gpu24")
    assert choose_preset(replace(found, gpu_bytes=int((taken - 1) * GB))) == Choice("gpu16")
    none = choose_preset(replace(found, gpu_bytes=int(taken * GB), weights=()))
    assert "fetch_models --preset gpu24 --lift.backend triposplat" in none.reason
