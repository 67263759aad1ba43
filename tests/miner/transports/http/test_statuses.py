"""Every status that the port answers, as docs/http.md lists them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from miner.entry import Watch
from miner.request import Answer, Request
from miner.transports.http import server
from miner.transports.http.job_store import JobLimits
from tests.support.http_running import Reply, Running, running

DOCUMENT = (Path(__file__).parents[4] / "docs" / "http.md").read_text()
FORM = "Content-Type: application/x-www-form-urlencoded"
JSON = "Content-Type: application/json"
PROMPT = b"prompt=a+cube"


def request(line: str = "POST /generate", *headers: str, body: bytes = PROMPT) -> bytes:
    length = (
        () if any("ength" in header for header in headers) else (f"Content-Length: {len(body)}",)
    )
    host = () if any(header.startswith("Host") for header in headers) else ("Host: localhost",)
    lines = (f"{line} HTTP/1.1", *host, *headers, *length, "Connection: close", "", "")
    return "\r\n".join(lines).encode("latin-1") + body


def answers(answer: Answer) -> Callable[[Running], None]:
    async def handle(request: Request, *, watch: Watch | None = None) -> Answer:
        return answer

    def prepare(miner: Running) -> None:
        miner.service.handle = handle  # type: ignore[method-assign]

    return prepare


def breaks(miner: Running) -> None:
    async def handle(request: Request, *, watch: Watch | None = None) -> Answer:
        raise RuntimeError("a secret of the miner")

    miner.service.handle = handle  # type: ignore[method-assign]


ROWS: list[tuple[str, bytes, int, dict[str, Any]]] = [
    ("a text task", request("POST /generate", FORM), 200, {}),
    ("the other path", request("POST /generate/", FORM), 200, {}),
    ("JSON", request("POST /generate", JSON, body=b'{"prompt": "a cube"}'), 200, {}),
    ("a query is ignored", request("POST /generate?a=b", FORM), 200, {}),
    (
        "a body in chunks",
        request(
            "POST /generate",
            FORM,
            "Transfer-Encoding: chunked",
            "X-Length: 0",
            body=b"d\r\nprompt=a+cube\r\n0\r\n\r\n",
        ),
        200,
        {},
    ),
    ("an unknown charset", request("POST /generate", FORM + "; charset=klingon"), 200, {}),
    ("a charset that is none", request("POST /generate", FORM + "; charset=rot13"), 200, {}),
    ("health", request("GET /health", body=b""), 200, {}),
    ("health of any name", request("GET /health", "Host: evil.example", body=b""), 200, {}),
    ("a format", request("POST /generate", FORM, body=PROMPT + b"&format=spz"), 200, {}),
    ("a job", request("POST /jobs", FORM), 202, {}),
    ("a job as JSON", request("POST /jobs", JSON, body=b'{"prompt": "a cube"}'), 202, {}),
    ("status", request("GET /status", body=b""), 200, {}),
    ("the API's document", request("GET /openapi.json", body=b""), 200, {}),
    ("the API's page", request("GET /docs", body=b""), 200, {}),
    ("the page", request("GET /", body=b""), 200, {}),
    ("a job that is none", request("GET /jobs/x", body=b""), 404, {}),
    ("events of none", request("GET /jobs/x/events", body=b""), 404, {}),
    ("a file of none", request("GET /jobs/x/files/asset.ply", body=b""), 404, {}),
    ("cancelling none", request("DELETE /jobs/x", body=b""), 404, {}),
    ("a list of jobs", request("GET /jobs", body=b""), 405, {}),
    ("a job that is changed", request("PUT /jobs/x", FORM), 405, {}),
    ("a job without a key", request("POST /jobs", FORM), 401, {"api_key": "k"}),
    ("status without a key", request("GET /status", body=b""), 401, {"api_key": "k"}),
    ("a page's job", request("POST /jobs", FORM, "Origin: https://evil.example"), 403, {}),
    ("a job of nothing", request("POST /jobs", FORM, body=b"prompt="), 422, {}),
    ("a bad format", request("POST /generate", FORM, body=PROMPT + b"&format=x"), 422, {}),
    (
        "no place for a job",
        request("POST /jobs", FORM),
        503,
        {"job_limits": JobLimits(running=0)},
    ),
    ("a whole address", request("GET http://localhost/health", body=b""), 200, {}),
    ("a server's whole address", request("GET HTTP://127.0.0.1:1", body=b""), 200, {}),
    ("an escape in one", request("GET http://localhost/%68ealth?x", body=b""), 200, {}),
    ("nothing at one", request("GET http://localhost/nothing", body=b""), 404, {}),
    # It overrules the `Host`, which is that of this machine here.
    ("one of a foreign name", request("POST http://evil.example/generate", FORM), 403, {}),
    ("no HTTP", b"hello\r\n\r\n", 400, {}),
    ("a bad header", request("POST /generate", FORM, "a b"), 400, {}),
    ("no boundary", request("POST /generate", "Content-Type: multipart/form-data"), 400, {}),
    (
        "a damaged form",
        request("POST /generate", "Content-Type: multipart/form-data; boundary=x"),
        400,
        {},
    ),
    ("too many fields", request("POST /generate", FORM, body=b"&" * 99), 400, {}),
    ("damaged JSON", request("POST /generate", JSON, body=b"{"), 400, {}),
    ("no key", request("POST /generate", FORM), 401, {"api_key": "k"}),
    ("a wrong key", request("POST /generate", FORM, "X-API-Key: x"), 401, {"api_key": "k"}),
    ("the key", request("POST /generate", FORM, "X-API-Key: k"), 200, {"api_key": "k"}),
    ("a foreign page", request("POST /generate", FORM, "Origin: https://evil.example"), 403, {}),
    ("a foreign name", request("POST /generate", FORM, "Host: evil.example"), 403, {}),
    ("nothing there", request("GET /nothing", body=b""), 404, {}),
    ("a path with an escape", request("POST /%ff", FORM), 404, {}),
    ("a long path", request("GET /" + "a" * 30_000, body=b""), 404, {}),
    ("another method", request("GET /generate", body=b""), 405, {}),
    ("a preflight", request("OPTIONS /generate", body=b""), 405, {}),
    ("health by POST", request("POST /health", FORM), 405, {}),
    ("an unknown method", request("BREW /generate", body=b""), 405, {}),
    ("a slow body", request("POST /generate", FORM, "Content-Length: 99"), 408, {}),
    ("a large body", request("POST /generate", FORM, "Content-Length: 99999999"), 413, {}),
    ("no type", request("POST /generate"), 415, {}),
    ("another type", request("POST /generate", "Content-Type: text/plain"), 415, {}),
    ("a compressed body", request("POST /generate", FORM, "Content-Encoding: gzip"), 415, {}),
    ("no prompt", request("POST /generate", FORM, body=b"promt=a+cube"), 422, {}),
    ("a bad seed", request("POST /generate", FORM, body=PROMPT + b"&seed=-2"), 422, {}),
    (
        "a long id",
        request("POST /generate", FORM, body=PROMPT + b"&task_id=" + b"x" * 129),
        422,
        {},
    ),
    ("large headers", request("POST /generate", FORM, "X: " + "a" * 1_000_000), 431, {}),
    ("a long address", request("GET /" + "a" * 1_000_000, body=b""), 431, {}),
    (
        "rejected",
        request("POST /generate", FORM),
        422,
        {"prepare": answers(Answer("rejected", "bad_task", "why", "t"))},
    ),
    (
        "failed",
        request("POST /generate", FORM),
        500,
        {"prepare": answers(Answer("failed", "generation_error", "why", "t"))},
    ),
    ("a fault of the miner", request("POST /generate", FORM), 500, {"prepare": breaks}),
    (
        "dropped",
        request("POST /generate", FORM),
        503,
        {"prepare": answers(Answer("dropped", "predicted_late", "why", "t"))},
    ),
    ("loading", request("POST /generate", FORM), 503, {"ready": False}),
    ("health while loading", request("GET /health", body=b""), 503, {"ready": False}),
]


@pytest.mark.parametrize(
    ("asked", "status", "settings"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
async def test_every_request_has_its_status_and_every_refusal_a_message_in_json(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: bytes,
    status: int,
    settings: dict[str, Any],
) -> None:
    if status == 408:
        monkeypatch.setattr(server, "BODY_TIME_LIMIT_S", 0.2)
    prepare = settings.get("prepare", lambda miner: None)
    options = {name: value for name, value in settings.items() if name != "prepare"}
    async with running(tmp_path, **options) as miner:
        prepare(miner)
        reply = await miner.exchange(asked)
        assert reply.status == status, reply.body[:300]
        _check(reply)
        assert (await miner.ask("GET", "/health")).status == (503 if "ready" in options else 200)


def _check(reply: Reply) -> None:
    assert not any(name.startswith("access-control") for name in reply.headers)
    assert int(reply.headers["content-length"]) == len(reply.body)
    content_type = reply.headers["content-type"]
    if reply.status == 200 and content_type == "application/octet-stream":
        assert reply.body.startswith((b"ply\n", b"\x28\xb5\x2f\xfd"))
    elif content_type.startswith("text/html"):
        assert "default-src 'none'" in reply.headers["content-security-policy"]
    elif reply.status >= 400 and "status" not in reply.json:
        assert reply.message
        assert "secret" not in reply.message
        assert ("retry-after" in reply.headers) == (reply.status == 503)
        assert ("allow" in reply.headers) == (reply.status == 405)
        assert ("www-authenticate" in reply.headers) == (reply.status == 401)


async def test_head_of_health_is_its_status_without_a_body(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        reply = await miner.exchange(request("HEAD /health", body=b""))
    assert (reply.status, reply.body) == (200, b"")


async def test_a_client_that_waits_for_100_continue_gets_it(tmp_path: Path) -> None:
    async with running(tmp_path, engine=None) as miner:
        reply = await miner.exchange(request("POST /generate", FORM, "Expect: 100-continue"))
    assert reply.status == 100
    assert reply.body.startswith(b"HTTP/1.1 200")


def test_the_document_lists_these_statuses_and_no_others() -> None:
    table = DOCUMENT.partition("## When there is no file")[2].partition("\n\nThe budget")[0]
    listed = {
        int(status)
        for row in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
        for status in row.split(", ")
    }
    assert listed == {status for _, _, status, _ in ROWS if status >= 400}
