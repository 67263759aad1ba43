import json
from pathlib import Path

import pytest

from miner.chain.file_chain import FileChain
from protocol.errors import SetupError

NEURONS = [
    {"uid": 0, "hotkey": "5A", "coldkey": "5C", "ip": "1.2.3.4", "port": 8091, "stake": 0},
    {"uid": 1, "hotkey": "5B", "stake": 12.5, "validator_permit": True},
]


def chain(folder: Path, content: object) -> FileChain:
    path = folder / "neurons.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return FileChain(path)


async def test_the_file_is_read_by_hotkey(tmp_path: Path) -> None:
    file = chain(tmp_path, NEURONS)
    assert file.snapshot.neurons == {}
    neuron = await file.start("5A")
    assert (neuron.uid, neuron.ip, neuron.port) == (0, "1.2.3.4", 8091)
    validator = file.snapshot.neurons["5B"]
    assert (validator.uid, validator.stake, validator.validator_permit) == (1, 12.5, True)
    assert not file.is_stale()
    await file.publish(object())
    await file.close()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "is wrong at the whole file"),
        ({"uid": 1}, "is wrong at the whole file"),
        ([{"uid": 1}], "is wrong at 0.hotkey: Field required"),
        ([{"uid": 1, "hotkey": "5A", "steak": 1}], "is wrong at 0.steak"),
        ([{"uid": 1, "hotkey": "5X"}], "the hotkey 5A is not in"),
    ],
)
async def test_a_wrong_file_is_a_start_up_message(
    tmp_path: Path, content: object, problem: str
) -> None:
    with pytest.raises(SetupError) as caught:
        await chain(tmp_path, content).start("5A")
    assert problem in caught.value.problem


async def test_an_absent_file_is_a_start_up_message(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"--chain.file"):
        await FileChain(tmp_path / "absent.json").start("5A")
