"""What the HTTP transport refuses, and with which words."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from miner.transports.http.access import check_exposure
from miner.transports.http.forms import max_body_bytes
from miner.transports.http.server import HttpTransport
from protocol.errors import SetupError
from protocol.images import ImageLimits
from protocol.tasks import MAX_PROMPT_CHARACTERS, MAX_SEED, TaskLimits
from tests.support.http_running import form, running


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "neither the field prompt"),
        ({"prompt": "a cube", "prompt_image_file": b"x"}, "both the field prompt"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)}, "prompt has 1025 characters"),
        ({"prompt": "a\x00cube"}, "control character U+0000"),
        ({"prompt": b"a cube"}, "prompt is a file"),
        ({"prompt_image_file": "aGVsbG8="}, "prompt_image_file is text; send a file"),
        ({"prompt_image_file": b"GIF89a..."}, "neither PNG, JPEG nor WebP"),
        ({"prompt_image_file": b""}, "neither PNG, JPEG nor WebP (it starts with nothing)"),
        ({"prompt": "a cube", "seed": "-2"}, f"seed must be a whole number from 0 to {MAX_SEED}"),
        ({"prompt": "a cube", "seed": str(MAX_SEED + 1)}, "got 4294967296"),
        ({"prompt": "a cube", "seed": "9" * 5000}, "seed must be"),
        ({"prompt": "a cube", "seed": "\u0661"}, "seed must be"),
        ({"prompt": "a cube", "seed": b"1"}, "got a file"),
    ],
)
async def test_an_unusable_task_is_422_and_logged_once(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    async with running(tmp_path) as miner:
        reply = await miner.post(data=form(**fields, other="ignored"))
        assert (reply.status, reply.json["reason_code"]) == (422, "bad_task")
        assert message in reply.message
        (answered,) = miner.events("answered")
        assert (answered["outcome"], answered["transport"]) == ("rejected", "http")
        assert miner.engine.ran == []
        assert (await miner.post(data={"prompt": "a blue cube"})).status == 200


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"no boundary anywhere", "multipart/form-data; boundary=x", "Invalid multipart"),
        (b"--x", "multipart/form-data", "Missing boundary"),
        (b"&".join(b"a=1" for _ in range(100)), "application/x-www-form-urlencoded", "Too many"),
    ],
)
async def test_a_damaged_form_is_400(
    tmp_path: Path, body: bytes, content_type: str, message: str
) -> None:
    async with running(tmp_path) as miner:
        reply = await miner.post(data=body, headers={"content-type": content_type})
        assert reply.status == 400
        assert message in reply.message


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_body_beyond_the_limit_is_413_declared_or_streamed(
    tmp_path: Path, streamed: bool
) -> None:
    limits = TaskLimits(image=ImageLimits(bytes=1000))
    body = b"x" * (max_body_bytes(limits) + 1)

    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 4096):
            yield body[start : start + 4096]

    headers = {"content-type": "multipart/form-data; boundary=x"}
    async with running(tmp_path, limits=limits) as miner:
        reply = await miner.post(data=parts() if streamed else body, headers=headers)
        assert reply.status == 413
        assert reply.message == f"the body has more than {len(body) - 1} bytes, which is the limit"
        (refused,) = miner.events("refused")
        assert (refused["transport"], refused["reason_code"]) == ("http", "body_too_large")
        assert miner.events("answered") == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/generate/", 405),
        ("POST", "/health", 405),
        ("GET", "/nothing", 404),
        ("POST", "/generate//", 404),
        ("GET", "/docs/nothing", 404),
        ("POST", "/docs", 405),
        ("PUT", "/jobs", 405),
        ("POST", "/jobs/x", 405),
    ],
)
async def test_other_addresses_are_answered_in_json_without_a_redirect(
    tmp_path: Path, method: str, path: str, status: int
) -> None:
    async with running(tmp_path) as miner:
        reply = await miner.ask(method, path)
        assert reply.status == status
        assert reply.message


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic s3cret-k\u00e9y"}, 401),
        ({"Authorization": "Bearer"}, 401),
        ({"X-API-Key": ""}, 401),
        ({"X-API-Key": "s3cret"}, 401),
        ({"Authorization": "Bearer s3cret-k\u00e9y"}, 200),
        ({"authorization": "bearer s3cret-k\u00e9y"}, 200),
        ({"X-API-Key": "s3cret-k\u00e9y"}, 200),
    ],
)
async def test_only_the_key_opens(tmp_path: Path, headers: dict[str, str], status: int) -> None:
    async with running(tmp_path, api_key="s3cret-k\u00e9y") as miner:
        reply = await miner.post(data={"prompt": "a blue cube"}, headers=headers)
        assert reply.status == status
        assert (await miner.ask("GET", "/health")).status == 200
        if status == 401:
            assert reply.headers["www-authenticate"] == "Bearer"
            (refused,) = miner.events("refused")
            assert refused["reason_code"] == "bad_api_key"
            assert miner.engine.ran == []
        assert "s3cret" not in miner.log.path.read_text()


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_this_machine_needs_no_key(ip: str) -> None:
    check_exposure(ip, None, allow_open=False)


@pytest.mark.parametrize("ip", ["0.0.0.0", "::", "192.168.1.5", "miner.example"])
def test_beyond_this_machine_a_key_is_needed_unless_told_otherwise(ip: str) -> None:
    with pytest.raises(SetupError, match="no API key") as error:
        check_exposure(ip, None, allow_open=False)
    assert "MINER_HTTP_API_KEY" in error.value.fix
    check_exposure(ip, None, allow_open=True)
    check_exposure(ip, "a key", allow_open=False)


@pytest.mark.parametrize("key", ["", "  "])
def test_an_empty_key_is_a_mistake(key: str) -> None:
    with pytest.raises(SetupError, match="is empty"):
        check_exposure("127.0.0.1", key, allow_open=True)


async def test_a_taken_port_names_the_setting(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        with pytest.raises(SetupError, match=f"port {miner.port}") as error:
            HttpTransport(miner.service, miner.log, ip="127.0.0.1", port=miner.port)
        assert "--http.port" in error.value.fix


async def test_a_caller_that_goes_away_half_way_leaves_no_trace(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        _, writer = await asyncio.open_connection("127.0.0.1", miner.port)
        writer.write(
            b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
            b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
        )
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await miner.post(data={"prompt": "a blue cube"})).status == 200
        assert len(miner.events("answered")) == 1


async def test_signals_stay_with_the_program(tmp_path: Path) -> None:
    import signal

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with running(tmp_path):
        during = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert during == before
