"""Forms as browsers, curl, base miners and their callers send them."""

import base64
import json
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from PIL import Image
from starlette.exceptions import HTTPException

from miner.transports.http.bodies import Field, read_fields
from miner.transports.http.forms import Form
from protocol.errors import TaskError
from protocol.tasks import ImageTask, Task, TaskLimits, TextTask
from tests.support.fakes import Remembering
from tests.support.http_running import form, running

URLENCODED = {"content-type": "application/x-www-form-urlencoded"}
CASES = Path(__file__).parents[3] / "golden" / "cases"


def picture(format_: str = "PNG", tail: bytes = b"") -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(file, format_)
    return file.getvalue() + tail


def task_of(*fields: Field) -> Task:
    return Form(fields).task("t", TaskLimits())


def text_of(*fields: Field) -> str:
    task = task_of(*fields)
    assert isinstance(task, TextTask)
    return task.prompt


def image_of(*fields: Field) -> bytes:
    task = task_of(*fields)
    assert isinstance(task, ImageTask)
    return task.image


def refusal_of(*fields: Field) -> str:
    with pytest.raises(TaskError) as caught:
        task_of(*fields)
    return str(caught.value)


PROMPT = Field("prompt", b"a red car")
FILE = Field("prompt_image_file", picture(), "a.png")


def test_an_input_left_empty_is_not_given() -> None:
    no_file = Field("prompt_image_file", b"", "")
    assert text_of(PROMPT, no_file, Field("seed", b"")) == "a red car"
    assert text_of(PROMPT, Field("prompt_image_file", b" ")) == "a red car"
    assert image_of(FILE, Field("prompt", b"\r\n")) == picture()
    assert "prompt is empty" in refusal_of(Field("prompt", b" "), no_file)


def test_what_a_browser_posts_for_a_prompt_and_an_empty_file_input_is_a_text_task() -> None:
    body = (CASES / "browser_form_empty_file.bin").read_bytes()
    assert text_of(*read_fields("multipart/form-data; boundary=B", body)) == "a red car"


def test_fields_of_other_names_are_ignored_files_too() -> None:
    other = (Field("mask", picture(), "m.png"), Field("steps", b"9"), Field("", b""))
    assert text_of(PROMPT, *other) == "a red car"
    assert image_of(*other, FILE) == picture()


@pytest.mark.parametrize(
    ("field", "hint"),
    [
        (Field("promt", b"a red car"), "it has promt: did you mean prompt?"),
        (Field("Prompt", b"a red car"), "did you mean prompt?"),
        (Field("prompts", b"a red car"), "did you mean prompt?"),
        (Field("image", picture(), "a.png"), "did you mean prompt_image_file?"),
        (Field("file", picture(), "a.png"), "did you mean prompt_image_file?"),
        (Field("photo", picture(), "a.png"), "did you mean prompt_image_file?"),
        (Field("prompt_image", b"aGk="), "did you mean prompt_image_file?"),
        (Field("description", b"a red car"), 'it has description; send curl -F "prompt='),
        (Field('{"prompt": "a red car"}', b""), "-H 'Content-Type: application/json'"),
        (Field("\x1b[2J" + "x" * 10_000, b""), r"it has \x1b[2Jxxx"),
    ],
)
def test_a_form_without_a_prompt_names_what_it_has_instead(field: Field, hint: str) -> None:
    message = refusal_of(field)
    assert message.startswith("the form has neither the field prompt")
    assert hint in message
    assert len(message) < 300
    assert message.isprintable()


def test_a_field_given_twice_is_refused_unless_it_says_the_same() -> None:
    assert "prompt 2 times" in refusal_of(PROMPT, Field("prompt", b"a blue car"))
    assert "prompt_image_file 2 times" in refusal_of(
        FILE, Field("prompt_image_file", picture("JPEG"), "b")
    )
    assert text_of(PROMPT, PROMPT, Field("prompt", b"")) == "a red car"


@pytest.mark.parametrize(
    ("seed", "expected"),
    [
        (b"7", 7),
        (b" 7\r\n", 7),
        (b"0", 0),
        (b"4294967295", 4294967295),
        (b"-1", None),
        (b"", None),
        (b"\xff", "got ?"),
        (b"-2", "got -2"),
        (b"--1", "got --1"),
        (b"7.5", "got 7.5"),
        (b"4294967296", "got 4294967296"),
        (b"9" * 5000, "got 99"),
    ],
)
@pytest.mark.parametrize("asked", [PROMPT, FILE], ids=["text", "image"])
def test_a_seed_is_a_number_or_minus_one_for_any(
    asked: Field, seed: bytes, expected: int | str | None
) -> None:
    if isinstance(expected, str):
        assert expected in refusal_of(asked, Field("seed", seed))
    else:
        assert task_of(asked, Field("seed", seed)).seed == expected


def test_text_is_utf_8_or_in_the_encoding_that_it_names() -> None:
    assert text_of(Field("prompt", "grün".encode(), charset="latin-1")) == "grün"
    assert text_of(Field("prompt", "grün".encode("latin-1"), charset="ISO-8859-1")) == "grün"
    assert text_of(Field("prompt", "дом".encode("koi8-r"), charset="koi8-r")) == "дом"
    assert text_of(Field("prompt", "\ufeffgrün".encode())) == "grün"
    for charset in ("", "klingon", "punycode", "rot13", "utf-16", "\x00", "x" * 500):
        message = refusal_of(Field("prompt", "grün".encode("latin-1"), charset=charset))
        assert message == "prompt is not text in UTF-8; send it in that encoding"


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("name", ["prompt", "prompt_image_file"])
def test_a_picture_in_base64_is_an_image_task(name: str, format_: str) -> None:
    data = picture(format_)
    for text in (
        base64.b64encode(data),
        base64.encodebytes(data),
        base64.urlsafe_b64encode(data).rstrip(b"="),
        f"data:image/{format_.lower()};base64,".encode() + base64.b64encode(data),
    ):
        assert image_of(Field(name, text)) == data
        if name == "prompt_image_file":  # curl -F prompt_image_file=@chair.png.base64
            assert image_of(Field(name, text, "chair.png.base64")) == data


