"""`scripts.fetch_models` pins, resumes, verifies and repairs, against a hub on loopback."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from generation.presets import PRESETS
from generation.settings import GenerationSettings
from generation.weights.sources import FLUX_SCHNELL, TRIPOSR, ReleaseModel
from generation.weights.store import LOCK_NAME
from scripts.fetch_models import main
from tests.support.local_hub import COMMIT, LocalHub, serve

FLUX_FILES = {
    "model_index.json": b"{}",
    "scheduler/scheduler_config.json": b"{}",
    "text_encoder/model.safetensors": b"clip" * 100,
    "text_encoder_2/model.safetensors": b"t5" * 1000,
    "tokenizer/vocab.json": b"{}",
    "tokenizer_2/tokenizer.json": b"{}",
    "transformer/model.safetensors": b"flux" * 5000,
    "vae/model.safetensors": b"vae" * 50,
}
SURPLUS = {"flux1-schnell.safetensors": b"the same again" * 5000, "README.md": b"read me"}
TRIPOSR_FILES = {"config.yaml": b"radius: 0.87", "model.ckpt": bytes(range(256)) * 40}
ONNX = b"onnx" * 3000


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serve() as hub:
        hub.repos = {
            FLUX_SCHNELL.repo: FLUX_FILES | SURPLUS,
            TRIPOSR.repo: dict(TRIPOSR_FILES),
            "rembg/releases": {"isnet-general-use.onnx": ONNX},
        }
        release = ReleaseModel(
            name="isnet-general-use",
            url=f"{hub.address}/rembg/releases/resolve/v0/isnet-general-use.onnx",
            md5=hashlib.md5(ONNX, usedforsecurity=False).hexdigest(),
            licence="Apache-2.0",
            page="https://github.com/xuebinqin/DIS",
        )
        monkeypatch.setitem(PRESETS, "gpu80", _with_background(PRESETS["gpu80"], release))
        yield hub


def _with_background(settings: GenerationSettings, model: ReleaseModel) -> GenerationSettings:
    cutout = settings.cutout.model_copy(update={"model": model})
    return settings.model_copy(update={"cutout": cutout})


def _fetch(hub: LocalHub, folder: Path) -> int:
    return main(["--preset", "gpu80", "--models.dir", str(folder)], endpoint=hub.address)


def test_a_first_download_brings_only_what_is_needed_and_locks_it(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fetch(hub, tmp_path) == 0
    flux = tmp_path / "black-forest-labs--FLUX.1-schnell"
    assert {name: (flux / name).read_bytes() for name in FLUX_FILES} == FLUX_FILES
    assert not (flux / "flux1-schnell.safetensors").exists()
    assert (tmp_path / "isnet-general-use" / "isnet-general-use.onnx").read_bytes() == ONNX

    lock = json.loads((tmp_path / LOCK_NAME).read_text())["models"]
    assert lock["stabilityai/TripoSR"]["revision"] == COMMIT
    content = TRIPOSR_FILES["model.ckpt"]
    assert lock["stabilityai/TripoSR"]["files"]["model.ckpt"] == {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    out = capsys.readouterr().out
    for line in ("licence: Apache-2.0, https://huggingface.co/black-forest", "licence: MIT"):
        assert line in out


def test_a_second_run_asks_the_network_nothing(hub: LocalHub, tmp_path: Path) -> None:
    assert _fetch(hub, tmp_path) == 0
    hub.requests.clear()
    assert _fetch(hub, tmp_path) == 0
    assert hub.requests == []


def test_a_damaged_file_alone_is_fetched_again_at_the_locked_revision(
    hub: LocalHub, tmp_path: Path
) -> None:
    assert _fetch(hub, tmp_path) == 0
    checkpoint = tmp_path / "stabilityai--TripoSR" / "model.ckpt"
    checkpoint.write_bytes(b"\0" * checkpoint.stat().st_size)
    hub.requests.clear()
    hub.commit = "f" * 40
    assert _fetch(hub, tmp_path) == 0
    assert checkpoint.read_bytes() == TRIPOSR_FILES["model.ckpt"]
    assert hub.downloads() == [f"/stabilityai/TripoSR/resolve/{COMMIT}/model.ckpt"]


def test_other_content_under_the_locked_revision_is_refused(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fetch(hub, tmp_path) == 0
    shutil.rmtree(tmp_path / "stabilityai--TripoSR")
    forged = bytes(reversed(TRIPOSR_FILES["model.ckpt"]))
    hub.repos[TRIPOSR.repo]["model.ckpt"] = forged
    assert _fetch(hub, tmp_path) == 1
    error = capsys.readouterr().err
    assert "model.ckpt" in error
    assert hashlib.sha256(forged).hexdigest() in error
    assert hashlib.sha256(TRIPOSR_FILES["model.ckpt"]).hexdigest() in error


def test_an_interrupted_single_file_goes_on_where_it_stopped(hub: LocalHub, tmp_path: Path) -> None:
    part = tmp_path / "isnet-general-use" / "isnet-general-use.onnx.part"
    part.parent.mkdir()
    part.write_bytes(ONNX[:5000])
    assert _fetch(hub, tmp_path) == 0
    assert part.with_suffix("").read_bytes() == ONNX
    ranges = [wanted for _, path, wanted in hub.requests if path.endswith(".onnx") and wanted]
    assert ranges == ["bytes=5000-"]


def test_a_single_file_with_another_md5_is_refused(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos["rembg/releases"]["isnet-general-use.onnx"] = b"evil" * 3000
    assert _fetch(hub, tmp_path) == 1
    assert "MD5" in capsys.readouterr().err
    assert not list((tmp_path / "isnet-general-use").iterdir())


def test_a_gated_repository_says_how_to_get_access(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.gated.add(FLUX_SCHNELL.repo)
    assert _fetch(hub, tmp_path) == 1
    error = capsys.readouterr().err
    assert "https://huggingface.co/black-forest-labs/FLUX.1-schnell" in error
    assert "HF_TOKEN=" in error
    # The gated one comes first, so nobody waits for the others before learning of it.
    assert not any("TripoSR" in path for path in hub.downloads())


def test_a_full_disk_is_found_before_the_download(
    hub: LocalHub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = SimpleNamespace(free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert _fetch(hub, tmp_path) == 1
    error = capsys.readouterr().err
    assert "0.00 GB are free" in error
    assert "GB of room" in error
    assert hub.downloads() == []


def test_no_network_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Port 9 (discard) on loopback refuses connections.
    arguments = ["--preset", "gpu80", "--models.dir", str(tmp_path)]
    assert main(arguments, endpoint="http://127.0.0.1:9") == 1
    error = capsys.readouterr().err
    assert "could not be downloaded" in error
    assert "check the network" in error


def test_the_embedded_preset_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "embedded"]) == 0
    assert "needs no download" in capsys.readouterr().out
