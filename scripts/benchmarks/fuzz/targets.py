"""Everything that decodes files from outside: sound ones, what reads them, what it may raise."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageCms

from generation.lift.triposr.config import TripoSRConfig, ViTConfig
from generation.weights.store import LOCK_NAME, ModelStore
from miner.chain.file_chain import FileChain
from miner.estimates_file import KeptEstimate, KeptEstimates
from miner.score.following import Follower
from miner.score.report import ScoreReport
from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from miner.state_file import StateFile
from miner.transports.pull.state import AssignedTask, PullState
from miner.transports.pull.validators import Standing
from protocol import ply, spz
from protocol.errors import CodecError, SetupError, TaskError
from protocol.gaussians import GaussianCloud
from protocol.images import decode_image
from scripts.benchmarks.decoders import ascii_ply, binary_ply, packed, spz_payload

Read = Callable[[bytes, Path], str]
"""Reads bytes, with a folder for files; returns what became of them in a word or two."""


@dataclass(frozen=True)
class Target:
    """A decoder.

    Attributes:
        originals: Makes the sound files; their pieces also go into each other.
        read: What is tried.
        errors: What it may raise.
    """

    originals: Callable[[], tuple[bytes, ...]]
    read: Read
    errors: tuple[type[Exception], ...]


def _cloud(count: int) -> GaussianCloud:
    rng = np.random.default_rng(count)
    arrays = {
        "positions": (count, 3),
        "log_scales": (count, 3),
        "rotations": (count, 4),
        "opacity_logits": (count,),
        "colors_dc": (count, 3),
    }
    return GaussianCloud(
        **{name: rng.normal(size=shape).astype(np.float32) for name, shape in arrays.items()}
    )


def _pictures(format: str) -> tuple[bytes, ...]:
    """Two pictures with metadata; in one of them every kind that the format can have."""
    axis = np.linspace(0, 255, 72).astype(np.uint8)
    pixels = np.stack([np.tile(axis, (48, 1)), *np.full((2, 48, 72), 90, np.uint8)], axis=2)
    picture = Image.fromarray(np.dstack([pixels, np.tile(axis, (48, 1))]))
    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    more: dict[str, Any] = {"exif": exif, "icc_profile": profile}
    if format == "PNG":
        return (
            _encoded(picture, format, **more),
            _encoded(picture.convert("P"), format, transparency=3),
        )
    if format == "JPEG":
        return (
            _encoded(picture.convert("CMYK"), format, progressive=True, **more),
            _encoded(picture.convert("RGB"), format, exif=exif),
        )
    frames = [picture.rotate(90), picture.rotate(180)]
    return (
        _encoded(picture, format, lossless=True, **more),
        _encoded(picture, format, save_all=True, append_images=frames),
    )


def _encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, format, **options)
    return file.getvalue()


_SETTINGS = b"""chain.file: n.json
axon:
  port: 8091
  ip: 127.0.0.1  # loopback
