import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from generation.presets import preset
from generation.settings import GenerationSettings, LiftSettings, ScoringSettings
from generation.weights.acceptance import terms_of
from generation.weights.pins import shipped_pins
from generation.weights.sources import FLUX_SCHNELL
from generation.weights.store import LOCK_NAME, ModelStore
from miner.doctor import machine
from miner.doctor.findings import Status, Verdict, carry_out, ok
from miner.doctor.machine import (
    Device,
    judge_compiler,
    judge_device,
    judge_disk,
    judge_memory,
    judge_packages,
    judge_python,
    machine_checks,
    read_device,
)
from miner.doctor.needs import GB, SCORER_BYTES, TAKEN_GB, UNKNOWN_BYTES, download_bytes
from miner.file_lock import FOLDER_LOCK, FileLock
from miner.settings.engines import EnginesSettings
from protocol.errors import SetupError

EMBEDDED, GPU16, GPU24, GPU80 = map(preset, ("embedded", "gpu16", "gpu24", "gpu80"))
GPU24_SPLAT = preset("gpu24-splat")


def _with_schnell(settings: GenerationSettings, **changes: object) -> GenerationSettings:
    drawing = settings.text_to_image.model_copy(update={"model": FLUX_SCHNELL} | changes)
    return settings.model_copy(update={"text_to_image": drawing})


SCHNELL = _with_schnell(GPU24)
SCHNELL_IN_8_BITS = _with_schnell(GPU24, eight_bit=True)
TAKEN = TAKEN_GB["gpu24"]
EMBEDDED_ON_GPU = EMBEDDED.model_copy(update={"device": "cuda"})
INSTALLED = {
    "torch": "2.11.0+cu128",
    "bittensor": "10.5.0",
    "diffusers": "0.40",
    "onnxruntime": "1.32",
}


def judge(required: list[str], **changes: str | None) -> Verdict:
    versions = {**INSTALLED, **{name.replace("_", "-"): text for name, text in changes.items()}}
    return judge_packages(required, versions.get, fix="make install")


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ((3, 10, 14), Status.FAILED),
        ((3, 11, 0), Status.OK),
        ((3, 12, 9), Status.OK),
        ((3, 13, 0), Status.FAILED),
    ],
)
def test_python(version: tuple[int, int, int], status: Status) -> None:
    verdict = judge_python(version, "/usr/bin/python3")
    assert verdict.status is status
    assert bool(verdict.fix) is (status is Status.FAILED)


def test_packages_as_required() -> None:
    required = ["torch>=2.11", "bittensor>=10.5,<11", 'pytest>=8; extra == "dev"']
    verdict = judge(required)
    assert verdict.status is Status.OK
    assert "2 as required: bittensor 10.5.0, torch 2.11.0+cu128" in verdict.found


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"torch": "2.4.1"}, "torch>=2.11 is 2.4.1"),
        ({"bittensor": "11.0.0"}, "bittensor<11,>=10.5 is 11.0.0"),
        ({"torch": None}, "torch>=2.11 is not installed"),
        ({"onnxruntime": None}, "neither onnxruntime nor onnxruntime-gpu is installed"),
    ],
)
def test_a_package_that_is_not_as_required_is_named(
    changes: dict[str, str | None], found: str
) -> None:
    verdict = judge(["torch>=2.11", "bittensor>=10.5,<11"], **changes)
    assert verdict == Verdict(Status.FAILED, found, "make install")


def test_two_onnx_runtimes_are_one_too_many() -> None:
    verdict = judge(["torch>=2.11"], onnxruntime_gpu="1.32")
    assert verdict.status is Status.WARNING
    assert verdict.fix.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


