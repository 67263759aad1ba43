"""What the mock validator says of a trial that got no result: whose fault it is, and what to do."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from miner.mock_validator import asking
from miner.mock_validator.asking import ask_all
from miner.mock_validator.records import TrialRecord, write_records
from miner.mock_validator.report import write_report
from miner.mock_validator.settings import parse_address
from miner.transports.pull.dendrite import offline_dendrite
from neurons import mock_validator
from neurons.mock_validator import results_table
from protocol.errors import SetupError
from scripts.free_port import free_port
from tests.miner.mock_validator.test_asking import TASKS, settings
from tests.support.pull_running import SHORT, Validator, tasks
from tests.support.running import MINER, STRANGER, VALIDATOR, Running
from tests.support.strange_servers import certificate, http, serving

# Bittensor 10 reads pydantic's fields through an instance.
pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no TLS port does not answer the probe at all."""
    monkeypatch.setattr(asking, "PROBE_LIMIT_S", 0.5)


async def asked(folder: Path, port: int, key: Any = VALIDATOR, **fields: Any) -> TrialRecord:
    """The record of one task, which a page and a terminal can show."""
    trial = settings(folder, port, **fields)
    (record,) = await ask_all(trial, key, TASKS[:1], lambda record: None)
    write_records(folder, [record])
    write_report(folder, [record], notes=[])
    Console(file=io.StringIO()).print(results_table([record]))
    assert all(text.isprintable() for text in (*record.problems, record.outcome, *record.timings))
    return record


async def test_a_wrong_hotkey_is_told(miner: Running, tmp_path: Path) -> None:
    wrong = {"miner.hotkey": STRANGER.ss58_address}
    record = await asked(tmp_path, miner.target.port, **wrong)
    assert (record.outcome, record.status) == ("none", 401)
    assert f"does not have --miner.hotkey {STRANGER.ss58_address};" in record.problems[0]


def test_a_terminal_shows_the_whole_hotkey() -> None:
    hotkey = STRANGER.ss58_address
    record = TrialRecord(
        name="01-x", kind="text", prompt="x", task_id="t", problems=(f"does not have {hotkey};",)
    )
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as shown:
        console.print(results_table([record]))
    cells = [line.split("│")[-2].strip() for line in shown.get().splitlines() if "│" in line]
    assert hotkey in "".join(cells)


def test_ctrl_c_ends_a_trial_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(mock_validator, "_trial", interrupted)
    argv = ["--miner.hotkey", MINER.ss58_address, "--wallet.ephemeral", "--out", str(tmp_path)]
    assert mock_validator.main(argv) == mock_validator.INTERRUPTED
    assert "interrupted; " in capsys.readouterr().err


async def test_the_right_hotkey_is_told_where_an_axon_names_it(tmp_path: Path) -> None:
    """As Bittensor's own axons do."""
    message = f"Signature mismatch with 1.{VALIDATOR.ss58_address}.{MINER.ss58_address}.uuid.hash"
    headers = ("bt_header_axon_status_code: 401", f"bt_header_axon_status_message: {message}")
    body = json.dumps({"message": message}).encode()
    wrong = {"miner.hotkey": STRANGER.ss58_address}
    async with serving(http(body, *headers, status="401 Unauthorized")) as port:
        record = await asked(tmp_path, port, **wrong)
    assert f"has the hotkey {MINER.ss58_address}, not --miner.hotkey" in record.problems[0]
    assert STRANGER.ss58_address in record.problems[0]


async def test_an_axon_that_takes_no_old_requests_does_not_blame_the_hotkey(
    tmp_path: Path,
) -> None:
    message = "Nonce is too old: acceptable delta is 34.00 seconds but request was 99 seconds old"
    headers = ("bt_header_axon_status_code: 401", f"bt_header_axon_status_message: {message}")
    body = json.dumps({"message": message}).encode()
    async with serving(http(body, *headers, status="401 Unauthorized")) as port:
        record = await asked(tmp_path, port)
    assert "the axon did not verify the request" in record.problems[0]
    assert "too old" in record.problems[0]
    assert "--miner.hotkey" not in record.problems[0]


async def test_a_refusal_is_the_miner_s_and_its_reason_is_told(
    miner: Running, tmp_path: Path
) -> None:
    record = await asked(tmp_path, miner.target.port, STRANGER)
    assert "the miner refuses this validator" in record.problems[0]
    assert "not registered" in record.problems[0]


async def test_an_axon_that_takes_no_tasks_is_no_miner_s(tmp_path: Path) -> None:
    validator = Validator(tmp_path, tasks(), SHORT, key=MINER)
    await validator.server.start()
    try:
        record = await asked(tmp_path, validator.neuron.port)
    finally:
        await validator.server.stop()
    assert "it does not take tasks" in record.problems[0]