def test_the_bytes_of_a_picture_are_one_with_or_without_a_file_name() -> None:
    assert image_of(Field("prompt_image_file", picture())) == picture()
    assert "send text, or an image as prompt_image_file" in refusal_of(
        Field("prompt", picture(), "a.png")
    )
    assert "prompt is not text" in refusal_of(Field("prompt", picture()))


def test_a_picture_beyond_a_limit_is_refused_as_a_picture() -> None:
    big = base64.b64encode(picture(tail=bytes(6 * 2**20)))
    message = refusal_of(Field("prompt", big))
    assert message.startswith("image prompt has")
    assert "the limit is 8388608" in message
    assert "neither PNG, JPEG nor WebP" in refusal_of(
        Field("prompt", base64.b64encode(picture("GIF")))
    )
    assert "prompt has 30000 characters" in refusal_of(Field("prompt", b"a word" * 5000))


def test_an_id_is_the_callers_or_a_fresh_one() -> None:
    assert Form((PROMPT, Field("task_id", b" t-1 "))).task_id() == "t-1"
    fresh = Form((PROMPT, Field("task_id", b"")))
    assert len({fresh.task_id() for _ in range(3)}) == 3
    for bad in (b"x" * 129, b"\xff"):
        form_ = Form((PROMPT, Field("task_id", bad)))
        assert len(form_.task_id()) == 36
        with pytest.raises(TaskError, match="task_id"):
            form_.task(form_.task_id(), TaskLimits())


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: quote_plus(text),
        lambda text: "".join(f"%{byte:02X}" for byte in text.encode()),
        lambda text: text,  # curl -d "prompt=$(base64 -w0 chair.png)": its + means a space.
    ],
    ids=["escaped", "every character escaped", "not escaped"],
)
async def test_the_largest_picture_arrives_in_an_urlencoded_form(
    tmp_path: Path, encode: Any
) -> None:
    data = picture(tail=b"\xff\xef\xbe" * (2 * 2**20))[: 6 * 2**20]
    text = base64.b64encode(data).decode()
    assert "+" in text
    async with running(tmp_path, engine=Remembering()) as miner:
        body = BytesIO(f"seed=-1&prompt={encode(text)}".encode())
        reply = await miner.post(data=body, headers=URLENCODED)
        assert reply.status == 200, reply.body
        (task,) = miner.engine.tasks
    assert (task.image, task.seed) == (data, None)


async def test_json_is_taken_and_the_answer_has_the_callers_id(tmp_path: Path) -> None:
    async with running(tmp_path, engine=Remembering()) as miner:
        body = {"prompt": "grüner Baum", "seed": 7, "task_id": "größe 1"}
        reply = await miner.post(json=body)
        assert (reply.status, reply.headers["x-task-id"]) == (200, "gr??e?1")
        refused = await miner.post(data=form(prompt="a cube", seed="x", task_id="größe 1"))
        assert (refused.status, refused.json["task_id"]) == (422, "größe 1")
        assert refused.headers["x-task-id"] == "gr??e?1"
        (task,) = miner.engine.tasks
        assert [line["task_id"] for line in miner.events("answered")] == ["gr??e?1"] * 2
    assert (task.prompt, task.seed, task.id) == ("grüner Baum", 7, "größe 1")


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ("prompt=grüner Baum".encode(), URLENCODED),
        (f"prompt={quote('grüner Baum')}".encode(), URLENCODED),
        (
            "prompt=grüner+Baum&task_id=".encode("latin-1"),
            {"content-type": URLENCODED["content-type"] + "; charset=latin-1"},
        ),
        (json.dumps({"prompt": "grüner Baum"}).encode(), {"content-type": "application/json"}),
    ],
)
async def test_a_prompt_beyond_ascii_arrives_as_it_was_written(
    tmp_path: Path, body: bytes, headers: dict[str, str]
) -> None:
    async with running(tmp_path, engine=Remembering()) as miner:
        assert (await miner.post(data=body, headers=headers)).status == 200
        assert miner.engine.tasks[0].prompt == "grüner Baum"


async def test_no_temporary_folder_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    data = picture(tail=bytes(3 * 2**20))
    async with running(tmp_path) as miner:
        assert (await miner.post(data=form(prompt_image_file=data))).status == 200


async def test_bodies_of_all_requests_have_one_bound(tmp_path: Path) -> None:
    async with running(tmp_path) as miner:
        miner.transport._intake._forms._max_held_bytes = 2**20
        data = picture(tail=bytes(2**20))
        reply = await miner.post(data=form(prompt_image_file=data))
        assert (reply.status, reply.headers["retry-after"]) == (503, "5")
        assert "take more than 1048576 bytes" in reply.message
        (refused,) = miner.events("refused")
        assert refused["reason_code"] == "overloaded"
        for _ in range(3):  # What was refused and what was read is given back.
            assert (await miner.post(data={"prompt": "a cube"})).status == 200
        assert miner.transport._intake._forms._held == 0


def test_a_body_of_another_kind_says_what_to_send() -> None:
    with pytest.raises(HTTPException) as caught:
        read_fields("text/plain", b"a red car")
    assert 'curl -F "prompt=a blue cube"' in caught.value.detail