@pytest.mark.parametrize(
    ("settings", "device", "status", "part"),
    [
        (EMBEDDED, Device("2.13"), Status.OK, "runs on the CPU"),
        (EMBEDDED_ON_GPU, Device("2.11", "12.8", "A card", 4 * GB), Status.OK, "A card with 4 GB"),
        (GPU80, Device("2.13"), Status.FAILED, "is a build without CUDA"),
        (GPU80, Device("2.11", "12.8"), Status.FAILED, "finds no GPU"),
        (GPU80, Device("2.11", "12.8", "H100", 85 * GB), Status.OK, "H100 with 85 GB"),
        (GPU80, Device("2.11", "12.8", "L40S", 48 * GB), Status.OK, "L40S with 48 GB"),
        (SCHNELL, Device("2.11", "12.8", "A card", 36 * GB), Status.OK, "A card with 36 GB"),
        (SCHNELL, Device("2.11", "12.8", "4090", 25 * GB), Status.FAILED, "less than the weigh"),
        (SCHNELL_IN_8_BITS, Device("2.11", "12.8", "4090", 25 * GB), Status.OK, "4090 with 25 GB"),
        (SCHNELL_IN_8_BITS, Device("2.11", "12.8", "A card", 16 * GB), Status.FAILED, "less than"),
        (GPU24, Device("2.11", "12.8", "L4", 24 * GB), Status.OK, "L4 with 24 GB"),
        (GPU24, Device("2.11", "12.8", "4080", 17 * GB), Status.WARNING, f"took {TAKEN:.0f} GB"),
        (GPU24, Device("2.11", "12.8", "3060", 12 * GB), Status.FAILED, "less than the weigh"),
        (GPU16, Device("2.11", "12.8", "4080", 17 * GB), Status.OK, "4080 with 17 GB"),
        (GPU16, Device("2.11", "12.8", "3060", 12 * GB), Status.WARNING, "gpu16 took"),
        (GPU16, Device("2.11", "12.8", "A card", 6 * GB), Status.FAILED, "less than the weigh"),
    ],
)
def test_the_gpu_against_the_preset(
    settings: GenerationSettings, device: Device, status: Status, part: str
) -> None:
    verdict = judge_device(settings, device)
    assert (verdict.status, part in verdict.found) == (status, True), verdict
    assert bool(verdict.fix) is (status is not Status.OK)


def test_a_torch_without_cuda_is_removed_before_another_is_installed() -> None:
    fix = judge_device(GPU80, Device("2.13+cpu")).fix
    assert fix.startswith("make clean && make install EXTRAS=gpu,score,")


def test_what_a_preset_took_is_not_said_of_a_changed_one() -> None:
    drawing = GPU80.text_to_image.model_copy(update={"size": 256})
    card = Device("2.11", "12.8", "A card", 17 * GB)
    assert judge_device(GPU80, card).status is Status.WARNING
    changed = GPU80.model_copy(update={"text_to_image": drawing})
    assert judge_device(changed, card).status is Status.OK


@pytest.mark.parametrize("name", ["gpu24", "gpu80"])
def test_a_preset_with_another_back_end_takes_what_that_back_end_takes(name: str) -> None:
    settings = preset(name).model_copy(update={"lift": LiftSettings(backend="triposplat")})
    assert judge_device(settings, Device("2.11", "12.8", "A card", 24 * GB)).status is Status.OK
    verdict = judge_device(settings, Device("2.11", "12.8", "A card", 22 * GB))
    assert verdict.status is Status.WARNING
    assert "--preset gpu16 --lift.backend triposplat" in (verdict.fix or "")


def test_nothing_is_said_of_what_nobody_has_measured() -> None:
    settings = GPU24.model_copy(update={"lift": LiftSettings(backend="dreamgaussian")})
    card = Device("2.11", "12.8", "A card", 17 * GB)
    assert judge_device(settings, card).status is Status.OK


def test_the_gpu_is_really_asked() -> None:
    import torch

    device = read_device()
    assert device.torch == str(torch.__version__)
    assert (device.name is not None) is torch.cuda.is_available()


def test_the_gpu_of_the_settings_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    gpus = [SimpleNamespace(name=name, total_memory=24 * GB) for name in ("first", "second")]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)
    assert (read_device("cuda").name, read_device("cuda:1").name) == ("first", "second")
    with pytest.raises(
        SetupError, match="name cuda:2, but torch finds CUDA devices only up to cud"
    ):
        read_device("cuda:2")


