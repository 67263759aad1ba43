"""A state file may hold anything: it is read as documented or set aside, in bounded resources."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loguru import logger

from miner.estimates_file import KeptEstimate, KeptEstimates
from miner.kept_gate import KeptPair, KeptPairs
from miner.state_file import StateFile
from miner.transports.gateway.state import GatewayState, TakenTask
from miner.transports.pull.state import AssignedTask, PullState
from miner.transports.pull.validators import Standing
from scripts.benchmarks.fuzz.files import mutate

SEEDS = 500
LIMIT_S = 1.0
ROOT = Path(__file__).parents[2]
SOUND = (
    KeptEstimates(
        machines={"gpu-0": "gpu24 on a card"},
        estimates=tuple(
            KeptEstimate(engine="gpu-0", key=f"lift:{n}", mean=1.0, variance=0.1, level=1.0)
            for n in range(5)
        ),
    ),
    KeptPairs(
        pairs=tuple(
            KeptPair(predicted=0.6, accepted=n > 1, given=None, threshold=0.6, scorer="embedded")
            for n in range(5)
        )
    ),
    PullState(
        hotkey="5F",
        validators={"5V": Standing(), "5W": Standing(failures=2)},
        tasks=(AssignedTask(validator="5V", id="t", kind="text", prompt="a", assigned_at=1.0),),
    ),
    GatewayState(
        hotkey="5F",
        tasks=(
            TakenTask(
                node="https://a.b", id="t", token="x", worker_id="w", kind="text", taken_at=1.0
            ),
        ),
    ),
)


def load(path: Path, model: Any) -> object:
    """Loads a file, and checks that it was read or set aside."""
    content = path.read_bytes()
    state = StateFile(path, model, loses="what it held").load()
    asides = list(path.parent.glob("*.damaged-*"))
    if state is None:
        assert [aside.read_bytes() for aside in asides] == [content]
        asides[0].unlink()
    else:
        assert asides == []
        assert path.read_bytes() == content
    return state


@pytest.mark.parametrize("sound", SOUND, ids=lambda sound: type(sound).__name__)
def test_a_damaged_file_is_read_or_set_aside(
    tmp_path: Path, sound: KeptEstimates | KeptPairs | PullState | GatewayState
) -> None:
    path = tmp_path / "kept.json"
    said: list[str] = []
    sink = logger.add(
        lambda message: said.append(str(message)), level="WARNING", format="{message}"
    )
    aside = 0
    for seed in range(SEEDS):
        path.write_bytes(mutate(sound.model_dump_json().encode(), seed))
        started = time.process_time()
        aside += load(path, type(sound)) is None
        assert time.process_time() - started < LIMIT_S, seed
    logger.remove(sink)
    assert aside > SEEDS / 2, "the mutations do not damage the file"
    assert len(said) == aside
    assert all(len(line) < 1000 and line.strip().isprintable() for line in said)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
documents = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10
)
HEALTH = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=SEEDS, suppress_health_check=HEALTH)
@given(
    st.sampled_from(SOUND),
    st.sampled_from(
        [
            "version",
            "hotkey",
            "machines",
            "estimates",
            "pairs",
            "validators",
            "tasks",
            "\x1b[2J",
            "\ud800",
        ]
    ),
    documents,
)
def test_any_field_may_hold_anything(
    tmp_path: Path,
    sound: KeptEstimates | KeptPairs | PullState | GatewayState,
    name: str,
    value: object,
) -> None:
    path = tmp_path / "kept.json"
    content = json.loads(sound.model_dump_json()) | {name: value}
    path.write_text(json.dumps(content))
    load(path, type(sound))


HEAVY: dict[str, Callable[[], bytes]] = {
    "a million wrong tasks": lambda: b'{"hotkey":"a","tasks":[' + b"1," * 10**6 + b"1]}",
    "a million wrong validators": lambda: (
        b'{"hotkey":"a","validators":{' + b",".join(b'"%d":1' % n for n in range(10**6)) + b"}}"
    ),
    "as many wrong validators as there may be": lambda: (
        b'{"hotkey":"a","validators":{' + b",".join(b'"%d":1' % n for n in range(200_000)) + b"}}"
    ),
    "as many unknown fields": lambda: (
        b"{" + b",".join(b'"%d":1' % n for n in range(200_000)) + b"}"
    ),
    "deep lists": lambda: b"[" * 10**7,
    "deep objects": lambda: b'{"tasks":' * 10**6,
    "one long text": lambda: b'{"hotkey":"' + b"a" * 10**8 + b'"}',
    "larger than any": lambda: b" " * (130 * 2**20),
    "one long number": lambda: b'{"version":' + b"9" * 10**7 + b"}",
}
COSTS = """
import resource, sys, time
from pathlib import Path
from miner.state_file import StateFile
from miner.transports.pull.state import PullState
file = StateFile(Path(sys.argv[1]), PullState, loses="x")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.process_time()
file.load()
print(time.process_time() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize("kind", HEAVY)
def test_a_file_that_is_made_to_be_heavy_costs_a_second_and_300_mb_at_most(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "kept.json"
    path.write_bytes(HEAVY[kind]())
    command = [sys.executable, "-c", COSTS, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, kibibytes = map(float, done.stdout.split())
    assert seconds < LIMIT_S
    assert kibibytes < 300 * 1024


def test_a_pipe_or_a_device_does_not_hold_the_start(tmp_path: Path) -> None:
    for name, make in (
        ("pipe", os.mkfifo),
        ("device", lambda path: os.symlink("/dev/zero", path)),
    ):
        make(tmp_path / name)
        with pytest.raises(OSError, match="not a plain file"):
            StateFile(tmp_path / name, PullState, loses="x").load()
