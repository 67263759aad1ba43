"""What each answer or fault of a validator leads to, as docs/pull-protocol.md has it."""

import asyncio
import re
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from miner.chain.metagraph import Neuron
from miner.transports.pull import bounded_answer, calls, dendrite
from miner.transports.pull.calls import NoAnswer
from protocol.synapses import PullTask
from scripts.free_port import free_port
from tests.miner.transports.pull.test_calls import calling
from tests.support.fake_validators import ACCEPTED, START, Pulling, StartPulling, text
from tests.support.running import VALIDATOR
from tests.support.strange_servers import certificate, http, serving
from tests.support.waiting import until

pytestmark = pytest.mark.filterwarnings("ignore:Accessing the 'model_fields' attribute")

DOCUMENT = Path(__file__).parents[4] / "docs" / "pull-protocol.md"
GIVEN_UP, LATER, SOON = "given up", "sent again after 31 s", "sent again after 2 s"


def refusal(status: str) -> bytes:
    code = status.split()[0]
    return http(
        b'{"message": "no"}',
        f"bt_header_axon_status_code: {code}",
        "bt_header_axon_status_message: no",
        status=status,
    )


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


CASES: dict[str, Any] = {
    "401": (refusal("401 Unauthorized"), 401, GIVEN_UP),
    "403": (refusal("403 Forbidden"), 403, GIVEN_UP),
    "404": (refusal("404 Not Found"), 404, GIVEN_UP),
    "429": (refusal("429 Too Many Requests"), 429, LATER),
    "500": (refusal("500 Internal Server Error"), 500, LATER),
    "503": (refusal("503 Service Unavailable"), 503, LATER),
    "another status": (refusal("299 Perhaps"), 299, LATER),
    "no connection": (None, 503, SOON),
    "no answer in time": (silent, 408, LATER),
    "connection closed": (b"", 503, LATER),
    "not HTTP, or TLS": (b"SSH-2.0\r\n", 422, LATER),
    "a page instead of JSON": (http(b"<html>", status="502 Bad", kind="text/html"), 422, LATER),
    "JSON of other types": (http(b'{"task": 7, "task_id": 7}'), 422, LATER),
    "an answer that is too large": (http(b" " * 3000), 422, LATER),
}


def test_the_document_has_a_line_for_each_case_and_no_other() -> None:
    table = DOCUMENT.read_text().partition("| the validator's answer |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \|$", table, re.MULTILINE)[1:]
    assert {cells[0]: cells[2] for cells in rows} == {
        name: result for name, (_, _, result) in CASES.items()
    }


async def fault(name: str, port: int) -> NoAnswer:
    answer, status, _ = CASES[name]
    neuron = Neuron(uid=1, hotkey=VALIDATOR.ss58_address, ip="127.0.0.1", port=port)
    async with calling() as caller:
        with pytest.raises(NoAnswer) as caught:
            await caller.pull(neuron)
    assert (caught.value.status, caught.value.reached) == (status, answer is not None)
    assert str(caught.value).isprintable()
    return caught.value


@pytest.mark.parametrize("name", CASES)
async def test_what_a_fault_leads_to(
    start_pulling: StartPulling, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(calls, "PULL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(bounded_answer, "MAX_ANSWER_BYTES", 2000)
    answer, _, result = CASES[name]
    if answer is None:
        error = await fault(name, free_port())
    else:
        async with serving(answer) as port:
            error = await fault(name, port)

    def prepare(pulling: Pulling) -> None:
        pulling.calls.pulls = [error]

    async with start_pulling(prepare) as pulling:
        await until(lambda: "5V" in pulling.saved().validators)
        standing = pulling.saved().validators["5V"]
        assert (standing.failures, standing.ask_after) == (1, START + 60.0)
        pulling.calls.pulls, pulling.calls.answers = [text()], [error, ACCEPTED]
        pulling.time.now += 60.0
        (feedback,) = await pulling.settled()
        assert pulling.time.sleeps == {GIVEN_UP: [], LATER: [31.0], SOON: [2.0]}[result]
        assert feedback["fate"] == ("unknown" if result == GIVEN_UP else "accepted")


async def test_a_validator_behind_tls_is_named_as_such(tmp_path: Path) -> None:
    async with serving(b"", tls=certificate(tmp_path)) as port, calling() as caller:
        neuron = Neuron(uid=1, hotkey=VALIDATOR.ss58_address, ip="127.0.0.1", port=port)
        with pytest.raises(NoAnswer) as caught:
            await caller.pull(neuron)
    assert caught.value.reached


async def test_a_firewall_that_drops_packets_does_not_hold_a_submission(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The result is sent again once there is a way, not given up after 300 s of waiting."""
    monkeypatch.setattr(dendrite, "CONNECT_LIMIT_S", 0.2)
    with socket.socket() as full, ExitStack() as waiting:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # What comes after these is dropped, as by a firewall.
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        neuron = Neuron(
            uid=1, hotkey=VALIDATOR.ss58_address, ip="127.0.0.1", port=full.getsockname()[1]
        )
        async with calling() as caller, asyncio.timeout(5.0):
            with pytest.raises(NoAnswer, match="a firewall does this") as caught:
                await caller._call(neuron, PullTask(), 300.0)
    assert not caught.value.reached