@pytest.mark.parametrize(
    ("settings", "gigabytes", "status"),
    [
        (EMBEDDED, 8, Status.OK),
        (EMBEDDED_ON_GPU, 8, Status.OK),
        (GPU16, 6, Status.WARNING),
        (GPU16, 12, Status.OK),
        (GPU24, 12, Status.WARNING),
        (GPU24, 32, Status.OK),
        (SCHNELL_IN_8_BITS, 16, Status.WARNING),
        (SCHNELL_IN_8_BITS, 32, Status.OK),
        (SCHNELL, 32, Status.WARNING),
        (SCHNELL, 64, Status.OK),
    ],
)
def test_weights_pass_through_main_memory(
    settings: GenerationSettings, gigabytes: int, status: Status
) -> None:
    assert judge_memory(settings, gigabytes * GB).status is status


async def test_engines_that_load_together_need_the_memory_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert judge_memory(GPU24, 60 * GB, 2).status is Status.OK
    verdict = judge_memory(GPU24, 60 * GB, 4)
    assert verdict.status is Status.WARNING
    assert "4 engines of the preset gpu24 read 64 GB of weights through it" in verdict.found

    monkeypatch.setattr(os, "sysconf", lambda name: 1 if name == "SC_PAGE_SIZE" else 60 * GB)
    four = EnginesSettings(count=4)
    checks = machine_checks(GPU24, tmp_path, tmp_path / "logs", engines=four)
    (check,) = [check for check in checks if check.name == "memory"]
    assert (await carry_out(check)).verdict == verdict


@pytest.mark.parametrize(
    ("settings", "path", "header", "status"),
    [
        (EMBEDDED, None, "none.h", Status.OK),
        (GPU80, "/usr/bin/gcc", "Python.h", Status.OK),
        (GPU80, None, "Python.h", Status.WARNING),
        (GPU80, "/usr/bin/gcc", "none.h", Status.WARNING),
    ],
)
def test_what_is_compiled_needs_a_compiler_and_the_header(
    settings: GenerationSettings, path: str | None, header: str, status: Status, tmp_path: Path
) -> None:
    (tmp_path / "Python.h").touch()
    verdict = judge_compiler(settings, [None, path], tmp_path / header)
    assert verdict.status is status
    assert ("apt install gcc" in verdict.fix) is (status is Status.WARNING)


