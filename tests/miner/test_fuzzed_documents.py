"""Mutated documents end as a document or as the documented error, at once and in little memory."""

import json
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from generation.lift.triposr.config import TripoSRConfig, ViTConfig
from generation.weights.store import LOCK_NAME, ModelStore
from miner.chain.file_chain import FileChain
from miner.settings.miner import MinerConfig
from miner.settings.reader import read_settings
from protocol.errors import SetupError
from scripts.benchmarks.fuzz.files import mutate

MUTANTS = 500
MOST_S = 1.0
MOST_KIB = 300_000

CONFIG = yaml.safe_dump(TripoSRConfig().as_dict()).encode()
VIT = json.dumps(ViTConfig().as_dict()).encode()
LOCKED = {"revision": "c0ffee", "licence": "MIT", "files": {"a/b": {"size": 1, "sha256": "0" * 64}}}
LOCK = json.dumps({"version": 1, "models": {"a/b": LOCKED, "c": LOCKED}}).encode()
NEURON = {"uid": 0, "hotkey": "5A", "coldkey": "5B", "ip": "127.0.0.1", "port": 8091, "stake": 1.5}
NEURONS = json.dumps([NEURON, NEURON | {"uid": 1, "hotkey": "5C", "stake": 10}]).encode()
SETTINGS = b"""chain.file: n.json
axon:
  port: 8091
  ip: 127.0.0.1  # loopback
wallet: {name: "007", hotkey: default}
transports: [push, http]
budget: 30.0
http.allow_open: no
"""


def config(folder: Path, data: bytes) -> None:
    (folder / "config.yaml").write_bytes(data)
    TripoSRConfig.load(folder / "config.yaml")


def vit(folder: Path, data: bytes) -> None:
    (folder / "dino_config.json").write_bytes(data)
    (folder / "config.yaml").write_bytes(CONFIG)
    TripoSRConfig.load(folder / "config.yaml", folder / "dino_config.json")


def lock(folder: Path, data: bytes) -> None:
    (folder / LOCK_NAME).write_bytes(data)
    ModelStore(folder)


def verified(folder: Path, data: bytes) -> None:
    (folder / ".verified.json").write_bytes(data)
    ModelStore(folder)


def neurons(folder: Path, data: bytes) -> None:
    (folder / "neurons.json").write_bytes(data)
    coroutine = FileChain(folder / "neurons.json").start("5A")
    with pytest.raises(StopIteration):
        coroutine.send(None)  # It awaits nothing.


def settings(folder: Path, data: bytes) -> None:
    (folder / "miner.yaml").write_bytes(data)
    argv = ["--config", str(folder / "miner.yaml")]
    read_settings(MinerConfig, prog="x", env_prefix="X", argv=argv, environ={})


@pytest.mark.parametrize(
    ("read", "original"),
    [
        (config, CONFIG),
        (vit, VIT),
        (lock, LOCK),
        (verified, json.dumps({"a/b": [1, 2, "0" * 64]}).encode()),
        (neurons, NEURONS),
        (settings, SETTINGS),
    ],
)
def test_mutated_documents_end_as_documented(
    tmp_path: Path, read: Callable[[Path, bytes], None], original: bytes
) -> None:
    read(tmp_path, original)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest = 0.0
    refusals = []
    for seed in range(MUTANTS):
        started = time.process_time()
        try:
            read(tmp_path, mutate(original, seed))
        except SetupError as error:
            refusals.append(error)
        slowest = max(slowest, time.process_time() - started)
    assert slowest < MOST_S
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_KIB
    assert refusals or read is verified
    for refusal in refusals:
        assert refusal.fix
        assert len(refusal.problem) < 2000
        assert refusal.problem.isprintable()
