"""This version says which files it was made for, and no others are used."""

import hashlib
import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from generation.weights import sources
from generation.weights.download import fetch_models
from generation.weights.pins import (
    PINS,
    LockedFile,
    LockedModel,
    add_pins,
    read_models,
    shipped_pins,
    write_models,
)
from generation.weights.sources import TRIPOSR, HubModel, ModelSource, ReleaseModel
from generation.weights.store import LOCK_NAME, ModelStore
from protocol.errors import SetupError
from tests.support.local_hub import COMMIT, LocalHub, serve

SOURCES = [entry for entry in vars(sources).values() if isinstance(entry, HubModel | ReleaseModel)]
FILES = {"config.yaml": b"radius: 0.87", "model.ckpt": bytes(range(256)) * 4}
PINNED = "a" * 40


def locked(files: dict[str, bytes], revision: str = PINNED) -> LockedModel:
    entries = {
        name: LockedFile(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        for name, content in files.items()
    }
    return LockedModel(revision=revision, licence="MIT", files=entries)


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    with serve() as hub:
        hub.repos = {TRIPOSR.repo: dict(FILES)}
        yield hub


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> dict[str, LockedModel]:
    """The pins of this version, for a test to change: one of TripoSR's two files."""
    pins = {TRIPOSR.name: locked({"model.ckpt": FILES["model.ckpt"]})}
    monkeypatch.setattr("generation.weights.store.shipped_pins", lambda: pins)
    return pins


def fetch(hub: LocalHub, folder: Path, model: ModelSource = TRIPOSR) -> ModelStore:
    store = ModelStore(folder)
    fetch_models([model], store, endpoint=hub.address, report=lambda line: None)
    return store


@pytest.mark.parametrize("model", SOURCES, ids=lambda model: model.name)
def test_the_shipped_pins_agree_with_the_sources(model: ModelSource, tmp_path: Path) -> None:
    pin = shipped_pins().get(model.name)
    if pin is None:
        assert model.name == "laion/CLIP-convnext_large_d.laion2B-s26B-b102K-augreg"
        return
    assert pin.revision == ModelStore(tmp_path).revision(model)
    assert pin.licence == model.licence
    globs = (model.file,) if isinstance(model, ReleaseModel) else model.files
    for name, file in pin.files.items():
        assert any(fnmatch(name, glob) for glob in globs), name
        if isinstance(model, ReleaseModel):
            assert file.sha256.startswith(model.sha256_start or "")


def test_the_shipped_pins_are_commits_and_large_weights(tmp_path: Path) -> None:
    write_models(tmp_path / "again.json", shipped_pins())
    assert (tmp_path / "again.json").read_bytes() == PINS.read_bytes()
    for name, pin in shipped_pins().items():
        assert pin.revision.startswith("https://") or len(pin.revision) == 40, name
    total = sum(file.size for file in shipped_pins()[sources.FLUX_SCHNELL.name].files.values())
    assert total > 33_000_000_000


def test_a_pinned_commit_is_fetched_and_not_the_newest(
    hub: LocalHub, tmp_path: Path, pins: dict[str, LockedModel]
) -> None:
    store = fetch(hub, tmp_path)
    assert store.lock[TRIPOSR.name].revision == PINNED != COMMIT
    assert all(f"/resolve/{PINNED}/" in path for path in hub.downloads())
    ModelStore(tmp_path).verify(TRIPOSR, fix="-")


def test_other_content_than_pinned_is_refused_before_it_is_downloaded(
    hub: LocalHub, tmp_path: Path, pins: dict[str, LockedModel]
) -> None:
    forged = bytes(reversed(FILES["model.ckpt"]))
    hub.repos[TRIPOSR.repo]["model.ckpt"] = forged
    with pytest.raises(SetupError, match=r"model\.ckpt of stabilityai/TripoSR") as caught:
        fetch(hub, tmp_path)
    for content in (forged, FILES["model.ckpt"]):
        assert hashlib.sha256(content).hexdigest() in caught.value.problem
    assert "pinned by this version" in caught.value.problem
    assert "report this" in caught.value.fix
    assert hub.downloads() == []


def test_a_file_that_comes_with_other_content_than_pinned_is_refused_and_removed(
    hub: LocalHub, tmp_path: Path, pins: dict[str, LockedModel]
) -> None:
    # The hub states no SHA-256 of a file that is not large, and its size says nothing.
    content = b"onnx" * 10
    hub.repos["rembg/releases"] = {"model.onnx": content}
    release = ReleaseModel(
        name="isnet",
        url=f"{hub.address}/rembg/releases/resolve/v0/model.onnx",
        md5=hashlib.md5(content, usedforsecurity=False).hexdigest(),
        licence="MIT",
        page="",
    )
    pins["isnet"] = locked({"model.onnx": b"ONNX" * 10}, release.url)
    with pytest.raises(SetupError, match=r"pinned by this version") as caught:
        fetch(hub, tmp_path, release)
    assert hashlib.sha256(content).hexdigest() in caught.value.problem
    assert hashlib.sha256(b"ONNX" * 10).hexdigest() in caught.value.problem
    assert "do not use the file" in caught.value.fix
    assert not list((tmp_path / "isnet").iterdir())
    assert "isnet" not in ModelStore(tmp_path).lock


def test_a_lock_file_does_not_overrule_a_pin(
    hub: LocalHub, tmp_path: Path, pins: dict[str, LockedModel]
) -> None:
    store = fetch(hub, tmp_path)
    forged = b"x" * len(FILES["model.ckpt"])
    (store.folder(TRIPOSR) / "model.ckpt").write_bytes(forged)
    store.record(TRIPOSR, PINNED, list(FILES))
    with pytest.raises(SetupError, match="pinned by this version"):
        ModelStore(tmp_path).verify(TRIPOSR, fix="-")
    fetch(hub, tmp_path)
    assert (store.folder(TRIPOSR) / "model.ckpt").read_bytes() == FILES["model.ckpt"]


def test_another_pinned_commit_in_a_newer_version_replaces_the_files(
    hub: LocalHub, tmp_path: Path, pins: dict[str, LockedModel]
) -> None:
    fetch(hub, tmp_path)
    newer = FILES | {"model.ckpt": b"newer"}
    hub.repos[TRIPOSR.repo] = newer
    pins[TRIPOSR.name] = locked(newer, "b" * 40)
    with pytest.raises(SetupError, match=f"at revision {PINNED}, {'b' * 40} is wanted"):
        ModelStore(tmp_path).verify(TRIPOSR, fix="-")
    assert fetch(hub, tmp_path).lock[TRIPOSR.name].revision == "b" * 40
    ModelStore(tmp_path).verify(TRIPOSR, fix="-")


def test_a_commit_that_an_operator_names_is_not_held_to_the_pins(
    hub: LocalHub, tmp_path: Path, pins: dict[str, LockedModel]
) -> None:
    hub.repos[TRIPOSR.repo]["model.ckpt"] = b"their own"
    own = TRIPOSR.model_copy(update={"revision": "c" * 40})
    assert fetch(hub, tmp_path, own).lock[TRIPOSR.name].revision == "c" * 40
    ModelStore(tmp_path).verify(own, fix="-")


def test_pins_are_added_from_a_lock_file_and_others_are_kept(
    hub: LocalHub, tmp_path: Path, no_pins: None
) -> None:
    file = tmp_path / "pins.json"
    store = fetch(hub, tmp_path / "models")
    write_models(file, {"other": locked({"x": b"1"}), TRIPOSR.name: locked({"old": b"2"})})
    add_pins(file, store.lock, [TRIPOSR.name])
    assert read_models(file) == {"other": locked({"x": b"1"}), TRIPOSR.name: locked(FILES, COMMIT)}
    assert json.loads(file.read_text()).keys() == {"version", "models"}
    lock = json.loads((tmp_path / "models" / LOCK_NAME).read_text())
    assert json.loads(file.read_text())["models"][TRIPOSR.name] == lock["models"][TRIPOSR.name]