def test_room_is_looked_for_where_the_folder_will_be(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "yet" / "there"
    assert judge_disk([(folder, 1, "--log.dir")]).status is Status.OK
    verdict = judge_disk([(folder, 10**18, "--log.dir")])
    assert verdict.status is Status.FAILED
    assert "1000000000 GB are needed" in verdict.found
    assert "--log.dir" in verdict.fix
    assert not folder.exists()


@contextmanager
def not_as_root() -> Iterator[None]:
    """Root may write everywhere, so root is somebody else for a moment."""
    if os.getuid() != 0:
        yield
        return
    os.setresuid(65534, -1, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_a_folder_that_cannot_be_written() -> None:
    # Not tmp_path: its parents are closed to the user that root becomes below.
    with tempfile.TemporaryDirectory() as folder, not_as_root():
        os.chmod(folder, 0o555)
        verdict = judge_disk([(Path(folder) / "logs", 1, "--log.dir")])
    assert (verdict.status, "cannot be written" in verdict.found) == (Status.FAILED, True)


@pytest.mark.parametrize("below", [".", "logs", "a/b/c"])
def test_a_file_in_the_place_of_a_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    verdict = judge_disk([(tmp_path / "file" / below, 1, "--log.dir")])
    assert verdict.status is Status.FAILED
    assert "file is a file" in verdict.found
    assert "--log.dir" in verdict.fix


def test_a_folder_that_may_not_be_entered() -> None:
    with tempfile.TemporaryDirectory() as folder, not_as_root():
        os.chmod(folder, 0)
        verdict = judge_disk([(Path(folder) / "a" / "logs", 1, "--log.dir")])
    assert (verdict.status, "cannot be written" in verdict.found) == (Status.FAILED, True)


@pytest.mark.parametrize("name", ["miner.lock", "score.jsonl", "miner.log"])
async def test_a_log_that_another_user_has_begun_is_found(name: str) -> None:
    """As after a first start as root."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        (Path(folder) / "logs").mkdir()
        (Path(folder) / "logs").chmod(0o777)
        (Path(folder) / "logs" / name).touch(0o400)
        with not_as_root():
            verdict = await look("disk", EMBEDDED, Path(folder))
    assert verdict.status is Status.FAILED
    assert f"{name} cannot be written by this user" in verdict.found
    assert "--log.dir" in verdict.fix


async def test_a_library_that_cannot_be_imported_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LIBRARIES", ("json", "no_library_of_this_name"))
    monkeypatch.setattr(machine, "judge_packages", lambda *_, **__: ok("as required"))
    verdict = await look("packages", EMBEDDED, tmp_path)
    assert verdict.status is Status.FAILED
    assert "no_library_of_this_name" in verdict.found
    assert "make install" in verdict.fix


async def test_a_miner_that_uses_the_folder_is_named_with_its_process(tmp_path: Path) -> None:
    names = [check.name for check in machine_checks(EMBEDDED, tmp_path, tmp_path / "logs")]
    assert "log folder" not in names
    lock = FileLock(tmp_path / "logs" / FOLDER_LOCK, what="the log folder", flag="--log.dir")
    verdict = await look("log folder", EMBEDDED, tmp_path)
    lock.release()
    assert verdict.status is Status.WARNING
    assert f"process {os.getpid()} on " in verdict.found
    assert "--log.dir" in verdict.fix


async def test_a_home_that_cannot_be_written_is_told_with_what_stands_in(tmp_path: Path) -> None:
    async def home(stands_in: Path | SetupError) -> Verdict:
        checks = machine_checks(EMBEDDED, tmp_path, tmp_path / "logs", stands_in=stands_in)
        (check,) = [check for check in checks if check.name == "home"]
        return (await carry_out(check)).verdict

    verdict = await home(tmp_path)
    assert verdict.status is Status.WARNING
    assert str(tmp_path / "logs" / "cache") in verdict.found
    assert "XDG_CACHE_HOME" in verdict.fix
    verdict = await home(SetupError("no folder can be written", fix="set XDG_CACHE_HOME"))
    assert verdict == Verdict(Status.FAILED, "no folder can be written", "set XDG_CACHE_HOME")


async def look(name: str, settings: GenerationSettings, models: Path) -> Verdict:
    (check,) = [c for c in machine_checks(settings, models, models / "logs") if c.name == name]
    return (await carry_out(check)).verdict


async def test_weights_that_are_missing_name_the_command(tmp_path: Path) -> None:
    verdict = await look("weights", GPU80, tmp_path)
    assert verdict.status is Status.FAILED
    assert "has not been downloaded" in verdict.found
    assert verdict.fix == f"python -m scripts.fetch_models --preset gpu80 --models.dir {tmp_path}"


@pytest.mark.parametrize(
    ("back_end", "licence"),
    [("triposplat", "accept_dinov3_license"), ("dreamgaussian", "accept_openrail_license")],
)
async def test_a_licence_that_is_not_accepted_is_a_finding_with_its_conditions(
    tmp_path: Path, no_pins: None, back_end: str, licence: str
) -> None:
    lift = LiftSettings.model_validate({"backend": back_end})
    settings = GPU24_SPLAT.model_copy(update={"lift": lift})
    (terms,) = terms_of(settings)
    verdict = await look("weights", settings, tmp_path)
    assert verdict.status is Status.FAILED
    assert {"triposplat": "DINOv3", "dreamgaussian": "zero123"}[back_end] in verdict.found
    assert f"--{back_end}.{licence} true" in verdict.fix
    assert len(verdict.fix.splitlines()) > 9
    own = getattr(settings, back_end).model_copy(update={licence: True})
    accepted = settings.model_copy(update={back_end: own})
    verdict = await look("weights", accepted, tmp_path)
    assert "has not been downloaded" in verdict.found
    assert f"--{back_end}.{licence} true --m" in verdict.fix
    store = ModelStore(tmp_path)
    for model in accepted.models:
        store.folder(model).mkdir()
        (store.folder(model) / "weights").write_bytes(b"12")
        store.record(model, store.revision(model) or "abc", ["weights"])
    assert f"{terms.name} is accepted" in (await look("weights", accepted, tmp_path)).found


async def test_weights_that_are_not_as_locked(tmp_path: Path, no_pins: None) -> None:
    for model in GPU80.models:
        folder = tmp_path / model.folder
        folder.mkdir()
        (folder / "weights").write_bytes(b"12")
    entry = {
        "revision": "abc",
        "licence": "MIT",
        "files": {"weights": {"size": 3, "sha256": "0" * 64}},
    }
    lock = {"version": 1, "models": {model.name: entry for model in GPU80.models}}
    (tmp_path / LOCK_NAME).write_text(json.dumps(lock))
    verdict = await look("weights", GPU80, tmp_path)
    assert "has 2 bytes, 3 were expected" in verdict.found
    (tmp_path / LOCK_NAME).write_text(json.dumps(lock).replace('"size": 3', '"size": 2'))
    assert "has SHA-256" in (await look("weights", GPU80, tmp_path)).found


@pytest.mark.parametrize(("device", "extras"), [("cuda:1", "gpu,score"), ("cpu", "score")])
async def test_a_scorer_without_its_packages_names_the_extras_that_its_device_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, extras: str
) -> None:
    monkeypatch.setattr("generation.scoring.validator.find_spec", lambda name: None)
    settings = GPU80.model_copy(update={"device": device})
    verdict = await look("scorer", settings, tmp_path)
    assert verdict.status is Status.FAILED
    assert "open_clip" in verdict.found
    assert verdict.fix == f"make install EXTRAS={extras}, or --scoring.scorer none"


def test_the_room_that_is_asked_for_holds_what_is_pinned_and_the_scorer() -> None:
    for settings in (GPU24, GPU24_SPLAT, SCHNELL, _with_schnell(GPU24_SPLAT)):
        sizes = {
            model.name: sum(file.size for file in shipped_pins()[model.name].files.values())
            for model in settings.model_copy(update={"scoring": ScoringSettings()}).models
        }
        assert all(sizes.values())
        assert sum(sizes.values()) + SCORER_BYTES < download_bytes(settings, ())
        name = "schnell" if FLUX_SCHNELL in settings.models else "klein"
        assert download_bytes(settings, ()) < 1.08 * UNKNOWN_BYTES[name]


@pytest.mark.parametrize(("settings", "needed"), [(GPU24, 21), (SCHNELL, 39), (GPU24_SPLAT, 22)])
async def test_the_disk_needs_room_for_the_model_that_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: GenerationSettings, needed: int
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10 * GB))
    verdict = await look("disk", settings, tmp_path)
    assert f"has 10.0 GB of room, {needed} GB are needed" in verdict.found


def test_another_back_end_needs_room_for_its_own_weights_alone() -> None:
    there = {model.name for model in GPU24.models}
    assert download_bytes(GPU24, there) == 0
    assert 4 * GB < download_bytes(GPU24_SPLAT, there) < 5 * GB


def test_weights_of_the_operators_own_need_as_much_room_as_is_assumed() -> None:
    drawing = GPU24.text_to_image.model_copy(
        update={"model": FLUX_SCHNELL.model_copy(update={"repo": "a/b"})}
    )
    own = GPU24.model_copy(update={"text_to_image": drawing})
    assert download_bytes(own, ()) == UNKNOWN_BYTES["schnell"]


async def test_no_weights_are_needed_where_none_are_loaded(tmp_path: Path) -> None:
    assert (await look("weights", EMBEDDED, tmp_path)).status is Status.OK
    assert os.listdir(tmp_path) == []


async def test_a_damaged_lock_file_is_a_finding_where_models_are_needed(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text("{")
    for name in ("disk", "weights"):
        assert (await look(name, EMBEDDED, tmp_path)).status is Status.OK
    for name in ("disk", "weights"):
        verdict = await look(name, GPU80, tmp_path)
        assert verdict.status is Status.FAILED
        assert "lock file" in verdict.found
