"""The real program with the preset that needs no weights, asked by a plain Dendrite."""

import asyncio
import base64
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bittensor as bt
import pytest
from loguru import logger

from miner.mock_validator.local_subnet import LocalSubnet, create_local_subnet
from miner.mock_validator.records import read_records
from neurons import mock_validator
from neurons.miner import NOT_STARTED, main
from protocol import spz
from protocol.synapses import GenerateAsset
from tests.support.miner_process import MinerProcess, running

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")


@pytest.fixture(scope="module")
def miner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinerProcess]:
    with running(tmp_path_factory.mktemp("miner")) as process:
        asyncio.run(process.ready())
        yield process


def wallet(subnet: LocalSubnet) -> Any:
    return bt.Wallet(name="validator", hotkey="default", path=str(subnet.wallets))


def test_a_validator_gets_an_asset_and_a_stranger_gets_403(miner: MinerProcess) -> None:
    reply = asyncio.run(miner.ask(wallet(miner.subnet)))
    assert (reply.dendrite.status_code, reply.outcome) == (200, "completed"), reply.reason
    assert len(spz.decode(base64.b64decode(reply.results))) == reply.gaussians > 7000
    stranger = bt.Keypair.create_from_mnemonic(bt.Keypair.generate_mnemonic())
    assert asyncio.run(miner.ask(stranger)).dendrite.status_code == 403


def test_the_mock_validator_judges_it(miner: MinerProcess, tmp_path: Path) -> None:
    argv = [
        *(
            "--miner",
            f"127.0.0.1:{miner.port}",
            "--miner.hotkey",
            miner.subnet.miner_hotkey,
        ),
        *(
            "--wallet.path",
            str(miner.subnet.wallets),
            "--count",
            "1",
            "--out",
            str(tmp_path),
        ),
    ]
    assert mock_validator.main([*argv, "--wallet.name", "validator"]) == mock_validator.GOOD
    (record,) = read_records(tmp_path)
    assert record.good
    assert {path.suffix for path in tmp_path.iterdir()} >= {".spz", ".ply", ".png", ".json"}
    assert mock_validator.main([*argv, "--wallet.ephemeral"]) == mock_validator.BAD
    (refused,) = read_records(tmp_path)
    assert "403" in refused.problems[0]


def test_sigterm_answers_what_was_admitted_and_exits_0(miner: MinerProcess) -> None:
    async def stop_while_asking() -> GenerateAsset:
        before = len(miner.events("admitted"))
        asking = asyncio.create_task(miner.ask(wallet(miner.subnet), task_id="last"))
        await miner.until(lambda: len(miner.events("admitted")) > before)
        miner.process.send_signal(signal.SIGTERM)
        return await asking

    reply = asyncio.run(stop_while_asking())
    assert miner.process.wait(30.0) == 0
    assert (reply.task_id, reply.outcome) == ("last", "completed")
    assert "Traceback" not in miner.text()
    assert "Warning" not in miner.text()
    (stopped,) = miner.events("miner_stopped")
    assert stopped["exit_code"] == 0
    order = [
        event["unix"] for name in ("answered", "miner_stopped") for event in miner.events(name)
    ]
    assert order == sorted(order)


@pytest.fixture
def subnet(tmp_path: Path) -> Iterator[LocalSubnet]:
    yield create_local_subnet(tmp_path, port=8091)
    logger.remove()


@pytest.mark.parametrize(
    ("argv", "problem", "fix"),
    [
        (["--wallet.name", "nobody"], "the wallet has no hotkey", "btcli wallet create"),
        (["--wallet.name", "validator", "--preset", "gpu99"], "gpu99", "gpu24"),
        (["--wallet.name", "miner", "--chain.file", "absent"], "absent cannot be", "--chain.file"),
        (["--axon.prot", "1"], "unknown argument '--axon.prot'", "did you mean --axon.port?"),
        (["--config", "absent.yaml"], "absent.yaml cannot be read", "check --config"),
    ],
)
def test_a_reason_not_to_start_is_a_short_message(
    subnet: LocalSubnet,
    capsys: pytest.CaptureFixture[str],
    argv: list[str],
    problem: str,
    fix: str,
) -> None:
    common = [
        *("--chain.file", str(subnet.neurons_file), "--wallet.path", str(subnet.wallets)),
        *("--log.dir", str(subnet.wallets.parent / "logs")),
    ]
    assert main([*common, *argv]) == NOT_STARTED
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert problem in error
    assert fix in error


def test_a_taken_port_is_found_before_anything_is_loaded(
    subnet: LocalSubnet, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        argv = [
            *("--chain.file", str(subnet.neurons_file), "--wallet.path", str(subnet.wallets)),
            *("--wallet.name", "miner", "--axon.ip", "127.0.0.1", "--axon.port", str(port)),
            *("--log.dir", str(subnet.wallets.parent / "logs")),
        ]
        assert main(argv) == NOT_STARTED
    assert f"port {port} on 127.0.0.1 cannot be used" in capsys.readouterr().err
    log = (subnet.wallets.parent / "logs" / "score.jsonl").read_text()
    assert json.loads(log.splitlines()[-1])["exit_code"] == NOT_STARTED


def test_the_mock_validator_says_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert mock_validator.main(["--miner.hotkey", "5F", "--miner", "nowhere"]) == 2
    assert "--miner must be HOST:PORT" in capsys.readouterr().err
    assert mock_validator.main([]) == 2
    assert "--miner.hotkey SS58" in capsys.readouterr().err
