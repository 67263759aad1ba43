"""Weights are what the lock file says, or the miner does not start."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from generation.presets import preset
from generation.weights.sources import FLUX_SCHNELL, TRIPOSR
from generation.weights.store import LOCK_NAME, ModelStore, locate_models
from protocol.errors import SetupError

FILES = {"config.yaml": b"radius: 0.87", "model.ckpt": b"weights" * 100}


@pytest.fixture
def store(tmp_path: Path, no_pins: None) -> ModelStore:
    store = ModelStore(tmp_path)
    store.folder(TRIPOSR).mkdir()
    for name, content in FILES.items():
        (store.folder(TRIPOSR) / name).write_bytes(content)
    store.record(TRIPOSR, "c0ffee", list(FILES))
    return store


def test_recorded_files_verify_in_a_later_process(store: ModelStore) -> None:
    later = ModelStore(store.root)
    later.verify(TRIPOSR, fix="-")
    assert later.lock["stabilityai/TripoSR"].revision == "c0ffee"


def test_changed_content_is_reported_with_expected_and_found(store: ModelStore) -> None:
    forged = b"Weights" * 100
    (store.folder(TRIPOSR) / "model.ckpt").write_bytes(forged)
    with pytest.raises(SetupError) as caught:
        ModelStore(store.root).verify(TRIPOSR, fix="fetch it again")
    message = str(caught.value)
    assert str(store.folder(TRIPOSR) / "model.ckpt") in message
    assert hashlib.sha256(forged).hexdigest() in message
    assert hashlib.sha256(FILES["model.ckpt"]).hexdigest() in message
    assert caught.value.fix == "fetch it again"


def test_another_size_and_a_missing_file_are_reported(store: ModelStore) -> None:
    file = store.folder(TRIPOSR) / "model.ckpt"
    file.write_bytes(b"short")
    with pytest.raises(SetupError, match="has 5 bytes, 700 were expected"):
        store.verify(TRIPOSR, fix="-")
    file.unlink()
    with pytest.raises(SetupError, match=r"model\.ckpt is missing"):
        store.verify(TRIPOSR, fix="-")


def test_unchanged_files_are_not_hashed_again(store: ModelStore) -> None:
    file = store.folder(TRIPOSR) / "model.ckpt"
    state = file.stat()
    # Content that differs behind the same size and time shows that nobody looked.
    file.write_bytes(b"Weights" * 100)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    ModelStore(store.root).verify(TRIPOSR, fix="-")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    with pytest.raises(SetupError, match="SHA-256"):
        ModelStore(store.root).verify(TRIPOSR, fix="-")


def test_a_damaged_memory_of_hashes_only_costs_time(store: ModelStore) -> None:
    (store.root / ".verified.json").write_text("{ not json")
    ModelStore(store.root).verify(TRIPOSR, fix="-")


@pytest.mark.parametrize(
    "content", ["", "[]", '{"version": 2, "models": {}}', '{"version": 1, "models": {"a": {}}}']
)
def test_a_damaged_lock_file_is_named(store: ModelStore, content: str) -> None:
    (store.root / LOCK_NAME).write_text(content)
    with pytest.raises(SetupError, match=r"models\.lock\.json cannot be read"):
        ModelStore(store.root)


def locked(**files: object) -> str:
    entry = {"revision": "c0ffee", "licence": "MIT", "files": files}
    return json.dumps({"version": 1, "models": {TRIPOSR.name: entry}})


HASHED = {"size": 4, "sha256": hashlib.sha256(b"weights").hexdigest()}


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "..", ".", "", "a\\b", "a\0b"],
)
def test_a_locked_path_stays_inside_the_models_folder(store: ModelStore, name: str) -> None:
    (store.root / LOCK_NAME).write_text(locked(**{name: HASHED}))
    with pytest.raises(SetupError, match="no plain path inside the model's folder"):
        ModelStore(store.root)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ('{"version": 1, "version": 1, "models": {}}', "the key 'version' stands twice"),
        ("[" * 100_000, "more than 32"),
        ('{"version": NaN}', "NaN is not a finite number"),
        (locked(a={"size": 10**30, "sha256": "0" * 64}), "does not fit into 64 bits"),
        (locked(a={"size": -1, "sha256": "0" * 64}), "greater than or equal to 0"),
        (locked(a={"size": 1, "sha256": "0" * 63}), "sha256"),
        ('{"version": 1, "models": {}, "more": 1}', "more: Extra inputs"),
    ],
)
def test_a_lock_file_outside_the_bounds_is_named(
    store: ModelStore, content: str, problem: str
) -> None:
    (store.root / LOCK_NAME).write_text(content)
    with pytest.raises(
        SetupError, match=r"models\.lock\.json cannot be read as a lock file"
    ) as caught:
        ModelStore(store.root)
    assert problem in caught.value.problem
    assert "rm " in caught.value.fix


def test_a_link_out_of_the_models_folder_is_not_followed(
    store: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside") / "model.ckpt"
    file = store.folder(TRIPOSR) / "model.ckpt"
    file.rename(outside)
    file.symlink_to(outside)
    with pytest.raises(SetupError, match=f"leads out of the models folder, to {outside}"):
        ModelStore(store.root).verify(TRIPOSR, fix="-")
    file.unlink()
    file.symlink_to(file)
    with pytest.raises(SetupError, match="cannot be followed"):
        ModelStore(store.root).verify(TRIPOSR, fix="-")


def test_the_models_folder_and_a_model_s_own_folder_may_be_links(
    store: ModelStore, tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk = tmp_path_factory.mktemp("disk")
    store.folder(TRIPOSR).rename(disk / "triposr")
    store.folder(TRIPOSR).symlink_to(disk / "triposr")
    (disk / "models").symlink_to(store.root)
    ModelStore(disk / "models").verify(TRIPOSR, fix="-")


def test_what_may_not_be_read_is_named_with_its_fix(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: ModelStore, file: Path) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(ModelStore, "sha256", denied)
    with pytest.raises(SetupError, match=r"cannot be read: Permission denied") as caught:
        store.verify(TRIPOSR, fix="-")
    assert "let this user read" in caught.value.fix
    (store.root / LOCK_NAME).unlink()
    (store.root / LOCK_NAME).mkdir()
    with pytest.raises(SetupError, match=r"cannot be read: Is a directory"):
        ModelStore(store.root)


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', '{"a": [1, 2, 3]}', "[" * 100_000, "{,"])
def test_any_memory_of_hashes_is_read_or_forgotten(store: ModelStore, content: str) -> None:
    (store.root / ".verified.json").write_text(content)
    ModelStore(store.root).verify(TRIPOSR, fix="-")


def test_missing_weights_name_the_command_that_brings_them(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        locate_models(preset("gpu24"), tmp_path)
    assert "black-forest-labs/FLUX.2-klein-4B has not been downloaded" in caught.value.problem
    command = "python -m scripts.fetch_models --preset gpu24"
    assert caught.value.fix == f"{command} --models.dir {tmp_path}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        with pytest.raises(SetupError) as caught:
            locate_models(preset("gpu24"))
    assert caught.value.fix == command
    drawing = preset("gpu24").text_to_image.model_copy(update={"model": FLUX_SCHNELL})
    with pytest.raises(SetupError) as caught:
        locate_models(preset("gpu24").model_copy(update={"text_to_image": drawing}), tmp_path)
    assert f"{command} --text_to_image.model schnell --models.dir" in caught.value.fix
