"""`scripts.fetch_models` pins, resumes, verifies and repairs, against a hub on loopback."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socketserver
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import close_session

from generation.presets import PRESETS
from generation.settings import GenerationSettings
from generation.weights.download import fetch_models
from generation.weights.sources import (
    ALEXNET,
    CLIP_CONVNEXT,
    FLUX_KLEIN,
    FLUX_SCHNELL,
    QUALITY_SCORER,
    TRIPOSR,
    ModelSource,
    ReleaseModel,
)
from generation.weights.store import LOCK_NAME, ModelStore
from protocol.errors import SetupError
from scripts.fetch_models import main
from tests.support.local_hub import COMMIT, LocalHub, serve

FLUX_FILES = {
    "model_index.json": b"{}",
    "scheduler/scheduler_config.json": b"{}",
    "text_encoder/model.safetensors": b"qwen" * 1000,
    "tokenizer/vocab.json": b"{}",
    "transformer/model.safetensors": b"flux" * 5000,
    "vae/model.safetensors": b"vae" * 50,
}
SURPLUS = {"flux-2-klein-4b.safetensors": b"the same again" * 5000, "README.md": b"read me"}
TRIPOSR_FILES = {"config.yaml": b"radius: 0.87", "model.ckpt": bytes(range(256)) * 40}
ONNX = b"onnx" * 3000
PTH = b"alexnet" * 300


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, no_pins: None) -> Iterator[LocalHub]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serve() as hub:
        hub.repos = {
            FLUX_KLEIN.repo: FLUX_FILES | SURPLUS,
            TRIPOSR.repo: dict(TRIPOSR_FILES),
            QUALITY_SCORER.repo: {"quality_scorer.safetensors": b"quality" * 100},
            CLIP_CONVNEXT.repo: {"open_clip_model.safetensors": b"clip" * 100},
            "rembg/releases": {"isnet-general-use.onnx": ONNX},
        }
        release = ReleaseModel(
            name="isnet-general-use",
            url=f"{hub.address}/rembg/releases/resolve/v0/isnet-general-use.onnx",
            md5=hashlib.md5(ONNX, usedforsecurity=False).hexdigest(),
            licence="Apache-2.0",
            page="https://github.com/xuebinqin/DIS",
        )
        alexnet = ALEXNET.model_copy(
            update={
                "url": f"{hub.address}/pytorch/vision/resolve/v0/alexnet.pth",
                "sha256_start": hashlib.sha256(PTH).hexdigest()[:8],
            }
        )
        hub.repos["pytorch/vision"] = {"alexnet.pth": PTH}
        settings = _with_background(PRESETS["gpu80"], release)
        scoring = settings.scoring.model_copy(update={"lpips_model": alexnet})
        monkeypatch.setitem(PRESETS, "gpu80", settings.model_copy(update={"scoring": scoring}))
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
    flux = tmp_path / "black-forest-labs--FLUX.2-klein-4B"
    assert {name: (flux / name).read_bytes() for name in FLUX_FILES} == FLUX_FILES
    assert not (flux / "flux-2-klein-4b.safetensors").exists()
    assert (tmp_path / "isnet-general-use" / "isnet-general-use.onnx").read_bytes() == ONNX

    lock = json.loads((tmp_path / LOCK_NAME).read_text())["models"]
    assert lock["stabilityai/TripoSR"]["revision"] == COMMIT
    content = TRIPOSR_FILES["model.ckpt"]
    assert lock["stabilityai/TripoSR"]["files"]["model.ckpt"] == {
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    out = capsys.readouterr().out
    for line in (
        "licence: Apache-2.0, https://huggingface.co/black-forest",
        "licence: MIT",
        "licence: none that we know of; read the publisher's terms, https://huggingface.co/404-Gen",
    ):
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
    hub.gated.add(FLUX_KLEIN.repo)
    assert _fetch(hub, tmp_path) == 1
    error = capsys.readouterr().err
    assert "https://huggingface.co/black-forest-labs/FLUX.2-klein-4B" in error
    assert "HF_TOKEN=" in error
    # The gated one comes first, so nobody waits for the others before learning of it.
    assert not any("TripoSR" in path for path in hub.downloads())


def test_another_model_of_a_preset_is_fetched_in_its_place(hub: LocalHub, tmp_path: Path) -> None:
    hub.repos[FLUX_SCHNELL.repo] = FLUX_FILES | {
        "text_encoder_2/model.safetensors": b"t5" * 1000,
        "tokenizer_2/tokenizer.json": b"{}",
    }
    more = ("--preset", "gpu80", "--models.dir", str(tmp_path), "--text_to_image.model", "schnell")
    assert main(more, endpoint=hub.address) == 0
    assert (tmp_path / "black-forest-labs--FLUX.1-schnell/tokenizer_2/tokenizer.json").is_file()
    assert not (tmp_path / "black-forest-labs--FLUX.2-klein-4B").exists()


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


TOKEN = "hf_s3cretOfATest"


@pytest.mark.parametrize(
    ("part", "status", "headers", "token", "problem", "fix"),
    [
        ("api/models", 401, {}, TOKEN, "does not accept the token in use", "make a read token"),
        ("api/models", 401, {}, None, "wants a token", "HF_TOKEN=hf_"),
        ("api/models", 403, {}, TOKEN, "access is forbidden", "accept the terms at https://hugg"),
        ("api/models", 404, {}, None, "status 404", "HF_ENDPOINT"),
        ("api/models", 407, {}, None, "proxy wants a name", "HTTPS_PROXY=http://NAME"),
        ("api/models", 429, {"Retry-After": "77"}, None, "too many requests", "wait 77 s"),
        ("api/models", 429, {"Retry-After": "x"}, TOKEN, "too many requests", "wait some minutes"),
        ("api/models", 500, {}, None, "the server has trouble", "status.huggingface.co"),
        ("api/models", 418, {}, None, "status 418", "run the same command again"),
        ("api/models", 404, {"X-Error-Code": "RevisionNotFound"}, None, "revision", "models.lock"),
        ("api/models", 404, {"X-Error-Code": "RepoNotFound"}, None, "not shown", "HF_TOKEN"),
        ("api/models", 403, {"X-Error-Code": "GatedRepo"}, None, "there is no token", "accept the"),
        ("api/models", 403, {"X-Error-Code": "GatedRepo"}, TOKEN, "terms have not", "accept the"),
        (
            "transformer/model",
            404,
            {"X-Error-Code": "EntryNotFound"},
            None,
            "file is no longer",
            "",
        ),
        ("rembg", 403, {}, None, "access is forbidden", "whether it blocks"),
        ("rembg", 429, {"Retry-After": "9"}, None, "too many requests", "wait 9 s"),
    ],
)
def test_a_refusal_is_told_with_its_own_remedy(
    hub: LocalHub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    part: str,
    status: int,
    headers: dict[str, str],
    token: str | None,
    problem: str,
    fix: str,
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # The library tries again by itself.
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    hub.refusals[part] = (status, headers)
    assert _fetch(hub, tmp_path) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert problem in error
    assert fix in error
    assert "check the network" not in error
    assert TOKEN not in error


def test_a_proxy_that_wants_a_password_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(
        b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
    ) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        close_session()  # The library keeps one for the process, with the proxies of then.
        assert _fetch_from("https://hub.invalid", tmp_path) == 1
        close_session()
    error = capsys.readouterr().err
    assert "the proxy wants a name and a password" in error
    assert "HTTPS_PROXY=http://NAME" in error


def test_a_server_without_tls_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(b"HTTP/1.1 200 OK\r\n\r\n") as port:
        assert _fetch_from(f"https://127.0.0.1:{port}", tmp_path) == 1
    error = capsys.readouterr().err
    assert "no TLS with this server" in error
    assert "HF_ENDPOINT" in error


def test_a_certificate_that_is_not_trusted_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(__file__).parents[1] / "golden" / "cases" / "self_signed.pem")
    with answering(b"", context) as port:
        assert _fetch_from(f"https://127.0.0.1:{port}", tmp_path) == 1
    error = capsys.readouterr().err
    assert "certificate is not trusted" in error
    assert "SSL_CERT_FILE" in error


@contextmanager
def answering(reply: bytes, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A server on loopback that sends the same bytes to everybody; gives its port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                connection = self.request
                if context is not None:
                    connection = context.wrap_socket(connection, server_side=True)
                connection.recv(65536)
                connection.sendall(reply)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def _fetch_from(endpoint: str, folder: Path) -> int:
    return main(["--preset", "gpu80", "--models.dir", str(folder)], endpoint=endpoint)


@pytest.mark.parametrize(
    ("number", "problem", "fix"),
    [
        (errno.ENOSPC, "takes no more: No space left", "another disk with --models.dir"),
        (errno.EACCES, "cannot be written: Permission denied", "another folder with --models.dir"),
        (errno.EROFS, "cannot be written: Read-only file system", "--models.dir"),
    ],
)
def test_a_disk_that_fills_up_or_takes_nothing_is_named(
    hub: LocalHub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    problem: str,
    fix: str,
) -> None:
    import huggingface_hub

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    assert _fetch(hub, tmp_path) == 1
    error = capsys.readouterr().err
    assert problem in error
    assert fix in error
    assert "check the network" not in error


def test_a_models_folder_that_is_a_file_is_named(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert _fetch(hub, tmp_path / "file") == 1
    assert "--models.dir" in capsys.readouterr().err


def test_a_models_folder_that_cannot_be_made_is_named_before_anything_is_asked(
    hub: LocalHub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _fetch(hub, Path("/proc/models")) == 1
    error = capsys.readouterr().err
    assert "/proc/models cannot be made" in error
    assert "--models.dir" in error
    assert hub.requests == []


def test_a_hub_that_names_files_outside_the_folder_is_refused(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos[FLUX_KLEIN.repo]["vae/../../../evil"] = b"x"
    assert _fetch(hub, tmp_path) == 1
    assert "no plain path inside the model's folder" in capsys.readouterr().err
    assert hub.downloads() == []


def test_downloads_that_are_forbidden_by_the_environment_say_so(
    hub: LocalHub,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert _fetch(hub, tmp_path) == 1
    assert "unset HF_HUB_OFFLINE" in capsys.readouterr().err


def test_the_embedded_preset_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--preset", "embedded"]) == 0
    assert "needs no download" in capsys.readouterr().out


def _fetch_source(hub: LocalHub, folder: Path, source: ModelSource) -> ModelStore:
    store = ModelStore(folder)
    fetch_models([source], store, endpoint=hub.address, report=lambda line: None)
    return store


def test_a_source_that_names_a_commit_is_fetched_at_it(hub: LocalHub, tmp_path: Path) -> None:
    first, second = (TRIPOSR.model_copy(update={"revision": digit * 40}) for digit in "ab")
    assert _fetch_source(hub, tmp_path, first).lock[TRIPOSR.name].revision == "a" * 40
    with pytest.raises(SetupError, match=f"at revision {'a' * 40}, {'b' * 40} is wanted"):
        ModelStore(tmp_path).verify(second, fix="fetch")
    # Another commit in a newer version of this program is downloaded and locked in its place.
    hub.repos[TRIPOSR.repo]["model.ckpt"] = b"newer" * 40
    store = _fetch_source(hub, tmp_path, second)
    assert store.lock[TRIPOSR.name].revision == "b" * 40
    assert (store.folder(second) / "model.ckpt").read_bytes() == b"newer" * 40
    store.verify(second, fix="fetch")


def test_a_single_file_is_held_to_the_sha256_that_its_publisher_states(
    hub: LocalHub, tmp_path: Path
) -> None:
    digest = hashlib.sha256(ONNX).hexdigest()
    release = ReleaseModel(
        name="alexnet",
        url=f"{hub.address}/rembg/releases/resolve/v0/isnet-general-use.onnx",
        sha256_start=digest[:8],
        licence="BSD-3-Clause",
        page="",
    )
    store = _fetch_source(hub, tmp_path, release)
    assert (store.folder(release) / release.file).read_bytes() == ONNX
    other = release.model_copy(update={"name": "other", "sha256_start": "0" * 8})
    with pytest.raises(SetupError, match=f"has SHA-256 {digest}, 00000000 was expected"):
        _fetch_source(hub, tmp_path, other)
    assert not list((tmp_path / "other").iterdir())


def test_a_single_file_needs_a_digest_that_its_publisher_states() -> None:
    with pytest.raises(ValueError, match="md5 or sha256_start"):
        ReleaseModel(name="alexnet", url="https://a/b.pth", licence="MIT", page="")


def test_what_was_downloaded_is_pinned_in_a_file(
    hub: LocalHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pins = tmp_path / "pins.json"
    arguments = ["--preset", "gpu80", "--models.dir", str(tmp_path / "models"), "--pin", str(pins)]
    assert main(arguments, endpoint=hub.address) == 0
    assert pins.read_text() == (tmp_path / "models" / LOCK_NAME).read_text()
    assert f"pinned in {pins}" in capsys.readouterr().out
    pins.write_text("[]")
    assert main(arguments, endpoint=hub.address) == 1
    assert f"{pins} cannot be read as pins" in capsys.readouterr().err
    arguments[-1] = str(tmp_path)
    assert main(arguments, endpoint=hub.address) == 1
    assert "give another to --pin" in capsys.readouterr().err
