"""What a body is taken apart into, and what that costs at most."""

import json
import time
import tracemalloc
from collections.abc import Callable
from urllib.parse import quote_plus, unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from miner.transports.http import bodies
from miner.transports.http.bodies import MAX_FIELDS, Field, read_fields
from miner.transports.http.forms import Form, max_body_bytes
from protocol.errors import TaskError
from protocol.tasks import TaskLimits
from scripts.benchmarks.fuzz.forms import good_form, mutated_form

URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=B"


def part(headers: str, content: bytes = b"a red car") -> bytes:
    return b"--B\r\n" + headers.encode() + b"\r\n\r\n" + content + b"\r\n--B--\r\n"


def test_urlencoded_text_may_be_escaped_or_not() -> None:
    raw = "prompt=grüner Baum&seed=7".encode()  # As curl -d sends it.
    escaped = f"prompt={quote_plus('grüner Baum')}&seed=7".encode()
    expected = [Field("prompt", "grüner Baum".encode()), Field("seed", b"7")]
    assert read_fields(URLENCODED, raw) == read_fields(URLENCODED, escaped) == expected


@given(st.text(alphabet="%0aF4Gz+ ü&", max_size=40), st.integers(4, 9))
def test_escapes_are_read_as_the_standard_library_reads_them(text: str, block: int) -> None:
    data = text.encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bodies, "_UNESCAPE_BLOCK", block)
        assert bodies._unescape(data) == unquote_to_bytes(data.replace(b"+", b" "))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ('Content-Disposition: form-data; name="prompt"', Field("prompt", b"a red car")),
        ("content-disposition:form-data;name=prompt", Field("prompt", b"a red car")),
        (
            'Content-Disposition: form-data; name="prompt"; filename=""',
            Field("prompt", b"a red car", ""),
        ),
        (
            'Content-Type: text/plain; charset=koi8-r\r\nContent-Disposition: form-data; name="b"',
            Field("b", b"a red car", charset="koi8-r"),
        ),
        ('Content-Disposition: form-data; name="grün"', Field("grün", b"a red car")),
        ("Content-Disposition: form-data", Field("", b"a red car")),
        ("X-Other: 1", Field("", b"a red car")),
    ],
)
def test_a_part_is_described_by_its_headers(headers: str, expected: Field) -> None:
    assert read_fields(MULTIPART, part(headers)) == [expected]


def test_the_charset_of_the_form_is_that_of_its_parts() -> None:
    (found,) = read_fields(f"{MULTIPART}; charset=latin-1", part("a: b"))
    assert found.charset == "latin-1"


def test_json_is_read_as_a_form_of_its_members() -> None:
    document = {"prompt": "grüner, Baum", "seed": 7, "task_id": None, "other": [1]}
    for body in (json.dumps(document).encode(), json.dumps(document, ensure_ascii=False).encode()):
        fields = read_fields("application/json; charset=utf-8", body)
        assert fields[:2] == [Field("prompt", "grüner, Baum".encode()), Field("seed", b"7")]
        assert [field.name for field in fields] == ["prompt", "seed", "other"]


@pytest.mark.parametrize(
    ("content_type", "body", "status", "message"),
    [
        (MULTIPART, b"no boundary anywhere", 400, "Invalid multipart"),
        ("multipart/form-data", b"--x", 400, "Missing boundary"),
        ("multipart/form-data; boundary=", b"--x", 400, "Missing boundary"),
        (f"multipart/form-data; boundary={'x' * 300}", b"", 400, "exceeds maximum of 256"),
        (MULTIPART, b"", 400, "ends before its closing boundary"),
        (MULTIPART, part("a: b")[:-8], 400, "ends before its closing boundary"),
        (MULTIPART, part("a b: c"), 400, "Invalid multipart"),
        (MULTIPART, part("a: " + "b" * 9000), 400, "Invalid multipart"),
        (MULTIPART, b"--B\r\n\r\nx\r\n" * 100 + b"--B--\r\n", 400, "Too many fields"),
        (URLENCODED, b"&" * MAX_FIELDS, 400, "Too many fields"),
        ("application/json", b'{"prompt": "a', 400, "not JSON"),
        ("application/json", b"\xff\xfe{", 400, "written in UTF-8"),
        ("application/json", b'{"prompt": "\\ud800"}', 400, "half of a character"),
        ("application/json", b'{"prompt": "a", "prompt": "b"}', 400, "stands twice"),
        ("application/json", b'["a red car"]', 400, "no object"),
        ("application/json", b'{"prompt": ["a red car"]}', 400, "prompt is neither text nor"),
        ("application/json", b'{"prompt": {"text": "a"}}', 400, "prompt is neither text nor"),
        ("application/json", b'{"prompt": true}', 400, "prompt is neither text nor"),
        ("application/json", b'{"prompt": "a", "seed": [7]}', 400, "seed is neither text nor"),
        ("application/json", b"[" * 3000, 400, "within each other"),
        ("application/json", b"[" * 5000, 400, "more than 4096 parts"),
        ("text/plain", b"prompt=a", 415, "is text/plain; send multipart/form-data"),
        ("", b"prompt=a", 415, "is missing; send multipart/form-data"),
        ("\x1b[2J", b"prompt=a", 415, r"is \x1b[2j; send"),
        ("a;" * 600, b"prompt=a", 415, "more than 1024 characters"),
    ],
)
def test_a_damaged_body_is_refused_with_the_reason(
    content_type: str, body: bytes, status: int, message: str
) -> None:
    with pytest.raises(HTTPException) as caught:
        read_fields(content_type, body)
    assert caught.value.status_code == status
    assert message in caught.value.detail