wallet: {name: "007", hotkey: default}
transports: [push, http]
budget: 30.0
http.allow_open: no
"""
_TRIPOSR = yaml.safe_dump(TripoSRConfig().as_dict()).encode()
_NEURON = {"uid": 0, "hotkey": "5A", "coldkey": "5B", "ip": "::1", "port": 8091, "stake": 1.5}


def _lock() -> bytes:
    files = {"a/b": {"size": 1, "sha256": "0" * 64}}
    model = {"revision": "c0ffee", "licence": "MIT", "files": files}
    return json.dumps({"version": 1, "models": {"a/b": model, "c": model}}).encode()


def _estimates() -> bytes:
    rows = tuple(
        KeptEstimate(engine="local", key=f"lift:{n}", mean=1.0, variance=0.1, level=1.0)
        for n in range(5)
    )
    return (
        KeptEstimates(machines={"local": "gpu24 on a card"}, estimates=rows)
        .model_dump_json()
        .encode()
    )


def _pull_state() -> bytes:
    task = AssignedTask(validator="5V", id="t", kind="text", prompt="a", assigned_at=1.0)
    standings = {"5V": Standing(), "5W": Standing(failures=2)}
    return PullState(hotkey="5F", validators=standings, tasks=(task,)).model_dump_json().encode()


def _score_log() -> bytes:
    events: tuple[dict[str, Any], ...] = (
        {"event": "miner_started", "pid": 7, "preset": "gpu80"},
        {"event": "state_changed", "state": "ready", "previous": "warming_up"},
        {"event": "answered", "task_id": "t", "caller": "5F", "outcome": "completed"}
        | {"reason_code": "ok", "total_s": 0.3, "timings": {"lift": 0.2}, "on_time": True},
        {"event": "feedback", "caller": "5F", "fate": "accepted", "task_fidelity_score": 0.8},
        {"event": "refused", "reason_code": "no_permit", "reason": "no", "count": 3},
    )
    stamped = ({"ts": "2026-01-01T00:00:00+00:00", "unix": 1.0e9} | event for event in events)
    return "".join(json.dumps(event) + "\n" for event in stamped).encode()


def _read_cloud(decode: Callable[[bytes], GaussianCloud], data: bytes, folder: Path) -> str:
    decode(data)
    return "decoded"


def _read_picture(data: bytes, folder: Path) -> str:
    return decode_image(data, side=1024).mode


def _read_document(name: str, read: Callable[[Path], object], data: bytes, folder: Path) -> str:
    (folder / name).write_bytes(data)
    read(folder / name)
    return "read"


def _read_vit(path: Path) -> None:
    config = path.with_name("config.yaml")
    config.write_bytes(_TRIPOSR)
    TripoSRConfig.load(config, path)


def _read_settings(path: Path) -> None:
    argv = ["--config", str(path)]
    read_settings(MinerConfig, prog="x", env_prefix="X", argv=argv, environ={})


def _read_neurons(path: Path) -> None:
    asyncio.run(FileChain(path).start("5A"))


def _read_state(model: Any, data: bytes, folder: Path) -> str:
    file = folder / "kept.json"
    file.write_bytes(data)
    if StateFile(file, model, loses="nothing").load() is not None:
        return "read"
    for aside in folder.glob("kept.json.damaged-*"):
        aside.unlink()
    return "set aside"


def _read_score_log(data: bytes, folder: Path) -> str:
    file = folder / "score.jsonl"
    file.write_bytes(data)
    follower, report = Follower(file), ScoreReport()
    try:
        for line in (*follower.look(), *follower.rest()):
            report.read(line)
    finally:
        follower.close()
    json.dumps(report.as_dict(), allow_nan=False)
    return "with damaged lines" if report.damaged else "read"


def _document(name: str, original: Callable[[], bytes], read: Callable[[Path], object]) -> Target:
    return Target(lambda: (original(),), partial(_read_document, name, read), (SetupError,))


def _codec(original: Callable[[], bytes], decode: Callable[[bytes], GaussianCloud]) -> Target:
    return Target(lambda: (original(),), partial(_read_cloud, decode), (CodecError,))


TARGETS: Mapping[str, Target] = {
    "binary PLY": _codec(lambda: ply.encode(_cloud(300)), ply.decode),
    "PLY with harmonics": _codec(lambda: binary_ply(200, more=45), ply.decode),
    "ASCII PLY": _codec(lambda: ascii_ply(b"-0.37", size=4000), ply.decode),
    "SPZ frame": _codec(lambda: spz.encode(_cloud(300)), spz.decode),
    "SPZ payload": _codec(
        lambda: spz_payload(300, 3, noise=True), lambda data: spz.decode(packed(data, 1))
    ),
    **{
        name: Target(partial(_pictures, name), _read_picture, (TaskError,))
        for name in ("PNG", "JPEG", "WEBP")
    },
    "settings": _document("miner.yaml", lambda: _SETTINGS, _read_settings),
    "TripoSR's settings": _document("config.yaml", lambda: _TRIPOSR, TripoSRConfig.load),
    "ViT's settings": _document(
        "dino_config.json", lambda: json.dumps(ViTConfig().as_dict()).encode(), _read_vit
    ),
    "weights' lock": _document(LOCK_NAME, _lock, lambda path: ModelStore(path.parent)),
    "verified weights": _document(
        ".verified.json",
        lambda: json.dumps({"a/b": [1, 2, "0" * 64]}).encode(),
        lambda path: ModelStore(path.parent),
    ),
    "neurons": _document(
        "neurons.json",
        lambda: json.dumps([_NEURON, _NEURON | {"uid": 1, "hotkey": "5C"}]).encode(),
        _read_neurons,
    ),
    "estimates": Target(lambda: (_estimates(),), partial(_read_state, KeptEstimates), ()),
    "pull state": Target(lambda: (_pull_state(),), partial(_read_state, PullState), ()),
    "score log": Target(lambda: (_score_log(),), _read_score_log, ()),
}