async def test_nobody_listens(tmp_path: Path) -> None:
    record = await asked(tmp_path, free_port())
    assert record.status == 503
    assert "Connection refused; is the miner running" in record.problems[0]


async def test_a_host_name_that_is_none(tmp_path: Path) -> None:
    record = await asked(tmp_path, 1, miner="no-such-host.invalid:8091")
    assert "cannot be resolved; is the miner running" in record.problems[0]


async def test_a_port_that_speaks_tls(tmp_path: Path) -> None:
    async with serving(b"", tls=certificate(tmp_path)) as port:
        record = await asked(tmp_path, port)
    assert "speaks TLS, an axon does not" in record.problems[0]


PAGE = http(b"<html>Not found</html>", status="404 Not Found", kind="text/html")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (PAGE, "is not an axon: it answered status 404 with text/html instead of JSON"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "is not an axon: it does not speak HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x46", "is not an axon: it speaks TLS"),
        (b"", "closed the connection without an answer"),
    ],
)
async def test_what_listens_there_is_no_axon(tmp_path: Path, answer: bytes, words: str) -> None:
    async with serving(answer) as port:
        record = await asked(tmp_path, port)
    assert record.outcome == "none"
    assert words in record.problems[0]


async def test_a_miner_that_does_not_answer_in_time(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(silent) as port:
        record = await asked(tmp_path, port, timeout=0.3)
    assert record.status == 408
    assert "no answer from" in record.problems[0]
    assert "within 0.3 s" in record.problems[0]


HOSTILE = "[/x] \x1b[2J \u202e" + "y" * 5000


@pytest.mark.parametrize(
    "answer",
    [
        {"outcome": 7},
        {"outcome": None},
        {"outcome": ["completed"]},
        {"outcome": HOSTILE, "reason": HOSTILE, "reason_code": HOSTILE, "miner_version": HOSTILE},
        {"outcome": "completed", "reason": HOSTILE, "timings": {HOSTILE: 1.0}},
        {"outcome": "completed", "timings": {"lift": {"gpu": 1.0}}},
        {"outcome": "completed", "timings": {str(n): 1.0 for n in range(5000)}},
        {"outcome": "completed", "timings": {"lift": float("nan")}, "total_s": float("inf")},
        {"outcome": "completed", "gaussians": -1},
        {"outcome": "completed", "gaussians": 10**400},
        {"outcome": "completed", "gaussians": 1.5},
        {"outcome": "completed", "results": "ünicode"},
        {"outcome": "completed", "results": "A"},
        {"outcome": "completed", "results": ["AAAA"]},
        {"outcome": "\ud800"},
        {"dendrite": None},
        {"axon": None},
        {"axon": {"status_code": "yes"}},
        {"dendrite": {"status_code": 10**30}},
        {},
        [],
        None,
        "completed",
        7,
    ],
    ids=lambda answer: repr(answer)[:40],
)
async def test_an_answer_of_odd_types_is_a_record_and_no_crash(tmp_path: Path, answer: Any) -> None:
    async with serving(http(json.dumps(answer).encode())) as port:
        record = await asked(tmp_path, port)
    assert not record.good
    assert record.problems[0] != ""
    assert len(record.problems[0]) < 2000


@pytest.mark.parametrize("status", ["0", "99", "abc", "1" * 400, "503", ""])
async def test_a_status_in_the_headers_of_an_answer_is_no_crash(
    tmp_path: Path, status: str
) -> None:
    async with serving(http(b"{}", f"bt_header_axon_status_code: {status}")) as port:
        record = await asked(tmp_path, port)
    assert not record.good


async def test_a_miner_on_an_ipv6_address_is_asked(tmp_path: Path) -> None:
    async with offline_dendrite(VALIDATOR) as dendrite:
        running = Running(tmp_path / "logs", dendrite, ip="::1")
        await running.service.start()
        await running.transport.serve()
        try:
            record = await asked(tmp_path, 1, miner=f"[::1]:{running.target.port}")
        finally:
            await running.service.drain()
            await running.transport.close()
            running.log.close()
    assert record.good, record.problems


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8091", ("127.0.0.1", 8091)),
        ("localhost:1", ("localhost", 1)),
        ("[::1]:8091", ("::1", 8091)),
        ("[fe80::1%eth0]:65535", ("fe80::1%eth0", 65535)),
        ("[::ffff:1.2.3.4]:80", ("::ffff:1.2.3.4", 80)),
    ],
)
def test_addresses(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", ":8091", "host", "host:", "host:0", "host:65536", "host:٣", "host:-1", "host:1e3"),
        *("::1:8091", "[::1]", "[::1:8091", "[host]:80", "[]:80", "http://host:8091", "a b:80"),
        "host:" + "9" * 5000,
    ],
)
def test_what_is_no_address_is_a_start_up_message(text: str) -> None:
    with pytest.raises(SetupError, match="--miner must be HOST:PORT"):
        parse_address(text)