def outcome(content_type: str, body: bytes) -> tuple[int, str]:
    """Status and reason that the transport would answer, or 200 and the id of the task."""
    try:
        form = Form(tuple(read_fields(content_type, body)))
    except HTTPException as error:
        return error.status_code, error.detail
    task_id = form.task_id()
    try:
        return 200, form.task(task_id, TaskLimits()).id
    except TaskError as error:
        return 422, str(error)


@given(st.integers(0, 2**63))
@settings(max_examples=400)
def test_any_mutated_form_is_a_task_or_a_refusal(seed: int) -> None:
    status, text = outcome(*mutated_form(seed))
    assert status in (200, 400, 415, 422)
    assert text


@given(st.binary(max_size=300), st.sampled_from([URLENCODED, MULTIPART, "application/json"]))
def test_any_bytes_are_a_task_or_a_refusal(body: bytes, content_type: str) -> None:
    assert outcome(content_type, body)[0] in (200, 400, 422)


@pytest.mark.parametrize("seed", range(20))
def test_the_form_that_is_mutated_was_good(seed: int) -> None:
    assert outcome(*good_form(seed))[0] == 200


SIZE = max_body_bytes(TaskLimits())
HOSTILE: dict[str, tuple[str, Callable[[], bytes]]] = {
    "every character escaped": (URLENCODED, lambda: b"prompt=" + b"%2F" * (SIZE // 3)),
    "percent signs": (URLENCODED, lambda: b"prompt=" + b"%" * SIZE),
    "spaces": (URLENCODED, lambda: b"prompt=" + b"+" * SIZE),
    "empty fields": (URLENCODED, lambda: b"&" * SIZE),
    "equal signs": (URLENCODED, lambda: b"prompt" + b"=" * SIZE),
    "a long name": (URLENCODED, lambda: b"a" * SIZE),
    "tiny parts": (MULTIPART, lambda: b"--B\r\n\r\n\r\n" * (SIZE // 9)),
    "headers": (MULTIPART, lambda: b"--B\r\n" + b"a: b\r\n" * (SIZE // 6)),
    "one header": (MULTIPART, lambda: b"--B\r\na: " + b"b" * SIZE),
    "a header's name": (MULTIPART, lambda: b"--B\r\n" + b"b" * SIZE),
    "line ends": (MULTIPART, lambda: b"--B\r\n\r\n" + b"\r" * SIZE + b"\r\n--B--\r\n"),
    "nearly boundaries": (MULTIPART, lambda: b"--B\r\n\r\n" + b"\r\n--" * (SIZE // 4)),
    "nearly the end": (MULTIPART, lambda: b"--B\r\n\r\n" + b"\r\n--B-" * (SIZE // 6)),
    "boundaries with a tail": (MULTIPART, lambda: b"--B\r\n\r\n" + b"\r\n--Bx" * (SIZE // 6)),
    "a preamble": (MULTIPART, lambda: b"\r\n" * (SIZE // 2)),
    "an epilogue": (MULTIPART, lambda: b"--B--\r\n" + b"\r\n" * (SIZE // 2)),
    "deep JSON": ("application/json", lambda: b"[" * SIZE),
    "wide JSON": ("application/json", lambda: b"[" + b"[]," * (SIZE // 3)),
    "escaped JSON": ("application/json", lambda: b'{"prompt":"' + b"\\u0041" * (SIZE // 6) + b'"}'),
    "a long number": ("application/json", lambda: b'{"seed":' + b"9" * SIZE + b"}"),
    "white space": ("application/json", lambda: b" " * SIZE),
    "a broken picture": (URLENCODED, lambda: b"prompt=iVBORw0KGgoAAAANSUhEUgAAA" + b"+" * SIZE),
    "a picture of line ends": (
        URLENCODED,
        lambda: b"prompt=data:image/png;base64," + b"%0A" * (SIZE // 3),
    ),
}


@pytest.mark.parametrize(("content_type", "make"), HOSTILE.values(), ids=HOSTILE.keys())
def test_the_most_hostile_body_costs_little_time_and_memory(
    content_type: str, make: Callable[[], bytes]
) -> None:
    body = make()
    assert len(body) > 0.95 * SIZE
    started = time.thread_time()
    outcome(content_type, body)
    assert time.thread_time() - started < 1.0
    tracemalloc.start()
    try:
        outcome(content_type, body)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak + len(body) < 300e6
